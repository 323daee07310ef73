"""How old the newest finished record grows while something is done to the updaters: what a viewer would notice of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from runtime.tasks import cancel_all
from sandbox.chaos.arena import Arena

EVERY_S = 0.5


@contextlib.asynccontextmanager
async def watched(arena: Arena, name: str) -> AsyncIterator[None]:
    """Twice a second the log's ends are noted, and how long it takes until everything before them is finished; the longest of these
    goes to `arena.behind[name]`. Errors: `Stuck`."""
    samples: list[asyncio.Task[float]] = []

    async def sample() -> float:
        began = time.monotonic()
        await arena.reach(await arena.ends(), f"watching {name}")
        return time.monotonic() - began

    async def watch() -> None:
        while True:
            samples.append(asyncio.create_task(sample()))
            await asyncio.sleep(EVERY_S)

    watching = asyncio.create_task(watch())
    try:
        yield
        await cancel_all(watching)
        arena.behind.setdefault(name, []).append(max(await asyncio.gather(*samples)))
    finally:
        await cancel_all(watching, *samples)
