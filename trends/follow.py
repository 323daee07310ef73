"""An updater's side of trends: look for the newest snapshot of the generation in force, check it, have it served.

Whatever is wrong (no aggregator, a snapshot that is damaged, lost, or another generation's) costs freshness alone: the generation's own
trends serve, which a metric tells and one line of the log.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog

from contracts.errors import GenerationError
from embeddings.added import Added, equal
from trends.snapshots import decode, tables_of
from viewers.rewriter import NO_TRENDS, Rewriter
from viewers.trend_store import TrendStore

log = structlog.get_logger()

TELL_AFTER = 30
"""Looks, a second apart: a generation that is new has no snapshot yet."""

SERVED_KEPT = 2
"""Snapshots that rows on their way may name: the one that serves, and the one before."""

OffLoop = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class InForce:
    """A snapshot that serves. `data`: its bytes, for a store that has lost them."""

    name: str
    at_ms: int
    data: bytes


class Follower:
    """What one updater serves beside its generation. `taken_up`, `refused`: snapshots since the start."""

    def __init__(self) -> None:
        self.in_force: InForce | None = None
        self.seen_at_ms = 0  # when the publisher last spoke, as far as known; 0: no snapshot serves
        self.taken_up = 0
        self.refused = 0
        self._served: deque[InForce] = deque(maxlen=SERVED_KEPT)
        self._last: TakenUp | None = None
        self._refused = ""
        self._missed = 0  # looks in a row at which there was none

    def forget(self) -> None:
        """Another generation is in force: what served belongs to the one before."""
        self.in_force, self.seen_at_ms, self._refused, self._last = None, 0, "", None

    async def keep(self, store: TrendStore) -> None:
        """Have the store hold what rows of this process name, after another server has answered: it may have lost them, and rows that were
        on their way may have reached it. Errors: `StoreUnavailable`."""
        for one in tuple(self._served):
            await store.keep_snapshot(one.name, one.data)

    async def look(self, store: TrendStore, own: Rewriter, off_loop: OffLoop) -> Rewriter | None:
        """The rewriter that has to serve from now on, if it is another than before. `own`: with the generation's own trends.

        Errors: `StoreUnavailable`.
        """
        generation = own.generation
        if generation is None or generation.tables is None or not generation.tables.at_ms:
            return None
        pointer = await store.read_pointer(generation.generation_id)
        if pointer is None:
            self._missed += 1
            return self._without(own, "there is none: does nearline trends run?", tell=self._missed == TELL_AFTER)
        self._missed = 0
        if self.in_force is not None and pointer.name == self.in_force.name:
            self.seen_at_ms = pointer.seen_at_ms
            await store.keep_snapshot(self.in_force.name, self.in_force.data)
            return None
        if pointer.name == self._refused:
            return None
        data = await store.read_snapshot(pointer.name)
        try:
            if not data:
                raise GenerationError(f"trends snapshot {pointer.name}: the store does not hold it")
            made: TakenUp = await off_loop(take_up, own, data, pointer.name, self._last)
        except GenerationError as error:
            return self._refuse(own, pointer.name, error)
        self._last = made
        if self.in_force is None:
            log.info("trends_taken_up", snapshot=pointer.name, generation_id=generation.generation_id)
        self.in_force, self.seen_at_ms, self._refused = InForce(pointer.name, made.at_ms, data), pointer.seen_at_ms, ""
        self._served.append(self.in_force)
        self.taken_up += 1
        return made.rewriter

    def _refuse(self, own: Rewriter, name: str, error: GenerationError) -> Rewriter | None:
        self._refused = name
        self.refused += 1
        return self._without(own, str(error), tell=True)

    def _without(self, own: Rewriter, why: str, *, tell: bool) -> Rewriter | None:
        """Back to the generation's own trends."""
        served = self.in_force is not None
        if tell or served:
            of = "" if own.generation is None else own.generation.generation_id
            instead = "the generation's own, as old as it is"
            log.warning("trends_not_served", generation_id=of, reason=why, instead=instead)
        self.in_force, self.seen_at_ms = None, 0
        return own if served else None


async def with_snapshot(store: TrendStore, own: Rewriter, name: str) -> Rewriter | None:
    """The rewriter that a row names; None if the store does not keep that snapshot any more.

    Errors: `StoreUnavailable`, `GenerationError`.
    """
    generation = own.generation
    if name == NO_TRENDS or generation is None or generation.tables is None:
        return own
    data = await store.read_snapshot(name)
    return (await asyncio.to_thread(take_up, own, data, name)).rewriter if data else None


@dataclass(frozen=True, slots=True)
class TakenUp:
    """A snapshot made ready. `own`: what it was added to; `longer`: that with the snapshot's items; `rewriter`: with its trends too."""

    own: Rewriter
    added: Added
    longer: Rewriter
    rewriter: Rewriter
    at_ms: int


def take_up(own: Rewriter, data: bytes, name: str, last: TakenUp | None = None) -> TakenUp:
    """Off the loop: parse, check, put the items behind those of the generation, order titles by trend, prepare what every batch needs.

    `own`: of a generation with tables. `last`: what was taken up before; where the items are the same, what they cost is spared. Errors:
    `GenerationError`.
    """
    assert own.generation is not None  # who asks has looked
    snapshot = decode(data, name)
    if last is not None and last.own is own and equal(last.added, snapshot.added):
        longer = last.longer
    else:
        longer = own.extended(snapshot.added)
    generation = longer.generation
    assert generation is not None
    assert generation.tables is not None
    tables = tables_of(snapshot, generation.tables, generation.generation_id, generation.n_items)
    return TakenUp(own, snapshot.added, longer, longer.with_trends(tables, name), snapshot.at_ms)
