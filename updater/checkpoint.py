"""Marker, commit, resume: where each partition stands, durably, and where to start again.

Order of effects of a batch, and what a crash after each step leaves behind:

1. dead letters acknowledged      the batch is done again; a dead letter may be there twice (it names its coordinates)
2. viewers' hashes written        the batch is done again; merging changes nothing, nothing is written
3. marker written (same Redis)    the start is min(committed, marker) = committed: done again, not counted again
4. offsets committed to Kafka     nothing is left behind

The marker lies in the store that holds the hashes: a store that loses its last second, or comes back as an older copy,
loses the marker with them, and the lost part is replayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from contracts.errors import HaltError
from runtime.kafka import AIOKafkaConsumer, CommitFailedError, KafkaError, TopicPartition, kafka_errors
from runtime.settings import Settings
from updater.pipeline import PartitionPlan, Position
from viewers.store import Marker, MarkerWrite, Store, Tally

log = structlog.get_logger()


@dataclass(slots=True)
class Progress:
    """One assigned partition. `position`: next offset to process; `marker`: what the store holds (None: none yet)."""

    position: int
    marker: Marker | None
    origin: int
    last_timestamp_ms: int = 0  # of the newest processed record

    @property
    def uncounted_from(self) -> int:
        """The first offset that the counters do not hold yet."""
        return self.origin if self.marker is None else self.marker.next_offset


@dataclass(frozen=True, slots=True)
class Start:
    """Where to resume a partition. `absent`: offsets that retention deleted before they were read."""

    position: int
    origin: int
    absent: int


def resume_point(
    *, marker: Marker | None, committed: int | None, seeded: int | None, beginning: int, end: int, where: str
) -> Start:
    """Decide where a partition starts. Pure.

    With a marker: min(committed, marker). Without: the cut-off of a completed rebuild from the lake, else the earliest
    record; never the committed offset, as nothing shows that the store has its effects.
    Errors: `HaltError` if the log ends before that point: the topic was recreated or truncated.
    """
    if marker is not None:
        done, origin = marker.next_offset, marker.origin
        position = done if committed is None else min(committed, done)
    else:
        done = position = origin = beginning if seeded is None else seeded
    if done > end:
        raise HaltError(
            f"{where}: the store has finished offset {done} but the log ends at {end}: the topic was recreated or cut. "
            "Raise kafka.stream_epoch by one to read it from its start, or restore the topic"
        )
    return Start(max(position, beginning), origin, max(0, beginning - done))


class Checkpoint:
    """Progress of the assigned partitions."""

    def __init__(self, consumer: AIOKafkaConsumer, store: Store, settings: Settings) -> None:
        self._consumer = consumer
        self._store = store
        self._settings = settings
        self._topic = settings.kafka.topic
        self._committed: dict[int, int] = {}
        self.progress: dict[int, Progress] = {}

    @property
    def positions(self) -> dict[int, Position]:
        return {p: Position(at.position, at.uncounted_from) for p, at in self.progress.items()}

    async def resume(self) -> None:
        """Read where every assigned partition stands, declare gaps, and seek there.

        Errors: `HaltError`, `StoreUnavailable`, `StoreChanged`, `KafkaUnavailable`; nothing is assigned then.
        """
        self.progress = {}
        assigned = sorted(self._consumer.assignment())
        if not assigned:
            return
        # The markers first: whoever still believes to own a partition may meet its new owner at work, and a marker that
        # moved after the log's end was read would look like a log that was cut.
        seeded = await self._store.read_seeded()
        markers = {tp: await self._store.read_marker(tp.partition) for tp in assigned}
        with kafka_errors(f"reading the offsets of {self._topic}", self._settings):
            committed = {tp: await self._consumer.committed(tp) for tp in assigned}
            beginnings = await self._consumer.beginning_offsets(assigned)
            ends = await self._consumer.end_offsets(assigned)
        progress = {}
        for tp in assigned:
            marker = markers[tp]
            start = resume_point(
                marker=marker,
                committed=committed[tp],
                seeded=seeded.get(tp.partition),
                beginning=beginnings[tp],
                end=ends[tp],
                where=f"{self._topic}[{tp.partition}]",
            )
            at = Progress(start.position, marker, start.origin)
            if start.absent:
                await self._declare_gap(tp.partition, at, start.absent)
            progress[tp.partition] = at
            with kafka_errors(f"seeking in {self._topic}", self._settings):
                self._consumer.seek(tp, start.position)
            log.info(
                "partition_resumed",
                topic=self._topic,
                partition=tp.partition,
                offset=start.position,
                marker=at.uncounted_from,
            )
        self._committed = {tp.partition: offset for tp, offset in committed.items() if offset is not None}
        self.progress = progress

    async def _declare_gap(self, partition: int, at: Progress, absent: int) -> None:
        """Count offsets that retention deleted, so that the loss is exact and visible."""
        first = at.uncounted_from
        log.error(
            "records_lost_to_retention",
            topic=self._topic,
            partition=partition,
            from_offset=first,
            to_offset=first + absent,
            remedy="retention is shorter than the outage: nearline nightly --seed rebuilds them from the lake as far as it reaches",
        )
        await self._write({partition: (at, first + absent, Tally(absent=absent))})

    async def pass_absent(self, ahead: Mapping[int, int]) -> None:
        """Move past offsets that hold no record: partition → next offset that may hold one."""
        moves = {}
        for partition, next_offset in ahead.items():
            at = self.progress[partition]
            at.position = next_offset
            if next_offset > at.uncounted_from:
                moves[partition] = (at, next_offset, Tally(absent=next_offset - at.uncounted_from))
        await self._write(moves)

    async def advance(self, partitions: Mapping[int, PartitionPlan], tallies: Mapping[int, Tally]) -> None:
        """Move the markers past a finished batch. Errors: `StoreChanged`, `StoreUnavailable`: resume again."""
        moves = {}
        for partition, todo in partitions.items():
            at = self.progress[partition]
            at.position = todo.next_offset
            at.last_timestamp_ms = todo.last_timestamp_ms
            if todo.advances:
                moves[partition] = (at, todo.next_offset, tallies[partition])
        await self._write(moves)

    async def _write(self, moves: Mapping[int, tuple[Progress, int, Tally]]) -> None:
        await self._store.write_markers(
            [
                MarkerWrite(
                    partition, None if at.marker is None else at.marker.next_offset, next_offset, at.origin, tally
                )
                for partition, (at, next_offset, tally) in moves.items()
            ]
        )
        for at, next_offset, tally in moves.values():
            before = at.marker or Marker(at.origin, at.origin)
            at.marker = Marker(
                next_offset,
                before.origin,
                before.applied + tally.applied,
                before.noop + tally.noop,
                before.private + tally.private,
                before.dead + tally.dead,
                before.absent + tally.absent,
            )

    async def commit(self) -> None:
        """Commit to Kafka no more than the markers. Losing the partitions meanwhile is benign."""
        offsets = {
            partition: min(at.position, at.marker.next_offset)
            for partition, at in self.progress.items()
            if at.marker is not None
        }
        due = {p: offset for p, offset in offsets.items() if self._committed.get(p) != offset}
        if not due:
            return
        try:
            await self._consumer.commit({TopicPartition(self._topic, p): offset for p, offset in due.items()})
        except CommitFailedError:
            return
        except KafkaError as error:
            log.warning(
                "commit_failed",
                error=repr(error),
                remedy="nothing to do: the marker holds; tried again with the next batch",
            )
            return
        self._committed |= due
