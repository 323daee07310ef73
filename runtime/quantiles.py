"""A histogram of latencies with 2 % wide buckets: percentiles of any number of samples in constant memory."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_GROWTH = 1.02
_SMALLEST_S = 1e-5
_BUCKETS = 1_200  # 10 µs · 1.02^1200 ≈ 2 × 10^5 s


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Seconds; all 0 without samples."""

    count: int
    p50: float
    p95: float
    p99: float
    max: float


class LatencyHistogram:
    """Counts samples in buckets that grow by 2 %; a percentile is off by at most that."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BUCKETS, dtype=np.int64)
        self._max = 0.0

    def add(self, seconds: NDArray[np.float64]) -> None:
        """Add samples, (n,) float64, at least one; negative ones (clocks apart) count as the smallest."""
        steps = np.log(np.maximum(seconds, _SMALLEST_S) / _SMALLEST_S) / math.log(_GROWTH)
        buckets = np.where(seconds <= _SMALLEST_S, 0, np.minimum(steps.astype(np.int64) + 1, _BUCKETS - 1))
        self._counts += np.bincount(buckets, minlength=_BUCKETS)
        self._max = max(self._max, float(seconds.max()))

    def merge(self, other: LatencyHistogram) -> None:
        """Add the other's samples."""
        self._counts += other._counts
        self._max = max(self._max, other._max)

    def percentiles(self) -> Percentiles:
        """Upper edges of the buckets that hold p50, p95 and p99."""
        total = int(self._counts.sum())
        if not total:
            return Percentiles(0, 0.0, 0.0, 0.0, 0.0)
        cumulated = np.cumsum(self._counts)
        at = [int(np.searchsorted(cumulated, math.ceil(q * total))) for q in (0.50, 0.95, 0.99)]
        p50, p95, p99 = (min(_SMALLEST_S * _GROWTH**bucket, self._max) for bucket in at)
        return Percentiles(total, p50, p95, p99, self._max)


class RollingLatency:
    """Percentiles of the last seconds, beside those of all time."""

    def __init__(self, window_s: int = 10) -> None:
        self.total = LatencyHistogram()
        self._window: deque[tuple[int, LatencyHistogram]] = deque(maxlen=window_s)

    def add(self, seconds: NDArray[np.float64], now_s: float) -> None:
        """Add samples taken at `now_s`, (n,) float64, at least one."""
        second = int(now_s)
        if not self._window or self._window[-1][0] != second:
            self._window.append((second, LatencyHistogram()))
        self._window[-1][1].add(seconds)
        self.total.add(seconds)

    def recent(self, now_s: float) -> Percentiles:
        """Percentiles of the window that ends at `now_s`."""
        merged = LatencyHistogram()
        for second, histogram in self._window:
            if second > now_s - (self._window.maxlen or 0):
                merged.merge(histogram)
        return merged.percentiles()
