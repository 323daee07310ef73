"""Rows below the first one: over HTTP on a store in memory, and from a play on a real Kafka to a strip on a real Valkey."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import numpy as np
import pytest
import redis.asyncio as redis
from structlog.testing import capture_logs

from batch.nightly import run_nightly
from contracts.catalogue import CatalogueItem
from contracts.events import Kind, PlaybackEvent
from contracts.rows import ENTRIES_KEPT
from embeddings.companions import Companions, Lists
from homepage.catalogue import Catalogue
from homepage.further import NOT_REPEATED
from homepage.inspect import explain_viewer, show_viewer
from homepage.server import run_homepage
from homepage.service import make_app
from ranking.further import MOST_SHOWN
from runtime.progress import SilentProgress
from runtime.settings import Settings, StoreSettings
from sandbox.servers import ValkeyServer
from tests.consistency import CODEC
from tests.integration.test_homepage import (
    AwayStore,
    Impressions,
    count,
    homepage_over,
    make_catalogue,
    make_row,
    store_with_defaults,
)
from tests.integration.test_nightly import send
from tests.integration.test_nightly_ranking import EACH, ITEMS, a_ring
from tests.worlds import T0, play_event, wait_until
from updater.consumer import Updater
from viewers.packing import pack, unpack
from viewers.redis_store import RedisStore, open_store
from viewers.state import COMPLETED, Play, ViewerState
from viewers.store import Store, ViewerWrite

WATCHED = ViewerState(plays=(Play(T0, 1, "i0", 255, COMPLETED),))
"""The titles that go with it are those of the first row from its end to its beginning."""


def titles() -> Catalogue:
    items = make_catalogue().items
    rows = np.arange(ENTRIES_KEPT - 1, 0, -1, dtype=np.int32)
    starts = np.array([0, *[len(rows)] * ENTRIES_KEPT], np.int64)
    lists = Lists(starts, rows, (rows / 64).astype(np.float32))
    return Catalogue(items, "g1", 1, Companions(tuple(items), lists))


async def a_viewer(store: Store, state: bytes) -> None:
    await store.connect()
    row = CODEC.encode_row(make_row("row-1"))
    await store.write_viewers([ViewerWrite("ana", b"", secrets.token_bytes(8), 1, state, b"", row)])


async def test_a_page_that_asks_gets_the_row_below_and_one_that_does_not_gets_what_it_got() -> None:
    store = await store_with_defaults()
    await a_viewer(store, pack(WATCHED))
    homepage, client = await homepage_over(store, catalogue=titles())
    async with client:
        plain = await client.get("/v1/home/ana")
        body = (await client.get("/v1/home/ana?rows=because")).json()
        none = (await client.get("/v1/home/ana?rows=")).content
    assert none == plain.content
    assert "rows" not in plain.json()
    (strip,) = body.pop("rows")
    assert body == plain.json()
    assert (strip["row"], strip["row_id"]) == ("because", "row-1-because")
    assert (strip["heading"], strip["about"]) == ("Because you watched Title 0", {"item_id": "i0", "title": "Title 0"})
    assert [one["item_id"] for one in strip["entries"]] == [f"i{n}" for n in range(59, 59 - MOST_SHOWN, -1)]
    assert strip["entries"][0].keys() == body["entries"][0].keys()
    assert {one["source"] for one in strip["entries"]} == {"because"}
    assert count(homepage, "nearline_homepage_further_rows_total", row="because", outcome="shown") == 1


async def test_each_row_that_was_shown_leaves_an_impression_of_its_own_unless_private() -> None:
    store = await store_with_defaults()
    await a_viewer(store, pack(WATCHED))
    homepage, client = await homepage_over(store, catalogue=titles())
    async with client:
        body = (await client.get("/v1/home/ana?rows=because&limit=9")).json()
        await client.get("/v1/home/ana?rows=because", headers={"X-Nearline-Private": "1"})
    sink = homepage.impressions
    assert isinstance(sink, Impressions)
    assert [one.row_id for one in sink.taken] == ["row-1", "row-1-because"]
    for one, entries in zip(sink.taken, (body["entries"], body["rows"][0]["entries"]), strict=True):
        assert one.item_ids == tuple(entry["item_id"] for entry in entries)
        assert len(one.item_ids) == 9


async def test_a_name_that_names_no_row_is_refused_and_told_which_there_are() -> None:
    _, client = await homepage_over(await store_with_defaults(), catalogue=titles())
    async with client:
        answer = await client.get("/v1/home/ana?rows=because,yours")
    assert answer.status_code == 400
    assert answer.json()["error"].endswith("there are: because")


async def test_who_has_no_row_of_their_own_has_none_below_it_and_a_store_that_is_away_costs_no_more() -> None:
    store = await store_with_defaults()
    homepage, client = await homepage_over(store, catalogue=titles())
    async with client:
        assert (await client.get("/v1/home/new?rows=because")).json()["rows"] == []
    transport = httpx.ASGITransport(make_app(replace(homepage, store=AwayStore())))
    async with httpx.AsyncClient(transport=transport, base_url="http://home") as client:
        body = (await client.get("/v1/home/ana?rows=because")).json()
    assert (body["degraded"], body["rows"]) == (True, [])


async def test_a_state_of_another_version_costs_the_row_below_and_is_not_quoted() -> None:
    store = await store_with_defaults()
    await a_viewer(store, b"\x63secret-title")
    homepage, client = await homepage_over(store, catalogue=titles())
    with capture_logs() as logs:
        async with client:
            body = (await client.get("/v1/home/ana?rows=because")).json()
    assert (body["row_id"], body["rows"]) == ("row-1", [])
    assert [one["event"] for one in logs] == ["state_unreadable"]
    assert "secret" not in json.dumps(logs)
    assert "ana" not in {str(value) for one in logs for value in one.values()}
    assert count(homepage, "nearline_homepage_further_rows_total", row="because", outcome="nothing_to_show") == 1


# On real servers


@dataclass
class Home:
    """A night of a ring of titles, an updater, and the home page as it is served."""

    settings: Settings
    store: RedisStore
    updater: Updater
    client: httpx.AsyncClient

    async def play(self, *events: PlaybackEvent) -> None:
        """Send one after the other, and wait for each one's row."""
        for event in events:
            before = self.updater.metrics.rows_written
            await send(self.settings, [event])
            await wait_until(lambda before=before: self.updater.metrics.rows_written > before, "the row is written")

    async def strip(self) -> dict[str, Any]:
        """The row below the first, of viewer v00."""
        (found,) = (await self.client.get("/v1/home/v00?rows=because")).json()["rows"]
        return dict(found)


@pytest.fixture
async def home(settings: Settings, valkey: ValkeyServer, namespace: str) -> AsyncIterator[Home]:
    page = settings.homepage.model_copy(update={"port": 0})
    whole = settings.model_copy(update={"store": StoreSettings(url=valkey.url, namespace=namespace), "homepage": page})
    await send(whole, a_ring(range(EACH)), [CatalogueItem(tt(i), f"Title {i}") for i in range(ITEMS)])
    store, reader = (open_store(whole.store, whole.keys) for _ in range(2))
    await store.connect()
    await run_nightly(whole, store, seed=True, progress=SilentProgress())
    updater = Updater(whole, reader, CODEC, instance="u1")
    stop, port = asyncio.Event(), asyncio.get_running_loop().create_future()
    running = asyncio.gather(updater.run(), run_homepage(whole, stop=stop, on_listening=port.set_result))
    await asyncio.wait([running, port], return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        await running  # raises why
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{await port}") as client:
        await wait_until(lambda: updater.ready, "the updater serves")
        yield Home(whole, store, updater, client)
    stop.set()
    updater.stop()
    await asyncio.wait_for(running, 30)
    await store.close()
    await reader.close()


def tt(item: int) -> str:
    return f"tt{item:07d}"


def fresh(states: ViewerState, count: int) -> list[int]:
    """Titles whose followers in the ring this viewer has not watched lately."""
    out = {play.item_id for play in states.plays}
    return [i for i in range(ITEMS - 9) if not out & {tt(j) for j in range(i, i + 9)}][::9][:count]


async def test_a_play_changes_the_strip_and_what_is_hidden_or_watched_leaves_it(home: Home) -> None:
    state = unpack((await home.store.read_viewer("v00")).state)
    one, other = fresh(state, 2)
    late = 14_400 * EACH
    await home.play(play_event("v00", one, late))
    strip = await home.strip()
    assert (strip["heading"], strip["about"]["item_id"]) == (f"Because you watched Title {one}", tt(one))
    first = (await home.client.get("/v1/home/v00")).json()["entries"][:NOT_REPEATED]
    seen = {play.item_id for play in unpack((await home.store.read_viewer("v00")).state).plays}
    ids = [entry["item_id"] for entry in strip["entries"]]
    assert not set(ids) & ({entry["item_id"] for entry in first} | seen)
    assert tt(one + 1) in {*ids, *(entry["item_id"] for entry in first)}  # four of five went there next

    hide = PlaybackEvent("h1", Kind.HIDE, "v00", T0 + 1000 * late, item_id=ids[0])
    await home.play(hide, play_event("v00", ids[1], late + 60, kind=Kind.STOP, share=0.05))
    after = await home.strip()
    assert after["about"]["item_id"] == tt(one)  # what was only looked into is not liked
    assert not {ids[0], ids[1]} & {entry["item_id"] for entry in after["entries"]}

    await home.play(play_event("v00", other, late + 120))
    assert (await home.strip())["about"]["item_id"] == tt(other)


async def test_the_verbs_tell_of_the_strip_what_the_page_shows(home: Home) -> None:
    strip = await home.strip()
    for look in (show_viewer, explain_viewer):
        view = await look(home.settings, home.store, CODEC, "v00")
        (told,) = view.data["rows"]
        assert (told["row"], told["heading"], told["about"]) == ("because", strip["heading"], strip["about"]["item_id"])
        assert [(e["item_id"], e["title"]) for e in told["entries"]] == [
            (e["item_id"], e["title"]) for e in strip["entries"]
        ]
        assert any(name.startswith(strip["heading"]) for name, _, _ in view.tables)


async def test_asking_for_the_strip_is_one_field_more_and_costs_the_store_the_same_for_anybody(
    home: Home, valkey: ValkeyServer
) -> None:
    costs = []
    async with redis.Redis.from_url(valkey.url) as server:
        for viewer in ("v00", "nobody-knows"):
            before = (await server.info("commandstats"))["cmdstat_hget"]["calls"]
            for _ in range(5):
                assert (await home.client.get(f"/v1/home/{viewer}?rows=because")).status_code == 200
            costs.append((await server.info("commandstats"))["cmdstat_hget"]["calls"] - before)
    assert costs == [10, 10]
