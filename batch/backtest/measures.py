"""What an answer is worth: one number per ask and measure, and what can only be said of many answers together (coverage). Pure.

With r the place of what was then played (equals counting as ahead of it), or none if it was not among those shown:

    hr@k = [r ≤ k]        ndcg@10 = [r ≤ 10] / log₂(r + 1)        mrr = 1 / r
    novelty   = mean over the first ten of log₂((plays + 1) / (plays of the item + 1)), known at the last refit: bits
    diversity = mean over pairs of the first ten of 1 − |topics in common| / |topics of either|
    coverage  = share of the catalogue that is among the first ten of anybody
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from batch.backtest.plays import I32, I64, U64, Plays
from batch.backtest.refits import Night
from batch.backtest.replay import Answers

F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]

FIFTH_PLAY = 4
"""Plays before which nobody could know what an item is about."""
PAIRS_AT_ONCE = 4_096
"""Answers whose pairs are compared at once: some 3 MB."""


@dataclass(frozen=True, eq=False, slots=True)
class Circumstances:
    """What is known of n asks, whoever answers them. All (n,).

    `viewer`: number of the viewer. `plays_so_far`: of the viewer, before it. `item_plays_so_far`: of what was then played.
    `item_known`: whether that was played before the last refit. `night`: index of the last refit.
    """

    viewer: I32
    plays_so_far: I64
    item_plays_so_far: I64
    item_known: Bools
    night: I64


Segment = Callable[[Circumstances], Bools]


def _plays_between(low: int, high: float) -> Segment:
    return lambda c: (c.plays_so_far >= low) & (c.plays_so_far <= high)


SEGMENTS: dict[str, Segment] = {
    "all": _plays_between(0, np.inf),
    "0": _plays_between(0, 0),
    "1-4": _plays_between(1, 4),
    "5-19": _plays_between(5, 19),
    "20+": _plays_between(20, np.inf),
    "known items": lambda c: c.item_known,
    "new items": lambda c: ~c.item_known & (c.item_plays_so_far >= FIFTH_PLAY),
}
"""By the viewer's plays so far; and by what was then played: known at the last refit, or new since, from its fifth play on."""


def circumstances(plays: Plays, nights: Sequence[Night]) -> Circumstances:
    """What was known when each play of the nights was about to happen."""
    first, stop = nights[0].start, nights[-1].stop
    lengths = [night.stop - night.start for night in nights]
    known = np.repeat([int(plays.item[: night.known].max(initial=-1)) for night in nights], lengths)
    return Circumstances(
        plays.viewer[first:stop],
        occurrences(plays.viewer[:stop])[first:],
        occurrences(plays.item[:stop])[first:],
        plays.item[first:stop] <= known,  # items are numbered by first appearance
        np.repeat(np.arange(len(nights)), lengths),
    )


def occurrences(codes: I32) -> I64:
    """(n,) how often the same number stands before each place."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    counts = np.empty(len(codes), dtype=np.int64)
    counts[order] = np.arange(len(codes)) - np.repeat(starts, np.diff([*starts.tolist(), len(codes)]))
    return counts


def measure(plays: Plays, nights: Sequence[Night], answers: Answers) -> dict[str, F64]:
    """Measure → (n,) float64; NaN where it says nothing (diversity of a row without topics)."""
    rank = answers.rank.astype(np.float64)
    found = rank > 0
    reciprocal = np.divide(1, rank, out=np.zeros_like(rank), where=found)
    gain = np.divide(1, np.log2(rank + 1), out=np.zeros_like(rank), where=found)

    def hit(k: int) -> F64:
        return np.where(rank <= k, found, 0).astype(np.float64)

    measures = {
        "hr@10": hit(10),
        "ndcg@10": np.where(rank <= 10, gain, 0),
        "hr@50": hit(50),
        "mrr": reciprocal,
        "novelty": novelty(plays, nights, answers.top),
    }
    if plays.topics.shape[1]:
        measures["diversity"] = np.concatenate(
            [
                diversity(plays.topics, answers.top[start : start + PAIRS_AT_ONCE])
                for start in range(0, len(rank), PAIRS_AT_ONCE)
            ]
        )
    return measures


def novelty(plays: Plays, nights: Sequence[Night], top: I32) -> F64:
    """(n, 10) items → (n,) mean information of what is shown, by the plays before the last refit."""
    first = nights[0].start
    result = np.full(len(top), np.nan)
    for night in nights:
        count = np.bincount(plays.item[: night.known], minlength=len(plays.item_ids))
        bits = np.log2((night.known + 1) / (count + 1))
        rows = slice(night.start - first, night.stop - first)
        result[rows] = _mean(bits[top[rows]], top[rows] >= 0)
    return result


def diversity(topics: U64, top: I32) -> F64:
    """(n_items, words) topics, (n, 10) items → (n,) mean distance of the pairs whose topics are known."""
    bits = np.where((top >= 0)[:, :, None], topics[top], 0)  # (n, 10, words)
    one, other = np.triu_indices(top.shape[1], 1)  # (45,) each
    common = np.bitwise_count(bits[:, one] & bits[:, other]).sum(axis=2, dtype=np.int64)
    either = np.bitwise_count(bits[:, one] | bits[:, other]).sum(axis=2, dtype=np.int64)
    told: Bools = np.any(bits != 0, axis=2)
    known = told[:, one] & told[:, other]
    return _mean(1 - np.divide(common, either, out=np.zeros(common.shape), where=either > 0), known)


def _mean(values: F64, where: Bools) -> F64:
    """Mean of each row's values; NaN for a row without any."""
    count = where.sum(axis=1)
    result: F64 = np.divide(
        np.where(where, values, 0).sum(axis=1), count, out=np.full(len(values), np.nan), where=count > 0
    )
    return result


def coverage(viewer: I32, top: I32, catalogue: int) -> tuple[float, float]:
    """Share of the catalogue among anybody's first ten, and its standard error by the jackknife over viewers.

    The bootstrap does not suit a union: a resample lacks a third of the viewers and lies below what it shall surround. Leaving
    one viewer out takes away exactly the items that were shown to nobody else.
    """
    shown = top >= 0
    pairs = np.unique(np.repeat(viewer.astype(np.int64), shown.sum(axis=1)) * catalogue + top[shown])
    items, first, times = np.unique(pairs % catalogue, return_index=True, return_counts=True)
    viewers, inverse = np.unique(pairs[first[times == 1]] // catalogue, return_inverse=True)
    n = len(np.unique(viewer))
    alone = np.zeros(n)
    alone[: len(viewers)] = np.bincount(inverse, minlength=len(viewers)) / catalogue
    error = float(np.sqrt((n - 1) / n * ((alone - alone.mean()) ** 2).sum()))
    return len(items) / catalogue, error


def sums_by_viewer(viewer: I64, n_viewers: int, values: F64, where: Bools) -> tuple[F64, F64]:
    """(n_viewers,) sums and counts of the values that are told, `viewer` being (n,) places from 0."""
    told = where & ~np.isnan(values)
    sums = np.bincount(viewer[told], weights=values[told], minlength=n_viewers).astype(np.float64)
    return sums, np.bincount(viewer[told], minlength=n_viewers).astype(np.float64)


Table = Mapping[str, Mapping[str, Mapping[str, tuple[float, float, float]]]]
"""Arm → segment → measure → (value, low, high)."""
