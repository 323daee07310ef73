"""Trends as the harness sees them: every snapshot that was ever published, kept here, and how far the counts are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from contracts.errors import GenerationError, NearlineError
from embeddings.generation import Generation
from sandbox.chaos.waiting import wait_until
from trends.snapshots import decode, tables_of
from viewers.rewrite import NO_TRENDS, Rewriter

if TYPE_CHECKING:
    from sandbox.chaos.arena import Arena

LOOK_S = 0.2
"""More often than one is published."""


class Snapshots:
    """A store that fell back may have lost a snapshot that a row names: what was seen once is kept."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._seen: dict[str, bytes] = {}

    async def gather(self) -> None:
        """For ever: keep what is new."""
        while True:
            with contextlib.suppress(NearlineError):  # the store is away
                async with self._arena.store() as store:
                    while True:
                        current = self._arena.folder_of_generations.current_or_none()
                        pointer = await store.trends.read_pointer(current.generation_id) if current else None
                        if pointer is not None and pointer.name not in self._seen:
                            self._keep(pointer.name, await store.trends.read_snapshot(pointer.name))
                        await asyncio.sleep(LOOK_S)
            await asyncio.sleep(LOOK_S)

    def _keep(self, name: str, data: bytes) -> None:
        if data:
            self._seen[name] = data

    async def rewriter(self, own: Rewriter, name: str) -> Rewriter:
        """The rewriter that rows name. Errors: `GenerationError` if that snapshot is nowhere, or does not fit."""
        if name == NO_TRENDS:
            return own
        if name not in self._seen:
            async with self._arena.store() as store:
                self._keep(name, await store.trends.read_snapshot(name))
        generation = own.generation
        if name not in self._seen or generation is None or generation.tables is None:
            raise GenerationError(f"trends snapshot {name} is nowhere")
        snapshot = decode(self._seen[name], name)
        return own.with_trends(
            tables_of(snapshot, generation.tables, generation.generation_id, generation.n_items), name
        )

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
            return True
        with contextlib.suppress(NearlineError):  # the store is not back yet
            async with self._arena.store() as store:
                found = [(await store.trends.read_checkpoint(generation.generation_id, p))[0] for p in ends]
            return all(at is not None and at >= end for at, end in zip(found, ends.values(), strict=True))
        return False
