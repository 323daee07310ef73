"""Rules over a ranked list: at most so many of a creator or topic, places for titles watched before, places for exploration. Pure.

A row is filled place by place from three queues: what the ranker ranked, what may come back (`again`), what is explored (`explore`). Whose
turn a place is follows from the shares: `again` has had at least ⌊n·share + ½⌋ of n places, `explore` ⌊n·share⌋. Of the queue whose turn
it is the first entry is taken that breaks no limit among the last `window` − 1; if none does, of the other queues; if there is none at all,
limits give way, as a hole in a row helps nobody. `ranking/kernel_rules.py` is the compiled twin.

- *again*: liked titles with at least `repeat_gap` others watched since, by Σ (1 + age)^−½ over the kept plays of each, age being the number
  of newer plays: how often and how recently, as memory fades (Anderson & Schooler, 1991). What only `seen` knows does not come back.
- *explore*: titles of few plays (`Generation.explorable`), of each `DRAWN` drawn the one that lies closest to the viewer's taste. The draws
  follow from the row's id, which is a digest of everything that the row is made of: whoever makes the row again draws the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.rows import ENTRIES_KEPT
from contracts.rules import Rules
from embeddings.generation import F64, I64, Generation
from embeddings.groups import Groups

POOL = 2 * ENTRIES_KEPT
"""Ranked entries that a row is chosen from where rules may move them."""
AGAIN_KEPT = 32
"""Titles that may come back in one row at most."""
DRAWN = 4
"""Titles drawn for each place of exploration."""
SPARE = 4
"""More than there are places: a title may be drawn twice, or be in the row already."""

RANKED, AGAIN, EXPLORE = 0, 1, 2
"""The queues."""

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Place:
    """Entry number `index` of a queue. `held_by`: the group whose limit kept it from an earlier place; −1: none did."""

    queue: int
    index: int
    held_by: int = -1


def wanted(queue: int, places: int, rules: Rules) -> int:
    """How many of so many places a queue is to have had."""
    if queue == EXPLORE:
        return math.floor(places * rules.exploration)
    return math.floor(places * rules.repeats + 0.5)


def arrange(rules: Rules, groups: Groups | None, queues: Sequence[Sequence[int]]) -> list[Place]:
    """Fill a row. `queues`: item rows of the three, best first. A title is taken once, whatever queues it is in."""
    limits = groups.limits(rules.per_creator, rules.per_topic) if groups and rules.limit_groups else None
    chosen: list[Place] = []
    taken: list[int] = []
    had, held = [0, 0, 0], [dict[int, int](), dict[int, int](), dict[int, int]()]

    def blocking(row: int) -> int:
        """The group that is full, or −1."""
        if limits is None or groups is None:
            return -1
        recent = taken[len(taken) - rules.window + 1 :] if len(taken) >= rules.window else taken
        for group in groups.of(row):
            if limits[group] and sum(group in groups.of(other) for other in recent) >= limits[group]:
                return group
        return -1

    def pick(queue: int, limited: bool) -> bool:
        for index, row in enumerate(queues[queue]):
            if row in taken:
                continue
            group = blocking(row) if limited else -1
            if group >= 0:
                held[queue].setdefault(index, group)
                continue
            chosen.append(Place(queue, index, held[queue].get(index, -1)))
            taken.append(row)
            had[queue] += 1
            return True
        return False

    while len(chosen) < ENTRIES_KEPT:
        turn = next((q for q in (EXPLORE, AGAIN) if had[q] < wanted(q, len(chosen) + 1, rules)), RANKED)
        order = [turn, *(queue for queue in (RANKED, AGAIN, EXPLORE) if queue != turn)]
        if not any(pick(queue, limited) for limited in (True, False) for queue in order):
            break
    return chosen


def activation(n_plays: int) -> F64:
    """(n_plays,) what the newest play, the one before, … adds to a title's activation."""
    result: F64 = np.power(1.0 + np.arange(n_plays, dtype=np.float64), -0.5)
    return result


def explored(generation: Generation, x: NDArray[np.float32], showable: NDArray[np.bool_], seed: int) -> list[int]:
    """Rows to explore, one a place, possibly some more than once. `showable`: (n_items,) bool. `seed`: the row's id as a number."""
    rows = generation.explorable
    places = wanted(EXPLORE, ENTRIES_KEPT, generation.rules)
    if not len(rows):
        return []
    found = []
    closeness = explored_closeness(generation, x)
    for place in range(places + SPARE):
        best, most = -1, 0.0
        for drawn in range(DRAWN):
            at = splitmix(seed + place * DRAWN + drawn) % len(rows)
            row = int(rows[at])
            if showable[row] and (best < 0 or closeness[at] > most):
                best, most = row, float(closeness[at])
        if best >= 0:
            found.append(best)
    return found


def explored_closeness(generation: Generation, x: NDArray[np.float32]) -> F64:
    """(explorable,) y·x / ‖y‖."""
    Y = generation.item_factors[generation.explorable].astype(np.float64)
    result: F64 = (Y @ x.astype(np.float64)) * inverse_norms(generation)
    return result


def inverse_norms(generation: Generation) -> F64:
    """(explorable,) 1 / ‖y‖."""
    result: F64 = 1.0 / np.linalg.norm(generation.item_factors[generation.explorable].astype(np.float64), axis=1)
    return result


def splitmix(number: int) -> int:
    """One of 2^64 numbers, spread evenly (splitmix64; Steele, Lea, Flood, 2014)."""
    z = (number + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def may_come_back(rows: I64, values: F64) -> list[int]:
    """The most activated, of equals the newer signal's."""
    order = np.argsort(-values, kind="stable")[:AGAIN_KEPT]
    return [int(row) for row in rows[order]]
