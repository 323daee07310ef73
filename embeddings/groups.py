"""Creators and topics of a generation's titles: what rules count by, and what preferences are about. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from contracts.rules import CREATOR, TOPIC, subject

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

TYPICAL = 20
"""The most popular titles of a topic or creator, whose mean stands for it."""


@dataclass(frozen=True, eq=False, slots=True)
class Groups:
    """`names`: (n_groups,) subjects, the first `n_creators` creators, the others topics. `starts`: (n_items + 1,) int64, `members`:
    (entries,) int32: item i is of the groups members[starts[i]] … members[starts[i + 1] − 1], each once."""

    names: tuple[str, ...]
    n_creators: int
    starts: I64
    members: I32

    def of(self, row: int) -> list[int]:
        """The groups of an item."""
        return self.members[self.starts[row] : self.starts[row + 1]].tolist()  # type: ignore[no-any-return]

    def longer(self, more: int) -> Groups:
        """For so many more items, of which no creator or topic is known."""
        return replace(self, starts=np.concatenate([self.starts, np.full(more, self.starts[-1])]))

    def limits(self, per_creator: int, per_topic: int) -> I64:
        """(n_groups,) int64: how many of each at most; 0: any number."""
        result = np.full(len(self.names), per_topic, np.int64)
        result[: self.n_creators] = per_creator
        return result


def make_groups(creators: Sequence[Sequence[str] | None], topics: Sequence[Sequence[str] | None]) -> Groups:
    """(n_items,) names of each title's creators and topics. Names that differ only in what ids cannot hold are one group."""
    numbers: dict[str, int] = {}
    of_items: list[list[int]] = [[] for _ in creators]
    n_creators = 0
    for prefix, column in ((CREATOR, creators), (TOPIC, topics)):
        for groups, names in zip(of_items, column, strict=True):
            for name in names or ():
                number = numbers.setdefault(subject(prefix, name), len(numbers))
                if number not in groups:
                    groups.append(number)
        n_creators = n_creators or len(numbers) if prefix == CREATOR else n_creators
    starts = np.cumsum([0, *map(len, of_items)]).astype(np.int64)
    members = np.array([number for groups in of_items for number in groups], np.int32)
    return Groups(tuple(numbers), n_creators, starts, members)


def typical_vectors(groups: Groups, Y: F32, popularity: F32) -> F32:
    """(n_groups, k) float32: the mean vector of the `TYPICAL` most popular titles of each group that were played; zero where none was."""
    item = np.repeat(np.arange(len(Y)), np.diff(groups.starts))
    played = popularity[item] > 0
    item, group = item[played], groups.members[played]
    order = np.lexsort((item, -popularity[item], group))  # by group, then falling popularity, of equals the lower row
    item, group = item[order], group[order]
    first = np.searchsorted(group, np.arange(len(groups.names)))
    kept = np.arange(len(group)) - first[group] < TYPICAL
    item, group = item[kept], group[kept]
    sums = np.zeros((len(groups.names), Y.shape[1]))
    np.add.at(sums, group, Y[item].astype(np.float64))
    counts = np.bincount(group, minlength=len(groups.names))
    result: F32 = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
    return result
