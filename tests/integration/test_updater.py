"""The updater on a real Kafka and a real Valkey: nothing lost, nothing doubled, whatever happens in between.

Every test ends in the same question, asked by `assert_consistent`: is each viewer's state, to the bit, what a separate and
simple path computes from the log, and is each vector and row what the rewrite gives for that state?
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from aiokafka import AIOKafkaProducer

from contracts.errors import Halted, HaltError
from contracts.events import Kind, PlaybackEvent
from runtime.kafka import TopicPartition, make_consumer
from sandbox.servers import KafkaServer, ValkeyServer
from tests.conftest import TopicFactory
from tests.consistency import CODEC, PARTITIONS, Stage, make_stage, plays, publish
from tests.worlds import T0, play_event, wait_until
from updater.service import Watch, make_app
from viewers.packing import unpack


@pytest.fixture
async def closing() -> AsyncIterator[AsyncExitStack]:
    """Closes what a test opened, whatever happens."""
    async with AsyncExitStack() as stack:
        yield stack


async def test_every_play_is_applied_once_and_every_row_follows_from_its_state(stage: Stage) -> None:
    publish(stage, "g1")
    async with stage.updater() as updater:
        await stage.send(plays(17, 400))
        await stage.drained(400)
    await stage.assert_consistent()
    markers = [m for p in range(PARTITIONS) if (m := await stage.store.read_marker(p))]
    assert sum(m.private for m in markers) == sum(e.private for e in stage.sent)
    assert sum(m.applied + m.noop for m in markers) == sum(not e.private for e in stage.sent)
    assert updater.metrics.rows_written > 0


async def test_a_stop_commits_exactly_the_markers(stage: Stage) -> None:
    publish(stage, "g1")
    async with stage.updater():
        await stage.send(plays(5, 90))
        await stage.drained(90)
    consumer = await make_consumer(stage.settings, group_id=stage.settings.kafka.group_id)
    for p in range(PARTITIONS):
        marker = await stage.store.read_marker(p)
        assert marker is not None
        assert await consumer.committed(TopicPartition(stage.settings.kafka.topic, p)) == marker.next_offset
    await consumer.stop()


async def test_plays_sent_twice_shuffled_and_replayed_from_the_start_change_nothing(stage: Stage) -> None:
    publish(stage, "g1")
    first = plays(9, 200)
    async with stage.updater():
        await stage.send([*first, *reversed(first)])
        await stage.drained(400)
    await stage.assert_consistent()
    before = {v: await stage.store.read_viewer(v) for v in (f"v{i}" for i in range(9))}
    # the markers are lost: everything is read again from the earliest record
    await stage.store._command("DEL", *(stage.store.keys.marker(p) for p in range(PARTITIONS)))
    async with stage.updater():
        await stage.drained(400)
    assert {v: await stage.store.read_viewer(v) for v in before} == before
    markers = [m for p in range(PARTITIONS) if (m := await stage.store.read_marker(p))]
    assert sum(m.noop for m in markers) == sum(not e.private for e in stage.sent)


async def test_on_the_first_day_plays_are_kept_and_the_first_generation_counts_them(stage: Stage) -> None:
    async with stage.updater() as updater:
        await stage.send(plays(6, 60))
        await stage.drained(60)
        await stage.assert_consistent(generation_id=None)
        activation = publish(stage, "g1")
        await wait_until(lambda: updater.swap.rewriter.activation == activation, "the generation is taken up")
        await stage.send(plays(6, 60, start=60))
        await stage.drained(120)
    await stage.assert_consistent()


async def test_a_generation_swap_in_mid_stream_loses_nothing_and_no_row_mixes_two(stage: Stage) -> None:
    publish(stage, "g1")
    async with stage.updater() as updater:
        await stage.send(plays(8, 100))
        await stage.drained(60)
        activation = publish(stage, "g2")
        for start in range(100, 400, 50):
            await stage.send(plays(8, 50, start=start))
        await wait_until(lambda: updater.swap.rewriter.activation == activation, "the swap")
        await stage.send(plays(8, 100, start=400))
        await stage.drained(500)
    await stage.assert_consistent("g2")


async def test_a_write_of_an_older_activation_is_refused_and_the_batch_redone_with_the_newer(stage: Stage) -> None:
    publish(stage, "g1")
    async with stage.updater() as updater:
        await stage.send(plays(4, 40))
        await stage.drained(40)
        # somebody else is already further: rows of the next activation appear before this updater knows of it
        newer = updater.swap.rewriter.activation + 1
        for v in range(4):
            await stage.store._command("HSET", stage.store.keys.viewer(f"v{v}"), "c", b"othertok" + str(newer).encode())
        await stage.send(plays(4, 40, start=40))
        await wait_until(lambda: updater.metrics.retries.labels("stale_activation")._value.get() > 0, "the refusal")
        assert await stage.finished() == 40
        assert publish(stage, "g2") == newer
        await stage.drained(80)
    await stage.assert_consistent("g2")


async def test_a_bad_generation_is_refused_and_the_old_one_stays(stage: Stage) -> None:
    publish(stage, "g1")
    async with stage.updater() as updater:
        await wait_until(lambda: updater.swap.generation_id == "g1", "the first generation")
        publish(stage, "g2")
        broken = Path(stage.settings.generations_path) / "g2" / "item_factors.npy"
        broken.write_bytes(broken.read_bytes()[:-100])
        folder = Path(stage.settings.generations_path)
        shutil.copytree(folder / "g2", folder / "g3")
        await wait_until(lambda: updater.swap.refusals > 0 or updater.swap.generation_id == "g2", "a decision")
        await stage.send(plays(4, 40))
        await stage.drained(40)
        await wait_until(lambda: updater.ready, "it goes on serving")


async def test_poison_is_dead_lettered_and_passed(stage: Stage) -> None:
    publish(stage, "g1")
    good = plays(5, 50)
    async with stage.updater():
        await stage.send(good[:25], raw=[(b"v1", b"not avro"), (b"v2", None), (b"v3", CODEC.encode_event(good[0]))])
        await stage.send(good[25:])
        await stage.drained(53)
    await stage.assert_consistent()
    consumer = await make_consumer(stage.settings)
    dead = TopicPartition(stage.settings.kafka.dead_letter_topic, 0)
    consumer.assign([dead])
    consumer.seek(dead, 0)
    letters = []
    while len(letters) < 3:
        letters += [r for records in (await consumer.getmany(timeout_ms=500)).values() for r in records]
    await consumer.stop()
    assert sorted((r.key, r.value) for r in letters if r.value) == [
        (b"v1", b"not avro"),
        (b"v3", CODEC.encode_event(good[0])),
    ]
    assert {dict(r.headers)["__connect.errors.topic"] for r in letters} == {stage.settings.kafka.topic.encode()}


async def test_a_flood_of_poison_halts_the_stream_until_a_person_clears_it(stage: Stage) -> None:
    publish(stage, "g1")
    await stage.send(plays(3, 9), raw=[(b"v1", b"not avro")] * 40)
    with pytest.raises(HaltError, match="nearline resume"):
        async with stage.updater():
            await wait_until(lambda: halted(stage), "the halt")
    with pytest.raises(Halted, match="40 of the last"):
        async with stage.updater() as updater:
            await wait_until(lambda: updater.consumer is not None, "the start")
            await asyncio.wait([t for t in asyncio.all_tasks() if "Updater.run" in repr(t)], timeout=20)
    await stage.store.write_halt(None)
    async with stage.updater():
        await stage.drained(49)
    await stage.assert_consistent()


async def halted(stage: Stage) -> bool:
    return await stage.store.read_halt() is not None


async def test_an_erasure_empties_the_viewer_and_replays_do_not_bring_them_back(stage: Stage) -> None:
    publish(stage, "g1")
    history = plays(3, 60)
    erase = PlaybackEvent("erase-1", Kind.ERASE, "v1", T0 + 1_000_000)
    async with stage.updater():
        await stage.send([*history, erase, *history])
        await stage.drained(121)
    stored = await stage.store.read_viewer("v1")
    assert unpack(stored.state).is_empty
    assert (stored.row, stored.vector) == (b"", b"")
    assert b"tt0" not in stored.state
    async with stage.updater():
        await stage.send([play_event("v1", 5, 2000)])
        await stage.drained(122)
    assert [p.item_id for p in unpack((await stage.store.read_viewer("v1")).state).plays] == ["tt0000005"]


async def test_two_updaters_share_the_partitions_and_a_third_joins_and_leaves(stage: Stage) -> None:
    publish(stage, "g1")
    async with stage.updater() as one, stage.updater() as two:
        await wait_until(
            lambda: one.ready and two.ready and all(u.checkpoint.progress for u in (one, two)), "both have work"
        )
        await stage.send(plays(20, 200))
        async with stage.updater() as three:
            await stage.send(plays(20, 200, start=200))
            await wait_until(lambda: three.ready and bool(three.checkpoint.progress), "the third has work")
            await stage.send(plays(20, 200, start=400))
        await stage.send(plays(20, 200, start=600))
        await stage.drained(800)
    await stage.assert_consistent()


async def test_a_store_restarted_from_an_older_copy_is_brought_back_to_the_same_rows(
    kafka: KafkaServer,
    fresh_valkey: ValkeyServer,
    topic: TopicFactory,
    namespace: str,
    tmp_path: Path,
    closing: AsyncExitStack,
) -> None:
    name = await topic(PARTITIONS)
    stage = await make_stage(kafka.bootstrap, fresh_valkey.url, name, namespace, tmp_path)
    closing.push_async_callback(stage.store.close)
    publish(stage, "g1")
    copy = tmp_path / "older"
    async with stage.updater() as updater:
        await stage.send(plays(10, 150))
        await stage.drained(150)
        fresh_valkey.stop()
        shutil.copytree(fresh_valkey.data_dir, copy)
        fresh_valkey.start()
        await stage.store.connect()
        await stage.send(plays(10, 150, start=150))
        await stage.drained(300)
        fresh_valkey.stop(kill=True)
        shutil.rmtree(fresh_valkey.data_dir)
        shutil.copytree(copy, fresh_valkey.data_dir)
        fresh_valkey.start()
        await stage.store.connect()
        assert await stage.finished() == 150
        await stage.drained(300)
        await stage.send(plays(10, 50, start=300))
        await stage.drained(350)
        assert updater.metrics.retries.labels("StoreChanged")._value.get() > 0
    await stage.assert_consistent()


async def test_a_store_away_for_a_while_pauses_the_stream_and_nothing_is_lost(
    kafka: KafkaServer,
    fresh_valkey: ValkeyServer,
    topic: TopicFactory,
    namespace: str,
    tmp_path: Path,
    closing: AsyncExitStack,
) -> None:
    name = await topic(PARTITIONS)
    stage = await make_stage(kafka.bootstrap, fresh_valkey.url, name, namespace, tmp_path)
    closing.push_async_callback(stage.store.close)
    publish(stage, "g1")
    async with stage.updater() as updater:
        await stage.send(plays(10, 100))
        await stage.drained(100)
        fresh_valkey.stop(kill=True)
        await stage.send(plays(10, 100, start=100))
        await wait_until(lambda: not updater.ready, "not ready while the store is away")
        fresh_valkey.start()
        await stage.store.connect()
        await stage.drained(200)
        await wait_until(lambda: updater.ready, "ready again")
    await stage.assert_consistent()


async def test_health_metrics_and_stats_tell_what_happened(stage: Stage) -> None:
    publish(stage, "g1")
    async with stage.updater() as updater:
        watch = Watch(updater)
        transport = httpx.ASGITransport(make_app(updater, watch))
        async with httpx.AsyncClient(transport=transport, base_url="http://updater") as client:
            assert (await client.get("/health/live")).status_code == 200
            await wait_until(lambda: updater.ready and bool(updater.checkpoint.progress), "ready")
            await stage.send(plays(5, 60), raw=[(b"v1", b"not avro")])
            await stage.drained(61)
            assert (await client.get("/health/ready")).json()["generation_id"] == "g1"
            await wait_until(lambda: updater.metrics.rows_written > 0, "a row")
            await watch.ask()
            stats = (await client.get("/stats")).json()
            text = (await client.get("/metrics")).text
    assert (stats["lag_records"], stats["unaccounted"], stats["dead"]) == (0, 0, 1)
    assert stats["applied"] + stats["noop"] + stats["private"] == 60
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['nearline_records_total{decision="dead"}'] == "1.0"
    labels = f'{{consumergroup="{stage.settings.kafka.group_id}",partition="0",topic="{stage.settings.kafka.topic}"}}'
    assert lines["nearline_unaccounted" + labels] == "0.0"
    assert lines["nearline_lag_records" + labels] == "0.0"
    assert float(lines["nearline_event_to_row_seconds_count"]) > 0
    assert float(lines["nearline_generation_age_seconds"]) > 0


async def test_what_is_unaccounted_for_is_read_from_the_stored_marker_and_not_supposed(stage: Stage) -> None:
    publish(stage, "g1")
    async with stage.updater() as updater:
        watch = Watch(updater)
        await stage.send(plays(5, 60))
        await stage.drained(60)
        await stage.store._command(
            "HINCRBY", stage.store.keys.marker(0), "applied", -2
        )  # a fault that nothing else would show
        await watch.ask()
        transport = httpx.ASGITransport(make_app(updater, watch))
        async with httpx.AsyncClient(transport=transport, base_url="http://updater") as client:
            assert (await client.get("/stats")).json()["unaccounted"] == 2
            text = (await client.get("/metrics")).text
    told = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith("nearline_unaccounted{")]
    assert sorted(told) == ["0.0", "0.0", "2.0"]


async def test_a_record_too_large_to_quote_is_a_dead_letter_by_size_and_digest_and_does_not_stop_the_stream(
    stage: Stage,
) -> None:
    publish(stage, "g1")
    good = plays(5, 40)
    giant = AIOKafkaProducer(
        bootstrap_servers=stage.settings.kafka.bootstrap_servers, max_request_size=20_000_000, compression_type="gzip"
    )
    await giant.start()
    await giant.send_and_wait(stage.settings.kafka.topic, b"\x01" * 1_500_000, key=b"v1", headers=[("private", b"0")])
    await giant.stop()
    async with stage.updater():
        await stage.send(good)
        await stage.drained(41)
    await stage.assert_consistent()
    consumer = await make_consumer(stage.settings)
    dead = TopicPartition(stage.settings.kafka.dead_letter_topic, 0)
    consumer.assign([dead])
    consumer.seek(dead, 0)
    letters: list = []
    while not letters:
        letters = [r for records in (await consumer.getmany(timeout_ms=500)).values() for r in records]
    await consumer.stop()
    (letter,) = letters
    assert not letter.value
    assert dict(letter.headers)["nearline.source.size_bytes"] == b"1500000"


async def test_without_its_topic_an_updater_is_not_ready_and_takes_up_the_topic_once_it_is_there(
    kafka: KafkaServer, valkey: ValkeyServer, topic: TopicFactory, namespace: str, tmp_path: Path
) -> None:
    stage = await make_stage(kafka.bootstrap, valkey.url, f"late-{namespace}", namespace, tmp_path)
    publish(stage, "g1")
    async with stage.updater() as updater:
        await wait_until(lambda: updater.metrics.retries.labels("KafkaUnavailable")._value.get() > 0, "the complaint")
        assert not updater.ready
        await topic(PARTITIONS, name=f"late-{namespace}")
        await wait_until(lambda: updater.ready and bool(updater.checkpoint.progress), "ready", 60)
        await stage.send(plays(5, 30))
        await stage.drained(30)
    await stage.assert_consistent()
    await stage.store.close()


async def test_a_viewer_that_cannot_be_read_halts_with_what_to_do(stage: Stage) -> None:
    publish(stage, "g1")
    await stage.store._command("HSET", stage.store.keys.viewer("v1"), "c", b"12345678" + b"1", "s", b"\x09garbage")
    with pytest.raises(HaltError, match="nearline nightly --seed"):
        async with stage.updater():
            await stage.send(plays(3, 9))
            await wait_until(lambda: halted(stage), "the halt")
