"""One viewer's entries and reasons, compiled: `ranking/rows.py` and `ranking/features.py` are the readable twins.

Candidates come from sources (taste: the best by y·x; popular; what follows the newest plays; trending), are put together, get one
score, and the best are taken. What the popularity and the trends of a title add is known before any viewer comes (`Ranker.prior`).
A new source adds rows to `gather_further`, a new feature a column to `_fill_following` or to the prior. Without a ranker two
features remain, y·x and popularity, and `blend` weighs them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.rows import ENTRIES_KEPT, ENTRIES_WITH_REASONS
from embeddings.compiled import jit
from embeddings.kernel_foldin import LANES
from embeddings.kernel_topk import KEPT
from ranking.features import ANY, FOLLOWED, LEAST_SHARE, LIFT, TAKEN, TASTE, TRENDING_TAKEN

Array = NDArray[Any]

ALS, POPULAR, COWATCH, TRENDING = 0, 1, 2, 3
"""Sources, by index into `ranking.rows.SOURCES`."""

CANDIDATES = 76
"""Taken of each source: the entries kept, and some that other features may lift."""

REASONS_PER_ENTRY = 3

ROOM = KEPT + CANDIDATES + sum(TAKEN) + 2 * TRENDING_TAKEN
"""Candidates at most."""

assert ENTRIES_WITH_REASONS <= LANES


class Popularity(NamedTuple):
    order: Array  # (n_items,) int64: rows by falling popularity
    score: Array  # (n_items,) float32 in 0…1


class Ranker(NamedTuple):
    """A generation's tables. Without them every array is empty, `weights` too."""

    weights: Array  # (features,) float64
    prior: Array  # (n_items, 4) float64: parts of the score that no viewer changes but by w: popularity, 1 − w times, trends, 1 − w times
    orders: Array  # (2, n_items) int64: rows by falling trend
    starts: Array  # (n_items + 1,) int64: of item i the followers starts[i] … starts[i + 1] − 1
    items: Array  # (entries,) int32
    share: Array  # (entries,) float32
    lift: Array  # (entries,) float32
    slots: Array  # (FOLLOWED,) int64
    fading: Array  # (FOLLOWED,) float64


class Entries(NamedTuple):
    """One viewer's row, and scratch."""

    rows: Array  # (ENTRIES_KEPT,) int32, best first
    scores: Array  # (ENTRIES_KEPT,) float64
    sources: Array  # (ENTRIES_KEPT,) int64
    reason_counts: Array  # (ENTRIES_WITH_REASONS,) int64
    reason_rows: Array  # (ENTRIES_WITH_REASONS, REASONS_PER_ENTRY) int32
    reason_values: Array  # (ENTRIES_WITH_REASONS, REASONS_PER_ENTRY) float64
    candidates: Array  # (ROOM,) int32
    als: Array  # (ROOM,) float64
    blended: Array  # (ROOM,) float64
    origins: Array  # (ROOM,) int64: the source of each candidate
    marks: Array  # (n_items,) int64: the last viewer who must not get an item, or has it as a candidate
    places: Array  # (n_items,) int32: where among the candidates, for those marked so
    features: Array  # (ROOM, features of following) float64
    parts: Array  # (ROOM, sources) float64
    means: Array  # (sources,) float64
    found: Array  # (2, FOLLOWED) float64: lift and faded share of one entry after each play


def make_entries(n_items: int) -> Entries:
    reasons = (ENTRIES_WITH_REASONS, REASONS_PER_ENTRY)
    return Entries(
        np.zeros(ENTRIES_KEPT, np.int32), np.empty(ENTRIES_KEPT), np.empty(ENTRIES_KEPT, np.int64),
        np.zeros(ENTRIES_WITH_REASONS, np.int64), np.empty(reasons, np.int32), np.empty(reasons),
        np.empty(ROOM, np.int32), np.empty(ROOM), np.empty(ROOM), np.empty(ROOM, np.int64),
        np.full(n_items, -1, np.int64), np.empty(n_items, np.int32),
        np.empty((ROOM, ANY + 1 - LIFT)), np.empty((ROOM, 4)), np.empty(4), np.empty((2, FOLLOWED)),
    )  # fmt: skip


@jit
def gather(taste: int, excluded: Array, n_excluded: int, viewer: int, allowed: Array, p: Popularity, e: Entries) -> int:
    """Add the popular candidates to the first `taste` ones: how many there are then.

    `viewer`: a number that no other viewer of this call has. `allowed`: (n_items,) bool.
    """
    for i in range(n_excluded):
        e.marks[excluded[i]] = viewer
    for i in range(taste):  # known as candidates by another mark
        e.marks[e.candidates[i]] = -2 - viewer
        e.places[e.candidates[i]] = i
    return _add_first(p.order, CANDIDATES, viewer, allowed, taste, e)


@jit
def _add_first(order: Array, most: int, viewer: int, allowed: Array, count: int, e: Entries) -> int:
    """Add the first `most` of an order that may be shown."""
    wanted = 0
    for i in range(len(order)):
        if wanted == most:
            break
        row = order[i]
        if not allowed[row] or e.marks[row] == viewer:
            continue
        wanted += 1
        count = _add(row, viewer, count, e)
    return count


@jit
def _add(row: int, viewer: int, count: int, e: Entries) -> int:
    """Add one, unless it is there already."""
    if e.marks[row] == -2 - viewer:
        return count
    e.marks[row] = -2 - viewer
    e.candidates[count], e.places[row] = row, count
    return count + 1


@jit
def gather_further(
    rows: Array, c: Array, n: int, viewer: int, allowed: Array, r: Ranker, count: int, e: Entries
) -> int:
    """Add what follows the newest liked of the n folded plays, and what is trending."""
    followed = 0
    for i in range(n):
        if followed == len(TAKEN):
            break
        if c[i] <= 0:
            continue
        first = r.starts[rows[i]]
        for at in range(first, min(first + TAKEN[followed], r.starts[rows[i] + 1])):
            row = r.items[at]
            if allowed[row] and e.marks[row] != viewer:
                count = _add(row, viewer, count, e)
        followed += 1
    for order in range(len(r.orders)):
        count = _add_first(r.orders[order], TRENDING_TAKEN, viewer, allowed, count, e)
    return count


@jit
def blend(count: int, weight: float, p: Popularity, e: Entries) -> None:
    """score = w · als + (1 − w) · popularity of every candidate."""
    for i in range(count):
        taste, popular = weight * e.als[i], (1 - weight) * p.score[e.candidates[i]]
        e.blended[i] = taste + popular
        e.origins[i] = ALS if taste >= popular else POPULAR


@jit
def rank_by_features(
    count: int, weight: float, rows: Array, c: Array, n: int, viewer: int, r: Ranker, e: Entries
) -> None:
    """The score of every candidate as the ranker has it, and which source lifts it most above the mean candidate."""
    _fill_following(count, rows, c, n, viewer, r, e)
    for source in range(4):
        e.means[source] = 0
    taste = r.weights[TASTE] + weight * r.weights[TASTE + 1]
    for i in range(count):
        row, follows = e.candidates[i], 0.0
        for f in range(ANY + 1 - LIFT):
            follows += e.features[i, f] * r.weights[LIFT + f]
        e.parts[i, ALS], e.parts[i, COWATCH] = taste * e.als[i], follows
        e.parts[i, POPULAR] = r.prior[row, 0] + (1 - weight) * r.prior[row, 1]
        e.parts[i, TRENDING] = r.prior[row, 2] + (1 - weight) * r.prior[row, 3]
        e.blended[i] = 0
        for source in range(4):
            e.blended[i] += e.parts[i, source]
            e.means[source] += e.parts[i, source]
    for i in range(count):
        best, most = -1, 0.0
        for source in range(4):
            lift = e.parts[i, source] - e.means[source] / count
            if e.parts[i, source] != 0 and (best < 0 or lift > most):
                best, most = source, lift
        e.origins[i] = POPULAR if best < 0 else best


@jit
def _fill_following(count: int, rows: Array, c: Array, n: int, viewer: int, r: Ranker, e: Entries) -> None:
    """The features of following."""
    for i in range(count):
        for f in range(ANY + 1 - LIFT):
            e.features[i, f] = 0
    followed = 0
    for i in range(n):
        if followed == FOLLOWED:
            break
        if c[i] <= 0:
            continue
        slot, fading = r.slots[followed], r.fading[followed]
        for at in range(r.starts[rows[i]], r.starts[rows[i] + 1]):
            if e.marks[r.items[at]] == -2 - viewer:
                place = e.places[r.items[at]]
                e.features[place, slot] += float(r.lift[at])
                e.features[place, ANY - LIFT] += fading * float(r.share[at])
        followed += 1
    for i in range(count):
        if e.features[i, ANY - LIFT] > 0:
            e.features[i, ANY - LIFT] = np.log1p(e.features[i, ANY - LIFT] / LEAST_SHARE)


@jit
def take_best(count: int, e: Entries) -> int:
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
        e.scores[at], e.rows[at], e.sources[at] = score, row, e.origins[i]
        kept += 1
    return kept


@jit
def follow(rows: Array, c: Array, n: int, entry: int, r: Ranker, e: Entries, contributions: Array) -> None:
    """What each folded play adds to the score of an entry by being followed by it, into its column of the contributions."""
    total, followed, row = 0.0, 0, e.rows[entry]
    for i in range(n):
        contributions[i, entry] = 0
        if c[i] <= 0 or followed == FOLLOWED:
            continue
        e.found[0, followed] = e.found[1, followed] = 0
        for at in range(r.starts[rows[i]], r.starts[rows[i] + 1]):
            if r.items[at] == row:
                e.found[0, followed], e.found[1, followed] = r.lift[at], r.fading[followed] * float(r.share[at])
                break
        total += e.found[1, followed]
        followed += 1
    if total <= 0:
        return
    together, followed = r.weights[ANY] * np.log1p(total / LEAST_SHARE) / total, 0
    for i in range(n):
        if c[i] <= 0 or followed == FOLLOWED:
            continue
        own = r.weights[LIFT + r.slots[followed]] * e.found[0, followed]
        contributions[i, entry] = own + together * e.found[1, followed]
        followed += 1


@jit
def take_reasons(contributions: Array, rows: Array, n: int, weight: float, count: int, e: Entries) -> None:
    """The strongest positive contributions to each of the first `count` entries; of equal ones the newer signal's.

    `contributions`: (≥ n, LANES) float64, by folded item and entry: to y·x, which counts `weight` times; to the score itself where the
    entry comes from following. `rows`: (≥ n,) int32, the folded items.
    """
    for entry in range(count):
        found, scale = 0, 1.0 if e.sources[entry] == COWATCH else weight
        for i in range(n):
            value = contributions[i, entry] * scale
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
