"""A partition's counts as the fields of a hash, of which a checkpoint writes those that have changed. Pure.

    h        clock, forgotten, landmark, newest (ms), counted: five int64
    e        erasures: viewer's digest uint64, through int64 (s), for each
    i<row>   plays uint32, decayed sum of each half-life: float64
    t<n>     a new title, none if empty: length of its id uint8, the id, plays and sums as above, then of each viewer who watched it, in the
             order of their newest plays, the id's length uint8 and the id
    r<n>     slot int64, then of each play counted then its digest uint64 and its viewer's uint32; n = slot mod `RING`

Little-endian. Slots that have been forgotten are emptied; of plays and erasures of which the next checkpoint has not said so yet a reader
leaves out what the header says is forgotten.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np

from contracts.errors import StoreChanged
from embeddings.tables import HALF_LIVES_DAYS
from trends.counters import REMEMBERED_MS, SLOT_MS, Counts, NewTitle

RING = REMEMBERED_MS // SLOT_MS + 2
"""Slots that can be remembered at once, and one more."""

_HEADER = struct.Struct("<5q")
_ROW = struct.Struct(f"<I{len(HALF_LIVES_DAYS)}d")
_PAIR = np.dtype([("who", "<u8"), ("through_s", "<i8")])
_PLAY = np.dtype([("play", "<u8"), ("viewer", "<u4")])


def changed_fields(counts: Counts) -> dict[str, bytes]:
    """What has to be written to bring the last checkpoint to these counts."""
    fields = {
        "h": _HEADER.pack(counts.clock_ms, counts.forgotten_ms, counts.landmark_ms, counts.newest_ms, counts.counted),
        "e": np.array(list(counts.erased.items()), dtype=_PAIR).tobytes(),
    }
    for row in sorted(counts.changed_rows):
        plays, *sums = counts.sums[row]
        fields[f"i{row}"] = _ROW.pack(int(plays), *sums)
    titles = {title.slot: (item_id, title) for item_id, title in counts.new.items()}
    for slot in sorted(counts.changed_new):  # one that was left out is emptied
        fields[f"t{slot}"] = _title_bytes(*titles[slot]) if slot in titles else b""
    for slot in sorted(counts.changed_slots):  # one that is forgotten is emptied
        remembered = np.array(counts.slots.get(slot, []), dtype=_PLAY)
        fields[f"r{slot % RING}"] = struct.pack("<q", slot) + remembered.tobytes()
    return fields


def _title_bytes(item_id: str, title: NewTitle) -> bytes:
    plays, *sums = title.sums
    fans = b"".join(bytes([len(fan)]) + fan.encode() for fan in title.fans)
    return bytes([len(item_id)]) + item_id.encode() + _ROW.pack(int(plays), *sums) + fans


def _title_of(slot: int, value: bytes) -> tuple[str, NewTitle]:
    """Errors: IndexError, ValueError, struct.error for what is none."""
    at = 1 + value[0]
    item_id, sums = value[1:at].decode(), list(_ROW.unpack_from(value, at))
    at += _ROW.size
    fans: dict[str, None] = {}
    while at < len(value):
        fans[value[at + 1 : at + 1 + value[at]].decode()] = None
        at += 1 + value[at]
    return item_id, NewTitle(slot, sums, fans)


def counts_of(next_offset: int, fields: Mapping[str, bytes], where: str) -> Counts:
    """The counts that checkpoints have come to. Errors: `StoreChanged` for what is none: it is counted anew."""
    try:
        clock_ms, forgotten_ms, landmark_ms, newest_ms, counted = _HEADER.unpack(fields["h"])
        sums = {int(name[1:]): list(_ROW.unpack(value)) for name, value in fields.items() if name[0] == "i"}
        new = dict(_title_of(int(name[1:]), value) for name, value in fields.items() if name[0] == "t" and value)
        slots = {}
        for name, value in fields.items():
            if name[0] == "r":
                (slot,) = struct.unpack_from("<q", value)
                if (slot + 1) * SLOT_MS > forgotten_ms:
                    slots[slot] = np.frombuffer(value, dtype=_PLAY, offset=8).tolist()
        erased = dict(np.frombuffer(fields["e"], dtype=_PAIR).tolist())
    except (KeyError, IndexError, ValueError, struct.error) as error:
        raise StoreChanged(
            f"{where} is no checkpoint of ours ({type(error).__name__}): delete the key, and it is counted anew"
        ) from error
    ordered = {slot: slots[slot] for slot in sorted(slots)}
    return Counts(next_offset, clock_ms, forgotten_ms, landmark_ms, newest_ms, counted, sums, ordered, erased, new)
