"""Dead letters: records that can never be applied, kept with their coordinates and, where they may be quoted, their bytes.

Kafka Connect's header names, so that its tools read them, and two of our own (`runtime/deadletters.py` reads both). Sent at
least once, acknowledged before the offset is passed.

A letter keeps its record's timestamp, as its own and in a header: whether a time lies too far in the future is judged by it, also
when the letter is replayed. As its own it is no later than now, as a broker may refuse what comes from the future, and a letter that
is refused would stop the partition.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

from contracts.errors import HaltError
from runtime.deadletters import SOURCE_EPOCH, SOURCE_SHA256, SOURCE_SIZE, SOURCE_TIMESTAMP
from runtime.kafka import AIOKafkaProducer, kafka_errors
from runtime.settings import Settings
from updater.pipeline import DeadLetter, Plan
from viewers.packing import BadState, unpack
from viewers.store import Store

STAGE_OF_ERROR = {"UndecodableRecord": "VALUE_CONVERTER", "InvalidEvent": "TRANSFORMATION"}

MAX_QUOTED_BYTES = 64 * 1024
"""Four times what a valid record may have. Larger ones are kept by size and digest: a letter that the broker refuses for its size
would stop the partition for ever."""

FLOOD_RECORDS = 20
FLOOD_SHARE = 0.01
FLOOD_WINDOW = 10_000
"""At least 20 poison records that are over 1 % of the last 10,000 are a bad deploy, not bad data."""


def headers(letter: DeadLetter, topic: str, epoch: int = 1) -> list[tuple[str, bytes]]:
    """The record's own headers (left out with the bytes of what may be private), then ours, which readers take from the end."""
    name = type(letter.cause).__name__
    fields = {
        "__connect.errors.topic": topic,
        "__connect.errors.partition": str(letter.record.partition),
        "__connect.errors.offset": str(letter.record.offset),
        "__connect.errors.stage": STAGE_OF_ERROR[name],
        "__connect.errors.exception.class.name": f"nearline.{name}",
        "__connect.errors.exception.message": str(letter.cause),
        SOURCE_TIMESTAMP: str(letter.record.timestamp),
        SOURCE_EPOCH: str(epoch),
    }
    if letter.quotable and not _quoted(letter):
        value = letter.record.value or b""
        fields |= {SOURCE_SIZE: str(len(value)), SOURCE_SHA256: hashlib.sha256(value).hexdigest()}
    original = list(letter.record.headers) if _quoted(letter) else []
    return original + [(key, value.encode()) for key, value in fields.items()]


def _quoted(letter: DeadLetter) -> bool:
    """True if the letter holds the record's own key, value and headers."""
    record = letter.record
    size = len(record.key or b"") + len(record.value or b"")
    size += sum(len(name) + len(value or b"") for name, value in record.headers)
    return letter.quotable and size <= MAX_QUOTED_BYTES


def _value(letter: DeadLetter) -> bytes | None:
    """The record's bytes; none that may be private. The client refuses records without both key and value: those get an empty one."""
    if not _quoted(letter):
        return b""
    return b"" if letter.record.key is None and letter.record.value is None else letter.record.value


async def without_erased(store: Store, decided: Plan, passed: Mapping[int, int]) -> list[DeadLetter]:
    """A batch's letters; of those that may be about viewers who were erased since, only the coordinates.

    A viewer's poison is read again when a stream is set back, long after its letters were erased. `passed`: partition → the first offset
    that was never finished before. What lies below has its letter already, or had one that an erasure took out, and a store that fell
    back may not know of that erasure. For the others, what the store knows of erasures, and the batch itself, is looked at; an erasure
    that lies further ahead is not known yet: what is quoted then, the next night takes out (`batch/forget.py`).
    Errors: `StoreUnavailable`, `StoreChanged`.
    """
    letters = [
        replace(letter, quotable=False) if letter.record.offset < passed.get(letter.record.partition, 0) else letter
        for letter in decided.dead_letters
    ]
    named = sorted({viewer for letter in letters if letter.quotable for viewer in letter.viewers})
    if not named:
        return letters
    stored = await store.read_viewers(named)
    through_s = {viewer: _erased_through_s(one.state) for viewer, one in zip(named, stored, strict=True)}
    for job in decided.jobs:
        if job.viewer in through_s:
            through_s[job.viewer] = max(through_s[job.viewer], job.facts.erased_through_s)
    return [
        replace(letter, quotable=False) if letter.quotable and _is_erased(letter, through_s) else letter
        for letter in letters
    ]


def _is_erased(letter: DeadLetter, through_s: Mapping[str, float]) -> bool:
    at_s = max(0, letter.record.timestamp // 1000)
    return any(at_s <= through_s[viewer] for viewer in letter.viewers)


def _erased_through_s(state: bytes) -> float:
    """For ever, if the state cannot be read: what it forbids to quote is not known."""
    try:
        return unpack(state).erased_through_s
    except BadState:
        return math.inf


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
        now_ms = int(time.time() * 1000)
        with kafka_errors(f"writing dead letters to {kafka.dead_letter_topic}", self._settings):
            acks = [
                await self._producer.send(
                    kafka.dead_letter_topic,
                    key=letter.record.key if _quoted(letter) else None,
                    value=_value(letter),
                    timestamp_ms=None if letter.record.timestamp < 0 else min(letter.record.timestamp, now_ms),
                    headers=headers(letter, kafka.topic, kafka.stream_epoch),
                )
                for letter in letters
            ]
            await asyncio.gather(*acks)  # and not one by one: of several that fail, each has to be heard


class FloodGuard:
    """Raises `HaltError` when poison records are too many to be accidents. Pure counting."""

    def __init__(self) -> None:
        self._batches: deque[tuple[int, int]] = deque()  # (records, poison) of the batches in the window
        self._records = 0
        self._poison = 0
        self._counted_below: dict[int, int] = {}

    def fresh(self, letters: Sequence[DeadLetter], counted_below: Mapping[int, int]) -> int:
        """How many of these were not counted before: a rewind brings the same poison records again, and they are no more for it.

        `counted_below`: partition → the first offset that the marker's counters did not hold when the batch began. What a marker
        has passed was looked at then, whoever did it: offsets that are set back by hand must not bring an old halt again.
        """
        before = {**self._counted_below}
        fresh = 0
        for letter in letters:
            partition, offset = letter.record.partition, letter.record.offset
            fresh += offset >= max(before.get(partition, 0), counted_below.get(partition, 0))
            self._counted_below[partition] = max(self._counted_below.get(partition, 0), offset + 1)
        return fresh

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
