"""Faults of generations: swaps under load, bad ones, rebuilds that race the stream."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from batch.activation import rollback, share, stop_share
from contracts.current import Current
from contracts.errors import GenerationError, UserError
from runtime.progress import SilentProgress
from sandbox.chaos.arena import GENERATIONS, Arena
from sandbox.chaos.waiting import wait_until
from viewers.redis_store import RedisStore


async def swaps(arena: Arena, rng: random.Random) -> None:
    """A new generation, two in a row, a rollback, or an activation that is killed half way."""
    first, second = rng.sample(sorted(GENERATIONS), 2)
    way = rng.choice(("one", "two", "two", "rollback", "killed"))
    if way == "one":
        await arena.activate(first)
    elif way == "two":
        both = await asyncio.gather(arena.activate(first), _later(arena, second, rng), return_exceptions=True)
        for result in both:  # the first is told that the second took over
            if isinstance(result, BaseException) and not isinstance(result, UserError):
                raise result
    elif way == "rollback":
        async with arena.store() as store:
            with contextlib.suppress(UserError):  # the oldest is in force
                await rollback(arena.settings, store, progress=SilentProgress())
    else:
        await arena.verb("generations", "activate", first, kill_after_s=rng.uniform(1.0, 2.5))


async def shared(arena: Arena, rng: random.Random) -> None:
    """A share of the viewers sees a candidate; it is killed half way, changed, stopped, or left to whatever comes next."""
    current = arena.folder_of_generations.read_current()
    assert current is not None
    candidate = rng.choice(sorted({*GENERATIONS} - {current.generation_id}))
    if rng.random() < 0.3:
        await arena.verb("generations", "share", candidate, "--percent", "50", kill_after_s=rng.uniform(1.0, 2.5))
    async with arena.store() as store:
        # Another fault may put something else in force meanwhile, as another person would; that one's rebuild covers everybody.
        with contextlib.suppress(UserError, GenerationError):
            await _share_on(arena, store, candidate, rng)


async def _share_on(arena: Arena, store: RedisStore, candidate: str, rng: random.Random) -> None:
    await share(arena.settings, store, candidate, rng.uniform(10, 90), progress=SilentProgress())
    then = rng.choice(("stays", "stays", "changes", "stops"))
    if then == "changes":
        await share(arena.settings, store, None, rng.uniform(10, 90), progress=SilentProgress())
    elif then == "stops":
        await stop_share(arena.settings, store, progress=SilentProgress())


async def _later(arena: Arena, generation_id: str, rng: random.Random) -> None:
    await asyncio.sleep(rng.uniform(0.0, 1.0))
    await arena.activate(generation_id)


async def corrupt(arena: Arena, rng: random.Random) -> None:
    """CURRENT names a generation that is damaged, half published, not finite or of a wrong shape; then the next one is good."""
    folder = arena.folder_of_generations
    root = Path(arena.settings.generations_path)
    good = folder.read_current()
    assert good is not None
    bad = root / f"bad-{good.activation + 1}"
    shutil.copytree(root / good.generation_id, bad)
    manifest = json.loads((bad / "manifest.json").read_text())
    (bad / "manifest.json").write_text(json.dumps(manifest | {"generation_id": bad.name}))
    harm, refusal = HARMS[rng.choice(sorted(HARMS))]
    harm(bad, rng)
    log_ends = {slot.name: slot.log_size for slot in arena.crew.slots}
    with folder.locked():
        folder._write_current(Current(bad.name, good.activation + 1))
    await wait_until(lambda: _refused(arena, log_ends, refusal), f"refusal of a generation ({refusal})", REFUSED_S)
    async with arena.store() as store:
        if any(activation == good.activation + 1 for activation, _ in (await store.read_updaters()).values()):
            arena.crew.surprises.append(f"an updater serves {bad.name}, which is damaged ({refusal})")
    if rng.random() < 0.3:
        (root / "CURRENT").write_bytes(rng.randbytes(40))
        await asyncio.sleep(1.5)
        with folder.locked():
            folder._write_current(Current(bad.name, good.activation + 1))
    await arena.activate(rng.choice(sorted(GENERATIONS)))
    shutil.rmtree(bad, ignore_errors=True)


def _refused(arena: Arena, log_ends: dict[str, int], refusal: str) -> bool:
    """Whether an updater has looked at it and said what is wrong, or has taken it up (which is found out next)."""
    for slot in arena.crew.slots:
        text = slot.log_since(log_ends.get(slot.name, 0))
        for line in text.splitlines():
            if ("generation_refused" in line and re.search(refusal, line)) or (
                "generation_swapped" in line and "bad-" in line
            ):
                return True
    return False


def _flip(bad: Path, rng: random.Random) -> None:
    path = bad / rng.choice(("item_factors.npy", "items.parquet"))
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _cut(bad: Path, rng: random.Random) -> None:
    path = bad / rng.choice(("item_factors.npy", "items.parquet", "manifest.json"))
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def _half_published(bad: Path, rng: random.Random) -> None:
    (bad / rng.choice(("manifest.json", "item_factors.npy", "items.parquet"))).unlink()


def _not_finite(bad: Path, rng: random.Random) -> None:
    factors = np.load(bad / "item_factors.npy")
    factors[rng.randrange(len(factors)), 0] = rng.choice((np.nan, np.inf))
    _replace_factors(bad, factors)


def _wrong_shape(bad: Path, rng: random.Random) -> None:
    factors = np.load(bad / "item_factors.npy")
    _replace_factors(bad, factors[:-1] if rng.random() < 0.5 else np.ascontiguousarray(factors[:, :-1]))


def _replace_factors(bad: Path, factors: NDArray[np.float32]) -> None:
    """With a checksum that is right: only looking at the content can tell."""
    buffer = io.BytesIO()
    np.save(buffer, factors)
    data = buffer.getvalue()
    (bad / "item_factors.npy").write_bytes(data)
    manifest = json.loads((bad / "manifest.json").read_text())
    manifest["files"]["item_factors.npy"] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    (bad / "manifest.json").write_text(json.dumps(manifest))


HARMS = {
    "bit flipped": (_flip, "sha256"),
    "file cut": (_cut, ""),
    "half published": (_half_published, ""),
    "not finite": (_not_finite, "NaN or infinity"),
    "wrong shape": (_wrong_shape, "item_factors.npy"),
}
"""What is done to it, and a word that its refusal must hold: the harm itself has to be seen, not something beside it."""

REFUSED_S = 30.0


async def rebuild_races(arena: Arena, rng: random.Random) -> None:
    """Everybody's row is rebuilt while their plays arrive; sometimes as the verb's own process, killed half way."""
    current = arena.folder_of_generations.read_current()
    assert current is not None
    burst = [arena.audience.event(arena.audience.play()) for _ in range(400)]
    if rng.random() < 0.3:
        verb = arena.verb(
            "generations", "activate", current.generation_id, kill_after_s=rng.choice((1.2, 1.8, 2.5, 60.0))
        )
        await asyncio.gather(verb, arena.sender.send(burst))
    else:
        with contextlib.suppress(UserError):
            await asyncio.gather(arena.activate(current.generation_id), arena.sender.send(burst))
