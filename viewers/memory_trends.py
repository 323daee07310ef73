"""The deterministic twin of `redis_trends.py`. Nothing expires by itself: `MemoryTrendsServer.now_ms` is set by hand."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Protocol

from contracts.errors import StoreChanged
from viewers.store import Freeze, StoredViewer
from viewers.trend_store import CheckpointWrite, Pointer


class Server(Protocol):
    """The part of a server that default rows and viewers are in."""

    activation: int
    default_rows: dict[str, bytes]
    frozen: Freeze | None
    viewers: dict[str, StoredViewer]


class MemoryTrendsContent:
    """What one server holds of trends."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.owner: tuple[str, int] | None = None
        self.checkpoints: dict[tuple[str, int], tuple[int, dict[str, bytes]]] = {}
        self.pointers: dict[str, Pointer] = {}
        self.snapshots: dict[str, bytes] = {}

    def __copy__(self) -> MemoryTrendsContent:
        """A copy that later writes leave alone: what an older copy of the server holds."""
        copied = MemoryTrendsContent()
        for name, value in vars(self).items():
            setattr(copied, name, copy.copy(value))
        return copied


class MemoryTrends:
    """`viewers.trend_store.TrendStore` in memory. `server`: as the viewers' store sees it."""

    def __init__(self, content: MemoryTrendsContent, server: Server) -> None:
        self.content = content
        self._server = server

    async def hold(self, instance: str, for_ms: int) -> bool:
        content = self.content
        if content.owner is not None and content.owner[0] != instance and content.owner[1] > content.now_ms:
            return False
        content.owner = (instance, content.now_ms + for_ms)
        return True

    async def read_checkpoint(self, generation_id: str, partition: int) -> tuple[int | None, Mapping[str, bytes]]:
        next_offset, fields = self.content.checkpoints.get((generation_id, partition), (None, {}))
        return next_offset, dict(fields)

    async def write_checkpoints(self, generation_id: str, writes: Sequence[CheckpointWrite]) -> None:
        failed = ""
        for write in writes:
            found, fields = await self.read_checkpoint(generation_id, write.partition)
            if found != write.expected_next:
                failed = failed or f"partition {write.partition}: found {found}, expected {write.expected_next}"
                continue
            self.content.checkpoints[generation_id, write.partition] = (write.next_offset, {**fields, **write.fields})
        if failed:
            raise StoreChanged(f"trends of {generation_id}: {failed}")

    async def publish(self, generation_id: str, instance: str, pointer: Pointer, data: bytes) -> bool:
        owner = self.content.owner
        if owner is None or owner[0] != instance or owner[1] <= self.content.now_ms:
            return False
        self.content.snapshots[pointer.name] = data
        self.content.pointers[generation_id] = pointer
        return True

    async def read_pointer(self, generation_id: str) -> Pointer | None:
        return self.content.pointers.get(generation_id)

    async def read_snapshot(self, name: str) -> bytes:
        return self.content.snapshots.get(name, b"")

    async def keep_snapshot(self, name: str, data: bytes) -> None:
        self.content.snapshots[name] = data

    async def read_vectors(self, viewers: Sequence[str], activation: int) -> list[bytes]:
        stored = [self._server.viewers.get(viewer, StoredViewer()) for viewer in viewers]
        return [one.vector if one.token and one.activation == activation else b"" for one in stored]

    async def write_default_rows(self, rows: Mapping[str, bytes], activation: int) -> bool:
        if self._server.activation != activation or self._server.frozen is not None:
            return False
        self._server.default_rows = {**self._server.default_rows, **rows}
        return True
