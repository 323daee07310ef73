"""The tutorial, command by command, as its page has them, on real servers: what a page tells people to type does what it says.

The first part (`./run demo`) has tests of its own (`test_demo.py`). What stays is started, asked whether it is well, and told to stop.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from sandbox.children import find_free_port
from sandbox.servers import KafkaServer, ValkeyServer
from sandbox.topics import DEAD_LETTERS, KEEP_FOR_EVER, NEWEST_PER_KEY
from tests.conftest import TopicFactory
from tests.unit.test_docs import DOCS, ROOT, commands_of

STAY = {"updater", "homepage", "trends"}
DEADLINE_S = 90.0
VIEWERS, TITLES = 40, 30


def write_plays(file: Path) -> None:
    """Three weeks of plays of two tastes, with the columns that the page names; one viewer is the one that it asks for."""
    start_ms = int(time.time() * 1000) - 21 * 86_400_000
    lines = ["customer,title_id,ts_ms"]
    for viewer in range(VIEWERS):
        name = "ana-0042" if viewer == 0 else f"viewer-{viewer}"
        for play in range(12):
            title = (viewer % 2 + 2 * (play * (viewer + 1) % (TITLES // 2))) % TITLES
            lines.append(f"{name},title-{title},{start_ms + play * 86_400_000 + viewer * 60_000}")
    file.write_text("\n".join(lines) + "\n")


@pytest.mark.timeout(600)  # a dozen processes, one after the other
async def test_the_tutorial_does_what_it_says(
    kafka: KafkaServer, valkey: ValkeyServer, topic: TopicFactory, namespace: str, tmp_path: Path
) -> None:
    name = await topic(2, config=KEEP_FOR_EVER)
    for suffix, config in ((".impressions", KEEP_FOR_EVER), (".catalogue", NEWEST_PER_KEY), (".dlq", DEAD_LETTERS)):
        await topic(1, name=name + suffix, config=config)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NEARLINE_") or key == "NEARLINE_CACHE_DIR"} | {
        "NEARLINE_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap,
        "NEARLINE_KAFKA__TOPIC": name,
        "NEARLINE_STORE__URL": valkey.url,
        "NEARLINE_STORE__NAMESPACE": namespace,
        "NEARLINE_GENERATIONS_PATH": str(tmp_path / "generations"),
        "NEARLINE_LAKE_PATH": str(tmp_path / "lake"),
        "NEARLINE_TRAIN__FACTORS": "8",
    }  # fmt: skip
    write_plays(tmp_path / "plays.csv")
    page = [command.words for command in commands_of(DOCS / "tutorial.md") if command.words[1:2] == ("nearline",)]
    begin = next(n for n, words in enumerate(page) if words[2:4] == ("import", "events"))
    done = []
    for words in page[begin:]:
        do = stays_and_stops if words[2] in STAY or "--at" in words else runs
        await asyncio.to_thread(do, words[2:], environment, tmp_path)
        done.append(words[2])
    assert done.count("nightly") == 2 and {"evaluate", "replay", "doctor", "settings", "show", "explain", *STAY} <= {
        *done
    }


def runs(words: tuple[str, ...], environment: dict[str, str], folder: Path) -> None:
    command = [sys.executable, str(ROOT / "nearline.py"), *words]
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=DEADLINE_S
    )
    allowed = (0, 1) if words[0] == "doctor" else (0,)  # a test's store has no append-only file of its own, and so on
    assert ended.returncode in allowed and ended.stdout, (words, ended.stdout[-2000:], ended.stderr[-2000:])


def stays_and_stops(words: tuple[str, ...], environment: dict[str, str], folder: Path) -> None:
    port = find_free_port()
    setting = "NEARLINE_HOMEPAGE__PORT" if words[0] == "homepage" else "NEARLINE_HEALTH__PORT"
    command = [sys.executable, str(ROOT / "nearline.py"), *words]
    with (folder / f"{words[0]}.log").open("w+") as log:
        child = subprocess.Popen(command, cwd=folder, env=environment | {setting: str(port)}, stdout=log, stderr=log)
        try:
            ends_s = time.monotonic() + DEADLINE_S
            while not answers(f"http://127.0.0.1:{port}/health/live"):
                assert child.poll() is None and time.monotonic() < ends_s, (words, Path(log.name).read_text()[-2000:])
                time.sleep(0.1)
            if words[0] == "homepage":
                assert b'"entries":[{' in answers(f"http://127.0.0.1:{port}/v1/home/ana-0042")
            child.send_signal(signal.SIGTERM)
            assert child.wait(DEADLINE_S) in (0, 143), (words, Path(log.name).read_text()[-2000:])
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()


def answers(url: str) -> bytes:
    """The body; empty while nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bytes(answer.read())
    except OSError:
        return b""
