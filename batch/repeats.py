"""How often viewers come back to what they have watched: measured on the night's own plays, so that no data set needs to be told apart.

A play repeats if the viewer had watched the title to its end before (who goes on with half a film repeats nothing). Its gap is how many
other plays lie between it and the newest earlier one of the title.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from batch.play_log import PlayLog
from contracts.rules import NO_RULES, Rules
from runtime.sections import RulesSettings

LEAST_SHARE = 0.05
"""Share of repeats from which on titles come back by themselves: below, not one place of the first ten is worth giving up."""
EARLY = 0.1
"""Share of the repeats that come too early to be shown: a title watched a moment ago does not come back at once."""
WHOLE = 1.0
"""Strength of a title watched to its end."""


@dataclass(frozen=True, eq=False, slots=True)
class Repeats:
    """What the liked plays of a log do, play by play."""

    log: PlayLog
    gaps: NDArray[np.int64] = field(init=False, repr=False)  # (n,) plays between; −1: no repeat

    def __post_init__(self) -> None:
        log, n = self.log, len(self.log)
        order = np.lexsort((np.arange(n), log.viewer))  # viewer by viewer, oldest first
        place = np.empty(n, np.int64)
        place[order] = np.arange(n)
        pair = log.viewer.astype(np.int64) * max(1, len(log.item_ids)) + log.item
        by_pair = np.lexsort((np.arange(n), pair))
        same = pair[by_pair[1:]] == pair[by_pair[:-1]]
        whole = np.cumsum(log.strength[by_pair] >= WHOLE)  # of this pair and all before it
        start = np.flatnonzero(np.concatenate([[True], ~same])) if n else np.zeros(0, np.int64)
        before = np.concatenate([[0], whole[:-1]]) if n else whole
        of_pair = before - np.repeat(before[start], np.diff([*start.tolist(), n]))  # watched whole so far
        gaps = np.full(n, -1, np.int64)
        later = np.flatnonzero(same) + 1
        later = later[(of_pair[later] > 0) & (log.strength[by_pair[later]] > 0)]
        gaps[by_pair[later]] = place[by_pair[later]] - place[by_pair[later - 1]] - 1
        object.__setattr__(self, "gaps", gaps)

    def measure(self, known: int | None = None) -> tuple[float, int]:
        """Of the first `known` plays (None: of all): the share that repeats, and the gap from which on most of them lie."""
        liked = self.log.strength[:known] > 0
        gaps = self.gaps[:known][liked]
        repeated = gaps[gaps >= 0]
        if not len(repeated):
            return 0.0, 1
        return len(repeated) / len(gaps), max(1, int(np.quantile(repeated, EARLY)))


def make_rules(settings: RulesSettings, share: float, gap: int) -> Rules:
    """What the generation's rows obey: what is set, and of repeats what was measured."""
    comes_back = {"never": False, "always": True, "auto": share >= LEAST_SHARE}[settings.repeats]
    return Rules(
        window=settings.window,
        per_creator=settings.per_creator,
        per_topic=settings.per_topic,
        exploration=settings.exploration,
        preference=settings.preference_strength,
        repeats=round(max(share, LEAST_SHARE), 4) if comes_back else NO_RULES.repeats,
        repeat_gap=gap if comes_back else NO_RULES.repeat_gap,
    )
