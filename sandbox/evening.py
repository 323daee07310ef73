"""The endless evening: the same viewers, accelerated, one event at a time.

Events arrive as a Poisson process. At each arrival either what is due happens (a play's next event, the next play of
a sitting), or, if nothing is due, somebody sits down. So the rate is exact from the first second on, and the number
of viewers watching at once finds its own level. A play takes 3 to 60 seconds of wall time, less when so many events
are asked for that viewers would run out.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from contracts.catalogue import CatalogueItem
from contracts.events import Kind, PlaybackEvent
from contracts.rules import CREATOR, subject
from sandbox.audience import Audience, personal_liking
from sandbox.library import SERIES_BELOW_MINUTES, Library
from sandbox.titles import CELLS

WAVE_HEIGHT, WAVE_PERIOD_S = 0.3, 240.0
"""The evening peak, made short."""
PLAY_MEAN_S, PLAY_MIN_S, PLAY_MAX_S = 16.0, 3.0, 60.0
GAP_S = (0.4, 2.5)
"""Between two plays of a sitting."""
PLAYS_PER_EVENT = 0.44
MAX_WATCHING = 0.3
"""At most about this share of the residents watches at once."""
MORE_PLAYS = 0.62
SAME_CELL, NEAR_CELL = 0.7, 0.12
BY_CREATOR, BY_BUZZ = 0.16, 0.07
BUZZ_MEAN_S = 90.0
NEW_TITLE_APPEAL = 6.0
"""A release is played this many times as often as a middling title of its cell."""
NEWCOMER_SHARE = 1 / 40
"""Sittings that bring somebody new, as long as there are newcomers left."""
PRIVATE_SHARE, PREFER_SHARE, RATE_SHARE, HIDE_SHARE = 0.03, 0.25, 0.05, 0.04
LIVE_NUMBERS = 1 << 36
"""Ids of the evening are numbered from here; those of the history lie below."""


@dataclass(slots=True)
class _Shelf:
    """Titles of one group with running weights, growing at the end."""

    items: list[int] = field(default_factory=list)
    running: list[float] = field(default_factory=list)

    def add(self, item: int, weight: float) -> None:
        self.items.append(item)
        self.running.append((self.running[-1] if self.running else 0.0) + weight)

    def draw(self, dice: random.Random) -> int:
        return self.items[min(bisect_right(self.running, dice.random() * self.running[-1]), len(self.items) - 1)]


@dataclass(slots=True)
class _Sitting:
    """A viewer in front of the screen. `script`: what is still to come of the current play, last first."""

    viewer: int
    cell: int
    plays_left: int
    private: bool
    item: int = -1
    play_id: str = ""
    started_s: float = 0.0
    script: list[tuple[float, Kind, float]] = field(
        default_factory=list
    )  # (seconds from the start, kind, share watched)


class _Evening:
    def __init__(
        self,
        library: Library,
        audience: Audience,
        new_titles: Iterator[tuple[float, int, CatalogueItem]],
        seen: dict[int, set[int]],
        residents: int,
        rate: float,
        seed: int,
        now_ms: int,
    ) -> None:
        self.library, self.audience, self.new_titles, self.seen = library, audience, new_titles, seen
        self.residents, self.rate, self.seed, self.now_ms = residents, rate, seed, now_ms
        self.dice = random.Random(seed * 7919 + 5)
        self.items: list[CatalogueItem] = list(library.items)
        self.shelves = [_Shelf() for _ in CELLS]
        self.creator_shelves: dict[int, _Shelf] = {}
        for number, (cell, creator, appeal) in enumerate(
            zip(library.cell.tolist(), library.creator_of.tolist(), library.appeal.tolist(), strict=True)
        ):
            self.shelves[cell].add(number, appeal)
            self.creator_shelves.setdefault(creator, _Shelf()).add(number, appeal)
        self.cell_of: list[int] = library.cell.tolist()
        self.activity = list(accumulate(audience.activity[:residents].tolist()))
        self.present: list[int] = []  # newcomers who have arrived
        self.watching: set[int] = set()
        self.pending: list[tuple[float, int, _Sitting]] = []
        self.numbered = 0
        self.release = next(new_titles)
        self.buzz, self.buzz_until_s = 0, 0.0
        self.haste = min(1.0, MAX_WATCHING * residents / (rate * PLAYS_PER_EVENT * PLAY_MEAN_S))

    def run(self) -> Iterator[tuple[float, PlaybackEvent]]:
        """Endless (seconds, event)."""
        now_s = 0.0
        while True:
            wave = 1 + WAVE_HEIGHT * math.sin(2 * math.pi * now_s / WAVE_PERIOD_S)
            now_s += self.dice.expovariate(self.rate * wave)
            self._releases(now_s)
            yield now_s, self._happen(now_s)

    def _happen(self, now_s: float) -> PlaybackEvent:
        """What happens at this arrival."""
        while self.pending and (self.pending[0][0] <= now_s or len(self.watching) >= 0.6 * self.residents):
            _, _, sitting = heapq.heappop(self.pending)
            if sitting.script:
                return self._continue(sitting, now_s)
            if sitting.plays_left:
                return self._play(sitting, now_s)
            self.watching.discard(sitting.viewer)
            if sitting.item >= 0 and not sitting.private and self.dice.random() < RATE_SHARE:
                liking = self._liking(sitting.viewer, sitting.item)
                return self._remark(sitting, now_s, Kind.RATE, value=round(-60 + 160 * liking))
        return self._sit_down(now_s)

    def _sit_down(self, now_s: float) -> PlaybackEvent:
        dice = self.dice
        viewer = -1
        if self.residents + len(self.present) < len(self.audience.viewers) and dice.random() < NEWCOMER_SHARE:
            viewer = self.residents + len(self.present)
            self.present.append(viewer)
        for _ in range(50):
            if viewer >= 0 and viewer not in self.watching:
                break
            if self.present and dice.random() < 0.1:
                viewer = dice.choice(self.present)
            else:
                viewer = min(bisect_right(self.activity, dice.random() * self.activity[-1]), self.residents - 1)
        plays = 1
        while dice.random() < MORE_PLAYS and plays < 8:
            plays += 1
        sitting = _Sitting(viewer, self._cell(viewer), plays, dice.random() < PRIVATE_SHARE)
        self.watching.add(viewer)
        creator = int(self.audience.creators[viewer, 0])
        if viewer >= self.residents and creator >= 0 and viewer not in self.seen and dice.random() < PREFER_SHARE:
            self._wait(sitting, now_s + dice.uniform(*GAP_S))
            told = subject(CREATOR, self.library.creator_names[creator])
            return self._remark(sitting, now_s, Kind.PREFER, value=100, preference=told)
        return self._play(sitting, now_s)

    def _play(self, sitting: _Sitting, now_s: float) -> PlaybackEvent:
        """Start the sitting's next play and write its script."""
        dice = self.dice
        mood = dice.random()
        if sitting.item >= 0 and mood >= SAME_CELL:
            near = sitting.cell // 3 * 3 + dice.randrange(3)
            sitting.cell = near if mood < SAME_CELL + NEAR_CELL else self._cell(sitting.viewer)
        sitting.item = self._choose(sitting.viewer, sitting.cell, now_s)
        sitting.plays_left -= 1
        sitting.started_s = now_s
        sitting.play_id = self._number(1)
        self.seen.setdefault(sitting.viewer, set()).add(sitting.item)
        liking = self._liking(sitting.viewer, sitting.item)
        in_mood = 0.05 if self.cell_of[sitting.item] == sitting.cell else -0.1
        drawn = dice.random() + 0.35 * (liking - 0.7) + in_mood
        length_s = min(PLAY_MAX_S, PLAY_MIN_S + dice.expovariate(1 / (PLAY_MEAN_S - PLAY_MIN_S))) * self.haste
        if drawn > 0.42:
            end = (length_s, Kind.COMPLETE, dice.uniform(0.93, 1.0))
        elif drawn > 0.16:
            share = dice.uniform(0.08, 0.85)
            end = (length_s * share, Kind.STOP, share)
        else:
            end = (min(length_s, 2.0 * self.haste), Kind.SKIP, dice.uniform(0.005, 0.045))
        sitting.script = [end]
        if end[2] > 0.3 and dice.random() < 0.25:
            sitting.script.append((end[0] / 2, Kind.PROGRESS, end[2] / 2))
        self._wait(sitting, now_s + sitting.script[-1][0])
        return self._report(sitting, now_s, Kind.START, 0.0)

    def _continue(self, sitting: _Sitting, now_s: float) -> PlaybackEvent:
        _, kind, share = sitting.script.pop()
        gap_s = self.dice.uniform(*GAP_S) * self.haste
        self._wait(sitting, sitting.started_s + sitting.script[-1][0] if sitting.script else now_s + gap_s)
        return self._report(sitting, now_s, kind, share)

    def _choose(self, viewer: int, cell: int, now_s: float) -> int:
        """A title that the viewer may see, mostly one not seen before and personally liked."""
        dice = self.dice
        at_ms = self.now_ms + int(now_s * 1000)
        who, seen = self.audience.viewers[viewer], self.seen.get(viewer, set())
        if now_s >= self.buzz_until_s:
            self.buzz = self.shelves[dice.randrange(len(CELLS))].draw(dice)
            self.buzz_until_s = now_s + dice.expovariate(1 / BUZZ_MEAN_S)
        fallback = -1
        for attempt in range(24):
            why = dice.random()
            creator = int(self.audience.creators[viewer, dice.randrange(3)])
            if attempt == 0 and why > 1 - BY_BUZZ:
                item = self.buzz
            elif attempt < 3 and why < BY_CREATOR and creator >= 0:
                item = self.creator_shelves[creator].draw(dice)
            else:
                item = self.shelves[cell if attempt < 12 else self._cell(viewer)].draw(dice)
            title = self.items[item]
            if who.maturity < title.maturity or not title.available_at(at_ms):
                continue
            if title.territories and who.territory not in title.territories:
                continue
            fallback = item
            next_episode = (title.duration_ms or 0) < SERIES_BELOW_MINUTES * 60_000 and dice.random() < 0.5
            if item in seen and not next_episode and dice.random() > 0.05:
                continue
            if self._liking(viewer, item) < 0.4 and dice.random() < 0.8:
                continue
            return item
        return fallback if fallback >= 0 else self._open_title(at_ms)

    def _open_title(self, at_ms: int) -> int:
        """Any title that everybody may see; a very small catalogue may leave nothing else."""
        for number, title in enumerate(self.items):
            if title.maturity == 0 and not title.territories and title.available_at(at_ms):
                return number
        return 0

    def _releases(self, now_s: float) -> None:
        """Put on the shelves what has come out by now."""
        while self.release[0] <= now_s:
            _, cell, item = self.release
            shelf = self.shelves[cell]
            middling = shelf.running[-1] / len(shelf.items) if shelf.items else 1.0
            self.items.append(item)
            self.cell_of.append(cell)
            shelf.add(len(self.items) - 1, NEW_TITLE_APPEAL * middling)
            self.release = next(self.new_titles)

    def _cell(self, viewer: int) -> int:
        at = int(np.searchsorted(self.audience.taste_cdf[viewer], self.dice.random()))
        return min(at, len(CELLS) - 1)

    def _liking(self, viewer: int, item: int) -> float:
        return float(personal_liking(np.array([viewer]), np.array([item]), self.seed)[0])

    def _wait(self, sitting: _Sitting, until_s: float) -> None:
        self.numbered += 1
        heapq.heappush(self.pending, (until_s, self.numbered, sitting))

    def _number(self, stream: int) -> str:
        self.numbered += 1
        return f"{((LIVE_NUMBERS + self.numbered) * 0x9E3779B97F + self.seed + stream) & 0xFFFFFFFFFF:010x}"

    def _report(self, sitting: _Sitting, now_s: float, kind: Kind, share: float) -> PlaybackEvent:
        title = self.items[sitting.item]
        length_ms = title.duration_ms or 1
        return PlaybackEvent(
            event_id=self._number(0),
            kind=kind,
            viewer=self.audience.viewers[sitting.viewer].viewer,
            event_time_ms=self.now_ms + int(now_s * 1000),
            private=sitting.private,
            item_id=title.item_id,
            play_id=sitting.play_id,
            play_started_at_ms=self.now_ms + int(sitting.started_s * 1000),
            watched_ms=int(share * length_ms),
            duration_ms=length_ms,
        )

    def _remark(
        self, sitting: _Sitting, now_s: float, kind: Kind, *, value: int, preference: str | None = None
    ) -> PlaybackEvent:
        return PlaybackEvent(
            event_id=self._number(0),
            kind=kind,
            viewer=self.audience.viewers[sitting.viewer].viewer,
            event_time_ms=self.now_ms + int(now_s * 1000),
            item_id=None if preference else self.items[sitting.item].item_id,
            value=value,
            preference=preference,
        )


def evening(
    library: Library,
    audience: Audience,
    *,
    new_titles: Iterator[tuple[float, int, CatalogueItem]],
    seen: dict[int, set[int]],
    residents: int,
    rate: float,
    seed: int,
    now_ms: int,
) -> Iterator[tuple[float, PlaybackEvent]]:
    """Endless (seconds since `now_ms`, event) at `rate` events a second. `seen`: viewer → items already played; is extended."""
    if rate <= 0:
        raise ValueError("rate must be above 0 events a second")
    return _Evening(library, audience, new_titles, seen, residents, rate, seed, now_ms).run()
