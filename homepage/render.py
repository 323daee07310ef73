"""Pure: which default row, which of its entries hold at this moment, and the JSON that shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from contracts.catalogue import CatalogueItem
from contracts.rows import Entry, HomeRow
from homepage.catalogue import CatalogueView

ANY = "*"


@dataclass(frozen=True, slots=True)
class Audience:
    """Where and for whom. `territory` `*`: not told. `maturity`: the age in years it must suit, None: not told."""

    territory: str = ANY
    maturity: int | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """An entry and its title (None while the row's catalogue is not loaded here yet)."""

    entry: Entry
    item: CatalogueItem | None


@dataclass(frozen=True, slots=True)
class Selection:
    """The entries that are shown, best first, and how many were dropped, by reason."""

    shown: tuple[Shown, ...]
    dropped: Mapping[str, int]


def default_keys(audience: Audience) -> Iterator[str]:
    """Keys of default rows, the most fitting first. Maturity before territory: a wrong tile is worse for a child."""
    maturity = ANY if audience.maturity is None else str(audience.maturity)
    keys = (f"{audience.territory}:{maturity}", f"{ANY}:{maturity}", f"{audience.territory}:{ANY}", f"{ANY}:{ANY}")
    yield from dict.fromkeys(keys)


def select_entries(row: HomeRow, catalogue: CatalogueView, audience: Audience, *, now_ms: int, limit: int) -> Selection:
    """The first `limit` entries that may be shown at `now_ms`.

    The row's own windows hold as well as the current catalogue's: whichever is stricter. A title that the catalogue lacks is
    dropped, unless the row is of a newer activation than the catalogue, which is then about to be replaced.
    """
    shown: list[Shown] = []
    dropped: dict[str, int] = {}
    for entry in row.entries:
        if len(shown) == limit:
            break
        item = catalogue.get(entry.item_id)
        reason = _refusal(entry, item, audience, now_ms)
        if reason is None and item is None and catalogue.activation >= max(1, row.activation):
            reason = "unknown"
        if reason is None:
            shown.append(Shown(entry, item))
        else:
            dropped[reason] = dropped.get(reason, 0) + 1
    return Selection(tuple(shown), dropped)


def _refusal(entry: Entry, item: CatalogueItem | None, audience: Audience, now_ms: int) -> str | None:
    """Why an entry must not be shown, or None."""
    if entry.available_from_ms is not None and now_ms < entry.available_from_ms:
        return "not_yet"
    if entry.available_until_ms is not None and now_ms >= entry.available_until_ms:
        return "expired"
    if item is None:
        return None
    if item.taken_down:
        return "taken_down"
    if not item.available_at(now_ms):
        return "expired"
    if audience.maturity is not None and item.maturity > audience.maturity:
        return "maturity"
    if audience.territory != ANY and item.territories and audience.territory not in item.territories:
        return "territory"
    return None


def render_row(
    row: HomeRow,
    selection: Selection,
    catalogue: CatalogueView,
    *,
    viewer: str,
    now_ms: int,
    default: bool,
    degraded: bool,
) -> dict[str, Any]:
    """The response as JSON values. `freshness_ms`: from the event to the row; `age_ms`: from the row to this response."""
    known = row.event_time_ms is not None
    computed = bool(row.computed_at_ms)  # False only for the empty row that stands in when there is none at all
    return {
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
        "entries": [_render_entry(place, one, catalogue) for place, one in enumerate(selection.shown)],
    }


def _render_entry(position: int, shown: Shown, catalogue: CatalogueView) -> dict[str, Any]:
    entry, item = shown.entry, shown.item
    return {
        "position": position,
        "item_id": entry.item_id,
        "title": item.title if item else entry.item_id,
        "topics": item.topics if item else (),
        "creators": item.creators if item else (),
        "duration_ms": item.duration_ms if item else None,
        "maturity": item.maturity if item else None,
        "available_until_ms": entry.available_until_ms,
        "score": entry.score,
        "source": entry.source,
        "reasons": [
            {"item_id": why.item_id, "title": _title(why.item_id, catalogue), "contribution": why.contribution}
            for why in entry.reasons
        ],
    }


def _title(item_id: str, catalogue: CatalogueView) -> str:
    item = catalogue.get(item_id)
    return item.title if item else item_id


def iso_ms(time_ms: int) -> str:
    """`2026-01-31T12:00:00.000Z`; a time that no calendar holds is given as a number."""
    try:
        text = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return str(time_ms)
    return text.replace("+00:00", "Z")
