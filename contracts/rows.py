"""`HomeRow`: what the home page shows, and `Impression`: that it was shown.

Entries are named tuples: a row of 60 is built for every event, and a frozen dataclass costs five times as much.

A row is `f(viewer state, generation, trends snapshot, computed_at)`; it names the last three, so that a test can recompute it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

ENTRIES_SHOWN = 50
"""Entries a home page shows."""

ENTRIES_KEPT = 60
"""Entries a row holds: a fifth more, so that what has expired by read time leaves no hole."""

ENTRIES_WITH_REASONS = 10
"""The first entries carry their strongest plays; `nearline explain` recomputes the rest."""


class Reason(NamedTuple):
    """A play that an entry comes from, or a preference that was told (`topic:drama`). `contribution`: what it adds to the score, by taste;
    in an entry of `cowatch` by being followed, in one of `sequence` by its place among the newest plays."""

    item_id: str
    contribution: float


class Entry(NamedTuple):
    """One tile. `source` names what speaks for it most: `als`, `popular`, `cowatch`, `trending`, `sequence`; or the rule that
    put it there: `again`, `explore`. The window is the item's availability."""

    item_id: str
    score: float
    source: str
    reasons: tuple[Reason, ...] = ()
    available_from_ms: int | None = None
    available_until_ms: int | None = None


@dataclass(frozen=True, slots=True)
class HomeRow:
    """A viewer's cached home-page row, best entry first.

    `event_time_ms` and `record_timestamp_ms` are those of the newest event folded in (None after a nightly rebuild),
    `computed_at_ms` is when the row was computed; their difference is the freshness.
    """

    row_id: str
    generation_id: str
    activation: int
    trends_snapshot: str
    computed_at_ms: int
    event_time_ms: int | None
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Impression:
    """A served row: which entries, in which order, to whom."""

    impression_id: str
    viewer: str
    row_id: str
    generation_id: str
    served_at_ms: int
    default_row: bool
    item_ids: tuple[str, ...]
