"""`nearline demo` as a person runs it: one command, from an empty folder; nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import IO

import psutil
import pytest
from playwright.sync_api import expect, sync_playwright

from sandbox.children import wait_until
from sandbox.servers import KafkaServer, ValkeyServer
from tests.browser.test_live_page import FLAGS

ROOT = Path(__file__).resolve().parents[2]
START_DEADLINE_S = 150.0


def start_demo(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NEARLINE_")}
    with (folder / "stderr").open("w") as log:
        return _start(folder, arguments, environment, log)


def _start(
    folder: Path, arguments: tuple[str, ...], environment: dict[str, str], log: IO[str]
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "nearline.py"), "demo", *arguments],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), "COLUMNS": "250"},
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
    )


def processes_in(folder: Path) -> list[str]:
    """Command lines of live processes that name the folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(folder) in line and "pytest" not in line.split()[:3]:
            found.append(line)
    return found


@pytest.mark.timeout(240)
def test_the_demo_ends_with_one_line_of_json_and_leaves_nothing_behind(
    kafka: KafkaServer, valkey: ValkeyServer, tmp_path: Path
) -> None:
    demo = start_demo(tmp_path, "--for", "5", "--json", "--rate", "60")
    out, _ = demo.communicate(timeout=START_DEADLINE_S)
    said = (tmp_path / "stderr").read_text()
    assert demo.returncode == 0, said
    (line,) = out.splitlines()
    result = json.loads(line)
    assert set(result) == {
        *("events", "rows_written", "viewers", "lag_records", "freshness_ms", "dead_letters", "private", "unaccounted"),
        *("generation_id", "kafka_version", "valkey_version"),
    }
    assert (result["unaccounted"], result["lag_records"], result["dead_letters"]) == (0, 0, 0)
    assert result["events"] > 100
    assert result["rows_written"] > 50
    assert 0 < result["freshness_ms"]["p50"] <= result["freshness_ms"]["p99"] <= result["freshness_ms"]["max"]
    assert result["kafka_version"].startswith("4.")
    assert processes_in(tmp_path) == []


@pytest.mark.timeout(300)
def test_a_person_opens_the_page_presses_play_sees_the_row_move_and_ends_it_with_ctrl_c(
    kafka: KafkaServer, valkey: ValkeyServer, browser_path: str, tmp_path: Path
) -> None:
    demo = start_demo(tmp_path, "--port", "0", "--rate", "60")
    try:
        log = tmp_path / "stderr"
        found = wait_until(lambda: "Ctrl-C ends" in log.read_text() or demo.poll() is not None, START_DEADLINE_S)
        assert found, log.read_text()
        assert demo.poll() is None, log.read_text()
        page_url = re.search(r"live page:\s+(http://\S+)", log.read_text())
        home_url = re.search(r"home-page service:\s+(http://\S+)", log.read_text())
        assert page_url is not None
        assert home_url is not None
        with urllib.request.urlopen(home_url[1]) as answer:
            home = json.load(answer)
        assert home["entries"]
        assert home["entries"][0]["title"] != home["entries"][0]["item_id"]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(page_url[1])
            plays = page.get_by_role("button", name=re.compile("^Play "))
            expect(plays.first).to_be_visible(timeout=20_000)
            before = [plays.nth(i).get_attribute("aria-label") for i in range(10)]
            plays.nth(4).click()
            stopwatch = page.locator("#stopwatch")
            expect(stopwatch).to_contain_text("computed, written", timeout=20_000)
            expect(stopwatch).to_contain_text("ms")
            expect(plays.nth(4)).not_to_have_attribute("aria-label", before[4] or "", timeout=20_000)
            after = [plays.nth(i).get_attribute("aria-label") for i in range(10)]
            assert before[4] not in after  # what was just watched has left the row
            page.get_by_role("button", name=re.compile("^Why ")).first.click()
            expect(page.get_by_text("Because you played", exact=False)).to_be_visible(timeout=20_000)
            browser.close()
        assert ". .nearline/demo/env" in log.read_text()
        exported = (tmp_path / ".nearline" / "demo" / "env").read_text()
        for name in ("KAFKA__BOOTSTRAP_SERVERS", "STORE__URL", "GENERATIONS_PATH", "LAKE_PATH"):
            assert f"export NEARLINE_{name}=" in exported
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 0, log.read_text()
        assert "0 unaccounted" in log.read_text()
    finally:
        if demo.poll() is None:
            demo.kill()
        demo.communicate()
    assert wait_until(lambda: processes_in(tmp_path) == [], 20)
