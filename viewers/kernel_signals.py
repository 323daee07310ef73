"""From a state's columns to what ranking needs, compiled: the twin of `signals.item_signals` and `rewrite.ranking_input`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embeddings.compiled import jit
from ranking.rows import HALF_EVIDENCE, LEAST_TOLD, TOLD_EVIDENCE
from viewers import kernel_bytes as kb
from viewers.kernel_state import (
    HIDE,
    ITEMS,
    NO_VALUE,
    PLAYED,
    PLAYS,
    PREFER,
    RATE,
    REGISTERS,
    REGISTERS_AT,
    SEEN,
    TEXT,
    Catalogue,
    Columns,
    find_item,
    find_row,
    find_told,
    lower_bound,
)

Array = NDArray[Any]

_REGISTER_BYTES = 13


class Signals(NamedTuple):
    """Scratch: by item of the columns, then the signals in order."""

    strength: Array  # (items,) float64
    newest: Array  # (items,) int64, ms; −1: nothing known of the item
    order: Array  # (items,) int64: items with a signal, newest first
    activation: Array  # (items,) float64: how often and how recently an item was played


class Decay(NamedTuple):
    """The confidence rule: c = ± (1 + α · |s| · g · decay(rank))."""

    scale: float  # α · g
    of_rank: Array  # (items,) float64


def make_signals(items: int) -> Signals:
    return Signals(
        np.empty(items, np.float64), np.empty(items, np.int64), np.empty(items, np.int64), np.empty(items, np.float64)
    )


@jit
def collect(data: Array, s: Columns, catalogue: Catalogue, table: Array, g: Signals) -> int:
    """The signals into `g`, newest first; how many. `table`: (8, 256) float32, flags and share → strength of a play."""
    for item in range(s.n[ITEMS] + s.n[REGISTERS]):  # registers may add items
        g.newest[item] = -1
    for i in range(s.n[PLAYS]):
        item, value = s.item[i], float(table[s.flags[i], s.share[i]])
        if g.newest[item] < 0:
            g.newest[item], g.strength[item] = s.started[i], value
        else:
            known = g.strength[item]
            if abs(value) > abs(known) or (abs(value) == abs(known) and value > known):
                g.strength[item] = value
    count = s.n[PLAYED]
    for i in range(count):
        g.order[i] = s.order[i]
    if s.n[REGISTERS]:
        count = _add_registers(data, s, catalogue, g, count)
        _sort_by_newest(g, count)
    kept = 0
    for i in range(count):
        if g.strength[g.order[i]] != 0:
            g.order[kept] = g.order[i]
            kept += 1
    return kept


@jit
def _add_registers(data: Array, s: Columns, catalogue: Catalogue, g: Signals, count: int) -> int:
    """What was said outright replaces what plays say; a hide wins over a rating, so hides come last."""
    for wanted in (RATE, HIDE):
        at = s.n[REGISTERS_AT]
        for _ in range(s.n[REGISTERS]):
            kind, value, length = np.int64(data[at]), np.int64(np.int8(data[at + 1])), np.int64(data[at + 12])
            start = at + _REGISTER_BYTES
            if kind == wanted and (kind == HIDE or value != NO_VALUE):
                item = item_of_subject(data, start, length, s, catalogue)
                if g.newest[item] < 0:
                    g.newest[item] = kb.read_u32(data, at + 2) * 1000 + kb.read_u16(data, at + 6)
                    g.order[count] = item
                    count += 1
                g.strength[item] = -1.0 if kind == HIDE else value / 100
            at = start + length
    return count


@jit
def item_of_subject(data: Array, start: int, length: int, s: Columns, catalogue: Catalogue) -> int:
    """The item that a register is about, added to the columns if no play has it."""
    item = s.n[ITEMS]
    at = s.n[TEXT]
    kb.copy(data, start, start + length, s.text, at)
    s.starts[item], s.lengths[item] = at, length
    s.rows[item] = find_row(catalogue, s.text, at, length)
    known = find_item(s, item, item)
    if known >= 0:
        return known
    s.n[ITEMS], s.n[TEXT] = item + 1, at + length
    return item


@jit
def _sort_by_newest(g: Signals, count: int) -> None:
    """Newest first; where times are equal the order stays."""
    for i in range(1, count):
        item, j = g.order[i], i
        while j > 0 and g.newest[g.order[j - 1]] < g.newest[item]:
            g.order[j] = g.order[j - 1]
            j -= 1
        g.order[j] = item


@jit
def confidences(s: Columns, g: Signals, count: int, decay: Decay, rows: Array, c: Array) -> Any:
    """Signals of known items as rows (int32) and signed confidences (float64): (how many, the evidence of all signals)."""
    known, evidence = 0, 0.0
    for rank in range(count):
        item = g.order[rank]
        strength = g.strength[item]
        evidence += max(strength, 0.0)
        if s.rows[item] >= 0:
            size = 1 + decay.scale * abs(strength) * decay.of_rank[rank]
            rows[known], c[known] = s.rows[item], size if strength > 0 else -size
            known += 1
    return known, evidence


@jit
def look_back(s: Columns, g: Signals, count: int, rows: Array, ages_ms: Array, places: Array) -> int:
    """The newest liked items that are known, as many as there is room for: rows, how much older than the newest each is, and which of the
    known signals it is (`ranking.features.history`). How many."""
    found, known, newest = 0, 0, np.int64(0)
    for rank in range(count):
        item = g.order[rank]
        if s.rows[item] >= 0:
            if g.strength[item] > 0 and found < len(rows):
                if found == 0:
                    newest = g.newest[item]
                rows[found], ages_ms[found], places[found] = s.rows[item], newest - g.newest[item], known
                found += 1
            known += 1
    return found


@jit
def add_told(
    data: Array, s: Columns, catalogue: Catalogue, decay: Decay, preference: float, n: int, evidence: float, rows: Array, c: Array
) -> Any:  # fmt: skip
    """Add the preferences that still count behind the n signals: (how many now, the evidence with them)."""
    half = HALF_EVIDENCE * HALF_EVIDENCE
    fading, told = preference * half / (evidence * evidence + half), 0.0
    at, begin = s.n[REGISTERS_AT], n
    for _ in range(s.n[REGISTERS]):
        kind, value, length = np.int64(data[at]), np.int64(np.int8(data[at + 1])), np.int64(data[at + 12])
        start = at + _REGISTER_BYTES
        at = start + length
        if kind != PREFER or value == NO_VALUE:
            continue
        strength = fading * (value / 100)
        row = find_told(catalogue, data, start, length)
        if row < 0 or abs(strength) < LEAST_TOLD:
            continue
        known = False
        for i in range(n):
            known |= rows[i] == row
        if not known:
            size = 1 + decay.scale * abs(strength) * decay.of_rank[0]
            rows[n], c[n] = row, size if strength > 0 else -size
            told += max(strength, 0.0)
            n += 1
    return n, evidence + min(TOLD_EVIDENCE * told, HALF_EVIDENCE) if n > begin else evidence


@jit
def activated(
    s: Columns, g: Signals, count: int, gap: int, allowed: Array, of_age: Array, values: Array, rows: Array
) -> int:
    """What may come back, newest signal first: item rows and how much they are activated. How many.

    `of_age`: (plays,) float64, by how many plays are newer.
    """
    for item in range(s.n[ITEMS]):
        g.activation[item] = 0.0
    for i in range(s.n[PLAYS]):
        g.activation[s.item[i]] += of_age[i]
    found = 0
    for rank in range(gap, count):
        item = g.order[rank]
        row = s.rows[item]
        if g.strength[item] > 0 and g.activation[item] > 0 and row >= 0 and allowed[row]:
            values[found], rows[found] = g.activation[item], row
            found += 1
    return found


@jit
def exclude(
    data: Array, s: Columns, catalogue: Catalogue, sorted_digests: Array, digest_order: Array, rows: Array
) -> int:
    """Rows (int32) that are not to be shown again: played, hidden, disliked, seen beyond the kept plays. How many; some may repeat."""
    count = 0
    for i in range(s.n[PLAYED]):
        row = s.rows[s.order[i]]
        if row >= 0:
            rows[count] = row
            count += 1
    at = s.n[REGISTERS_AT]
    for _ in range(s.n[REGISTERS]):
        kind, value, length = np.int64(data[at]), np.int64(np.int8(data[at + 1])), np.int64(data[at + 12])
        if kind == HIDE or (kind == RATE and NO_VALUE < value < 0):
            row = s.rows[item_of_subject(data, at + _REGISTER_BYTES, length, s, catalogue)]
            if row >= 0:
                rows[count] = row
                count += 1
        at += _REGISTER_BYTES + length
    for i in range(s.n[SEEN]):
        place = lower_bound(sorted_digests, len(sorted_digests), s.seen_digest[i])
        if place < len(sorted_digests) and sorted_digests[place] == s.seen_digest[i]:
            rows[count] = digest_order[place]
            count += 1
    return count
