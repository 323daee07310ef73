"""The store on a Redis ≥ 7.0 or a Valkey. With `row_reads.py` the only module that imports the client: its connections, pool and errors.

Every call maps the client's errors once: no answer, out of memory, loading, read-only → `StoreUnavailable`; another server
behind the address, or scripts gone → `StoreChanged`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import redis.asyncio as redis
from hiredis import pack_command
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.exceptions import NoScriptError, RedisError

from contracts import keys as fields
from contracts.anchors import Anchor
from contracts.errors import StoreChanged, StoreUnavailable
from contracts.keys import TOKEN_BYTES, Keys
from runtime.redis_errors import explain, explain_timeout
from viewers import scripts
from viewers.packing import BadState
from viewers.redis_trends import RedisTrends
from viewers.row_reads import RowReads, drop
from viewers.store import (
    TRACES_KEPT_S,
    Conflict,
    Freeze,
    FreezeDiffers,
    Marker,
    MarkerWrite,
    Stale,
    StoredViewer,
    ViewerWrite,
    WriteResult,
    Written,
)

_MARKER_FIELDS = ("next", "origin", "applied", "noop", "private", "dead", "absent", "anchor", "gap_end")
_SCAN_COUNT = 1_000
_REBUILT_KEPT_S = 40 * 86_400
"""Only the activation in force is ever asked for, and every night writes it again. Forgotten too early costs one rebuild more."""

T = TypeVar("T")


def _pack(command: tuple[Any, ...]) -> bytes:
    packed: bytes = pack_command(command)  # its signature knows commands of one word
    return packed


def _sha(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


_SHA = {script: _sha(script) for script in scripts.ALL}

_WRITTEN = Written()
_FREEZE_DIFFERS = FreezeDiffers()
_READ_IDENTITY = _pack(("EVALSHA", _SHA[scripts.READ_IDENTITY], 0))


class Secret(Protocol):
    """A value that its holder does not print."""

    def get_secret_value(self) -> str: ...


class StoreConfig(Protocol):
    """The settings that a client needs; seconds."""

    @property
    def url(self) -> Secret: ...
    @property
    def connect_timeout_s(self) -> float: ...
    @property
    def command_timeout_s(self) -> float: ...
    @property
    def max_connections(self) -> int: ...
    def client_kwargs(self) -> dict[str, Any]:
        """More for the client: the files of TLS."""


def open_store(config: StoreConfig, keys: Keys, *, deadline_s: float | None = None) -> RedisStore:
    """The configured store, not connected yet. `deadline_s`: at most this long for a call."""
    shorter = config.command_timeout_s if deadline_s is None else deadline_s
    return RedisStore(
        config.url.get_secret_value(),
        keys,
        connect_timeout_s=min(config.connect_timeout_s, shorter),
        command_timeout_s=min(config.command_timeout_s, shorter),
        max_connections=config.max_connections,
        more=config.client_kwargs(),
    )


class RedisStore:
    """`viewers.store.Store` over redis-py. `command_timeout_s` bounds one pipeline as a whole."""

    def __init__(
        self,
        url: str,
        keys: Keys,
        *,
        connect_timeout_s: float = 0.5,
        command_timeout_s: float = 3.0,
        max_connections: int = 16,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        self.keys = keys
        self.trends = RedisTrends(self._pipeline, _SHA, lambda: self.keys)
        self._timeout_s = command_timeout_s
        self._identity = ""
        arguments: dict[str, Any] = {
            "protocol": 2,  # RESP3 became the client's default: pinned, so that an upgrade changes nothing
            "decode_responses": False,
            "socket_connect_timeout": connect_timeout_s,
            "socket_timeout": None,  # a call has one deadline as a whole (`_call`), and none for each of its steps
            "retry": None,  # retries are ours: the client's run up to a minute and repeat scripts unseen
            "max_connections": max_connections,
            "timeout": command_timeout_s,
        }
        parsed = parse_url(url)
        connection_class = parsed.pop("connection_class", None)
        if connection_class is not None:
            arguments["connection_class"] = connection_class
        self._pool: redis.BlockingConnectionPool = redis.BlockingConnectionPool(
            **(arguments | dict(parsed) | dict(more or {}))
        )
        self._row_reads = RowReads(
            lambda: self._pool.connection_class(**self._pool.connection_kwargs), command_timeout_s
        )
        self._encrypted = connection_class is redis.SSLConnection
        self._where = f"{parsed.get('host', 'localhost')}:{parsed.get('port', 6379)}"

    async def connect(self) -> str:
        await self._pool.disconnect()
        await self._row_reads.disconnect()

        *_, identity = await self._pipeline(
            [*(("SCRIPT", "LOAD", script) for script in _SHA), ("EVALSHA", _SHA[scripts.READ_IDENTITY], 0)]
        )
        self._identity = identity.decode()
        return self._identity

    async def check_identity(self) -> None:
        await self._pipeline([], checked=True)

    async def close(self) -> None:
        await self._row_reads.disconnect()
        await self._pool.disconnect()

    async def read_viewers(self, viewers: Sequence[str]) -> list[StoredViewer]:
        if not viewers:
            return []
        replies = await self._pipeline(
            [("HMGET", self.keys.viewer(viewer), fields.CONTROL, fields.STATE) for viewer in viewers], checked=True
        )
        return [_stored(control, state) for control, state in replies]

    async def read_viewer(self, viewer: str) -> StoredViewer:
        (reply,) = await self._pipeline(
            [("HMGET", self.keys.viewer(viewer), fields.CONTROL, fields.STATE, fields.VECTOR, fields.ROW)]
        )
        return _stored(*reply)

    async def read_row(self, viewer: str) -> bytes:
        with self._translated():
            return await self._row_reads.hget(self.keys.viewer(viewer), fields.ROW) or b""

    async def read_state(self, viewer: str) -> bytes:
        with self._translated():
            return await self._row_reads.hget(self.keys.viewer(viewer), fields.STATE) or b""

    async def write_viewers(self, writes: Sequence[ViewerWrite]) -> list[WriteResult]:
        if not writes:
            return []
        sha = _SHA[scripts.WRITE_VIEWER]
        replies = await self._pipeline(
            [
                (
                    *("EVALSHA", sha, 3, self.keys.viewer(write.viewer), self.keys.activation, self.keys.frozen),
                    *(write.expected_token, write.new_token, write.activation, write.state, write.vector, write.row),
                    write.rows.value,
                )
                for write in writes
            ],
            checked=True,
        )
        return [_write_result(reply) for reply in replies]

    async def read_marker(self, partition: int) -> Marker | None:
        return (await self.read_markers([partition]))[partition]

    async def read_markers(self, partitions: Sequence[int]) -> dict[int, Marker | None]:
        replies = await self._pipeline(
            [("HMGET", self.keys.marker(partition), *_MARKER_FIELDS) for partition in partitions], checked=True
        )
        return {
            partition: _marker(self.keys.marker(partition), values)
            for partition, values in zip(partitions, replies, strict=True)
        }

    async def write_markers(self, writes: Sequence[MarkerWrite]) -> None:
        if not writes:
            return
        replies = await self._pipeline([self._marker_command(write) for write in writes])
        for write, reply in zip(writes, replies, strict=True):
            if reply:
                raise StoreChanged(
                    f"{self.keys.marker(write.partition)}: found {reply.decode()}, expected marker {write.expected_next} "
                    f"on server {self._identity}; rewinding to what the store holds"
                )

    def _marker_command(self, write: MarkerWrite) -> tuple[Any, ...]:
        t = write.tally
        expected = "" if write.expected_next is None else write.expected_next
        return (
            *("EVALSHA", _SHA[scripts.WRITE_MARKER], 1, self.keys.marker(write.partition)),
            *(self._identity, expected, write.next_offset, write.origin),
            *(t.applied, t.noop, t.private, t.dead, t.absent),
            "" if write.anchor is None else str(write.anchor),
            write.gap_end,
        )

    async def scan_viewers(self) -> AsyncIterator[list[str]]:
        cursor, prefix = 0, self.keys.viewer_prefix
        while True:
            reply = await self._command("SCAN", cursor, "MATCH", prefix + "*", "COUNT", _SCAN_COUNT)
            cursor, found = int(reply[0]), reply[1]
            if found:
                yield [key.decode()[len(prefix) :] for key in found]
            if cursor == 0:
                return

    async def read_seeded(self) -> Mapping[int, int]:
        (cutoffs,) = await self._pipeline([("HGETALL", self.keys.seeded)], checked=True)
        return {int(p): int(o) for p, o in zip(cutoffs[::2], cutoffs[1::2], strict=True)}

    async def write_seeded(self, cutoffs: Mapping[int, int]) -> None:
        if cutoffs:
            await self._record(self.keys.seeded, "HSET", *(item for pair in cutoffs.items() for item in pair))

    async def read_halt(self) -> str | None:
        reason: bytes | None = await self._command("GET", self.keys.halt)
        return None if reason is None else reason.decode()

    async def write_halt(self, reason: str | None) -> None:
        await (self._command("DEL", self.keys.halt) if reason is None else self._command("SET", self.keys.halt, reason))

    async def read_freeze(self) -> Freeze | None:
        found: bytes | None = await self._command("GET", self.keys.frozen)
        return None if found is None else Freeze.parse(found.decode(errors="replace"))

    async def write_freeze(self, freeze: Freeze | None) -> None:
        key = self.keys.frozen
        await (self._command("DEL", key) if freeze is None else self._command("SET", key, str(freeze)))

    async def highest_activation(self) -> int:
        return int(await self._command("GET", self.keys.activation) or 0)

    async def announce_activation(self, activation: int) -> None:
        await self._command("EVALSHA", _SHA[scripts.RAISE_TO], 1, self.keys.activation, activation)

    async def report_updater(self, instance: str, activation: int, now_ms: int) -> None:
        await self._command("HSET", self.keys.updaters, instance, f"{activation}:{now_ms}")

    async def remove_updater(self, instance: str) -> None:
        await self._command("HDEL", self.keys.updaters, instance)

    async def read_updaters(self) -> Mapping[str, tuple[int, int]]:
        reports = {}
        for instance, report in (await self._hgetall(self.keys.updaters)).items():
            activation, _, now_ms = report.decode().partition(":")
            reports[instance.decode()] = (int(activation), int(now_ms))
        return reports

    async def read_rebuilt(self, activation: int) -> bool:
        return bool(await self._command("EXISTS", self.keys.rebuilt(activation)))

    async def write_rebuilt(self, activation: int) -> None:
        await self._record(self.keys.rebuilt(activation), "SET", 1, "EX", _REBUILT_KEPT_S)

    async def _record(self, key: str, *command: Any) -> None:
        """What a rebuild has completed, if the server still is the one that holds it."""
        found = await self._command("EVALSHA", _SHA[scripts.WRITE_RECORD], 1, key, self._identity, *command)
        if found:
            raise StoreChanged(
                f"{key}: found {found.decode()} where {self._identity} was; the rebuild is to be done again"
            )

    async def write_traces(self, traces: Mapping[str, str]) -> None:
        if traces:
            await self._pipeline(
                [("SET", self.keys.trace(row_id), trace, "EX", TRACES_KEPT_S) for row_id, trace in traces.items()]
            )

    async def read_trace(self, row_id: str) -> str | None:
        found = await self._command("GET", self.keys.trace(row_id))
        return None if found is None else found.decode("ascii", "replace")

    async def read_default_rows(self) -> Mapping[str, bytes]:
        return {name.decode(): row for name, row in (await self._hgetall(self.keys.default_row)).items()}

    async def write_default_rows(self, rows: Mapping[str, bytes]) -> None:
        pairs = [item for pair in rows.items() for item in pair]
        key = self.keys.default_row
        await self._transaction([("DEL", key), ("HSET", key, *pairs)])

    async def _hgetall(self, key: str) -> dict[bytes, bytes]:
        pairs = await self._command("HGETALL", key)
        return dict(zip(pairs[::2], pairs[1::2], strict=True))

    async def _command(self, *command: Any) -> Any:
        """One command's answer, as the server gave it."""
        (answer,) = await self._pipeline([command])
        return answer

    async def _transaction(self, commands: Sequence[tuple[Any, ...]]) -> None:
        """All or none, unless one of them fails only when it is run: then the others hold, and it is told."""
        *_, answers = await self._pipeline([("MULTI",), *commands, ("EXEC",)])
        with self._translated():
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer

    async def _pipeline(self, commands: Sequence[tuple[Any, ...]], *, checked: bool = False) -> list[Any]:
        """Send commands at once, on one connection. `checked`: begin by reading the server's identity on that connection.

        Not by the client's own pipeline, which takes longer to pack a viewer and to await each answer under a deadline of its own than
        the viewer's row takes to compute; the deadline of all is `_call`'s.
        """

        packed = [_pack(command) for command in commands]
        if checked:
            packed.insert(0, _READ_IDENTITY)

        async def send() -> list[Any]:
            connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
            try:
                await connection.send_packed_command(packed)
                return await _read_answers(connection, len(packed))
            except BaseException:  # a refusal, too: the answers behind it must be nobody's
                await drop(connection)
                raise
            finally:
                await self._pool.release(connection)

        replies = await self._call(send)
        if checked:
            found = replies.pop(0).decode()
            if found != self._identity:
                raise StoreChanged(f"store {self._where}: server {found} answers where {self._identity} was; rewinding")
        return replies

    async def _call(self, action: Callable[[], Awaitable[T]]) -> T:
        """Run within the deadline, with errors translated."""
        with self._translated():
            async with asyncio.timeout(self._timeout_s):
                return await action()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except NoScriptError as error:
            raise StoreChanged(
                f"store {self._where}: our scripts are gone, the server was restarted; rewinding"
            ) from error
        except TimeoutError as error:
            said = explain_timeout(self._timeout_s, encrypted=self._encrypted)
            raise StoreUnavailable(f"store {self._where}: {said}") from error
        except (RedisError, OSError) as error:
            said = explain(error, encrypted=self._encrypted)
            raise StoreUnavailable(f"store {self._where}: {said}") from error


async def _read_answers(connection: AbstractConnection, count: int) -> list[Any]:
    """So many answers, undecoded. What has come together is taken together: the client's own way, an await for each, costs several times
    what the parser does. Errors: the first refusal among them."""
    answers: list[Any] = []
    parser: Any = connection._parser
    while len(answers) < count:
        answers.append(await connection.read_response(disable_decoding=True))
        while len(answers) < count and (answer := parser._reader.gets(False)) is not NOT_ENOUGH_DATA:
            if isinstance(answer, Exception):
                raise answer
            answers.append(answer)
    return answers


def _stored(
    control: bytes | None, state: bytes | None, vector: bytes | None = None, row: bytes | None = None
) -> StoredViewer:
    if control is None:
        return StoredViewer()
    if len(control) <= TOKEN_BYTES or not control[TOKEN_BYTES:].isdigit():
        raise BadState(
            f"a viewer's field `{fields.CONTROL}` holds {len(control)} bytes that are no token and activation"
        )
    return StoredViewer(control[:TOKEN_BYTES], int(control[TOKEN_BYTES:]), state or b"", vector or b"", row or b"")


def _marker(key: str, values: Sequence[bytes | None]) -> Marker | None:
    if values[0] is None:
        return None
    *numbers, anchor, gap_end = values
    try:
        found = Marker(*(int(number or b"") for number in numbers), gap_end=int(gap_end or b"0"))  # type: ignore[arg-type,misc]
        return found if not anchor else replace(found, anchor=Anchor.parse(anchor.decode()))
    except ValueError as error:
        raise BadState(
            f"{key} is no marker of ours ({error}): restore the store from a copy, or delete the key to read again"
        ) from error


def _write_result(reply: Sequence[Any]) -> WriteResult:
    if reply[0] == 1:
        return _WRITTEN
    if reply[0] == 2:
        return Stale(int(reply[1]))
    if reply[0] == 3:
        return _FREEZE_DIFFERS
    return Conflict(_stored(reply[1] or None, reply[2]))
