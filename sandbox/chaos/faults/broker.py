"""Faults of the broker, and more partitions."""

from __future__ import annotations

import asyncio
import random

from runtime.kafka import NewPartitions, make_admin
from sandbox.chaos.arena import Arena
from sandbox.chaos.waiting import Passed

MOST_PARTITIONS = 32


async def lost(arena: Arena, rng: random.Random) -> None:
    """SIGKILL and restart, a clean restart, or a freeze past every session: the group's coordinator is lost with it."""
    way = rng.choice(("killed", "killed", "restarted", "frozen"))
    if way == "frozen":
        arena.kafka.pause()
        await asyncio.sleep(rng.uniform(1.0, 6.0))
        arena.kafka.resume()
        return
    await asyncio.to_thread(arena.kafka.kill if way == "killed" else arena.kafka.stop)
    await asyncio.sleep(rng.choice((0.0, 1.0)))
    await asyncio.to_thread(arena.kafka.start)


async def partitions_raised(arena: Arena, rng: random.Random) -> None:
    """One partition more under the stream: keys move, so one viewer's plays come from two partitions."""
    count = len(await arena.ends())
    if count >= MOST_PARTITIONS:
        raise Passed
    admin = await make_admin(arena.settings)
    try:
        await admin.create_partitions({arena.settings.kafka.topic: NewPartitions(total_count=count + 1)})
    finally:
        await admin.close()
    await arena.sender.drop()
