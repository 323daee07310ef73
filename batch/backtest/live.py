"""Trends of now in a replay: the counters that the aggregator runs, told of every play, and the items that came since the refit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from batch.backtest.refits import WHOLE, Refit
from contracts.catalogue import CatalogueItem
from embeddings.added import Added, extended, no_items
from embeddings.generation import F32, Generation
from embeddings.tables import Tables
from ranking.rows import fold
from trends.counters import Counts, Decision, Report, Rules
from trends.new_items import NewItem, added_of, choose
from trends.snapshots import merge, tables_of
from viewers.rewriter import ranking_input
from viewers.state import COMPLETED, Play, ViewerState

EVERY_MS = 60_000
"""Between two snapshots, in the time of the data: thirty times what the aggregator takes, as each costs as much as a row."""
REMEMBERED = 100_000
NEW_ITEMS = 1_000
"""As the aggregator has it by default."""


class LiveTrends:
    """What was played since one refit."""

    def __init__(self, refit: Refit, own: Tables, *, new_items: bool = True) -> None:
        """`own`: the tables that are added to. `new_items`: whether items that the refit does not know are taken up."""
        self._refit, self._own, self._base = refit, own, refit.generation
        self._rules = Rules(self._base.index, refit.night.at_ms - 1, REMEMBERED, NEW_ITEMS if new_items else 0)
        self._counts = Counts(0)
        self._counted, self._made_ms = 0, refit.night.at_ms
        self._states: dict[str, ViewerState] = {}  # of who has watched something since
        self._vectors: dict[str, F32] = {}
        self._added: Added = no_items(self._base.k)
        self._longer: Generation = self._base.with_tables(own)

    def watch(self, viewer: int, item: int, time_ms: int, state: ViewerState) -> None:
        """Somebody watched something. `state`: all that they have, with it."""
        ids = self._base.item_ids
        if item >= len(ids) and item >= len(self._refit.titles):
            return
        item_id = ids[item] if item < len(ids) else self._refit.titles[item].item_id
        self._counts.next_offset += 1
        play = Play(time_ms, self._counts.next_offset, item_id, WHOLE, COMPLETED)
        took = self._counts.take(Report(time_ms, str(viewer), ViewerState(plays=(play,))), self._rules, time_ms)
        self._counted += took in (Decision.COUNTED, Decision.NEW)
        self._states[str(viewer)] = state

    def newer(self, now_ms: int) -> Generation | None:
        """The generation with the trends and the items of now; None if that given last is."""
        if not self._counted or now_ms - self._made_ms < EVERY_MS:
            return None
        self._counted, self._made_ms = 0, now_ms
        if self._counts.changed_new:
            self._take_up_new()
            self._counts.changed_new.clear()
        base = self._base
        snapshot = merge({0: self._counts}, base.generation_id, self._own.at_ms, self._added, base.index)
        assert self._longer.tables is not None  # it was made with them
        tables = tables_of(snapshot, self._longer.tables, base.generation_id, self._longer.n_items)
        return self._longer.with_tables(tables)

    def _take_up_new(self) -> None:
        """Vectors of the items that somebody has watched, from the viewers' vectors of now."""
        of_slot = {title.slot: item_id for item_id, title in self._counts.new.items()}
        changed = {of_slot[slot] for slot in self._counts.changed_new if slot in of_slot}
        chosen = choose({0: self._counts}, self._titles(), NEW_ITEMS)
        for one in chosen:
            if one.item.item_id in changed:
                self._vectors[one.item.item_id] = self._vector(one)
        self._added = added_of(chosen, self._vectors, self._base.k)
        self._longer = extended(self._base.with_tables(self._own), self._added)

    def _titles(self) -> Mapping[str, CatalogueItem]:
        """Those that were played: when the others were announced is not known."""
        titles = self._refit.titles[self._base.n_items :]
        return {one.item_id: one for one in titles if one.item_id in self._counts.new}

    def _vector(self, new: NewItem) -> F32:
        k = self._base.k
        vectors = [fold(self._longer, ranking_input(self._states[fan])).x for fan in new.fans]
        X = np.stack(vectors).astype(np.float64) if vectors else np.zeros((0, k))
        return self._refit.item_fold.vector(X, self._refit.content.vector(new.item))
