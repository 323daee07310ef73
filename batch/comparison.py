"""Two generations side by side: the rows that each would give the same viewers from what they have watched by now.

Nothing is written. Both rows are computed at one moment from the stored state, each from its generation alone: of trends, too, only the
generation's own, as trends of now are counted for the generation in force and would make the comparison one of freshness.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from contracts.codec import Codec
from contracts.errors import UserError
from contracts.rows import ENTRIES_SHOWN, Entry
from embeddings.files import load_generation, load_items
from ranking.overlap import DEPTH, overlap_at, rank_biased_overlap
from runtime.settings import Settings
from viewers.kernel import Todo
from viewers.packing import unpack
from viewers.rewriter import Rewriter
from viewers.state import Limits, ViewerState
from viewers.store import Store, StoredViewer

NEWEST_PLAYS = 5
"""Shown beside the rows, so that a person can judge them."""
MOST = 10
"""Titles listed as shown to more, and to fewer, viewers."""
BATCH = 256


@dataclass(frozen=True, slots=True)
class Tile:
    """An entry of a row. `place`: from 1; `other_place`: in the other generation's row, None if it is not shown there."""

    place: int
    item_id: str
    title: str
    source: str
    other_place: int | None


@dataclass(frozen=True, slots=True)
class ViewerComparison:
    """One viewer. `plays`: titles of the newest. `overlap`: share of the first `DEPTH` places that both rows show there, in any order.
    `rank_biased_overlap`: 0 nothing in common, 1 the same order. `new`, `gone`: titles that `b` shows and `a` does not, and the reverse."""

    viewer: str
    plays: tuple[str, ...]
    a: tuple[Tile, ...]
    b: tuple[Tile, ...]
    overlap: float
    rank_biased_overlap: float
    new: int
    gone: int
    moved: int


@dataclass(frozen=True, slots=True)
class Reach:
    """To how many of the compared viewers a title is shown among the first `DEPTH`, by each generation."""

    item_id: str
    title: str
    a: int
    b: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """`a`, `b`: generations. Means are over viewers. `titles_a`, `titles_b`: different titles among everybody's first `DEPTH` places."""

    a: str
    b: str
    computed_at_ms: int
    overlap: float
    rank_biased_overlap: float
    same_first: float
    titles_a: int
    titles_b: int
    shown_more: tuple[Reach, ...]
    shown_less: tuple[Reach, ...]
    viewers: tuple[ViewerComparison, ...]


async def compare(
    settings: Settings,
    store: Store,
    a: str,
    b: str,
    *,
    viewers: Sequence[str] = (),
    draw: int = 20,
    seed: int = 0,
    now_ms: int,
) -> Comparison:
    """Compare for these viewers; without any, for `draw` of those who have a row of their own, the same ones as long as the seed is.

    Errors: `UserError` for viewers of whom nothing is known; `GenerationError`; `StoreUnavailable`.
    """
    side_a, side_b = await asyncio.gather(*(_load(settings, generation_id) for generation_id in (a, b)))
    titles = side_a.titles | side_b.titles
    chosen = await (_chosen(store, list(dict.fromkeys(viewers))) if viewers else _drawn(store, draw, seed))
    compared: list[ViewerComparison] = []
    for start in range(0, len(chosen), BATCH):
        some = chosen[start : start + BATCH]
        rows_a, rows_b = [await asyncio.to_thread(side.rows, some, now_ms) for side in (side_a, side_b)]
        for (viewer, stored), row_a, row_b in zip(some, rows_a, rows_b, strict=True):
            compared.append(compare_rows(viewer, _plays(unpack(stored.state), titles), row_a, row_b, titles))
    return summarize(a, b, now_ms, compared)


@dataclass(frozen=True, slots=True)
class _Side:
    """A generation, ready to make rows. `titles`: item → title."""

    rewriter: Rewriter
    codec: Codec
    titles: dict[str, str]

    def rows(self, viewers: Sequence[tuple[str, StoredViewer]], now_ms: int) -> list[tuple[Entry, ...]]:
        """What each viewer would be shown: by the code that serves, and read back as the home page does."""
        todo = [Todo(stored.state, (), True, None) for _, stored in viewers]
        made = self.rewriter.rewrite_many(todo, computed_at_ms=now_ms)
        return [
            self.codec.decode_row(one.row_bytes).entries[:ENTRIES_SHOWN] if one is not None and one.row_bytes else ()
            for one in made
        ]


async def _load(settings: Settings, generation_id: str) -> _Side:
    generation = await asyncio.to_thread(load_generation, settings.generations_path, generation_id)
    items = await asyncio.to_thread(load_items, settings.generations_path, generation_id)
    codec = Codec.load(settings.registry_path)
    rewriter = Rewriter(generation, 0, codec.encode_row, Limits(**settings.state.model_dump()))
    await asyncio.to_thread(rewriter.prepare)
    return _Side(rewriter, codec, {item.item_id: item.title for item in items})


async def _chosen(store: Store, viewers: Sequence[str]) -> list[tuple[str, StoredViewer]]:
    stored = await store.read_viewers(viewers)
    unknown = [viewer for viewer, one in zip(viewers, stored, strict=True) if not _has_plays(one)]
    if unknown:
        raise UserError(
            f"nothing is known of {', '.join(unknown)}: both generations show them the default row; name viewers who have "
            "watched something, or let some be drawn (--draw 20)"
        )
    return list(zip(viewers, stored, strict=True))


async def _drawn(store: Store, count: int, seed: int) -> list[tuple[str, StoredViewer]]:
    """`count` viewers with a state, those whose hash with the seed is smallest: the same ones next time, wherever they lie in the store."""

    def place(viewer: str) -> bytes:
        return hashlib.blake2b(f"{seed}:{viewer}".encode(), digest_size=8).digest()

    smallest: list[str] = []
    async for batch in store.scan_viewers():
        smallest = heapq.nsmallest(2 * count, {*smallest, *batch}, key=place)  # twice: some have been erased
    stored = await store.read_viewers(smallest)
    known = [(viewer, one) for viewer, one in zip(smallest, stored, strict=True) if _has_plays(one)]
    if not known:
        raise UserError(
            "no viewer in this store has watched anything: nothing can be compared (nearline replay, nearline nightly --seed)"
        )
    return known[:count]


def _has_plays(stored: StoredViewer) -> bool:
    return bool(stored.state) and not unpack(stored.state).is_empty


def _plays(state: ViewerState, titles: dict[str, str]) -> tuple[str, ...]:
    """Titles of the newest plays, each once."""
    newest = dict.fromkeys(play.item_id for play in state.plays)
    return tuple(titles.get(item_id, item_id) for item_id in list(newest)[:NEWEST_PLAYS])


# Pure


def compare_rows(
    viewer: str, plays: tuple[str, ...], a: Sequence[Entry], b: Sequence[Entry], titles: dict[str, str]
) -> ViewerComparison:
    """`a`, `b`: what each generation shows, best first."""
    place_a, place_b = ({entry.item_id: place for place, entry in enumerate(row, 1)} for row in (a, b))
    first_a, first_b = ([entry.item_id for entry in row] for row in (a, b))
    return ViewerComparison(
        viewer,
        plays,
        _tiles(a, place_b, titles),
        _tiles(b, place_a, titles),
        overlap_at(DEPTH, first_a, first_b),
        rank_biased_overlap(first_a, first_b),
        new=len(place_b.keys() - place_a.keys()),
        gone=len(place_a.keys() - place_b.keys()),
        moved=sum(place_a[item] != place_b[item] for item in place_a.keys() & place_b.keys()),
    )


def _tiles(row: Sequence[Entry], elsewhere: dict[str, int], titles: dict[str, str]) -> tuple[Tile, ...]:
    return tuple(
        Tile(place, e.item_id, titles.get(e.item_id, e.item_id), e.source, elsewhere.get(e.item_id))
        for place, e in enumerate(row, 1)
    )


def summarize(a: str, b: str, computed_at_ms: int, viewers: Sequence[ViewerComparison]) -> Comparison:
    """Means over viewers, and the titles whose reach changes most."""
    titles = {tile.item_id: tile.title for one in viewers for tile in (*one.a[:DEPTH], *one.b[:DEPTH])}
    reach_a, reach_b = (
        _reach(row[:DEPTH] for row in rows) for rows in ([v.a for v in viewers], [v.b for v in viewers])
    )
    reach = [Reach(item_id, title, reach_a[item_id], reach_b[item_id]) for item_id, title in sorted(titles.items())]

    def most(gain: Callable[[Reach], int]) -> tuple[Reach, ...]:
        return tuple(one for one in heapq.nlargest(MOST, reach, key=gain) if gain(one) > 0)

    n = max(1, len(viewers))
    return Comparison(
        a,
        b,
        computed_at_ms,
        sum(one.overlap for one in viewers) / n,
        sum(one.rank_biased_overlap for one in viewers) / n,
        sum(bool(one.a and one.b) and one.a[0].item_id == one.b[0].item_id for one in viewers) / n,
        len(reach_a),
        len(reach_b),
        most(lambda one: one.b - one.a),
        most(lambda one: one.a - one.b),
        tuple(viewers),
    )


def _reach(rows: Iterable[Sequence[Tile]]) -> Counter[str]:
    return Counter(tile.item_id for row in rows for tile in row)
