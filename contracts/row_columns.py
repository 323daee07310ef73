"""A home row to and from the columns of its schema (`schemas/home_row.avsc`). Pure.

Ids are packed (`packed_ids.py`) and scores are float16: a row of 60 takes half the bytes that lists of strings and floats take.
Rows of older writers, in lists, are still read.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from contracts.packed_ids import pack_ids, unpack_ids
from contracts.rows import Entry, HomeRow, Reason

Record = dict[str, Any]

MAX_SOURCES = 16
GREATEST_HALF = 65504.0
"""Of float16. Greater scores are written as this: rows are compared within themselves, where order has been decided before."""

_OLD_COLUMNS: Record = {
    "items": [],
    "scores": [],
    "source_indexes": b"",
    "reason_items": [],
    "reason_contributions": [],
}
"""Columns that older writers filled, and that their readers still expect to be there."""


class RowColumns(NamedTuple):
    """A row that was read, by its columns: whoever turns each row into text once needs no object for each entry.

    (n entries) `items`, `scores`, `of_source` (index into `sources`). `reason_counts`: (at most n) how many reasons each of the first
    entries has; `reason_items`, `contributions`: (their sum), entry after entry. `starts`, `ends`: place → bound of the window, ms.
    """

    row_id: str
    generation_id: str
    activation: int
    trends_snapshot: str
    computed_at_ms: int
    event_time_ms: int | None
    items: Sequence[str] = ()
    scores: Sequence[float] = ()
    sources: Sequence[str] = ()
    of_source: Sequence[int] = ()
    reason_counts: bytes = b""
    reason_items: Sequence[str] = ()
    contributions: Sequence[float] = ()
    starts: Mapping[int, int] = {}
    ends: Mapping[int, int] = {}


def row_record(row: HomeRow) -> Record:
    """Rows of entries to packed columns."""
    columns = zip(*row.entries, strict=True) if row.entries else iter([()] * 6)
    items, scores, sources, why, starts, ends = columns
    names = {name: index for index, name in enumerate(dict.fromkeys(sources))}  # in order of first use
    if len(names) > MAX_SOURCES:
        raise ValueError("more sources than four bits can name")
    with_reasons = max((place for place, reasons in enumerate(why, 1) if reasons), default=0)
    reasons = [reason for some in why[:with_reasons] for reason in some]
    reason_index = {item: index for index, item in enumerate(dict.fromkeys(reason.item_id for reason in reasons))}
    of_source = [names[name] for name in sources]
    from_positions = [place for place, time_ms in enumerate(starts) if time_ms is not None]
    until_positions = [place for place, time_ms in enumerate(ends) if time_ms is not None]
    return {
        **_OLD_COLUMNS,
        "row_id": row.row_id,
        "generation_id": row.generation_id,
        "activation": row.activation,
        "trends_snapshot": row.trends_snapshot,
        "computed_at": row.computed_at_ms,
        "event_time": row.event_time_ms,
        "sources": list(names),
        "reason_counts": bytes([len(some) for some in why[:with_reasons]]),
        "from_positions": bytes(from_positions),
        "available_from": [starts[place] for place in from_positions],
        "until_positions": bytes(until_positions),
        "available_until": [ends[place] for place in until_positions],
        "ids": pack_ids([*items, *reason_index]),
        "half_scores": _halves(scores),
        "entry_sources": _to_bits(of_source, bits_of(len(names))),
        "reason_ids": bytes([reason_index[reason.item_id] for reason in reasons]),
        "half_contributions": _halves([reason.contribution for reason in reasons]),
    }


def _halves(numbers: Sequence[float]) -> bytes:
    limited = [max(-GREATEST_HALF, min(GREATEST_HALF, number)) for number in numbers]
    return struct.pack(f"<{len(limited)}e", *limited)


def _unpacked_row(record: Record) -> tuple[list[str], Sequence[float], Sequence[int], list[str], Sequence[float]]:
    """Columns of the entries and the reasons, packed or an older writer's: items, scores, sources, reason items, contributions.

    Strict: a row has one spelling, so there is one kind of columns only and no index beyond its list.
    """
    if not record["half_scores"]:
        if any(record[name] for name in ("ids", "entry_sources", "reason_ids", "half_contributions")):
            raise ValueError("packed columns without scores")
        return (
            record["items"], record["scores"], record["source_indexes"],
            record["reason_items"], record["reason_contributions"],
        )  # fmt: skip
    if any(record[name] for name in _OLD_COLUMNS):
        raise ValueError("entries in packed and in older columns")
    scores = _from_halves(record["half_scores"])
    count, indexes = len(scores), list(record["reason_ids"])
    distinct = list(dict.fromkeys(indexes))
    ids, end = unpack_ids(record["ids"], 0, count + len(distinct))
    of_source = _from_bits(record["entry_sources"], bits_of(len(record["sources"])), count)
    if end != len(record["ids"]) or distinct != list(range(len(distinct))) or len(set(ids[count:])) != len(distinct):
        raise ValueError("ids behind the last, or reasons not in order of first use")
    return (
        ids[:count],
        scores,
        of_source,
        [ids[count + index] for index in indexes],
        _from_halves(record["half_contributions"]),
    )


def bits_of(sources: int) -> int:
    """Bits that name one of so many sources: 0, 1, 2 or 4."""
    return 0 if sources < 2 else 1 if sources == 2 else 2 if sources <= 4 else 4


def _to_bits(numbers: Sequence[int], bits: int) -> bytes:
    """The lowest bits of a byte first."""
    whole = sum(number << bits * place for place, number in enumerate(numbers))
    return whole.to_bytes((bits * len(numbers) + 7) // 8, "little")


def _from_bits(data: bytes, bits: int, count: int) -> list[int]:
    whole = int.from_bytes(data, "little")
    if len(data) != (bits * count + 7) // 8 or whole >> bits * count:
        raise ValueError("not one source per entry")
    if not bits:
        return [0] * count
    return [whole >> bits * place & (1 << bits) - 1 for place in range(count)]


def _from_halves(data: bytes) -> tuple[float, ...]:
    numbers: tuple[float, ...] = struct.unpack(f"<{len(data) // 2}e", data)
    if not math.isfinite(sum(numbers)):
        raise ValueError("not a number")
    return numbers


def read_columns(record: Record) -> RowColumns:
    """The columns, once they agree about their length; `strict` and the index errors refuse others.

    Strict in spelling too: a row has one, so sources are in order of first use, places ascend, and counts end with the last reason.
    """
    items, scores, of_source, reason_items, contributions = _unpacked_row(record)
    names, counts = record["sources"], record["reason_counts"]
    if not len(items) == len(scores) == len(of_source):
        raise ValueError("entry columns differ in length")
    if list(dict.fromkeys(of_source)) != list(range(len(names))) or len(set(names)) != len(names):
        raise ValueError("sources not in order of first use")
    if counts[-1:] == b"\x00":
        raise ValueError("counts after the last reason")
    for places in (record["from_positions"], record["until_positions"]):
        if places and list(places) != sorted(set(places)):
            raise ValueError("places of windows not ascending")
    if not sum(counts) == len(reason_items) == len(contributions) or len(counts) > len(items):
        raise ValueError("reasons, their counts and the entries differ in number")
    starts = dict(zip(record["from_positions"], record["available_from"], strict=True))
    ends = dict(zip(record["until_positions"], record["available_until"], strict=True))
    if any(place >= len(items) for place in (*starts, *ends)):
        raise ValueError("a window without an entry")
    return RowColumns(
        record["row_id"],
        record["generation_id"],
        record["activation"],
        record["trends_snapshot"],
        record["computed_at"],
        record["event_time"],
        items,
        scores,
        names,
        of_source,
        counts,
        reason_items,
        contributions,
        starts,
        ends,
    )


def row_of(columns: RowColumns) -> HomeRow:
    """The same row with its entries one by one."""
    c = columns
    reasons = map(Reason, c.reason_items, c.contributions)
    why = [tuple([next(reasons) for _ in range(count)]) for count in c.reason_counts]
    why += [()] * (len(c.items) - len(why))
    entries = tuple(
        [
            Entry(item, score, c.sources[source], some, c.starts.get(place), c.ends.get(place))
            for place, (item, score, source, some) in enumerate(zip(c.items, c.scores, c.of_source, why, strict=True))
        ]
    )
    return HomeRow(
        c.row_id, c.generation_id, c.activation, c.trends_snapshot, c.computed_at_ms, c.event_time_ms, entries
    )


def read_row(record: Record) -> HomeRow:
    """Columns to entries. Errors: as `read_columns`."""
    return row_of(read_columns(record))
