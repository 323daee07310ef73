"""Faults of the updater processes."""

from __future__ import annotations

import asyncio
import random

from sandbox.chaos.arena import SESSION_MS, Arena
from sandbox.chaos.wired import POINTS


async def killed_between_effects(arena: Arena, rng: random.Random) -> None:
    """SIGKILL at a named point between two effects, or at any moment; often one after the other."""
    for _ in range(rng.choice((1, 1, 2))):
        slot = await arena.crew.victim(rng)
        point = rng.choice((*POINTS, "any moment"))
        if point == "any moment":
            await asyncio.sleep(rng.uniform(0, 0.3))
            slot.signal("KILL")
            continue
        if point == "dead letters":
            await arena.sender.send([arena.audience.poison() for _ in range(4)])
        fuse = arena.crew.fuse(slot)
        fuse.write_text(f"{point}|{rng.randint(1, 3)}")
        for _ in range(60):  # an updater without partitions never gets there
            if not fuse.exists():
                break
            await asyncio.sleep(0.05)
        else:
            fuse.unlink(missing_ok=True)
            slot.signal("KILL")


async def frozen_past_session(arena: Arena, rng: random.Random) -> None:
    """SIGSTOP until others own its partitions, then SIGCONT: a zombie with a batch in hand."""
    slot = await arena.crew.victim(rng)
    slot.signal("STOP")
    await asyncio.sleep(SESSION_MS / 1000 + rng.uniform(0.2, 2.0))
    slot.signal("CONT")


async def rebalance_storm(arena: Arena, rng: random.Random) -> None:
    """Updaters come and go, asked and killed, faster than the group settles."""
    for _ in range(rng.randint(2, 4)):
        await arena.crew.scale(rng.randint(2, 4))
        if rng.random() < 0.4 and arena.crew.victims:
            rng.choice(arena.crew.victims).signal("KILL")
        await asyncio.sleep(rng.uniform(0.2, 1.2))
    await arena.crew.scale(2)
