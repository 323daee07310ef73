"""Parts of the kernel as functions of their own, so that each can be measured alone. Compiled when first called."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embeddings import kernel_foldin, kernel_topk
from embeddings.compiled import entry, frozen
from embeddings.generation import F32, F64, Generation

Array = NDArray[Any]

TILE = 32
"""As in `viewers.kernel_batch`."""


class FoldIn:
    """Vectors of many viewers, each folded in alone."""

    def __init__(self, generation: Generation, rows: NDArray[np.int64], c: F64) -> None:
        """`rows`: (viewers, n) item rows, `c`: (viewers, n) confidences."""
        k = generation.k
        wide = kernel_foldin.padded(k)
        self.X: F32 = np.empty((len(rows), k), np.float32)
        YP = (generation.item_factors.astype(np.float64) @ generation.P).astype(np.float32)
        self._arguments = (
            frozen(generation.item_factors),
            frozen(YP),
            frozen(generation.P),
            kernel_foldin.leverage(generation.item_factors, YP),
            frozen(generation.YtY + generation.parameters.regularization * np.eye(k)),
            rows.astype(np.int32),
            c,
            np.zeros((wide, wide)),
            kernel_foldin.make_scratch(k),
            self.X,
        )

    def __call__(self) -> F32:
        """(viewers, k)."""
        _fold_all(*self._arguments)
        return self.X


@entry
def _fold_all(
    Y: Array, YP: Array, P: Array, leverage: float, A0: Array, rows: Array, c: Array, L: Array, t: kernel_foldin.Scratch, X: Array
) -> None:  # fmt: skip
    for v in range(len(rows)):
        kernel_foldin.fold(Y, YP, P, leverage, A0, rows[v], c[v], rows.shape[1], L, t, X[v])


class TopK:
    """The best rows of many vectors minus excluded ones."""

    def __init__(self, Y: F32, X: F32, excluded: NDArray[np.int32], wanted: int) -> None:
        """`X`: (viewers, k), a multiple of `TILE`. `excluded`: (viewers, any) rows."""
        self.rows = np.empty((len(X), wanted), np.int32)
        self._arguments = (
            frozen(Y),
            kernel_topk.make_shelf(Y, np.ones(len(Y), np.bool_)),
            X,
            excluded,
            np.full(len(X), excluded.shape[1]),
            kernel_topk.make_search(TILE, *Y.shape),
            np.empty(kernel_topk.KEPT, np.int32),
            np.empty(kernel_topk.KEPT),
            np.empty(X.shape[1]),
            self.rows,
        )

    def __call__(self) -> NDArray[np.int32]:
        """(viewers, wanted) rows, in no order."""
        _search_all(*self._arguments)
        return self.rows


@entry
def _search_all(
    Y: Array,
    shelf: Any,
    X: Array,
    excluded: Array,
    counts: Array,
    s: Any,
    rows: Array,
    scores: Array,
    x: Array,
    out: Array,
) -> None:
    tile, wanted = len(s.counts), out.shape[1]
    for start in range(0, len(X), tile):
        kernel_topk.search(
            shelf,
            X[start : start + tile],
            tile,
            wanted,
            excluded[start : start + tile],
            counts[start : start + tile],
            s,
        )
        for i in range(tile):
            v = start + i
            for m in range(len(x)):
                x[m] = X[v, m]
            count = kernel_topk.best(Y, shelf, x, i, wanted, excluded[v], counts[v], s, rows, scores)
            for place in range(count):
                out[v, place] = rows[place]
