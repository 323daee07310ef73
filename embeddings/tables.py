"""What a generation knows beside the embeddings: what is watched after what, what is watched lately, and how to weigh it all. Pure.

All of them are made from the lake's plays up to the cut-off and published with the generation, so that a row stays a function of the
viewer's state, the generation and the time. A generation has all of them or none (an older one, or one made from too few plays:
its rows are blended as `ranking/rows.py` says). A trends snapshot (`trends/`) replaces `trending` by fresher numbers, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from contracts.errors import GenerationError
from embeddings.sequence import SequenceNet, check_sequence

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

HALF_LIVES_DAYS = (0.5, 1.0, 3.0, 7.0, 30.0)
"""Columns of `trending`."""
DAY, WEEK = 1, 3
"""The columns that candidates are taken from."""

LEAST_TREND = 0.3
"""Plays (decayed) at which a trend begins to show: counts go through log(1 + n / this)."""

RULE = "softmax-3"
"""Names `FEATURES` and what `ranking/features.py` makes of them; another set of features is another rule."""

STEPS = ("any", "next", "soon", "later")
"""How far behind a play its followers came: mixed, the next play, the two after it, the seven after those. Columns of `Cowatch.lift`."""
SLOTS = ("last", "2nd", "3rd", "4th_6th", "7th_15th")
"""Which of the newest plays is followed."""

BASE = (
    "taste", "popularity", "trend_12h", "trend_1d", "trend_3d", "trend_7d", "trend_30d",
    *(f"follows_{slot}_{step}" for slot in SLOTS for step in STEPS), "follows_any", "sequence",
)  # fmt: skip
"""What is known of a candidate."""

CONTEXTS = ("", "_if_new", "_if_away", "_if_long")
"""What is known of the moment: always 1, and three numbers in 0…1 (`ranking.features.context`). Each has weights of its own, so that what
counts for a viewer with two plays is not what counts for one with two hundred."""

FEATURES = tuple(name + of for of in CONTEXTS for name in BASE)
"""The ranker's weights: context by context, `BASE` each."""


@dataclass(frozen=True, eq=False, slots=True)
class Cowatch:
    """What is watched after what: of item i the entries starts[i] ≤ e < starts[i + 1], by falling share.

    `starts`: (n_items + 1,) int64. `items`: (entries,) int32, what was watched next. `share`: (entries,) float32 in 0…1, how often,
    of all that was watched next. `lift`: (entries, steps) float32 ≥ 0, log of how much more often than after anything.
    """

    starts: I64
    items: I32
    share: F32
    lift: F32

    @classmethod
    def empty(cls, n_items: int) -> Cowatch:
        return cls(
            np.zeros(n_items + 1, np.int64),
            np.zeros(0, np.int32),
            np.zeros(0, np.float32),
            np.zeros((0, len(STEPS)), np.float32),
        )


@dataclass(frozen=True, eq=False, slots=True)
class Tables:
    """`trending`: (n_items, half-lives) float32 ≥ 0, decayed plays. `weights`: (features,) float64, of the ranker. `at_ms`: the time that
    `trending` is as of, at which its newest play started; 0: not known (an older program's), and nothing can be added to it.
    `sequence`: what is next by the order of plays; None: not learnt."""

    trending: F32
    cowatch: Cowatch
    weights: F64
    at_ms: int = 0
    sequence: SequenceNet | None = None

    trends: F32 = field(init=False, repr=False)  # (n_items, half-lives), log-scaled: the features
    trending_orders: I64 = field(init=False, repr=False)  # (2, n_items): rows by falling trend of a day, of a week

    def __post_init__(self) -> None:
        scaled = np.log1p(np.maximum(self.trending.astype(np.float64), 0) / LEAST_TREND).astype(np.float32)
        object.__setattr__(self, "trends", np.ascontiguousarray(scaled))
        orders = [np.argsort(-self.trending[:, column], kind="stable") for column in (DAY, WEEK)]
        object.__setattr__(self, "trending_orders", np.stack(orders).astype(np.int64))


def check_tables(tables: Tables, n_items: int, where: str) -> None:
    """Shapes, finiteness, rows inside the catalogue: the kernel reads them unchecked. Errors: `GenerationError`."""
    trending, c, weights = tables.trending, tables.cowatch, tables.weights
    entries = len(c.items)
    problems = {
        "trending is of no time": tables.at_ms < 0,
        "trending has another shape": trending.shape != (n_items, len(HALF_LIVES_DAYS)),
        "trending holds NaN, infinity or a negative number": not np.isfinite(trending).all() or (trending < 0).any(),
        "weights are not one finite number a feature": weights.shape != (len(FEATURES),) or not np.isfinite(weights).all(),
        "co-watch lists do not fit the items": c.starts.shape != (n_items + 1,)
        or c.starts[0] != 0
        or c.starts[-1] != entries
        or (np.diff(c.starts) < 0).any(),
        "co-watch columns differ in length": c.share.shape != (entries,) or c.lift.shape != (entries, len(STEPS)),
        "co-watch names an item outside the catalogue": entries > 0 and not (c.items.min() >= 0 and c.items.max() < n_items),
        "co-watch holds NaN, infinity or a negative number": not np.isfinite(c.share.sum() + c.lift.sum(dtype=np.float64))
        or (entries > 0 and (c.share.min() < 0 or c.lift.min() < 0)),
    }  # fmt: skip
    wrong = [text for text, holds in problems.items() if holds]
    if wrong:
        raise GenerationError(f"{where}: {wrong[0]}; publish the generation again")
    if tables.sequence is not None:
        check_sequence(tables.sequence, n_items, where)
