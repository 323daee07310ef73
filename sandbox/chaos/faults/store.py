"""Faults of the store: it loses its newest writes, comes back as an older copy, hangs, is slow or full."""

from __future__ import annotations

import asyncio
import random
import resource
import shutil

import redis.asyncio as redis

from sandbox.chaos.arena import Arena


async def killed_and_cut(arena: Arena, rng: random.Random) -> None:
    """SIGKILL; sometimes the append-only file loses random bytes from its end before the restart."""
    await asyncio.to_thread(arena.valkey.kill)
    path = arena.log_file()
    size = path.stat().st_size
    if size and rng.random() < 0.8:
        cut = rng.randint(1, min(size, rng.choice((100, 5_000, 500_000))))
        with path.open("r+b") as file:
            file.truncate(size - cut)
    await asyncio.sleep(rng.choice((0.0, 0.5, 2.0)))
    await arena.start_store()


async def from_older_copy(arena: Arena, rng: random.Random) -> None:
    """Killed and restarted from a copy made a while ago; writes arrive before anybody notices."""
    copy = rng.choice(arena.copies) if arena.copies else arena.copy_store()
    if not arena.copies:
        await asyncio.sleep(1.0)
    await arena.take_back(copy)


async def frozen(arena: Arena, rng: random.Random) -> None:
    """SIGSTOP until the clients have given up, then SIGCONT: what they sent runs late."""
    arena.valkey.pause()
    await asyncio.sleep(arena.settings.store.command_timeout_s + rng.uniform(0.5, 2.5))
    arena.valkey.resume()


async def slow(arena: Arena, rng: random.Random) -> None:
    """Seconds more for every command, through the proxy: within the client's deadline, or past it, so that scripts run late."""
    arena.proxy.delay_s = rng.choice((0.3, 2.0, arena.settings.store.command_timeout_s + 1.0))
    await asyncio.sleep(rng.uniform(4.0, 6.0))
    arena.proxy.delay_s = 0.0


async def full(arena: Arena, rng: random.Random) -> None:
    """Out of memory, or its append-only file cannot grow any more."""
    if rng.random() < 0.5:
        client = redis.Redis.from_url(arena.valkey.url, protocol=2)
        try:
            await client.config_set("maxmemory", "1mb")
            await asyncio.sleep(rng.uniform(1.0, 3.0))
            await client.config_set("maxmemory", "0")
        finally:
            await client.aclose()
        return
    pid = arena.valkey.pid
    assert pid is not None
    size = arena.log_file().stat().st_size
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + rng.randrange(20_000), resource.RLIM_INFINITY))
    await asyncio.sleep(rng.uniform(1.5, 3.5))
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


async def switched_by_proxy(arena: Arena, rng: random.Random) -> None:
    """Another server, with an older copy, behind the same open connections; sometimes back again to the first."""
    copy = rng.choice(arena.copies) if arena.copies and rng.random() < 0.5 else arena.copy_store()
    other = arena.adopt(copy)
    await arena.start_store(other)
    assert other.port is not None and arena.valkey.port is not None
    await arena.proxy.switch(other.port)
    if rng.random() < 0.4:
        await asyncio.sleep(rng.uniform(0.05, 1.5))
        await arena.proxy.switch(arena.valkey.port)
        await asyncio.to_thread(other.stop, kill=True)
        shutil.rmtree(other.data_dir, ignore_errors=True)
        return
    old, arena.valkey = arena.valkey, other
    await asyncio.to_thread(old.stop, kill=True)
    shutil.rmtree(old.data_dir, ignore_errors=True)
