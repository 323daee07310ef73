"""Records to reports: what counts must know of them. Private records, and those that can never be applied, say nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from contracts.errors import RecordError
from contracts.events import PlaybackEvent, said_private, validate
from contracts.framing import framed
from trends.counters import Report
from viewers.state import state_of


class Record(Protocol):
    """A Kafka record as the consumer hands it over."""

    timestamp: int  # ms
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


def report_of(record: Record, decode: Callable[[bytes], PlaybackEvent]) -> Report | None:
    """The report of a valid, public record, by the rules of the updater; None for all others.

    Errors: `UnknownSchema` (and any other transient error of `decode`): it may be readable later.
    """
    if said_private(record.headers) is True:
        return None
    try:
        event = decode(framed(record.value, record.headers))
        if event.private:
            return None
        validate(event, key=record.key, timestamp_ms=record.timestamp)
    except RecordError:
        return None
    return Report(record.timestamp, event.viewer, state_of(event, timestamp_ms=record.timestamp))
