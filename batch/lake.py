"""The lake: every public event, impression and catalogue record, as Parquet on disk.

    <lake>/events/dt=YYYY-MM-DD/hour=HH/<plan>-<chunk>.parquet        by event time, UTC, zstd
    <lake>/impressions/dt=YYYY-MM-DD/hour=HH/…                        by the time served
    <lake>/catalogue/<plan>-<chunk>.parquet                           every version of every title, in topic order
    <lake>/plans/…                                                    what each copy covers (`batch/copy.py`)
    <lake>/reports/…                                                  what each night did to the rows (`batch/review`)
    <lake>/erasures.jsonl, lake.key                                   who must be left out (`batch/erasures.py`)

Reads are projected to the columns asked for and come in batches; every read leaves out what an erasure covers. `scrub` removes
it from the files as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batch.erasures import Ledger, load_key
from contracts.catalogue import CatalogueItem
from contracts.errors import DataError
from embeddings.files import catalogue_item
from embeddings.roots import flush_folder, write_file
from runtime.settings import Settings

_RECORD = [
    pa.field("epoch", pa.int32(), nullable=False),
    pa.field("partition", pa.int32(), nullable=False),
    pa.field("offset", pa.int64(), nullable=False),
    pa.field("timestamp_ms", pa.int64(), nullable=False),
]
"""Where a row comes from: stream epoch, topic partition, offset, and the record's own timestamp."""

EVENTS_SCHEMA = pa.schema(
    [
        *_RECORD,
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("viewer", pa.string(), nullable=False),
        pa.field("event_time_ms", pa.int64(), nullable=False),
        pa.field("item_id", pa.string()),
        pa.field("play_id", pa.string()),
        pa.field("play_started_at_ms", pa.int64()),
        pa.field("watched_ms", pa.int64()),
        pa.field("duration_ms", pa.int64()),
        pa.field("value", pa.int32()),
        pa.field("preference", pa.string()),
        pa.field("row_id", pa.string()),
        pa.field("row_position", pa.int32()),
    ]
)
IMPRESSIONS_SCHEMA = pa.schema(
    [
        *_RECORD,
        pa.field("impression_id", pa.string(), nullable=False),
        pa.field("viewer", pa.string(), nullable=False),
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("generation_id", pa.string(), nullable=False),
        pa.field("served_at_ms", pa.int64(), nullable=False),
        pa.field("default_row", pa.bool_(), nullable=False),
        pa.field("item_ids", pa.list_(pa.string()), nullable=False),
    ]
)
CATALOGUE_SCHEMA = pa.schema(
    [
        *_RECORD,
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("deleted", pa.bool_(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("topics", pa.list_(pa.string())),
        pa.field("creators", pa.list_(pa.string())),
        pa.field("duration_ms", pa.int64()),
        pa.field("maturity", pa.int64()),
        pa.field("territories", pa.list_(pa.string())),
        pa.field("available_from_ms", pa.int64()),
        pa.field("available_until_ms", pa.int64()),
        pa.field("released_at_ms", pa.int64()),
        pa.field("taken_down", pa.bool_()),
    ]
)
SCHEMAS = {"events": EVENTS_SCHEMA, "impressions": IMPRESSIONS_SCHEMA, "catalogue": CATALOGUE_SCHEMA}
TIMES = {"events": ("play_started_at_ms", "event_time_ms"), "impressions": ("served_at_ms",)}
"""Kind → the columns that say when a row happened, for erasures: the first one that is not null."""

HOUR_MS = 3_600_000
BATCH_ROWS = 65_536
SCRUBBED = "scrubbed.json"


@dataclass(frozen=True, slots=True)
class ScrubReport:
    """What a scrub removed. `rows`: kind → rows. `files`: files rewritten or removed. `due`: False if no erasure was new."""

    rows: dict[str, int]
    files: int
    due: bool


class Lake:
    """A lake in a local folder. One writer at a time (`batch/nightly.py` holds the lock); any number of readers."""

    def __init__(self, path: str | Path, *, key: str | None = None) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.ledger = Ledger(self.path, load_key(self.path, key))
        except OSError as error:
            raise DataError(
                f"{self.path}: the lake cannot be opened ({error}); name a folder that can be written"
            ) from error

    def files(self, kind: str) -> list[Path]:
        """Every data file of a kind, by name within its hour."""
        return sorted(path for path in (self.path / kind).rglob("*.parquet") if not path.name.startswith("."))

    def batches(self, kind: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Rows of a kind in batches of some 100,000, erased ones left out. Memory is bounded by the batch.

        The columns that erasures are decided by are read too, and handed over if asked for. Errors: `DataError`.
        """
        needed = [*columns]
        if kind in TIMES and len(self.ledger):
            needed += [name for name in ("viewer", *TIMES[kind]) if name not in needed]
        files = self.files(kind)
        if not files:
            return
        try:
            dataset = ds.dataset([str(file) for file in files], schema=SCHEMAS[kind], format="parquet")
            for batch in _gathered(dataset.to_batches(columns=needed, batch_readahead=8, fragment_readahead=8)):
                kept = self._without_erased(kind, batch)
                if kept.num_rows:
                    yield kept.select(list(columns))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path / kind}: unreadable ({error}); restore the file from a backup") from error

    def count(self, kind: str) -> int:
        """Rows of a kind in the files, erased ones that are not scrubbed yet included: read from the footers alone."""
        return sum(pq.ParquetFile(file).metadata.num_rows for file in self.files(kind))

    def catalogue(self) -> list[CatalogueItem]:
        """The latest version of every title that was not deleted, by id.

        Files are read in the order of their plans and chunks, and within one by partition and offset: of a partition the last row
        read is the latest, whatever producers' clocks said. Only between partitions (their number was raised) the times decide.
        """
        latest: dict[tuple[str, int], dict[str, Any]] = {}  # (title, partition)
        for batch in self.batches("catalogue", CATALOGUE_SCHEMA.names):
            for row in batch.to_pylist():
                latest[row["item_id"], row["partition"]] = row
        titles: dict[str, dict[str, Any]] = {}
        for (item_id, _), row in latest.items():
            known = titles.get(item_id)
            if known is None or row["timestamp_ms"] > known["timestamp_ms"]:
                titles[item_id] = row
        return [catalogue_item(row) for _, row in sorted(titles.items()) if not row["deleted"]]

    def scrub(self) -> ScrubReport:
        """Remove from the files what erasures cover. Skipped if no erasure came since `note_scrubbed`.

        Each file is written anew beside, flushed, renamed: a crash leaves old or new files, and the next scrub ends it.
        """
        rows = dict.fromkeys(TIMES, 0)
        rewritten = 0
        if self.ledger.lines == self._scrubbed_lines():
            return ScrubReport(rows, 0, due=False)
        for kind in TIMES:
            for file in self.files(kind):
                removed = self._scrub_file(kind, file)
                rows[kind] += removed
                rewritten += removed > 0
        return ScrubReport(rows, rewritten, due=True)

    def note_scrubbed(self) -> None:
        """Everything that the ledger covers as it is known here is gone: from the files and from wherever else it has to go."""
        write_atomically(self.path / SCRUBBED, json.dumps({"lines": self.ledger.lines}).encode())

    def erased(self, kind: str, batch: Any) -> NDArray[np.bool_]:
        """(n,) bool: rows that an erasure covers. `batch` has the viewer's and the time columns."""
        if kind not in TIMES or not len(self.ledger) or not batch.num_rows:
            return np.zeros(batch.num_rows, dtype=np.bool_)
        viewers = _column(batch, "viewer").dictionary_encode()
        through = self.ledger.through_s_of(viewers.dictionary.to_pylist())[viewers.indices.to_numpy()]
        times = np.full(batch.num_rows, -1, dtype=np.int64)
        for name in reversed(TIMES[kind]):
            column = _column(batch, name)
            given = column.is_valid().to_numpy(zero_copy_only=False)
            times[given] = column.fill_null(0).to_numpy()[given]
        result: NDArray[np.bool_] = times // 1000 <= through
        return result

    def _without_erased(self, kind: str, batch: Any) -> Any:
        erased = self.erased(kind, batch)
        return batch.filter(pa.array(~erased)) if erased.any() else batch

    def _scrub_file(self, kind: str, file: Path) -> int:
        columns = ["viewer", *TIMES[kind]]
        try:
            erased = self.erased(kind, pq.ParquetFile(file).read(columns=columns))
            removed = int(erased.sum())
            if not removed:
                return 0
            kept = pq.ParquetFile(file).read().filter(pa.array(~erased))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file}: unreadable ({error}); restore the file from a backup") from error
        if kept.num_rows:
            write_parquet(file, kept)
        else:
            file.unlink()
            flush_folder(file.parent)
        return removed

    def _scrubbed_lines(self) -> int:
        try:
            return int(json.loads((self.path / SCRUBBED).read_text())["lines"])
        except (FileNotFoundError, ValueError, KeyError):
            return 0  # never, or unreadable: scrub again


def open_lake(settings: Settings) -> Lake:
    """The configured lake."""
    key = settings.lake_key
    return Lake(settings.lake_path, key=None if key is None else key.get_secret_value())


def hour_folder(kind: str, hour: int) -> str:
    """`events/dt=YYYY-MM-DD/hour=HH` of an hour (hours since 1970)."""
    day = np.datetime_as_string(np.datetime64(hour // 24, "D"))
    return f"{kind}/dt={day}/hour={hour % 24:02d}"


def write_parquet(path: Path, table: Any) -> None:
    """Write a Parquet file (zstd) beside, flush it, rename it: whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as out:
        pq.write_table(table, out, compression="zstd")
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file beside, flush it, rename it, and make the renaming durable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    write_file(temporary, data)
    temporary.replace(path)
    flush_folder(path.parent)


def _gathered(batches: Iterator[Any]) -> Iterator[Any]:
    """The same rows in batches of at least `BATCH_ROWS`: an hour of a small service is a file of a few rows."""
    waiting: list[Any] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        if rows >= BATCH_ROWS:
            yield pa.concat_batches(waiting)
            waiting, rows = [], 0
    if rows:
        yield pa.concat_batches(waiting)


def _column(batch: Any, name: str) -> Any:
    column = batch.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
