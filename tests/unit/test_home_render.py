"""The page's JSON, joined from encoded pieces, is byte for byte what the standard library makes of the same values."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from contracts.catalogue import CatalogueItem
from contracts.codec import Codec
from contracts.row_columns import row_of
from contracts.rows import ENTRIES_SHOWN, Entry, HomeRow, Reason
from homepage.catalogue import Catalogue, LiveCatalogue
from homepage.render import ANY, Audience, iso_ms, render_row, select_entries

CODEC = Codec.load()
NOW_MS = 1_000
IDS = [f"i{n}" for n in range(12)]

bounds = st.none() | st.integers(NOW_MS - 2, NOW_MS + 2)
numbers = st.floats(-9, 9, width=16) | st.sampled_from([0.0, -0.0, 65504.0, 6e-8])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
items = st.builds(
    CatalogueItem,
    item_id=st.sampled_from(IDS),
    title=texts,
    topics=st.lists(texts, max_size=2).map(tuple),
    creators=st.lists(texts, max_size=2).map(tuple),
    duration_ms=st.none() | st.integers(0, 2**62),
    maturity=st.integers(0, 3),
    territories=st.lists(st.sampled_from(["GB", "FR"]), max_size=2).map(tuple),
    available_from_ms=bounds,
    available_until_ms=bounds,
    taken_down=st.booleans(),
)
entries = st.builds(
    Entry,
    item_id=st.sampled_from(IDS),
    score=numbers,
    source=st.sampled_from(["als", "popular", 'new "ones"']),
    reasons=st.lists(st.builds(Reason, st.sampled_from(IDS), numbers), max_size=3).map(tuple),
    available_from_ms=bounds,
    available_until_ms=bounds,
)
rows = st.builds(
    HomeRow,
    row_id=texts,
    generation_id=texts,
    activation=st.integers(0, 3),
    trends_snapshot=texts,
    computed_at_ms=st.integers(0, NOW_MS) | st.just(2**62),
    event_time_ms=st.none() | st.integers(0, NOW_MS),
    entries=st.lists(entries, max_size=15).map(tuple),
)
audiences = st.builds(Audience, st.sampled_from([ANY, "GB", "DE"]), st.none() | st.integers(0, 3))


def refusal(entry: Entry, item: CatalogueItem | None, row: HomeRow, activation: int, audience: Audience) -> str | None:
    if entry.available_from_ms is not None and entry.available_from_ms > NOW_MS:
        return "not_yet"
    if entry.available_until_ms is not None and entry.available_until_ms <= NOW_MS:
        return "expired"
    if item is None:
        return "unknown" if activation >= max(1, row.activation) else None
    if item.taken_down:
        return "taken_down"
    if not item.available_at(NOW_MS):
        return "expired"
    if audience.maturity is not None and item.maturity > audience.maturity:
        return "maturity"
    if audience.territory != ANY and item.territories and audience.territory not in item.territories:
        return "territory"
    return None


def page(row: HomeRow, shown: list[Entry], titles: dict[str, CatalogueItem], viewer: str, flag: bool) -> dict[str, Any]:
    def title(item_id: str) -> str:
        return titles[item_id].title if item_id in titles else item_id

    def tile(position: int, entry: Entry) -> dict[str, Any]:
        item = titles.get(entry.item_id)
        return {
            "position": position,
            "item_id": entry.item_id,
            "title": title(entry.item_id),
            "topics": item.topics if item else [],
            "creators": item.creators if item else [],
            "duration_ms": item.duration_ms if item else None,
            "maturity": item.maturity if item else None,
            "available_until_ms": entry.available_until_ms,
            "score": entry.score,
            "source": entry.source,
            "reasons": [
                {"item_id": why.item_id, "title": title(why.item_id), "contribution": why.contribution}
                for why in entry.reasons
            ],
        }

    made, at = row.computed_at_ms, row.event_time_ms
    return {
        "viewer": viewer,
        "row_id": row.row_id,
        "generation_id": row.generation_id,
        "activation": row.activation,
        "trends_snapshot": row.trends_snapshot,
        "computed_at": iso_ms(made) if made else None,
        "computed_at_ms": made or None,
        "event_time_ms": at,
        "freshness_ms": None if at is None else made - at,
        "age_ms": NOW_MS - made if made else None,
        "default": flag,
        "degraded": not flag,
        "entries": [tile(position, entry) for position, entry in enumerate(shown)],
    }


@given(rows, st.lists(items, max_size=12), audiences, st.integers(1, 16), st.integers(0, 3), st.booleans())
@example(HomeRow("r", "g", 1, "", 1, None, ()), [], Audience(), 1, 1, True)
def test_a_page_shows_what_holds_now_and_says_what_the_row_and_the_catalogue_say(
    row: HomeRow, known: list[CatalogueItem], audience: Audience, limit: int, activation: int, flag: bool
) -> None:
    columns = CODEC.decode_columns(CODEC.encode_row(row))
    row = row_of(columns)
    titles = {item.item_id: item for item in known}
    catalogue = Catalogue(titles, "g1", activation)
    shown: list[Entry] = []
    dropped: dict[str, int] = {}
    for entry in row.entries:
        if len(shown) == limit:
            break
        reason = refusal(entry, titles.get(entry.item_id), row, activation, audience)
        if reason is None:
            shown.append(entry)
        else:
            dropped[reason] = dropped.get(reason, 0) + 1

    for _ in range(2):  # from the catalogue, then from tiles that were encoded before
        selection = select_entries(columns, catalogue, audience, now_ms=NOW_MS, limit=limit)
        text = render_row(
            columns, selection, catalogue, viewer="ana@~-", now_ms=NOW_MS, default=flag, degraded=not flag
        )
        assert [row.entries[place] for place in selection.places] == shown
        assert selection.dropped == dropped
        expected = json.dumps(page(row, shown, titles, "ana@~-", flag), ensure_ascii=False, separators=(",", ":"))
        assert text.decode() == expected


def test_as_many_entries_as_a_page_may_show_have_their_position() -> None:
    row = HomeRow("r", "g", 1, "", 1, None, tuple(Entry(f"i{n:02}", 1.0, "als") for n in range(ENTRIES_SHOWN + 1)))
    columns, catalogue = CODEC.decode_columns(CODEC.encode_row(row)), Catalogue()
    selection = select_entries(columns, catalogue, Audience(), now_ms=NOW_MS, limit=ENTRIES_SHOWN)
    text = render_row(columns, selection, catalogue, viewer="v", now_ms=NOW_MS, default=False, degraded=False)
    assert [one["position"] for one in json.loads(text)["entries"]] == list(range(ENTRIES_SHOWN))


def test_a_tile_is_encoded_once_and_anew_when_the_title_changes() -> None:
    catalogue = LiveCatalogue("none")
    item = CatalogueItem("a", "One")
    assert b'"title":"a"' in catalogue.tiles["a"].facts  # not known yet, and not kept
    catalogue.put(item)
    assert b'"title":"One"' in catalogue.tiles["a"].facts
    assert catalogue.tiles["a"] is catalogue.tiles["a"]
    catalogue.put(replace(item, title="Two"))
    assert b'"title":"Two"' in catalogue.tiles["a"].reason
    catalogue.remove("a")
    assert catalogue.tiles["a"].item == catalogue.get("a")
    assert catalogue.tiles["a"].until_ms < 0
