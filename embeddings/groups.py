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
TOLD = 20_000
"""Topics and creators that a preference may be about: each takes as much memory as a title."""

Encoded = tuple[Sequence[str], I64, I64]
"""Names, and of each (title, name) the title's row and the name's number."""


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
    """(n_items,) names of each title's creators and topics."""
    return encode_groups(len(creators), _encoded(creators), _encoded(topics))


def encode_groups(n_items: int, creators: Encoded, topics: Encoded) -> Groups:
    """Names that differ only in what ids cannot hold are one group. By arrays, as there may be a million titles."""
    numbers: dict[str, int] = {}
    items, members = [], []
    n_creators = 0
    for prefix, (names, item, code) in ((CREATOR, creators), (TOPIC, topics)):
        number = np.array([numbers.setdefault(subject(prefix, name), len(numbers)) for name in names], np.int64)
        items.append(item)
        members.append(number[code])
        n_creators = n_creators or len(numbers) if prefix == CREATOR else n_creators
    pairs = np.unique(np.concatenate(items) * max(1, len(numbers)) + np.concatenate(members))
    item, member = pairs // max(1, len(numbers)), pairs % max(1, len(numbers))
    starts = np.searchsorted(item, np.arange(n_items + 1)).astype(np.int64)
    return Groups(tuple(numbers), n_creators, starts, member.astype(np.int32))


def _encoded(column: Sequence[Sequence[str] | None]) -> Encoded:
    numbers: dict[str, int] = {}
    pairs = [(row, numbers.setdefault(name, len(numbers))) for row, names in enumerate(column) for name in names or ()]
    both = np.array(pairs, np.int64).reshape(-1, 2)
    return list(numbers), both[:, 0], both[:, 1]


def typical_vectors(groups: Groups, Y: F32, popularity: F32) -> tuple[I64, F32]:
    """Groups that a preference may be about, the `TOLD` most played at most, and what stands for each: the mean vector of its `TYPICAL`
    most popular titles. (m,) ascending group numbers, (m, k) float32."""
    item = np.repeat(np.arange(len(Y)), np.diff(groups.starts))
    played = popularity[item] > 0
    item, group = item[played], groups.members[played]
    plays = np.bincount(group, popularity[item], minlength=len(groups.names))
    chosen: I64 = np.sort(np.argsort(-plays, kind="stable")[:TOLD])
    chosen = chosen[plays[chosen] > 0]
    wanted = np.isin(group, chosen)
    item, group = item[wanted], group[wanted]
    order = np.lexsort((item, -popularity[item], group))  # by group, then falling popularity, of equals the lower row
    item, group = item[order], group[order]
    first = np.searchsorted(group, chosen)
    kept = np.arange(len(group)) - np.repeat(first, np.diff([*first.tolist(), len(group)])) < TYPICAL
    item, group = item[kept], group[kept]
    starts = np.searchsorted(group, chosen)
    if not len(chosen):
        return chosen, np.zeros((0, Y.shape[1]), np.float32)
    sums = np.add.reduceat(Y[item].astype(np.float64), starts, axis=0)
    counts = np.diff([*starts.tolist(), len(group)])
    vectors: F32 = (sums / counts[:, None]).astype(np.float32)
    return chosen, vectors
