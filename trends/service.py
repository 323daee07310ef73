"""The aggregator as a process: health, metrics, signals."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette

from runtime.health import make_health_app
from runtime.http import serve
from runtime.schemas import Schemas
from runtime.settings import Settings
from runtime.tasks import stop_on_signals
from trends.aggregator import Aggregator
from trends.process import wall_ms
from viewers.redis_store import open_store

log = structlog.get_logger()


class Metrics(Collector):
    """What `/metrics` tells: the aggregator's figures as they are when asked."""

    def __init__(self, aggregator: Aggregator) -> None:
        self._aggregator = aggregator
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """As the library asks for it."""
        figures = self._aggregator.figures
        records = CounterMetricFamily(
            "nearline_trends_records", "records read, by what became of them", labels=["decision"]
        )
        for decision, count in figures.records.items():
            records.add_metric([decision], count)
        yield records
        yield CounterMetricFamily(
            "nearline_trends_snapshots", "snapshots made since the start", value=figures.snapshots
        )
        for name, text, value in (
            ("nearline_trends_counting", "1: this process counts; 0: it stands by, or waits", figures.counting),
            ("nearline_trends_plays", "plays counted since the generation's cut-off", figures.plays),
            ("nearline_trends_lag_records", "records not counted yet", figures.lag),
            ("nearline_trends_new_items", "items served that the night has not learnt", figures.new_items),
            ("nearline_trends_snapshot_bytes", "size of the newest snapshot", figures.snapshot_bytes),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))


def make_app(aggregator: Aggregator, candidate: Aggregator | None = None) -> Starlette:
    """`/health/live`, `/health/ready`, `/metrics`, `/stats`."""

    def ready() -> tuple[bool, dict[str, object]]:
        figures = aggregator.figures
        is_ready = figures.counting or figures.standing_by
        return is_ready, {"ready": is_ready, "counting": figures.counting, "standing_by": figures.standing_by}

    def told() -> dict[str, object]:
        beside = {} if candidate is None or not candidate.figures.counting else {"candidate": stats_of(candidate)}
        return stats_of(aggregator) | beside

    return make_health_app(Metrics(aggregator).registry, ready, told)


def stats_of(aggregator: Aggregator) -> dict[str, object]:
    """What the live page shows."""
    figures = aggregator.figures
    age_s = (wall_ms() - figures.published_at_ms) / 1000 if figures.published_at_ms else None
    return {
        "counting": figures.counting,
        "plays": figures.plays,
        "records": dict(sorted(figures.records.items())),
        "lag_records": figures.lag,
        "snapshot": figures.newest or None,
        "snapshots": figures.snapshots,
        "snapshot_bytes": figures.snapshot_bytes,
        "new_items": figures.new_items,
        "published_s_ago": None if age_s is None else round(age_s, 1),
    }


async def run_trends(settings: Settings) -> None:
    """Run until SIGTERM or Ctrl-C."""
    instance = f"{os.uname().nodename}-{os.getpid()}"
    async with AsyncExitStack() as stack:
        aggregator = await _open(settings, instance, stack)
        candidate = await _open(settings, instance, stack, for_candidate=True)

        def stop() -> None:
            aggregator.stop()
            candidate.stop()

        stop_on_signals(stop)
        health, app = settings.health, make_app(aggregator, candidate)
        async with serve(app, health.host, health.port, setting="NEARLINE_HEALTH__PORT") as port:
            log.info("trends_listening", host=health.host, port=port, instance=instance)
            await asyncio.gather(aggregator.run(), candidate.run())
    log.info("trends_stopped", plays=aggregator.figures.plays, snapshots=aggregator.figures.snapshots)


async def _open(settings: Settings, instance: str, stack: AsyncExitStack, *, for_candidate: bool = False) -> Aggregator:
    """With connections of its own: each mends them when it has to."""
    store = open_store(settings.store, settings.keys)
    stack.push_async_callback(store.close)
    schemas = Schemas(settings)
    codec = await asyncio.to_thread(schemas.begin)
    return Aggregator(settings, store, codec, instance=instance, schemas=schemas, for_candidate=for_candidate)
