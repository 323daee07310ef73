"""Ending background tasks."""

from __future__ import annotations

import asyncio
from typing import Any

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
