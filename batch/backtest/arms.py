"""The arms. A new one is one entry in `ARMS`; a part of the product that can be left out is one entry in `WITHOUT`.

The product's rows come from `viewers.rewriter.Rewriter` and `ranking.rows.popular_entries`, as in the updater and the rebuild. A part
is left out by taking its input away from the generation, so that the very same code runs without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np

from batch.backtest.below import Below
from batch.backtest.counters import popular, trending
from batch.backtest.live import LiveTrends
from batch.backtest.plays import Plays
from batch.backtest.refits import Refit
from batch.backtest.replay import Answer, Ask, MakeArm
from contracts.errors import UserError
from contracts.rows import HomeRow
from embeddings.generation import Generation
from embeddings.tables import Cowatch, Tables
from ranking.further import FURTHER_ROWS
from ranking.rows import popular_entries
from viewers.packing import pack
from viewers.rewriter import Rewriter
from viewers.state import Limits, ViewerState

BATCH = 256
"""Rows made in one call."""
EVERY_AGE = 99

Change = Callable[[Generation], Generation]


def without_decay(generation: Generation) -> Generation:
    """The newest play counts no more than the oldest."""
    return replace(generation, parameters=replace(generation.parameters, decay_floor=1.0, decay_gain=1.0))


def without_blend(generation: Generation) -> Generation:
    """Taste alone: with nothing popular, w·als ranks as als does."""
    return replace(generation, popularity=np.zeros_like(generation.popularity))


def without_als(generation: Generation) -> Generation:
    """Popularity alone: with zero vectors nobody has a taste."""
    return replace(generation, item_factors=np.zeros_like(generation.item_factors))


def of_tables(without: Callable[[Tables], Tables]) -> Change:
    """What is left out of the tables; a generation that has none stays as it is."""

    def change(generation: Generation) -> Generation:
        return generation if generation.tables is None else generation.with_tables(without(generation.tables))

    return change


without_cowatch = of_tables(lambda tables: replace(tables, cowatch=Cowatch.empty(len(tables.trending))))
"""Nothing follows anything."""
without_trending = of_tables(lambda tables: replace(tables, trending=np.zeros_like(tables.trending)))
"""Nothing is watched more lately."""
without_sequence = of_tables(lambda tables: replace(tables, sequence=None))
"""Nothing is known of what is next."""


def without_ranker(generation: Generation) -> Generation:
    """Taste and popularity, blended by evidence; no other source."""
    return generation.with_tables(None)


def without_live(generation: Generation) -> Generation:
    """Trends are as old as the last refit: `Incremental` does not follow them."""
    return generation


def without_new(generation: Generation) -> Generation:
    """Items that came since the last refit wait for the next: `Incremental` does not take them up."""
    return generation


WITHOUT: dict[str, Change] = {
    "decay": without_decay,
    "blend": without_blend,
    "als": without_als,
    "cowatch": without_cowatch,
    "trending": without_trending,
    "sequence": without_sequence,
    "ranker": without_ranker,
    "live": without_live,
    "new": without_new,
}
"""Part → the generation without it. The ranker's weights stay those that were trained with it."""
NOT_LIVE = {"trending", "ranker", "live"}
"""Parts without which there are no trends of now."""


class RowMaker:
    """Rows from one generation, by the code that serves. `rewriter`: of the night's, or of what a part was taken from."""

    def __init__(self, refit: Refit, rewriter: Rewriter) -> None:
        assert rewriter.generation is not None  # a refit made it
        self._known = refit.generation.n_items
        self._added = [refit.numbers[item_id] for item_id in rewriter.generation.item_ids[self._known :]]
        self._at_ms = refit.night.at_ms
        self._rewriter = rewriter

    def rows(self, states: Sequence[ViewerState]) -> list[tuple[list[int], list[float]]]:
        """(items, scores) for each state; the default row for who has done nothing."""
        ranks = self._rewriter.rank_packed([pack(state) for state in states], computed_at_ms=self._at_ms)
        return [
            (self._items(rows[:count].tolist()), scores[:count].tolist()) if count else self.default
            for count, rows, scores in zip(ranks.counts.tolist(), ranks.rows, ranks.scores, strict=True)
        ]

    @cached_property
    def default(self) -> tuple[list[int], list[float]]:
        """The row of who has done nothing."""
        generation = self._rewriter.generation
        assert generation is not None  # a refit made it
        entries = popular_entries(generation, self._at_ms, maturity=EVERY_AGE)
        return self._items([generation.index[one.item_id] for one in entries]), [one.score for one in entries]

    def _items(self, rows: list[int]) -> list[int]:
        """Row r of the night's generation is item r; behind it lie the items that came since."""
        return [row if row < self._known else self._added[row - self._known] for row in rows]


@dataclass(eq=False, slots=True)
class _Row:
    """A viewer's row: what it is made of until it is made (then its maker goes: each holds a catalogue's tables). `asks`: who waits."""

    state: ViewerState
    maker: RowMaker | None
    asks: list[int] = field(default_factory=list)
    made: tuple[list[int], list[float]] | None = None


class Incremental:
    """The product: the row follows every play, and the default row the trends.

    The row shown is the one made at the viewer's last play, from the trends of that moment, or at the last refit if that is later, from
    the refit's. `live` False: trends stay those of the refit. `new_items` False: items that came since are not taken up.
    """

    def __init__(
        self,
        past: Plays,
        n_items: int,
        limits: Limits,
        answer: Answer,
        change: Change = lambda generation: generation,
        live: bool = True,
        new_items: bool = True,
    ) -> None:
        self._limits = limits
        self._answer = answer
        self._change = change
        self._follows, self._new_items = live, new_items
        self._refit: Refit | None = None
        self._rewriter: Rewriter | None = None  # of the refit
        self._longer: Rewriter | None = None  # with the items of now
        self._live: LiveTrends | None = None
        self._rebuilt: RowMaker | None = None  # of the refit
        self._now: RowMaker | None = None  # with the trends of now
        self._rows: dict[int, _Row] = {}  # since the refit, by viewer
        self._open: list[_Row] = []

    def refit(self, refit: Refit) -> None:
        """Everybody's row is rebuilt."""
        self.flush()
        self._rows.clear()
        generation = self._change(refit.generation)
        self._refit, self._rewriter = refit, Rewriter(generation, 1, _no_bytes, self._limits)
        self._rewriter.prepare()
        self._longer = self._rewriter
        own = generation.tables
        self._live = LiveTrends(refit, own, new_items=self._new_items) if self._follows and own is not None else None
        self._rebuilt = self._now = RowMaker(refit, self._rewriter)

    def ask(self, ask: Ask) -> None:
        """Answered with others, from what is known at this moment."""
        now = self._maker_at(ask.time_ms)
        if ask.state.is_empty:
            self._answer(ask.number, *now.default)
            return
        row = self._rows.get(ask.viewer)
        if row is None:
            assert self._rebuilt is not None  # a replay begins with a refit
            row = self._add(ask.viewer, ask.state, self._rebuilt)
        if row.made is None:
            row.asks.append(ask.number)
        else:
            self._answer(ask.number, *row.made)

    def watch(self, viewer: int, item: int, time_ms: int, state: ViewerState) -> None:
        """The viewer's row is made; the next snapshot counts the play."""
        self._add(viewer, state, self._maker_at(time_ms))
        if self._live is not None:
            self._live.watch(viewer, item, time_ms, state)

    def _maker_at(self, time_ms: int) -> RowMaker:
        """The one with the newest snapshot's trends."""
        newer = None if self._live is None else self._live.newer(time_ms)
        if newer is not None:
            self.flush()  # so that no more than two are held
            assert self._refit is not None  # what is live began with it
            self._now = RowMaker(self._refit, self._follow(self._change(newer)))
        assert self._now is not None  # a replay begins with a refit
        return self._now

    def _follow(self, generation: Generation) -> Rewriter:
        """Of the refit's generation with the trends and the items of now: what is prepared of all else is shared."""
        assert self._rewriter is not None and self._longer is not None  # a replay begins with a refit
        assert generation.tables is not None and self._longer.generation is not None  # trends are followed
        if generation.item_ids is not self._longer.generation.item_ids:
            self._longer = self._rewriter.for_extended(generation)
        return self._longer.with_trends(generation.tables, "now")

    def _add(self, viewer: int, state: ViewerState, maker: RowMaker) -> _Row:
        row = self._rows[viewer] = _Row(state, maker)
        self._open.append(row)
        if len(self._open) >= BATCH:
            self.flush()
        return row

    def flush(self) -> None:
        """Make the open rows."""
        for maker in {id(row.maker): row.maker for row in self._open}.values():
            assert maker is not None  # the row is not made yet
            mine = [row for row in self._open if row.maker is maker]
            for row, made in zip(mine, maker.rows([row.state for row in mine]), strict=True):
                row.made, row.maker = made, None
                for number in row.asks:
                    self._answer(number, *made)
                row.asks.clear()
        self._open.clear()


class Nightly:
    """The same model without the updater: the row of the last refit, until the next. Who had no plays then has the default row.

    `drop_seen`: the home page leaves out, when it reads the row, what was watched since.
    """

    def __init__(self, past: Plays, n_items: int, limits: Limits, answer: Answer, *, drop_seen: bool = False) -> None:
        self._limits = limits
        self._answer = answer
        self._drop_seen = drop_seen
        self._maker: RowMaker | None = None
        self._states: dict[int, ViewerState] = {}  # at the refit, of those who came since
        self._rows: dict[int, tuple[list[int], list[float]]] = {}
        self._since: dict[int, tuple[int, ...]] = {}
        self._open: list[tuple[int, int, tuple[int, ...]]] = []

    def refit(self, refit: Refit) -> None:
        """Everybody's row is rebuilt and stays."""
        self._maker = RowMaker(refit, Rewriter(refit.generation, 1, _no_bytes, self._limits))
        self._states, self._rows, self._since = {}, {}, {}

    def ask(self, ask: Ask) -> None:
        """At a viewer's first ask since the refit the state is still that of the refit."""
        self._states.setdefault(ask.viewer, ask.state)
        self._open.append((ask.number, ask.viewer, self._since.get(ask.viewer, ())))
        if len(self._open) >= BATCH:
            self.flush()

    def watch(self, viewer: int, item: int, time_ms: int, state: ViewerState) -> None:
        """Changes nothing but what may be dropped when the row is read."""
        if self._drop_seen:
            self._since[viewer] = (*self._since.get(viewer, ()), item)

    def flush(self) -> None:
        """Make the rows that are not there yet; answer."""
        assert self._maker is not None  # a replay begins with a refit
        missing = list(dict.fromkeys(viewer for _, viewer, _ in self._open if viewer not in self._rows))
        self._rows.update(zip(missing, self._maker.rows([self._states[viewer] for viewer in missing]), strict=True))
        for number, viewer, since in self._open:
            items, scores = self._rows[viewer]
            kept = [place for place, item in enumerate(items) if item not in since] if since else range(len(items))
            self._answer(number, [items[place] for place in kept], [scores[place] for place in kept])
        self._open.clear()


PRODUCT = "incremental"

ARMS: dict[str, MakeArm] = {
    "popular": popular,
    "trending": trending,
    "nightly": Nightly,
    "nightly-unseen": partial(Nightly, drop_seen=True),
    PRODUCT: Incremental,
    **{
        f"{PRODUCT}-{part}": partial(Incremental, change=change, live=part not in NOT_LIVE, new_items=part != "new")
        for part, change in WITHOUT.items()
    },
    **{name: partial(Below, name=name) for name in FURTHER_ROWS},
}
"""Name → how it is made. `incremental-x`: the product without x. Last, the rows below the first, each alone."""


def choose_arms(names: str | None) -> dict[str, MakeArm]:
    """Arms by comma-separated names, in the order of `ARMS`; all for None. Errors: `UserError` for a name that is none."""
    wanted = list(ARMS) if names is None else [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in ARMS]
    if unknown or not wanted:
        raise UserError(f"--arms {names!r}: no arm {', '.join(unknown) or 'named'}; there are {', '.join(ARMS)}")
    return {name: make for name, make in ARMS.items() if name in wanted}


def _no_bytes(row: HomeRow) -> bytes:
    """Rows are measured, not stored."""
    return b""
