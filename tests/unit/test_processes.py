"""A service of the demo that ends says how."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import httpx
import pytest

from sandbox import demo
from sandbox.children import Child, SandboxError, wait_until
from sandbox.processes import Service, describe_end


def start(tmp_path: Path, code: str) -> Service:
    """A service whose process runs `code` instead."""
    service = Service("updater", {}, tmp_path, port_setting="NEARLINE_HEALTH__PORT")
    service._child = Child("updater", [sys.executable, "-c", code], folder=tmp_path / "updater", log=service.log)
    service.start()
    return service


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("print('good-bye', flush=True); raise SystemExit(3)", "exit status 3"),
    ],
)
def test_a_service_that_ended_says_how(tmp_path: Path, code: str, says: str) -> None:
    service = start(tmp_path, code)
    assert wait_until(lambda: not service._child.running, 20)
    for _ in range(2):  # told as often as it is asked
        with pytest.raises(SandboxError, match=f"ended unexpectedly \\({says}\\)"):
            service.require_running()
    service.stop()


async def test_figures_that_are_not_to_be_had_because_the_updater_was_killed_say_so(tmp_path: Path) -> None:
    service = start(tmp_path, "import time; time.sleep(60)")
    service.require_running()
    service._child.signal("KILL")
    async with httpx.AsyncClient() as client:
        with pytest.raises(SandboxError, match="killed by SIGKILL"):
            await demo._read_stats(client, service)
    service.stop()


def test_every_way_to_end_has_words() -> None:
    assert describe_end(0) == "exit status 0"
    assert describe_end(-signal.SIGTERM) == "killed by SIGTERM"
    assert describe_end(-250) == "killed by signal 250"
    assert describe_end(None) == "how is not known"
