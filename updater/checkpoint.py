"""Marker, commit, resume: where each partition stands, durably, and where to start again.

Order of effects of a batch, and what a crash after each step leaves behind:

1. dead letters acknowledged      the batch is done again; a dead letter may be there twice (it names its coordinates)
2. viewers' hashes written        the batch is done again; merging changes nothing, nothing is written
3. marker written (same Redis)    the start is min(committed, marker) = committed: done again, not counted again
4. offsets committed to Kafka     nothing is left behind

The marker lies in the store that holds the hashes: a store that loses its last second, or comes back as an older copy,
loses the marker with them, and the lost part is replayed.

With the marker moves an anchor: offset, timestamp and digest of the newest finished record. Whoever resumes reads that record back.
Another one there means another log: nothing is processed, and a person decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from contracts.anchors import Anchor
from contracts.errors import HaltError, KafkaUnavailable
from runtime.anchors import check_anchors, remedy
from runtime.kafka import (
    AIOKafkaConsumer,
    CommitFailedError,
    KafkaError,
    TopicPartition,
    count_partitions,
    kafka_errors,
    make_consumer,
)
from runtime.settings import Settings
from runtime.tasks import stop_client
from updater.pipeline import PartitionPlan, Position
from viewers.store import Marker, MarkerWrite, Store, Tally

log = structlog.get_logger()

SEED_REMEDY = "the next night folds in what the lake has of them; at once: nearline nightly --seed"


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
class Move:
    """A marker is to move to `next_offset`: what happened to the offsets until there, and the newest record among them. `gap_end`: the
    end of a declared gap, 0 for none."""

    next_offset: int
    tally: Tally
    anchor: Anchor | None = None
    gap_end: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """Where to resume a partition. `absent`: offsets from the marker (or the origin) on that the log does not hold any more."""

    position: int
    origin: int
    absent: int


def resume_point(
    *,
    marker: Marker | None,
    committed: int | None,
    seeded: int | None,
    beginning: int,
    end: int,
    where: str,
    what_to_do: str,
) -> Start:
    """Decide where a partition starts. Pure.

    With a marker: min(committed, marker). Without: the cut-off of a completed rebuild from the lake, else offset 0; never the
    committed offset, and not the earliest record either, as nothing shows that the store has the effects of what lay below: what
    the log does not hold any more is absent, and told.
    Errors: `HaltError` if the log ends before that point: the topic was recreated or truncated.
    """
    if marker is not None:
        done, origin = marker.next_offset, marker.origin
        position = done if committed is None else min(committed, done)
    else:
        done = position = origin = seeded or 0
    if done > end:
        raise HaltError(
            f"{where}: the store has finished offset {done} but the log ends at {end}: the topic was recreated or cut. {what_to_do}"
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
        self.passed: dict[int, int] = {}
        """Partition → the first offset that nobody is known to have finished before, whatever became of the store since: everything
        below has, or had, its dead letter."""
        self.progress: dict[int, Progress] = {}

    @property
    def positions(self) -> dict[int, Position]:
        return {p: Position(at.position, at.uncounted_from) for p, at in self.progress.items()}

    @property
    def anchors(self) -> dict[int, Anchor]:
        """What the markers are anchored to, as this process knows them."""
        return {p: at.marker.anchor for p, at in self.progress.items() if at.marker and at.marker.anchor}

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
        markers = await self._store.read_markers([tp.partition for tp in assigned])
        await self._require_partitions(markers)
        with kafka_errors(f"reading the offsets of {self._topic}", self._settings):
            committed = {tp: await self._consumer.committed(tp) for tp in assigned}
            beginnings = await self._consumer.beginning_offsets(assigned)
            ends = await self._consumer.end_offsets(assigned)
        starts = {
            tp: resume_point(
                marker=markers[tp.partition],
                committed=committed[tp],
                seeded=seeded.get(tp.partition),
                beginning=beginnings[tp],
                end=ends[tp],
                where=f"{self._topic}[{tp.partition}]",
                what_to_do=remedy(self._settings),
            )
            for tp in assigned
        }
        await self.check_log({p: marker.anchor for p, marker in markers.items() if marker and marker.anchor})
        progress = {}
        for tp, start in starts.items():
            at = progress[tp.partition] = Progress(start.position, markers[tp.partition], start.origin)
            if start.absent:
                await self._declare_gap(tp.partition, at, start.absent)
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
        for tp in assigned:
            offset = committed[tp] or 0
            if offset > ends[tp] or (markers[tp.partition] is None and self._settings.kafka.stream_epoch > 1):
                offset = 0  # a group's commits outlive its topic: this one may be of the log before
            self._pass(tp.partition, max(progress[tp.partition].uncounted_from, offset))
        self.progress = progress

    async def check_log(self, anchors: Mapping[int, Anchor]) -> None:
        """Is this the log in which these records were finished? Asked through a short-lived consumer, so that the positions of the
        group's one stay as they are. Errors: `HaltError` if it is another; `KafkaUnavailable`.
        """
        if not anchors:
            return
        reader = await make_consumer(self._settings)
        try:
            asked = {TopicPartition(self._topic, partition): anchor for partition, anchor in anchors.items()}
            await check_anchors(reader, asked, self._settings)
        finally:
            await stop_client(reader)

    async def anchor_again(self, anchors: Mapping[int, Anchor]) -> None:
        """Put earlier anchors back where the markers are: those of now may be of another log already, and whoever starts next must
        come to the same halt."""
        moves = {
            partition: Move(at.marker.next_offset, Tally(), anchors[partition])
            for partition, at in self.progress.items()
            if at.marker is not None and partition in anchors
        }
        await self._write(self.progress, moves)

    async def _require_partitions(self, markers: Mapping[int, Marker | None]) -> None:
        """A topic never gets fewer partitions: one that the store has finished records of and the broker does not know is another's.

        Asking for the offsets of a partition that is not there would wait for it, again and again.
        Errors: `HaltError`, `KafkaUnavailable`.
        """
        known = self._consumer.partitions_for_topic(self._topic)
        if not known or known >= markers.keys():
            return
        # What this client knows may be older than its assignment.
        count = await count_partitions(self._settings, self._topic)
        missing = [partition for partition in sorted(markers) if partition >= count]
        if count and any(markers[partition] is not None for partition in missing):
            raise HaltError(
                f"{self._topic}: the store has finished records of partition {missing[-1]}, but the topic has only {count} "
                f"partitions: it was recreated. {remedy(self._settings)}"
            )
        if missing:
            raise KafkaUnavailable(f"{self._topic} has {count} partitions; waiting to be assigned those that exist")

    async def _declare_gap(self, partition: int, at: Progress, absent: int) -> None:
        """Count offsets that the log does not hold any more, so that a loss is exact and visible.

        A store that knows nothing of the partition is either new, and the topic is not: nothing went wrong; or it was emptied.
        """
        first = at.uncounted_from
        offsets = {"topic": self._topic, "partition": partition, "from_offset": first, "to_offset": first + absent}
        if at.marker is None and first == 0:
            log.warning(
                "records_not_in_the_log",
                **offsets,
                reason="the store knows nothing of this partition, and its log begins later: to be expected where a topic older than "
                "its retention is read for the first time; else the store was emptied, or is another one",
                remedy=SEED_REMEDY,
            )
        else:
            log.error(
                "records_lost_to_retention",
                **offsets,
                reason="retention is shorter than the outage",
                remedy=SEED_REMEDY,
            )
        await self._write(
            {partition: at}, {partition: Move(first + absent, Tally(absent=absent), gap_end=first + absent)}
        )

    async def pass_absent(self, ahead: Mapping[int, int]) -> None:
        """Move past offsets that hold no record: partition → next offset that may hold one."""
        moves = {}
        for partition, next_offset in ahead.items():
            at = self.progress[partition]
            at.position = next_offset
            if next_offset > at.uncounted_from:
                moves[partition] = Move(next_offset, Tally(absent=next_offset - at.uncounted_from))
        await self._write(self.progress, moves)

    async def advance(self, partitions: Mapping[int, PartitionPlan], tallies: Mapping[int, Tally]) -> None:
        """Move the markers past a finished batch. Errors: `StoreChanged`, `StoreUnavailable`: resume again."""
        moves = {}
        for partition, todo in partitions.items():
            at = self.progress[partition]
            at.position = todo.next_offset
            at.last_timestamp_ms = todo.last_timestamp_ms
            if todo.advances:
                moves[partition] = Move(todo.next_offset, tallies[partition], todo.anchor)
        await self._write(self.progress, moves)

    async def _write(self, progress: Mapping[int, Progress], moves: Mapping[int, Move]) -> None:
        await self._store.write_markers(
            [
                MarkerWrite(
                    partition,
                    None if (marker := progress[partition].marker) is None else marker.next_offset,
                    move.next_offset,
                    progress[partition].origin,
                    move.tally,
                    move.anchor,
                    move.gap_end,
                )
                for partition, move in moves.items()
            ]
        )
        for partition, move in moves.items():
            at = progress[partition]
            before = at.marker or Marker(at.origin, at.origin)
            at.marker = before.moved(move.next_offset, move.tally, move.anchor, move.gap_end)
            self._pass(partition, move.next_offset)

    def _pass(self, partition: int, offset: int) -> None:
        self.passed[partition] = max(self.passed.get(partition, 0), offset)

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
