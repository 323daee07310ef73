"""The one function that rewrites a viewer, called by the updater for every event and by the nightly rebuild for everyone.

    read (state, token) → merge facts → unchanged? nothing to do → fold in, rank, encode → compare-and-set
                ↑                                                                              │
                └────────────────────── somebody else wrote: merge into theirs ────────────────┘

Merging is a join and the write is a compare-and-set, so zombies, rebalances, late scripts and the nightly rebuild may all
run at once: the last write to hold always contains everybody's facts.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from contracts.digests import id_digest
from contracts.errors import StaleActivation, StoreUnavailable
from contracts.rows import HomeRow
from embeddings.generation import Generation
from ranking.rows import Ranked, RankingInput, popular_entries, rank
from viewers import packing
from viewers.signals import hidden_items, item_signals, played_items
from viewers.state import EMPTY, Limits, ViewerState, merge
from viewers.store import Conflict, Stale, Store, StoredViewer, ViewerWrite, Written

NO_TRENDS = "-"
"""Trends snapshot of a row that used none."""

MAX_ATTEMPTS = 20
"""Compare-and-set rounds before giving up; each lost round means that somebody else's write held."""


class Outcome(Enum):
    """What a job did to its viewer."""

    APPLIED = "applied"
    NOOP = "noop"


@dataclass(frozen=True, slots=True)
class RewriteJob:
    """Merge `facts` (EMPTY: none, just recompute) into a viewer. `event_time_ms`: of the newest event among the facts."""

    viewer: str
    facts: ViewerState = EMPTY
    event_time_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A viewer's new content, ready to be written."""

    state: ViewerState
    state_bytes: bytes
    vector_bytes: bytes
    row_bytes: bytes
    row_id: str


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall-clock milliseconds at which a row was computed and known to be in the store."""

    computed_at_ms: float
    written_at_ms: float


@dataclass(frozen=True, slots=True)
class RewriteResult:
    """`row_id` and `timing` are None for a no-op."""

    outcome: Outcome
    row_id: str | None = None
    timing: Timing | None = None


class Rewriter:
    """A generation's rewriting of states into vectors and rows. Pure and CPU-bound: call it off the event loop.

    Without a generation (first day) plays are kept and the row stays empty: the default row serves.
    """

    def __init__(
        self, generation: Generation | None, activation: int, encode_row: Callable[[HomeRow], bytes], limits: Limits
    ) -> None:
        self.generation = generation
        self.activation = activation
        self.limits = limits
        self._encode_row = encode_row

    def rewrite(self, state: ViewerState, *, computed_at_ms: int, event_time_ms: int | None = None) -> Rewritten:
        """Rewrite one viewer: `f(state, generation, trends snapshot, computed_at)`."""
        return self.rewrite_many([(state, event_time_ms)], computed_at_ms=computed_at_ms)[0]

    def rewrite_many(self, states: Sequence[tuple[ViewerState, int | None]], *, computed_at_ms: int) -> list[Rewritten]:
        """Rewrite a batch of (state, time of the newest event); each result is the same as if computed alone."""
        ranked = self.rank([state for state, _ in states], computed_at_ms=computed_at_ms)
        return [
            self._finish(state, event_time_ms, result, computed_at_ms)
            for (state, event_time_ms), result in zip(states, ranked, strict=True)
        ]

    def rank(self, states: Sequence[ViewerState], *, computed_at_ms: int) -> list[Ranked | None]:
        """The ranking alone; None for a viewer of whom nothing is known, or without a generation."""
        inputs = [None if self.generation is None or state.is_empty else ranking_input(state) for state in states]
        present = [viewer for viewer in inputs if viewer is not None]
        if self.generation is None or not present:
            return [None] * len(states)
        ranked = iter(rank(self.generation, present, computed_at_ms))
        return [None if viewer is None else next(ranked) for viewer in inputs]

    def default_row(
        self,
        *,
        computed_at_ms: int,
        maturity: int = 99,
        territory: str = "*",
        only: NDArray[np.bool_] | None = None,
    ) -> bytes:
        """The row of viewers without one: the most popular titles for an age and a territory.

        `only`: (n_items,) bool, the titles of that territory; None: all.
        """
        if self.generation is None:
            return b""
        entries = popular_entries(self.generation, computed_at_ms, maturity=maturity, only=only)
        row_id = f"default-{self.generation.generation_id}-{territory}-{maturity}"
        return self._encode_row(
            HomeRow(row_id, self.generation.generation_id, self.activation, NO_TRENDS, computed_at_ms, None, entries)
        )

    def _finish(
        self, state: ViewerState, event_time_ms: int | None, ranked: Ranked | None, computed_at_ms: int
    ) -> Rewritten:
        state_bytes = packing.pack(state)
        if ranked is None or self.generation is None:
            return Rewritten(state, state_bytes, b"", b"", "")
        generation_id = self.generation.generation_id
        origin = f"{generation_id}|{self.activation}|{NO_TRENDS}|{computed_at_ms}|".encode()
        row_id = hashlib.blake2b(origin + state_bytes, digest_size=8).hexdigest()
        row = HomeRow(row_id, generation_id, self.activation, NO_TRENDS, computed_at_ms, event_time_ms, ranked.entries)
        vector = ranked.folded.x.astype("<f2").tobytes()
        return Rewritten(state, state_bytes, vector, self._encode_row(row), row_id)


def ranking_input(state: ViewerState) -> RankingInput:
    """What ranking needs of a state."""
    signals = item_signals(state)
    return RankingInput(
        [signal.item_id for signal in signals],
        [signal.strength for signal in signals],
        [signal.rank for signal in signals],
        frozenset(played_items(state.plays) | hidden_items(state)),
        np.array([digest for digest, _ in state.seen], dtype=np.int64),
    )


async def rewrite_viewers(
    store: Store,
    jobs: Sequence[RewriteJob],
    rewriter: Rewriter,
    *,
    now_ms: Callable[[], float],
    draw_token: Callable[[], bytes],
    executor: Executor | None = None,
) -> list[RewriteResult]:
    """Rewrite distinct viewers; results in the order of `jobs`.

    A viewer is a no-op if the facts change nothing and its row is already of this activation.
    Errors: `StaleActivation` if the store holds a newer activation; `StoreUnavailable`, `StoreChanged`. After an error
    some viewers may be rewritten; doing the whole batch again is harmless.
    """
    loop = asyncio.get_running_loop()
    results: list[RewriteResult | None] = [None] * len(jobs)
    pending = list(range(len(jobs)))
    stored = await store.read_viewers([job.viewer for job in jobs])
    for _ in range(MAX_ATTEMPTS):
        computed_at_ms = now_ms()
        todo = [(jobs[i], stored[i]) for i in pending]
        computed = await loop.run_in_executor(executor, _compute, rewriter, todo, int(computed_at_ms))
        writes: list[tuple[int, ViewerWrite, str]] = []
        for i, rewritten in zip(pending, computed, strict=True):
            if rewritten is None:
                results[i] = RewriteResult(Outcome.NOOP)
                continue
            write = ViewerWrite(
                jobs[i].viewer,
                stored[i].token,
                draw_token(),
                rewriter.activation,
                rewritten.state_bytes,
                rewritten.vector_bytes,
                rewritten.row_bytes,
            )
            writes.append((i, write, rewritten.row_id))
        pending = []
        if not writes:
            break
        answers = await store.write_viewers([write for _, write, _ in writes])
        timing = Timing(computed_at_ms, now_ms())
        for (i, _, row_id), answer in zip(writes, answers, strict=True):
            match answer:
                case Written():
                    results[i] = RewriteResult(Outcome.APPLIED, row_id, timing)
                case Conflict(newer):
                    stored[i] = newer
                    pending.append(i)
                case Stale(stored_activation):
                    raise StaleActivation(stored_activation)
        if not pending:
            break
    if pending:
        raise StoreUnavailable(
            f"{len(pending)} viewers were rewritten by others {MAX_ATTEMPTS} times in a row; "
            "is a second stream writing to this namespace?"
        )
    return [result for result in results if result is not None]


def _compute(
    rewriter: Rewriter, todo: Sequence[tuple[RewriteJob, StoredViewer]], computed_at_ms: int
) -> list[Rewritten | None]:
    """Merge and rewrite; None where nothing changes."""
    changed: list[tuple[ViewerState, int | None] | None] = []
    for job, stored in todo:
        if stored.activation > rewriter.activation:
            raise StaleActivation(stored.activation)
        try:
            before = packing.unpack(stored.state)
        except packing.BadState as error:
            raise packing.BadState(
                f"viewer {id_digest(job.viewer):08x} (BLAKE2b of the id, 4 bytes): {error}. If a newer version wrote it, upgrade; if it is "
                "damaged, delete the viewer's key, then: nearline nightly --seed, nearline resume"
            ) from error
        after = merge((before, job.facts), rewriter.limits)
        unchanged = after == before and stored.activation == rewriter.activation
        changed.append(None if unchanged else (after, job.event_time_ms))
    rewritten = iter(rewriter.rewrite_many([c for c in changed if c is not None], computed_at_ms=computed_at_ms))
    return [None if c is None else next(rewritten) for c in changed]
