"""Vectors of items that the generation has none of: from their content at first, then from who watched them. Pure.

By what is known of an item: titles that share its topics or creators, whose factors' mean it takes, a rare one counting more than a common
one, at the mean length of those factors (a mean of many is shorter than any of them, and would never be anybody's best).

By its first viewers: the step of ALS that the night will take (Hu, Koren, Volinsky 2008), against the viewers' vectors X,

    y = (XᵀX + λI + Σ_u (c_u − 1) x_u x_uᵀ)⁻¹ Σ_u c_u x_u        c_u = 1 + α

where XᵀX is of all viewers whom the generation knows. n viewers' vector counts n : `CONTENT_WEIGHT` against what the content says, and
none is longer than the longest of the generation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from contracts.catalogue import CatalogueItem
from embeddings.added import Added
from embeddings.generation import F32, F64, NEVER_MS, FoldInParameters
from embeddings.tables import WEEK
from trends.counters import FANS, Counts

CONTENT_WEIGHT = 2.0
"""Viewers that the content is worth."""


@dataclass(frozen=True, eq=False, slots=True)
class Content:
    """`vectors`: topic or creator → (k,) mean of the factors of the titles that have it; `lengths`: their mean length; `weights`: how much
    it tells."""

    vectors: Mapping[str, F64]
    lengths: Mapping[str, float]
    weights: Mapping[str, float]

    def vector(self, item: CatalogueItem) -> F64 | None:
        """(k,); None if nothing is known of anything like it."""
        known = [one for one in _marks(item) if one in self.vectors]
        if not known:
            return None
        weights = np.array([self.weights[one] for one in known])
        mean: F64 = weights @ np.stack([self.vectors[one] for one in known])
        length = float(weights @ [self.lengths[one] for one in known]) / float(weights.sum())
        norm = float(np.linalg.norm(mean))
        return mean * (length / norm) if norm > 0 else None


def content_of(items: Sequence[CatalogueItem], Y: F32) -> Content:
    """What the titles that have a vector say. `items`: (n_items,). `Y`: (n_items, k) float32, one row per item."""
    rows_of: dict[str, list[int]] = {}
    norms = np.linalg.norm(Y, axis=1)
    for row in np.flatnonzero(norms > 0).tolist():
        for mark in _marks(items[row]):
            rows_of.setdefault(mark, []).append(row)
    n = len(Y)
    return Content(
        {mark: Y[rows].mean(axis=0, dtype=np.float64) for mark, rows in rows_of.items()},
        {mark: float(norms[rows].mean(dtype=np.float64)) for mark, rows in rows_of.items()},
        {mark: math.log1p(n / len(rows)) for mark, rows in rows_of.items()},
    )


def _marks(item: CatalogueItem) -> list[str]:
    """Topics and creators, told apart."""
    return [*(f"t {one}" for one in item.topics), *(f"c {one}" for one in item.creators)]


@dataclass(frozen=True, eq=False, slots=True)
class ItemFold:
    """What the generation gives to fold items in. `XtX`: (k, k) float64, of the viewers that it knows. `longest`: norm of an item at
    most."""

    XtX: F64
    parameters: FoldInParameters
    longest: float

    def vector(self, X: F64, content: F64 | None) -> F32:
        """(k,) float32 of an item. `X`: (n, k) float64, vectors of who watched it. `content`: (k,), what is known beside."""
        n, k = X.shape
        p = self.parameters
        y = np.zeros(k)
        if n:
            A = self.XtX + p.regularization * np.eye(k) + p.alpha * (X.T @ X)
            y = np.linalg.solve(A, (1 + p.alpha) * X.sum(axis=0))
        if content is not None:
            y = (n * y + CONTENT_WEIGHT * content) / (n + CONTENT_WEIGHT)
        norm = float(np.linalg.norm(y))
        return (y * min(1.0, self.longest / norm) if norm > 0 else y).astype(np.float32)


def item_fold(X: F32, Y: F32, parameters: FoldInParameters, viewers: int | None = None) -> ItemFold:
    """`X`: (n, k) float32, viewers' vectors. `Y`: (n_items, k) float32. `viewers`: how many the n stand for; None: themselves."""
    scale = 1.0 if viewers is None or not len(X) else viewers / len(X)
    longest = float(np.sqrt(np.einsum("ij,ij->i", Y, Y, dtype=np.float64).max(initial=0.0)))
    return ItemFold(scale * (X.T.astype(np.float64) @ X.astype(np.float64)), parameters, longest)


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item that is to be added, with what all partitions counted of it. `fans`: who watched it, at most `FANS`."""

    item: CatalogueItem
    plays: int
    fans: tuple[str, ...]


def choose(partitions: Mapping[int, Counts], titles: Mapping[str, CatalogueItem] | None, most: int) -> list[NewItem]:
    """The items to add, in the order of their ids. `titles`: those that may be shown, by id; None: there is no catalogue, and what is
    played is shown under its id. The most played of late are taken, of equals the newest."""
    plays: dict[str, int] = {}
    lately: dict[str, float] = {}
    fans: dict[str, list[list[str]]] = {}
    clock_ms = max((counts.landmark_ms for counts in partitions.values()), default=0)
    for _, counts in sorted(partitions.items()):
        age = (clock_ms - counts.landmark_ms) / (7 * 86_400_000) if counts.landmark_ms else 0.0
        for item_id, title in counts.new.items():
            plays[item_id] = plays.get(item_id, 0) + int(title.sums[0])
            lately[item_id] = lately.get(item_id, 0.0) + title.sums[1 + WEEK] * 2.0 ** -min(age, 900.0)
            fans.setdefault(item_id, []).append(list(title.fans))
    if titles is None:
        titles = {item_id: CatalogueItem(item_id, item_id) for item_id in plays}
    order = sorted(titles.values(), key=lambda one: (-lately.get(one.item_id, 0.0), -_since_ms(one), one.item_id))
    chosen = sorted(order[:most], key=lambda one: one.item_id)
    return [NewItem(one, plays.get(one.item_id, 0), _newest(fans.get(one.item_id, []))) for one in chosen]


def _since_ms(item: CatalogueItem) -> int:
    return item.released_at_ms or item.available_from_ms or 0


def _newest(by_partition: Iterable[list[str]]) -> tuple[str, ...]:
    """The last of each partition in turn, as nobody says whose play is newer."""
    lists = [list(one) for one in by_partition]
    found: list[str] = []
    while len(found) < FANS and any(lists):
        found += [one.pop() for one in lists if one]
    return tuple(dict.fromkeys(found[:FANS]))


def added_of(items: Sequence[NewItem], vectors: Mapping[str, F32], k: int) -> Added:
    """As they are served. `vectors`: of those that have one; the others are found by their trend alone."""
    of = [one.item for one in items]
    none = np.zeros(k, np.float32)
    factors = [vectors.get(one.item_id, none) for one in of]
    return Added(
        tuple(one.item_id for one in of),
        np.stack(factors).astype(np.float16).astype(np.float32) if of else np.zeros((0, k), np.float32),
        np.array([one.plays for one in items], np.float32),
        np.array([one.available_from_ms or 0 for one in of], np.int64),
        np.array([NEVER_MS if one.available_until_ms is None else one.available_until_ms for one in of], np.int64),
        np.array([min(max(one.maturity, 0), 255) for one in of], np.uint8),
    )
