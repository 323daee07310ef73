"""The sources beside taste and popularity, and the features of the ranker: numpy; `ranking/kernel_rows.py` is the compiled twin.

Sources: what is watched after the viewer's newest plays (`cowatch`), and what was watched most in the last day and week (`trending`).
Features of a candidate, in the order of `embeddings.tables.FEATURES`; w is the weight of the evidence (`ranking/rows.py`):

    taste                y·x, and w times it
    popularity           log-scaled to 0…1, and 1 − w times it
    trend_…              log-scaled decayed plays, by half-life; those of a day and of a week also 1 − w times
    follows_…            lift after each of the newest plays: of the last, the one before, …, sums over the 4th to 6th and the 7th to 15th
    follows_any          log(1 + Σ_r 0.7^r · share_r / 0.001): how often it comes after any of them

Each is 0 where nothing is known, so that a group's part of the score (weights times features) says what that source adds to a title
of which nothing is known. The score is the sum of the four parts. Training uses these same functions (`batch/ranker.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embeddings.foldin import FoldedViewer
from embeddings.generation import F64, I64, Generation
from embeddings.tables import DAY, FEATURES, WEEK, Tables

FOLLOWED = 15
"""Newest liked plays whose followers are looked up."""
SLOTS = (0, 1, 2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4)
"""Place of a followed play, newest first → which of the five lift features it adds to."""
TAKEN = (100, 100, 100, 16, 16, 16)
"""Candidates taken of the followers of each of the newest plays."""
TRENDING_TAKEN = 40
"""Candidates taken of each order of trends."""
FADING = 0.7
"""How much less the followers of a play count than those of the next newer one."""
LEAST_SHARE = 0.001
"""Share at which following begins to show."""

TASTE, POPULARITY, TREND, LIFT, ANY = 0, 2, 4, 11, 16
"""First feature of each kind."""
PARTS = (slice(TASTE, POPULARITY), slice(POPULARITY, TREND), slice(LIFT, ANY + 1), slice(TREND, LIFT))
"""Features of each source, in the order of `ranking.rows.SOURCES`."""

POPULAR = 1
"""By index into `ranking.rows.SOURCES`."""

assert len(FEATURES) == ANY + 1
assert len(SLOTS) == FOLLOWED


@dataclass(frozen=True, eq=False, slots=True)
class Following:
    """What is watched after a viewer's newest liked plays, one list after another, newest play first.

    `place`: (entries,) int64, which play, 0 the newest. `items`, `share`, `lift`: (entries,).
    """

    place: I64
    items: I64
    share: F64
    lift: F64


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
    sizes = np.bincount(follows.place, minlength=FOLLOWED)
    nth = np.arange(len(follows.place)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # in its list
    taken = np.array([*TAKEN, *[0] * (FOLLOWED - len(TAKEN))])
    followers = follows.items[nth < taken[follows.place]]
    trending = [order[showable[order]][:TRENDING_TAKEN] for order in tables.trending_orders]
    return np.concatenate([followers[showable[followers]], *trending])


def features(generation: Generation, tables: Tables, rows: I64, als: F64, w: float, follows: Following) -> F64:
    """(m,) distinct ascending rows and their y·x → (m, features). `w`: weight of the evidence."""
    result = np.zeros((len(rows), len(FEATURES)))
    popularity = generation.popularity_score[rows].astype(np.float64)
    trends = tables.trends[rows].astype(np.float64)
    result[:, TASTE], result[:, TASTE + 1] = als, w * als
    result[:, POPULARITY], result[:, POPULARITY + 1] = popularity, (1 - w) * popularity
    result[:, TREND : TREND + 5] = trends
    result[:, TREND + 5], result[:, TREND + 6] = (1 - w) * trends[:, DAY], (1 - w) * trends[:, WEEK]
    at, known = _positions(rows, follows.items)
    slot = np.array(SLOTS)[follows.place[known]]
    lifts = np.bincount(at * 5 + slot, follows.lift[known], minlength=5 * len(rows))
    shares = np.bincount(at, FADING ** follows.place[known] * follows.share[known], minlength=len(rows))
    result[:, LIFT:ANY] = lifts.reshape(len(rows), 5)
    result[:, ANY] = np.log1p(shares / LEAST_SHARE)
    return result


def _positions(rows: I64, items: I64) -> tuple[I64, NDArray[np.bool_]]:
    """Where the items are among ascending rows: positions of those that are there, and which are."""
    if not len(rows):
        return np.zeros(0, np.int64), np.zeros(len(items), np.bool_)
    at = np.minimum(np.searchsorted(rows, items), len(rows) - 1)
    known = rows[at] == items
    return at[known], known


def parts(tables: Tables, values: F64) -> F64:
    """(m, features) → (m, sources): what each source adds to the score."""
    weighted = values * tables.weights
    return np.stack([weighted[:, part].sum(axis=1) for part in PARTS], axis=1)


def origins(of_source: F64) -> I64:
    """(m, sources) → (m,): of the sources that add anything, the one that lifts a candidate most above the mean candidate (of equals
    the first); the popular one where none adds anything."""
    if not len(of_source):
        return np.zeros(0, np.int64)
    lifts = np.where(of_source != 0, of_source - of_source.mean(axis=0), -np.inf)
    result: I64 = np.where(np.isfinite(lifts).any(axis=1), np.argmax(lifts, axis=1), POPULAR)
    return result


def following_contributions(tables: Tables, follows: Following, row: int, n_plays: int) -> F64:
    """What each of the first `n_plays` followed plays adds to the score of a row; they sum to the part of `cowatch`.

    The lift is the play's own; what all have together is dealt out by their shares.
    """
    here = follows.items == row
    place, faded = follows.place[here], FADING ** follows.place[here] * follows.share[here]
    total = float(faded.sum())
    result = np.zeros(n_plays)
    if total > 0:
        lifts = tables.weights[LIFT + np.array(SLOTS)[place]] * follows.lift[here]
        result[place] = lifts + tables.weights[ANY] * np.log1p(total / LEAST_SHARE) * faded / total
    return result


def prior_parts(generation: Generation, tables: Tables) -> F64:
    """(n_items, 4): what popularity and trends add to every score: popularity, what is taken 1 − w times, trends, and 1 − w times."""
    popularity, b = generation.popularity_score.astype(np.float64), tables.weights
    trends = tables.trends.astype(np.float64)
    columns = (
        b[POPULARITY] * popularity,
        b[POPULARITY + 1] * popularity,
        trends @ b[TREND : TREND + 5],
        b[LIFT - 2] * trends[:, DAY] + b[LIFT - 1] * trends[:, WEEK],
    )
    return np.stack(columns, axis=1)


def cold_parts(generation: Generation, tables: Tables, rows: I64) -> F64:
    """(m, sources): the parts of the score of somebody of whom nothing is known."""
    nothing = Following(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    return parts(tables, features(generation, tables, rows, np.zeros(len(rows)), 0.0, nothing))
