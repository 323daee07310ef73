"""Made-up viewers choose from their rows: what they play says where it came from, and stays one play."""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest

from contracts.events import PLAY_KINDS, Kind, PlaybackEvent, validate
from sandbox.browsing import LATE_S, LOOKED_AT, Browsing, Page
from sandbox.world import World

NOW_MS = 1_790_000_000_000
EVENTS = 3_000


@pytest.fixture(scope="module")
def world() -> World:
    return World(7, titles=300, viewers=200, now_ms=NOW_MS)


@pytest.fixture(scope="module")
def events(world: World) -> list[PlaybackEvent]:
    return [event for _, event in itertools.islice(world.live(50), EVENTS)]


class Pages:
    """Everybody's row: the same twenty titles, from another place for each viewer."""

    def __init__(self, world: World) -> None:
        self.ids = [item.item_id for item in world.catalogue]
        self.read: list[str] = []

    def of(self, viewer: str) -> Page:
        start = int(viewer[-4:])
        return Page(f"row-{viewer}", self.ids[start : start + 20])

    async def __call__(self, viewer: str) -> Page | None:
        self.read.append(viewer)
        return self.of(viewer)


async def browse(world: World, events: list[PlaybackEvent], pages: object) -> tuple[Browsing, list[PlaybackEvent]]:
    browsing = Browsing(pages, world.draws, world.catalogue, seed=7)  # type: ignore[arg-type]
    return browsing, [await browsing.happens(event) for event in events]


async def test_a_play_from_a_row_names_the_row_and_the_titles_place_in_every_event(
    world: World, events: list[PlaybackEvent]
) -> None:
    pages = Pages(world)
    browsing, said = await browse(world, events, pages)
    items = {item.item_id: item for item in world.catalogue}
    plays: dict[str | None, list[PlaybackEvent]] = defaultdict(list)
    for event in said:
        validate(event, key=event.viewer.encode(), timestamp_ms=event.event_time_ms)
        if event.kind in PLAY_KINDS:
            plays[event.play_id].append(event)
    from_rows = [play for play in plays.values() if play[0].row_id is not None]
    assert len(from_rows) == browsing.taken > 50
    for play in plays.values():
        assert len({(one.item_id, one.row_id, one.row_position, one.duration_ms) for one in play}) == 1
        assert sorted(one.watched_ms or 0 for one in play) == [one.watched_ms for one in play]
    for first, *_ in from_rows:
        page = pages.of(first.viewer)
        assert first.row_position is not None and first.row_position < LOOKED_AT
        assert (first.row_id, first.item_id) == (page.row_id, page.item_ids[first.row_position])
        assert first.duration_ms == items[first.item_id or ""].duration_ms
        assert world.draws(first.viewer, first.item_id or "") > 0


async def test_who_watches_in_private_and_whoever_gets_no_page_play_what_they_meant_to(
    world: World, events: list[PlaybackEvent]
) -> None:
    async def away(viewer: str) -> Page | None:
        return None

    assert (await browse(world, events, away))[1] == events
    pages = Pages(world)
    private = [event for event in events if event.private]
    assert private and (await browse(world, private, pages))[1] == private
    assert pages.read == []


async def test_whoever_is_late_with_the_events_reads_no_page(world: World, events: list[PlaybackEvent]) -> None:
    pages = Pages(world)
    browsing = Browsing(pages, world.draws, world.catalogue, seed=7)
    start = next(event for event in events if event.kind is Kind.START and not event.private)
    for _ in range(20):
        await browsing.happens(start, late_s=LATE_S)
    assert pages.read == []
    for _ in range(20):
        await browsing.happens(start)
    assert pages.read


async def test_the_same_seed_takes_the_same(world: World, events: list[PlaybackEvent]) -> None:
    assert (await browse(world, events, Pages(world)))[1] == (await browse(world, events, Pages(world)))[1]
