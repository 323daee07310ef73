"""The one seam to Kafka: only this module imports aiokafka.

Settings that are not the library's defaults, and why: no auto-commit and no offset reset (positions are ours: marker and
cut-off decide, never "latest"); a rebalance may take 60 s (the default is the session timeout, too short to drain);
fetches capped per partition (memory is partitions × that); values stay bytes (a failing deserialiser pins the position).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError, NoOffsetForPartitionError
from aiokafka.partitioner import murmur2
from aiokafka.structs import ConsumerRecord, OffsetAndMetadata

from contracts.errors import KafkaUnavailable
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
    "RecordsToDelete",
    "TopicPartition",
    "assignment_of",
    "choose_partition",
    "kafka_errors",
    "make_admin",
    "make_consumer",
    "make_producer",
]

_REQUEST_TIMEOUT_MS = 15_000


@contextmanager
def kafka_errors(what: str, settings: Settings) -> Iterator[None]:
    """Translate the client's errors: everything a broker may do to us is `KafkaUnavailable` (retry)."""
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        where = settings.kafka.bootstrap_servers
        raise KafkaUnavailable(f"{what}: Kafka at {where}: {type(error).__name__}: {error}") from error


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
        fetch_max_wait_ms=250,
        request_timeout_ms=_REQUEST_TIMEOUT_MS,
        metadata_max_age_ms=kafka.metadata_max_age_ms,
        isolation_level="read_committed",
    )
    with kafka_errors("connecting the consumer", settings):
        try:
            await consumer.start()
        except BaseException:
            await stop_client(consumer)
            raise
    return consumer


async def make_producer(settings: Settings, *, linger_ms: int = 0) -> AIOKafkaProducer:
    """A started idempotent producer (acks=all)."""
    producer = AIOKafkaProducer(
        **settings.kafka.client_kwargs(),
        client_id="nearline",
        enable_idempotence=True,
        acks="all",
        linger_ms=linger_ms,
        max_batch_size=1 << 17,
        request_timeout_ms=_REQUEST_TIMEOUT_MS,
    )
    with kafka_errors("connecting the producer", settings):
        try:
            await producer.start()
        except BaseException:
            await stop_client(producer)
            raise
    return producer


async def make_admin(settings: Settings) -> AIOKafkaAdminClient:
    """A started admin client."""
    admin = AIOKafkaAdminClient(**settings.kafka.client_kwargs(), client_id="nearline")
    with kafka_errors("connecting the admin client", settings):
        try:
            await admin.start()
        except BaseException:
            await admin.close()
            raise
    return admin
