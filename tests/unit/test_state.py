"""Viewer state: merging in any order gives one result, and nothing that should be kept is lost."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.events import LATEST_TIME_MS, Kind, PlaybackEvent
from viewers.packing import BadState, pack, unpack
from viewers.state import (
    COMPLETED,
    EMPTY,
    SKIPPED,
    STOPPED,
    Limits,
    Play,
    Register,
    RegisterKind,
    ViewerState,
    item_digest,
    merge,
    state_of,
    watched_share,
)

T0 = 1_700_000_000_000
SMALL = Limits(max_plays=4, max_plays_per_item=2, max_registers=3, max_seen=3)

ITEMS = st.sampled_from([f"tt{i}" for i in range(1, 10)])  # more than the kept plays and `seen` hold together
TIMES = st.integers(0, 12).map(lambda tick: T0 + tick * 400)  # several within one second


@st.composite
def events(draw: st.DrawFn) -> PlaybackEvent:
    """Events that collide often: few items, few instants, few play ids."""
    kind = draw(st.sampled_from([*Kind][1:]))
    time_ms = draw(TIMES)
    event = PlaybackEvent(
        event_id=f"e{draw(st.integers(0, 5))}", kind=kind, viewer="v", event_time_ms=time_ms, item_id=draw(ITEMS)
    )
    if kind in (Kind.START, Kind.PROGRESS, Kind.COMPLETE, Kind.STOP, Kind.SKIP):
        return dataclasses.replace(
            event,
            play_id=f"p{draw(st.integers(0, 2))}",
            play_started_at_ms=time_ms,
            watched_ms=draw(st.integers(0, 120)),
            duration_ms=100,
        )
    if kind is Kind.PREFER:
        return dataclasses.replace(event, item_id=None, preference="topic:drama", value=draw(st.integers(-100, 100)))
    if kind is Kind.RATE:
        return dataclasses.replace(event, value=draw(st.integers(-100, 100)))
    return event


def state(event: PlaybackEvent) -> ViewerState:
    return state_of(event, timestamp_ms=event.event_time_ms)


def oracle(history: list[PlaybackEvent], limits: Limits) -> ViewerState:
    """The same state computed another way: over all events at once, by sorting, never merging two states."""
    erased_s = max((e.event_time_ms // 1000 for e in history if e.kind is Kind.ERASE), default=-1)
    parts = [state(e) for e in history]
    plays = [p for part in parts for p in part.plays if p.started_at_ms // 1000 > erased_s]
    merged = []
    for identity in sorted({p[:3] for p in plays}, reverse=True):
        same = [p for p in plays if p[:3] == identity]
        flags = 0
        for p in same:
            flags |= p.flags
        merged.append(Play(*identity, max(p.share for p in same), flags))
    first_of_item = [
        p for i, p in enumerate(merged) if sum(q.item_id == p.item_id for q in merged[:i]) < limits.max_plays_per_item
    ]
    kept = tuple(first_of_item[: limits.max_plays])
    seen: dict[int, int] = {}
    for p in merged:
        if p not in kept:
            seen[item_digest(p.item_id)] = max(seen.get(item_digest(p.item_id), 0), p.started_at_ms // 1000)
    newest_seen = sorted(seen.items(), key=lambda pair: (pair[1], pair[0]), reverse=True)[: limits.max_seen]
    said = [r for part in parts for r in part.registers if r.event_time_ms // 1000 > erased_s]
    newest = {}
    for r in sorted(said, key=lambda r: r.order):
        newest[(int(r.kind), r.subject)] = r
    registers = sorted(newest.items(), key=lambda pair: (pair[1].order, pair[0]), reverse=True)[: limits.max_registers]
    return ViewerState(kept, tuple(sorted(newest_seen)), tuple(r for _, r in sorted(registers)), erased_s)


@settings(max_examples=400, deadline=None)
@given(st.lists(events(), max_size=14), st.randoms(use_true_random=False))
def test_merge_then_cut_gives_the_same_state_in_every_order_with_duplicates_and_any_grouping(
    history: list[PlaybackEvent], rng: random.Random
) -> None:
    expected = oracle(history, SMALL)
    for _ in range(4):
        shuffled = history + rng.choices(history, k=rng.randint(0, 5)) if history else []
        rng.shuffle(shuffled)
        one_by_one = EMPTY
        for event in shuffled:
            one_by_one = merge((one_by_one, state(event)), SMALL)
        cut = rng.randint(0, len(shuffled))
        left = merge([state(e) for e in shuffled[:cut]], SMALL)
        right = merge([state(e) for e in shuffled[cut:]], SMALL)
        assert one_by_one == expected
        assert merge((left, right), SMALL) == merge((right, left), SMALL) == expected
        assert merge((expected, expected), SMALL) == expected


@settings(max_examples=300, deadline=None)
@given(st.lists(events(), max_size=14))
def test_packing_is_one_to_one(history: list[PlaybackEvent]) -> None:
    packed = merge([state(e) for e in history], SMALL)
    assert unpack(pack(packed)) == packed
    assert pack(unpack(pack(packed))) == pack(packed)


def test_packing_takes_more_than_256_items_and_every_field_at_its_limit() -> None:
    plays = tuple(Play(T0 + 999 - i, 0xFFFFFFFF, f"item-{i:04d}".ljust(128, "x"), 255, 7) for i in range(300))
    register = Register(RegisterKind.RATE, "tt1", T0 + 999, 0xFFFFFFFF, -100)
    full = ViewerState(
        plays, ((1 << 48) - 1, (1 << 32) - 1) and (((1 << 48) - 1, (1 << 32) - 1),), (register,), (1 << 31) - 1
    )
    assert unpack(pack(full)) == full


@settings(max_examples=300, deadline=None)
@given(st.lists(events(), min_size=1, max_size=8), st.data())
def test_damaged_bytes_are_refused_or_still_a_state_but_never_crash(
    history: list[PlaybackEvent], data: st.DataObject
) -> None:
    packed = bytearray(pack(merge([state(e) for e in history], SMALL)))
    if not packed:
        return
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    cut = bytes(packed[: data.draw(st.integers(1, len(packed)))])
    try:
        assert isinstance(unpack(cut), ViewerState)
    except BadState as error:
        assert "packed" in str(error)


def test_the_newest_plays_stay_and_older_ones_leave_their_items_as_seen() -> None:
    limits = Limits(max_plays=2, max_plays_per_item=3)
    history = [play("a", 1), play("b", 2), play("c", 3)]
    result = merge(history, limits)
    assert [p.item_id for p in result.plays] == ["c", "b"]
    assert result.seen == ((item_digest("a"), T0 // 1000 + 1),)


def test_an_item_whose_place_among_the_seen_becomes_free_is_not_missed() -> None:
    limits = Limits(max_plays=2, max_plays_per_item=2, max_seen=2)
    history = [
        play("a", 1),
        play("b", 2),
        play("c", 3),
        play("d", 4),
        play("d", 5),
    ]  # a falls out of the newest two seen
    again = play("b", 6)  # b is kept again, in the place of d's older play
    at_once = merge([*history, again], limits)
    one_by_one = EMPTY
    for one in [*history, again]:
        one_by_one = merge((one_by_one, one), limits)
    assert one_by_one == at_once == merge((merge(history, limits), again), limits)
    assert {digest for digest, _ in at_once.seen} == {item_digest("d"), item_digest("c")}


def test_at_most_m_plays_of_one_item_so_that_a_loop_does_not_push_out_everything_else() -> None:
    limits = Limits(max_plays=4, max_plays_per_item=2)
    result = merge([play("loop", i) for i in range(2, 9)] + [play("other", 1)], limits)
    assert [(p.item_id, p.started_at_ms - T0) for p in result.plays] == [
        ("loop", 8000),
        ("loop", 7000),
        ("other", 1000),
    ]


def test_an_erasure_takes_what_came_before_it_and_leaves_what_comes_after() -> None:
    erase = ViewerState(erased_through_s=T0 // 1000 + 5)
    result = merge([play("a", 1), play("b", 5), play("c", 6), erase], Limits())
    assert [p.item_id for p in result.plays] == ["c"]
    assert merge([result, play("late", 2)], Limits()) == result


def test_an_erasure_is_never_dated_after_its_record() -> None:
    event = PlaybackEvent("e", Kind.ERASE, "v", T0 + 60_000)
    assert state_of(event, timestamp_ms=T0).erased_through_s == T0 // 1000


def test_two_reports_of_one_play_join_to_the_greatest_share_and_all_flags() -> None:
    a = ViewerState((Play(T0, 1, "a", 40, STOPPED),))
    b = ViewerState((Play(T0, 1, "a", 90, COMPLETED),))
    assert merge((a, b), Limits()).plays == (Play(T0, 1, "a", 90, STOPPED | COMPLETED),)
    assert SKIPPED not in (STOPPED, COMPLETED)


def test_a_cleared_rating_forgets_the_older_rating_and_not_a_newer_one() -> None:
    rate = PlaybackEvent("e1", Kind.RATE, "v", T0, item_id="a", value=80)
    clear = PlaybackEvent("e2", Kind.CLEAR_RATING, "v", T0 + 1, item_id="a")
    again = PlaybackEvent("e3", Kind.RATE, "v", T0 + 2, item_id="a", value=-50)
    assert merge([state(rate), state(clear)], Limits()).registers[0].value is None
    assert merge([state(again), state(clear), state(rate)], Limits()).registers[0].value == -50


@pytest.mark.parametrize(("watched", "share"), [(0, 0), (50, 127), (100, 255), (1000, 255)])
def test_the_watched_share_is_in_255ths_and_more_than_all_is_all(watched: int, share: int) -> None:
    assert watched_share(watched, 100) == share


def play(item_id: str, second: int) -> ViewerState:
    """A state of one play, `second` seconds after T0."""
    return ViewerState((Play(T0 + second * 1000, 7, item_id, 255, COMPLETED),))


def test_times_up_to_the_year_2100_can_be_packed_erasures_included() -> None:
    latest_s = LATEST_TIME_MS // 1000 - 1
    state = ViewerState((Play(latest_s * 1000 + 999, 1, "a", 1, 0),), erased_through_s=latest_s)
    assert unpack(pack(state)) == state
