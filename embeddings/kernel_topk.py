"""Exact top-K of Y·x minus excluded rows, compiled, for a tile of viewers at once.

Items lie on a *shelf*, ordered by falling norm and cut into blocks. Block by block: one product for the viewers that still
search; the best of each of `LANES_OF_BLOCK` interleaved lanes, whose K-th greatest is a floor that at least K items reach; and
what reaches the floor is kept. A viewer is done when no item further back can reach the floor: y·x ≤ ‖y‖·‖x‖. A small catalogue
is one block, and then this is selection by block maxima; a large one with skewed norms is hardly looked at.

The product is float32, and its last bits depend on how many viewers share it. So nothing is decided by it alone: whatever lies
within the rounding error (a bound, not a guess) of the floor is kept too, and the choice is made among those by scores computed
in float64, viewer by viewer, ties to the lower row. The result is the exact top-K, the same alone and in any company.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embeddings.compiled import frozen, jit, jit_counted, jit_sums

BLOCK = 2_048
"""Items of a block: the scores of a tile of 32 viewers then lie in 256 KiB, within a core's second cache."""
LANES_OF_BLOCK = 256
KEPT = 1_024
"""Candidates kept of a viewer at most; whoever has more within the rounding error (many equal items) is searched exhaustively."""

Array = NDArray[Any]


class Shelf(NamedTuple):
    """Items in the order in which they are searched."""

    rows: Array  # (n_items,) int32, by falling norm
    places: Array  # (n_items,) int32, row → place
    factors: Array  # (n_items, k) float32, in that order; not frozen, as numba's product takes it
    bias: Array  # (n_items,) float32, in that order: 0, or −∞ for what may not be shown
    reach: Array  # (n_blocks,) float64, greatest norm of each block


class Search(NamedTuple):
    """Scratch of a tile of T viewers, and what was found."""

    scores: Array  # (T · BLOCK,) float32
    lanes: Array  # (LANES_OF_BLOCK,) float32
    places: Array  # (T, KEPT) int32: found
    approximate: Array  # (T, KEPT) float32: their scores
    counts: Array  # (T,) int64; −1: search exhaustively
    floors: Array  # (T,) float64
    slacks: Array  # (T,) float64: twice the rounding error
    norms: Array  # (T,) float64: ‖x‖
    active: Array  # (T,) int64
    X: Array  # (T, k) float32: vectors of the active
    all_rows: Array  # (n_items,) int32, the next three for exhaustive searches
    all_scores: Array  # (n_items,) float64
    all_allowed: Array  # (n_items,) bool
    cutting: Array  # (≥ n_items, KEPT) float64
    tied: Array  # (≥ n_items, KEPT) int32


def make_search(tile: int, n_items: int, k: int) -> Search:
    """Scratch for tiles of so many viewers."""
    return Search(
        np.empty(tile * BLOCK, np.float32),
        np.empty(LANES_OF_BLOCK, np.float32),
        np.empty((tile, KEPT), np.int32),
        np.empty((tile, KEPT), np.float32),
        np.zeros(tile, np.int64),
        np.zeros(tile, np.float64),
        np.zeros(tile, np.float64),
        np.zeros(tile, np.float64),
        np.zeros(tile, np.int64),
        np.empty((tile, k), np.float32),
        np.empty(n_items, np.int32),
        np.empty(n_items, np.float64),
        np.empty(n_items, np.bool_),
        np.empty(max(n_items, KEPT), np.float64),
        np.empty(max(n_items, KEPT), np.int32),
    )


def make_shelf(factors: Array, allowed: NDArray[np.bool_]) -> Shelf:
    """`factors`: (n_items, k) float32. `allowed`: (n_items,) bool, what may be shown."""
    n = len(factors)
    norms = np.sqrt(np.einsum("ij,ij->i", factors, factors, dtype=np.float64))
    if n <= BLOCK:
        order, ordered = np.arange(n, dtype=np.int32), factors.copy()
    else:
        order = np.argsort(-norms, kind="stable").astype(np.int32)
        ordered = np.ascontiguousarray(factors[order])
    places = np.empty(n, np.int32)
    places[order] = np.arange(n, dtype=np.int32)
    reach = np.maximum.reduceat(norms[order], np.arange(0, n, BLOCK)) if n else np.zeros(1)  # `search` reads the first
    shelf = Shelf(frozen(order), frozen(places), ordered, np.empty(0, np.float32), frozen(reach))
    return with_allowed(shelf, allowed)


def with_allowed(shelf: Shelf, allowed: NDArray[np.bool_]) -> Shelf:
    """The same shelf with other items left out."""
    bias = np.where(allowed[shelf.rows], np.float32(0), np.float32(-np.inf)).astype(np.float32)
    return shelf._replace(bias=frozen(bias))


@jit
def search(shelf: Shelf, X: Array, b: int, wanted: int, excluded: Array, n_excluded: Array, s: Search) -> None:
    """Find candidates for the first `b` vectors of X into `s`: all that can be among the best `wanted`, and few more.

    `X`: (≥ b, k) float32. `excluded`: (≥ b, any) int32, the rows that each viewer must not get, `n_excluded`: how many.
    """
    n, k = shelf.factors.shape
    for v in range(b):
        s.norms[v] = norm(X, v, k)
        # |float32 sum − exact| ≤ about k · 2⁻²⁴ · ‖x‖ ‖y‖ however it is ordered; for the item and for the floor, and a bit
        s.slacks[v] = 2.0 * (k + 4) * 2.0**-24 * s.norms[v] * shelf.reach[0]
        s.floors[v] = -np.inf
        s.counts[v] = 0
    for low in range(0, n, BLOCK):
        high, block, active = min(low + BLOCK, n), low // BLOCK, 0
        for v in range(b):
            if s.counts[v] >= 0 and s.norms[v] * shelf.reach[block] * (1 + 1e-9) + s.slacks[v] >= s.floors[v]:
                s.active[active] = v
                for m in range(k):
                    s.X[active, m] = X[v, m]
                active += 1
        if active == 0:
            break
        width = high - low
        multiply(s.X, active, shelf.factors, low, high, s.scores)
        for a in range(active):
            v, scores = s.active[a], s.scores[a * width : (a + 1) * width]
            _leave_out(shelf, scores, low, high, excluded[v], n_excluded[v])
            _take(scores, shelf.bias[low:high], low, v, wanted, s)


@jit_counted
def multiply(X: Array, b: int, Y: Array, low: int, high: int, out: Array) -> None:
    """out ← X[:b] Y[low:high]ᵀ, one row after another: BLAS."""
    np.dot(X[:b], Y[low:high].T, out[: b * (high - low)].reshape((b, high - low)))


@jit
def _leave_out(shelf: Shelf, scores: Array, low: int, high: int, excluded: Array, count: int) -> None:
    for i in range(count):
        place = shelf.places[excluded[i]]
        if low <= place < high:
            scores[place - low] = -np.inf


@jit
def _take(scores: Array, bias: Array, low: int, v: int, wanted: int, s: Search) -> None:
    """Keep what of a block reaches the floor of viewer v, and raise the floor."""
    n, lanes = len(scores), s.lanes
    _best_of_lanes(scores, bias, lanes)
    if s.counts[v] < wanted <= LANES_OF_BLOCK:
        s.floors[v] = max(s.floors[v], reached(lanes, np.int64(LANES_OF_BLOCK), wanted))
    least = _least(v, s)
    count, places, approximate = s.counts[v], s.places[v], s.approximate[v]
    for lane in range(LANES_OF_BLOCK):
        if lanes[lane] < least:
            continue
        if count + (n - lane + LANES_OF_BLOCK - 1) // LANES_OF_BLOCK >= KEPT:  # the lane may not fit
            s.counts[v] = count
            _prune(v, wanted, s)
            count, least = s.counts[v], _least(v, s)
            if count + BLOCK // LANES_OF_BLOCK >= KEPT:
                s.counts[v] = -1
                return
        for at in range(
            lane, n, LANES_OF_BLOCK
        ):  # without a branch: every score is put down, and stays if it is good enough
            score = scores[at] + bias[at]
            places[count], approximate[count] = low + at, score
            count += score >= least
    s.counts[v] = count
    _prune(v, wanted, s)


@jit
def _least(v: int, s: Search) -> Any:
    """What a float32 score must reach to be kept; any number does at first."""
    return max(np.float32(s.floors[v] - s.slacks[v] * 1.01), np.float32(-3.4e38))


@jit
def _best_of_lanes(scores: Array, bias: Array, lanes: Array) -> None:
    """Into `lanes` the best of each lane."""
    n = len(scores)
    full = n // LANES_OF_BLOCK * LANES_OF_BLOCK
    for lane in range(LANES_OF_BLOCK):
        lanes[lane] = -np.inf
    for start in range(0, full, LANES_OF_BLOCK):
        part, added = scores[start : start + LANES_OF_BLOCK], bias[start : start + LANES_OF_BLOCK]
        for lane in range(LANES_OF_BLOCK):
            lanes[lane] = max(lanes[lane], part[lane] + added[lane])
    for lane in range(n - full):
        lanes[lane] = max(lanes[lane], scores[full + lane] + bias[full + lane])


@jit
def _prune(v: int, wanted: int, s: Search) -> None:
    """Raise the floor to the score of the best `wanted` found so far; drop what does not reach it."""
    count = s.counts[v]
    if count <= wanted:
        return
    s.floors[v] = max(s.floors[v], reached(s.approximate[v], count, wanted))
    kept = 0
    for i in range(count):
        if s.approximate[v, i] >= s.floors[v] - s.slacks[v]:
            s.places[v, kept], s.approximate[v, kept] = s.places[v, i], s.approximate[v, i]
            kept += 1
    s.counts[v] = kept


@jit
def best(
    Y: Array, shelf: Shelf, x: Array, v: int, wanted: int, excluded: Array, n_excluded: int, s: Search,
    rows: Array, scores: Array,
) -> int:  # fmt: skip
    """Of the candidates of viewer v the best `wanted`, by score in float64, ties to the lower row; in no order. Their number.

    `Y`: (≥ n_items, k) float32, the items first. `rows`: (≥ KEPT,) int32 and `scores`: (≥ KEPT,) float64 take the result.
    """
    if s.counts[v] < 0:
        return _exhaustive(Y, shelf, x, wanted, excluded, n_excluded, s, rows, scores)
    for i in range(s.counts[v]):
        rows[i] = shelf.rows[s.places[v, i]]
    score_rows(Y, x, rows, np.int64(0), s.counts[v], scores)
    return _cut(rows, scores, s.counts[v], wanted, s)


@jit
def _exhaustive(
    Y: Array,
    shelf: Shelf,
    x: Array,
    wanted: int,
    excluded: Array,
    n_excluded: int,
    s: Search,
    rows: Array,
    scores: Array,
) -> int:
    n = len(shelf.rows)  # Y may hold more behind the items
    every, all_scores, allowed = s.all_rows, s.all_scores, s.all_allowed
    for row in range(n):
        every[row] = row
    score_rows(Y, x, every, np.int64(0), n, all_scores)
    for row in range(n):
        allowed[row] = shelf.bias[shelf.places[row]] == 0
    for i in range(n_excluded):
        allowed[excluded[i]] = False
    count = np.int64(0)
    for row in range(n):
        if allowed[row]:
            every[count], all_scores[count] = row, all_scores[row]
            count += 1
    count = _cut(every, all_scores, count, wanted, s)
    for i in range(count):
        rows[i], scores[i] = every[i], all_scores[i]
    return count


@jit
def _cut(rows: Array, scores: Array, count: int, wanted: int, s: Search) -> int:
    """The best `wanted` of `count` rows to the front; of equal scores the lower rows."""
    if count <= wanted:
        return count
    for i in range(count):
        s.cutting[i] = scores[i]
    last = greatest(s.cutting, count, wanted)
    kept = 0
    for i in range(count):
        if scores[i] > last:
            kept += 1
    n_tied = 0
    for i in range(count):
        if scores[i] == last:
            s.tied[n_tied] = rows[i]
            n_tied += 1
    last_row = greatest(
        s.tied, n_tied, n_tied - (wanted - kept) + 1
    )  # of the equal ones the lowest rows, as many as are wanted
    kept = 0
    for i in range(count):
        if scores[i] > last or (scores[i] == last and rows[i] <= last_row):
            rows[kept], scores[kept] = rows[i], scores[i]
            kept += 1
    return kept


@jit_sums
def norm(X: Array, v: int, k: int) -> float:
    """‖row v‖."""
    total = 0.0
    for m in range(k):
        total += float(X[v, m]) * float(X[v, m])
    return float(np.sqrt(total))


@jit_sums
def score_rows(Y: Array, x: Array, rows: Array, start: int, stop: int, scores: Array) -> None:
    """y·x of rows[start … stop − 1] in float64. `x`: (k,) float64."""
    k = len(x)
    for i in range(start, stop):
        y, total = Y[rows[i]], 0.0
        for m in range(k):
            total += y[m] * x[m]
        scores[i] = total


@jit
def reached(values: Array, n: int, wanted: int) -> Any:
    """A value that at least `wanted` of the first n values reach and hardly more do; −∞ if so many are not finite. By bisection: to count
    what reaches a value takes no branches, and so less time than to put the values in order."""
    low, high, finite = _bounds(values, n)
    if finite < wanted:
        return -np.inf
    for _ in range(64):
        middle = low + (high - low) * np.float32(0.5)
        if middle <= low or middle >= high:
            break
        count = 0
        for i in range(n):
            count += values[i] >= middle
        if count >= wanted:
            low = middle
            if count <= wanted + wanted // 16:
                break
        else:
            high = middle
    return low


@jit
def _bounds(values: Array, n: int) -> Any:
    """(least that is not −∞, greatest, how many are not −∞) of the first n ≥ 1. Four at a time, each with a bound of its own: a bound
    waits for the one before it."""
    nothing, none = np.float32(-np.inf), np.float32(np.inf)
    a = b = c = d = values[0]
    e = f = g = h = values[0] if values[0] > nothing else none
    finite, whole = 0, n // 4 * 4
    for i in range(0, whole, 4):
        p, q, r, s = values[i], values[i + 1], values[i + 2], values[i + 3]
        a, b, c, d = max(a, p), max(b, q), max(c, r), max(d, s)
        e, f = min(e, p if p > nothing else none), min(f, q if q > nothing else none)
        g, h = min(g, r if r > nothing else none), min(h, s if s > nothing else none)
        finite += (p > nothing) + (q > nothing) + (r > nothing) + (s > nothing)
    for i in range(whole, n):
        a, e = max(a, values[i]), min(e, values[i] if values[i] > nothing else none)
        finite += values[i] > nothing
    return min(min(e, f), min(g, h)), max(max(a, b), max(c, d)), finite


@jit
def greatest(values: Array, n: int, rank: int) -> Any:
    """The rank-th greatest (from 1) of the first n values, which are reordered. Hoare's selection."""
    low, high, target = np.int64(0), n - 1, rank - 1
    while low < high:
        middle = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] > middle:
                i += 1
            while values[j] < middle:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if target <= j:
            high = j
        elif target >= i:
            low = i
        else:
            break
    return values[target]
