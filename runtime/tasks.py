"""Ending background tasks and clients."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

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
