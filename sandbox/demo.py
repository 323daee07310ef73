"""`nearline demo`: a whole streaming service on this machine, from an empty folder to a moving row.

1. Kafka and Valkey start while the simulated service writes three weeks of history.
2. The history goes through the real topic; the nightly job copies it to the lake, trains, publishes, rebuilds every row.
3. An updater, an aggregator of trends and a home-page service start, as processes of their own, with the settings an operator would
   give them.
4. Viewers watch, rows move, and a page shows one of them.
5. At the end: nothing may be left behind, nothing unaccounted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape

from batch.review.files import find_page
from contracts.codec import Codec
from runtime.kafka import AIOKafkaProducer, make_producer
from runtime.logs import configure_logs
from runtime.settings import Settings, load_settings
from runtime.tasks import cancel_all
from sandbox.browsing import Browsing, pages_of
from sandbox.children import FolderLock, find_free_port, port_is_free
from sandbox.demo_environment import shell_path, write_environment
from sandbox.live_backend import open_backend
from sandbox.live_sources import NightSnapshot, UpdaterProbe
from sandbox.processes import Service, ServiceUnavailable, get_json
from sandbox.replay import publish_items, replay, send_event
from sandbox.servers import DEFAULT_FOLDER, Sandbox
from sandbox.supervisor import Supervisor
from sandbox.topics import ensure_topics
from sandbox.world import Stamper, World
from viewers.redis_store import RedisStore, open_store

PARTITIONS = 4
DRAIN_DEADLINE_S = 30.0
STATS_DEADLINE_S = 30.0
"""An updater that has ended is started again and answers by then."""
SESSION_MS = 6_000
"""A killed updater's partitions are given to the next one after this: the shortest that Kafka takes without being asked."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the person asked for. `run_for_s` None: until Ctrl-C."""

    run_for_s: float | None
    json_output: bool
    rate: float
    seed: int
    port: int


@dataclass(slots=True)
class Progress:
    """Status lines on standard error, each with the seconds since the start."""

    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False, soft_wrap=True))
    started_s: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(f"[dim]{time.monotonic() - self.started_s:6.1f} s[/dim]  {text}")


def run_demo(options: DemoOptions) -> int:
    """Run the demo in the foreground; the exit status: 0 only if every event is accounted for."""
    try:
        return asyncio.run(_Demo(options).run())
    except KeyboardInterrupt:
        return 130


class _Demo:
    def __init__(self, options: DemoOptions) -> None:
        self.options = options
        self.progress = Progress()
        self.folder = Path(DEFAULT_FOLDER).absolute() / "demo"
        self.environment_file = self.folder / "env"
        self.stopping = asyncio.Event()
        self.sent = 0  # live events handed to the producer
        self.sent_before = 0  # of the history

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, self._stop)
        say = self.progress.say
        outside = load_settings()  # an address in the settings is used instead of a server of our own
        sandbox = Sandbox(self.folder, **_given_servers(outside))
        self._clear_folder()
        say("starting Kafka and Valkey, and simulating three weeks of a streaming service")
        try:
            starting = asyncio.create_task(asyncio.to_thread(sandbox.start))
            world = World(self.options.seed, now_ms=int(time.time() * 1000))
            history = await asyncio.to_thread(world.history)
            await starting
            say(
                f"{sandbox.kafka.version} on {sandbox.kafka.bootstrap}, {sandbox.valkey.version} on {sandbox.valkey.url}"
            )
            settings, environment = self._settings(sandbox)
            configure_logs(settings)
            if self.stopping.is_set():
                return 130
            await self._history(settings, world, history)
            generation_id = await self._nightly(settings)
            async with self._services(environment) as (updater, homepage):
                return await self._live(settings, environment, sandbox, world, updater, homepage, generation_id)
        finally:
            await asyncio.to_thread(sandbox.stop)

    def _stop(self) -> None:
        self.stopping.set()

    def _clear_folder(self) -> None:
        """A fresh start each time. Errors: `SandboxError`, with nothing removed, if a running demo holds any part of the folder."""
        claimed = ("kafka", "valkey", "updater", "trends", "homepage", "nightly")
        for name in claimed:
            _require_free(self.folder / name, name)
        for name in ("generations", "lake", *claimed):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _settings(self, sandbox: Sandbox) -> tuple[Settings, dict[str, str]]:
        """The settings of every process, and the same as environment variables."""
        environment = {
            "NEARLINE_KAFKA__BOOTSTRAP_SERVERS": sandbox.kafka.bootstrap,
            "NEARLINE_STORE__URL": sandbox.valkey.url,
            "NEARLINE_GENERATIONS_PATH": str(self.folder / "generations"),
            "NEARLINE_LAKE_PATH": str(self.folder / "lake"),
            "NEARLINE_TRAIN__FACTORS": "32",
            # Somebody waits for the first row: ten seconds less, and five.
            "NEARLINE_TRAIN__SEQUENCE_EPOCHS": "0",
            "NEARLINE_TRAIN__RANKER_PLAYS": "2000",
            "NEARLINE_KAFKA__SESSION_TIMEOUT_MS": str(SESSION_MS),
            "NEARLINE_LOG_LEVEL": "warning",
        }
        os.environ.update(environment)
        write_environment(self.environment_file, os.environ)
        return load_settings(), {**environment, "NEARLINE_LOG_LEVEL": "info"}

    async def _history(self, settings: Settings, world: World, history: list[Any]) -> None:
        await ensure_topics(settings, PARTITIONS)
        await publish_items(settings, world.catalogue)
        report = await replay(settings, history, speed=None)
        self.sent_before = report.events
        self.progress.say(
            f"{len(world.catalogue):,} titles, {len(world.viewers):,} viewers and {report.events:,} events of history sent "
            f"through topic '{settings.kafka.topic}' ({report.events_per_s:,.0f} events/s)"
        )

    async def _nightly(self, settings: Settings) -> str:
        from batch.nightly import run_nightly

        store = open_store(settings.store, settings.keys)
        await store.connect()
        try:
            report = await run_nightly(settings, store, seed=True, force=True)
        finally:
            await store.close()
        steps = ", ".join(f"{step} {seconds:.1f} s" for step, seconds in report.seconds.items())
        self.progress.say(f"nightly job: {report.headline()}")
        self.progress.say(f"  [dim]{steps}[/dim]")
        return str(report.generation_id)

    @contextlib.asynccontextmanager
    async def _services(self, environment: dict[str, str]) -> AsyncIterator[tuple[Service, Service]]:
        updater = Service("updater", environment, self.folder, port_setting="NEARLINE_HEALTH__PORT")
        trends = Service("trends", environment, self.folder, port_setting="NEARLINE_HEALTH__PORT")
        homepage = Service("homepage", environment, self.folder, port_setting="NEARLINE_HOMEPAGE__PORT")
        try:
            for service in (updater, homepage):
                service.start()
            await asyncio.gather(updater.wait_ready(), homepage.wait_ready())
            trends.start()  # what moves the first row does not wait for it
            yield updater, homepage
        finally:
            for service in (homepage, trends, updater):
                await asyncio.to_thread(service.stop)

    async def _live(
        self,
        settings: Settings,
        environment: dict[str, str],
        sandbox: Sandbox,
        world: World,
        updater: Service,
        homepage: Service,
        generation_id: str,
    ) -> int:
        from runtime.http import serve
        from sandbox.livepage import make_app

        codec = Codec.load(settings.registry_path)
        store = open_store(settings.store, settings.keys)
        await store.connect()
        night = NightSnapshot(store)
        await night.capture()
        producer = await make_producer(settings)
        async with httpx.AsyncClient(timeout=3) as client, contextlib.AsyncExitStack() as stack:
            try:
                pages = pages_of(client, homepage.url, world.viewers)
                browsing = Browsing(pages, world.draws, world.catalogue, seed=self.options.seed)
                viewers = asyncio.create_task(self._watchers(producer, codec, settings, world, browsing))
                titles = asyncio.create_task(self._releases(producer, codec, settings, world))
                supervisor = Supervisor(updater, self.progress.say)
                supervising = asyncio.create_task(supervisor.run())
                stack.push_async_callback(cancel_all, viewers, titles, supervising)
                await self._first_row(client, updater, supervising)
                # What a button has started ends before the last look at what is accounted for.
                pressed = await stack.enter_async_context(contextlib.AsyncExitStack())
                if not self.options.json_output:
                    from sandbox.live_hands import open_actions

                    probe = UpdaterProbe(client, updater.url)
                    buttons = await pressed.enter_async_context(
                        open_actions(
                            settings=settings,
                            environment=environment,
                            folder=self.folder,
                            store=store,
                            codec=codec,
                            producer=producer,
                            world=world,
                            last_night=night,
                            supervisor=supervisor,
                            probe=probe,
                            on_sent=self._count,
                            sent=lambda: self.sent_before + self.sent,
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
                        on_sent=self._count,
                        versions=(sandbox.kafka.version, sandbox.valkey.version),
                        last_night=night,
                        buttons=buttons,
                    )
                    app = make_app(backend, lambda: find_page(settings.lake_path))
                    port = (
                        self.options.port if self.options.port and port_is_free(self.options.port) else find_free_port()
                    )
                    page_port = await stack.enter_async_context(serve(app, "127.0.0.1", port))
                    stack.callback(app.state.streams.close)
                    self._invite(page_port, homepage, world)
                await self._wait((viewers, titles, supervising), updater, homepage)
                await pressed.aclose()
                await cancel_all(viewers, titles)
                await producer.flush()
                stats = await self._drained(client, updater, store, supervising)
                await cancel_all(supervising)
                await asyncio.to_thread(updater.stop)
                return await self._report(sandbox, store, stats, generation_id, supervisor.restarts)
            finally:
                await producer.stop()
                await store.close()

    def _count(self, events: int) -> None:
        self.sent += events

    async def _watchers(
        self, producer: AIOKafkaProducer, codec: Codec, settings: Settings, world: World, browsing: Browsing
    ) -> None:
        """The simulated audience: send each event when its time has come, many under way at once."""
        stamper, started_s = Stamper(), time.monotonic()
        for due_s, event in world.live(self.options.rate):
            wait_s = started_s + due_s - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            event = await browsing.happens(event, late_s=-wait_s)
            await send_event(producer, codec, settings, stamper.stamp(event, int(time.time() * 1000)))
            self._count(1)

    async def _releases(self, producer: AIOKafkaProducer, codec: Codec, settings: Settings, world: World) -> None:
        """New titles enter the catalogue all the time."""
        started_s = time.monotonic()
        for due_s, item in world.new_titles():
            await asyncio.sleep(max(0.0, started_s + due_s - time.monotonic()))
            await producer.send(settings.kafka.catalogue_topic, codec.encode_item(item), key=item.item_id.encode())

    async def _first_row(self, client: httpx.AsyncClient, updater: Service, supervising: asyncio.Task[None]) -> None:
        while not self.stopping.is_set():
            stats = await _read_stats(client, updater, supervising)
            if stats["rows_written"]:
                break
            await asyncio.sleep(0.02)
        self.progress.say("[bold]the first row moved[/bold]")

    def _invite(self, port: int, homepage: Service, world: World) -> None:
        viewer = world.viewers[0].viewer
        console = self.progress.console
        console.print()
        console.print(
            f"  [bold]The live page:   http://127.0.0.1:{port}/[/bold]   choose a viewer, press play, watch the row answer"
        )
        console.print(f"  The home-page service: {homepage.url}/v1/home/{viewer}")
        console.print("  Next, in another terminal, with the same settings:")
        console.print(f"    [bold]. {escape(shell_path(self.environment_file))}[/bold]")
        console.print(f"    [bold]./run nearline explain {viewer}[/bold]   (why each title is there)")
        console.print("  Ctrl-C ends everything.")
        console.print()

    async def _wait(self, tasks: tuple[asyncio.Task[None], ...], updater: Service, homepage: Service) -> None:
        """Until the person or the clock says stop; raises if anything that should run has ended for good."""
        ends_s = None if self.options.run_for_s is None else time.monotonic() + self.options.run_for_s
        shown_s = time.monotonic() + 3
        async with httpx.AsyncClient(timeout=3) as client:
            while not self.stopping.is_set() and (ends_s is None or time.monotonic() < ends_s):
                for task in tasks:
                    if task.done() and not task.cancelled() and task.exception() is not None:
                        await task
                homepage.require_running()
                if time.monotonic() > shown_s and not self.options.json_output:
                    shown_s = time.monotonic() + 10
                    with contextlib.suppress(ServiceUnavailable):  # being started again, which has been said
                        self._say_stats(await get_json(client, updater.url + "/stats"))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stopping.wait(), 0.2)

    def _say_stats(self, stats: dict[str, Any]) -> None:
        recent: dict[str, Any] = stats["freshness_recent_s"]
        if not recent["count"]:  # an updater that has only just started
            return
        self.progress.say(
            f"event → row: p50 {recent['p50'] * 1000:.0f} ms, p99 {recent['p99'] * 1000:.0f} ms; "
            f"{stats['rows_written']:,} rows written, lag {stats['lag_records']}, unaccounted {stats['unaccounted']}"
        )

    async def _drained(
        self, client: httpx.AsyncClient, updater: Service, store: RedisStore, supervising: asyncio.Task[None]
    ) -> dict[str, Any]:
        """Wait until every event sent is finished (or the deadline passes: then lag says so); the updater's last figures."""
        deadline_s = time.monotonic() + DRAIN_DEADLINE_S
        while time.monotonic() < deadline_s:
            markers = [m for p in range(PARTITIONS) if (m := await store.read_marker(p)) is not None]
            if sum(m.next_offset - m.origin for m in markers) >= self.sent:
                break
            if supervising.done():
                await supervising
            await asyncio.sleep(0.02)
        return await _read_stats(client, updater, supervising)

    async def _report(
        self, sandbox: Sandbox, store: RedisStore, stats: dict[str, Any], generation_id: str, restarts: int
    ) -> int:
        markers = [m for p in range(PARTITIONS) if (m := await store.read_marker(p)) is not None]
        finished = sum(m.next_offset - m.origin for m in markers)
        # Two independent questions: does every finished offset have a fate, and was every event we sent finished?
        unaccounted = sum(abs(m.unaccounted) for m in markers) + abs(self.sent - finished)
        viewers = 0
        async for batch in store.scan_viewers():
            viewers += len(batch)
        freshness = {name: round(stats["freshness_s"][name] * 1000, 2) for name in ("p50", "p95", "p99", "max")}
        result = {
            "events": self.sent,
            "rows_written": stats["rows_written"],
            "viewers": viewers,
            "lag_records": max(0, self.sent - finished),
            "freshness_ms": freshness,
            "dead_letters": sum(m.dead for m in markers),
            "private": sum(m.private for m in markers),
            "unaccounted": unaccounted,
            "generation_id": stats["generation_id"] or generation_id,
            "kafka_version": sandbox.kafka.version.split()[-1],
            "valkey_version": sandbox.valkey.version.split()[-1],
        }
        if self.options.json_output:
            print(json.dumps(result), flush=True)
        else:
            since = " since the updater was last started again" if restarts else ""
            self.progress.say(
                f"[bold]{self.sent:,} events, {stats['rows_written']:,} rows rewritten{since} for {viewers:,} viewers[/bold]; "
                f"event → row p50 {freshness['p50']:.0f} ms, p95 {freshness['p95']:.0f} ms, p99 {freshness['p99']:.0f} ms; "
                f"{result['private']} private, {result['dead_letters']} dead letters, [bold]{unaccounted} unaccounted[/bold]"
            )
        return 0 if unaccounted == 0 else 1


async def _read_stats(client: httpx.AsyncClient, updater: Service, supervising: asyncio.Task[None]) -> dict[str, Any]:
    """The updater's figures, waited for while it is started again. Errors: what its supervisor gave up with; `ServiceUnavailable`."""
    deadline_s = time.monotonic() + STATS_DEADLINE_S
    while True:
        try:
            return await get_json(client, updater.url + "/stats")
        except ServiceUnavailable:
            if supervising.done():
                await supervising
            if time.monotonic() > deadline_s:
                raise
        await asyncio.sleep(0.1)


def _given_servers(settings: Settings) -> dict[str, str]:
    """Addresses that the environment gives; without one the sandbox starts a server of its own."""
    given = {}
    if "NEARLINE_KAFKA__BOOTSTRAP_SERVERS" in os.environ:
        given["bootstrap"] = settings.kafka.bootstrap_servers
    if "NEARLINE_STORE__URL" in os.environ:
        given["url"] = settings.store.url.get_secret_value()
    return given


def _require_free(folder: Path, what: str) -> None:
    """Errors: `SandboxError` if a live process holds the folder's claim."""
    if folder.exists():
        claim = FolderLock(folder, what)
        claim.acquire()
        claim.release()
