"""Training the sequence model (`embeddings/sequence.py`): which title, of all, is a viewer's next, given those before?

    loss = −log P(played) over that title and `AGAINST` others drawn by popularity^`EVENNESS`, all plays of a step against the same ones;
           scores less the logarithm of how likely each was to be drawn, so that what is learnt is what all titles would teach
    Adam in steps of `AT_ONCE` plays, the rate falling to nothing; rows of titles that a step does not meet stay

Parts are dropped at random, or a few thousand plays would be learnt by heart. Memory: the log, the parameters with Adam's two memories,
some 2 kB a title, and one step; plays beyond the newest `MOST_PLAYS` are not learnt from. The constants were chosen on the share of plays
before the one that docs/evaluation.md reports. The same log gives the same model on the same machine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import structlog
from numpy.random import Generator
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from batch.play_log import PlayLog
from contracts.errors import GenerationError
from embeddings import kernel_sequence as kernel
from embeddings.compiled import one_at_a_time
from embeddings.generation import F32, I64
from embeddings.sequence import BINS, FACTORS, HIDDEN, PLACES, POOLS, SequenceNet, make_network

FEWEST = 1_000
"""Plays with a play before them: with fewer nothing is learnt."""
MOST_PLAYS = 500_000
AT_ONCE = 512
AGAINST = 1_024
EVENNESS = 0.75
RATE = 0.01
WARM_UP = 50
"""Steps in which the rate rises from nothing."""
LEAST_RATE = 0.02
L2 = 1e-5
DROPPED_PLAYS = 0.1
DROPPED_UNITS = 0.3
FADING = (0.3, 0.9)
"""What the sums over the history begin from: the newest plays, and all."""
SPREAD_OF_PLAYS, SPREAD_OF_TITLES = 0.1, 0.05
"""Standard deviation of a title's numbers at the start: as a play, as what comes next."""
SEED = 7

AS_PLAY, AS_NEXT, BIAS, W, V, W1, B1, W2 = range(8)
"""Parameters: of titles as plays, as what comes next, their bias; the others by their names in `embeddings/sequence.py`."""


def train_sequence(log: PlayLog, epochs: int) -> SequenceNet | None:
    """Row i is item i of the log. None: too few plays. `epochs`: how often each play is gone through."""
    liked = log.strength > 0
    plays = np.flatnonzero(log.is_first & liked & (log.previous >= 0))[-MOST_PLAYS:]
    if len(plays) < FEWEST or epochs < 1:
        return None
    rng = np.random.default_rng(SEED)
    began_s = time.monotonic()
    _compile()
    learner = _Learner(log, liked, plays, rng)
    at_once = min(AT_ONCE, len(plays))
    steps = epochs * (len(plays) // at_once)
    done = 0
    with threadpool_limits(1, "blas"):
        for _ in range(epochs):
            shuffled = rng.permutation(plays)
            for begin in range(0, len(plays) - at_once + 1, at_once):
                done += 1
                rate = RATE * min(1, done / WARM_UP) * max(LEAST_RATE, 1 - done / steps)
                learner.learn(np.sort(shuffled[begin : begin + at_once]), rate)
    found = learner.sequence()
    if not (np.isfinite(found.items).all() and np.isfinite(found.network).all()):
        raise GenerationError("training the sequence model gave NaN or infinity; please report this")
    structlog.get_logger().info(
        "sequence_trained",
        plays=len(plays),
        titles=int(found.known.sum()),
        seconds=round(time.monotonic() - began_s, 1),
    )
    return found


def _compile() -> None:
    """Now, by no plays at all, while no other process does."""
    H, G, one = np.zeros((0, PLACES), np.int32), np.zeros((0, PLACES), np.uint8), np.float32(0)
    rows, at, U = np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros((0, POOLS * FACTORS), np.float32)
    E, w, v = (np.zeros((n, m, FACTORS), np.float32) for n, m in ((1, 0), (POOLS, PLACES), (POOLS, BINS)))
    touched = np.zeros(0, np.uint8)
    with one_at_a_time():
        kernel.histories(rows, rows, at, rows, touched.view(np.bool_), touched.view(np.bool_), 0, H, G)
        kernel.pool(H, G, H.astype(np.float32), 0, E[0], w, v, U)
        kernel.pool_back(H, G, H.astype(np.float32), 0, E[0], w, v, U, E[0], w, v, touched)
        for titles in (rows, at):
            kernel.add_rows(titles, U[:, 0].copy(), E[0], E[0], touched)
        kernel.descend(E[0], E[0], E[0], E[0], touched, one, 1, one)


@dataclass(eq=False, slots=True)
class _Parameter:
    """One array, as (rows, columns) float32, with its gradient and Adam's memories. `touched`: rows that have a gradient."""

    x: F32
    gradient: F32 = field(init=False)
    mean: F32 = field(init=False)
    square: F32 = field(init=False)
    touched: NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        self.gradient, self.mean, self.square = (np.zeros_like(self.x) for _ in range(3))
        self.touched = np.zeros(len(self.x), np.uint8)

    def add(self, gradient: F32) -> None:
        """To all rows."""
        self.gradient += gradient
        self.touched[:] = 1


class _Learner:
    def __init__(self, log: PlayLog, liked: NDArray[np.bool_], plays: I64, rng: Generator) -> None:
        self._log, self._liked, self._rng = log, liked, rng
        self._n = n = len(log.item_ids)
        self._steps = 0

        def drawn(rows: int, columns: int, spread: float) -> F32:
            return (rng.standard_normal((rows, columns), np.float32) * np.float32(spread)).astype(np.float32)

        faded = np.repeat(np.array(FADING)[:, None] ** np.arange(PLACES), FACTORS).reshape(-1, FACTORS)
        inputs = POOLS * FACTORS
        start: list[F32] = [
            drawn(n, FACTORS, SPREAD_OF_PLAYS),
            drawn(n, FACTORS, SPREAD_OF_TITLES),
            np.zeros((n, 1), np.float32),
            faded.astype(np.float32),
            np.ones((POOLS * BINS, FACTORS), np.float32),
            drawn(inputs, HIDDEN, inputs**-0.5),
            np.zeros((1, HIDDEN), np.float32),
            np.zeros((HIDDEN, FACTORS), np.float32),
        ]
        self._p = [_Parameter(x) for x in start]
        weight = np.bincount(log.item[plays], minlength=n) ** EVENNESS
        share = weight / weight.sum()
        self._cumulated = np.cumsum(share)
        drawn_once = -np.expm1(AGAINST * np.log1p(-np.minimum(share, 0.5)))
        self._log_drawn = np.log(drawn_once.clip(1e-30)).astype(np.float32)
        """(n,): how likely a title is to be among those drawn."""
        self._met = np.zeros(n, np.bool_)
        self._met[log.item[plays]] = True

    def learn(self, plays: I64, rate: float) -> None:
        """One step. `plays`: (B,) ascending."""
        log, p, count = self._log, self._p, len(plays)
        H, G = np.empty((count, PLACES), np.int32), np.empty((count, PLACES), np.uint8)
        kernel.histories(plays, log.previous, log.item, log.time_ms, self._liked, log.is_first, self._n, H, G)
        kept, of_units = self._left((count, PLACES), DROPPED_PLAYS), self._left((count, FACTORS), DROPPED_UNITS)
        w, v = (p[i].x.reshape(POOLS, -1, FACTORS) for i in (W, V))
        U = np.empty((count, POOLS * FACTORS), np.float32)
        kernel.pool(H, G, kept, self._n, p[AS_PLAY].x, w, v, U)
        hidden = np.maximum(U @ p[W1].x + p[B1].x, 0)  # (B, HIDDEN)
        skip = np.float32(POOLS**-0.5)
        u = (hidden @ p[W2].x + U.reshape(count, POOLS, FACTORS).sum(axis=1) * skip) * of_units
        du = self._compare(u, log.item[plays]) * of_units
        p[W2].add(hidden.T @ du)
        before = (du @ p[W2].x.T) * (hidden > 0)
        p[W1].add(U.T @ before)
        p[B1].add(before.sum(axis=0, keepdims=True))
        dU = before @ p[W1].x.T
        dU.reshape(count, POOLS, FACTORS)[:] += (du * skip)[:, None]
        dw, dv = (p[i].gradient.reshape(POOLS, -1, FACTORS) for i in (W, V))
        kernel.pool_back(H, G, kept, self._n, p[AS_PLAY].x, w, v, dU, p[AS_PLAY].gradient, dw, dv, p[AS_PLAY].touched)
        p[W].touched[:] = p[V].touched[:] = 1
        self._steps += 1
        for number, one in enumerate(p):
            l2 = np.float32(L2 if number in (AS_PLAY, AS_NEXT) else 0)
            kernel.descend(one.x, one.gradient, one.mean, one.square, one.touched, np.float32(rate), self._steps, l2)

    def _left(self, shape: tuple[int, int], dropped: float) -> F32:
        """What is left of each part: nothing, or more than all."""
        return (self._rng.random(shape, np.float32) >= dropped).astype(np.float32) / np.float32(1 - dropped)

    def _compare(self, u: F32, played: NDArray[np.int32]) -> F32:
        """The loss of u (B, FACTORS) against what was played: adds the gradients of titles; that of u."""
        p, count = self._p, len(u)
        draws = np.searchsorted(self._cumulated, self._rng.random(AGAINST) * self._cumulated[-1])
        against = np.unique(draws.clip(0, self._n - 1))
        titles = p[AS_NEXT].x[against]
        S = u @ titles.T + (p[BIAS].x[against, 0] - self._log_drawn[against])  # (B, drawn)
        at = np.searchsorted(against, played).clip(0, len(against) - 1)
        drawn = np.flatnonzero(against[at] == played)
        S[drawn, at[drawn]] = -1e9  # what was played is not its own rival
        own = np.einsum("bk,bk->b", u, p[AS_NEXT].x[played]) + p[BIAS].x[played, 0] - self._log_drawn[played]
        greatest = np.maximum(S.max(axis=1), own)
        S -= greatest[:, None]
        np.exp(S, out=S)
        of_own = np.exp(own - greatest)
        total = S.sum(axis=1) + of_own
        S /= (total * count)[:, None]
        d_own = (of_own / total - 1) / np.float32(count)
        ones = np.ones(len(against), np.float32)
        for of, values in ((p[AS_NEXT], S.T @ u), (p[BIAS], S.sum(axis=0)[:, None])):
            kernel.add_rows(against, ones, values, of.gradient, of.touched)
        for of, values in ((p[AS_NEXT], u), (p[BIAS], np.ones((count, 1), np.float32))):
            kernel.add_rows(played, d_own, values, of.gradient, of.touched)
        du: F32 = S @ titles + d_own[:, None] * p[AS_NEXT].x[played]
        return du

    def sequence(self) -> SequenceNet:
        """What was learnt; zeros for titles that no play taught about. Nothing can be learnt after that."""
        x = [one.x for one in self._p]
        self._p = []  # gradients and memories are three times as large as what is made now
        items = np.concatenate([x[AS_PLAY], x[AS_NEXT], x[BIAS]], axis=1)
        items *= self._met[:, None]
        w, v = (x[i].reshape(POOLS, -1, FACTORS) for i in (W, V))
        return SequenceNet(items, make_network(w, v, x[W1].T, x[B1][0], x[W2]))
