"""Pure: which default row, which of its entries hold at this moment, and the JSON that shows them.

The JSON is joined from pieces: what a title always says is encoded once (`tiles.py`), numbers and names of sources once each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from operator import add, attrgetter
from typing import NamedTuple

from contracts.row_columns import RowColumns
from contracts.rows import ENTRIES_SHOWN
from homepage.catalogue import CatalogueView
from homepage.tiles import UNBOUNDED, Tile, encode_json

ANY = "*"

MAX_TEXTS = 65_536
"""Numbers whose text is kept, some 6 MB: a packed row has float16, of which there are no more."""

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - UTC, and its name is added as text
_POSITIONS = [
    b'{"position":%d,' % place if not place else b',{"position":%d,' % place for place in range(ENTRIES_SHOWN)
]


@dataclass(frozen=True, slots=True)
class Audience:
    """Where and for whom. `territory` `*`: not told. `maturity`: the age in years it must suit, None: not told."""

    territory: str = ANY
    maturity: int | None = None


class Selection(NamedTuple):
    """The entries that are shown, best first: their places in the row and their titles. And how many were dropped, by reason."""

    places: Sequence[int]
    tiles: Sequence[Tile]
    dropped: Mapping[str, int]


def default_keys(audience: Audience) -> Iterator[str]:
    """Keys of default rows, the most fitting first. Maturity before territory: a wrong tile is worse for a child."""
    maturity = ANY if audience.maturity is None else str(audience.maturity)
    keys = (f"{audience.territory}:{maturity}", f"{ANY}:{maturity}", f"{audience.territory}:{ANY}", f"{ANY}:{ANY}")
    yield from dict.fromkeys(keys)


def select_entries(
    row: RowColumns, catalogue: CatalogueView, audience: Audience, *, now_ms: int, limit: int
) -> Selection:
    """The first `limit` entries that may be shown at `now_ms`.

    The row's own windows hold as well as the current catalogue's: whichever is stricter. A title that the catalogue lacks is
    dropped, unless the row is of a newer activation than the catalogue, which is then about to be replaced.
    """
    places: list[int] = []
    tiles: list[Tile] = []
    dropped: dict[str, int] = {}
    oldest = float("inf") if audience.maturity is None else audience.maturity
    bounded = row.starts.keys() | row.ends.keys()
    for place, tile in enumerate(map(catalogue.tiles.__getitem__, row.items)):
        if len(places) == limit:
            break
        # Nearly every entry passes here; `_refusal` tells why another may not, or that it may after all.
        if (
            place in bounded
            or not tile.from_ms <= now_ms < tile.until_ms
            or tile.maturity > oldest
            or tile.territories
        ):  # fmt: skip
            reason = _refusal(row, place, tile, catalogue.activation, audience, now_ms)
            if reason is not None:
                dropped[reason] = dropped.get(reason, 0) + 1
                continue
        places.append(place)
        tiles.append(tile)
    return Selection(places, tiles, dropped)


def _refusal(row: RowColumns, place: int, tile: Tile, activation: int, audience: Audience, now_ms: int) -> str | None:
    """Why an entry must not be shown, or None."""
    if now_ms < row.starts.get(place, now_ms):
        return "not_yet"
    if now_ms >= row.ends.get(place, now_ms + 1):
        return "expired"
    if tile.item is None:
        return "unknown" if activation >= max(1, row.activation) else None
    if tile.item.taken_down:
        return "taken_down"
    if not tile.from_ms <= now_ms < tile.until_ms:
        return "expired"
    if audience.maturity is not None and tile.maturity > audience.maturity:
        return "maturity"
    if audience.territory != ANY and tile.territories and audience.territory not in tile.territories:
        return "territory"
    return None


def render_row(
    row: RowColumns,
    selection: Selection,
    catalogue: CatalogueView,
    *,
    viewer: str,
    now_ms: int,
    default: bool,
    degraded: bool,
    further: bytes = b"",
) -> bytes:
    """The response, JSON. `freshness_ms`: from the event to the row; `age_ms`: from the row to this response. `further`: `rows`, where they
    were asked for."""
    known = row.event_time_ms is not None
    computed = bool(row.computed_at_ms)  # False only for the empty row that stands in when there is none at all
    head = {
        "viewer": viewer,
        "row_id": row.row_id,
        "generation_id": row.generation_id,
        "activation": row.activation,
        "trends_snapshot": row.trends_snapshot,
        "computed_at": iso_ms(row.computed_at_ms) if computed else None,
        "computed_at_ms": row.computed_at_ms if computed else None,
        "event_time_ms": row.event_time_ms,
        "freshness_ms": row.computed_at_ms - (row.event_time_ms or 0) if known else None,
        "age_ms": now_ms - row.computed_at_ms if computed else None,
        "default": default,
        "degraded": degraded,
    }
    return b"".join(
        (encode_json(head)[:-1], b',"entries":[', *entries_json(row, selection, catalogue), b"]", further, b"}")
    )


def entries_json(row: RowColumns, selection: Selection, catalogue: CatalogueView) -> Iterator[bytes]:
    """The pieces of the entries' JSON, entry after entry. Each piece has a column, made without a step of Python for each entry."""
    places = selection.places
    facts: Iterable[bytes] = map(_FACTS, selection.tiles)
    if row.ends:
        facts = [_until(text, row.ends.get(place)) for text, place in zip(facts, places, strict=True)]
    return chain.from_iterable(
        zip(
            _POSITIONS[: len(places)],
            facts,
            map(_TEXTS.__getitem__, map(row.scores.__getitem__, places)),
            map(_tails(row, catalogue).__getitem__, places),
            strict=True,
        )
    )


def _until(facts: bytes, time_ms: int | None) -> bytes:
    """A title's facts, told until when this row may show it."""
    return facts if time_ms is None else facts.removesuffix(UNBOUNDED) + UNBOUNDED.replace(b"null", b"%d" % time_ms)


def _tails(row: RowColumns, catalogue: CatalogueView) -> list[bytes]:
    """(n entries) what follows each entry's score: its source and its reasons."""
    begun = [b',"source":%b,"reasons":[' % encode_json(name) for name in row.sources]
    ended = [text + b"]}" for text in begun]
    tails = [*map(ended.__getitem__, row.of_source)]
    tiles = map(catalogue.tiles.__getitem__, row.reason_items)
    each = [*map(add, map(_REASON, tiles), map(_TEXTS.__getitem__, row.contributions))]
    at = 0
    for place, count in enumerate(row.reason_counts):
        if count:
            tails[place] = begun[row.of_source[place]] + b"},".join(each[at : at + count]) + b"}]}"
            at += count
    return tails


_FACTS, _REASON = attrgetter("facts"), attrgetter("reason")


class _Texts(dict[float, bytes]):
    """Number → its JSON. Zero is not kept: it and minus zero are one key with two texts."""

    def __missing__(self, number: float) -> bytes:
        text = encode_json(number)
        if number and len(self) < MAX_TEXTS:
            self[number] = text
        return text


_TEXTS = _Texts()


def iso_ms(time_ms: int) -> str:
    """`2026-01-31T12:00:00.000Z`; a time that no calendar holds is given as a number."""
    try:
        return (_EPOCH + timedelta(milliseconds=time_ms)).isoformat(timespec="milliseconds") + "Z"
    except OverflowError:
        return str(time_ms)
