"""Implicit ALS: interactions in, item factors out. The only module that knows the trainer.

Hu, Koren, Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008, by the `implicit` library. Its user
factors are not used: it solves items last and by conjugate gradients, so they are not the solution against the published items;
`publish.py` folds every viewer in by our own exact solve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import implicit
import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from contracts.errors import DataError
from runtime.settings import TrainSettings

TRAINER = "implicit.cpu.als"


def trainer_version() -> str:
    """Version of the trainer, for the manifest."""
    return str(implicit.__version__)


def train(
    Cui: Any, settings: TrainSettings, *, progress: Callable[[int], None] = lambda iteration: None
) -> NDArray[np.float32]:
    """Train on `Cui`: (n_viewers, n_items) csr float32, signed confidences. Returns Y: (n_items, k) float32.

    Items without any interaction get a zero row: never retrieved by taste, still there for popularity and availability.
    k is cut to the number of items that have interactions. Errors: `DataError` if there is nothing to learn from or the factors
    come out not finite.
    """
    n_items = Cui.shape[1]
    played = np.flatnonzero(np.bincount(Cui.indices, minlength=n_items))
    if not len(played) or not (Cui.data > 0).any():
        raise DataError("no interactions to train on: nobody has watched anything to the end; has the lake any plays?")
    if not np.isfinite(Cui.data).all():
        raise DataError("interactions hold NaN or infinity; a confidence rule is broken")
    k = min(settings.factors, len(played))
    model = AlternatingLeastSquares(
        factors=k,
        regularization=settings.regularization,
        alpha=1.0,  # the stored value already is the confidence
        iterations=settings.iterations,
        use_native=True,
        use_cg=True,
        num_threads=0,
        random_state=settings.seed,
    )
    with threadpool_limits(1, "blas"):  # or training is up to ten times slower
        model.fit(
            Cui[:, played].tocsr(), show_progress=False, callback=lambda iteration, *_: progress(int(iteration) + 1)
        )
    factors = np.zeros((n_items, k), dtype=np.float32)
    factors[played] = model.item_factors
    if not np.isfinite(factors).all():
        raise DataError(f"training gave NaN or infinity (λ = {settings.regularization:g}); raise train.regularization")
    return factors
