"""How often viewers come back to what they have watched: measured, turned into rules, and worth a row's places where it holds."""

from __future__ import annotations

import numpy as np
import pytest

from batch.backtest.arms import choose_arms
from batch.backtest.plays import Plays
from batch.backtest.refits import plan_nights
from batch.backtest.run import play_back
from batch.play_log import PlayLog
from batch.repeats import Repeats, make_rules
from contracts.rules import NO_RULES
from runtime.progress import SilentProgress
from runtime.sections import RulesSettings
from runtime.settings import TrainSettings
from tests.worlds import T0
from viewers.state import Limits

AUTO, NEVER, ALWAYS = (RulesSettings(repeats=mode) for mode in ("auto", "never", "always"))


def log_of(*plays: tuple[int, int] | tuple[int, int, float]) -> PlayLog:
    """(viewer, item) or (viewer, item, strength), oldest first."""
    viewer, item = (np.array([play[column] for play in plays], np.int32) for column in (0, 1))
    strength = np.array([play[2] if len(play) == 3 else 1.0 for play in plays], np.float32)
    n = len(plays)
    return PlayLog(viewer, item, np.arange(n), np.arange(n), strength, [f"i{one}" for one in range(10)])


def test_a_repeat_is_a_liked_play_of_a_title_that_was_watched_to_its_end() -> None:
    log = log_of((0, 1), (0, 2), (1, 1), (0, 1), (0, 3), (0, 2), (0, 1))
    repeats = Repeats(log)
    assert repeats.gaps.tolist() == [-1, -1, -1, 1, -1, 2, 2]
    share, gap = repeats.measure()
    assert share == pytest.approx(3 / 7)
    assert gap == 1
    assert repeats.measure(3) == (0.0, 1)


def test_who_goes_on_with_half_a_film_repeats_nothing() -> None:
    assert Repeats(log_of((0, 1, 0.6), (0, 1, 1.0), (0, 2), (0, 1, -0.3))).measure()[0] == 0
    assert Repeats(log_of((0, 1, 0.6), (0, 1, 1.0), (0, 2), (0, 1, 0.25))).gaps.tolist() == [-1, -1, -1, 1]


def test_nothing_played_repeats_nothing() -> None:
    assert Repeats(log_of()).measure() == (0.0, 1)


def test_what_is_measured_decides_unless_it_is_set() -> None:
    assert make_rules(AUTO, 0.04, 7).repeats == 0
    assert (make_rules(AUTO, 0.3, 7).repeats, make_rules(AUTO, 0.3, 7).repeat_gap) == (0.3, 7)
    assert make_rules(NEVER, 0.3, 7).repeats == NO_RULES.repeats
    assert make_rules(ALWAYS, 0.0, 1).repeats == 0.05


def music(viewers: int = 40, each: int = 120, items: int = 400, *, repeats: float, seed: int = 3) -> Plays:
    """Everybody has a taste of their own; with a chance a play is one of the viewer's earlier ones, the more likely the more recent."""
    rng = np.random.default_rng(seed)
    liking = rng.dirichlet(np.full(items, 0.05), viewers)
    heard: list[list[int]] = [[] for _ in range(viewers)]
    rows = []
    for at in range(each):
        for viewer in rng.permutation(viewers).tolist():
            mine = heard[viewer]
            if mine and rng.random() < repeats:
                chance = (1.0 + np.arange(len(mine)))[::-1] ** -0.8
                item = int(rng.choice(mine, p=chance / chance.sum()))
            else:
                chance = np.where(np.isin(np.arange(items), mine), 0, liking[viewer] + 1e-6)
                item = int(rng.choice(items, p=chance / chance.sum()))
            mine.append(item)
            rows.append((viewer, item, T0 + at * 3_600_000))
    viewer, item, time_ms = (np.array(column) for column in zip(*rows, strict=True))
    numbers = {one: place for place, one in enumerate(dict.fromkeys(item.tolist()))}
    people = {one: place for place, one in enumerate(dict.fromkeys(viewer.tolist()))}
    return Plays(
        np.array([people[one] for one in viewer.tolist()], np.int32),
        np.array([numbers[one] for one in item.tolist()], np.int32),
        time_ms.astype(np.int64),
        tuple(f"v{one}" for one in people),
        tuple(f"i{one}" for one in numbers),
        np.zeros((len(numbers), 0), np.uint64),
        len(numbers),
    )


def hit_rate(plays: Plays, rules: RulesSettings) -> float:
    nights = plan_nights(plays, round(len(plays) * 0.8), 1.0)
    table = play_back(
        plays, nights, choose_arms("incremental"), train=TrainSettings(factors=8, iterations=3, ranker_plays=0), limits=Limits(),
        rules=rules, seed=1, progress=SilentProgress(),
    ).table  # fmt: skip
    return table["incremental"]["all"]["hr@10"][0]


def test_where_plays_repeat_rows_hit_more_by_what_is_measured() -> None:
    plays = music(repeats=0.6)
    assert hit_rate(plays, AUTO) > hit_rate(plays, NEVER) + 0.1


def test_where_none_repeats_nothing_changes() -> None:
    plays = music(repeats=0.0, each=40)
    assert hit_rate(plays, AUTO) == hit_rate(plays, NEVER)
