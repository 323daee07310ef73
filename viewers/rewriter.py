"""States into vectors and rows, by one generation: called by the updater, the nightly rebuild and whoever explains or compares rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary, ref

import numpy as np
from numpy.typing import NDArray

from contracts.row_columns import GREATEST_HALF
from contracts.rows import HomeRow
from embeddings.added import Added, extended
from embeddings.compiled import one_at_a_time
from embeddings.generation import Generation
from embeddings.tables import Tables
from ranking.rows import Cold, Ranked, RankingInput, popular_entries, rank
from ranking.rules import activation
from viewers import packing
from viewers.kernel import (
    HEADER_BYTES,
    REFERENCE,
    REWRITTEN,
    ROW_ID_CHARACTERS,
    UNCHANGED,
    Framing,
    Kernel,
    Ranks,
    Rewritten,
    Todo,
    make_ranks,
)
from viewers.packing import pack, unpack
from viewers.signals import (
    activations,
    hidden_items,
    item_signals,
    play_strength,
    played_items,
    preferences,
)
from viewers.state import Limits, ViewerState, merge

NO_TRENDS = "-"
"""Trends snapshot of a row that used none."""


class Rewriter:
    """A generation's rewriting of states into vectors and rows. Pure and CPU-bound: call it off the event loop.

    Without a generation (first day) plays are kept and the row stays empty: the default row serves.
    """

    def __init__(
        self,
        generation: Generation | None,
        activation: int,
        encode_row: Callable[[HomeRow], bytes],
        limits: Limits,
        trends_snapshot: str = NO_TRENDS,
        *,
        keeps_rows: bool = False,
    ) -> None:
        """`trends_snapshot`: names the snapshot that the generation's trends were replaced by. `keeps_rows`: rows are frozen, states are
        merged alone; without a generation, then."""
        self.keeps_rows = keeps_rows
        self.generation = generation
        self.activation = activation
        self.limits = limits
        self.trends_snapshot = trends_snapshot
        self._encode_row = encode_row
        self._kernel: Kernel | None = None
        self._shorter: Rewriter | None = None  # what this one extends

    share = None
    held = None

    @property
    def in_force(self) -> Rewriter:
        return self

    def arm(self, viewer: str) -> Rewriter:
        """The same for everybody."""
        return self

    @property
    def is_prepared(self) -> bool:
        """Whether a batch can be rewritten without waiting for what `prepare` does."""
        return self._kernel is not None

    def prepare(self) -> None:
        """Do now what the first batch would have to wait for: load or compile the kernel, prepare the generation for it."""
        if self._kernel is None:
            self._kernel = self._longer_kernel() or prepared(self.generation, self.limits)

    def _longer_kernel(self) -> Kernel | None:
        """By what is prepared of the generation that this one extends, always: so the last bits are the same whoever makes it."""
        if self._shorter is None:
            return None
        self._shorter.prepare()
        return Kernel(self.generation, self.limits, self._shorter._kernel)

    def extended(self, added: Added) -> Rewriter:
        """The same with items that the generation has no vector of. Errors: `GenerationError` if they do not fit."""
        if not len(added):
            return self
        assert self.generation is not None  # there is something to add to
        return self.for_extended(extended(self.generation, added))

    def for_extended(self, generation: Generation) -> Rewriter:
        """For this generation extended already (`embeddings.added.extended`)."""
        changed = Rewriter(generation, self.activation, self._encode_row, self.limits, self.trends_snapshot)
        changed._shorter = self
        if self._kernel is not None:
            changed._kernel = changed._longer_kernel()
        return changed

    def with_trends(self, tables: Tables, trends_snapshot: str) -> Rewriter:
        """The same with the trends of a snapshot, prepared if this one is. Errors: `GenerationError` if they do not fit."""
        assert self.generation is not None  # whose rows would these be?
        generation = self.generation.with_tables(tables)
        changed = Rewriter(generation, self.activation, self._encode_row, self.limits, trends_snapshot)
        changed._shorter = self._shorter
        if self._kernel is not None:
            changed._kernel = self._kernel.with_tables_of(generation)
        return changed

    def rewrite(self, state: ViewerState, *, computed_at_ms: int, event_time_ms: int | None = None) -> Rewritten:
        """Rewrite one viewer: `f(state, generation, trends snapshot, computed_at)`."""
        (rewritten,) = self.rewrite_many([Todo(pack(state), (), True, event_time_ms)], computed_at_ms=computed_at_ms)
        assert rewritten is not None  # it was forced
        return rewritten

    def rewrite_many(self, batch: Sequence[Todo], *, computed_at_ms: int) -> list[Rewritten | None]:
        """Merge and rewrite a batch, None where nothing changes; each result is the same as if computed alone.

        Errors: `BadState`.
        """
        self.prepare()
        assert self._kernel is not None
        framing = self._framing(computed_at_ms)
        done = self._kernel.rewrite(batch, framing)
        left = [i for i, one in enumerate(done) if one.status == REFERENCE]
        if left:  # more to it than plays: merged by the reference, then ranked as all others
            merged = [self._merge_by_reference(batch[i]) for i in left]
            for i, one in zip(left, self._kernel.rewrite(merged, framing), strict=True):
                done[i] = one
        if any(one.status == REFERENCE for one in done):
            raise packing.BadState(
                "what the reference packs, the kernel does not read: the two disagree; please report this"
            )
        return [None if one.status == UNCHANGED else one for one in done]

    def _merge_by_reference(self, todo: Todo) -> Todo:
        """The same with its facts merged in."""
        before = unpack(todo.stored)
        after = merge((before, *map(unpack, todo.facts)), self.limits)
        packed = pack(after)
        if after == before and not todo.force:
            return Todo(packed, (), False, todo.event_time_ms)
        return Todo(packed, (), True, todo.event_time_ms)

    def _framing(self, computed_at_ms: int) -> Framing:
        """What the rows of a batch have in common, taken from the encoding of an empty one."""
        if self.generation is None:
            return Framing(computed_at_ms, b"-", b"-", b"-")
        generation_id = self.generation.generation_id
        empty = HomeRow("", generation_id, self.activation, self.trends_snapshot, computed_at_ms, None, ())
        encoded, columns = self._encode_row(empty), 17
        shared = encoded[HEADER_BYTES + 1 : -columns]
        origin = f"{generation_id}|{self.activation}|{self.trends_snapshot}|{computed_at_ms}|".encode()
        return Framing(computed_at_ms, origin, encoded[:HEADER_BYTES] + bytes([2 * ROW_ID_CHARACTERS]), shared)

    def rank(
        self, states: Sequence[ViewerState], *, computed_at_ms: int, event_time_ms: int | None = None
    ) -> list[Ranked | None]:
        """The ranking alone, by the reference; None for a viewer of whom nothing is known, or without a generation."""
        inputs = [
            None if self.generation is None or state.is_empty else ranking_input(state, event_time_ms)
            for state in states
        ]
        present = [viewer for viewer in inputs if viewer is not None]
        if self.generation is None or not present:
            return [None] * len(states)
        seeds = None
        if self.generation.rules.exploration:
            ids = [self._row_digest(pack(state), computed_at_ms) for state in states if not state.is_empty]
            seeds = [int.from_bytes(digest, "little") for digest in ids]
        ranked = iter(rank(self.generation, present, computed_at_ms, seeds))
        return [None if viewer is None else next(ranked) for viewer in inputs]

    def rank_packed(self, states: Sequence[bytes], *, computed_at_ms: int) -> Ranks:
        """The rows that `rewrite_many` would make of packed states, as numbers: for who measures rows. Errors: `BadState`."""
        self.prepare()
        assert self._kernel is not None
        ranks = make_ranks(len(states))
        batch = [Todo(state, (), True, None) for state in states]
        done = self._kernel.rewrite(batch, self._framing(computed_at_ms), ranks)
        if any(one.status != REWRITTEN for one in done):
            raise packing.BadState("a state that the kernel does not read; pack it again")
        return ranks

    def _row_digest(self, state_bytes: bytes, computed_at_ms: int) -> bytes:
        """What a row's id is: a digest of everything that the row is made of."""
        assert self.generation is not None  # whose rows would these be?
        named = f"{self.generation.generation_id}|{self.activation}|{self.trends_snapshot}|{computed_at_ms}|"
        return hashlib.blake2b(named.encode() + state_bytes, digest_size=8).digest()

    def rewrite_by_reference(self, todo: Todo, *, computed_at_ms: int) -> Rewritten:
        """What `rewrite_many` does, in readable steps: equal states, and rows that differ in the last bits of their numbers at most."""
        state = unpack(self._merge_by_reference(todo).stored)
        (ranked,) = self.rank([state], computed_at_ms=computed_at_ms, event_time_ms=todo.event_time_ms)
        state_bytes = pack(state)
        if ranked is None or self.generation is None:
            return Rewritten(REWRITTEN, state_bytes)
        generation_id = self.generation.generation_id
        row = HomeRow(
            self._row_digest(state_bytes, computed_at_ms).hex(),
            generation_id,
            self.activation,
            self.trends_snapshot,
            computed_at_ms,
            todo.event_time_ms,
            ranked.entries,
        )
        vector = ranked.folded.x.clip(-GREATEST_HALF, GREATEST_HALF).astype("<f2").tobytes()
        return Rewritten(REWRITTEN, state_bytes, vector, self._encode_row(row))

    def default_row(
        self,
        *,
        computed_at_ms: int,
        maturity: int = 99,
        territory: str = "*",
        only: NDArray[np.bool_] | None = None,
        cold: Cold | None = None,
    ) -> bytes:
        """The row of viewers without one: the most popular titles for an age and a territory.

        `only`: (n_items,) bool, the titles of that territory; None: all. `cold`: what `cold_scores` gives, if many rows are made.
        """
        if self.generation is None:
            return b""
        entries = popular_entries(self.generation, computed_at_ms, maturity=maturity, only=only, cold=cold)
        named = "" if self.trends_snapshot == NO_TRENDS else f"-{self.trends_snapshot}"
        where = territory.replace("*", "~")  # what is played from it names it: an id of the alphabet
        row_id = f"default-{self.generation.generation_id}{named}-{where}-{maturity}"
        return self._encode_row(
            HomeRow(
                row_id,
                self.generation.generation_id,
                self.activation,
                self.trends_snapshot,
                computed_at_ms,
                None,
                entries,
            )
        )


_prepared: WeakKeyDictionary[Generation, tuple[Limits, ref[Kernel]]] = WeakKeyDictionary()


def prepared(generation: Generation | None, limits: Limits) -> Kernel:
    """The generation prepared for the kernel; what was prepared once serves all who rewrite by it."""
    known = None if generation is None else _prepared.get(generation)
    kernel = None if known is None or known[0] != limits else known[1]()
    if kernel is not None:
        return kernel
    kernel = Kernel(generation, limits)
    # Now: one that serves is another thread's, and would leave out for a moment what is shown since 1970.
    with one_at_a_time():
        kernel.rewrite([Todo(b"", (), True, None)], Framing(0, b"-", b"-", b"-"))
    if generation is not None:
        # A reference that does not hold it: it holds the generation, and neither would ever be freed.
        _prepared[generation] = (limits, ref(kernel))
    return kernel


def ranking_input(state: ViewerState, event_time_ms: int | None = None) -> RankingInput:
    """What ranking needs of a state. `event_time_ms`: of the event that the row is made for."""
    signals = item_signals(state)
    newest_ms = next((play.started_at_ms for play in state.plays if play_strength(play.share, play.flags)), None)
    if newest_ms is not None and event_time_ms is not None:
        newest_ms = max(newest_ms, event_time_ms)
    ids = [signal.item_id for signal in signals]
    return RankingInput(
        ids,
        [signal.strength for signal in signals],
        [signal.rank for signal in signals],
        frozenset(played_items(state.plays) | hidden_items(state)),
        np.array([digest for digest, _ in state.seen], dtype=np.int64),
        preferences(state) if state.registers else (),
        activations(state, ids, activation(len(state.plays))),
        newest_ms,
        [signal.newest_ms for signal in signals],
    )
