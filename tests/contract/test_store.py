"""One suite that every store runs: the deterministic twin in memory, and the real server."""

from __future__ import annotations

import asyncio
import os

import pytest
from redis.asyncio import Connection

from contracts.anchors import Anchor
from contracts.errors import HaltError, StoreChanged, StoreUnavailable
from contracts.keys import Keys
from sandbox.servers import ValkeyServer
from viewers.memory_store import MemoryServer, MemoryStore
from viewers.redis_store import RedisStore
from viewers.store import (
    Conflict,
    Freeze,
    FreezeDiffers,
    Marker,
    MarkerWrite,
    Rows,
    Stale,
    Store,
    StoredViewer,
    Tally,
    ViewerWrite,
    Written,
)


@pytest.fixture
def store(stores: tuple[Store, Store]) -> Store:
    return stores[0]


def write(
    expected: bytes = b"", new: bytes = b"token--1", *, viewer: str = "ana", activation: int = 1, state: bytes = b"s1"
) -> ViewerWrite:
    return ViewerWrite(viewer, expected, new, activation, state, b"\x00v", b"r\xff")


async def test_an_absent_viewer_reads_as_empty(store: Store) -> None:
    assert await store.read_viewer("nobody") == StoredViewer()
    assert await store.read_viewers(["nobody", "no.one"]) == [StoredViewer(), StoredViewer()]
    assert await store.read_row("nobody") == await store.read_state("nobody") == b""


async def test_what_was_written_is_read(store: Store) -> None:
    assert await store.write_viewers([write()]) == [Written()]
    assert await store.read_viewer("ana") == StoredViewer(b"token--1", 1, b"s1", b"\x00v", b"r\xff")
    assert await store.read_viewers(["ana"]) == [StoredViewer(b"token--1", 1, b"s1")]
    assert (await store.read_row("ana"), await store.read_state("ana")) == (b"r\xff", b"s1")


async def test_a_write_on_another_token_changes_nothing_and_returns_what_is_there(stores: tuple[Store, Store]) -> None:
    one, two = stores
    await one.write_viewers([write()])
    assert await two.write_viewers([write(b"", b"token--2", state=b"s2")]) == [
        Conflict(StoredViewer(b"token--1", 1, b"s1"))
    ]
    assert await two.write_viewers([write(b"token--1", b"token--2", state=b"s2")]) == [Written()]
    assert (await one.read_viewer("ana")).state == b"s2"


async def test_a_repeated_write_holds_although_its_expected_token_is_gone(store: Store) -> None:
    await store.write_viewers([write()])
    assert await store.write_viewers([write()]) == [Written()]


async def test_a_late_repeat_of_an_older_write_does_not_win(store: Store) -> None:
    await store.write_viewers([write()])
    await store.write_viewers([write(b"token--1", b"token--2", state=b"s2")])
    assert isinstance((await store.write_viewers([write()]))[0], Conflict)
    assert (await store.read_viewer("ana")).state == b"s2"


async def test_a_write_expecting_a_viewer_that_is_gone_conflicts_with_nothing(store: Store) -> None:
    assert await store.write_viewers([write(b"token--0")]) == [Conflict(StoredViewer())]


async def test_an_older_activation_is_refused_and_named(store: Store) -> None:
    await store.write_viewers([write(activation=10)])
    assert await store.write_viewers([write(b"token--1", b"token--2", activation=9)]) == [Stale(10)]
    assert await store.write_viewers([write(b"token--1", b"token--2", activation=10)]) == [Written()]
    assert await store.write_viewers([write(b"token--2", b"token--3", activation=11)]) == [Written()]


async def test_a_new_viewer_is_refused_below_the_highest_activation_announced(store: Store) -> None:
    await store.announce_activation(10)
    assert await store.write_viewers([write(activation=9)]) == [Stale(10)]
    assert await store.read_viewer("ana") == StoredViewer()
    assert await store.write_viewers([write(activation=10)]) == [Written()]


async def test_each_viewer_of_a_batch_is_judged_alone(store: Store) -> None:
    await store.write_viewers([write()])
    results = await store.write_viewers([write(b"other---", b"token--2"), write(viewer="ben")])
    assert isinstance(results[0], Conflict)
    assert results[1] == Written()


async def test_a_marker_moves_only_from_where_its_writer_believes_it_to_be(stores: tuple[Store, Store]) -> None:
    one, two = stores
    await one.write_markers([MarkerWrite(0, None, 15, 5, Tally(applied=4, noop=3, private=1, dead=1, absent=1))])
    assert await two.read_marker(0) == Marker(15, 5, 4, 3, 1, 1, 1)
    await two.write_markers([MarkerWrite(0, 15, 17, 99, Tally(applied=2))])
    with pytest.raises(StoreChanged, match="rewinding"):
        await one.write_markers([MarkerWrite(0, 15, 16, 5, Tally(applied=1))])
    with pytest.raises(StoreChanged):
        await one.write_markers([MarkerWrite(0, None, 16, 5, Tally(applied=1))])
    found = await one.read_marker(0)
    assert found == Marker(17, 5, 6, 3, 1, 1, 1)
    assert found.unaccounted == 0


async def test_an_anchor_moves_with_its_marker_stays_when_none_is_given_and_not_at_all_when_refused(
    store: Store,
) -> None:
    first, second = Anchor(4, 1_700_000_000_000, "0a" * 16), Anchor(9, -1, "ff" * 16)
    await store.write_markers([MarkerWrite(0, None, 5, 0, Tally(applied=5), first)])
    await store.write_markers([MarkerWrite(0, 5, 6, 0, Tally(private=1))])
    assert await store.read_marker(0) == Marker(6, 0, applied=5, private=1, anchor=first)
    with pytest.raises(StoreChanged):
        await store.write_markers([MarkerWrite(0, 5, 10, 0, Tally(applied=5), second)])
    assert await store.read_marker(0) == Marker(6, 0, applied=5, private=1, anchor=first)
    await store.write_markers([MarkerWrite(0, 6, 10, 0, Tally(applied=4), second)])
    assert await store.read_markers([0, 1]) == {0: Marker(10, 0, applied=9, private=1, anchor=second), 1: None}


async def test_the_end_of_a_declared_gap_stays_until_a_newer_one_is_declared(store: Store) -> None:
    await store.write_markers([MarkerWrite(0, None, 7, 0, Tally(absent=7), gap_end=7)])
    await store.write_markers([MarkerWrite(0, 7, 9, 0, Tally(applied=2))])
    assert await store.read_marker(0) == Marker(9, 0, applied=2, absent=7, gap_end=7)
    await store.write_markers([MarkerWrite(0, 9, 20, 0, Tally(absent=11), gap_end=20)])
    assert await store.read_marker(0) == Marker(20, 0, applied=2, absent=18, gap_end=20)


async def test_a_marker_of_an_earlier_release_has_no_gap(valkey: ValkeyServer, namespace: str) -> None:
    store = RedisStore(valkey.url, Keys(namespace, "t@1"))
    await store.connect()
    await store.write_markers([MarkerWrite(0, None, 5, 0, Tally(applied=5))])
    await store._command("HDEL", store.keys.marker(0), "gap_end")
    assert await store.read_marker(0) == Marker(5, 0, applied=5)
    await store.close()


async def test_a_marker_that_cannot_be_read_halts_and_says_which(valkey: ValkeyServer, namespace: str) -> None:
    store = RedisStore(valkey.url, Keys(namespace, "t@1"))
    await store.connect()
    await store.write_markers([MarkerWrite(0, None, 5, 0, Tally(applied=5))])
    await store._command("HSET", store.keys.marker(0), "anchor", "5 of them")
    with pytest.raises(HaltError, match="marker:t@1:0"):
        await store.read_marker(0)
    await store.close()


async def test_markers_beside_a_refused_one_still_move(store: Store) -> None:
    with pytest.raises(StoreChanged):
        await store.write_markers(
            [MarkerWrite(0, 3, 4, 0, Tally(applied=1)), MarkerWrite(1, None, 4, 0, Tally(applied=4))]
        )
    assert await store.read_marker(0) is None
    assert await store.read_marker(1) == Marker(4, 0, applied=4)


async def test_offsets_past_53_bits_do_not_matter_but_large_counters_stay_exact(store: Store) -> None:
    big = 4_000_000_000_123
    await store.write_markers([MarkerWrite(0, None, big, 0, Tally(applied=big))])
    await store.write_markers([MarkerWrite(0, big, big + 1, 0, Tally(noop=1))])
    found = await store.read_marker(0)
    assert found is not None
    assert (found.applied, found.noop, found.unaccounted) == (big, 1, 0)


async def test_scanning_finds_every_viewer_and_nothing_else(store: Store) -> None:
    await store.write_viewers(
        [
            write(viewer=f"viewer.{i}|x", new=os.urandom(8))
            for i in range(2_500 if isinstance(store, RedisStore) else 50)
        ]
    )
    await store.write_markers([MarkerWrite(0, None, 1, 0, Tally(applied=1))])
    found = [viewer async for batch in store.scan_viewers() for viewer in batch]
    assert set(found) == {f"viewer.{i}|x" for i in range(2_500 if isinstance(store, RedisStore) else 50)}


def kept(expected: bytes, new: bytes, state: bytes, rows: Rows = Rows.KEEP, viewer: str = "ana") -> ViewerWrite:
    return ViewerWrite(viewer, expected, new, 0, state, b"", b"", rows)


async def test_while_frozen_a_play_changes_the_state_alone_and_the_row_stays_with_its_activation(
    stores: tuple[Store, Store],
) -> None:
    store, operator = stores
    await store.write_viewers([write(activation=7)])
    await operator.write_freeze(Freeze(12, "odd rows"))
    assert await store.read_freeze() == Freeze(12, "odd rows")
    follow = write(b"token--1", b"token--2", activation=7, state=b"s2")._replace(rows=Rows.FOLLOW)
    assert await store.write_viewers([follow]) == [FreezeDiffers()]
    assert await store.write_viewers([kept(b"token--1", b"token--2", b"s2")]) == [Written()]
    assert await store.read_viewer("ana") == StoredViewer(b"token--2", 7, b"s2", b"\x00v", b"r\xff")
    assert await store.write_viewers([kept(b"token--1", b"token--3", b"s3")]) == [
        Conflict(StoredViewer(b"token--2", 7, b"s2"))
    ]
    assert await store.write_viewers([kept(b"token--2", b"token--3", b"s3", Rows.EMPTY)]) == [Written()]
    assert await store.read_viewer("ana") == StoredViewer(b"token--3", 7, b"s3")
    asked = write(b"token--3", b"token--4", activation=8, state=b"s4")
    assert await store.write_viewers([asked]) == [Written()]  # what a night or a person asks for
    await operator.write_freeze(None)
    assert await store.write_viewers([kept(b"token--4", b"token--5", b"s5")]) == [FreezeDiffers()]
    assert await store.write_viewers([kept(b"token--3", b"token--4", b"s4")]) == [
        Written()
    ]  # an earlier try had succeeded
    follow = write(b"token--4", b"token--5", activation=8, state=b"s5")._replace(rows=Rows.FOLLOW)
    assert await store.write_viewers([follow]) == [Written()]


async def test_a_viewer_who_is_new_while_frozen_has_no_row_and_is_behind_every_activation(
    store: Store,
) -> None:
    await store.announce_activation(41)
    await store.write_freeze(Freeze(1, ""))
    assert await store.write_viewers([kept(b"", b"token--1", b"s1")]) == [Written()]
    assert await store.read_viewer("ana") == StoredViewer(b"token--1", 0, b"s1")
    assert await store.write_viewers([kept(b"token--9", b"token--2", b"s1", viewer="ben")]) == [
        Conflict(StoredViewer())
    ]


async def test_whatever_is_there_freezes(valkey: ValkeyServer, namespace: str) -> None:
    store = RedisStore(valkey.url, Keys(namespace, "t@1"))
    await store.connect()
    for text, found in (("yes", Freeze(0, "yes")), ("", Freeze(0, "")), ("12:a:b", Freeze(12, "a:b"))):
        await store._command("SET", store.keys.frozen, text)
        assert await store.read_freeze() == found
        assert await store.write_viewers([write()._replace(rows=Rows.FOLLOW)]) == [FreezeDiffers()]
    await store.close()


async def test_the_highest_activation_only_grows(store: Store) -> None:
    assert await store.highest_activation() == 0
    await store.announce_activation(12)
    await store.announce_activation(9)
    assert await store.highest_activation() == 12


async def test_halts_updaters_rebuilds_seeds_and_default_rows_are_kept(stores: tuple[Store, Store]) -> None:
    one, two = stores
    assert await two.read_halt() is None
    await one.write_halt("too much poison")
    assert await two.read_halt() == "too much poison"
    await one.write_halt(None)
    assert await two.read_halt() is None
    await one.report_updater("u1", 3, 1_700_000_000_000)
    assert await two.read_updaters() == {"u1": (3, 1_700_000_000_000)}
    await one.remove_updater("u1")
    assert await two.read_updaters() == {}
    assert not await two.read_rebuilt(3)
    await one.write_rebuilt(3)
    assert await two.read_rebuilt(3)
    await one.write_seeded({0: 10, 1: 20})
    assert await two.read_seeded() == {0: 10, 1: 20}
    await one.write_default_rows({"*:*": b"a", "DE:0": b"b"})
    await one.write_default_rows({"*:*": b"c"})
    assert await two.read_default_rows() == {"*:*": b"c"}


async def test_a_restarted_memory_server_is_noticed_before_anything_is_passed() -> None:
    server = MemoryServer()
    store = MemoryStore(server)
    await store.connect()
    await store.write_viewers([write()])
    old = server.snapshot()
    await store.write_markers([MarkerWrite(0, None, 5, 0, Tally(applied=5))])
    server.restart(old)
    with pytest.raises(StoreChanged):
        await store.write_markers([MarkerWrite(0, 5, 6, 0, Tally(applied=1))])
    with pytest.raises(StoreChanged):
        await store.write_seeded({0: 5})
    with pytest.raises(StoreChanged):
        await store.write_rebuilt(1)
    await store.connect()
    assert await store.read_marker(0) is None
    assert await store.read_seeded() == {}
    assert not await store.read_rebuilt(1)


async def test_a_restarted_valkey_is_noticed_by_reads_writes_and_markers(
    fresh_valkey: ValkeyServer, namespace: str
) -> None:
    store = RedisStore(fresh_valkey.url, Keys(namespace, "t@1"))
    await store.connect()
    await store.write_viewers([write()])
    fresh_valkey.stop()
    with pytest.raises(StoreUnavailable, match="store 127"):
        await store.read_viewers(["ana"])
    fresh_valkey.start()
    with pytest.raises(StoreChanged):
        await store.check_identity()
    with pytest.raises(StoreChanged):
        await store.write_viewers([write(b"token--1", b"token--2")])
    with pytest.raises(StoreChanged):
        await store.write_markers([MarkerWrite(0, None, 5, 0, Tally(applied=5))])
    assert await store.connect()
    after_restart, store._identity = store._identity, "another:server"
    for record in (lambda: store.write_seeded({0: 5}), lambda: store.write_rebuilt(1), store.read_seeded):
        with pytest.raises(StoreChanged):
            await record()
    store._identity = after_restart
    assert await store.read_seeded() == {}
    assert not await store.read_rebuilt(1)
    assert (await store.read_viewers(["ana"]))[0].state == b"s1"
    await store.close()


async def test_a_full_valkey_refuses_before_the_first_write_and_says_so(
    fresh_valkey: ValkeyServer, namespace: str
) -> None:
    store = RedisStore(fresh_valkey.url, Keys(namespace, "t@1"))
    await store.connect()
    await store.write_viewers([write()])
    await store._command("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(StoreUnavailable, match="refuses"):
        await store.write_viewers([write(b"token--1", b"token--2", state=b"s2")])
    await store._command("CONFIG", "SET", "maxmemory", "0")
    assert (await store.read_viewer("ana")).state == b"s1"
    await store.close()


async def test_a_connection_that_the_system_gives_up_is_no_answer(
    valkey: ValkeyServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisStore(valkey.url, Keys(namespace, "t@1"))
    await store.connect()

    async def give_up(connection: Connection, command: object, check_health: bool = True) -> None:
        transport = connection._writer.transport
        asyncio.get_running_loop().call_later(0.02, transport._fatal_error, TimeoutError(110, "Connection timed out"))

    with monkeypatch.context() as broken:
        broken.setattr(Connection, "send_packed_command", give_up)
        for call in (store.write_markers([MarkerWrite(0, None, 1, 0, Tally(applied=1))]), store.check_identity()):
            with pytest.raises(StoreUnavailable):
                await call
    assert await store.read_marker(0) is None
    await store.close()


async def test_a_rows_trace_is_found_by_the_row_alone(stores: tuple[Store, Store]) -> None:
    one, other = stores
    await one.write_traces({})
    await one.write_traces({"r1": "00-a-b-01", "r2": "00-c-d-01"})
    assert (await other.read_trace("r1"), await other.read_trace("r2")) == ("00-a-b-01", "00-c-d-01")
    assert await other.read_trace("r3") is None


async def test_default_rows_that_could_not_be_written_are_told(valkey: ValkeyServer, namespace: str) -> None:
    store = RedisStore(valkey.url, Keys(namespace, "t@1"))
    await store.connect()
    with pytest.raises(StoreUnavailable, match="wrong number of arguments"):
        await store._pipeline([("HSET", "x")])
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await store._transaction([("SET", f"{namespace}:x", "1"), ("HSET", f"{namespace}:x", "f", "v")])
    await store.close()


async def test_a_hung_valkey_costs_no_more_than_the_deadline(fresh_valkey: ValkeyServer, namespace: str) -> None:
    store = RedisStore(fresh_valkey.url, Keys(namespace, "t@1"), command_timeout_s=0.3)
    await store.connect()
    fresh_valkey.pause()
    try:
        with pytest.raises(StoreUnavailable):
            await store.write_viewers([write()])
    finally:
        fresh_valkey.resume()
    await store.connect()
    await store.close()
