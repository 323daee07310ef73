"""Rules over a ranked list, compiled: `ranking/rules.py` says what they are."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.rows import ENTRIES_KEPT
from contracts.rules import Rules
from embeddings.compiled import frozen, jit
from embeddings.generation import Generation
from ranking import rules as readable
from ranking.kernel_rows import AGAIN as FROM_AGAIN
from ranking.kernel_rows import EXPLORE as FROM_EXPLORE
from ranking.kernel_rows import HIDDEN, Entries, origin
from ranking.rules import AGAIN, AGAIN_KEPT, DRAWN, EXPLORE, POOL, RANKED, SPARE

Array = NDArray[Any]

WINDOW, GAP = 0, 1
"""Places in `RuleSet.whole`."""
EXPLORATION, REPEATS, PREFERENCE = 0, 1, 2
"""Places in `RuleSet.shares`."""


class RuleSet(NamedTuple):
    """A generation's rules. Without any, arrays are empty and shares 0."""

    whole: Array  # (2,) int64: window, repeat gap
    shares: Array  # (3,) float64
    starts: Array  # (n_items + 1,) int64, or (0,): groups are not counted
    members: Array  # (entries,) int32
    limits: Array  # (n_groups,) int64
    explorable: Array  # (some,) int64
    inverse_norms: Array  # the same, float64
    activation: Array  # (plays,) float64


class Placing(NamedTuple):
    """Scratch of one viewer at a time."""

    rows: Array  # (3, POOL) int32: the queues
    done: Array  # (3, POOL) int64: 1 once an entry is placed
    first: Array  # (3,) int64: the first entry of each queue that may not be placed yet
    had: Array  # (3,) int64
    sizes: Array  # (3,) int64
    counts: Array  # (n_groups,) int64: of each group among the last ones; zero between viewers
    pool: Array  # (POOL,) int64: candidates in the order of the ranker


def make_rule_set(generation: Generation | None, max_plays: int) -> RuleSet:
    """`max_plays`: kept in a state."""
    rules, groups = (generation.rules, generation.groups) if generation else (Rules(), None)
    counted = groups is not None and rules.limit_groups
    nothing = np.zeros(0, np.int64)
    explores = generation is not None and rules.exploration > 0
    return RuleSet(
        frozen(np.array([rules.window, rules.repeat_gap], np.int64)),
        frozen(np.array([rules.exploration, rules.repeats, rules.preference], np.float64)),
        frozen(groups.starts if counted and groups else nothing),
        frozen(groups.members if counted and groups else nothing.astype(np.int32)),
        frozen(groups.limits(rules.per_creator, rules.per_topic) if counted and groups else nothing),
        frozen(generation.explorable.astype(np.int64) if explores and generation else nothing),
        frozen(readable.inverse_norms(generation) if explores and generation else np.zeros(0)),
        frozen(readable.activation(max_plays)),
    )


def make_placing(rules: RuleSet) -> Placing:
    return Placing(
        np.empty((3, POOL), np.int32), np.empty((3, POOL), np.int64), np.zeros(3, np.int64), np.zeros(3, np.int64),
        np.zeros(3, np.int64), np.zeros(len(rules.limits) + 1, np.int64), np.zeros(POOL, np.int64),
    )  # fmt: skip


@jit
def moves(r: RuleSet) -> bool:
    """Whether entries may lie elsewhere than the ranker puts them."""
    return len(r.starts) > 0 or r.shares[EXPLORATION] > 0 or r.shares[REPEATS] > 0


@jit
def explore(Y: Array, x: Array, r: RuleSet, seed: Any, e: Entries, p: Placing) -> None:
    """Draw the titles to explore into their queue. `seed`: uint64. While `e.marks` still know what this viewer must not get."""
    found, places = 0, np.int64(math.floor(ENTRIES_KEPT * r.shares[EXPLORATION])) + SPARE
    if len(r.explorable) == 0:
        places = np.int64(0)
    for place in range(places):
        best, most = np.int64(-1), 0.0
        for drawn in range(DRAWN):
            at = np.int64(_splitmix(seed + np.uint64(place * DRAWN + drawn)) % np.uint64(len(r.explorable)))
            row = r.explorable[at]
            if e.marks[row] == HIDDEN:
                continue
            closeness = 0.0
            for m in range(len(x)):
                closeness += Y[row, m] * x[m]
            closeness *= r.inverse_norms[at]
            if best < 0 or closeness > most:
                best, most = row, closeness
        if best >= 0:
            p.rows[EXPLORE, found] = best
            found += 1
    p.sizes[EXPLORE] = found


@jit
def _splitmix(number: Any) -> Any:
    """uint64 → uint64."""
    z = number + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@jit
def bring_back(rows: Array, n: int, p: Placing) -> None:
    """The queue of what may come back."""
    for i in range(n):
        p.rows[AGAIN, i] = rows[i]
    p.sizes[AGAIN] = n


@jit
def may_come_back(activations: Array, order: Array, n: int, rows: Array, values: Array) -> int:
    """The `AGAIN_KEPT` most activated of `order[:n]`'s rows into `rows`, of equals the earlier. How many.

    `activations`: (n,) float64, `order`: (n,) int32 item rows, newest signal first. `values`: (AGAIN_KEPT,) float64 scratch.
    """
    found = 0
    for i in range(n):
        value = activations[i]
        if found == AGAIN_KEPT and value <= values[found - 1]:
            continue
        at = min(found, AGAIN_KEPT - 1)
        while at > 0 and values[at - 1] < value:
            values[at], rows[at] = values[at - 1], rows[at - 1]
            at -= 1
        values[at], rows[at] = value, order[i]
        found = min(found + 1, AGAIN_KEPT)
    return found


@jit
def arrange(ranked: int, by_parts: bool, weight: float, Y: Array, x: Array, r: RuleSet, e: Entries, p: Placing) -> int:
    """Fill `e.rows`, `scores`, `sources` and `best` from the first `ranked` candidates of `e.best` and the other queues. How many.

    What is not the ranker's own has its taste as its score: `weight` times y·x; its place in `e.best` is −1.
    """
    _begin(ranked, e, p)
    placed = np.int64(0)
    while placed < ENTRIES_KEPT:
        queue, index = _choose(placed, r, p, e)
        if queue < 0:
            break
        row = p.rows[queue, index]
        p.done[queue, index] = 1
        p.had[queue] += 1
        e.rows[placed] = row
        if queue == RANKED:
            i = p.pool[index]
            e.best[placed], e.scores[placed] = i, e.blended[i]
            e.sources[placed] = origin(i, e) if by_parts else e.origins[i]
        else:
            score = 0.0
            for m in range(len(x)):
                score += Y[row, m] * x[m]
            e.best[placed], e.scores[placed] = -1, weight * score
            e.sources[placed] = FROM_AGAIN if queue == AGAIN else FROM_EXPLORE
        _count(row, np.int64(1), r, p)
        placed += 1
        if placed >= r.whole[WINDOW]:
            _count(e.rows[placed - r.whole[WINDOW]], np.int64(-1), r, p)
    for place in range(max(0, placed - r.whole[WINDOW] + 1), placed):
        _count(e.rows[place], np.int64(-1), r, p)
    return placed


@jit
def _begin(ranked: int, e: Entries, p: Placing) -> None:
    p.sizes[RANKED] = ranked
    for index in range(ranked):
        p.pool[index] = e.best[index]
        p.rows[RANKED, index] = e.candidates[e.best[index]]
    for queue in range(3):
        p.first[queue] = p.had[queue] = 0
        for index in range(p.sizes[queue]):
            p.done[queue, index] = 0


@jit
def _choose(placed: int, r: RuleSet, p: Placing, e: Entries) -> Any:
    """(queue, index) of the next entry; (−1, −1): there is none."""
    turn = RANKED
    if p.had[AGAIN] < math.floor((placed + 1) * r.shares[REPEATS] + 0.5):
        turn = AGAIN
    if p.had[EXPLORE] < math.floor((placed + 1) * r.shares[EXPLORATION]):
        turn = EXPLORE
    for limited in range(1, -1, -1):
        index = _pick(turn, limited, placed, r, p, e)
        if index >= 0:
            return np.int64(turn), index
        for queue in range(3):
            if queue != turn:
                index = _pick(queue, limited, placed, r, p, e)
                if index >= 0:
                    return np.int64(queue), index
    return np.int64(-1), np.int64(-1)


@jit
def _pick(queue: int, limited: int, placed: int, r: RuleSet, p: Placing, e: Entries) -> int:
    """The first entry of a queue that may be placed, or −1."""
    while p.first[queue] < p.sizes[queue] and p.done[queue, p.first[queue]]:
        p.first[queue] += 1
    for index in range(p.first[queue], p.sizes[queue]):
        if p.done[queue, index]:
            continue
        row = p.rows[queue, index]
        if limited and _is_full(row, r, p):
            continue
        if p.had[AGAIN] + p.had[EXPLORE] > 0 or queue != RANKED:  # else only the ranked, who differ, are there
            for place in range(placed):
                if e.rows[place] == row:
                    p.done[queue, index] = 1
                    break
            if p.done[queue, index]:
                continue
        return index
    return -1


@jit
def _is_full(row: int, r: RuleSet, p: Placing) -> bool:
    """Whether a group of the title has its number among the last ones."""
    if len(r.starts) == 0:
        return False
    for at in range(r.starts[row], r.starts[row + 1]):
        group = r.members[at]
        if r.limits[group] > 0 and p.counts[group] >= r.limits[group]:
            return True
    return False


@jit
def _count(row: int, by: int, r: RuleSet, p: Placing) -> None:
    if len(r.starts):
        for at in range(r.starts[row], r.starts[row + 1]):
            p.counts[r.members[at]] += by
