"""The updater's metrics: a counter for every decision, freshness as percentiles, lag in records and seconds."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from runtime.quantiles import RollingLatency

_FRESHNESS_BUCKETS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25),
    *(0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 3600.0),
)
_TIMINGS_KEPT = 4_096


@dataclass(frozen=True, slots=True)
class RowTiming:
    """Wall-clock milliseconds of one row's way: fetched, computed (started), written."""

    fetched_at_ms: float
    computed_at_ms: float
    written_at_ms: float


class Metrics:
    """Everything that `/metrics` and `/stats` tell. One instance a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.records = Counter("nearline_records_total", "records fetched and decided", ["decision"], registry=r)
        self.rows = Counter("nearline_rows_written_total", "home rows written", registry=r)
        self.batches = Counter("nearline_batches_total", "micro-batches finished", registry=r)
        self.retries = Counter("nearline_retries_total", "batches done again", ["cause"], registry=r)
        self.swaps = Gauge("nearline_generation_swaps_total", "generations taken up since start", registry=r)
        self.refusals = Gauge("nearline_generations_refused_total", "generations refused since start", registry=r)
        self.generation_age = Gauge("nearline_generation_age_seconds", "age of the generation in force", registry=r)
        self.activation = Gauge("nearline_activation", "activation in force", registry=r)
        self.event_to_row = Histogram(
            "nearline_event_to_row_seconds", "event time to row visible", buckets=_FRESHNESS_BUCKETS, registry=r
        )
        labels = ["consumergroup", "topic", "partition"]
        self.lag_records = Gauge("nearline_lag_records", "records behind the log's end", labels, registry=r)
        self.lag_seconds = Gauge("nearline_lag_seconds", "age of the oldest unprocessed record", labels, registry=r)
        self.unaccounted = Gauge("nearline_unaccounted", "offsets without a fate; must be 0", labels, registry=r)
        self.loop_stall = Gauge(
            "nearline_loop_stall_seconds", "longest stall of the event loop in the last 10 s", registry=r
        )
        self.freshness = RollingLatency()
        self.rows_written = 0
        self._timings: OrderedDict[str, RowTiming] = OrderedDict()

    def observe_freshness(self, event_time_ms: int, written_at_ms: float) -> None:
        """One event's row became visible."""
        seconds = (written_at_ms - event_time_ms) / 1000
        self.event_to_row.observe(max(0.0, seconds))
        self.freshness.add(seconds, written_at_ms / 1000)

    def keep_timing(self, row_id: str, timing: RowTiming) -> None:
        """Remember a row's timing for a while, so that the way of one event can be shown."""
        self._timings[row_id] = timing
        while len(self._timings) > _TIMINGS_KEPT:
            self._timings.popitem(last=False)

    def timing(self, row_id: str) -> RowTiming | None:
        """A recent row's timing."""
        return self._timings.get(row_id)
