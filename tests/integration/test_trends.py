"""Trends of now on a real Kafka and a real Valkey: another viewer's row moves within seconds, and nothing counts twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from contracts.errors import GenerationError, StoreUnavailable
from contracts.events import Kind
from contracts.shares import Share
from embeddings.generations_folder import GenerationsFolder
from embeddings.tables import FEATURES, Cowatch
from homepage.inspect import explain_viewer
from tests.consistency import CODEC, PARTITIONS, Stage
from tests.worlds import T0, make_generation, make_tables, play_event, wait_until, write_generation_folder
from trends.aggregator import Aggregator
from trends.checkpoints import counts_of
from trends.follow import take_up
from viewers.packing import unpack
from viewers.redis_store import RedisStore, open_store
from viewers.rewriter import NO_TRENDS, Rewriter
from viewers.state import Limits
from viewers.trend_store import Pointer

TITLES = 120
WEIGHTS = np.array([float(name == "trend_1d") for name in FEATURES])
QUIET = replace(
    make_tables(TITLES), trending=np.zeros((TITLES, 5), np.float32), cowatch=Cowatch.empty(TITLES), at_ms=T0
)
TABLES = replace(QUIET, weights=WEIGHTS)
"""Nothing was watched before T0, and rows are in the order of the day's trend."""
GENERATIONS = {name: make_generation(TITLES, 8, 1, generation_id=name).with_tables(TABLES) for name in ("g1", "g2")}


@pytest.fixture
async def stage(stage: Stage) -> Stage:
    stage.settings = stage.settings.model_copy(
        update={"trends": stage.settings.trends.model_copy(update={"interval_s": 0.2})}
    )
    publish(stage, "g1")
    await stage.store.announce_activation(1)
    return stage


def publish(stage: Stage, name: str) -> int:
    write_generation_folder(stage.settings.generations_path, GENERATIONS[name])
    return GenerationsFolder(stage.settings.generations_path).activate(name, floor=0).activation


class Crash(BaseException):
    """The process ends here."""


@contextlib.asynccontextmanager
async def aggregator(
    stage: Stage,
    instance: str = "a",
    wire: Callable[[RedisStore], None] = lambda store: None,
    *,
    for_candidate: bool = False,
) -> AsyncIterator[Aggregator]:
    """An aggregator running beside the test; stopped cleanly at the end, if it has not crashed. `wire`: what happens to its store."""
    store = open_store(stage.settings.store, stage.settings.keys)
    wire(store)
    made = Aggregator(stage.settings, store, CODEC, instance=instance, for_candidate=for_candidate)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        made.stop()
        with contextlib.suppress(Crash):
            await asyncio.wait_for(task, 30)
        await store.close()


async def counted(stage: Stage, generation_id: str = "g1") -> Counter[int]:
    """Row → plays, as the checkpoints of all partitions have it."""
    found: Counter[int] = Counter()
    for partition in range(PARTITIONS):
        next_offset, fields = await stage.store.trends.read_checkpoint(generation_id, partition)
        if next_offset is not None:
            for row, sums in counts_of(next_offset, fields, "here").sums.items():
                found[row] += int(sums[0])
    return found


def truth(stage: Stage, generation_id: str = "g1") -> Counter[int]:
    """The same from what was sent: each public, finished play of a known title once."""
    index = GENERATIONS[generation_id].index
    plays = {
        (event.viewer, event.play_id, event.item_id)
        for event in stage.sent
        if not event.private and event.kind is Kind.COMPLETE and event.item_id in index
    }
    return Counter(index[item] for *_, item in plays if item is not None)


async def until_counted(stage: Stage, generation_id: str = "g1") -> None:
    async def done() -> bool:
        ends = await stage.ends()
        reached = [
            (await stage.store.trends.read_checkpoint(generation_id, tp.partition))[0] == end
            for tp, end in ends.items()
        ]
        return all(reached)

    await wait_until(done, "everything counted")
    assert await counted(stage, generation_id) == truth(stage, generation_id)


def evening(n: int, *, start: int = 1) -> list[object]:
    """Plays of twenty viewers: some private, some of titles that there are not, some twice."""
    made = [play_event(f"v{i % 20}", (i * i) % (TITLES + 9), start + i, private=i % 9 == 4) for i in range(n)]
    return [*made, *made[::3]]


async def test_what_many_watch_leads_everybody_elses_row_within_seconds(stage: Stage) -> None:
    async with stage.updater() as updater, aggregator(stage):
        await stage.send([play_event(f"v{i}", 77, 10 + i) for i in range(30)])
        await wait_until(lambda: updater.swap.rewriter.trends_snapshot != NO_TRENDS, "a snapshot is taken up")

        async def leads() -> bool:
            await stage.send([play_event("somebody", 5, 100)])
            stored = await stage.store.read_viewer("somebody")
            return bool(stored.row) and CODEC.decode_row(stored.row).entries[0].item_id == "tt0000077"

        async def default_leads() -> bool:
            rows = await stage.store.read_default_rows()
            return "*:*" in rows and CODEC.decode_row(rows["*:*"]).entries[0].item_id == "tt0000077"

        await wait_until(default_leads, "the default row follows")
        await stage.send([play_event("somebody", 6, 101)])
        await wait_until(leads, "the row follows")
        await assert_rows_follow(stage)
    told = (await explain_viewer(stage.settings, stage.store, CODEC, "somebody")).data
    assert (told["stored_row_is_recomputed_row"], told["trends_snapshot_kept"]) == (True, True)
    await stage.store._command("DEL", stage.store.keys.trends_snapshot(told["trends_snapshot"]))
    view = await explain_viewer(stage.settings, stage.store, CODEC, "somebody")
    assert (view.data["stored_row_is_recomputed_row"], view.data["trends_snapshot_kept"]) == (False, False)
    assert "not kept any more" in view.title


async def assert_rows_follow(stage: Stage) -> None:
    """I2: every row is what the rewrite gives for its state, its generation and its snapshot."""
    named = set()
    async for batch in stage.store.scan_viewers():
        for viewer in batch:
            stored = await stage.store.read_viewer(viewer)
            row = CODEC.decode_row(stored.row)
            generation = GENERATIONS[row.generation_id]
            assert generation.tables is not None
            rewriter = Rewriter(
                generation, row.activation, CODEC.encode_row, Limits(**stage.settings.state.model_dump())
            )
            if row.trends_snapshot != NO_TRENDS:
                data = await stage.store.trends.read_snapshot(row.trends_snapshot)
                rewriter = take_up(rewriter, data, row.trends_snapshot).rewriter
            again = rewriter.rewrite(
                unpack(stored.state), computed_at_ms=row.computed_at_ms, event_time_ms=row.event_time_ms
            )
            assert again.row_bytes == stored.row, viewer
            named.add(row.trends_snapshot)
    assert named - {NO_TRENDS}


POINTS = ("before the checkpoint", "after the checkpoint", "before the snapshot", "after the snapshot")


@pytest.mark.parametrize("point", POINTS)
async def test_an_aggregator_that_dies_between_two_effects_leaves_nothing_counted_twice(
    stage: Stage, point: str
) -> None:
    def wire(store: RedisStore) -> None:
        name = "write_checkpoints" if "checkpoint" in point else "publish"
        act, calls = getattr(store.trends, name), 0

        async def acts(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            if calls == 3 and "before" in point:
                died.set()
                raise Crash
            answer = await act(*arguments)
            if calls == 3:
                died.set()
                raise Crash
            return answer

        setattr(store.trends, name, acts)

    died = asyncio.Event()
    await stage.send(evening(150))
    async with aggregator(stage, wire=wire) as dying:
        await wait_until(lambda: dying.figures.counting, "it counts")
        await stage.send(evening(150, start=200))
        await stage.send(evening(50, start=100))  # the same plays once more
        await wait_until(died.is_set, "its end")
    async with aggregator(stage):
        await until_counted(stage)


async def test_a_store_that_lost_or_fell_back_is_counted_for_again(stage: Stage) -> None:
    async with aggregator(stage):
        await stage.send(evening(200))
        await until_counted(stage)
        key = stage.store.keys.trends_checkpoint("g1", 0)
        older = await stage.store._command("DUMP", key)
        await stage.send(evening(100, start=300))
        await until_counted(stage)
        await stage.store._command("RESTORE", key, 0, older, "REPLACE")
        await stage.store._command("DEL", stage.store.keys.trends_checkpoint("g1", 1))
        await stage.send(evening(60, start=500))
        await until_counted(stage)


async def test_a_second_one_stands_by_and_goes_on_where_the_first_has_stopped(stage: Stage) -> None:
    await stage.send(evening(100))
    async with aggregator(stage, "a") as first:
        await wait_until(lambda: first.figures.counting, "the first counts")
        async with aggregator(stage, "b") as second:
            await wait_until(lambda: second.figures.standing_by, "the second stands by")
            await stage.send(evening(100, start=200))
            await until_counted(stage)
            assert not second.figures.counting
            first.stop()
            await wait_until(lambda: second.figures.counting, "the second counts")
            await stage.send(evening(100, start=400))
            await until_counted(stage)


async def test_another_generation_is_counted_for_from_its_own_cut_off_and_a_rollback_goes_on(stage: Stage) -> None:
    async with stage.updater() as updater, aggregator(stage):
        await stage.send(evening(100))
        await until_counted(stage)
        activation = publish(stage, "g2")
        await wait_until(lambda: updater.swap.rewriter.activation == activation, "the swap")
        await until_counted(stage, "g2")
        await wait_until(lambda: updater.swap.rewriter.trends_snapshot != NO_TRENDS, "its snapshot")
        await stage.send(evening(50, start=200))
        await until_counted(stage, "g2")
        GenerationsFolder(stage.settings.generations_path).activate("g1", floor=0)
        await until_counted(stage, "g1")
        await stage.drained(len(stage.sent))
        await assert_rows_follow(stage)


async def test_during_a_share_both_arms_have_trends_of_now_and_default_rows_are_of_what_is_in_force(
    stage: Stage,
) -> None:
    write_generation_folder(stage.settings.generations_path, GENERATIONS["g2"])
    half = Share("g2", 50)
    async with stage.updater() as updater, aggregator(stage), aggregator(stage, for_candidate=True) as beside:
        await stage.send(evening(100))
        await until_counted(stage)
        assert not beside.figures.counting
        current = GenerationsFolder(stage.settings.generations_path).share(half, floor=0)
        await wait_until(lambda: updater.swap.share == half, "the share is taken up")
        await until_counted(stage, "g2")
        arms = updater.swap._all
        await wait_until(lambda: all(one.rewriter.trends_snapshot != NO_TRENDS for one in arms), "both snapshots")
        await stage.send(evening(50, start=200))
        await stage.drained(len(stage.sent))
        await assert_rows_follow(stage)
        rows = [CODEC.decode_row(await stage.store.read_row(f"v{i}")) for i in range(20)]
        made_by = {(row.generation_id, row.trends_snapshot != NO_TRENDS) for row in rows if row.activation == 2}
        assert made_by == {("g1", True), ("g2", True)}
        assert all(row.generation_id == current.of_viewer(f"v{i}") for i, row in enumerate(rows) if row.activation == 2)

        async def default_row_is_of() -> bool:
            row = CODEC.decode_row((await stage.store.read_default_rows())["*:*"])
            return (row.generation_id, row.activation) == ("g1", 2)

        await wait_until(default_row_is_of, "default rows")
        GenerationsFolder(stage.settings.generations_path).activate("g1", floor=0, ends_share=True)
        await wait_until(lambda: not beside.figures.counting, "nobody counts for it any more")
        await wait_until(lambda: updater.swap.share is None, "the end of the share")
        await until_counted(stage, "g1")


async def test_a_generations_folder_that_cannot_be_listed_is_waited_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = []

    def fails_once(folder: GenerationsFolder) -> list[Any]:
        if not faults:
            faults.append(folder)
            raise GenerationError("cannot be listed")
        return []

    monkeypatch.setattr(GenerationsFolder, "list", fails_once)
    await stage.send(evening(20))
    async with aggregator(stage):
        await until_counted(stage)
    assert faults


async def test_the_same_generation_put_in_force_again_starts_from_its_own_trends(stage: Stage) -> None:
    """What was replaced by a snapshot is not the generation's own."""
    async with stage.updater() as updater, aggregator(stage):
        await stage.send([play_event(f"v{i}", 77, 10 + i) for i in range(30)])
        await wait_until(lambda: updater.swap.rewriter.trends_snapshot != NO_TRENDS, "a snapshot is taken up")
        activation = GenerationsFolder(stage.settings.generations_path).activate("g1", floor=0).activation
        await wait_until(lambda: updater.swap.rewriter.activation == activation, "the new activation")
        await wait_until(lambda: updater.swap.rewriter.trends_snapshot != NO_TRENDS, "its snapshot")
        await stage.send([play_event(f"v{i}", 7, 100 + i) for i in range(30)])
        await stage.drained(len(stage.sent))
        await assert_rows_follow(stage)


async def test_a_bad_snapshot_is_refused_and_the_generations_own_trends_serve(stage: Stage) -> None:
    async with stage.updater() as updater:
        follower = updater.swap.trends
        async with aggregator(stage):
            await stage.send(evening(20))
            await wait_until(lambda: follower.in_force is not None, "a snapshot is taken up")
        taken_up = follower.in_force
        assert taken_up is not None
        bad = Pointer("whatever", taken_up.at_ms)
        trends = stage.store.trends
        assert await trends.hold("a", 60_000)
        await trends.publish("g1", "a", bad, b"not a snapshot")
        await wait_until(lambda: follower.refused == 1, "the refusal")
        assert updater.swap.rewriter.trends_snapshot == NO_TRENDS
        await trends.publish("g1", "a", bad._replace(name=taken_up.name), taken_up.data)
        await wait_until(lambda: updater.swap.rewriter.trends_snapshot == taken_up.name, "a good one again")
        await stage.store._command("DEL", stage.store.keys.trends_snapshot(taken_up.name))

        async def is_back() -> bool:
            return await trends.read_snapshot(taken_up.name) == taken_up.data

        await wait_until(is_back, "what the store lost is written again")
        await stage.store._command("DEL", stage.store.keys.trends_pointer("g1"))
        await wait_until(lambda: follower.in_force is None, "silence")
        assert updater.swap.rewriter.trends_snapshot == NO_TRENDS


async def test_a_store_that_is_away_is_waited_for(stage: Stage) -> None:
    def wire(store: RedisStore) -> None:
        act, calls = store.trends.write_checkpoints, 0

        async def acts(*arguments: object) -> None:
            nonlocal calls
            calls += 1
            if calls in (2, 3):
                raise StoreUnavailable("away")
            await act(*arguments)  # type: ignore[arg-type]

        store.trends.write_checkpoints = acts  # type: ignore[method-assign]

    async with aggregator(stage, wire=wire):
        for start in (1, 200, 400):
            await stage.send(evening(80, start=start))
            await until_counted(stage)
