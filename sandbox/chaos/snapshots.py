"""Trends as the harness sees them: every snapshot that was ever published (`wired.py` leaves them in a folder), how far the counts are."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from contracts.errors import GenerationError, NearlineError
from embeddings.generation import Generation
from sandbox.chaos.crew import SNAPSHOTS
from sandbox.chaos.waiting import wait_until
from trends.checkpoints import counts_of
from trends.follow import take_up
from viewers.rewriter import NO_TRENDS, Rewriter

if TYPE_CHECKING:
    from sandbox.chaos.arena import Arena


class Snapshots:
    """Rows are recomputed from these: a store that fell back may have lost some."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._folder = arena.folder / SNAPSHOTS
        self._folder.mkdir(parents=True)

    def rewriter(self, own: Rewriter, name: str) -> Rewriter:
        """The rewriter that rows name. Errors: `GenerationError` if nobody has ever published that snapshot, or it does not fit."""
        if name == NO_TRENDS:
            return own
        path, generation = self._folder / name, own.generation
        if not path.exists() or generation is None or generation.tables is None:
            raise GenerationError(f"trends snapshot {name} was never published")
        return take_up(own, path.read_bytes(), name).rewriter

    def followed(self) -> Generation | None:
        """The generation in force, if trends are counted for it."""
        current = self._arena.folder_of_generations.current_or_none()
        if current is None:
            return None
        try:
            generation = self._arena.generation(current.generation_id)
        except GenerationError:
            return None
        return generation if generation.tables is not None and generation.tables.at_ms else None

    async def until_counted(self, ends: Mapping[int, int]) -> None:
        """Wait until everything in the log is. Errors: `Stuck`."""
        await wait_until(lambda: self._counted(ends), "aggregator that has counted everything")

    async def _counted(self, ends: Mapping[int, int]) -> bool:
        generation = self.followed()
        if generation is None:
            return await self._left(ends)
        with contextlib.suppress(NearlineError):  # the store is not back yet
            async with self._arena.store() as store:
                found = [(await store.trends.read_checkpoint(generation.generation_id, p))[0] for p in ends]
            return all(at is not None and at >= end for at, end in zip(found, ends.values(), strict=True))
        return False

    async def _left(self, ends: Mapping[int, int]) -> bool:
        """Whether no viewers are kept of what was counted before, where nothing is counted now."""
        folder = self._arena.folder_of_generations
        try:
            current = folder.read_current()
            if current is None:
                return True
            self._arena.generation(current.generation_id)
        except GenerationError:  # a bad one: the aggregator waits until it is mended
            return True
        with contextlib.suppress(NearlineError):  # the store is not back yet
            async with self._arena.store() as store:
                for manifest in folder.list():
                    for partition in ends:
                        at, stored = await store.trends.read_checkpoint(manifest.generation_id, partition)
                        if at is not None and any(one.fans for one in counts_of(at, stored, "").new.values()):
                            return False
            return True
        return False
