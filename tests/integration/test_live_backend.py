"""The live page's backend on a real Kafka, a real Valkey and a real updater: what a press of play measures."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from contracts.codec import Codec
from embeddings.generations_folder import GenerationsFolder
from runtime.http import serve
from runtime.kafka import make_producer
from runtime.settings import Settings
from sandbox.live_backend import open_backend
from sandbox.servers import KafkaServer, ValkeyServer
from sandbox.world import World
from tests.conftest import TopicFactory
from tests.worlds import make_generation, write_generation_folder
from updater.consumer import Updater
from updater.service import Watch, make_app
from viewers.redis_store import open_store


async def test_a_press_of_play_comes_back_as_a_new_row_with_its_legs(
    kafka: KafkaServer, valkey: ValkeyServer, topic: TopicFactory, namespace: str, tmp_path: Path
) -> None:
    """Plays of one viewer rewrite the row, the legs sum to the whole, why sums over plays, and nothing is unaccounted."""
    name = await topic(2)
    await topic(1, name=f"{name}.dlq")
    settings = Settings(
        kafka={"bootstrap_servers": kafka.bootstrap, "topic": name, "group_id": name},  # type: ignore[arg-type]
        store={"url": valkey.url, "namespace": namespace},  # type: ignore[arg-type]
        generations_path=str(tmp_path / "generations"),
    )
    write_generation_folder(settings.generations_path, make_generation())
    GenerationsFolder(settings.generations_path).activate("g1", floor=0)
    codec, world = Codec.load(), World(7, titles=199, viewers=40, now_ms=int(time.time() * 1000))
    store, own_store, sent = open_store(settings.store, settings.keys), open_store(settings.store, settings.keys), []
    await store.connect()
    updater = Updater(settings, own_store, codec, instance="live")
    watch = Watch(updater)
    producer = await make_producer(settings)
    running = asyncio.create_task(updater.run())
    try:
        async with serve(make_app(updater, watch), "127.0.0.1", 0) as port, httpx.AsyncClient(timeout=3) as client:
            backend = open_backend(
                settings=settings,
                store=store,
                codec=codec,
                producer=producer,
                world=world,
                client=client,
                updater_url=f"http://127.0.0.1:{port}",
                on_sent=sent.append,
                versions=(kafka.version, valkey.version),
            )
            adult = next(viewer for viewer in world.viewers if viewer.maturity == 18)
            seen: set[str] = set()
            for _ in range(3):
                view = await backend.viewer_view(adult.viewer)
                tiles = [tile.item_id for tile in view.live.tiles]
                title = tiles[0] if tiles else world.catalogue[0].item_id
                outcome = await backend.play(adult.viewer, title, "play")
                seen.add(title)
                assert outcome.row is not None, outcome.message
                assert not seen & {tile.item_id for tile in outcome.row.tiles}
                assert [part.name for part in outcome.parts] == [
                    "produced",
                    "fetched",
                    "state read",
                    "computed, written",
                ]
                assert outcome.total_ms == pytest.approx(sum(part.ms for part in outcome.parts))
                assert outcome.total_ms < 5_000
                assert outcome.recent[0].tile.item_id == title
            private = await backend.play(adult.viewer, world.catalogue[5].item_id, "private")
            assert private.row is None
            assert sum(sent) == 4
            first = (await backend.viewer_view(adult.viewer)).live.tiles[0]
            why = await backend.explain(adult.viewer, first.item_id)
            assert why.position == 1
            assert {reason.tile.item_id for reason in why.reasons} <= seen
            async with asyncio.timeout(20):
                while sum((stats := await backend.stats()).totals.values()) < 4:  # noqa: ASYNC110 - polls with a deadline
                    await asyncio.sleep(0.05)
            assert (stats.unaccounted, stats.totals["private"], stats.generation_id) == (0, 1, "g1")
            assert stats.freshness_p50_ms is not None
    finally:
        updater.stop()
        await asyncio.wait_for(running, 30)
        await producer.stop()
        await store.close()
        await own_store.close()
