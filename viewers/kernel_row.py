"""A home row as bytes, compiled: what `Codec.encode_row` writes for the same row (`contracts/row_columns.py`)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.rows import ENTRIES_KEPT, ENTRIES_WITH_REASONS
from embeddings.compiled import jit
from embeddings.generation import NEVER_MS
from ranking.kernel_rows import REASONS_PER_ENTRY, Entries
from viewers import kernel_bytes as kb
from viewers.kernel_state import Catalogue

Array = NDArray[Any]

MAX_REASON_ITEMS = ENTRIES_WITH_REASONS * REASONS_PER_ENTRY


class Frame(NamedTuple):
    """What every row of a batch has in common, encoded: see `make_frame`."""

    origin: Array  # uint8: what a row's id is a digest of, before the state's bytes
    head: Array  # uint8: Confluent's header, and the length of the id
    shared: Array  # uint8: generation_id … computed_at
    sources: Array  # uint8: the names of the sources, each as Avro writes a string
    source_starts: Array  # (sources + 1,) int64
    from_ms: Array  # (n_items,) int64
    until_ms: Array  # (n_items,) int64


class Scratch(NamedTuple):
    names: Array  # (16,) int64
    which: Array  # (ENTRIES_KEPT + MAX_REASON_ITEMS,) int64
    reasons: Array  # (MAX_REASON_ITEMS,) int64
    codes: Array  # (128,) int64


def make_scratch() -> Scratch:
    return Scratch(*(np.empty(size, np.int64) for size in (16, ENTRIES_KEPT + MAX_REASON_ITEMS, MAX_REASON_ITEMS, 128)))


@jit
def write_row(
    out: Array,
    at: int,
    frame: Frame,
    row_id: Any,
    event_ms: int,
    catalogue: Catalogue,
    count: int,
    e: Entries,
    scratch: Scratch,
) -> int:
    """The encoded row of the first `count` entries; where it ends. `row_id`: uint64. `event_ms`: −1 for none."""
    at = kb.append(frame.head, out, at)
    for byte in range(8):  # the id's digest in hexadecimal, first byte first
        value = np.int64(row_id >> np.uint64(8 * byte) & np.uint64(255))
        for digit in (value >> 4, value & 15):
            out[at] = digit + (48 if digit < 10 else 87)
            at += 1
    at = kb.append(frame.shared, out, at)
    if event_ms < 0:
        out[at] = 0
        at += 1
    else:
        out[at] = 2
        at = kb.write_zigzag(out, at + 1, event_ms)
    out[at] = out[at + 1] = 0  # items, scores: older columns stay empty
    at = _write_sources(out, at + 2, frame, count, e, scratch.names)
    out[at] = 0  # source_indexes
    at = _write_reason_counts(out, at + 1, count, e)
    out[at] = out[at + 1] = 0  # reason_items, reason_contributions
    at = _write_bounds(out, at + 2, frame.from_ms, np.int64(0), count, e)
    at = _write_bounds(out, at, frame.until_ms, np.int64(NEVER_MS), count, e)
    return _write_entries(out, at, catalogue, count, e, scratch)


@jit
def _write_sources(out: Array, at: int, frame: Frame, count: int, e: Entries, names: Array) -> int:
    """The names that occur, in order of first use; into `names`: source → place among them."""
    n_sources, used = len(frame.source_starts) - 1, np.int64(0)
    for source in range(n_sources):
        names[source] = -1
    for i in range(count):
        if names[e.sources[i]] < 0:
            names[e.sources[i]] = used
            used += 1
    if used:
        at = kb.write_zigzag(out, at, used)
        for place in range(used):
            for source in range(n_sources):
                if names[source] == place:
                    at = kb.copy(frame.sources, frame.source_starts[source], frame.source_starts[source + 1], out, at)
    out[at] = 0
    return at + 1


@jit
def _with_reasons(count: int, e: Entries) -> int:
    last = 0
    for i in range(min(count, ENTRIES_WITH_REASONS)):
        if e.reason_counts[i]:
            last = i + 1
    return last


@jit
def _write_reason_counts(out: Array, at: int, count: int, e: Entries) -> int:
    last = _with_reasons(count, e)
    at = kb.write_zigzag(out, at, last)
    for i in range(last):
        out[at + i] = e.reason_counts[i]
    return at + last


@jit
def _write_bounds(out: Array, at: int, bounds_ms: Array, none: int, count: int, e: Entries) -> int:
    """Places of the entries that have a bound, then the bounds."""
    bounded = np.int64(0)
    for i in range(count):
        bounded += _is_bound(bounds_ms[e.rows[i]], none)
    at = kb.write_zigzag(out, at, bounded)
    for i in range(count):
        if _is_bound(bounds_ms[e.rows[i]], none):
            out[at] = i
            at += 1
    if bounded:
        at = kb.write_zigzag(out, at, bounded)
        for i in range(count):
            if _is_bound(bounds_ms[e.rows[i]], none):
                at = kb.write_zigzag(out, at, bounds_ms[e.rows[i]])
    out[at] = 0
    return at + 1


@jit
def _is_bound(ms: int, none: int) -> bool:
    """As `Generation.windows` has it: from times that are above 0, until times below never."""
    return ms > 0 if none == 0 else ms < none


@jit
def _write_entries(out: Array, at: int, catalogue: Catalogue, count: int, e: Entries, scratch: Scratch) -> int:
    """ids, half_scores, entry_sources, reason_ids, half_contributions."""
    which, reasons, names = scratch.which, scratch.reasons, scratch.names
    n_ids, n_reasons = count, np.int64(0)
    for i in range(count):
        which[i] = e.rows[i]
    for i in range(_with_reasons(count, e)):
        for j in range(e.reason_counts[i]):
            row, place = e.reason_rows[i, j], count
            while place < n_ids and which[place] != row:
                place += 1
            if place == n_ids:
                which[n_ids] = row
                n_ids += 1
            reasons[n_reasons] = place - count
            n_reasons += 1
    # the length comes before the ids, and takes as many bytes as it needs: they are written behind, then moved to their place
    start = at + 4
    size = (
        kb.write_ids(out, start, catalogue.text, catalogue.starts, catalogue.lengths, which, n_ids, scratch.codes)
        - start
    )
    at = kb.write_zigzag(out, at, size)
    for i in range(size):
        out[at + i] = out[start + i]
    at = kb.write_zigzag(out, at + size, 2 * count)
    for i in range(count):
        at = kb.write_u16(out, at, kb.half(e.scores[i]))
    used = np.int64(0)
    for i in range(count):
        used = max(used, names[e.sources[i]] + 1)
    bits = 0 if used < 2 else 1 if used == 2 else 2 if used <= 4 else 4
    size = (bits * count + 7) // 8
    at = kb.write_zigzag(out, at, size)
    for i in range(size):
        out[at + i] = 0
    for i in range(count):
        out[at + bits * i // 8] |= names[e.sources[i]] << (bits * i & 7)
    at += size
    at = kb.write_zigzag(out, at, n_reasons)
    for i in range(n_reasons):
        out[at + i] = reasons[i]
    at = kb.write_zigzag(out, at + n_reasons, 2 * n_reasons)
    for i in range(_with_reasons(count, e)):
        for j in range(e.reason_counts[i]):
            at = kb.write_u16(out, at, kb.half(e.reason_values[i, j]))
    return at
