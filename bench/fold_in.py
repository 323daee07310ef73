"""Microseconds to fold one viewer into a generation, against `implicit`'s `recalculate_user` on the same factors.

`implicit` is measured as a stream would call it, one viewer at a time, and as a nightly job would, 256 at once. What is
timed starts at row numbers and confidences and ends at the vector; ours also keeps the factor that explains a row's entries.
Processor time, not the clock on the wall: neither side waits for anything, and others may share the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse
from implicit.cpu.als import AlternatingLeastSquares

from bench.kernels import FoldIn
from bench.report import Line, Report, WrongResult, interleave, rounded
from bench.worlds import K, make_generation
from embeddings.foldin import confidences
from embeddings.generation import F32, F64, I64, Generation

PLAYS = (10, 30, 100)
N_ITEMS = 3_500
VIEWERS = 256
REPETITIONS = 9
TOLERANCE = 1e-5
"""‖x − x_ref‖ / ‖x_ref‖: both are exact solves, one in float64, one in float32."""

Viewer = tuple[I64, F64]


def run() -> Report:
    """Every number of plays, every contender, interleaved."""
    generation = make_generation(N_ITEMS)
    model = make_model(generation)
    lines: list[Line] = []
    figures: dict[str, dict[str, float]] = {"fold_in_us": {}, "implicit_us": {}, "implicit_batch_us": {}}
    for plays in PLAYS:
        viewers = draw_viewers(generation, plays)
        rows = [as_csr([viewer]) for viewer in viewers]
        together = as_csr(viewers)
        ours = FoldIn(generation, np.stack([rows for rows, _ in viewers]), np.stack([c for _, c in viewers]))
        check(ours(), model, together)
        contenders: Mapping[str, Callable[[], Any]] = {
            "fold_in_us": ours,
            "implicit_us": partial(_one_by_one, model, rows),
            "implicit_batch_us": partial(model.recalculate_user, np.arange(VIEWERS), together),
        }
        found = interleave({name: partial(_time_us, work) for name, work in contenders.items()}, REPETITIONS)
        for name, label in LABELS.items():
            series = found[name]["us"]
            lines.append(Line(f"{plays} plays", label, "µs a viewer", series))
            figures[name][str(plays)] = rounded(series.median)
    details = {"k": K, "items": N_ITEMS, "viewers": VIEWERS, "repetitions": REPETITIONS}
    return Report("fold_in", f"Fold-in, k = {K}, one core", lines, figures, details)


LABELS = {
    "fold_in_us": "Nearline",
    "implicit_us": "implicit, one at a time",
    "implicit_batch_us": f"implicit, {VIEWERS} at once",
}


def make_model(generation: Generation) -> Any:
    """`implicit` with these item factors."""
    model = AlternatingLeastSquares(
        factors=generation.k, regularization=generation.parameters.regularization, num_threads=1
    )
    model.item_factors = generation.item_factors
    return model


def draw_viewers(generation: Generation, plays: int) -> list[Viewer]:
    """Viewers with so many different titles, newest first: (n,) rows, (n,) confidences."""
    rng = np.random.default_rng(plays)
    c = confidences([1.0] * plays, range(plays), generation.parameters)
    return [(rng.choice(generation.n_items, plays, replace=False), c) for _ in range(VIEWERS)]


def as_csr(viewers: list[Viewer]) -> Any:
    """(len(viewers), n_items) confidences."""
    indptr = np.cumsum([0] + [len(rows) for rows, _ in viewers])
    indices = np.concatenate([rows for rows, _ in viewers])
    data = np.concatenate([c for _, c in viewers]).astype(np.float32)
    return scipy.sparse.csr_matrix((data, indices, indptr), shape=(len(viewers), N_ITEMS))


def check(X: F32, model: Any, together: Any) -> None:
    """Both give the same vectors. Errors: `WrongResult`."""
    reference: F32 = model.recalculate_user(np.arange(VIEWERS), together)
    for x, expected in zip(X, reference, strict=True):
        error = float(np.linalg.norm(x - expected) / np.linalg.norm(expected))
        if not error <= TOLERANCE:
            raise WrongResult(f"the vectors differ by {error:.1e}")


def _one_by_one(model: Any, rows: list[Any]) -> None:
    for row in rows:
        model.recalculate_user(0, row)


def _time_us(work: Callable[[], Any]) -> dict[str, float]:
    started = time.process_time()
    work()
    return {"us": (time.process_time() - started) * 1e6 / VIEWERS}
