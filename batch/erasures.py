"""The erasure ledger: who asked to be forgotten, as a keyed hash, and through when.

`<lake>/erasures.jsonl`, one line per erasure; joined by maximum, so repeats and copies change nothing. The key is a setting
(`NEARLINE_LAKE_KEY`) or is made once in `<lake>/lake.key`, readable by its owner alone: without it the ledger names nobody.
"""

from __future__ import annotations

import fcntl
import hmac
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from contracts.errors import DataError, SettingsError
from embeddings.roots import flush_folder

LEDGER = "erasures.jsonl"
KEY_FILE = "lake.key"
MIN_KEY_BYTES = 16

I64 = NDArray[np.int64]


def load_key(folder: Path, setting: str | None) -> bytes:
    """The ledger's key: the setting if given, else the lake's own, made on first use.

    Errors: `SettingsError` if it is too short, or differs from the one the ledger was begun with.
    """
    file = folder / KEY_FILE
    if setting is not None:
        key = setting.encode()
        if len(key) < MIN_KEY_BYTES:
            raise SettingsError(f"NEARLINE_LAKE_KEY: shorter than {MIN_KEY_BYTES} characters; take a longer random one")
        return key
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{KEY_FILE}.{os.getpid()}"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as out:
            out.write(secrets.token_hex(32).encode())
            out.flush()
            os.fsync(out.fileno())
        try:
            os.link(temporary, file)  # unlike a rename it never replaces the key of somebody who was faster
        except FileExistsError:
            pass
        temporary.unlink()
        flush_folder(folder)
    key = file.read_bytes()
    if len(key) < MIN_KEY_BYTES:
        raise SettingsError(f"{file}: shorter than {MIN_KEY_BYTES} bytes; restore it, or the ledger cannot be applied")
    return key


class Ledger:
    """The erasures known to a lake. `through_s` answers for one viewer; -1: never erased."""

    def __init__(self, folder: Path, key: bytes) -> None:
        self._file = folder / LEDGER
        self._key = key
        self._through: dict[str, int] = {}
        self._line: dict[str, int] = {}  # digest → the last line, from 1, that names it
        self._cache: dict[str, int] = {}
        self.lines = 0
        self.load()

    def load(self) -> None:
        """Read the file (again). A torn last line, left by a crash, was not acknowledged and is passed over.

        Errors: `DataError` naming file and line for any other odd line, and for a ledger begun with another key.
        """
        self._through, self._line, self._cache, self.lines = {}, {}, {}, 0
        if not self._file.exists():
            return
        text = self._file.read_text(encoding="utf-8")
        lines = text.split("\n")
        for number, line in enumerate(lines[:-1], 1):
            try:
                entry = json.loads(line)
                if number == 1 and entry["viewer"] != self.digest(""):
                    raise DataError(f"{self._file}: was begun with another key; set NEARLINE_LAKE_KEY as it was then")
                self._join(str(entry["viewer"]), int(entry["erased_through_s"]))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{self._file}: line {number}: not an erasure; restore the file from a backup"
                ) from error

    def digest(self, viewer: str) -> str:
        """HMAC-SHA256 of the viewer's id, hex."""
        return hmac.digest(self._key, viewer.encode(), "sha256").hex()

    def __len__(self) -> int:
        """How many viewers are in the ledger."""
        return len(self._through)

    def through_s(self, viewer: str) -> int:
        """The last second of what the viewer had erased; -1 if nothing was."""
        if not self._through:
            return -1
        known = self._cache.get(viewer)
        if known is None:
            known = self._cache[viewer] = self._through.get(self.digest(viewer), -1)
        return known

    def through_s_of(self, viewers: Iterable[str]) -> I64:
        """`through_s` of many: (n,) int64."""
        return np.array([self.through_s(viewer) for viewer in viewers], dtype=np.int64)

    def line_of(self, viewer: str) -> int:
        """The last line, counted from 1, that names the viewer; 0 if none does."""
        return self.line_of_digest(self.digest(viewer)) if self.lines else 0

    def line_of_digest(self, digest: str) -> int:
        """The same for who is known by their digest only."""
        return self._line.get(digest, 0)

    def append(self, erasures: Mapping[str, int]) -> int:
        """Add viewer → erased through (second), flushed to disk before it returns; what is known already is left out.

        Returns how many were new. A torn last line of an earlier crash is cut off first.
        """
        if not any(second > self.through_s(viewer) for viewer, second in erasures.items()):
            return 0
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a+b") as out:
            fcntl.flock(out, fcntl.LOCK_EX)  # beside a nightly job somebody may be forgotten by hand
            self._mend(out)
            self.load()  # what others added meanwhile: `lines` is exactly what is known here
            new = {viewer: second for viewer, second in erasures.items() if second > self.through_s(viewer)}
            for viewer, second in new.items():
                out.write(_line(self.digest(viewer), second))
                self._join(self.digest(viewer), second)
            out.flush()
            os.fsync(out.fileno())
        self._cache = {}
        return len(new)

    def _mend(self, out: BinaryIO) -> None:
        """Cut a torn last line; begin an empty file with a line that proves the key. Only under the lock: else it would cut, or write
        over, what somebody else is writing."""
        out.seek(0)
        data = out.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            out.truncate(whole)
        if not whole:
            out.write(_line(self.digest(""), -1))
            out.flush()
            flush_folder(self._file.parent)

    def _join(self, digest: str, second: int) -> None:
        """Take in the next line."""
        self.lines += 1
        self._line[digest] = self.lines
        if second > self._through.get(digest, -1):
            self._through[digest] = second


def _line(digest: str, second: int) -> bytes:
    return (json.dumps({"viewer": digest, "erased_through_s": second}) + "\n").encode()
