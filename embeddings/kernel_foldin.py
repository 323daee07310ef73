"""Fold-in, compiled: `embeddings/foldin.py` says what is computed; this is how, for one viewer at a time.

With P = (YtY + λI)⁻¹ and the rows of YP = Y P at hand (made once a generation), few items (n < k) need no k × k work at all:

    K = U P Uᵀ,  M = I + D^½ K D^½ (symmetric, positive definite)
    x = P Uᵀ z,                z = c⁺ − D^½ M⁻¹ D^½ K c⁺
    y_iᵀ A⁻¹ y_j = h_i / √d_i,  h = M⁻¹ D^½ g,  g = U P y_j           (contributions to the score of item j)

d_i = |c_i| − 1 is kept above `LEAST_D` in this form, so that the division is one: far less than anybody can see. For many items
A itself is built and factored. Both factor with Cholesky in float64; K is a product in float32.

The oldest plays hardly move A: their rank decay makes d_i small, and what an item can change is at most d_i · yᵀP y. As long as all of
them together stay below `SLIGHT` they are left out of M and make a difference of first order, which is put right by one more solve with
the same factor:

    x₀ = A_m⁻¹ b,  x = x₀ − A_m⁻¹ Σ_{i ≥ m} d_i y_i (y_iᵀ x₀)           (what is left: SLIGHT², 2.5e-7 of x)

Contributions are not put right: half a unit of the float16 that a row keeps of them.

Loops over a row of a matrix run in steps of `LANES` past what is needed (into zeros): without a remainder they vectorize.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embeddings.compiled import jit, jit_counted, jit_sums

LANES = 16
LEAST_D = 1e-12
SLIGHT = 5e-4
"""Of 1: how much the plays that are left out of the matrix may change a score, before that is put right."""

Array = NDArray[Any]


def padded(n: int) -> int:
    """n up to a multiple of `LANES`."""
    return (n + LANES - 1) // LANES * LANES


_padded = jit(padded)


class Scratch(NamedTuple):
    """Of one viewer at a time; `wide` is padded(k)."""

    U: Array  # (wide, k) float32: rows of Y
    V: Array  # (wide, k) float32: rows of Y P
    G: Array  # (wide · wide) float32: their products
    K: Array  # (4, k) float64
    z: Array  # (wide,) float64, and the next three: right-hand sides, the reciprocal diagonal
    w: Array
    inverse: Array
    spare: Array
    old: Array  # (wide,) float64, and the next two: sums over the slight plays, P times that, the vector
    pushed: Array
    x: Array
    Z: Array  # (LANES, wide) float64


def make_scratch(k: int) -> Scratch:
    wide = padded(k)
    return Scratch(
        np.empty((wide, k), np.float32),
        np.empty((wide, k), np.float32),
        np.empty(wide * wide, np.float32),
        np.empty((4, k)),
        *(np.zeros(wide) for _ in range(7)),
        np.zeros((LANES, wide)),
    )


def leverage(Y: Array, YP: Array) -> float:
    """The greatest yᵀP y: how much one more play of any item can change, at most. `Y`, `YP`: (n_items, k) float32."""
    return float(np.einsum("ij,ij->i", Y, YP).max(initial=0.0))


@jit
def gather(A: Array, rows: Array, n: int, out: Array) -> None:
    """The rows of A, one under another."""
    for i in range(n):
        row, copy = A[rows[i]], out[i]
        for m in range(A.shape[1]):
            copy[m] = row[m]


@jit_counted
def products(A: Array, a: int, B: Array, b: int, out: Array) -> None:
    """out ← A[:a] B[:b]ᵀ, (a, b) one row after another: BLAS."""
    np.dot(A[:a], B[:b].T, out[: a * b].reshape((a, b)))


@jit_sums
def factor(L: Array, n: int, w: Array) -> None:
    """M = LᵀL in place, rows of L being columns of the usual Cholesky factor. What lies left of the diagonal means nothing then.

    `L`: (≥ n, ≥ padded(n)) float64, M symmetric in its first n rows, zeros right of it. `w`: (≥ padded(n),) scratch.
    """
    m = _padded(n)
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
        if p + 4 <= j:
            a0, a1, a2, a3 = L[p, j], L[p + 1, j], L[p + 2, j], L[p + 3, j]
            r0, r1, r2, r3 = L[p, start:m], L[p + 1, start:m], L[p + 2, start:m], L[p + 3, start:m]
            for i in range(count):
                w[i] -= (a0 * r0[i] + a1 * r1[i]) + (a2 * r2[i] + a3 * r3[i])
            p += 4
        while p < j:
            a, r = L[p, j], L[p, start:m]
            for i in range(count):
                w[i] -= a * r[i]
            p += 1
        scale = 1.0 / math.sqrt(w[j - start])
        for i in range(count):
            row[i] = w[i] * scale
    for j in range(n, in_fours(n)):  # as if there were more equations, each of one unknown
        for i in range(n // LANES * LANES, m):
            L[j, i] = 0.0
        L[j, j] = 1.0


@jit
def in_fours(n: int) -> int:
    """n up to a multiple of 4."""
    return (n + 3) // 4 * 4


@jit
def invert_diagonal(L: Array, n: int, inverse: Array) -> None:
    """What `solve` multiplies by. `inverse`: (≥ in_fours(n),) float64."""
    for j in range(in_fours(n)):
        inverse[j] = 1.0 / L[j, j]


@jit_sums
def solve(L: Array, inverse: Array, n: int, p: Array, q: Array) -> None:
    """p ← M⁻¹ p and q ← M⁻¹ q for the factored M: two at once read it half as often. Both (≥ in_fours(n),) float64, zeros from n on."""
    m = in_fours(n)
    for j in range(0, m, 4):
        r0, r1, r2, r3 = L[j], L[j + 1], L[j + 2], L[j + 3]
        a01, a02, a03, a12, a13, a23 = r0[j + 1], r0[j + 2], r0[j + 3], r1[j + 2], r1[j + 3], r2[j + 3]
        i0, i1, i2, i3 = inverse[j], inverse[j + 1], inverse[j + 2], inverse[j + 3]
        p0, q0 = p[j] * i0, q[j] * i0
        p1, q1 = (p[j + 1] - a01 * p0) * i1, (q[j + 1] - a01 * q0) * i1
        p2, q2 = (p[j + 2] - a02 * p0 - a12 * p1) * i2, (q[j + 2] - a02 * q0 - a12 * q1) * i2
        p3 = (p[j + 3] - a03 * p0 - a13 * p1 - a23 * p2) * i3
        q3 = (q[j + 3] - a03 * q0 - a13 * q1 - a23 * q2) * i3
        p[j], p[j + 1], p[j + 2], p[j + 3] = p0, p1, p2, p3
        q[j], q[j + 1], q[j + 2], q[j + 3] = q0, q1, q2, q3
        u, v, s0, s1, s2, s3 = p[j + 4 : m], q[j + 4 : m], r0[j + 4 : m], r1[j + 4 : m], r2[j + 4 : m], r3[j + 4 : m]
        for i in range(len(u)):
            u[i] -= (p0 * s0[i] + p1 * s1[i]) + (p2 * s2[i] + p3 * s3[i])
            v[i] -= (q0 * s0[i] + q1 * s1[i]) + (q2 * s2[i] + q3 * s3[i])
    for j in range(m - 4, -1, -4):
        r0, r1, r2, r3 = L[j], L[j + 1], L[j + 2], L[j + 3]
        a01, a02, a03, a12, a13, a23 = r0[j + 1], r0[j + 2], r0[j + 3], r1[j + 2], r1[j + 3], r2[j + 3]
        i0, i1, i2, i3 = inverse[j], inverse[j + 1], inverse[j + 2], inverse[j + 3]
        p0, p1, p2, p3 = p[j], p[j + 1], p[j + 2], p[j + 3]
        q0, q1, q2, q3 = q[j], q[j + 1], q[j + 2], q[j + 3]
        u, v, s0, s1, s2, s3 = p[j + 4 : m], q[j + 4 : m], r0[j + 4 : m], r1[j + 4 : m], r2[j + 4 : m], r3[j + 4 : m]
        for i in range(len(u)):
            p0, p1, p2, p3 = p0 - s0[i] * u[i], p1 - s1[i] * u[i], p2 - s2[i] * u[i], p3 - s3[i] * u[i]
            q0, q1, q2, q3 = q0 - s0[i] * v[i], q1 - s1[i] * v[i], q2 - s2[i] * v[i], q3 - s3[i] * v[i]
        p3, q3 = p3 * i3, q3 * i3
        p2, q2 = (p2 - a23 * p3) * i2, (q2 - a23 * q3) * i2
        p1, q1 = (p1 - a12 * p2 - a13 * p3) * i1, (q1 - a12 * q2 - a13 * q3) * i1
        p[j], p[j + 1], p[j + 2], p[j + 3] = (p0 - a01 * p1 - a02 * p2 - a03 * p3) * i0, p1, p2, p3
        q[j], q[j + 1], q[j + 2], q[j + 3] = (q0 - a01 * q1 - a02 * q2 - a03 * q3) * i0, q1, q2, q3


@jit
def _solve_one(L: Array, n: int, b: Array, t: Scratch) -> None:
    """b ← M⁻¹ b; `t.inverse` is there already."""
    for i in range(n, in_fours(n)):
        b[i] = 0.0
    for i in range(in_fours(n)):
        t.spare[i] = 0.0
    solve(L, t.inverse, n, b, t.spare)


@jit
def weighty(c: Array, n: int, leverage: float) -> int:
    """How many of the first of n items have to be in the matrix: what comes after them changes less than `SLIGHT`. At least one."""
    slight = 0.0
    for m in range(n - 1, 0, -1):
        slight += max(abs(c[m]) - 1.0, 0.0) * leverage
        if slight > SLIGHT:
            return m + 1
    return 1


@jit
def fold(
    Y: Array, YP: Array, P: Array, leverage: float, A0: Array, rows: Array, c: Array, n: int, L: Array, t: Scratch, x: Array
) -> None:  # fmt: skip
    """A viewer's vector from n unique item rows and their signed confidences; the factor stays in `L` for `contributions`.

    `Y`, `YP`: (n_items, k) float32. `P`, `A0`: (k, k) float64, the inverse of YtY + λI and that itself. `leverage`: the greatest yᵀP y.
    `rows`: (≥ n,) int32, those that count least last. `c`: (≥ n,) float64.
    `L`: (≥ padded(k), ≥ padded(k)) float64. `x`: (k,) float32, the result.
    """
    m = weighty(c, n, leverage)
    if m < Y.shape[1]:
        _fold_few(Y, YP, P, rows, c, m, n, L, t)
    else:
        _fold_many(Y, A0, rows, c, n, L, t)
    for j in range(len(x)):
        x[j] = t.x[j]


@jit_sums
def _fold_few(Y: Array, YP: Array, P: Array, rows: Array, c: Array, m: int, n: int, L: Array, t: Scratch) -> None:
    """`m`: of the n, that are in the matrix."""
    k, z, w = Y.shape[1], t.z, t.w
    gather(Y, rows, m, t.U)
    gather(YP, rows, m, t.V)
    products(t.V, m, t.U, m, t.G)
    for j in range(k):
        t.old[j] = t.pushed[j] = 0.0
    for i in range(m, n):
        y, positive = Y[rows[i]], max(c[i], 0.0)
        for j in range(k):
            t.old[j] += positive * y[j]
    if n > m:
        _push(P, k, t)
    for i in range(m):
        w[i] = math.sqrt(max(abs(c[i]) - 1.0, LEAST_D))
    for i in range(m):
        total, known = _dot(t.U[i], t.pushed, k), t.G[i * m : (i + 1) * m]
        for j in range(m):
            total += known[j] * max(c[j], 0.0)
        z[i] = total * w[i]  # D^½ U P b
    for i in range(m):
        known, scale, start, row = t.G[i * m : (i + 1) * m], w[i], i // LANES * LANES, L[i]
        for j in range(start, m):
            row[j] = scale * known[j] * w[j]
        row[i] += 1.0
        for j in range(m, _padded(m)):
            row[j] = 0.0
    factor(L, m, t.spare)
    invert_diagonal(L, m, t.inverse)
    _solve_one(L, m, z, t)
    for j in range(k):
        t.x[j] = t.pushed[j]
    for i in range(m):
        v, row = max(c[i], 0.0) - w[i] * z[i], t.V[i]
        for j in range(k):
            t.x[j] += v * row[j]
    if n > m:
        _put_right(Y, P, rows, c, m, n, L, t)


@jit_sums
def _put_right(Y: Array, P: Array, rows: Array, c: Array, m: int, n: int, L: Array, t: Scratch) -> None:
    """What the items beyond m change in `t.x` by being in A."""
    k = Y.shape[1]
    for j in range(k):
        t.old[j] = 0.0
    for i in range(m, n):
        y = Y[rows[i]]
        pull = (abs(c[i]) - 1.0) * _dot(y, t.x, k)
        for j in range(k):
            t.old[j] -= pull * y[j]
    _push(P, k, t)
    for i in range(m):
        t.z[i] = t.w[i] * _dot(t.U[i], t.pushed, k)
    _solve_one(L, m, t.z, t)
    for j in range(k):
        t.x[j] += t.pushed[j]
    for i in range(m):
        v, row = t.w[i] * t.z[i], t.V[i]
        for j in range(k):
            t.x[j] -= v * row[j]


@jit_sums
def _push(P: Array, k: int, t: Scratch) -> None:
    """`pushed` ← P · `old`."""
    for j in range(k):
        t.pushed[j] = 0.0
    for i in range(k):
        row, value = P[i], t.old[i]
        for j in range(k):
            t.pushed[j] += value * row[j]


@jit_sums
def _dot(y: Array, x: Array, k: int) -> float:
    total = 0.0
    for j in range(k):
        total += y[j] * x[j]
    return total


@jit_sums
def _fold_many(Y: Array, A0: Array, rows: Array, c: Array, n: int, L: Array, t: Scratch) -> None:
    """Four items at a time (as float64; those beyond n count nothing), half of the symmetric matrix."""
    k, K, z = Y.shape[1], t.K, t.z
    for a in range(k):
        z[a] = 0.0
        for b in range(k):
            L[a, b] = A0[a, b]
        for b in range(k, _padded(k)):
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
    factor(L, k, t.w)
    invert_diagonal(L, k, t.inverse)
    _solve_one(L, k, z, t)
    for m in range(k):
        t.x[m] = z[m]


@jit_sums
def contributions(
    Y: Array,
    YP: Array,
    leverage: float,
    rows: Array,
    c: Array,
    n: int,
    L: Array,
    items: Array,
    places: Array,
    count: int,
    t: Scratch,
    out: Array,
) -> None:
    """What each folded item adds to the scores of `count` ≤ LANES item rows, items[places[…]]: into the rows `places` of `out`
    (any, ≥ n) float64; each sums to y·x.

    `L`: as `fold` left it. `items`: int32. `places`: (≥ count,) int64. Disliked items add nothing: they act through A.
    """
    k, w, Z, m = Y.shape[1], t.w, t.Z, weighty(c, n, leverage)
    few = m < k
    size = m if few else k
    for e in range(count):
        y, copy = Y[items[places[e]]], t.U[e]
        for j in range(k):
            copy[j] = y[j]
    if few:
        gather(YP, rows, m, t.V)
        products(t.U, count, t.V, m, t.G)
        for i in range(m):
            w[i] = math.sqrt(max(abs(c[i]) - 1.0, LEAST_D))
    for e in range(count + count % 2):
        for i in range(size, in_fours(size)):
            Z[e, i] = 0.0
        if e == count:  # solved beside the last, for nothing
            for i in range(size):
                Z[e, i] = 0.0
        elif few:
            known = t.G[e * m : (e + 1) * m]
            for i in range(m):
                Z[e, i] = w[i] * known[i]
        else:
            for i in range(k):
                Z[e, i] = t.U[e, i]
    invert_diagonal(L, size, t.inverse)
    for e in range(0, count, 2):
        solve(L, t.inverse, size, Z[e], Z[e + 1])
    for e in range(count):
        solved, found = Z[e], out[places[e]]
        if not few:
            for i in range(n):
                found[i] = max(c[i], 0.0) * _dot(Y[rows[i]], solved, k)
            continue
        for i in range(m):
            found[i] = max(c[i], 0.0) / w[i] * solved[i]
        for i in range(m):
            solved[i] *= w[i]
    if few and n > m:
        _of_the_slight(Y, YP, rows, c, m, n, items, places, count, t, out)


@jit_sums
def _of_the_slight(
    Y: Array, YP: Array, rows: Array, c: Array, m: int, n: int, items: Array, places: Array, count: int, t: Scratch, out: Array
) -> None:  # fmt: skip
    """The same for the items beyond m, by A⁻¹y = P y − V ᵀ(D^½ h) as `fold` has A: `t.Z` holds D^½ h."""
    k = Y.shape[1]
    for e in range(count):
        of_item, solved, inverted = YP[items[places[e]]], t.Z[e], t.x
        for j in range(k):
            inverted[j] = of_item[j]
        for i in range(m):
            v, row = solved[i], t.V[i]
            for j in range(k):
                inverted[j] -= v * row[j]
        for j in range(k):
            t.U[e, j] = inverted[j]
    for start in range(m, n, len(t.V)):
        size = min(len(t.V), n - start)
        gather(Y, rows[start:], size, t.V)
        products(t.U, count, t.V, size, t.G)
        for e in range(count):
            found = out[places[e]]
            for i in range(size):
                found[start + i] = max(c[start + i], 0.0) * t.G[e * size + i]
