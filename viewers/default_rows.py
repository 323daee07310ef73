"""The rows of viewers who have none of their own: one for each territory and age. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from contracts.catalogue import CatalogueItem
from ranking.rows import cold_scores
from viewers.rewriter import Rewriter

DEFAULT_AGES = tuple(range(22))
"""A default row for every age that a maturity level may name, and one for everybody."""
EVERY_AGE = 99


def default_rows(
    rewriter: Rewriter, territories: Mapping[str, NDArray[np.bool_]], computed_at_ms: int
) -> dict[str, bytes]:
    """`territory:maturity` → row; nothing before the first generation. `territories`: territory → (n_items,) bool, its titles."""
    rows = {}
    cold = None if rewriter.generation is None else cold_scores(rewriter.generation)
    for territory, only in {"*": None, **territories}.items():
        for age, name in (*((age, str(age)) for age in DEFAULT_AGES), (EVERY_AGE, "*")):
            rows[f"{territory}:{name}"] = rewriter.default_row(
                computed_at_ms=computed_at_ms, maturity=age, territory=territory, only=only, cold=cold
            )
    return rows if all(rows.values()) else {}


def titles_by_territory(items: Sequence[CatalogueItem]) -> dict[str, NDArray[np.bool_]]:
    """Territory → (n_items,) bool: what may be shown there. Titles that name no territory may be shown everywhere."""
    named = sorted({territory for item in items for territory in item.territories})
    return {
        territory: np.array([not item.territories or territory in item.territories for item in items])
        for territory in named
    }
