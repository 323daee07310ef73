"""The report's figures: what is measured, and how. Pure, but for the rows that `rows.py` makes.

    popular       the default row, without what the viewer has played
    last night's  the row of the reference generation as it was rebuilt, without what was played since
    live          the row of the same generation after every play: what the updater writes

Each is asked just before each liked play of a new title; only what lies before is in the state. 95 % intervals by bootstrap over viewers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from batch.backtest.intervals import DEVIATIONS, resample
from batch.backtest.measures import coverage, sums_by_viewer
from batch.review.audience import Ask, Member
from batch.review.rows import Row, RowMaker
from contracts.rows import ENTRIES_SHOWN
from embeddings.generation import F32, F64, I64, Generation
from viewers.state import Limits, ViewerState

LIVE, NIGHTLY, POPULAR = "live", "last night's", "popular"
ARMS = (LIVE, NIGHTLY, POPULAR)
LIFT = "live minus last night's"
SEGMENTS = {"all": (0, math.inf), "0": (0, 0), "1-4": (1, 4), "5-19": (5, 19), "20+": (20, math.inf)}
"""By titles played so far."""
HOURS = (0, 1, 3, 6, 12, 24, 48, math.inf)
MEASURES = ("hr@10", "ndcg@10", "hr@50", "mrr")
TOP = 10
HEAD, MIDDLE = 0.01, 0.1
"""Shares of the catalogue, most popular first: up to 1 % the head, up to 10 % the middle, the rest the tail."""
SEED = 5

Interval = tuple[float, float, float]
"""(value, low, high)."""
Figures = dict[str, dict[str, Interval]]
"""Arm, or a difference of two → measure → value with its interval."""


@dataclass(frozen=True, slots=True)
class Served:
    """One ask with what each arm would have shown."""

    ask: Ask
    rows: Mapping[str, Row]


def serve(
    maker: RowMaker, members: Sequence[Member], asks: Sequence[Ask], from_ms: int, limits: Limits
) -> list[Served]:
    """Every arm's row for every ask. `from_ms`: the reference generation knows what was before."""
    states = [members[ask.viewer].state_before(ask.time_ms, limits) for ask in asks]
    live = maker.rows([(state, ask.time_ms) for state, ask in zip(states, asks, strict=True)])
    who = sorted({ask.viewer for ask in asks})
    built = dict(zip(who, maker.rows([(members[n].state_before(from_ms, limits), from_ms) for n in who]), strict=True))
    popular = maker.popular(from_ms, ENTRIES_SHOWN + limits.max_plays)
    served = []
    for ask, state, row in zip(asks, states, live, strict=True):
        played = {play.item_id for play in state.plays}
        frozen, default = (
            tuple(e for e in r if e.item_id not in played)[:ENTRIES_SHOWN] for r in (built[ask.viewer], popular)
        )
        served.append(Served(ask, {LIVE: row, NIGHTLY: frozen, POPULAR: default}))
    return served


def by_segment(served: Sequence[Served]) -> dict[str, Figures]:
    """Segment → figures; segments in which nobody was asked are left out."""
    so_far = np.array([one.ask.plays_so_far for one in served])
    masks = {name: (so_far >= low) & (so_far <= high) for name, (low, high) in SEGMENTS.items()}
    return _tabulate(served, masks)


def by_hours(served: Sequence[Served], from_ms: int) -> dict[str, Figures]:
    """`0-1`, `1-3`, … hours since the reference generation's newest event → figures."""
    hours = np.array([(one.ask.time_ms - from_ms) / 3_600_000 for one in served])
    names = [f"{low:g}-{high:g}" if high < math.inf else f"{low:g}+" for low, high in itertools.pairwise(HOURS)]
    bounds = itertools.pairwise(HOURS)
    return _tabulate(
        served, {name: (hours >= low) & (hours < high) for name, (low, high) in zip(names, bounds, strict=True)}
    )


def _tabulate(
    served: Sequence[Served], masks: Mapping[str, np.ndarray[tuple[int], np.dtype[np.bool_]]]
) -> dict[str, Figures]:
    of_arm = {arm: _measure([_place(one.rows[arm], one.ask.item_id) for one in served]) for arm in ARMS}
    values = {**of_arm, LIFT: {name: of_arm[LIVE][name] - of_arm[NIGHTLY][name] for name in MEASURES}}
    viewer: I64 = np.array([one.ask.viewer for one in served], np.int64)
    return {
        name: {arm: _averages(viewer, measures, mask) for arm, measures in values.items()}
        for name, mask in masks.items()
        if mask.any()
    }


def _place(row: Row, item_id: str) -> int:
    return next((place for place, entry in enumerate(row, 1) if entry.item_id == item_id), 0)


def _measure(places: Sequence[int]) -> dict[str, F64]:
    place: F64 = np.array(places, np.float64)
    found = place > 0
    gain = np.divide(1, np.log2(place + 1), out=np.zeros_like(place), where=found)
    return {
        "hr@10": (found & (place <= 10)).astype(np.float64),
        "ndcg@10": np.where(place <= 10, gain, 0),
        "hr@50": found.astype(np.float64),
        "mrr": np.divide(1, place, out=np.zeros_like(place), where=found),
    }


def _averages(
    viewer: I64, measures: Mapping[str, F64], mask: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> dict[str, Interval]:
    found, codes = np.unique(viewer[mask], return_inverse=True)
    everyone = np.ones(len(codes), np.bool_)
    columns = [sums_by_viewer(codes, len(found), values[mask], everyone) for values in measures.values()]
    sums, counts = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
    drawn = resample(sums, counts, SEED)
    low, high = np.nanquantile(drawn, (0.025, 0.975), axis=0)
    value = sums.sum(axis=0) / counts.sum(axis=0)
    return {name: (float(value[i]), float(low[i]), float(high[i])) for i, name in enumerate(measures)}


def averages_of(
    values: Mapping[str, Sequence[float]], mask: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> dict[str, Interval]:
    """Means with intervals of one value a viewer and measure, of the viewers of the mask."""
    n = len(mask)
    return _averages(np.arange(n, dtype=np.int64), {k: np.asarray(v, np.float64) for k, v in values.items()}, mask)


def reach(served: Sequence[Served], generation: Generation) -> dict[str, dict[str, object]]:
    """Arm → coverage (share of the catalogue in anybody's first ten, with its interval), and where the first ten lie: head, middle,
    tail. `played`: where what was then played lies."""
    bands = popularity_bands(generation)
    viewer = np.array([one.ask.viewer for one in served], np.int32)
    found: dict[str, dict[str, object]] = {}
    for arm in ARMS:
        top = np.full((len(served), TOP), -1, np.int32)
        for number, one in enumerate(served):
            head = [generation.index[entry.item_id] for entry in one.rows[arm][:TOP]]
            top[number, : len(head)] = head
        value, error = coverage(viewer, top, generation.n_items)
        interval = (value, max(0.0, value - DEVIATIONS * error), min(1.0, value + DEVIATIONS * error))
        found[arm] = {"coverage": interval, "bands": _shares(bands[top[top >= 0]])}
    played = [generation.index[one.ask.item_id] for one in served if one.ask.item_id in generation.index]
    found["played"] = {"bands": _shares(bands[np.array(played, np.int64)])}
    return found


def popularity_bands(generation: Generation) -> I64:
    """(n_items,) 0 head, 1 middle, 2 tail."""
    n = generation.n_items
    bands: I64 = np.full(n, 2, np.int64)
    bands[generation.popular_order[: max(1, round(n * MIDDLE))]] = 1
    bands[generation.popular_order[: max(1, round(n * HEAD))]] = 0
    return bands


def _shares(bands: I64) -> list[float]:
    return [float(share) for share in np.bincount(bands, minlength=3) / max(1, len(bands))]


@dataclass(frozen=True, slots=True)
class Drift:
    """How far one generation's vectors and rows move by plays, and how far the next generation differs. Means over viewers.

    `moved`: cosine of the vector at the last refit and the live one, [value, low, high]. `refit`: cosine of the live vector and that of a
    full refit, both spaces laid over each other; None where their sizes differ. `shared_live`, `shared_nightly`: of the first ten of a
    full refit, how many the live row, and last night's, have too.
    """

    viewers: int
    moved: Interval
    refit: Interval | None
    shared_live: Interval
    shared_nightly: Interval


def align(Y_old: F32, Y_new: F32) -> F64:
    """(k, k) orthogonal R, the least ‖Y_old R − Y_new‖: the spaces of two trainings differ by a rotation at least (Procrustes)."""
    U, _, Vt = np.linalg.svd(Y_old.astype(np.float64).T @ Y_new.astype(np.float64))
    R: F64 = U @ Vt
    return R


def cosine(a: F32 | F64, b: F32 | F64) -> float:
    """0 where either is zero."""
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm > 0 else 0.0


def shared(one: Row, other: Row) -> int:
    """Titles that both first tens have."""
    return len({entry.item_id for entry in one[:TOP]} & {entry.item_id for entry in other[:TOP]})


@dataclass(frozen=True, eq=False, slots=True)
class Moment:
    """Some viewers' states of now, and their rows by two generations."""

    states: Sequence[ViewerState]
    before: Sequence[Row]
    after: Sequence[Row]


def drift(before: RowMaker, after: RowMaker, now: Moment, then: Sequence[ViewerState], from_ms: int) -> Drift | None:
    """`then`: the same viewers' states at the last refit. None if nobody had a vector then."""
    R = _alignment(before.generation, after.generation)
    values: dict[str, list[float]] = {"moved": [], "refit": [], "live": [], "nightly": []}
    nightly = before.rows([(state, from_ms) for state in then])
    for old, state, was, live, full in zip(then, now.states, nightly, now.before, now.after, strict=True):
        if old.is_empty:
            continue
        x_then, x_live = before.vector(old), before.vector(state)
        if x_then.any() and x_live.any():
            values["moved"].append(cosine(x_then, x_live))
            values["refit"].append(cosine(x_live @ R, after.vector(state)) if R is not None else 0.0)
            values["live"].append(float(shared(live, full)))
            values["nightly"].append(float(shared(was, full)))
    n = len(values["moved"])
    if not n:
        return None
    found = averages_of(values, np.ones(n, np.bool_))
    return Drift(n, found["moved"], found["refit"] if R is not None else None, found["live"], found["nightly"])


def _alignment(before: Generation, after: Generation) -> F64 | None:
    if before.k != after.k:
        return None
    common = [item_id for item_id in before.item_ids if item_id in after.index]
    old = before.item_factors[[before.index[item_id] for item_id in common]]
    return align(old, after.item_factors[[after.index[item_id] for item_id in common]])
