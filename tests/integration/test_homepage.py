"""The home-page service against a store in memory, and once as a real server on a real socket."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client import Counter
from structlog.testing import capture_logs

from contracts.catalogue import CatalogueItem
from contracts.codec import Codec
from contracts.errors import GenerationError, KafkaUnavailable, SettingsError, StoreUnavailable
from contracts.rows import ENTRIES_KEPT, ENTRIES_SHOWN, Entry, HomeRow, Impression, Reason
from homepage.catalogue import Catalogue, LiveCatalogue, load_catalogue
from homepage.impressions import QueuedImpressions
from homepage.render import Audience, default_keys
from homepage.server import run_homepage
from homepage.service import DefaultRows, Homepage, make_app
from runtime.http import serve
from runtime.settings import HomepageSettings, KafkaSettings, Settings
from viewers.memory_store import MemoryStore
from viewers.store import Store, ViewerWrite

NOW_MS = 1_900_000_000_000
CODEC = Codec.load()


class Impressions:
    """Keeps what it is offered; refuses when told to."""

    def __init__(self) -> None:
        self.taken: list[Impression] = []
        self.full = False

    def offer(self, impression: Impression) -> bool:
        if not self.full:
            self.taken.append(impression)
        return not self.full


class AwayStore(MemoryStore):
    """A store that does not answer."""

    async def read_row(self, viewer: str) -> bytes:
        raise StoreUnavailable("down")

    async def read_default_rows(self) -> Mapping[str, bytes]:
        raise StoreUnavailable("down")


class HungStore(MemoryStore):
    """A store that takes the request and never answers."""

    async def read_row(self, viewer: str) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError


def make_row(row_id: str, *, items: int = ENTRIES_KEPT, activation: int = 1, prefix: str = "i") -> HomeRow:
    entries = tuple(
        Entry(f"{prefix}{n}", 1.0 - n / 128, "als", (Reason("i1", 0.5),) if n < 10 else ()) for n in range(items)
    )
    return HomeRow(row_id, "g1", activation, "t1", NOW_MS - 500, NOW_MS - 1_500, entries)


def make_catalogue(**changes: CatalogueItem) -> Catalogue:
    items = {f"i{n}": CatalogueItem(f"i{n}", f"Title {n}", ("drama",), ("Ana",)) for n in range(ENTRIES_KEPT)}
    return Catalogue(items | changes, "g1", 1)


async def put_row(store: Store, viewer: str, row: bytes) -> None:
    await store.connect()
    await store.write_viewers([ViewerWrite(viewer, b"", secrets.token_bytes(8), 1, b"", b"", row)])


async def homepage_over(store: Store, **changes: Any) -> tuple[Homepage, httpx.AsyncClient]:
    parts: dict[str, Any] = {"catalogue": make_catalogue(), "impressions": Impressions(), "clock_ms": lambda: NOW_MS}
    homepage = Homepage(store=store, codec=CODEC, defaults=DefaultRows(store), **(parts | changes))
    await homepage.defaults.refresh()
    transport = httpx.ASGITransport(make_app(homepage))
    return homepage, httpx.AsyncClient(transport=transport, base_url="http://home")


def count(homepage: Homepage, name: str, **labels: str) -> float:
    return homepage.metrics.registry.get_sample_value(name, labels) or 0.0


async def store_with_defaults() -> MemoryStore:
    store = MemoryStore()
    await store.connect()
    await store.write_default_rows({"*:*": CODEC.encode_row(make_row("any")), "GB:*": CODEC.encode_row(make_row("gb"))})
    return store


async def test_a_viewers_own_row_is_served_with_titles_reasons_and_its_age() -> None:
    """The answer holds the viewer's row as it is stored, with titles of the current catalogue."""
    store = await store_with_defaults()
    await put_row(store, "ana", CODEC.encode_row(make_row("row-1")))
    homepage, client = await homepage_over(store)
    async with client:
        response = await client.get("/v1/home/ana")
    body = response.json()
    assert response.status_code == 200
    assert (body["row_id"], body["viewer"], body["generation_id"], body["activation"]) == ("row-1", "ana", "g1", 1)
    assert (body["default"], body["degraded"]) == (False, False)
    assert (body["freshness_ms"], body["age_ms"], body["computed_at_ms"]) == (1_000, 500, NOW_MS - 500)
    assert body["computed_at"] == "2030-03-17T17:46:39.500Z"
    assert [one["position"] for one in body["entries"]] == list(range(ENTRIES_SHOWN))
    assert body["entries"][0]["title"] == "Title 0"
    assert body["entries"][0]["reasons"] == [{"item_id": "i1", "title": "Title 1", "contribution": 0.5}]
    assert count(homepage, "nearline_homepage_requests_total", outcome="own") == 1


async def test_an_impression_names_exactly_what_was_shown() -> None:
    """Row, viewer and the shown items in their order are offered once per response."""
    store = await store_with_defaults()
    await put_row(store, "ana", CODEC.encode_row(make_row("row-1")))
    homepage, client = await homepage_over(store)
    async with client:
        body = (await client.get("/v1/home/ana?limit=7")).json()
    sink = homepage.impressions
    assert isinstance(sink, Impressions)
    (impression,) = sink.taken
    assert impression.item_ids == tuple(one["item_id"] for one in body["entries"])
    assert len(impression.item_ids) == 7
    assert (impression.viewer, impression.row_id, impression.default_row) == ("ana", "row-1", False)
    assert impression.served_at_ms == NOW_MS


async def test_a_private_session_leaves_no_impression() -> None:
    """The private header is honoured, and an unclear value counts as private."""
    homepage, client = await homepage_over(await store_with_defaults())
    async with client:
        for value in ("1", "true", "yes"):
            assert (await client.get("/v1/home/ana", headers={"X-Nearline-Private": value})).status_code == 200
        assert homepage.impressions.taken == []  # type: ignore[attr-defined]
        await client.get("/v1/home/ana", headers={"X-Nearline-Private": "0"})
    assert len(homepage.impressions.taken) == 1  # type: ignore[attr-defined]


async def test_a_full_impression_queue_costs_the_impression_and_not_the_answer() -> None:
    """A refused impression is counted and the row is served."""
    homepage, client = await homepage_over(await store_with_defaults())
    homepage.impressions.full = True  # type: ignore[attr-defined]
    async with client:
        assert (await client.get("/v1/home/ana")).status_code == 200
    assert count(homepage, "nearline_homepage_impressions_lost_total") == 1


@pytest.mark.parametrize("row", [b"", b"\x00\x00\x00\x00\x02garbage", b"\x00\x00\x00\x00\x63new"])
async def test_a_viewer_without_a_usable_row_gets_the_default_row(row: bytes) -> None:
    """No row, an undecodable one and one of an unknown schema all lead to the default row, never to an error."""
    store = await store_with_defaults()
    await put_row(store, "ana", row)
    homepage, client = await homepage_over(store)
    async with client:
        response = await client.get("/v1/home/ana")
    assert response.status_code == 200
    assert response.json()["default"] is True
    assert response.json()["row_id"] == "any"
    assert len(response.json()["entries"]) == ENTRIES_SHOWN
    assert count(homepage, "nearline_homepage_requests_total", outcome="default") == 1


@pytest.mark.parametrize(
    "row",
    [
        b"\x00\x00\x00\x00\x02somebody-private",
        b"somebody-private",
        b"\x00\x00\x00\x00\x63somebody-private",
        CODEC.encode_row(make_row("somebody-private")) + b"\x00",
    ],
)
async def test_an_unreadable_row_is_logged_without_viewer_and_content(
    row: bytes, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong is told, whose row it is and what it holds are not."""
    store = await store_with_defaults()
    await put_row(store, "somebody-private", row)
    _, client = await homepage_over(store)
    with capture_logs() as logs:
        async with client:
            assert (await client.get("/v1/home/somebody-private")).status_code == 200
    assert [one["event"] for one in logs] == ["row_undecodable"]
    captured = capsys.readouterr()
    nearline = [one.getMessage() for one in caplog.records if not one.name.startswith("httpx")]  # the test's own client
    assert "somebody" not in f"{logs}{captured.out}{captured.err}{nearline}"


def test_default_rows_fall_back_from_the_most_fitting_to_everybodys() -> None:
    """Territory and maturity, then maturity, then territory, then everybody."""
    assert list(default_keys(Audience("GB", 12))) == ["GB:12", "*:12", "GB:*", "*:*"]
    assert list(default_keys(Audience())) == ["*:*"]


async def test_the_territory_chooses_the_default_row() -> None:
    """A territory with a default row of its own gets it; another gets everybody's."""
    _, client = await homepage_over(await store_with_defaults())
    async with client:
        assert (await client.get("/v1/home/new?territory=GB&maturity=12")).json()["row_id"] == "gb"
        assert (await client.get("/v1/home/new?territory=FR")).json()["row_id"] == "any"


@pytest.mark.parametrize("away", [AwayStore, HungStore])
async def test_a_store_that_is_away_leaves_the_default_row_marked_degraded(away: type[MemoryStore]) -> None:
    """With the store down or hung the default row last seen is served."""
    store = await store_with_defaults()
    homepage, client = await homepage_over(store)
    homepage = replace(homepage, store=away())
    async with (
        client,
        httpx.AsyncClient(transport=httpx.ASGITransport(make_app(homepage)), base_url="http://h") as down,
    ):
        body = (await down.get("/v1/home/ana")).json()
    assert (body["default"], body["degraded"]) == (True, True)
    assert len(body["entries"]) == ENTRIES_SHOWN
    assert count(homepage, "nearline_homepage_requests_total", outcome="degraded") == 1


async def test_the_first_day_answers_with_an_empty_degraded_page_and_no_impression() -> None:
    """Before any row exists the answer is still 200, says so, and reports nothing shown."""
    homepage, client = await homepage_over(MemoryStore())
    async with client:
        response = await client.get("/v1/home/ana")
    body = response.json()
    assert (response.status_code, body["entries"], body["degraded"], body["age_ms"]) == (200, [], True, None)
    assert homepage.impressions.taken == []  # type: ignore[attr-defined]


async def test_default_rows_survive_a_store_that_goes_away() -> None:
    """A failed refresh keeps the rows already read and says that the store is away."""
    store = await store_with_defaults()
    defaults = DefaultRows(store)
    await defaults.refresh()
    before = defaults.choose(Audience())
    defaults._store = AwayStore()
    await defaults.refresh()
    assert before
    assert defaults.choose(Audience()) == before
    assert not defaults.reachable


async def test_what_may_no_longer_be_shown_is_dropped_at_read_time() -> None:
    """Expired, not yet available, taken down, and removed titles go; those kept in reserve fill the row."""
    row = make_row("row-1")
    entries = list(row.entries)
    entries[0] = entries[0]._replace(available_until_ms=NOW_MS)
    entries[1] = entries[1]._replace(available_from_ms=NOW_MS + 1)
    entries[4] = entries[4]._replace(item_id="gone")
    store = await store_with_defaults()
    await put_row(store, "ana", CODEC.encode_row(replace(row, entries=tuple(entries))))
    catalogue = make_catalogue(
        i2=CatalogueItem("i2", "Down", taken_down=True), i3=CatalogueItem("i3", "Ended", available_until_ms=NOW_MS - 1)
    )
    homepage, client = await homepage_over(store, catalogue=catalogue)
    async with client:
        body = (await client.get("/v1/home/ana")).json()
    assert [one["item_id"] for one in body["entries"]] == [f"i{n}" for n in range(5, 5 + ENTRIES_SHOWN)]
    dropped = {
        reason: count(homepage, "nearline_homepage_entries_dropped_total", reason=reason)
        for reason in ("expired", "not_yet", "taken_down", "unknown")
    }
    assert dropped == {"expired": 2, "not_yet": 1, "taken_down": 1, "unknown": 1}


async def test_a_row_with_nothing_left_to_show_gives_way_to_the_default_row() -> None:
    """A home page is never empty while a default row has something to show."""
    store = await store_with_defaults()
    await put_row(store, "ana", CODEC.encode_row(make_row("row-1", prefix="gone")))
    _, client = await homepage_over(store)
    async with client:
        body = (await client.get("/v1/home/ana")).json()
    assert (body["default"], len(body["entries"])) == (True, ENTRIES_SHOWN)


async def test_a_row_newer_than_the_catalogue_is_shown_without_its_titles() -> None:
    """Between a swap and the catalogue's reload the viewer's row is served all the same."""
    store = await store_with_defaults()
    await put_row(store, "ana", CODEC.encode_row(make_row("row-2", activation=2, prefix="new")))
    _, client = await homepage_over(store)
    async with client:
        body = (await client.get("/v1/home/ana")).json()
    assert body["default"] is False
    assert body["entries"][0]["title"] == "new0"


async def test_titles_unsuited_to_the_audience_are_not_shown() -> None:
    """Maturity and territory are held against the current catalogue."""
    catalogue = make_catalogue(
        i0=CatalogueItem("i0", "Adult", maturity=18), i1=CatalogueItem("i1", "French", territories=("FR",))
    )
    _, client = await homepage_over(await store_with_defaults(), catalogue=catalogue)
    async with client:
        body = (await client.get("/v1/home/kid?maturity=12&territory=GB&limit=1")).json()
    assert [one["item_id"] for one in body["entries"]] == ["i2"]


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/v1/home/a%7Bb%7D", "viewer"),
        ("/v1/home/" + "x" * 129, "viewer"),
        ("/v1/home/ana?limit=0", "limit"),
        ("/v1/home/ana?limit=51", "limit"),
        ("/v1/home/ana?limit=1e1", "limit"),
        ("/v1/home/ana?limit=%D9%A1", "limit"),
        ("/v1/home/ana?territory=..%2F", "territory"),
        ("/v1/home/ana?maturity=-1", "maturity"),
        ("/v1/home/ana?maturity=old", "maturity"),
    ],
)
async def test_a_malformed_request_is_refused_and_told_why(path: str, names: str) -> None:
    """400 with a JSON message that names the parameter."""
    homepage, client = await homepage_over(await store_with_defaults())
    async with client:
        response = await client.get(path)
    assert response.status_code == 400
    assert response.json()["error"].startswith(f"{names}: ")
    assert homepage.impressions.taken == []  # type: ignore[attr-defined]


async def test_readiness_follows_the_store_and_metrics_are_exposed() -> None:
    """Live always; ready once the store answers and a default row exists."""
    _, client = await homepage_over(await store_with_defaults())
    _, away = await homepage_over(AwayStore())
    async with client, away:
        assert (await client.get("/health/ready")).status_code == 200
        assert (await away.get("/health/ready")).status_code == 503
        assert (await away.get("/health/live")).status_code == 200
        await client.get("/v1/home/ana")
        assert 'outcome="default"} 1.0' in (await client.get("/metrics")).text


async def test_queued_impressions_are_bounded_sent_in_order_and_counted_when_lost() -> None:
    """Offers beyond the limit are refused; a failing send loses one impression and the next is sent."""
    sent: list[str] = []

    async def send(impression: Impression) -> None:
        if impression.impression_id == "1":
            raise KafkaUnavailable("away")
        sent.append(impression.impression_id)

    lost = Counter("lost", "lost", registry=None)
    queue = QueuedImpressions(send, lost, limit=3)
    offers = [queue.offer(Impression(str(n), "v", "r", "g", 0, False, ())) for n in range(4)]
    running = asyncio.create_task(queue.run())
    await queue.drain()
    running.cancel()
    assert offers == [True, True, True, False]
    assert sent == ["0", "2"]
    assert lost._value.get() == 1


def write_generation(folder: Path, generation_id: str, activation: int, titles: Mapping[str, str]) -> None:
    (folder / generation_id).mkdir(parents=True, exist_ok=True)
    columns = {
        "item_id": list(titles),
        "title": list(titles.values()),
        "topics": [["drama"] for _ in titles],
        "creators": [["Ana"] for _ in titles],
        "territories": pa.array([[] for _ in titles], pa.list_(pa.string())),
        "available_until_ms": pa.array([None for _ in titles], pa.int64()),
        "taken_down": [False for _ in titles],
    }
    pq.write_table(pa.table(columns), folder / generation_id / "items.parquet")
    (folder / "CURRENT").write_text(json.dumps({"generation_id": generation_id, "activation": activation}))


async def test_the_catalogue_follows_current_and_a_broken_generation_leaves_the_old_one(tmp_path: Path) -> None:
    """A swap replaces the titles; a generation without a catalogue is refused and the titles stay."""
    live = LiveCatalogue(str(tmp_path))
    assert not await live.refresh()
    write_generation(tmp_path, "g1", 1, {"a": "One"})
    assert await live.refresh()
    assert not await live.refresh()
    assert (live.activation, live.get("a")) == (1, CatalogueItem("a", "One", ("drama",), ("Ana",)))
    write_generation(tmp_path, "g2", 2, {"a": "Two"})
    assert await live.refresh()
    assert (live.get("a") or CatalogueItem("", "")).title == "Two"
    (tmp_path / "CURRENT").write_text('{"generation_id": "gone", "activation": 3}')
    with pytest.raises(GenerationError, match=r"items\.parquet"):
        await live.refresh()
    assert live.activation == 2


@pytest.mark.parametrize(
    "said",
    [
        {"generation_id": "../g2", "activation": 2},
        {"generation_id": "g2", "activation": "2"},
        {"generation_id": "g2", "activation": 2, "share": {"generation_id": "g1", "percent": 100}},
        {"generation_id": "g2", "activation": 2, "share": {"generation_id": "g1"}},
    ],
)
async def test_what_the_updaters_do_not_read_in_current_the_home_page_does_not_either(
    tmp_path: Path, said: dict[str, object]
) -> None:
    live = LiveCatalogue(str(tmp_path / "generations"))
    write_generation(tmp_path / "generations", "g2", 2, {"a": "Two"})
    write_generation(tmp_path, "g2", 2, {"a": "Elsewhere"})
    write_generation(tmp_path / "generations", "g1", 1, {"a": "One"})
    assert await live.refresh()
    (tmp_path / "generations" / "CURRENT").write_text(json.dumps(said))
    with pytest.raises(GenerationError, match="CURRENT: unreadable"):
        await live.refresh()
    assert (live.generation_id, live.activation) == ("g1", 1)


async def test_titles_that_only_the_candidate_has_are_known_while_a_share_sees_it(tmp_path: Path) -> None:
    live = LiveCatalogue(str(tmp_path))
    write_generation(tmp_path, "g2", 1, {"a": "Uno", "b": "Two"})
    write_generation(tmp_path, "g1", 2, {"a": "One"})
    assert await live.refresh() and live.get("b") is None
    shared = {"generation_id": "g1", "activation": 3, "share": {"generation_id": "g2", "percent": 5}}
    (tmp_path / "CURRENT").write_text(json.dumps(shared))
    assert await live.refresh()
    titles = [(live.get(item_id) or CatalogueItem("", "")).title for item_id in "ab"]
    assert (live.activation, titles) == (3, ["One", "Two"])
    (tmp_path / "CURRENT").write_text(json.dumps(shared | {"activation": 4, "share": None}))
    assert await live.refresh() and live.get("b") is None


async def test_a_candidate_that_cannot_be_read_costs_its_own_titles_alone(tmp_path: Path) -> None:
    write_generation(tmp_path, "g2", 1, {"a": "One", "b": "Two"})
    write_generation(tmp_path, "g1", 2, {"a": "One"})
    shared = {"generation_id": "g1", "activation": 2, "share": {"generation_id": "g2", "percent": 5.0}}
    (tmp_path / "CURRENT").write_text(json.dumps(shared))
    items = tmp_path / "g2" / "items.parquet"
    whole = items.read_bytes()
    items.write_bytes(whole[:-9])
    live = LiveCatalogue(str(tmp_path))
    for _ in range(2):
        with pytest.raises(GenerationError, match=r"g2/items\.parquet"):
            await live.refresh()
        assert (live.generation_id, live.activation) == ("g1", 2)
        assert live.get("a") is not None
    items.write_bytes(whole)
    assert await live.refresh()
    assert live.get("b") is not None
    assert not await live.refresh()


async def test_a_rollback_does_not_bring_a_taken_down_title_back(tmp_path: Path) -> None:
    """What the feed told holds beyond the generation that agrees with it; a title it removed stays hidden too."""
    live = LiveCatalogue(str(tmp_path))
    write_generation(tmp_path, "g1", 1, {"a": "One", "b": "Two", "c": "Three"})
    await live.refresh()
    one, two = live.get("a"), live.get("b")
    assert one is not None
    assert two is not None
    live.put(replace(one, title="Renamed"))
    live.put(two)
    live.put(replace(two, taken_down=True))
    live.remove("c")
    write_generation(tmp_path, "g2", 2, {"a": "Renamed"})
    await live.refresh()
    live.put(replace(one, title="Renamed"))
    write_generation(tmp_path, "g1", 3, {"a": "One", "b": "Two", "c": "Three"})
    assert await live.refresh()
    assert (live.get("a") or one).title == "Renamed"
    assert [item.taken_down for name in "abc" if (item := live.get(name)) is not None] == [False, True, True]


def test_a_catalogue_without_titles_is_refused_by_name(tmp_path: Path) -> None:
    """The message names the file and the missing column."""
    pq.write_table(pa.table({"item_id": ["a"]}), tmp_path / "items.parquet")
    with pytest.raises(GenerationError, match="no column title"):
        load_catalogue(tmp_path)


async def test_a_real_server_serves_and_stops_with_kafka_away(tmp_path: Path) -> None:
    """One process loop, a real socket, port 0: a row is served, the stop is quick, the port is free again."""
    write_generation(tmp_path, "g1", 1, {f"i{n}": f"Title {n}" for n in range(ENTRIES_KEPT)})
    settings = Settings(
        _env_file=None,
        homepage=HomepageSettings(port=0),
        kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1"),
        generations_path=str(tmp_path),
    )
    store = await store_with_defaults()
    await put_row(store, "ana", CODEC.encode_row(make_row("row-1")))
    stop, port = asyncio.Event(), asyncio.get_running_loop().create_future()
    running = asyncio.create_task(run_homepage(settings, stop=stop, store=store, on_listening=port.set_result))
    async with asyncio.timeout(20):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{await port}") as client:
            body = (await client.get("/v1/home/ana", headers={"X-Nearline-Private": "1"})).json()
            assert (body["row_id"], body["default"]) == ("row-1", False)
            assert (await client.get("/health/ready")).status_code == 200
            with pytest.raises(SettingsError, match="in use"):
                async with serve(make_app((await homepage_over(store))[0]), "127.0.0.1", port.result()):
                    pass
            stop.set()
            await running
            with pytest.raises(httpx.TransportError):
                await client.get("/health/live")
