"""The arms of rows below the first (`ranking.further.FURTHER_ROWS`): each alone, as if it were the page, by the code that serves."""

from __future__ import annotations

from batch.backtest.plays import Plays
from batch.backtest.refits import Refit
from batch.backtest.replay import Answer, Ask
from batch.companions import make_companions
from contracts.rows import ENTRIES_KEPT
from embeddings.companions import Companions
from ranking.further import FURTHER_ROWS
from viewers.known import known_of
from viewers.state import Limits, ViewerState


class Below:
    """The row's first offer: from the viewer's state as it is now, and lists as old as the last refit. Nothing is left out for standing
    in the first row. Who has liked nothing that something goes with has no row, and hits nothing."""

    def __init__(self, past: Plays, n_items: int, limits: Limits, answer: Answer, *, name: str) -> None:
        self._answer = answer
        self._offers = FURTHER_ROWS[name].offers
        self._companions = Companions()

    def refit(self, refit: Refit) -> None:
        """Row r of the generation is item r."""
        self._companions = Companions(refit.generation.item_ids, make_companions(refit.generation))

    def ask(self, ask: Ask) -> None:
        """Answered at once: a look-up."""
        known = known_of(ask.state, ask.time_ms)
        offer = next(iter(self._offers(known, self._companions, ())), None)
        item_ids, scores = ((), ()) if offer is None else (offer.item_ids, offer.scores)
        items = [self._companions.index[item_id] for item_id in item_ids[:ENTRIES_KEPT]]
        self._answer(ask.number, items, scores[: len(items)])

    def watch(self, viewer: int, item: int, time_ms: int, state: ViewerState) -> None:
        """The state that comes with the next ask has it."""

    def flush(self) -> None:
        """Nothing is ever open."""
