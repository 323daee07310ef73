"""The simulated streaming service: its catalogue, its viewers, three weeks of their plays, and an endless evening.

One seed gives one world: `World(seed, now_ms=…)` is pure, two of them agree in everything. What a model can learn
from the history: who likes which cells and creators, that a sitting stays near its mood, what is on everybody's lips
this week. What it cannot: each viewer's private likes and dislikes (`audience.personal_liking`).

The evening (`World.live`) continues the same viewers with the same tastes, accelerated: a film takes seconds. Its
events carry times relative to `now_ms`; `Stamper` gives them the wall clock's times when they are sent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from contracts.catalogue import CatalogueItem
from contracts.events import Kind, PlaybackEvent
from contracts.rules import CREATOR, TOPIC, subject
from sandbox.audience import DAY_MS, Audience, Viewer, make_audience, personal_liking, sitting_times
from sandbox.evening import evening
from sandbox.library import Draw, Library, make_library, make_new_titles
from sandbox.titles import CELLS

HISTORY_DAYS = 21
SITTINGS_PER_VIEWER_DAY = 0.42
MAX_PLAYS_PER_SITTING = 8
MORE_PLAYS = 0.62
"""Chance that one more play follows within the sitting."""

SAME_CELL, NEAR_CELL = 0.7, 0.12
"""How a mood moves on between two plays: it stays, it turns to another flavour of the topic, else it starts afresh."""
BY_CREATOR = 0.16
BY_BUZZ = 0.05
"""Shares of plays chosen for a favourite creator and because everybody talks about it."""
BUZZ_TITLES, BUZZ_DAYS = 6, 3
DISLIKED_BELOW = 0.4
"""Titles that a viewer personally likes less than this are mostly passed over."""
REPEAT_SERIES, REPEAT_FILM = 0.5, 0.05
"""Share of repeated choices that do happen: the next episode, a second viewing."""
PRIVATE_SHARE = 0.03
"""Sittings in private mode."""
COMPLETE, STOP, SKIP, LOST = 0, 1, 2, 3
"""How a play ends. Lost: the app was closed and nothing reports the end."""
ENDING_KINDS = {COMPLETE: Kind.COMPLETE, STOP: Kind.STOP, SKIP: Kind.SKIP}
RATE_SHARE, HIDE_SHARE, CLEAR_SHARE, PREFER_SHARE = 0.04, 0.03, 0.05, 0.12


@dataclass(frozen=True, slots=True)
class Plays:
    """Plays of the history, sorted by start: all arrays (n_plays,); times int64 ms, `share` of the title watched float64."""

    viewer: NDArray[np.int64]
    item: NDArray[np.int64]
    start_ms: NDArray[np.int64]
    share: NDArray[np.float64]
    ending: NDArray[np.int64]
    private: NDArray[np.bool_]


class World:
    """A service of `titles` titles and `viewers` viewers as it is at `now_ms`."""

    def __init__(self, seed: int = 7, *, titles: int = 2000, viewers: int = 5000, now_ms: int) -> None:
        self.seed = seed
        self.now_ms = now_ms
        self._library, self._taken = make_library(np.random.default_rng([seed, 0]), titles, now_ms=now_ms)
        self._residents = viewers
        self._audience = make_audience(
            np.random.default_rng([seed, 1]),
            residents=viewers,
            newcomers=max(1, viewers // 4),
            creator_cells=self._library.creator_cells,
            now_ms=now_ms,
            history_days=HISTORY_DAYS,
        )

    @property
    def catalogue(self) -> tuple[CatalogueItem, ...]:
        """Every title known at the start; a few may be shown only later or leave soon."""
        return self._library.items

    @property
    def viewers(self) -> tuple[Viewer, ...]:
        """Residents, then the newcomers whom the evening brings."""
        return self._audience.viewers

    @cached_property
    def viewer_names(self) -> Mapping[str, str]:
        """Viewer id → display name, newcomers included."""
        return {viewer.viewer: viewer.name for viewer in self.viewers}

    def history(self, days: int = HISTORY_DAYS) -> list[PlaybackEvent]:
        """Every event of the last `days` days, sorted by event time, all before `now_ms`."""
        plays = self._plays if days == HISTORY_DAYS else self._make_plays(days)
        rng = np.random.default_rng([self.seed, 3])
        events = _play_events(plays, self._library, self._audience, rng, self.seed, self.now_ms)
        events += _preferences(self._audience, self._library, self._residents, rng, self.seed, self.now_ms, days)
        events.sort(key=lambda event: (event.event_time_ms, event.event_id))
        return events

    def live(self, rate: float) -> Iterator[tuple[float, PlaybackEvent]]:
        """Endless (seconds since the start, event): Poisson arrivals, `rate` a second on average, in waves of ±30 %.

        Times in the events are `now_ms` plus the offset; stamp them when sending (`Stamper`).
        """
        seen: dict[int, set[int]] = {}
        for viewer, item in zip(self._plays.viewer.tolist(), self._plays.item.tolist(), strict=True):
            seen.setdefault(viewer, set()).add(item)
        return evening(
            self._library,
            self._audience,
            new_titles=self._new_titles(),
            seen=seen,
            residents=self._residents,
            rate=rate,
            seed=self.seed,
            now_ms=self.now_ms,
        )

    def draws(self, viewer: str, item_id: str) -> float:
        """How much a title of the catalogue draws a viewer, 0 to 1: how near it lies to what they like most, and what nobody can infer."""
        number, item = self._numbers[viewer], self._places[item_id]
        chances = np.diff(self._audience.taste_cdf[number], prepend=np.float32(0))
        near = float(chances[self._library.cell[item]] / chances.max())
        liking = float(personal_liking(np.array([number]), np.array([item]), self.seed)[0])
        return near * liking if liking >= DISLIKED_BELOW else 0.0

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        return {viewer.viewer: number for number, viewer in enumerate(self.viewers)}

    @cached_property
    def _places(self) -> Mapping[str, int]:
        return {item.item_id: number for number, item in enumerate(self.catalogue)}

    def new_titles(self) -> Iterator[tuple[float, CatalogueItem]]:
        """Endless (seconds since the start, title): releases during the evening. `live` plays them from then on."""
        return ((seconds, item) for seconds, _, item in self._new_titles())

    def _new_titles(self) -> Iterator[tuple[float, int, CatalogueItem]]:
        rng = np.random.default_rng([self.seed, 4])
        return make_new_titles(rng, self._library, set(self._taken), now_ms=self.now_ms)

    @cached_property
    def _plays(self) -> Plays:
        return self._make_plays(HISTORY_DAYS)

    def _make_plays(self, days: int) -> Plays:
        rng = np.random.default_rng([self.seed, 2])
        return make_plays(
            rng, self._library, self._audience, residents=self._residents, days=days, seed=self.seed, now_ms=self.now_ms
        )


class Stamper:
    """Gives events their wall-clock times at the moment they are sent; a play keeps the start time of its first event."""

    def __init__(self) -> None:
        self._started_ms: dict[str, int] = {}

    def stamp(self, event: PlaybackEvent, wall_ms: int) -> PlaybackEvent:
        """The event as it happens at `wall_ms`, UTC ms."""
        if event.play_id is None:
            return dataclasses.replace(event, event_time_ms=wall_ms)
        started = self._started_ms.setdefault(event.play_id, wall_ms)
        if event.kind in (Kind.COMPLETE, Kind.STOP, Kind.SKIP):
            del self._started_ms[event.play_id]
        return dataclasses.replace(event, event_time_ms=wall_ms, play_started_at_ms=started)


def make_plays(
    rng: np.random.Generator,
    library: Library,
    audience: Audience,
    *,
    residents: int,
    days: int,
    seed: int,
    now_ms: int,
) -> Plays:
    """Simulate every sitting of the history at once, one play of each after the other."""
    present = np.minimum(1.0, (now_ms - audience.joined_ms[:residents]) / (days * DAY_MS))
    activity = audience.activity[:residents] * present
    n_sittings = int(residents * days * SITTINGS_PER_VIEWER_DAY)
    viewer = rng.choice(residents, n_sittings, p=activity / activity.sum())
    time = sitting_times(rng, audience, viewer, days=days, now_ms=now_ms)
    left = np.minimum(rng.geometric(1 - MORE_PLAYS, n_sittings), MAX_PLAYS_PER_SITTING)
    private = rng.random(n_sittings) < PRIVATE_SHARE
    in_cell = Draw.of(library.cell, library.appeal, len(CELLS))
    by_creator = Draw.of(library.creator_of, library.appeal, len(library.creator_names))
    buzz = _buzz(rng, library, days)
    cell = _cells(rng, audience, viewer)
    columns: list[tuple[NDArray[np.generic], ...]] = []
    while len(viewer):
        item = _choose(rng, library, audience, (in_cell, by_creator, buzz), viewer, cell, time, seed, now_ms, days)
        liking = personal_liking(viewer, item, seed)
        in_mood = library.cell[item] == cell
        ending, share = _endings(rng, liking, in_mood)
        columns.append((viewer, item, time, share, ending, private))
        time = time + (share * library.duration_ms[item]).astype(np.int64) + rng.integers(15_000, 240_000, len(item))
        left = left - 1
        going = (left > 0) & (time < now_ms)
        viewer, time, left, private, cell = viewer[going], time[going], left[going], private[going], cell[going]
        mood = rng.random(len(viewer))
        cell = np.where(mood < SAME_CELL + NEAR_CELL, cell, _cells(rng, audience, viewer))
        near = (mood >= SAME_CELL) & (mood < SAME_CELL + NEAR_CELL)
        cell = np.where(near, cell // 3 * 3 + rng.integers(0, 3, len(cell)), cell)  # three flavours a topic
    v, i, t, s, e, p = (np.concatenate(column) for column in zip(*columns, strict=True))
    kept = (
        _without_repeats(rng, library, v, i, t)
        & (t >= now_ms - days * DAY_MS)
        & (t < now_ms)
        & _fits(library, audience, v, i, t)
    )
    order = np.flatnonzero(kept)[np.argsort(t[kept], kind="stable")]
    return Plays(v[order], i[order], t[order], s[order], e[order], p[order])


def _cells(rng: np.random.Generator, audience: Audience, viewer: NDArray[np.int64]) -> NDArray[np.int64]:
    """A cell drawn from each viewer's taste: (n,) int64."""
    at = (audience.taste_cdf[viewer] < rng.random((len(viewer), 1))).sum(axis=1, dtype=np.int64)
    return np.asarray(np.minimum(at, len(CELLS) - 1))


def _buzz(rng: np.random.Generator, library: Library, days: int) -> NDArray[np.int64]:
    """(days + 2, BUZZ_TITLES) int64: what everybody talks about on each day; each title stays for `BUZZ_DAYS` days."""
    chance = library.appeal**0.5
    spells = rng.choice(len(chance), (BUZZ_TITLES, (days + 2) // BUZZ_DAYS + 3), p=chance / chance.sum())
    day = np.arange(days + 2)
    return np.stack([spells[slot, (day + slot) // BUZZ_DAYS] for slot in range(BUZZ_TITLES)], axis=1)


def _choose(
    rng: np.random.Generator,
    library: Library,
    audience: Audience,
    draws: tuple[Draw, Draw, NDArray[np.int64]],
    viewer: NDArray[np.int64],
    cell: NDArray[np.int64],
    time: NDArray[np.int64],
    seed: int,
    now_ms: int,
    days: int,
) -> NDArray[np.int64]:
    """The title that each viewer picks at `time` in the mood of `cell`: (n,) int64. What does not fit is drawn again."""
    in_cell, by_creator, buzz = draws
    item = in_cell.sample(rng, cell)
    why = rng.random(len(viewer))
    creator = audience.creators[viewer, rng.integers(0, audience.creators.shape[1], len(viewer))]
    loyal = (why < BY_CREATOR) & (creator >= 0)
    item[loyal] = by_creator.sample(rng, creator[loyal].astype(np.int64))
    talked = why > 1 - BY_BUZZ
    day = np.clip((time - now_ms) // DAY_MS + days + 1, 0, len(buzz) - 1)
    slot = np.minimum(rng.geometric(0.4, len(viewer)) - 1, BUZZ_TITLES - 1)
    item = np.where(talked, buzz[day, slot], item)
    for _ in range(3):
        unwanted = ~_fits(library, audience, viewer, item, time)
        unwanted |= (personal_liking(viewer, item, seed) < DISLIKED_BELOW) & (rng.random(len(viewer)) < 0.8)
        item[unwanted] = in_cell.sample(rng, cell[unwanted])
    return item


def _fits(
    library: Library,
    audience: Audience,
    viewer: NDArray[np.int64],
    item: NDArray[np.int64],
    time: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """True where the viewer may see the item at that time."""
    in_window = (library.from_ms[item] <= time) & (time < library.until_ms[item])
    licensed = library.licensed[item, audience.territory[viewer]]
    return np.asarray(in_window & licensed & (library.maturity[item] <= audience.maturity[viewer]))


def _endings(
    rng: np.random.Generator, liking: NDArray[np.float64], in_mood: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """How plays end and which share was watched: liked titles in the mood are mostly finished, others mostly left."""
    n = len(liking)
    drawn = rng.random(n) + 0.35 * (liking - 0.7) + np.where(in_mood, 0.05, -0.1)
    ending = np.select([drawn > 0.42, drawn > 0.16], [COMPLETE, STOP], SKIP)
    ending[rng.random(n) < 0.03] = LOST
    share = np.select(
        [ending == COMPLETE, ending == SKIP],
        [0.93 + 0.07 * rng.random(n), 0.005 + 0.04 * rng.random(n)],
        0.06 + 0.8 * rng.beta(1.6, 1.9, n),
    )
    return ending, share


def _without_repeats(
    rng: np.random.Generator,
    library: Library,
    viewer: NDArray[np.int64],
    item: NDArray[np.int64],
    time: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """True for first viewings and for the few repeats that do happen."""
    order = np.argsort(time, kind="stable")
    _, first = np.unique(viewer[order] * len(library.items) + item[order], return_index=True)
    kept = rng.random(len(item)) < np.where(library.series[item], REPEAT_SERIES, REPEAT_FILM)
    kept[order[first]] = True
    return kept


def event_id(seed: int, number: int) -> str:
    """Ten hex digits, different for every `number` below 2⁴⁰ (an odd multiplier permutes the residues)."""
    return f"{(number * 0x9E3779B97F + seed) & 0xFFFFFFFFFF:010x}"


def _play_events(
    plays: Plays, library: Library, audience: Audience, rng: np.random.Generator, seed: int, now_ms: int
) -> list[PlaybackEvent]:
    """Start, sometimes progress, and the end of each play; sometimes a rating or a hide after it."""
    n = len(plays.item)
    duration = library.duration_ms[plays.item]
    watched = (plays.share * duration).astype(np.int64)
    end_ms = plays.start_ms + watched + rng.integers(0, 30_000, n)
    mid = (plays.share > 0.3) & (rng.random(n) < 0.25) | (plays.ending == LOST)
    middle_ms = (watched * (0.3 + 0.4 * rng.random(n))).astype(np.int64)
    liking = personal_liking(plays.viewer, plays.item, seed)
    remark = rng.random(n)
    value = np.where(plays.ending == COMPLETE, 40 + 60 * liking, -100 + 80 * liking).astype(np.int64)
    viewer_ids = [viewer.viewer for viewer in audience.viewers]
    item_ids = [item.item_id for item in library.items]
    columns = (plays.viewer, plays.item, plays.start_ms, plays.ending, plays.private, duration, watched, end_ms)
    rows = zip(*(column.tolist() for column in (*columns, mid, middle_ms, remark, value)), strict=True)
    events: list[PlaybackEvent] = []
    for number, (v, i, start, ending, private, length, seen_ms, end, middle, at_ms, drawn, mark) in enumerate(rows):
        who, what, base = viewer_ids[v], item_ids[i], number * 8
        reports = [(Kind.START, start, 0)]
        if middle:
            reports.append((Kind.PROGRESS, start + at_ms, at_ms))
        if ending != LOST:
            reports.append((ENDING_KINDS[ending], end, seen_ms))
        play = event_id(seed + 1, number)
        events += [
            PlaybackEvent(
                event_id=event_id(seed, base + slot),
                kind=kind,
                viewer=who,
                event_time_ms=time_ms,
                private=private,
                item_id=what,
                play_id=play,
                play_started_at_ms=start,
                watched_ms=watched_ms,
                duration_ms=length,
            )
            for slot, (kind, time_ms, watched_ms) in enumerate(reports)
            if time_ms < now_ms
        ]
        if private or end + 60_000 >= now_ms:
            continue
        after = event_id(seed, base + 3)
        if ending in (COMPLETE, SKIP) and drawn < RATE_SHARE:
            events.append(PlaybackEvent(after, Kind.RATE, who, end + 8_000, item_id=what, value=mark))
            if drawn < RATE_SHARE * CLEAR_SHARE:
                cleared = event_id(seed, base + 4)
                events.append(PlaybackEvent(cleared, Kind.CLEAR_RATING, who, end + 40_000, item_id=what))
        elif ending == SKIP and drawn > 1 - HIDE_SHARE:
            events.append(PlaybackEvent(after, Kind.HIDE, who, end + 9_000, item_id=what))
    return events


def _preferences(
    audience: Audience, library: Library, residents: int, rng: np.random.Generator, seed: int, now_ms: int, days: int
) -> list[PlaybackEvent]:
    """Some viewers tell a topic or a creator that they like."""
    telling = np.flatnonzero(rng.random(residents) < PREFER_SHARE)
    since = np.maximum(audience.joined_ms[telling], now_ms - days * DAY_MS)
    times = since + (rng.random(len(telling)) * (now_ms - 1 - since)).astype(np.int64)
    events = []
    for number, (v, time_ms) in enumerate(zip(telling.tolist(), times.tolist(), strict=True)):
        creator = int(audience.creators[v, 0])
        if creator >= 0 and number % 3 == 0:
            preference = subject(CREATOR, library.creator_names[creator])
        else:
            preference = subject(TOPIC, audience.viewers[v].taste.split(", ")[-1].replace(" ", "-"))
        identity = event_id(seed, (1 << 38) + number)
        events.append(
            PlaybackEvent(identity, Kind.PREFER, audience.viewers[v].viewer, time_ms, preference=preference, value=100)
        )
    return events
