"""Training: implicit's ALS on the CPU. Only the item factors are used; viewers' vectors are our own fold-in against them."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import structlog
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from contracts.errors import DataError, GenerationError
from embeddings.generation import F32, FoldInParameters
from runtime.settings import TrainSettings

log = structlog.get_logger()

TRAINER = "implicit-als"


def versions() -> dict[str, str]:
    """What the factors depend on, for the manifest."""
    return {"implicit": version("implicit"), "numpy": np.__version__, "python": platform.python_version()}


def fold_in_parameters(train: TrainSettings) -> FoldInParameters:
    """The confidence rule as set."""
    return FoldInParameters(
        train.regularization, train.alpha, train.decay_floor, train.decay_half_life, train.decay_gain
    )


def train_item_factors(
    Cui: csr_matrix, settings: TrainSettings, *, on_iteration: Callable[[int], None] = lambda iteration: None
) -> F32:
    """(n_viewers, n_items) signed confidences → (n_items, k) float32, one row per column of `Cui`.

    k is `settings.factors`, or fewer where there are fewer items or viewers than that (implicit then yields NaN). The same data and
    seed give the same factors. Errors: `DataError` without any positive interaction, `GenerationError` on NaN.
    """
    n_viewers, n_items = Cui.shape
    if not n_viewers or not n_items or not (Cui.data > 0).any():
        raise DataError(
            "nothing to train on: the lake holds no play that says anything about taste; is the copy reading the right topic?"
        )
    if not np.isfinite(Cui.data).all() or (np.abs(Cui.data) < 1).any():
        raise DataError("confidences must be finite and at least 1 in magnitude; is train.alpha sane?")
    k = min(settings.factors, n_items, n_viewers)
    if k < settings.factors:
        log.warning("fewer_factors", wanted=settings.factors, taken=k, items=n_items, viewers=n_viewers)
    with threadpool_limits(1, "blas"):  # beside ALS's own threads a BLAS pool slows it tenfold
        model = AlternatingLeastSquares(
            factors=k,
            regularization=settings.regularization,
            alpha=1.0,  # the confidences hold α already
            dtype=np.float32,
            use_native=True,
            iterations=settings.iterations,
            random_state=settings.seed,
        )
        model.fit(Cui, show_progress=False, callback=lambda iteration, elapsed_s, loss: on_iteration(iteration + 1))
    Y: F32 = np.ascontiguousarray(model.item_factors, dtype=np.float32)
    if not np.isfinite(Y).all():
        raise GenerationError(
            f"training gave NaN or infinity for {int((~np.isfinite(Y)).any(axis=1).sum())} of {n_items} items; "
            "raise train.regularization or lower train.alpha"
        )
    return Y
