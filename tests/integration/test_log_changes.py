"""What happens to the topic itself: made anew, cut by retention, given more partitions, its committed offsets moved by hand."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
import redis.asyncio as redis
from aiokafka.admin import NewPartitions

from batch.copy import copy_records
from batch.lake import Lake
from batch.nightly import count_partitions, run_nightly
from batch.plans import CopyReport
from contracts.errors import HaltError, KafkaUnavailable
from contracts.events import PlaybackEvent
from runtime.kafka import (
    NewTopic,
    RecordsToDelete,
    TopicPartition,
    assignment_of,
    choose_partition,
    make_admin,
    make_consumer,
    make_producer,
)
from runtime.progress import SilentProgress
from runtime.settings import Settings
from tests.consistency import CODEC, PARTITIONS, Stage, plays, publish
from tests.unit.test_state import oracle
from tests.worlds import wait_until
from updater.dlq import list_letters
from updater.service import Watch
from viewers.packing import unpack
from viewers.state import Limits


@pytest.fixture
async def stage(stage: Stage) -> Stage:
    publish(stage, "g1")
    return stage


async def make_anew(settings: Settings) -> None:
    """Delete the topic and create it again, empty."""
    admin = await make_admin(settings)
    try:
        await admin.delete_topics([settings.kafka.topic])

        async def created() -> bool:
            answer = await admin.create_topics([NewTopic(settings.kafka.topic, PARTITIONS, 1)])
            return all(error[1] == 0 for error in answer.topic_errors)

        await wait_until(created, "the topic is there again")
    finally:
        await admin.close()


def next_epoch(stage: Stage) -> Stage:
    """The stage as an operator sets it up after the topic was made anew."""
    kafka = stage.settings.kafka.model_copy(update={"stream_epoch": stage.settings.kafka.stream_epoch + 1})
    settings = stage.settings.model_copy(update={"kafka": kafka})
    stage.store.keys = settings.keys
    return Stage(settings, stage.store, stage.sent, stage.poison)


async def described(stage: Stage, partitions: int) -> bool:
    return (await count_partitions(stage.settings))[stage.settings.kafka.topic] == partitions


async def copy(stage: Stage, lake: Lake) -> CopyReport:
    consumer = await make_consumer(stage.settings)
    try:
        return await copy_records(stage.settings, lake, CODEC, consumer, await count_partitions(stage.settings))
    finally:
        await consumer.stop()


async def commit(stage: Stage, offsets: dict[TopicPartition, int]) -> None:
    """Set the group's offsets, as an operator does while no updater runs."""
    consumer = await make_consumer(stage.settings, group_id=stage.settings.kafka.group_id)
    consumer.assign(list(offsets))
    await consumer.commit(offsets)
    await consumer.stop()


async def states_that_differ(stage: Stage) -> list[str]:
    """Viewers whose state is not what all that was ever sent gives."""
    history: dict[str, list[PlaybackEvent]] = {}
    for event in stage.sent:
        if not event.private:
            history.setdefault(event.viewer, []).append(event)
    limits = Limits(**stage.settings.state.model_dump())
    return [
        v for v, events in history.items() if unpack((await stage.store.read_viewer(v)).state) != oracle(events, limits)
    ]


async def send_to(stage: Stage, events: list[PlaybackEvent], partitions: int) -> None:
    """As a producer does that believes the topic to have so many partitions."""
    producer = await make_producer(stage.settings)
    for event in events:
        await producer.send(
            stage.settings.kafka.topic,
            CODEC.encode_event(event),
            key=event.viewer.encode(),
            partition=choose_partition(event.viewer.encode(), partitions),
            timestamp_ms=event.event_time_ms,
            headers=[("private", b"1" if event.private else b"0")],
        )
        stage.sent.append(event)
    await producer.stop()


async def halted(stage: Stage) -> bool:
    return await stage.store.read_halt() is not None


async def halts(stage: Stage) -> str:
    """What an updater that is started now halts with."""
    with pytest.raises(HaltError) as halt:
        async with stage.updater():
            await wait_until(lambda: halted(stage), "the halt")
    return str(halt.value)


async def contents(stage: Stage) -> list[object]:
    return [await stage.markers(), *[await stage.store.read_viewer(f"v{v}") for v in range(9)]]


def client_of(stage: Stage) -> redis.Redis:
    return redis.Redis.from_url(stage.settings.store.url.get_secret_value(), protocol=2)


async def dumped(stage: Stage) -> dict[bytes, bytes]:
    """Everything that the store holds under this namespace. No updater runs."""
    async with client_of(stage) as client:
        return {key: await client.dump(key) async for key in client.scan_iter(match=f"{stage.store.keys.namespace}:*")}


async def restore(stage: Stage, older: dict[bytes, bytes]) -> None:
    """The store comes back as it was then."""
    async with client_of(stage) as client:
        for key in await dumped(stage):
            await client.delete(key)
        for key, value in older.items():
            await client.restore(key, 0, value)


@pytest.mark.parametrize("again", [30, 400], ids=["shorter", "grown past the markers"])
async def test_a_topic_that_was_made_anew_halts_and_with_the_next_epoch_it_is_read_from_its_start(
    stage: Stage, tmp_path: Path, again: int
) -> None:
    lake = Lake(tmp_path / "lake")
    async with stage.updater():
        await stage.send(plays(9, 90), raw=[(b"v1", b"not avro")])
        await stage.drained(91)
    assert (await copy(stage, lake)).written["events"] == 90 - sum(e.private for e in stage.sent)
    before = await contents(stage)

    await make_anew(stage.settings)
    await stage.send(plays(9, again, start=1000), raw=[(b"v1", b"not avro")])
    reason = await halts(stage)
    assert stage.settings.kafka.topic in reason
    assert "NEARLINE_KAFKA__STREAM_EPOCH=2 " in reason
    assert await contents(stage) == before
    with pytest.raises(HaltError, match="NEARLINE_KAFKA__STREAM_EPOCH=2 "):
        await copy(stage, lake)
    await stage.store.write_halt(None)  # clearing the halt alone does not let anything pass
    assert await halts(stage) == reason

    stage = next_epoch(stage)
    async with stage.updater():
        await stage.drained(again + 1)
        assert [marker.origin for marker in await stage.markers()] == [0] * PARTITIONS
        await stage.send(plays(9, 50, start=2000))
        await stage.drained(again + 51)
    await stage.assert_consistent()
    markers = {p: await stage.store.read_marker(p) for p in range(PARTITIONS)}
    assert await stage.committed() == {p: marker.next_offset for p, marker in markers.items() if marker}
    assert (await copy(stage, lake)).cutoffs == {p: marker.next_offset for p, marker in markers.items() if marker}
    public = sum(not event.private for event in stage.sent)
    assert sum(len(batch) for batch in lake.batches("events", ["epoch", "offset"])) == public
    listing = await list_letters(stage.settings)
    assert (listing.letters, listing.duplicates) == (2, 0)


async def test_a_topic_made_anew_while_an_updater_reads_it_is_noticed_even_if_the_client_does_not(stage: Stage) -> None:
    kafka = stage.settings.kafka.model_copy(update={"metadata_max_age_ms": 1000})
    with pytest.raises(HaltError, match="STREAM_EPOCH=2 "):
        async with stage.updater(kafka=kafka) as updater:
            await stage.send(plays(9, 60))
            await stage.drained(60)
            assert updater.checkpoint is not None
            await updater.checkpoint.check_log(updater.checkpoint.anchors)
            await make_anew(stage.settings)
            await stage.send(plays(9, 400, start=1000))
            await wait_until(lambda: halted(stage), "the halt")


async def test_an_updater_that_read_on_in_another_log_puts_the_earlier_anchors_back_so_that_the_next_one_halts_too(
    stage: Stage,
) -> None:
    async with stage.updater() as updater:
        await stage.send(plays(9, 60))
        await stage.drained(60)
        assert updater.checkpoint is not None
        now = updater.checkpoint.anchors
        earlier = {p: dataclasses.replace(anchor, digest="00" * 16) for p, anchor in now.items()}  # of the log that was
        await updater.checkpoint.anchor_again(earlier)
    markers = {p: await stage.store.read_marker(p) for p in earlier}
    assert {p: marker.anchor for p, marker in markers.items() if marker} == earlier
    assert await stage.finished() == 60
    await halts(stage)


async def test_offsets_committed_by_hand_reset_or_expired_do_not_matter_beyond_the_marker(stage: Stage) -> None:
    async with stage.updater():
        await stage.send(plays(9, 90))
        await stage.drained(90)
    await stage.send(plays(9, 60, start=90))
    ends = await stage.ends()
    await commit(stage, {tp: end + 1000 for tp, end in ends.items()})
    async with stage.updater():
        await stage.drained(150)
    await stage.assert_consistent()
    await stage.assert_accounted()


async def test_where_the_committed_offsets_have_expired_it_goes_on_at_the_markers(stage: Stage) -> None:
    async with stage.updater():
        await stage.send(plays(9, 90))
        await stage.drained(90)
    without = stage.settings.kafka.model_copy(update={"group_id": stage.settings.kafka.group_id + ".new"})
    async with stage.updater(kafka=without) as updater:
        await wait_until(lambda: updater.ready and len(updater.checkpoint.progress) == PARTITIONS, "resumed")
        assert {at.position == at.uncounted_from for at in updater.checkpoint.progress.values()} == {True}
        await stage.send(plays(9, 60, start=90))
        await stage.drained(150)
    await stage.assert_consistent()
    await stage.assert_accounted()


async def test_offsets_set_back_are_read_again_and_not_counted_again(stage: Stage) -> None:
    async with stage.updater():
        await stage.send(plays(9, 90))
        await stage.drained(90)
    before = await contents(stage)
    await commit(stage, dict.fromkeys(await stage.ends(), 1))
    async with stage.updater() as updater:
        await wait_until(lambda: updater.ready and len(updater.checkpoint.progress) == PARTITIONS, "resumed")
        ends = await stage.ends()
        await wait_until(
            lambda: all(at.position == ends[tp] for tp in ends for at in [updater.checkpoint.progress[tp.partition]]),
            "read",
        )
        assert await contents(stage) == before
        await stage.send(plays(9, 60, start=90))
        await stage.drained(150)
    await stage.assert_consistent()
    await stage.assert_accounted()


async def take_from_log(stage: Stage, before: Mapping[TopicPartition, int]) -> None:
    """What retention does: the records below these offsets are gone."""
    admin = await make_admin(stage.settings)
    await admin.delete_records({tp: RecordsToDelete(before_offset=offset) for tp, offset in before.items()})
    await admin.close()


async def test_what_retention_took_during_an_outage_is_declared_exactly_and_rebuilt_from_the_lake(
    stage: Stage, tmp_path: Path
) -> None:
    settings = stage.settings.model_copy(update={"lake_path": str(tmp_path / "lake")})
    async with stage.updater():
        await stage.send(plays(9, 90))
        await stage.drained(90)
    finished = {p: (await stage.store.read_marker(p)).next_offset for p in range(PARTITIONS)}
    await stage.send(plays(9, 120, start=90))
    await run_nightly(
        settings, stage.store, skip_evaluation=True, progress=SilentProgress()
    )  # the lake has all of them
    ends = await stage.ends()
    deleted = {tp: (finished[tp.partition] + end) // 2 for tp, end in ends.items()}
    await take_from_log(stage, deleted)

    async with stage.updater():
        await stage.drained(210)
    markers = {tp: await stage.store.read_marker(tp.partition) for tp in ends}
    assert {tp: m.absent for tp, m in markers.items()} == {tp: deleted[tp] - finished[tp.partition] for tp in ends}
    assert all(m.unaccounted == 0 and m.next_offset == ends[tp] for tp, m in markers.items())
    assert await states_that_differ(stage) != []

    await run_nightly(settings, stage.store, skip_evaluation=True, progress=SilentProgress(), seed=True)
    assert await states_that_differ(stage) == []


async def test_a_store_that_comes_back_empty_after_retention_declares_what_it_cannot_read_and_gets_it_from_the_lake(
    stage: Stage, tmp_path: Path
) -> None:
    settings = stage.settings.model_copy(update={"lake_path": str(tmp_path / "lake")})
    async with stage.updater():
        await stage.send(plays(9, 90))
        await stage.drained(90)
    await run_nightly(settings, stage.store, skip_evaluation=True, progress=SilentProgress())
    deleted = await stage.ends()
    await take_from_log(stage, deleted)
    await restore(stage, {})

    async with stage.updater():
        await stage.send(plays(9, 30, start=90))
        await stage.drained(120)
        markers = {tp: await stage.store.read_marker(tp.partition) for tp in deleted}
        assert {tp: (m.origin, m.absent, m.unaccounted) for tp, m in markers.items()} == {
            tp: (0, offset, 0) for tp, offset in deleted.items()
        }
        assert await states_that_differ(stage) != []
        report = await run_nightly(settings, stage.store, skip_evaluation=True, progress=SilentProgress())
    assert report.seeded != ""
    assert await states_that_differ(stage) == []


async def test_what_the_lake_gave_back_and_a_fallback_took_again_is_given_back_by_the_next_night(
    stage: Stage, tmp_path: Path
) -> None:
    settings = stage.settings.model_copy(update={"lake_path": str(tmp_path / "lake")})

    async def night(**options: bool) -> str:
        options = {"skip_evaluation": True, "progress": SilentProgress(), **options}
        return (await run_nightly(settings, stage.store, **options)).seeded

    async with stage.updater():
        await stage.send(plays(9, 90))
        await stage.drained(90)
    await stage.send(plays(9, 120, start=90))
    await night()  # the lake has all of them
    older = await dumped(stage)
    deleted = await stage.ends()
    await take_from_log(stage, {tp: offset - 1 for tp, offset in deleted.items()})
    async with stage.updater():
        await stage.drained(210)
    assert await states_that_differ(stage) != []
    assert await night(seed=True) != ""
    assert await states_that_differ(stage) == []
    assert await night() == ""

    await restore(stage, older)
    async with stage.updater():
        await stage.drained(210)
    assert await states_that_differ(stage) != []
    assert await night() != ""
    assert await states_that_differ(stage) == []
    assert await night() == ""
    assert [marker.unaccounted for marker in await stage.markers()] == [0] * PARTITIONS


async def test_added_partitions_are_taken_up_from_their_start_and_a_viewer_whose_key_moves_keeps_everything(
    stage: Stage, tmp_path: Path
) -> None:
    lake = Lake(tmp_path / "lake")
    kafka = stage.settings.kafka.model_copy(update={"metadata_max_age_ms": 1000})
    async with stage.updater(kafka=kafka) as one, stage.updater(kafka=kafka) as two:
        await stage.send(plays(20, 200))
        await stage.drained(200)
        await copy(stage, lake)
        admin = await make_admin(stage.settings)
        await admin.create_partitions({stage.settings.kafka.topic: NewPartitions(PARTITIONS + 2)})
        await admin.close()
        await wait_until(lambda: described(stage, PARTITIONS + 2), "the partitions are there")
        # A producer that has not noticed yet goes on writing to the old place of each key, beside one that has.
        await asyncio.gather(
            send_to(stage, plays(20, 200, start=200), PARTITIONS),
            send_to(stage, plays(20, 200, start=400), PARTITIONS + 2),
        )
        stage.partitions = PARTITIONS + 2
        await stage.drained(600)
        assert sorted([*one.checkpoint.progress, *two.checkpoint.progress]) == list(range(PARTITIONS + 2))
    markers = [await stage.store.read_marker(p) for p in range(PARTITIONS + 2)]
    assert [marker.origin for marker in markers if marker] == [0] * (PARTITIONS + 2)
    await stage.assert_consistent()
    await stage.assert_accounted()
    assert sorted((await copy(stage, lake)).cutoffs.items()) == [(p, m.next_offset) for p, m in enumerate(markers) if m]


async def test_every_rebalance_gives_another_assignment_even_of_the_same_partitions(stage: Stage) -> None:
    async with stage.updater() as one:
        await wait_until(lambda: one.ready and len(one.checkpoint.progress) == PARTITIONS, "it has them all")
        first = assignment_of(one.consumer)
        async with stage.updater() as two:
            await wait_until(lambda: two.ready and bool(two.checkpoint.progress), "the other has some")
        await wait_until(lambda: one.ready and len(one.checkpoint.progress) == PARTITIONS, "it has them all again")
        assert assignment_of(one.consumer) is not first


async def test_an_updater_whose_client_stops_fetching_without_a_word_leaves(stage: Stage) -> None:
    kafka = stage.settings.kafka.model_copy(update={"stall_timeout_s": 1.0})
    async with stage.updater(kafka=kafka) as updater:
        await stage.send(plays(9, 60))
        await stage.drained(60)
        watching = asyncio.create_task(Watch(updater).run())
        fetch = updater.consumer.getmany

        called = asyncio.Event()

        async def silent(*partitions: TopicPartition, timeout_ms: int, max_records: int) -> dict[TopicPartition, list]:
            called.set()
            await asyncio.sleep(timeout_ms / 1000)
            return {}

        updater.consumer.getmany = silent
        await called.wait()
        await stage.send(plays(9, 60, start=60))
        with pytest.raises(KafkaUnavailable, match=r"records wait at offset .* for 1 s.*leaving"):
            async with asyncio.timeout(30):
                await watching
        updater.consumer.getmany = fetch
        await stage.drained(120)
    await stage.assert_consistent()
