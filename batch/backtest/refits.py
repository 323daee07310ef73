"""The nights of a replay: when the model is refitted, on which plays, and the generation that comes of it.

A refit at time t is trained on the plays before t, exactly: later ones are not in the arrays it is given. Training needs only
plays, so the next nights are trained ahead, in threads beside the replay.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from scipy.sparse import csr_matrix

from batch.backtest.plays import I64, Plays
from batch.evaluate import make_generation
from batch.publish import fold_in_parameters
from batch.train import train_item_factors
from embeddings.generation import Generation
from runtime.settings import TrainSettings
from viewers.signals import play_strength
from viewers.state import COMPLETED

DAY_MS = 86_400_000
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


def make_refits(plays: Plays, nights: Sequence[Night], train: TrainSettings) -> Iterator[Refit]:
    """Each night's refit, in order; the next ones are trained meanwhile, one on each core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    following = iter(nights)
    with ThreadPoolExecutor(cores, thread_name_prefix="refit") as executor:
        ahead = deque(executor.submit(refit, plays, night, train) for night in islice(following, cores))
        while ahead:
            made = ahead.popleft().result()
            ahead.extend(executor.submit(refit, plays, night, train) for night in islice(following, 1))
            yield made


def refit(plays: Plays, night: Night, train: TrainSettings) -> Refit:
    """Train on the plays before the night. Errors: `DataError` if there are none, `GenerationError` on NaN."""
    past = plays.first(night.known)
    Cui = confidences_of(past, train.alpha)
    Y = train_item_factors(Cui, train)
    popularity = np.bincount(Cui.indices, minlength=len(past.item_ids)) * play_strength(WHOLE, COMPLETED)
    generation = make_generation(
        f"night-{night.at_ms}", past.item_ids, Y, popularity.astype(np.float32), fold_in_parameters(train)
    )
    return Refit(night, generation)


def confidences_of(past: Plays, alpha: float) -> csr_matrix:
    """(n_viewers, n_items) as `batch.interactions` makes them of complete plays: one entry a pair, however often it was played."""
    shape = (len(past.viewer_ids), len(past.item_ids))
    pairs = np.unique(past.viewer.astype(np.int64) * max(1, shape[1]) + past.item)
    c = np.full(len(pairs), 1 + alpha * play_strength(WHOLE, COMPLETED), dtype=np.float32)
    return csr_matrix((c, (pairs // max(1, shape[1]), pairs % max(1, shape[1]))), shape=shape)
