"""The product in the replay follows trends as it does when it serves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from batch.backtest.arms import Incremental, RowMaker
from batch.backtest.live import EVERY_MS, LiveTrends
from batch.backtest.plays import Plays
from batch.backtest.refits import WHOLE, Night, Refit
from batch.backtest.replay import Ask
from embeddings.tables import FEATURES, Cowatch
from tests.worlds import T0, make_generation, make_tables
from viewers.rewriter import Rewriter
from viewers.state import COMPLETED, EMPTY, Limits, Play, ViewerState

TITLES = 40
QUIET = np.zeros((TITLES, 5), np.float32)
TABLES = replace(
    make_tables(TITLES),
    trending=QUIET,
    cowatch=Cowatch.empty(TITLES),
    weights=np.array([float(name == "trend_1d") for name in FEATURES]),
    at_ms=T0,
)
"""Rows are in the order of the day's trend, and nothing was watched before T0."""
REFIT = Refit(Night(T0, 0, 0, 100), make_generation(TITLES).with_tables(TABLES))


def state_of(*items: int) -> ViewerState:
    plays = [Play(T0 + place, place, f"tt{item:07d}", WHOLE, COMPLETED) for place, item in enumerate(items)]
    return ViewerState(plays=tuple(reversed(plays)))


def leader_after(state: ViewerState, *, live: bool = True, watched_again: bool = False) -> int:
    """Who leads the row of a viewer, an hour after thirty others have watched title 7."""
    answers: dict[int, list[int]] = {}
    nothing = np.zeros(0, np.int32)
    plays = Plays(nothing, nothing, nothing.astype(np.int64), (), (), np.zeros((0, 0), np.uint64), TITLES)
    arm = Incremental(
        plays, TITLES, Limits(), lambda number, items, scores: answers.update({number: list(items)}), live=live
    )
    arm.refit(REFIT)
    if not state.is_empty:
        arm.watch(99, 3, T0 + 1, state)
    for viewer in range(30):
        arm.watch(viewer, 7, T0 + 1000 * (viewer + 1), state_of(7))
    now_ms = T0 + 60 * EVERY_MS
    if watched_again:
        arm.watch(99, 4, now_ms, state_of(3, 4))
    arm.ask(Ask(0, 99, state_of(3, 4) if watched_again else state, now_ms + 1))
    arm.flush()
    return answers[0][0]


def test_who_has_no_row_is_shown_what_is_trending_now() -> None:
    assert leader_after(EMPTY) == 7
    assert leader_after(EMPTY, live=False) != 7


def test_a_row_has_the_trends_of_the_viewers_last_play() -> None:
    assert leader_after(state_of(3)) != 7
    assert leader_after(state_of(3), watched_again=True) == 7
    assert leader_after(state_of(3), watched_again=True, live=False) != 7


def test_a_snapshot_is_taken_once_a_minute_and_only_if_something_was_counted() -> None:
    live = LiveTrends(REFIT, TABLES)
    assert live.newer(T0 + 5 * EVERY_MS) is None
    live.watch(1, 7, T0 + 1, state_of(7))
    live.watch(1, TITLES, T0 + 2, state_of(7))  # the refit does not know it, nor the catalogue
    assert live.newer(T0 + EVERY_MS - 1) is None
    generation = live.newer(T0 + EVERY_MS)
    assert generation is not None
    assert generation.tables is not None
    assert np.flatnonzero(generation.tables.trending[:, 1]).tolist() == [7]
    assert live.newer(T0 + 9 * EVERY_MS) is None


def test_rows_are_those_of_the_readable_ranking() -> None:
    generation = make_generation(400, 16, seed=3).with_tables(make_tables(400))
    refit, rng = Refit(Night(T0, 0, 0, 100), generation), np.random.default_rng(5)
    sizes = [0, 1, 2, 5, 20, 60] * 20
    days_ago = rng.integers(0, 5, len(sizes)).tolist()  # after the refit there is no time: it is made then
    states = []
    for size, days in zip(sizes, days_ago, strict=True):
        items = [f"tt{item:07d}" for item in rng.choice(400, size, replace=False).tolist()]
        plays = [Play(T0 - days * 86_400_000 - n * 60_000, n, item, WHOLE, COMPLETED) for n, item in enumerate(items)]
        states.append(ViewerState(plays=tuple(plays)))
    rewriter = Rewriter(generation, 1, lambda row: b"", Limits())
    maker = RowMaker(refit, rewriter)
    ranked = rewriter.rank(states, computed_at_ms=T0)
    for (items, scores), expected in zip(maker.rows(states), ranked, strict=True):
        if expected is None:
            assert (items, scores) == maker.default
            continue
        theirs = {generation.index[entry.item_id]: entry.score for entry in expected.entries}
        assert scores == pytest.approx(list(theirs.values()), abs=1e-5)  # vectors are float32
        assert items == list(theirs)
