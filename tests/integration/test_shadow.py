"""A shadow generation beside running updaters, on a real Kafka and a real store."""

from __future__ import annotations

import asyncio

import httpx

from tests.consistency import CODEC, Stage, plays, publish
from tests.worlds import wait_until
from updater.shadow import Shadow
from updater.shadow_service import make_app
from viewers.redis_store import open_store


async def test_who_plays_is_compared_and_nothing_is_written(stage: Stage) -> None:
    publish(stage, "g2")
    publish(stage, "g1")  # in force; g2 is its shadow
    store = open_store(stage.settings.store, stage.settings.keys)
    shadow = Shadow(stage.settings, store, CODEC, "g2", 100)
    async with stage.updater():
        await stage.send(plays(5, 60))  # from before: only what is played from now on is followed
        await stage.drained(60)
        running = asyncio.create_task(shadow.run())
        try:
            await wait_until(lambda: shadow.ready, "it follows the log")
            await stage.send(plays(3, 60, start=60))
            await stage.drained(120)
            before = {v: await stage.store.read_viewer(v) for v in ("v0", "v1", "v2", "v3", "v4")}
            await wait_until(lambda: shadow.metrics.count("compared") >= 3, "the viewers who played are compared")
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(make_app(shadow)), base_url="http://shadow"
            ) as client:
                assert (await client.get("/health/ready")).status_code == 200
                stats = (await client.get("/stats")).json()
                text = (await client.get("/metrics")).text
        finally:
            shadow.stop()
            await asyncio.wait_for(running, 30)
            await store.close()
        assert {v: await stage.store.read_viewer(v) for v in before} == before
    assert stats["generation_id"] == "g2" and 0 <= stats["overlap"] < 1
    assert stats["viewers"]["failed"] == stats["viewers"]["in_force"] == 0
    assert 'nearline_shadow_viewers_total{outcome="compared"}' in text
    await stage.assert_consistent()
    await stage.assert_accounted()
