"""Rows that many ask for one by one, read together: whoever asks while others are being answered goes into the next question.

One connection, one question under way. Under load one write and one read serve dozens of requests; the client's own call, with its pool and
its deadlines for each command, takes ten times the processor time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

MAX_TOGETHER = 256
"""Rows in one question, some 200 KB of answers: those behind them wait for no more than that."""


class RowReads:
    """`HGET`s on a connection that `open_connection` makes and that belongs to nobody else. `timeout_s` bounds a question as a whole.

    Raises the client's errors, and `TimeoutError`."""

    def __init__(self, open_connection: Callable[[], AbstractConnection], timeout_s: float) -> None:
        self._open, self._timeout_s = open_connection, timeout_s
        self._connection: AbstractConnection | None = None
        self._waiting: list[tuple[str, str, asyncio.Future[bytes | None]]] = []
        self._running: asyncio.Task[None] | None = None

    async def hget(self, key: str, field: str) -> bytes | None:
        """The field's value, or None."""
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, field, future))
        if self._running is None:
            # Begins in the loop's next turn: all of this turn are in it.
            self._running = asyncio.create_task(self._run())
        return await future

    async def disconnect(self) -> None:
        """Close the connection; the next question opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await drop(connection)

    async def _run(self) -> None:
        """Ask until nobody waits. Whoever has given up in the meantime is passed over."""
        try:
            while self._waiting:
                asked, self._waiting = self._waiting[:MAX_TOGETHER], self._waiting[MAX_TOGETHER:]
                for (_, _, future), reply in zip(asked, await self._answers(asked), strict=True):
                    if future.done():
                        continue
                    if isinstance(reply, Exception):
                        future.set_exception(reply)
                    else:
                        future.set_result(reply)
        finally:
            self._running = None

    async def _answers(self, asked: Sequence[tuple[Any, ...]]) -> list[bytes | Exception | None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._ask(asked)
        except Exception as error:  # noqa: BLE001 - each who asked is told
            await self.disconnect()  # answers may be under way on it
            return [error] * len(asked)

    async def _ask(self, asked: Sequence[tuple[Any, ...]]) -> list[bytes | Exception | None]:
        if self._connection is not None and await self._connection.can_read():
            await self.disconnect()  # nothing was asked: the server has closed it
        if self._connection is None:
            self._connection = self._open()
            await self._connection.connect()  # type: ignore[no-untyped-call]
        connection = self._connection
        commands = [("HGET", key, field) for key, field, _ in asked]
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        replies: list[bytes | Exception | None] = []
        for _ in asked:
            try:
                replies.append(await connection.read_response())
            except ResponseError as error:  # of this one; the connection is as good as before
                replies.append(error)
        return replies


async def drop(connection: AbstractConnection) -> None:
    """Close a connection at once, whatever is under way on it. The client's own `nowait` begins TLS's farewell and waits for nobody: if the
    loop ends before the server has answered it, the socket is left open."""
    writer: Any = getattr(connection, "_writer", None)  # the client tells no other way
    if writer is not None:
        writer.transport.abort()
    await connection.disconnect(nowait=True)
