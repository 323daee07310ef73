"""Runs the home-page service: one process, one loop, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import structlog

from homepage.catalogue import LiveCatalogue
from homepage.identity import choose_identity
from homepage.impressions import KafkaImpressions, QueuedImpressions
from homepage.limits import RequestLimits
from homepage.service import ROW_DEADLINE_S, DefaultRows, Homepage, Metrics, make_app
from homepage.traces import PageTraces
from runtime.catalogue_feed import CatalogueFeed
from runtime.garbage import keep_what_is_there
from runtime.http import serve
from runtime.learning_codec import LearningCodec
from runtime.schemas import Schemas
from runtime.settings import Settings
from runtime.tasks import cancel_all, stop_on_signals
from runtime.tracing import open_tracer
from viewers.redis_store import open_store
from viewers.store import Store

try:
    from uvloop import run as run_loop
except ImportError:  # there is none for Windows
    from asyncio import run as run_loop  # type: ignore[assignment]

log = structlog.get_logger()


async def run_homepage(
    settings: Settings,
    *,
    stop: asyncio.Event,
    store: Store | None = None,
    on_listening: Callable[[int], None] | None = None,
) -> None:
    """Serve until `stop` is set. `on_listening` is told the bound port (port 0 takes a free one).

    `store` None: the one in the settings. A store or a broker that is away does not keep the service from starting: it serves
    default rows, and drops impressions, until they are back. Raises `SettingsError` if the address cannot be bound, or if anyone
    could ask for anyone's row there.
    """
    page = settings.homepage
    metrics = Metrics()
    identify = choose_identity(page, lambda reason: metrics.refused.labels(reason).inc())
    async with AsyncExitStack() as stack:
        # Left in the opposite order: stop serving, send what is queued, end the tasks, then close what they use.
        reader = store if store is not None else open_store(settings.store, settings.keys, deadline_s=ROW_DEADLINE_S)
        if store is None:
            stack.push_async_callback(reader.close)
        tracer = open_tracer(settings.tracing, "nearline-homepage")
        if tracer is not None:
            stack.push_async_callback(asyncio.to_thread, tracer.close)  # after impressions are sent: they matter more
        schemas = Schemas(settings)
        learning = LearningCodec(
            await asyncio.to_thread(schemas.begin), schemas=schemas
        )  # what others write, by a schema that may be newer than this process
        catalogue = LiveCatalogue(settings.generations_path)
        kafka = KafkaImpressions(settings, learning, metrics.impressions_lost)
        stack.push_async_callback(kafka.close)
        tasks = await stack.enter_async_context(_Background())
        impressions = QueuedImpressions(kafka.send, metrics.impressions_lost)
        stack.push_async_callback(impressions.drain)
        defaults = DefaultRows(reader)
        traces = None if tracer is None else PageTraces(tracer, reader)
        homepage = Homepage(
            reader, learning, catalogue, impressions, defaults, metrics, identify,
            territory=page.territory, limits=RequestLimits.of(page), traces=traces,
        )  # fmt: skip
        await defaults.refresh()
        tasks.start(
            defaults.run(), catalogue.run(), impressions.run(), CatalogueFeed(settings, learning, catalogue).run()
        )
        if traces is not None:
            tasks.start(traces.run())
        port = await stack.enter_async_context(
            serve(
                make_app(homepage),
                page.host,
                page.port,
                setting="NEARLINE_HOMEPAGE__PORT",
                trusted_proxies=page.trusted_proxies,
            )
        )
        log.info("homepage_listening", host=page.host, port=port, viewer_from="token" if page.with_token else "path")
        if on_listening is not None:
            on_listening(port)
        await stop.wait()
    log.info("homepage_stopped")


def main(settings: Settings) -> None:
    """Run in the foreground: prints where it listens, stops cleanly at SIGTERM and SIGINT."""

    async def run() -> None:
        stop = asyncio.Event()
        stop_on_signals(stop.set)
        await run_homepage(settings, stop=stop, on_listening=listening)

    def listening(port: int) -> None:
        keep_what_is_there()
        _say(f"home page on http://{settings.homepage.host}:{port}")

    run_loop(run())


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class _Background:
    """Tasks that are cancelled when the block ends; one that fails by itself is logged, the service goes on."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, *coroutines: Coroutine[Any, Any, None]) -> None:
        for coroutine in coroutines:
            task = asyncio.create_task(coroutine)
            task.add_done_callback(self._ended)
            self._tasks.append(task)

    async def __aenter__(self) -> _Background:
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel_all(*self._tasks)

    @staticmethod
    def _ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background_task_failed", error=type(error).__name__)
