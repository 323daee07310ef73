"""The compare-and-set against its twin without a server: `tests/contract` does the same, and more, on a real one."""

from __future__ import annotations

import random

import fakeredis

from contracts import keys as fields
from contracts.keys import Keys
from viewers import scripts
from viewers.memory_store import MemoryStore
from viewers.store import Conflict, Freeze, FreezeDiffers, Rows, Stale, ViewerWrite, Written

KEYS = Keys("nl", "t@1")


def token(number: int) -> bytes:
    return b"%08d" % number


async def test_a_write_holds_or_says_what_is_there_as_its_twin_does() -> None:
    server, twin, rng = fakeredis.FakeRedis(), MemoryStore(), random.Random(1)
    write_viewer = server.register_script(scripts.WRITE_VIEWER.split("\n", 1)[1])  # the first line is the real server's
    await twin.connect()
    seen: set[type] = set()
    for step in range(500):
        if rng.random() < 0.05:
            activation = rng.randrange(4)
            await twin.announce_activation(activation)
            server.set(KEYS.activation, await twin.highest_activation())
        if rng.random() < 0.1:
            freeze = rng.choice((None, Freeze(step, "odd rows")))
            await twin.write_freeze(freeze)
            server.delete(KEYS.frozen) if freeze is None else server.set(KEYS.frozen, str(freeze))
        viewer = rng.choice(("ana", "ben"))
        stored = await twin.read_viewer(viewer)
        expected = rng.choice((stored.token, stored.token, b"", token(rng.randrange(step + 1))))
        new = rng.choice((token(step), token(step), stored.token or token(step)))
        rows = rng.choice((Rows.ALWAYS, Rows.ALWAYS, *Rows))
        content = b"s%d" % step, b"v%d" % step, b"r%d" % step
        write = ViewerWrite(viewer, expected, new, rng.randrange(1, 4), *content, rows)
        (told,) = await twin.write_viewers([write])
        key = KEYS.viewer(viewer)
        args = [expected, new, write.activation, *content, rows.value]
        reply = write_viewer(keys=[key, KEYS.activation, KEYS.frozen], args=args)
        now = await twin.read_viewer(viewer)
        control = now.token + str(now.activation).encode() if now.token else b""
        if isinstance(told, Written):
            assert reply == [1]
        elif isinstance(told, Stale):
            assert reply == [2, told.stored_activation]
        elif isinstance(told, FreezeDiffers):
            assert reply == [3]
        else:
            assert reply == [0, control, now.state]
        held = [server.hget(key, field) or b"" for field in (fields.CONTROL, fields.STATE, fields.VECTOR, fields.ROW)]
        assert held == [control, now.state, now.vector, now.row]
        seen.add(type(told))
    assert seen == {Written, Conflict, Stale, FreezeDiffers}
