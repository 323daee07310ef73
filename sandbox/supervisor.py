"""Keeps one of the demo's services running, as an orchestrator would: what ends, for whatever reason, is started again."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from contracts.errors import UserError
from sandbox.processes import Service, describe_end, to_the_end

WATCH_S = 0.1
BACKOFF_S = (0.3, 0.5, 1.0, 2.0)
"""Before a restart; longer when it ends again and again."""
GIVE_UP_AFTER, WITHIN_S = 5, 60.0
"""So many ends that nobody asked for within this time are not accidents."""
HALTED_STATUS = 3
"""The exit status of a process that waits for a person: starting it again would change nothing."""


class Supervisor:
    """One service and what happened to it. `restarts`: how often it was started again."""

    def __init__(
        self,
        service: Service,
        say: Callable[[str], None],
        *,
        backoff_s: tuple[float, ...] = BACKOFF_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.service = service
        self.restarts = 0
        self._say, self._backoff_s, self._now_s = say, backoff_s, now_s
        self._ends: deque[float] = deque()
        self._asked = False
        self._hands = asyncio.Lock()  # one at a time talks to the process's watchdog

    async def run(self) -> None:
        """For ever. Errors: `SandboxError` with the end of its log if it halted, or ends again and again."""
        while True:
            async with self._hands:
                if not self.service.running:
                    await self._revive()
            await asyncio.sleep(WATCH_S)

    async def kill(self) -> int:
        """SIGKILL; returns the process id once it is gone. Errors: `UserError` if it is being restarted already."""
        async with self._hands:
            pid = self.service.pid
            if pid is None or not self.service.running:
                raise UserError(f"the {self.service.verb} has just ended and is being started again; wait a moment")
            self._asked = True
            await to_the_end(lambda: self.service.signal("KILL"))
            while self.service.running:  # noqa: ASYNC110 - the watchdog tells by ending
                await asyncio.sleep(0.01)
            return pid

    async def _revive(self) -> None:
        """Say how it ended, wait a little, start it again."""
        how, now_s = self.service.exit_status(), self._now_s()
        if not self._asked:
            self._ends.append(now_s)
        while self._ends and self._ends[0] < now_s - WITHIN_S:
            self._ends.popleft()
        if how == HALTED_STATUS or len(self._ends) >= GIVE_UP_AFTER:
            self.service.require_running()
        self._asked = False
        pause_s = self._backoff_s[min(max(0, len(self._ends) - 1), len(self._backoff_s) - 1)]
        self._say(
            f"the {self.service.verb} has ended ({describe_end(how)}); it is started again in {pause_s:g} s, and goes on "
            "where its marker stands"
        )
        await asyncio.sleep(pause_s)
        await to_the_end(self.service.restart)
        self.restarts += 1
