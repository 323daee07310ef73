"""What came since the generation: which titles, by the catalogue topic and by what is played, and their vectors, from the store's viewers.

What a checkpoint holds follows from the log alone. This does not: it depends on what the catalogue had said and on how far viewers'
vectors were when they were read. So it is part of the snapshot, whose bytes its name stands for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from contracts.catalogue import CatalogueItem
from contracts.codec import Codec
from embeddings.added import Added, no_items
from embeddings.generation import F32, F64
from runtime.catalogue_feed import CatalogueFeed
from runtime.learning_codec import LearningCodec
from runtime.schemas import Schemas
from runtime.settings import Settings
from runtime.tasks import cancel_all
from trends.counters import Counts
from trends.new_items import Content, ItemFold, NewItem, added_of, choose
from viewers.trend_store import TrendStore

EVERY_S = 10.0
"""Between two looks: a change of them costs every updater some milliseconds."""
LOOKS = 3
"""At an item after each play: its viewer's vector may not have followed yet."""
STOP_WITHIN_S = 5.0
"""The feed ends by itself within a fetch; where Kafka is away it is cut short."""
READ_AT_ONCE = 4_000
"""Viewers' vectors in one look; items that have to wait have the next."""

OffLoop = Callable[..., Awaitable[Any]]


class Announced:
    """Titles that the generation has not learnt and that may be shown, as the catalogue has them. Told by `CatalogueFeed`.

    `items`: the generation's own, of those nobody had played. `learnt`: ids that need no vector.
    """

    def __init__(self, items: Mapping[str, CatalogueItem], learnt: Mapping[str, int], *, named: bool) -> None:
        self._learnt = learnt
        self.titles = dict(items)
        self.any = named  # whether there is a catalogue at all

    def put(self, item: CatalogueItem) -> None:
        self.any = True
        if item.taken_down:
            self.titles.pop(item.item_id, None)
        elif item.item_id not in self._learnt:
            self.titles[item.item_id] = item

    def remove(self, item_id: str) -> None:
        self.any = True
        self.titles.pop(item_id, None)


class Newcomers:
    """The items added to one generation of one activation. `added`: as they are served now. `is_ours`: whether a viewer's vector is of this
    generation; during a share others' of the same activation are not, and say nothing here."""

    def __init__(
        self,
        announced: Announced,
        content: Content,
        fold: ItemFold,
        activation: int,
        most: int,
        settings: Settings,
        is_ours: Callable[[str], bool] = lambda viewer: True,
    ) -> None:
        self._announced = announced
        self._content = content
        self._fold = fold
        self._activation = activation
        self._most = most
        self._settings = settings
        self._is_ours = is_ours
        self._feed: CatalogueFeed | None = None
        self._vectors: dict[str, F32] = {}
        self._known: dict[str, tuple[Any, ...]] = {}  # what vectors are made of, at the last look
        self._looks: dict[str, int] = {}  # still to come, longest waiting first
        self.added: Added = no_items(len(fold.XtX))

    @asynccontextmanager
    async def following(self, codec: Codec, schemas: Schemas) -> AsyncIterator[None]:
        """Follow the catalogue meanwhile."""
        self._feed = CatalogueFeed(self._settings, LearningCodec(codec, schemas=schemas), self._announced)
        task = asyncio.create_task(self._feed.run(), name="catalogue feed")
        try:
            yield
        finally:
            self._feed.stop()
            await asyncio.wait({task}, timeout=STOP_WITHIN_S)
            await cancel_all(task)

    @property
    def titles(self) -> Mapping[str, CatalogueItem] | None:
        """What may be added; None: whatever is played, as there is no catalogue."""
        if self._announced.any or self._feed is None or not self._feed.caught_up:
            return self._announced.titles
        return None

    def item(self, item_id: str) -> CatalogueItem:
        """As the catalogue has it."""
        return self._announced.titles.get(item_id) or CatalogueItem(item_id, item_id)

    def take_up(self, added: Added) -> None:
        """Go on from the vectors of who published before."""
        self._vectors |= dict(zip(added.item_ids, added.item_factors, strict=True))

    async def look(self, partitions: Mapping[int, Counts], store: TrendStore, off_loop: OffLoop) -> None:
        """Bring `added` up to now. Errors: `StoreUnavailable`."""
        titles = self.titles
        known = None if titles is None else dict(titles)  # as it is told of more meanwhile
        chosen: list[NewItem] = await off_loop(self._choose, partitions, known)
        due = self._due(chosen)
        fans = list(dict.fromkeys(fan for one in due for fan in one.fans))
        vectors = dict(zip(fans, await store.read_vectors(fans, self._activation), strict=True)) if fans else {}
        self.added = await off_loop(self._make, chosen, due, vectors)

    def _choose(self, partitions: Mapping[int, Counts], titles: Mapping[str, CatalogueItem] | None) -> list[NewItem]:
        chosen = choose(partitions, titles, self._most)
        return [replace(one, fans=tuple(filter(self._is_ours, one.fans))) for one in chosen]

    def _due(self, chosen: list[NewItem]) -> list[NewItem]:
        """Whose vectors are made now: the first time, where there are new plays, where a viewer was erased, and where the catalogue says
        something else."""
        of = {one.item.item_id: one for one in chosen}
        for item_id in [item_id for item_id in self._looks if item_id not in of]:
            del self._looks[item_id]
        known = {item_id: (one.plays, one.fans, one.item.topics, one.item.creators) for item_id, one in of.items()}
        for item_id, made_of in known.items():
            if self._known.get(item_id) != made_of:
                self._looks[item_id] = LOOKS
        self._known = known
        due: list[NewItem] = []
        viewers = 0
        for item_id in list(self._looks):
            viewers += len(of[item_id].fans)
            if due and viewers > READ_AT_ONCE:
                break
            due.append(of[item_id])
        return due

    def _make(self, chosen: list[NewItem], due: list[NewItem], vectors: Mapping[str, bytes]) -> Added:
        k = len(self._fold.XtX)
        for one in due:
            waiting = not all(vectors[fan] for fan in one.fans)  # viewers' vectors are of another activation yet
            self._looked_at(one, waiting)
            known = [_parsed(vectors[fan], k) for fan in one.fans]
            X = np.stack([x for x in known if x is not None]) if any(x is not None for x in known) else np.zeros((0, k))
            if not len(X) and waiting and one.item.item_id in self._vectors:
                continue
            self._vectors[one.item.item_id] = self._fold.vector(X, self._content.vector(one.item))
        for item_id in self._vectors.keys() - {one.item.item_id for one in chosen}:
            del self._vectors[item_id]
        return added_of(chosen, self._vectors, k)

    def _looked_at(self, one: NewItem, waiting: bool) -> None:
        """One less to come, counted when the viewers were read and not before, as the store may be away. `waiting`: for some viewer's
        vector, and a rebuild may take longer than all looks: there is always one more."""
        left = max(self._looks.pop(one.item.item_id) - 1, int(waiting))
        if left and one.fans:
            self._looks[one.item.item_id] = left  # behind all others


def _parsed(data: bytes, k: int) -> F64 | None:
    """(k,) float64; None if there is none."""
    if len(data) != 2 * k:
        return None
    x: F64 = np.frombuffer(data, "<f2").astype(np.float64)
    return x if np.isfinite(x).all() and x.any() else None
