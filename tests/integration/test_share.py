"""A share of the viewers on a candidate, on a real Kafka and a real store: everybody's row is of their own arm, whatever happens to it."""

from __future__ import annotations

import asyncio
from functools import partial

import httpx
import pytest

from batch.activation import Activator, activate, share, stop_share
from batch.freeze import freeze, unfreeze
from contracts.current import Current
from contracts.events import Kind
from contracts.shares import Share
from embeddings.generations_folder import GenerationsFolder
from runtime.progress import SilentProgress
from tests.consistency import CODEC, GENERATIONS, Stage, plays, publish
from tests.unit.test_state import oracle
from tests.worlds import T0, make_generation, play_event, wait_until, write_generation_folder
from updater.consumer import Updater
from updater.service import Watch, make_app
from viewers.arms import Arms
from viewers.packing import unpack
from viewers.rewriter import Rewriter
from viewers.state import Limits
from viewers.store import StoredViewer

VIEWERS = 12
HALF = Share("g2", 50.0)
QUIET = {"progress": SilentProgress()}


async def generations(stage: Stage, viewers: int = VIEWERS) -> set[str]:
    rows = [await stage.store.read_row(f"v{i}") for i in range(viewers)]
    return {CODEC.decode_row(row).generation_id for row in rows}


def rows_written(updater: Updater) -> dict[str, float]:
    return {arm: updater.metrics.rows.labels(arm)._value.get() for arm in ("in_force", "candidate")}


async def test_a_share_begins_changes_and_stops_in_mid_stream_and_every_row_is_of_its_arm(stage: Stage) -> None:
    publish(stage, "g1")
    write_generation_folder(stage.settings.generations_path, GENERATIONS["g2"])
    assert {HALF.holds(f"v{i}") for i in range(VIEWERS)} == {True, False}
    start, steps = (
        0,
        (
            partial(share, generation_id="g2", percent=50.0),
            partial(share, generation_id=None, percent=90.0),
            partial(share, generation_id=None, percent=50.0),
            stop_share,
            partial(share, generation_id="g2", percent=50.0),
        ),
    )
    async with stage.updater() as updater, stage.updater():
        for step in steps:
            await stage.send(plays(VIEWERS, 60, start=start))
            done = await step(stage.settings, stage.store, **QUIET)
            await stage.send(plays(VIEWERS, 60, start=start + 60))
            start += 120
            await stage.drained(start)
            await stage.assert_consistent()
            assert await generations(stage) == ({"g1"} if done.share is None else {"g1", "g2"})
        assert rows_written(updater)["candidate"] > 0
        watch = Watch(updater)
        watch.look()
        told = httpx.ASGITransport(make_app(updater, watch))
        async with httpx.AsyncClient(transport=told, base_url="http://updater") as client:
            assert (await client.get("/health/ready")).json()["share"] == {"generation_id": "g2", "percent": 50.0}
            assert "nearline_share_percent 50.0" in (await client.get("/metrics")).text
        await activate(stage.settings, stage.store, "g2", **QUIET)
        await stage.send(plays(VIEWERS, 60, start=start))
        await stage.drained(start + 60)
        assert updater.swap.share is None
    await stage.assert_consistent("g2")
    await stage.assert_accounted()


async def test_an_updater_that_starts_during_a_share_serves_both_arms(stage: Stage) -> None:
    publish(stage, "g1")
    write_generation_folder(stage.settings.generations_path, GENERATIONS["g2"])
    await share(stage.settings, stage.store, "g2", 50.0, **QUIET)
    await stage.send(plays(VIEWERS, 120))
    async with stage.updater() as updater:
        await stage.drained(120)
        written = rows_written(updater)
    assert await generations(stage) == {"g1", "g2"} and min(written.values()) > 0
    await stage.assert_consistent()


async def test_rows_that_are_frozen_during_a_share_stand_still_and_the_share_goes_on_afterwards(stage: Stage) -> None:
    publish(stage, "g1")
    write_generation_folder(stage.settings.generations_path, GENERATIONS["g2"])
    async with stage.updater():
        await stage.send(plays(VIEWERS, 120))
        await stage.drained(120)
        await share(stage.settings, stage.store, "g2", 50.0, **QUIET)
        await freeze(stage.store, "odd rows", now_ms=T0)
        before = [await stage.store.read_row(f"v{i}") for i in range(VIEWERS)]
        await stage.send(plays(VIEWERS, 60, start=120))
        await stage.drained(180)
        assert [await stage.store.read_row(f"v{i}") for i in range(VIEWERS)] == before
        back = await unfreeze(stage.settings, stage.store, **QUIET)
        assert back.activation == 3
        assert GenerationsFolder(stage.settings.generations_path).read_current().share == HALF
    await stage.assert_consistent()


async def test_a_candidate_that_cannot_be_loaded_is_refused_and_what_was_in_force_goes_on(stage: Stage) -> None:
    publish(stage, "g1")
    write_generation_folder(stage.settings.generations_path, GENERATIONS["g2"])
    folder = GenerationsFolder(stage.settings.generations_path)
    async with stage.updater() as updater:
        await stage.send(plays(VIEWERS, 60))
        await stage.drained(60)
        await stage.assert_consistent()
        factors = folder.root.local / "g2" / "item_factors.npy"
        whole = factors.read_bytes()
        factors.write_bytes(whole[:-1])
        folder._write_current(Current("g1", 2, None, HALF))
        await wait_until(lambda: updater.swap.refusals, "the refusal")
        await stage.send(plays(VIEWERS, 60, start=60))
        await stage.drained(120)
        assert updater.swap.rewriter.activation == 1 and await generations(stage) == {"g1"}
        factors.write_bytes(whole)
        await stop_share(stage.settings, stage.store, **QUIET)
        await stage.send(plays(VIEWERS, 60, start=120))
        await stage.drained(180)
    await stage.assert_consistent()


def in_share(viewers: int = VIEWERS) -> set[str]:
    return {f"v{i}" for i in range(viewers) if HALF.holds(f"v{i}")}


async def assert_rows_stand_still(stage: Stage, before: dict[str, StoredViewer]) -> None:
    """Whoever the generation in force is for has a row of their state; the candidate's viewers have the rows they had, and states that
    hold what they played since."""
    limits = Limits(**stage.settings.state.model_dump())
    for viewer, had in before.items():
        stored = await stage.store.read_viewer(viewer)
        state = unpack(stored.state)
        assert state == oracle([one for one in stage.sent if one.viewer == viewer and not one.private], limits)
        if viewer in in_share():
            assert (stored.row, stored.vector, stored.activation) == (had.row, had.vector, had.activation), viewer
            assert stored.state != had.state
            continue
        row = CODEC.decode_row(stored.row)
        again = Rewriter(GENERATIONS["g1"], stored.activation, CODEC.encode_row, limits).rewrite(
            state, computed_at_ms=row.computed_at_ms, event_time_ms=row.event_time_ms
        )
        assert (row.activation, again.row_bytes, again.vector_bytes) == (had.activation, stored.row, stored.vector)


async def read_all(stage: Stage) -> dict[str, StoredViewer]:
    return {f"v{i}": await stage.store.read_viewer(f"v{i}") for i in range(VIEWERS)}


async def test_an_updater_that_starts_beside_a_damaged_candidate_serves_the_others_and_keeps_its_viewers_rows(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another arm's row would be worse than one that stands still: an updater that has the candidate writes its rows meanwhile."""
    monkeypatch.setattr("updater.swap.REFUSED_AGAIN_POLLS", 2)
    publish(stage, "g1")
    write_generation_folder(stage.settings.generations_path, GENERATIONS["g2"])
    await share(stage.settings, stage.store, "g2", 50.0, **QUIET)
    async with stage.updater():
        await stage.send(plays(VIEWERS, 120))
        await stage.drained(120)
    await stage.assert_consistent()
    before = await read_all(stage)
    factors = GenerationsFolder(stage.settings.generations_path).root.local / "g2" / "item_factors.npy"
    whole = factors.read_bytes()
    factors.write_bytes(whole[:-1])
    async with stage.updater() as updater, stage.updater():
        await stage.send(plays(VIEWERS, 60, start=120))
        await stage.drained(180)
        await assert_rows_stand_still(stage, before)
        assert rows_written(updater)["candidate"] == 0 and updater.swap.refusals == 1
        watch = Watch(updater)
        watch.look()
        told = httpx.ASGITransport(make_app(updater, watch))
        async with httpx.AsyncClient(transport=told, base_url="http://updater") as client:
            ready = (await client.get("/health/ready")).json()
            assert ready["ready"] and "item_factors.npy" in ready["candidate_refused"]
            assert "nearline_candidate_refused 1.0" in (await client.get("/metrics")).text
        new, gone = (next(v for v in names if HALF.holds(v)) for names in (map("w{}".format, range(99)), before))
        await stage.send([play_event(new, 3, 180), play_event(gone, 0, 181, kind=Kind.ERASE)])
        await stage.drained(182)
        for viewer in (new, gone):  # one has had no row yet, the other must not have one any more
            stored = await stage.store.read_viewer(viewer)
            assert (stored.row, stored.vector) == (b"", b"") and stored.state
        factors.write_bytes(whole)
        await wait_until(lambda: updater.swap.candidate_refused is None, "the candidate")
        await stage.send([play_event(new, 4, 182)])
        await stage.drained(183)
        assert CODEC.decode_row(await stage.store.read_row(new)).generation_id == "g2"
        done = await share(stage.settings, stage.store, None, 50.0, **QUIET)  # the remedy that the log names
        assert done.rebuilt.rewritten == VIEWERS + 1
    await stage.assert_accounted()


async def test_an_updater_that_refused_a_candidate_and_meets_its_activation_goes_on_for_the_others(
    stage: Stage,
) -> None:
    """Everybody was rebuilt by who could load it: to wait for the files would hold up both arms."""
    publish(stage, "g1")
    write_generation_folder(stage.settings.generations_path, GENERATIONS["g2"])
    factors = GenerationsFolder(stage.settings.generations_path).root.local / "g2" / "item_factors.npy"
    whole = factors.read_bytes()
    async with stage.updater() as updater:
        await stage.send(plays(VIEWERS, 120))
        await stage.drained(120)
        activator = Activator(stage.settings, stage.store, SilentProgress(), updaters_deadline_s=0.0)
        folder = GenerationsFolder(stage.settings.generations_path)
        factors.write_bytes(whole[:-1])
        folder._write_current(Current("g1", 2, None, HALF))
        await wait_until(lambda: updater.swap.refusals, "the refusal")
        assert updater.swap.rewriter.activation == 1 and updater.swap.candidate_refused is None
        rewriters = Arms(*(Rewriter(GENERATIONS[g], 2, CODEC.encode_row, updater.limits) for g in ("g1", "g2")), HALF)
        activator._rewriters = lambda current: rewriters  # of a machine whose copy is whole
        await activator.rebuild(folder.read_current(), erased_through_s=lambda viewer: -1)
        await stage.assert_consistent()
        before = await read_all(stage)
        await stage.send(plays(VIEWERS, 60, start=120))
        await stage.drained(180)
        await assert_rows_stand_still(stage, before)
        assert updater.swap.candidate_refused is not None
        await stop_share(stage.settings, stage.store, **QUIET)
        assert updater.swap.candidate_refused is None and updater.swap.share is None
    await stage.assert_consistent()


@pytest.mark.parametrize("verb", [stop_share, unfreeze])
async def test_what_a_night_puts_in_force_while_the_verb_begins_stays_in_force(stage: Stage, verb) -> None:  # type: ignore[no-untyped-def]
    publish(stage, "g1")
    path, folder = stage.settings.generations_path, GenerationsFolder(stage.settings.generations_path)
    for generation in (GENERATIONS["g2"], make_generation(generation_id="g3")):
        write_generation_folder(path, generation)
    folder.share(HALF, floor=0)
    highest_activation = stage.store.highest_activation

    async def meanwhile() -> int:
        await asyncio.to_thread(folder.activate, "g3", floor=0)
        return await highest_activation()

    stage.store.highest_activation = meanwhile  # type: ignore[method-assign]
    done = await verb(stage.settings, stage.store, **QUIET)
    assert (done.generation_id, done.activation) == ("g3", 4)
    assert folder.read_current().share == (None if verb is stop_share else HALF)


async def test_a_verb_that_died_before_its_rebuild_is_made_up_for_by_doing_it_again(stage: Stage) -> None:
    publish(stage, "g1")
    write_generation_folder(stage.settings.generations_path, GENERATIONS["g2"])
    async with stage.updater():
        await stage.send(plays(VIEWERS, 120))
        await stage.drained(120)
        GenerationsFolder(stage.settings.generations_path).share(HALF, floor=1)
        await stage.send(plays(4, 30, start=120))
        await stage.drained(150)
        done = await share(stage.settings, stage.store, None, 50.0, **QUIET)
        assert (done.activation, done.rebuilt.rewritten) == (3, VIEWERS)
    await stage.assert_consistent()
