"""Tables and ranker from plays: known answers, nothing of the future, and the same features as when rows are made."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from batch.interactions import read_interactions
from batch.lake import Lake
from batch.play_log import PlayLog, read_play_log
from batch.ranker import (
    Samples,
    blend_weights,
    chunk_starts,
    fit,
    gather_samples,
    ndcg,
    state_before,
    train_ranker,
)
from batch.ranking import train_ranking
from batch.tables import DAY_MS, SMOOTHING, WEIGHTS, Counts
from contracts.digests import id_digest
from contracts.events import Kind
from embeddings.generation import FoldInParameters
from embeddings.tables import BASE, CONTEXTS, FEATURES, HALF_LIVES_DAYS
from ranking.rows import rank_candidates
from runtime.settings import Settings
from sandbox.made_up import make_generation, make_sequence
from tests.unit.test_interactions import put
from tests.worlds import T0, play_event
from viewers.rewriter import ranking_input
from viewers.state import COMPLETED, EMPTY, Limits, Play, ViewerState, merge

NOTHING = np.zeros(len(FEATURES))
VIEWERS, ITEMS, EACH = 60, 200, 50


def log_of(plays: list[tuple[int, int, int]], strength: float = 1.0) -> PlayLog:
    """(viewer, item, time in ms), in time order; items numbered by first appearance already."""
    viewer, item, time_ms = (np.array(column) for column in zip(*plays, strict=True))
    n_items = int(item.max()) + 1
    return PlayLog(
        viewer.astype(np.int32),
        item.astype(np.int32),
        time_ms.astype(np.int64),
        np.array([id_digest(str(row)) for row in range(len(plays))]),
        np.full(len(plays), strength, np.float32),
        [f"i{number}" for number in range(n_items)],
    )


def chains(seed: int = 4) -> PlayLog:
    """Everybody goes from one title to the next of a ring, mostly: what was watched last says what comes."""
    rng = np.random.default_rng(seed)
    at, watched = rng.integers(0, ITEMS, VIEWERS), [set() for _ in range(VIEWERS)]
    plays, numbers = [], {}
    for turn in range(EACH):
        for viewer in rng.permutation(VIEWERS).tolist():
            step = (at[viewer] + 1) % ITEMS if rng.random() < 0.8 else rng.integers(0, ITEMS)
            while int(step) in watched[viewer]:
                step = rng.integers(0, ITEMS)
            at[viewer] = step
            watched[viewer].add(int(step))
            number = numbers.setdefault(int(step), len(numbers))
            plays.append((viewer, number, T0 + turn * DAY_MS // 4 + len(plays)))
    return log_of(plays)


def no_factors(log: PlayLog, k: int = 4):
    """Factors that know nothing."""
    return lambda before_ms: (log.item_ids, np.full((len(log.item_ids), k), 0.1, np.float32))


# Tables


def test_followers_are_counted_by_distance() -> None:
    day = DAY_MS
    log = log_of([(0, 0, 0), (1, 1, 1), (0, 1, 2), (0, 2, 3), (1, 0, 4), (0, 3, 180 * day)])
    counts = Counts(log)
    counts.advance(len(log))
    c = counts.tables(180 * day, NOTHING).cowatch
    # viewer 0: 0 → 1, 2, 3; 1 → 2, 3; 2 → 3. viewer 1: 1 → 0
    behind = {(0, 1): 1, (0, 2): 2, (0, 3): 3, (1, 2): 1, (1, 3): 2, (2, 3): 1, (1, 0): 1}
    found = {
        (item, int(c.items[at])): (float(c.share[at]), *c.lift[at].tolist())
        for item in range(4)
        for at in range(c.starts[item], c.starts[item + 1])
    }
    assert found.keys() == behind.keys()
    for step, (weights, smoothing) in enumerate(zip(WEIGHTS, SMOOTHING, strict=True)):
        n = {pair: weights[distance - 1] if distance <= len(weights) else 0 for pair, distance in behind.items()}
        for (item, follower), count in n.items():
            followed = sum(value for (one, _), value in n.items() if one == item)
            p = (sum(value for (_, other), value in n.items() if other == follower) + 1) / (sum(n.values()) + 4)
            share, *lifts = found[item, follower]
            assert lifts[step] == pytest.approx(math.log1p(count / (smoothing * p)), rel=1e-5)
            assert step or share == pytest.approx(count / (followed + smoothing), rel=1e-5)
    assert c.items[c.starts[1] : c.starts[2]].tolist() == [0, 2, 3]  # by falling share, of equals the lower item


def test_a_trend_halves_every_half_life() -> None:
    log = log_of([(0, 0, 0), (1, 0, DAY_MS), (2, 1, 3 * DAY_MS)])
    counts = Counts(log)
    counts.advance(3)
    found = counts.tables(4 * DAY_MS, NOTHING).trending
    for column, half_life in enumerate(HALF_LIVES_DAYS):
        assert found[0, column] == pytest.approx(2 ** (-4 / half_life) + 2 ** (-3 / half_life))
        assert found[1, column] == pytest.approx(2 ** (-1 / half_life))


def test_counting_on_is_counting_at_once() -> None:
    log = chains()
    one, many = Counts(log), Counts(log)
    one.advance(2000)
    for count in (1, 700, 700, 1999, 2000):
        many.advance(count)
    ours, theirs = one.tables(T0 + 99 * DAY_MS, NOTHING), many.tables(T0 + 99 * DAY_MS, NOTHING)
    assert ours.trending == pytest.approx(theirs.trending, rel=1e-5)
    assert (ours.cowatch.starts == theirs.cowatch.starts).all()
    assert np.sort(ours.cowatch.share) == pytest.approx(np.sort(theirs.cowatch.share), rel=1e-5)


def test_what_is_disliked_is_neither_followed_nor_trending() -> None:
    log = log_of([(0, 0, 0), (0, 1, 1), (0, 2, 2)])
    log.strength[1] = -0.3
    counts = Counts(log)
    counts.advance(3)
    tables = counts.tables(3, NOTHING)
    assert tables.trending[1].tolist() == [0] * len(HALF_LIVES_DAYS)
    assert tables.cowatch.items.tolist() == [2]  # after item 0, past the disliked one


def test_rows_of_a_generation_may_be_in_another_order() -> None:
    log = log_of([(0, 0, 0), (0, 1, 1), (0, 2, 2)])
    counts = Counts(log)
    counts.advance(3)
    tables = counts.tables(2, NOTHING, np.array([4, 0, 2]), 6)
    c = tables.cowatch
    assert [c.items[c.starts[row] : c.starts[row + 1]].tolist() for row in range(6)] == [[2], [], [], [], [0, 2], []]
    assert (tables.trending[:, 0] > 0).tolist() == [True, False, True, False, True, False]


# The log


def test_the_log_has_each_play_once_in_order_and_only_those_that_say_something(tmp_path: Path) -> None:
    events = [
        play_event("ana", 7, 50, kind=Kind.STOP, share=0.6),
        play_event("ana", 7, 50, kind=Kind.COMPLETE),
        play_event("bob", 3, 10),
        play_event("bob", 9, 20, kind=Kind.START, share=0.01),  # looked in
        play_event("bob", 7, 30, kind=Kind.SKIP, share=0.1),
    ]
    log = read_play_log(put(Lake(tmp_path), events))
    assert [log.item_ids[item] for item in log.item] == ["tt0000003", "tt0000007", "tt0000007"]
    assert log.strength.tolist() == pytest.approx([1, -0.3, 1])
    assert (log.time_ms - T0).tolist() == [10_000, 30_000, 50_000]
    assert log.previous.tolist() == [-1, 0, -1]
    assert log.popularity(3).tolist() == [1, 1]
    assert set(log.item_ids) <= set(read_interactions(Lake(tmp_path), 10).items)


def test_an_empty_lake_trains_no_ranker(tmp_path: Path) -> None:
    ranking = train_ranking(Lake(tmp_path), Settings(lake_path=str(tmp_path)))
    assert (ranking.weights, ranking.tables(["a"])) == (None, None)


# Samples


def test_a_state_before_a_play_is_the_one_that_live_plays_make() -> None:
    rng = np.random.default_rng(1)
    plays = [(int(rng.integers(3)), int(rng.integers(9)), T0 + n // 4) for n in range(120)]  # four in a millisecond
    numbers: dict[int, int] = {}
    log = log_of([(v, numbers.setdefault(i, len(numbers)), t) for v, i, t in plays])
    limits = Limits(max_plays=12, max_plays_per_item=12, max_seen=50)
    states = dict.fromkeys(range(3), EMPTY)
    for row in range(len(log)):
        viewer = int(log.viewer[row])
        ours, theirs = state_before(log, row, 12), ranking_input(states[viewer])
        assert (ours.item_ids, ours.strengths, ours.ranks) == (theirs.item_ids, theirs.strengths, theirs.ranks)
        assert ours.times_ms == theirs.times_ms
        play = Play(int(log.time_ms[row]), int(log.digest[row]), log.item_ids[log.item[row]], 255, COMPLETED)
        states[viewer] = merge((states[viewer], ViewerState(plays=(play,))), limits)


def test_features_at_training_are_those_at_serving_bit_by_bit() -> None:
    log = chains()
    begin = len(log) - 100
    net = make_sequence(log.n_items(begin))
    samples = gather_samples(
        log, begin, no_factors(log), FoldInParameters(), max_plays=200, period_ms=10**12, sequence=net
    )
    counts = Counts(log)
    counts.advance(begin)
    known = log.n_items(begin)
    generation = dataclasses.replace(
        make_generation(known, 4),
        item_ids=tuple(log.item_ids[:known]),
        item_factors=np.full((known, 4), 0.1, np.float32),
        popularity=log.popularity(begin),
        tables=counts.tables(int(log.time_ms[begin]), NOTHING, sequence=net),
    )
    assert samples.features[:, BASE.index("sequence")].any()
    at = 0
    for play, size, target in zip(range(begin, len(log)), samples.sizes.tolist(), samples.target.tolist(), strict=True):
        earlier = [row for row in range(play) if log.viewer[row] == log.viewer[play]]
        plays = [
            Play(int(log.time_ms[r]), int(log.digest[r]), log.item_ids[log.item[r]], 255, COMPLETED) for r in earlier
        ]
        state = merge((ViewerState(plays=tuple(plays)),), Limits())
        (found,) = rank_candidates(generation, [ranking_input(state)], int(log.time_ms[begin]))
        assert (found.context == samples.contexts[play - begin]).all()
        assert (found.features.astype(np.float32) == samples.features[at : at + size]).all()
        assert target < 0 or found.rows[target] == log.item[play]
        at += size


def test_nothing_later_is_in_the_features_of_a_play() -> None:
    log = chains()
    begin, chunk = len(log) - 400, len(log) - 200
    arguments = (begin, no_factors(log), FoldInParameters())
    period = int(log.time_ms[chunk] - log.time_ms[begin])
    before = gather_samples(log, *arguments, max_plays=200, period_ms=period)
    changed = dataclasses.replace(log, item=log.item.copy())
    later = np.arange(len(log)) >= chunk
    changed.item[later] = changed.item[later][::-1]
    after = gather_samples(changed, *arguments, max_plays=200, period_ms=period)
    rows = int(before.sizes[:200].sum())
    assert (before.features[:rows] == after.features[:rows]).all()
    assert not np.array_equal(before.features[rows:], after.features[rows:])


def test_chunks_are_whole_periods_and_not_too_many() -> None:
    times = T0 + np.array([0, 1, 2, 3, 10, 11, 30]) * DAY_MS
    assert chunk_starts(times, 2, DAY_MS * 2) == [2, 4, 6]
    assert len(chunk_starts(T0 + np.arange(1000) * DAY_MS, 100, DAY_MS)) == 24


# The ranker


def test_it_learns_that_what_follows_is_watched_next() -> None:
    log = chains()
    trained = train_ranker(log, no_factors(log), FoldInParameters(), plays=6000, max_plays=200)
    assert trained.weights is not None
    assert trained.metrics["ranker_ndcg@10"] > 0.5 > 0.1 > trained.metrics["blend_ndcg@10"]
    follows = slice(FEATURES.index("follows_last_any"), None)
    assert trained.weights[follows].max() > 0
    assert np.isfinite(trained.weights).all()


def test_fewer_plays_than_can_teach_train_nothing() -> None:
    log = chains().first(1000)
    assert train_ranker(log, no_factors(log), FoldInParameters(), plays=6000, max_plays=200).weights is None


def test_a_fit_finds_the_weights_that_made_the_choices() -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros((len(CONTEXTS), len(BASE)))
    truth[[0, 0, 1], [0, 5, 3]] = 1.0, -2.0, 1.5
    X = rng.normal(size=(3000 * 20, len(BASE))).astype(np.float32)
    contexts = np.stack([np.ones(3000), *rng.random((len(CONTEXTS) - 1, 3000))], axis=1)
    utility = (X * np.repeat(contexts @ truth, 20, axis=0)).sum(axis=1)
    chosen = np.argmax((utility + rng.gumbel(size=len(X))).reshape(3000, 20), axis=1)
    samples = Samples(X, contexts, np.full(3000, 20), chosen)
    found = fit(samples).reshape(truth.shape)
    assert contexts @ found == pytest.approx(contexts @ truth, abs=0.35)
    assert ndcg(samples, truth.ravel()) > ndcg(samples, blend_weights())
