"""Arms that know no taste: everybody gets the same order, minus what they have seen.

`popular`: the most played so far. `trending`: the same with a decay; of several half-lives, that which would have hit most often
until the last refit, so that it is as good a peer as one can make it without being told.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from batch.backtest.plays import I32, I64, Plays
from batch.backtest.refits import Refit
from batch.backtest.replay import TOP, Answer, Ask
from batch.tables import DAY_MS
from contracts.rows import ENTRIES_KEPT
from viewers.state import EMPTY, Limits, ViewerState

HALF_LIVES_DAYS = (0.5, 1.0, 3.0, 7.0, 30.0)
RESCALE_AT = 512.0
"""Half-lives after which sums are brought back to size: 2^1024 would overflow."""
JUDGED_SHARE = 0.15
"""Newest share of the plays before the first ask by which half-lives are judged at first."""


class DecayedCounter:
    """Plays of each item, one from `half_life` ago counting half. `sums`: (n_items,) float64, all by the same unknown factor."""

    def __init__(self, n_items: int, half_life_days: float) -> None:
        self._half_life_ms = half_life_days * DAY_MS
        self._base_ms: int | None = None
        self.sums = np.zeros(n_items)

    def add(self, item: int, time_ms: int) -> None:
        """Count a play, not earlier than those before."""
        if self._base_ms is None:
            self._base_ms = time_ms
        age = (time_ms - self._base_ms) / self._half_life_ms
        if age > RESCALE_AT:
            self.sums *= 2.0**-age if age < 2 * RESCALE_AT else 0.0
            self._base_ms, age = time_ms, 0.0
        self.sums[item] += 2.0**age

    def add_many(self, item: I32, time_ms: I64) -> None:
        """Count plays from before any other."""
        if len(item):
            self._base_ms = int(time_ms[-1])
            age = (time_ms - self._base_ms) / self._half_life_ms
            self.sums += np.bincount(item, weights=np.exp2(age), minlength=len(self.sums))


class CounterArm:
    """A row of the highest counters."""

    def __init__(
        self, past: Plays, n_items: int, limits: Limits, answer: Answer, half_lives_days: Sequence[float]
    ) -> None:
        self._answer = answer
        self._counters = [DecayedCounter(n_items, days) for days in half_lives_days]
        self._hits = [0] * len(self._counters)
        self._best = 0
        begin = round(len(past) * (1 - JUDGED_SHARE))
        for counter in self._counters:
            counter.add_many(past.item[:begin], past.time_ms[:begin])
        self._seen: dict[int, list[int]] = {}
        for viewer, item in zip(past.viewer[:begin].tolist(), past.item[:begin].tolist(), strict=True):
            self._seen.setdefault(viewer, []).append(item)
        newest = (past.viewer[begin:].tolist(), past.item[begin:].tolist(), past.time_ms[begin:].tolist())
        for play in zip(*newest, strict=True):
            self.watch(*play, EMPTY)

    @property
    def _judging(self) -> bool:
        return len(self._counters) > 1

    def refit(self, refit: Refit) -> None:
        """Take the half-life that has hit most often."""
        self._best = int(np.argmax(self._hits))

    def ask(self, ask: Ask) -> None:
        """Answered at once: the counters move on."""
        unseen = self._counters[self._best].sums.copy()
        unseen[self._seen.get(ask.viewer, [])] = 0
        rows = _highest(unseen, ENTRIES_KEPT)
        self._answer(ask.number, rows.tolist(), unseen[rows].tolist())

    def watch(self, viewer: int, item: int, time_ms: int, state: ViewerState) -> None:
        """Judge, then count."""
        seen = self._seen.setdefault(viewer, [])
        if self._judging and item not in seen:
            for number, counter in enumerate(self._counters):
                self._hits[number] += _hit(counter.sums, item, seen)
        for counter in self._counters:
            counter.add(item, time_ms)
        seen.append(item)

    def flush(self) -> None:
        """Nothing is ever open."""


def popular(past: Plays, n_items: int, limits: Limits, answer: Answer) -> CounterArm:
    return CounterArm(past, n_items, limits, answer, (np.inf,))


def trending(past: Plays, n_items: int, limits: Limits, answer: Answer) -> CounterArm:
    return CounterArm(past, n_items, limits, answer, HALF_LIVES_DAYS)


def _hit(sums: NDArray[np.float64], item: int, seen: list[int]) -> bool:
    """Would the item have been among the first ten unseen ones, behind its equals?"""
    score = sums[item]
    if score <= 0:
        return False
    ahead = int(np.count_nonzero(sums >= score))  # itself included
    if ahead > TOP:
        ahead -= int(np.count_nonzero(sums[list(set(seen))] >= score))
    return ahead <= TOP


def _highest(scores: NDArray[np.float64], count: int) -> I64:
    """Positions of the `count` highest positive scores, best first; equals by position."""
    rows: I64
    if count < len(scores):
        rows = np.argpartition(scores, len(scores) - count)[len(scores) - count :]
    else:
        rows = np.arange(len(scores))
    rows = rows[scores[rows] > 0]
    return rows[np.lexsort((rows, -scores[rows]))]
