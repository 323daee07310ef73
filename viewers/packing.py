"""The packed viewer state: equal states give equal bytes. Pure. Told to other languages in `contracts/README.md`.

All integers little-endian:

    version u8 = 1 | wide u8 (1: item indexes are u16) | n_plays u16 | n_items u16 | n_registers u16 | n_seen u16 |
    erased_through_s + 1 u32 (0: never)
    plays, newest first, one column after another:
        start_s u32 | start_ms u16 (0-999) | play_digest u32 | item index u8 or u16 | share u8 | flags u8
    items, in order of first appearance: length u8 each, then all ids, ASCII
    registers, by (kind, subject), one after another:
        kind u8 | value i8 (-128: none) | event_time_s u32 | event_time_ms u16 | event_digest u32 | length u8 | subject
    seen, by digest, one column after another: digest low u32 | digest high u16 | start_s u32
"""

from __future__ import annotations

import struct

import numpy as np

from contracts.errors import HaltError
from viewers.state import EMPTY, Play, Register, RegisterKind, ViewerState

VERSION = 1
_HEADER = struct.Struct("<BBHHHHI")
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
    indexes = [index.setdefault(item_id, len(index)) for item_id in item_ids]
    wide = len(index) > 256
    start_s, start_ms = np.divmod(np.array(started, dtype=np.int64), 1000)
    ids = [item.encode("ascii") for item in index]
    columns = b"".join(
        (
            start_s.astype("<u4").tobytes(),
            start_ms.astype("<u2").tobytes(),
            np.array(digests, dtype="<u4").tobytes(),
            np.array(indexes, dtype="<u2").tobytes() if wide else bytes(indexes),
            bytes(shares),
            bytes(flags),
            bytes(map(len, ids)),
        )
    )
    header = _HEADER.pack(VERSION, wide, n, len(ids), len(state.registers), len(state.seen), state.erased_through_s + 1)
    parts = [header, columns, *ids, *map(_pack_register, state.registers)]
    if state.seen:
        m = len(state.seen)
        seen = [digest for digest, _ in state.seen]
        parts.append(
            struct.pack(
                f"<{m}I{m}H{m}I",
                *(digest & 0xFFFFFFFF for digest in seen),
                *(digest >> 32 for digest in seen),
                *(start_s for _, start_s in state.seen),
            )
        )
    return b"".join(parts)


def _pack_register(register: Register) -> bytes:
    subject = register.subject.encode("ascii")
    seconds, ms = divmod(register.event_time_ms, 1000)
    value = _NO_VALUE if register.value is None else register.value
    return _REGISTER.pack(register.kind, value, seconds, ms, register.event_digest, len(subject)) + subject


def unpack(data: bytes) -> ViewerState:
    """The state of some bytes; `BadState` if they are none."""
    if not data:
        return EMPTY
    try:
        return _unpack(data)
    except (struct.error, ValueError, IndexError) as error:
        raise BadState(f"not a packed viewer state ({len(data)} bytes): {error}") from error


def _unpack(data: bytes) -> ViewerState:
    version, wide, n, n_items, n_registers, n_seen, erased_plus_1 = _HEADER.unpack_from(data)
    if version != VERSION:
        raise BadState(f"packed state has version {version}, this program reads {VERSION}; upgrade it")
    at = _HEADER.size
    start_s, at = np.frombuffer(data, "<u4", n, at), at + 4 * n
    start_ms, at = np.frombuffer(data, "<u2", n, at), at + 2 * n
    play_digests, at = np.frombuffer(data, "<u4", n, at), at + 4 * n
    indexes, at = np.frombuffer(data, "<u2" if wide else "u1", n, at), at + (2 if wide else 1) * n
    shares, flags, lengths = data[at : at + n], data[at + n : at + 2 * n], data[at + 2 * n : at + 2 * n + n_items]
    at += 2 * n + n_items
    items = []
    for length in lengths:
        items.append(data[at : at + length].decode("ascii"))
        at += length
    started = (start_s.astype(np.int64) * 1000 + start_ms).tolist()
    item_ids = [items[i] for i in indexes.tolist()]
    plays = tuple(map(Play._make, zip(started, play_digests.tolist(), item_ids, shares, flags, strict=True)))
    registers = []
    for _ in range(n_registers):
        kind, value, seconds, ms, digest, length = _REGISTER.unpack_from(data, at)
        at += _REGISTER.size
        subject = data[at : at + length].decode("ascii")
        at += length
        register_value = None if value == _NO_VALUE else value
        registers.append(Register(RegisterKind(kind), subject, seconds * 1000 + ms, digest, register_value))
    tail = struct.Struct(f"<{n_seen}I{n_seen}H{n_seen}I")
    columns = tail.unpack_from(data, at)
    if at + tail.size != len(data):
        raise BadState(f"packed state is {len(data)} bytes, its header says {at + tail.size}")
    digests = [low | high << 32 for low, high in zip(columns[:n_seen], columns[n_seen : 2 * n_seen], strict=True)]
    seen = tuple(zip(digests, columns[2 * n_seen :], strict=True))
    return ViewerState(plays, seen, tuple(registers), erased_plus_1 - 1)
