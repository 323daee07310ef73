"""Follows the catalogue topic, so that what it says of a title holds this minute, not after the next night: the home page takes down what
is taken down, the aggregator adds what is new.

The topic is compacted and read from its beginning at every start; what it says goes on top of the generation's catalogue. Without
Kafka the home page goes on with the generation's.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from contracts.catalogue import CatalogueItem
from contracts.errors import InvalidEvent, KafkaUnavailable, RecordError, UnknownSchema
from contracts.events import valid_id
from contracts.framing import framed
from runtime.kafka import AIOKafkaConsumer, TopicPartition, kafka_errors, make_admin, make_consumer
from runtime.learning_codec import LearningCodec
from runtime.settings import Settings
from runtime.tasks import pause, stop_client

RETRY_S = 5.0
"""Between two tries while Kafka is away, or the topic is not there yet."""
FETCH_WAIT_MS = 1_000

log = structlog.get_logger()


class Catalogue(Protocol):
    """Who is told."""

    def put(self, item: CatalogueItem) -> None:
        """What the topic says of a title."""

    def remove(self, item_id: str) -> None:
        """The topic holds the title no more."""


class CatalogueFeed:
    """`run` is a background task. `caught_up`: everything that the topic held at the start has been told, or there is no topic."""

    def __init__(self, settings: Settings, codec: LearningCodec, catalogue: Catalogue) -> None:
        self.caught_up = False
        self._stopping = asyncio.Event()
        self._settings = settings
        self._codec = codec
        self._catalogue = catalogue
        # Key → newest value and its offset, of a schema that the registry does not know yet.
        self._unread: dict[bytes, tuple[bytes, int]] = {}
        self._unread_with = codec.current

    async def run(self) -> None:
        """Follow until `stop`, or until cancelled; a failure is logged once per message and tried again."""
        reported = ""
        while not self._stopping.is_set():
            try:
                await self._follow()
            except KafkaUnavailable as error:
                if str(error) != reported:
                    reported = str(error)
                    log.warning("catalogue_feed_away", problem=reported)
            await pause(self._stopping, RETRY_S)

    def stop(self) -> None:
        """End with the fetch under way: a client that is cut short where it connects or closes leaves its connection open."""
        self._stopping.set()

    async def _follow(self) -> None:
        """Read every partition from its beginning, until `stop`. Returns if the topic does not exist."""
        partitions = await self._partitions()
        if not partitions:
            self.caught_up = True
            return
        consumer = await make_consumer(self._settings)
        try:
            with kafka_errors("following the catalogue", self._settings):
                consumer.assign(partitions)
                for partition, offset in (await consumer.beginning_offsets(partitions)).items():
                    consumer.seek(partition, offset)
                ends = await consumer.end_offsets(partitions)
                while not self._stopping.is_set():
                    await self._take(consumer)
                    if not self.caught_up:
                        reached = [await consumer.position(partition) >= end for partition, end in ends.items()]
                        self.caught_up = all(reached)
        finally:
            await stop_client(consumer)

    async def _take(self, consumer: AIOKafkaConsumer) -> None:
        fetched = await consumer.getmany(timeout_ms=FETCH_WAIT_MS)
        for records in fetched.values():
            for record in records:
                value = None if record.value is None else framed(record.value, record.headers)
                self.take(record.key or b"", value, record.offset)
        self.take_unread()

    def take(self, key: bytes, value: bytes | None, offset: int) -> None:
        """One record. What cannot be read is passed over, so that it holds up nobody else's take-down."""
        self._unread.pop(key, None)
        item_id = key.decode("ascii", "replace")
        if value is None:
            if valid_id(item_id):
                self._catalogue.remove(item_id)
            return
        try:
            item = self._codec.decode_item(value)
            if item.item_id != item_id or not valid_id(item_id):  # as the night has it
                raise InvalidEvent("the key of a catalogue record must be the item's id")
            self._catalogue.put(item)
        except RecordError as error:
            log.warning("catalogue_record_skipped", offset=offset, problem=str(error))
        except UnknownSchema as error:
            if not self._unread:
                log.warning("catalogue_record_put_aside", offset=offset, problem=str(error))
            self._unread[key] = value, offset

    def take_unread(self) -> None:
        """Try what was put aside again, once the registry has changed."""
        if not self._unread:
            return
        self._codec.reload()
        if self._codec.current is not self._unread_with:
            self._unread_with = self._codec.current
            for key, (value, offset) in tuple(self._unread.items()):
                self.take(key, value, offset)

    async def _partitions(self) -> list[TopicPartition]:
        topic = self._settings.kafka.catalogue_topic
        admin = await make_admin(self._settings)
        try:
            with kafka_errors("describing the catalogue topic", self._settings):
                if topic not in await admin.list_topics():
                    return []
                (described,) = await admin.describe_topics([topic])
        finally:
            await admin.close()
        return [TopicPartition(topic, one["partition"]) for one in described["partitions"]]
