"""A codec that learns: at a schema id it does not know it reads the registry again, so that an upgrade of a schema reaches a service
that goes on running."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from contracts.catalogue import CatalogueItem
from contracts.codec import Codec
from contracts.errors import ContractError, UnknownSchema
from contracts.registry import Registry
from contracts.row_columns import RowColumns
from contracts.rows import Impression
from runtime.schemas import Schemas

RELOAD_S = 5.0
"""Least time between two reads of the registry: each stops the loop for a millisecond or a few, and an unknown
id may stay unknown."""

T = TypeVar("T")

log = structlog.get_logger()


class LearningCodec:
    """Decodes with `current`, which is replaced when the registry has changed. Raises what `Codec` raises."""

    def __init__(
        self, codec: Codec, clock_s: Callable[[], float] = time.monotonic, schemas: Schemas | None = None
    ) -> None:
        """`schemas`: where the codec is from, if that is a server; else a folder."""
        self.current = codec
        self._server = schemas if schemas is not None and schemas.is_far else None
        self._asking: asyncio.Task[None] | None = None
        self._clock_s = clock_s
        self._next_s = float("-inf")

    def decode_columns(self, data: bytes) -> RowColumns:
        """As `Codec.decode_columns`."""
        return self._decode(Codec.decode_columns, data)

    def decode_item(self, data: bytes) -> CatalogueItem:
        """As `Codec.decode_item`."""
        return self._decode(Codec.decode_item, data)

    def encode_impression(self, impression: Impression) -> bytes:
        """As `Codec.encode_impression`."""
        try:
            return self.current.encode_impression(impression)
        except UnknownSchema as error:
            self.reload(error)
            raise

    def reload(self, unknown: UnknownSchema | None = None) -> None:
        """Read the registry again unless that was done a moment ago; one that cannot be read leaves `current` in place. A server is asked
        beside: what it knows is there a little later."""
        if self._clock_s() < self._next_s:
            return
        self._next_s = self._clock_s() + RELOAD_S
        if self._server is not None:
            self._asking = asyncio.get_running_loop().create_task(self._ask(self._server, unknown))
            return
        path = self.current.registry.path
        try:
            registry = Registry.load(path)
            if registry != self.current.registry:
                self.current = Codec(registry)
                log.info("registry_reloaded", path=str(path))
        except ContractError as error:  # half written: the next try sees it whole
            log.warning("registry_not_reloaded", problem=str(error))

    async def _ask(self, server: Schemas, unknown: UnknownSchema | None) -> None:
        self.current = await asyncio.to_thread(server.learn, self.current, unknown)

    def _decode(self, decode: Callable[[Codec, bytes], T], data: bytes) -> T:
        tried = self.current
        try:
            return decode(tried, data)
        except UnknownSchema as error:
            self.reload(error)
            if self.current is tried:
                raise
        return decode(self.current, data)
