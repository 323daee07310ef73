"""The sources beside taste and popularity, and the features of the ranker: numpy; `ranking/kernel_rows.py` is the compiled twin.

Sources: what is watched after the viewer's newest plays (`cowatch`), and what was watched most in the last day and week (`trending`).
Features of a candidate, in the order of `embeddings.tables.BASE`:

    taste                y·x
    popularity           log-scaled to 0…1
    trend_…              log-scaled decayed plays, by half-life
    follows_…            lift after each of the newest plays: of the last, the one before, …, sums over the 4th to 6th and the 7th to 15th;
                         each for what comes at any distance, next, soon, and later
    follows_any          log(1 + Σ_r 0.7^r · share_r / 0.001): how often it comes after any of them
    sequence             what the sequence model says above the mean candidate (`embeddings/sequence.py`)

Each is 0 where nothing is known, so that a group's part of the score (weights times features) says what that source adds to a title
of which nothing is known. The weights are those of the moment: W ctx, where ctx (`context`) says how much is known of the viewer, how long
ago the last play was, and how long the history is. The score is the sum of the five parts. Training uses these same functions
(`batch/ranker.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embeddings.foldin import FoldedViewer
from embeddings.generation import F64, I64, Generation
from embeddings.sequence import PLACES, play_parts, scores, viewer_vector
from embeddings.tables import BASE, CONTEXTS, SLOTS, STEPS, Tables

SLOT = (0, 1, 2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4)
"""Place of a followed play, newest first → which of `SLOTS` it belongs to."""
FOLLOWED = len(SLOT)
"""Newest liked plays whose followers are looked up."""
FOLLOWERS_TAKEN = 250
"""Candidates taken of what follows: those that reach a value that so many reach, and hardly more."""
TRENDING_TAKEN = 40
"""Candidates taken of each order of trends."""
FADING = 0.7
"""How much less the followers of a play count than those of the next newer one."""
FADED = FADING ** np.arange(FOLLOWED)
LEAST_SHARE = 0.001
"""Share at which following begins to show."""
AWAY_MS = 6 * 3_600_000
"""Time since the last play at which a viewer is half away."""
LONG = 20
"""Signals at which a history is half long."""

TASTE, POPULARITY, TREND, LIFT, ANY, SEQUENCE = 0, 1, 2, 7, 27, 28
"""First feature of each kind."""
PARTS = (
    slice(TASTE, POPULARITY),
    slice(POPULARITY, TREND),
    slice(LIFT, SEQUENCE),
    slice(TREND, LIFT),
    slice(SEQUENCE, SEQUENCE + 1),
)
"""Features of each source, in the order of `ranking.rows.SOURCES`."""

POPULAR = 1
"""By index into `ranking.rows.SOURCES`."""

assert len(BASE) == SEQUENCE + 1
assert len(SLOTS) * len(STEPS) == ANY - LIFT


@dataclass(frozen=True, eq=False, slots=True)
class Following:
    """What is watched after a viewer's newest liked plays, one list after another, newest play first.

    `place`: (entries,) int64, which play, 0 the newest. `items`, `share`: (entries,). `lift`: (entries, steps).
    """

    place: I64
    items: I64
    share: F64
    lift: F64


@dataclass(frozen=True, eq=False, slots=True)
class History:
    """A viewer's newest liked titles that the generation has, newest first, at most `PLACES`. `rows`: (n,). `ages_ms`: (n,) how much
    older than the newest each is. `places`: (n,) which of the viewer's known signals each is."""

    rows: I64
    ages_ms: I64
    places: I64


_NONE: I64 = np.zeros(0, np.int64)
NO_HISTORY = History(_NONE, _NONE, _NONE)


def history(
    generation: Generation, item_ids: Sequence[str], strengths: Sequence[float], times_ms: Sequence[int]
) -> History:
    """Of a viewer's signals, newest first. `times_ms`: when each was played last; empty: not known, as if all at once."""
    index, times = generation.index, times_ms or [0] * len(item_ids)
    known = [(index[item], s, t) for item, s, t in zip(item_ids, strengths, times, strict=True) if item in index]
    liked = [(row, t, place) for place, (row, s, t) in enumerate(known) if s > 0][:PLACES]
    rows, at_ms, places = np.array(liked, np.int64).reshape(-1, 3).T
    return History(rows, at_ms[:1] - at_ms, places)


def following(tables: Tables, folded: FoldedViewer) -> Following:
    """The followers of the newest `FOLLOWED` plays that were liked."""
    c = tables.cowatch
    plays = followed_plays(tables, folded)
    starts, stops = c.starts[plays], c.starts[plays + 1]
    sizes = stops - starts
    place = np.repeat(np.arange(len(plays)), sizes)
    entries = np.arange(int(sizes.sum())) + np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)
    return Following(
        place,
        c.items[entries].astype(np.int64),
        c.share[entries].astype(np.float64),
        c.lift[entries].astype(np.float64),
    )


def followed_plays(tables: Tables, folded: FoldedViewer) -> I64:
    """Rows of the newest liked plays; nothing follows a topic or a creator."""
    liked: I64 = folded.rows[(folded.c > 0) & (folded.rows < len(tables.cowatch.starts) - 1)][:FOLLOWED]
    return liked


def further_candidates(tables: Tables, follows: Following, showable: NDArray[np.bool_]) -> I64:
    """Rows from the two sources, some more than once. `showable`: (n_items,) bool, allowed and not excluded."""
    here = showable[follows.items] & (follows.share > 0)
    faded = FADED[follows.place[here]] * follows.share[here]
    items, inverse = np.unique(follows.items[here], return_inverse=True)
    mass: F64 = np.bincount(inverse, faded, minlength=len(items)).astype(np.float64)
    most = mass >= (_floor(mass, FOLLOWERS_TAKEN) if len(items) > FOLLOWERS_TAKEN else -np.inf)
    trending = [order[showable[order]][:TRENDING_TAKEN] for order in tables.trending_orders]
    return np.concatenate([items[most], *trending])


def _floor(values: F64, wanted: int) -> float:
    """A value that at least `wanted` reach and hardly more do, as `kernel_topk.reached` finds it."""
    low, high = float(values.min()), float(values.max())
    for _ in range(64):
        middle = low + (high - low) * 0.5
        if middle <= low or middle >= high:
            break
        count = int((values >= middle).sum())
        low, high = (middle, high) if count >= wanted else (low, middle)
        if wanted <= count <= wanted + wanted // 16:
            break
    return low


def context(w: float, signals: int, away_ms: int) -> F64:
    """(contexts,) what is known of the moment. `w`: weight of the evidence. `signals`: how many the viewer has. `away_ms`: since the last
    play, at least 0."""
    return np.array([1.0, 1 - w, away_ms / (away_ms + AWAY_MS), signals / (signals + LONG)])


def weights_of(tables: Tables, ctx: F64) -> F64:
    """(features of `BASE`,) the weights of a moment: those of each context, one after another."""
    result = np.zeros(len(BASE))
    for value, weights in zip(ctx.tolist(), tables.weights.reshape(len(CONTEXTS), len(BASE)), strict=True):
        result += value * weights
    return result


def features(
    generation: Generation, tables: Tables, rows: I64, als: F64, follows: Following, history: History = NO_HISTORY
) -> F64:
    """(m,) distinct ascending rows and their y·x → (m, features of `BASE`)."""
    result = np.zeros((len(rows), len(BASE)))
    result[:, TASTE] = als
    result[:, POPULARITY] = generation.popularity_score[rows]
    result[:, TREND:LIFT] = tables.trends[rows]
    at, known = _positions(rows, follows.items)
    cell = at * len(SLOTS) + np.array(SLOT)[follows.place[known]]
    for step in range(len(STEPS)):
        lifts = np.bincount(cell, follows.lift[known, step], minlength=len(SLOTS) * len(rows))
        result[:, LIFT + step : ANY : len(STEPS)] = lifts.reshape(len(rows), len(SLOTS))
    shares = np.bincount(at, FADED[follows.place[known]] * follows.share[known], minlength=len(rows))
    result[:, ANY] = np.log1p(shares / LEAST_SHARE)
    if tables.sequence is not None and len(history.rows):
        u = viewer_vector(tables.sequence, history.rows, history.ages_ms)
        result[:, SEQUENCE] = scores(tables.sequence, u, rows)
    return result


def _positions(rows: I64, items: I64) -> tuple[I64, NDArray[np.bool_]]:
    """Where the items are among ascending rows: positions of those that are there, and which are."""
    if not len(rows):
        return np.zeros(0, np.int64), np.zeros(len(items), np.bool_)
    at = np.minimum(np.searchsorted(rows, items), len(rows) - 1)
    known = rows[at] == items
    return at[known], known


def parts(weights: F64, values: F64) -> F64:
    """(features of `BASE`,), (m, features of `BASE`) → (m, sources): what each source adds to the score."""
    weighted = values * weights
    return np.stack([weighted[:, part].sum(axis=1) for part in PARTS], axis=1)


def origins(of_source: F64) -> I64:
    """(m, sources) → (m,): of the sources that add anything, the one that lifts a candidate most above the mean candidate (of equals
    the first); the popular one where none adds anything."""
    if not len(of_source):
        return np.zeros(0, np.int64)
    lifts = np.where(of_source != 0, of_source - of_source.mean(axis=0), -np.inf)
    result: I64 = np.where(np.isfinite(lifts).any(axis=1), np.argmax(lifts, axis=1), POPULAR)
    return result


def following_contributions(weights: F64, follows: Following, row: int, n_plays: int) -> F64:
    """What each of the first `n_plays` followed plays adds to the score of a row; they sum to the part of `cowatch`.

    The lift is the play's own; what all have together is dealt out by their shares. `weights`: of the moment.
    """
    here = follows.items == row
    place, faded = follows.place[here], FADED[follows.place[here]] * follows.share[here]
    total = float(faded.sum())
    result = np.zeros(n_plays)
    of_lift = weights[LIFT:ANY].reshape(len(SLOTS), len(STEPS))[np.array(SLOT)[place]]
    result[place] = (of_lift * follows.lift[here]).sum(axis=1)
    if total > 0:
        result[place] += weights[ANY] * np.log1p(total / LEAST_SHARE) * faded / total
    return result


def sequence_contributions(weights: F64, tables: Tables, history: History, row: int) -> F64:
    """What each play of the history adds to the score of a row by the sequence model. The units of its middle layer being on or off as they
    are, it is linear in the plays; what is left of its part are the title's own bias, the units', and the mean of the candidates."""
    if tables.sequence is None or not len(history.rows) or not tables.sequence.known[row]:
        return np.zeros(len(history.rows))
    result: F64 = weights[SEQUENCE] * play_parts(tables.sequence, history.rows, history.ages_ms, row)
    return result


def cold_parts(generation: Generation, tables: Tables, rows: I64) -> F64:
    """(m, sources): the parts of the score of somebody of whom nothing is known."""
    nothing = Following(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros((0, len(STEPS))))
    weights = weights_of(tables, context(0.0, 0, 0))
    return parts(weights, features(generation, tables, rows, np.zeros(len(rows)), nothing))
