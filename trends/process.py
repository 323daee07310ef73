"""A process that counts trends: its lease, its thread, what it tells. One for the generation in force, and one beside it for a share's
candidate, which goes by the same lease."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from contracts.codec import Codec
from contracts.errors import StoreChanged, TransientError
from runtime.schemas import Schemas
from runtime.settings import Settings
from viewers.store import Store

LEASE_MS = 10_000
"""So long after the last word of the process that counts, another goes on."""
LOOK_EVERY_S = 1.0
"""At CURRENT and at the lease."""
OTHER_COUNTS = "another process counts trends: standing by"

T = TypeVar("T")


def wall_ms() -> int:
    """UTC milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Figures:
    """What the process tells of itself. `records`: by decision. `lag`: records not read yet."""

    records: Counter[str] = field(default_factory=Counter)
    snapshots: int = 0
    snapshot_bytes: int = 0
    plays: int = 0
    lag: int = 0
    counting: bool = False
    standing_by: bool = False
    newest: str = ""
    published_at_ms: int = 0
    new_items: int = 0


@dataclass(slots=True)
class Process:
    """`codec`: of the schemas known by now, from `schemas`. `for_candidate`: beside the process's other one."""

    settings: Settings
    store: Store
    codec: Codec
    schemas: Schemas
    instance: str
    for_candidate: bool = False
    now_ms: Callable[[], int] = wall_ms
    figures: Figures = field(default_factory=Figures)
    executor: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="trends"))

    async def takes_lease(self) -> bool:
        """Take the lease, or hold it on; False: it is another's. Errors: `StoreUnavailable`."""
        return await self.store.trends.hold(self.instance, LEASE_MS)

    async def hold(self) -> None:
        """Hold the lease on. Errors: `StoreChanged` if it is another's."""
        if not await self.takes_lease():
            raise StoreChanged(OTHER_COUNTS)

    async def off_loop(self, action: Callable[..., T], *arguments: object) -> T:
        """In the thread: whatever counts, loads or computes."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, action, *arguments)

    async def holding(self, action: Callable[..., T], *arguments: object) -> T:
        """The same for what may take longer than the lease lasts: hold it on. (Whether another has it, what is written next will tell.)"""
        working = asyncio.ensure_future(self.off_loop(action, *arguments))
        while not (await asyncio.wait({working}, timeout=LOOK_EVERY_S))[0]:
            with contextlib.suppress(TransientError):
                await self.takes_lease()
        return working.result()

    async def close(self) -> None:
        """Let go of the lease, so that the next one need not wait."""
        with contextlib.suppress(TransientError):
            await self.store.trends.hold(self.instance, 1)
        self.executor.shutdown(wait=False)
