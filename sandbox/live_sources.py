"""Where the live page's backend gets what the viewer's hash does not hold: the updater's numbers, last night's rows, the log's end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx

from contracts.errors import TransientError
from runtime.kafka import AIOKafkaConsumer, TopicPartition, kafka_errors, make_consumer
from runtime.settings import Settings
from sandbox.live_views import Part
from updater.metrics import RowTiming
from viewers.store import Marker, Store

SNAPSHOT_BATCH = 64
"""Rows read at once for the snapshot; the store's pool lets a quarter of them through."""


class UpdaterUnavailable(TransientError):
    """The updater's health port does not answer."""


class UpdaterProbe:
    """Asks an updater's health port for its numbers.

    With several updaters the numbers are those of the one that is asked: its partitions, its rows.
    """

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client, self._url = client, url.rstrip("/")

    async def stats(self) -> Mapping[str, Any]:
        """The updater's `/stats`."""
        found = await self._get("/stats")
        if not isinstance(found, dict):
            raise UpdaterUnavailable(f"the updater at {self._url} told no numbers; is this its health port?")
        return found

    async def timing(self, row_id: str) -> RowTiming | None:
        """When a recent row was fetched, computed and written; None if this updater did not write it."""
        found = await self._get(f"/timing/{row_id}")
        return RowTiming(**found) if isinstance(found, dict) else None

    async def _get(self, path: str) -> Any:
        try:
            answer = await self._client.get(self._url + path)
            if answer.status_code == 404:
                return None
            answer.raise_for_status()
            return answer.json()
        except httpx.HTTPStatusError as error:
            raise UpdaterUnavailable(f"the updater at {self._url} answered {error.response.status_code}") from error
        except (httpx.HTTPError, ValueError) as error:
            raise UpdaterUnavailable(f"the updater at {self._url} does not answer; is it running?") from error


class NightSnapshot:
    """Everybody's encoded rows as they were when `capture` ran: right after the nightly rebuild they are last night's.

    Asked before anything was captured, it reads everybody's rows first.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: dict[str, bytes] | None = None
        self._lock = asyncio.Lock()

    async def capture(self) -> int:
        """Read every viewer's row; returns how many there are. About a second for ten thousand viewers."""
        async with self._lock:
            self._rows = await self._read()
            return len(self._rows)

    async def __call__(self, viewer: str) -> bytes:
        async with self._lock:
            if self._rows is None:
                self._rows = await self._read()
            return self._rows.get(viewer, b"")

    async def _read(self) -> dict[str, bytes]:
        rows: dict[str, bytes] = {}
        async for viewers in self._store.scan_viewers():
            for start in range(0, len(viewers), SNAPSHOT_BATCH):
                batch = viewers[start : start + SNAPSHOT_BATCH]
                found = await asyncio.gather(*(self._store.read_row(viewer) for viewer in batch))
                rows |= dict(zip(batch, found, strict=True))
        return rows


def parts_of(event_ms: int, acknowledged_ms: float, timing: RowTiming | None, seen_ms: float) -> tuple[Part, ...]:
    """The legs from event to row; they follow one another and sum to the whole.

    The updater may have fetched the record before the producer hears of the acknowledgement: then that leg ends there.
    """
    if timing is None:
        return (
            Part("produced", max(0.0, acknowledged_ms - event_ms)),
            Part("row seen in the store", max(0.0, seen_ms - acknowledged_ms)),
        )
    produced_ms = max(float(event_ms), min(acknowledged_ms, timing.fetched_at_ms))
    legs = (
        ("produced", produced_ms),
        ("fetched", max(produced_ms, timing.fetched_at_ms)),
        ("state read", max(produced_ms, timing.computed_at_ms)),
        ("computed, written", max(produced_ms, timing.written_at_ms)),
    )
    parts, before_ms = [], float(event_ms)
    for name, at_ms in legs:
        parts.append(Part(name, max(0.0, at_ms - before_ms)))
        before_ms = max(before_ms, at_ms)
    return tuple(parts)


class LogProbe:
    """Where the playback log ends, and how far the stored markers are: measured beside the updater, so also while there is none."""

    def __init__(self, settings: Settings, store: Store, consumer: AIOKafkaConsumer, partitions: Sequence[int]) -> None:
        self._settings, self._store, self._consumer = settings, store, consumer
        self._topics = [TopicPartition(settings.kafka.topic, partition) for partition in partitions]

    async def ends(self) -> dict[int, int]:
        """Partition → the log's end. Errors: `KafkaUnavailable`."""
        with kafka_errors("asking where the log ends", self._settings):
            found = await self._consumer.end_offsets(self._topics)
        return {tp.partition: end for tp, end in found.items()}

    async def positions(self) -> dict[int, int]:
        """Partition → how far the stored marker is, 0 without one. Errors: `StoreUnavailable`."""
        markers: Mapping[int, Marker | None] = await self._store.read_markers([tp.partition for tp in self._topics])
        return {partition: marker.next_offset if marker else 0 for partition, marker in markers.items()}

    async def lag(self) -> int:
        """Records between the markers and the log's end."""
        positions = await self.positions()  # first: what is finished meanwhile must not make it negative
        return sum(max(0, end - positions[partition]) for partition, end in (await self.ends()).items())


@asynccontextmanager
async def open_log(settings: Settings, store: Store, partitions: Sequence[int]) -> AsyncIterator[LogProbe]:
    """With a consumer of its own, outside every group. Errors: `KafkaUnavailable`."""
    consumer = await make_consumer(settings)
    try:
        probe = LogProbe(settings, store, consumer, partitions)
        consumer.assign(probe._topics)
        yield probe
    finally:
        await consumer.stop()
