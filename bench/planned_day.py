"""A day of a planned service, minute by minute: an evening peak, a burst, an outage, and the lag that each leaves. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embeddings.generation import F64

MINUTES = 24 * 60
PEAK_HOUR = 21.0
BURST_HOUR = 20.0
"""A popular creator's new title comes out just before the evening's peak: the worst moment."""
BURST_HALF_LIFE_MIN = 20.0
OUTAGE_HOUR = 18.0
"""Before the peak, so that catching up meets it, and the burst."""
BARS = 24


@dataclass(frozen=True, slots=True)
class Minute:
    """`arriving`: events/s; `lag`: events waiting at the minute's end; `delay_s`: how old the oldest of them is."""

    hour: float
    arriving: float
    processed: float
    lag: float
    delay_s: float


@dataclass(frozen=True, slots=True)
class Day:
    """A simulated day and what there is to say about it. Hours are hours of the day, None where nothing of the kind happened."""

    minutes: tuple[Minute, ...]
    greatest_lag: float
    greatest_delay_s: float
    outage_caught_up_hour: float | None
    lag_at_end: float
    burst_delay_s: float


def daily_rates(mean: float, peak_factor: float) -> F64:
    """(1440,) events/s: mean · e^(κ cos) / I₀(κ), a round day whose busiest minute is `peak_factor` times its mean."""
    low, high = 0.0, 1.0
    while _peakedness(high) < peak_factor:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _peakedness(middle) < peak_factor else (low, middle)
    angle = 2 * np.pi * (np.arange(MINUTES) / 60 - PEAK_HOUR) / 24
    shape = np.exp(high * (np.cos(angle) - 1))
    rates: F64 = mean * shape / shape.mean()
    return rates


def _peakedness(kappa: float) -> float:
    """Greatest over mean of e^(κ cos)."""
    return float(1 / np.mean(np.exp(kappa * (np.cos(2 * np.pi * np.arange(MINUTES) / MINUTES) - 1))))


def add_burst(rates: F64, mean: float, burst: float) -> F64:
    """The same with a burst on top: `burst` · mean at once, half of it `BURST_HALF_LIFE_MIN` later, and so on."""
    since = np.arange(MINUTES) - BURST_HOUR * 60
    more: F64 = np.where(since >= 0, mean * burst * 0.5 ** (np.maximum(since, 0) / BURST_HALF_LIFE_MIN), 0.0)
    result: F64 = rates + more
    return result


def simulate(rates: F64, capacity: float, *, outage_h: float) -> Day:
    """Run a day with updaters that manage `capacity` events/s and stand still from `OUTAGE_HOUR` on for `outage_h` hours."""
    start, end = OUTAGE_HOUR * 60, (OUTAGE_HOUR + outage_h) * 60
    lag = 0.0
    minutes = []
    for minute, arriving in enumerate(rates.tolist()):
        up_s = 60 - max(0.0, min(minute + 1, end) - max(minute, start)) * 60
        waiting = lag + arriving * 60
        processed = min(waiting, capacity * up_s)
        lag = waiting - processed  # exactly 0 when all is done
        minutes.append(Minute(minute / 60, arriving, processed / 60, lag, _oldest_s(rates, minute, lag)))
    after = [one for one in minutes if one.hour * 60 >= end]
    caught_up = next((one.hour for one in after if one.lag == 0), None) if outage_h > 0 else None
    evening = [one.delay_s for one in minutes if one.hour >= BURST_HOUR]
    return Day(
        tuple(minutes),
        max(one.lag for one in minutes),
        max(one.delay_s for one in minutes),
        caught_up,
        lag,
        max(evening),
    )


def _oldest_s(rates: F64, minute: int, lag: float) -> float:
    """How long ago the oldest of the last `lag` events arrived, seconds."""
    age = 0.0
    while lag > 1e-6 and minute >= 0:
        here = float(rates[minute]) * 60
        if here >= lag:
            return age + 60 * lag / here
        lag, age, minute = lag - here, age + 60, minute - 1
    return age


def draw(day: Day, capacity: float) -> Sequence[tuple[str, str, str, str]]:
    """A line an hour, worst minute: hour, events/s, delay, and a bar (█ arriving, against the capacity's width)."""
    lines = []
    for hour in range(24):
        minutes = day.minutes[hour * 60 : hour * 60 + 60]
        arriving = max(one.arriving for one in minutes)
        delay = max(one.delay_s for one in minutes)
        filled = min(BARS, math.ceil(BARS * arriving / capacity))
        lines.append((f"{hour:02d}:00", f"{arriving:,.0f}", tell_delay(delay), "█" * filled + "·" * (BARS - filled)))
    return lines


def tell_delay(seconds: float) -> str:
    """`none`, `40 s`, `12 min`, `1.5 h`."""
    if seconds < 1:
        return "none" if seconds <= 0 else "< 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
