"""Writing generation folders: beside, flushed to disk, renamed. Reading is `embeddings/files.py`."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from contracts.catalogue import CatalogueItem
from contracts.errors import GenerationError
from contracts.manifest import GENERATION_ID, FileEntry, Manifest, to_json
from embeddings.files import (
    FILES,
    ITEM_FACTORS,
    ITEMS,
    ITEMS_SCHEMA,
    MANIFEST,
    TEMPORARY,
    USER_FACTORS,
    USERS,
    USERS_SCHEMA,
    checked_bytes,
    parse_factors,
    parse_generation,
)
from embeddings.generation import F32
from embeddings.roots import FOREIGN, Root, flush_folder, open_root, write_file


@dataclass(frozen=True, eq=False, slots=True)
class Contents:
    """What a generation is written from. Row i of `item_factors` and `popularity` is `items[i]`; of `user_factors`, `users[i]`.

    `item_factors`: (n_items, k) float32. `popularity`: (n_items,) float32. `user_factors`: (n_users, k) float32.
    """

    items: Sequence[CatalogueItem]
    item_factors: F32
    popularity: F32
    users: Sequence[str]
    user_factors: F32


def write_generation(root: str | Path, manifest: Manifest, contents: Contents) -> Manifest:
    """Publish a generation; returns the manifest with its files, counts and k filled in from `contents`.

    1. Every file into a hidden folder, each flushed to disk   a crash leaves the hidden folder: the next try replaces it
    2. the manifest, last                                      the same
    3. the hidden folder renamed, its parent flushed           the generation is there, whole; nobody uses it yet

    On object storage step 3 is a copy, manifest last. Errors: `GenerationError` if it would not load, or exists already.
    """
    opened = open_root(root)
    generation_id, where = manifest.generation_id, f"{opened.name}/{manifest.generation_id}"
    if GENERATION_ID.fullmatch(generation_id) is None:
        raise GenerationError(f"{generation_id!r} cannot be the name of a generation")
    base = opened.local
    folder = (base if base is not None else Path(os.environ.get("TMPDIR", "/tmp"))) / f"{TEMPORARY}{generation_id}"  # noqa: S108
    try:
        if _has_manifest(opened, generation_id):
            raise GenerationError(f"{where}: exists already; a generation is never changed")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        whole = _write_files(folder, manifest, contents)
        check = Root(fs.LocalFileSystem(), str(folder.parent), str(folder.parent))
        _check_written(check, folder.name, whole)
        if base is not None:
            shutil.rmtree(
                base / generation_id, ignore_errors=True
            )  # without a manifest: the rest of a half-written one
            folder.rename(base / generation_id)
            flush_folder(base)
        else:
            _copy(folder, opened, generation_id)
    except FOREIGN as error:
        raise GenerationError(f"{where}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return whole


def _write_files(folder: Path, manifest: Manifest, contents: Contents) -> Manifest:
    _write_npy(folder / ITEM_FACTORS, contents.item_factors)
    _write_parquet(folder / ITEMS, items_table(contents.items, contents.popularity))
    _write_npy(folder / USER_FACTORS, contents.user_factors)
    _write_parquet(folder / USERS, pa.table({"viewer": pa.array(contents.users, pa.string())}, schema=USERS_SCHEMA))
    whole = replace(
        manifest,
        k=int(contents.item_factors.shape[1]),
        n_items=len(contents.items),
        n_users=len(contents.users),
        files={name: _entry(folder / name) for name in FILES},
    )
    write_file(folder / MANIFEST, to_json(whole).encode())
    flush_folder(folder)
    return whole


def _check_written(parent: Root, folder: str, manifest: Manifest) -> None:
    """What could not be loaded is not published."""
    where = manifest.generation_id
    read = replace(manifest, generation_id=folder)
    factors = parse_factors(
        checked_bytes(parent, read, ITEM_FACTORS), manifest.n_items, manifest.k, where, ITEM_FACTORS
    )
    parse_generation(manifest, factors, pq.read_table(pa.BufferReader(checked_bytes(parent, read, ITEMS))), where)
    parse_factors(checked_bytes(parent, read, USER_FACTORS), manifest.n_users, manifest.k, where, USER_FACTORS)


def items_table(items: Sequence[CatalogueItem], popularity: F32 | None = None) -> Any:
    """`items.parquet`: one row per item, columns of `ITEMS_SCHEMA`."""
    rows = [{field: getattr(item, field) for field in ITEMS_SCHEMA.names if field != "popularity"} for item in items]
    table = pa.Table.from_pylist(rows, schema=ITEMS_SCHEMA)
    if popularity is None:
        return table
    column = pa.array(popularity.astype(np.float32), pa.float32())
    return table.set_column(table.schema.get_field_index("popularity"), ITEMS_SCHEMA.field("popularity"), column)


def _write_npy(path: Path, matrix: F32) -> None:
    with path.open("wb") as out:
        np.lib.format.write_array(out, np.ascontiguousarray(matrix, dtype="<f4"), version=(1, 0), allow_pickle=False)
        out.flush()
        os.fsync(out.fileno())


def _write_parquet(path: Path, table: Any) -> None:
    with path.open("wb") as out:
        pq.write_table(table, out, compression="zstd")
        out.flush()
        os.fsync(out.fileno())


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as source:
        return FileEntry(hashlib.file_digest(source, "sha256").hexdigest(), path.stat().st_size)


def _copy(folder: Path, opened: Root, generation_id: str) -> None:
    opened.system.create_dir(f"{opened.path}/{generation_id}", recursive=True)
    for name in (*FILES, MANIFEST):
        with opened.system.open_output_stream(f"{opened.path}/{generation_id}/{name}") as out:
            out.write((folder / name).read_bytes())


def _has_manifest(opened: Root, generation_id: str) -> bool:
    info = opened.system.get_file_info(f"{opened.path}/{generation_id}/{MANIFEST}")
    return bool(info.type == fs.FileType.File)
