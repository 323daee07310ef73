"""The planned copy from Kafka to the lake: what a copy covers is written down before it is made, and a repeat follows the plan.

1. Plan: `plans/<n>.json`: topic, partition, from, to   from = the last plan's to; to = the end now (of committed records)
2. Chunks: some 100,000 records each; the erasures they hold go to the ledger first, then the files `<n>-<chunk>.parquet`
3. A line in `plans/<n>.chunks.jsonl` for each chunk    with what was counted
4. `plans/<n>.done.json`                                the sums; the next plan starts at this one's to

A crash after 1 leaves a plan that the next try follows; after 2 a chunk that is written again under the same names; after 3 the
next try goes on behind that chunk. So files never overlap, and nothing is there twice. What retention deleted before it was
copied is counted as lost, and told.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import structlog

from batch.lake import EVENTS_SCHEMA, HOUR_MS, SCHEMAS, Lake, hour_folder, write_parquet
from batch.plans import CHUNK_RECORDS, CopyPlan, CopyReport, Plans, Range, draw_plan
from contracts.anchors import Anchor, anchor_of
from contracts.codec import Codec
from contracts.errors import InvalidEvent, KafkaUnavailable, RecordError, UserError
from contracts.events import Kind, said_private, valid_id, validate
from contracts.framing import framed
from embeddings.roots import flush_folder
from runtime.anchors import Reader, check_anchors
from runtime.kafka import TopicPartition, kafka_errors
from runtime.settings import Settings

log = structlog.get_logger()

POLL_MS = 500
STALLED_AFTER_S = 60.0
"""A copy that gets nothing from a partition for so long gives up, to be tried again."""
HOUR_COLUMNS = {"events": "event_time_ms", "impressions": "served_at_ms"}
WRITERS = 8
"""Files written at once: an old history has a file per hour, and each waits for the disk."""

_EVENT_FIELDS = EVENTS_SCHEMA.names[4:]


async def copy_records(
    settings: Settings,
    lake: Lake,
    codec: Codec,
    consumer: Reader,
    partitions: Mapping[str, int],
    *,
    advance: Callable[[int, int], None] = lambda done, total: None,
    chunk_records: int = CHUNK_RECORDS,
) -> CopyReport:
    """Finish the plan in hand, if there is one; else draw a new one and carry it out.

    `partitions`: topic → number of partitions (0: no such topic). `advance(done, total)`: offsets dealt with.
    Errors: `KafkaUnavailable` and `UnknownSchema` (try again: it goes on where it was), `HaltError`, `DataError`,
    `UserError` if the topic of the events is not there.
    """
    plans, stream = Plans(lake), settings.kafka.stream
    plan = plans.last()
    if plan is not None and plan.stream != stream and plans.report(plan) is None:
        log.error(
            "copy_of_an_older_stream_ended",
            plan=plan.number,
            stream=plan.stream,
            now=stream,
            reason="its events went with their topic: what was not copied yet counts as lost",
        )
        gone = await _gone(plan, consumer, partitions, settings)
        await _carry_out(plan, settings, lake, codec, consumer, lambda done, total: None, gone)
    topic = settings.kafka.topic
    copied = {TopicPartition(topic, p): a for p, a in plans.anchors(stream).items() if p < partitions.get(topic, 0)}
    await check_anchors(consumer, copied, settings)
    if plan is None or plans.report(plan) is not None:
        plan = draw_plan(plan, await _ends(settings, consumer, partitions), settings, chunk_records)
        plans.write(plan)  # 1
    return await _carry_out(plan, settings, lake, codec, consumer, advance)


async def _carry_out(
    plan: CopyPlan,
    settings: Settings,
    lake: Lake,
    codec: Codec,
    consumer: Reader,
    advance: Callable[[int, int], None],
    gone: Collection[str] = (),
) -> CopyReport:
    """Copy what is not finished of a plan. `gone`: the kinds whose topics are not the ones that were planned for."""
    plans = Plans(lake)
    finished = plans.finished_chunks(plan)
    done = 0
    for number, (kind, ranges) in enumerate(plan.chunks()):
        offsets = sum(one.to_offset - one.from_offset for one in ranges)
        if number not in finished:
            if kind in gone:
                finished[number] = Counter(lost=offsets)
            else:
                chunk = _Chunk(settings, lake, codec, consumer, plan, number, kind, ranges)
                finished[number] = await chunk.copy()  # 2
                if chunk.anchors:
                    plans.keep_anchors(plan.stream, chunk.anchors)
            plans.finish_chunk(plan, finished)  # 3
        done += offsets
        advance(done, plan.records)
    report = _report(plan, finished)
    plans.finish(report)  # 4
    return report


async def _gone(plan: CopyPlan, consumer: Reader, partitions: Mapping[str, int], settings: Settings) -> Collection[str]:
    """The kinds of a plan of an older stream that cannot be copied any more: the events, and what was made anew with them."""
    gone = {"events"}
    for one in plan.ranges:
        if one.kind not in gone and one.to_offset > one.from_offset:
            tp = TopicPartition(one.topic, one.partition)
            with kafka_errors(f"reading the end of {one.topic}", settings):
                there = partitions.get(one.topic, 0) > one.partition
                if not there or (await consumer.end_offsets([tp]))[tp] < one.to_offset:
                    gone.add(one.kind)
    return gone


def _report(plan: CopyPlan, finished: Mapping[int, Counter[str]]) -> CopyReport:
    total: Counter[str] = Counter()
    for counts in finished.values():
        total.update(counts)
    written = {kind: total.pop(f"written_{kind}", 0) for kind in SCHEMAS}
    return CopyReport(plan.number, plan.stream, plan.cutoffs, written, **total)


async def _ends(settings: Settings, consumer: Reader, partitions: Mapping[str, int]) -> dict[tuple[str, str, int], int]:
    """(kind, topic, partition) → the end of its committed records (the last stable offset)."""
    kafka = settings.kafka
    topics = {"events": kafka.topic, "impressions": kafka.impressions_topic, "catalogue": kafka.catalogue_topic}
    if not partitions.get(kafka.topic):
        raise UserError(
            f"topic {kafka.topic}: not on Kafka at {kafka.bootstrap_servers}: create it (nearline doctor tells how), let this user read "
            "it (docs/security.md), or set NEARLINE_KAFKA__TOPIC to the one that the players write to"
        )
    asked = {
        (kind, topic, p): TopicPartition(topic, p)
        for kind, topic in topics.items()
        for p in range(partitions.get(topic, 0))
    }
    with kafka_errors("reading the ends of the topics", settings):
        ends = await consumer.end_offsets(list(asked.values()))
    return {key: ends[tp] for key, tp in asked.items()}


class _Chunk:
    """One chunk being copied."""

    def __init__(
        self,
        settings: Settings,
        lake: Lake,
        codec: Codec,
        consumer: Reader,
        plan: CopyPlan,
        number: int,
        kind: str,
        ranges: tuple[Range, ...],
    ) -> None:
        self._settings = settings
        self._lake = lake
        self._consumer = consumer
        self._plan = plan
        self._number = number
        self._kind = kind
        self._ranges = {TopicPartition(one.topic, one.partition): one for one in ranges}
        self._row = {"events": _event_row, "impressions": _impression_row, "catalogue": _item_row}[kind]
        self._codec = codec
        self._rows: list[tuple[Any, ...]] = []
        self._erasures: dict[str, int] = {}
        self._records = 0
        self._last: dict[int, Any] = {}  # partition → the newest record that is known not to be private
        self.counts: Counter[str] = Counter()

    async def copy(self) -> Counter[str]:
        """Read the chunk's offsets, then write its files."""
        with kafka_errors(f"copying chunk {self._number} of plan {self._plan.number}", self._settings):
            next_offset = await self._seek()
            moved_at = time.monotonic()
            while pending := [tp for tp, one in self._ranges.items() if next_offset[tp] < one.to_offset]:
                fetched = await self._consumer.getmany(*pending, timeout_ms=POLL_MS)
                for tp, records in fetched.items():
                    inside = [r for r in records if next_offset[tp] <= r.offset < self._ranges[tp].to_offset]
                    await asyncio.to_thread(self._decide, inside)
                before = dict(next_offset)
                for tp in pending:
                    next_offset[tp] = max(next_offset[tp], await self._consumer.position(tp))
                if next_offset != before:
                    moved_at = time.monotonic()
                elif time.monotonic() - moved_at > STALLED_AFTER_S:
                    raise KafkaUnavailable(
                        f"{pending[0]}: nothing for {STALLED_AFTER_S:g} s at {next_offset[pending[0]]}"
                    )
        offsets = sum(one.to_offset - one.from_offset for one in self._ranges.values())
        self.counts["absent"] += offsets - self._records - self.counts["lost"]
        await asyncio.to_thread(self._write)
        return +self.counts

    @property
    def anchors(self) -> dict[int, Anchor]:
        """Partition → the newest event that was copied."""
        return {p: anchor_of(record) for p, record in self._last.items()} if self._kind == "events" else {}

    async def _seek(self) -> dict[Any, int]:
        """Go to the chunk's start; what retention has deleted is declared lost. Returns the next offset per partition."""
        partitions = list(self._ranges)
        self._consumer.assign(partitions)
        beginnings = await self._consumer.beginning_offsets(partitions)
        next_offset = {}
        for tp, one in self._ranges.items():
            start = min(max(one.from_offset, beginnings[tp]), one.to_offset)
            lost = start - one.from_offset
            if lost and self._kind != "catalogue":  # a compacted topic loses what newer versions replaced
                self.counts["lost"] += lost
                log.error(
                    "records_lost_to_retention",
                    topic=one.topic,
                    partition=one.partition,
                    from_offset=one.from_offset,
                    to_offset=start,
                    remedy="they were deleted before a nightly job copied them: run it more often than retention.ms",
                )
            self._consumer.seek(tp, start)
            next_offset[tp] = start
        return next_offset

    def _decide(self, records: Sequence[Any]) -> None:
        """Give every record its fate: a row, or a count. Private records are counted and nothing else."""
        self._records += len(records)
        for record in records:
            try:
                row = None if said_private(record.headers) else self._row(self._codec, record)
            except RecordError:
                self.counts["invalid"] += 1  # the updater writes its dead letter
                continue
            if row is None:
                self.counts["private"] += 1
                continue
            self._last[record.partition] = record
            if isinstance(row, _Erasure):
                self.counts["erasures"] += 1
                self._erasures[row.viewer] = max(row.through_s, self._erasures.get(row.viewer, -1))
            else:
                self._rows.append((self._plan.epoch, record.partition, record.offset, record.timestamp, *row))

    def _write(self) -> None:
        """Ledger first, then the files: what is erased is never written."""
        self._lake.ledger.append(self._erasures)
        if not self._rows:
            return
        schema = SCHEMAS[self._kind]
        self._rows.sort(key=lambda row: (row[1], row[2]))  # by partition and offset, however they were fetched
        columns = [
            pa.array(column, one.type) for column, one in zip(zip(*self._rows, strict=True), schema, strict=True)
        ]
        self._rows = []
        table = pa.Table.from_arrays(columns, schema=schema)
        erased = self._lake.erased(self._kind, table)
        self.counts["erased"] += int(erased.sum())
        table = table.filter(pa.array(~erased))
        self.counts[f"written_{self._kind}"] += table.num_rows
        if not table.num_rows:
            return
        name = f"{self._plan.number:06d}-{self._number:05d}.parquet"
        folder = self._lake.path
        if self._kind == "catalogue":
            write_parquet(folder / "catalogue" / name, table)
            flush_folder(folder / "catalogue")
            return
        hours = table.column(HOUR_COLUMNS[self._kind]).to_numpy() // HOUR_MS
        order = np.argsort(hours, kind="stable")
        table, hours = table.take(pa.array(order)), hours[order]
        starts = np.flatnonzero(np.diff(hours, prepend=-1))
        files = [
            (folder / hour_folder(self._kind, int(hours[start])) / name, table.slice(start, end - start))
            for start, end in zip(starts, [*starts[1:], len(hours)], strict=True)
        ]
        with ThreadPoolExecutor(WRITERS) as pool:  # each waits for the disk
            list(pool.map(lambda file: write_parquet(*file), files))
            parents = {parent for path, _ in files for parent in (path.parent, path.parent.parent)} | {
                folder / self._kind
            }
            list(pool.map(flush_folder, parents))  # the files' entries too, before the chunk is called finished


@dataclass(frozen=True, slots=True)
class _Erasure:
    """A viewer asked to be forgotten: goes to the ledger, not to the lake."""

    viewer: str
    through_s: int


def _event_row(codec: Codec, record: Any) -> tuple[Any, ...] | _Erasure | None:
    """Columns of an event; None if it is private."""
    event = codec.decode_event(framed(record.value, record.headers))
    if event.private:
        return None
    validate(event, key=record.key, timestamp_ms=record.timestamp)
    if event.kind is Kind.ERASE:
        return _Erasure(event.viewer, min(event.event_time_ms, record.timestamp) // 1000)
    values = [getattr(event, name) for name in _EVENT_FIELDS]
    values[1] = event.kind.value
    return tuple(values)


def _impression_row(codec: Codec, record: Any) -> tuple[Any, ...]:
    one = codec.decode_impression(framed(record.value, record.headers))
    return (
        one.impression_id,
        one.viewer,
        one.row_id,
        one.generation_id,
        one.served_at_ms,
        one.default_row,
        list(one.item_ids),
    )


def _item_row(codec: Codec, record: Any) -> tuple[Any, ...]:
    """Columns of a catalogue record; a record without a value deletes the title."""
    key = (record.key or b"").decode("ascii", "replace")
    if not valid_id(key):
        raise InvalidEvent("the key of a catalogue record must be the item's id")
    if record.value is None:
        return (key, True, *[None] * 10)
    i = codec.decode_item(framed(record.value, record.headers))
    if i.item_id != key:
        raise InvalidEvent("the key of a catalogue record must be the item's id")
    return (
        i.item_id, False, i.title, list(i.topics), list(i.creators), i.duration_ms, i.maturity, list(i.territories),
        i.available_from_ms, i.available_until_ms, i.released_at_ms, i.taken_down,
    )  # fmt: skip
