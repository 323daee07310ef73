"""`nearline resume` says what it did and what is next."""

from __future__ import annotations

from runtime.settings import Settings
from updater.resume import clear_halt
from viewers.memory_store import MemoryStore


async def test_a_cleared_halt_says_why_it_was_and_what_is_next() -> None:
    store = MemoryStore()
    await store.write_halt("too much poison: mend the producer")
    cleared = await clear_halt(Settings(kafka={"stream_epoch": 3}), store)
    assert await store.read_halt() is None
    lines = cleared.summary().splitlines()
    assert lines[0] == "playback@3: halt cleared: too much poison: mend the producer"
    assert [line.startswith("next: ") for line in lines] == [False, True, True, True]
    assert "start the updaters" in lines[2]


async def test_where_nothing_was_halted_the_settings_that_it_looked_with_are_told() -> None:
    cleared = await clear_halt(Settings(), MemoryStore())
    assert cleared.reason is None
    assert "NEARLINE_KAFKA__STREAM_EPOCH" in cleared.summary()
