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
`CURRENT` is changed under a lock and by renaming on local folders. Object storage has no lock: there only one nightly job at a
time may activate (the lake's lock sees to that).

Every problem with what is read is a `GenerationError`; nothing is unpickled.
"""

from __future__ import annotations

import ast
import builtins
import fcntl
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from contracts.catalogue import CatalogueItem
from contracts.current import Current, parse_current
from contracts.digests import item_digest
from contracts.errors import GenerationError
from contracts.events import valid_id
from contracts.manifest import GENERATION_ID, Manifest, from_json
from contracts.shares import Share
from embeddings.companions import COMPANIONS, Lists, parse_companions
from embeddings.generation import F32, NEVER_MS, FoldInParameters, Generation
from embeddings.roots import FOREIGN, Root, flush_folder, open_root, read_table, write_file
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
CURRENT = "CURRENT"
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


# CURRENT


class GenerationsFolder:
    """The generations in a folder, and which of them is in force."""

    def __init__(self, path: str | Path) -> None:
        self.root = open_root(path)

    def list(self) -> list[Manifest]:
        """Every completely published generation, oldest first. A folder without a readable manifest is none."""
        found = []
        for name in self._names():
            try:
                found.append(load_manifest(self.root, name))
            except GenerationError:  # half-published or of another format: load_generation says which
                continue
        return sorted(found, key=lambda manifest: (manifest.created_at_ms, manifest.generation_id))

    def created_at_s(self, generation_id: str) -> float:
        """When a generation was made, UTC seconds. Errors: `GenerationError`."""
        return load_manifest(self.root, generation_id).created_at_ms / 1000

    def read_current(self) -> Current | None:
        """The generation in force; None before the first activation. Errors: `GenerationError` if unreadable."""
        where = f"{self.root.name}/{CURRENT}"
        try:
            text = self.root.read(CURRENT, MAX_MANIFEST_BYTES)
        except FileNotFoundError:
            return None
        except FOREIGN as error:
            raise GenerationError(
                f"{where}: unreadable ({error}); nearline generations activate writes it again"
            ) from error
        return parse_current(text, where)

    def activate(self, generation_id: str | None, *, floor: int, ends_share: bool = False) -> Current:
        """Put a generation in force under the next activation: one above the last and above `floor` (the highest that the store knows).

        `generation_id` None: the one that is in force when the lock is ours, which may be another than when somebody last looked.
        Who sees a candidate goes on seeing it, unless that is what is put in force, or the share ends with this.

        1. Take the lock   2. load the generation: what does not load is refused   3. write CURRENT beside, flush, rename.
        A crash before 3 leaves the old one in force. Errors: `GenerationError`.
        """
        with self.locked():
            before = self.current_or_none()
            if generation_id is None:
                if before is None:
                    raise GenerationError(f"{self.root.name}: nothing is in force; nearline generations activate")
                generation_id = before.generation_id
            verify_generation(self.root, generation_id)
            previous, share = (None, None) if before is None else (before.generation_id, before.share)
            if before is not None and before.generation_id == generation_id:
                previous = before.previous
            if share is not None and (ends_share or share.generation_id == generation_id):
                share = None
            current = Current(generation_id, _next(before, floor), previous, share)
            self._write_current(current)
        return current

    def share(self, share: Share, *, floor: int) -> Current:
        """Have a share of the viewers see a candidate, under the next activation; everybody else what is in force. The steps are those of
        `activate`. Errors: `GenerationError`."""
        with self.locked():
            verify_generation(self.root, share.generation_id)
            before = self.read_current()
            if before is None or before.generation_id == share.generation_id:
                raise GenerationError(
                    f"{share.generation_id} cannot be seen by a share of the viewers: another generation must be in force"
                )
            load_generation(self.root, before.generation_id)  # else nobody could take this activation up
            current = replace(before, activation=_next(before, floor), share=share)
            self._write_current(current)
        return current

    def prune(self, keep: int) -> builtins.list[str]:
        """Remove all but the newest `keep` generations, those that rows are made by and the one in force before; returns what was removed.

        Only for whoever may publish (the nightly job, which runs alone): what a crash left half-written goes too.
        """
        with self.locked():
            current = self.read_current()
            published = [manifest.generation_id for manifest in self.list()]
            kept = set(published[max(0, len(published) - keep) :])
            if current is not None:
                kept |= {*current.generations, current.previous or current.generation_id}
            gone = [name for name in published if name not in kept]
            try:
                for name in gone:
                    # The manifest first: a removal that is interrupted leaves no generation behind.
                    self.root.system.delete_file(f"{self.root.path}/{name}/{MANIFEST}")
                    self.root.system.delete_dir(f"{self.root.path}/{name}")
                if self.root.local is not None:
                    for rest in self.root.local.glob(f"{TEMPORARY}*"):
                        shutil.rmtree(rest, ignore_errors=True)
            except FOREIGN as error:
                raise GenerationError(f"{self.root.name}: cannot remove old generations ({error})") from error
        return gone

    def _names(self) -> builtins.list[str]:
        try:
            found = self.root.system.get_file_info(fs.FileSelector(self.root.path, allow_not_found=True))
        except FOREIGN as error:
            raise GenerationError(f"{self.root.name}: cannot be listed ({error})") from error
        names = [str(info.base_name) for info in found if info.type == fs.FileType.Directory]
        return [name for name in names if GENERATION_ID.fullmatch(name)]

    def current_or_none(self) -> Current | None:
        """CURRENT, or None if there is none or if it is unreadable: `floor` then keeps activations growing."""
        try:
            return self.read_current()
        except GenerationError:
            return None

    def _write_current(self, current: Current) -> None:
        data = current.text().encode()
        try:
            local = self.root.local
            if local is None:
                with self.root.system.open_output_stream(f"{self.root.path}/{CURRENT}") as out:
                    out.write(data)
                return
            temporary = local / f"{TEMPORARY}{CURRENT}"
            write_file(temporary, data)
            temporary.replace(local / CURRENT)
            flush_folder(local)
        except FOREIGN as error:
            raise GenerationError(f"{self.root.name}/{CURRENT}: cannot be written ({error})") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One at a time, across threads and processes of this machine; nothing on object storage."""
        local = self.root.local
        if local is None:
            yield
            return
        try:
            local.mkdir(parents=True, exist_ok=True)
            lock = (local / ".lock").open("w")
        except OSError as error:
            raise GenerationError(f"{self.root.name}: not a folder that can be written ({error})") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _next(before: Current | None, floor: int) -> int:
    """The next activation: activations only grow."""
    return max(0 if before is None else before.activation, floor) + 1
