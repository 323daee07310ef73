"""Training the ranker: a softmax regression over the candidates of every play in the newest days, on features made by the code that serves.

    plays:   ………… before T1 …………|… chunk 1 …|… chunk 2 …| … |… the newest …|  cut-off
    factors: trained on these     ↑            ↑
    tables:  counted up to here, and for chunk 2 up to here, …

For each play: the viewer's state just before it, a generation that knows only what was played before its chunk (factors from before
T1, and so the sequence model; tables and popularity from before the chunk), the candidates and their features as `ranking.rows` makes
them, and which of them was watched. Nothing of a play's own time or later is in what its features are made of. A chunk is as long as
the time between two nights, where there are not too many, so that trends are as old as they are when they serve. The factors may be
somewhat older than they will be. The sequence model (`batch/sequence.py`) is published as old as it is here: so its score means the same
where it serves, and trained on up to the last play it hit no more.

    P(j watched) = exp(β·φ_j) / Σ_i exp(β·φ_i)        β = W ctx        W = argmax Σ log P − l2 ‖W‖²,   φ standardized for the fit

with φ what is known of a candidate and ctx of the moment (`ranking/features.py`).

The newest fifth is held out first: a ranker that finds its plays worse than the blend of taste and popularity is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from batch.evaluate import make_generation
from batch.play_log import PlayLog
from batch.sequence import train_sequence
from batch.tables import DAY_MS, Counts
from embeddings.generation import F32, F64, I64, FoldInParameters, Generation
from embeddings.sequence import SequenceNet
from embeddings.tables import BASE, CONTEXTS, FEATURES
from ranking.rows import RankingInput, rank_candidates

MOST_CHUNKS = 24
SHARE = 0.2
"""Newest plays that may be taken, of all: the rest has to make good tables."""
FEWEST = 300
"""Plays whose title was among the candidates: with fewer no ranker is trained."""
SPREAD = 3
"""Of so many times more plays those that are trained on are drawn: one evening's are of few viewers."""
HELD_OUT = 0.2
L2 = 1e-3
ITERATIONS = 100
OTHERS = 100
"""Candidates that were not watched which a play teaches by."""
SEED = 7
AT_ONCE = 256
TOP = 10

PastFactors = Callable[[int], tuple[Sequence[str], F32]]
"""Factors trained on what was played before a time in ms: (item ids, (n, k) float32)."""


@dataclass(frozen=True, eq=False, slots=True)
class Samples:
    """What was chosen from what. `features`: (rows, features of `BASE`) float32, play after play. `contexts`: (plays, contexts). `sizes`:
    (plays,), rows of each; `target`: (plays,), which of them was watched, −1: none of them."""

    features: F32
    contexts: F64
    sizes: I64
    target: I64

    def part(self, start: int, stop: int) -> Samples:
        """Some of the plays."""
        rows = np.concatenate([[0], np.cumsum(self.sizes)])
        return Samples(
            self.features[rows[start] : rows[stop]],
            self.contexts[start:stop],
            self.sizes[start:stop],
            self.target[start:stop],
        )


@dataclass(frozen=True, eq=False, slots=True)
class Trained:
    """`weights`: (features,) float64, None: not better than the blend, or too little to learn from. `metrics`: for the manifest.
    `sequence`: of the log's items, or of the first of them."""

    weights: F64 | None
    metrics: Mapping[str, float]
    sequence: SequenceNet | None = None


def train_ranker(
    log: PlayLog,
    past_factors: PastFactors,
    parameters: FoldInParameters,
    *,
    plays: int,
    max_plays: int,
    period_ms: int = DAY_MS,
    sequence_epochs: int = 0,
    sequence: SequenceNet | None = None,
) -> Trained:
    """Train on `plays` of the newest of the log. `max_plays`: kept in a state. `period_ms`: between two nights. `sequence`: a model trained
    on older plays, None: it is trained now, in `sequence_epochs`."""
    begin = max(len(log) - SPREAD * plays, round(len(log) * (1 - SHARE)))
    if len(log) - begin < FEWEST:
        return Trained(None, {})
    if sequence is None:
        sequence = train_sequence(log.first(begin), sequence_epochs)
    samples = gather_samples(
        log, begin, past_factors, parameters, max_plays=max_plays, period_ms=period_ms, most=plays, sequence=sequence
    )
    held = len(samples.sizes) - round(len(samples.sizes) * HELD_OUT)
    first, last = samples.part(0, held), samples.part(held, len(samples.sizes))
    if (first.target >= 0).sum() < FEWEST:
        return Trained(None, {})
    learnt = fit(first)
    mine, blended = ndcg(last, learnt), ndcg(last, blend_weights())
    metrics = {"ranker_plays": float(len(samples.sizes)), "ranker_ndcg@10": mine, "blend_ndcg@10": blended}
    return Trained(fit(samples, learnt) if mine >= blended else None, metrics, sequence)


def blend_weights() -> F64:
    """The blend of `ranking.rows` as weights of features: w · als + (1 − w) · popularity, with 1 − w = new."""
    weights = {"taste": 1.0, "taste_if_new": -1.0, "popularity_if_new": 1.0}
    return np.array([weights.get(name, 0.0) for name in FEATURES])


def gather_samples(
    log: PlayLog,
    begin: int,
    past_factors: PastFactors,
    parameters: FoldInParameters,
    *,
    max_plays: int,
    period_ms: int,
    most: int | None = None,
    sequence: SequenceNet | None = None,
) -> Samples:
    """Candidates and features for the liked plays from `begin` on of what the viewer had not watched before. `most`: of more plays so many
    are drawn, the same ones each time; None: all."""
    newest = len(log) - begin
    drawn = np.ones(newest, np.bool_)
    if most is not None and most < newest:
        drawn[np.random.default_rng(SEED).permutation(newest)[most:]] = False
    began_ms = int(log.time_ms[begin])
    ids, Y = past_factors(began_ms)
    row_of = {item_id: row for row, item_id in enumerate(ids)}
    at = np.array([row_of.get(item_id, -1) for item_id in log.item_ids])
    factors = np.where((at >= 0)[:, None], Y[at], 0).astype(np.float32)
    counts = Counts(log)
    features, contexts, sizes, target = [], [], [], []
    starts = chunk_starts(log.time_ms, begin, period_ms)
    for start, stop in zip(starts, [*starts[1:], len(log)], strict=True):
        counts.advance(start)
        generation = _generation(log, counts, factors, start, parameters, sequence)
        wanted = np.arange(start, stop)
        wanted = wanted[log.is_first[wanted] & (log.strength[wanted] > 0) & drawn[wanted - begin]]
        for part in np.split(wanted, range(AT_ONCE, len(wanted), AT_ONCE)):
            viewers = [state_before(log, play, max_plays) for play in part.tolist()]
            for play, found in zip(
                part.tolist(), rank_candidates(generation, viewers, int(log.time_ms[start])), strict=True
            ):
                place = np.flatnonzero(found.rows == log.item[play])
                features.append(found.features.astype(np.float32))
                contexts.append(found.context)
                sizes.append(len(found.rows))
                target.append(int(place[0]) if len(place) else -1)
    return Samples(
        np.concatenate(features) if features else np.zeros((0, len(BASE)), np.float32),
        np.array(contexts).reshape(len(contexts), len(CONTEXTS)),
        np.array(sizes, np.int64),
        np.array(target, np.int64),
    )


def chunk_starts(time_ms: I64, begin: int, period_ms: int) -> list[int]:
    """First play of each chunk: whole periods, at most `MOST_CHUNKS` chunks."""
    span = int(time_ms[-1] - time_ms[begin]) + 1
    period = period_ms * -(-span // (period_ms * MOST_CHUNKS))
    number = (time_ms[begin:] - time_ms[begin]) // period
    return (begin + np.flatnonzero(np.diff(number, prepend=-1))).tolist()


def _generation(
    log: PlayLog,
    counts: Counts,
    factors: F32,
    known: int,
    parameters: FoldInParameters,
    sequence: SequenceNet | None,
) -> Generation:
    """What a night after the first `known` plays would have published, but for the factors' age."""
    n = log.n_items(known)
    tables = counts.tables(int(log.time_ms[known]), np.zeros(len(FEATURES)), n_rows=n, sequence=sequence)
    ids, Y = list(log.item_ids[:n]), np.ascontiguousarray(factors[:n])
    return make_generation("training", ids, Y, log.popularity(known), parameters, tables)


def state_before(log: PlayLog, play: int, max_plays: int) -> RankingInput:
    """What the viewer had watched before a play, as `viewers.signals.item_signals` orders it: newest first, one signal an item."""
    earlier = []
    at = int(log.previous[play])
    while at >= 0:
        earlier.append(at)
        at = int(log.previous[at])
    rows = np.array(earlier, dtype=np.int64)
    rows = rows[np.lexsort((-log.digest[rows], -log.time_ms[rows]))]
    strength: dict[int, float] = {}
    newest: dict[int, int] = {}
    kept = rows[:max_plays]
    columns = (log.item[kept].tolist(), log.strength[kept].tolist(), log.time_ms[kept].tolist())
    for item, value, time_ms in zip(*columns, strict=True):
        known = strength.get(item)
        newest.setdefault(item, time_ms)
        if known is None or (abs(value), value) > (abs(known), known):
            strength[item] = value
    ids = log.item_ids
    return RankingInput(
        [ids[item] for item in strength],
        list(strength.values()),
        list(range(len(strength))),
        frozenset(ids[item] for item in log.item[rows].tolist()),
        np.zeros(0, dtype=np.int64),
        newest_ms=int(log.time_ms[rows[0]]) if len(rows) else None,
        times_ms=list(newest.values()),
    )


def fit(samples: Samples, begin: F64 | None = None) -> F64:
    """(features,) float64. Plays whose title was not among the candidates teach nothing. `begin`: weights to start from."""
    kept, sizes, watched = _sampled(samples)
    Z = samples.features[kept]
    chosen = samples.target >= 0
    starts = np.cumsum(sizes) - sizes
    mean, scale = Z.mean(axis=0, dtype=np.float64), Z.std(axis=0, dtype=np.float64)
    scale[scale < 1e-6] = np.inf  # a feature that never differs weighs nothing
    Z -= mean.astype(np.float32)
    Z /= scale.astype(np.float32)
    contexts = samples.contexts[chosen]  # (plays, contexts)
    of_row = np.repeat(contexts, sizes, axis=0).astype(np.float32)
    Z_watched = contexts.T @ Z[watched] / len(sizes)  # (contexts, features)

    def loss(b: F64) -> tuple[float, F64]:
        W = b.reshape(Z_watched.shape)
        s = np.einsum("rc,rc->r", Z @ W.T.astype(np.float32), of_row).astype(np.float64)
        e = np.exp(s - np.repeat(np.maximum.reduceat(s, starts), sizes))
        total = np.add.reduceat(e, starts)
        p = (e / np.repeat(total * len(sizes), sizes)).astype(np.float32)
        value = -float(np.mean(np.log(e[watched] / total))) + L2 * float(b @ b)
        expected = (of_row * p[:, None]).T @ Z
        return value, (expected - Z_watched).ravel() + 2 * L2 * b

    known = np.tile(np.where(np.isfinite(scale), scale, 0), len(CONTEXTS))
    b = np.zeros(len(FEATURES)) if begin is None else begin * known
    with threadpool_limits(1, "blas"):
        found = minimize(loss, b, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
    weights: F64 = found.x / np.tile(scale, len(CONTEXTS))
    return weights


def _sampled(samples: Samples) -> tuple[I64, I64, I64]:
    """What is learnt from: rows, how many of each play whose title was among its candidates, where in them is what was watched. That is
    kept always, of the others about `OTHERS` a play: twice as many take twice as long and teach hardly more. The same each time."""
    chosen = np.repeat(samples.target >= 0, samples.sizes)
    watched = (np.cumsum(samples.sizes) - samples.sizes + samples.target)[samples.target >= 0]
    drawn = np.random.default_rng(SEED).random(len(chosen)) < np.repeat(OTHERS / samples.sizes.clip(1), samples.sizes)
    drawn[watched] = True
    kept = np.flatnonzero(drawn & chosen)
    play = np.repeat(np.arange(len(samples.sizes)), samples.sizes)[kept]
    sizes = np.bincount(play, minlength=len(samples.sizes))[samples.target >= 0]
    return kept, sizes, np.searchsorted(kept, watched)


def ndcg(samples: Samples, weights: F64) -> float:
    """NDCG@10 over all plays, those without a candidate counting as missed; what scores the same counts as ahead."""
    of_play = samples.contexts @ weights.reshape(len(CONTEXTS), len(BASE))
    scores = np.einsum("rf,rf->r", samples.features, np.repeat(of_play, samples.sizes, axis=0))
    total, stop = 0.0, 0
    for size, target in zip(samples.sizes.tolist(), samples.target.tolist(), strict=True):
        start, stop = stop, stop + size
        if target >= 0:
            own: NDArray[np.float64] = scores[start:stop]
            rank = int((own >= own[target]).sum())
            total += 1 / float(np.log2(rank + 1)) if rank <= TOP else 0.0
    return total / max(1, len(samples.sizes))
