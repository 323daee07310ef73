"""Writing generation folders: beside, flushed to disk, renamed. Reading is `embeddings/files.py`."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Callable, Sequence
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
from embeddings.companions import COMPANIONS, Lists, companion_bytes
from embeddings.files import (
    ITEM_FACTORS,
    ITEMS,
    ITEMS_SCHEMA,
    MANIFEST,
    TEMPORARY,
    USER_FACTORS,
    USERS,
    USERS_SCHEMA,
    checked_bytes,
    load_companions,
    load_manifest,
    load_tables,
    parse_factors,
    parse_generation,
)
from embeddings.generation import F32
from embeddings.generations_folder import GenerationsFolder
from embeddings.roots import FOREIGN, Root, flush_folder, open_root, write_file
from embeddings.table_files import npy_bytes, table_bytes
from embeddings.tables import Tables


@dataclass(frozen=True, eq=False, slots=True)
class Contents:
    """What a generation is written from. Row i of `item_factors` and `popularity` is `items[i]`; of `user_factors`, `users[i]`.

    `item_factors`: (n_items, k) float32. `popularity`: (n_items,) float32. `user_factors`: (n_users, k) float32. `tables`: of the
    same items; None: none. `companions`: what goes with each of them; None: not made.
    """

    items: Sequence[CatalogueItem]
    item_factors: F32
    popularity: F32
    users: Sequence[str]
    user_factors: F32
    tables: Tables | None = None
    companions: Lists | None = None


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
            _copy(folder, opened, whole)
    except FOREIGN as error:
        raise GenerationError(f"{where}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return whole


def _write_files(folder: Path, manifest: Manifest, contents: Contents) -> Manifest:
    content = {
        ITEM_FACTORS: npy_bytes(contents.item_factors),
        ITEMS: _parquet_bytes(items_table(contents.items, contents.popularity)),
        USER_FACTORS: npy_bytes(contents.user_factors),
        USERS: _parquet_bytes(_users_table(contents.users)),
        **({} if contents.tables is None else table_bytes(contents.tables)),
        **({} if contents.companions is None else {COMPANIONS: companion_bytes(contents.companions)}),
    }
    for name, data in content.items():
        write_file(folder / name, data)
    whole = replace(
        manifest,
        k=int(contents.item_factors.shape[1]),
        n_items=len(contents.items),
        n_users=len(contents.users),
        files={name: _entry_of(data) for name, data in content.items()},
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
    parse_generation(
        manifest,
        factors,
        pq.read_table(pa.BufferReader(checked_bytes(parent, read, ITEMS))),
        where,
        load_tables(parent, read, where),
    )
    load_companions(parent, read, where)
    parse_factors(checked_bytes(parent, read, USER_FACTORS), manifest.n_users, manifest.k, where, USER_FACTORS)


def items_table(items: Sequence[CatalogueItem], popularity: F32 | None = None) -> Any:
    """`items.parquet`: one row per item, columns of `ITEMS_SCHEMA`."""
    rows = [{field: getattr(item, field) for field in ITEMS_SCHEMA.names if field != "popularity"} for item in items]
    table = pa.Table.from_pylist(rows, schema=ITEMS_SCHEMA)
    if popularity is None:
        return table
    column = pa.array(popularity.astype(np.float32), pa.float32())
    return table.set_column(table.schema.get_field_index("popularity"), ITEMS_SCHEMA.field("popularity"), column)


def _parquet_bytes(table: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def _users_table(users: Sequence[str]) -> Any:
    return pa.table({"viewer": pa.array(users, pa.string())}, schema=USERS_SCHEMA)


def _entry_of(data: bytes) -> FileEntry:
    return FileEntry(hashlib.sha256(data).hexdigest(), len(data))


def _copy(folder: Path, opened: Root, manifest: Manifest) -> None:
    generation_id = manifest.generation_id
    opened.system.create_dir(f"{opened.path}/{generation_id}", recursive=True)
    for name in (*manifest.files, MANIFEST):
        with opened.system.open_output_stream(f"{opened.path}/{generation_id}/{name}") as out:
            out.write((folder / name).read_bytes())


def _has_manifest(opened: Root, generation_id: str) -> bool:
    info = opened.system.get_file_info(f"{opened.path}/{generation_id}/{MANIFEST}")
    return bool(info.type == fs.FileType.File)


def remove_users(folder: GenerationsFolder, generation_id: str, erased: Callable[[str], bool]) -> int:
    """Take viewers who asked to be forgotten out of a generation's user vectors; returns how many were in it.

    Their vectors become zero and their ids `~erased~<row>`, so that rows keep their numbers. Written in this order: manifest, vectors,
    ids. A crash in between leaves user files that do not fit the manifest (serving does not read them) and ids that are still
    there: the next time finds them, as it reads the ids whatever the manifest says of them, and ends it. Errors: `GenerationError`.
    """
    with folder.locked():
        manifest = load_manifest(folder.root, generation_id)
        where = f"{folder.root.name}/{generation_id}"
        try:
            table = pq.read_table(pa.BufferReader(folder.root.read(f"{generation_id}/{USERS}")))
            users: list[str] = table.column("viewer").to_pylist()
            rows = [row for row, viewer in enumerate(users) if erased(viewer)]
            if not rows:
                return 0
            if len(users) != manifest.n_users:
                raise GenerationError(
                    f"{where}/{USERS}: {len(users)} rows, the manifest says {manifest.n_users}; remove the generation"
                )
            data = folder.root.read(f"{generation_id}/{USER_FACTORS}")
            factors = parse_factors(data, manifest.n_users, manifest.k, where, USER_FACTORS).copy()
            factors[rows] = 0
            for row in rows:
                users[row] = f"~erased~{row}"
            content = {USER_FACTORS: npy_bytes(factors), USERS: _parquet_bytes(_users_table(users))}
            files = {**manifest.files, **{name: _entry_of(data) for name, data in content.items()}}
            _replace_file(folder.root, f"{generation_id}/{MANIFEST}", to_json(replace(manifest, files=files)).encode())
            for name, new in content.items():
                _replace_file(folder.root, f"{generation_id}/{name}", new)
        except FOREIGN as error:
            raise GenerationError(f"{where}: users cannot be rewritten ({error})") from error
    return len(rows)


def _replace_file(root: Root, relative: str, data: bytes) -> None:
    """Whole or not at all, on a local folder; object storage replaces objects whole by itself."""
    if root.local is None:
        with root.system.open_output_stream(f"{root.path}/{relative}") as out:
            out.write(data)
        return
    path = root.local / relative
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    write_file(temporary, data)
    temporary.replace(path)
    flush_folder(path.parent)
