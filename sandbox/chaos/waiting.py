"""Waiting with a deadline; what does not come in time is a finding."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable

from contracts.errors import NearlineError

GIVE_UP_S = 150.0
"""No fault may keep the lag above 0 for so long."""


class Stuck(NearlineError):
    """The updaters did not do in time what they had to: the harness's finding, not its failure."""


class Passed(NearlineError):
    """This fault cannot be done here any more: it is not counted."""


async def wait_until(condition: Callable[[], object], what: str, deadline_s: float = GIVE_UP_S) -> None:
    """Poll a condition, plain or async. Errors: `Stuck`."""
    ends = time.monotonic() + deadline_s
    while time.monotonic() < ends:
        held = condition()
        if held if not inspect.isawaitable(held) else await held:
            return
        await asyncio.sleep(0.05)
    raise Stuck(f"no {what} within {deadline_s:g} s")
