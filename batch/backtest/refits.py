"""The nights of a replay: when the model is refitted, on which plays, and the generation that comes of it.

A refit at time t is trained on the plays before t, exactly: later ones are not in the arrays it is given (tables are counted on
from night to night, up to t). Training factors needs only plays, so the next nights' are trained ahead, in threads beside the replay.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice, pairwise

import numpy as np
from scipy.sparse import csr_matrix

from batch.backtest.plays import I64, Plays
from batch.evaluate import make_generation
from batch.play_log import PlayLog
from batch.ranker import train_ranker
from batch.repeats import Repeats, make_rules
from batch.tables import DAY_MS, Counts
from batch.train import fold_in_parameters, train_item_factors
from embeddings.generation import F32, F64, Generation
from embeddings.groups import Groups, make_groups
from embeddings.tables import Tables
from runtime.sections import RulesSettings
from runtime.settings import TrainSettings
from viewers.signals import play_strength
from viewers.state import COMPLETED

GROWTH = 1.05
WHOLE = 255
"""Watched share of a whole play, in 255ths."""


@dataclass(frozen=True, slots=True)
class Night:
    """A refit and the plays that are asked about until the next one: `start` ≤ i < `stop`. `known`: plays before `at_ms`."""

    at_ms: int
    known: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Refit:
    """What the night made. Row r of the generation is item r of `Plays`."""

    night: Night
    generation: Generation


def plan_nights(plays: Plays, first: int, every_days: float) -> list[Night]:
    """The refits that matter for the plays from `first` on: at the first one's time and every `every_days` from there; those
    after which nobody plays until the next are left out.
    """
    period_ms = max(1, round(every_days * DAY_MS))
    begin_ms = int(plays.time_ms[first])
    number: I64 = (plays.time_ms[first:] - begin_ms) // period_ms
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    nights = []
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(number)], strict=True):
        at_ms = begin_ms + int(number[start]) * period_ms
        known = int(np.searchsorted(plays.time_ms, at_ms, side="left"))
        nights.append(Night(at_ms, known, first + start, first + stop))
    return nights


def make_refits(
    plays: Plays, nights: Sequence[Night], train: TrainSettings, max_plays: int, rules: RulesSettings
) -> Iterator[Refit]:
    """Each night's refit, in order; the next ones' factors are trained meanwhile, one on each core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    following, ranking = iter(nights), NightlyRanking(plays, nights, train, max_plays)
    repeats, groups = Repeats(ranking.log), topic_groups(plays) if rules.per_topic else None
    with ThreadPoolExecutor(cores, thread_name_prefix="refit") as executor:
        ahead = deque(
            (night, executor.submit(train_factors, plays, night.known, train)) for night in islice(following, cores)
        )
        while ahead:
            night, factors = ahead.popleft()
            Y = factors.result()
            ahead.extend((one, executor.submit(train_factors, plays, one.known, train)) for one in islice(following, 1))
            made = make_night(plays, night, Y, train, ranking.tables(night))
            in_force = make_rules(rules, *repeats.measure(night.known))
            yield Refit(night, replace(made, rules=in_force, groups=None if groups is None else groups(made.n_items)))


def topic_groups(plays: Plays) -> Callable[[int], Groups]:
    """The topics of the first so many items, for a rule that counts them; nobody tells preferences here."""
    bits = [
        [f"{word}.{bit}" for word in range(plays.topics.shape[1]) for bit in range(64) if int(one[word]) >> bit & 1]
        for one in plays.topics
    ]
    return lambda n: make_groups([()] * n, bits[:n])


def refit(plays: Plays, night: Night, train: TrainSettings) -> Refit:
    """One night's alone, without tables. Errors: `DataError` if there are no plays, `GenerationError` on NaN."""
    return Refit(night, make_night(plays, night, train_factors(plays, night.known, train), train, None))


def train_factors(plays: Plays, known: int, train: TrainSettings) -> F32:
    """(n_items, k) from the first plays. Errors: `DataError` if there are none, `GenerationError` on NaN."""
    return train_item_factors(confidences_of(plays.first(known), train.alpha), train)


def make_night(plays: Plays, night: Night, Y: F32, train: TrainSettings, tables: Tables | None) -> Generation:
    """The generation that the night publishes."""
    past = plays.first(night.known)
    played = confidences_of(past, train.alpha).indices
    popularity = np.bincount(played, minlength=len(past.item_ids)) * play_strength(WHOLE, COMPLETED)
    return make_generation(
        f"night-{night.at_ms}", past.item_ids, Y, popularity.astype(np.float32), fold_in_parameters(train), tables
    )


class NightlyRanking:
    """Each night's tables: counts go on from the night before, and the ranker is trained anew once the plays have grown by `GROWTH`
    (the nightly job trains it every night: some days more hardly change it)."""

    def __init__(self, plays: Plays, nights: Sequence[Night], train: TrainSettings, max_plays: int) -> None:
        whole = play_strength(WHOLE, COMPLETED)
        digests = [play_digest(row) for row in range(len(plays))]
        strengths = np.full(len(plays), whole, np.float32)
        columns = (plays.viewer, plays.item, plays.time_ms, np.array(digests, np.int64), strengths)
        self._log = PlayLog(*columns, plays.item_ids)
        self._plays, self._train, self._max_plays = plays, train, max_plays
        self._counts = Counts(self._log)
        self._period_ms = min((b.at_ms - a.at_ms for a, b in pairwise(nights)), default=DAY_MS)
        self._weights: F64 | None = None
        self._trained = 0  # on so many plays

    @property
    def log(self) -> PlayLog:
        """All plays, also those that no night knows yet."""
        return self._log

    def tables(self, night: Night) -> Tables | None:
        """What the night publishes beside the factors; None for a ranker that is no better than the blend."""
        if not self._train.ranker_plays:
            return None
        self._counts.advance(night.known)
        if night.known >= self._trained * GROWTH:
            self._weights, self._trained = self._train_ranker(night.known), night.known
        if self._weights is None:
            return None
        return self._counts.tables(night.at_ms, self._weights, n_rows=self._log.n_items(night.known))

    def _train_ranker(self, known: int) -> F64 | None:
        def past_factors(before_ms: int) -> tuple[Sequence[str], F32]:
            count = int(np.searchsorted(self._log.time_ms, before_ms))
            return self._plays.first(count).item_ids, train_factors(self._plays, count, self._train)

        return train_ranker(
            self._log.first(known),
            past_factors,
            fold_in_parameters(self._train),
            plays=self._train.ranker_plays,
            max_plays=self._max_plays,
            period_ms=self._period_ms,
        ).weights


def play_digest(row: int) -> int:
    """What stands for a play's id in a state: its place in the file, so that of plays of one millisecond the later one is newer."""
    return row


def confidences_of(past: Plays, alpha: float) -> csr_matrix:
    """(n_viewers, n_items) as `batch.interactions` makes them of complete plays: one entry a pair, however often it was played."""
    shape = (len(past.viewer_ids), len(past.item_ids))
    pairs = np.unique(past.viewer.astype(np.int64) * max(1, shape[1]) + past.item)
    c = np.full(len(pairs), 1 + alpha * play_strength(WHOLE, COMPLETED), dtype=np.float32)
    return csr_matrix((c, (pairs // max(1, shape[1]), pairs % max(1, shape[1]))), shape=shape)
