"""The replay: before each play every arm is asked for the viewer's row; after it, every arm is told of it.

    for each night's refit:                     all arms take it up
        for each play until the next night:
            1. ask   every arm, with the viewer's state as it is now
            2. watch the play is merged into the state, and every arm is told

An arm that answers later (a batch is cheaper) answers from what it was given at 1: states are immutable values. Plays of one
millisecond are in the order of the file, the earlier ones being past.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from batch.backtest.plays import I32, I64, Plays
from batch.backtest.refits import WHOLE, Night, Refit, make_refits, play_digest
from contracts.rows import ENTRIES_SHOWN
from runtime.sections import RulesSettings
from runtime.settings import TrainSettings
from viewers.state import COMPLETED, EMPTY, Limits, Play, ViewerState, merge

TOP = 10
"""Places of a row that are kept for coverage, novelty and diversity."""
TELL_EVERY = 200
"""Plays between two moves of the progress bar."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A viewer comes to the home page. `number`: which ask this is, from 0. `state`: all that the viewer has done until now."""

    number: int
    viewer: int
    state: ViewerState
    time_ms: int


class Arm(Protocol):
    """One way of making rows. It answers each ask through the `Answer` that it was made with, at the latest when flushed."""

    def refit(self, refit: Refit) -> None:
        """A night has passed: everybody's row is rebuilt from this generation."""

    def ask(self, ask: Ask) -> None:
        """Which row would the viewer see now?"""

    def watch(self, viewer: int, item: int, time_ms: int, state: ViewerState) -> None:
        """Somebody watched something. `state`: all that the viewer has done, with it."""

    def flush(self) -> None:
        """Answer what is still open."""


Answer = Callable[[int, Sequence[int], Sequence[float]], None]
"""(number of the ask, items best first, their scores)."""

MakeArm = Callable[[Plays, int, Limits, Answer], Arm]
"""(plays before the first ask, how many items there may ever be, bounds of a state, where answers go) → the arm."""


@dataclass(frozen=True, eq=False, slots=True)
class Answers:
    """One arm's answers to n asks.

    `rank`: (n,) int32, the place of what was then played, from 1; 0: not among those shown. `top`: (n, 10) int32, the first
    items; −1 where the row is shorter.
    """

    rank: I32
    top: I32

    @classmethod
    def make(cls, n: int) -> Answers:
        return cls(np.zeros(n, np.int32), np.full((n, TOP), -1, np.int32))


def collect(answers: Answers, wanted: I32) -> Answer:
    """Keeps of a row what is measured. `wanted`: (n,) what was played after each ask."""
    targets = wanted.tolist()

    def take(number: int, items: Sequence[int], scores: Sequence[float]) -> None:
        answers.rank[number] = pessimistic_rank(targets[number], items, scores)
        head = items[:TOP]
        answers.top[number, : len(head)] = head

    return take


def pessimistic_rank(target: int, items: Sequence[int], scores: Sequence[float]) -> int:
    """Place of the target, from 1, behind everything with the same score; 0 if that is not shown."""
    if target not in items:
        return 0
    place = items.index(target)
    while place + 1 < len(items) and scores[place + 1] == scores[place]:
        place += 1
    return place + 1 if place < ENTRIES_SHOWN else 0


class Audience:
    """Every viewer's state, merged by the code that serves. States from before the replay are made when first needed."""

    def __init__(self, plays: Plays, first: int, limits: Limits) -> None:
        self._plays = plays
        self._limits = limits
        self._states: dict[int, ViewerState] = {}
        past = plays.viewer[:first]
        self._order: I64 = np.argsort(past, kind="stable")
        self._bounds: I64 = np.searchsorted(past[self._order], np.arange(len(plays.viewer_ids) + 1))

    def state(self, viewer: int) -> ViewerState:
        """The viewer's state now."""
        known = self._states.get(viewer)
        if known is None:
            rows = self._order[self._bounds[viewer] : self._bounds[viewer + 1]].tolist()
            facts = ViewerState(plays=tuple(self._play(row) for row in rows))
            known = self._states[viewer] = merge((facts,), self._limits) if rows else EMPTY
        return known

    def watch(self, row: int, viewer: int) -> ViewerState:
        """Merge one play; the state that it leaves."""
        merged = merge((self.state(viewer), ViewerState(plays=(self._play(row),))), self._limits)
        self._states[viewer] = merged
        return merged

    def _play(self, row: int) -> Play:
        item_id = self._plays.item_ids[int(self._plays.item[row])]
        return Play(int(self._plays.time_ms[row]), play_digest(row), item_id, WHOLE, COMPLETED)


def replay(
    plays: Plays,
    nights: Sequence[Night],
    arms: Mapping[str, MakeArm],
    *,
    train: TrainSettings,
    limits: Limits,
    rules: RulesSettings | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Answers]:
    """Ask every arm before each play of the nights. The same plays, settings and seed give the same answers.

    Errors: `DataError`, `GenerationError` of the training.
    """
    first, stop = nights[0].start, nights[-1].stop
    past, wanted = plays.first(first), plays.item[first:stop]
    answers = {name: Answers.make(stop - first) for name in arms}
    running = [make(past, len(plays.item_ids), limits, collect(answers[name], wanted)) for name, make in arms.items()]
    audience = Audience(plays, first, limits)
    for refit in make_refits(plays, nights, train, limits.max_plays, rules or RulesSettings()):
        for arm in running:
            arm.refit(refit)
        _one_period(plays, refit.night, first, audience, running, advance)
    return answers


def _one_period(
    plays: Plays, night: Night, first: int, audience: Audience, arms: Sequence[Arm], advance: Callable[[int], None]
) -> None:
    """The plays from one night to the next."""
    period = slice(night.start, night.stop)
    columns = (plays.viewer[period].tolist(), plays.item[period].tolist(), plays.time_ms[period].tolist())
    told = 0
    for row, (viewer, item, time_ms) in enumerate(zip(*columns, strict=True), night.start):
        ask = Ask(row - first, viewer, audience.state(viewer), time_ms)
        for arm in arms:  # 1
            arm.ask(ask)
        state = audience.watch(row, viewer)
        for arm in arms:  # 2
            arm.watch(viewer, item, time_ms, state)
        if row - night.start - told >= TELL_EVERY:
            told += TELL_EVERY
            advance(TELL_EVERY)
    for arm in arms:
        arm.flush()
    advance(night.stop - night.start - told)
