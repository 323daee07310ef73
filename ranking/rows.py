"""From signals to entries: candidates, scores, rules, reasons. Pure; a batch of viewers at once.

An entry's score is w · als + (1 − w) · popularity, where als = y·x, popularity is log-scaled to 0…1, and w = e² / (e² + e₀²)
grows with the evidence e (sum of positive strengths): with one or two plays plain fold-in ranks worse than popularity, with
ten the popularity would only blur it. The ALS part is the sum of its plays' contributions, scaled by the same w.

A generation with tables (`embeddings/tables.py`) has more sources and a ranker: then the candidates are those of all sources, and the
score is the sum of the parts that `ranking/features.py` names. The source of an entry is the one that lifts it most above the
other candidates; its reasons are the plays that it follows where that is `cowatch`, else the plays' contributions to its taste.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.rows import ENTRIES_KEPT, ENTRIES_WITH_REASONS, Entry, Reason
from embeddings.foldin import FoldedViewer, confidences, solve
from embeddings.generation import F64, I64, Generation
from embeddings.retrieval import MARGIN, scores, top_candidates
from embeddings.tables import Tables
from ranking import features as ranker

HALF_EVIDENCE = 2.0
"""e₀: with two fully watched titles taste and popularity weigh the same."""

REASONS_PER_ENTRY = 3

CANDIDATES = ENTRIES_KEPT + MARGIN
"""Candidates taken of each source."""

SOURCES = ("als", "popular", "cowatch", "trending")
COWATCH = 2
"""By index into `SOURCES`."""


@dataclass(frozen=True, eq=False, slots=True)
class RankingInput:
    """What ranking needs to know of one viewer, newest signal first.

    `item_ids`, `strengths`, `ranks`: (n,) signals (unknown items allowed: they wait for an embedding).
    `seen_item_ids`: not to be shown again. `seen_digests`: (s,) int64, the same for items known by digest only. `newest_ms`: when the
    newest play that says something started; None: none is kept.
    """

    item_ids: Sequence[str]
    strengths: Sequence[float]
    ranks: Sequence[int]
    seen_item_ids: frozenset[str]
    seen_digests: I64
    newest_ms: int | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Ranked:
    """A viewer's vector and entries. `folded`: what the vector came from, for `explain`."""

    folded: FoldedViewer
    weight: float  # of y·x in the score
    rows: I64  # (m,) item rows of the entries, best first
    als: F64  # (m,) y·x
    entries: tuple[Entry, ...]


def fold(generation: Generation, viewer: RankingInput) -> FoldedViewer:
    """The viewer's vector from the signals whose items the generation knows."""
    index = generation.index
    known = [i for i, item_id in enumerate(viewer.item_ids) if item_id in index]
    rows = np.array([index[viewer.item_ids[i]] for i in known], dtype=np.int64)
    c = confidences([viewer.strengths[i] for i in known], [viewer.ranks[i] for i in known], generation.parameters)
    return solve(generation, rows, c)


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
    allowed, tables = available(generation, now_ms), generation.tables
    by_taste = _by_taste(generation, viewers, allowed)
    if tables is not None:
        return [
            _rank_by_features(
                generation, tables, folded, _candidates(generation, tables, viewer, folded, allowed, out, rows, now_ms)
            )
            for viewer, folded, out, rows in by_taste
        ]
    by_popularity = generation.popular_order[allowed[generation.popular_order]]
    return [
        _rank_one(generation, viewer, folded, rows.tolist(), _first_outside(by_popularity, out))
        for viewer, folded, out, rows in by_taste
    ]


def _by_taste(
    generation: Generation, viewers: Sequence[RankingInput], allowed: NDArray[np.bool_]
) -> list[tuple[RankingInput, FoldedViewer, I64, I64]]:
    """Each viewer folded in, what they must not get, and the best by taste."""
    folded = [fold(generation, viewer) for viewer in viewers]
    excluded = [_excluded_rows(generation, viewer) for viewer in viewers]
    X = np.stack([f.x for f in folded]) if folded else np.zeros((0, generation.k), dtype=np.float32)
    found = top_candidates(generation, X, excluded, allowed, CANDIDATES)
    return list(zip(viewers, folded, excluded, found, strict=True))


@dataclass(frozen=True, eq=False, slots=True)
class Cold:
    """What default rows are chosen from. `of_source`: (n_items, sources), `scores`: (n_items,), for somebody of whom nothing is known;
    `order`: (n_items,) rows by falling score, of equal ones the lower first."""

    of_source: F64
    scores: F64
    order: I64


def cold_scores(generation: Generation) -> Cold | None:
    """The same for every age and territory: made once for all of them. None: without tables popularity alone decides."""
    if generation.tables is None:
        return None
    of_source = ranker.cold_parts(generation, generation.tables, np.arange(generation.n_items))
    score = of_source.sum(axis=1)
    return Cold(of_source, score, np.argsort(-score, kind="stable"))


def popular_entries(
    generation: Generation,
    now_ms: int,
    *,
    maturity: int,
    only: NDArray[np.bool_] | None = None,
    count: int = ENTRIES_KEPT,
    cold: Cold | None = None,
) -> tuple[Entry, ...]:
    """The default row's entries: the most popular titles that everybody of this age may see.

    `only`: (n_items,) bool, a further restriction (a territory's titles); None: no other. `cold`: what `cold_scores` gives, if known.
    """
    allowed = available(generation, now_ms) & (generation.maturity <= maturity)
    if only is not None:
        allowed &= only
    cold = cold_scores(generation) if cold is None else cold
    if cold is None:
        rows = generation.popular_order[allowed[generation.popular_order]][:count]
        sources, scores_of = ["popular"] * len(rows), generation.popularity_score[rows].tolist()
    else:
        rows = cold.order[allowed[cold.order]][:count]
        sources = [SOURCES[one] for one in ranker.origins(cold.of_source[rows])]
        scores_of = cold.scores[rows].tolist()
    return _entries(generation, rows.tolist(), scores_of, sources, [()] * len(rows))


def _excluded_rows(generation: Generation, viewer: RankingInput) -> I64:
    index = generation.index
    rows = [index[item_id] for item_id in viewer.seen_item_ids if item_id in index]
    return np.concatenate([np.array(rows, dtype=np.int64), generation.rows_of_digests(viewer.seen_digests)])


def _first_outside(ordered: I64, excluded: I64) -> list[int]:
    """The first CANDIDATES of `ordered` that are not excluded."""
    out = set(excluded.tolist())
    return [row for row in ordered[: CANDIDATES + len(out)].tolist() if row not in out][:CANDIDATES]


def _rank_one(
    generation: Generation, viewer: RankingInput, folded: FoldedViewer, als_rows: list[int], popular_rows: list[int]
) -> Ranked:
    w = evidence_weight(viewer) if len(folded.rows) else 0.0
    rows = np.array(sorted({*als_rows, *popular_rows}), dtype=np.int64)
    als = scores(generation, folded.x, rows, padded_to=2 * CANDIDATES)
    popularity = generation.popularity_score[rows].astype(np.float64)
    score = w * als + (1 - w) * popularity
    best = np.argsort(-score, kind="stable")[:ENTRIES_KEPT]  # rows ascend: ties go to the lower one
    rows, als, score, popularity = rows[best], als[best], score[best], popularity[best]
    reasons = _reasons(generation, folded, rows[:ENTRIES_WITH_REASONS], w)
    reasons += [()] * (len(rows) - len(reasons))
    by_taste = (w * als >= (1 - w) * popularity).tolist()
    sources = [SOURCES[0] if own else SOURCES[1] for own in by_taste]
    entries = _entries(generation, rows.tolist(), score.tolist(), sources, reasons)
    return Ranked(folded, w, rows, als, entries)


@dataclass(frozen=True, eq=False, slots=True)
class Candidates:
    """What the ranker chooses from. `rows`: (m,) ascending. `als`: (m,) y·x. `features`: (m, features of `BASE`). `context`: (contexts,)
    of the moment."""

    rows: I64
    als: F64
    features: F64
    follows: ranker.Following
    context: F64


def rank_candidates(generation: Generation, viewers: Sequence[RankingInput], now_ms: int) -> list[Candidates]:
    """What the ranker would choose from, for each viewer: what it is trained on. The generation has tables."""
    tables, allowed = generation.tables, available(generation, now_ms)
    assert tables is not None
    return [
        _candidates(generation, tables, viewer, folded, allowed, excluded, als_rows, now_ms)
        for viewer, folded, excluded, als_rows in _by_taste(generation, viewers, allowed)
    ]


def _candidates(
    generation: Generation,
    tables: Tables,
    viewer: RankingInput,
    folded: FoldedViewer,
    allowed: NDArray[np.bool_],
    excluded: I64,
    als_rows: I64,
    now_ms: int,
) -> Candidates:
    """Of all sources. Without a signal that the generation knows there is no taste to go by."""
    w = evidence_weight(viewer) if len(folded.rows) else 0.0
    showable = allowed.copy()
    showable[excluded] = False
    popular = generation.popular_order[showable[generation.popular_order]][:CANDIDATES]
    follows = ranker.following(tables, folded)
    further = ranker.further_candidates(tables, follows, showable)
    rows = np.unique(np.concatenate([als_rows if w > 0 else als_rows[:0], popular, further]))
    als = scores(generation, folded.x, rows, padded_to=len(rows))
    away_ms = 0 if viewer.newest_ms is None else max(0, now_ms - viewer.newest_ms)
    context = ranker.context(w, len(viewer.item_ids), away_ms)
    return Candidates(rows, als, ranker.features(generation, tables, rows, als, follows), follows, context)


def _rank_by_features(generation: Generation, tables: Tables, folded: FoldedViewer, found: Candidates) -> Ranked:
    weights = ranker.weights_of(tables, found.context)
    of_source = ranker.parts(weights, found.features)
    score, origin = of_source.sum(axis=1), ranker.origins(of_source)
    best = np.argsort(-score, kind="stable")[:ENTRIES_KEPT]  # rows ascend: ties go to the lower one
    rows, als, score, origin = found.rows[best], found.als[best], score[best], origin[best]
    weight = float(weights[ranker.TASTE])
    reasons = _reasons(generation, folded, rows[:ENTRIES_WITH_REASONS], weight)
    for place in np.flatnonzero(origin[:ENTRIES_WITH_REASONS] == COWATCH).tolist():
        reasons[place] = _followed(generation, weights, folded, found.follows, int(rows[place]))
    reasons += [()] * (len(rows) - len(reasons))
    sources = [SOURCES[one] for one in origin.tolist()]
    return Ranked(folded, weight, rows, als, _entries(generation, rows.tolist(), score.tolist(), sources, reasons))


def _followed(
    generation: Generation, weights: F64, folded: FoldedViewer, follows: ranker.Following, row: int
) -> tuple[Reason, ...]:
    """The plays that an entry follows, strongest first."""
    plays = folded.rows[folded.c > 0][: ranker.FOLLOWED]
    values = ranker.following_contributions(weights, follows, row, len(plays))
    strongest = np.argsort(-values, kind="stable")[:REASONS_PER_ENTRY]
    return tuple(Reason(generation.item_ids[plays[i]], float(values[i])) for i in strongest if values[i] > 0)


def _reasons(generation: Generation, folded: FoldedViewer, rows: I64, w: float) -> list[tuple[Reason, ...]]:
    """The strongest positive contributions of the first entries."""
    if not len(folded.rows):
        return [()] * len(rows)
    contributions = folded.contributions(generation.item_factors[rows]) * w  # (m, n)
    strongest = np.argsort(-contributions, axis=1, kind="stable")[:, :REASONS_PER_ENTRY]  # (m, 3)
    ids, played = generation.item_ids, folded.rows[strongest].tolist()
    values = np.take_along_axis(contributions, strongest, axis=1).tolist()
    return [
        tuple(Reason(ids[row], value) for row, value in zip(*of_entry, strict=True) if value > 0)
        for of_entry in zip(played, values, strict=True)
    ]


def _entries(
    generation: Generation,
    rows: list[int],
    score: list[float],
    sources: Sequence[str],
    reasons: Sequence[tuple[Reason, ...]],
) -> tuple[Entry, ...]:
    ids, (starts, ends) = generation.item_ids, generation.windows
    columns = ([ids[row] for row in rows], score, sources, reasons, [starts[r] for r in rows], [ends[r] for r in rows])
    return tuple(map(Entry, *columns))
