"""Numbers, ids and digests in bytes, compiled: the twin of `contracts/packed_ids.py` and of what `packing` does with `struct`.

Readers return where they stand then, or −1 if the bytes end too early or are no spelling of what is asked for: they never look past
`end`. Writers trust that there is room.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embeddings.compiled import jit

Array = NDArray[Any]


@jit
def read_varint(data: Array, at: int, end: int) -> Any:
    """(number below 2⁴⁹, where it ends or −1)."""
    number, shift = 0, 0
    while at < end and shift < 49:
        byte = np.int64(data[at])
        at += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, -1 if byte == 0 and shift > 7 else at
    return 0, -1


@jit
def write_varint(out: Array, at: int, number: int) -> int:
    while number > 127:
        out[at] = number & 127 | 128
        number >>= 7
        at += 1
    out[at] = number
    return at + 1


@jit
def write_zigzag(out: Array, at: int, number: int) -> int:
    """Avro's long."""
    rest = np.uint64(number << 1 ^ number >> 63)
    while rest > np.uint64(127):
        out[at] = rest & np.uint64(127) | np.uint64(128)
        rest >>= np.uint64(7)
        at += 1
    out[at] = rest
    return at + 1


@jit
def read_u16(data: Array, at: int) -> int:
    return np.int64(data[at]) | np.int64(data[at + 1]) << 8


@jit
def read_u32(data: Array, at: int) -> int:
    return read_u16(data, at) | read_u16(data, at + 2) << 16


@jit
def write_u16(out: Array, at: int, number: int) -> int:
    out[at], out[at + 1] = number & 255, number >> 8 & 255
    return at + 2


@jit
def write_u32(out: Array, at: int, number: int) -> int:
    return write_u16(out, write_u16(out, at, number & 65535), number >> 16)


@jit
def append(source: Array, out: Array, at: int) -> int:
    for i in range(len(source)):
        out[at + i] = source[i]
    return at + len(source)


@jit
def copy(source: Array, start: int, stop: int, out: Array, at: int) -> int:
    for i in range(stop - start):
        out[at + i] = source[start + i]
    return at + stop - start


@jit
def read_ids(
    data: Array, at: int, end: int, count: int, text: Array, starts: Array, lengths: Array, first: int, room: int
) -> Any:
    """`count` packed ids appended to `text` from position `room` on, their places to `starts` and `lengths` from index `first` on.

    (where the text ends, where the bytes end or −1). Errors too if the text or the lists are full.
    """
    if count == 0:
        return room, at
    if at >= end or first + count > len(starts):
        return room, -1
    size = np.int64(data[at])
    alphabet = at + 1
    at += 1 + size
    if at >= end or size > 64:
        return room, -1
    for i in range(1, size):
        if data[alphabet + i - 1] >= data[alphabet + i]:
            return room, -1
    if size > 0 and data[alphabet + size - 1] > 127:
        return room, -1
    uniform = np.int64(data[at])
    at += 1
    if uniform == 0 and at + count > end:
        return room, -1
    total, varied = 0, False
    for i in range(count):
        length = uniform if uniform else np.int64(data[at + i])
        if length == 0:
            return room, -1
        starts[first + i], lengths[first + i] = room + total, length
        varied |= length != lengths[first]
        total += length
    if uniform == 0:
        at += count
        if not varied:
            return room, -1
    width = 4 if 0 < size <= 16 else 5 if 0 < size <= 32 else 6 if size > 0 else 8
    stop = at + (total * width + 7) // 8
    if stop > end or room + total > len(text):
        return room, -1
    held, bits, used, mask, used_high = 0, 0, np.uint64(0), (1 << width) - 1, np.uint64(0)
    for i in range(total):
        if bits < width:
            held = held << 8 | np.int64(data[at])
            at += 1
            bits += 8
        bits -= width
        code = held >> bits & mask
        held &= (1 << bits) - 1
        if size > 0:
            if code >= size:
                return room, -1
            used |= np.uint64(1) << np.uint64(code)
            text[room + i] = data[alphabet + code]
        else:
            if code > 127:
                return room, -1
            if code < 64:
                used |= np.uint64(1) << np.uint64(code)
            else:
                used_high |= np.uint64(1) << np.uint64(code - 64)
            text[room + i] = code
    if held != 0 or (size > 0 and popcount(used) != size) or (size == 0 and popcount(used) + popcount(used_high) <= 64):
        return room, -1
    return room + total, stop


@jit
def popcount(bits: Any) -> int:
    count = 0
    while bits:
        bits &= bits - np.uint64(1)
        count += 1
    return count


@jit
def write_ids(
    out: Array, at: int, text: Array, starts: Array, lengths: Array, which: Array, count: int, codes: Array
) -> int:
    """The ids number which[0 … count − 1] packed; where they end. `codes`: (128,) int64 scratch."""
    if count == 0:
        return at
    for character in range(128):
        codes[character] = -1
    uniform, total = lengths[which[0]], 0
    for i in range(count):
        start, length = starts[which[i]], lengths[which[i]]
        total += length
        if length != uniform:
            uniform = 0
        for j in range(start, start + length):
            codes[text[j]] = 0
    size = 0
    for character in range(128):
        if codes[character] == 0:
            codes[character] = size
            size += 1
    width = 4 if size <= 16 else 5 if size <= 32 else 6 if size <= 64 else 8
    out[at] = size if width < 8 else 0
    at += 1
    for character in range(128):
        if codes[character] >= 0:
            if width < 8:
                out[at] = character
                at += 1
            else:
                codes[character] = character
    out[at] = uniform
    at += 1
    if uniform == 0:
        for i in range(count):
            out[at] = lengths[which[i]]
            at += 1
    held, bits = 0, 0
    for i in range(count):
        start = starts[which[i]]
        for j in range(start, start + lengths[which[i]]):
            held = held << width | codes[text[j]]
            bits += width
            if bits >= 8:
                bits -= 8
                out[at] = held >> bits & 255
                held &= (1 << bits) - 1
                at += 1
    if bits:
        out[at] = held << 8 - bits & 255
        at += 1
    return at


@jit
def same(text: Array, start: int, length: int, other: Array, other_start: int, other_length: int) -> bool:
    if length != other_length:
        return False
    for i in range(length):
        if text[start + i] != other[other_start + i]:
            return False
    return True


@jit
def is_before(text: Array, start: int, length: int, other_start: int, other_length: int) -> bool:
    """Whether one id sorts before another of the same text."""
    for i in range(min(length, other_length)):
        if text[start + i] != text[other_start + i]:
            return bool(text[start + i] < text[other_start + i])
    return length < other_length


@jit
def hash_id(text: Array, start: int, length: int) -> int:
    """FNV-1a, and its halves folded: a place in a table, nothing that leaves the process."""
    value = np.uint64(14695981039346656037)
    for i in range(start, start + length):
        value = (value ^ np.uint64(text[i])) * np.uint64(1099511628211)
    return np.int64((value ^ value >> np.uint64(29)) >> np.uint64(1))


# Half-precision floats


@jit
def half(number: float) -> int:
    """The bits of the float16 nearest to a finite number, ties to even; beyond the greatest, the greatest."""
    sign = 0x8000 if number < 0 else 0
    size = abs(number)
    if size >= 65504.0:
        return sign | 0x7BFF
    if size < 2.0**-14:
        return sign | np.int64(np.rint(size * 2.0**24))
    mantissa, exponent = math.frexp(size)  # size = mantissa · 2^exponent, ½ ≤ mantissa < 1
    return sign | ((exponent + 14) << 10) + np.int64(np.rint(mantissa * 2048.0)) - 1024


# BLAKE2b (RFC 7693), unkeyed, of up to eight bytes: the digest's bytes are the low ones of the first word

_IV = np.array(
    [
        0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1,
        0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179,
    ],
    np.uint64,
)  # fmt: skip
_SIGMA = np.array(
    [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
        [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
        [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
        [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
        [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
        [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
        [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
        [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
        [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    ],
    np.int64,
)  # fmt: skip
_MIX = np.array(
    [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15],
     [0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]],
    np.int64,
)  # fmt: skip


@jit
def digest(head: Array, data: Array, start: int, stop: int, size: int, words: Array) -> Any:
    """The first word of the BLAKE2b of head + data[start:stop] with a digest of `size` ≤ 8 bytes, cut to them: uint64.

    `words`: (40,) uint64 scratch.
    """
    h, v, m = words[:8], words[8:24], words[24:40]
    for i in range(8):
        h[i] = _IV[i]
    h[0] ^= np.uint64(0x01010000 ^ size)
    n_head = len(head)
    start -= n_head
    first, at = start, start
    while True:
        last = stop - at <= 128
        for word in range(16):
            value = np.uint64(0)
            for byte in range(8):
                place = at + 8 * word + byte
                if place < stop:
                    found = head[place - first] if place - first < n_head else data[place]
                    value |= np.uint64(found) << np.uint64(8 * byte)
            m[word] = value
        for i in range(8):
            v[i], v[i + 8] = h[i], _IV[i]
        v[12] ^= np.uint64(min(at + 128, stop) - start)
        if last:
            v[14] = ~v[14]
        for r in range(12):
            for g in range(8):
                _mix(v, _MIX[g, 0], _MIX[g, 1], _MIX[g, 2], _MIX[g, 3], m[_SIGMA[r, 2 * g]], m[_SIGMA[r, 2 * g + 1]])
        for i in range(8):
            h[i] ^= v[i] ^ v[i + 8]
        if last:
            break
        at += 128
    return h[0] if size == 8 else h[0] & ((np.uint64(1) << np.uint64(8 * size)) - np.uint64(1))


@jit
def _mix(v: Array, a: int, b: int, c: int, d: int, x: Any, y: Any) -> None:
    v[a] += v[b] + x
    v[d] = _turn(v[d] ^ v[a], np.uint64(32))
    v[c] += v[d]
    v[b] = _turn(v[b] ^ v[c], np.uint64(24))
    v[a] += v[b] + y
    v[d] = _turn(v[d] ^ v[a], np.uint64(16))
    v[c] += v[d]
    v[b] = _turn(v[b] ^ v[c], np.uint64(63))


@jit
def _turn(word: Any, by: int) -> Any:
    return word >> by | word << np.uint64(64) - by
