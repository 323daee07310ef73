"""Snapshots of what was counted, the pointer to the newest, and default rows made from it: steps 3 and 4 of the aggregator."""

from __future__ import annotations

import time
from collections.abc import Mapping

from contracts.errors import StoreChanged
from embeddings.added import Added, equal
from trends.base import Base
from trends.counters import Counts
from trends.follow import TakenUp, take_up
from trends.process import OTHER_COUNTS, Process
from trends.snapshots import encode, merge, name_of
from viewers.default_rows import default_rows
from viewers.trend_store import SNAPSHOT_KEPT_S, Pointer

ROWS_SHARE = 0.05
"""Of a core that default rows may take: with many territories they follow less often."""
ROWS_AGAIN_S = 60.0
"""After a rebuild, which writes them from the generation's own trends, they are fresh again within this."""

Counted = tuple[int, Added] | None
"""Plays, and the items added."""


class Publisher:
    """Publishes what one generation's `counts` hold (partition → its counts) at any moment."""

    def __init__(self, process: Process, base: Base, counts: Mapping[int, Counts]) -> None:
        self._process = process
        self._base = base
        self._counts = counts
        # Of the newest snapshot: what was counted, name, bytes.
        self._published: tuple[Counted, str, bytes] = (None, "", b"")
        self._taken_up: TakenUp | None = None  # made ready for default rows
        self._next_snapshot_s = 0.0
        self._next_rows_s = 0.0
        self._rows_of = ""  # the snapshot that default rows were last made from

    def is_due(self, now_s: float) -> bool:
        """Whether the next snapshot is. `now_s`: as `time.monotonic` tells it."""
        return now_s >= self._next_snapshot_s

    async def publish(self) -> None:
        """A snapshot, if anything was counted or added since the last; else only the word that it is the newest. Errors: `StoreChanged`."""
        settings, figures = self._process.settings.trends, self._process.figures
        figures.plays = sum(counts.counted for counts in self._counts.values())
        newcomers = self._base.newcomers
        figures.new_items = len(newcomers.added)
        counted, name, data = self._published
        if counted is None or counted[0] != figures.plays or not equal(counted[1], newcomers.added):
            name, data = await self._process.holding(self._make)
            figures.snapshots += 1
            figures.snapshot_bytes = len(data)
        now_ms = self._process.now_ms()
        generation_id, pointer = self._base.generation_id, Pointer(name, now_ms)
        await self._process.hold()  # it may have run out with nobody there to take it
        if not await self._process.store.trends.publish(generation_id, self._process.instance, pointer, data):
            raise StoreChanged(OTHER_COUNTS)
        self._published = ((figures.plays, newcomers.added), name, data)
        figures.newest, figures.published_at_ms = name, now_ms
        share_s = len(data) / (settings.snapshots_mb * 1e6) * SNAPSHOT_KEPT_S  # so that an hour's fit
        self._next_snapshot_s = time.monotonic() + max(settings.interval_s, share_s)

    def _make(self) -> tuple[str, bytes]:
        tables = self._base.generation.tables
        assert tables is not None  # `_load` has looked
        generation, added = self._base.generation, self._base.newcomers.added
        data = encode(merge(self._counts, generation.generation_id, tables.at_ms, added, generation.index))
        return name_of(data), data

    async def write_default_rows(self) -> None:
        """Rows of viewers who have none, from the snapshot just published: they are nobody's own, and of the generation in force."""
        if self._process.for_candidate:
            return
        _, name, data = self._published
        now_s = time.monotonic()
        due = name != self._rows_of or now_s >= self._next_rows_s + ROWS_AGAIN_S
        if now_s < self._next_rows_s or not due:
            return
        rows = await self._process.holding(self._make_rows, name, data)
        await self._process.store.trends.write_default_rows(rows, self._base.current.activation)
        self._rows_of = name
        took_s = time.monotonic() - now_s
        self._next_rows_s = now_s + took_s / ROWS_SHARE

    def _make_rows(self, name: str, data: bytes) -> dict[str, bytes]:
        self._taken_up = take_up(self._base.rewriter, data, name, self._taken_up)
        longer = self._taken_up.rewriter.generation
        ids = self._base.generation.item_ids if longer is None else longer.item_ids
        return default_rows(self._taken_up.rewriter, self._base.titles_by_territory(ids), self._process.now_ms())
