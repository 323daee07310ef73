"""The rebuild and its sweep beside updaters that go on writing, on the store's deterministic twin."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from batch.activation import Activator
from batch.rebuild import BATCH, MAX_SWEEPS, Rebuild
from contracts.catalogue import CatalogueItem
from contracts.codec import Codec
from contracts.errors import StoreUnavailable, UserError
from runtime.progress import SilentProgress
from runtime.settings import Settings
from runtime.worker import Worker
from tests.worlds import T0, make_generation, play_event, write_generation_folder
from viewers.default_rows import titles_by_territory
from viewers.kernel import Rewritten
from viewers.memory_store import MemoryServer, MemoryStore
from viewers.packing import pack, unpack
from viewers.rewrite import RewriteJob, rewrite_viewers
from viewers.rewriter import Rewriter
from viewers.state import EMPTY, Limits, ViewerState, state_of

CODEC, LIMITS = Codec.load(), Limits()
OLD, NEW = make_generation(40, 4), make_generation(40, 4, seed=2, generation_id="g2")
_tokens = itertools.count(1)
WORKER = Worker("rewrite")


def draw_token() -> bytes:
    return next(_tokens).to_bytes(8, "big")


def rewriter(activation: int) -> Rewriter:
    return Rewriter(NEW if activation > 1 else OLD, activation, CODEC.encode_row, LIMITS)


async def live(store: MemoryStore, viewers: Sequence[str], activation: int = 1, item: int = 1) -> None:
    """An updater's write: a play of each viewer."""
    jobs = [RewriteJob(v, state_of(play_event(v, item, 0), timestamp_ms=T0)) for v in viewers]
    await rewrite_viewers(store, jobs, rewriter(activation), now_ms=lambda: T0, draw_token=draw_token, worker=WORKER)


async def open_store(store: MemoryStore | None = None) -> MemoryStore:
    store = store or MemoryStore(MemoryServer())
    await store.connect()
    return store


def rebuild(store: MemoryStore, activation: int = 2, **options: object) -> Rebuild:
    return Rebuild(store, rewriter(activation), now_ms=lambda: T0 + 1000, draw_token=draw_token, **options)


def activations(store: MemoryStore) -> set[int]:
    return {one.activation for one in store.server.viewers.values()}


async def test_everybody_gets_a_row_of_the_new_generation_and_keeps_their_plays() -> None:
    store = await open_store()
    viewers = [f"v{n}" for n in range(2 * BATCH + 5)]
    await live(store, viewers)
    before = {viewer: one.state for viewer, one in store.server.viewers.items()}
    done = await rebuild(store).run()
    assert (done.viewers, done.rewritten, done.swept, done.sweeps) == (len(viewers), len(viewers), 0, 1)
    assert activations(store) == {2} and await store.read_rebuilt(2)
    assert {viewer: one.state for viewer, one in store.server.viewers.items()} == before
    row = CODEC.decode_row(store.server.viewers["v7"].row)
    assert (row.generation_id, row.activation, row.event_time_ms) == ("g2", 2, None)


async def test_a_second_rebuild_passes_over_who_has_it_already() -> None:
    store = await open_store()
    await live(store, ["ana", "bob"])
    await rebuild(store).run()
    rows = dict(store.server.viewers)
    assert (await rebuild(store).run()).rewritten == 0
    assert store.server.viewers == rows


async def test_facts_of_the_lake_are_merged_in_and_the_cut_offs_recorded() -> None:
    store = await open_store()
    await live(store, ["ana"])
    facts = [(v, state_of(play_event(v, 9, 5), timestamp_ms=T0 + 5000)) for v in ("ana", "zoe")]
    done = await rebuild(store).run(iter(facts), seeded={0: 17})
    assert await store.read_seeded() == {0: 17}
    plays = {v: [p.item_id[-2:] for p in unpack(one.state).plays] for v, one in store.server.viewers.items()}
    assert plays == {"ana": ["09", "01"], "zoe": ["09"]}
    assert done.rewritten == 2


async def test_a_rebuild_that_is_cancelled_ends_when_nobody_reads_the_lake_any_more() -> None:
    """Its caller gives back the lake's lock then."""
    reading, ended = threading.Event(), []

    def facts() -> Iterator[tuple[str, ViewerState]]:
        reading.set()
        threading.Event().wait(0.2)
        ended.append(True)
        yield "ana", EMPTY

    running = asyncio.create_task(rebuild(await open_store()).run(facts()))
    await asyncio.to_thread(reading.wait, 10)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert ended


async def test_what_the_reference_merges_is_not_done_on_the_event_loop() -> None:
    """A few ratings of viewers with full states take 50 ms."""
    store, threads = await open_store(), []

    class Watched(Rewriter):
        def rewrite_many(self, *arguments: object, **options: object) -> list[Rewritten | None]:
            threads.append(threading.get_ident())
            return super().rewrite_many(*arguments, **options)

    by = Watched(OLD, 1, CODEC.encode_row, LIMITS)
    facts, viewers = state_of(play_event("ana", 1, 0), timestamp_ms=T0), ("ana", "bob", "eve")
    for jobs in ([RewriteJob(v, packed=(pack(facts),)) for v in viewers], [RewriteJob(v, facts) for v in viewers]):
        await rewrite_viewers(store, jobs, by, now_ms=lambda: T0, draw_token=draw_token, worker=WORKER)
    assert [thread == threading.get_ident() for thread in threads] == [True, False]


async def test_default_rows_are_there_for_every_age_and_for_everybody() -> None:
    store = await open_store()
    await rebuild(store).run()
    rows = await store.read_default_rows()
    assert {"*:*", "*:0", "*:18"} <= rows.keys()
    assert CODEC.decode_row(rows["*:*"]).entries[0].source == "popular"


async def test_a_territory_has_default_rows_of_its_own_titles_only() -> None:
    store = await open_store()
    generation = rewriter(2).generation
    assert generation is not None
    ids = generation.item_ids
    items = [
        CatalogueItem(i, i, territories=("DE",) if n % 2 else ("FR", "DE") if n % 3 else ()) for n, i in enumerate(ids)
    ]
    await rebuild(store, territories=titles_by_territory(items)).run()
    rows = await store.read_default_rows()
    shown = [entry.item_id for entry in CODEC.decode_row(rows["FR:*"]).entries]
    assert shown
    assert all(not items[ids.index(i)].territories or "FR" in items[ids.index(i)].territories for i in shown)
    assert {"DE:*", "DE:6", "FR:0", "*:*"} <= rows.keys()


async def test_the_ledger_is_applied_to_everybody_who_is_rewritten() -> None:
    store = await open_store()
    await live(store, ["ana", "bob"])
    through = {"ana": T0 // 1000}
    await rebuild(store, erased_through_s=lambda viewer: through.get(viewer, -1)).run()
    assert unpack(store.server.viewers["ana"].state) == ViewerState(erased_through_s=T0 // 1000)
    assert store.server.viewers["ana"].row == b"" and store.server.viewers["bob"].row != b""


class LaggingUpdater(MemoryStore):
    """While it is scanned, an updater that has not swapped yet creates viewers with the old activation, a few times."""

    times = 2

    async def scan_viewers(self) -> AsyncIterator[list[str]]:
        async for viewers in super().scan_viewers():
            yield viewers
        if self.times:
            self.times -= 1
            await live(self, [f"newcomer{self.times}"])


async def test_the_sweep_finds_who_came_with_the_old_activation_meanwhile() -> None:
    store = await open_store(LaggingUpdater())
    await live(store, ["ana"])
    done = await rebuild(store).run()
    assert activations(store) == {2}
    assert (done.swept, done.sweeps) == (2, 3)


async def test_a_sweep_that_never_ends_says_so() -> None:
    store = await open_store(LaggingUpdater())
    store.times = MAX_SWEEPS + 5  # type: ignore[misc]
    await live(store, ["ana"])
    with pytest.raises(StoreUnavailable, match="cannot load the generation"):
        await rebuild(store).run()
    assert not await store.read_rebuilt(2)


async def test_a_newer_activation_stops_the_rebuild_and_nothing_is_recorded() -> None:
    store = await open_store()
    await live(store, ["ana"])
    await live(store, ["bob"], activation=3)
    with pytest.raises(UserError, match="activation 3 took over"):
        await rebuild(store).run()
    assert store.server.viewers["bob"].activation == 3
    assert not await store.read_rebuilt(2)


async def test_an_activation_waits_for_live_updaters_but_not_for_silent_ones(tmp_path: object) -> None:
    store = await open_store()
    now_ms = T0
    await store.report_updater("gone", 0, now_ms - 60_000)
    await store.report_updater("alive", 0, now_ms)
    write_generation_folder(str(tmp_path), NEW)
    asked = 0

    async def reports() -> dict[str, tuple[int, int]]:
        nonlocal asked
        asked += 1
        if asked == 3:
            await store.report_updater("alive", 5, now_ms)
        return dict(store.server.updaters)

    store.read_updaters = reports  # type: ignore[method-assign]
    await store.announce_activation(4)
    settings = Settings(generations_path=str(tmp_path))
    current = await Activator(settings, store, SilentProgress(), now_ms=lambda: now_ms).activate("g2", again=False)
    assert (current.activation, asked, await store.highest_activation()) == (5, 3, 5)
    again = await Activator(settings, store, SilentProgress(), now_ms=lambda: now_ms).activate("g2", again=False)
    assert again.activation == 5  # in force already: nobody is rebuilt for nothing


async def test_an_updater_that_stays_behind_does_not_hold_the_night_up_for_ever(tmp_path: object) -> None:
    store = await open_store()
    await store.report_updater("stuck", 0, T0)
    write_generation_folder(str(tmp_path), NEW)
    settings = Settings(generations_path=str(tmp_path))
    activator = Activator(settings, store, SilentProgress(), now_ms=lambda: T0, updaters_deadline_s=0)
    assert (await activator.activate("g2", again=False)).activation == 1
