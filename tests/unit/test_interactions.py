"""From events to confidences and states: known answers, and the same answers whatever order and number the events come in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batch import interactions as module
from batch.interactions import Interactions, read_interactions, remove_leftovers, share_and_flags, states_from_lake
from batch.lake import EVENTS_SCHEMA, Lake, hour_folder, write_parquet
from batch.train import train_item_factors
from contracts.errors import DataError
from contracts.events import Kind, PlaybackEvent
from runtime.settings import TrainSettings
from tests.worlds import T0, play_event
from viewers.state import Limits, merge, state_of, watched_share

LIMITS = Limits(max_plays=6, max_plays_per_item=2)


def put(lake: Lake, events: Sequence[PlaybackEvent], name: str = "0") -> Lake:
    """Write events into one file of the lake, as the copy does."""
    rows = [
        {"epoch": 1, "partition": 0, "offset": n, "timestamp_ms": event.event_time_ms}
        | {k: v for k, v in dataclasses.asdict(event).items() if k in EVENTS_SCHEMA.names}
        | {"kind": event.kind.value}
        for n, event in enumerate(events)
    ]
    write_parquet(lake.path / hour_folder("events", 0) / f"{name}.parquet", pa.Table.from_pylist(rows, EVENTS_SCHEMA))
    return lake


def say(kind: Kind, viewer: str, item: int, second: float, value: int | None = None) -> PlaybackEvent:
    at = T0 + int(second * 1000)
    return PlaybackEvent(f"{kind}{viewer}{item}{second}", kind, viewer, at, item_id=f"tt{item:07d}", value=value)


def matrix(found: Interactions) -> dict[tuple[str, int], float]:
    """(viewer, item number) → confidence."""
    coo = found.Cui.tocoo()
    return {
        (found.viewers[v], int(found.items[i][2:])): round(float(c), 4)
        for v, i, c in zip(coo.row, coo.col, coo.data, strict=True)
    }


def test_confidences_follow_the_signal_table_without_rank_decay(tmp_path: Path) -> None:
    events = [
        play_event("ana", 1, 0, kind=Kind.COMPLETE),  # strength 1
        play_event("ana", 2, 10, kind=Kind.STOP, share=0.6),  # watched half: 0.6
        play_event("ana", 3, 20, kind=Kind.SKIP, share=0.1),  # skipped early: -0.3
        play_event("ana", 4, 30, kind=Kind.START, share=0.01),  # looked in: nothing can be said
        play_event("bob", 1, 40, kind=Kind.STOP, share=0.2),  # a part: 0.25
    ]
    found = read_interactions(put(Lake(tmp_path), events), alpha=10)
    assert matrix(found) == {("ana", 1): 11, ("ana", 2): 7, ("ana", 3): -4, ("bob", 1): 3.5}
    popularity = dict(zip(found.items, found.popularity.tolist(), strict=True))
    assert popularity["tt0000001"] == pytest.approx(1.25) and popularity["tt0000003"] == 0
    assert (found.plays, found.newest_event_ms) == (5, T0 + 40_000)


def test_the_events_of_one_play_are_one_play_at_its_greatest_share(tmp_path: Path) -> None:
    play = [play_event("ana", 1, 0, kind=Kind.PROGRESS, share=s) for s in (0.6, 0.05, 0.3)]
    found = read_interactions(put(Lake(tmp_path), [*play, *play]), alpha=10)
    assert (matrix(found), found.plays) == ({("ana", 1): 7}, 1)


def test_the_strongest_of_several_plays_speaks_for_the_item(tmp_path: Path) -> None:
    events = [
        play_event("ana", 1, 0, kind=Kind.SKIP, share=0.1),
        play_event("ana", 1, 50, kind=Kind.STOP, share=0.2),  # 0.25 is weaker than the skip's -0.3
        play_event("ana", 2, 0, kind=Kind.SKIP, share=0.1),
        play_event("ana", 2, 50),  # watched to the end later: 1
    ]
    assert matrix(read_interactions(put(Lake(tmp_path), events), alpha=10)) == {("ana", 1): -4, ("ana", 2): 11}


def test_what_was_said_outright_replaces_what_the_plays_say(tmp_path: Path) -> None:
    events = [
        play_event("ana", 1, 0),
        say(Kind.RATE, "ana", 1, 10, -100),
        say(Kind.RATE, "ana", 1, 20, 50),  # the newest rating counts
        play_event("ana", 2, 0),
        say(Kind.RATE, "ana", 2, 30, 100),
        say(Kind.HIDE, "ana", 2, 5),  # a hide wins over a rating
        play_event("ana", 3, 0),
        say(Kind.RATE, "ana", 3, 10, -100),
        say(Kind.CLEAR_RATING, "ana", 3, 20),  # the plays speak again
        say(Kind.RATE, "ana", 4, 10, 0),  # neither liked nor disliked
        say(Kind.RATE, "bob", 5, 10, 100),  # rated, never played
    ]
    found = matrix(read_interactions(put(Lake(tmp_path), events), alpha=10))
    assert found == {("ana", 1): 6, ("ana", 2): -11, ("ana", 3): 11, ("bob", 5): 11}


def test_only_events_before_the_cut_count(tmp_path: Path) -> None:
    lake = put(Lake(tmp_path), [play_event("ana", 1, 0), play_event("ana", 2, 10), say(Kind.HIDE, "ana", 1, 20)])
    assert matrix(read_interactions(lake, 10, before_ms=T0 + 10_000)) == {("ana", 1): 11}


def test_an_empty_lake_has_no_interactions_and_cannot_be_trained_on(tmp_path: Path) -> None:
    found = read_interactions(Lake(tmp_path), 10)
    assert found.Cui.shape == (0, 0)
    with pytest.raises(DataError, match="nothing to train on"):
        train_item_factors(found.Cui, TrainSettings())


EVENTS = st.lists(
    st.builds(
        lambda viewer, item, second, kind, share: play_event(viewer, item, second, kind=kind, share=share),
        st.sampled_from(["ana", "bob", "cid"]),
        st.integers(1, 5),
        st.integers(0, 30),
        st.sampled_from([Kind.START, Kind.PROGRESS, Kind.COMPLETE, Kind.STOP, Kind.SKIP]),
        st.floats(0, 1.5),
    )
    | st.builds(
        say,
        st.sampled_from([Kind.RATE, Kind.CLEAR_RATING, Kind.HIDE]),
        st.sampled_from(["ana", "bob", "cid"]),
        st.integers(1, 5),
        st.integers(0, 30),
        st.integers(-100, 100),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=EVENTS, data=st.data())
def test_states_from_the_lake_are_those_of_the_live_updater(
    events: list[PlaybackEvent], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lake = Lake(tmp_path_factory.mktemp("lake"))
    again = data.draw(st.permutations(events + events[:5]))
    put(lake, again[: len(again) // 2], "1")
    put(lake, again[len(again) // 2 :], "2")
    lake.ledger.append({"cid": T0 // 1000 + 15})
    expected = {}
    for event in events:
        expected.setdefault(event.viewer, []).append(state_of(event, timestamp_ms=event.event_time_ms))
    live = {viewer: merge(facts, LIMITS) for viewer, facts in expected.items()}
    found = dict(states_from_lake(lake, LIMITS))
    erased = found.pop("cid", None)
    live.pop("cid", None)
    assert found == live
    assert erased is None or all(play.started_at_ms >= T0 + 16_000 for play in erased.plays)


def test_buckets_give_the_same_states_as_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [play_event(f"v{n % 7}", n % 5, n) for n in range(60)]
    lake = put(Lake(tmp_path), events)
    whole = dict(states_from_lake(lake, LIMITS))
    monkeypatch.setattr(module, "BUCKET_ROWS", 10)
    assert dict(states_from_lake(lake, LIMITS)) == whole
    assert dict(states_from_lake(lake, LIMITS, wanted=frozenset({"v3"}))) == {"v3": whole["v3"]}
    assert not list(tmp_path.glob(".buckets-*"))


def test_training_is_repeatable_and_never_asks_for_more_factors_than_there_are_items(tmp_path: Path) -> None:
    events = [play_event(f"v{v}", i, v * 50 + i) for v in range(8) for i in range(5) if (v + i) % 2]
    Cui = read_interactions(put(Lake(tmp_path), events), 10).Cui
    seen: list[int] = []
    first = train_item_factors(Cui, TrainSettings(factors=64, iterations=3), on_iteration=seen.append)
    again = train_item_factors(Cui, TrainSettings(factors=64, iterations=3))
    assert first.shape == (5, 5) and np.isfinite(first).all() and first.dtype == np.float32
    assert np.array_equal(first, again)
    assert seen == [1, 2, 3]


def test_confidences_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    Cui = read_interactions(put(Lake(tmp_path), [play_event("ana", 1, 0), play_event("bob", 2, 0)]), 10).Cui
    Cui.data[0] = np.nan
    with pytest.raises(DataError, match="finite"):
        train_item_factors(Cui, TrainSettings())


HUGE = 2**63 - 1


@pytest.mark.parametrize("watched", [0, 1, 10**6, HUGE // 255, HUGE // 255 + 1, HUGE // 2, HUGE])
@pytest.mark.parametrize("duration", [1, 10**6, HUGE // 255 + 1, HUGE // 2, HUGE])
def test_the_share_of_any_duration_is_the_live_one(watched: int, duration: int) -> None:
    columns = {"watched_ms": [watched, 50], "duration_ms": [duration, 100], "kind": ["stop", "stop"]}
    share, _ = share_and_flags(pa.RecordBatch.from_pydict(columns))
    assert share.tolist() == [watched_share(watched, duration), 127]


def test_what_a_killed_job_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    lake = put(Lake(tmp_path), [play_event("ana", 1, 0)])
    buckets = tmp_path / ".buckets-x1"
    buckets.mkdir()
    (buckets / "0.arrow").write_bytes(b"plays")
    half = lake.files("events")[0].with_name(".half.parquet")
    half.write_bytes(b"plays")
    remove_leftovers(tmp_path)
    assert not buckets.exists() and not half.exists()
    assert [viewer for viewer, _ in states_from_lake(lake, LIMITS)] == ["ana"]
