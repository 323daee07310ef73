"""One viewer's entries and reasons, compiled: `ranking/rows.py` is the readable twin and says what a score is.

Candidates come from sources (taste: the best by y·x; popular), are put together, get features (their ALS score, their
popularity), one score from them, and the best are taken. A new source adds rows to `gather`, a new feature an array beside `als`
and `popularity`, another ranker replaces `blend`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.rows import ENTRIES_KEPT, ENTRIES_WITH_REASONS
from embeddings.compiled import jit
from embeddings.kernel_foldin import LANES
from embeddings.kernel_topk import KEPT, score_rows

Array = NDArray[Any]

ALS, POPULAR = 0, 1
"""Sources, by index into `ranking.rows.SOURCES`."""

CANDIDATES = 76
"""Taken of each source: the entries kept, and some that other features may lift."""

REASONS_PER_ENTRY = 3

assert ENTRIES_WITH_REASONS <= LANES


class Popularity(NamedTuple):
    order: Array  # (n_items,) int64: rows by falling popularity
    score: Array  # (n_items,) float32 in 0…1


class Entries(NamedTuple):
    """One viewer's row, and scratch."""

    rows: Array  # (ENTRIES_KEPT,) int32, best first
    scores: Array  # (ENTRIES_KEPT,) float64
    sources: Array  # (ENTRIES_KEPT,) int64
    reason_counts: Array  # (ENTRIES_WITH_REASONS,) int64
    reason_rows: Array  # (ENTRIES_WITH_REASONS, REASONS_PER_ENTRY) int32
    reason_values: Array  # (ENTRIES_WITH_REASONS, REASONS_PER_ENTRY) float64
    candidates: Array  # (KEPT + CANDIDATES,) int32
    als: Array  # (KEPT + CANDIDATES,) float64
    blended: Array  # (KEPT + CANDIDATES,) float64
    marks: Array  # (n_items,) int64: the last viewer who must not get an item, or has it as a candidate


def make_entries(n_items: int) -> Entries:
    reasons = (ENTRIES_WITH_REASONS, REASONS_PER_ENTRY)
    return Entries(
        np.zeros(ENTRIES_KEPT, np.int32), np.empty(ENTRIES_KEPT), np.empty(ENTRIES_KEPT, np.int64),
        np.zeros(ENTRIES_WITH_REASONS, np.int64), np.empty(reasons, np.int32), np.empty(reasons),
        np.empty(KEPT + CANDIDATES, np.int32), np.empty(KEPT + CANDIDATES), np.empty(KEPT + CANDIDATES),
        np.full(n_items, -1, np.int64),
    )  # fmt: skip


@jit
def gather(
    Y: Array,
    x: Array,
    taste: int,
    excluded: Array,
    n_excluded: int,
    viewer: int,
    allowed: Array,
    p: Popularity,
    e: Entries,
) -> int:
    """Add the popular candidates to the first `taste` ones, which have their ALS scores: how many there are then.

    `viewer`: a number that no other viewer of this call has. `allowed`: (n_items,) bool.
    """
    for i in range(n_excluded):
        e.marks[excluded[i]] = viewer
    for i in range(taste):  # known as candidates by another mark
        e.marks[e.candidates[i]] = -2 - viewer
    count, wanted = taste, 0
    for i in range(len(p.order)):
        if wanted == CANDIDATES:
            break
        row = p.order[i]
        if not allowed[row] or e.marks[row] == viewer:
            continue
        wanted += 1
        if e.marks[row] != -2 - viewer:
            e.candidates[count] = row
            count += 1
    score_rows(Y, x, e.candidates, taste, count, e.als)
    return count


@jit
def blend(count: int, weight: float, p: Popularity, e: Entries) -> None:
    """score = w · als + (1 − w) · popularity of every candidate."""
    for i in range(count):
        e.blended[i] = weight * e.als[i] + (1 - weight) * p.score[e.candidates[i]]


@jit
def take_best(count: int, weight: float, p: Popularity, e: Entries) -> int:
    """The best ENTRIES_KEPT candidates into `rows`, `scores` and `sources`; ties to the lower row. How many."""
    kept = 0
    for i in range(count):
        score, row = e.blended[i], e.candidates[i]
        if kept == ENTRIES_KEPT:
            last = e.scores[kept - 1]
            if score < last or (score == last and row > e.rows[kept - 1]):
                continue
            kept -= 1
        at = kept
        while at > 0 and (e.scores[at - 1] < score or (e.scores[at - 1] == score and e.rows[at - 1] > row)):
            e.scores[at], e.rows[at], e.sources[at] = e.scores[at - 1], e.rows[at - 1], e.sources[at - 1]
            at -= 1
        own = weight * e.als[i] >= (1 - weight) * p.score[row]
        e.scores[at], e.rows[at], e.sources[at] = score, row, ALS if own else POPULAR
        kept += 1
    return kept


@jit
def take_reasons(contributions: Array, rows: Array, n: int, weight: float, count: int, e: Entries) -> None:
    """The strongest positive contributions to each of the first `count` entries; of equal ones the newer signal's.

    `contributions`: (≥ n, LANES) float64, by folded item and entry. `rows`: (≥ n,) int32, the folded items.
    """
    for entry in range(count):
        found = 0
        for i in range(n):
            value = contributions[i, entry] * weight
            if value <= 0 or (found == REASONS_PER_ENTRY and value <= e.reason_values[entry, found - 1]):
                continue
            at = min(found, REASONS_PER_ENTRY - 1)
            while at > 0 and e.reason_values[entry, at - 1] < value:
                e.reason_values[entry, at] = e.reason_values[entry, at - 1]
                e.reason_rows[entry, at] = e.reason_rows[entry, at - 1]
                at -= 1
            e.reason_values[entry, at], e.reason_rows[entry, at] = value, rows[i]
            found = min(found + 1, REASONS_PER_ENTRY)
        e.reason_counts[entry] = found
