"""The kernel as Python calls it: a generation prepared for it, a batch put into arrays, its results as bytes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.rows import ENTRIES_KEPT
from embeddings import kernel_foldin as foldin
from embeddings import kernel_sequence as sequence
from embeddings import kernel_topk as topk
from embeddings.compiled import as_bytes, frozen
from embeddings.generation import NEVER_MS, Generation
from embeddings.sequence import PLACES
from embeddings.tables import CONTEXTS, HALF_LIVES_DAYS, Cowatch, Tables
from ranking import kernel_rows as ranking
from ranking import kernel_rules as placing
from ranking.rows import SOURCES, available
from ranking.rules import AGAIN_KEPT
from viewers import kernel_row as rows
from viewers import kernel_signals as signals
from viewers import kernel_state as state
from viewers.kernel_batch import REWRITTEN, TILE, UNCHANGED, Model, Ranks, Tile, make_ranks, rewrite_batch
from viewers.kernel_state import REFERENCE
from viewers.signals import STRENGTH_TABLE
from viewers.state import Limits

__all__ = ["REFERENCE", "REWRITTEN", "UNCHANGED", "Kernel", "Ranks", "Rewritten", "Todo", "make_ranks"]

Array = NDArray[Any]

HEADER_BYTES = 5
"""Of an encoded row before its body."""
ROW_ID_CHARACTERS = 16

NO_RANKS = make_ranks(0)

_STEP = 65_536
"""Items multiplied at once when a generation is prepared: 32 MB of float64."""


class Todo(NamedTuple):
    """One viewer: the stored packed state, packed facts to merge in, whether a row is made even if they change nothing."""

    stored: bytes
    facts: Sequence[bytes]
    force: bool
    event_time_ms: int | None


class Rewritten(NamedTuple):
    """A viewer's new content, ready to be written. `status`: REWRITTEN; UNCHANGED and REFERENCE have no bytes."""

    status: int
    state_bytes: bytes = b""
    vector_bytes: bytes = b""
    row_bytes: bytes = b""

    @property
    def row_id(self) -> str:
        """From where it stands in the encoded row; empty if there is none."""
        return self.row_bytes[HEADER_BYTES + 1 : HEADER_BYTES + 1 + ROW_ID_CHARACTERS].decode()


@dataclass(frozen=True, slots=True)
class Framing:
    """What the rows of a batch have in common (`kernel_row.Frame`), and the time they are made for."""

    computed_at_ms: int
    origin: bytes
    head: bytes
    shared: bytes


class Kernel:
    """A generation prepared for the kernel; None: plays are kept, no rows are made.

    One thread at a time calls `rewrite`: when what may be shown changes, it replaces model, shelf and scratch one after another, without a
    lock. `with_tables_of` may be called by another thread meanwhile.
    """

    def __init__(self, generation: Generation | None, limits: Limits, shorter: Kernel | None = None) -> None:
        """`shorter`: of the generation that this one extends; what is costly to prepare is taken from there."""
        self._generation = generation
        self._bounds = np.array([limits.max_plays, limits.max_plays_per_item, limits.max_registers, limits.max_seen])
        self._limits = limits
        others = generation.fold_ids[generation.n_items :] if generation else ()
        told = list(generation.told_index.values()) if generation else []
        self._catalogue = state.make_catalogue(generation.item_ids if generation else (), others, told)
        self._longest_id = int(self._catalogue.lengths.max(initial=1))
        self._model: Model = _model(generation, limits, None if shorter is None else shorter._model)
        self._shelf = topk.make_shelf(self._model.Y[: len(self._model.allowed)], self._model.allowed)
        self._bounds_ms = _bounds_ms(generation)
        self._sources = _sources(generation)
        self._valid_from_ms, self._valid_until_ms = 0, 0  # of `allowed`: nothing yet
        self._spare: list[ranking.Entries] = []

    def with_tables_of(self, generation: Generation) -> Kernel:
        """For the same generation with other tables; what is prepared of all else is shared."""
        changed = copy.copy(self)
        changed._generation = generation
        changed._model = changed._model._replace(
            ranker=_ranker(generation)
        )  # as copied: another thread may move this one's
        changed._spare = []
        return changed

    def rewrite(self, batch: Sequence[Todo], framing: Framing, ranks: Ranks = NO_RANKS) -> list[Rewritten]:
        """Each result is the same as if computed alone. `ranks`: takes the entries as numbers."""
        if not batch:
            return []
        self._make_valid_at(framing.computed_at_ms)
        parts = [part for todo in batch for part in (todo.stored, *todo.facts)]
        data = as_bytes(bytearray().join(parts) or b"\x00")
        part_ends = np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)))
        first_part = np.zeros(len(batch) + 1, np.int64)
        np.cumsum([1 + len(todo.facts) for todo in batch], out=first_part[1:])
        sizes = np.diff(part_ends[first_part[1:] - 1], prepend=0)  # of all parts of each viewer, bytes
        spare = self._spare  # of what may be shown now
        entries = self._take_entries(spare)
        room = _Room(self._limits, self._model, len(batch), int(sizes.max()), int(sizes.sum()), self._row_size(framing))
        rewrite_batch(
            data,
            part_ends,
            first_part,
            np.array([todo.force for todo in batch]),
            np.array([-1 if todo.event_time_ms is None else todo.event_time_ms for todo in batch]),
            self._bounds,
            self._catalogue,
            self._model,
            self._shelf,
            rows.Frame(as_bytes(framing.origin), as_bytes(framing.head), as_bytes(framing.shared), *self._sources),
            room.columns,
            room.signals,
            room.tile,
            room.search,
            entries,
            room.placing,
            room.scratch,
            room.states,
            room.state_ends,
            room.rows,
            room.row_ends,
            room.status,
            ranks,
            framing.computed_at_ms,
        )
        spare.append(entries)
        return room.results()

    def _take_entries(self, spare: list[ranking.Entries]) -> ranking.Entries:
        """Scratch as large as the catalogue, which the kernel leaves as it finds it: a small batch should not wait for a new one."""
        try:
            return spare.pop()
        except IndexError:
            longest = int(np.diff(self._model.ranker.starts).max(initial=0))
            return ranking.make_entries(self._model.allowed, longest)

    def _row_size(self, framing: Framing) -> int:
        """Bytes that a vector and a row cannot exceed."""
        ids = ENTRIES_KEPT + rows.MAX_REASON_ITEMS
        framed, vector = len(framing.head) + len(framing.shared), 2 * int(self._model.Y.shape[1])
        return 3_000 + framed + ids * (self._longest_id + 1) + vector

    def _make_valid_at(self, now_ms: int) -> None:
        """Leave out what may not be shown now; looked at again when the next availability begins or ends."""
        if self._generation is None or self._valid_from_ms <= now_ms < self._valid_until_ms:
            return
        allowed = available(self._generation, now_ms)
        self._model = self._model._replace(allowed=frozen(allowed))
        self._spare = []
        self._shelf = topk.with_allowed(self._shelf, allowed)
        after = int(np.searchsorted(self._bounds_ms, now_ms, side="right"))
        self._valid_from_ms = int(self._bounds_ms[after - 1]) if after else np.iinfo(np.int64).min
        self._valid_until_ms = int(self._bounds_ms[after]) if after < len(self._bounds_ms) else NEVER_MS


def _model(generation: Generation | None, limits: Limits, shorter: Model | None) -> Model:
    """`shorter`: of a generation with the same YᵀY, most rows of which are the same."""
    decay: Array
    order: Array
    score: Array
    digests: Array
    by_digest: Array
    if generation is None:
        Y = YP = np.zeros((0, 1), np.float32)
        A0 = P = np.zeros((1, 1))
        scale, nothing = 0.0, np.zeros(0)
        decay, order, score, digests, by_digest = nothing, nothing, nothing, nothing, nothing
    else:
        p, Y = generation.parameters, generation.fold_factors
        ranks = np.arange(limits.max_plays + limits.max_registers, dtype=np.float64)
        decay = p.decay_floor + (1 - p.decay_floor) * np.exp2(-ranks / p.decay_half_life)
        scale = float(p.alpha * p.decay_gain)
        A0 = generation.YtY + p.regularization * np.eye(generation.k)
        P = generation.P
        YP = _products(Y, P) if shorter is None else _longer_products(Y, P, shorter)
        order, score = generation.popular_order, generation.popularity_score
        digests, by_digest = generation.sorted_digests, generation.digest_order
    return Model(
        frozen(Y),
        frozen(YP),
        frozen(P),
        foldin.leverage(Y, YP),
        frozen(A0),
        signals.Decay(scale, frozen(decay)),
        ranking.Popularity(frozen(order.astype(np.int64)), frozen(score.astype(np.float32))),
        _ranker(generation),
        placing.make_rule_set(generation, limits.max_plays),
        np.array(digests, np.int64),  # searched as a viewer's own are: not frozen
        frozen(by_digest.astype(np.int64)),
        frozen(np.ones(generation.n_items if generation else 0, np.bool_)),
        frozen(STRENGTH_TABLE),
    )


def _products(Y: Array, P: Array) -> Array:
    """(n, k) float32, (k, k) float64 → YP, (n, k) float32."""
    products = np.empty_like(Y)
    for at in range(0, len(Y), _STEP):
        products[at : at + _STEP] = Y[at : at + _STEP].astype(np.float64) @ P
    return products


def _longer_products(Y: Array, P: Array, shorter: Model) -> Array:
    """The same, where those of most rows are known."""
    n = len(shorter.Y)
    rows = np.concatenate([np.flatnonzero((Y[:n] != shorter.Y).any(axis=1)), np.arange(n, len(Y))])
    products = np.concatenate([shorter.YP, np.empty((len(Y) - n, Y.shape[1]), np.float32)])
    products[rows] = _products(Y[rows], P)
    return products


def _ranker(generation: Generation | None) -> ranking.Ranker:
    tables = None if generation is None else generation.tables
    if generation is None or tables is None:
        tables = Tables(np.zeros((0, len(HALF_LIVES_DAYS)), np.float32), Cowatch.empty(0), np.zeros(0))
    c, (fading, slot) = tables.cowatch, ranking.places()
    return ranking.Ranker(
        frozen(tables.weights.reshape(len(CONTEXTS), -1) if len(tables.weights) else np.zeros((0, 0))),
        frozen(tables.trends),
        frozen(tables.trending_orders),
        frozen(c.starts),
        frozen(c.items),
        frozen(c.share),
        frozen(c.lift),
        frozen(fading),
        frozen(slot),
        sequence.make_net(tables.sequence),
    )


def _bounds_ms(generation: Generation | None) -> Array:
    """The times at which something begins or ceases to be shown, ascending."""
    if generation is None:
        return np.zeros(0, np.int64)
    return np.unique(np.concatenate([generation.available_from_ms, generation.available_until_ms]))


def _sources(generation: Generation | None) -> tuple[Array, Array, Array, Array]:
    """The last four fields of `kernel_row.Frame`."""
    names = [bytes([2 * len(name)]) + name.encode() for name in SOURCES]  # short: a length of one byte
    nothing = np.zeros(0, np.int64)
    return (
        as_bytes(b"".join(names)),
        frozen(np.cumsum([0, *map(len, names)])),
        frozen(generation.available_from_ms.astype(np.int64) if generation else nothing),
        frozen(generation.available_until_ms.astype(np.int64) if generation else nothing),
    )


class _Room:
    """Scratch and outputs of one call."""

    def __init__(self, limits: Limits, model: Model, viewers: int, largest: int, total: int, row_size: int) -> None:
        """`largest`, `total`: bytes of all parts of a viewer at most, and of all viewers."""
        n_items, k = len(model.allowed), model.Y.shape[1]
        plays = limits.max_plays + largest // 6 + 1  # a play takes more than six bytes
        found, wide, tile = limits.max_plays + limits.max_registers, foldin.padded(k), min(TILE, viewers)
        self.columns = state.make_columns(plays, limits.max_registers, limits.max_seen, 2 * largest + 256)
        self.signals = signals.make_signals(plays + limits.max_registers)
        self.search = topk.make_search(tile, n_items, k)
        self.placing, self.scratch = placing.make_placing(model.rules), rows.make_scratch()
        self.tile = Tile(
            rows=np.empty((tile, found), np.int32),
            c=np.empty((tile, found)),
            n=np.empty(tile, np.int64),
            weights=np.empty(tile),
            signals=np.zeros(tile, np.int64),
            away_ms=np.zeros(tile, np.int64),
            excluded=np.empty((tile, found + limits.max_seen), np.int32),
            n_excluded=np.empty(tile, np.int64),
            looked=np.empty((tile, PLACES), np.int32),
            ages_ms=np.empty((tile, PLACES), np.int64),
            look_places=np.empty((tile, PLACES), np.int64),
            n_looked=np.zeros(tile, np.int64),
            look=sequence.make_look(),
            again=np.empty((tile, AGAIN_KEPT), np.int32),
            n_again=np.zeros(tile, np.int64),
            activated=np.empty(found),
            activated_rows=np.empty(found, np.int32),
            strongest=np.empty(AGAIN_KEPT),
            X=np.empty((tile, k), np.float32),
            L=np.zeros((tile, wide, wide)),
            fold=foldin.make_scratch(k),
            places=np.empty(foldin.LANES, np.int64),
            C=np.empty((foldin.LANES, found)),
            x=np.empty(k),
        )
        self.states = np.empty(4 * total + 512 * viewers, np.uint8)
        self.rows = np.empty(row_size * viewers if n_items else 1, np.uint8)
        self.state_ends, self.row_ends = np.empty(viewers, np.int64), np.empty(viewers, np.int64)
        self.status = np.empty(viewers, np.int64)
        self._vector = 2 * k

    def results(self) -> list[Rewritten]:
        states, rows_ = self.states[: self.state_ends[-1]].tobytes(), self.rows[: self.row_ends[-1]].tobytes()
        state_bounds, row_bounds = pairwise([0, *self.state_ends.tolist()]), pairwise([0, *self.row_ends.tolist()])
        results = []
        for status, (a, b), (c, d) in zip(self.status.tolist(), state_bounds, row_bounds, strict=True):
            row = min(c + self._vector, d)
            results.append(Rewritten(status, states[a:b], rows_[c:row], rows_[row:d]))
        return results
