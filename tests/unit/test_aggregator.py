"""What the aggregator does beside counting: it holds its lease on through long work, and loads a generation once."""

from __future__ import annotations

import asyncio
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from contracts.codec import Codec
from contracts.errors import StoreChanged
from embeddings.files import GenerationsFolder
from runtime.settings import Settings
from tests.worlds import T0, make_generation, make_tables, wait_until, write_generation_folder
from trends.aggregator import LEASE_MS, Aggregator, Counting
from viewers.memory_store import MemoryServer, MemoryStore


def aggregator(tmp_path: Path, server: MemoryServer) -> Aggregator:
    settings = Settings(generations_path=str(tmp_path))
    return Aggregator(settings, MemoryStore(server), Codec.load(), instance="a")


async def test_what_takes_longer_than_the_lease_does_not_lose_it(tmp_path: Path) -> None:
    """The default rows of a large catalogue and many territories do."""
    server, held, done = MemoryServer(), 0, threading.Event()
    made = aggregator(tmp_path, server)
    trends = made._store.trends
    assert await trends.hold("a", LEASE_MS)
    working = asyncio.create_task(made._holding(done.wait, 60))
    for _ in range(3):
        server.trends.now_ms += LEASE_MS - 1
        before = server.trends.owner
        await wait_until(lambda before=before: server.trends.owner != before, "the lease is held on")
        held += not await trends.hold("b", LEASE_MS)
    done.set()
    assert await working
    assert held == 3


async def test_a_lease_that_ran_out_is_taken_again_unless_another_has_it(tmp_path: Path) -> None:
    """Else who counts alone, and is once held up for too long before each snapshot, would never publish any."""
    server = MemoryServer()
    write_generation_folder(tmp_path, make_generation().with_tables(replace(make_tables(200), at_ms=T0)))
    GenerationsFolder(str(tmp_path)).activate("g1", floor=0)
    made = aggregator(tmp_path, server)
    trends = made._store.trends
    assert await trends.hold("a", LEASE_MS)
    base = made._load()
    assert base is not None
    server.trends.now_ms += LEASE_MS
    await Counting(made, base, None)._publish()  # type: ignore[arg-type] # nothing is read
    pointer = await trends.read_pointer("g1")
    assert pointer is not None
    server.trends.now_ms += LEASE_MS
    assert await trends.hold("b", LEASE_MS)
    with pytest.raises(StoreChanged, match="another"):
        await Counting(made, base, None)._publish()  # type: ignore[arg-type]
    assert await trends.read_pointer("g1") == pointer


async def test_a_generation_that_knows_no_trends_is_not_loaded_again(tmp_path: Path) -> None:
    """It is asked for every second."""
    write_generation_folder(tmp_path, make_generation())
    GenerationsFolder(str(tmp_path)).activate("g1", floor=0)
    made = aggregator(tmp_path, MemoryServer())
    assert made._load() is None
    assert made._loaded is not None
    shutil.rmtree(tmp_path / "g1")
    assert made._load() is None
    assert made._refused is None
