"""Replaying through a real Kafka: every event arrives once, in order per viewer, dated as it happened."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contracts.catalogue import CatalogueItem
from contracts.codec import Codec
from contracts.errors import DataError, KafkaUnavailable
from contracts.events import Kind, PlaybackEvent
from contracts.rows import Impression
from homepage.impressions import KafkaImpressions
from homepage.service import Metrics
from runtime.kafka import ConsumerRecord, TopicPartition, make_consumer
from runtime.settings import KafkaSettings, Settings
from sandbox.replay import Progress, replay
from sandbox.servers import KafkaServer
from sandbox.topics import ensure_topics

START_MS = 1_000_000_000_000
CODEC = Codec.load()


def make_events(count: int, step_ms: int = 1000) -> list[PlaybackEvent]:
    return [
        PlaybackEvent(
            f"e{n}", Kind.START, f"v{n % 7}", START_MS + n * step_ms, n % 5 == 0, "i", f"p{n}", START_MS, 0, 1000
        )
        for n in range(count)
    ]


@pytest.fixture
async def settings(kafka: KafkaServer) -> AsyncIterator[Settings]:
    """Settings with a topic of this test's own."""
    yield Settings(kafka=KafkaSettings(bootstrap_servers=kafka.bootstrap, topic=f"t-{uuid.uuid4().hex[:12]}"))


async def read_all(settings: Settings, topic: str, partitions: int) -> list[ConsumerRecord]:
    """Every record of the topic."""
    consumer = await make_consumer(settings)
    try:
        assigned = [TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(assigned)
        ends = await consumer.end_offsets(assigned)
        await consumer.seek_to_beginning(*assigned)
        found: list[ConsumerRecord] = []
        async with asyncio.timeout(20):
            while len(found) < sum(ends.values()):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
    finally:
        await consumer.stop()
    return found


async def test_a_replay_sends_every_event_once_keyed_and_dated(settings: Settings) -> None:
    """Key, header, timestamp and value of each record, and each viewer's order, are as the events have them."""
    partitions = await ensure_topics(settings, partitions=3)
    assert partitions[settings.kafka.topic] == 3
    assert await ensure_topics(settings, partitions=5) == partitions
    events = make_events(1200)
    seen: list[Progress] = []
    report = await replay(settings, events, progress=seen.append)
    assert (report.events, report.first_event_ms, report.last_event_ms) == (1200, START_MS, events[-1].event_time_ms)
    assert seen[-1].sent == 1200
    records = await read_all(settings, settings.kafka.topic, 3)
    assert len(records) == 1200
    by_id = {event.event_id: event for event in events}
    order: dict[str, list[int]] = {}
    for record in records:
        event = CODEC.decode_event(record.value)
        assert event == by_id.pop(event.event_id)
        assert record.key == event.viewer.encode()
        assert record.timestamp == event.event_time_ms
        assert record.headers == (("private", b"1" if event.private else b"0"),)
        order.setdefault(event.viewer, []).append(event.event_time_ms)
    assert len(order) == 7
    assert all(times == sorted(times) for times in order.values())


async def test_a_paced_replay_takes_as_long_as_its_speed_says(settings: Settings) -> None:
    """Ten seconds at forty times their speed take a quarter of a second, and not less."""
    await ensure_topics(settings, partitions=1)
    report = await replay(settings, make_events(11), speed=40)
    assert report.events == 11
    assert 0.25 <= report.elapsed_s < 10


async def test_events_out_of_order_and_senseless_speeds_are_refused(settings: Settings) -> None:
    """Time order is what makes a replay a replay."""
    await ensure_topics(settings, partitions=1)
    with pytest.raises(DataError, match="event 2: 1000 ms before"):
        await replay(settings, reversed(make_events(2)))
    with pytest.raises(DataError, match="speed 0"):
        await replay(settings, make_events(1), speed=0)


async def test_titles_are_published_before_the_events_that_name_them(settings: Settings) -> None:
    """Each title is on the catalogue topic, keyed by its id, and counted in the report."""
    await ensure_topics(settings, partitions=1)
    titles = [CatalogueItem("i", "One", ("drama",)), CatalogueItem("j", "Two")]
    report = await replay(settings, make_events(3), items=titles)
    assert (report.events, report.items) == (3, 2)
    assert report.summary().startswith("2 titles and 3 events sent")
    records = await read_all(settings, settings.kafka.catalogue_topic, 1)
    assert [CODEC.decode_item(record.value) for record in records] == titles
    assert [record.key for record in records] == [b"i", b"j"]


async def test_both_ways_of_sending_put_a_viewer_into_the_same_partition(settings: Settings) -> None:
    """Sent at full speed or paced, a viewer's records stay in one partition, or their order would be lost."""
    await ensure_topics(settings, partitions=3)
    events = make_events(40, step_ms=1)
    await replay(settings, events)
    await replay(settings, events, speed=100)
    places: dict[bytes | None, set[int]] = {}
    for record in await read_all(settings, settings.kafka.topic, 3):
        places.setdefault(record.key, set()).add(record.partition)
    assert len(places) == 7
    assert all(len(partitions) == 1 for partitions in places.values())
    assert len(set.union(*places.values())) > 1


async def test_a_broker_that_is_away_is_told_as_such() -> None:
    """Nothing listens there: the error says what and where."""
    away = Settings(kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1"))
    with pytest.raises(KafkaUnavailable, match=r"127\.0\.0\.1:1"):
        await replay(away, make_events(1))


async def test_an_impression_reaches_its_topic_keyed_by_viewer(settings: Settings, tmp_path: Path) -> None:
    """What the home page reports can be read back from Kafka."""
    await ensure_topics(settings, partitions=2)
    metrics = Metrics()
    sink = KafkaImpressions(settings, CODEC, metrics.impressions_lost)
    impression = Impression("m1", "ana", "r1", "g1", START_MS, True, ("a", "b"))
    await sink.send(impression)
    await sink.close()
    (record,) = await read_all(settings, settings.kafka.impressions_topic, 2)
    assert CODEC.decode_impression(record.value) == impression
    assert (record.key, record.timestamp) == (b"ana", START_MS)
    assert metrics.registry.get_sample_value("nearline_homepage_impressions_lost_total") == 0
