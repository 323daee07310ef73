"""Trends of now in a replay: the counters that the aggregator runs, told of every play."""

from __future__ import annotations

from batch.backtest.refits import WHOLE, Refit
from embeddings.tables import Tables
from trends.counters import Counts, Decision, Report, Rules
from trends.snapshots import merge, tables_of
from viewers.state import COMPLETED, Play, ViewerState

EVERY_MS = 60_000
"""Between two snapshots, in the time of the data: thirty times what the aggregator takes, as each costs as much as a row."""
REMEMBERED = 100_000


class LiveTrends:
    """What was played since one refit."""

    def __init__(self, refit: Refit, own: Tables) -> None:
        """`own`: the tables that are added to."""
        generation = refit.generation
        self._own, self._generation_id, self._ids = own, generation.generation_id, generation.item_ids
        self._rules = Rules(generation.index, refit.night.at_ms - 1, REMEMBERED)
        self._counts = Counts(0)
        self._counted, self._made_ms = 0, refit.night.at_ms

    def watch(self, viewer: int, item: int, time_ms: int) -> None:
        """Somebody watched something. What the refit does not know is not counted."""
        if item >= len(self._ids):
            return
        self._counts.next_offset += 1
        play = Play(time_ms, self._counts.next_offset, self._ids[item], WHOLE, COMPLETED)
        took = self._counts.take(Report(time_ms, str(viewer), ViewerState(plays=(play,))), self._rules, time_ms)
        self._counted += took is Decision.COUNTED

    def newer(self, now_ms: int) -> Tables | None:
        """The tables of now; None if those given last are."""
        if not self._counted or now_ms - self._made_ms < EVERY_MS:
            return None
        self._counted, self._made_ms = 0, now_ms
        snapshot = merge({0: self._counts}, self._generation_id, self._own.at_ms)
        return tables_of(snapshot, self._own, self._generation_id, len(self._ids))
