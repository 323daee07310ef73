"""The simulated catalogue: titles with creators, lengths, windows and a long-tailed appeal, and new titles without end.

Pure: every function takes its generator and `now_ms`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.catalogue import CatalogueItem
from sandbox.audience import DAY_MS, HOUR_MS, TERRITORIES
from sandbox.names import people
from sandbox.titles import CELLS, TOPICS, compose_title

MINUTE_MS = 60_000
SERIES_BELOW_MINUTES = 60
"""A title shorter than this is a series: playing it again is the next episode, not a second viewing."""

APPEAL_SIGMA = 1.25
"""Of the log-normal appeal: the most wanted tenth of a cell draws about half of its plays."""
TITLES_PER_CREATOR = 3.0
PRODUCTIVITY_EXPONENT = 0.9
"""Zipf exponent of the creators' number of titles."""

RECENT_SHARE = 0.1
"""Released within the last four weeks."""
EXPIRES_SOON_SHARE = 0.012
"""Leaves within the first hour of the demo."""
EXPIRES_LATER_SHARE = 0.05
UPCOMING_SHARE = 0.008
"""In the catalogue already, to be shown from some minute of the first hour on."""
RESTRICTED_SHARE = 0.12
"""Licensed in two to four territories only."""
CROSSOVER_SHARE = 0.25
"""Carries the name of a second topic."""

NEW_TITLE_MEAN_S = 20.0
NEW_TITLE_MIN_S = 4.0


@dataclass(frozen=True, slots=True)
class Library:
    """Titles by number, and what the simulation knows about them.

    `cell`: (n_items,) int32, index into `CELLS`. `appeal`: (n_items,) float64, relative chance within the cell.
    `series`: (n_items,) bool. `duration_ms`, `from_ms`, `until_ms`: (n_items,) int64, open windows as the int64 limits.
    `maturity`: (n_items,) int32. `licensed`: (n_items, n_territories) bool.
    `creator_of`: (n_items,) int32, the first creator's number. `creator_names` by number; `creator_cells`: cell →
    numbers.
    """

    items: tuple[CatalogueItem, ...]
    cell: NDArray[np.int32]
    appeal: NDArray[np.float64]
    series: NDArray[np.bool_]
    duration_ms: NDArray[np.int64]
    from_ms: NDArray[np.int64]
    until_ms: NDArray[np.int64]
    maturity: NDArray[np.int32]
    licensed: NDArray[np.bool_]
    creator_of: NDArray[np.int32]
    creator_names: tuple[str, ...]
    creator_cells: list[NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Draw:
    """Weighted choice within groups, for many draws at once: items sorted by group, with running weights.

    `order`: (n,) int64 item numbers. `running`: (n + 1,) float64. `bounds`: (n_groups + 1,) int64 into `order`.
    """

    order: NDArray[np.int64]
    running: NDArray[np.float64]
    bounds: NDArray[np.int64]

    @classmethod
    def of(cls, group: NDArray[np.int32], weight: NDArray[np.float64], n_groups: int) -> Draw:
        order = np.argsort(group, kind="stable")
        running = np.concatenate([[0.0], np.cumsum(weight[order])])
        bounds = np.searchsorted(group[order], np.arange(n_groups + 1))
        return cls(order, running, bounds)

    def sample(self, rng: np.random.Generator, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """One item of each group in `groups` (m,) int64; no group may be empty. Returns (m,) int64."""
        low, high = self.running[self.bounds[groups]], self.running[self.bounds[groups + 1]]
        at = np.searchsorted(self.running, low + rng.random(len(groups)) * (high - low), side="right") - 1
        return self.order[np.clip(at, self.bounds[groups], self.bounds[groups + 1] - 1)]


def make_library(rng: np.random.Generator, n_items: int, *, now_ms: int) -> tuple[Library, set[str]]:
    """The catalogue at `now_ms` and the set of names taken, so that new titles do not repeat one."""
    n_creators = max(len(CELLS), int(n_items / TITLES_PER_CREATOR))
    taken_names: set[str] = set()
    names_source = people(rng, taken_names)
    names = tuple(next(names_source) for _ in range(n_creators))
    topic_appeal = np.array([TOPICS[t].appeal for t, _ in CELLS])
    home = np.concatenate(
        [np.arange(len(CELLS)), rng.choice(len(CELLS), n_creators - len(CELLS), p=topic_appeal / topic_appeal.sum())]
    )
    productivity = rng.permutation(np.arange(1, n_creators + 1) ** -PRODUCTIVITY_EXPONENT)
    by_home = Draw.of(home.astype(np.int32), productivity, len(CELLS))

    cell = np.concatenate([np.arange(len(CELLS)), rng.choice(len(CELLS), n_items, p=topic_appeal / topic_appeal.sum())])
    cell = cell[:n_items].astype(np.int32)
    first = by_home.sample(rng, cell.astype(np.int64))
    second = np.where(rng.random(n_items) < 0.3, by_home.sample(rng, cell.astype(np.int64)), first)
    taken: set[str] = set()
    items = []
    for number in range(n_items):
        creators = tuple(dict.fromkeys((names[first[number]], names[second[number]])))
        window = _window(rng, now_ms)
        items.append(_make_item(rng, number, int(cell[number]), creators, window, taken))
    codes = list(TERRITORIES)
    minimum, maximum = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    duration = np.array([item.duration_ms for item in items], dtype=np.int64)
    library = Library(
        items=tuple(items),
        cell=cell,
        appeal=rng.lognormal(0.0, APPEAL_SIGMA, n_items),
        series=duration < SERIES_BELOW_MINUTES * MINUTE_MS,
        duration_ms=duration,
        from_ms=np.array([minimum if i.available_from_ms is None else i.available_from_ms for i in items], np.int64),
        until_ms=np.array([maximum if i.available_until_ms is None else i.available_until_ms for i in items], np.int64),
        maturity=np.array([item.maturity for item in items], dtype=np.int32),
        licensed=np.array([[not i.territories or code in i.territories for code in codes] for i in items]),
        creator_of=first.astype(np.int32),
        creator_names=names,
        creator_cells=[np.intersect1d(np.flatnonzero(home == c), first) for c in range(len(CELLS))],
    )
    return library, taken


def make_new_titles(
    rng: np.random.Generator, library: Library, taken: set[str], *, now_ms: int
) -> Iterator[tuple[float, int, CatalogueItem]]:
    """Endless (seconds since `now_ms`, cell, title): a new release every `NEW_TITLE_MEAN_S` on average."""
    seconds, number = 0.0, len(library.items)
    while True:
        seconds += NEW_TITLE_MIN_S + float(rng.exponential(NEW_TITLE_MEAN_S - NEW_TITLE_MIN_S))
        cell = int(rng.integers(len(CELLS)))
        at_home = library.creator_cells[cell]
        creator = int(rng.choice(at_home)) if len(at_home) else int(rng.integers(len(library.creator_names)))
        release_ms = now_ms + int(seconds * 1000)
        window = (release_ms, None, release_ms)
        yield seconds, cell, _make_item(rng, number, cell, (library.creator_names[creator],), window, taken)
        number += 1


def _window(rng: np.random.Generator, now_ms: int) -> tuple[int | None, int | None, int]:
    """(available from, until, released), UTC ms."""
    at = rng.random()
    released = now_ms - int(DAY_MS * (30 + rng.exponential(1_400)))
    if at < UPCOMING_SHARE:
        soon = now_ms + int(rng.integers(1, 60)) * MINUTE_MS
        return soon, None, soon
    at -= UPCOMING_SHARE
    if at < RECENT_SHARE:
        recent = now_ms - int(rng.integers(HOUR_MS, 28 * DAY_MS))
        return recent, None, recent
    at -= RECENT_SHARE
    if at < EXPIRES_SOON_SHARE:
        return None, now_ms + int(rng.integers(1, 60)) * MINUTE_MS, released
    at -= EXPIRES_SOON_SHARE
    if at < EXPIRES_LATER_SHARE:
        return None, now_ms + int(rng.integers(1, 90)) * DAY_MS, released
    return None, None, released


def _make_item(
    rng: np.random.Generator,
    number: int,
    cell: int,
    creators: tuple[str, ...],
    window: tuple[int | None, int | None, int],
    taken: set[str],
) -> CatalogueItem:
    t, flavour = CELLS[cell]
    topic = TOPICS[t]
    topics = [topic.name, flavour]
    if rng.random() < CROSSOVER_SHARE:
        topics.append(TOPICS[(t + 1 + int(rng.integers(len(TOPICS) - 1))) % len(TOPICS)].name)
    territories: tuple[str, ...] = ()
    if rng.random() < RESTRICTED_SHARE:
        codes = rng.permutation(list(TERRITORIES))[: 2 + int(rng.integers(3))]
        territories = tuple(sorted(str(code) for code in codes))
    return CatalogueItem(
        item_id=f"tt{number + 1:07d}",
        title=compose_title(rng, cell, taken),
        topics=tuple(topics),
        creators=creators,
        duration_ms=int(rng.integers(topic.minutes[0], topic.minutes[1] + 1)) * MINUTE_MS,
        maturity=topic.ages[int(rng.integers(len(topic.ages)))],
        territories=territories,
        available_from_ms=window[0],
        available_until_ms=window[1],
        released_at_ms=window[2],
    )
