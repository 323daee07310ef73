"""Rows as a generation would have served them, by the compiled code that serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from contracts.codec import Codec
from contracts.rows import ENTRIES_SHOWN
from embeddings.generation import F32, Generation
from ranking.rows import fold, popular_entries
from viewers.kernel import Todo
from viewers.packing import pack
from viewers.rewriter import Rewriter, ranking_input
from viewers.state import Limits, ViewerState

EVERY_AGE = 99
HOUR_MS = 3_600_000


class Place(NamedTuple):
    """One title of a row, and what speaks for it most."""

    item_id: str
    source: str


Row = tuple[Place, ...]
"""Best first."""


@dataclass(frozen=True, eq=False, slots=True)
class RowMaker:
    """`generation`'s rows for any state."""

    generation: Generation
    rewriter: Rewriter
    codec: Codec

    @classmethod
    def make(cls, generation: Generation, codec: Codec, limits: Limits) -> RowMaker:
        return cls(generation, Rewriter(generation, 1, codec.encode_row, limits), codec)

    def rows(self, asked: Sequence[tuple[ViewerState, int]]) -> list[Row]:
        """The entries shown for each (state, time in ms); the default row's for who has done nothing. Titles are available or not
        as of the hour's first ask."""
        found: list[Row] = [()] * len(asked)
        hours: dict[int, list[int]] = {}
        for number, (_, time_ms) in enumerate(asked):
            hours.setdefault(time_ms // HOUR_MS, []).append(number)
        for numbers in hours.values():
            at_ms = min(asked[number][1] for number in numbers)
            todo = [Todo(pack(asked[number][0]), (), True, None) for number in numbers]
            default: Row | None = None
            for number, made in zip(numbers, self.rewriter.rewrite_many(todo, computed_at_ms=at_ms), strict=True):
                if made is not None and made.row_bytes:
                    row = self.codec.decode_columns(made.row_bytes)
                    sources = map(row.sources.__getitem__, row.of_source)
                    found[number] = tuple(map(Place, row.items, sources))[:ENTRIES_SHOWN]
                else:
                    default = self.popular(at_ms) if default is None else default
                    found[number] = default
        return found

    def popular(self, at_ms: int, count: int = ENTRIES_SHOWN) -> Row:
        """The default row's first entries."""
        entries = popular_entries(self.generation, at_ms, maturity=EVERY_AGE, count=count)
        return tuple(Place(entry.item_id, entry.source) for entry in entries)

    def vector(self, state: ViewerState) -> F32:
        """(k,) float32: the state folded in."""
        return fold(self.generation, ranking_input(state)).x
