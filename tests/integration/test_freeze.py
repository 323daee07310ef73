"""The kill switch on a real Kafka and a real store: rows stand still from the next write on, plays are kept, nobody is left behind."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from batch.freeze import freeze, unfreeze
from contracts.errors import UserError
from contracts.events import Kind, PlaybackEvent
from runtime.progress import SilentProgress
from tests.consistency import Stage, plays, publish
from tests.worlds import T0, wait_until
from updater.service import Watch, make_app
from viewers.packing import unpack
from viewers.store import StoredViewer

VIEWERS = 6


async def stored(stage: Stage, viewers: int = VIEWERS) -> dict[str, StoredViewer]:
    return {viewer: await stage.store.read_viewer(viewer) for viewer in (f"v{i}" for i in range(viewers))}


def rows(found: dict[str, StoredViewer]) -> dict[str, tuple[int, bytes, bytes]]:
    return {viewer: (one.activation, one.vector, one.row) for viewer, one in found.items()}


async def test_rows_stand_still_while_plays_are_kept_and_follow_them_when_they_are_let_go(stage: Stage) -> None:
    publish(stage, "g1")
    async with stage.updater() as updater, stage.updater():
        await stage.send(plays(VIEWERS, 120))
        await stage.drained(120)
        await stage.assert_consistent()
        before = await stored(stage)
        done = await freeze(stage.store, "odd rows", now_ms=T0)
        assert (done.already, await freeze(stage.store, "again", now_ms=T0 + 1)) == (
            False,
            type(done)(T0, "odd rows", already=True),
        )
        await stage.send(plays(VIEWERS + 2, 120, start=120))  # two of them are new
        await stage.drained(240)
        after = await stored(stage)
        assert rows(after) == rows(before)
        assert all(len(unpack(after[v].state).plays) >= len(unpack(before[v].state).plays) for v in before)
        assert sum(after[v].state != before[v].state for v in before) == VIEWERS
        for viewer in ("v6", "v7"):
            new = await stage.store.read_viewer(viewer)
            assert new.state and (new.activation, new.row, new.vector) == (0, b"", b"")
        await stage.assert_accounted()
        await wait_until(
            lambda: updater.ready, "ready: the second updater may still be joining, and a batch was done again"
        )
        watch = Watch(updater)
        watch.look()
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(make_app(updater, watch)), base_url="http://updater"
        ) as client:
            ready = await client.get("/health/ready")
            assert (ready.status_code, ready.json()["frozen"]) == (200, {"since_ms": T0, "reason": "odd rows"})
            assert "nearline_frozen 1.0" in (await client.get("/metrics")).text

        back = await unfreeze(stage.settings, stage.store, progress=SilentProgress())
        assert back.was_frozen and back.activation == 2
        assert back.rebuilt is not None and back.rebuilt.rewritten == VIEWERS + 2
        await stage.assert_consistent()
        await stage.send(plays(VIEWERS, 60, start=240))
        await stage.drained(300)
    await stage.assert_consistent()
    await stage.assert_accounted()


async def test_freezing_and_letting_go_again_and_again_in_mid_stream_loses_nothing(stage: Stage) -> None:
    publish(stage, "g1")
    async with stage.updater(), stage.updater():
        for turn in range(4):
            sending = asyncio.create_task(stage.send(plays(VIEWERS, 150, start=150 * turn)))
            await freeze(stage.store, "", now_ms=T0)
            await asyncio.sleep(0)
            await unfreeze(stage.settings, stage.store, progress=SilentProgress())
            await sending
        await stage.drained(600)
    await stage.assert_consistent()
    await stage.assert_accounted()


async def test_an_erased_viewer_has_no_frozen_row(stage: Stage) -> None:
    publish(stage, "g1")
    async with stage.updater():
        await stage.send(plays(VIEWERS, 120))
        await stage.drained(120)
        before = await stored(stage)
        await freeze(stage.store, "", now_ms=T0)
        await stage.send([PlaybackEvent("erase.1", Kind.ERASE, "v3", T0 + 500_000)])
        await stage.drained(121)
        after = await stored(stage)
    assert (after["v3"].row, after["v3"].vector) == (b"", b"")
    assert unpack(after["v3"].state).is_empty
    assert {v: one for v, one in rows(after).items() if v != "v3"} == {
        v: one for v, one in rows(before).items() if v != "v3"
    }


async def test_an_unfreeze_that_died_before_the_rebuild_is_ended_by_the_next(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(stage, "g1")
    async with stage.updater() as updater:
        await stage.send(plays(VIEWERS, 60))
        await stage.drained(60)
        await freeze(stage.store, "", now_ms=T0)
        await stage.send(plays(VIEWERS, 60, start=60))
        await stage.drained(120)

        async def dies(*arguments: object, **options: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("batch.activation.Activator.rebuild", dies)
            with pytest.raises(KeyboardInterrupt):
                await unfreeze(stage.settings, stage.store, progress=SilentProgress())
        assert await stage.store.read_freeze() is None
        again = await unfreeze(stage.settings, stage.store, progress=SilentProgress())
        assert not again.was_frozen and again.rebuilt is not None
        await wait_until(lambda: updater.swap.rewriter.activation == again.activation, "the activation is taken up")
        nothing = await unfreeze(stage.settings, stage.store, progress=SilentProgress())
        assert (nothing.was_frozen, nothing.rebuilt) == (False, None)
    await stage.assert_consistent()


async def test_before_the_first_generation_there_is_nothing_to_rebuild(stage: Stage) -> None:
    await freeze(stage.store, "", now_ms=T0)
    async with stage.updater():
        await stage.send(plays(VIEWERS, 60))
        await stage.drained(60)
    back = await unfreeze(stage.settings, stage.store, progress=SilentProgress())
    assert (back.was_frozen, back.rebuilt) == (True, None)
    await stage.assert_consistent(generation_id=None)


@pytest.mark.parametrize("reason", ["two\nlines", "x" * 201])
async def test_a_reason_is_one_line(stage: Stage, reason: str) -> None:
    with pytest.raises(UserError, match="--reason"):
        await freeze(stage.store, reason, now_ms=T0)
    assert await stage.store.read_freeze() is None
