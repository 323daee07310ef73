"""Sends events through the real topic, in time order: history at full speed, or an evening at its own pace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from contracts.catalogue import CatalogueItem
from contracts.codec import Codec
from contracts.errors import DataError, KafkaUnavailable
from contracts.events import PlaybackEvent
from runtime.kafka import AIOKafkaProducer, choose_partition, kafka_errors, make_producer
from runtime.schemas import open_codec
from runtime.settings import Settings

LINGER_MS = 5
"""Longest wait for a fuller batch of titles, ms."""

CHECK_EVERY = 500
"""Events between two looks at the clock and at failed sends: some 10 ms of work, so that the loop stays responsive."""

PROGRESS_EVERY_S = 0.2
"""How often progress is told, seconds."""

MIN_PAUSE_S = 0.001
"""A paced replay that is ahead by less than this goes on: shorter pauses cost more than they wait."""

PRIVATE_HEADERS = {False: [("private", b"0")], True: [("private", b"1")]}


@dataclass(frozen=True, slots=True)
class Progress:
    """So far: events handed over, the last one's time, and how long it took."""

    sent: int
    event_time_ms: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What was sent and acknowledged. `behind_s`: how far a paced replay fell behind its schedule at worst."""

    events: int
    items: int
    elapsed_s: float
    first_event_ms: int | None
    last_event_ms: int | None
    behind_s: float

    @property
    def events_per_s(self) -> float:
        """Acknowledged events per second."""
        return self.events / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def summary(self) -> str:
        """One line for a person."""
        late = f", at worst {self.behind_s:.1f} s behind its schedule" if self.behind_s >= 1 else ""
        titles = f"{self.items:,} titles and " if self.items else ""
        return (
            f"{titles}{self.events:,} events sent in {self.elapsed_s:.1f} s ({self.events_per_s:,.0f} events/s){late}"
        )


async def publish_items(settings: Settings, items: Iterable[CatalogueItem], codec: Codec | None = None) -> int:
    """Send titles to the catalogue topic, keyed by item, and wait until all are acknowledged; returns how many.

    Raises `KafkaUnavailable` if one is not."""
    if codec is None:
        codec = await asyncio.to_thread(open_codec, settings)
    encode = codec.encode_item
    producer = await make_producer(settings, linger_ms=LINGER_MS)
    try:
        with kafka_errors("publishing titles", settings):
            sent = [
                await producer.send(settings.kafka.catalogue_topic, encode(item), key=item.item_id.encode())
                for item in items
            ]
            await asyncio.gather(*sent)
    finally:
        with kafka_errors("closing the producer", settings):
            await producer.stop()
    return len(sent)


async def send_event(
    producer: AIOKafkaProducer, codec: Codec, settings: Settings, event: PlaybackEvent
) -> asyncio.Future[Any]:
    """Hand one event to the producer as players do: keyed, dated, with the header. The future is the acknowledgement."""
    with kafka_errors("sending an event", settings):
        acknowledgement: asyncio.Future[Any] = await producer.send(
            settings.kafka.topic,
            codec.encode_event(event),
            key=event.viewer.encode(),
            timestamp_ms=event.event_time_ms,
            headers=PRIVATE_HEADERS[event.private],
        )
    return acknowledgement


async def replay(
    settings: Settings,
    events: Iterable[PlaybackEvent],
    *,
    speed: float | None = None,
    progress: Callable[[Progress], None] | None = None,
    codec: Codec | None = None,
    items: Iterable[CatalogueItem] = (),
) -> ReplayReport:
    """Send `events` (in time order) to the playback topic and wait until every one is acknowledged.

    `speed` None: as fast as the broker takes them; 1.0: as fast as they happened; 60: an hour a minute. `items` are published
    first, to the catalogue topic. Keyed by viewer, with the header `private`; a record is dated like its event, so that checks
    against the record's time hold for history too.

    Raises `DataError` if the events are not in time order, `KafkaUnavailable` if the broker does not acknowledge one. A crash
    or a cancellation leaves a prefix of the events (per partition) in the topic; sending them again changes nothing.
    """
    if speed is not None and not speed > 0:
        raise DataError(f"speed {speed}: must be above 0 (or None for as fast as possible)")
    if codec is None:
        codec = await asyncio.to_thread(open_codec, settings)
    titles = await publish_items(settings, items, codec)
    producer = await make_producer(settings)
    try:
        return await _Replay(settings, producer, codec, speed, progress, titles).run(events)
    finally:
        with kafka_errors("closing the producer", settings):
            await producer.stop()


class _Replay:
    """One replay under way."""

    def __init__(
        self,
        settings: Settings,
        producer: AIOKafkaProducer,
        codec: Codec,
        speed: float | None,
        progress: Callable[[Progress], None] | None,
        items: int,
    ) -> None:
        self._settings = settings
        self._items = items
        self._topic = settings.kafka.topic
        self._producer = producer
        self._codec = codec
        self._encode = codec.encode_event
        self._speed = speed
        self._progress = progress
        self._open: dict[int, Any] = {}  # partition → batch being filled
        self._places: dict[
            str, tuple[int, bytes]
        ] = {}  # viewer → partition and key: hashing a key costs more than sending
        self._partitions = 0
        self._failure: BaseException | None = None
        self._acknowledged = 0
        self._started_s = 0.0
        self._told_s = 0.0

    async def run(self, events: Iterable[PlaybackEvent]) -> ReplayReport:
        """Send all, flush, and report."""
        sent, first_ms, last_ms, behind_s = 0, None, None, 0.0
        with kafka_errors("replaying", self._settings):
            self._partitions = len(await self._producer.partitions_for(self._topic))
            self._started_s = self._told_s = time.monotonic()
            for event in events:
                time_ms = event.event_time_ms
                if first_ms is None:
                    first_ms = time_ms
                elif last_ms is not None and time_ms < last_ms:
                    raise DataError(
                        f"event {sent + 1}: {last_ms - time_ms} ms before the one ahead of it; sort by time"
                    )
                last_ms = time_ms
                if self._speed is None:
                    await self._collect(event)
                else:
                    behind_s = max(behind_s, await self._wait_until_due((time_ms - first_ms) / 1000 / self._speed))
                    await self._send(event)
                sent += 1
                if sent % CHECK_EVERY == 0:
                    await asyncio.sleep(0)
                    self._check()
                    self._tell(sent, time_ms)
            for partition in list(self._open):
                await self._submit(partition)
            await self._producer.flush()
        await asyncio.sleep(0)  # the last acknowledgements' callbacks are due in this turn of the loop
        self._check()
        if self._acknowledged != sent:
            raise KafkaUnavailable(
                f"{sent - self._acknowledged} of {sent} events were not acknowledged; send them again"
            )
        self._tell(sent, last_ms or 0, last=True)
        return ReplayReport(sent, self._items, time.monotonic() - self._started_s, first_ms, last_ms, behind_s)

    async def _send(self, event: PlaybackEvent) -> None:
        """One event at once."""
        acknowledgement = await send_event(self._producer, self._codec, self._settings, event)
        acknowledgement.add_done_callback(partial(self._settle, 1))

    async def _collect(self, event: PlaybackEvent) -> None:
        """One event into its partition's batch, which is submitted when it is full."""
        place = self._places.get(event.viewer)
        if place is None:
            key = event.viewer.encode()
            place = self._places[event.viewer] = choose_partition(key, self._partitions), key
        partition, key = place
        record = {
            "timestamp": event.event_time_ms,
            "key": key,
            "value": self._encode(event),
            "headers": PRIVATE_HEADERS[event.private],
        }
        batch = self._open.get(partition)
        if batch is None or batch.append(**record) is None:
            if batch is not None:
                await self._submit(partition)
            batch = self._open[partition] = self._producer.create_batch()
            if batch.append(**record) is None:
                raise DataError(f"event {event.event_id}: too large for a batch")

    async def _submit(self, partition: int) -> None:
        """Hand a batch over; waits while the one before it is not under way yet, so order holds and memory is bounded."""
        batch = self._open.pop(partition)
        acknowledgement = await self._producer.send_batch(batch, self._topic, partition=partition)
        acknowledgement.add_done_callback(partial(self._settle, batch.record_count()))

    async def _wait_until_due(self, due_s: float) -> float:
        """Pause until `due_s` seconds after the start; returns by how much that has passed already."""
        ahead_s = due_s - (time.monotonic() - self._started_s)
        if ahead_s >= MIN_PAUSE_S:
            await asyncio.sleep(ahead_s)
            self._check()
        return max(0.0, -ahead_s)

    def _settle(self, count: int, acknowledgement: asyncio.Future[Any]) -> None:
        if acknowledgement.cancelled():
            return
        error = acknowledgement.exception()
        if error is None:
            self._acknowledged += count
        else:
            self._failure = self._failure or error

    def _check(self) -> None:
        if self._failure is not None:
            raise KafkaUnavailable(
                f"an event was not acknowledged ({type(self._failure).__name__}); send them again: nothing doubles"
            ) from self._failure

    def _tell(self, sent: int, time_ms: int, *, last: bool = False) -> None:
        now_s = time.monotonic()
        if self._progress is not None and (last or now_s - self._told_s >= PROGRESS_EVERY_S):
            self._told_s = now_s
            self._progress(Progress(sent, time_ms, now_s - self._started_s))
