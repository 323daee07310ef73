"""Public data sets from their files: MovieLens in all its layouts, and any table of (user, item, time, value).

Each reader returns a `Dataset` (columns in time order). What cannot be read is counted by reason and the first few are shown with
file and line: nothing is dropped silently, and a file in which nothing can be read is an error.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts.catalogue import CatalogueItem
from contracts.errors import DataError
from contracts.events import valid_id
from sandbox.datasets import DURATION_MS, Dataset, PlayRule, RowCollector, plays, to_events

__all__ = ["EVENT_COLUMNS", "Dataset", "PlayRule", "read_events", "read_movielens", "to_events", "write_dataset"]

EVENT_COLUMNS: Mapping[str, str] = {"user": "user_id", "item": "item_id", "time": "timestamp", "value": "value"}
"""Column names that `read_events` looks for; `value` may be absent."""

_YEAR = re.compile(r"\((\d{4})\)\s*$")
_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


def read_movielens(path: Path | str) -> Dataset:
    """A MovieLens folder: 1M and 10M (`ratings.dat`), 20M and later or latest (`ratings.csv`), 100K (`u.data`).

    Raises `DataError` if it is none of these or nothing in it can be read."""
    folder = Path(path)
    for ratings, titles, read_ratings, read_titles in _LAYOUTS:
        if (folder / ratings).is_file():
            rows = RowCollector(folder.resolve().name)
            if not (folder / titles).is_file():
                raise DataError(f"{folder / titles}: missing beside {ratings}; unpack the whole archive")
            known = {item.item_id: item for item in read_titles(folder / titles, rows)}
            for line, user, item, time_s, value in read_ratings(folder / ratings, rows):
                rows.add(folder / ratings, line, user, item, time_s, value, scale_ms=1000)
            return rows.dataset(folder / ratings, known, is_rating=True)
    names = ", ".join(layout[0] for layout in _LAYOUTS)
    raise DataError(f"{folder}: no MovieLens folder (none of {names} in it); unpack the archive and name its folder")


def read_events(
    path: Path | str,
    *,
    items: Path | str | None = None,
    columns: Mapping[str, str] = EVENT_COLUMNS,
    is_rating: bool = False,
) -> Dataset:
    """A table of plays, `.parquet` or `.csv` with a header; times in ms since 1970 (UTC).

    `path` may be a folder that holds `events.parquet` (and `items.parquet`). `columns` maps user, item, time and value to the
    table's names. `items`: a table of the same kind with item_id, title and genres or topics. Raises `DataError`.
    """
    file = Path(path)
    if file.is_dir():
        items = items or next((one for one in (file / "items.parquet", file / "items.csv") if one.exists()), None)
        file = file / "events.parquet" if (file / "events.parquet").exists() else file / "events.csv"
    names = {**EVENT_COLUMNS, **columns}
    rows = RowCollector(file.resolve().parent.name if file.stem == "events" else file.stem)
    known = {item.item_id: item for item in _table_items(Path(items), rows)} if items is not None else {}
    for line, cells in _table(file, required=[names["user"], names["item"], names["time"]]):
        value = cells.get(names["value"])
        rows.add(file, line, cells[names["user"]], cells[names["item"]], cells[names["time"]], value, scale_ms=1)
    return rows.dataset(file, known, is_rating=is_rating)


def write_dataset(dataset: Dataset, folder: Path | str, rule: PlayRule | None = None) -> int:
    """Write the plays as `events.parquet` and the titles as `items.parquet`, as `read_events` reads them.

    Ratings below the rule's threshold are left out, so every row written is a play; returns how many. Each file is replaced
    whole; a crash in between leaves one old and one new file, and writing again mends it."""
    target = Path(folder)
    chosen = plays(dataset, rule)
    viewers, ids = pa.array(dataset.viewers), pa.array([item.item_id for item in dataset.items])
    events = {
        "user_id": viewers.take(pa.array(dataset.viewer[chosen])),
        "item_id": ids.take(pa.array(dataset.item[chosen])),
        "timestamp": pa.array(dataset.time_ms[chosen]),
        "value": pa.array(dataset.value[chosen], from_pandas=True),
    }
    items = {
        "item_id": ids,
        "title": [item.title for item in dataset.items],
        "topics": [list(item.topics) for item in dataset.items],
    }
    target.mkdir(parents=True, exist_ok=True)
    for name, columns in (("items", items), ("events", events)):
        temporary = target / f"{name}.parquet.tmp"
        pq.write_table(pa.table(columns), temporary, compression="zstd")
        temporary.replace(target / f"{name}.parquet")
    return len(events["timestamp"])


# MovieLens. A rating reader yields (line, user, item, seconds, value) as text; a title reader yields items.

RatingLine = tuple[int, str, str, str, str]


def _split_ratings(separator: str, encoding: str) -> Callable[[Path, RowCollector], Iterator[RatingLine]]:
    def read(file: Path, rows: RowCollector) -> Iterator[RatingLine]:
        with file.open(encoding=encoding, errors="replace", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                parts = line.rstrip("\r\n").split(separator)
                if len(parts) == 4:
                    yield number, parts[0], parts[1], parts[3], parts[2]
                else:
                    rows.reject(file, number, f"{len(parts)} fields instead of 4")

    return read


def _csv_ratings(file: Path, rows: RowCollector) -> Iterator[RatingLine]:
    for number, cells in _table(file, required=["userId", "movieId", "rating", "timestamp"]):
        yield number, cells["userId"], cells["movieId"], cells["timestamp"], cells["rating"]


def _dat_titles(file: Path, rows: RowCollector) -> Iterator[CatalogueItem]:
    """`1::Toy Story (1995)::Animation|Comedy`; Latin-1 in 1M, UTF-8 in 10M."""
    for number, line in enumerate(_decode(file.read_bytes()).splitlines(), 1):
        parts = line.split("::")
        if len(parts) != 3 or not valid_id(parts[0]):
            rows.reject(file, number, f"a title needs 3 fields, here {len(parts)}")
            continue
        yield _title(parts[0], parts[1], parts[2])


def _csv_titles(file: Path, rows: RowCollector) -> Iterator[CatalogueItem]:
    for number, cells in _table(file, required=["movieId", "title", "genres"]):
        if valid_id(cells["movieId"]):
            yield _title(cells["movieId"], cells["title"] or cells["movieId"], cells["genres"] or "")
        else:
            rows.reject(file, number, "a title without an id")


def _item_titles(file: Path, rows: RowCollector) -> Iterator[CatalogueItem]:
    """`1|Toy Story (1995)|01-Jan-1995||http://…|0|0|0|1|…` with 19 genre flags; Latin-1."""
    for number, line in enumerate(_decode(file.read_bytes()).splitlines(), 1):
        parts = line.split("|")
        if len(parts) != 5 + len(_GENRES_100K) or not valid_id(parts[0]):
            rows.reject(file, number, f"a title needs {5 + len(_GENRES_100K)} fields, here {len(parts)}")
            continue
        genres = [name for name, flag in zip(_GENRES_100K[1:], parts[6:], strict=True) if flag == "1"]
        yield _title(parts[0], parts[1], "|".join(genres))


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _title(item_id: str, title: str, genres: str) -> CatalogueItem:
    """A film; its year stands in the title, `(no genres listed)` means none."""
    year = _YEAR.search(title)
    released_ms = None
    if year and 1880 <= int(year[1]) <= 2100:
        released_ms = int(datetime(int(year[1]), 1, 1, tzinfo=UTC).timestamp() * 1000)
    topics = tuple(name for name in genres.split("|") if name and not name.startswith("("))
    return CatalogueItem(item_id, title, topics, duration_ms=DURATION_MS, released_at_ms=released_ms)


_LAYOUTS: tuple[
    tuple[
        str,
        str,
        Callable[[Path, RowCollector], Iterator[RatingLine]],
        Callable[[Path, RowCollector], Iterator[CatalogueItem]],
    ],
    ...,
] = (
    ("ratings.dat", "movies.dat", _split_ratings("::", "latin-1"), _dat_titles),
    ("ratings.csv", "movies.csv", _csv_ratings, _csv_titles),
    ("u.data", "u.item", _split_ratings("\t", "latin-1"), _item_titles),
)
"""Ratings file, titles file, and their readers. In every layout times are in seconds."""


# Tables: Parquet, or CSV with a header.


def _table(file: Path, *, required: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line or row number from 1, cells by column name); raises `DataError` if a required column is missing."""
    try:
        if file.suffix == ".parquet":
            yield from _parquet_rows(file, required)
        else:
            yield from _csv_rows(file, required)
    except (OSError, pa.ArrowException, csv.Error) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error


def _parquet_rows(file: Path, required: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    with pq.ParquetFile(file) as table:
        _require(file, required, table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches():
            columns = {name: _plain(batch.column(name)) for name in batch.schema.names}
            for values in zip(*columns.values(), strict=True):
                number += 1
                yield number, dict(zip(columns, values, strict=True))


def _plain(column: pa.Array) -> list[Any]:
    """A column as Python values; timestamps of any unit as whole milliseconds."""
    if pa.types.is_timestamp(column.type):
        column = pc.cast(column, pa.timestamp("ms"), safe=False).cast(pa.int64())
    values: list[Any] = column.to_pylist()
    return values


def _csv_rows(file: Path, required: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        reader = csv.reader(lines)
        header = next(reader, [])
        _require(file, required, header)
        for cells in reader:
            # A short line lacks its last cells: they are empty, and the row is rejected for what it lacks.
            yield reader.line_num, dict(zip(header, cells + [""] * (len(header) - len(cells)), strict=False))


def _require(file: Path, required: Sequence[str], present: Sequence[str]) -> None:
    missing = [name for name in required if name not in present]
    if missing:
        raise DataError(
            f"{file}: no column {', '.join(missing)} (it has {', '.join(present) or 'none'}); map the names to its columns"
        )


def _table_items(file: Path, rows: RowCollector) -> Iterator[CatalogueItem]:
    for number, cells in _table(file, required=["item_id", "title"]):
        item_id = rows.identify(cells["item_id"], "item")
        if item_id is None:
            rows.reject(file, number, "a title without a usable id")
            continue
        topics = cells.get("topics") or cells.get("genres") or ""
        genres = topics if isinstance(topics, str) else "|".join(str(name) for name in topics)
        yield _title(item_id, str(cells["title"] or item_id), genres)
