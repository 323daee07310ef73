"""The one seam to Kafka: only this module imports aiokafka.

Settings that are not the library's defaults, and why: no auto-commit and no offset reset (positions are ours: marker and
cut-off decide, never "latest"); a rebalance may take 60 s (the default is the session timeout, too short to drain);
fetches capped per partition (memory is partitions × that); values stay bytes (a failing deserialiser pins the position).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.conn import create_conn
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from aiokafka.partitioner import murmur2
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import ConsumerRecord, OffsetAndMetadata

from contracts.errors import KafkaUnavailable
from runtime.kafka_reasons import explain
from runtime.settings import Settings
from runtime.tasks import stop_client

__all__ = [
    "AIOKafkaAdminClient",
    "AIOKafkaConsumer",
    "AIOKafkaProducer",
    "CommitFailedError",
    "ConsumerRebalanceListener",
    "ConsumerRecord",
    "IllegalStateError",
    "KafkaError",
    "NewPartitions",
    "NewTopic",
    "NoOffsetForPartitionError",
    "OffsetAndMetadata",
    "OffsetOutOfRangeError",
    "RecordsToDelete",
    "TopicPartition",
    "assignment_of",
    "choose_partition",
    "count_partitions",
    "kafka_errors",
    "make_admin",
    "make_consumer",
    "make_producer",
]

_REQUEST_TIMEOUT_MS = 15_000
_PROBE_TIMEOUT_S = 3.0
"""For asking a broker why it did not let a client in."""


@contextmanager
def kafka_errors(what: str, settings: Settings) -> Iterator[None]:
    """Translate the client's errors: everything a broker may do to us is `KafkaUnavailable` (retry)."""
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        raise _unavailable(what, settings, error) from error


def _unavailable(what: str, settings: Settings, error: BaseException) -> KafkaUnavailable:
    return KafkaUnavailable(f"{what}: Kafka at {settings.kafka.bootstrap_servers}: {explain(error, settings.kafka)}")


async def _start(client: Any, what: str, settings: Settings) -> None:
    """Start a client, or close it and say why. Errors: `KafkaUnavailable`."""
    try:
        await client.start()
    except BaseException as error:
        await (client.close() if isinstance(client, AIOKafkaAdminClient) else stop_client(client))
        if not isinstance(error, KafkaError | OSError | TimeoutError):
            raise
        raise _unavailable(what, settings, await _why_kept_out(settings) or error) from error


async def _why_kept_out(settings: Settings) -> BaseException | None:
    """What the first broker that refuses says: the clients log it, and raise only that none let them in."""
    arguments = settings.kafka.client_kwargs()
    for address in arguments.pop("bootstrap_servers").split(","):
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                connection = await create_conn(host.strip("[]"), int(port), **arguments)
                try:
                    await connection.send(MetadataRequest([]))
                finally:
                    connection.close()
        except (KafkaError, OSError, TimeoutError) as error:
            return error
    return None


def assignment_of(consumer: AIOKafkaConsumer) -> object:
    """What the group has given this consumer: another object after every rebalance, also if the partitions are the same.

    Between taking up an assignment and calling its listener the client waits, and meanwhile it goes on from the committed offsets.
    It has no public name for this object.
    """
    subscription = consumer._subscription.subscription
    return None if subscription is None else subscription.assignment


def choose_partition(key: bytes, partitions: int) -> int:
    """The partition of a key: Java's murmur2 rule, which this client's producers follow too."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


async def make_consumer(settings: Settings, *, group_id: str | None = None) -> AIOKafkaConsumer:
    """A started consumer without a subscription: subscribe (with `group_id`) or assign."""
    kafka = settings.kafka
    consumer = AIOKafkaConsumer(
        **kafka.client_kwargs(),
        group_id=group_id,
        client_id="nearline",
        enable_auto_commit=False,
        auto_offset_reset="none",
        session_timeout_ms=kafka.session_timeout_ms,
        heartbeat_interval_ms=max(200, kafka.session_timeout_ms // 5),
        rebalance_timeout_ms=kafka.rebalance_timeout_ms,
        max_partition_fetch_bytes=kafka.max_partition_fetch_bytes,
        fetch_max_wait_ms=500,
        request_timeout_ms=_REQUEST_TIMEOUT_MS,
        metadata_max_age_ms=kafka.metadata_max_age_ms,
        isolation_level="read_committed",
    )
    await _start(consumer, "connecting the consumer", settings)
    return consumer


async def make_producer(settings: Settings, *, linger_ms: int = 0, idempotent: bool = True) -> AIOKafkaProducer:
    """A started producer (acks=all). `idempotent` False for one that lives on after a refusal: a batch that the broker refused (rights,
    size) leaves a gap in the client's sequence, and every later one is then refused as out of order."""
    producer = AIOKafkaProducer(
        **settings.kafka.client_kwargs(),
        client_id="nearline",
        enable_idempotence=idempotent,
        acks="all",
        linger_ms=linger_ms,
        max_batch_size=1 << 17,
        request_timeout_ms=_REQUEST_TIMEOUT_MS,
    )
    await _start(producer, "connecting the producer", settings)
    return producer


async def make_admin(settings: Settings) -> AIOKafkaAdminClient:
    """A started admin client."""
    admin = AIOKafkaAdminClient(**settings.kafka.client_kwargs(), client_id="nearline")
    await _start(admin, "connecting the admin client", settings)
    return admin


async def require_partitions(settings: Settings, topic: str) -> int:
    """The topic's partitions, as `count_partitions`. Errors: `KafkaUnavailable`, also if there is no such topic."""
    partitions = await count_partitions(settings, topic)
    if not partitions:
        raise KafkaUnavailable(f"there is no topic {topic}: create it, or set NEARLINE_KAFKA__TOPIC")
    return partitions


async def count_partitions(settings: Settings, topic: str) -> int:
    """The topic's partitions as the broker knows them now; 0 if there is no such topic. Errors: `KafkaUnavailable`."""
    admin = await make_admin(settings)
    try:
        with kafka_errors(f"describing {topic}", settings):
            if (
                topic not in await admin.list_topics()
            ):  # asking by name would create it where a broker creates topics by itself
                return 0
            (described,) = await admin.describe_topics([topic])
            return len(described["partitions"])
    finally:
        await admin.close()
