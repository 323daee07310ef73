"""What the live page shows, and `LiveBackend`, which tells it: the values that `sandbox/livepage.py` sends as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from contracts.errors import UserError
from sandbox.action_views import ActionName, ActionView

PlayKind = Literal["play", "skip", "private"]
PLAY_KINDS: tuple[PlayKind, ...] = ("play", "skip", "private")


@dataclass(frozen=True, slots=True)
class Tile:
    """One title as the page shows it. `source`: where the candidate came from (`als`, `trending`, …), empty outside rows."""

    item_id: str
    title: str
    topics: tuple[str, ...]
    creators: tuple[str, ...]
    duration_ms: int | None
    source: str = ""
    score: float = 0.0
    available_until_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Strip:
    """A row below the first (`because`). `about`: the title that it is about; None: none."""

    row: str
    heading: str
    about: Tile | None
    tiles: tuple[Tile, ...]
    row_id: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where on the page a play was begun: the row, and the position in it, from 0."""

    row_id: str
    position: int


@dataclass(frozen=True, slots=True)
class RowView:
    """A home row. `default`: the viewer has none of their own yet. `computed_at_ms`: 0 if never computed. `below`: the rows below it."""

    viewer: str
    row_id: str
    generation_id: str
    activation: int
    computed_at_ms: int
    tiles: tuple[Tile, ...]
    default: bool = False
    below: tuple[Strip, ...] = ()


@dataclass(frozen=True, slots=True)
class ViewerSummary:
    """One line of the viewer picker. `taste`: a few words for people to read."""

    viewer: str
    name: str
    taste: str
    territory: str = ""


@dataclass(frozen=True, slots=True)
class RecentPlay:
    """Something the viewer played; the newest comes first. `ending`: complete, stop, skip or start."""

    tile: Tile
    ending: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class ViewerView:
    """Everything the page shows of one viewer."""

    viewer: ViewerSummary
    live: RowView
    last_night: RowView
    recent: tuple[RecentPlay, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """One leg of the way from event to row, e.g. `produced` 3.1 ms. Legs follow one another and sum to the whole."""

    name: str
    ms: float


@dataclass(frozen=True, slots=True)
class PlayOutcome:
    """What a press of play did. `total_ms`: event to row written; None if no new row came (a private play, a timeout).

    `message` says why there is no new row.
    """

    kind: PlayKind
    item_id: str
    total_ms: float | None
    parts: tuple[Part, ...]
    row: RowView | None
    recent: tuple[RecentPlay, ...] = ()
    message: str = ""


@dataclass(frozen=True, slots=True)
class WhyReason:
    """A play that a tile comes from. `contribution`: its share of the score, same unit as the score."""

    tile: Tile
    contribution: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a tile is in the row. `position`: 1 is first, None if the title is not in the row."""

    tile: Tile
    position: int | None
    reasons: tuple[WhyReason, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Stats:
    """The pipeline right now. Freshness: event time to row visible, milliseconds; None while nothing has been measured.

    `totals`: counter name → events since the start (applied, noop, private, dead, absent).
    """

    events_per_s: float
    freshness_p50_ms: float | None
    freshness_p95_ms: float | None
    freshness_p99_ms: float | None
    lag_records: int
    unaccounted: int
    totals: Mapping[str, int]
    generation_id: str
    activation: int
    kafka_version: str
    store_version: str
    viewers: int = 0

    def without_updater(self, lag_records: int) -> Stats:
        """The same while there is no updater: nothing happens, nothing is measured, and the lag is what others see."""
        return dataclasses.replace(
            self,
            events_per_s=0.0,
            freshness_p50_ms=None,
            freshness_p95_ms=None,
            freshness_p99_ms=None,
            lag_records=lag_records,
        )


class NotFound(UserError):
    """No such viewer or title; the message is shown to the person."""


class LiveBackend(Protocol):
    """What the page needs. Methods raise `NotFound` for an unknown viewer or item and `TransientError` while a server is away."""

    async def search_viewers(self, q: str) -> list[ViewerSummary]:
        """Viewers whose name, id or taste contains `q`; a varied choice for an empty `q`. At most a few dozen."""

    async def viewer_view(self, viewer: str) -> ViewerView:
        """The viewer with both rows and recent plays."""

    async def play(self, viewer: str, item_id: str, kind: PlayKind, place: Place | None = None) -> PlayOutcome:
        """Send the play's events and wait for the row that answers them. `place`: None if it came from no row."""

    async def explain(self, viewer: str, item_id: str) -> Explanation:
        """Why the item is in the viewer's row."""

    async def stats(self) -> Stats:
        """The pipeline now."""

    def actions(self) -> tuple[ActionView, ...]:
        """The buttons and what became of their last press; empty if there are none."""

    async def press(self, action: ActionName) -> ActionView:
        """Begin an action. Raises `Refused` while it is under way."""

    def watch_row(self, viewer: str) -> AsyncIterator[RowView]:
        """The viewer's row each time it changes, without end."""
