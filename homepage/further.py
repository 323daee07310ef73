"""Rows below the first one, as a page asks for them (`?rows=because`): chosen from `ranking.further.FURTHER_ROWS` and judged by the same
rules as the first row, by the same code. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from contracts.catalogue import CatalogueItem
from contracts.row_columns import RowColumns
from homepage.catalogue import CatalogueView
from homepage.render import Audience, Selection, entries_json, select_entries
from homepage.tiles import encode_json
from ranking.further import FURTHER_ROWS, LEAST_SHOWN, MOST_SHOWN, FurtherRow
from viewers.known import known_of
from viewers.packing import unpack

NOT_REPEATED = 12
"""Of the first row, titles that no row below it shows again: what stands on the screen with it, two lines of six."""


class ChosenRow(NamedTuple):
    """A row that can be shown. `about`: the title that it is about; None: none."""

    name: str
    heading: str
    about: CatalogueItem | None
    row: RowColumns
    selection: Selection


def parse_names(text: str) -> tuple[str, ...] | None:
    """Names, comma-separated, each once; None if there is one that names no row."""
    names = tuple(dict.fromkeys(name for name in text.split(",") if name))
    return names if all(name in FURTHER_ROWS for name in names) else None


def choose_rows(
    names: Sequence[str],
    state: bytes,
    first: RowColumns,
    shown: Selection,
    catalogue: CatalogueView,
    audience: Audience,
    *,
    now_ms: int,
    limit: int,
) -> list[ChosenRow]:
    """Those of the rows that have something to show, in the order asked for. `state`: the viewer's, packed. `first`: their own first row;
    `shown`: what the page shows of it. No two rows show the same title. Errors: `BadState`."""
    if not names or not state:
        return []
    known = known_of(unpack(state), first.computed_at_ms)
    taken = {first.items[place] for place in shown.places[:NOT_REPEATED]}
    chosen = []
    for name in names:
        further = FURTHER_ROWS[name]
        for offer in further.offers(known, catalogue.companions, taken):
            heading, about = _heading(further, offer.about, catalogue, audience)
            row = RowColumns(
                f"{first.row_id}-{name}",
                catalogue.generation_id,
                catalogue.activation,
                first.trends_snapshot,
                first.computed_at_ms,
                first.event_time_ms,
                offer.item_ids,
                offer.scores,
                (further.source,),
                (0,) * len(offer.item_ids),
            )
            selection = select_entries(row, catalogue, audience, now_ms=now_ms, limit=min(limit, MOST_SHOWN))
            if heading and len(selection.places) >= min(LEAST_SHOWN, limit):
                chosen.append(ChosenRow(name, heading, about, row, selection))
                taken.update(row.items[place] for place in selection.places)
                break
    return chosen


def _heading(
    further: FurtherRow, about: str, catalogue: CatalogueView, audience: Audience
) -> tuple[str, CatalogueItem | None]:
    """Empty: the title that the row is about cannot be named to this audience."""
    if not about:
        return further.heading, None
    tile = catalogue.tiles[about]
    if (
        tile.item is None
        or tile.item.taken_down
        or (audience.maturity is not None and tile.maturity > audience.maturity)
    ):
        return "", None
    return further.heading.format(tile.item.title), tile.item


def rows_json(chosen: Sequence[ChosenRow], catalogue: CatalogueView) -> bytes:
    """`,"rows":[…]`: what is put behind the first row's entries."""
    return b"".join((b',"rows":[', b",".join(b"".join(_row_json(one, catalogue)) for one in chosen), b"]"))


def _row_json(one: ChosenRow, catalogue: CatalogueView) -> Iterator[bytes]:
    about = None if one.about is None else {"item_id": one.about.item_id, "title": one.about.title}
    head = {"row": one.name, "row_id": one.row.row_id, "heading": one.heading, "about": about}
    yield encode_json(head)[:-1]
    yield b',"entries":['
    yield from entries_json(one.row, one.selection, catalogue)
    yield b"]}"
