"""Records of plays to packed facts, compiled: what `Codec.decode_event`, `validate` and `state_of` make of nearly every record.

Strict as they are, and stricter: what is not plainly a valid, public report on a play is left to them, so that whatever is wrong with a
record is found and said in one place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.events import (
    EARLIEST_TIME_MS,
    FUTURE_TOLERANCE_MS,
    LATEST_TIME_MS,
    MAX_DURATION_MS,
    MAX_WATCHED_RATIO,
    Kind,
)
from embeddings.compiled import entry, jit
from viewers import kernel_bytes as kb
from viewers.packing import VERSION
from viewers.state import FLAG_OF_KIND

Array = NDArray[Any]

MAX_ID_BYTES = 128
MAX_VALUE_BYTES = 16 * 1024

ID_CHARACTERS = np.zeros(256, np.bool_)
"""Character → may stand in an id (`contracts.events.ID_PATTERN`)."""
ID_CHARACTERS[[ord(c) for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:|@~-"]] = True

FLAGS = np.array([FLAG_OF_KIND.get(kind, -1) for kind in Kind])
"""Index of a kind → flags of its plays; −1: not about a play."""

FACT_BYTES = 320
"""A packed fact is never longer: an id of 128 characters with their alphabet, and one play."""


EVENT_MS, KIND, ITEM, ITEM_END, PLAY, PLAY_END, STARTED_MS, WATCHED_MS, DURATION_MS = range(9)
"""Places in the fields of a record: numbers, and where texts begin and end."""


@entry
def read_plays(
    data: Array, ends: Array, keys: Array, key_ends: Array, timestamps_ms: Array, header: Array,
    out: Array, out_ends: Array, event_ms: Array, fields: Array, words: Array, codes: Array, one: Array,
) -> None:  # fmt: skip
    """Values (one after another, each ending at `ends[i]`) and keys to packed facts.

    `header`: the five bytes before every body of the schema that is read here. `out_ends[i]` = `out_ends[i − 1]`: left to the others.
    `event_ms`: event times. `fields`: (9,) int64, `words`: (40,) uint64, `codes`: (128,) int64, `one`: (3,) int64 scratch.
    """
    at, begin, key_begin = np.int64(0), np.int64(0), np.int64(0)
    for i in range(len(ends)):
        if _is_play(data, begin, ends[i], keys, key_begin, key_ends[i], timestamps_ms[i], header, fields):
            event_ms[i] = fields[EVENT_MS]
            at = _write_fact(data, fields, out, at, words, codes, one)
        out_ends[i] = at
        begin, key_begin = ends[i], key_ends[i]


@jit
def _is_play(
    data: Array, at: int, end: int, keys: Array, key_at: int, key_end: int, timestamp_ms: int, header: Array, f: Array
) -> bool:
    """Whether the record is a canonical, valid, public report on a play under its own key; what it says into `f`."""
    size = len(header)
    if end - at <= size or end - at > MAX_VALUE_BYTES or not kb.same(data, at, size, header, np.int64(0), size):
        return False
    _, at = read_id(data, at + size, end)  # event_id
    if at < 0 or at >= end or data[at] & 1 or data[at] >= 2 * len(FLAGS):
        return False
    f[KIND] = np.int64(data[at]) >> 1
    viewer, at = read_id(data, at + 1, end)
    if at < 0 or FLAGS[f[KIND]] < 0 or not kb.same(data, viewer, at - viewer, keys, key_at, key_end - key_at):
        return False
    f[EVENT_MS], at = read_long(data, at, end)
    if (
        at < 0 or not _is_time(f[EVENT_MS], timestamp_ms) or at + 1 >= end or data[at] != 0 or data[at + 1] != 2
    ):  # private
        return False
    f[ITEM], at = read_id(data, at + 2, end)
    f[ITEM_END] = at
    if at < 0 or at >= end or data[at] != 2:
        return False
    f[PLAY], at = read_id(data, at + 1, end)
    f[PLAY_END] = at
    for place in (STARTED_MS, WATCHED_MS, DURATION_MS):
        if at < 0 or at >= end or data[at] != 2:
            return False
        f[place], at = read_long(data, at + 1, end)
    if at < 0 or not _is_time(f[STARTED_MS], timestamp_ms) or not 0 < f[DURATION_MS] <= MAX_DURATION_MS:
        return False
    if not 0 <= f[WATCHED_MS] <= MAX_WATCHED_RATIO * f[DURATION_MS]:
        return False
    return _ends_well(data, at, end)


@jit
def _ends_well(data: Array, at: int, end: int) -> bool:
    """No value and no preference; row_id and row_position, or null; nothing more."""
    if at + 4 > end or data[at] != 0 or data[at + 1] != 0:
        return False
    at += 2
    if data[at] == 2:
        _, at = read_id(data, at + 1, end)
    elif data[at] == 0:
        at += 1
    else:
        return False
    if at < 0 or at >= end:
        return False
    if data[at] == 2:
        position, at = read_long(data, at + 1, end)
        return at == end and -(2**31) <= position < 2**31
    return data[at] == 0 and at + 1 == end


@jit
def read_id(data: Array, at: int, end: int) -> Any:
    """(where the text of an id begins, where it ends or −1)."""
    length, start = read_long(data, at, end)
    if start < 0 or not 1 <= length <= MAX_ID_BYTES or start + length > end:
        return at, np.int64(-1)
    for i in range(start, start + length):
        if not ID_CHARACTERS[data[i]]:
            return at, np.int64(-1)
    return start, start + length


@jit
def read_long(data: Array, at: int, end: int) -> Any:
    """(Avro's long in its shortest form, where it ends or −1); up to 49 bits, which is more than any time."""
    zigzag, at = kb.read_varint(data, at, end)
    return (zigzag >> 1) ^ -(zigzag & 1), np.int64(at)


@jit
def _is_time(time_ms: int, timestamp_ms: int) -> bool:
    return EARLIEST_TIME_MS <= time_ms < LATEST_TIME_MS and time_ms <= timestamp_ms + FUTURE_TOLERANCE_MS


@jit
def _write_fact(data: Array, f: Array, out: Array, at: int, words: Array, codes: Array, one: Array) -> int:
    """The packed state of this one play (`viewers/packing.py`); where it ends."""
    for number in (VERSION, 1, 1, 0, 0, 0):
        out[at] = number
        at += 1
    at = kb.write_varint(out, at, f[STARTED_MS])
    at = kb.write_u32(out, at, np.int64(kb.digest(data[:0], data, f[PLAY], f[PLAY_END], np.int64(4), words)))
    out[at] = min(255, 255 * f[WATCHED_MS] // f[DURATION_MS])
    out[at + 1] = FLAGS[f[KIND]]
    out[at + 2] = 0  # the item is no repetition
    one[0], one[1], one[2] = f[ITEM], f[ITEM_END] - f[ITEM], 0
    return kb.write_ids(out, at + 3, data, one[:1], one[1:2], one[2:3], np.int64(1), codes)
