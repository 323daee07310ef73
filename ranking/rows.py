"""From signals to entries: candidates, scores, rules, reasons. Pure; a batch of viewers at once.

An entry's score is w · als + (1 − w) · popularity, where als = y·x, popularity is log-scaled to 0…1, and w = e² / (e² + e₀²)
grows with the evidence e (sum of positive strengths): with one or two plays plain fold-in ranks worse than popularity, with
ten the popularity would only blur it. The ALS part is the sum of its plays' contributions, scaled by the same w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.rows import ENTRIES_KEPT, ENTRIES_WITH_REASONS, Entry, Reason
from embeddings.foldin import FoldedViewer, confidences, fold_in
from embeddings.generation import F64, I64, NEVER_MS, Generation
from embeddings.retrieval import MARGIN, scores, top_candidates

HALF_EVIDENCE = 2.0
"""e₀: with two fully watched titles taste and popularity weigh the same."""

REASONS_PER_ENTRY = 3

CANDIDATES = ENTRIES_KEPT + MARGIN
"""Candidates taken of each source."""

SOURCES = ("als", "popular")


@dataclass(frozen=True, eq=False, slots=True)
class RankingInput:
    """What ranking needs to know of one viewer, newest signal first.

    `item_ids`, `strengths`, `ranks`: (n,) signals (unknown items allowed: they wait for an embedding).
    `seen_item_ids`: not to be shown again. `seen_digests`: (s,) int64, the same for items known by digest only.
    """

    item_ids: Sequence[str]
    strengths: Sequence[float]
    ranks: Sequence[int]
    seen_item_ids: frozenset[str]
    seen_digests: I64


@dataclass(frozen=True, eq=False, slots=True)
class Ranked:
    """A viewer's vector and entries. `folded`: what the vector came from, for `explain`."""

    folded: FoldedViewer
    weight: float  # w, share of the ALS part
    rows: I64  # (m,) item rows of the entries, best first
    als: F64  # (m,) y·x
    entries: tuple[Entry, ...]


def fold(generation: Generation, viewer: RankingInput) -> FoldedViewer:
    """The viewer's vector from the signals whose items the generation knows."""
    known = [i for i, item_id in enumerate(viewer.item_ids) if item_id in generation.index]
    rows = np.array([generation.index[viewer.item_ids[i]] for i in known], dtype=np.int64)
    c = confidences([viewer.strengths[i] for i in known], [viewer.ranks[i] for i in known], generation.parameters)
    return fold_in(generation, rows, c)


def evidence_weight(viewer: RankingInput) -> float:
    """w in 0…1: how much the viewer's own plays count against popularity."""
    evidence = sum(s for s in viewer.strengths if s > 0)
    return evidence**2 / (evidence**2 + HALF_EVIDENCE**2)


def available(generation: Generation, now_ms: int) -> NDArray[np.bool_]:
    """(n_items,) bool: may be shown at `now_ms`."""
    result: NDArray[np.bool_] = (generation.available_from_ms <= now_ms) & (now_ms < generation.available_until_ms)
    return result


def rank(generation: Generation, viewers: Sequence[RankingInput], now_ms: int) -> list[Ranked]:
    """Rank a batch. Each viewer's result is the same alone or in any company."""
    folded = [fold(generation, viewer) for viewer in viewers]
    allowed = available(generation, now_ms)
    excluded = [_excluded_rows(generation, viewer) for viewer in viewers]
    X = np.stack([f.x for f in folded]) if folded else np.zeros((0, generation.k), dtype=np.float32)
    by_taste = top_candidates(generation, X, excluded, allowed, CANDIDATES)
    by_popularity = generation.popular_order[allowed[generation.popular_order]]
    return [
        _rank_one(generation, viewer, f, als_rows, _first_outside(by_popularity, rows))
        for viewer, f, als_rows, rows in zip(viewers, folded, by_taste, excluded, strict=True)
    ]


def popular_entries(
    generation: Generation,
    now_ms: int,
    *,
    maturity: int,
    only: NDArray[np.bool_] | None = None,
    count: int = ENTRIES_KEPT,
) -> tuple[Entry, ...]:
    """The default row's entries: the most popular titles that everybody of this age may see.

    `only`: (n_items,) bool, a further restriction (a territory's titles); None: no other.
    """
    allowed = available(generation, now_ms) & (generation.maturity <= maturity)
    if only is not None:
        allowed &= only
    rows = generation.popular_order[allowed[generation.popular_order]][:count]
    return tuple(_entry(generation, int(row), float(generation.popularity_score[row]), "popular", ()) for row in rows)


def _excluded_rows(generation: Generation, viewer: RankingInput) -> I64:
    index = generation.index
    rows = [index[item_id] for item_id in viewer.seen_item_ids if item_id in index]
    return np.concatenate([np.array(rows, dtype=np.int64), generation.rows_of_digests(viewer.seen_digests)])


def _first_outside(ordered: I64, excluded: I64) -> I64:
    """The first CANDIDATES of `ordered` that are not excluded."""
    head = ordered[: CANDIDATES + len(excluded)]
    return head[~np.isin(head, excluded)][:CANDIDATES]


def _rank_one(
    generation: Generation, viewer: RankingInput, folded: FoldedViewer, als_rows: I64, popular_rows: I64
) -> Ranked:
    w = evidence_weight(viewer) if len(folded.rows) else 0.0
    rows = np.union1d(als_rows, popular_rows) if w < 1 else als_rows
    als = scores(generation, folded.x, rows, padded_to=2 * CANDIDATES)
    popularity = generation.popularity_score[rows].astype(np.float64)
    score = w * als + (1 - w) * popularity
    best = np.lexsort((rows, -score))[:ENTRIES_KEPT]
    rows, als, score, popularity = rows[best], als[best], score[best], popularity[best]
    reasons = _reasons(generation, folded, rows[:ENTRIES_WITH_REASONS], w)
    entries = tuple(
        _entry(
            generation,
            int(row),
            float(score[i]),
            SOURCES[0] if w * als[i] >= (1 - w) * popularity[i] else SOURCES[1],
            reasons[i] if i < len(reasons) else (),
        )
        for i, row in enumerate(rows)
    )
    return Ranked(folded, w, rows, als, entries)


def _reasons(generation: Generation, folded: FoldedViewer, rows: I64, w: float) -> list[tuple[Reason, ...]]:
    """The strongest positive contributions of the first entries."""
    if not len(folded.rows):
        return [()] * len(rows)
    contributions = folded.contributions(generation.item_factors[rows]) * w  # (m, n)
    result = []
    for of_entry in contributions:
        strongest = np.lexsort((folded.rows, -of_entry))[:REASONS_PER_ENTRY]
        result.append(
            tuple(Reason(generation.item_ids[folded.rows[i]], float(of_entry[i])) for i in strongest if of_entry[i] > 0)
        )
    return result


def _entry(generation: Generation, row: int, score: float, source: str, reasons: tuple[Reason, ...]) -> Entry:
    from_ms, until_ms = int(generation.available_from_ms[row]), int(generation.available_until_ms[row])
    return Entry(
        generation.item_ids[row],
        score,
        source,
        reasons,
        from_ms if from_ms > 0 else None,
        until_ms if until_ms < NEVER_MS else None,
    )
