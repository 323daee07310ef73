"""Where generations lie: a local folder, or object storage by URL, opened through `pyarrow.fs`; and writing that lasts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from contracts.errors import GenerationError

FOREIGN = (OSError, pa.ArrowException, ValueError, KeyError, TypeError, SyntaxError, MemoryError, np.linalg.LinAlgError)
"""What reading odd bytes may raise; translated into `GenerationError` where it is caught."""


MAX_TABLE_ROWS = 10_000_000
"""Titles in a catalogue whose number nobody told: ten times a large one."""

MAX_ROW_BYTES = 16_384
"""A title with its topics and creators takes some hundred bytes; this is the mean over a file."""

TABLE_BYTES_FREE = 1 << 20
"""Below this nothing is worth a refusal."""


@dataclass(frozen=True, slots=True)
class Root:
    """An opened generations folder: a file system and the folder's path in it."""

    system: Any
    path: str
    name: str

    @property
    def local(self) -> Path | None:
        """The folder, if it lies on this machine."""
        return Path(self.path) if isinstance(self.system, fs.LocalFileSystem) else None

    def read(self, relative: str, max_bytes: int | None = None) -> bytes:
        """A whole file. Errors: FileNotFoundError, OSError, ValueError if it is longer than `max_bytes`."""
        with self.system.open_input_file(f"{self.path}/{relative}") as stream:
            size = stream.size()
            if max_bytes is not None and size > max_bytes:
                raise ValueError(f"{size} bytes, more than {max_bytes}")
            return bytes(stream.read())


def open_root(root: str | Path) -> Root:
    """Open a local path (relative ones too) or a URL. Errors: `GenerationError` for a URL that nothing here understands."""
    name = str(root)
    try:
        if "://" in name:
            system, path = fs.FileSystem.from_uri(name)
            return Root(system, path.rstrip("/"), name.rstrip("/"))
        return Root(fs.LocalFileSystem(), os.path.abspath(name), name.rstrip("/"))
    except FOREIGN as error:
        raise GenerationError(f"{name}: not a folder or URL for generations ({error})") from error


def read_table(source: Any, rows: int | None = None) -> pa.Table:
    """A Parquet file's table: `source` is its bytes or an opened file. `rows`: how many there must be; None: not told.

    What the footer says is looked at before anything is unpacked: a few kilobytes can hold gigabytes of the same value.
    Errors: those of `FOREIGN`.
    """
    file = pq.ParquetFile(pa.BufferReader(source) if isinstance(source, bytes) else source)
    found = file.metadata
    if rows is not None and found.num_rows != rows:
        raise ValueError(f"{found.num_rows} rows, the manifest says {rows}")
    if rows is None and found.num_rows > MAX_TABLE_ROWS:
        raise ValueError(f"{found.num_rows} rows, more than {MAX_TABLE_ROWS}")
    size = sum(found.row_group(number).total_byte_size for number in range(found.num_row_groups))
    if size > TABLE_BYTES_FREE + MAX_ROW_BYTES * found.num_rows:
        raise ValueError(f"{size} bytes for {found.num_rows} rows, more than {MAX_ROW_BYTES} a row")
    return file.read()


def write_file(path: Path, data: bytes) -> None:
    """Write a file and flush it to disk."""
    with path.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def flush_folder(path: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
