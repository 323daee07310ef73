"""Rebuild everyone: the one rewrite for every viewer, with the generation just activated; then a sweep that proves it.

1. default rows                       a crash leaves new default rows beside old viewers' rows: both are valid
2. every viewer of the lake (seeding) merged into the stored state and rewritten; repeating changes nothing
3. every viewer of the store          whose row is of an older activation
4. the sweep                          scans again until nobody is left behind (viewers appear while 3 runs)
5. `rebuilt` and, after seeding, `seeded`: markers of their own in the store, so that a store that falls back to an older copy
   loses them with the rows, and the rebuild runs again
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from contracts.keys import TOKEN_BYTES
from viewers.rewrite import Outcome, RewriteJob, Rewriter, rewrite_viewers
from viewers.state import ViewerState
from viewers.store import Store

BATCH = 256
"""Viewers rewritten at once: small enough that the live stream's writes pass between two batches."""

MATURITIES = (0, 6, 12, 16, 18)
"""Ages in years for which a default row exists, beside the one for everybody."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """`seeded`: viewers of the lake; `rewritten`: rows written; `sweeps`: scans until nobody was left behind."""

    seeded: int
    rewritten: int
    sweeps: int


def wall_ms() -> float:
    """UTC milliseconds."""
    return time.time() * 1000


async def rebuild(
    store: Store,
    rewriter: Rewriter,
    *,
    territories: Iterable[str] = (),
    seed: Iterable[tuple[str, ViewerState]] = (),
    cutoffs: Mapping[int, int] | None = None,
    progress: Callable[[int], None] = lambda rewritten: None,
    now_ms: Callable[[], float] = wall_ms,
) -> RebuildReport:
    """Rewrite everyone to `rewriter.activation`. `progress` is told how many viewers a step has looked at.

    `seed`: (viewer, state from the lake), each viewer once; then `cutoffs` (partition → first offset that the lake lacks) says
    where an updater without a marker starts. Errors: `StaleActivation` if a newer activation appears meanwhile (that one's
    rebuild takes over); `StoreUnavailable`, `StoreChanged` (run it again).
    """
    await store.write_default_rows(default_rows(rewriter, territories, now_ms=int(now_ms())))
    with ThreadPoolExecutor(1, thread_name_prefix="rebuild") as executor:

        async def rewrite(jobs: Sequence[RewriteJob]) -> int:
            results = await rewrite_viewers(
                store, jobs, rewriter, now_ms=now_ms, draw_token=lambda: os.urandom(TOKEN_BYTES), executor=executor
            )
            progress(len(jobs))
            return sum(result.outcome is Outcome.APPLIED for result in results)

        seeded = rewritten = 0
        for pairs in _batches(seed, BATCH):
            seeded += len(pairs)
            rewritten += await rewrite([RewriteJob(viewer, state) for viewer, state in pairs])
        sweeps, left = 0, True
        while left:
            sweeps, left = sweeps + 1, False
            async for viewers in store.scan_viewers():
                for batch in _batches(viewers, BATCH):
                    behind = await _behind(store, batch, rewriter.activation)
                    progress(len(batch) - len(behind))
                    if behind:
                        left = True
                        rewritten += await rewrite([RewriteJob(viewer) for viewer in behind])
    if cutoffs is not None:
        await store.write_seeded(cutoffs)
    await store.write_rebuilt(rewriter.activation)
    return RebuildReport(seeded, rewritten, sweeps)


def default_rows(rewriter: Rewriter, territories: Iterable[str], *, now_ms: int) -> dict[str, bytes]:
    """`territory:maturity` → default row, for everybody (`*`) and for every age."""
    rows = {}
    for maturity in (*MATURITIES, None):
        row = rewriter.default_row(computed_at_ms=now_ms, maturity=99 if maturity is None else maturity)
        for territory in ("*", *territories):
            rows[f"{territory}:{'*' if maturity is None else maturity}"] = row
    return rows


async def _behind(store: Store, viewers: Sequence[str], activation: int) -> list[str]:
    """Those whose row is of an older activation."""
    stored = await store.read_viewers(viewers)
    return [
        viewer for viewer, found in zip(viewers, stored, strict=True) if found.token and found.activation < activation
    ]


def _batches(values: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch
