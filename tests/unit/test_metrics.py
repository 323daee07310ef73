"""What is counted by batches is what the libraries would count one by one."""

from __future__ import annotations

import os

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from contracts.keys import TOKEN_BYTES
from runtime.quantiles import LatencyHistogram
from updater.metrics import _FRESHNESS_BUCKETS, _TIMINGS_KEPT, Metrics, RowTiming
from viewers.tokens import draw_token


def test_a_batch_of_rows_is_counted_as_the_library_counts_them() -> None:
    metrics, registry = Metrics(), CollectorRegistry()
    name = "nearline_event_to_row_seconds"
    theirs = Histogram(name, "event time to row visible", buckets=_FRESHNESS_BUCKETS, registry=registry)
    now_ms = 1_700_000_000_000
    lags_ms = [0, 1, 2, 5, 6, 250, 251, 59_999, 3_600_000, 3_600_001, -40]
    for at in range(0, len(lags_ms), 4):
        some = lags_ms[at : at + 4]
        metrics.observe_rows(
            [f"{at}.{i}" for i in range(len(some))], RowTiming(0, 0, now_ms), [now_ms - lag for lag in some]
        )
        for lag_ms in some:
            theirs.observe(max(0.0, lag_ms / 1000))
    lines = {line for line in generate_latest(metrics.registry).decode().splitlines() if name in line}
    assert lines == {
        line for line in generate_latest(registry).decode().splitlines() if name in line and "_created" not in line
    }
    assert metrics.rows_written == len(lags_ms)


def test_the_timings_of_the_newest_rows_are_kept() -> None:
    metrics = Metrics()
    for batch in range(12):
        metrics.observe_rows([f"{batch}.{i}" for i in range(512)], RowTiming(batch, batch, batch), [0])
    newest = [f"{row}" for row in (11 - i // 512 for i in range(_TIMINGS_KEPT))]
    assert all(metrics.timing(f"{batch}.7") == RowTiming(batch, batch, batch) for batch in map(int, set(newest)))
    assert metrics.timing("0.7") is None


@pytest.mark.parametrize(
    "seconds", [[0.004] * 100, [-1.0, 0.0, 1e-5, 1e-4, 0.02, 3.0, 1e9], np.geomspace(1e-4, 10, 1000)]
)
def test_percentiles_are_within_a_bucket_of_the_samples(seconds: list[float]) -> None:
    histogram, samples = LatencyHistogram(), np.array(seconds)
    for part in np.array_split(samples, 3):
        histogram.add(part)
    found = histogram.percentiles()
    assert (found.count, found.max) == (len(samples), samples.max())
    for q, told in ((50, found.p50), (95, found.p95), (99, found.p99)):
        exact = max(1e-5, float(np.percentile(samples, q, method="inverted_cdf")))
        if exact < 1e4:  # beyond: the last bucket
            assert exact <= told * 1.0001 <= exact * 1.0401


def test_tokens_are_drawn_anew_in_a_child() -> None:
    ours = {draw_token() for _ in range(2_000)}
    assert len(ours) == 2_000
    assert {len(token) for token in ours} == {TOKEN_BYTES}
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, draw_token())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 64) != draw_token()
