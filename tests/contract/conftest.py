"""Every store, twice."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from contracts.keys import Keys
from sandbox.servers import ValkeyServer
from viewers.memory_store import MemoryServer, MemoryStore
from viewers.redis_store import RedisStore
from viewers.store import Store


@pytest.fixture(params=["memory", "valkey"])
async def stores(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[tuple[Store, Store]]:
    """Two clients of one server."""
    if request.param == "memory":
        server = MemoryServer()
        pair: tuple[Store, Store] = (MemoryStore(server), MemoryStore(server))
    else:
        valkey: ValkeyServer = request.getfixturevalue("valkey")
        pair = (RedisStore(valkey.url, Keys(namespace, "t@1")), RedisStore(valkey.url, Keys(namespace, "t@1")))
    for store in pair:
        await store.connect()
    yield pair
    for store in pair:
        await store.close()
