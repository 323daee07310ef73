"""Counting for one generation: where it begins, what a record does, checkpoints (steps 1 and 2), and when the others are due."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

import structlog

from contracts.errors import GenerationError, KafkaUnavailable
from embeddings.generations_folder import GenerationsFolder
from runtime.kafka import (
    AIOKafkaConsumer,
    ConsumerRecord,
    TopicPartition,
    count_partitions,
    kafka_errors,
    require_partitions,
)
from trends.base import Base
from trends.checkpoints import changed_fields, counts_of
from trends.counters import Counts, Decision, share_erasures
from trends.newcomers import EVERY_S as NEWCOMERS_EVERY_S
from trends.process import LOOK_EVERY_S, Process
from trends.publishing import Publisher
from trends.reading import report_of
from trends.snapshots import decode
from viewers.trend_store import CheckpointWrite

log = structlog.get_logger()

FETCH_WAIT_MS = 200
FETCH_RECORDS = 2_048
MOST_CHANGED = 500
"""Titles of a partition: a checkpoint takes two arguments for each, those of one fetch more, and the places of new titles that were left
out; a script takes 8,000 at most."""


class Counting:
    """Counting for one generation with one consumer."""

    def __init__(self, process: Process, base: Base, consumer: AIOKafkaConsumer) -> None:
        self._process = process
        self._base = base
        self._consumer = consumer
        self._topic = process.settings.kafka.topic
        self._counts: dict[int, Counts] = {}
        self._stored: dict[int, int | None] = {}  # partition → next offset of its checkpoint
        self._publisher = Publisher(process, base, self._counts)
        self._next_look_s = 0.0
        self._next_checkpoint_s = 0.0

    async def begin(self) -> None:
        """Take up every partition where its checkpoint is, else at the cut-off. Errors: `KafkaUnavailable`, `StoreUnavailable`."""
        partitions = await require_partitions(self._process.settings, self._topic)
        assigned = [TopicPartition(self._topic, partition) for partition in range(partitions)]
        with kafka_errors(f"reading the offsets of {self._topic}", self._process.settings):
            self._consumer.assign(assigned)
            beginnings = await self._consumer.beginning_offsets(assigned)
            ends = await self._consumer.end_offsets(assigned)
        generation_id = self._base.generation_id
        for tp in assigned:
            found, stored = await _read(self._process, generation_id, tp.partition)
            at = self._base.cutoffs.get(tp.partition, 0) if found is None else found
            if at > ends[tp]:
                raise KafkaUnavailable(
                    f"{tp.topic}[{tp.partition}]: counted to offset {at}, but the log ends at {ends[tp]}: the updaters say what to do"
                )
            counts = stored or Counts(at)
            counts.next_offset = max(at, beginnings[tp])
            if counts.next_offset > at and found is not None:
                log.warning(
                    "records_gone_before_they_were_counted",
                    topic=tp.topic,
                    partition=tp.partition,
                    from_offset=at,
                    to_offset=beginnings[tp],
                )
            self._counts[tp.partition], self._stored[tp.partition] = counts, found
            self._consumer.seek(tp, counts.next_offset)
        share_erasures(self._counts.values())
        await self._forget_who_watched_before()
        await self._go_on_from_published()
        log.info(
            "counting_trends",
            generation_id=generation_id,
            offsets={str(partition): counts.next_offset for partition, counts in self._counts.items()},
        )

    async def _forget_who_watched_before(self) -> None:
        served = {self._base.generation_id, *self._base.current.generations}
        await forget_who_watched(self._process, served, self._counts)

    async def _go_on_from_published(self) -> None:
        """Items keep the vectors that they were last published with, until their viewers are looked at."""
        trends, generation_id = self._process.store.trends, self._base.generation_id
        pointer = await trends.read_pointer(generation_id)
        data = b"" if pointer is None else await trends.read_snapshot(pointer.name)
        if pointer is not None and data:
            with contextlib.suppress(GenerationError):  # an older program's, or a damaged one: they are made anew
                self._base.newcomers.take_up(decode(data, pointer.name).added)

    async def go_on(self, is_over: Callable[[], Awaitable[bool]]) -> None:
        """Steps 1 to 4, until `is_over` or partitions were added. Errors: any `TransientError`."""
        looked_s = partitions_s = time.monotonic()
        while True:
            with kafka_errors(f"reading {self._topic}", self._process.settings):
                fetched = await self._consumer.getmany(timeout_ms=FETCH_WAIT_MS, max_records=FETCH_RECORDS)
            if fetched:  # 1
                await self._process.off_loop(self._take, fetched)
                self._process.figures.lag = self._lag()
            now_s = time.monotonic()
            if now_s >= self._next_checkpoint_s or self._most_changed() >= MOST_CHANGED:
                await self._checkpoint()  # 2
                self._next_checkpoint_s = now_s + self._process.settings.trends.interval_s
            if now_s >= self._next_look_s:
                await self._look_for_new()
                self._next_look_s = now_s + NEWCOMERS_EVERY_S
            if self._publisher.is_due(now_s):
                await self._publisher.publish()  # 3
                await self._publisher.write_default_rows()  # 4
            if now_s - looked_s >= LOOK_EVERY_S:
                looked_s = now_s
                if await is_over():
                    await self._checkpoint()
                    return
            if now_s - partitions_s >= self._process.settings.kafka.metadata_max_age_ms / 1000:
                partitions_s = now_s
                if await count_partitions(self._process.settings, self._topic) > len(self._counts):
                    await self._checkpoint()
                    return

    def _take(self, fetched: Mapping[TopicPartition, Sequence[ConsumerRecord]]) -> None:
        """Off the loop. A record whose schema is not known yet ends it with nothing passed."""
        self._process.codec = self._process.schemas.doubting(self._process.codec)
        tally, now_ms, decode = self._process.figures.records, self._process.now_ms(), self._process.codec.decode_event
        for tp, records in fetched.items():
            counts = self._counts[tp.partition]
            for record in records:
                if record.offset < counts.next_offset:
                    continue
                report = report_of(record, decode)
                decision = Decision.OTHER if report is None else counts.take(report, self._base.rules, now_ms)
                if report is not None and report.facts.erased_through_s >= 0:
                    for other in self._counts.values():  # where the viewer's records lay before partitions were added
                        other.leave(report.viewer)
                counts.next_offset = record.offset + 1
                tally[decision.value] += 1

    def _most_changed(self) -> int:
        return max(len(counts.changed_rows) + len(counts.changed_new) for counts in self._counts.values())

    def _lag(self) -> int:
        marks = {p: self._consumer.highwater(TopicPartition(self._topic, p)) for p in self._counts}
        return sum(max(0, (mark or 0) - self._counts[p].next_offset) for p, mark in marks.items())

    async def _checkpoint(self) -> None:
        """Bring the store to what was counted. Errors: `StoreChanged` if it holds something else than this process wrote last."""
        for partition, counts in self._counts.items():  # offsets that hold no record are passed
            position = await self._consumer.position(TopicPartition(self._topic, partition))
            counts.next_offset = max(counts.next_offset, position)
        changed = {
            p: counts
            for p, counts in self._counts.items()
            if counts.next_offset != self._stored[p] or counts.changed_new
        }
        # What an erasure in another partition's log has changed goes first: read again, it would be done again.
        moved = dict(sorted(changed.items(), key=lambda one: one[1].next_offset != self._stored[one[0]]))
        writes = [
            CheckpointWrite(partition, self._stored[partition], counts.next_offset, changed_fields(counts))
            for partition, counts in moved.items()
        ]
        await self._process.store.trends.write_checkpoints(self._base.generation_id, writes)
        for partition, counts in moved.items():
            self._stored[partition] = counts.next_offset
            counts.changed_rows.clear()
            counts.changed_new.clear()
            counts.changed_slots.clear()

    async def _look_for_new(self) -> None:
        if self._base.rules.new_titles:
            await self._base.newcomers.look(self._counts, self._process.store.trends, self._process.holding)


async def forget_who_watched(process: Process, served: Collection[str], partitions: Iterable[int]) -> None:
    """Generations that are not counted for keep their sums, for a rollback; viewers stand only where an erasure finds them. `served`: those
    that are. Errors: `StoreChanged`, `StoreUnavailable`."""
    trends, partitions = process.store.trends, list(partitions)
    known = await process.off_loop(GenerationsFolder(process.settings.generations_path).list)
    for before in [manifest.generation_id for manifest in known if manifest.generation_id not in served]:
        for partition in partitions:
            found, counts = await _read(process, before, partition)
            if found is None or counts is None:
                continue
            counts.leave_all()
            if counts.changed_new:
                write = CheckpointWrite(partition, found, found, changed_fields(counts))
                await trends.write_checkpoints(before, [write])


async def _read(process: Process, generation_id: str, partition: int) -> tuple[int | None, Counts | None]:
    """A checkpoint: its next offset and its counts; None where there is none. Errors: `StoreChanged`, `StoreUnavailable`."""
    await process.hold()  # it may take longer than the lease lasts
    found, fields = await process.store.trends.read_checkpoint(generation_id, partition)
    if found is None:
        return None, None
    return found, await process.off_loop(counts_of, found, fields, f"{generation_id}[{partition}]")
