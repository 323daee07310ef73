"""The night's ranking: the tables and the ranker that are published with the factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from batch.interactions import read_interactions
from batch.lake import Lake
from batch.play_log import PlayLog, read_play_log
from batch.ranker import train_ranker
from batch.tables import Counts
from batch.train import fold_in_parameters, train_item_factors
from contracts.errors import DataError
from embeddings.generation import F32, F64
from embeddings.sequence import SequenceNet
from embeddings.tables import Tables
from runtime.settings import Settings


@dataclass(frozen=True, eq=False, slots=True)
class Ranking:
    """`log`: the plays that were learnt from. `weights`: of the ranker; None: rows blend taste and popularity.
    `sequence`: of the log's items."""

    log: PlayLog | None = None
    weights: F64 | None = None
    sequence: SequenceNet | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    def tables(self, item_ids: Sequence[str]) -> Tables | None:
        """The tables as of the newest play, row i of item i; None without a ranker."""
        if self.log is None or self.weights is None:
            return None
        row_of = {item_id: row for row, item_id in enumerate(item_ids)}
        counts = Counts(self.log)
        counts.advance(len(self.log))
        rows = np.array([row_of[item_id] for item_id in self.log.item_ids], np.int64)
        return counts.tables(int(self.log.time_ms[-1]), self.weights, rows, len(item_ids), self.sequence)


NO_RANKING = Ranking()


def train_ranking(lake: Lake, settings: Settings) -> Ranking:
    """Read the lake's plays and train on the newest. Errors: `GenerationError` on NaN."""
    train = settings.train
    if not train.ranker_plays:
        return NO_RANKING
    log = read_play_log(lake)

    def past_factors(before_ms: int) -> tuple[Sequence[str], F32]:
        past = read_interactions(lake, train.alpha, before_ms=before_ms)
        return past.items, train_item_factors(past.Cui, train)

    try:
        trained = train_ranker(
            log,
            past_factors,
            fold_in_parameters(train),
            plays=train.ranker_plays,
            max_plays=settings.state.max_plays,
            sequence_epochs=train.sequence_epochs,
        )
    except DataError:  # nothing was liked before the newest plays
        return NO_RANKING
    return Ranking(log, trained.weights, trained.sequence, trained.metrics)
