"""Items that a generation has no vector of: those that came after it, in rows behind its own, and those that nobody had played, in their
rows. Whoever is given the longer generation treats them as any item. Pure.

YᵀY stays the generation's own, as they are few beside what was trained: a viewer who has met none of them has the vector that they had
before, to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contracts.digests import item_digest
from contracts.errors import GenerationError
from contracts.events import valid_id
from embeddings.generation import F32, I64, NEVER_MS, Generation
from embeddings.tables import HALF_LIVES_DAYS, Tables


@dataclass(frozen=True, eq=False, slots=True)
class Added:
    """m items; row i of every array is `item_ids[i]`.

    `item_factors`: (m, k) float32. `popularity`: (m,) float32 ≥ 0, plays so far. `available_from_ms`, `available_until_ms`: (m,) int64.
    `maturity`: (m,) uint8.
    """

    item_ids: tuple[str, ...]
    item_factors: F32
    popularity: F32
    available_from_ms: I64
    available_until_ms: I64
    maturity: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.item_ids)

    def rows(self, index: Mapping[str, int]) -> I64:
        """(m,) their rows in the generation that is extended by them. `index`: of the generation itself."""
        n, found = len(index), []
        for item_id in self.item_ids:
            row = index.get(item_id)
            found.append(n if row is None else row)
            n += row is None
        return np.array(found, dtype=np.int64)


def unplayed(generation: Generation) -> NDArray[np.bool_]:
    """(n_items,) bool: titles that came with the catalogue alone, of which the night could learn nothing."""
    result: NDArray[np.bool_] = (generation.popularity == 0) & ~generation.item_factors.any(axis=1)
    return result


def equal(one: Added, other: Added) -> bool:
    """Whether they are the same items with the same numbers."""
    names = ("item_factors", "popularity", "available_from_ms", "available_until_ms", "maturity")
    return one.item_ids == other.item_ids and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in names
    )


def no_items(k: int = 0) -> Added:
    """None were added."""
    none: I64 = np.zeros(0, np.int64)
    return Added((), np.zeros((0, k), np.float32), np.zeros(0, np.float32), none, none, np.zeros(0, np.uint8))


def extended(generation: Generation, added: Added) -> Generation:
    """The generation with these items, for all that is derived from it too. Errors: `GenerationError` if they do not fit."""
    if not len(added):
        return generation
    rows = added.rows(generation.index)
    _check(generation, added, rows)
    new = [one for one in added.item_ids if one not in generation.index]

    def column(name: str) -> NDArray[Any]:
        """The generation's, with what was added."""
        known = getattr(generation, name)
        longer = np.concatenate([known, np.zeros((len(new), *known.shape[1:]), known.dtype)])
        longer[rows] = getattr(added, name)
        return longer

    names = ("item_factors", "popularity", "available_from_ms", "available_until_ms", "maturity")
    own: dict[str, Any] = {name: column(name) for name in names}
    digests = np.array([item_digest(one) for one in new], dtype=np.int64)
    own["item_digests"] = np.concatenate([generation.item_digests, digests])
    own["item_ids"] = (*generation.item_ids, *new)
    own["index"] = {**generation.index, **{one: row for row, one in enumerate(new, generation.n_items)}}
    own["tables"] = None if generation.tables is None else _longer(generation.tables, len(new))
    own["popular_order"] = np.argsort(-own["popularity"], kind="stable")
    top = float(np.log1p(generation.popularity.max().astype(np.float64)))
    own["popularity_score"] = np.zeros(len(own["popularity"]), np.float32)
    own["popularity_score"][: generation.n_items] = generation.popularity_score  # what is known keeps its scale
    own["popularity_score"][rows] = np.log1p(added.popularity.astype(np.float64)) / (top if top > 0 else 1.0)
    beside, told = generation.fold_factors[generation.n_items :], generation.fold_ids[generation.n_items :]
    own["fold_factors"] = np.concatenate([own["item_factors"], beside]) if told else own["item_factors"]
    own["fold_ids"] = own["item_ids"] + told
    own["told_index"] = {subject: row + len(new) for subject, row in generation.told_index.items()}
    own["groups"] = None if generation.groups is None else generation.groups.longer(len(new))
    own["windows"] = (
        [value if value > 0 else None for value in own["available_from_ms"].tolist()],
        [value if value < NEVER_MS else None for value in own["available_until_ms"].tolist()],
    )
    own["digest_order"] = np.argsort(own["item_digests"], kind="stable")
    own["sorted_digests"] = own["item_digests"][own["digest_order"]]
    longer = copy.copy(generation)
    for name, value in own.items():
        object.__setattr__(longer, name, value)
    return longer


def _longer(tables: Tables, more: int) -> Tables:
    """For so many more items: nothing follows them, nothing is known of their trend, and no sequence."""
    c, sequence = tables.cowatch, tables.sequence
    starts = np.concatenate([c.starts, np.full(more, c.starts[-1])])
    trending = np.concatenate([tables.trending, np.zeros((more, len(HALF_LIVES_DAYS)), np.float32)])
    if sequence is not None:
        n = len(sequence.bias)
        sequence = sequence.of_rows(np.arange(n), n + more)
    return replace(tables, trending=trending, cowatch=replace(c, starts=starts), sequence=sequence)


def _check(generation: Generation, added: Added, rows: I64) -> None:
    """The kernel reads all of it unchecked."""
    m, columns = len(added), ("popularity", "available_from_ms", "available_until_ms", "maturity")
    there = rows[rows < generation.n_items]
    problems = {
        "an item's id is none": not all(map(valid_id, added.item_ids)),
        "an item is there twice": len(set(added.item_ids)) != m,
        "the generation has a vector of one": not unplayed(generation)[there].all(),
        "vectors have another shape": added.item_factors.shape != (m, generation.k),
        "a column has another length": any(getattr(added, name).shape != (m,) for name in columns),
        "there is NaN, infinity or a negative number": not np.isfinite(added.item_factors).all()
        or not np.isfinite(added.popularity).all()
        or bool((added.popularity < 0).any()),
    }
    wrong = [text for text, holds in problems.items() if holds]
    if wrong:
        raise GenerationError(f"items added to generation {generation.generation_id}: {wrong[0]}")
