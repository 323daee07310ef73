"""What goes with each title: what is likely watched after it, most likely first. Made at night, published with the factors.

A list is a property of the generation and of a title, not of a viewer: it costs nothing per play and no byte per viewer, and whoever shows
it has only to leave out what must not be shown to this one. Bytes in, bytes out, as `table_files.py`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from contracts.errors import GenerationError
from embeddings.roots import FOREIGN, read_table
from embeddings.tables import F32, I32, I64

COMPANIONS = "companions.parquet"

KEPT = 48
"""Of each title: a strip of twenty, with as many again that a viewer may have watched, hidden, or not be old enough for."""

_SCHEMA = pa.schema(
    [
        pa.field("items", pa.list_(pa.int32()), nullable=False),
        pa.field("score", pa.list_(pa.float32()), nullable=False),
    ]
)


class Lists(NamedTuple):
    """Of row i the entries starts[i] ≤ e < starts[i + 1], by falling score. `starts`: (n_items + 1,) int64. `items`: (entries,) int32.
    `score`: (entries,) float32."""

    starts: I64
    items: I32
    score: F32


@dataclass(frozen=True, eq=False)
class Companions:
    """The lists, by id. Row i is `item_ids[i]`. Immutable."""

    item_ids: Sequence[str] = ()
    lists: Lists = field(
        default_factory=lambda: Lists(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    )
    index: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", {item_id: row for row, item_id in enumerate(self.item_ids)})

    def of(self, item_id: str) -> list[tuple[str, float]]:
        """(id, score), best first; of a title that there is no list of, nothing. Scores are rounded to float16, as those of a viewer's row
        are: of so few numbers a page keeps the text."""
        row = self.index.get(item_id)
        if row is None:
            return []
        start, stop = self.lists.starts[row : row + 2].tolist()
        rows, scores = self.lists.items[start:stop].tolist(), self.lists.score[start:stop].astype(np.float16).tolist()
        return [(self.item_ids[other], score) for other, score in zip(rows, scores, strict=True)]


def companion_bytes(lists: Lists) -> bytes:
    """What is written: `COMPANIONS`."""
    starts = pa.array(lists.starts.astype(np.int32), pa.int32())
    columns = [pa.ListArray.from_arrays(starts, pa.array(values)) for values in (lists.items, lists.score)]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=_SCHEMA), out, compression="zstd")
    return out.getvalue()


def parse_companions(data: bytes, n_items: int, where: str) -> Lists:
    """Errors: `GenerationError` for what is none, or names a title that there is not."""
    try:
        table = read_table(data, n_items)
        if not table.schema.equals(_SCHEMA):
            raise ValueError(f"other columns than {', '.join(_SCHEMA.names)}")
        items, score = (table.column(name).combine_chunks() for name in _SCHEMA.names)
        if any(column.null_count or column.values.null_count for column in (items, score)):
            raise ValueError("a value is missing")
        starts = items.offsets.to_numpy().astype(np.int64)
        if not np.array_equal(starts, score.offsets.to_numpy()) or len(starts) != n_items + 1:
            raise ValueError("lists of one row differ in length, or are not one a title")
        found = Lists(starts, np.array(items.values.to_numpy()), np.array(score.values.to_numpy()))
        if len(found.items) and not 0 <= int(found.items.min()) <= int(found.items.max()) < n_items:
            raise ValueError("names a title that there is not")
        if not (np.abs(found.score) <= np.finfo(np.float16).max).all():
            raise ValueError("holds NaN, infinity or a score that is none")
    except FOREIGN as error:
        raise GenerationError(f"{where}/{COMPANIONS}: {error}; publish the generation again") from error
    return found
