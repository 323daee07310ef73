"""The demo's own promises that need no server."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sandbox.children import FolderLock, SandboxError
from sandbox.demo import DemoOptions, _Demo
from sandbox.demo_environment import shell_path, write_environment

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


def test_a_shell_that_reads_the_settings_file_has_every_setting_of_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / ".nearline" / "de mo" / "env"
    settings = {
        "NEARLINE_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1234",
        "NEARLINE_STORE__URL": "redis://u:it's $HOME@h:1/0",
        "NEARLINE_LAKE_PATH": "/a b/lake",
    }
    write_environment(file, {})
    write_environment(file, {**settings, "NEARLINE_TEST_KAFKA": "x", "HOME": "/elsewhere"})
    assert shell_path(file) == "'.nearline/de mo/env'"
    assert shell_path(Path("/elsewhere/env")) == "/elsewhere/env"
    assert file.stat().st_mode & 0o777 == 0o600
    said = subprocess.run(
        ["sh", "-c", f". {shell_path(file)}; env"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert {line for line in said.splitlines() if "NEARLINE" in line} == {f"{k}={v}" for k, v in settings.items()}
