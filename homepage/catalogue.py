"""The current catalogue, as the home page needs it: titles to show, and what may no longer be shown.

It comes with the generation in force (`items.parquet`) and is replaced whole, in the background, when `CURRENT` names
another one. A generation that cannot be read leaves the old catalogue in place; what goes with its titles, if only that cannot be read, is
tried again. While a share of the viewers sees a candidate, its titles that the one in force lacks are there too: else they would be missing
from these viewers' rows. A candidate that cannot be read costs these titles alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import structlog

from contracts.catalogue import CatalogueItem
from contracts.current import Current
from contracts.errors import GenerationError
from embeddings.companions import COMPANIONS, Companions, parse_companions
from embeddings.files import ITEMS_SCHEMA, catalogue_item
from embeddings.generations_folder import GenerationsFolder
from embeddings.roots import FOREIGN, open_root, read_table
from homepage.tiles import Tile, Tiles
from runtime.again import Again

REFRESH_S = 2.0
"""How often `CURRENT` is looked at: one small read."""

COMPANIONS_AGAIN = 30
"""Looks at `CURRENT` until what goes with each title, which could not be read, is tried again: a minute."""

_REQUIRED = ("item_id", "title")

log = structlog.get_logger()


class CatalogueView(Protocol):
    """What may be shown now. `activation` is 0 while nothing is loaded."""

    @property
    def activation(self) -> int: ...

    @property
    def generation_id(self) -> str: ...

    @property
    def companions(self) -> Companions:
        """What goes with each title, by the generation that the catalogue came with."""

    @property
    def tiles(self) -> Mapping[str, Tile]:
        """Item id → the title as it is shown; of one that the catalogue does not hold, as it is shown without."""

    def get(self, item_id: str) -> CatalogueItem | None:
        """The title, or None if the catalogue does not hold it."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """One generation's titles. Immutable."""

    items: Mapping[str, CatalogueItem] = field(default_factory=dict)
    generation_id: str = ""
    activation: int = 0
    companions: Companions = field(default_factory=Companions, repr=False, compare=False)
    nameless: bool = field(
        init=False, repr=False, compare=False
    )  # there is no catalogue: titles are shown under their ids
    tiles: Tiles = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        nameless = bool(self.items) and all(one.title == item_id for item_id, one in self.items.items())
        object.__setattr__(self, "nameless", nameless)
        object.__setattr__(self, "tiles", Tiles(self.items.get))

    def get(self, item_id: str) -> CatalogueItem | None:
        """The title, or None."""
        return self.items.get(item_id)


class LiveCatalogue:
    """Follows `CURRENT` in a generations folder (a path, or an object storage URL). `run` is its background task."""

    def __init__(self, generations_path: str) -> None:
        self._root = generations_path
        self._catalogue = Catalogue()
        self._seen: Current | None = None
        self._lists: Again[str] = Again(COMPANIONS_AGAIN)  # the generation whose lists of what goes with what are bad
        self._rows_of_lists: tuple[str, ...] = ()  # its titles, then
        # By the feed, and kept though the generation agrees: a rollback puts an older one in force. Bounded by the catalogue.
        self._told: dict[str, CatalogueItem] = {}
        self.tiles = Tiles(self.get)

    @property
    def activation(self) -> int:
        """Activation of the loaded catalogue, 0 for none."""
        return self._catalogue.activation

    @property
    def generation_id(self) -> str:
        """The generation that the loaded catalogue came with; empty for none."""
        return self._catalogue.generation_id

    @property
    def companions(self) -> Companions:
        """What goes with each title, by that generation."""
        return self._catalogue.companions

    def get(self, item_id: str) -> CatalogueItem | None:
        """The title as the feed last told it, else in the catalogue in force, or None."""
        found = self._told.get(item_id) or self._catalogue.items.get(item_id)
        if found is None and self._catalogue.nameless and not self._told:
            return CatalogueItem(item_id, item_id)  # played since; there is no catalogue that could lack it
        return found

    def put(self, item: CatalogueItem) -> None:
        """What the catalogue topic says of a title; it wins over the generation, which is older."""
        self._told[item.item_id] = _shared(item, self._catalogue.items)
        self.tiles.pop(item.item_id, None)

    def remove(self, item_id: str) -> None:
        """The catalogue topic holds the title no more. It stays hidden: an older generation may still have it."""
        self._told[item_id] = CatalogueItem(item_id, item_id, taken_down=True)
        self.tiles.pop(item_id, None)

    async def refresh(self) -> bool:
        """Load the catalogue that `CURRENT` names if it is another one; True if it was replaced.

        Raises `GenerationError` if there is one that cannot be read; the old one then stays. It is also raised where only the candidate
        is bad, after what is in force was loaded."""
        current = await asyncio.to_thread(lambda: GenerationsFolder(self._root).read_current())
        if current is None:
            return False
        if current == self._seen:
            return await self._companions_again()
        generation_id, activation = current.generation_id, current.activation
        root = self._root.rstrip("/")
        more: Mapping[str, CatalogueItem] = {}
        unreadable: GenerationError | None = None
        if current.share is not None:
            try:
                more = await asyncio.to_thread(load_catalogue, f"{root}/{current.share.generation_id}")
            except GenerationError as error:
                if (generation_id, activation) == (self.generation_id, self.activation):  # loaded without it before
                    raise
                unreadable = error
        items = await asyncio.to_thread(load_catalogue, f"{root}/{generation_id}")
        companions = await asyncio.to_thread(_companions_or_none, f"{root}/{generation_id}", tuple(items))
        self._lists.has_failed(generation_id if companions is None else None)
        self._rows_of_lists = tuple(items) if companions is None else ()
        items = {**more, **items}
        self._catalogue = Catalogue(items, generation_id, activation, companions or Companions())
        self._told = {item_id: _shared(item, items) for item_id, item in self._told.items()}
        self.tiles.clear()
        log.info("catalogue_loaded", generation_id=generation_id, activation=activation, items=len(items))
        if unreadable is not None:
            raise unreadable  # it is tried again at the next look
        self._seen = current
        return True

    async def _companions_again(self) -> bool:
        """Once in a while, where they could not be read: storage may have been away for a moment, and the generation is one of a day."""
        failing = self._lists.failing
        if failing is None or not self._lists.is_due(failing):
            return False
        folder = f"{self._root.rstrip('/')}/{failing}"
        companions = await asyncio.to_thread(_companions_or_none, folder, self._rows_of_lists)
        if companions is None:
            self._lists.has_failed(failing)
            return False
        self._lists.has_failed(None)
        self._catalogue, self._rows_of_lists = replace(self._catalogue, companions=companions), ()
        return True

    async def run(self) -> None:
        """Refresh until cancelled; a failure is logged once per message and tried again."""
        reported = ""
        while True:
            try:
                await self.refresh()
                reported = ""
            except GenerationError as error:
                if str(error) != reported:
                    reported = str(error)
                    log.warning("catalogue_not_loaded", problem=reported)
            await asyncio.sleep(REFRESH_S)


def _shared(item: CatalogueItem, items: Mapping[str, CatalogueItem]) -> CatalogueItem:
    """The equal object in `items` if there is one, so that a catalogue told in full is not held twice."""
    known = items.get(item.item_id)
    return known if known is not None and known == item else item


def load_catalogue(generation_dir: Path | str) -> dict[str, CatalogueItem]:
    """Item id → title, from the generation's `items.parquet`. Columns that are absent take their defaults.

    Raises `GenerationError` naming the file and what is wrong."""
    path = f"{generation_dir}/items.parquet"
    try:
        root = open_root(generation_dir)
        # A plain read, not a dataset: the folder names of a path are no columns.
        with root.system.open_input_file(f"{root.path}/items.parquet") as file:
            columns: dict[str, list[Any]] = read_table(file).to_pydict()
    except FOREIGN as error:
        raise GenerationError(f"{path}: unreadable ({error}); activate another generation") from error
    missing = [name for name in _REQUIRED if name not in columns]
    if missing:
        raise GenerationError(f"{path}: no column {', '.join(missing)}; publish the generation again")
    items, absent = {}, dict.fromkeys(ITEMS_SCHEMA.names)
    for values in zip(*columns.values(), strict=True):
        item = catalogue_item(absent | dict(zip(columns, values, strict=True)))
        items[item.item_id] = item
    return items


def load_companions(generation_dir: Path | str, item_ids: Sequence[str]) -> Companions:
    """What goes with each of a generation's titles, which are `item_ids`; nothing where an older program made it.

    Errors: `GenerationError` naming the file and what is wrong."""
    path = f"{generation_dir}/{COMPANIONS}"
    try:
        data = open_root(generation_dir).read(COMPANIONS)
    except FileNotFoundError:
        return Companions()
    except FOREIGN as error:
        raise GenerationError(f"{path}: unreadable ({error}); activate another generation") from error
    return Companions(item_ids, parse_companions(data, len(item_ids), str(generation_dir)))


def _companions_or_none(folder: str, item_ids: Sequence[str]) -> Companions | None:
    """A page is served without the rows below the first rather than not at all."""
    try:
        return load_companions(folder, item_ids)
    except GenerationError as error:
        log.error("rows_below_the_first_not_served", problem=str(error))
        return None
