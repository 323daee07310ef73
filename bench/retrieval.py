"""Microseconds a viewer for the exact best 100 of a catalogue minus 60 seen titles: ours against GEMM and argpartition.

Both work on the same vectors, one core each: the peer for the whole batch at once, with numpy's product and `argpartition`; ours in
tiles of 32 viewers. `product` is the product alone, which is the limit of whoever looks at every title. Both results are held
against a full sort in float64, for the first viewers of a large catalogue: recall is 1, or the run fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.kernels import TopK
from bench.report import Line, Report, WrongResult, interleave, rounded
from bench.worlds import LARGE_SKEW, K
from embeddings.generation import F32

CATALOGUES = (3_500, 20_000, 100_000, 1_000_000)
VIEWERS = 128
SEEN = 60
WANTED = 100
REPETITIONS = 7
SKEW = LARGE_SKEW
"""σ of the norms' logarithm: a tenth of the titles then holds most of what is recommended, as with trained factors."""
CHECKED_SCORES = 20_000_000
"""So many scores are computed in float64 to check a contender: all viewers of the smaller catalogues."""
NEAR = 1e-4
"""Scores nearer than this to the last one may be exchanged by a product in float32."""

LABELS = {"nearline": "Nearline", "gemm_argpartition": "GEMM + argpartition", "product": "product alone (limit)"}


def run() -> Report:
    """Every catalogue size, every contender, interleaved."""
    lines: list[Line] = []
    figures: dict[str, dict[str, float]] = {}
    for n_items in CATALOGUES:
        Y, X, excluded = make_case(n_items)
        ours = TopK(Y, X, excluded, WANTED)
        contenders: dict[str, Callable[[], Any]] = {
            "nearline": ours,
            "gemm_argpartition": partial(by_argpartition, Y, X, excluded),
            "product": partial(np.matmul, X, Y.T),
        }
        for name in ("nearline", "gemm_argpartition"):
            check(name, Y, X, excluded, contenders[name]())
        found = interleave({name: partial(_time_us, work) for name, work in contenders.items()}, REPETITIONS)
        case = f"{n_items:,} titles"
        lines += [Line(case, label, "µs a viewer", found[name]["us"]) for name, label in LABELS.items()]
        figures[str(n_items)] = {name: rounded(found[name]["us"].median) for name in LABELS}
    details = {"k": K, "viewers": VIEWERS, "seen": SEEN, "wanted": WANTED, "skew": SKEW, "repetitions": REPETITIONS}
    return Report("retrieval", f"Exact top {WANTED}, k = {K}, one core", lines, {"retrieval_us": figures}, details)


def make_case(n_items: int) -> tuple[F32, F32, NDArray[np.int32]]:
    """Factors with skewed norms, vectors near those of some titles, and what each viewer has seen."""
    rng = np.random.default_rng(n_items)
    Y = rng.normal(size=(n_items, K)) * rng.lognormal(-1, SKEW, size=(n_items, 1)) / np.sqrt(K)
    Y = Y.astype(np.float32)
    liked = rng.integers(n_items, size=(VIEWERS, 20))
    X = Y[liked].mean(axis=1) * 8
    return Y, np.ascontiguousarray(X), rng.integers(n_items, size=(VIEWERS, SEEN)).astype(np.int32)


def by_argpartition(Y: F32, X: F32, excluded: NDArray[np.int32]) -> NDArray[np.int64]:
    """The peer: one product for all, then numpy's selection."""
    scores = X @ Y.T
    np.put_along_axis(scores, excluded, -np.inf, axis=1)
    best: NDArray[np.int64] = np.argpartition(scores, -WANTED, axis=1)[:, -WANTED:]
    return best


def check(name: str, Y: F32, X: F32, excluded: NDArray[np.int32], found: NDArray[Any]) -> None:
    """Every row is among the best by float64. Errors: `WrongResult`."""
    exact, checked = Y.astype(np.float64), CHECKED_SCORES // len(Y)
    for x, out, rows in zip(X[:checked].astype(np.float64), excluded[:checked], found[:checked], strict=True):
        scores = exact @ x
        scores[out] = -np.inf
        last = np.partition(scores, -WANTED)[-WANTED]
        if len(set(rows.tolist())) != WANTED or scores[rows].min() < last - NEAR * (name != "nearline"):
            raise WrongResult(f"{name}: not the best {WANTED} of {len(Y):,}")


def _time_us(work: Callable[[], Any]) -> dict[str, float]:
    started = time.process_time()
    work()
    return {"us": (time.process_time() - started) * 1e6 / VIEWERS}
