"""The aggregator as a process: health, metrics, signals."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

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
from trends.aggregator import Aggregator, wall_ms
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


def make_app(aggregator: Aggregator) -> Starlette:
    """`/health/live`, `/health/ready`, `/metrics`, `/stats`."""

    def ready() -> tuple[bool, dict[str, object]]:
        figures = aggregator.figures
        is_ready = figures.counting or figures.standing_by
        return is_ready, {"ready": is_ready, "counting": figures.counting, "standing_by": figures.standing_by}

    return make_health_app(Metrics(aggregator).registry, ready, lambda: stats_of(aggregator))


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
    store = open_store(settings.store, settings.keys)
    instance = f"{os.uname().nodename}-{os.getpid()}"
    schemas = Schemas(settings)
    codec = await asyncio.to_thread(schemas.begin)
    aggregator = Aggregator(settings, store, codec, instance=instance, schemas=schemas)
    stop_on_signals(aggregator.stop)
    try:
        health = settings.health
        async with serve(make_app(aggregator), health.host, health.port, setting="NEARLINE_HEALTH__PORT") as port:
            log.info("trends_listening", host=health.host, port=port, instance=instance)
            await aggregator.run()
    finally:
        await store.close()
    log.info("trends_stopped", plays=aggregator.figures.plays, snapshots=aggregator.figures.snapshots)
