"""Fold-in against implicit's own solver, and reasons that sum to the score."""

from __future__ import annotations

import numpy as np
import pytest
from implicit.cpu.als import AlternatingLeastSquares
from scipy import sparse

from embeddings.foldin import confidences, fold_in
from embeddings.generation import FoldInParameters, Generation
from tests.worlds import make_generation


def reference(generation: Generation, rows: np.ndarray, c: np.ndarray) -> np.ndarray:
    """implicit's `recalculate_user` on the same factors (Cholesky)."""
    model = AlternatingLeastSquares(
        factors=generation.k,
        regularization=generation.parameters.regularization,
        num_threads=1,
        use_cg=False,
        random_state=1,
    )
    model.item_factors = generation.item_factors
    model.user_factors = np.zeros((1, generation.k), dtype=np.float32)
    user_items = sparse.csr_matrix(
        (c.astype(np.float32), (np.zeros(len(rows), dtype=int), rows)), shape=(1, generation.n_items)
    )
    return np.asarray(model.recalculate_user(0, user_items)).ravel()


@pytest.mark.parametrize("k", [8, 64])
def test_fold_in_equals_the_reference_for_hundreds_of_histories_with_dislikes_and_unit_confidences(k: int) -> None:
    generation = make_generation(n_items=400, k=k, seed=3)
    rng = np.random.default_rng(5)
    for trial in range(300):
        n = int(rng.integers(1, 2 * k + 20))
        rows = np.sort(rng.choice(400, size=n, replace=False)).astype(np.int64)
        c = 1 + rng.exponential(8, size=n)
        c[rng.random(n) < 0.2] *= -1
        c[rng.random(n) < 0.1] = 1.0
        c[rng.random(n) < 0.05] = -1.0
        if not (c > 0).any():
            c[0] = 5.0
        x, expected = fold_in(generation, rows, c).x, reference(generation, rows, c)
        assert np.linalg.norm(x - expected) <= 1e-5 * np.linalg.norm(expected), (trial, n)


def test_contributions_of_the_plays_sum_to_the_score() -> None:
    generation = make_generation(n_items=300, k=16, seed=4)
    rng = np.random.default_rng(6)
    for n in (1, 3, 15, 16, 17, 60):
        rows = rng.choice(300, size=n, replace=False).astype(np.int64)
        c = np.where(rng.random(n) < 0.3, -1, 1) * (1 + rng.exponential(5, size=n))
        folded = fold_in(generation, rows, c)
        Y = generation.item_factors[:50]
        assert np.allclose(folded.contributions(Y).sum(axis=1), Y @ folded.x, rtol=1e-4, atol=1e-5)


def test_both_solver_forms_give_the_same_vector_at_the_border() -> None:
    generation = make_generation(n_items=200, k=16, seed=8)
    rows = np.arange(16, dtype=np.int64)
    c = np.linspace(1, 20, 16)
    short = fold_in(generation, rows[:15], c[:15])
    # a sixteenth play with |c| = 1 that is disliked changes neither A nor b, but takes the other form
    long = fold_in(generation, rows, np.append(c[:15], -1.0))
    assert np.linalg.norm(short.x - long.x) <= 1e-6 * np.linalg.norm(short.x)


def test_no_plays_give_the_zero_vector() -> None:
    folded = fold_in(make_generation(n_items=10, k=4, seed=1), np.array([], dtype=np.int64), np.array([]))
    assert not folded.x.any()


@pytest.mark.parametrize(
    ("rows", "c"),
    [([0, 0], [2.0, 2.0]), ([-1], [2.0]), ([10], [2.0]), ([1], [np.nan]), ([1], [0.5]), ([1, 2], [2.0])],
)
def test_indices_and_confidences_that_would_crash_the_solver_are_refused(rows: list[int], c: list[float]) -> None:
    with pytest.raises(ValueError, match="fold_in"):
        fold_in(make_generation(n_items=10, k=4, seed=1), np.array(rows, dtype=np.int64), np.array(c))


def test_confidence_halves_its_decaying_part_every_half_life() -> None:
    p = FoldInParameters(alpha=10, decay_floor=0.1, decay_half_life=5, decay_gain=2)
    c = confidences([1.0, 1.0, -0.5], [0, 5, 0], p)
    assert c == pytest.approx([1 + 10 * 2 * 1.0, 1 + 10 * 2 * (0.1 + 0.9 / 2), -(1 + 10 * 0.5 * 2)])
