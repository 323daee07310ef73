"""From a night to its `Review`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from batch.evaluate import Evaluation
from batch.lake import Lake
from batch.review.audience import Ask, Member, read_audience
from batch.review.figures import (
    SEED,
    SEGMENTS,
    TOP,
    Drift,
    Figures,
    Moment,
    averages_of,
    by_hours,
    by_segment,
    drift,
    reach,
    serve,
    shared,
)
from batch.review.rows import Row, RowMaker
from contracts.codec import Codec
from embeddings.generation import Generation
from viewers.state import Limits, ViewerState

AUDIENCE = 200
"""Viewers looked at, at most."""
ASKS = 600
"""Plays asked about, at most: a hit rate of 0.2 is then known to about ±0.03."""
COMPARED = 100
"""Viewers whose rows of now are compared, at most."""
SHOWN_VIEWERS = 5
RECENT = 6
"""Titles told of what a viewer watched last."""
GATE_MEASURES = ("hr@10", "ndcg@10", "hr@50", "auc")


@dataclass(frozen=True, eq=False, slots=True)
class Judged:
    """What a night compared. `candidate`: trained without the held-out plays. `in_force_until_ms`: the newest event it knows."""

    evaluation: Evaluation | None = None
    candidate: Generation | None = None
    in_force: Generation | None = None
    in_force_until_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Tile:
    """One place of a row. `was`: its place in the other row, from 1; 0: not among the first ten there."""

    title: str
    source: str
    was: int


@dataclass(frozen=True, slots=True)
class ShownViewer:
    """A viewer for the editors, by a keyed digest of the id. `why`: why this one. `recent`: what was watched last, newest first."""

    digest: str
    why: str
    titles_played: int
    recent: tuple[str, ...]
    before: tuple[Tile, ...]
    after: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class Review:
    """Everything on the page but what `NightlyReport` tells. Times in UTC milliseconds.

    `reference`: the generation asked about plays that it does not know, all since `from_ms`. `gate`: arm → segment → measure → interval.
    `segments`, `hours`, `reach`, `drift`: `figures.py`; empty where there was nothing to ask.
    """

    reference: str
    after: str
    from_ms: int | None
    asks: int
    viewers: int
    items: int
    gate: Mapping[str, Figures]
    segments: Mapping[str, Figures]
    hours: Mapping[str, Figures]
    reach: Mapping[str, Mapping[str, object]]
    drift: Drift | None
    shown: tuple[ShownViewer, ...]


def make_review(lake: Lake, codec: Codec, limits: Limits, judged: Judged, new: Generation, now_ms: int) -> Review:
    """Read some viewers, replay what they did since the reference generation was made. `new`: what was published, or held back.
    Errors: `DataError`."""
    reference, from_ms = _reference(judged, new)
    members = read_audience(lake, from_ms or 0, AUDIENCE)
    before, after = RowMaker.make(reference, codec, limits), RowMaker.make(new, codec, limits)
    asks = _asks(members, from_ms)
    now = _moment(members[:COMPARED], before, after, limits, now_ms)
    then = [member.state_before(from_ms or 0, limits) for member in members[:COMPARED]]
    served = serve(before, members, asks, from_ms, limits) if asks and from_ms is not None else []
    shown = now
    if judged.in_force is not None and judged.in_force is not reference:
        old = RowMaker.make(judged.in_force, codec, limits)
        shown = replace(now, before=old.rows([(state, now_ms) for state in now.states]))
    return Review(
        reference=reference.generation_id,
        after=new.generation_id,
        from_ms=from_ms,
        asks=len(served),
        viewers=len({one.ask.viewer for one in served}),
        items=new.n_items,
        gate=gate_figures(judged.evaluation),
        segments=by_segment(served) if served else {},
        hours=by_hours(served, from_ms) if served and from_ms is not None else {},
        reach=reach(served, reference) if served else {},
        drift=drift(before, after, now, then, from_ms) if from_ms is not None else None,
        shown=choose_shown(lake, members, shown),
    )


def _reference(judged: Judged, new: Generation) -> tuple[Generation, int | None]:
    """The generation that does not know the plays from a time on, and that time; None: there is none to ask."""
    holdout = judged.evaluation.holdout if judged.evaluation is not None else None
    if judged.in_force is not None and judged.in_force_until_ms is not None and not (holdout and holdout.advisory):
        return judged.in_force, judged.in_force_until_ms + 1
    if judged.candidate is not None and holdout is not None:
        return judged.candidate, holdout.from_ms
    return new, None


def _asks(members: Sequence[Member], from_ms: int | None) -> list[Ask]:
    if from_ms is None:
        return []
    asks = [ask for number, member in enumerate(members) for ask in member.asks_since(number, from_ms)]
    if len(asks) > ASKS:
        kept = np.random.default_rng(SEED).choice(len(asks), ASKS, replace=False)
        asks = [asks[number] for number in np.sort(kept).tolist()]
    return asks


def gate_figures(evaluation: Evaluation | None) -> dict[str, Figures]:
    """The gate's own comparison by segment, with intervals: segment → arm → measure."""
    if evaluation is None or not evaluation.each:
        return {}
    so_far = np.array(evaluation.plays_so_far)
    found: dict[str, Figures] = {}
    for segment, (low, high) in SEGMENTS.items():
        mask = (so_far >= low) & (so_far <= high)
        if mask.any():
            found[segment] = {
                arm: averages_of({name: values[name] for name in GATE_MEASURES}, mask)
                for arm, values in evaluation.each.items()
            }
    return found


def _moment(members: Sequence[Member], before: RowMaker, after: RowMaker, limits: Limits, now_ms: int) -> Moment:
    states = [member.state_before(None, limits) for member in members]
    asked = [(state, now_ms) for state in states]
    return Moment(states, before.rows(asked), after.rows(asked))


def choose_shown(lake: Lake, members: Sequence[Member], now: Moment) -> tuple[ShownViewer, ...]:
    """Five who differ: whose row changes most and least, who played most and least, and one in the middle. Erased ones are not there:
    the lake leaves them out."""
    there = [number for number, state in enumerate(now.states) if state.plays]
    if not there:
        return ()
    titles = {item.item_id: item.title for item in lake.catalogue()}
    kept = {n: shared(now.before[n], now.after[n]) for n in there}
    plays = {n: len(now.states[n].plays) for n in there}
    return tuple(
        _shown(lake, members[n], now.states[n], why, (now.before[n], now.after[n]), titles)
        for n, why in _choose(there, kept, plays)
    )


def _choose(there: Sequence[int], kept: Mapping[int, int], plays: Mapping[int, int]) -> list[tuple[int, str]]:
    by_plays = sorted(there, key=lambda n: (plays[n], n))
    wishes = (
        ("whose row changes most", sorted(there, key=lambda n: (kept[n], n))),
        ("whose row changes least", sorted(there, key=lambda n: (-kept[n], n))),
        ("who watched most", by_plays[::-1]),
        ("who watched least", by_plays),
        ("in the middle", by_plays[len(by_plays) // 2 :] + by_plays),
    )
    chosen: dict[int, str] = {}
    for why, order in wishes:
        number = next((n for n in order if n not in chosen), None)
        if number is not None:
            chosen[number] = why
    return list(chosen.items())


def _shown(
    lake: Lake,
    member: Member,
    state: ViewerState,
    why: str,
    rows: tuple[Row, Row],
    titles: Mapping[str, str],
) -> ShownViewer:
    before, after = rows
    recent = list(dict.fromkeys(play.item_id for play in state.plays))
    return ShownViewer(
        digest=lake.ledger.digest(member.viewer),
        why=why,
        titles_played=len(recent),
        recent=tuple(titles.get(item_id, item_id) for item_id in recent[:RECENT]),
        before=_tiles(before, after, titles),
        after=_tiles(after, before, titles),
    )


def _tiles(row: Row, other: Row, titles: Mapping[str, str]) -> tuple[Tile, ...]:
    place = {entry.item_id: number for number, entry in enumerate(other[:TOP], 1)}
    return tuple(
        Tile(titles.get(entry.item_id, entry.item_id), entry.source, place.get(entry.item_id, 0)) for entry in row[:TOP]
    )
