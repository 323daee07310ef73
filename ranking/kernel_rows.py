"""One viewer's entries and reasons, compiled: `ranking/rows.py` and `ranking/features.py` are the readable twins.

Candidates come from sources (taste: the best by y·x; popular; what follows the newest plays; trending), are put together, get one
score, and the best are taken. A new source adds rows to `gather_further`, a new feature a term to `rank_by_features`. Without a ranker
two features remain, y·x and popularity, and `blend` weighs them.

About a thousand followers are looked at for each viewer, once: what they add is summed up title by title, for candidates and others, and
nothing branches on which they are.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.rows import ENTRIES_KEPT, ENTRIES_WITH_REASONS
from embeddings.compiled import jit
from embeddings.kernel_foldin import LANES
from embeddings.kernel_sequence import Look, Net, play_parts
from embeddings.kernel_topk import KEPT, reached
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
from ranking.features import SEQUENCE as BY_SEQUENCE

Array = NDArray[Any]

ALS, POPULAR, COWATCH, TRENDING, SEQUENCE, AGAIN, EXPLORE = 0, 1, 2, 3, 4, 5, 6
"""Sources, by index into `ranking.rows.SOURCES`."""
ADDED_UP = 5
"""The first ones, of which the ranker makes the score."""

CANDIDATES = 76
"""Taken of each source: the entries kept, and some that other features may lift."""

REASONS_PER_ENTRY = 3

FREE, TAKEN, HIDDEN = 0, 1, 2
"""Marks of titles: no candidates yet, candidates, and those that this viewer must not get."""

assert ENTRIES_WITH_REASONS <= LANES
assert len(CONTEXTS) == 4  # `weigh` names them
assert len(STEPS) == 4  # `_add_up` names them
assert LIFT - TREND == 5  # `rank_by_features` names them


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
    sequence: Net


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
    candidates: Array  # (room + 1,) int32
    als: Array  # (room,) float64
    blended: Array  # (room,) float64
    origins: Array  # (room,) int64: the source of each candidate, where no parts say it
    marks: Array  # (n_items,) int32: `FREE`, `TAKEN` or `HIDDEN`
    followed: Array  # (FOLLOWED,) int64: which of the folded plays
    weights: Array  # (features of BASE,) float64: those of the moment
    sums: Array  # (n_items, 2) float64: faded shares and weighted lifts of what follows, 0 between viewers
    touched: Array  # (followers of FOLLOWED plays at most + 1,) int32: what follows and may be shown
    values: Array  # (room,) float64, for sorting
    shares: Array  # (room,) float64: faded sums
    together: Array  # (ENTRIES_WITH_REASONS,) float64
    entry_of: Array  # (n_items,) int32: place among the entries whose reasons are looked for, −1 between viewers
    sequence: Array  # (room,) float64: the sequence model's scores
    parts: Array  # (room, sources that the ranker adds up) float64
    means: Array  # (sources,) float64
    reaching: Array  # (room,) int64: places, in no order
    best: Array  # the same, best first


def make_entries(allowed: NDArray[np.bool_], longest: int) -> Entries:
    """`allowed`: (n_items,), what may be shown. `longest`: followers of a title at most."""
    reasons, n, followers = (ENTRIES_WITH_REASONS, REASONS_PER_ENTRY), len(allowed), longest * FOLLOWED
    room = KEPT + CANDIDATES + followers + 2 * TRENDING_TAKEN
    return Entries(
        np.zeros(ENTRIES_KEPT, np.int32), np.empty(ENTRIES_KEPT), np.empty(ENTRIES_KEPT, np.int64),
        np.zeros(ENTRIES_WITH_REASONS, np.int64), np.empty(reasons, np.int32), np.empty(reasons),
        np.empty(room + 1, np.int32), np.empty(room), np.empty(room), np.empty(room, np.int64),
        np.where(allowed, np.int32(FREE), np.int32(HIDDEN)).astype(np.int32),
        np.zeros(FOLLOWED, np.int64), np.empty(len(BASE)), np.zeros((n, 2)), np.empty(followers + 1, np.int32),
        np.empty(room), np.empty(room), np.empty(ENTRIES_WITH_REASONS), np.full(n, -1, np.int32), np.empty(room),
        np.empty((room, ADDED_UP)), np.empty(ADDED_UP), np.empty(room, np.int64), np.empty(room, np.int64),
    )  # fmt: skip


@jit
def gather(taste: int, excluded: Array, n_excluded: int, p: Popularity, e: Entries) -> int:
    """Add the popular candidates to the first `taste` ones: how many there are then."""
    for i in range(n_excluded):
        e.marks[excluded[i]] = HIDDEN
    for i in range(taste):
        e.marks[e.candidates[i]] = TAKEN
    return _add_first(p.order, np.int64(CANDIDATES), taste, e)


@jit
def scatter(count: int, excluded: Array, n_excluded: int, allowed: Array, e: Entries) -> None:
    """Marks as they were before this viewer. `allowed`: (n_items,) bool."""
    for i in range(count):
        e.marks[e.candidates[i]] = FREE
    for i in range(n_excluded):
        e.marks[excluded[i]] = FREE if allowed[excluded[i]] else HIDDEN


@jit
def _add_first(order: Array, most: int, count: int, e: Entries) -> int:
    """Add the first `most` of an order that may be shown."""
    wanted = 0
    for i in range(len(order)):
        if wanted == most:
            break
        wanted += e.marks[order[i]] != HIDDEN
        count = _add(order[i], np.bool_(True), count, e)
    return count


@jit
def _add(row: int, wanted: bool, count: int, e: Entries) -> int:
    """Add one if it is wanted, unless it is there already or must not be."""
    mark = e.marks[row]
    added = (mark == FREE) & wanted
    e.candidates[count] = row
    e.marks[row] = TAKEN if added else mark
    return count + added


@jit
def gather_further(rows: Array, c: Array, n: int, r: Ranker, count: int, e: Entries) -> Any:
    """Add what follows the newest liked of the n folded plays most, and what is trending: (candidates, plays that were followed)."""
    found, plays = _add_up(rows, c, n, r, e)
    floor = -np.inf
    if found > FOLLOWERS_TAKEN:
        for i in range(found):
            e.values[i] = e.sums[e.touched[i], 0]
        floor = reached(e.values, found, np.int64(FOLLOWERS_TAKEN))
    for i in range(found):
        count = _add(np.int64(e.touched[i]), e.sums[e.touched[i], 0] >= floor, count, e)
    for order in range(len(r.orders)):
        count = _add_first(r.orders[order], np.int64(TRENDING_TAKEN), count, e)
    return count, plays


@jit
def _add_up(rows: Array, c: Array, n: int, r: Ranker, e: Entries) -> Any:
    """Faded shares and weighted lifts of all that follows, by `e.weights`: (titles that may be shown, plays that were followed)."""
    plays, found, b = np.int64(0), np.int64(0), e.weights
    for i in range(n):
        if plays == FOLLOWED:
            break
        if c[i] <= 0 or rows[i] >= len(r.starts) - 1:  # nothing follows a topic or a creator
            continue
        first, fading = r.slot[plays], r.fading[plays]
        # Out of the loop: in one that writes they would be read each time.
        any_, next_, soon, later = b[first], b[first + 1], b[first + 2], b[first + 3]
        for at in range(r.starts[rows[i]], r.starts[rows[i] + 1]):
            item, share, lift = r.items[at], r.share[at], r.lift[at]
            sums = e.sums[item]
            e.touched[found] = item
            found += (sums[0] == 0) & (e.marks[item] != HIDDEN) & (share > 0)
            sums[0] += fading * share
            sums[1] += any_ * lift[0] + next_ * lift[1] + soon * lift[2] + later * lift[3]
        e.followed[plays] = i
        plays += 1
    return found, plays


@jit
def forget(rows: Array, plays: int, r: Ranker, e: Entries) -> None:
    """Sums as they were before this viewer."""
    for play in range(plays):
        row = rows[e.followed[play]]
        for at in range(r.starts[row], r.starts[row + 1]):
            e.sums[r.items[at], 0] = 0
            e.sums[r.items[at], 1] = 0


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
def rank_by_features(count: int, p: Popularity, r: Ranker, looked: bool, e: Entries) -> None:
    """The score of every candidate as the ranker has it, and its parts by source, by `e.weights`. `looked`: there is a history, and so
    `e.sequence`."""
    b, taste, popular, together, trending, next_ = e.weights, 0.0, 0.0, 0.0, 0.0, 0.0
    of_taste, of_popularity, of_any, of_sequence = b[TASTE], b[POPULARITY], b[ANY], b[BY_SEQUENCE]
    t0, t1, t2, t3, t4 = b[TREND], b[TREND + 1], b[TREND + 2], b[TREND + 3], b[TREND + 4]
    for i in range(count):
        row, parts = e.candidates[i], e.parts[i]
        share, lift, trends = e.sums[row, 0], e.sums[row, 1], r.trends[row]
        parts[ALS] = of_taste * e.als[i]
        parts[POPULAR] = of_popularity * p.score[row]
        parts[COWATCH] = lift + (of_any * math.log(1.0 + share / LEAST_SHARE) if share > 0 else 0.0)
        parts[TRENDING] = t0 * trends[0] + t1 * trends[1] + t2 * trends[2] + t3 * trends[3] + t4 * trends[4]
        parts[SEQUENCE] = of_sequence * e.sequence[i] if looked else 0.0
        e.blended[i] = parts[0] + parts[1] + parts[2] + parts[3] + parts[4]
        e.shares[i] = share
        taste += parts[ALS]
        popular += parts[POPULAR]
        together += parts[COWATCH]
        trending += parts[TRENDING]
        next_ += parts[SEQUENCE]
    e.means[ALS], e.means[POPULAR] = taste / count, popular / count
    e.means[COWATCH], e.means[TRENDING], e.means[SEQUENCE] = together / count, trending / count, next_ / count


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
    for source in range(ADDED_UP):
        lift = e.parts[i, source] - e.means[source]
        if e.parts[i, source] != 0 and (best < 0 or lift > most):
            best, most = source, lift
    return POPULAR if best < 0 else best


@jit
def sort_best(count: int, most: int, e: Entries) -> int:
    """The best `most` candidates into `best`, best first, ties to the lower row. How many."""
    floor, found = -np.inf, 0
    if count > most:
        floor = reached(e.blended, count, most)
    for i in range(count):
        e.reaching[found], e.values[found] = i, e.blended[i]
        found += e.blended[i] >= floor
    for i in range(found):  # to count who is better takes no branches, and so less time than to move them
        score, better, equal = e.values[i], 0, 0
        for j in range(found):
            better += e.values[j] > score
            equal += e.values[j] == score
        if equal > 1:
            for j in range(found):
                better += e.values[j] == score and e.candidates[e.reaching[j]] < e.candidates[e.reaching[i]]
        e.best[better] = e.reaching[i]
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
def follow(rows: Array, n: int, with_reasons: int, plays: int, r: Ranker, e: Entries, contributions: Array) -> None:
    """What each of the n folded plays adds to the score of the first entries by being followed by them, for those that come from
    following. `plays`: that were followed. `contributions`: (LANES, ≥ n) float64, by entry and folded item.
    """
    some = False
    for entry in range(with_reasons):
        if e.sources[entry] == COWATCH:
            share, some = e.shares[e.best[entry]], True
            e.entry_of[e.rows[entry]] = entry
            e.together[entry] = e.weights[ANY] * math.log(1.0 + share / LEAST_SHARE) / share if share > 0 else 0.0
            for i in range(n):
                contributions[entry, i] = 0
    if not some:
        return
    for play in range(plays):
        row = rows[e.followed[play]]
        for at in range(r.starts[row], r.starts[row + 1]):
            entry = e.entry_of[r.items[at]]
            if entry >= 0:
                own = weighted_lift(r.slot[play], at, r, e)
                contributions[entry, e.followed[play]] = own + e.together[entry] * r.fading[play] * r.share[at]
    for entry in range(with_reasons):
        e.entry_of[e.rows[entry]] = -1


@jit
def go_on(
    places: Array, looked: int, n: int, with_reasons: int, r: Ranker, e: Entries, look: Look, contributions: Array
) -> None:  # fmt: skip
    """What each play of the history adds to the score of the first entries by the sequence model, for those that come from it; otherwise as
    `follow`. `places`: which of the n folded items each of the `looked` plays is."""
    for entry in range(with_reasons):
        if e.sources[entry] == SEQUENCE:
            for i in range(n):
                contributions[entry, i] = 0
            play_parts(r.sequence, looked, e.rows[entry], look)
            for play in range(looked):
                contributions[entry, places[play]] = e.weights[BY_SEQUENCE] * look.parts[play]


@jit
def take_reasons(contributions: Array, rows: Array, n: int, weight: float, count: int, e: Entries) -> None:
    """The strongest positive contributions to each of the first `count` entries; of equal ones the newer signal's.

    `contributions`: (LANES, ≥ n) float64, by entry and folded item: to y·x, which counts `weight` times; to the score itself where the
    entry comes from following or from the sequence. `rows`: (≥ n,) int32, the folded items.
    """
    for entry in range(count):
        found, scale = 0, 1.0 if e.sources[entry] == COWATCH or e.sources[entry] == SEQUENCE else weight
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
