"""Fold-in, compiled: `embeddings/foldin.py` says what is computed; this is how, for one viewer at a time.

With P = (YtY + λI)⁻¹ and the rows of YP = Y P at hand (made once a generation), few items (n < k) need no k × k work at all:

    K = U P Uᵀ,  M = I + D^½ K D^½ (symmetric, positive definite)
    x = P Uᵀ z,                z = c⁺ − D^½ M⁻¹ D^½ K c⁺
    y_iᵀ A⁻¹ y_j = h_i / √d_i,  h = M⁻¹ D^½ g,  g = U P y_j           (contributions to the score of item j)

d_i = |c_i| − 1 is kept above `LEAST_D` in this form, so that the division is one: far less than anybody can see. For many items
A itself is built and factored. Both factor with Cholesky in float64; K is summed in float32.

Loops over a row of a matrix run in steps of `LANES` past what is needed (into zeros): without a remainder they vectorize.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embeddings.compiled import jit, jit_sums

LANES = 16
LEAST_D = 1e-12

Array = NDArray[Any]
_0 = np.float32(0)


@jit
def padded(n: int) -> int:
    """n up to a multiple of `LANES`."""
    return (n + LANES - 1) // LANES * LANES


@jit_sums
def dot(A: Array, i: int, B: Array, j: int, k: int) -> Any:
    """Row i of A times row j of B, float32."""
    total = _0
    for m in range(k):
        total += A[i, m] * B[j, m]
    return total


@jit_sums
def dot4(A: Array, i: int, B: Array, j: Array, at: int, k: int) -> Any:
    """Row i of A times the rows j[at … at + 3] of B, float32: loads row i once."""
    a = b = c = d = _0
    ja, jb, jc, jd = j[at], j[at + 1], j[at + 2], j[at + 3]
    for m in range(k):
        v = A[i, m]
        a += v * B[ja, m]
        b += v * B[jb, m]
        c += v * B[jc, m]
        d += v * B[jd, m]
    return a, b, c, d


@jit
def gram(YP: Array, Y: Array, rows: Array, n: int, K: Array) -> None:
    """K = U P Uᵀ, (n, n) with both halves. `K`: (≥ n, ≥ n) float64."""
    k = Y.shape[1]
    for i in range(n):
        r, j = rows[i], i
        while j + 4 <= n:
            K[i, j], K[i, j + 1], K[i, j + 2], K[i, j + 3] = dot4(YP, r, Y, rows, j, k)
            j += 4
        while j < n:
            K[i, j] = dot(YP, r, Y, rows[j], k)
            j += 1
        for j in range(i):
            K[i, j] = K[j, i]


@jit_sums
def factor(L: Array, n: int, w: Array) -> None:
    """M = LᵀL in place, rows of L being columns of the usual Cholesky factor. What lies left of the diagonal means nothing then.

    `L`: (≥ n, ≥ padded(n)) float64, M symmetric in its first n rows, zeros right of it. `w`: (≥ padded(n),) scratch.
    """
    m = padded(n)
    for j in range(n):
        start = j // LANES * LANES
        count = m - start
        row = L[j, start:m]
        for i in range(count):
            w[i] = row[i]
        p = 0
        while p + 8 <= j:
            a0, a1, a2, a3 = L[p, j], L[p + 1, j], L[p + 2, j], L[p + 3, j]
            a4, a5, a6, a7 = L[p + 4, j], L[p + 5, j], L[p + 6, j], L[p + 7, j]
            r0, r1, r2, r3 = L[p, start:m], L[p + 1, start:m], L[p + 2, start:m], L[p + 3, start:m]
            r4, r5, r6, r7 = L[p + 4, start:m], L[p + 5, start:m], L[p + 6, start:m], L[p + 7, start:m]
            for i in range(count):
                w[i] -= (a0 * r0[i] + a1 * r1[i] + a2 * r2[i] + a3 * r3[i]) + (
                    a4 * r4[i] + a5 * r5[i] + a6 * r6[i] + a7 * r7[i]
                )
            p += 8
        while p < j:
            a, r = L[p, j], L[p, start:m]
            for i in range(count):
                w[i] -= a * r[i]
            p += 1
        scale = 1.0 / math.sqrt(w[j - start])
        for i in range(count):
            row[i] = w[i] * scale


@jit_sums
def solve_factored(L: Array, n: int, b: Array) -> None:
    """b ← M⁻¹ b for the factored M. `b`: (≥ n,) float64."""
    for j in range(n):
        b[j] /= L[j, j]
        v = b[j]
        for i in range(j + 1, n):
            b[i] -= v * L[j, i]
    for j in range(n - 1, -1, -1):
        total = b[j]
        for i in range(j + 1, n):
            total -= L[j, i] * b[i]
        b[j] = total / L[j, j]


@jit
def fold(
    Y: Array, YP: Array, A0: Array, rows: Array, c: Array, n: int, L: Array, K: Array, z: Array, w: Array, x: Array
) -> None:
    """A viewer's vector from n unique item rows and their signed confidences; the factor stays in `L` for `contributions`.

    `Y`, `YP`: (n_items, k) float32. `A0`: (k, k) float64, YtY + λI. `rows`: (≥ n,) int32. `c`: (≥ n,) float64.
    `L`: (≥ k, ≥ padded(k)) float64, `K`: (≥ k and 4, ≥ k) float64, `z`, `w`: (≥ padded(k), ≥ padded(n)) float64 scratch.
    `x`: (k,) float32, the result.
    """
    if n < Y.shape[1]:
        _fold_few(Y, YP, rows, c, n, L, K, z, w, x)
    else:
        _fold_many(Y, A0, rows, c, n, L, K, z, w, x)


@jit_sums
def _fold_few(
    Y: Array, YP: Array, rows: Array, c: Array, n: int, L: Array, K: Array, z: Array, w: Array, x: Array
) -> None:
    k = Y.shape[1]
    gram(YP, Y, rows, n, K)
    for i in range(n):
        w[i] = math.sqrt(max(abs(c[i]) - 1.0, LEAST_D))
    for i in range(n):
        total = 0.0
        for j in range(n):
            total += K[i, j] * max(c[j], 0.0)
        z[i] = total * w[i]  # D^½ K c⁺
    for i in range(n):
        for j in range(n):
            L[i, j] = w[i] * K[i, j] * w[j]
        L[i, i] += 1.0
        for j in range(n, padded(n)):
            L[i, j] = 0.0
    factor(L, n, w)
    solve_factored(L, n, z)
    for m in range(k):
        w[m] = 0.0
    for i in range(n):
        v = max(c[i], 0.0) - math.sqrt(max(abs(c[i]) - 1.0, LEAST_D)) * z[i]
        r = YP[rows[i]]
        for m in range(k):
            w[m] += v * r[m]
    for m in range(k):
        x[m] = w[m]


@jit_sums
def _fold_many(
    Y: Array, A0: Array, rows: Array, c: Array, n: int, L: Array, K: Array, z: Array, w: Array, x: Array
) -> None:
    """Four items at a time (as float64 in the first rows of `K`; those beyond n count nothing), half of the symmetric matrix."""
    k = Y.shape[1]
    for a in range(k):
        z[a] = 0.0
        for b in range(k):
            L[a, b] = A0[a, b]
        for b in range(k, padded(k)):
            L[a, b] = 0.0
    for i in range(0, n, 4):
        for j in range(4):
            at = min(i + j, n - 1)
            y, known, positive = Y[rows[at]], K[j], max(c[at], 0.0) if i + j < n else 0.0
            for m in range(k):
                known[m] = y[m]
                z[m] += positive * known[m]
        d0 = abs(c[i]) - 1.0
        d1 = abs(c[i + 1]) - 1.0 if i + 1 < n else 0.0
        d2 = abs(c[i + 2]) - 1.0 if i + 2 < n else 0.0
        d3 = abs(c[i + 3]) - 1.0 if i + 3 < n else 0.0
        for a in range(k):
            start = a // LANES * LANES
            row, y0, y1, y2, y3 = L[a, start:k], K[0, start:k], K[1, start:k], K[2, start:k], K[3, start:k]
            v0, v1, v2, v3 = d0 * K[0, a], d1 * K[1, a], d2 * K[2, a], d3 * K[3, a]
            for b in range(k - start):
                row[b] += (v0 * y0[b] + v1 * y1[b]) + (v2 * y2[b] + v3 * y3[b])
    factor(L, k, w)
    solve_factored(L, k, z)
    for m in range(k):
        x[m] = z[m]


@jit_sums
def contributions(
    Y: Array, YP: Array, rows: Array, c: Array, n: int, L: Array, items: Array, count: int, Z: Array, out: Array
) -> None:
    """What each folded item adds to the scores of `count` ≤ LANES item rows: into `out` (≥ n, LANES); a column sums to y·x.

    `L`: as `fold` left it. `items`: (LANES,) int32, those beyond `count` any valid row. `Z`: (≥ max(n, k), LANES) float64 scratch.
    Disliked items add nothing: they act through A.
    """
    k = Y.shape[1]
    if n < k:
        for i in range(n):
            root = math.sqrt(max(abs(c[i]) - 1.0, LEAST_D))
            for e in range(0, LANES, 4):
                if e >= count:
                    Z[i, e] = Z[i, e + 1] = Z[i, e + 2] = Z[i, e + 3] = 0.0
                else:
                    g0, g1, g2, g3 = dot4(YP, rows[i], Y, items, e, k)
                    Z[i, e], Z[i, e + 1], Z[i, e + 2], Z[i, e + 3] = root * g0, root * g1, root * g2, root * g3
        solve_lanes(L, n, Z)
        for i in range(n):
            scale = max(c[i], 0.0) / math.sqrt(max(abs(c[i]) - 1.0, LEAST_D))
            for e in range(LANES):
                out[i, e] = scale * Z[i, e]
    else:
        for m in range(k):
            for e in range(LANES):
                Z[m, e] = Y[items[e], m]
        solve_lanes(L, k, Z)
        for i in range(n):
            y, sums, positive = Y[rows[i]], out[i], max(c[i], 0.0)
            for e in range(LANES):
                sums[e] = 0.0
            for m in range(k):
                v, z = positive * y[m], Z[m]
                for e in range(LANES):
                    sums[e] += v * z[e]


@jit_sums
def solve_lanes(L: Array, n: int, B: Array) -> None:
    """B ← M⁻¹ B for the factored M and LANES right-hand sides at once. `B`: (≥ n, LANES) float64."""
    for j in range(n):
        b, scale = B[j], 1.0 / L[j, j]
        for e in range(LANES):
            b[e] *= scale
        for i in range(j + 1, n):
            v, other = L[j, i], B[i]
            for e in range(LANES):
                other[e] -= v * b[e]
    for j in range(n - 1, -1, -1):
        b, scale = B[j], 1.0 / L[j, j]
        for i in range(j + 1, n):
            v, other = L[j, i], B[i]
            for e in range(LANES):
                b[e] -= v * other[e]
        for e in range(LANES):
            b[e] *= scale
