"""The simulated service: deterministic, valid, and with structure that a factor model can learn."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import scipy.sparse as sp
from implicit.cpu.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits

from contracts.events import Kind, valid_id, validate
from contracts.rules import CREATOR, subject
from sandbox.world import HISTORY_DAYS, Stamper, World

NOW_MS = 1_790_000_000_000
DAY_MS = 86_400_000
ENDINGS = {Kind.COMPLETE, Kind.STOP, Kind.SKIP}


@pytest.fixture(scope="module")
def world() -> World:
    return World(7, titles=300, viewers=900, now_ms=NOW_MS)


@pytest.fixture(scope="module")
def history(world: World) -> list:
    return world.history()


def test_two_worlds_of_one_seed_agree_and_another_seed_differs(world: World, history: list) -> None:
    """The seed and the time decide everything."""
    twin, other = (World(seed, titles=300, viewers=900, now_ms=NOW_MS) for seed in (7, 8))
    assert twin.catalogue == world.catalogue
    assert twin.history() == history
    assert list(itertools.islice(twin.live(50), 500)) == list(itertools.islice(world.live(50), 500))
    assert other.catalogue != world.catalogue


def test_every_event_of_the_history_keeps_the_contract(history: list) -> None:
    """Ids, times and lengths are valid, event ids are unique, and events are sorted within the days before now."""
    for event in history:
        validate(event, key=event.viewer.encode(), timestamp_ms=event.event_time_ms)
    assert len({event.event_id for event in history}) == len(history)
    times = [event.event_time_ms for event in history]
    assert times == sorted(times)
    assert times[0] >= NOW_MS - HISTORY_DAYS * DAY_MS
    assert times[-1] < NOW_MS


def test_the_events_of_a_play_repeat_its_identity_and_watch_on(history: list) -> None:
    """One play, one viewer, one privacy; the watched time only grows."""
    plays: dict[tuple, list] = {}
    for event in history:
        if event.play_id is not None:
            plays.setdefault((event.play_started_at_ms, event.play_id, event.item_id), []).append(event)
    assert len({play_id for _, play_id, _ in plays}) == len(plays)
    for events in plays.values():
        assert len({(event.viewer, event.private, event.duration_ms) for event in events}) == 1
        watched = [event.watched_ms for event in events]
        assert watched == sorted(watched)
        assert sum(event.kind in ENDINGS for event in events) <= 1


def test_titles_are_unique_and_nobody_plays_what_may_not_be_shown(world: World, history: list) -> None:
    """Windows, territories and maturity hold for every start."""
    items = {item.item_id: item for item in world.catalogue}
    viewers = {viewer.viewer: viewer for viewer in world.viewers}
    assert len({item.title for item in world.catalogue}) == len(items) == 300
    assert all(valid_id(subject(CREATOR, creator)) for item in world.catalogue for creator in item.creators)
    for event in history:
        if event.kind is Kind.START:
            item, viewer = items[event.item_id], viewers[event.viewer]
            assert item.available_at(event.event_time_ms)
            assert item.maturity <= viewer.maturity
            assert not item.territories or viewer.territory in item.territories
            assert viewer.joined_ms <= event.event_time_ms


def test_the_catalogue_has_titles_that_leave_and_arrive_during_the_demo(world: World) -> None:
    """Some windows end or begin within the first hour, and new titles come without end under new names."""
    hour = NOW_MS + 3_600_000
    large = World(7, now_ms=NOW_MS, viewers=50)
    assert any(item.available_until_ms is not None and item.available_until_ms < hour for item in large.catalogue)
    assert any(item.available_from_ms is not None and item.available_from_ms > NOW_MS for item in large.catalogue)
    arriving = list(itertools.islice(world.new_titles(), 100))
    assert not {item.title for _, item in arriving} & {item.title for item in world.catalogue}
    assert len({item.item_id for _, item in arriving}) == 100
    assert all(item.available_at(NOW_MS + int(seconds * 1000)) for seconds, item in arriving)


def test_plays_are_long_tailed_and_evenings_are_full(history: list) -> None:
    """A tenth of the titles takes over a quarter of the plays; some plays are private, abandoned or watched again."""
    starts = [event for event in history if event.kind is Kind.START]
    counts = sorted(Counter(event.item_id for event in starts).values(), reverse=True)
    assert sum(counts[:30]) > 0.25 * len(starts)
    hours = Counter(event.event_time_ms // 3_600_000 % 24 for event in starts)
    assert max(hours.values()) > 3 * min(hours.values())
    assert 0.01 < sum(event.private for event in starts) / len(starts) < 0.06
    kinds = Counter(event.kind for event in history)
    assert all(kinds[kind] for kind in (*ENDINGS, Kind.PROGRESS, Kind.RATE, Kind.HIDE, Kind.PREFER))
    assert len(starts) > len({(event.viewer, event.item_id) for event in starts})


def test_the_evening_keeps_the_asked_rate_and_brings_newcomers_and_new_titles(world: World) -> None:
    """Arrivals average the rate over whole waves, each play's events carry one identity, ids do not repeat."""
    events = list(itertools.islice(world.live(100), 48_000))
    assert len(events) / events[-1][0] == pytest.approx(100, rel=0.05)
    assert len({event.event_id for _, event in events}) == len(events)
    identity: dict[str, tuple] = {}
    for _, event in events:
        if event.play_id is not None:
            known = (event.viewer, event.item_id, event.play_started_at_ms, event.private)
            assert identity.setdefault(event.play_id, known) == known
    known_titles = {item.item_id for item in world.catalogue}
    assert any(event.item_id not in known_titles for _, event in events if event.item_id)
    residents = {viewer.viewer for viewer in world.viewers[:900]}
    assert any(event.viewer not in residents for _, event in events)
    assert all(event.viewer in world.viewer_names for _, event in events)


def test_a_stamped_play_keeps_the_start_of_its_first_event(world: World) -> None:
    """Wall-clock times are valid at the moment of sending, and a play's start does not move."""
    stamper, started = Stamper(), {}
    for number, (_, event) in enumerate(itertools.islice(world.live(500), 5_000)):
        wall_ms = NOW_MS + 86_400_000 + number * 2
        stamped = stamper.stamp(event, wall_ms)
        validate(stamped, key=stamped.viewer.encode(), timestamp_ms=wall_ms)
        assert stamped.event_time_ms == wall_ms
        if stamped.play_id is not None:
            assert started.setdefault(stamped.play_id, stamped.play_started_at_ms) == stamped.play_started_at_ms
            assert stamped.play_started_at_ms <= wall_ms


def test_als_finds_next_plays_clearly_better_than_popularity(world: World, history: list) -> None:
    """Hit rate at 10 for the next title of the newest tenth of the plays: at least one and a half times popularity's."""
    liked = [
        event
        for event in history
        if event.kind in (Kind.COMPLETE, Kind.STOP) and not event.private and event.watched_ms > 0.3 * event.duration_ms
    ]
    cut = len(liked) * 9 // 10
    viewers = {viewer.viewer: number for number, viewer in enumerate(world.viewers)}
    items = {item.item_id: number for number, item in enumerate(world.catalogue)}
    pairs = np.array([(viewers[event.viewer], items[event.item_id]) for event in liked])
    known = np.unique(pairs[:cut], axis=0)
    Cui = sp.csr_matrix((np.full(len(known), 11, np.float32), known.T), shape=(len(viewers), len(items)))
    with threadpool_limits(1):
        model = AlternatingLeastSquares(factors=32, regularization=1.0, iterations=10, random_state=1, num_threads=1)
        model.fit(Cui, show_progress=False)
    popularity = np.asarray(Cui.sum(axis=0)).ravel()
    following: dict[int, int] = {}
    for viewer, item in pairs[cut:].tolist():
        if Cui[viewer].nnz >= 3 and Cui[viewer, item] == 0:
            following.setdefault(viewer, item)
    hits: Counter = Counter()
    for viewer, item in following.items():
        for name, scores in (("als", model.item_factors @ model.user_factors[viewer]), ("popular", popularity.copy())):
            scores[Cui[viewer].indices] = -np.inf
            hits[name] += item in np.argpartition(-scores, 10)[:10]
    assert len(following) > 200
    assert hits["als"] > 1.5 * hits["popular"]
