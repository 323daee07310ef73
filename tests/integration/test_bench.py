"""What the benchmarks stand on: that their checks see a wrong row, and that their load is counted."""

from __future__ import annotations

import asyncio
import uuid

import pytest
import redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from bench import load
from bench.common import EVENTS_FROM_S, Updaters, draw_plays, make_stage, make_world, processor_s
from bench.live_producer import LiveProducer
from bench.report import WrongResult
from contracts import keys as fields
from runtime.http import serve
from sandbox.replay import replay

EVENTS = 300
VIEWERS = 100


@pytest.fixture
async def stage(kafka, valkey, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.common.DISTINCT", 20)
    world = make_world(tmp_path, 200)
    name = f"t{uuid.uuid4().hex[:12]}"
    stage = await make_stage(world, kafka.bootstrap, valkey, name, viewers=VIEWERS, history=5)
    stage.seed()
    return stage


async def drained(stage, tmp_path) -> float:
    """Work off some events; the processor seconds that it took."""
    events = list(draw_plays(stage.world.generation, VIEWERS, EVENTS, seed=1, first_s=EVENTS_FROM_S))
    await replay(stage.settings, events, codec=stage.world.codec)
    stage.expect(events)
    async with stage.store() as store:
        with Updaters(stage, tmp_path / "updaters").running() as updaters:
            await stage.wait_finished(store, EVENTS, updaters)
            return processor_s(updaters.pids)


async def test_the_check_passes_what_an_updater_made_and_sees_a_row_and_a_state_that_are_not_its(
    stage, valkey, tmp_path
):
    assert await drained(stage, tmp_path) > 0
    async with stage.store() as store:
        await stage.check(store)
        viewer = next(iter(stage.plays))
        other = next(name for name in stage.plays if name != viewer)
        key, another = (stage.settings.keys.viewer(name) for name in (viewer, other))
        with redis.Redis.from_url(valkey.url) as client:
            for field, told in ((fields.ROW, "row"), (fields.STATE, "state")):
                right = client.hget(key, field)
                client.hset(key, field, client.hget(another, field))
                with pytest.raises(WrongResult, match=f"{viewer}: not the {told}"):
                    await stage.check(store)
                client.hset(key, field, right)
            await stage.check(store)
            client.hincrby(stage.settings.keys.marker(0), "applied", -1)
            with pytest.raises(WrongResult, match="partition 0"):
                await stage.check(store)


async def test_after_reseeding_nobody_knows_of_the_events(stage, tmp_path):
    await drained(stage, tmp_path)
    viewer = next(iter(stage.plays))
    stage.reseed()
    async with stage.store() as store:
        stored = await store.read_viewer(viewer)
    number = int(viewer.removeprefix("viewer-")) % 20
    assert stored.state == stage.world.seeds(5)[number].written.state_bytes
    assert not stage.plays


async def test_the_live_producer_sends_at_its_rate_what_it_says(stage):
    producer = LiveProducer(stage, rate=200, seconds=1, seed=3, first_s=EVENTS_FROM_S)
    with producer.alive():
        await asyncio.to_thread(producer.wait_ready)
        producer.go()
        told = await asyncio.to_thread(producer.finish)
    assert told["sent"] == 200
    assert told["seconds"] >= 0.9
    events = list(producer.events(200))
    assert len({event.event_id for event in events}) == 200


@pytest.mark.parametrize("with_wrk", [True, False])
async def test_load_counts_requests_and_refuses_failures(with_wrk, monkeypatch):
    if not with_wrk:
        monkeypatch.setattr(load.shutil, "which", lambda name: None)
    elif load.generator() != "wrk":
        pytest.skip("no wrk: install it (Debian: apt-get install wrk)")
    seen = 0

    async def answer(request: Request) -> PlainTextResponse:
        nonlocal seen
        seen += 1
        return PlainTextResponse("x", 200 if int(request.path_params["number"]) < 5 else 500)

    app = Starlette(routes=[Route("/a/{number}", answer)])
    async with serve(app, "127.0.0.1", 0) as port:
        url = f"http://127.0.0.1:{port}"
        found = await asyncio.to_thread(load.run_load, url, "/a/", 5, connections=2, seconds=1)
        assert 0 < found.requests <= seen <= found.requests + 2
        assert 0 < found.p50_ms <= found.p99_ms
        with pytest.raises(WrongResult, match="failed"):
            await asyncio.to_thread(load.run_load, url, "/a/", 10, connections=2, seconds=1)
