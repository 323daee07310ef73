"""Follows the catalogue topic, so that a title taken down this minute is gone from pages this minute, not after the next night.

The topic is compacted and read from its beginning at every start; what it says goes on top of the generation's catalogue. Without
Kafka the home page goes on with the generation's.
"""

from __future__ import annotations

import asyncio

import structlog

from contracts.codec import Codec
from contracts.errors import KafkaUnavailable, RecordError, UnknownSchema
from contracts.events import valid_id
from homepage.catalogue import LiveCatalogue
from runtime.kafka import AIOKafkaConsumer, TopicPartition, kafka_errors, make_admin, make_consumer
from runtime.settings import Settings

RETRY_S = 5.0
"""Between two tries while Kafka is away, or the topic is not there yet."""
FETCH_WAIT_MS = 1_000

log = structlog.get_logger()


class CatalogueFeed:
    """`run` is the home page's background task."""

    def __init__(self, settings: Settings, codec: Codec, catalogue: LiveCatalogue) -> None:
        self._settings = settings
        self._codec = codec
        self._catalogue = catalogue

    async def run(self) -> None:
        """Follow until cancelled; a failure is logged once per message and tried again."""
        reported = ""
        while True:
            try:
                await self._follow()
            except (KafkaUnavailable, UnknownSchema) as error:
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
                if record.value is None:
                    key = (record.key or b"").decode("ascii", "replace")
                    if valid_id(key):
                        self._catalogue.remove(key)
                    continue
                try:
                    self._catalogue.put(self._codec.decode_item(record.value))
                except RecordError as error:
                    log.warning("catalogue_record_skipped", offset=record.offset, problem=str(error))

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
