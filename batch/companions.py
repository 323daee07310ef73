"""What goes with each title, for the rows that are about one: `embeddings/companions.py`.

    score_ij = share_ij + (1 − Σ_k share_ik) · q_ij        q_ij = p_j · exp(β · cos(y_i, y_j)) / Σ_k p_k · exp(β · cos(y_i, y_k))

share_ij: how often j is watched next after i, as the night has counted it (`batch/tables.py`). It sums to less than one, the less the
rarer i is watched; that rest is given to what is popular (p) and near in taste. So a score is how likely j comes next after i: by counts
for a title that many have watched, by taste for one that few have. Chosen by plays of before the test share, as the share of them that
were among the first ten that go with the play before (3,779 of MovieTweetings, 6,838 of MovieLens-1M): this 0.128 and 0.215; β = 2: 0.127
and 0.215, β = 8: 0.123 and 0.209; share, with cos deciding between equals, 0.113 and 0.214; lift alone 0.034 and 0.123; cos alone 0.029
and 0.115. Making them took 0.2 ms a title of one core (60,000 titles, k = 64).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from embeddings.companions import KEPT, Lists
from embeddings.generation import F32, F64, I64, Generation
from embeddings.tables import Cowatch

BETA = 4.0
LOOKED_AT = 20_000
"""Most popular titles that are looked at for taste: the work grows with the catalogue, not with its square."""
AT_ONCE = 128
"""Titles compared at once with all of these: 10 MB."""


def make_companions(generation: Generation, shown: NDArray[np.bool_] | None = None) -> Lists:
    """`shown`: (n_items,) bool, titles that may be shown at all; None: every one. What nobody has played goes with nothing."""
    n = generation.n_items
    may = generation.popularity > 0 if shown is None else shown & (generation.popularity > 0)
    near = np.sort(generation.popular_order[may[generation.popular_order]][:LOOKED_AT])
    lists = [_NOTHING] * n
    if len(near):
        lists = _Maker(generation, may, near).lists()
    sizes = np.array([len(rows) for rows, _ in lists], np.int64)
    return Lists(
        np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]),
        np.concatenate([rows for rows, _ in lists]).astype(np.int32),
        np.concatenate([scores for _, scores in lists]).astype(np.float32),
    )


_NOTHING: tuple[I64, F64] = (np.zeros(0, np.int64), np.zeros(0))


class _Maker:
    """`may`: (n_items,) bool. `near`: rows that are looked at for taste, ascending, at least one."""

    def __init__(self, generation: Generation, may: NDArray[np.bool_], near: I64) -> None:
        Y = generation.item_factors
        self._U: F32 = Y / np.maximum(np.linalg.norm(Y, axis=1, keepdims=True), np.float32(1e-9))
        self._cowatch = _cowatch(generation)
        self._popularity = generation.popularity.astype(np.float64)
        self._may, self._near = may, near

    def lists(self) -> list[tuple[I64, F64]]:
        """Of each title: (rows, scores), best first."""
        found: list[tuple[I64, F64]] = []
        weights, transposed = self._popularity[self._near].astype(np.float32), self._U[self._near].T
        at = min(KEPT, len(self._near) - 1)
        for start in range(0, len(self._U), AT_ONCE):
            likely = weights * np.exp(np.float32(BETA) * (self._U[start : start + AT_ONCE] @ transposed))
            best = np.argpartition(-likely, at, axis=1)[:, : at + 1]  # one more than kept: it may be the title itself
            whole = likely.sum(axis=1, dtype=np.float64)
            found += [
                self._list(start + i, self._near[best[i]], float(whole[i])) if self._popularity[start + i] else _NOTHING
                for i in range(len(likely))
            ]
        return found

    def _list(self, row: int, closest: I64, whole: float) -> tuple[I64, F64]:
        """`whole`: Σ of the popularity and nearness of all that is looked at. Of equals the lower row comes first."""
        entries = slice(int(self._cowatch.starts[row]), int(self._cowatch.starts[row + 1]))
        followers = self._cowatch.items[entries].astype(np.int64)
        rows = np.union1d(followers, closest)
        share = np.zeros(len(rows))
        share[np.searchsorted(rows, followers)] = self._cowatch.share[entries]
        cosine = self._U[rows].astype(np.float64) @ self._U[row].astype(np.float64)
        likely = self._popularity[rows] * np.exp(BETA * cosine) / whole
        score = share + max(0.0, 1.0 - float(share.sum())) * likely
        kept = self._may[rows] & (rows != row)
        rows, score = rows[kept], score[kept]
        order = np.argsort(-score, kind="stable")[:KEPT]
        return rows[order], score[order]


def _cowatch(generation: Generation) -> Cowatch:
    return Cowatch.empty(generation.n_items) if generation.tables is None else generation.tables.cowatch
