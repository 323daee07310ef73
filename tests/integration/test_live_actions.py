"""All four buttons of the live page, pressed through HTTP on real servers while viewers watch; the verdicts are read from the page."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from batch.nightly import run_nightly
from contracts.codec import Codec
from runtime.http import serve
from runtime.kafka import make_producer
from runtime.progress import SilentProgress
from runtime.settings import Settings
from runtime.tasks import cancel_all
from sandbox.live_backend import open_backend
from sandbox.live_hands import open_actions, whole_play
from sandbox.live_sources import NightSnapshot, UpdaterProbe
from sandbox.livepage import make_app
from sandbox.oracle import open_oracle
from sandbox.processes import Service, environment_of
from sandbox.replay import publish_items, replay, send_event
from sandbox.servers import KafkaServer, ValkeyServer
from sandbox.supervisor import Supervisor
from sandbox.topics import ensure_topics
from sandbox.world import Stamper, World
from tests.conftest import TopicFactory
from viewers.redis_store import RedisStore, open_store
from viewers.store import ViewerWrite

DEADLINE_S = 200.0
PARTITIONS = 2


@dataclass
class Demo:
    """What runs: the page's address, and what is behind it."""

    url: str
    settings: Settings
    store: RedisStore
    supervisor: Supervisor
    sent: int = 0

    def count(self, records: int) -> None:
        self.sent += records


@asynccontextmanager
async def small_demo(kafka: KafkaServer, valkey: ValkeyServer, name: str, tmp_path: Path) -> AsyncIterator[Demo]:
    """A service of 60 titles and 50 viewers after one night, with viewers who watch on, an updater process and the page."""
    settings = Settings(
        kafka={"bootstrap_servers": kafka.bootstrap, "topic": name, "group_id": name, "session_timeout_ms": 2_000},  # type: ignore[arg-type]
        store={"url": valkey.url, "namespace": name},  # type: ignore[arg-type]
        train={"factors": 8, "iterations": 2},  # type: ignore[arg-type]
        generations_path=str(tmp_path / "generations"),
        lake_path=str(tmp_path / "lake"),
    )
    environment = environment_of(settings)
    codec, world = Codec.load(), World(7, titles=60, viewers=50, now_ms=int(time.time() * 1000))
    await ensure_topics(settings, PARTITIONS)
    await publish_items(settings, world.catalogue)
    history = await replay(settings, world.history(), speed=None)
    async with AsyncExitStack() as stack:
        store = open_store(settings.store, settings.keys)
        stack.push_async_callback(store.close)
        await store.connect()
        await run_nightly(settings, store, seed=True, force=True, progress=SilentProgress())
        night = NightSnapshot(store)
        await night.capture()
        producer = await make_producer(settings)
        stack.push_async_callback(producer.stop)
        updater = Service("updater", environment, tmp_path, port_setting="NEARLINE_HEALTH__PORT")
        stack.push_async_callback(asyncio.to_thread, updater.stop)
        updater.start()
        await updater.wait_ready()
        supervisor = Supervisor(updater, lambda _: None)
        demo = Demo("", settings, store, supervisor, history.events)

        async def watch() -> None:
            stamper = Stamper()
            for _, event in world.live(30):
                await send_event(producer, codec, settings, stamper.stamp(event, int(time.time() * 1000)))
                demo.count(1)
                await asyncio.sleep(1 / 30)

        tasks = [asyncio.create_task(supervisor.run()), asyncio.create_task(watch())]
        stack.push_async_callback(cancel_all, *tasks)
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=3))
        probe = UpdaterProbe(client, updater.url)
        buttons = await stack.enter_async_context(
            open_actions(
                settings=settings,
                environment=environment,
                folder=tmp_path,
                store=store,
                codec=codec,
                producer=producer,
                world=world,
                last_night=night,
                supervisor=supervisor,
                probe=probe,
                on_sent=demo.count,
                sent=lambda: demo.sent,
                burst_plays=400,
            )
        )
        backend = open_backend(
            settings=settings,
            store=store,
            codec=codec,
            producer=producer,
            world=world,
            client=client,
            updater_url=updater.url,
            on_sent=demo.count,
            versions=(kafka.version, valkey.version),
            last_night=night,
            buttons=buttons,
        )
        app = make_app(backend)
        port = await stack.enter_async_context(serve(app, "127.0.0.1", 0))
        stack.callback(app.state.streams.close)
        demo.url = f"http://127.0.0.1:{port}"
        yield demo


async def views(client: httpx.AsyncClient, url: str) -> AsyncIterator[dict[str, Any]]:
    """The buttons as the page is told them."""
    async with client.stream("GET", f"{url}/api/stream") as answer:
        kind = ""
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: ") and kind == "actions":
                yield {view["name"]: view for view in json.loads(line[6:])}


async def press(client: httpx.AsyncClient, url: str, action: str) -> httpx.Response:
    return await client.post(f"{url}/api/action", json={"action": action}, headers={"origin": url})


async def verdicts(client: httpx.AsyncClient, url: str, *actions: str) -> dict[str, Any]:
    """The buttons once these have ended."""
    async with asyncio.timeout(DEADLINE_S), contextlib.aclosing(views(client, url)) as told:  # type: ignore[type-var]
        async for buttons in told:
            if all(buttons[action]["state"] in ("passed", "failed") for action in actions):
                return buttons
    raise AssertionError("the stream ended")


@pytest.mark.timeout(400)
async def test_four_buttons_end_in_nothing_lost_and_nothing_doubled(
    kafka: KafkaServer, valkey: ValkeyServer, topic: TopicFactory, namespace: str, tmp_path: Path
) -> None:
    """One after the other, and all but the kill at once; the updater that answers afterwards is another process."""
    name = await topic(PARTITIONS, name=namespace)
    async with small_demo(kafka, valkey, name, tmp_path) as demo, httpx.AsyncClient(timeout=20) as client:
        killed = demo.supervisor.service.pid
        assert (await press(client, demo.url, "kill")).status_code == 200
        assert (await press(client, demo.url, "kill")).status_code == 409
        buttons = await verdicts(client, demo.url, "kill")
        assert buttons["kill"]["state"] == "passed", buttons["kill"]
        assert demo.supervisor.service.pid != killed
        assert {figure["name"] for figure in buttons["kill"]["figures"]} >= {"nothing written for", "fresh again after"}

        for action in ("generation", "burst", "poison"):
            assert (await press(client, demo.url, action)).status_code == 200
        refused = await press(client, demo.url, "generation")
        assert (refused.status_code, "only one at a time" in refused.json()["error"]) == (409, True)
        buttons = await verdicts(client, demo.url, "generation", "burst", "poison")
        for action in ("generation", "burst", "poison"):
            button = buttons[action]
            assert button["state"] == "passed", button
            assert button["message"].startswith("0 lost, 0 doubled: "), button["message"]
            assert button["verdict"]["viewers"] >= 50
            assert button["verdict"]["plays"] > 500
        assert {"name": "dead letters", "text": "6 of 6"} in buttons["poison"]["figures"]
        assert sum("Dead letter, partition" in step["text"] for step in buttons["poison"]["steps"]) == 6
        assert {"name": "swapped", "text": "activation 1 → 2"} in buttons["generation"]["figures"]
        markers = await demo.store.read_markers(range(PARTITIONS))
        assert sum(marker.dead for marker in markers.values() if marker) == 6


@pytest.mark.timeout(400)
async def test_what_is_lost_or_doubled_in_the_store_is_found(
    kafka: KafkaServer, valkey: ValkeyServer, topic: TopicFactory, namespace: str, tmp_path: Path
) -> None:
    """A state that is put back to empty, one that another viewer's plays got into, and a record that never reached the log."""
    name = await topic(PARTITIONS, name=namespace)
    await topic(1, name=f"{name}.dlq")
    settings = Settings(
        kafka={"bootstrap_servers": kafka.bootstrap, "topic": name, "group_id": name},  # type: ignore[arg-type]
        store={"url": valkey.url, "namespace": namespace},  # type: ignore[arg-type]
    )
    now_ms = int(time.time() * 1000)
    events = [whole_play(f"v{i % 5}", f"tt{i:07d}", 5_400_000, now_ms - 60_000 + i) for i in range(50)]
    await replay(settings, events)
    updater = Service("updater", environment_of(settings), tmp_path, port_setting="NEARLINE_HEALTH__PORT")
    store = open_store(settings.store, settings.keys)
    try:
        updater.start()
        await store.connect()
        async with asyncio.timeout(DEADLINE_S), open_oracle(settings) as oracle:
            while sum(m.next_offset for m in (await store.read_markers(range(PARTITIONS))).values() if m) < 50:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            right = await oracle.check(50)
            assert right.ok, right
            assert (right.viewers, right.plays, right.events, right.moving) == (5, 50, 50, 0)

            first, second = await store.read_viewer("v0"), await store.read_viewer("v1")
            await store.write_viewers([ViewerWrite("v0", first.token, b"1" * 8, 0, b"", b"", b"")])
            assert ((await oracle.check(50)).lost, (await oracle.check(50)).doubled) == (10, 0)
            await store.write_viewers([ViewerWrite("v0", b"1" * 8, b"2" * 8, 0, second.state, b"", b"")])
            assert ((await oracle.check(50)).lost, (await oracle.check(50)).doubled) == (10, 10)
            await store.write_viewers([ViewerWrite("v0", b"2" * 8, b"3" * 8, 0, first.state, b"", b"")])
            short = await oracle.check(51)
            assert (short.lost, short.ok, short.problems) == (
                1,
                False,
                ("51 records were acknowledged, and the log holds 50",),
            )
    finally:
        await asyncio.to_thread(updater.stop)
        await store.close()
