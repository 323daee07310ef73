"""The scheduler as a process: it catches a night up, refuses a second of its kind, tells how it is, and leaves at once when told to."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from batch.lock import lake_lock
from runtime.settings import Settings, StoreSettings
from sandbox.processes import environment_of
from sandbox.servers import ValkeyServer
from tests.integration.test_nightly import history, send

ROOT = Path(__file__).parent.parent.parent
Start = Callable[..., subprocess.Popen[str]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def environment(settings: Settings, valkey: ValkeyServer, namespace: str) -> dict[str, str]:
    small = settings.model_copy(
        update={
            "store": StoreSettings(url=valkey.url, namespace=namespace),
            "train": settings.train.model_copy(update={"iterations": 2}),
        }
    )
    return {
        **os.environ,
        **environment_of(small),
        "NEARLINE_HEALTH__PORT": str(free_port()),
        "NEARLINE_LOG_FORMAT": "json",
    }


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Starts a scheduler; what is left of them is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def go(*arguments: str, log: str = "log") -> subprocess.Popen[str]:
        with (tmp_path / log).open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, ROOT / "nearline.py", "nightly", *arguments],
                env=environment,
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        started.append(process)
        return process

    yield go
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def until(condition: Callable[[], object], what: str, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


async def test_a_missed_night_is_caught_up_and_a_second_scheduler_is_refused(
    settings: Settings, environment: dict[str, str], start: Start, tmp_path: Path
) -> None:
    await send(settings, history())
    process = start("--at", "22:00", "--json")
    assert process.stdout is not None
    report = json.loads(process.stdout.readline())
    assert report["activation"] == 1

    second = start("--at", "22:00", log="second")
    assert second.wait(60) == 2
    assert f"another scheduler waits for its hour on this lake (pid {process.pid})" in (tmp_path / "second").read_text()

    base = f"http://127.0.0.1:{environment['NEARLINE_HEALTH__PORT']}"
    async with httpx.AsyncClient(base_url=base) as client:
        assert (await client.get("/health/live")).status_code == 200
        text = (await client.get("/metrics")).text
    told = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(told['nearline_nights_total{outcome="published"}']) == 1
    assert float(told["nearline_night_began_timestamp_seconds"]) > time.time() - 600
    assert float(told["nearline_night_due_timestamp_seconds"]) > time.time()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


@pytest.mark.parametrize("arguments", [("--at", "22:00"), ()])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_during_a_night_ends_it_at_once_and_frees_the_lake(
    settings: Settings,
    environment: dict[str, str],
    start: Start,
    tmp_path: Path,
    number: signal.Signals,
    arguments: tuple[str, ...],
) -> None:
    await send(settings, history())
    environment["NEARLINE_TRAIN__ITERATIONS"] = "100000000"  # for ever
    process = start(*arguments)
    log = tmp_path / "log"
    until(lambda: "train without the held-out plays" in log.read_text(), "it trains")
    process.send_signal(number)
    assert process.wait(10) == 128 + number
    assert ("night_interrupted" in log.read_text()) == bool(arguments)
    assert "Traceback" not in log.read_text()
    with lake_lock(settings.lake_path):
        assert json.loads((Path(settings.lake_path) / "night.json").read_text())["finished"] == 0
