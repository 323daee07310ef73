"""The replay behind `nearline evaluate`: arms know the past alone, answer by the code that serves, and the same seed gives the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from batch.backtest.arms import ARMS, WITHOUT, choose_arms
from batch.backtest.counters import DecayedCounter
from batch.backtest.plays import Plays
from batch.backtest.refits import Night, confidences_of, plan_nights, refit
from batch.backtest.replay import Answers, MakeArm, pessimistic_rank, replay
from batch.backtest.run import Options, choose_period
from batch.tables import DAY_MS
from contracts.errors import UserError
from contracts.rules import NO_RULES
from embeddings.generation import Generation
from nearline import app
from ranking.rows import popular_entries
from runtime.settings import TrainSettings
from tests.worlds import T0
from viewers.rewriter import Rewriter
from viewers.state import COMPLETED, EMPTY, Limits, Play, ViewerState, merge

TRAIN = TrainSettings(factors=4, iterations=2)
LIMITS = Limits(max_plays=6)
HOUR_MS = 3_600_000


def make_plays(rows: list[tuple[str, str, int]], topics: Mapping[str, int] | None = None) -> Plays:
    """(viewer, item, time in ms) in time order; `topics`: an item's bits."""
    viewers = list(dict.fromkeys(viewer for viewer, _, _ in rows))
    items = list(dict.fromkeys(item for _, item, _ in rows))
    return Plays(
        np.array([viewers.index(viewer) for viewer, _, _ in rows], np.int32),
        np.array([items.index(item) for _, item, _ in rows], np.int32),
        np.array([time_ms for _, _, time_ms in rows], np.int64),
        tuple(viewers),
        tuple(items),
        np.array([[topics[item]] for item in items] if topics else np.zeros((len(items), 0)), np.uint64),
        len(items),
    )


def even_or_odd(n: int = 400, seed: int = 5) -> list[tuple[str, str, int]]:
    """An hour between plays; viewers of even number like even items. Some viewers and items come late."""
    rng = np.random.default_rng(seed)
    rows = []
    for hour in range(n):
        viewer = int(rng.integers(0, 12 + hour // 20))
        item = 2 * int(rng.integers(0, 25 + hour // 20)) + (viewer % 2 if rng.random() < 0.9 else 0)
        rows.append((f"v{viewer}", f"i{item}", T0 + hour * HOUR_MS))
    return rows


def run(rows: list[tuple[str, str, int]], first: int, arms: Mapping[str, MakeArm] = ARMS) -> dict[str, Answers]:
    plays = make_plays(rows)
    return replay(plays, plan_nights(plays, first, 2), arms, train=TRAIN, limits=LIMITS)


def shown(answers: Answers, rows: list[tuple[str, str, int]], number: int) -> list[str]:
    items = make_plays(rows).item_ids
    return [items[item] for item in answers.top[number] if item >= 0]


# The future


def test_a_planted_future_changes_no_row_before_it() -> None:
    rows, first, cut = even_or_odd(), 300, 350
    asked, _, when_ms = rows[cut]
    # from here on somebody plays the catalogue up and down, after one play by who would have come anyway
    planted = [("v1", f"i{2 * n}", time_ms) for n, (_, _, time_ms) in enumerate(rows[cut + 1 :])]
    before, after = run(rows, first), run([*rows[:cut], (asked, "i4", when_ms), *planted], first)
    for name in ARMS:
        known = cut - first + 1  # the ask just before the first planted play included
        np.testing.assert_array_equal(before[name].top[:known], after[name].top[:known], err_msg=name)
        np.testing.assert_array_equal(before[name].rank[: known - 1], after[name].rank[: known - 1], err_msg=name)
        assert (before[name].top[known:] != after[name].top[known:]).any(), f"{name} never learns"


def test_what_is_played_is_not_known_when_its_row_is_made() -> None:
    rows, first = even_or_odd(), 300
    other = [*rows[:first], (rows[first][0], "i1", rows[first][2])]
    for name, answers in run(rows[: first + 1], first).items():
        np.testing.assert_array_equal(answers.top, run(other, first)[name].top, err_msg=name)


def test_a_refit_is_trained_on_the_plays_before_its_time_exactly() -> None:
    plays = make_plays(even_or_odd())
    nights = plan_nights(plays, 300, 2)
    for night in nights:
        assert (plays.time_ms[: night.known] < night.at_ms).all() and (
            plays.time_ms[night.known :] >= night.at_ms
        ).all()
        assert (plays.time_ms[night.start : night.stop] >= night.at_ms).all()
    assert [night.start for night in nights[1:]] == [night.stop for night in nights[:-1]]
    assert (nights[0].start, nights[-1].stop) == (300, 400)
    alone = refit(plays.first(nights[1].known), nights[1], TRAIN).generation
    among = refit(plays, nights[1], TRAIN).generation
    np.testing.assert_array_equal(alone.item_factors, among.item_factors)
    np.testing.assert_array_equal(alone.popularity, among.popularity)
    assert alone.item_ids == among.item_ids == plays.item_ids[: len(alone.item_ids)]


def test_nights_after_which_nobody_plays_are_left_out() -> None:
    days = [0, 1, 1, 2, 9]
    plays = make_plays([("v", f"i{n}", T0 + day * DAY_MS) for n, day in enumerate(days)])
    assert plan_nights(plays, 1, 3) == [Night(T0 + DAY_MS, 1, 1, 4), Night(T0 + 7 * DAY_MS, 4, 4, 5)]


def test_a_repeated_play_is_one_interaction() -> None:
    plays = make_plays([("a", "x", T0), ("a", "x", T0 + 1), ("b", "y", T0 + 2)])
    assert confidences_of(plays, 10.0).toarray().tolist() == [[11, 0], [0, 11]]


# What serves is what is evaluated


def state_before(rows: list[tuple[str, str, int]], index: int, viewer: str) -> ViewerState:
    found = [
        Play(time_ms, row, item, 255, COMPLETED)
        for row, (who, item, time_ms) in enumerate(rows[:index])
        if who == viewer
    ]
    return merge((ViewerState(plays=tuple(found)),), LIMITS) if found else EMPTY


def served(generation: Generation, state: ViewerState) -> list[str]:
    one = Rewriter(generation, 1, lambda row: b"", LIMITS).rank([state], computed_at_ms=T0)[0]
    entries = popular_entries(generation, T0, maturity=99) if one is None else one.entries
    return [entry.item_id for entry in entries[:10]]


def test_the_product_and_last_nights_rows_are_those_that_would_be_served() -> None:
    rows, first = even_or_odd(), 300
    plays = make_plays(rows)
    nights = plan_nights(plays, first, 2)
    answers = run(rows, first, choose_arms("nightly,incremental"))
    generations = {night: refit(plays, night, TRAIN).generation for night in nights}
    followed = newcomers = 0
    for index in range(first, len(rows)):
        night = next(night for night in nights if night.start <= index < night.stop)
        now = state_before(rows, index, rows[index][0])
        then = state_before(rows, night.start, rows[index][0])
        live, frozen = (served(generations[night], state) for state in (now, then))
        assert shown(answers["incremental"], rows, index - first) == live
        assert shown(answers["nightly"], rows, index - first) == frozen
        followed += live != frozen
        newcomers += then == EMPTY
    assert followed > 20 and newcomers > 3


def test_last_nights_row_may_drop_what_was_seen_since() -> None:
    rows = even_or_odd(300)
    begin_ms = rows[-1][2] + HOUR_MS
    favourite = shown(run([*rows, ("v2", "i0", begin_ms)], 300)["nightly"], rows, 0)[0]
    answers = run([*rows, ("v2", favourite, begin_ms), ("v2", "i0", begin_ms + 1)], 300)
    assert shown(answers["nightly"], rows, 1)[0] == favourite
    assert favourite not in shown(answers["nightly-unseen"], rows, 1)
    assert shown(answers["nightly"], rows, 1)[1:] == shown(answers["nightly-unseen"], rows, 1)[:9]


def test_a_part_is_left_out_by_taking_its_input_away() -> None:
    plays = make_plays(even_or_odd())
    whole = replace(refit(plays, plan_nights(plays, 300, 2)[0], TRAIN).generation, rules=NO_RULES)  # by score alone
    state = state_before(even_or_odd(), 300, "v2")

    def scores(generation: Generation) -> list[tuple[str, float]]:
        ranked = Rewriter(generation, 1, lambda row: b"", LIMITS).rank([state], computed_at_ms=T0)[0]
        assert ranked is not None
        return [(entry.item_id, entry.score) for entry in ranked.entries]

    rows = {part: scores(change(whole)) for part, change in WITHOUT.items()}
    ranked = Rewriter(whole, 1, lambda row: b"", LIMITS).rank([state], computed_at_ms=T0)[0]
    assert ranked is not None
    x = ranked.folded.x.astype(np.float64)
    by_taste = {item: float(whole.item_factors[whole.index[item]].astype(np.float64) @ x) for item, _ in rows["blend"]}
    assert [item for item, _ in rows["blend"]] == sorted(by_taste, key=by_taste.__getitem__, reverse=True)
    by_popularity = {item: float(whole.popularity_score[whole.index[item]]) for item, _ in rows["als"]}
    assert [by_popularity[item] for item, _ in rows["als"]] == sorted(by_popularity.values(), reverse=True)
    undecayed = replace(whole, parameters=replace(whole.parameters, decay_half_life=1e12, decay_gain=1.0))
    assert dict(rows["decay"]) == pytest.approx(dict(scores(undecayed)))


# Counters, ties


@pytest.mark.parametrize("half_life_days", [0.01, 1.0, np.inf])
def test_a_decayed_counter_is_the_sum_of_decayed_plays_however_long_it_counts(half_life_days: float) -> None:
    times = T0 + (np.array([0, 1, 5, 5.5, 30, 30.01]) * DAY_MS).astype(np.int64)
    items = np.array([0, 1, 0, 1, 0, 1], np.int32)
    counter = DecayedCounter(3, half_life_days)
    counter.add_many(items[:3], times[:3])
    for item, time_ms in zip(items[3:].tolist(), times[3:].tolist(), strict=True):
        counter.add(item, time_ms)
    weights = np.exp2((times - times[-1]) / (half_life_days * DAY_MS))
    expected = np.bincount(items, weights=weights, minlength=3)
    assert counter.sums / counter.sums.max() == pytest.approx(expected / expected.max())


def test_trending_takes_the_half_life_that_hit_most_often_before() -> None:
    """A new favourite every day: who forgets quickly is right. Yesterday's is worth nothing."""
    rows = [(f"v{n}", f"i{n // 24}", T0 + n * HOUR_MS) for n in range(24 * 40)]
    answers = run(rows, 24 * 30 + 12, choose_arms("popular,trending"))
    assert (answers["trending"].rank[:10] == 1).all()
    assert (answers["popular"].rank[:10] > 1).all()


def test_equals_count_as_ahead() -> None:
    assert pessimistic_rank(7, [5, 7, 8, 9], [3.0, 2.0, 2.0, 1.0]) == 3
    assert pessimistic_rank(7, [7], [1.0]) == 1
    assert pessimistic_rank(1, [5, 7], [1.0, 1.0]) == 0
    flat = list(range(60))
    assert pessimistic_rank(0, flat, [1.0] * 60) == 0  # who knows how many more are equal
    assert pessimistic_rank(49, flat, [-float(place) for place in flat]) == 50
    assert pessimistic_rank(50, flat, [-float(place) for place in flat]) == 0  # kept, but not shown


# The command


def write_events(folder: Path, rows: list[tuple[str, str, int]]) -> None:
    columns = dict(zip(("user_id", "item_id", "timestamp"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), folder / "events.parquet")


def write_folder(folder: Path, rows: list[tuple[str, str, int]]) -> Path:
    write_events(folder, rows)
    items = sorted({item for _, item, _ in rows})
    genres = ["Drama|War" if int(item[1:]) % 2 else "Comedy" for item in items]
    pq.write_table(pa.table({"item_id": items, "title": items, "genres": genres}), folder / "items.parquet")
    return folder


def call(folder: Path, *arguments: str) -> dict[str, dict[str, dict[str, list[float]]]]:
    done = CliRunner().invoke(app, ["evaluate", str(folder), "--json", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    table: dict[str, dict[str, dict[str, list[float]]]] = json.loads(done.stdout.splitlines()[-1])
    return table


@pytest.fixture
def small_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEARLINE_TRAIN__FACTORS", "4")
    monkeypatch.setenv("NEARLINE_TRAIN__ITERATIONS", "2")


@pytest.mark.usefixtures("small_training")
def test_the_command_ends_with_one_line_of_figures_and_the_seed_decides_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, even_or_odd())
    table = call(folder, "--refit-days", "2")
    assert set(ARMS) < table.keys() and "incremental minus nightly" in table
    assert {"all", "1-4", "5-19", "20+"} <= table["incremental"].keys()
    figures = table["incremental"]["all"]
    assert figures.keys() == {"hr@10", "ndcg@10", "hr@50", "mrr", "coverage", "novelty", "diversity"}
    for by_segment in table.values():
        for by_measure in by_segment.values():
            assert all(low <= value <= high for value, low, high in by_measure.values())
    value = table["incremental minus nightly"]["all"]["hr@10"][0]
    assert value == pytest.approx(figures["hr@10"][0] - table["nightly"]["all"]["hr@10"][0])
    assert call(folder, "--refit-days", "2") == table
    assert call(folder, "--refit-days", "2", "--seed", "3") != table


@pytest.mark.usefixtures("small_training")
def test_parameters_are_chosen_on_the_share_before_the_test_share(tmp_path: Path) -> None:
    """What is measured there does not depend on the test share's plays."""
    rows = even_or_odd()
    arguments = ("--arms", "popular,incremental", "--validation")
    one = call(write_folder(tmp_path, rows), *arguments)
    write_events(tmp_path, [*rows[:340], *(("v0", "i0", time_ms) for _, _, time_ms in rows[340:])])
    assert call(tmp_path, *arguments) == one
    write_events(tmp_path, [*rows[:300], *(("v0", "i0", time_ms) for _, _, time_ms in rows[300:])])
    assert call(tmp_path, *arguments) != one
    plays, first = choose_period(make_plays(rows), Options(validation=True))
    assert (len(plays), first) == (340, 280)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(test_share=0), "--test-share 0: must lie between"),
        (Options(test_share=1), "--test-share 1: must lie between"),
        (Options(test_share=float("nan")), "--test-share nan: must lie between"),
        (Options(test_share=0.001), "not one of 400 plays"),
        (Options(test_share=0.6, validation=True), "leaves nothing of 160 plays"),
        (Options(refit_days=0), "--refit-days 0: must be a positive number"),
        (Options(refit_days=float("inf")), "--refit-days inf: must be a positive number"),
    ],
)
def test_what_cannot_be_asked_is_refused(options: Options, said: str) -> None:
    with pytest.raises(UserError, match=said):
        choose_period(make_plays(even_or_odd()), options)


@pytest.mark.parametrize("names", ["nightly,incremntal", "", " , "])
def test_an_unknown_arm_is_named_beside_those_that_exist(names: str) -> None:
    with pytest.raises(UserError, match="there are popular, trending, nightly,"):
        choose_arms(names)
