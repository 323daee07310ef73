"""Fold-in: a viewer's vector from their signals, against the generation's item factors. Pure.

With unique item rows U inside Y (n_items, k), YtY = YᵀY and signed confidences c (implicit's convention: the stored value
*is* the confidence, negative means disliked):

    A = YtY + λI + Σ_i (|c_i| − 1) y_i y_iᵀ        b = Σ_{c_i > 0} c_i y_i        x = A⁻¹ b

    c_i = ± (1 + α · |s_i| · g · (b₀ + (1 − b₀) · 2^(−rank_i / h)))

(Hu, Koren, Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008; implicit's `recalculate_user`.)

For few items (n < k), with P = (YtY + λI)⁻¹, D = diag(|c| − 1), K = U P Uᵀ (Woodbury, arranged so that |c| = 1 is no
special case):  A⁻¹ v = P v − P Uᵀ (I + D K)⁻¹ D U P v.

Which form is used depends on n and k alone, and every viewer is solved alone, in float64: the result does not depend on who
else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embeddings.generation import F32, F64, I64, FoldInParameters, Generation


def confidences(strengths: Sequence[float], ranks: Sequence[int], p: FoldInParameters) -> F64:
    """Signed confidences: (n,) strengths in −1…1 without 0, (n,) ranks (newest 0) → (n,) float64."""
    s = np.asarray(strengths, dtype=np.float64)
    decay = p.decay_floor + (1 - p.decay_floor) * np.exp2(-np.asarray(ranks, dtype=np.float64) / p.decay_half_life)
    result: F64 = np.sign(s) * (1 + p.alpha * np.abs(s) * p.decay_gain * decay)
    return result


@dataclass(frozen=True, eq=False, slots=True)
class FoldedViewer:
    """A viewer folded into a generation.

    `rows`: (n,) int64, unique item rows. `c`: (n,) float64, their signed confidences. `x`: (k,) float32, the vector.
    `S`: (n, k) float64, row i = A⁻¹ y_i: what `contributions` needs.
    """

    rows: I64
    c: F64
    x: F32
    S: F64

    def contributions(self, Y: F32) -> F64:
        """(m, k) item vectors → (m, n): contribution of each folded item to each score; a row sums to y·x.

        score_j = Σ_{c_i > 0} c_i · y_jᵀ A⁻¹ y_i; disliked items contribute 0: they act through A.
        """
        result: F64 = (Y.astype(np.float64) @ self.S.T) * np.maximum(self.c, 0.0)
        return result


def fold_in(generation: Generation, rows: I64, c: F64) -> FoldedViewer:
    """Fold (n,) unique item rows with (n,) signed confidences into a vector. |c| must be at least 1.

    Errors: ValueError if a row is out of range or repeated, if |c| < 1 or not finite (implicit would crash or return
    another vector).
    """
    n = len(rows)
    if len(c) != n or (n and (rows.min() < 0 or rows.max() >= generation.n_items or len(np.unique(rows)) != n)):
        raise ValueError("fold_in: rows must be unique, inside the catalogue, and as many as the confidences")
    if not np.isfinite(c).all() or (np.abs(c) < 1).any():
        raise ValueError("fold_in: confidences must be finite and at least 1 in magnitude")
    return solve(generation, rows, c)


def solve(generation: Generation, rows: I64, c: F64) -> FoldedViewer:
    """`fold_in` for rows and confidences that are right by construction (`confidences`, rows from the generation's index)."""
    n, k = len(rows), generation.k
    U = generation.fold_factors[rows].astype(np.float64)  # (n, k)
    d = np.abs(c) - 1  # (n,)
    if n < k:
        UP = U @ generation.P  # (n, k) = rows of (P uᵢ)ᵀ, P being symmetric
        DKt = (UP @ U.T) * d  # (n, n) = (DK)ᵀ, as K is symmetric
        DKt.flat[:: n + 1] += 1
        # A⁻¹Uᵀ = PUᵀ (I − (I + DK)⁻¹ DK) = PUᵀ (I + DK)⁻¹; transposed:
        S = np.linalg.solve(DKt, UP)
    else:
        A = generation.YtY + generation.parameters.regularization * np.eye(k) + (U.T * d) @ U
        S = np.linalg.solve(A, U.T).T
    x = np.maximum(c, 0.0) @ S
    return FoldedViewer(rows, c, x.astype(np.float32), S.astype(np.float64, copy=False))
