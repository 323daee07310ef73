"""A trends snapshot: what all partitions have counted since a generation's cut-off, as bytes that are named by their content. Pure.

    magic "NLTR", version uint8, length of the generation's id uint8, the id
    at_ms int64, plays uint64, titles uint32, size of the body uint32; from version 2 on: items added uint32, k uint16
    body (zlib): row of each title (int32, ascending), then for each half-life its decayed plays (float32), in planes of bytes
                 of the items added: vectors (float16), popularity (float32), available from, until (int64, ms), maturity (uint8), column
                 after column, then the length of each id (uint8), then the ids
    CRC-32 of all of it

Little-endian. Only titles that were played are in it; `tables_of` adds them to the generation's own trends, decayed to the same time.
Rows are those of the generation with the items added (`embeddings/added.py`). Sums go over partitions in their order, so whoever adds
the same counts writes the same bytes. Version 1 knew no items added.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from contracts.errors import GenerationError
from embeddings.added import Added, no_items
from embeddings.tables import F32, HALF_LIVES_DAYS, I32, Tables
from trends.counters import GREATEST_EXPONENT, Counts

VERSIONS = (1, 2)
"""That can be read; the last one is written."""
DAY_MS = 86_400_000
_MAGIC = b"NLTR"
_HEADER = struct.Struct("<qQII")
_ADDED = struct.Struct("<IH")
_FOREIGN = (ValueError, struct.error, zlib.error, UnicodeDecodeError, IndexError)
_KEPT_BITS = np.uint32(0xFFFFF000)
"""Of a float32: 11 bits of the mantissa, a twentieth of a percent. The rest would be noise that does not compress."""
MOST_TITLES, MOST_ADDED = 10_000_000, 100_000
"""More is no snapshot: nothing is made ready for it."""
LEAST_ADDED_BYTES, LONGEST_ID = 4 + 8 + 8 + 1 + 1, 128
"""Of an item added beside its vector and its id; of an id."""


@dataclass(frozen=True, eq=False, slots=True)
class Snapshot:
    """`at_ms`: the time it is as of, at which its newest play was reported. `plays`: how many it counts. `rows`: (m,) int32, ascending;
    `live`: (m, half-lives) float32 ≥ 0, their decayed plays at that time. `added`: items that the generation has no vector of."""

    generation_id: str
    at_ms: int
    plays: int
    rows: I32
    live: F32
    added: Added = field(default_factory=no_items)


def merge(
    partitions: Mapping[int, Counts],
    generation_id: str,
    base_at_ms: int,
    added: Added | None = None,
    index: Mapping[str, int] | None = None,
) -> Snapshot:
    """Add up. `base_at_ms`: the time that the generation's own trends are as of. `added`: items that are served beside those of the
    generation; `index`: of the generation."""
    counted = [counts for _, counts in sorted(partitions.items()) if counts.counted]
    at_ms = max([base_at_ms, *(counts.newest_ms for counts in counted)])
    added = no_items() if added is None else added
    row_of = dict(zip(added.item_ids, added.rows(index or {}).tolist(), strict=True))
    sums_of = [_sums_by_row(counts, row_of) for counts in counted]
    rows = np.array(sorted({row for sums in sums_of for row in sums}), dtype=np.int32)
    live = np.zeros((len(rows), len(HALF_LIVES_DAYS)))
    half_lives_ms = np.array(HALF_LIVES_DAYS) * DAY_MS
    for counts, by_row in zip(counted, sums_of, strict=True):
        own = np.array(list(by_row), dtype=np.int64)
        sums = np.array(list(by_row.values())).reshape(len(own), 1 + len(HALF_LIVES_DAYS))[:, 1:]
        age = (at_ms - counts.landmark_ms) / half_lives_ms
        live[np.searchsorted(rows, own)] += sums * np.exp2(-np.minimum(age, GREATEST_EXPONENT))
    plays = sum(counts.counted for counts in counted)
    return Snapshot(generation_id, at_ms, plays, rows, _rounded(live.astype(np.float32)), added)


def _sums_by_row(counts: Counts, row_of: Mapping[str, int]) -> dict[int, list[float]]:
    """Row → sums of a partition, of the titles that serve."""
    if not row_of:
        return counts.sums
    new = {row_of[item_id]: title.sums for item_id, title in counts.new.items() if item_id in row_of}
    return {**counts.sums, **new}


def _rounded(values: F32) -> F32:
    rounded: F32 = (np.ascontiguousarray(values).view(np.uint32) & _KEPT_BITS).view(np.float32)
    return rounded


def encode(snapshot: Snapshot) -> bytes:
    """The same snapshot is the same bytes."""
    name = snapshot.generation_id.encode()
    columns = [np.ascontiguousarray(snapshot.rows, "<i4"), *np.ascontiguousarray(snapshot.live.T, "<f4")]
    planes = b"".join(column.view(np.uint8).reshape(-1, 4).T.tobytes() for column in columns)
    added = snapshot.added
    body = zlib.compress(planes + _added_bytes(added), 6)
    head = _MAGIC + bytes([VERSIONS[-1], len(name)]) + name
    data = head + _HEADER.pack(snapshot.at_ms, snapshot.plays, len(snapshot.rows), len(body))
    data += _ADDED.pack(len(added), added.item_factors.shape[1]) + body
    return data + struct.pack("<I", zlib.crc32(data))


def _added_bytes(added: Added) -> bytes:
    columns = (
        np.ascontiguousarray(added.item_factors, "<f2"),
        np.ascontiguousarray(added.popularity, "<f4"),
        np.ascontiguousarray(added.available_from_ms, "<i8"),
        np.ascontiguousarray(added.available_until_ms, "<i8"),
        np.ascontiguousarray(added.maturity, "u1"),
    )
    ids = [item_id.encode() for item_id in added.item_ids]
    return b"".join([*(column.tobytes() for column in columns), bytes(map(len, ids)), *ids])


def _added_of(data: bytes, m: int, k: int) -> Added:
    """Errors: ValueError for what is none."""
    at, columns = 0, []
    for dtype, width in (("<f2", k), ("<f4", 1), ("<i8", 1), ("<i8", 1), ("u1", 1), ("u1", 1)):
        columns.append(np.frombuffer(data, dtype, m * width, at))
        at += m * width * np.dtype(dtype).itemsize
    factors, popularity, from_ms, until_ms, maturity, lengths = columns
    ends = at + np.cumsum(lengths, dtype=np.int64)
    if (int(ends[-1]) if m else at) != len(data):
        raise ValueError("its length does not fit")
    ids = [data[end - length : end].decode() for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
    return Added(
        tuple(ids),
        np.ascontiguousarray(factors.reshape(m, k).astype(np.float32)),
        popularity.astype(np.float32),
        from_ms.astype(np.int64),
        until_ms.astype(np.int64),
        maturity.astype(np.uint8),
    )


def name_of(data: bytes) -> str:
    """Eight characters that name these bytes: a row of sixty entries is longer by seven bytes than one without a snapshot."""
    return base64.urlsafe_b64encode(hashlib.blake2b(data, digest_size=6).digest()).decode()


def decode(data: bytes, name: str) -> Snapshot:
    """Errors: `GenerationError` for bytes that are damaged, another version's, or not those of this name."""
    try:
        if name_of(data) != name:
            raise ValueError("its content is not the one that it is named by")
        if data[:4] != _MAGIC or data[4] not in VERSIONS:
            raise ValueError(f"another format than {VERSIONS[-1]}: upgrade")
        if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
            raise ValueError("the checksum does not fit")
        at = 6 + data[5]
        at_ms, plays, n, size = _HEADER.unpack_from(data, at)
        at_body, m, k = at + _HEADER.size, 0, 0
        if data[4] > 1:
            m, k = _ADDED.unpack_from(data, at_body)
            at_body += _ADDED.size
        body = data[at_body:-4]
        wanted, least = 4 * n * (1 + len(HALF_LIVES_DAYS)), m * (2 * k + LEAST_ADDED_BYTES)
        if n > MOST_TITLES or m > MOST_ADDED or len(body) != size:
            raise ValueError("its length does not fit")
        most = wanted + least + m * LONGEST_ID
        unpacked = zlib.decompressobj().decompress(body, most + 1)
        if not wanted + least <= len(unpacked) <= most:
            raise ValueError("its length does not fit")
        planes, added = unpacked[:wanted], _added_of(unpacked[wanted:], m, k)
        columns = np.frombuffer(planes, np.uint8).reshape(1 + len(HALF_LIVES_DAYS), 4, n).transpose(0, 2, 1)
        columns = np.ascontiguousarray(columns)
        rows = columns[0].view("<i4").reshape(n).astype(np.int32)
        live = columns[1:].view("<f4").reshape(len(HALF_LIVES_DAYS), n).T.astype(np.float32)
        return Snapshot(data[6:at].decode(), at_ms, plays, rows, np.ascontiguousarray(live), added)
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
