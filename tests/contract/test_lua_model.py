"""The Lua functions on a real server against their Python twin: the same calls give the same answers and the same content."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.anchors import Anchor
from contracts.errors import StoreChanged
from contracts.keys import Keys
from sandbox.servers import ValkeyServer
from viewers.memory_store import MemoryStore
from viewers.redis_store import RedisStore
from viewers.store import Freeze, MarkerWrite, Rows, Store, Tally, ViewerWrite

VIEWERS = ("ana", "b.e|n")
PARTITIONS = (0, 1)
TOKENS = st.sampled_from([bytes([n]) * 8 for n in (0, 1, 2, 10, 255)])  # few, so that they meet; with NUL and newline
BYTES = st.binary(max_size=6)
COUNTS = st.integers(0, 3)

viewer_writes = st.builds(
    ViewerWrite,
    viewer=st.sampled_from(VIEWERS),
    expected_token=st.one_of(st.just(b""), TOKENS),
    new_token=TOKENS,
    activation=st.sampled_from((0, 1, 2, 9, 10, 1_000_000_007)),  # 9 and 10: compared as numbers, not as text
    state=BYTES,
    vector=BYTES,
    row=BYTES,
    rows=st.sampled_from(Rows),
)
marker_writes = st.builds(
    MarkerWrite,
    partition=st.sampled_from(PARTITIONS),
    expected_next=st.one_of(st.none(), st.integers(0, 4)),
    next_offset=st.integers(0, 4),
    origin=st.integers(0, 2),
    tally=st.builds(Tally, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS),
    anchor=st.one_of(
        st.none(), st.builds(Anchor, st.integers(0, 4), st.sampled_from((-1, 0, 10**12)), st.just("0a" * 16))
    ),
    gap_end=st.integers(0, 4),
)
calls = st.one_of(
    st.tuples(st.just("write_viewers"), st.lists(viewer_writes, min_size=1, max_size=3)),
    st.tuples(st.just("write_markers"), st.lists(marker_writes, min_size=1, max_size=2)),
    st.tuples(st.just("write_freeze"), st.one_of(st.none(), st.builds(Freeze, st.integers(0, 9), st.text(max_size=3)))),
    st.tuples(st.just("announce_activation"), st.integers(0, 12)),
    st.tuples(st.just("write_seeded"), st.dictionaries(st.sampled_from(PARTITIONS), st.integers(0, 9), min_size=1)),
    st.tuples(st.just("write_rebuilt"), st.integers(0, 3)),
    st.tuples(st.just("restart"), st.none()),
    st.tuples(st.just("know again"), st.none()),
)


class Pair:
    """A store on the server and its twin, on an event loop of their own."""

    def __init__(self, url: str, namespace: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.real = RedisStore(url, Keys(namespace, "t@1"))
        self.namespace = namespace
        self.sequences = 0
        self.identity = self.run(self.real.connect())

    def run(self, action: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(action)

    def close(self) -> None:
        self.run(self.real.close())
        self.loop.close()


@pytest.fixture
def pair(valkey: ValkeyServer, namespace: str) -> Iterator[Pair]:
    made = Pair(valkey.url, namespace)
    yield made
    made.close()


async def answer(call: Callable[[], Awaitable[Any]]) -> Any:
    """What a call answers; `StoreChanged` for the error, whose text names each store's own server."""
    try:
        return await call()
    except StoreChanged:
        return StoreChanged


async def content(store: Store) -> list[Any]:
    return [
        *[await store.read_viewer(viewer) for viewer in VIEWERS],
        await store.read_markers(PARTITIONS),
        await store.highest_activation(),
        await store.read_freeze(),
        await store.read_seeded(),
        *[await store.read_rebuilt(activation) for activation in range(4)],
    ]


async def compare(real: RedisStore, identity: str, sequence: list[tuple[str, Any]]) -> None:
    """Play a sequence on both. A restart is what a client sees of one: the identity it knows is not the server's any more."""
    twin = MemoryStore()
    real._identity = identity
    await twin.connect()
    for name, argument in sequence:
        if name == "restart":
            real._identity = twin._identity = "another:server"
            continue
        if name == "know again":
            real._identity = identity
            await twin.connect()
            continue
        found = await answer(lambda name=name, argument=argument: getattr(real, name)(argument))
        expected = await answer(lambda name=name, argument=argument: getattr(twin, name)(argument))
        assert found == expected, f"{name}({argument})"
    real._identity = identity
    await twin.connect()
    assert await content(real) == await content(twin)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(calls, max_size=12))
def test_any_sequence_of_calls_gives_the_same_answers_and_the_same_content(
    pair: Pair, sequence: list[tuple[str, Any]]
) -> None:
    pair.sequences += 1
    pair.real.keys = Keys(f"{pair.namespace}.{pair.sequences}", "t@1")  # a new, empty place
    pair.run(compare(pair.real, pair.identity, sequence))
