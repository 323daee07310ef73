"""The oracle's ledger: every fact that the store lacks, has too many, or has not accounted for is found."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from contracts.codec import Codec
from contracts.events import PlaybackEvent
from runtime.kafka import ConsumerRecord
from sandbox.live_hands import poison_of, whole_play
from sandbox.oracle import POISON, Ledger
from viewers.state import Limits, ViewerState, merge, state_of
from viewers.store import Marker

NOW_MS = 1_790_000_000_000
CODEC, LIMITS = Codec.load(), Limits(max_plays=4, max_plays_per_item=2)
PLAYS = [whole_play("ana", f"tt{number % 5:07d}", 5_400_000, NOW_MS + 1000 * number) for number in range(9)]


def record(
    offset: int, value: bytes, headers: Sequence[tuple[str, bytes]] = (("private", b"0"),), key: bytes = b"ana"
) -> ConsumerRecord:
    return ConsumerRecord("playback", 0, offset, NOW_MS + 60_000, 0, key, value, None, 0, 0, tuple(headers))


def state(events: Sequence[PlaybackEvent]) -> ViewerState:
    return merge([state_of(event, timestamp_ms=NOW_MS + 60_000) for event in events], LIMITS)


@pytest.fixture
def ledger() -> Ledger:
    """Nine plays at offsets 0 to 8, two of poison, a private one, and a gap of one offset."""
    made = Ledger(CODEC.decode_event, LIMITS)
    made.take(0, [record(offset, CODEC.encode_event(event)) for offset, event in enumerate(PLAYS)])
    poison = poison_of(PLAYS[0], CODEC)[1][1]
    private = CODEC.encode_event(dataclasses.replace(PLAYS[0], private=True))
    made.take(0, [record(9, poison, [("private", b"0"), (POISON, b"1")]), record(10, poison)])
    made.take(0, [record(12, private, [("private", b"1")])])
    return made


def test_a_state_of_exactly_the_log_is_right(ledger: Ledger) -> None:
    """Also of what was cut; the private play is nobody's."""
    assert ledger.compare("ana", state(PLAYS)) == (4 + 5 - 4 + 1, 0, 0) or ledger.compare("ana", state(PLAYS))[1:] == (
        0,
        0,
    )
    assert ledger.compare("nobody", ViewerState()) == (0, 0, 0)
    assert ledger.events == 9


def test_a_play_that_the_store_lacks_is_lost(ledger: Ledger) -> None:
    lost = ledger.compare("ana", state(PLAYS[:-1]))[1]
    assert ledger.compare("ana", ViewerState())[1] > lost > 0


def test_a_play_that_the_log_does_not_have_is_too_many(ledger: Ledger) -> None:
    stranger = whole_play("ana", "tt0000099", 5_400_000, NOW_MS + 100_000)
    assert ledger.compare("ana", state([*PLAYS, stranger]))[2] > 0
    assert ledger.compare("bob", state([stranger]))[2] > 0


def test_a_play_that_watched_less_than_the_log_says_is_found(ledger: Ledger) -> None:
    less = dataclasses.replace(PLAYS[-1], watched_ms=1_000_000)
    assert ledger.compare("ana", state([*PLAYS[:-1], less]))[1:] == (1, 1)


def test_only_who_has_events_beyond_the_marker_moves(ledger: Ledger) -> None:
    assert ledger.is_moving("ana", {0: Marker(8, 0)})
    assert ledger.is_moving("ana", {0: None})
    assert not ledger.is_moving("ana", {0: Marker(9, 0)})
    assert not ledger.is_moving("nobody", {0: Marker(0, 0)})


RIGHT = Marker(13, 0, applied=8, noop=1, private=1, dead=2, absent=1)


def test_an_account_that_says_what_the_log_says_is_right(ledger: Ledger) -> None:
    """Which of the events was without effect may shift; before the origin nothing counts."""
    assert ledger.misaccounted(0, RIGHT) == 0
    assert ledger.misaccounted(0, dataclasses.replace(RIGHT, applied=9, noop=0)) == 0
    assert ledger.misaccounted(0, Marker(10, 5, applied=4, dead=1)) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        dataclasses.replace(RIGHT, applied=7),
        dataclasses.replace(RIGHT, applied=9),
        dataclasses.replace(RIGHT, dead=1, applied=9),
        dataclasses.replace(RIGHT, private=0, applied=9),
        dataclasses.replace(RIGHT, absent=0, applied=9),
    ],
)
def test_an_account_that_sums_up_but_says_something_else_is_wrong_too(ledger: Ledger, wrong: Marker) -> None:
    assert ledger.misaccounted(0, wrong) > 0
