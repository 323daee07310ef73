"""A TCP proxy in front of the store: it delays, cuts, and changes the server behind it without closing a connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from runtime.tasks import cancel_all

CHUNK = 1 << 16
QUIET_S = 0.02
"""A connection without a byte for so long, whose last bytes were an answer, has nothing under way."""


class Proxy:
    """Listens on `port` of loopback. `delay_s` holds back what clients send; `target_port` is where new connections go."""

    def __init__(self, port: int, target_port: int) -> None:
        self.port = port
        self.target_port = target_port
        self.delay_s = 0.0
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
        self.cut()
        await cancel_all(*self._tasks)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that is kept until it has ended."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def cut(self) -> None:
        """Drop every connection; new ones are taken."""
        for link in list(self._links):
            link.close()

    async def switch(self, port: int) -> int:
        """Put another server behind the open connections; how many were kept open. Those with a request under way too long
        to wait for are dropped."""
        self.target_port = port
        kept = 0
        for link in list(self._links):
            kept += await link.move(port)
        return kept

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(self, reader, writer)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)
            link.close()


class _Link:
    """One client's connection and the server's behind it."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._upstream: asyncio.StreamWriter | None = None
        self._answers: asyncio.Task[None] | None = None
        self._last_was_answer = True
        self._moved_at = 0.0
        self._moving = asyncio.Lock()
        self._closed = False

    async def run(self) -> None:
        """Pass bytes both ways until either side closes."""
        try:
            await self._connect(self._proxy.target_port)
            while data := await self._reader.read(CHUNK):
                async with self._moving:
                    self._note(answer=False)
                if self._proxy.delay_s:
                    await asyncio.sleep(self._proxy.delay_s)
                async with self._moving:
                    assert self._upstream is not None
                    self._upstream.write(data)
                    await self._upstream.drain()
        except OSError:
            pass

    async def move(self, port: int) -> bool:
        """Change the server; False if the connection had to be dropped."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + 1.0
        while loop.time() < ends:
            async with self._moving:
                if self._last_was_answer and loop.time() - self._moved_at > QUIET_S:
                    with contextlib.suppress(OSError):
                        if self._upstream is not None:
                            self._upstream.close()
                        await self._connect(port)
                        return True
                    break
            await asyncio.sleep(QUIET_S / 2)
        self.close()
        return False

    def close(self) -> None:
        """Close both sides."""
        self._closed = True
        if self._answers is not None:
            self._answers.cancel()
        for writer in (self._writer, self._upstream):
            if writer is not None:
                writer.close()

    async def _connect(self, port: int) -> None:
        if self._answers is not None:
            self._answers.cancel()
        reader, self._upstream = await asyncio.open_connection("127.0.0.1", port)
        if self._closed:  # meanwhile: nobody would close this one
            self._upstream.close()
            return
        self._answers = self._proxy.spawn(self._pass_answers(reader))

    async def _pass_answers(self, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(CHUNK):
                self._note(answer=True)
                self._writer.write(data)
                await self._writer.drain()
        except OSError:
            pass
        self._writer.close()  # the server is gone: so is the connection

    def _note(self, *, answer: bool) -> None:
        self._last_was_answer = answer
        self._moved_at = asyncio.get_running_loop().time()
