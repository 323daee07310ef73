"""A data set of plays in memory, and the playback events that players would have sent for it.

Columns, because the larger public sets have tens of millions of rows. Event and play ids come from the data set's name and the
row's number in its file: a second replay changes nothing.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from contracts.catalogue import CatalogueItem
from contracts.errors import DataError
from contracts.events import EARLIEST_TIME_MS, Kind, PlaybackEvent, valid_id

DURATION_MS = 100 * 60 * 1000
"""Length given to every title, ms: the data sets do not know it, and a play must have one."""

EXAMPLES_SHOWN = 5
"""Bad lines shown with file and line; the rest are counted."""

LATEST_TIME_MS = 4_102_444_800_000
"""2100-01-01: later times are a unit error."""


_OUTSIDE_ALPHABET = re.compile(r"[^A-Za-z0-9._:|@-]")  # without ~, which marks an encoded character

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rejected:
    """What could not be used: reason → how often, and the first few as `file:line: reason`."""

    counts: Mapping[str, int]
    examples: tuple[str, ...]

    @property
    def total(self) -> int:
        """Lines and rows that could not be used."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Plays in time order, as columns of equal length n, and the titles they are of.

    `viewer`, `item`: (n,) int64, indexes into `viewers` and `items`; `time_ms`: (n,) int64, ascending; `value`: (n,) float32,
    the rating, NaN where there is none; `source_row`: (n,) int64, the row's number in its file, which names it for ever.
    """

    name: str
    viewers: tuple[str, ...]
    items: tuple[CatalogueItem, ...]
    viewer: Ints
    item: Ints
    time_ms: Ints
    value: npt.NDArray[np.float32]
    source_row: Ints
    is_rating: bool
    rejected: Rejected

    def __len__(self) -> int:
        return len(self.time_ms)

    def ending_at(self, end_ms: int) -> Dataset:
        """The same plays, all moved by one amount so that the last happens at `end_ms`."""
        return replace(self, time_ms=self.time_ms + (end_ms - int(self.time_ms[-1])))


@dataclass(frozen=True, slots=True)
class PlayRule:
    """How a row becomes events. `threshold`: ratings from here on are complete plays (None: every row is one).

    `starts`: send a start before each completion. `rates`: also send every rating, mapped from `scale` (worst, best) to −100 … 100.
    """

    threshold: float | None
    starts: bool = True
    rates: bool = False
    scale: tuple[float, float] = (1.0, 5.0)


RATINGS = PlayRule(threshold=4.0)
EVERY_ROW = PlayRule(threshold=None)


def plays(dataset: Dataset, rule: PlayRule | None = None) -> npt.NDArray[np.bool_]:
    """(n,) bool: which rows are plays (None: ratings from 4 on, or every row where values are no ratings)."""
    chosen = rule or (RATINGS if dataset.is_rating else EVERY_ROW)
    if chosen.threshold is None:
        return np.ones(len(dataset), np.bool_)
    return dataset.value >= np.float32(chosen.threshold)  # NaN is below any threshold


def to_events(dataset: Dataset, rule: PlayRule | None = None) -> Iterator[PlaybackEvent]:
    """The events of the plays, in time order (None: ratings from 4 on, or every row where values are no ratings).

    A play starts and completes at its row's time: later completions would pass the plays that follow in the same sitting.
    Raises `DataError` if the data set is older than events may be: see `Dataset.ending_at`.
    """
    chosen = rule or (RATINGS if dataset.is_rating else EVERY_ROW)
    if len(dataset) and int(dataset.time_ms[0]) < EARLIEST_TIME_MS:
        raise DataError(
            f"{dataset.name}: begins before the year 2000, where no event may be; move it to end at a later time"
        )
    worst, best = chosen.scale
    columns = zip(
        dataset.viewer.tolist(), dataset.item.tolist(), dataset.time_ms.tolist(), dataset.value.tolist(),
        dataset.source_row.tolist(), strict=True,
    )  # fmt: skip
    for viewer_index, item_index, time_ms, value, row in columns:
        viewer, item = dataset.viewers[viewer_index], dataset.items[item_index]
        play_id = f"{dataset.name}:{row}"
        rated = value == value  # not NaN
        if chosen.threshold is None or (rated and value >= chosen.threshold):
            length = item.duration_ms or DURATION_MS
            play = (viewer, time_ms, False, item.item_id, play_id, time_ms)
            if chosen.starts:
                yield PlaybackEvent(f"{play_id}:s", Kind.START, *play, 0, length)
            yield PlaybackEvent(f"{play_id}:c", Kind.COMPLETE, *play, length, length)
        if chosen.rates and rated:
            share = 200 * (value - worst) / (best - worst) - 100
            yield PlaybackEvent(
                f"{play_id}:r",
                Kind.RATE,
                viewer,
                time_ms,
                item_id=item.item_id,
                value=round(min(100, max(-100, share))),
            )


def sanitise_id(text: str) -> str | None:
    """The id itself if it is one; else with each character outside the alphabet as `~` and its UTF-8 bytes in hex.

    None if nothing usable remains (empty, or longer than 128 characters). An id that holds `~` is encoded too whenever another
    character must be, so two different ids stay different."""
    if valid_id(text):
        return text
    encoded = _OUTSIDE_ALPHABET.sub(lambda hit: "".join(f"~{byte:02X}" for byte in hit[0].encode()), text)
    return encoded if valid_id(encoded) else None


@dataclass(slots=True)
class RowCollector:
    """Collects rows as columns, and what was wrong with those that are left out."""

    name: str
    viewers: dict[str, int] = field(default_factory=dict)
    items: dict[str, int] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    owners: dict[tuple[str, str], str] = field(default_factory=dict)
    viewer: array[int] = field(default_factory=lambda: array("q"))
    item: array[int] = field(default_factory=lambda: array("q"))
    time_ms: array[int] = field(default_factory=lambda: array("q"))
    value: array[float] = field(default_factory=lambda: array("f"))
    source_row: array[int] = field(default_factory=lambda: array("q"))
    counts: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def reject(self, file: Path, line: int, reason: str) -> None:
        """Count a line that cannot be used, and show it if it is among the first."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if len(self.examples) < EXAMPLES_SHOWN:
            self.examples.append(f"{file}:{line}: {reason}")

    def add(self, file: Path, line: int, user: Any, item: Any, time: Any, value: Any, *, scale_ms: int) -> None:
        """Take one row: ids as text, `time` in units of `scale_ms` milliseconds, `value` a number, empty or None."""
        viewer_id, item_id = self.identify(user, "user"), self.identify(item, "item")
        if viewer_id is None or item_id is None:
            self.reject(file, line, "user or item id is empty, too long, or clashes with another")
            return
        try:
            time_ms = int(time) * scale_ms
            number = float("nan") if value is None or value == "" else float(value)
        except (ValueError, TypeError, OverflowError):
            self.reject(file, line, "time or value is not a number")
            return
        if not 0 < time_ms < LATEST_TIME_MS:
            self.reject(file, line, "time is not between 1970 and 2100 (are the units right?)")
            return
        self.viewer.append(self.viewers.setdefault(viewer_id, len(self.viewers)))
        self.item.append(self.items.setdefault(item_id, len(self.items)))
        self.time_ms.append(time_ms)
        self.value.append(number)
        self.source_row.append(line)

    def identify(self, raw: Any, what: str) -> str | None:
        """The id for a raw one, remembered; None if it cannot be one."""
        text = "" if raw is None else str(raw)
        found = self.ids.get(text)
        if found is None:
            found = sanitise_id(text) or ""
            self.ids[text] = found
        if not found or self.owners.setdefault((what, found), text) != text:
            return None
        return found

    def dataset(self, file: Path, known: Mapping[str, CatalogueItem], *, is_rating: bool) -> Dataset:
        """Everything taken, in time order; raises `DataError` if that is nothing."""
        rejected = Rejected(dict(self.counts), tuple(self.examples))
        if not self.time_ms:
            shown = "; ".join(self.examples) or "the file is empty"
            raise DataError(f"{file}: not one row can be used: {shown}")
        times = np.frombuffer(self.time_ms, np.int64)
        order = np.argsort(times, kind="stable")
        titles = dict.fromkeys([*self.items, *known])  # played ones first, so that their indexes hold
        return Dataset(
            name=(sanitise_id(self.name) or "dataset")[:40],
            viewers=tuple(self.viewers),
            items=tuple(known.get(item_id) or CatalogueItem(item_id, item_id) for item_id in titles),
            viewer=np.frombuffer(self.viewer, np.int64)[order],
            item=np.frombuffer(self.item, np.int64)[order],
            time_ms=times[order],
            value=np.frombuffer(self.value, np.float32)[order],
            source_row=np.frombuffer(self.source_row, np.int64)[order],
            is_rating=is_rating,
            rejected=rejected,
        )
