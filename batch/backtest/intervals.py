"""From answers to figures with intervals: 95 % by bootstrap over viewers, and differences of arms on the same resamples. Pure.

Viewers are drawn, not plays: the plays of one viewer resemble one another. Every arm is measured on the same draws, so that a
difference's interval is that of the paired comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from batch.backtest.measures import (
    F64,
    SEGMENTS,
    Circumstances,
    Table,
    coverage,
    measure,
    sums_by_viewer,
)
from batch.backtest.plays import Plays
from batch.backtest.refits import Night
from batch.backtest.replay import Answers

MINUS = " minus "
"""Between the names of two arms: their difference."""
RESAMPLES = 1_000
AT_ONCE = 100
"""Resamples drawn at once: for 10,000 viewers 8 MB."""
LOW, HIGH = 0.025, 0.975
DEVIATIONS = 1.96
"""Standard errors on either side that hold 95 % of a normal distribution."""

Column = tuple[str, str, str]
"""(arm, segment, measure)."""


def tabulate(
    plays: Plays, nights: Sequence[Night], asked: Circumstances, answers: Mapping[str, Answers], seed: int
) -> Table:
    """Every arm's figures and the differences of every two, as `A minus B`, B being the earlier one in `answers`.

    Segments in which nobody was asked are left out.
    """
    columns, sums, counts = _columns(plays, nights, asked, answers)
    values = sums.sum(axis=0) / counts.sum(axis=0)
    drawn = resample(sums, counts, seed)
    table: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = {}
    place = {column: number for number, column in enumerate(columns)}
    for (arm, segment, name), number in place.items():
        _put(table, arm, segment, name, float(values[number]), drawn[:, number])
    for arm in answers:
        _put_coverage(table, plays, asked, answers[arm], arm)
    for other, one in combinations(answers, 2):
        for segment, name in [(s, m) for arm, s, m in columns if arm == one]:
            a, b = place[one, segment, name], place.get((other, segment, name))
            if b is not None:
                difference = float(values[a] - values[b])
                _put(table, f"{one}{MINUS}{other}", segment, name, difference, drawn[:, a] - drawn[:, b])
    return table


def _columns(
    plays: Plays, nights: Sequence[Night], asked: Circumstances, answers: Mapping[str, Answers]
) -> tuple[list[Column], F64, F64]:
    """What is averaged: names, (n_viewers, columns) sums and counts."""
    viewers, viewer = np.unique(asked.viewer, return_inverse=True)
    masks = {segment: of(asked) for segment, of in SEGMENTS.items()}
    columns, sums, counts = [], [], []
    for arm, given in answers.items():
        for name, values in measure(plays, nights, given).items():
            for segment, mask in masks.items():
                sum_, count = sums_by_viewer(viewer, len(viewers), values, mask)
                if count.any():
                    columns.append((arm, segment, name))
                    sums.append(sum_)
                    counts.append(count)
    return columns, np.stack(sums, axis=1), np.stack(counts, axis=1)


def resample(sums: F64, counts: F64, seed: int) -> F64:
    """(n_viewers, columns) → (RESAMPLES, columns): each column's mean among viewers drawn with replacement.

    NaN where none of a column's viewers was drawn.
    """
    n = len(sums)
    rng = np.random.default_rng(seed)
    drawn = []
    for start in range(0, RESAMPLES, AT_ONCE):
        rows = min(AT_ONCE, RESAMPLES - start)
        chosen = rng.integers(0, n, size=(rows, n)) + np.arange(rows)[:, None] * n
        weight = np.bincount(chosen.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        below = weight @ counts
        drawn.append(np.divide(weight @ sums, below, out=np.full(below.shape, np.nan), where=below > 0))
    return np.concatenate(drawn)


def _put(
    table: dict[str, dict[str, dict[str, tuple[float, float, float]]]],
    arm: str,
    segment: str,
    name: str,
    value: float,
    drawn: F64,
) -> None:
    told = drawn[~np.isnan(drawn)]
    low, high = np.quantile(told, (LOW, HIGH)).tolist() if len(told) else (value, value)
    table.setdefault(arm, {}).setdefault(segment, {})[name] = (value, low, high)


def _put_coverage(
    table: dict[str, dict[str, dict[str, tuple[float, float, float]]]],
    plays: Plays,
    asked: Circumstances,
    given: Answers,
    arm: str,
) -> None:
    for segment, of in SEGMENTS.items():
        mask = of(asked)
        if mask.any():
            value, error = coverage(asked.viewer[mask], given.top[mask], plays.catalogue)
            low, high = max(0.0, value - DEVIATIONS * error), min(1.0, value + DEVIATIONS * error)
            table[arm][segment]["coverage"] = (value, low, high)
