"""What counts, and that it counts once: pure counters, their checkpoints, and the snapshots made of them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from contracts.codec import Codec
from contracts.errors import GenerationError, StoreChanged
from contracts.events import Kind
from embeddings.tables import HALF_LIVES_DAYS
from tests.worlds import T0, make_generation, make_tables, play_event
from trends.checkpoints import changed_fields, counts_of
from trends.counters import AHEAD_MS, HOUR_MS, MOST_ERASURES, REMEMBERED_MS, SLOT_MS, Counts, Decision, Report, Rules
from trends.follow import Follower
from trends.snapshots import Snapshot, decode, encode, merge, name_of, tables_of
from viewers.memory_store import MemoryStore
from viewers.rewriter import Rewriter
from viewers.state import Limits, ViewerState, state_of
from viewers.trend_store import Pointer

DAY_S = 86_400
GENERATION = make_generation(30, 4).with_tables(replace(make_tables(30), at_ms=T0))
RULES = Rules(GENERATION.index, T0, 1_000)


def report(
    viewer: str, item: int, second: float, *, at: float | None = None, share: float = 1.0, **more: object
) -> Report:
    """A report on a play that began `second` s after T0, in a record of `at`."""
    event = play_event(viewer, item, second, share=share, **more)  # type: ignore[arg-type]
    timestamp_ms = T0 + int((second if at is None else at) * 1000)
    return Report(timestamp_ms, viewer, state_of(event, timestamp_ms=timestamp_ms))


def erasure(viewer: str, second: float) -> Report:
    event = replace(play_event(viewer, 1, second), kind=Kind.ERASE)
    return Report(event.event_time_ms, viewer, state_of(event, timestamp_ms=event.event_time_ms))


def count(reports: list[Report], counts: Counts | None = None, rules: Rules = RULES) -> Counts:
    """All of them, read long after."""
    counts = counts or Counts(0)
    for one in reports:
        counts.take(one, rules, T0 + 365 * DAY_S * 1000)
        counts.next_offset += 1
    return counts


def evening(seed: int, n: int = 400) -> list[Report]:
    """Plays, later reports on them, duplicates and erasures over ten hours, in the order of the log."""
    rng = random.Random(seed)
    found: list[Report] = []
    for i in range(n):
        second = 10 + i * 90
        viewer, item = f"v{rng.randrange(9)}", rng.randrange(40)
        found.append(report(viewer, item, second, at=second + rng.randrange(900), share=rng.choice((0.05, 0.4, 1.0))))
        if rng.random() < 0.4:
            found.append(found[rng.randrange(len(found))])
        if rng.random() < 0.02:
            found.append(erasure(viewer, second))
    return found


def plays_of(counts: Counts) -> dict[int, int]:
    return {row: int(sums[0]) for row, sums in counts.sums.items()}


def test_a_play_counts_once_by_its_first_good_report() -> None:
    counts = Counts(0)
    took = [
        counts.take(one, RULES, T0 + DAY_S * 1000)
        for one in (
            report("ana", 3, 60, share=0.0, kind=Kind.START),
            report("ana", 3, 60, at=90, share=0.3, kind=Kind.PROGRESS),
            report("ana", 3, 60, at=150),
            report("ana", 3, 60, at=150),
            report("ben", 3, 60, at=151),
        )
    ]
    assert took == [Decision.WEAK, Decision.COUNTED, Decision.AGAIN, Decision.AGAIN, Decision.COUNTED]
    assert plays_of(counts) == {3: 2}


def test_what_is_no_public_play_of_a_known_title_does_not_count() -> None:
    counts = Counts(0)
    assert counts.take(report("ana", 39, 60), RULES, T0 + DAY_S * 1000) is Decision.UNKNOWN
    assert counts.take(report("ana", 1, 60, kind=Kind.SKIP, share=0.1), RULES, T0 + DAY_S * 1000) is Decision.WEAK
    assert counts.take(report("ana", 1, 0), RULES, T0 + DAY_S * 1000) is Decision.LATE  # in the generation's own trends
    assert counts.take(erasure("ana", 70), RULES, T0 + DAY_S * 1000) is Decision.OTHER
    assert not counts.sums


def test_plays_of_before_an_erasure_do_not_count_and_later_ones_do() -> None:
    counts = count([erasure("ana", 100), report("ana", 1, 100), report("ana", 1, 101), report("ben", 2, 50, at=200)])
    assert plays_of(counts) == {1: 1, 2: 1}


def test_a_play_is_worth_half_after_each_half_life() -> None:
    hours = [0.1, 12.1, 24.1]
    counts = count([report(f"v{row}", row, hour * 3600) for row, hour in enumerate(hours)])
    snapshot = merge({0: counts}, "g1", T0)
    assert snapshot.at_ms == T0 + int(24.1 * HOUR_MS)
    assert snapshot.live[:, 0] == pytest.approx([0.25, 0.5, 1.0], rel=1e-3)  # half a day
    assert snapshot.live[:, 1] == pytest.approx([0.5, 0.5**0.5, 1.0], rel=1e-3)


def test_who_watches_much_in_one_evening_makes_less_of_a_trend_of_each() -> None:
    counts = count(
        [*(report("ana", row, 60 + row) for row in range(9)), report("ben", 9, 70), report("ana", 10, 7 * 3600)]
    )
    weights = [counts.sums[row][1] / 2 ** ((60 + row - 60) / (0.5 * DAY_S)) for row in range(10)]
    assert weights[:9] == pytest.approx([(1 + n) ** -0.5 for n in range(9)], rel=1e-3)
    assert counts.sums[9][1] == pytest.approx(1, rel=1e-3)
    assert counts.sums[10][1] == pytest.approx(2 ** (7 / 12), rel=2e-2)  # of the others none is remembered


def test_the_records_time_counts_and_no_clock_of_an_event() -> None:
    """A play dated five minutes ahead is worth what its record's time says; a record far ahead of our clock is passed over."""
    counts = Counts(0)
    now_ms = T0 + HOUR_MS
    assert counts.take(report("ana", 1, 400, at=100), RULES, now_ms) is Decision.COUNTED
    assert counts.newest_ms == T0 + 100_000
    assert counts.take(report("ben", 2, 120, at=365 * DAY_S), RULES, now_ms) is Decision.AHEAD
    assert counts.clock_ms == T0 + 100_000
    assert counts.take(report("ben", 2, 120, at=3700 + AHEAD_MS / 1000 - 101), RULES, now_ms) is Decision.COUNTED


def test_a_play_reported_on_for_hours_counts_once_even_when_it_is_forgotten() -> None:
    """Six hours later nobody knows any more whether it counted: then it must not count."""
    counts = count([report("ana", 1, 60)])
    for hour in (1, 3, 5.9):
        count([report("ana", 1, 60, at=hour * 3600)], counts)
    assert counts.remembered == 1
    count([report("cid", 2, 9 * 3600)], counts)
    assert counts.remembered == 1
    assert counts.take(report("ana", 1, 60, at=9 * 3600 + 1), RULES, T0 + DAY_S * 1000) is Decision.LATE
    assert plays_of(counts) == {1: 1, 2: 1}


def test_more_plays_than_may_be_remembered_shorten_what_is_counted_and_double_nothing() -> None:
    rules = replace(RULES, remembered=20)
    first = [report(f"v{i}", i % 30, 600 + i * 30) for i in range(100)]
    counts = count(first, rules=rules)
    assert counts.remembered <= 20
    assert counts.counted == 100
    count(first, counts, rules)
    assert counts.counted == 100


@pytest.mark.parametrize("seed", range(5))
def test_counting_is_the_same_wherever_it_is_interrupted_and_taken_up(seed: int) -> None:
    """Checkpoints hold only what has changed; what comes after one and is lost is read again."""
    reports = evening(seed)
    whole = count(reports)
    rng = random.Random(seed)
    fields: dict[str, bytes] = {}
    at, counts = 0, Counts(0)
    while at < len(reports):
        stop = min(len(reports), at + rng.randrange(1, 60))
        count(reports[at:stop], counts)
        fields |= changed_fields(counts)
        counts.changed_rows.clear()
        counts.changed_slots.clear()
        at = stop
        if rng.random() < 0.3:
            count(reports[at : at + rng.randrange(20)], counts)  # lost with the process
            counts = counts_of(at, fields, "here")
    again = counts_of(at, fields, "here")
    for name in ("next_offset", "clock_ms", "forgotten_ms", "landmark_ms", "newest_ms", "counted", "sums", "erased"):
        assert getattr(again, name) == getattr(whole, name), name
    assert {k: v for k, v in again.slots.items() if v} == {k: v for k, v in whole.slots.items() if v}
    assert encode(merge({0: again}, "g1", T0)) == encode(merge({0: whole}, "g1", T0))


def test_a_replay_of_everything_counts_nothing_twice() -> None:
    reports = evening(11)
    counts = count(reports)
    before = plays_of(counts)
    count(reports, counts)
    assert plays_of(counts) == before


def test_sums_are_the_same_in_whatever_order_partitions_are_given() -> None:
    parts = {p: count(evening(p, 100)) for p in range(4)}
    forward = encode(merge(parts, "g1", T0))
    assert encode(merge(dict(reversed(parts.items())), "g1", T0)) == forward
    summed = {row: sum(plays_of(one).get(row, 0) for one in parts.values()) for row in range(30)}
    snapshot = decode(forward, name_of(forward))
    assert snapshot.plays == sum(summed.values())
    assert snapshot.rows.tolist() == sorted(row for row, plays in summed.items() if plays)


def test_a_snapshot_adds_to_the_generations_own_trends_as_old_as_they_are() -> None:
    own = GENERATION.tables
    assert own is not None
    at_ms = T0 + 24 * HOUR_MS
    live = np.arange(10, dtype=np.float32).reshape(2, 5)
    tables = tables_of(Snapshot("g1", at_ms, 2, np.array([3, 7], np.int32), live), own, "g1", 30)
    faded = own.trending * np.exp2(-1 / np.array(HALF_LIVES_DAYS))
    faded[[3, 7]] += live
    assert tables.trending == pytest.approx(faded.astype(np.float32), rel=1e-6)
    assert tables.at_ms == at_ms
    assert tables.weights is own.weights
    assert tables.cowatch is own.cowatch


def test_a_snapshot_survives_its_bytes_to_a_twentieth_of_a_percent() -> None:
    snapshot = merge({0: count(evening(3))}, "g1", T0)
    data = encode(snapshot)
    again = decode(data, name_of(data))
    assert (again.generation_id, again.at_ms, again.plays) == ("g1", snapshot.at_ms, snapshot.plays)
    assert (again.rows == snapshot.rows).all()
    assert (again.live == snapshot.live).all()
    empty = encode(merge({0: Counts(5)}, "g1", T0))
    assert decode(empty, name_of(empty)).plays == 0


def test_damaged_bytes_are_refused_whatever_is_damaged() -> None:
    data = encode(merge({0: count(evening(4, 60))}, "g1", T0))
    with pytest.raises(GenerationError, match="not the one that it is named by"):
        decode(data[:-1], name_of(data))
    for at in range(len(data)):
        bad = data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :]
        with pytest.raises(GenerationError):
            decode(bad, name_of(bad))
    for cut in range(0, len(data), 7):
        with pytest.raises(GenerationError):
            decode(data[:cut], name_of(data[:cut]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"generation_id": "g2"}, "of generation g2"),
        ({"at_ms": T0 - 1}, "older"),
        ({"rows": np.array([3, 30], np.int32)}, "titles that there are not"),
        ({"rows": np.array([7, 3], np.int32)}, "not in order"),
        ({"live": np.full((2, 5), np.nan, np.float32)}, "NaN"),
        ({"live": np.full((2, 5), -1, np.float32)}, "negative"),
    ],
)
def test_a_snapshot_that_does_not_fit_its_generation_is_refused(change: dict[str, object], said: str) -> None:
    good = Snapshot("g1", T0, 2, np.array([3, 7], np.int32), np.ones((2, 5), np.float32))
    assert GENERATION.tables is not None
    tables_of(good, GENERATION.tables, "g1", 30)
    with pytest.raises(GenerationError, match=said):
        tables_of(replace(good, **change), GENERATION.tables, "g1", 30)  # type: ignore[arg-type]


def test_bytes_that_are_no_checkpoint_are_counted_anew() -> None:
    fields = changed_fields(count(evening(5, 40)))
    for name in ("h", next(one for one in fields if one[0] == "i"), next(one for one in fields if one[0] == "r")):
        with pytest.raises(StoreChanged, match="no checkpoint"):
            counts_of(3, {**fields, name: fields[name][:-1]}, "here")


def test_a_slot_is_forgotten_as_a_whole_and_its_place_is_used_again() -> None:
    later = (REMEMBERED_MS + 3 * SLOT_MS) // 1000
    counts = count([report("ana", 1, 60), report("ben", 1, 61 + later)])
    assert len(counts.slots) == 1
    assert counts_of(2, changed_fields(counts), "here").remembered == 1


def test_the_store_keeps_no_more_plays_than_may_be_remembered() -> None:
    rules, counts, fields = replace(RULES, remembered=50), Counts(0), dict[str, bytes]()
    for slot in range(1, 40):
        start = 600 + slot * SLOT_MS // 1000
        count([report(f"v{i}", i % 30, start + i) for i in range(40)], counts, rules)
        fields |= changed_fields(counts)
        counts.changed_rows.clear()
        counts.changed_slots.clear()
    assert counts.counted > 10 * rules.remembered
    assert sum(len(value) - 8 for name, value in fields.items() if name[0] == "r") <= 50 * 12
    assert counts_of(counts.next_offset, fields, "here").slots == counts.slots


def test_erasures_of_what_does_not_count_any_more_are_not_remembered() -> None:
    """However many come at once: they are what a bulk of old requests, or a log read again, is made of."""
    counts = count([report("ana", 1, 2 * REMEMBERED_MS // 1000)])
    late = T0 + 2 * REMEMBERED_MS
    for i in range(MOST_ERASURES + 1_000):
        gone = Report(late, f"v{i}", ViewerState(erased_through_s=T0 // 1000 + i))
        assert counts.take(gone, RULES, late) is Decision.OTHER
    assert len(counts.erased) <= MOST_ERASURES
    assert counts.remembered == 1


async def test_snapshots_that_rows_name_are_given_back_to_a_store_that_has_lost_them() -> None:
    store, follower = MemoryStore(), Follower()
    own = Rewriter(GENERATION, 1, Codec.load().encode_row, Limits())

    async def off_loop(action: Any, *arguments: Any) -> Any:
        return action(*arguments)

    names = []
    for plays in (1, 2, 3):
        counts = count([report("ana", item, 10 + item) for item in range(plays)])
        data = encode(merge({0: counts}, GENERATION.generation_id, T0))
        names.append(name_of(data))
        await store.trends.hold("one", 1_000)
        assert await store.trends.publish(GENERATION.generation_id, "one", Pointer(names[-1], T0), data)
        assert await follower.look(store.trends, own, off_loop) is not None
    other = MemoryStore()
    await follower.keep(other.trends)
    assert [bool(await other.trends.read_snapshot(name)) for name in names] == [False, True, True]
