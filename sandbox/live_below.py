"""The rows below the first, as the live page shows them: those that the home page's service would answer with, chosen by its code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import structlog

from contracts.errors import NearlineError
from contracts.row_columns import RowColumns
from homepage.catalogue import Catalogue, LiveCatalogue
from homepage.further import choose_rows
from homepage.render import Audience, select_entries
from ranking.further import FURTHER_ROWS
from sandbox.live_views import Strip, Tile

log = structlog.get_logger()


class RowsBelow:
    """`catalogue`: the page's own titles. `generations_path`: where the night has left what goes with what."""

    def __init__(self, catalogue: Catalogue, generations_path: str) -> None:
        self._catalogue, self._night = catalogue, LiveCatalogue(generations_path)
        self._looking = asyncio.Lock()

    async def strips(
        self, row: RowColumns, state: bytes, audience: Audience, *, now_ms: int, tile: Callable[[str], Tile]
    ) -> tuple[Strip, ...]:
        """Below this row, of the viewer with this packed state. Nothing is better than no page: what is wrong is logged."""
        try:
            async with self._looking:
                if await self._night.refresh():
                    self._catalogue = replace(self._catalogue, companions=self._night.companions)
            titles = self._catalogue
            shown = select_entries(row, titles, audience, now_ms=now_ms, limit=len(row.items))
            chosen = choose_rows(
                tuple(FURTHER_ROWS), state, row, shown, titles, audience, now_ms=now_ms, limit=len(row.items)
            )
        except NearlineError as error:
            log.warning("no_rows_below", problem=str(error))
            return ()
        return tuple(
            Strip(
                one.name,
                one.heading,
                None if one.about is None else tile(one.about.item_id),
                tuple(tile(one.row.items[place]) for place in one.selection.places),
                one.row.row_id,
            )
            for one in chosen
        )
