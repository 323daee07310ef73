"""The live page's real backend over a store in memory: an updater of ten lines answers its events."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from contracts.catalogue import CatalogueItem
from contracts.codec import Codec
from contracts.events import Kind, PlaybackEvent, validate
from homepage.catalogue import Catalogue
from runtime.worker import Worker
from sandbox import live_backend
from sandbox.action_views import ActionView
from sandbox.audience import Viewer
from sandbox.live_backend import StoreBackend, Versions
from sandbox.live_sources import NightSnapshot, UpdaterProbe, UpdaterUnavailable
from sandbox.live_views import NotFound, Place
from tests.worlds import make_generation
from updater.metrics import RowTiming
from viewers.memory_store import MemoryStore
from viewers.rewrite import RewriteJob, rewrite_viewers
from viewers.rewriter import Rewriter
from viewers.state import Limits, state_of

WORKER = Worker("rewrite")
VIEWERS = [
    Viewer(f"ana-{i:04d}", f"Ana {name}", "GB", 18, "nordic noir, crime", 0) for i, name in enumerate(("Ruiz", "Falk"))
]


class Bench:
    """A store, a generation, and an updater that answers events unless it is stopped."""

    def __init__(self) -> None:
        self.codec = Codec.load()
        self.store = MemoryStore()
        self.rewriter = Rewriter(make_generation(), 1, self.codec.encode_row, Limits())
        self.sent: list[PlaybackEvent] = []
        self.timings: dict[str, RowTiming] = {}
        self.running = True
        self.tokens = (i.to_bytes(8, "big") for i in itertools.count(1))
        self.night = NightSnapshot(self.store)
        items = {
            item_id: CatalogueItem(item_id, f"Title {item_id}", ("crime",), duration_ms=5_400_000)
            for item_id in self.rewriter.generation.item_ids  # type: ignore[union-attr]
        }
        self.backend = StoreBackend(
            store=self.store,
            codec=self.codec,
            send=self.send,
            viewers=VIEWERS,
            catalogue=Catalogue(items, "g1", 1),
            last_night=self.night,
            probe=self,  # type: ignore[arg-type]
            versions=Versions("Kafka 4.1.0", "Valkey 9.1.2"),
        )

    async def send(self, event: PlaybackEvent) -> None:
        validate(event, key=event.viewer.encode(), timestamp_ms=event.event_time_ms)
        self.sent.append(event)
        if self.running and not event.private:
            fetched_ms = time.time() * 1000
            job = RewriteJob(event.viewer, state_of(event, timestamp_ms=event.event_time_ms), event.event_time_ms)
            now = lambda: time.time() * 1000  # noqa: E731
            (result,) = await rewrite_viewers(
                self.store, [job], self.rewriter, now_ms=now, draw_token=lambda: next(self.tokens), worker=WORKER
            )
            assert result.row_id
            assert result.timing
            self.timings[result.row_id] = RowTiming(
                fetched_ms, result.timing.computed_at_ms, result.timing.written_at_ms
            )

    async def timing(self, row_id: str) -> RowTiming | None:
        return self.timings.get(row_id)

    async def stats(self) -> Mapping[str, Any]:
        fresh = {"count": len(self.timings), "p50": 0.02, "p95": 0.03, "p99": 0.04, "max": 0.05}
        counts = {"applied": len(self.sent), "noop": 0, "private": 2, "dead": 1, "absent": 0}
        return {
            "generation_id": "g1",
            "activation": 1,
            "lag_records": 3,
            "unaccounted": 0,
            "freshness_recent_s": fresh,
            **counts,
        }


@pytest.fixture
async def bench() -> Bench:
    made = Bench()
    await made.store.connect()
    return made


async def test_a_play_is_answered_by_the_row_that_has_it(bench: Bench) -> None:
    """The row leaves out what was played, the legs sum to the whole, and the play is the newest of the recent ones."""
    outcome = await bench.backend.play("ana-0000", "tt0000007", "play")
    (event,) = bench.sent
    assert (event.kind, event.watched_ms, event.private) == (Kind.COMPLETE, 5_400_000, False)
    assert outcome.row is not None
    assert "tt0000007" not in [tile.item_id for tile in outcome.row.tiles]
    assert outcome.total_ms == pytest.approx(sum(part.ms for part in outcome.parts))
    timing = bench.timings[outcome.row.row_id]
    assert outcome.total_ms == pytest.approx(timing.written_at_ms - event.event_time_ms)
    assert [part.name for part in outcome.parts] == ["produced", "fetched", "state read", "computed, written"]
    assert [(play.tile.item_id, play.ending) for play in outcome.recent] == [("tt0000007", "complete")]


async def test_a_play_says_which_row_and_position_it_came_from_and_a_private_one_does_not(bench: Bench) -> None:
    for kind in ("play", "skip", "private"):
        await bench.backend.play("ana-0000", "tt0000007", kind, Place("row-1-because", 3))
    await bench.backend.play("ana-0000", "tt0000008", "play")
    said = [(event.row_id, event.row_position) for event in bench.sent]
    assert said == [("row-1-because", 3), ("row-1-because", 3), (None, None), (None, None)]


async def test_a_skip_is_sent_as_a_short_play(bench: Bench) -> None:
    """Two per cent of the title, and the ending says so."""
    outcome = await bench.backend.play("ana-0000", "tt0000008", "skip")
    assert (bench.sent[0].kind, bench.sent[0].watched_ms) == (Kind.SKIP, 108_000)
    assert outcome.recent[0].ending == "skip"


async def test_a_private_play_is_sent_as_such_and_waits_for_no_row(bench: Bench) -> None:
    """There is no row to wait for; the message says what happened."""
    outcome = await bench.backend.play("ana-0000", "tt0000008", "private")
    assert bench.sent[0].private
    assert (outcome.row, outcome.total_ms) == (None, None)
    assert "Private" in outcome.message


async def test_without_an_updater_the_play_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event is sent, the deadline passes, and the message asks the right question."""
    monkeypatch.setattr(live_backend, "ROW_DEADLINE_S", 0.05)
    bench.running = False
    outcome = await bench.backend.play("ana-0000", "tt0000008", "play")
    assert outcome.total_ms is None
    assert "is the updater running?" in outcome.message


async def test_last_night_stays_while_tonight_moves(bench: Bench) -> None:
    """The snapshot is what the rows were when it was taken."""
    await bench.backend.play("ana-0000", "tt0000001", "play")
    assert await bench.night.capture() == 1
    await bench.backend.play("ana-0000", "tt0000002", "play")
    view = await bench.backend.viewer_view("ana-0000")
    assert view.last_night.row_id != view.live.row_id
    assert [play.tile.item_id for play in view.recent] == ["tt0000002", "tt0000001"]


async def test_a_viewer_without_a_row_sees_the_default_one(bench: Bench) -> None:
    """Marked as default; without any the row is empty."""
    assert (await bench.backend.viewer_view("ana-0001")).live.tiles == ()
    await bench.store.write_default_rows({"*:*": bench.rewriter.default_row(computed_at_ms=1)})
    live = (await bench.backend.viewer_view("ana-0001")).live
    assert live.default
    assert len(live.tiles) == 60


async def test_explain_gives_the_plays_of_a_tile(bench: Bench) -> None:
    """Position and reasons as the row carries them; a title outside the row says so; unknown ones are not found."""
    for item in ("tt0000001", "tt0000002", "tt0000003"):
        outcome = await bench.backend.play("ana-0000", item, "play")
    assert outcome.row is not None
    entries = bench.codec.decode_row((await bench.store.read_viewer("ana-0000")).row).entries
    with_reasons = next(entry for entry in entries if entry.reasons)
    why = await bench.backend.explain("ana-0000", with_reasons.item_id)
    assert why.position == entries.index(with_reasons) + 1
    assert [(r.tile.item_id, r.contribution) for r in why.reasons] == [
        (r.item_id, r.contribution) for r in with_reasons.reasons
    ]
    assert (await bench.backend.explain("ana-0000", "tt0000001")).position is None
    for viewer, item in (("nobody", "tt0000001"), ("ana-0000", "tt9999999")):
        with pytest.raises(NotFound):
            await bench.backend.explain(viewer, item)


async def test_a_watcher_sees_the_row_now_and_every_new_one(bench: Bench) -> None:
    """First what is stored, then each change."""
    first = await bench.backend.play("ana-0000", "tt0000001", "play")
    assert first.row is not None
    rows = bench.backend.watch_row("ana-0000")
    async with asyncio.timeout(5):
        assert (await anext(rows)).row_id == first.row.row_id
        second = await bench.backend.play("ana-0000", "tt0000002", "play")
        assert second.row is not None
        assert (await anext(rows)).row_id == second.row.row_id
    await rows.aclose()  # type: ignore[attr-defined]


async def test_stats_come_from_the_updater(bench: Bench) -> None:
    """Milliseconds for seconds, nothing measured is None, versions are told."""
    stats = await bench.backend.stats()
    assert (stats.freshness_p50_ms, stats.lag_records, stats.totals["dead"]) == (None, 3, 1)
    await bench.backend.play("ana-0000", "tt0000001", "play")
    stats = await bench.backend.stats()
    assert stats.freshness_p99_ms == pytest.approx(40)
    assert (stats.kafka_version, stats.store_version) == ("Kafka 4.1.0", "Valkey 9.1.2")


class Buttons:
    """Buttons of which one is under way, or none."""

    def __init__(self) -> None:
        self.under_way = ""

    def running(self, name: str) -> bool:
        return name == self.under_way

    def newest_lag(self, name: str) -> int:
        return 312

    def views(self) -> tuple[ActionView, ...]:
        return (ActionView("kill"),)


async def test_while_a_button_has_killed_the_updater_its_lag_is_measured_without_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing happens and nothing is measured then; an updater that is away for another reason is told as such."""
    buttons = bench.backend._buttons = Buttons()  # type: ignore[assignment]
    known = await bench.backend.stats()

    async def away() -> Mapping[str, Any]:
        raise UpdaterUnavailable("gone")

    monkeypatch.setattr(bench, "stats", away)
    with pytest.raises(UpdaterUnavailable):
        await bench.backend.stats()
    buttons.under_way = "kill"
    stats = await bench.backend.stats()
    assert (stats.lag_records, stats.events_per_s, stats.freshness_p99_ms) == (312, 0, None)
    assert (stats.totals, stats.generation_id) == (known.totals, known.generation_id)


async def test_a_page_that_owns_no_updater_has_no_buttons(bench: Bench) -> None:
    assert bench.backend.actions() == ()
    with pytest.raises(NotFound):
        await bench.backend.press("kill")
    bench.backend._buttons = Buttons()  # type: ignore[assignment]
    assert bench.backend.actions() == (ActionView("kill"),)


async def test_search_finds_names_first_and_anybody_for_nothing(bench: Bench) -> None:
    """Names that begin with the words come first."""
    assert [viewer.name for viewer in await bench.backend.search_viewers("falk")] == ["Ana Falk"]
    assert len(await bench.backend.search_viewers("noir")) == 2
    assert len(await bench.backend.search_viewers("")) == 2


async def test_a_probe_without_an_updater_is_a_transient_error() -> None:
    """Nothing listens there: the page shows it and asks again."""
    async with httpx.AsyncClient() as client:
        with pytest.raises(UpdaterUnavailable, match="is it running"):
            await UpdaterProbe(client, "http://127.0.0.1:9").stats()
