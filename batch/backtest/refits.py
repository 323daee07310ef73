"""The nights of a replay: when the model is refitted, on which plays, and the generation that comes of it.

A refit at time t is trained on the plays before t, exactly: later ones are not in the arrays it is given (tables are counted on
from night to night, up to t). Training factors needs only plays, so the next nights' are trained ahead, in threads beside the replay.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
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
from contracts.catalogue import CatalogueItem
from embeddings.generation import F32, F64, Generation
from embeddings.groups import make_groups
from embeddings.sequence import SequenceNet
from embeddings.tables import Tables
from ranking.rows import fold
from runtime.sections import RulesSettings
from runtime.settings import TrainSettings
from trends.new_items import Content, ItemFold, content_of, item_fold
from viewers.rewriter import ranking_input
from viewers.signals import play_strength
from viewers.state import COMPLETED, Limits, Play, ViewerState, merge

VIEWERS_FOLDED = 500
"""Sampled for XᵀX."""
GROWTH = 1.05
SEQUENCE_GROWTH = 1.2
"""Growth of the plays at which the sequence model is trained anew: one that did not know the newest of 20 plays hit as often."""
WHOLE = 255
"""Watched share of a whole play, in 255ths."""


@dataclass(frozen=True, slots=True)
class Night:
    """A refit and the plays that are asked about until the next one: `start` ≤ i < `stop`. `known`: plays before `at_ms`."""

    at_ms: int
    known: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Refit:
    """What the night made. Row r of the generation is item r of `Plays`. `titles`: of the catalogue by number, those that nobody has played
    yet too. `past`: the plays that it was made from."""

    night: Night
    generation: Generation
    titles: Sequence[CatalogueItem] = ()
    past: Plays | None = None

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """Item → its number."""
        return {one.item_id: n for n, one in enumerate(self.titles)} or self.generation.index

    @cached_property
    def content(self) -> Content:
        """What titles are about."""
        known = self.titles or [CatalogueItem(one, one) for one in self.generation.item_ids]
        return content_of(known[: self.generation.n_items], self.generation.item_factors)

    @cached_property
    def item_fold(self) -> ItemFold:
        """From a sample of the viewers, where the night publishes the vectors of all."""
        X, viewers = np.zeros((0, self.generation.k), np.float32), 0
        if self.past is not None and len(self.past):
            viewers = len(self.past.viewer_ids)
            sampled = np.random.default_rng(self.night.known).permutation(viewers)[:VIEWERS_FOLDED]
            X = np.stack([fold(self.generation, ranking_input(one)).x for one in states_of(self.past, sampled)])
        return item_fold(X, self.generation.item_factors, self.generation.parameters, viewers)


def states_of(past: Plays, viewers: I64) -> Iterator[ViewerState]:
    """The states of some viewers who have played."""
    rows = np.flatnonzero(np.isin(past.viewer, viewers))
    rows = rows[np.argsort(past.viewer[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(past.viewer[rows], prepend=-1))
    for of_viewer in np.split(rows, starts[1:]):
        plays = (
            Play(int(past.time_ms[row]), play_digest(row), past.item_ids[past.item[row]], WHOLE, COMPLETED)
            for row in of_viewer.tolist()
        )
        yield merge((ViewerState(plays=tuple(plays)),), Limits())


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
    following, ranking, titles = iter(nights), NightlyRanking(plays, nights, train, max_plays), titles_of(plays)
    repeats = Repeats(ranking.log)
    with ThreadPoolExecutor(cores, thread_name_prefix="refit") as executor:
        ahead = deque(
            (night, executor.submit(train_factors, plays, night.known, train)) for night in islice(following, cores)
        )
        while ahead:
            night, factors = ahead.popleft()
            Y = factors.result()
            ahead.extend((one, executor.submit(train_factors, plays, one.known, train)) for one in islice(following, 1))
            made = make_night(plays, night, Y, train, ranking.tables(night))
            yield Refit(night, ruled(made, night, rules, repeats, titles), titles, plays.first(night.known))


def ruled(
    made: Generation, night: Night, rules: RulesSettings, repeats: Repeats, titles: Sequence[CatalogueItem]
) -> Generation:
    """The generation with the rules that the night publishes it with."""
    in_force = make_rules(rules, *repeats.measure(night.known))
    topics = [one.topics for one in titles[: made.n_items]] if in_force.limit_groups else None
    return replace(made, rules=in_force, groups=None if topics is None else make_groups([()] * made.n_items, topics))


def refit(plays: Plays, night: Night, train: TrainSettings) -> Refit:
    """One night's alone, without tables. Errors: `DataError` if there are no plays, `GenerationError` on NaN."""
    made = make_night(plays, night, train_factors(plays, night.known, train), train, None)
    return Refit(night, ruled(made, night, RulesSettings(), Repeats(play_log(plays)), titles_of(plays)))


def titles_of(plays: Plays) -> list[CatalogueItem]:
    """The catalogue by number: what titles are about is known before anybody plays them."""
    bits = np.unpackbits(plays.topics.view(np.uint8), axis=1, bitorder="little") if plays.topics.size else None
    topics = [()] * len(plays.item_ids) if bits is None else [tuple(map(str, np.flatnonzero(one))) for one in bits]
    return [CatalogueItem(item_id, item_id, topics=of) for item_id, of in zip(plays.item_ids, topics, strict=True)]


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


def play_log(plays: Plays) -> PlayLog:
    """The plays as the nightly job reads them from the lake."""
    strengths = np.full(len(plays), play_strength(WHOLE, COMPLETED), np.float32)
    digests = np.array([play_digest(row) for row in range(len(plays))], np.int64)
    return PlayLog(plays.viewer, plays.item, plays.time_ms, digests, strengths, plays.item_ids)


class NightlyRanking:
    """Each night's tables: counts go on from the night before, and the ranker is trained anew once the plays have grown by `GROWTH`
    (the nightly job trains it every night: some days more hardly change it)."""

    def __init__(self, plays: Plays, nights: Sequence[Night], train: TrainSettings, max_plays: int) -> None:
        self._log = play_log(plays)
        self._plays, self._train, self._max_plays = plays, train, max_plays
        self._counts = Counts(self._log)
        self._period_ms = min((b.at_ms - a.at_ms for a, b in pairwise(nights)), default=DAY_MS)
        self._weights: F64 | None = None
        self._trained = 0  # on so many plays
        self._sequence: SequenceNet | None = None
        self._sequence_trained = 0

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
        n_rows = self._log.n_items(night.known)
        return self._counts.tables(night.at_ms, self._weights, n_rows=n_rows, sequence=self._sequence)

    def _train_ranker(self, known: int) -> F64 | None:
        def past_factors(before_ms: int) -> tuple[Sequence[str], F32]:
            count = int(np.searchsorted(self._log.time_ms, before_ms))
            return self._plays.first(count).item_ids, train_factors(self._plays, count, self._train)

        fresh = known < self._sequence_trained * SEQUENCE_GROWTH
        trained = train_ranker(
            self._log.first(known),
            past_factors,
            fold_in_parameters(self._train),
            plays=self._train.ranker_plays,
            max_plays=self._max_plays,
            period_ms=self._period_ms,
            sequence_epochs=self._train.sequence_epochs,
            sequence=self._sequence if fresh else None,
        )
        if not fresh:
            self._sequence, self._sequence_trained = trained.sequence, known
        return trained.weights


def play_digest(row: int) -> int:
    """What stands for a play's id in a state: its place in the file, so that of plays of one millisecond the later one is newer."""
    return row


def confidences_of(past: Plays, alpha: float) -> csr_matrix:
    """(n_viewers, n_items) as `batch.interactions` makes them of complete plays: one entry a pair, however often it was played."""
    shape = (len(past.viewer_ids), len(past.item_ids))
    pairs = np.unique(past.viewer.astype(np.int64) * max(1, shape[1]) + past.item)
    c = np.full(len(pairs), 1 + alpha * play_strength(WHOLE, COMPLETED), dtype=np.float32)
    return csr_matrix((c, (pairs // max(1, shape[1]), pairs % max(1, shape[1]))), shape=shape)
