"""Follows the catalogue topic, so that a title taken down this minute is gone from pages this minute, not after the next night.

The topic is compacted and read from its beginning at every start; what it says goes on top of the generation's catalogue. Without
Kafka the home page goes on with the generation's.
"""

from __future__ import annotations

import asyncio

import structlog

from contracts.errors import KafkaUnavailable, RecordError, UnknownSchema
from contracts.events import valid_id
from contracts.framing import framed
from homepage.catalogue import LiveCatalogue
from homepage.schemas import LearningCodec
from runtime.kafka import AIOKafkaConsumer, TopicPartition, kafka_errors, make_admin, make_consumer
from runtime.settings import Settings

RETRY_S = 5.0
"""Between two tries while Kafka is away, or the topic is not there yet."""
FETCH_WAIT_MS = 1_000

log = structlog.get_logger()


class CatalogueFeed:
    """`run` is the home page's background task."""

    def __init__(self, settings: Settings, codec: LearningCodec, catalogue: LiveCatalogue) -> None:
        self._settings = settings
        self._codec = codec
        self._catalogue = catalogue
        # Key → newest value and its offset, of a schema that the registry does not know yet.
        self._unread: dict[bytes, tuple[bytes, int]] = {}
        self._unread_with = codec.current

    async def run(self) -> None:
        """Follow until cancelled; a failure is logged once per message and tried again."""
        reported = ""
        while True:
            try:
                await self._follow()
            except KafkaUnavailable as error:
                if str(error) != reported:
                    reported = str(error)
                    log.warning("catalogue_feed_away", problem=reported)
            await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        """Read every partition from its beginning, for ever. Returns if the topic does not exist."""
        partitions = await self._partitions()
        if not partitions:
            return
        consumer = await make_consumer(self._settings)
        try:
            with kafka_errors("following the catalogue", self._settings):
                consumer.assign(partitions)
                for partition, offset in (await consumer.beginning_offsets(partitions)).items():
                    consumer.seek(partition, offset)
                while True:
                    await self._take(consumer)
        finally:
            await consumer.stop()

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
        if value is None:
            item_id = key.decode("ascii", "replace")
            if valid_id(item_id):
                self._catalogue.remove(item_id)
            return
        try:
            self._catalogue.put(self._codec.decode_item(value))
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
