"""Generation folders: the one edge of `embeddings`. Local paths and `file://` URLs; object storage by URL through `pyarrow.fs`.

    <root>/CURRENT                    {"generation_id", "activation", "previous"}, "share" while there is one (`contracts/current.py`)
    <root>/<id>/item_factors.npy      (n_items, k) float32
    <root>/<id>/items.parquet         row → title, availability, popularity, …
    <root>/<id>/user_factors.npy      (n_users, k) float32: our own fold-in of every viewer
    <root>/<id>/users.parquet         row → viewer
    <root>/<id>/trending.npy, cowatch.parquet, ranker.json   all three or none (`embeddings/table_files.py`)
    <root>/<id>/sequence_items.npy, sequence.npy   beside these; both or none, as in an older program's (`embeddings/sequence.py`)
    <root>/<id>/companions.parquet    row → the titles that go with it; absent in an older program's (`embeddings/companions.py`)
    <root>/<id>/manifest.json         written last

`embeddings/publishing.py` writes them. A half-written one is never visible: without a manifest, written last, it is none.
`embeddings/generations_folder.py` lists them and changes `CURRENT`.

Every problem with what is read is a `GenerationError`; nothing is unpickled.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from contracts.catalogue import CatalogueItem
from contracts.digests import item_digest
from contracts.errors import GenerationError
from contracts.events import valid_id
from contracts.manifest import GENERATION_ID, Manifest, from_json
from embeddings.companions import COMPANIONS, Lists, parse_companions
from embeddings.generation import F32, NEVER_MS, FoldInParameters, Generation
from embeddings.roots import FOREIGN, Root, open_root, read_table
from embeddings.sequence import COLUMNS, FACTORS, ROWS, SequenceNet
from embeddings.table_files import (
    COWATCH,
    RANKER,
    SEQUENCE,
    SEQUENCE_FILES,
    SEQUENCE_ITEMS,
    TABLE_FILES,
    TRENDING,
    parse_groups,
    parse_tables,
)
from embeddings.tables import HALF_LIVES_DAYS, Tables

ITEM_FACTORS, ITEMS, USER_FACTORS, USERS = "item_factors.npy", "items.parquet", "user_factors.npy", "users.parquet"
MANIFEST = "manifest.json"
FILES = (ITEM_FACTORS, ITEMS, USER_FACTORS, USERS)
MAX_MANIFEST_BYTES = 1 << 20
MAX_NPY_HEADER_BYTES = 1024
"""numpy writes 118: more is no header but something for the parser to choke on."""
TEMPORARY = ".tmp-"

_TEXTS = pa.list_(pa.string())
ITEMS_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("topics", _TEXTS),
        pa.field("creators", _TEXTS),
        pa.field("duration_ms", pa.int64()),
        pa.field("maturity", pa.int64()),
        pa.field("territories", _TEXTS),
        pa.field("available_from_ms", pa.int64()),
        pa.field("available_until_ms", pa.int64()),
        pa.field("released_at_ms", pa.int64()),
        pa.field("taken_down", pa.bool_()),
        pa.field("popularity", pa.float32()),
    ]
)
USERS_SCHEMA = pa.schema([pa.field("viewer", pa.string(), nullable=False)])


def load_manifest(root: str | Path | Root, generation_id: str) -> Manifest:
    """Errors: `GenerationError` if there is none (half-published), or if it is not this generation's."""
    opened = root if isinstance(root, Root) else open_root(root)
    where = f"{opened.name}/{generation_id}/{MANIFEST}"
    if GENERATION_ID.fullmatch(generation_id) is None:
        raise GenerationError(f"{generation_id!r} is not the name of a generation")
    try:
        text = opened.read(f"{generation_id}/{MANIFEST}", MAX_MANIFEST_BYTES)
    except FileNotFoundError as error:
        raise GenerationError(
            f"{where}: missing: never completely published; choose another (nearline generations list)"
        ) from error
    except FOREIGN as error:
        raise GenerationError(f"{where}: unreadable ({error})") from error
    manifest = from_json(text, where)
    if manifest.generation_id != generation_id:
        raise GenerationError(
            f"{where}: field generation_id: says {manifest.generation_id}; the folder was renamed or copied"
        )
    wanted = list(FILES)
    if any(name in manifest.files for name in (*TABLE_FILES, *SEQUENCE_FILES)):
        wanted += TABLE_FILES
    if any(name in manifest.files for name in SEQUENCE_FILES):
        wanted += SEQUENCE_FILES
    missing = [name for name in wanted if name not in manifest.files]
    if missing:
        raise GenerationError(f"{where}: field files: {missing[0]} is not listed; publish the generation again")
    return manifest


def load_generation(root: str | Path | Root, generation_id: str) -> Generation:
    """Load and check what serving needs: manifest, sizes, checksums, then shapes, finiteness, unique ids.

    The viewers' vectors are for others to read and are checked by `verify_generation`. Errors: `GenerationError` only.
    """
    opened = root if isinstance(root, Root) else open_root(root)
    manifest = load_manifest(opened, generation_id)
    where = f"{opened.name}/{generation_id}"
    item_factors = parse_factors(
        checked_bytes(opened, manifest, ITEM_FACTORS), manifest.n_items, manifest.k, where, ITEM_FACTORS
    )
    try:
        table = read_table(checked_bytes(opened, manifest, ITEMS), manifest.n_items)
        return parse_generation(manifest, item_factors, table, where, load_tables(opened, manifest, where))
    except FOREIGN as error:
        raise GenerationError(f"{where}/{ITEMS}: {error}; publish the generation again") from error


def load_tables(opened: Root, manifest: Manifest, where: str) -> Tables | None:
    """A generation's tables, None if it has none. Errors: `GenerationError`."""
    if RANKER not in manifest.files:
        return None
    n, columns = manifest.n_items, len(HALF_LIVES_DAYS)
    trending = parse_factors(checked_bytes(opened, manifest, TRENDING), n, columns, where, TRENDING)
    cowatch, ranker = (checked_bytes(opened, manifest, name) for name in (COWATCH, RANKER))
    return parse_tables(trending, cowatch, ranker, n, where, _load_sequence(opened, manifest, where))


def _load_sequence(opened: Root, manifest: Manifest, where: str) -> SequenceNet | None:
    if SEQUENCE not in manifest.files:
        return None
    shapes = {SEQUENCE_ITEMS: (manifest.n_items, COLUMNS), SEQUENCE: (ROWS, FACTORS)}
    return SequenceNet(
        *(parse_factors(checked_bytes(opened, manifest, name), *shape, where, name) for name, shape in shapes.items())
    )


def load_companions(opened: Root, manifest: Manifest, where: str) -> Lists | None:
    """What goes with each title, None if the generation does not say. Errors: `GenerationError`."""
    if COMPANIONS not in manifest.files:
        return None
    return parse_companions(checked_bytes(opened, manifest, COMPANIONS), manifest.n_items, where)


def load_items(root: str | Path | Root, generation_id: str) -> list[CatalogueItem]:
    """The catalogue that came with a generation, in row order. Errors: `GenerationError`."""
    opened = root if isinstance(root, Root) else open_root(root)
    manifest = load_manifest(opened, generation_id)
    try:
        rows = read_table(checked_bytes(opened, manifest, ITEMS), manifest.n_items).to_pylist()
        return [catalogue_item(row) for row in rows]
    except FOREIGN as error:
        raise GenerationError(f"{opened.name}/{generation_id}/{ITEMS}: {error}") from error


def load_users(root: str | Path | Root, generation_id: str) -> tuple[list[str], F32]:
    """Every viewer's published vector: (n_users,) ids, (n_users, k) float32. Errors: `GenerationError`."""
    opened = root if isinstance(root, Root) else open_root(root)
    manifest = load_manifest(opened, generation_id)
    where = f"{opened.name}/{generation_id}"
    factors = load_user_factors(opened, generation_id)
    try:
        table = read_table(checked_bytes(opened, manifest, USERS), manifest.n_users)
        users: list[str] = table.column("viewer").to_pylist()
    except FOREIGN as error:
        raise GenerationError(f"{where}/{USERS}: {error}") from error
    if len(users) != manifest.n_users or len(set(users)) != len(users):
        raise GenerationError(f"{where}/{USERS}: {len(users)} rows, wanted {manifest.n_users} different viewers")
    return users, factors


def load_user_factors(root: str | Path | Root, generation_id: str) -> F32:
    """(n_users, k) float32: the published vectors, whosever they are. Errors: `GenerationError`."""
    opened = root if isinstance(root, Root) else open_root(root)
    manifest = load_manifest(opened, generation_id)
    data = checked_bytes(opened, manifest, USER_FACTORS)
    return parse_factors(data, manifest.n_users, manifest.k, f"{opened.name}/{generation_id}", USER_FACTORS)


def verify_generation(root: str | Path | Root, generation_id: str) -> Manifest:
    """Everything `load_generation` checks, and the viewers' vectors too. Errors: `GenerationError`."""
    load_generation(root, generation_id)
    load_users(root, generation_id)
    opened = root if isinstance(root, Root) else open_root(root)
    manifest = load_manifest(opened, generation_id)
    load_companions(opened, manifest, f"{opened.name}/{generation_id}")
    return manifest


def checked_bytes(opened: Root, manifest: Manifest, name: str) -> bytes:
    """A file's bytes if size and checksum are the manifest's. The size is compared before anything is read."""
    entry, where = manifest.files[name], f"{opened.name}/{manifest.generation_id}/{name}"
    try:
        info = opened.system.get_file_info(f"{opened.path}/{manifest.generation_id}/{name}")
        if info.type != fs.FileType.File:
            raise GenerationError(f"{where}: missing; publish the generation again")
        if info.size != entry.size_bytes:
            raise GenerationError(
                f"{where}: {info.size} bytes, the manifest says {entry.size_bytes}: truncated or replaced; "
                "publish the generation again or roll back"
            )
        data = opened.read(f"{manifest.generation_id}/{name}", entry.size_bytes)
    except FOREIGN as error:
        raise GenerationError(f"{where}: unreadable ({error})") from error
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise GenerationError(f"{where}: sha256 is not the manifest's: corrupt; publish it again or roll back")
    return data


def parse_factors(data: bytes, rows: int, k: int, where: str, name: str) -> F32:
    """A float32 matrix in `.npy` format 1.0; the header is read as a literal, and nothing is unpickled."""
    try:
        if data[:8] != b"\x93NUMPY\x01\x00":
            raise ValueError("not a .npy file of format 1.0")
        start = 10 + int.from_bytes(data[8:10], "little")
        if start > MAX_NPY_HEADER_BYTES:
            raise ValueError(f"a header of {start} bytes")
        header = ast.literal_eval(data[10:start].decode("latin-1"))
        shape, dtype, fortran = tuple(header["shape"]), header["descr"], header["fortran_order"]
        if (shape, dtype, fortran) != ((rows, k), "<f4", False):
            raise ValueError(f"{dtype} {shape}, wanted float32 ({rows}, {k}) in C order")
        matrix = np.frombuffer(data, dtype="<f4", offset=start).astype(np.float32).reshape(rows, k)
    except (*FOREIGN, RecursionError) as error:
        raise GenerationError(f"{where}/{name}: {error}; publish the generation again") from error
    if not np.isfinite(matrix).all():
        raise GenerationError(f"{where}/{name}: holds NaN or infinity; publish the generation again")
    matrix.flags.writeable = False
    return matrix


def parse_generation(
    manifest: Manifest, item_factors: F32, table: Any, where: str, tables: Tables | None = None
) -> Generation:
    missing = [name for name in ITEMS_SCHEMA.names if name not in table.schema.names]
    if missing:
        raise GenerationError(f"{where}/{ITEMS}: no column {', '.join(missing)}; publish the generation again")
    if table.num_rows != manifest.n_items:
        raise GenerationError(f"{where}/{ITEMS}: {table.num_rows} rows, the manifest says {manifest.n_items}")
    table = table.select(ITEMS_SCHEMA.names).cast(ITEMS_SCHEMA)
    ids: list[str] = table.column("item_id").to_pylist()
    if not all(map(valid_id, ids)):  # the kernel packs them unchecked
        raise GenerationError(f"{where}/{ITEMS}: an item has no id, or what is none; publish the generation again")
    until = _integers(table, "available_until_ms", NEVER_MS)
    until[table.column("taken_down").fill_null(False).to_numpy()] = 0  # taken down wins over the window
    c = manifest.confidence
    return Generation(
        generation_id=manifest.generation_id,
        item_ids=tuple(ids),
        item_factors=item_factors,
        parameters=FoldInParameters(c.regularization, c.alpha, c.decay_floor, c.decay_half_life, c.decay_gain),
        popularity=table.column("popularity").fill_null(0.0).to_numpy().astype(np.float32),
        available_from_ms=_integers(table, "available_from_ms", 0),
        available_until_ms=until,
        maturity=np.clip(_integers(table, "maturity", 0), 0, 255).astype(np.uint8),
        item_digests=np.array([item_digest(item_id) for item_id in ids], dtype=np.int64),
        tables=tables,
        rules=manifest.rules,
        groups=parse_groups(table) if manifest.rules.limit_groups or manifest.rules.preference else None,
    )


def _integers(table: Any, column: str, missing: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    values = table.column(column).fill_null(pa.scalar(int(missing), pa.int64())).to_numpy()
    return np.array(values, dtype=np.int64)


def catalogue_item(row: Mapping[str, Any]) -> CatalogueItem:
    """The title in a row of `ITEMS_SCHEMA`."""
    return CatalogueItem(
        item_id=row["item_id"],
        title=row["title"] or row["item_id"],
        topics=tuple(row["topics"] or ()),
        creators=tuple(row["creators"] or ()),
        duration_ms=row["duration_ms"],
        maturity=row["maturity"] or 0,
        territories=tuple(row["territories"] or ()),
        available_from_ms=row["available_from_ms"],
        available_until_ms=row["available_until_ms"],
        released_at_ms=row["released_at_ms"],
        taken_down=bool(row["taken_down"]),
    )
