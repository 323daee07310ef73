"""Small worlds with known content, for tests of every layer."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable

from contracts.events import Kind, PlaybackEvent
from sandbox.made_up import T0, make_generation, make_tables, write_generation_folder

__all__ = ["T0", "make_generation", "make_tables", "play_event", "wait_until", "write_generation_folder"]


def play_event(
    viewer: str,
    item: int | str,
    second: float,
    *,
    kind: Kind = Kind.COMPLETE,
    share: float = 1.0,
    private: bool = False,
) -> PlaybackEvent:
    """A play of `tt…item`, started `second` seconds after T0; its ids follow from viewer, item and time."""
    item_id = item if isinstance(item, str) else f"tt{item:07d}"
    started = T0 + int(second * 1000)
    return PlaybackEvent(
        event_id=f"{viewer}.{item_id}.{started}.{kind.value}",
        kind=kind,
        viewer=viewer,
        event_time_ms=started,
        private=private,
        item_id=item_id,
        play_id=f"{viewer}.{started}",
        play_started_at_ms=started,
        watched_ms=int(share * 100_000),
        duration_ms=100_000,
    )


async def wait_until(condition: Callable[[], object], what: str, deadline_s: float = 30.0) -> None:
    """Poll a condition (plain or async) until it holds; fail naming `what` after the deadline."""
    ends = asyncio.get_running_loop().time() + deadline_s
    while True:
        held = condition()
        if inspect.isawaitable(held):
            held = await held
        if held:
            return
        if asyncio.get_running_loop().time() > ends:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        await asyncio.sleep(0.02)
