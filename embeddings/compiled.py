"""Compiling the hot path: numba, with machine code kept between processes.

A kernel is Python in numba's subset, compiled to machine code that runs without the interpreter's lock. Its entry points (the few
functions that Python calls) are marked `entry`; their machine code is kept in a folder of the user's cache whose name is a digest of
every kernel's source, of where it lies and of the compiler's version: a change anywhere makes a new folder, so stale code cannot be
run. Where no folder can be written everything works, and each process compiles for itself.

Compiling takes about half a minute, once a machine; `python -m viewers.precompile` does it ahead of time. It is as short as that because
what kernels call is compiled into them and for nothing else (`compiled_parts.py`), and once each. numba compiles a function once more for
every other type that it is called with: an array that is read-only, and a number that stands in the text, are types of their own. So
what reads both a viewer's bytes and a catalogue's gets both writable (`as_bytes`), and a number is passed on as `np.int64(0)`. To see
what is compiled twice, listen to `numba:compile` (`numba.core.event`).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np

from embeddings.compiled_files import keep_code
from embeddings.compiled_parts import Part

F = TypeVar("F", bound=Callable[..., Any])

ROOT = Path(__file__).resolve().parent.parent
KERNELS = (
    "contracts/events.py",
    "contracts/rows.py",
    "contracts/rules.py",
    "embeddings/compiled*.py",
    "embeddings/generation.py",
    "embeddings/kernel_*.py",
    "embeddings/sequence.py",
    "embeddings/tables.py",
    "ranking/*.py",
    "viewers/kernel*.py",
    "viewers/packing.py",
    "viewers/state.py",
)
"""Everything that is compiled, what its constants are taken from, and this file. A test looks for what is missing."""

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "boundscheck": False, "_nrt": False}
"""Without numba's reference counting (`_nrt`): kernels get all their memory from the caller, and counting it takes a third of the
machine code and of the time to compile it."""
_SUMS = {"reassoc", "contract", "nsz"}
"""Lets sums be taken in any order, which is what vectorizes them; the order is fixed once compiled."""


def jit(function: F) -> F:
    """A function that kernels call."""
    return cast(F, Part(function, _OPTIONS))


def jit_sums(function: F) -> F:
    """As `jit`, for long sums of floats. Never where NaN or infinity has a meaning."""
    return cast(F, Part(function, {"fastmath": _SUMS, **_OPTIONS}))


def jit_counted(function: F) -> F:
    """As `jit`, with reference counting: for what numba's own array functions need."""
    return cast(F, Part(function, _OPTIONS | {"_nrt": True}))


def entry(function: F) -> F:
    """A kernel that Python calls: compiled at its first call in a process, or loaded if any process has compiled it before."""
    compiled = numba.njit(**_OPTIONS)(function)
    if cache_folder() is not None:
        keep_code(compiled)
    return cast(F, compiled)


def frozen(array: Any) -> Any:
    """The array read-only and in C order: what kernels only read has one type then, whether it was loaded from a file or made here."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def as_bytes(data: bytes | bytearray) -> Any:
    """(length,) uint8, writable: of the type of what kernels write themselves, so that what reads both is compiled once. A `bytearray` is
    not copied."""
    return np.frombuffer(data if isinstance(data, bytearray) else bytearray(data), np.uint8)


def cache_folder() -> Path | None:
    """Where machine code is kept; None if no such folder can be written."""
    if not _folder:
        _folder.append(_make_folder())
        if _folder[0] is not None:
            setattr(numba.config, "CACHE_DIR", str(_folder[0]))  # noqa: B010 - the module's attributes are made at run time
    return _folder[0]


_folder: list[Path | None] = []


def _make_folder() -> Path | None:
    digest = hashlib.blake2b(
        str(ROOT).encode(), digest_size=8
    )  # numba finds code by its source's path: another checkout's is no use
    for pattern in KERNELS:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    for package in ("numba", "llvmlite", "numpy"):
        digest.update(importlib.metadata.version(package).encode())
    named = os.environ.get("NEARLINE_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(OSError, RuntimeError):  # no home, a read-only disk: compiled anew by every process
        base = Path(named) if named else Path.home() / ".cache"
        folder = base / "nearline" / f"kernels-{digest.hexdigest()}"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    return None


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """While another process compiles, wait for it: what it leaves is then loaded instead of compiled again."""
    folder = cache_folder()
    if folder is None:
        yield
        return
    with (folder / "compiling").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file is closed, even by a crash
        yield


@functools.cache
def is_compiled() -> bool:
    """As this process starts: whether some process has compiled the kernels of this version on this machine before."""
    folder = cache_folder()
    return folder is not None and any(folder.rglob("*.nbc"))
