"""The planned copy against a real Kafka: transactions, retention, and a crash between plan and files."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete

from batch import copy as copy_module
from batch.copy import copy_records
from batch.lake import Lake
from batch.nightly import count_partitions
from batch.plans import CopyReport, Plans
from contracts.codec import Codec
from runtime.kafka import make_admin, make_consumer, make_producer
from runtime.settings import Settings
from sandbox.servers import KafkaServer
from tests.conftest import TopicFactory
from tests.worlds import play_event

CODEC = Codec.load()


@pytest.fixture
async def settings(kafka: KafkaServer, topic: TopicFactory) -> Settings:
    return Settings(kafka={"bootstrap_servers": kafka.bootstrap, "topic": await topic(1)})


async def copy(settings: Settings, lake: Lake) -> CopyReport:
    consumer = await make_consumer(settings)
    try:
        return await copy_records(settings, lake, CODEC, consumer, await count_partitions(settings), chunk_records=7)
    finally:
        await consumer.stop()


async def send(settings: Settings, items: range, producer: AIOKafkaProducer | None = None) -> None:
    own = producer or await make_producer(settings)
    for item in items:
        event = play_event("ana", item, item)
        value = CODEC.encode_event(event)
        await own.send(settings.kafka.topic, value, key=b"ana", timestamp_ms=event.event_time_ms)
    await own.flush()
    if producer is None:
        await own.stop()


def offsets(lake: Lake) -> list[int]:
    return sorted(o for batch in lake.batches("events", ["offset"]) for o in batch.column("offset").to_pylist())


async def test_topics_that_are_not_there_are_not_copied_and_not_created(settings: Settings, tmp_path: Path) -> None:
    await send(settings, range(3))
    assert (await copy(settings, Lake(tmp_path))).written == {"events": 3, "impressions": 0, "catalogue": 0}
    assert (await count_partitions(settings))[settings.kafka.impressions_topic] == 0


async def test_transactions_copy_what_was_committed_and_pass_over_their_markers(
    settings: Settings, tmp_path: Path
) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka.bootstrap_servers, transactional_id=settings.kafka.topic
    )
    await producer.start()
    async with producer.transaction():
        await send(settings, range(4), producer)  # offsets 0-3, marker 4
    await producer.begin_transaction()
    await send(settings, range(3), producer)  # 5-7, marker 8
    await producer.abort_transaction()
    await producer.begin_transaction()
    await send(settings, range(2), producer)  # 9-10, still open
    lake = Lake(tmp_path)
    report = await copy(settings, lake)
    assert (report.cutoffs, report.written["events"], report.absent) == ({0: 9}, 4, 5)
    await producer.commit_transaction()
    await producer.stop()
    report = await copy(settings, lake)
    assert (report.cutoffs, report.written["events"], report.absent) == ({0: 12}, 2, 1)
    assert offsets(lake) == [0, 1, 2, 3, 9, 10]


async def test_what_retention_deleted_is_told_and_the_rest_is_copied(settings: Settings, tmp_path: Path) -> None:
    await send(settings, range(20))
    admin = await make_admin(settings)
    await admin.delete_records({TopicPartition(settings.kafka.topic, 0): RecordsToDelete(before_offset=11)})
    await admin.close()
    lake = Lake(tmp_path)
    report = await copy(settings, lake)
    assert (report.lost, report.written["events"], report.cutoffs) == (11, 9, {0: 20})
    assert offsets(lake) == list(range(11, 20))


async def test_a_crash_between_files_and_their_mark_writes_the_same_files_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send(settings, range(30))
    lake = Lake(tmp_path)

    def dies(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(copy_module.Plans, "finish_chunk", dies)
        with pytest.raises(KeyboardInterrupt):
            await copy(settings, lake)
    assert offsets(lake) == list(range(7))  # written, but not marked
    await send(settings, range(5))
    report = await copy(settings, Lake(tmp_path))
    assert (report.plan, report.written["events"]) == (1, 30)
    assert offsets(lake) == list(range(30))
    assert (await copy(settings, lake)).written["events"] == 5
    last = Plans(lake).last()
    assert last is not None and last.number == 2
