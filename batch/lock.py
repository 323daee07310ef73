"""One writer of a lake at a time: a lock that the operating system frees when its holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contracts.errors import DataError, UserError


class LakeInUse(UserError):
    """Another job holds the lake: wait until it has ended."""


@contextmanager
def lake_lock(
    lake_path: str | Path,
    *,
    name: str = "nightly",
    what: str = "job works",
    remedy: str = "wait until it has ended",
) -> Iterator[None]:
    """Hold the lake, or with another `name` something else that there is one of for a lake.

    Errors: `LakeInUse` naming the process that does, `DataError` if the folder cannot be written.
    """
    file = Path(lake_path) / f"{name}.lock"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.open("a+", encoding="ascii")
    except OSError as error:
        raise DataError(f"{file}: cannot be written ({error}); set NEARLINE_LAKE_PATH to a folder that can") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise LakeInUse(f"{lake_path}: another {what} on this lake (pid {holder}): {remedy}") from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
        lock.truncate(0)
