"""The updater with a schema registry's server: what it does while that is away, and with what Confluent's producers write."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient, header_schema_id_serializer
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from contracts.codec import _event_record
from contracts.framing import SCHEMA_HEADER
from contracts.registry import SCHEMAS_PATH, read_json
from runtime.kafka import make_producer
from runtime.schema_server import SchemaServer, subjects_of
from runtime.schemas import Schemas
from runtime.settings import Settings
from tests.consistency import Stage, plays, publish
from tests.registry_server import RegistryServer
from tests.worlds import wait_until
from updater.consumer import Updater
from updater.dlq import list_letters
from viewers.redis_store import open_store


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    made = RegistryServer()
    yield made
    made.down()


@pytest.fixture
def settings(stage: Stage, registry: RegistryServer) -> Settings:
    made = Settings(**stage.settings.model_dump() | {"schemas": {"registry_url": registry.url}})
    server = SchemaServer(made)
    server.register("orders-value", {"type": "record", "name": "Order", "fields": [{"name": "id", "type": "string"}]})
    for name, subject in subjects_of(made).items():
        server.register(subject, read_json(SCHEMAS_PATH / f"{name}.avsc"))
    return made


def serializer(settings: Settings, **conf: object) -> AvroSerializer:
    client = SchemaRegistryClient({"url": settings.schemas.registry_url})
    text = json.dumps(read_json(SCHEMAS_PATH / "playback_event.avsc"))
    return AvroSerializer(client, text, conf={"auto.register.schemas": False, **conf})


async def send(settings: Settings, events: list, *, by_guid: bool = False) -> None:
    """As a producer with Confluent's serialiser does: the schema's id before the value, or its GUID in a header."""
    write = serializer(settings, **({"schema.id.serializer": header_schema_id_serializer} if by_guid else {}))
    producer = await make_producer(settings)
    for event in events:
        headers: list[tuple[str, bytes]] = [("private", b"1" if event.private else b"0")]
        value = write(_event_record(event), SerializationContext(settings.kafka.topic, MessageField.VALUE, headers))
        assert [name for name, _ in headers] == ["private", *([SCHEMA_HEADER] if by_guid else [])]
        timestamp_ms = event.event_time_ms
        await producer.send(
            settings.kafka.topic, value, key=event.viewer.encode(), timestamp_ms=timestamp_ms, headers=headers
        )
    await producer.flush()
    await producer.stop()


@contextlib.asynccontextmanager
async def updater_of(settings: Settings) -> AsyncIterator[Updater]:
    """An updater as a process makes it, for whose registry five seconds pass in a quarter."""
    schemas, store = Schemas(settings), open_store(settings.store, settings.keys)
    schemas._server._clock_s = lambda: time.monotonic() * 20
    updater = Updater(settings, store, schemas.begin(), schemas=schemas)
    running = asyncio.create_task(updater.run())
    try:
        yield updater
    finally:
        updater.stop()
        try:
            await asyncio.wait_for(running, 30)
        finally:
            await store.close()


async def test_events_of_confluents_serialisers_are_applied_by_id_and_by_guid(stage: Stage, settings: Settings) -> None:
    publish(stage, "g1")
    stage.sent.extend(events := plays(9, 120))
    await send(settings, events[:60])
    await send(settings, events[60:], by_guid=True)
    async with updater_of(settings):
        await stage.drained(120)
    await stage.assert_consistent()
    await stage.assert_accounted()


async def test_a_registry_that_is_away_pauses_the_stream_and_loses_nothing(
    stage: Stage, settings: Settings, registry: RegistryServer
) -> None:
    publish(stage, "g1")
    stage.sent.extend(events := plays(9, 60))
    await send(settings, events)
    registry.down()
    async with updater_of(settings) as updater:
        await wait_until(lambda: updater.failing_since is not None, "the updater waits for the registry")
        assert not updater.ready
        assert await stage.finished() == 0
        assert await stage.dead_letters() == []
        registry.up()
        await stage.drained(60)
        assert updater._read_plays._header is not None, "the quick path knows the schema by now"
        stage.sent.extend(more := plays(9, 30, start=60))
        await send(settings, more)
        registry.down()  # what is known goes on without it
        await stage.drained(90)
    await stage.assert_consistent()


async def test_a_schema_of_another_topic_and_one_that_there_is_not_become_dead_letters(
    stage: Stage, settings: Settings, registry: RegistryServer
) -> None:
    publish(stage, "g1")
    producer = await make_producer(settings)
    for frame in (b"\x00\x00\x00\x00\x01", b"\x00\x7f\x00\x00\x01", b"\x01" + uuid.uuid4().bytes):
        value = frame + b"\x02a"
        await producer.send_and_wait(settings.kafka.topic, value, key=b"ana", partition=0, headers=[("private", b"0")])
    await producer.stop()
    async with updater_of(settings):
        await stage.drained(3)
    causes = {one.cause for one in (await list_letters(settings)).causes}
    assert any("is registered, and not for this topic but for orders-value" in cause for cause in causes), causes
    assert sum("is not known to the registry" in cause for cause in causes) == 2, causes
