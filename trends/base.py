"""What is counted for: the generation in force, or a candidate, and what it says of items that it has not learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from contracts.current import Current
from contracts.errors import GenerationError
from contracts.rows import HomeRow
from embeddings.added import unplayed
from embeddings.files import load_generation, load_items, load_manifest, load_user_factors
from embeddings.generation import Generation
from runtime.settings import Settings
from trends.counters import Rules
from trends.new_items import content_of, item_fold
from trends.newcomers import Announced, Newcomers
from viewers.default_rows import titles_by_territory
from viewers.rewriter import Rewriter
from viewers.state import Limits

log = structlog.get_logger()

Bools = NDArray[np.bool_]


@dataclass(slots=True)
class Base:
    """`current`: what CURRENT says; `generation_id`: which of its generations it is. `rewriter`: with the generation's own trends.
    `territories`: territory → (n_items,) bool, its titles."""

    current: Current
    generation_id: str
    rewriter: Rewriter
    rules: Rules
    cutoffs: Mapping[int, int]
    territories: Mapping[str, Any]
    newcomers: Newcomers

    @property
    def generation(self) -> Generation:
        generation = self.rewriter.generation
        assert generation is not None  # it was made with one
        return generation

    def titles_by_territory(self, item_ids: tuple[str, ...]) -> dict[str, Bools]:
        """Territory → which of the items may be shown there; the first are the generation's own."""
        new = [self.newcomers.item(item_id) for item_id in item_ids[self.generation.n_items :]]
        return {
            territory: np.concatenate([only, [not one.territories or territory in one.territories for one in new]])
            for territory, only in self.territories.items()
        }


def load_base(
    settings: Settings, current: Current, generation_id: str, encode_row: Callable[[HomeRow], bytes]
) -> Base | None:
    """Of one of the generations that CURRENT names. None if trends cannot be added to it. Errors: `GenerationError`."""
    path = settings.generations_path
    generation = load_generation(path, generation_id)
    if generation.tables is None or not generation.tables.at_ms:
        return None  # too few plays, or an older program's: its rows know no trends
    manifest = load_manifest(path, generation_id)
    rewriter = Rewriter(generation, current.activation, encode_row, Limits(**settings.state.model_dump()))
    cutoffs = manifest.cutoffs if manifest.stream == settings.kafka.stream else {}
    items = load_items(path, generation_id)
    most, waiting = settings.trends.new_items, np.zeros(generation.n_items, np.bool_)
    X = np.zeros((0, generation.k), np.float32)
    if most:
        waiting = unplayed(generation)
        try:
            X = load_user_factors(path, generation_id)
        except GenerationError as error:  # the updaters do without them
            log.error("new_items_wait_for_the_night", error=str(error))
            most, waiting = 0, np.zeros(generation.n_items, np.bool_)
    learnt = {item_id: row for item_id, row in generation.index.items() if not waiting[row]}
    rules = Rules(learnt, generation.tables.at_ms, settings.trends.remembered_plays, most)
    own = {items[row].item_id: items[row] for row in np.flatnonzero(waiting).tolist() if not items[row].taken_down}
    named = any(item.title != item.item_id for item in items)
    newcomers = Newcomers(
        Announced(own, learnt, named=named),
        content_of(items, generation.item_factors),
        item_fold(X, generation.item_factors, generation.parameters),
        current.activation,
        most,
        settings,
        lambda viewer: current.of_viewer(viewer) == generation_id,
    )
    return Base(current, generation_id, rewriter, rules, cutoffs, titles_by_territory(items), newcomers)
