"""A deterministic twin of the real store, in memory: for tests and simulations. It passes the same suite.

`identity` and the dictionaries are open, so that a test can restart it, or set it back to an older copy.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Mapping, Sequence

from contracts.errors import StoreChanged
from viewers.memory_trends import MemoryTrends, MemoryTrendsContent
from viewers.store import (
    Conflict,
    Freeze,
    FreezeDiffers,
    Marker,
    MarkerWrite,
    Rows,
    Stale,
    StoredViewer,
    ViewerWrite,
    WriteResult,
    Written,
)


class MemoryServer:
    """The content of one server; several stores (clients) may share it."""

    def __init__(self) -> None:
        self.run = 1
        self.viewers: dict[str, StoredViewer] = {}
        self.markers: dict[int, Marker] = {}
        self.seeded: dict[int, int] = {}
        self.halt: str | None = None
        self.frozen: Freeze | None = None
        self.activation = 0
        self.updaters: dict[str, tuple[int, int]] = {}
        self.rebuilt: set[int] = set()
        self.default_rows: dict[str, bytes] = {}
        self.traces: dict[str, str] = {}
        self.trends = MemoryTrendsContent()

    @property
    def identity(self) -> str:
        return f"run{self.run}:memory"

    def snapshot(self) -> dict[str, object]:
        """A copy of the content."""
        return {name: copy.copy(value) for name, value in vars(self).items() if name != "run"}

    def restart(self, content: Mapping[str, object] | None = None) -> None:
        """Restart: a new identity, and, if given, the content of an older copy."""
        self.run += 1
        for name, value in (content or {}).items():
            setattr(self, name, copy.copy(value))


class MemoryStore:
    """`viewers.store.Store` over a `MemoryServer`."""

    def __init__(self, server: MemoryServer | None = None) -> None:
        self.server = server or MemoryServer()
        self._identity = ""

    @property
    def trends(self) -> MemoryTrends:
        return MemoryTrends(self.server.trends, self.server)

    async def connect(self) -> str:
        self._identity = self.server.identity
        return self._identity

    async def check_identity(self) -> None:
        self._check()

    async def close(self) -> None:
        return None

    def _check(self) -> None:
        if self.server.identity != self._identity:
            raise StoreChanged(f"server {self.server.identity} answers where {self._identity} was; rewinding")

    async def read_viewers(self, viewers: Sequence[str]) -> list[StoredViewer]:
        self._check()
        return [self.server.viewers.get(v, StoredViewer())._replace(vector=b"", row=b"") for v in viewers]

    async def read_viewer(self, viewer: str) -> StoredViewer:
        return self.server.viewers.get(viewer, StoredViewer())

    async def read_row(self, viewer: str) -> bytes:
        return (await self.read_viewer(viewer)).row

    async def read_state(self, viewer: str) -> bytes:
        return (await self.read_viewer(viewer)).state

    async def write_viewers(self, writes: Sequence[ViewerWrite]) -> list[WriteResult]:
        results = [self._write(write) for write in writes]
        self._check()  # after the writes, like a pipeline whose identity is looked at when all has been answered
        return results

    def _write(self, write: ViewerWrite) -> WriteResult:
        stored = self.server.viewers.get(write.viewer, StoredViewer())
        if stored.token and stored.token == write.new_token:
            return Written()
        keeps = write.rows in (Rows.KEEP, Rows.EMPTY)
        if write.rows is not Rows.ALWAYS and (self.server.frozen is not None) != keeps:
            return FreezeDiffers()
        if keeps:
            return self._write_state(write, stored)
        if stored.token:
            if stored.activation > write.activation:
                return Stale(stored.activation)
        elif not write.expected_token and self.server.activation > write.activation:
            return Stale(self.server.activation)
        if stored.token != write.expected_token:
            return Conflict(stored._replace(vector=b"", row=b""))
        self.server.viewers[write.viewer] = StoredViewer(
            write.new_token, write.activation, write.state, write.vector, write.row
        )
        return Written()

    def _write_state(self, write: ViewerWrite, stored: StoredViewer) -> WriteResult:
        if stored.token != write.expected_token:
            return Conflict(stored._replace(vector=b"", row=b""))
        kept = stored._replace(token=write.new_token, state=write.state)
        self.server.viewers[write.viewer] = kept._replace(vector=b"", row=b"") if write.rows is Rows.EMPTY else kept
        return Written()

    async def read_marker(self, partition: int) -> Marker | None:
        self._check()
        return self.server.markers.get(partition)

    async def read_markers(self, partitions: Sequence[int]) -> dict[int, Marker | None]:
        self._check()
        return {partition: self.server.markers.get(partition) for partition in partitions}

    async def write_markers(self, writes: Sequence[MarkerWrite]) -> None:
        failed = ""
        for write in writes:
            marker = self.server.markers.get(write.partition)
            found = None if marker is None else marker.next_offset
            if self.server.identity != self._identity or found != write.expected_next:
                failed = failed or f"partition {write.partition}: found marker {found}, expected {write.expected_next}"
                continue
            before = marker or Marker(write.origin, write.origin)
            self.server.markers[write.partition] = before.moved(
                write.next_offset, write.tally, write.anchor, write.gap_end
            )
        if failed:
            raise StoreChanged(failed + "; rewinding to what the store holds")

    async def scan_viewers(self) -> AsyncIterator[list[str]]:
        for viewer in list(self.server.viewers):
            yield [viewer]

    async def read_seeded(self) -> Mapping[int, int]:
        self._check()
        return dict(self.server.seeded)

    async def write_seeded(self, cutoffs: Mapping[int, int]) -> None:
        self._check()
        self.server.seeded.update(cutoffs)

    async def read_halt(self) -> str | None:
        return self.server.halt

    async def write_halt(self, reason: str | None) -> None:
        self.server.halt = reason

    async def read_freeze(self) -> Freeze | None:
        return self.server.frozen

    async def write_freeze(self, freeze: Freeze | None) -> None:
        self.server.frozen = freeze

    async def highest_activation(self) -> int:
        return self.server.activation

    async def announce_activation(self, activation: int) -> None:
        self.server.activation = max(self.server.activation, activation)

    async def report_updater(self, instance: str, activation: int, now_ms: int) -> None:
        self.server.updaters[instance] = (activation, now_ms)

    async def remove_updater(self, instance: str) -> None:
        self.server.updaters.pop(instance, None)

    async def read_updaters(self) -> Mapping[str, tuple[int, int]]:
        return dict(self.server.updaters)

    async def read_rebuilt(self, activation: int) -> bool:
        return activation in self.server.rebuilt

    async def write_rebuilt(self, activation: int) -> None:
        self._check()
        self.server.rebuilt.add(activation)

    async def write_traces(self, traces: Mapping[str, str]) -> None:
        self.server.traces |= traces

    async def read_trace(self, row_id: str) -> str | None:
        return self.server.traces.get(row_id)

    async def read_default_rows(self) -> Mapping[str, bytes]:
        return dict(self.server.default_rows)

    async def write_default_rows(self, rows: Mapping[str, bytes]) -> None:
        self.server.default_rows = dict(rows)
