"""The simulated audience: who watches, what each viewer likes, and when they sit down.

Taste lives in latent cells (`titles.CELLS`: topic × flavour). A viewer is spread over a few cells, has some favourite
creators, and a personal like or dislike of single items that nobody else shares. That is what a factor model can
learn, plus noise that it cannot.
Pure: every function takes its generator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sandbox.names import people
from sandbox.titles import CELLS, TOPICS, topic_label

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

TERRITORIES: dict[str, tuple[int, float]] = {
    "GB": (0, 0.24),
    "DE": (1, 0.22),
    "ES": (1, 0.18),
    "BR": (-3, 0.2),
    "JP": (9, 0.16),
}
"""Territory → (hours from UTC, share of the audience)."""

HOUR_WEIGHTS = np.array(
    [4, 2, 1, 1, 1, 1, 2, 4, 5, 4, 4, 5, 7, 6, 5, 5, 6, 8, 12, 18, 24, 25, 18, 9], dtype=np.float64
)  # fmt: skip
"""Sittings by local hour: a small lunch, a tall evening."""

WEEKEND_LIFT = 1.45
"""Sittings on a Saturday or Sunday, relative to a weekday."""

KIDS_SHARE = 0.07
KIDS_TOPICS = ("family", "animation")
KIDS_MATURITY = 6
"""Highest maturity level that a children's profile plays."""

TOPIC_CONCENTRATION = 2.2
"""Dirichlet concentration over all topics: a viewer has two or three that matter."""
FLAVOUR_CONCENTRATION = 0.9
"""The same over the flavours of one topic: mostly one of three."""
COMMON_TASTE = 0.06
"""Share of everybody's plays drawn from what all like."""
ACTIVITY_SIGMA = 0.85
"""Of the log-normal number of sittings: a few viewers watch every night, many once a week."""


@dataclass(frozen=True, slots=True)
class Viewer:
    """One profile. `maturity`: the highest level it plays. `taste`: its leading topics in words, for people to read."""

    viewer: str
    name: str
    territory: str
    maturity: int
    taste: str
    joined_ms: int


@dataclass(frozen=True, slots=True)
class Audience:
    """Viewers by number.

    `taste_cdf`: (n_viewers, n_cells) float32, cumulative, last column 1: chance of each cell.
    `creators`: (n_viewers, 3) int32, favourite creators by number, −1 for none.
    `activity`: (n_viewers,) float64, sittings per day relative to the mean viewer.
    `utc_offset_h`, `maturity`: (n_viewers,) int32. `territory`: (n_viewers,) int32, index into `TERRITORIES`.
    `joined_ms`: (n_viewers,) int64; newcomers of the demo join after the start.
    """

    viewers: tuple[Viewer, ...]
    taste_cdf: NDArray[np.float32]
    creators: NDArray[np.int32]
    activity: NDArray[np.float64]
    utc_offset_h: NDArray[np.int32]
    territory: NDArray[np.int32]
    maturity: NDArray[np.int32]
    joined_ms: NDArray[np.int64]


def make_audience(
    rng: np.random.Generator,
    *,
    residents: int,
    newcomers: int,
    creator_cells: list[NDArray[np.int64]],
    now_ms: int,
    history_days: int,
) -> Audience:
    """`residents` viewers (a sixth of whom joined during the history), then `newcomers` who have not played yet.

    `creator_cells`: for each cell, the numbers of the creators at home there.
    """
    n = residents + newcomers
    cell_topic = np.array([t for t, _ in CELLS])
    appeal = np.array([topic.appeal for topic in TOPICS])
    territory = rng.choice(len(TERRITORIES), n, p=np.array([share for _, share in TERRITORIES.values()]))
    kids = rng.random(n) < KIDS_SHARE

    topics = rng.gamma(TOPIC_CONCENTRATION * appeal / appeal.sum(), 1.0, (n, len(TOPICS))) + 1e-12  # (n, 18)
    is_kids_topic = np.array([topic.name in KIDS_TOPICS for topic in TOPICS])
    topics[kids] *= np.where(is_kids_topic, 1.0, 1e-6)
    topics[kids] += np.where(is_kids_topic, 0.2, 0.0)
    topics /= topics.sum(axis=1, keepdims=True)
    flavours = rng.gamma(FLAVOUR_CONCENTRATION / 3, 1.0, (n, len(CELLS))) + 1e-6  # (n, 54)
    per_topic = np.add.reduceat(flavours, np.flatnonzero(np.diff(cell_topic, prepend=-1)), axis=1)
    taste = topics[:, cell_topic] * flavours / per_topic[:, cell_topic]
    common = appeal[cell_topic] / appeal[cell_topic].sum()
    taste = np.where(kids[:, None], taste, (1 - COMMON_TASTE) * taste + COMMON_TASTE * common)
    cdf = np.cumsum(taste, axis=1)
    cdf /= cdf[:, -1:]

    age_ms = rng.integers(history_days * DAY_MS, 900 * DAY_MS, n)
    young = rng.random(n) < 1 / 6
    age_ms[young] = rng.integers(0, history_days * DAY_MS, int(young.sum()))
    age_ms[residents:] = 0
    maturity = np.where(kids, KIDS_MATURITY, 18)
    offsets = np.array([offset for offset, _ in TERRITORIES.values()])[territory]
    return Audience(
        viewers=tuple(_viewers(rng, n, territory, maturity, topics, taste, now_ms - age_ms)),
        taste_cdf=cdf.astype(np.float32),
        creators=_favourite_creators(rng, taste, creator_cells),
        activity=rng.lognormal(-(ACTIVITY_SIGMA**2) / 2, ACTIVITY_SIGMA, n),
        utc_offset_h=offsets.astype(np.int32),
        territory=territory.astype(np.int32),
        maturity=maturity.astype(np.int32),
        joined_ms=now_ms - age_ms,
    )


def sitting_times(
    rng: np.random.Generator, audience: Audience, viewers: NDArray[np.int64], *, days: int, now_ms: int
) -> NDArray[np.int64]:
    """When each viewer of `viewers` (n,) int64, with repeats, sits down: (n,) int64 UTC ms within the `days` before
    `now_ms`, not before the viewer joined. Evenings of the viewer's own territory and weekends are fuller."""
    first_day = now_ms // DAY_MS - days
    day = np.arange(days + 1) + first_day
    weight = np.where((day + 3) % 7 >= 5, WEEKEND_LIFT, 1.0)  # day 0 of 1970 was a Thursday
    hours = rng.choice(24, len(viewers), p=HOUR_WEIGHTS / HOUR_WEIGHTS.sum())
    start = rng.choice(day, len(viewers), p=weight / weight.sum()) * DAY_MS
    start += (hours - audience.utc_offset_h[viewers]) * HOUR_MS + rng.integers(0, HOUR_MS, len(viewers))
    span = np.maximum(now_ms - audience.joined_ms[viewers], HOUR_MS)
    early = start < audience.joined_ms[viewers]  # fold back into the time since they joined
    start = np.where(early, now_ms - (now_ms - start) % span, start)
    late = start >= now_ms
    return np.where(late, start - DAY_MS * (1 + (start - now_ms) // DAY_MS), start).astype(np.int64)


def personal_liking(viewer: NDArray[np.int64], item: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) that belongs to this pair alone: the part of taste that no model can infer. Same shape as the inputs."""
    mixed = (viewer.astype(np.uint64) + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= (item.astype(np.uint64) + np.uint64(1)) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53


def _viewers(
    rng: np.random.Generator,
    n: int,
    territory: NDArray[np.int64],
    maturity: NDArray[np.int64],
    topics: NDArray[np.float64],
    taste: NDArray[np.float64],
    joined_ms: NDArray[np.int64],
) -> Iterator[Viewer]:
    codes = list(TERRITORIES)
    leading = np.argsort(-topics, axis=1)[:, :2]
    favourite_cell = np.argmax(taste, axis=1)
    names = people(rng, set())
    for i in range(n):
        name = next(names)
        words = [topic_label(CELLS[int(favourite_cell[i])][1])]
        words += [topic_label(TOPICS[int(t)].name) for t in leading[i] if topics[i, t] > 0.12]
        yield Viewer(
            viewer=f"{name.split()[0].lower()}-{i:04d}",
            name=name,
            territory=codes[int(territory[i])],
            maturity=int(maturity[i]),
            taste=", ".join(dict.fromkeys(words)),
            joined_ms=int(joined_ms[i]),
        )


def _favourite_creators(
    rng: np.random.Generator, taste: NDArray[np.float64], creator_cells: list[NDArray[np.int64]]
) -> NDArray[np.int32]:
    """Three creators of each viewer's strongest cells, −1 where a cell has none."""
    strongest = np.argsort(-taste, axis=1)[:, :2]  # (n, 2)
    chosen = np.full((len(taste), 3), -1, dtype=np.int32)
    for slot, column in enumerate((0, 0, 1)):
        cells = strongest[:, column]
        for cell in range(len(CELLS)):
            at_home = creator_cells[cell]
            mask = cells == cell
            if len(at_home) and mask.any():
                chosen[mask, slot] = rng.choice(at_home, int(mask.sum()))
    return chosen
