"""One suite for what both stores keep of trends."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from annotated_types import Le

from contracts.errors import StoreChanged, StoreUnavailable
from contracts.keys import Keys
from runtime.settings import TrendsSettings
from sandbox.servers import ValkeyServer
from trends.checkpoints import RING
from trends.counting import FETCH_RECORDS, MOST_CHANGED
from viewers.redis_store import RedisStore
from viewers.redis_trends import FIELDS_AT_ONCE, ROWS_AT_ONCE, VECTORS_AT_ONCE
from viewers.store import Freeze, Store, ViewerWrite
from viewers.trend_store import CHECKPOINT_KEPT_S, SNAPSHOT_KEPT_S, CheckpointWrite, Pointer

MOST_NEW_ITEMS = next(one.le for one in TrendsSettings.model_fields["new_items"].metadata if isinstance(one, Le))


async def test_counts_and_offset_move_together_from_the_expected_offset_alone(stores: tuple[Store, Store]) -> None:
    mine, theirs = (store.trends for store in stores)
    assert await mine.read_checkpoint("g1", 0) == (None, {})
    await mine.write_checkpoints("g1", [CheckpointWrite(0, None, 10, {"h": b"\x00", "i3": b"three"})])
    await theirs.write_checkpoints("g1", [CheckpointWrite(0, 10, 12, {"h": b"\x01"})])
    assert await mine.read_checkpoint("g1", 0) == (12, {"h": b"\x01", "i3": b"three"})
    for expected in (None, 10, 13):
        with pytest.raises(StoreChanged, match="12"):
            await mine.write_checkpoints("g1", [CheckpointWrite(0, expected, 20, {"i3": b"lost"})])
    assert await mine.read_checkpoint("g1", 0) == (12, {"h": b"\x01", "i3": b"three"})


async def test_one_partition_that_moved_does_not_keep_the_others(stores: tuple[Store, Store]) -> None:
    trends = stores[0].trends
    with pytest.raises(StoreChanged):
        await trends.write_checkpoints("g1", [CheckpointWrite(0, 5, 6, {}), CheckpointWrite(1, None, 7, {"h": b"x"})])
    assert await trends.read_checkpoint("g1", 0) == (None, {})
    assert await trends.read_checkpoint("g1", 1) == (7, {"h": b"x"})
    assert await trends.read_checkpoint("g2", 1) == (None, {})


async def test_a_checkpoint_takes_as_many_fields_as_one_may_have_to_write(stores: tuple[Store, Store]) -> None:
    rows = (
        MOST_CHANGED - 1 + FETCH_RECORDS
    )  # looked at between two fetches, each of which may be of one partition and other titles
    rows += MOST_NEW_ITEMS  # and, of new titles, as many as may be left out at once
    fields = {f"i{row}": bytes(44) for row in range(rows)} | {f"r{slot}": bytes(8) for slot in range(RING)}
    fields |= {"h": bytes(40), "e": b""}
    await stores[0].trends.write_checkpoints("g1", [CheckpointWrite(0, None, 1, fields)])
    assert await stores[1].trends.read_checkpoint("g1", 0) == (1, fields)


async def test_a_large_checkpoint_is_read_whole_while_it_is_written(stores: tuple[Store, Store]) -> None:
    """In pieces, which must be of one moment."""
    mine, theirs = (store.trends for store in stores)
    titles, next_offset = 2 * FIELDS_AT_ONCE + 100, 1
    for start in range(0, titles, 1_000):
        fields = {f"i{row}": b"%d" % 0 for row in range(start, min(start + 1_000, titles))}
        await mine.write_checkpoints(
            "g1", [CheckpointWrite(0, next_offset if start else None, next_offset + 1, fields)]
        )
        next_offset += 1

    async def write() -> None:
        for at in range(next_offset, next_offset + 10):
            fields = {f"i{row}": b"%d" % at for row in (0, titles - 1, titles + at)}
            await theirs.write_checkpoints("g1", [CheckpointWrite(0, at, at + 1, fields)])
            await asyncio.sleep(0.01)

    writing = asyncio.create_task(write())
    while not writing.done():
        with contextlib.suppress(StoreUnavailable):  # written too fast: told, not mixed
            at, fields = await mine.read_checkpoint("g1", 0)
            assert at is not None
            assert len(fields) == titles + at - next_offset
            if at > next_offset:
                assert fields["i0"] == fields[f"i{titles - 1}"] == fields[f"i{titles + at - 1}"] == b"%d" % (at - 1)
        await asyncio.sleep(0)
    await writing


async def test_one_counts_and_alone_publishes(stores: tuple[Store, Store]) -> None:
    mine, theirs = (store.trends for store in stores)
    assert not await mine.publish("g1", "a", Pointer("n", 1), b"early")
    assert await mine.hold("a", 60_000)
    assert await mine.hold("a", 60_000)
    assert not await theirs.hold("b", 60_000)
    assert not await theirs.publish("g1", "b", Pointer("theirs", 2), b"2")
    assert await mine.publish("g1", "a", Pointer("mine", 1), b"\x00\xff")
    assert await theirs.read_pointer("g1") == Pointer("mine", 1)
    assert await theirs.read_pointer("g2") is None
    assert await theirs.read_snapshot("mine") == b"\x00\xff"
    assert await theirs.read_snapshot("nobody's") == b""


async def test_a_snapshot_in_use_is_written_again_where_it_was_lost(stores: tuple[Store, Store]) -> None:
    trends = stores[0].trends
    for _ in range(2):
        await trends.keep_snapshot("name", b"content")
        assert await trends.read_snapshot("name") == b"content"


async def test_default_rows_are_those_of_the_activation_in_force(stores: tuple[Store, Store]) -> None:
    store = stores[0]
    await store.write_default_rows({"*:*": b"of the rebuild", "*:12": b"12"})
    await store.announce_activation(4)
    for activation in (3, 5):
        assert not await store.trends.write_default_rows({"*:*": b"other"}, activation)
    rows = {"*:*": b"fresh"} | {f"GB:{age}": b"gb" for age in range(2 * ROWS_AT_ONCE)}
    assert await store.trends.write_default_rows(rows, 4)
    assert await store.read_default_rows() == {"*:12": b"12", **rows}
    await store.write_freeze(Freeze(1, ""))
    assert not await store.trends.write_default_rows({"*:*": b"of trends that are frozen out"}, 4)
    assert await store.read_default_rows() == {"*:12": b"12", **rows}


async def test_what_nobody_uses_any_more_expires(valkey: ValkeyServer, namespace: str) -> None:
    store = RedisStore(valkey.url, Keys(namespace, "t@1"))
    await store.connect()
    keys, trends = store.keys, store.trends
    await trends.hold("a", 60_000)
    await trends.publish("g1", "a", Pointer("n", 1), b"x")
    await trends.keep_snapshot("kept", b"x")
    await trends.write_checkpoints("g1", [CheckpointWrite(0, None, 1, {})])
    for key, most_s in (
        (keys.trends_snapshot("n"), SNAPSHOT_KEPT_S),
        (keys.trends_snapshot("kept"), SNAPSHOT_KEPT_S),
        (keys.trends_pointer("g1"), SNAPSHOT_KEPT_S),
        (keys.trends_owner, 60),
        (keys.trends_checkpoint("g1", 0), CHECKPOINT_KEPT_S),
    ):
        assert most_s - 30 <= await store._command("TTL", key) <= most_s, key
    assert await trends.hold("a", 1)  # gives it back
    await store.close()


@pytest.mark.parametrize("found", [b"", b"name", b"name:", b"name:soon", b"\xff:\xff", b":12"])
async def test_a_pointer_that_is_none_of_ours_points_nowhere(
    valkey: ValkeyServer, namespace: str, found: bytes
) -> None:
    """Whoever follows it looks for new generations in the same task."""
    store = RedisStore(valkey.url, Keys(namespace, "t@1"))
    await store.connect()
    await store._command("SET", store.keys.trends_pointer("g1"), found)
    assert await store.trends.read_pointer("g1") is None
    await store.close()


async def test_vectors_of_viewers_are_read_if_they_are_of_the_activation(stores: tuple[Store, Store]) -> None:
    mine, theirs = stores
    of = {"ana": (3, b"\x01\x02"), "old": (2, b"\x09\x09"), "erased": (3, b"")}
    for number, (viewer, (activation, vector)) in enumerate(of.items()):
        await theirs.write_viewers([ViewerWrite(viewer, b"", bytes([number] * 8), activation, b"s", vector, b"r")])
    asked = ["ana", "nobody", "old", "erased"] + ["ana"] * VECTORS_AT_ONCE
    found = await mine.trends.read_vectors(asked, 3)
    assert found == [b"\x01\x02", b"", b"", b""] + [b"\x01\x02"] * VECTORS_AT_ONCE
    assert await mine.trends.read_vectors([], 3) == []
