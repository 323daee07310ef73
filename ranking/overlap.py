"""How alike two rows are. Pure: lists of item ids, best first."""

from __future__ import annotations

from collections.abc import Sequence

DEPTH = 10
"""The places that are seen without scrolling: what overlap is asked of."""
PERSISTENCE = 0.9
"""Of rank-biased overlap: the first ten places have 86 % of the weight."""


def overlap_at(depth: int, a: Sequence[str], b: Sequence[str]) -> float:
    """Share of the first `depth` places (fewer, if the longer list is shorter) that hold the same items, in any order.

    1 for two empty lists.
    """
    first_a, first_b = set(a[:depth]), set(b[:depth])
    longer = max(len(first_a), len(first_b))
    return len(first_a & first_b) / longer if longer else 1.0


def rank_biased_overlap(a: Sequence[str], b: Sequence[str], p: float = PERSISTENCE) -> float:
    """Webber, Moffat and Zobel (2010), eq. 23: agreement at each depth, weighted by p^depth, extrapolated beyond the end.

        RBO = X_k / k · p^k + (1 − p) / p · Σ_{d=1..k} X_d / d · p^d          X_d: items that both lists hold in their first d

    k: the shorter list's length; 1 for two empty lists, 0 if one is empty.
    """
    k = min(len(a), len(b))
    if k == 0:
        return float(len(a) == len(b))
    seen_a: set[str] = set()
    seen_b: set[str] = set()
    shared, summed = 0, 0.0
    for d, (one, other) in enumerate(zip(a[:k], b[:k], strict=True), 1):
        seen_a.add(one)
        seen_b.add(other)
        shared += one in seen_b if one == other else (one in seen_b) + (other in seen_a)
        summed += shared / d * p**d
    return shared / k * p**k + (1 - p) / p * summed
