"""From signals to entries: candidates, scores, rules, reasons. Pure; a batch of viewers at once.

An entry's score is w · als + (1 − w) · popularity, where als = y·x, popularity is log-scaled to 0…1, and w = e² / (e² + e₀²)
grows with the evidence e (sum of positive strengths): with one or two plays plain fold-in ranks worse than popularity, with
ten the popularity would only blur it. The ALS part is the sum of its plays' contributions, scaled by the same w.

A generation with tables (`embeddings/tables.py`) has more sources and a ranker: then the candidates are those of all sources, and the
score is the sum of the parts that `ranking/features.py` names. The source of an entry is the one that lifts it most above the
other candidates; its reasons are the plays that it follows where that is `cowatch`, what each play adds by the sequence model where it
is `sequence`, else the plays' contributions to its taste.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.rows import ENTRIES_KEPT, ENTRIES_WITH_REASONS, Entry, Reason
from contracts.rules import TITLE
from embeddings.foldin import FoldedViewer, confidences, solve
from embeddings.generation import F64, I64, Generation
from embeddings.retrieval import MARGIN, scores, top_candidates
from embeddings.tables import Tables
from ranking import features as ranker
from ranking import rules as placing

HALF_EVIDENCE = 2.0
"""e₀: with two fully watched titles taste and popularity weigh the same."""

TOLD_EVIDENCE = 2.0
"""Evidence that a preference amounts to, times its strength: it was told on purpose, and nothing better is known then."""
LEAST_TOLD = 0.02
"""Strength below which a preference is let go."""

REASONS_PER_ENTRY = 3

CANDIDATES = ENTRIES_KEPT + MARGIN
"""Candidates taken of each source."""

SOURCES = ("als", "popular", "cowatch", "trending", "sequence", "again", "explore")
"""The first five are what the ranker adds up; the last two come from rules (`ranking/rules.py`)."""
COWATCH, SEQUENCE = 2, 4
"""By index into `SOURCES`."""


@dataclass(frozen=True, eq=False, slots=True)
class RankingInput:
    """What ranking needs to know of one viewer, newest signal first.

    `item_ids`, `strengths`, `ranks`: (n,) signals (unknown items allowed: they wait for an embedding).
    `seen_item_ids`: not to be shown again. `seen_digests`: (s,) int64, the same for items known by digest only. `preferences`: what was
    told, subject and value in −1 … 1. `activations`: (n,) how often and how recently each of `item_ids` was played (`ranking/rules.py`);
    empty: not known. `newest_ms`: when the newest play that says something started, or when the event came that the row is made for if that
    is later (of a film of two hours that ends now, the viewer is here); None: no play is kept. `times_ms`: (n,) when each of
    `item_ids` was played last, or rated where it never was; empty: not known.
    """

    item_ids: Sequence[str]
    strengths: Sequence[float]
    ranks: Sequence[int]
    seen_item_ids: frozenset[str]
    seen_digests: I64
    preferences: Sequence[tuple[str, float]] = ()
    activations: Sequence[float] = ()
    newest_ms: int | None = None
    times_ms: Sequence[int] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Ranked:
    """A viewer's vector and entries. `folded`: what the vector came from, for `explain`. `held_by`: per entry the creator or topic whose
    limit kept it from an earlier place, or nothing."""

    folded: FoldedViewer
    weight: float  # of y·x in the score
    rows: I64  # (m,) item rows of the entries, best first
    als: F64  # (m,) y·x
    entries: tuple[Entry, ...]
    held_by: tuple[str, ...] = ()


def fold(generation: Generation, viewer: RankingInput) -> FoldedViewer:
    """The viewer's vector from the signals whose items the generation knows, and behind them what was told."""
    index = generation.index
    known = [i for i, item_id in enumerate(viewer.item_ids) if item_id in index]
    rows = [index[viewer.item_ids[i]] for i in known]
    c = confidences([viewer.strengths[i] for i in known], [viewer.ranks[i] for i in known], generation.parameters)
    told = _told(generation, viewer, rows)
    if told:
        rows = [*rows, *told]
        of_told = confidences(list(told.values()), [0] * len(told), generation.parameters)
        c = np.concatenate([c, of_told])
    return solve(generation, np.array(rows, dtype=np.int64), c)


def _told(generation: Generation, viewer: RankingInput, known: Sequence[int]) -> dict[int, float]:
    """Row of `fold_factors` → strength, of each preference that still counts. What the viewer does outweighs what they said: with the
    weight w of the plays a preference counts 1 − w times, and not at all once that is hardly anything. A title that has a signal of its
    own needs none."""
    if not generation.rules.preference or not viewer.preferences:
        return {}
    e = _evidence(viewer)
    fading = generation.rules.preference * HALF_EVIDENCE**2 / (e**2 + HALF_EVIDENCE**2)
    found: dict[int, float] = {}
    for subject, value in viewer.preferences:
        row = generation.told_index.get(subject, -1)
        if row < 0 and subject.startswith(TITLE):
            row = generation.index.get(subject[len(TITLE) :], -1)
        if row >= 0 and row not in known and row not in found and abs(fading * value) >= LEAST_TOLD:
            found[row] = fading * value
    return found


def _evidence(viewer: RankingInput) -> float:
    """e: what the viewer's plays and ratings amount to."""
    return float(sum(s for s in viewer.strengths if s > 0))


def evidence_weight(generation: Generation, viewer: RankingInput) -> float:
    """w in 0…1: how much the viewer's own plays, and what was told, count against popularity. Whatever was told amounts to e₀ at most."""
    known = [generation.index[one] for one in viewer.item_ids if one in generation.index] if viewer.preferences else ()
    told = sum(s for s in _told(generation, viewer, known).values() if s > 0)
    evidence = _evidence(viewer) + min(TOLD_EVIDENCE * told, HALF_EVIDENCE)
    return evidence**2 / (evidence**2 + HALF_EVIDENCE**2)


def available(generation: Generation, now_ms: int) -> NDArray[np.bool_]:
    """(n_items,) bool: may be shown at `now_ms`."""
    result: NDArray[np.bool_] = (generation.available_from_ms <= now_ms) & (now_ms < generation.available_until_ms)
    return result


def rank(
    generation: Generation, viewers: Sequence[RankingInput], now_ms: int, seeds: Sequence[int] | None = None
) -> list[Ranked]:
    """Rank a batch. Each viewer's result is the same alone or in any company. `seeds`: of exploration, one a viewer (None: all 0)."""
    allowed, tables = available(generation, now_ms), generation.tables
    by_popularity = generation.popular_order[allowed[generation.popular_order]]
    ranked = []
    for (viewer, folded, out, rows), seed in zip(
        _by_taste(generation, viewers, allowed), seeds or [0] * len(viewers), strict=True
    ):
        showable = allowed.copy()
        showable[out] = False
        if tables is not None:
            found = _candidates(generation, tables, viewer, folded, allowed, out, rows, now_ms)
            weights = ranker.weights_of(tables, found.context)
            scored = _score_by_features(weights, found)
        else:
            scored = _score_by_blend(generation, viewer, folded, rows.tolist(), _first_outside(by_popularity, out))
        chosen = _place(generation, viewer, folded, scored, allowed, showable, seed)
        reasons = _reasons(generation, folded, chosen.rows[:ENTRIES_WITH_REASONS], scored.weight)
        if tables is not None:
            for place, origin in enumerate(chosen.origin[:ENTRIES_WITH_REASONS].tolist()):
                if origin in (COWATCH, SEQUENCE):
                    reasons[place] = _followed(
                        generation, tables, weights, folded, found, int(chosen.rows[place]), origin
                    )
        ranked.append(_ranked(generation, folded, scored.weight, chosen, reasons))
    return ranked


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
    order = generation.popular_order if cold is None else cold.order
    rows = order[allowed[order]][: placing.POOL if generation.rules.limit_groups else count]
    if generation.rules.limit_groups:
        places = placing.arrange(generation.rules, generation.groups, (rows.tolist(), (), ()))[:count]
        rows = rows[[place.index for place in places]]
    if cold is None:
        sources, scores_of = ["popular"] * len(rows), generation.popularity_score[rows].tolist()
    else:
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


@dataclass(frozen=True, eq=False, slots=True)
class Scored:
    """Titles, best first. `rows`: (m,). `als`: (m,) y·x. `score`: (m,). `origin`: (m,) index into `SOURCES`. `weight`: of y·x in the score.
    `held_by`: (m,) a group or −1; empty: no rule held any."""

    rows: I64
    als: F64
    score: F64
    origin: I64
    weight: float
    held_by: Sequence[int] = ()

    def best(self, count: int) -> Scored:
        """The first `count` by score, of equals the lower row: rows ascend."""
        order = np.argsort(-self.score, kind="stable")[:count]
        return Scored(self.rows[order], self.als[order], self.score[order], self.origin[order], self.weight)


def _score_by_blend(
    generation: Generation, viewer: RankingInput, folded: FoldedViewer, als_rows: list[int], popular_rows: list[int]
) -> Scored:
    w = evidence_weight(generation, viewer) if len(folded.rows) else 0.0
    rows = np.array(sorted({*(als_rows if w > 0 else ()), *popular_rows}), dtype=np.int64)
    als = scores(generation, folded.x, rows, padded_to=2 * CANDIDATES)
    popularity = generation.popularity_score[rows].astype(np.float64)
    origin = np.where(w * als >= (1 - w) * popularity, 0, ranker.POPULAR)
    return Scored(rows, als, w * als + (1 - w) * popularity, origin, w)


def _score_by_features(weights: F64, found: Candidates) -> Scored:
    of_source = ranker.parts(weights, found.features)
    origin, weight = ranker.origins(of_source), float(weights[ranker.TASTE])
    return Scored(found.rows, found.als, of_source.sum(axis=1), origin, weight)


def _place(
    generation: Generation,
    viewer: RankingInput,
    folded: FoldedViewer,
    scored: Scored,
    allowed: NDArray[np.bool_],
    showable: NDArray[np.bool_],
    seed: int,
) -> Scored:
    """The row's titles: the best, placed by the rules. `allowed`: may be shown to anybody, `showable`: to this viewer as new."""
    rules = generation.rules
    if not rules.arrange:
        return scored.best(ENTRIES_KEPT)
    ranked = scored.best(placing.POOL)
    again = _may_come_back(generation, viewer, allowed) if rules.repeats else []
    explored = placing.explored(generation, folded.x, showable, seed) if rules.exploration else []
    others = np.array([*again, *explored], dtype=np.int64)
    als = (generation.item_factors[others].astype(np.float64) * folded.x.astype(np.float64)).sum(axis=1)
    origin = [SOURCES.index("again")] * len(again) + [SOURCES.index("explore")] * len(explored)
    pool = Scored(
        np.concatenate([ranked.rows, others]),
        np.concatenate([ranked.als, als]),
        np.concatenate([ranked.score, ranked.weight * als]),
        np.concatenate([ranked.origin, np.array(origin, dtype=np.int64)]),
        ranked.weight,
    )
    places = placing.arrange(rules, generation.groups, (ranked.rows.tolist(), again, explored))
    begin = (0, len(ranked.rows), len(ranked.rows) + len(again))
    order = np.array([begin[place.queue] + place.index for place in places], dtype=np.int64)
    held_by = [place.held_by for place in places]
    return Scored(pool.rows[order], pool.als[order], pool.score[order], pool.origin[order], pool.weight, held_by)


def _may_come_back(generation: Generation, viewer: RankingInput, allowed: NDArray[np.bool_]) -> list[int]:
    signals = zip(viewer.item_ids, viewer.strengths, viewer.ranks, viewer.activations, strict=False)
    mine = [
        (generation.index[item_id], value)
        for item_id, strength, rank, value in signals
        if strength > 0 and value > 0 and rank >= generation.rules.repeat_gap
        if item_id in generation.index and allowed[generation.index[item_id]]
    ]
    rows, values = np.array([row for row, _ in mine], np.int64), np.array([value for _, value in mine], np.float64)
    return placing.may_come_back(rows, values)


def _ranked(
    generation: Generation, folded: FoldedViewer, weight: float, chosen: Scored, reasons: list[tuple[Reason, ...]]
) -> Ranked:
    reasons = reasons + [()] * (len(chosen.rows) - len(reasons))
    sources = [SOURCES[one] for one in chosen.origin.tolist()]
    entries = _entries(generation, chosen.rows.tolist(), chosen.score.tolist(), sources, reasons)
    names = generation.groups.names if generation.groups else ()
    held_by = tuple(names[group] if group >= 0 else "" for group in chosen.held_by)
    return Ranked(folded, weight, chosen.rows, chosen.als, entries, held_by or ("",) * len(entries))


@dataclass(frozen=True, eq=False, slots=True)
class Candidates:
    """What the ranker chooses from. `rows`: (m,) ascending. `als`: (m,) y·x. `features`: (m, features of `BASE`). `context`: (contexts,)
    of the moment."""

    rows: I64
    als: F64
    features: F64
    follows: ranker.Following
    history: ranker.History
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
    w = evidence_weight(generation, viewer) if len(folded.rows) else 0.0
    showable = allowed.copy()
    showable[excluded] = False
    popular = generation.popular_order[showable[generation.popular_order]][:CANDIDATES]
    follows = ranker.following(tables, folded)
    further = ranker.further_candidates(tables, follows, showable)
    rows = np.unique(np.concatenate([als_rows if w > 0 else als_rows[:0], popular, further]))
    als = scores(generation, folded.x, rows, padded_to=len(rows))
    away_ms = 0 if viewer.newest_ms is None else max(0, now_ms - viewer.newest_ms)
    context = ranker.context(w, len(viewer.item_ids), away_ms)
    history = ranker.history(generation, viewer.item_ids, viewer.strengths, viewer.times_ms)
    values = ranker.features(generation, tables, rows, als, follows, history)
    return Candidates(rows, als, values, follows, history, context)


def _followed(
    generation: Generation,
    tables: Tables,
    weights: F64,
    folded: FoldedViewer,
    found: Candidates,
    row: int,
    origin: int,
) -> tuple[Reason, ...]:
    """The plays that an entry follows or goes on from, strongest first."""
    if origin == COWATCH:
        plays = ranker.followed_plays(tables, folded)
        values = ranker.following_contributions(weights, found.follows, row, len(plays))
    else:
        plays, values = found.history.rows, ranker.sequence_contributions(weights, tables, found.history, row)
    strongest = np.argsort(-values, kind="stable")[:REASONS_PER_ENTRY]
    return tuple(Reason(generation.item_ids[plays[i]], float(values[i])) for i in strongest if values[i] > 0)


def _reasons(generation: Generation, folded: FoldedViewer, rows: I64, w: float) -> list[tuple[Reason, ...]]:
    """The strongest positive contributions of the first entries."""
    if not len(folded.rows):
        return [()] * len(rows)
    contributions = folded.contributions(generation.item_factors[rows]) * w  # (m, n)
    strongest = np.argsort(-contributions, axis=1, kind="stable")[:, :REASONS_PER_ENTRY]  # (m, 3)
    ids, played = generation.fold_ids, folded.rows[strongest].tolist()
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
