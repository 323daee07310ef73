"""Rows read together: everybody gets their own, a fault of one is nobody else's, and a store that was away answers again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis.asyncio as redis

from contracts.errors import StoreUnavailable
from contracts.keys import ROW, Keys
from sandbox.servers import ValkeyServer
from viewers.redis_store import RedisStore
from viewers.row_reads import MAX_TOGETHER


@pytest.fixture
async def store(fresh_valkey: ValkeyServer) -> AsyncIterator[RedisStore]:
    store = RedisStore(fresh_valkey.url, Keys("reads", "t@1"), command_timeout_s=0.3)
    yield store
    await store.close()


async def put(store: RedisStore, server: ValkeyServer, count: int, mark: str = "") -> None:
    async with redis.Redis.from_url(server.url) as client:
        for n in range(count):
            await client.hset(store.keys.viewer(f"v{n}"), ROW, f"row-{n}{mark}")


async def test_everybody_who_asks_at_once_gets_their_own_row(store: RedisStore, fresh_valkey: ValkeyServer) -> None:
    count = 2 * MAX_TOGETHER + 3
    await put(store, fresh_valkey, count)
    asked = [*range(count), count, 0]
    rows = await asyncio.gather(*(store.read_row(f"v{n}") for n in asked))
    assert rows == [b"" if n == count else b"row-%d" % n for n in asked]
    async with redis.Redis.from_url(fresh_valkey.url) as client:
        assert len([one for one in await client.client_list() if one["cmd"] == "hget"]) == 1


async def test_a_key_of_another_type_fails_the_one_who_asked_for_it(
    store: RedisStore, fresh_valkey: ValkeyServer
) -> None:
    await put(store, fresh_valkey, 2)
    async with redis.Redis.from_url(fresh_valkey.url) as client:
        await client.set(store.keys.viewer("bad"), "text")
    found = await asyncio.gather(*(store.read_row(v) for v in ("v0", "bad", "v1")), return_exceptions=True)
    assert (found[0], found[2]) == (b"row-0", b"row-1")
    assert isinstance(found[1], StoreUnavailable)


async def test_whoever_gives_up_leaves_the_others_theirs(store: RedisStore, fresh_valkey: ValkeyServer) -> None:
    await put(store, fresh_valkey, 3)
    first, second, third = (asyncio.create_task(store.read_row(f"v{n}")) for n in range(3))
    await asyncio.sleep(0)
    second.cancel()
    assert (await first, await third) == (b"row-0", b"row-2")
    assert second.cancelled()
    assert await store.read_row("v1") == b"row-1"


async def test_a_store_that_hangs_is_away_and_its_late_answers_are_nobodys(
    store: RedisStore, fresh_valkey: ValkeyServer
) -> None:
    await put(store, fresh_valkey, 4)
    assert await store.read_row("v0") == b"row-0"
    fresh_valkey.pause()
    found = await asyncio.gather(*(store.read_row(f"v{n}") for n in (1, 2)), return_exceptions=True)
    fresh_valkey.resume()
    assert [type(one) for one in found] == [StoreUnavailable, StoreUnavailable]
    assert await store.read_row("v3") == b"row-3"


async def test_after_a_restart_of_the_store_the_next_question_is_answered(
    store: RedisStore, fresh_valkey: ValkeyServer
) -> None:
    assert await store.read_row("v0") == b""
    fresh_valkey.stop(kill=True)
    with pytest.raises(StoreUnavailable):
        await store.read_row("v0")
    fresh_valkey.start()
    await put(store, fresh_valkey, 1, "-again")
    assert await store.read_row("v0") == b"row-0-again"
