"""The aggregator: reads the log from the cut-off of the generation in force, counts, and publishes what it has counted. During a share the
process has a second one, for the candidate: both arms have trends of now.

One process counts at a time, all partitions; others stand by, and the first that finds its lease run out goes on. (Whoever decodes records
alone is far ahead of those who fold them in, so sharing partitions would buy nothing, and one process need not read others' counts to
add them up.) The lease only spares work. What guards the counts is the checkpoint: counts, next offset and the plays remembered move in
one write, where the stored offset is the expected one.

While it holds the lease, in this order:

1. read records, count them                   nothing is left behind
2. checkpoint what has changed                a crash before it: read again from the last one, counted once all the same
3. snapshot, then the pointer to it           a crash before it: the next publisher's snapshot holds these counts too
   (before it: vectors of new items            as they are read anew)
4. default rows                               a crash before it: the next ones follow within a minute

One answer to every fault: take up again what the store holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from contracts.codec import Codec
from contracts.errors import (
    GenerationError,
    KafkaUnavailable,
    StoreChanged,
    TransientError,
    UnknownSchema,
)
from embeddings.added import Added, equal
from embeddings.current import Current
from embeddings.files import GenerationsFolder
from runtime.again import Again
from runtime.kafka import (
    AIOKafkaConsumer,
    ConsumerRecord,
    TopicPartition,
    count_partitions,
    kafka_errors,
    make_consumer,
    require_partitions,
)
from runtime.schemas import Schemas
from runtime.settings import Settings
from runtime.tasks import pause, stop_client
from trends.base import Base, load_base
from trends.checkpoints import changed_fields, counts_of
from trends.counters import Counts, Decision, share_erasures
from trends.follow import TakenUp, take_up
from trends.newcomers import EVERY_S as NEWCOMERS_EVERY_S
from trends.reading import report_of
from trends.snapshots import decode, encode, merge, name_of
from viewers.default_rows import default_rows
from viewers.store import Store
from viewers.trend_store import SNAPSHOT_KEPT_S, CheckpointWrite, Pointer

log = structlog.get_logger()

LEASE_MS = 10_000
"""So long after the last word of the process that counts, another goes on."""
FETCH_WAIT_MS = 200
FETCH_RECORDS = 2_048
LOOK_EVERY_S = 1.0
"""At CURRENT and at the lease."""
REFUSED_AGAIN_LOOKS = 15
"""A generation that was refused is tried again: its files may have been out of reach, or were mended in place."""
MOST_CHANGED = 500
"""Titles of a partition: a checkpoint takes two arguments for each, those of one fetch more, and the places of new titles that were left
out; a script takes 8,000 at most."""
ROWS_SHARE = 0.05
"""Of a core that default rows may take: with many territories they follow less often."""
ROWS_AGAIN_S = 60.0
"""After a rebuild, which writes them from the generation's own trends, they are fresh again within this."""
BACKOFF_S = 1.0
OTHER_COUNTS = "another process counts trends: standing by"

T = TypeVar("T")


def wall_ms() -> int:
    """UTC milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Figures:
    """What the process tells of itself. `records`: by decision. `lag`: records not read yet."""

    records: Counter[str] = field(default_factory=Counter)
    snapshots: int = 0
    snapshot_bytes: int = 0
    plays: int = 0
    lag: int = 0
    counting: bool = False
    standing_by: bool = False
    newest: str = ""
    published_at_ms: int = 0
    new_items: int = 0


Counted = tuple[int, Added] | None
"""Plays, and the items added."""


class Aggregator:
    """What a process counts for one generation: the one in force, or a share's candidate. `run` ends after `stop`."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        codec: Codec,
        *,
        instance: str,
        now_ms: Callable[[], int] = wall_ms,
        schemas: Schemas | None = None,
        for_candidate: bool = False,
    ) -> None:
        """`schemas`: where `codec` is from; None: what the settings name. `for_candidate`: beside the process's other one, by its lease."""
        self._schemas = schemas or Schemas(settings)
        self.figures = Figures()
        self._settings = settings
        self._store = store
        self._codec = codec
        self._instance = instance
        self.for_candidate = for_candidate
        self._now_ms = now_ms
        self._folder = GenerationsFolder(settings.generations_path)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="trends")
        self._base: Base | None = None
        self._loaded: Current | None = None  # what `_base` is of, if trends can be added to it
        self._refused: Again[Current] = Again(REFUSED_AGAIN_LOOKS)
        self._told = ""  # why it was
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Checkpoint what was counted, leave."""
        self._stopping.set()

    async def run(self) -> None:
        """Count until `stop`."""
        await self._until_connected()
        while not self._stopping.is_set():
            try:
                if not await self._store.trends.hold(self._instance, LEASE_MS):
                    self.figures.counting, self.figures.standing_by = False, True
                    await pause(self._stopping, LOOK_EVERY_S)
                    continue
                self.figures.standing_by = False
                base = await self._holding(self._load)
                if base is None:
                    self.figures.counting = self.figures.counting and not self.for_candidate
                    await pause(self._stopping, LOOK_EVERY_S)
                    continue
                await self._count_for(base)
            except (TransientError, GenerationError) as error:  # the folder may be out of reach for a while
                log.warning("counting_again", cause=type(error).__name__, error=str(error))
                self.figures.counting = False
                await self._mend(error)
                await pause(self._stopping, BACKOFF_S)
        with contextlib.suppress(TransientError):
            await self._store.trends.hold(self._instance, 1)  # the next one need not wait
        self._executor.shutdown(wait=False)

    def _load(self) -> Base | None:
        """What CURRENT names, if trends can be added to it; the one before where it is a bad one."""
        current: Current | None = None
        try:
            current = self._folder.read_current()
            if current is None:
                return None
            if self.for_candidate and current.share is None:
                self._base = self._loaded = None
            elif current != self._loaded and self._refused.is_due(current):
                generation_id = current.generations[self.for_candidate]
                self._base = load_base(self._settings, current, generation_id, self._codec.encode_row)
                self._loaded = current
        except GenerationError as error:  # the updaters refuse it too, and serve the one before
            if str(error) != self._told:
                log.error("generation_refused", error=str(error))
            self._refused.has_failed(current)
            self._told = str(error)
        return self._base

    async def _count_for(self, base: Base) -> None:
        """Until another generation is in force, the lease is another's, partitions were added, or `stop`."""
        consumer = await make_consumer(self._settings)
        try:
            counting = Counting(self, base, consumer)
            await counting.begin()
            self.figures.counting = True
            async with base.newcomers.following(self._codec, self._schemas):
                await counting.go_on()
        finally:
            await stop_client(consumer)

    async def hold(self) -> None:
        """Hold the lease on. Errors: `StoreChanged` if it is another's."""
        if not await self._store.trends.hold(self._instance, LEASE_MS):
            raise StoreChanged(OTHER_COUNTS)

    async def is_over(self, base: Base) -> bool:
        """Whether something else is to be done than counting for this generation."""
        current = await self._off_loop(self._folder.current_or_none)
        is_another = current is not None and current != base.current and self._refused.is_due(current)
        if is_another and await self._holding(self._load) is not base:
            return True  # and not a bad one, beside which what is counted goes on
        return self._stopping.is_set() or not await self._store.trends.hold(self._instance, LEASE_MS)

    async def _until_connected(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._store.connect()
                return
            except TransientError as error:
                log.warning("waiting", error=str(error))
                await pause(self._stopping, BACKOFF_S)

    async def _mend(self, error: Exception) -> None:
        if isinstance(error, StoreChanged):
            with contextlib.suppress(TransientError):
                await self._store.connect()
        elif isinstance(error, UnknownSchema):
            self._codec = await self._off_loop(self._schemas.learn, self._codec, error)

    async def _off_loop(self, action: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, action, *arguments)

    async def _holding(self, action: Callable[..., T], *arguments: object) -> T:
        """The same for what may take longer than the lease lasts: hold it on. (Whether another has it, what is written next will tell.)"""
        working = asyncio.ensure_future(self._off_loop(action, *arguments))
        while not (await asyncio.wait({working}, timeout=LOOK_EVERY_S))[0]:
            with contextlib.suppress(TransientError):
                await self._store.trends.hold(self._instance, LEASE_MS)
        return working.result()


class Counting:
    """Counting for one generation with one consumer."""

    def __init__(self, aggregator: Aggregator, base: Base, consumer: AIOKafkaConsumer) -> None:
        self._of = aggregator
        self._base = base
        self._consumer = consumer
        self._topic = aggregator._settings.kafka.topic
        self._counts: dict[int, Counts] = {}
        self._stored: dict[int, int | None] = {}  # partition → next offset of its checkpoint
        # Of the newest snapshot: what was counted, name, bytes.
        self._published: tuple[Counted, str, bytes] = (None, "", b"")
        self._taken_up: TakenUp | None = None  # made ready for default rows
        self._next_look_s = 0.0
        self._next_checkpoint_s = 0.0
        self._next_snapshot_s = 0.0
        self._next_rows_s = 0.0
        self._rows_of = ""  # the snapshot that default rows were last made from

    async def begin(self) -> None:
        """Take up every partition where its checkpoint is, else at the cut-off. Errors: `KafkaUnavailable`, `StoreUnavailable`."""
        partitions = await require_partitions(self._of._settings, self._topic)
        assigned = [TopicPartition(self._topic, partition) for partition in range(partitions)]
        with kafka_errors(f"reading the offsets of {self._topic}", self._of._settings):
            self._consumer.assign(assigned)
            beginnings = await self._consumer.beginning_offsets(assigned)
            ends = await self._consumer.end_offsets(assigned)
        generation_id = self._base.generation_id
        for tp in assigned:
            found, stored = await self._read(generation_id, tp.partition)
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

    async def _read(self, generation_id: str, partition: int) -> tuple[int | None, Counts | None]:
        """A checkpoint: its next offset and its counts; None where there is none. Errors: `StoreChanged`, `StoreUnavailable`."""
        await self._of.hold()  # it may take longer than the lease lasts
        found, fields = await self._of._store.trends.read_checkpoint(generation_id, partition)
        if found is None:
            return None, None
        return found, await self._of._off_loop(counts_of, found, fields, f"{generation_id}[{partition}]")

    async def _forget_who_watched_before(self) -> None:
        """Generations that nobody is served keep their sums, for a rollback; viewers stand only where an erasure finds them."""
        served, trends = {self._base.generation_id, *self._base.current.generations}, self._of._store.trends
        known = await self._of._off_loop(self._of._folder.list)
        for before in [manifest.generation_id for manifest in known if manifest.generation_id not in served]:
            for partition in self._counts:
                found, counts = await self._read(before, partition)
                if found is None or counts is None:
                    continue
                counts.leave_all()
                if counts.changed_new:
                    write = CheckpointWrite(partition, found, found, changed_fields(counts))
                    await trends.write_checkpoints(before, [write])

    async def _go_on_from_published(self) -> None:
        """Items keep the vectors that they were last published with, until their viewers are looked at."""
        trends, generation_id = self._of._store.trends, self._base.generation_id
        pointer = await trends.read_pointer(generation_id)
        data = b"" if pointer is None else await trends.read_snapshot(pointer.name)
        if pointer is not None and data:
            with contextlib.suppress(GenerationError):  # an older program's, or a damaged one: they are made anew
                self._base.newcomers.take_up(decode(data, pointer.name).added)

    async def go_on(self) -> None:
        """Steps 1 to 4. Errors: any `TransientError`."""
        looked_s = partitions_s = time.monotonic()
        while True:
            with kafka_errors(f"reading {self._topic}", self._of._settings):
                fetched = await self._consumer.getmany(timeout_ms=FETCH_WAIT_MS, max_records=FETCH_RECORDS)
            if fetched:  # 1
                await self._of._off_loop(self._take, fetched)
                self._of.figures.lag = self._lag()
            now_s = time.monotonic()
            if now_s >= self._next_checkpoint_s or self._most_changed() >= MOST_CHANGED:
                await self._checkpoint()  # 2
                self._next_checkpoint_s = now_s + self._of._settings.trends.interval_s
            if now_s >= self._next_look_s:
                await self._look_for_new()
                self._next_look_s = now_s + NEWCOMERS_EVERY_S
            if now_s >= self._next_snapshot_s:
                await self._publish()  # 3
                await self._write_default_rows()  # 4
            if now_s - looked_s >= LOOK_EVERY_S:
                looked_s = now_s
                if await self._of.is_over(self._base):
                    await self._checkpoint()
                    return
            if now_s - partitions_s >= self._of._settings.kafka.metadata_max_age_ms / 1000:
                partitions_s = now_s
                if await count_partitions(self._of._settings, self._topic) > len(self._counts):
                    await self._checkpoint()
                    return

    def _take(self, fetched: Mapping[TopicPartition, Sequence[ConsumerRecord]]) -> None:
        """Off the loop. A record whose schema is not known yet ends it with nothing passed."""
        self._of._codec = self._of._schemas.doubting(self._of._codec)
        tally, now_ms, decode = self._of.figures.records, self._of._now_ms(), self._of._codec.decode_event
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
        await self._of._store.trends.write_checkpoints(self._base.generation_id, writes)
        for partition, counts in moved.items():
            self._stored[partition] = counts.next_offset
            counts.changed_rows.clear()
            counts.changed_new.clear()
            counts.changed_slots.clear()

    async def _publish(self) -> None:
        """A snapshot, if anything was counted or added since the last; else only the word that it is the newest. Errors: `StoreChanged`."""
        settings, figures = self._of._settings.trends, self._of.figures
        figures.plays = sum(counts.counted for counts in self._counts.values())
        newcomers = self._base.newcomers
        figures.new_items = len(newcomers.added)
        counted, name, data = self._published
        if counted is None or counted[0] != figures.plays or not equal(counted[1], newcomers.added):
            name, data = await self._of._holding(self._make)
            figures.snapshots += 1
            figures.snapshot_bytes = len(data)
        now_ms = self._of._now_ms()
        generation_id, pointer = self._base.generation_id, Pointer(name, now_ms)
        await self._of.hold()  # it may have run out with nobody there to take it
        if not await self._of._store.trends.publish(generation_id, self._of._instance, pointer, data):
            raise StoreChanged(OTHER_COUNTS)
        self._published = ((figures.plays, newcomers.added), name, data)
        figures.newest, figures.published_at_ms = name, now_ms
        share_s = len(data) / (settings.snapshots_mb * 1e6) * SNAPSHOT_KEPT_S  # so that an hour's fit
        self._next_snapshot_s = time.monotonic() + max(settings.interval_s, share_s)

    def _make(self) -> tuple[str, bytes]:
        tables = self._base.generation.tables
        assert tables is not None  # `_load` has looked
        generation, added = self._base.generation, self._base.newcomers.added
        data = encode(merge(self._counts, generation.generation_id, tables.at_ms, added, generation.index))
        return name_of(data), data

    async def _look_for_new(self) -> None:
        if self._base.rules.new_titles:
            await self._base.newcomers.look(self._counts, self._of._store.trends, self._of._holding)

    async def _write_default_rows(self) -> None:
        """Rows of viewers who have none, from the snapshot just published: they are nobody's own, and of the generation in force."""
        if self._of.for_candidate:
            return
        _, name, data = self._published
        now_s = time.monotonic()
        due = name != self._rows_of or now_s >= self._next_rows_s + ROWS_AGAIN_S
        if now_s < self._next_rows_s or not due:
            return
        rows = await self._of._holding(self._make_rows, name, data)
        await self._of._store.trends.write_default_rows(rows, self._base.current.activation)
        self._rows_of = name
        took_s = time.monotonic() - now_s
        self._next_rows_s = now_s + took_s / ROWS_SHARE

    def _make_rows(self, name: str, data: bytes) -> dict[str, bytes]:
        self._taken_up = take_up(self._base.rewriter, data, name, self._taken_up)
        longer = self._taken_up.rewriter.generation
        ids = self._base.generation.item_ids if longer is None else longer.item_ids
        return default_rows(self._taken_up.rewriter, self._base.titles_by_territory(ids), self._of._now_ms())
