"""The updater's metrics: a counter for every decision, freshness as percentiles, lag in records and seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from contracts.shares import Share
from runtime.quantiles import RollingLatency

_FRESHNESS_BUCKETS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25),
    *(0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 3600.0),
)
_TIMINGS_KEPT = 4_096
IN_FORCE, CANDIDATE = ARMS = ("in_force", "candidate")


@dataclass(frozen=True, slots=True)
class RowTiming:
    """Wall-clock milliseconds of one row's way: fetched, computed (started), written."""

    fetched_at_ms: float
    computed_at_ms: float
    written_at_ms: float


class _Histogram(Collector):
    """A histogram that takes many values at once; the library's takes as long for each as a row's share of a batch."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name, self._documentation = name, documentation
        self._bounds = np.array([*bounds, np.inf])
        self._counts = np.zeros(len(self._bounds), np.int64)
        self._sum = 0.0

    def observe(self, values: NDArray[np.float64]) -> None:
        """(n,) float64."""
        at = np.searchsorted(self._bounds, values)
        self._counts += np.bincount(at, minlength=len(self._counts))
        self._sum += float(values.sum())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """As the library's own."""
        cumulated = np.cumsum(self._counts).tolist()
        names = map(floatToGoString, self._bounds.tolist())
        yield HistogramMetricFamily(
            self._name, self._documentation, buckets=list(zip(names, cumulated, strict=True)), sum_value=self._sum
        )


class Metrics:
    """Everything that `/metrics` and `/stats` tell. One instance a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        ProcessCollector(registry=r)
        self.records = Counter("nearline_records_total", "records fetched and decided", ["decision"], registry=r)
        self.rows = Counter(
            "nearline_rows_written_total", "home rows written, by whose generation they are of", ["arm"], registry=r
        )
        for arm in ARMS:
            self.rows.labels(arm)
        self.share = Gauge(
            "nearline_share_percent", "viewers in a hundred who see a candidate; 0: everybody sees one", registry=r
        )
        self.candidate_refused = Gauge(
            "nearline_candidate_refused",
            "1: the candidate does not load here; its viewers' rows stand still",
            registry=r,
        )
        self.batches = Counter("nearline_batches_total", "micro-batches finished", registry=r)
        self.retries = Counter("nearline_retries_total", "batches done again", ["cause"], registry=r)
        self.swaps = Gauge("nearline_generation_swaps_total", "generations taken up since start", registry=r)
        self.refusals = Gauge("nearline_generations_refused_total", "generations refused since start", registry=r)
        self.generation_age = Gauge("nearline_generation_age_seconds", "age of the generation in force", registry=r)
        self.trends_live = Gauge(
            "nearline_trends_live", "0: trends as old as the generation serve, and should not", registry=r
        )
        self.trends_age = Gauge(
            "nearline_trends_age_seconds",
            "since the aggregator last said which trends are newest; 0: none serve",
            registry=r,
        )
        self.trends_refused = Gauge("nearline_trends_refused_total", "trends snapshots refused since start", registry=r)
        self.frozen = Gauge("nearline_frozen", "1: rows are frozen and do not follow the plays", registry=r)
        self.activation = Gauge("nearline_activation", "activation in force", registry=r)
        self.event_to_row = _Histogram("nearline_event_to_row_seconds", "event time to row visible", _FRESHNESS_BUCKETS)
        r.register(self.event_to_row)
        labels = ["consumergroup", "topic", "partition"]
        self.lag_records = Gauge("nearline_lag_records", "records behind the log's end", labels, registry=r)
        self.lag_seconds = Gauge("nearline_lag_seconds", "age of the oldest unprocessed record", labels, registry=r)
        self.unaccounted = Gauge("nearline_unaccounted", "offsets without a fate; must be 0", labels, registry=r)
        self.loop_stall = Gauge(
            "nearline_loop_stall_seconds", "longest stall of the event loop in the last 10 s", registry=r
        )
        self.freshness = RollingLatency()
        self.rows_written = 0
        self._timings: deque[tuple[frozenset[str], RowTiming]] = deque()  # a batch each, the newest last
        self._timings_kept = 0

    def count_rows(self, viewers: Collection[str], share: Share | None) -> None:
        """Rows were written for these viewers."""
        candidates = 0 if share is None else sum(map(share.holds, viewers))
        self.rows.labels(IN_FORCE).inc(len(viewers) - candidates)
        self.rows.labels(CANDIDATE).inc(candidates)

    def observe_rows(self, row_ids: Sequence[str], timing: RowTiming, event_times_ms: Sequence[int]) -> None:
        """Rows that were written at once became visible, and with them their events. The rows' timing is kept for a while, so that the
        way of one event can be shown."""
        self.rows_written += len(row_ids)
        seconds = (timing.written_at_ms - np.array(event_times_ms, dtype=np.float64)) / 1000
        self.event_to_row.observe(seconds.clip(min=0.0))
        self.freshness.add(seconds, timing.written_at_ms / 1000)
        self._timings.append((frozenset(row_ids), timing))
        self._timings_kept += len(row_ids)
        while self._timings_kept - len(self._timings[0][0]) >= _TIMINGS_KEPT:
            self._timings_kept -= len(self._timings.popleft()[0])

    def timing(self, row_id: str) -> RowTiming | None:
        """A recent row's timing."""
        return next((timing for row_ids, timing in reversed(self._timings) if row_id in row_ids), None)
