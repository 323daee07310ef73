"""The made-up viewers at their home page: who begins a play looks at it first, and takes the first title there that draws them, if any.

So rows are shown and reported as impressions by the real service, plays from them say which row and position they came from, and what came
of a share can be told (`nearline generations outcome`). Whether a title draws a viewer follows from the world alone: better rows lead to
more plays.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from contracts.catalogue import CatalogueItem
from contracts.events import Kind, PlaybackEvent
from sandbox.audience import Viewer

LOOKS = 0.7
"""Plays before which the viewer looks at the home page; the rest come from a search or a link."""
LOOKED_AT = 12
"""Places that a viewer looks at, from the first."""
TAKES = 0.25
"""Chance that a title which draws its viewer wholly is taken when it is looked at."""
LATE_S = 0.25
"""Who sends events this much later than they are due does not look at pages: the rate of events comes first."""
TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Page:
    """What the home page showed: the row, and its titles in order."""

    row_id: str
    item_ids: Sequence[str]


ReadPage = Callable[[str], Awaitable[Page | None]]
"""Viewer → their home page; None if it does not answer."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """A play that came from a row, and what was meant to be played instead."""

    instead_of: str
    item: CatalogueItem
    row_id: str
    position: int


class Browsing:
    """Lets the evening's viewers (`World.live`) choose from their rows. `draws`: how much an item draws a viewer, 0 to 1."""

    def __init__(
        self, read_page: ReadPage, draws: Callable[[str, str], float], items: Sequence[CatalogueItem], *, seed: int
    ) -> None:
        self._read_page, self._draws = read_page, draws
        self._items: Mapping[str, CatalogueItem] = {item.item_id: item for item in items}
        self._dice = random.Random(seed * 6007 + 11)
        self._taken: dict[str, _Taken] = {}  # viewer → their play of now
        self.looked = self.taken = 0

    async def happens(self, event: PlaybackEvent, *, late_s: float = 0.0) -> PlaybackEvent:
        """The same event, or the one of the title that the viewer took from their row: with all later events of the play."""
        if event.kind is Kind.START:
            self._taken.pop(event.viewer, None)
            if not event.private and late_s < LATE_S and self._dice.random() < LOOKS:
                await self._look(event)
        taken = self._taken.get(event.viewer)
        if taken is None or event.item_id != taken.instead_of:
            return event
        if event.play_id is None:  # a remark on it
            return dataclasses.replace(event, item_id=taken.item.item_id)
        length_ms = taken.item.duration_ms or 1
        return dataclasses.replace(
            event,
            item_id=taken.item.item_id,
            watched_ms=(event.watched_ms or 0) * length_ms // (event.duration_ms or 1),
            duration_ms=length_ms,
            row_id=taken.row_id,
            row_position=taken.position,
        )

    async def _look(self, event: PlaybackEvent) -> None:
        page = await self._read_page(event.viewer)
        if page is None or event.item_id is None:
            return
        self.looked += 1
        for position, item_id in enumerate(page.item_ids[:LOOKED_AT]):
            item = self._items.get(item_id)
            if item is not None and self._dice.random() < TAKES * self._draws(event.viewer, item_id):
                self._taken[event.viewer] = _Taken(event.item_id, item, page.row_id, position)
                self.taken += 1
                return


def pages_of(client: httpx.AsyncClient, homepage_url: str, viewers: Sequence[Viewer]) -> ReadPage:
    """Pages of a running home-page service, asked for as a player would."""
    audiences = {
        one.viewer: {"territory": one.territory, "maturity": str(one.maturity), "limit": str(LOOKED_AT)}
        for one in viewers
    }

    async def read(viewer: str) -> Page | None:
        try:
            answer = await client.get(f"{homepage_url}/v1/home/{viewer}", params=audiences[viewer], timeout=TIMEOUT_S)
            answer.raise_for_status()
            content: Mapping[str, Any] = answer.json()
        except (httpx.HTTPError, ValueError):
            return None
        row_id = str(content["row_id"])
        return Page(row_id, [entry["item_id"] for entry in content["entries"]]) if row_id else None

    return read
