"""Two batches in flight: while one is computed, the next is decided and read; while that one is computed, the first is written.

    batch n       decide  read │ compute │ write  marker
    batch n + 1           decide  read   │ compute │ write  marker

Each step of a batch waits for the same step of the batch before, so that effects come in the order of the log. A viewer of both batches
is taken up as the first is about to write them; if it turns out otherwise, the second's compare-and-set fails and is tried again.
A third batch enters when the first has left, so what a batch has read lacks nothing but what the one before it writes.

A batch that fails ends the one behind it, which has written nothing yet: everything is done again from what the store holds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

from runtime.tasks import cancel_all
from updater.pipeline import Position
from viewers.store import StoredViewer

IN_FLIGHT = 2


class Turn:
    """A batch's place in the line."""

    def __init__(self, before: Turn | None) -> None:
        loop = asyncio.get_running_loop()
        self._before = before
        self._decided: asyncio.Future[Mapping[int, Position]] = loop.create_future()
        self._computed: asyncio.Future[Mapping[str, StoredViewer]] = loop.create_future()
        self.finished: asyncio.Future[None] = loop.create_future()

    async def to_decide(self, stands: Mapping[int, Position]) -> Mapping[int, Position]:
        """Where the partitions will stand after the batch before; `stands` if there is none."""
        return stands if self._before is None else await self._before._decided

    def decided(self, positions: Mapping[int, Position]) -> None:
        """Where the partitions will stand after this batch."""
        self._decided.set_result(positions)

    async def to_compute(self) -> Mapping[str, StoredViewer]:
        """Wait until the batch before is computed: its viewers, as the store will hold them."""
        return {} if self._before is None else await self._before._computed

    def computed(self, supposed: Mapping[str, StoredViewer]) -> None:
        """This batch is computed; its viewers, as the store will hold them."""
        self._computed.set_result(supposed)

    async def to_write(self) -> None:
        """Wait until all effects of the batch before are done."""
        if self._before is not None:
            await self._before.finished
            self._before = None

    def fail(self) -> None:
        """There is nothing to wait for: the batch behind ends."""
        for gate in (self._decided, self._computed, self.finished):
            gate.cancel()


class Line:
    """The batches in flight, in the order of the log."""

    def __init__(self) -> None:
        self._tasks: deque[asyncio.Task[None]] = deque()
        self._last: Turn | None = None

    @property
    def is_empty(self) -> bool:
        return not self._tasks

    async def enter(self, process: Callable[[Turn], Awaitable[None]]) -> None:
        """Start a batch, as soon as fewer than `IN_FLIGHT` are on their way. Errors: `settle`'s."""
        while len(self._tasks) >= IN_FLIGHT:
            await self._first()
        before = self._last if self._tasks else None
        turn = self._last = Turn(before)
        self._tasks.append(asyncio.create_task(_run(process, turn)))

    async def settle(self) -> None:
        """Wait until nothing is in flight. Errors: those of the first batch that fails; the one behind it is dropped then."""
        while self._tasks:
            await self._first()
        self._last = None

    async def rest(self) -> None:
        """The same, for who is not concerned with errors: `settle` raises them later."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def abandon(self) -> None:
        """Drop what is in flight."""
        tasks, self._tasks, self._last = self._tasks, deque(), None
        await cancel_all(*tasks)

    async def _first(self) -> None:
        await asyncio.wait([self._tasks[0]])
        first = self._tasks.popleft()
        try:
            first.result()
        except BaseException:
            await self.abandon()
            raise


async def _run(process: Callable[[Turn], Awaitable[None]], turn: Turn) -> None:
    try:
        await process(turn)
        turn.finished.set_result(None)
    except BaseException:
        turn.fail()
        raise
