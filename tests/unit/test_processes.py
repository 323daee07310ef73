"""A service of the demo that ends says how."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

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


def test_a_service_that_was_killed_starts_again_at_the_same_address(tmp_path: Path) -> None:
    service = Service("updater", {}, tmp_path, port_setting="PORT", program=("-c", "import time; time.sleep(60)"))
    service.start()
    url, first = service.url, service.pid
    service.signal("KILL")
    assert wait_until(lambda: not service.running, 20)
    assert service.exit_status() == -signal.SIGKILL
    service.restart()
    try:
        assert service.running
        assert (service.url, service.exit_status()) == (url, None)
        assert service.pid != first
    finally:
        service.stop(kill=True)


def test_every_way_to_end_has_words() -> None:
    assert describe_end(0) == "exit status 0"
    assert describe_end(-signal.SIGTERM) == "killed by SIGTERM"
    assert describe_end(-250) == "killed by signal 250"
    assert describe_end(None) == "how is not known"
