"""The offline evaluation and the gate: would tomorrow's rows be at least as good as those of the generation in force?

The newest plays are held out by time: the candidate is trained without them, every viewer is folded in with the state from
before, and the rows are asked for what was played after. Three arms answer the same questions:

- candidate: what this night's training would have made at the time of the cut
- popularity: the same titles in the same order for everybody, minus seen
- in_force: the published factors, folded in by the same code from the same states

No leakage: the generation in force knows the plays up to its own newest event, so plays are held out from there on (or from
`train.holdout_share`, whichever is later), and both are then trained on nearly the same past. When too few plays came since,
as on a second run of the same day, the arm has seen the answers: the comparison is advisory and holds nothing back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow.compute as pc

from batch.interactions import COLUMNS, PLAY_KIND_NAMES, Codes, play_columns, states_from_lake, strongest_signals
from batch.lake import Lake
from contracts.digests import item_digest
from contracts.manifest import Decision
from contracts.rules import NO_RULES, Rules
from embeddings.generation import F32, NEVER_MS, FoldInParameters, Generation
from embeddings.groups import Groups
from embeddings.tables import Tables
from ranking.rows import RankingInput, fold
from viewers.rewriter import ranking_input
from viewers.state import Limits

CUTS = (10, 50)
MAX_VIEWERS = 5_000
"""Viewers sampled: an NDCG@10 of 0.05 is then known to about ±0.003."""
MIN_VIEWERS = 20
"""With fewer the metrics are noise: nothing is held back by them."""
MIN_FRESH_PLAYS = 200
"""Held-out plays that the generation in force must not know, for a fair comparison."""
BATCH = 256
SEED = 7


@dataclass(frozen=True, slots=True)
class Holdout:
    """Where the past ends. `advisory`: the generation in force has seen plays after `from_ms`."""

    from_ms: int
    plays: int
    advisory: bool


@dataclass(frozen=True, slots=True)
class Case:
    """One viewer's question: the state before the cut, and the new items liked after it."""

    viewer: RankingInput
    wanted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics per arm, averaged over viewers, and what the gate says. `each`: arm → metric → one value a viewer, in the order of
    `plays_so_far`, the titles that each had seen; for the night's report."""

    arms: Mapping[str, Mapping[str, float]]
    viewers: int
    holdout: Holdout
    decision: Decision
    warnings: tuple[str, ...] = ()
    each: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    plays_so_far: Sequence[int] = ()

    @property
    def passed(self) -> bool:
        return self.decision.verdict != "held_back"


def choose_holdout(lake: Lake, share: float, known_until_ms: int | None) -> Holdout | None:
    """The start of the held-out time: after `1 − share` of the plays, or after what the generation in force knows, if enough
    plays came since. `known_until_ms`: its newest event, None without one. None if there are no plays.
    """
    times = [
        batch.column("play_started_at_ms").drop_null().to_numpy()
        for batch in lake.batches("events", ["play_started_at_ms"])
    ]
    started = np.sort(np.concatenate(times)) if times else np.zeros(0, dtype=np.int64)
    if not len(started):
        return None
    from_ms = int(started[min(len(started) - 1, int(len(started) * (1 - share)))])
    fresh_ms = from_ms if known_until_ms is None else max(from_ms, known_until_ms + 1)
    fresh = int(len(started) - np.searchsorted(started, fresh_ms))
    if fresh >= MIN_FRESH_PLAYS or fresh_ms == from_ms:
        return Holdout(fresh_ms, fresh, advisory=False)
    return Holdout(from_ms, int(len(started) - np.searchsorted(started, from_ms)), advisory=True)


def read_cases(lake: Lake, limits: Limits, from_ms: int) -> list[Case]:
    """Questions to at most `MAX_VIEWERS` viewers (sampled, the same for the same lake), by viewer."""
    liked = _liked_since(lake, from_ms)
    names = sorted(liked)
    if len(names) > MAX_VIEWERS:
        names = sorted(np.random.default_rng(SEED).choice(names, MAX_VIEWERS, replace=False).tolist())
    cases = {}
    for viewer, state in states_from_lake(lake, limits, before_ms=from_ms, wanted=frozenset(names)):
        known = ranking_input(state)
        digests = set(known.seen_digests.tolist())
        new = [i for i in liked[viewer] if i not in known.seen_item_ids and item_digest(i) not in digests]
        if new and known.item_ids:
            cases[viewer] = Case(known, tuple(sorted(new)))
    return [cases[viewer] for viewer in sorted(cases)]


def _liked_since(lake: Lake, from_ms: int) -> dict[str, list[str]]:
    """Viewer → items with a positive signal among the plays started from `from_ms` on."""
    viewers, items = Codes(), Codes()
    plays = []
    for batch in lake.batches("events", COLUMNS):
        started = pc.fill_null(pc.greater_equal(batch.column("play_started_at_ms"), from_ms), False)
        batch = batch.filter(pc.and_(pc.is_in(batch.column("kind"), value_set=PLAY_KIND_NAMES), started))
        if batch.num_rows:
            plays.append(play_columns(batch, viewers, items))
    viewer, item, strength, _ = strongest_signals(plays)
    viewer_ids, item_ids = list(viewers.ids), list(items.ids)
    liked: dict[str, list[str]] = {}
    for v, i in zip(viewer[strength > 0].tolist(), item[strength > 0].tolist(), strict=True):
        liked.setdefault(viewer_ids[v], []).append(item_ids[i])
    return liked


def make_generation(
    generation_id: str,
    item_ids: Sequence[str],
    Y: F32,
    popularity: F32,
    parameters: FoldInParameters,
    tables: Tables | None = None,
    rules: Rules = NO_RULES,
    groups: Groups | None = None,
) -> Generation:
    """A generation in memory, everything available: what an evaluation folds in against."""
    n = len(item_ids)
    return Generation(
        generation_id=generation_id,
        item_ids=tuple(item_ids),
        item_factors=Y,
        parameters=parameters,
        popularity=popularity,
        available_from_ms=np.zeros(n, dtype=np.int64),
        available_until_ms=np.full(n, NEVER_MS, dtype=np.int64),
        maturity=np.zeros(n, dtype=np.uint8),
        item_digests=np.array([item_digest(item_id) for item_id in item_ids], dtype=np.int64),
        tables=tables,
        rules=rules,
        groups=groups,
    )


def measure(
    generation: Generation,
    cases: Sequence[Case],
    *,
    popularity: bool = False,
    each: dict[str, list[float]] | None = None,
) -> dict[str, float]:
    """One arm's metrics. `popularity`: everybody gets the popular order instead of the fold-in. `each`: takes every viewer's values.

    hr, ndcg, recall, precision at 10 and 50; auc (pairs of a wanted and another unseen item in the right order); coverage@10.
    An item that the generation does not know counts as missed. ndcg@k = Σ_{hits} 1/log₂(rank + 1) / the best that k places allow.
    """
    sums: dict[str, float] = {}
    recommended: set[int] = set()
    for start in range(0, len(cases), BATCH):
        batch = cases[start : start + BATCH]
        if popularity:
            scores = np.tile(generation.popularity, (len(batch), 1))
        else:
            scores = np.stack([fold(generation, case.viewer).x for case in batch]) @ generation.item_factors.T
        for case, of_viewer in zip(batch, scores, strict=True):
            seen = _seen_rows(generation, case.viewer)
            top = _top(of_viewer, seen, max(CUTS))
            recommended.update(top[:10])
            for name, value in _viewer_metrics(generation, case, of_viewer, seen, top).items():
                sums[name] = sums.get(name, 0.0) + value
                if each is not None:
                    each.setdefault(name, []).append(value)
    metrics = {name: value / len(cases) for name, value in sums.items()}
    metrics["coverage@10"] = len(recommended) / generation.n_items
    return metrics


def _seen_rows(generation: Generation, viewer: RankingInput) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    rows = [generation.index[item_id] for item_id in viewer.seen_item_ids if item_id in generation.index]
    found = np.concatenate([np.array(rows, dtype=np.int64), generation.rows_of_digests(viewer.seen_digests)])
    return np.unique(found)


def _top(scores: F32, seen: np.ndarray[tuple[int], np.dtype[np.int64]], count: int) -> list[int]:
    unseen = scores.astype(np.float64)
    unseen[seen] = -np.inf
    count = min(count, len(unseen) - len(seen))
    order = np.lexsort((np.arange(len(unseen)), -unseen)) if len(unseen) < 4 * count else None
    if order is None:
        kth = np.partition(unseen, len(unseen) - count)[len(unseen) - count] if count else np.inf
        rows = np.flatnonzero(unseen >= kth)
        order = rows[np.lexsort((rows, -unseen[rows]))]
    return [int(row) for row in order[:count]]


def _viewer_metrics(
    generation: Generation,
    case: Case,
    scores: F32,
    seen: np.ndarray[tuple[int], np.dtype[np.int64]],
    top: Sequence[int],
) -> dict[str, float]:
    wanted = {generation.index[item_id] for item_id in case.wanted if item_id in generation.index}
    metrics = {}
    for k in CUTS:
        ranks = [rank for rank, row in enumerate(top[:k], 1) if row in wanted]
        best = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(case.wanted)) + 1))
        metrics[f"hr@{k}"] = float(bool(ranks))
        metrics[f"ndcg@{k}"] = sum(1 / math.log2(rank + 1) for rank in ranks) / best
        metrics[f"recall@{k}"] = len(ranks) / len(case.wanted)
        metrics[f"precision@{k}"] = len(ranks) / k
    others = np.ones(len(scores), dtype=np.bool_)
    others[seen] = False
    others[list(wanted)] = False
    rest = np.sort(scores[others])
    below = [
        (np.searchsorted(rest, scores[row]) + np.searchsorted(rest, scores[row], side="right")) / 2 for row in wanted
    ]
    right = sum(float(b) for b in below) / len(rest) if len(rest) else float(len(wanted))
    metrics["auc"] = right / len(case.wanted)
    return metrics


def decide(arms: Mapping[str, Mapping[str, float]], viewers: int, margin: float, *, advisory: bool) -> Decision:
    """The gate. Pure. `margin`: how much worse, relatively, the candidate's NDCG@10 may be than the in-force one's."""
    if viewers < MIN_VIEWERS:
        return Decision("unchecked", f"only {viewers} viewers played something new after the cut: too few to judge by")
    metrics = arms["candidate"]
    odd = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    if odd:
        return Decision("held_back", f"{odd[0]} of the candidate is not a finite number")
    mine = metrics["ndcg@10"]
    if mine <= 0:
        return Decision("held_back", "the candidate found none of the held-out plays (NDCG@10 is 0)")
    in_force = arms.get("in_force")
    if in_force is None:
        return Decision("passed", f"NDCG@10 {mine:.4f}; no generation is in force to compare with")
    theirs = in_force["ndcg@10"]
    told = f"NDCG@10 {mine:.4f} against {theirs:.4f} of the generation in force"
    if advisory:
        return Decision("passed", f"{told}, which knows the held-out plays already: not comparable, so only told")
    if mine < theirs * (1 - margin):
        return Decision("held_back", f"{told}: worse by more than {margin:.0%}")
    return Decision("passed", told)


def popularity_warning(arms: Mapping[str, Mapping[str, float]], margin: float) -> tuple[str, ...]:
    """A candidate that loses to popularity is worth a look, but may be right for a young service."""
    mine, popular = arms["candidate"]["ndcg@10"], arms["popularity"]["ndcg@10"]
    if mine < popular * (1 - margin):
        return (
            f"the candidate's NDCG@10 {mine:.4f} is below popularity's {popular:.4f}: look at the signal table and α",
        )
    return ()


def evaluate(
    candidate: Generation,
    in_force: Generation | None,
    cases: Sequence[Case],
    holdout: Holdout,
    margin: float,
    *,
    advance: Callable[[str], None] = lambda arm: None,
) -> Evaluation:
    """Measure every arm on the same cases, and decide."""
    if not cases:
        return Evaluation({}, 0, holdout, decide({}, 0, margin, advisory=holdout.advisory))
    each: dict[str, dict[str, list[float]]] = {"candidate": {}, "popularity": {}}
    arms = {"candidate": measure(candidate, cases, each=each["candidate"])}
    advance("candidate")
    arms["popularity"] = measure(candidate, cases, popularity=True, each=each["popularity"])
    advance("popularity")
    if in_force is not None:
        each["in_force"] = {}
        arms["in_force"] = measure(in_force, cases, each=each["in_force"])
        advance("in_force")
    decision = decide(arms, len(cases), margin, advisory=holdout.advisory)
    so_far = [len(case.viewer.seen_item_ids) for case in cases]
    return Evaluation(arms, len(cases), holdout, decision, popularity_warning(arms, margin), each, so_far)
