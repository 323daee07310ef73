"""The sequence model, compiled: what rows are made with (the twin of `embeddings/sequence.py`), and the steps of its training that numpy
would do in many passes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embeddings.compiled import entry, frozen, jit, jit_sums
from embeddings.sequence import COLUMNS, FACTORS, GAPS_S, HIDDEN, PLACES, POOLS, ROWS, SequenceNet

Array = NDArray[Any]

_MEMORY, _MEMORY_OF_SQUARES = np.float32(0.9), np.float32(0.99)
"""Adam's two."""
_TINY = np.float32(1e-8)


class Net(NamedTuple):
    """A sequence model as the kernel reads it; of no items where there is none."""

    as_play: Array  # (n_items, FACTORS) float32
    as_next: Array  # (n_items, FACTORS) float32
    bias: Array  # (n_items,) float32
    known: Array  # (n_items,) bool
    places: Array  # (POOLS, PLACES, FACTORS) float32
    gaps: Array  # (POOLS, BINS, FACTORS) float32
    W1: Array  # (HIDDEN, POOLS · FACTORS) float32: transposed
    b1: Array  # (HIDDEN,) float32
    W2: Array  # (HIDDEN, FACTORS) float32


class Look(NamedTuple):
    """Scratch of one viewer."""

    plays: Array  # (PLACES, POOLS · FACTORS) float32: what the sums are made of
    pooled: Array  # (POOLS · FACTORS,) float32
    hidden: Array  # (HIDDEN,) float32: the middle layer
    u: Array  # (FACTORS,) float32
    q: Array  # (POOLS · FACTORS,) float32: scratch of `play_parts`
    parts: Array  # (PLACES,) float64


def make_net(sequence: SequenceNet | None) -> Net:
    if sequence is None:
        sequence = SequenceNet(np.zeros((0, COLUMNS), np.float32), np.zeros((ROWS, FACTORS), np.float32))
    s = sequence
    return Net(*map(frozen, (s.as_play, s.as_next, s.bias, s.known, s.places, s.gaps, s.W1_T, s.b1, s.W2)))


def make_look() -> Look:
    wide = POOLS * FACTORS
    return Look(
        np.empty((PLACES, wide), np.float32),
        np.empty(wide, np.float32),
        np.empty(HIDDEN, np.float32),
        np.empty(FACTORS, np.float32),
        np.empty(wide, np.float32),
        np.empty(PLACES),
    )


@jit
def gap_bin(age_ms: int) -> int:
    """Of how much older a play is than the newest."""
    found = 0
    for begin_s in GAPS_S:
        found += age_ms >= 1_000 * begin_s
    return found


@jit_sums
def look_back(net: Net, rows: Array, ages_ms: Array, n: int, look: Look) -> None:
    """`viewer_vector` of the n ≤ PLACES newest liked plays into `look.u`, in float32: half the time of float64."""
    pooled, hidden, u, scale = look.pooled, look.hidden, look.u, np.float32(1 / math.sqrt(POOLS))
    for d in range(POOLS * FACTORS):
        pooled[d] = np.float32(0)
    for p in range(n):
        e, b = net.as_play[rows[p]], gap_bin(ages_ms[p])
        for m in range(POOLS):
            w, v = net.places[m, p], net.gaps[m, b]
            part, U = look.plays[p, m * FACTORS : (m + 1) * FACTORS], pooled[m * FACTORS : (m + 1) * FACTORS]
            for d in range(FACTORS):
                x = w[d] * v[d] * e[d]
                part[d] = x
                U[d] += x
    for h in range(HIDDEN):
        W, total = net.W1[h], net.b1[h]
        for d in range(POOLS * FACTORS):
            total += W[d] * pooled[d]
        hidden[h] = max(total, np.float32(0))
    for d in range(FACTORS):
        sums = np.float32(0)
        for m in range(POOLS):
            sums += pooled[m * FACTORS + d]
        u[d] = sums * scale
    for h in range(HIDDEN):
        if hidden[h] > 0:
            x, W2 = hidden[h], net.W2[h]
            for d in range(FACTORS):
                u[d] += x * W2[d]


@jit_sums
def score_next(net: Net, u: Array, rows: Array, count: int, out: Array) -> None:
    """`scores` of the first `count` rows into `out`, float64."""
    total, n_known = 0.0, 0
    for i in range(count):
        o, score = net.as_next[rows[i]], net.bias[rows[i]]
        for d in range(FACTORS):
            score += o[d] * u[d]
        out[i] = score
        known = net.known[rows[i]]
        total += score if known else 0.0
        n_known += known
    mean = total / max(1, n_known)
    for i in range(count):
        out[i] = out[i] - mean if net.known[rows[i]] else 0.0


@jit_sums
def play_parts(net: Net, n: int, row: int, look: Look) -> None:
    """What each of the n plays that `look_back` saw adds to the score of one title, into `look.parts`. In float32: nothing is ranked by
    it."""
    o, q, scale = net.as_next[row], look.q, np.float32(1 / math.sqrt(POOLS))
    for d in range(POOLS * FACTORS):
        q[d] = scale * o[d % FACTORS]
    for h in range(HIDDEN):
        if look.hidden[h] > 0:
            W1, W2, on = net.W1[h], net.W2[h], np.float32(0)
            for d in range(FACTORS):
                on += W2[d] * o[d]
            for d in range(POOLS * FACTORS):
                q[d] += on * W1[d]
    for p in range(n):
        part, total = look.plays[p], np.float32(0)
        for d in range(POOLS * FACTORS):
            total += part[d] * q[d]
        look.parts[p] = total if net.known[row] else 0.0


# Training: B plays at once, their histories as (B, PLACES) items and bins of gaps; `nothing` where a history has ended


@entry
def histories(
    plays: Array, previous: Array, item: Array, time_ms: Array, liked: Array, is_first: Array, nothing: int, H: Array, G: Array
) -> None:  # fmt: skip
    """The newest liked titles before each of the plays, each once, newest first, into H (int32) and G (uint8). The others are a
    `PlayLog`'s."""
    for b in range(len(plays)):
        found, at, newest_ms, repeated = 0, previous[plays[b]], 0, False
        for _ in range(4 * PLACES):  # who repeats a few titles for ever is looked back on no longer
            if at < 0 or found == PLACES:
                break
            new = liked[at]
            if repeated:
                for p in range(found):
                    new &= H[b, p] != item[at]
            repeated |= not is_first[at]
            if new:
                newest_ms = time_ms[at] if found == 0 else newest_ms
                H[b, found], G[b, found] = item[at], gap_bin(newest_ms - time_ms[at])
                found += 1
            at = previous[at]
        for p in range(found, PLACES):
            H[b, p], G[b, p] = nothing, 0


@entry
def pool(H: Array, G: Array, kept: Array, nothing: int, E: Array, w: Array, v: Array, U: Array) -> None:
    """The sums over the histories into U (B, POOLS · FACTORS). `kept`: (B, PLACES) float32, what of each play is left; 0: dropped."""
    for b in range(len(H)):
        for d in range(POOLS * FACTORS):
            U[b, d] = np.float32(0)
        for p in range(PLACES):
            if H[b, p] == nothing or kept[b, p] == 0:
                continue
            e, share = E[H[b, p]], kept[b, p]
            for m in range(POOLS):
                of_place, of_gap, sums = w[m, p], v[m, G[b, p]], U[b, m * FACTORS : (m + 1) * FACTORS]
                for d in range(FACTORS):
                    sums[d] += share * of_place[d] * of_gap[d] * e[d]


@entry
def pool_back(
    H: Array, G: Array, kept: Array, nothing: int, E: Array, w: Array, v: Array, dU: Array, dE: Array, dw: Array, dv: Array, touched: Array
) -> None:  # fmt: skip
    """Adds the gradients of `pool`'s inputs, given those of its result. `touched`: (n_items,) uint8, marks rows of dE."""
    for b in range(len(H)):
        for p in range(PLACES):
            if H[b, p] == nothing or kept[b, p] == 0:
                continue
            e, de, share = E[H[b, p]], dE[H[b, p]], kept[b, p]
            touched[H[b, p]] = 1
            for m in range(POOLS):
                of_place, of_gap, sums = w[m, p], v[m, G[b, p]], dU[b, m * FACTORS : (m + 1) * FACTORS]
                to_place, to_gap = dw[m, p], dv[m, G[b, p]]
                for d in range(FACTORS):
                    x = share * sums[d]
                    de[d] += x * of_place[d] * of_gap[d]
                    to_place[d] += x * e[d] * of_gap[d]
                    to_gap[d] += x * e[d] * of_place[d]


@entry
def add_rows(rows: Array, scale: Array, values: Array, out: Array, touched: Array) -> None:
    """out[rows[i]] += scale[i] · values[i]. `touched`: (n_items,) uint8, marks them."""
    for i in range(len(rows)):
        to, value, times = out[rows[i]], values[i], scale[i]
        touched[rows[i]] = 1
        for d in range(out.shape[1]):
            to[d] += times * value[d]


@entry
def descend(
    x: Array, gradient: Array, mean: Array, square: Array, touched: Array, rate: Any, step: int, l2: Any
) -> None:
    """A step of Adam for the rows that are touched; their gradient and mark are 0 then. All (n, any) float32 but `touched`."""
    first = np.float32(1 / (1 - _MEMORY**step))
    second = np.float32(1 / (1 - _MEMORY_OF_SQUARES**step))
    one = np.float32(1)
    for i in range(len(x)):
        if touched[i] == 0:
            continue
        touched[i] = 0
        of_x, of_gradient, of_mean, of_square = x[i], gradient[i], mean[i], square[i]
        for d in range(x.shape[1]):
            g = of_gradient[d] + l2 * of_x[d]
            of_mean[d] = _MEMORY * of_mean[d] + (one - _MEMORY) * g
            of_square[d] = _MEMORY_OF_SQUARES * of_square[d] + (one - _MEMORY_OF_SQUARES) * g * g
            of_x[d] -= rate * first * of_mean[d] / (np.float32(math.sqrt(second * of_square[d])) + _TINY)
            of_gradient[d] = np.float32(0)
