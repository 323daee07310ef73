"""One thread beside the event loop, for work on batches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

FEW = 16
"""Work on so many things is done on the event loop itself: it takes some two milliseconds (10 where histories are full, 50 at a million
titles), and where every core is busy, handing it over and being told takes longer than that."""


class Worker:
    """Does one thing at a time, also where what was asked for is not waited for any more: what works here needs no locks."""

    def __init__(self, name: str) -> None:
        """`name`: of the thread."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._working = threading.Lock()

    async def run(self, size: int, work: Callable[..., T], *arguments: object) -> T:
        """The work's result. `size`: how many things it is about."""
        if size <= FEW and self._working.acquire(blocking=False):
            try:
                return work(*arguments)
            finally:
                self._working.release()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._alone, work, *arguments)

    def _alone(self, work: Callable[..., T], *arguments: object) -> T:
        with self._working:
            return work(*arguments)

    def close(self, *, wait: bool = False) -> None:
        """Take nothing more. `wait`: until what is under way is done, which holds up the event loop."""
        self._thread.shutdown(wait=wait)
