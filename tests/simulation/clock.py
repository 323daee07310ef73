"""Virtual time: one scheduler, one event loop a process. The shipped coroutines run on it unchanged.

A process's loop has just what `asyncio`'s tasks, locks, events and timeouts ask of one. Its callbacks pass through the
scheduler in order of virtual time, then of arrival; nothing else decides, so a history is a function of its seed. A process
is frozen (SIGSTOP) by holding back its callbacks, and killed (SIGKILL) by dropping them.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

_UNWIND_LIMIT = 10_000


class Handle:
    """A callback that will run once, unless cancelled. `loop` None: the environment's, never held back."""

    __slots__ = ("args", "callback", "context", "dropped", "loop")

    def __init__(
        self,
        loop: ProcessLoop | None,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
    ) -> None:
        self.loop = loop
        self.callback = callback
        self.args = args
        self.context = context
        self.dropped = False

    def cancel(self) -> None:
        self.dropped = True

    def cancelled(self) -> bool:
        return self.dropped

    def run(self) -> None:
        if self.dropped:
            return
        if self.context is None:
            self.callback(*self.args)
        else:
            self.context.run(self.callback, *self.args)


class Scheduler:
    """Runs callbacks in virtual time. `steps`: atomic steps of the models (messages, replies, records, actions)."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.steps = 0
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._sequence = 0

    def soon(self, handle: Handle) -> Handle:
        self._ready.append(handle)
        return handle

    def at(self, when_s: float, handle: Handle) -> Handle:
        self._sequence += 1
        heapq.heappush(self._timers, (when_s, self._sequence, handle))
        return handle

    def later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> Handle:
        """Call in the environment: at servers, in networks."""
        return self.at(self.now_s + delay_s, Handle(None, callback, args, None))

    def run_until(self, until_s: float, condition: Callable[[], bool] | None = None) -> bool:
        """Run until virtual time `until_s`, or until `condition` holds between two callbacks. True if it held."""
        ready, timers = self._ready, self._timers
        running: ProcessLoop | None = None
        try:
            while True:
                if not ready:
                    if condition is not None and condition():
                        return True
                    if not timers or timers[0][0] > until_s:
                        self.now_s = max(self.now_s, until_s)
                        return False
                    self.now_s, _, handle = heapq.heappop(timers)
                else:
                    handle = ready.popleft()
                if handle.dropped:
                    continue
                loop = handle.loop
                if loop is not None:
                    if loop.dead:
                        continue
                    if loop.frozen:
                        loop.held_back.append(handle)
                        continue
                if loop is not running:
                    asyncio._set_running_loop(loop)
                    running = loop
                handle.run()
        finally:
            asyncio._set_running_loop(None)

    def take(self, loop: ProcessLoop) -> list[Handle]:
        """Remove and return the ready callbacks of a loop."""
        taken = [handle for handle in self._ready if handle.loop is loop]
        kept = [handle for handle in self._ready if handle.loop is not loop]
        self._ready.clear()
        self._ready.extend(kept)
        return taken


class ProcessLoop(asyncio.AbstractEventLoop):
    """The event loop of one simulated process."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.frozen = False
        self.dead = False
        self.held_back: deque[Handle] = deque()
        self._tasks: list[asyncio.Task[Any]] = []
        self.compute_delay_s: Callable[[], float] = lambda: 0.0
        self.unhandled: list[str] = []

    # What asyncio asks of a loop

    def time(self) -> float:
        return self._scheduler.now_s

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:
        handle = Handle(self, callback, args, context or contextvars.copy_context())
        if self.dead:
            self.held_back.append(handle)
            return handle
        return self._scheduler.soon(handle)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:
        return self._scheduler.at(when, Handle(self, callback, args, context or contextvars.copy_context()))

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:
        return self.call_at(self._scheduler.now_s + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **kwargs: Any) -> asyncio.Task[Any]:  # type: ignore[override]
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self)
        self._tasks = [known for known in self._tasks if not known.done()]
        self._tasks.append(task)
        return task

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: Any) -> Any:
        """A worker thread: computed at once, answered after a while."""
        future = self.create_future()
        try:
            outcome: tuple[Any, Exception | None] = (func(*args), None)
        except Exception as error:  # noqa: BLE001 - handed to whoever awaits it
            outcome = (None, error)
        self.call_later(self.compute_delay_s(), settle, future, *outcome)
        return future

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.dead:
            self.unhandled.append(f"{context.get('message')}: {context.get('exception')!r}")

    # What happens to processes

    def reply(self, delay_s: float, future: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
        """Settle a future of this process after a while (when it is not frozen)."""
        self._scheduler.at(self._scheduler.now_s + delay_s, Handle(self, settle, (future, value, error), None))

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False
        for handle in self.held_back:
            self._scheduler.soon(handle)
        self.held_back.clear()

    def kill(self) -> None:
        """End the process. Its coroutines unwind where nothing they do can reach the models (`dead` is asked there)."""
        if self.dead:
            return
        self.dead, self.frozen = True, False
        self.held_back.extend(self._scheduler.take(self))
        for task in self._tasks:
            task.cancel()
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            for _ in range(_UNWIND_LIMIT):
                if not self.held_back:
                    return
                self.held_back.popleft().run()
        finally:
            asyncio._set_running_loop(before)
        raise AssertionError("a killed process does not end")


def settle(future: asyncio.Future[Any], value: Any, error: Exception | None) -> None:
    """Give a future its result, unless whoever waited has given up."""
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
