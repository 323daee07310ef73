"""Plays from `events.parquet`, titles from `items.parquet`. Every row is one whole play; a table that breaks a rule is refused.

`events.parquet`: user_id and item_id (text or whole numbers), timestamp (ms since 1970, or an Arrow timestamp), in time order;
further columns, such as value, are not read. `items.parquet` (need not be there): item_id, and topics (a list) or genres
(`A|B`), which only the measure of diversity needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from contracts.errors import DataError
from contracts.events import LATEST_TIME_MS, valid_id

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

EARLIEST_TIME_MS = 315_532_800_000
"""1980-01-01: earlier is a unit error. (Events may not be older than 2000, but public sets are, and no event is sent here.)"""

REQUIRED = ("user_id", "item_id", "timestamp")


@dataclass(frozen=True, eq=False, slots=True)
class Plays:
    """n plays in time order. Viewers and items are numbered by first appearance: what was known after any number of plays has
    the lowest numbers.

    `viewer`, `item`: (n,) int32, into `viewer_ids`, `item_ids`. `time_ms`: (n,) int64, ascending. `topics`: (n_items, words)
    uint64, bit b of an item's words: has topic b; 0 words where topics are not known. `catalogue`: how many titles there are,
    played or not.
    """

    viewer: I32
    item: I32
    time_ms: I64
    viewer_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    topics: U64
    catalogue: int

    def __len__(self) -> int:
        return len(self.time_ms)

    def first(self, count: int) -> Plays:
        """The first `count` plays, as if nothing had happened since."""
        viewer, item = self.viewer[:count], self.item[:count]
        n_viewers, n_items = int(viewer.max(initial=-1)) + 1, int(item.max(initial=-1)) + 1
        return Plays(
            viewer,
            item,
            self.time_ms[:count],
            self.viewer_ids[:n_viewers],
            self.item_ids[:n_items],
            self.topics[:n_items],
            self.catalogue,
        )


def read_plays(path: Path | str) -> Plays:
    """Read a folder that holds `events.parquet` (and `items.parquet`), or the events' file itself. Errors: `DataError`."""
    file = Path(path)
    if file.is_dir():
        file = file / "events.parquet"
    if not file.is_file():
        raise DataError(
            f"{file}: no such file; name a folder with events.parquet and items.parquet, as `nearline import` writes it"
        )
    table = _read(file, REQUIRED)
    if not table.num_rows:
        raise DataError(f"{file}: holds no play")
    time_ms = _times(file, table.column("timestamp"))
    viewer, viewer_ids = _codes(file, "user_id", table.column("user_id"))
    item, item_ids = _codes(file, "item_id", table.column("item_id"))
    titles = file.parent / "items.parquet"
    topics, catalogue = _topics(titles, item_ids) if titles.is_file() else ({}, set(item_ids))
    return Plays(viewer, item, time_ms, viewer_ids, item_ids, _bits(item_ids, topics), len(catalogue | set(item_ids)))


def _read(file: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> Any:
    try:
        with pq.ParquetFile(file) as source:
            present = source.schema_arrow.names
            missing = [name for name in required if name not in present]
            if missing:
                raise DataError(
                    f"{file}: no column {', '.join(missing)} (it has {', '.join(present) or 'none'}); bring it into this layout with "
                    "`nearline import events`"
                )
            return source.read(columns=[*required, *(name for name in optional if name in present)])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error


def _times(file: Path, column: Any) -> I64:
    """(n,) int64 milliseconds, checked: present, of this age, ascending."""
    if pa.types.is_timestamp(column.type):
        column = pc.cast(column, pa.timestamp("ms"), safe=False).cast(pa.int64())
    if not pa.types.is_integer(column.type):
        raise DataError(
            f"{file}: column timestamp is {column.type}; it must be whole milliseconds since 1970, or an Arrow timestamp"
        )
    _refuse_nulls(file, "timestamp", column)
    times: I64 = column.cast(pa.int64()).to_numpy()
    absurd = np.flatnonzero((times < EARLIEST_TIME_MS) | (times >= LATEST_TIME_MS))
    if len(absurd):
        raise DataError(
            f"{file}: row {absurd[0] + 1}: timestamp {times[absurd[0]]} is not between 1980 and 2100 in milliseconds "
            f"({len(absurd):,} rows like it); are these seconds or microseconds?"
        )
    back = np.flatnonzero(np.diff(times) < 0)
    if len(back):
        row = int(back[0]) + 1
        raise DataError(
            f"{file}: row {row + 1} is {times[row - 1] - times[row]} ms before the row ahead of it; sort the table by timestamp"
        )
    return times


def _codes(file: Path, name: str, column: Any) -> tuple[I32, tuple[str, ...]]:
    """Numbers by first appearance, and the ids as text."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (
        pa.types.is_integer(column.type) or pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    ):
        raise DataError(f"{file}: column {name} is {column.type}; it must be text or whole numbers")
    _refuse_nulls(file, name, column)
    encoded = column.combine_chunks().dictionary_encode()
    ids = tuple(str(one) for one in encoded.dictionary.to_pylist())
    codes: I32 = encoded.indices.to_numpy().astype(np.int32)
    bad = next((place for place, one in enumerate(ids) if not valid_id(one)), None)
    if bad is not None:
        row = int(np.argmax(codes == bad)) + 1
        raise DataError(
            f"{file}: row {row}: {name} {ids[bad][:40]!r} is no id (1-128 characters of A-Z a-z 0-9 . _ : | @ ~ -); "
            "`nearline import events` makes ids usable"
        )
    return codes, ids


def _refuse_nulls(file: Path, name: str, column: Any) -> None:
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py() + 1
        raise DataError(f"{file}: row {row}: {name} is empty ({column.null_count:,} rows like it)")


def _topics(file: Path, item_ids: tuple[str, ...]) -> tuple[dict[str, list[str]], set[str]]:
    """Topics of the titles that have any, and all titles' ids."""
    table = _read(file, ("item_id",), ("topics", "genres"))
    ids = [str(one) for one in table.column("item_id").to_pylist()]
    name = next((name for name in ("topics", "genres") if name in table.column_names), None)
    if name is None:
        return {}, set(ids)
    cells = table.column(name).to_pylist()
    split = (cell.split("|") if isinstance(cell, str) else [str(one) for one in cell or ()] for cell in cells)
    of_item = {
        item: [one for one in topics if one and not one.startswith("(")]
        for item, topics in zip(ids, split, strict=True)
    }
    return of_item, set(ids)


def _bits(item_ids: tuple[str, ...], topics: dict[str, list[str]]) -> U64:
    """(n_items, words) uint64."""
    numbers = {one: bit for bit, one in enumerate(sorted({one for item in item_ids for one in topics.get(item, ())}))}
    words = np.zeros((len(item_ids), -(-len(numbers) // 64)), dtype=np.uint64)
    for row, item in enumerate(item_ids):
        for one in topics.get(item, ()):
            bit = numbers[one]
            words[row, bit // 64] |= np.uint64(1 << (bit % 64))
    return words
