"""What a Redis or Valkey keeps of trends (`trend_store.py`), over the viewers' store, which maps errors and knows the client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from contracts.errors import StoreChanged, StoreUnavailable
from contracts.keys import CONTROL, TOKEN_BYTES, VECTOR, Keys
from viewers import scripts
from viewers.trend_store import CHECKPOINT_KEPT_S, SNAPSHOT_KEPT_S, CheckpointWrite, Pointer

NEXT = "n"
"""Field of a checkpoint: its next offset."""
ROWS_AT_ONCE = 500
"""Default rows in one write: a script takes some thousands of arguments at most."""
FIELDS_AT_ONCE = 2_000
"""Of a checkpoint, in one read: a million at once hold up the server, and everybody who waits for it, for a second."""
VECTORS_AT_ONCE = 500
"""Of viewers, in one read."""
READS = 5
"""Of a checkpoint that somebody else writes meanwhile."""


class RedisTrends:
    """`viewers.trend_store.TrendStore` over a `RedisStore`'s connection. `pipeline`: commands → their answers. `sha`: script → its digest,
    loaded there."""

    def __init__(
        self, pipeline: Callable[..., Awaitable[list[Any]]], sha: Mapping[str, str], keys: Callable[[], Keys]
    ) -> None:
        self._pipeline = pipeline
        self._sha = sha
        self._keys = keys

    async def hold(self, instance: str, for_ms: int) -> bool:
        return bool(await self._run(scripts.HOLD, [self._keys().trends_owner], instance, for_ms))

    async def read_checkpoint(self, generation_id: str, partition: int) -> tuple[int | None, Mapping[str, bytes]]:
        key = self._keys().trends_checkpoint(generation_id, partition)
        next_offset = await self._command("HGET", key, NEXT)
        for _ in range(READS):
            fields = await self._scan(key)
            before, next_offset = next_offset, await self._command("HGET", key, NEXT)
            if before == next_offset:  # every write moves it, so there was none
                fields.pop(NEXT, None)
                return (None, {}) if next_offset is None else (int(next_offset), fields)
        raise StoreUnavailable(f"{key} was written {READS} times while it was read: does another process count too?")

    async def _scan(self, key: str) -> dict[str, bytes]:
        """All fields that were there from first to last."""
        fields: dict[str, bytes] = {}
        cursor = b"0"
        while True:
            cursor, found = await self._command("HSCAN", key, cursor, "COUNT", FIELDS_AT_ONCE)
            fields.update((name.decode(), value) for name, value in zip(found[::2], found[1::2], strict=True))
            if cursor == b"0":
                return fields

    async def write_checkpoints(self, generation_id: str, writes: Sequence[CheckpointWrite]) -> None:
        failed = ""
        for write in writes:
            key = self._keys().trends_checkpoint(generation_id, write.partition)
            expected = "" if write.expected_next is None else write.expected_next
            pairs = [part for pair in write.fields.items() for part in pair]
            arguments = (expected, CHECKPOINT_KEPT_S, NEXT, write.next_offset, *pairs)
            found = await self._run(scripts.WRITE_CHECKPOINT, [key], *arguments)
            if found:
                failed = failed or f"{key}: {found.decode()}, expected offset {write.expected_next}"
        if failed:
            raise StoreChanged(f"{failed}; going on from what the store holds")

    async def publish(self, generation_id: str, instance: str, pointer: Pointer, data: bytes) -> bool:
        keys = self._keys()
        await self._command("SET", keys.trends_snapshot(pointer.name), data, "EX", SNAPSHOT_KEPT_S)
        names = [keys.trends_pointer(generation_id), keys.trends_owner]
        text = f"{pointer.name}:{pointer.seen_at_ms}"
        return bool(await self._run(scripts.POINT, names, instance, text, SNAPSHOT_KEPT_S))

    async def read_pointer(self, generation_id: str) -> Pointer | None:
        found = await self._command("GET", self._keys().trends_pointer(generation_id))
        name, _, seen_at_ms = (found or b"").decode(errors="replace").rpartition(":")
        return Pointer(name, int(seen_at_ms)) if name and seen_at_ms.isdecimal() else None  # else none of ours

    async def read_snapshot(self, name: str) -> bytes:
        return await self._command("GET", self._keys().trends_snapshot(name)) or b""

    async def keep_snapshot(self, name: str, data: bytes) -> None:
        key = self._keys().trends_snapshot(name)
        if not await self._command("EXPIRE", key, SNAPSHOT_KEPT_S):
            await self._command("SET", key, data, "EX", SNAPSHOT_KEPT_S)

    async def read_vectors(self, viewers: Sequence[str], activation: int) -> list[bytes]:
        found = []
        for start in range(0, len(viewers), VECTORS_AT_ONCE):
            asked = viewers[start : start + VECTORS_AT_ONCE]
            commands = [("HMGET", self._keys().viewer(viewer), CONTROL, VECTOR) for viewer in asked]
            found += await self._pipeline(commands)
        mine = str(activation).encode()
        return [vector or b"" if (control or b"")[TOKEN_BYTES:] == mine else b"" for control, vector in found]

    async def write_default_rows(self, rows: Mapping[str, bytes], activation: int) -> bool:
        keys = self._keys()
        named = list(rows.items())
        for start in range(0, len(named), ROWS_AT_ONCE):
            pairs = [part for pair in named[start : start + ROWS_AT_ONCE] for part in pair]
            names = [keys.default_row, keys.activation, keys.frozen]
            if not await self._run(scripts.WRITE_DEFAULT_ROWS, names, activation, *pairs):
                return False
        return True

    async def _command(self, *command: Any) -> Any:
        (answer,) = await self._pipeline([command])
        return answer

    async def _run(self, script: str, keys: Sequence[str], *arguments: Any) -> Any:
        return await self._command("EVALSHA", self._sha[script], len(keys), *keys, *arguments)
