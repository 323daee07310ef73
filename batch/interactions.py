"""From the lake's events to what training needs: the signed confidences `Cui`; and to viewers' states, by the same code as live.

Events are grouped by play identity (viewer, start, play, item): the greatest share, the union of flags. The signal table gives
each play a strength; an item's strongest play speaks for it, and a rating or a hide replaces what the plays say. For training

    c = sign(s) · (1 + α |s|)

without the rank decay of the fold-in: an embedding is about all of an item's viewers, whenever they watched. Ids become
numbers as the batches come in, and the grouping is numpy's: ten million events take some 400 MB.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from batch.lake import Lake
from contracts.digests import id_digest
from contracts.events import PLAY_KINDS, Kind
from viewers.signals import REGISTER_SIGNALS, play_strengths
from viewers.state import (
    FLAG_OF_KIND,
    REGISTER_OF_KIND,
    Limits,
    Play,
    Register,
    RegisterKind,
    ViewerState,
    merge,
    watched_share,
)

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

COLUMNS = (
    "viewer", "kind", "event_id", "event_time_ms", "item_id", "play_id", "play_started_at_ms", "watched_ms", "duration_ms", "value",
)  # fmt: skip

BUCKETS = ".buckets-"
"""Prefix of the folders that viewers are dealt out into while a job reads the lake."""
BUCKET_ROWS = 400_000
"""Events of a bucket of viewers held in memory at once, some 200 MB as Python values."""

_MULTIPLIED_MAX = np.iinfo(np.int64).max // 255
"""Milliseconds that can be taken 255 times in 64 bits."""
_FLAGS = {kind.value: flags for kind, flags in FLAG_OF_KIND.items()}
PLAY_KIND_NAMES = pa.array(sorted(kind.value for kind in PLAY_KINDS))
_ITEM_REGISTERS = {kind.value for kind in (Kind.RATE, Kind.CLEAR_RATING, Kind.HIDE)}


@dataclass(frozen=True, eq=False, slots=True)
class Interactions:
    """Viewers × items. Row i of `Cui` is `viewers[i]`, column j is `items[j]`.

    `Cui`: (n_viewers, n_items) csr float32, signed confidences, 0 where nothing is known. `popularity`: (n_items,) float32, the sum
    of positive strengths. `plays`: distinct plays. `newest_event_ms`: of everything that went in; 0 for nothing.
    """

    viewers: list[str]
    items: list[str]
    Cui: csr_matrix
    popularity: F32
    plays: int
    newest_event_ms: int


class Codes:
    """Ids to numbers, in order of first appearance."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def of(self, column: Any) -> I32:
        """(n,) string array without nulls → (n,) int32."""
        encoded = column.dictionary_encode()
        ids = self.ids
        codes = np.fromiter((ids.setdefault(one, len(ids)) for one in encoded.dictionary.to_pylist()), dtype=np.int32)
        result: I32 = codes[encoded.indices.to_numpy()] if len(codes) else np.zeros(0, np.int32)
        return result

    def of_one(self, text: str) -> int:
        """The number of one id."""
        return self.ids.setdefault(text, len(self.ids))


def read_interactions(
    lake: Lake, alpha: float, *, before_ms: int | None = None, advance: Callable[[int], None] = lambda rows: None
) -> Interactions:
    """Interactions of everything in the lake, or of the events before `before_ms`. Errors: `DataError`."""
    viewers, items = Codes(), Codes()
    plays: list[tuple[I32, I32, I64, I64, U8, U8]] = []
    said: dict[tuple[int, int, RegisterKind], Register] = {}
    newest_ms = 0
    for batch in lake.batches("events", COLUMNS):
        advance(batch.num_rows)
        if before_ms is not None:
            batch = batch.filter(pc.less(batch.column("event_time_ms"), before_ms))
        if not batch.num_rows:
            continue
        newest_ms = max(newest_ms, pc.max(batch.column("event_time_ms")).as_py())
        is_play = pc.is_in(batch.column("kind"), value_set=PLAY_KIND_NAMES)
        played = batch.filter(is_play)
        if played.num_rows:
            plays.append(play_columns(played, viewers, items))
        for row in batch.filter(pc.invert(is_play)).to_pylist():
            if row["kind"] in _ITEM_REGISTERS:
                register = register_of(row)
                at = (viewers.of_one(row["viewer"]), items.of_one(register.subject), register.kind)
                if at not in said or register.order > said[at].order:
                    said[at] = register
    viewer, item, strength, count = strongest_signals(plays)
    viewer, item, strength = _with_registers(viewer, item, strength, said, len(items.ids))
    c = np.sign(strength) * (1 + alpha * np.abs(strength))
    shape = (len(viewers.ids), len(items.ids))
    Cui = csr_matrix((c.astype(np.float32), (viewer, item)), shape=shape)
    popularity = np.bincount(item, weights=np.maximum(strength, 0), minlength=shape[1]).astype(np.float32)
    return Interactions(list(viewers.ids), list(items.ids), Cui, popularity, count, newest_ms)


def play_columns(batch: Any, viewers: Codes, items: Codes) -> tuple[I32, I32, I64, I64, U8, U8]:
    """Viewer and item codes, start, play digest, share, flags: (n,) each."""
    digests = np.fromiter((id_digest(one) for one in batch.column("play_id").to_pylist()), np.int64, batch.num_rows)
    share, flags = share_and_flags(batch)
    return (
        viewers.of(batch.column("viewer")),
        items.of(batch.column("item_id")),
        batch.column("play_started_at_ms").to_numpy(),
        digests,
        share,
        flags,
    )


def share_and_flags(batch: Any) -> tuple[U8, U8]:
    """(n,) uint8 watched share and (n,) uint8 flags of play events; `viewers.state.watched_share` of many."""
    watched = batch.column("watched_ms").to_numpy()
    duration = batch.column("duration_ms").to_numpy()
    fits = (np.abs(watched) <= _MULTIPLIED_MAX) & (np.abs(duration) <= _MULTIPLIED_MAX)
    share = np.minimum(255, 255 * np.where(fits, watched, 0) // duration).astype(np.uint8)
    for row in np.flatnonzero(~fits):  # Python's numbers do not overflow
        share[row] = watched_share(int(watched[row]), int(duration[row]))
    kinds = batch.column("kind").dictionary_encode()
    flags = np.array([_FLAGS[kind] for kind in kinds.dictionary.to_pylist()], dtype=np.uint8)
    return share, flags[kinds.indices.to_numpy()]


def strongest_signals(batches: Sequence[tuple[I32, I32, I64, I64, U8, U8]]) -> tuple[I32, I32, F32, int]:
    """Of play events in any order and number: (viewer, item, strength) per pair, and how many plays there were."""
    if not batches:
        return np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32), 0
    viewer, item, start, digest, share, flags = (np.concatenate(column) for column in zip(*batches, strict=True))
    order = np.lexsort((digest, start, item, viewer))
    viewer, item, start, digest, share, flags = (c[order] for c in (viewer, item, start, digest, share, flags))
    first = _changes(viewer, item, start, digest)  # of each play
    share, flags = np.maximum.reduceat(share, first), np.bitwise_or.reduceat(flags, first)
    strength = play_strengths(share, flags)
    viewer, item = viewer[first], item[first]
    pair = _changes(viewer, item)
    best, worst = np.maximum.reduceat(strength, pair), np.minimum.reduceat(strength, pair)
    return viewer[pair], item[pair], np.where(best >= -worst, best, worst), len(first)


def _changes(*columns: NDArray[Any]) -> I64:
    """Positions at which sorted columns begin a new combination."""
    new = np.zeros(len(columns[0]), dtype=np.bool_)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(new)


def _with_registers(
    viewer: I32, item: I32, strength: F32, said: dict[tuple[int, int, RegisterKind], Register], n_items: int
) -> tuple[I32, I32, F32]:
    """What was said outright replaces what the plays say; a hide wins over a rating. Pairs without a signal are left out."""
    outright: dict[int, float] = {}
    for (v, i, kind), register in sorted(said.items(), key=lambda pair: pair[0][2] is RegisterKind.HIDE):
        value = REGISTER_SIGNALS[kind](register)
        if value is not None:
            outright[v * n_items + i] = value
    if outright:
        keys = np.fromiter(outright, np.int64, len(outright))
        kept = ~np.isin(viewer.astype(np.int64) * n_items + item, keys)
        viewer = np.concatenate([viewer[kept], (keys // n_items).astype(np.int32)])
        item = np.concatenate([item[kept], (keys % n_items).astype(np.int32)])
        strength = np.concatenate([strength[kept], np.fromiter(outright.values(), np.float32, len(outright))])
    known = strength != 0
    return viewer[known], item[known], strength[known]


def register_of(row: dict[str, Any]) -> Register:
    """As `viewers.state.state_of` makes it of the event."""
    kind = Kind(row["kind"])
    subject = row["preference"] if kind is Kind.PREFER else row["item_id"]
    value = row["value"] if kind in (Kind.RATE, Kind.PREFER) else None
    return Register(REGISTER_OF_KIND[kind], subject, row["event_time_ms"], id_digest(row["event_id"]), value)


# States


def remove_leftovers(lake_path: str | Path) -> None:
    """Remove the buckets and half-written files that a killed job left behind: they hold plays, erased viewers' included. Only for who
    holds the lake's lock."""
    for folder in Path(lake_path).glob(f"{BUCKETS}*"):
        shutil.rmtree(folder, ignore_errors=True)
    for file in Path(lake_path).rglob(".*.parquet"):
        file.unlink(missing_ok=True)


def states_from_lake(
    lake: Lake,
    limits: Limits,
    *,
    before_ms: int | None = None,
    wanted: frozenset[str] | None = None,
    advance: Callable[[int], None] = lambda viewers: None,
) -> Iterator[tuple[str, ViewerState]]:
    """Every viewer of the lake with the state that the updater would have, in no particular order. Errors: `DataError`.

    `before_ms`: only events before it. `wanted`: only these viewers. Events are dealt out into buckets of viewers on disk first,
    so that memory is bounded by a bucket, not by the lake.
    """
    columns = [*COLUMNS, "preference"]
    count = lake.count("events")
    if count == 0:
        return
    n_buckets = count // BUCKET_ROWS + 1
    with tempfile.TemporaryDirectory(prefix=BUCKETS, dir=lake.path) as folder:
        schema = pa.schema([(name, pa.string()) if name in _TEXTS else (name, pa.int64()) for name in columns])
        paths = [Path(folder) / f"{bucket}.arrow" for bucket in range(n_buckets)]
        writers = [pa.ipc.new_stream(str(path), schema) for path in paths]
        try:
            for batch in lake.batches("events", columns):
                if before_ms is not None:
                    batch = batch.filter(pc.less(batch.column("event_time_ms"), before_ms))
                batch = pa.table(batch.columns, names=columns).cast(schema).combine_chunks()
                for bucket, part in _deal_out(batch, n_buckets, wanted):
                    writers[bucket].write_table(part)
        finally:
            for writer in writers:
                writer.close()
        for path in paths:
            with pa.OSFile(str(path)) as source:
                table = pa.ipc.open_stream(source).read_all()
            path.unlink()
            for viewer, state in _states(table, lake, limits):
                advance(1)
                yield viewer, state


_TEXTS = frozenset({"viewer", "kind", "event_id", "item_id", "play_id", "preference"})


def _deal_out(table: Any, n_buckets: int, wanted: frozenset[str] | None) -> Iterator[tuple[int, Any]]:
    """(bucket, its rows): a viewer's rows always go to the same bucket."""
    if not table.num_rows:
        return
    viewers = table.column("viewer").combine_chunks().dictionary_encode()
    ids = viewers.dictionary.to_pylist()
    bucket = np.array(
        [-1 if wanted is not None and one not in wanted else id_digest(one) % n_buckets for one in ids], dtype=np.int64
    )[viewers.indices.to_numpy()]
    for number in np.unique(bucket):
        if number >= 0:
            yield int(number), table.filter(pa.array(bucket == number))


def _states(table: Any, lake: Lake, limits: Limits) -> Iterator[tuple[str, ViewerState]]:
    """The states of one bucket's viewers: all their plays and registers, joined and cut by `merge`, as live."""
    plays: dict[str, list[Play]] = {}
    registers: dict[str, list[Register]] = {}
    for batch in table.to_batches(max_chunksize=50_000):
        is_play = pc.is_in(batch.column("kind"), value_set=PLAY_KIND_NAMES)
        played = batch.filter(is_play)
        shares, flags = share_and_flags(played) if played.num_rows else (np.zeros(0), np.zeros(0))
        columns = (played.column(name).to_pylist() for name in ("viewer", "play_started_at_ms", "play_id", "item_id"))
        for viewer, start_ms, play_id, item_id, share, flag in zip(
            *columns, shares.tolist(), flags.tolist(), strict=True
        ):
            plays.setdefault(viewer, []).append(Play(start_ms, id_digest(play_id), item_id, share, flag))
        for row in batch.filter(pc.invert(is_play)).to_pylist():
            registers.setdefault(row["viewer"], []).append(register_of(row))
    for viewer in sorted(plays.keys() | registers.keys()):
        facts = ViewerState(
            plays=tuple(plays.get(viewer, ())),
            registers=tuple(registers.get(viewer, ())),
            erased_through_s=lake.ledger.through_s(viewer),
        )
        yield viewer, merge((facts,), limits)
