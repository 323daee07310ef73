"""Plays in time order, as arrays: what is counted for a generation's tables, and what the ranker is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from batch.interactions import COLUMNS, F32, I32, I64, PLAY_KIND_NAMES, Codes, play_columns
from batch.lake import Lake
from viewers.signals import play_strengths


@dataclass(frozen=True, eq=False, slots=True)
class PlayLog:
    """n plays that say something about taste, oldest first; items are numbered by first appearance.

    `viewer`, `item`: (n,) int32. `time_ms`: (n,) int64, ascending. `digest`: (n,) int64 of the play's id, by which a state orders plays
    of one millisecond. `strength`: (n,) float32, not 0. `item_ids`: by number.
    """

    viewer: I32
    item: I32
    time_ms: I64
    digest: I64
    strength: F32
    item_ids: Sequence[str]

    previous: I64 = field(init=False, repr=False)  # (n,) the viewer's play before, −1 for none
    is_first: NDArray[np.bool_] = field(init=False, repr=False)  # (n,) the viewer's first of that item

    def __post_init__(self) -> None:
        order = np.argsort(self.viewer, kind="stable")
        previous: I64 = np.full(len(order), -1, np.int64)
        same = self.viewer[order[1:]] == self.viewer[order[:-1]]
        previous[order[1:][same]] = order[:-1][same]
        pair = self.viewer.astype(np.int64) * max(1, len(self.item_ids)) + self.item
        is_first = np.zeros(len(order), np.bool_)
        is_first[np.unique(pair, return_index=True)[1]] = True
        object.__setattr__(self, "previous", previous)
        object.__setattr__(self, "is_first", is_first)

    def __len__(self) -> int:
        return len(self.time_ms)

    def first(self, count: int) -> PlayLog:
        """The first `count` plays, as if nothing had happened since."""
        return PlayLog(
            self.viewer[:count],
            self.item[:count],
            self.time_ms[:count],
            self.digest[:count],
            self.strength[:count],
            self.item_ids[: self.n_items(count)],
        )

    def n_items(self, count: int) -> int:
        """How many items were known after so many plays."""
        return int(self.item[:count].max(initial=-1)) + 1

    def popularity(self, count: int) -> F32:
        """(n_items(count),): liked plays of the first `count`, one a viewer and item."""
        counted = self.is_first[:count] & (self.strength[:count] > 0)
        weights = self.strength[:count][counted]
        summed = np.bincount(self.item[:count][counted], weights=weights, minlength=self.n_items(count))
        result: F32 = summed.astype(np.float32)
        return result


def read_play_log(lake: Lake) -> PlayLog:
    """Every play in the lake whose share and flags say something. Errors: `DataError`."""
    viewers, items = Codes(), Codes()
    batches = []
    for batch in lake.batches("events", COLUMNS):
        batch = batch.filter(pc.is_in(batch.column("kind"), value_set=PLAY_KIND_NAMES))
        if batch.num_rows:
            batches.append(play_columns(batch, viewers, items))
    if not batches:
        nothing: Any = np.zeros(0, np.int32)
        return PlayLog(
            nothing, nothing, nothing.astype(np.int64), nothing.astype(np.int64), np.zeros(0, np.float32), ()
        )
    viewer, item, start, digest, share, flags = (np.concatenate(column) for column in zip(*batches, strict=True))
    order = np.lexsort((item, viewer, digest, start))
    columns: list[NDArray[Any]] = [c[order] for c in (start, digest, viewer, item)]
    new = np.zeros(len(order), np.bool_)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    first = np.flatnonzero(new)  # of each play's events
    strength = play_strengths(np.maximum.reduceat(share[order], first), np.bitwise_or.reduceat(flags[order], first))
    kept = first[strength != 0]
    start, digest, viewer, item = (column[kept] for column in columns)
    codes, item = number_by_appearance(item)
    ids = list(items.ids)
    return PlayLog(viewer, item, start, digest, strength[strength != 0], [ids[code] for code in codes.tolist()])


def number_by_appearance(item: I32) -> tuple[I64, I32]:
    """(old numbers in order of first appearance, the items by their new numbers)."""
    codes, first, inverse = np.unique(item, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    new = np.empty(len(codes), np.int32)
    new[order] = np.arange(len(codes), dtype=np.int32)
    return codes[order].astype(np.int64), new[inverse.reshape(-1)]
