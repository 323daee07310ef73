"""`PlaybackEvent`: one fact about a play, or about what a viewer asked for.

A play is one viewing of one item. Its identity is `(play_started_at_ms, play_id, item_id)` and every event that reports on
the play repeats it; events that disagree are about different plays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from contracts.errors import InvalidEvent

ID_PATTERN = re.compile(r"[A-Za-z0-9._:|@~-]{1,128}")
"""Viewer, item and play ids. Braces are left out because they move a Redis key to another slot."""

FUTURE_TOLERANCE_MS = 5 * 60 * 1000
"""An event time may pass its record's Kafka timestamp by this much (clock skew); a viewer dated 2100 would be locked for ever."""

EARLIEST_TIME_MS = 946_684_800_000
"""2000-01-01: earlier times are a unit error (seconds sent as milliseconds), not history."""

LATEST_TIME_MS = 4_102_444_800_000
"""2100-01-01: the packed state keeps seconds in 32 bits."""

MAX_DURATION_MS = 30 * 24 * 3_600_000
"""Longer than anything that is played, and far below where 255 times it would overflow."""

MAX_WATCHED_RATIO = 10
"""`watched_ms` may exceed `duration_ms` this many times (rewinds), no more."""


class Kind(StrEnum):
    """What an event reports. The order is that of the Avro enum: append only."""

    UNKNOWN = "unknown"  # the enum default: a newer writer's kind, read by an older reader
    START = "start"
    PROGRESS = "progress"
    COMPLETE = "complete"
    STOP = "stop"
    SKIP = "skip"
    RATE = "rate"
    CLEAR_RATING = "clear_rating"
    HIDE = "hide"
    PREFER = "prefer"
    ERASE = "erase"


PLAY_KINDS = frozenset({Kind.START, Kind.PROGRESS, Kind.COMPLETE, Kind.STOP, Kind.SKIP})
REGISTER_KINDS = frozenset({Kind.RATE, Kind.CLEAR_RATING, Kind.HIDE, Kind.PREFER})


@dataclass(frozen=True, slots=True)
class PlaybackEvent:
    """One event, as every process sees it. Times are UTC milliseconds since 1970.

    `play_id`, `play_started_at_ms`, `watched_ms`, `duration_ms`: play kinds only (None otherwise).
    `item_id`: play kinds, rate, clear_rating, hide.
    `value`: rate and prefer only, −100 (dislike) … 100 (like); 100 is a thumb up or five stars.
    `preference`: prefer only: `topic:drama`, `creator:Ana_Ruiz` (`contracts.rules.subject` names them), `title:` and an item id.
    `watched_ms` is cumulative within the play. `row_id` and `row_position`: the served row that led to the play, if any.
    """

    event_id: str
    kind: Kind
    viewer: str
    event_time_ms: int
    private: bool = False
    item_id: str | None = None
    play_id: str | None = None
    play_started_at_ms: int | None = None
    watched_ms: int | None = None
    duration_ms: int | None = None
    value: int | None = None
    preference: str | None = None
    row_id: str | None = None
    row_position: int | None = None


PRIVATE_HEADER = "private"
_PUBLIC = ((PRIVATE_HEADER, b"0"),)
"""The headers of nearly every record."""


def said_private(headers: Iterable[tuple[str, bytes]]) -> bool | None:
    """What a record's headers say of privacy. Any `private: 1`: private. One or more, all `0`: public. Else (none, or another value
    among them) None: it may be private, so its bytes must not be quoted."""
    headers = tuple(headers)
    if headers == _PUBLIC:
        return False
    said = {value for name, value in headers if name == PRIVATE_HEADER}
    return True if b"1" in said else False if said == {b"0"} else None


def valid_id(text: str | None) -> bool:
    """True for an id of 1–128 characters of the id alphabet."""
    return text is not None and ID_PATTERN.fullmatch(text) is not None


def validate(event: PlaybackEvent, *, key: bytes | None, timestamp_ms: int) -> None:
    """Raise `InvalidEvent` with the reason if the event breaks the contract.

    `key` is the record's key (must be the viewer's id), `timestamp_ms` the record's Kafka timestamp.
    """
    if event.kind is Kind.UNKNOWN:
        raise InvalidEvent("unknown kind: sent by a newer writer; upgrade the updater, then replay the dead letter")
    if not valid_id(event.viewer):
        raise InvalidEvent("viewer: not an id (1-128 characters of A-Z a-z 0-9 . _ : | @ ~ -)")
    if key is None or key != event.viewer.encode():
        raise InvalidEvent(
            "record key is not the event's viewer: records of one viewer would be spread over partitions"
        )
    if not valid_id(event.event_id):
        raise InvalidEvent("event_id: not an id (1-128 characters of A-Z a-z 0-9 . _ : | @ ~ -)")
    if event.row_id is not None and not valid_id(event.row_id):
        raise InvalidEvent("row_id: not an id (1-128 characters of A-Z a-z 0-9 . _ : | @ ~ -)")
    _check_time("event_time", event.event_time_ms, timestamp_ms)
    if event.kind in PLAY_KINDS:
        _validate_play(event, timestamp_ms)
    elif event.kind is Kind.PREFER:
        if not valid_id(event.preference):
            raise InvalidEvent("preference: not an id")
    elif event.kind is not Kind.ERASE and not valid_id(event.item_id):
        raise InvalidEvent("item_id: not an id (1-128 characters of A-Z a-z 0-9 . _ : | @ ~ -)")
    if event.kind in (Kind.RATE, Kind.PREFER) and (event.value is None or not -100 <= event.value <= 100):
        raise InvalidEvent("value: must be between -100 and 100")


def _validate_play(event: PlaybackEvent, timestamp_ms: int) -> None:
    if not valid_id(event.item_id):
        raise InvalidEvent("item_id: not an id (1-128 characters of A-Z a-z 0-9 . _ : | @ ~ -)")
    if not valid_id(event.play_id):
        raise InvalidEvent("play_id: not an id (1-128 characters of A-Z a-z 0-9 . _ : | @ ~ -)")
    if event.play_started_at_ms is None or event.watched_ms is None or event.duration_ms is None:
        raise InvalidEvent("a play needs play_started_at, watched_ms and duration_ms")
    _check_time("play_started_at", event.play_started_at_ms, timestamp_ms)
    if event.watched_ms < 0 or event.duration_ms <= 0:
        raise InvalidEvent("watched_ms must be at least 0 and duration_ms above 0")
    if event.duration_ms > MAX_DURATION_MS:
        raise InvalidEvent("duration_ms is over 30 days; are these microseconds?")
    if event.watched_ms > MAX_WATCHED_RATIO * event.duration_ms:
        raise InvalidEvent(f"watched_ms is over {MAX_WATCHED_RATIO} times the duration")


def _check_time(name: str, time_ms: int, timestamp_ms: int) -> None:
    if time_ms < EARLIEST_TIME_MS:
        raise InvalidEvent(f"{name}: before the year 2000; are these seconds instead of milliseconds?")
    if time_ms >= LATEST_TIME_MS:
        raise InvalidEvent(f"{name}: after the year 2099; are these microseconds instead of milliseconds?")
    if time_ms > timestamp_ms + FUTURE_TOLERANCE_MS:
        raise InvalidEvent(f"{name}: more than five minutes past the record's timestamp")
