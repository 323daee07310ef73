"""One viewer's entries and reasons, compiled: `ranking/rows.py` and `ranking/features.py` are the readable twins.

Candidates come from sources (taste: the best by y·x; popular; what follows the newest plays; trending), are put together, get one
score, and the best are taken. A new source adds rows to `gather_further`, a new feature a term to `rank_by_features`. Without a ranker
two features remain, y·x and popularity, and `blend` weighs them.

Thousands of followers are looked at for each viewer, and whether one is a candidate is a coin's toss: so nothing branches on it. Every
title has a slot, a candidate its place, all others one that nobody reads.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.rows import ENTRIES_KEPT, ENTRIES_WITH_REASONS
from embeddings.compiled import jit
from embeddings.kernel_foldin import LANES
from embeddings.kernel_topk import KEPT, greatest, reached
from embeddings.tables import BASE, CONTEXTS, STEPS
from ranking.features import (
    ANY,
    AWAY_MS,
    FADED,
    FOLLOWED,
    FOLLOWERS_TAKEN,
    LEAST_SHARE,
    LIFT,
    LONG,
    POPULARITY,
    SLOT,
    TASTE,
    TREND,
    TRENDING_TAKEN,
)

Array = NDArray[Any]

ALS, POPULAR, COWATCH, TRENDING, AGAIN, EXPLORE = 0, 1, 2, 3, 4, 5
"""Sources, by index into `ranking.rows.SOURCES`."""

CANDIDATES = 76
"""Taken of each source: the entries kept, and some that other features may lift."""

REASONS_PER_ENTRY = 3

ROOM = KEPT + CANDIDATES + FOLLOWERS_TAKEN + 2 * TRENDING_TAKEN
"""Candidates at most."""
FREE, HIDDEN = ROOM, ROOM + 1
"""Slots of titles that are no candidates: not yet, and those that this viewer must not get."""

assert ENTRIES_WITH_REASONS <= LANES
assert len(CONTEXTS) == 4  # `weigh` names them
assert len(STEPS) == 4  # `_add_up` names them


class Popularity(NamedTuple):
    order: Array  # (n_items,) int64: rows by falling popularity
    score: Array  # (n_items,) float32 in 0…1


class Ranker(NamedTuple):
    """A generation's tables. Without them every array is empty, `weights` too."""

    weights: Array  # (contexts, features of BASE) float64
    trends: Array  # (n_items, half-lives) float32, log-scaled
    orders: Array  # (2, n_items) int64: rows by falling trend
    starts: Array  # (n_items + 1,) int64: of item i the followers starts[i] … starts[i + 1] − 1
    items: Array  # (entries,) int32
    share: Array  # (entries,) float32
    lift: Array  # (entries, steps) float32
    fading: Array  # (FOLLOWED,) float64
    slot: Array  # (FOLLOWED,) int64: place of a followed play → first feature of its lifts


def places() -> tuple[Array, Array]:
    """`Ranker.fading` and `Ranker.slot`."""
    return FADED, LIFT + len(STEPS) * np.array(SLOT)


class Entries(NamedTuple):
    """One viewer's row, and scratch."""

    rows: Array  # (ENTRIES_KEPT,) int32, best first
    scores: Array  # (ENTRIES_KEPT,) float64
    sources: Array  # (ENTRIES_KEPT,) int64
    reason_counts: Array  # (ENTRIES_WITH_REASONS,) int64
    reason_rows: Array  # (ENTRIES_WITH_REASONS, REASONS_PER_ENTRY) int32
    reason_values: Array  # (ENTRIES_WITH_REASONS, REASONS_PER_ENTRY) float64
    candidates: Array  # (ROOM + 1,) int32
    als: Array  # (ROOM,) float64
    blended: Array  # (ROOM,) float64
    origins: Array  # (ROOM,) int64: the source of each candidate, where no parts say it
    slots: Array  # (n_items,) int32: place among the candidates, `FREE` or `HIDDEN`
    hit_slots: Array  # (followers of FOLLOWED plays at most + 1,) int32: the followers that are candidates
    hits: Array  # the same, int64: where in the tables
    hit_ends: Array  # (FOLLOWED,) int64: how many up to each followed play
    followed: Array  # (FOLLOWED,) int64: which of the folded plays
    lifts: Array  # (ROOM,) float64: weighted sums
    shares: Array  # (ROOM,) float64: faded sums
    together: Array  # (ENTRIES_WITH_REASONS,) float64
    entry_of: Array  # (ROOM,) int64
    weights: Array  # (features of BASE,) float64: those of the moment
    mass: Array  # (n_items,) float64: faded shares of what follows, 0 between viewers
    touched: Array  # (followers of FOLLOWED plays at most,) int32: what follows
    masses: Array  # the same, float64
    parts: Array  # (ROOM, sources) float64
    means: Array  # (sources,) float64
    best: Array  # (ROOM,) int64: places, best first


def make_entries(allowed: NDArray[np.bool_], longest: int) -> Entries:
    """`allowed`: (n_items,), what may be shown. `longest`: followers of a title at most."""
    reasons = (ENTRIES_WITH_REASONS, REASONS_PER_ENTRY)
    return Entries(
        np.zeros(ENTRIES_KEPT, np.int32), np.empty(ENTRIES_KEPT), np.empty(ENTRIES_KEPT, np.int64),
        np.zeros(ENTRIES_WITH_REASONS, np.int64), np.empty(reasons, np.int32), np.empty(reasons),
        np.empty(ROOM + 1, np.int32), np.empty(ROOM), np.empty(ROOM), np.empty(ROOM, np.int64),
        np.where(allowed, np.int32(FREE), np.int32(HIDDEN)).astype(np.int32),
        np.empty(longest * FOLLOWED + 1, np.int32), np.empty(longest * FOLLOWED + 1, np.int64),
        np.zeros(FOLLOWED, np.int64), np.zeros(FOLLOWED, np.int64),
        np.empty(ROOM), np.empty(ROOM), np.empty(ENTRIES_WITH_REASONS), np.empty(ROOM, np.int64),
        np.empty(len(BASE)), np.zeros(len(allowed)), np.empty(longest * FOLLOWED, np.int32), np.empty(longest * FOLLOWED),
        np.empty((ROOM, 4)), np.empty(4), np.empty(ROOM, np.int64),
    )  # fmt: skip


@jit
def gather(taste: int, excluded: Array, n_excluded: int, p: Popularity, e: Entries) -> int:
    """Add the popular candidates to the first `taste` ones: how many there are then."""
    for i in range(n_excluded):
        e.slots[excluded[i]] = HIDDEN
    for i in range(taste):
        e.slots[e.candidates[i]] = i
    return _add_first(p.order, CANDIDATES, taste, e)


@jit
def scatter(count: int, excluded: Array, n_excluded: int, allowed: Array, e: Entries) -> None:
    """Slots as they were before this viewer. `allowed`: (n_items,) bool."""
    for i in range(count):
        e.slots[e.candidates[i]] = FREE
    for i in range(n_excluded):
        e.slots[excluded[i]] = FREE if allowed[excluded[i]] else HIDDEN


@jit
def _add_first(order: Array, most: int, count: int, e: Entries) -> int:
    """Add the first `most` of an order that may be shown."""
    wanted = 0
    for i in range(len(order)):
        if wanted == most:
            break
        wanted += e.slots[order[i]] != HIDDEN
        count = _add(order[i], count, e)
    return count


@jit
def _add(row: int, count: int, e: Entries) -> int:
    """Add one, unless it is there already or must not be."""
    slot = e.slots[row]
    e.candidates[count] = row
    e.slots[row] = count if slot == FREE else slot
    return count + (slot == FREE)


@jit
def gather_further(rows: Array, c: Array, n: int, r: Ranker, count: int, e: Entries) -> int:
    """Add what follows the newest liked of the n folded plays most, and what is trending."""
    followed, found = 0, np.int64(0)
    for i in range(n):
        if followed == FOLLOWED:
            break
        if c[i] <= 0 or rows[i] >= len(r.starts) - 1:  # nothing follows a topic or a creator
            continue
        fading = r.fading[followed]
        for at in range(r.starts[rows[i]], r.starts[rows[i] + 1]):
            item = r.items[at]
            e.touched[found] = item
            found += (e.mass[item] == 0) & (e.slots[item] != HIDDEN) & (r.share[at] > 0)
            e.mass[item] += fading * r.share[at]
        followed += 1
    count = _add_most(found, count, e)
    _forget(rows, c, n, r, e)
    for order in range(len(r.orders)):
        count = _add_first(r.orders[order], TRENDING_TAKEN, count, e)
    return count


@jit
def _add_most(found: int, count: int, e: Entries) -> int:
    """Add the FOLLOWERS_TAKEN of greatest mass among the first `found` touched; of equals those that come first."""
    floor, equals = 0.0, found
    if found > FOLLOWERS_TAKEN:
        for i in range(found):
            e.masses[i] = e.mass[e.touched[i]]
        floor = greatest(e.masses, found, np.int64(FOLLOWERS_TAKEN))
        equals = np.int64(FOLLOWERS_TAKEN)
        for i in range(found):
            equals -= e.mass[e.touched[i]] > floor
    for i in range(found):
        mass = e.mass[e.touched[i]]
        if mass > floor or (mass == floor and equals > 0):
            equals -= mass == floor
            count = _add(e.touched[i], count, e)
    return count


@jit
def _forget(rows: Array, c: Array, n: int, r: Ranker, e: Entries) -> None:
    """Masses as they were before this viewer."""
    followed = 0
    for i in range(n):
        if followed == FOLLOWED:
            break
        if c[i] <= 0 or rows[i] >= len(r.starts) - 1:
            continue
        for at in range(r.starts[rows[i]], r.starts[rows[i] + 1]):
            e.mass[r.items[at]] = 0
        followed += 1


@jit
def weigh(weight: float, signals: int, away_ms: int, r: Ranker, e: Entries) -> None:
    """The weights of the moment: `ranking.features.context` and `weights_of`."""
    away, long = away_ms / (away_ms + AWAY_MS), signals / (signals + LONG)
    for f in range(len(e.weights)):
        e.weights[f] = r.weights[0, f]
        e.weights[f] += (1 - weight) * r.weights[1, f]
        e.weights[f] += away * r.weights[2, f]
        e.weights[f] += long * r.weights[3, f]


@jit
def blend(count: int, weight: float, p: Popularity, e: Entries) -> None:
    """score = w · als + (1 − w) · popularity of every candidate."""
    for i in range(count):
        taste, popular = weight * e.als[i], (1 - weight) * p.score[e.candidates[i]]
        e.blended[i] = taste + popular
        e.origins[i] = ALS if taste >= popular else POPULAR


@jit
def rank_by_features(count: int, p: Popularity, rows: Array, c: Array, n: int, r: Ranker, e: Entries) -> int:
    """The score of every candidate as the ranker has it, and its parts by source, by `e.weights`. How many plays were followed."""
    plays, b = _look_up(rows, c, n, r, e), e.weights
    _add_up(count, plays, r, e)
    for source in range(4):
        e.means[source] = 0
    for i in range(count):
        parts, row = e.parts[i], e.candidates[i]
        parts[ALS] = b[TASTE] * e.als[i]
        parts[POPULAR] = b[POPULARITY] * p.score[row]
        parts[COWATCH] = e.lifts[i] + (b[ANY] * math.log(1.0 + e.shares[i] / LEAST_SHARE) if e.shares[i] > 0 else 0.0)
        trending = 0.0
        for column in range(LIFT - TREND):
            trending += b[TREND + column] * r.trends[row, column]
        parts[TRENDING] = trending
        e.blended[i] = parts[0] + parts[1] + parts[2] + parts[3]
        for source in range(4):
            e.means[source] += parts[source]
    for source in range(4):
        e.means[source] /= count
    return plays


@jit
def _look_up(rows: Array, c: Array, n: int, r: Ranker, e: Entries) -> int:
    """Find the followers of the newest liked plays that are candidates. How many plays were looked up."""
    followed, found = 0, 0
    for i in range(n):
        if followed == FOLLOWED:
            break
        if c[i] <= 0 or rows[i] >= len(r.starts) - 1:
            continue
        for at in range(r.starts[rows[i]], r.starts[rows[i] + 1]):
            slot = e.slots[r.items[at]]
            e.hit_slots[found], e.hits[found] = slot, at
            found += slot < ROOM
        e.hit_ends[followed], e.followed[followed] = found, i
        followed += 1
    return followed


@jit
def _add_up(count: int, followed: int, r: Ranker, e: Entries) -> None:
    """Weighted lifts and faded shares of every candidate."""
    for i in range(count):
        e.lifts[i] = e.shares[i] = 0
    begin = 0
    for play in range(followed):
        first, fading = r.slot[play], r.fading[play]
        any_, next_ = (
            e.weights[first],
            e.weights[first + 1],
        )  # read once: in a loop that writes they would be read each time
        soon, later = e.weights[first + 2], e.weights[first + 3]
        for hit in range(begin, e.hit_ends[play]):
            slot, at = e.hit_slots[hit], e.hits[hit]
            lift = r.lift[at]
            e.lifts[slot] += any_ * lift[0] + next_ * lift[1] + soon * lift[2] + later * lift[3]
            e.shares[slot] += fading * r.share[at]
        begin = e.hit_ends[play]


@jit
def weighted_lift(first: int, at: int, r: Ranker, e: Entries) -> float:
    """What entry `at` of the lists adds after a play whose lifts are the features from `first` on."""
    added = 0.0
    for step in range(len(STEPS)):
        added += e.weights[first + step] * r.lift[at, step]
    return added


@jit
def origin(i: int, e: Entries) -> int:
    """Which source lifts candidate i most above the mean candidate."""
    best, most = -1, 0.0
    for source in range(4):
        lift = e.parts[i, source] - e.means[source]
        if e.parts[i, source] != 0 and (best < 0 or lift > most):
            best, most = source, lift
    return POPULAR if best < 0 else best


@jit
def sort_best(count: int, most: int, e: Entries) -> int:
    """The best `most` candidates into `best`, best first, ties to the lower row. How many."""
    floor, found, best = -np.inf, 0, e.best
    if count > most:
        floor = reached(e.blended, count, most)
    for i in range(count):
        best[found] = i
        found += e.blended[i] >= floor
    for i in range(1, found):
        one, at = best[i], i
        score, row = e.blended[one], e.candidates[one]
        while at > 0 and (
            e.blended[best[at - 1]] < score or (e.blended[best[at - 1]] == score and e.candidates[best[at - 1]] > row)
        ):
            best[at] = best[at - 1]
            at -= 1
        best[at] = one
    return min(found, most)


@jit
def take_best(count: int, by_parts: bool, e: Entries) -> int:
    """The best ENTRIES_KEPT candidates into `rows`, `scores` and `sources`. How many."""
    kept = sort_best(count, np.int64(ENTRIES_KEPT), e)
    for place in range(kept):
        i = e.best[place]
        e.rows[place], e.scores[place] = e.candidates[i], e.blended[i]
        e.sources[place] = origin(i, e) if by_parts else e.origins[i]
    return kept


@jit
def follow(count: int, n: int, with_reasons: int, plays: int, r: Ranker, e: Entries, contributions: Array) -> None:
    """What each of the n folded plays adds to the score of the first entries by being followed by them, for those that come from
    following. `count`: candidates. `plays`: that were looked up. `contributions`: (LANES, ≥ n) float64, by entry and folded item.
    """
    for i in range(count):
        e.entry_of[i] = -1
    for entry in range(with_reasons):
        if e.sources[entry] == COWATCH:
            place = e.best[entry]
            share = e.shares[place]
            e.entry_of[place] = entry
            e.together[entry] = e.weights[ANY] * math.log(1.0 + share / LEAST_SHARE) / share if share > 0 else 0.0
            for i in range(n):
                contributions[entry, i] = 0
    begin = 0
    for play in range(plays):
        for hit in range(begin, e.hit_ends[play]):
            entry, at = e.entry_of[e.hit_slots[hit]], e.hits[hit]
            if entry >= 0:
                own = weighted_lift(r.slot[play], at, r, e)
                contributions[entry, e.followed[play]] = own + e.together[entry] * r.fading[play] * r.share[at]
        begin = e.hit_ends[play]


@jit
def take_reasons(contributions: Array, rows: Array, n: int, weight: float, count: int, e: Entries) -> None:
    """The strongest positive contributions to each of the first `count` entries; of equal ones the newer signal's.

    `contributions`: (LANES, ≥ n) float64, by entry and folded item: to y·x, which counts `weight` times; to the score itself where the
    entry comes from following. `rows`: (≥ n,) int32, the folded items.
    """
    for entry in range(count):
        found, scale = 0, 1.0 if e.sources[entry] == COWATCH else weight
        for i in range(n):
            value = contributions[entry, i] * scale
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
