"""The demo's own promises that need no server."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.children import FolderLock, SandboxError
from sandbox.demo import DemoOptions, _Demo

OPTIONS = DemoOptions(run_for_s=1, json_output=True, rate=1, seed=1, port=0)


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Demo:
    monkeypatch.chdir(tmp_path)
    made = _Demo(OPTIONS)
    for name in ("kafka", "valkey", "updater", "homepage", "generations", "lake"):
        (made.folder / name).mkdir(parents=True)
        (made.folder / name / "file").touch()
    return made


@pytest.mark.parametrize("part", ["kafka", "valkey", "updater", "homepage"])
def test_a_second_demo_removes_nothing_of_a_running_one_and_is_refused(demo: _Demo, part: str) -> None:
    claim = FolderLock(demo.folder / part, part)
    claim.acquire()
    try:
        with pytest.raises(SandboxError, match="in use by a running sandbox"):
            demo._clear_folder()
    finally:
        claim.release()
    assert {path.parent.name for path in demo.folder.glob("*/file")} == {path.name for path in demo.folder.iterdir()}


def test_what_an_ended_demo_left_is_removed(demo: _Demo) -> None:
    demo._clear_folder()
    assert list(demo.folder.iterdir()) == []
