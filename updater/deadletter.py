"""Dead letters: records that can never be applied, kept with their coordinates and, where they may be quoted, their bytes.

Kafka Connect's header names, so that its tools read them. Sent at least once, acknowledged before the offset is passed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from contracts.errors import HaltError
from runtime.kafka import AIOKafkaProducer, kafka_errors
from runtime.settings import Settings
from updater.pipeline import DeadLetter

STAGE_OF_ERROR = {"UndecodableRecord": "VALUE_CONVERTER", "InvalidEvent": "TRANSFORMATION"}

FLOOD_RECORDS = 20
FLOOD_SHARE = 0.01
FLOOD_WINDOW = 10_000
"""At least 20 poison records that are over 1 % of the last 10,000 are a bad deploy, not bad data."""


def headers(letter: DeadLetter, topic: str) -> list[tuple[str, bytes]]:
    """Kafka-Connect-style headers, text values; a private record's own headers are left out with its bytes."""
    name = type(letter.cause).__name__
    fields = {
        "__connect.errors.topic": topic,
        "__connect.errors.partition": str(letter.record.partition),
        "__connect.errors.offset": str(letter.record.offset),
        "__connect.errors.stage": STAGE_OF_ERROR[name],
        "__connect.errors.exception.class.name": f"nearline.{name}",
        "__connect.errors.exception.message": str(letter.cause),
    }
    original = list(letter.record.headers) if letter.quotable else []
    return original + [(key, value.encode()) for key, value in fields.items()]


class DeadLetterQueue:
    """Sends dead letters to `<topic>.dlq`."""

    def __init__(self, producer: AIOKafkaProducer, settings: Settings) -> None:
        self._producer = producer
        self._settings = settings

    async def send(self, letters: Sequence[DeadLetter]) -> None:
        """Send and wait for every acknowledgement. Errors: `KafkaUnavailable`: the batch must be done again."""
        if not letters:
            return
        kafka = self._settings.kafka
        with kafka_errors(f"writing dead letters to {kafka.dead_letter_topic}", self._settings):
            acks = [
                await self._producer.send(
                    kafka.dead_letter_topic,
                    key=letter.record.key if letter.quotable else None,
                    value=letter.record.value if letter.quotable else None,
                    headers=headers(letter, kafka.topic),
                )
                for letter in letters
            ]
            for ack in acks:
                await ack


class FloodGuard:
    """Raises `HaltError` when poison records are too many to be accidents. Pure counting."""

    def __init__(self) -> None:
        self._batches: deque[tuple[int, int]] = deque()  # (records, poison) of the batches in the window
        self._records = 0
        self._poison = 0

    def observe(self, records: int, poison: int) -> None:
        """Count a batch. Errors: `HaltError`."""
        self._batches.append((records, poison))
        self._records += records
        self._poison += poison
        while self._batches and self._records - self._batches[0][0] >= FLOOD_WINDOW:
            old_records, old_poison = self._batches.popleft()
            self._records -= old_records
            self._poison -= old_poison
        if poison and self._poison >= FLOOD_RECORDS and self._poison > FLOOD_SHARE * min(self._records, FLOOD_WINDOW):
            raise HaltError(
                f"{self._poison} of the last {self._records} records could not be applied: a bad deploy of a producer, not bad "
                "data. Look at them (nearline dlq list), mend the producer, then: nearline resume"
            )
