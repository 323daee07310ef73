"""The demo's settings as a file that a shell reads, so that other verbs find the same servers."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from runtime.sources import NOT_SETTINGS, PREFIX


def write_environment(path: Path, environ: Mapping[str, str]) -> None:
    """Every setting in `environ` as a line that a shell reads; only for its owner, as a URL may hold a password."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    lines = [
        f"export {name}={shlex.quote(value)}\n"
        for name, value in sorted(environ.items())
        if name.startswith(PREFIX) and not name.startswith(NOT_SETTINGS)
    ]
    path.write_text("".join(lines))


def shell_path(path: Path) -> str:
    """For typing after `.`: relative to the working directory if below it."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
