"""Ending background tasks, clients and whole verbs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, Protocol, TypeVar

T = TypeVar("T")

CANCEL_AGAIN_S = 1.0
"""A client that is connecting can swallow a cancellation (seen with the store's); a task that loops for ever must hear another."""


async def cancel_all(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until every one has ended. What they raised is dropped: ask the task if it matters."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)


class Client(Protocol):
    """What can be stopped: a consumer, a producer."""

    async def stop(self) -> None: ...


async def stop_client(client: Client) -> None:
    """Stop a Kafka client. One that has only just started raises the cancellation of its own background task: that is dropped, as it
    would replace the error on which the client is being stopped. A cancellation of who calls is heard."""
    try:
        await client.stop()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise


async def pause(stopping: asyncio.Event, seconds: float) -> None:
    """Sleep, but no longer than until `stopping` is set."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)


def stop_on_signals(stop: Callable[[], object]) -> None:
    """Have SIGTERM and Ctrl-C call `stop` in the running loop."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


def run_until_signalled(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, which SIGTERM and Ctrl-C end at once: the work is cancelled, cleans up, and the process ends as `leave` says."""

    async def main() -> T:
        task, caught, ending = asyncio.ensure_future(work), [0], set()

        def heard(number: int) -> None:
            caught[0] = number
            ending.add(asyncio.ensure_future(cancel_all(task)))

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, heard, number)
        await asyncio.wait({task})
        if caught[0]:
            leave(caught[0])
        return task.result()

    return asyncio.run(main())


def leave(signal_number: int) -> NoReturn:
    """End the process now, with the status that shells give to one that this signal killed. For work that a crash may cut short
    anywhere: the interpreter's own way out waits for threads, and one that trains cannot be told to stop."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + signal_number)
