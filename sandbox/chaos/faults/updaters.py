"""Faults of the updater processes."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

from sandbox.chaos.arena import SESSION_MS, Arena
from sandbox.chaos.waiting import wait_until
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
        fuse = arena.crew.fuse(slot)
        fuse.write_text(f"{point}|{1 if point == 'dead letters' else rng.randint(1, 3)}")
        if point == "dead letters":  # for every partition, so that one of them is this updater's
            await arena.sender.send([replace(arena.audience.poison(), partition=p) for p in await arena.ends()])
        for _ in range(60):  # an updater without partitions never gets there
            if not fuse.exists():
                arena.points[point] += 1
                break
            await asyncio.sleep(0.05)
        else:
            fuse.unlink(missing_ok=True)
            arena.points[f"{point}: not reached"] += 1
            slot.signal("KILL")


async def frozen_past_session(arena: Arena, rng: random.Random) -> None:
    """SIGSTOP until others own its partitions, then SIGCONT: a zombie with a batch in hand."""
    slot = await arena.crew.victim(rng)
    slot.signal("STOP")
    await asyncio.sleep(SESSION_MS / 1000 + rng.uniform(0.2, 2.0))
    slot.signal("CONT")


async def rolling_restart(arena: Arena, rng: random.Random) -> None:
    """Each updater in turn: asked to stop, started again, waited for."""
    for slot in arena.crew.victims:
        slot.signal("TERM")
        await wait_until(lambda slot=slot: not slot.running, f"end of {slot.name}")  # type: ignore[misc]
        await wait_until(slot.is_ready, f"return of {slot.name}")


async def rebalance_storm(arena: Arena, rng: random.Random) -> None:
    """Updaters come and go, asked and killed: up to four members, each joining a group that has not settled."""
    for _ in range(rng.randint(2, 3)):
        await arena.crew.scale(rng.randint(2, 4))
        if rng.random() < 0.7:  # whoever is new has joined before the next one goes
            await arena.crew.until_ready()
        if rng.random() < 0.4 and arena.crew.victims:
            rng.choice(arena.crew.victims).signal("KILL")
        await asyncio.sleep(rng.uniform(0.2, 1.2))
    await arena.crew.scale(2)
