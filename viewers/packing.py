"""The packed viewer state: equal states give equal bytes. Pure. Told to other languages in `contracts/README.md`.

All integers little-endian; a varint has seven bits a byte, lowest first, in as few bytes as the number needs:

    version u8 = 2
    varints: n_plays | n_items | n_registers | n_seen | erased_through_s + 1 (0: never)
    plays, newest first, one column after another:
        varints: start_ms of the newest, then how many ms each of the others started earlier
        play_digest u32 each | share u8 each | flags, four bits each, the low half of a byte first
        repeats, a bit each, the lowest of a byte first: 0: an item that no newer play has, the next of `items`
        for every 1 among them the index of its item: u8, or u16 if n_items > 256
    items, in order of first appearance: `contracts/packed_ids.py`
    registers, by (kind, subject), one after another:
        kind u8 | value i8 (-128: none) | event_time_s u32 | event_time_ms u16 | event_digest u32 | length u8 | subject
    seen, by digest, one column after another: digest low u32 | digest high u16 | start_s u32

This is the readable twin of `viewers/kernel_state.py`, which reads, merges and writes the same bytes compiled.
"""

from __future__ import annotations

import struct
from itertools import pairwise

from contracts.errors import HaltError
from contracts.packed_ids import pack_ids, unpack_ids
from viewers.state import EMPTY, Play, Register, RegisterKind, ViewerState

VERSION = 2
MAX_START_MS = (1 << 32) * 1000 - 1
"""Starts are kept by the second in 32 bits elsewhere (`seen`, erasure)."""
_REGISTER = struct.Struct("<BbIHIB")
_NO_VALUE = -128


class BadState(HaltError):
    """The bytes are not a packed state: another program wrote to the viewer's key, or a newer version of this one did."""


def pack(state: ViewerState) -> bytes:
    """The state as bytes. The empty, never erased state packs to no bytes at all."""
    if state == EMPTY:
        return b""
    plays = state.plays
    n = len(plays)
    started, digests, item_ids, shares, flags = zip(*plays, strict=True) if plays else ((),) * 5
    index: dict[str, int] = {}
    repeats, repeated = 0, []
    for i, item_id in enumerate(item_ids):
        if item_id in index:
            repeats |= 1 << i
            repeated.append(index[item_id])
        else:
            index[item_id] = len(index)
    parts = [
        bytes([VERSION]),
        *map(_varint, (n, len(index), len(state.registers), len(state.seen), state.erased_through_s + 1)),
        *map(_varint, started[:1]),
        *[_varint(newer - older) for newer, older in pairwise(started)],
        struct.pack(f"<{n}I", *digests),
        bytes(shares),
        bytes([a | b << 4 for a, b in zip(flags[::2], (*flags[1::2], 0), strict=False)]),
        repeats.to_bytes((n + 7) // 8, "little"),
        struct.pack(f"<{len(repeated)}{'H' if len(index) > 256 else 'B'}", *repeated),
        pack_ids(list(index)),
        *map(_pack_register, state.registers),
    ]
    if state.seen:
        m = len(state.seen)
        lows, highs, starts = zip(*((d & 0xFFFFFFFF, d >> 32, start_s) for d, start_s in state.seen), strict=True)
        parts.append(struct.pack(f"<{m}I{m}H{m}I", *lows, *highs, *starts))
    return b"".join(parts)


def unpack(data: bytes) -> ViewerState:
    """The state of some bytes; `BadState` if they are none."""
    if not data:
        return EMPTY
    try:
        state = _unpack(data)
    except (struct.error, ValueError, IndexError) as error:
        raise BadState(f"not a packed viewer state ({len(data)} bytes): {error}") from error
    return state


def erased_through_s(data: bytes) -> int:
    """Of a packed state, without unpacking it; −1: never."""
    return _read_varints(data, 1, 5)[0][4] - 1 if data else EMPTY.erased_through_s


def _unpack(data: bytes) -> ViewerState:
    if data[0] != VERSION:
        raise BadState(f"packed state has version {data[0]}, this program reads {VERSION}")
    (n, n_items, n_registers, n_seen, erased_plus_1), at = _read_varints(data, 1, 5)
    if n + n_registers + n_seen > len(data):
        raise ValueError("more parts than bytes")
    steps, at = _read_varints(data, at, n)
    digests, at = struct.unpack_from(f"<{n}I", data, at), at + 4 * n
    shares, at = _take(data, at, n)
    halves, at = _take(data, at, (n + 1) // 2)
    flags = [half for byte in halves for half in (byte & 15, byte >> 4)]
    if any(flags[n:]) or max(flags, default=0) > 7:
        raise ValueError("flags that no play has")
    bits, at = _take(data, at, (n + 7) // 8)
    repeats = int.from_bytes(bits, "little")
    if repeats >> n or n - repeats.bit_count() != n_items:
        raise ValueError("the items are not as many as the plays say")
    code = "H" if n_items > 256 else "B"
    repeated = struct.unpack_from(f"<{repeats.bit_count()}{code}", data, at)
    items, at = unpack_ids(data, at + struct.calcsize(f"<{len(repeated)}{code}"), n_items)
    plays = _plays(steps, digests, items, repeats, repeated, shares, flags)
    registers = []
    for _ in range(n_registers):
        register, at = _read_register(data, at)
        registers.append(register)
    tail = struct.Struct(f"<{n_seen}I{n_seen}H{n_seen}I")
    columns = tail.unpack_from(data, at)
    if at + tail.size != len(data):
        raise ValueError(f"{at + tail.size} bytes by what it says of itself")
    seen = tuple(
        (low | high << 32, start_s)
        for low, high, start_s in zip(
            columns[:n_seen], columns[n_seen : 2 * n_seen], columns[2 * n_seen :], strict=True
        )
    )
    if any(one >= other for (one, _), (other, _) in pairwise(seen)) or erased_plus_1 >> 32:
        raise ValueError("seen items out of order, or an erasure after the year 2105")
    return ViewerState(plays, seen, tuple(registers), erased_plus_1 - 1)


def _plays(
    steps: list[int],
    digests: tuple[int, ...],
    items: list[str],
    repeats: int,
    repeated: tuple[int, ...],
    shares: bytes,
    flags: list[int],
) -> tuple[Play, ...]:
    """Columns to plays. Errors: ValueError unless they descend and each item appears first where it is said to."""
    plays: list[Play] = []
    started, new, old = 0, 0, iter(repeated)
    for i, step in enumerate(steps):
        started = step if i == 0 else started - step
        if repeats >> i & 1:
            index = next(old)
            if index >= new:
                raise ValueError("an item that no newer play has")
        else:
            index, new = new, new + 1
        plays.append(Play(started, digests[i], items[index], shares[i], flags[i]))
    if len(set(items)) != len(items) or started < 0 or (steps and steps[0] > MAX_START_MS):
        raise ValueError("an item that is listed twice, or a start outside the years 1970-2105")
    if any(newer[:3] <= older[:3] for newer, older in pairwise(plays)):
        raise ValueError("plays out of order")
    return tuple(plays)


def _pack_register(register: Register) -> bytes:
    subject = register.subject.encode("ascii")
    seconds, ms = divmod(register.event_time_ms, 1000)
    value = _NO_VALUE if register.value is None else register.value
    return _REGISTER.pack(register.kind, value, seconds, ms, register.event_digest, len(subject)) + subject


def _read_register(data: bytes, at: int) -> tuple[Register, int]:
    kind, value, seconds, ms, digest, length = _REGISTER.unpack_from(data, at)
    subject, at = _take(data, at + _REGISTER.size, length)
    if ms > 999:
        raise ValueError("a second of more than 999 ms")
    register_value = None if value == _NO_VALUE else value
    return Register(RegisterKind(kind), subject.decode("ascii"), seconds * 1000 + ms, digest, register_value), at


def _take(data: bytes, at: int, count: int) -> tuple[bytes, int]:
    if at + count > len(data):
        raise ValueError("cut short")
    return data[at : at + count], at + count


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _read_varints(data: bytes, at: int, count: int) -> tuple[list[int], int]:
    """So many numbers below 2⁴⁹, each in its shortest form."""
    numbers = []
    for _ in range(count):
        number, shift = 0, 0
        while True:
            byte = data[at]
            at += 1
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
            if shift > 42:
                raise ValueError("a number of more than 49 bits")
        if byte == 0 and shift > 7:
            raise ValueError("a number not in its shortest form")
        numbers.append(number)
    return numbers, at
