"""Faults of the updater processes, and of those that count trends."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

from sandbox.chaos.arena import SESSION_MS, Arena
from sandbox.chaos.behind import watched
from sandbox.chaos.crew import Slot
from sandbox.chaos.waiting import wait_until
from sandbox.chaos.wired import POINTS, TRENDS_POINTS
from trends.process import LEASE_MS

ANY_MOMENT = "any moment"
MOMENTS = (*POINTS, ANY_MOMENT)
"""When an updater is killed or frozen. The first thing that those faults draw, so that a seed can be found for each."""


async def killed_between_effects(arena: Arena, rng: random.Random) -> None:
    """SIGKILL at a named point between two effects, or at any moment; often one after the other."""
    await _strike(arena, rng, rng.choice(MOMENTS), "KILL")
    if rng.random() < 0.3:
        await _strike(arena, rng, rng.choice(MOMENTS), "KILL")


async def frozen_past_session(arena: Arena, rng: random.Random) -> None:
    """SIGSTOP between two effects or at any moment, until others own its partitions, then SIGCONT: a zombie with a batch in hand."""
    slot = await _strike(arena, rng, rng.choice(MOMENTS), "STOP")
    await asyncio.sleep(SESSION_MS / 1000 + rng.uniform(0.2, 2.0))
    slot.signal("CONT")


async def _strike(arena: Arena, rng: random.Random, moment: str, word: str) -> Slot:
    """Signal one updater at that moment; at any if it does not get there. Returns it."""
    slot = await arena.crew.victim(rng)
    if moment == ANY_MOMENT:
        await asyncio.sleep(rng.uniform(0, 0.3))
        slot.signal(word)
        return slot
    fuse = arena.crew.fuse(slot)
    fuse.write_text(f"{moment}|{1 if moment == 'dead letters' else rng.randint(1, 3)}|{word}")
    if moment == "dead letters":  # for every partition, so that one of them is this updater's
        await arena.sender.send([replace(arena.audience.poison(), partition=p) for p in await arena.ends()])
    for _ in range(60):  # an updater without partitions never gets there
        if not fuse.exists():
            arena.points[f"{moment}: {word}"] += 1
            return slot
        await asyncio.sleep(0.05)
    fuse.unlink(missing_ok=True)
    arena.points[f"{moment}: not reached"] += 1
    slot.signal(word)
    return slot


async def rolling_restart(arena: Arena, rng: random.Random) -> None:
    """Each updater in turn: asked to stop, started again, waited for. No row may fall far behind meanwhile."""
    async with watched(arena, rolling_restart.__name__):
        for slot in arena.crew.victims:
            await wait_until(
                slot.is_ready, f"readiness of {slot.name}"
            )  # one that an earlier fault ended has not begun to listen yet
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


async def aggregator_lost(arena: Arena, rng: random.Random) -> None:
    """Whoever counts trends is killed or frozen between two effects or at any moment; frozen, often until the other has taken over."""
    moment, word = rng.choice((*TRENDS_POINTS, ANY_MOMENT)), rng.choice(("KILL", "STOP"))
    slots = [slot for slot in arena.crew.aggregators if slot.running]
    for slot in slots:  # which of the two counts, its fuse tells
        arena.crew.fuse(slot).write_text(f"{moment}|{rng.randint(1, 3)}|{word}")
    struck: list[Slot] = []
    for _ in range(60 if moment != ANY_MOMENT else 0):
        struck = [slot for slot in slots if not arena.crew.fuse(slot).exists()]
        if struck:
            break
        await asyncio.sleep(0.05)
    for slot in slots:
        arena.crew.fuse(slot).unlink(missing_ok=True)
    if struck:
        arena.points[f"trends {moment}: {word}"] += 1
    else:
        struck = slots
        for slot in struck:
            slot.signal(word)
    if word == "STOP":
        await asyncio.sleep(rng.choice((1.0, LEASE_MS / 1000 + 2.0)))
        for slot in struck:
            slot.signal("CONT")
