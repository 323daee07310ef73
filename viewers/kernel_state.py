"""The packed state, compiled: read, merge plays, cut, write. `viewers/packing.py` and `viewers/state.py` are the readable twins.

What is merged here is what nearly every event is: plays. Whatever else there is to do (an erasure, a register, bytes that are
not as they should be, more than there is room for) is answered with `REFERENCE`: the caller asks the twins, which can do
everything and say what is wrong. Nothing is ever read beyond the bytes given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contracts.rules import TITLE
from embeddings.compiled import as_bytes, entry, frozen, jit
from viewers import kernel_bytes as kb
from viewers.packing import MAX_START_MS, VERSION

Array = NDArray[Any]

OK, REFERENCE = 0, 2

PLAYS, ITEMS, TEXT, REGISTERS, REGISTERS_AT, REGISTERS_END, SEEN, ERASED_S, PLAYED = range(9)
"""Places in `Columns.n`: how many of each, where the registers' bytes lie, the erased second, and how many items plays have."""

MAX_PLAYS, MAX_PER_ITEM, MAX_REGISTERS, MAX_SEEN = range(4)
"""Places in the limits."""

_TITLE = tuple(TITLE.encode())
_REGISTER_BYTES = 13
"""Of a register before its subject."""
RATE, HIDE, PREFER = 1, 2, 3
NO_VALUE = -128


class Columns(NamedTuple):
    """One viewer's state taken apart, and room for it. Plays are newest first; an item is an index into the ids."""

    started: Array  # (plays,) int64, ms
    digest: Array  # (plays,) int64
    item: Array  # (plays,) int64
    share: Array  # (plays,) int64
    flags: Array  # (plays,) int64
    text: Array  # uint8: the ids, one after another
    starts: Array  # (items,) int64
    lengths: Array  # (items,) int64
    rows: Array  # (items,) int64: row in the generation, or −1
    order: Array  # (items,) int64: items in order of first appearance
    place: Array  # (items,) int64: their inverse; scratch
    seen_digest: Array  # (seen,) int64
    seen_start: Array  # (seen,) int64, s
    n: Array  # (9,) int64: see above
    head: Array  # (5,) int64: scratch
    codes: Array  # (128,) int64: scratch
    words: Array  # (40,) uint64: scratch


class Catalogue(NamedTuple):
    """A generation's ids, to be found by their text; behind the items' those of creators and topics, which are found apart."""

    text: Array  # uint8
    starts: Array  # (n_ids,) int64
    lengths: Array  # (n_ids,) int64
    slots: Array  # (power of two,) int32: row or −1, open addressing
    told: Array  # (power of two,) int32: the same of what preferences may be about


def make_columns(plays: int, registers: int, seen: int, text: int) -> Columns:
    """Room for so many."""
    items = plays + registers
    ints = lambda size: np.empty(max(size, 1), np.int64)  # noqa: E731
    return Columns(
        *(ints(plays) for _ in range(5)), np.empty(text, np.uint8), *(ints(items) for _ in range(5)),
        ints(seen + 1), ints(seen + 1), ints(9), ints(5), ints(128), np.empty(40, np.uint64),
    )  # fmt: skip


def make_catalogue(item_ids: tuple[str, ...], others: tuple[str, ...] = (), told: Sequence[int] = ()) -> Catalogue:
    """The ids of a generation (none: nothing is ever found). `others`: what may stand in a row beside items; `told`: the rows among them,
    counted behind the items, that preferences are about."""
    encoded = [one.encode() for one in (*item_ids, *others)]
    lengths = np.array([len(one) for one in encoded], np.int64)
    text = as_bytes(b"".join(encoded) or b"\x00")  # as a viewer's own ids: see `as_bytes`
    starts = np.cumsum(lengths) - lengths
    slots, of_told = (np.full(1 << max(4, (2 * n).bit_length()), -1, np.int32) for n in (len(item_ids), len(told)))
    fill_slots(text, starts, lengths, np.arange(len(item_ids)), slots)
    fill_slots(text, starts, lengths, np.array(told, np.int64), of_told)
    return Catalogue(text, starts, lengths, frozen(slots), frozen(of_told))


@entry
def fill_slots(text: Array, starts: Array, lengths: Array, rows: Array, slots: Array) -> None:
    for i in range(len(rows)):
        row = rows[i]
        at = kb.hash_id(text, starts[row], lengths[row]) & len(slots) - 1
        while slots[at] >= 0:
            at = at + 1 & len(slots) - 1
        slots[at] = row


@jit
def find_row(catalogue: Catalogue, text: Array, start: int, length: int) -> int:
    """The row of an item's id, or −1."""
    return _find(catalogue, catalogue.slots, text, start, length)


@jit
def find_told(catalogue: Catalogue, text: Array, start: int, length: int) -> int:
    """The row of what a preference is about, or −1: a creator, a topic, or `title:` and an item's id."""
    row = _find(catalogue, catalogue.told, text, start, length)
    if row >= 0 or length <= len(_TITLE):
        return row
    for i in range(len(_TITLE)):
        if text[start + i] != _TITLE[i]:
            return row
    return _find(catalogue, catalogue.slots, text, start + len(_TITLE), length - len(_TITLE))


@jit
def _find(catalogue: Catalogue, slots: Array, text: Array, start: int, length: int) -> int:
    at = kb.hash_id(text, start, length) & len(slots) - 1
    while True:
        row = slots[at]
        if row < 0 or kb.same(catalogue.text, catalogue.starts[row], catalogue.lengths[row], text, start, length):
            return np.int64(row)
        at = at + 1 & len(slots) - 1


@jit
def clear(s: Columns) -> None:
    """No plays, never erased."""
    for i in range(len(s.n)):
        s.n[i] = 0
    s.n[ERASED_S] = -1


@jit
def read_state(data: Array, at: int, end: int, s: Columns, catalogue: Catalogue, limits: Array, is_base: int) -> int:
    """Add a packed state to the columns: the stored one first (`is_base`), then facts, which may be plays only.

    The plays of facts lie behind the others, unsorted, and may repeat items: `merge_plays` comes next. OK or REFERENCE.
    """
    if at == end:
        return OK
    if data[at] != VERSION:
        return REFERENCE
    at += 1
    head = s.head
    for i in range(5):
        head[i], at = kb.read_varint(data, at, end)
        if at < 0:
            return REFERENCE
    n, n_items, n_registers, n_seen, erased = head[0], head[1], head[2], head[3], head[4] - 1
    if not is_base and (n_registers or n_seen or erased >= 0):
        return REFERENCE
    first = s.n[PLAYS]
    if (
        first + n > len(s.started)
        or n_registers > limits[MAX_REGISTERS]
        or n_seen > limits[MAX_SEEN]
        or erased + 1 >> 32
    ):
        return REFERENCE
    at = _read_plays(data, at, end, first, n, n_items, erased, s)
    if at < 0:
        return REFERENCE
    s.n[TEXT], at = kb.read_ids(data, at, end, n_items, s.text, s.starts, s.lengths, s.n[ITEMS], s.n[TEXT])
    if at < 0:
        return REFERENCE
    for item in range(s.n[ITEMS], s.n[ITEMS] + n_items):
        s.rows[item] = find_row(catalogue, s.text, s.starts[item], s.lengths[item])
    s.n[ITEMS] += n_items
    s.n[PLAYS] += n
    for i in range(first + 1, first + n):
        if _order(s, i - 1, i) <= 0:
            return REFERENCE
    if not is_base:
        return OK
    s.n[REGISTERS], s.n[REGISTERS_AT], s.n[SEEN], s.n[ERASED_S] = n_registers, at, n_seen, erased
    at = _pass_registers(data, at, end, n_registers, erased)
    s.n[REGISTERS_END] = at
    if at < 0 or _has_twins(s):
        return REFERENCE
    return _read_seen(data, at, end, n_seen, erased, s)


@jit
def _read_plays(data: Array, at: int, end: int, first: int, n: int, n_items: int, erased_s: int, s: Columns) -> int:
    """The columns of the plays; items counted from those that are there already. Where they end, or −1."""
    for i in range(n):
        step, at = kb.read_varint(data, at, end)
        if at < 0:
            return -1
        s.started[first + i] = step if i == 0 else s.started[first + i - 1] - step
        if s.started[first + i] < (erased_s + 1) * 1000 or (i == 0 and step > MAX_START_MS):
            return -1
    flags_at, bits_at = at + 5 * n, at + 5 * n + (n + 1) // 2
    repeats_at = bits_at + (n + 7) // 8
    if repeats_at > end:
        return -1
    wide = n_items > 256
    new, known = 0, s.n[ITEMS]
    for i in range(n):
        s.digest[first + i] = kb.read_u32(data, at + 4 * i)
        s.share[first + i] = data[at + 4 * n + i]
        s.flags[first + i] = np.int64(data[flags_at + i // 2]) >> 4 * (i & 1) & 15
        if s.flags[first + i] > 7:
            return -1
        if np.int64(data[bits_at + i // 8]) >> (i & 7) & 1:
            if repeats_at + 1 + wide > end:
                return -1
            index = kb.read_u16(data, repeats_at) if wide else np.int64(data[repeats_at])
            repeats_at += 1 + wide
            if index >= new:
                return -1
        else:
            index = new
            new += 1
        s.item[first + i] = known + index
    if new != n_items or (n & 1 and data[flags_at + n // 2] >> 4) or (n & 7 and data[bits_at + n // 8] >> (n & 7)):
        return -1
    return repeats_at


@jit
def _order(s: Columns, a: int, b: int) -> int:
    """> 0: play a is newer than play b; 0: they are one play."""
    if s.started[a] != s.started[b]:
        return 1 if s.started[a] > s.started[b] else -1
    if s.digest[a] != s.digest[b]:
        return 1 if s.digest[a] > s.digest[b] else -1
    i, j = s.item[a], s.item[b]
    if kb.same(s.text, s.starts[i], s.lengths[i], s.text, s.starts[j], s.lengths[j]):
        return 0
    return -1 if kb.is_before(s.text, s.starts[i], s.lengths[i], s.starts[j], s.lengths[j]) else 1


@jit
def find_item(s: Columns, item: int, count: int) -> int:
    """The same id among the first `count`, or −1."""
    row = s.rows[item]
    for other in range(count):
        if s.rows[other] == row and (
            row >= 0 or kb.same(s.text, s.starts[other], s.lengths[other], s.text, s.starts[item], s.lengths[item])
        ):
            return other
    return -1


@jit
def _has_twins(s: Columns) -> bool:
    """Whether an id is listed twice."""
    for item in range(s.n[ITEMS]):
        if find_item(s, item, item) >= 0:
            return True
    return False


@jit
def _pass_registers(data: Array, at: int, end: int, count: int, erased_s: int) -> int:
    """Where the registers end; −1 unless each is whole, of a known kind, not erased, and they are in order."""
    before, before_kind = np.int64(-1), np.int64(0)
    for _ in range(count):
        if at + _REGISTER_BYTES > end:
            return -1
        kind, length, start = np.int64(data[at]), np.int64(data[at + 12]), at + _REGISTER_BYTES
        if not RATE <= kind <= PREFER or start + length > end or kb.read_u16(data, at + 6) > 999:
            return -1
        if kb.read_u32(data, at + 2) <= erased_s or kind < before_kind:
            return -1
        for i in range(start, start + length):
            if data[i] > 127:
                return -1
        if kind == before_kind and not kb.is_before(data, before, np.int64(data[before - 1]), start, length):
            return -1
        before, before_kind, at = start, kind, start + length
    return at


@jit
def _read_seen(data: Array, at: int, end: int, count: int, erased_s: int, s: Columns) -> int:
    if at + 10 * count != end:
        return REFERENCE
    for i in range(count):
        s.seen_digest[i] = kb.read_u32(data, at + 4 * i) | kb.read_u16(data, at + 4 * count + 2 * i) << 32
        s.seen_start[i] = kb.read_u32(data, at + 6 * count + 4 * i)
        if s.seen_start[i] <= erased_s or (i and s.seen_digest[i - 1] >= s.seen_digest[i]):
            return REFERENCE
    return OK


@jit
def merge_plays(s: Columns, base: int, base_items: int) -> None:
    """Join the plays from `base` on into those before, which are in order: union by identity, greatest share, all flags."""
    for item in range(base_items, s.n[ITEMS]):
        known = find_item(s, item, item)
        if known >= 0:
            for i in range(base, s.n[PLAYS]):
                if s.item[i] == item:
                    s.item[i] = known
    horizon_ms, count = (s.n[ERASED_S] + 1) * 1000, base
    for new in range(base, s.n[PLAYS]):
        if s.started[new] < horizon_ms:
            continue
        at = count
        while at > 0 and _order(s, at - 1, new) < 0:
            at -= 1
        if at > 0 and _order(s, at - 1, new) == 0:
            s.share[at - 1] = max(s.share[at - 1], s.share[new])
            s.flags[at - 1] |= s.flags[new]
            continue
        started, digest, item, share, flags = s.started[new], s.digest[new], s.item[new], s.share[new], s.flags[new]
        for i in range(count, at, -1):
            s.started[i], s.digest[i], s.item[i] = s.started[i - 1], s.digest[i - 1], s.item[i - 1]
            s.share[i], s.flags[i] = s.share[i - 1], s.flags[i - 1]
        s.started[at], s.digest[at], s.item[at], s.share[at], s.flags[at] = started, digest, item, share, flags
        count += 1
    s.n[PLAYS] = count


@jit
def cut_plays(s: Columns, limits: Array) -> int:
    """The newest m of each item, then the newest N; the items of what is cut are remembered as seen. OK or REFERENCE."""
    of_item = s.place
    for item in range(s.n[ITEMS]):
        of_item[item] = 0
    kept = 0
    for i in range(s.n[PLAYS]):
        item = s.item[i]
        if kept < limits[MAX_PLAYS] and of_item[item] < limits[MAX_PER_ITEM]:
            of_item[item] += 1
            s.started[kept], s.digest[kept], s.item[kept] = s.started[i], s.digest[i], item
            s.share[kept], s.flags[kept] = s.share[i], s.flags[i]
            kept += 1
        elif not _remember(s, item, s.started[i] // 1000, limits):
            return REFERENCE
    s.n[PLAYS] = kept
    return OK


@jit
def lower_bound(ascending: Array, count: int, value: int) -> int:
    """How many of the first `count` are less than the value."""
    low, high = np.int64(0), count
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@jit
def _remember(s: Columns, item: int, start_s: int, limits: Array) -> bool:
    """An item whose play was cut is seen, at its newest start. False if there is no room."""
    digest = np.int64(
        kb.digest(s.text[:0], s.text, s.starts[item], s.starts[item] + s.lengths[item], np.int64(6), s.words)
    )
    count = s.n[SEEN]
    at = lower_bound(s.seen_digest, count, digest)
    if at < count and s.seen_digest[at] == digest:
        s.seen_start[at] = max(s.seen_start[at], start_s)
        return True
    if count >= limits[MAX_SEEN]:
        return False
    for i in range(count, at, -1):
        s.seen_digest[i], s.seen_start[i] = s.seen_digest[i - 1], s.seen_start[i - 1]
    s.seen_digest[at], s.seen_start[at] = digest, start_s
    s.n[SEEN] += 1
    return True


@jit
def sort_items(s: Columns) -> None:
    """Items that plays have, in order of first appearance: into `order`, their places there into `place`."""
    count = np.int64(0)
    for item in range(s.n[ITEMS]):
        s.place[item] = -1
    for i in range(s.n[PLAYS]):
        item = s.item[i]
        if s.place[item] < 0:
            s.place[item], s.order[count] = count, item
            count += 1
    s.n[PLAYED] = count


@jit
def worst_size(s: Columns) -> int:
    """Bytes that the packed state cannot exceed."""
    registers = s.n[REGISTERS_END] - s.n[REGISTERS_AT]
    return 128 + 16 * s.n[PLAYS] + s.n[TEXT] + s.n[ITEMS] + registers + 10 * s.n[SEEN]


@jit
def write_state(out: Array, at: int, data: Array, s: Columns) -> int:
    """The packed state, items sorted. `data`: where the registers' bytes lie. Where it ends."""
    n, n_items, n_seen = s.n[PLAYS], s.n[PLAYED], s.n[SEEN]
    if n == 0 and n_seen == 0 and s.n[REGISTERS] == 0 and s.n[ERASED_S] < 0:
        return at
    out[at] = VERSION
    at += 1
    for number in (n, n_items, s.n[REGISTERS], n_seen, s.n[ERASED_S] + 1):
        at = kb.write_varint(out, at, number)
    for i in range(n):
        at = kb.write_varint(out, at, s.started[0] if i == 0 else s.started[i - 1] - s.started[i])
    for i in range(n):
        at = kb.write_u32(out, at, s.digest[i])
    for i in range(n):
        out[at + i] = s.share[i]
    at += n
    for i in range(0, n, 2):
        out[at] = s.flags[i] | (s.flags[i + 1] << 4 if i + 1 < n else 0)
        at += 1
    bits_at, new = at, 0
    at += (n + 7) // 8
    for i in range(bits_at, at):
        out[i] = 0
    for i in range(n):
        place = s.place[s.item[i]]
        if place == new:
            new += 1
        else:
            out[bits_at + i // 8] |= 1 << (i & 7)
            if n_items > 256:
                at = kb.write_u16(out, at, place)
            else:
                out[at] = place
                at += 1
    at = kb.write_ids(out, at, s.text, s.starts, s.lengths, s.order, n_items, s.codes)
    at = kb.copy(data, s.n[REGISTERS_AT], s.n[REGISTERS_END], out, at)
    for i in range(n_seen):
        at = kb.write_u32(out, at, s.seen_digest[i] & 0xFFFFFFFF)
    for i in range(n_seen):
        at = kb.write_u16(out, at, s.seen_digest[i] >> 32)
    for i in range(n_seen):
        at = kb.write_u32(out, at, s.seen_start[i])
    return at
