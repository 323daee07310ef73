"""What the store keeps of trends: each partition's counts as a checkpoint, snapshots, and which one is the newest.

`viewers.store.Store.trends` is one; `redis_trends.py` and `memory_trends.py` pass the same suite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

SNAPSHOT_KEPT_S = 3600
"""A snapshot is kept so long after it was last known to be in use: who asks within it can recompute a row that names it."""
CHECKPOINT_KEPT_S = 2 * 86_400
"""Of a generation that is in force no more: a rollback goes on from there."""


class Pointer(NamedTuple):
    """The newest snapshot of a generation; `seen_at_ms`: when its publisher last said so."""

    name: str
    seen_at_ms: int


class CheckpointWrite(NamedTuple):
    """Move a partition's counts from `expected_next` (None: there is no checkpoint) to `next_offset`. `fields`: what has changed."""

    partition: int
    expected_next: int | None
    next_offset: int
    fields: Mapping[str, bytes]


class TrendStore(Protocol):
    """Errors of every method: `StoreUnavailable`."""

    async def hold(self, instance: str, for_ms: int) -> bool:
        """Be the one that counts for so long from now, if nobody else is."""

    async def read_checkpoint(self, generation_id: str, partition: int) -> tuple[int | None, Mapping[str, bytes]]:
        """(next offset, fields); (None, {}) without a checkpoint."""

    async def write_checkpoints(self, generation_id: str, writes: Sequence[CheckpointWrite]) -> None:
        """Each is one write, and only where the stored offset is the expected one; else `StoreChanged`, when all were tried."""

    async def publish(self, generation_id: str, instance: str, pointer: Pointer, data: bytes) -> bool:
        """Write the snapshot, then the pointer to it; False, with the pointer as it was, if another instance counts now."""

    async def read_pointer(self, generation_id: str) -> Pointer | None:
        """The newest snapshot; None if there is none, or its publisher has been silent for as long as snapshots are kept."""

    async def read_snapshot(self, name: str) -> bytes:
        """A snapshot; empty if it is not kept any more."""

    async def keep_snapshot(self, name: str, data: bytes) -> None:
        """It is in use: keep it from now on as long as a new one, and write it again if the store has lost it."""

    async def read_vectors(self, viewers: Sequence[str], activation: int) -> list[bytes]:
        """Viewers' vectors, k float16 each; empty for one without, or of another activation: another generation's says nothing here."""

    async def write_default_rows(self, rows: Mapping[str, bytes], activation: int) -> bool:
        """Replace default rows by fresher ones of the activation in force.

        False, with nothing written, if another is, or if rows are frozen."""
