"""A trends snapshot: what all partitions have counted since a generation's cut-off, as bytes that are named by their content. Pure.

    magic "NLTR", version uint8, length of the generation's id uint8, the id
    at_ms int64, plays uint64, titles uint32, size of the body uint32
    body (zlib): row of each title (int32, ascending), then for each half-life its decayed plays (float32), in planes of bytes
    CRC-32 of all of it

Little-endian. Only titles that were played are in it; `tables_of` adds them to the generation's own trends, decayed to the same time.
Sums go over partitions in their order, so whoever adds the same counts writes the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from contracts.errors import GenerationError
from embeddings.tables import F32, HALF_LIVES_DAYS, I32, Tables
from trends.counters import GREATEST_EXPONENT, Counts

VERSION = 1
DAY_MS = 86_400_000
_MAGIC = b"NLTR"
_HEADER = struct.Struct("<qQII")
_FOREIGN = (ValueError, struct.error, zlib.error, UnicodeDecodeError, IndexError)
_KEPT_BITS = np.uint32(0xFFFFF000)
"""Of a float32: 11 bits of the mantissa, a twentieth of a percent. The rest would be noise that does not compress."""
MOST_TITLES = 10_000_000
"""More is no snapshot: nothing is made ready for it."""


@dataclass(frozen=True, eq=False, slots=True)
class Snapshot:
    """`at_ms`: the time it is as of, at which its newest play was reported. `plays`: how many it counts. `rows`: (m,) int32, ascending;
    `live`: (m, half-lives) float32 ≥ 0, their decayed plays at that time."""

    generation_id: str
    at_ms: int
    plays: int
    rows: I32
    live: F32


def merge(partitions: Mapping[int, Counts], generation_id: str, base_at_ms: int) -> Snapshot:
    """Add up. `base_at_ms`: the time that the generation's own trends are as of."""
    counted = [counts for _, counts in sorted(partitions.items()) if counts.counted]
    at_ms = max([base_at_ms, *(counts.newest_ms for counts in counted)])
    rows = np.array(sorted({row for counts in counted for row in counts.sums}), dtype=np.int32)
    live = np.zeros((len(rows), len(HALF_LIVES_DAYS)))
    half_lives_ms = np.array(HALF_LIVES_DAYS) * DAY_MS
    for counts in counted:
        own = np.array(list(counts.sums), dtype=np.int64)
        sums = np.array(list(counts.sums.values()))[:, 1:]
        age = (at_ms - counts.landmark_ms) / half_lives_ms
        live[np.searchsorted(rows, own)] += sums * np.exp2(-np.minimum(age, GREATEST_EXPONENT))
    return Snapshot(
        generation_id, at_ms, sum(counts.counted for counts in counted), rows, _rounded(live.astype(np.float32))
    )


def _rounded(values: F32) -> F32:
    rounded: F32 = (np.ascontiguousarray(values).view(np.uint32) & _KEPT_BITS).view(np.float32)
    return rounded


def encode(snapshot: Snapshot) -> bytes:
    """The same snapshot is the same bytes."""
    name = snapshot.generation_id.encode()
    columns = [np.ascontiguousarray(snapshot.rows, "<i4"), *np.ascontiguousarray(snapshot.live.T, "<f4")]
    planes = b"".join(column.view(np.uint8).reshape(-1, 4).T.tobytes() for column in columns)
    body = zlib.compress(planes, 6)
    head = _MAGIC + bytes([VERSION, len(name)]) + name
    data = head + _HEADER.pack(snapshot.at_ms, snapshot.plays, len(snapshot.rows), len(body)) + body
    return data + struct.pack("<I", zlib.crc32(data))


def name_of(data: bytes) -> str:
    """Eight characters that name these bytes: a row of sixty entries is longer by seven bytes than one without a snapshot."""
    return base64.urlsafe_b64encode(hashlib.blake2b(data, digest_size=6).digest()).decode()


def decode(data: bytes, name: str) -> Snapshot:
    """Errors: `GenerationError` for bytes that are damaged, another version's, or not those of this name."""
    try:
        if name_of(data) != name:
            raise ValueError("its content is not the one that it is named by")
        if data[:4] != _MAGIC or data[4] != VERSION:
            raise ValueError(f"another format than {VERSION}: upgrade")
        if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
            raise ValueError("the checksum does not fit")
        at = 6 + data[5]
        at_ms, plays, n, size = _HEADER.unpack_from(data, at)
        body = data[at + _HEADER.size : -4]
        wanted = 4 * n * (1 + len(HALF_LIVES_DAYS))
        if n > MOST_TITLES or len(body) != size:
            raise ValueError("its length does not fit")
        planes = zlib.decompressobj().decompress(body, wanted + 1)
        if len(planes) != wanted:
            raise ValueError("its length does not fit")
        columns = np.frombuffer(planes, np.uint8).reshape(1 + len(HALF_LIVES_DAYS), 4, n).transpose(0, 2, 1)
        columns = np.ascontiguousarray(columns)
        rows = columns[0].view("<i4").reshape(n).astype(np.int32)
        live = columns[1:].view("<f4").reshape(len(HALF_LIVES_DAYS), n).T.astype(np.float32)
        return Snapshot(data[6:at].decode(), at_ms, plays, rows, np.ascontiguousarray(live))
    except _FOREIGN as error:
        raise GenerationError(f"trends snapshot {name}: {error}; the generation's own trends serve") from error


def tables_of(snapshot: Snapshot, own: Tables, generation_id: str, n_items: int) -> Tables:
    """The generation's tables with these trends: its own, decayed to the snapshot's time, and what was played since.

    Errors: `GenerationError` for a snapshot of another generation, or one that does not fit it.
    """
    rows, live = snapshot.rows, snapshot.live
    problems = {
        f"it is of generation {snapshot.generation_id}": snapshot.generation_id != generation_id,
        "the time of the generation's trends is not known": own.at_ms <= 0,
        "it is older than the generation's trends": snapshot.at_ms < own.at_ms,
        "it names titles that there are not": len(rows) > 0 and not 0 <= int(rows.min()) <= int(rows.max()) < n_items,
        "its titles are not in order": bool((np.diff(rows) <= 0).any()),
        "it holds NaN, infinity or a negative number": not np.isfinite(live).all() or bool((live < 0).any()),
    }
    wrong = [text for text, holds in problems.items() if holds]
    if wrong:
        raise GenerationError(
            f"trends snapshot for generation {generation_id}: {wrong[0]}; the generation's own trends serve"
        )
    days = (snapshot.at_ms - own.at_ms) / DAY_MS
    trending = own.trending * np.exp2(-np.minimum(days / np.array(HALF_LIVES_DAYS), GREATEST_EXPONENT))
    trending[rows] += live
    return replace(own, trending=trending.astype(np.float32), at_ms=snapshot.at_ms)
