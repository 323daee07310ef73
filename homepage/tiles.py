"""Titles as the home page's JSON shows them, encoded once: a row names its titles, and most of its answer is their text. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from contracts.catalogue import CatalogueItem

UNBOUNDED = b'"available_until_ms":null,"score":'
"""Where a row may say until when it may show the title."""

_LONG_AGO, _NEVER = -(2**63), 2**63


class Tile(NamedTuple):
    """One title: what it is held against before it is shown, and its part of the answer.

    It may be shown from `from_ms` until before `until_ms`: a title that was taken down, or that nobody knows, at no time.
    """

    item: CatalogueItem | None
    from_ms: int
    until_ms: int
    maturity: int
    territories: tuple[str, ...]
    facts: bytes
    """From `"item_id"` to `UNBOUNDED`: what every row says of this title that does not bound it."""
    reason: bytes
    """`{"item_id":…,"title":…,"contribution":`"""


class Tiles(dict[str, Tile]):
    """Item id → tile, half a kilobyte, made when it is first asked for; one of a title that the catalogue lacks is not kept.

    Whoever changes what `get` returns takes the tile out."""

    def __init__(self, get: Callable[[str], CatalogueItem | None]) -> None:
        super().__init__()
        self._get = get

    def __missing__(self, item_id: str) -> Tile:
        item = self._get(item_id)
        tile = _encode(item_id, item)
        if item is not None:
            self[item_id] = tile
        return tile


def _encode(item_id: str, item: CatalogueItem | None) -> Tile:
    named = {"item_id": item_id, "title": item.title if item else item_id}
    facts = named | {
        "topics": item.topics if item else (),
        "creators": item.creators if item else (),
        "duration_ms": item.duration_ms if item else None,
        "maturity": item.maturity if item else None,
    }
    starts = item.available_from_ms if item else None
    ends = item.available_until_ms if item else None
    return Tile(
        item,
        _LONG_AGO if starts is None else starts,
        _LONG_AGO if item is None or item.taken_down else _NEVER if ends is None else ends,
        item.maturity if item else 0,
        item.territories if item else (),
        _members(facts) + UNBOUNDED,
        b"{" + _members(named) + b'"contribution":',
    )


def _members(values: dict[str, Any]) -> bytes:
    """`"name":value,` of each."""
    return encode_json(values)[1:-1] + b","


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def encode_json(value: Any) -> bytes:
    """Without spaces, and text as it is."""
    return _ENCODER.encode(value).encode()
