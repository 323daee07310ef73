"""The rebuild: everybody's row through the one rewrite, then a sweep that proves nobody is left behind.

1. Default rows, for viewers without a row of their own
2. Every viewer of the store (and, seeding, of the lake with all plays merged in) is rewritten with the new activation
3. Sweep: scan again for viewers of a lower activation, rewrite them, until a whole scan finds none
4. `rebuilt` (and `seeded`) recorded in the store

Rewriting is a compare-and-set of a join, so updaters run on meanwhile, and a crash at any point is mended by doing it all
again: who has the activation already is passed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from contracts.errors import StaleActivation, StoreUnavailable, UserError
from runtime.worker import Worker
from viewers.default_rows import default_rows
from viewers.rewrite import Outcome, RewriteJob, Rewriters, rewrite_viewers
from viewers.state import EMPTY, ViewerState
from viewers.store import Store

BATCH = 256
"""Viewers rewritten in one call: some 30 ms of one core."""
CONCURRENT = 4
"""Batches under way at once: one computes while others wait for the store."""
MAX_SWEEPS = 20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild did. `viewers`: looked at; `rewritten`: of those, whose row was not of this activation yet or had new facts;
    `swept`: found behind by the sweeps; `sweeps`: scans until one found nobody."""

    viewers: int
    rewritten: int
    swept: int
    sweeps: int


class Rebuild:
    """One rebuild of one store, each viewer by the rewriter of their arm.

    `territories`: territory → (n_items,) bool, its titles: each gets default rows of its own.
    `erased_through_s`: viewer → erased through (second), −1 for never: the ledger is applied to everyone who is rewritten.
    Errors of every method: `StoreUnavailable`, `StoreChanged` (try again), `UserError` if a newer activation took over.
    """

    def __init__(
        self,
        store: Store,
        rewriter: Rewriters,
        *,
        now_ms: Callable[[], float],
        draw_token: Callable[[], bytes],
        territories: Mapping[str, NDArray[np.bool_]] | None = None,
        erased_through_s: Callable[[str], int] = lambda viewer: -1,
        advance: Callable[[int], None] = lambda viewers: None,
    ) -> None:
        self._store = store
        self._rewriter = rewriter
        self._now_ms = now_ms
        self._draw_token = draw_token
        self._territories = dict(territories or {})
        self._erased_through_s = erased_through_s
        self._advance = advance
        self._worker = Worker("rebuild")
        self._frozen = False
        self.viewers = 0
        self.rewritten = 0
        self.swept = 0
        self.sweeps = 0

    async def run(
        self, facts: Iterable[tuple[str, ViewerState]] | None = None, *, seeded: Mapping[int, int] | None = None
    ) -> Rebuilt:
        """Rebuild everyone. `facts`: viewers to merge in (the lake's); `seeded`: the cut-offs these facts reach, recorded at the
        end."""
        try:
            await self.write_default_rows()  # 1
            if facts is not None:  # 2
                await self._rewrite_all(_batches(self._worker, facts))
            await self._rewrite_all(self._stored())
            await self.sweep()  # 3
        finally:
            self._worker.close(wait=True)  # `facts` may be of files that the caller cleans up, or unlocks
        if seeded is not None:  # 4
            await self._store.write_seeded(seeded)
        await self._store.write_rebuilt(self._rewriter.activation)
        return Rebuilt(self.viewers, self.rewritten, self.swept, self.sweeps)

    async def write_default_rows(self) -> None:
        """`territory:maturity` → row; nothing before the first generation."""
        rows = default_rows(self._rewriter.in_force, self._territories, int(self._now_ms()))
        if rows:
            await self._store.write_default_rows(rows)

    async def sweep(self) -> None:
        """Scan until nobody is behind. Errors: `StoreUnavailable` if somebody always is."""
        while self.sweeps < MAX_SWEEPS:
            self.sweeps += 1
            self._frozen = await self._store.read_freeze() is not None
            behind = [viewer async for batch in self._store.scan_viewers() for viewer in await self._behind(batch)]
            if not behind:
                return
            self.swept += len(behind)
            for start in range(0, len(behind), BATCH):
                await self._rewrite([(viewer, EMPTY) for viewer in dict.fromkeys(behind[start : start + BATCH])])
        raise StoreUnavailable(
            f"after {MAX_SWEEPS} sweeps there still are viewers of an older activation than {self._rewriter.activation}: "
            "is an updater running that cannot load the generation? See /health/ready of each"
        )

    async def _behind(self, viewers: list[str]) -> list[str]:
        """Those of an older activation. Who came new while rows are frozen has none, and gets no row before they are let go: there always
        may be one more of them."""
        stored = await self._store.read_viewers(viewers)
        return [
            viewer
            for viewer, one in zip(viewers, stored, strict=True)
            if one.activation < self._rewriter.activation and (one.activation or not self._frozen)
        ]

    async def _stored(self) -> AsyncIterator[list[tuple[str, ViewerState]]]:
        async for viewers in self._store.scan_viewers():
            yield [(viewer, EMPTY) for viewer in viewers]

    async def _rewrite_all(self, source: AsyncIterator[list[tuple[str, ViewerState]]]) -> None:
        """Rewrite what comes, `BATCH` at a time, `CONCURRENT` batches at once."""
        pending: dict[str, ViewerState] = {}
        under_way: set[asyncio.Task[None]] = set()
        try:
            async for found in source:
                pending.update(found)
                while len(pending) >= BATCH:
                    batch = [(viewer, pending.pop(viewer)) for viewer in list(pending)[:BATCH]]
                    under_way.add(asyncio.create_task(self._rewrite(batch)))
                    if len(under_way) >= CONCURRENT:
                        done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                        for task in done:
                            task.result()
            await asyncio.gather(*under_way)
            await self._rewrite(list(pending.items()))
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _rewrite(self, batch: Sequence[tuple[str, ViewerState]]) -> None:
        jobs = [RewriteJob(viewer, self._with_erasure(viewer, facts)) for viewer, facts in batch]
        if not jobs:
            return
        try:
            results = await rewrite_viewers(
                self._store,
                jobs,
                self._rewriter,
                now_ms=self._now_ms,
                draw_token=self._draw_token,
                worker=self._worker,
            )
        except StaleActivation as stale:
            raise UserError(
                f"activation {stale.stored_activation} took over while activation {self._rewriter.activation} was being rebuilt: "
                "stopped; the newer one's own rebuild covers everybody"
            ) from stale
        self.viewers += len(jobs)
        self.rewritten += sum(result.outcome is Outcome.APPLIED for result in results)
        self._advance(len(jobs))

    def _with_erasure(self, viewer: str, facts: ViewerState) -> ViewerState:
        through = self._erased_through_s(viewer)
        return replace(facts, erased_through_s=through) if through > facts.erased_through_s else facts


async def _batches(
    worker: Worker, source: Iterable[tuple[str, ViewerState]]
) -> AsyncIterator[list[tuple[str, ViewerState]]]:
    """Pull from a slow iterator off the event loop."""
    iterator = iter(source)

    def pull() -> list[tuple[str, ViewerState]]:
        return [pair for _, pair in zip(range(BATCH), iterator, strict=False)]

    while batch := await worker.run(BATCH, pull):
        yield batch
