"""What goes with each title, for the rows that are about one: `embeddings/companions.py`.

    score_ij = share_ij + `NEAR` · max(0, cos(y_i, y_j))

share_ij is how often j is watched next after i (`batch/tables.py`). Taste only decides between equals, and fills short lists. Chosen
by plays of before the test share: how many were among the first ten titles that go with the play before (3,779 of MovieTweetings, 6,838 of
MovieLens-1M): by share 0.111 and 0.213; with taste behind it 0.112 and 0.214; by lift 0.034 and 0.123; by taste alone 0.029 and 0.115.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from embeddings.companions import KEPT, Lists
from embeddings.generation import F32, F64, I64, Generation
from embeddings.tables import Cowatch

NEAR = 1e-4
"""Less than the share of a pair that was seen once or twice."""
LOOKED_AT = 20_000
"""Most popular titles that are looked at for taste: the work grows with the catalogue, not with its square."""
AT_ONCE = 256
"""Titles compared at once with all of these: 20 MB."""


def make_companions(generation: Generation, shown: NDArray[np.bool_] | None = None) -> Lists:
    """`shown`: (n_items,) bool, titles that may be shown at all; None: every one. What nobody has played goes with nothing."""
    n, cowatch = generation.n_items, _cowatch(generation)
    may = generation.popularity > 0 if shown is None else shown & (generation.popularity > 0)
    Y = generation.item_factors
    U: F32 = Y / np.maximum(np.linalg.norm(Y, axis=1, keepdims=True), np.float32(1e-9))
    near = np.sort(generation.popular_order[may[generation.popular_order]][:LOOKED_AT])
    few = np.flatnonzero((np.diff(cowatch.starts) < KEPT) & (generation.popularity > 0))
    closest: dict[int, I64] = {}
    for start in range(0, len(few), AT_ONCE):
        rows = few[start : start + AT_ONCE]
        cosine = U[rows] @ U[near].T
        at = min(KEPT, len(near) - 1)
        best = np.argpartition(-cosine, at, axis=1)[:, : at + 1] if len(near) else np.zeros((len(rows), 0), np.int64)
        closest.update(zip(rows.tolist(), near[best], strict=True))
    lists = [_list(cowatch, U, may, closest, row) for row in range(n)]
    sizes = np.array([len(rows) for rows, _ in lists], np.int64)
    return Lists(
        np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]),
        np.concatenate([rows for rows, _ in lists]).astype(np.int32),
        np.concatenate([scores for _, scores in lists]).astype(np.float32),
    )


def _list(cowatch: Cowatch, U: F32, may: NDArray[np.bool_], closest: dict[int, I64], row: int) -> tuple[I64, F64]:
    """One title's: (rows, scores), best first, of equals the lower row."""
    entries = slice(int(cowatch.starts[row]), int(cowatch.starts[row + 1]))
    followers = cowatch.items[entries].astype(np.int64)
    rows = np.union1d(followers, closest[row]) if row in closest else np.sort(followers)
    share = np.zeros(len(rows))
    share[np.searchsorted(rows, followers)] = cowatch.share[entries]
    # Each alone, so that a list does not depend on which titles were looked at beside it.
    score = share + NEAR * np.maximum(0.0, (U[rows].astype(np.float64) * U[row].astype(np.float64)).sum(axis=1))
    kept = may[rows] & (rows != row) & (score > 0)
    rows, score = rows[kept], score[kept]
    order = np.argsort(-score, kind="stable")[:KEPT]
    return rows[order], score[order]


def _cowatch(generation: Generation) -> Cowatch:
    return Cowatch.empty(generation.n_items) if generation.tables is None else generation.tables.cowatch
