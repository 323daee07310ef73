"""The loop: fetch a micro-batch, decide, write dead letters, rewrite viewers, move the marker, commit.

No linger: a batch is whatever is there. Decoding and rewriting of more than a few run in a worker thread, so that heartbeats never starve.
Whatever goes wrong, the answer is the same: re-read where the store stands, seek there, and go on. Merging is a join and
every write a compare-and-set, so doing a batch again is always harmless.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import structlog

from contracts.anchors import Anchor
from contracts.codec import Codec
from contracts.errors import (
    FreezeChanged,
    Halted,
    HaltError,
    KafkaUnavailable,
    StaleActivation,
    StoreChanged,
    TransientError,
    UnknownSchema,
)
from contracts.shares import Share
from runtime.kafka import (
    AIOKafkaConsumer,
    ConsumerRebalanceListener,
    ConsumerRecord,
    NoOffsetForPartitionError,
    TopicPartition,
    assignment_of,
    kafka_errors,
    make_consumer,
    make_producer,
)
from runtime.schemas import Schemas
from runtime.settings import Settings
from runtime.tasks import cancel_all, pause
from runtime.tracing import Tracer
from runtime.worker import Worker
from updater.checkpoint import Checkpoint
from updater.deadletter import DeadLetterQueue, FloodGuard, without_erased
from updater.line import Line, Turn
from updater.metrics import Metrics, RowTiming
from updater.pipeline import Plan, plan, tallies
from updater.swap import Swap
from updater.traces import BatchTimes, EventTraces, find_traced
from viewers.play_reader import PlayReader
from viewers.rewrite import RewriteResult, Timing, rewrite_viewers
from viewers.state import Limits
from viewers.store import Rows, Store
from viewers.tokens import draw_token

log = structlog.get_logger()

FETCH_WAIT_MS = 500
"""An idle fetch returns after this, so that a stop, a rebalance or another server behind the store's address is noticed."""
BUSY_WAIT_MS = 20
"""The same while batches are in flight, so that their failure is."""
COMMIT_EVERY_S = 0.5
"""Commits are for the broker's eyes and for min(committed, marker): the marker alone already says what is done."""
RESUME_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0
"""For each thing that is closed at a stop: three of them stay below the 30 s after which orchestrators kill."""
PASS_EVERY_S = 1.0
BACKOFF_S = (0.1, 0.2, 0.5, 1.0)
"""Between tries while a server or a schema is away. The last one is what its return may be noticed too late by."""

T = TypeVar("T")


def wall_ms() -> float:
    """UTC milliseconds."""
    return time.time() * 1000


class Updater:
    """One updater process. `run` returns after `stop` (clean) and raises on what a person must decide (`HaltError`)."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        codec: Codec,
        *,
        instance: str | None = None,
        now_ms: Callable[[], float] = wall_ms,
        schemas: Schemas | None = None,
        tracer: Tracer | None = None,
        on_loaded: Callable[[], None] = lambda: None,
    ) -> None:
        """`schemas`: where `codec` is from; None: what the settings name. `tracer`: None: nothing is traced. `on_loaded`: called when what
        lives as long as the process is there, before the first record."""
        self.settings = settings
        self.store = store
        self.metrics = Metrics()
        self.instance = instance or f"{os.uname().nodename}-{os.getpid()}"
        self.limits = Limits(**settings.state.model_dump())
        self.now_ms = now_ms
        self._schemas = schemas or Schemas(settings)
        self._traces = EventTraces(tracer, store, settings.kafka.topic) if tracer is not None else None
        self._on_loaded = on_loaded
        self._codec = codec
        self._read_plays = PlayReader(codec.event_header)
        self._rewriting = Worker("rewrite")
        self._planner = Worker("plan")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self.swap = Swap(settings.generations_path, codec.encode_row, self.limits, self._loader, self.instance)
        self.flood = FloodGuard()
        self.checkpoint: Checkpoint | None = None
        self.consumer: AIOKafkaConsumer | None = None
        self._line = Line()
        # Held to let a batch into the line, and while none may be in it; never around a fetch.
        self._working = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._epoch = 0  # raised whenever the assignment moves: what was fetched before is not ours to process
        self._resumed_epoch = -1
        self._resumed: object = None  # the assignment that was resumed
        self._passed_s = 0.0  # when control records were last looked for
        self._found: HaltError | None = None  # what the look at the log found
        self._failures = 0  # in a row
        self.failing_since: float | None = None

    @property
    def ready(self) -> bool:
        """Assigned and resumed, the store answering, and not failing."""
        return self.checkpoint is not None and not self._moved and self.failing_since is None

    @property
    def _moved(self) -> bool:
        """The assignment is not the one that was resumed, or it has to be resumed again. Not all of it is heard from the listener, which
        the client calls some time after it has gone on from the committed offsets."""
        return self._resumed_epoch != self._epoch or (
            self.consumer is not None and assignment_of(self.consumer) is not self._resumed
        )

    def stop(self) -> None:
        """Finish what is in flight, write the markers, commit, leave."""
        self._stopping.set()

    async def run(self) -> None:
        """Consume until `stop`."""
        async with self._opened() as (consumer, checkpoint, dead_letters):
            while not (self._stopping.is_set() and self._line.is_empty):
                try:
                    if self._stopping.is_set():
                        await self._line.settle()
                        continue
                    if self._found is not None:
                        raise self._found
                    if self._moved:
                        await self._resume(checkpoint)
                    fetched = await self._fetch(consumer)
                    work = partial(self._process, checkpoint, dead_letters, fetched, self.now_ms())
                    async with self._working:
                        if self._moved or self._found is not None:
                            continue  # partitions moved meanwhile: what was fetched is not ours to process
                        if fetched:
                            await self._line.enter(work)
                        elif not self._line.is_empty:
                            await self._line.settle()
                        else:
                            await self.store.check_identity()
                            self._failures, self.failing_since = 0, None
                        await self._pass_control_records(consumer, checkpoint, fetched)
                except StaleActivation as stale:
                    self._again("stale_activation", stale)
                    self.failing_since = self.failing_since or time.monotonic()
                    await self._wait_for_generation(stale.stored_activation)
                except TransientError as error:
                    self._again(type(error).__name__, error)
                    await self._mend(error)
                    self.failing_since = self.failing_since or time.monotonic()
                    await pause(self._stopping, BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)])
                    self._failures += 1
                except Halted:
                    raise
                except HaltError as halt:
                    with contextlib.suppress(TransientError):  # the others will come to the same conclusion
                        await self.store.write_halt(str(halt))
                    raise

    async def _process(
        self,
        checkpoint: Checkpoint,
        dead_letters: DeadLetterQueue,
        fetched: Mapping[int, Sequence[ConsumerRecord]],
        fetched_at_ms: float,
        turn: Turn,
    ) -> None:
        """One batch, in the order of effects of `checkpoint.py`."""
        positions = await turn.to_decide(checkpoint.positions)
        self._codec = self._schemas.doubting(self._codec)
        records = sum(map(len, fetched.values()))
        decided = await self._planner.run(
            records, plan, fetched, positions, self._codec.decode_event, self.limits, self._read_plays
        )
        turn.decided({**positions, **decided.positions})
        decided_at_ms = self.now_ms()
        if decided.dead_letters:
            await turn.to_write()  # an erasure may be among what is written
            await dead_letters.send(await without_erased(self.store, decided, checkpoint.passed))  # 1
        serving = self.swap.serving
        results = await rewrite_viewers(  # 2
            self.store,
            decided.jobs,
            serving,
            now_ms=self.now_ms,
            draw_token=draw_token,
            worker=self._rewriting,
            turn=turn,
            rows=Rows.FOLLOW,
        )
        written_at_ms = self.now_ms()
        counted = tallies(decided, results)
        await checkpoint.advance(decided.partitions, counted)  # 3; step 4, the commit, follows on its own clock
        self._observe(decided, results, fetched_at_ms, serving.share)
        if self._traces is not None:
            times = BatchTimes(fetched_at_ms, decided_at_ms, written_at_ms, self.now_ms())
            self._traces.tell(find_traced(fetched), decided, results, times)
        for tally in counted.values():
            for decision in ("applied", "noop", "private", "dead", "absent"):
                self.metrics.records.labels(decision).inc(getattr(tally, decision))
        counted_below = {partition: todo.uncounted_from for partition, todo in decided.partitions.items()}
        self.flood.observe(decided.records, self.flood.fresh(decided.dead_letters, counted_below))
        self._failures, self.failing_since = 0, None

    def _observe(
        self, decided: Plan, results: Sequence[RewriteResult], fetched_at_ms: float, share: Share | None
    ) -> None:
        self.metrics.batches.inc()
        written = [job.viewer for job, result in zip(decided.jobs, results, strict=True) if result.row_id]
        self.metrics.count_rows(written, share)
        rounds: dict[Timing, tuple[list[str], list[int]]] = {}  # viewers who were written at once share their times
        for times_ms, result in zip(decided.event_times_ms, results, strict=True):
            if result.timing is not None and result.row_id:  # else nothing was written, or there is no generation yet
                row_ids, events_ms = rounds.setdefault(result.timing, ([], []))
                row_ids.append(result.row_id)
                events_ms.extend(times_ms)
        for timing, (row_ids, events_ms) in rounds.items():
            self.metrics.observe_rows(
                row_ids, RowTiming(fetched_at_ms, timing.computed_at_ms, timing.written_at_ms), events_ms
            )

    async def _fetch(self, consumer: AIOKafkaConsumer) -> dict[int, list[ConsumerRecord]]:
        """A micro-batch, partition → records; empty after a while without any."""
        wait_ms = FETCH_WAIT_MS if self._line.is_empty else BUSY_WAIT_MS
        with kafka_errors("fetching", self.settings):
            try:
                found = await consumer.getmany(timeout_ms=wait_ms, max_records=self.settings.kafka.max_batch_records)
            except NoOffsetForPartitionError:
                # A new assignment that the fetcher looked at before we could seek: resume does.
                self._epoch += 1
                return {}
        return {tp.partition: records for tp, records in found.items() if records}

    async def _pass_control_records(
        self, consumer: AIOKafkaConsumer, checkpoint: Checkpoint, fetched: Mapping[int, object]
    ) -> None:
        """Once a second, in partitions that gave nothing: offsets that hold no record (transaction markers) are absent."""
        if fetched and time.monotonic() - self._passed_s < PASS_EVERY_S:
            return
        self._passed_s = time.monotonic()
        await self._line.settle()  # what is in flight is not absent
        ahead = {}
        with kafka_errors("reading positions", self.settings):
            for partition, at in checkpoint.progress.items():
                if partition in fetched:
                    continue
                position = await consumer.position(TopicPartition(self.settings.kafka.topic, partition))
                if position > at.position:
                    ahead[partition] = position
        if ahead and not self._moved:
            await checkpoint.pass_absent(ahead)

    async def _resume(self, checkpoint: Checkpoint) -> None:
        """Take up the assignment as it is now."""
        async with self._working:
            await self._line.settle()
            assert self.consumer is not None
            epoch, assignment = self._epoch, assignment_of(self.consumer)
            reason = await self.store.read_halt()
            if reason is not None:
                raise Halted(f"this stream is halted: {reason}")
            try:
                async with asyncio.timeout(RESUME_TIMEOUT_S):
                    await checkpoint.resume()
            except TimeoutError as error:  # the client looks for its coordinator for ever
                topic = self.settings.kafka.topic
                raise KafkaUnavailable(f"reading where {topic} stands took over {RESUME_TIMEOUT_S:g} s") from error
            if not checkpoint.progress:
                await self._require_topic()
            self._resumed_epoch, self._resumed = epoch, assignment

    async def _require_topic(self) -> None:
        """No partition is ours: because others have them all, or because there is no such topic? Errors: `KafkaUnavailable`."""
        assert self.consumer is not None
        kafka = self.settings.kafka
        with kafka_errors("listing the topics", self.settings):
            topics = await self.consumer.topics()
        if kafka.topic not in topics:
            raise KafkaUnavailable(
                f"there is no topic {kafka.topic} at {kafka.bootstrap_servers}: create it, let this user read it (docs/security.md), "
                "or set NEARLINE_KAFKA__TOPIC (nearline doctor)"
            )

    def _again(self, cause: str, error: Exception) -> None:
        """The batch in hand is done again, from what the store holds."""
        log.warning("batch_again", cause=cause, error=str(error))
        self.metrics.retries.labels(cause).inc()
        self._resumed_epoch = -1

    async def _mend(self, error: TransientError) -> None:
        """What can be done about it before trying again."""
        if isinstance(error, StoreChanged):
            with contextlib.suppress(TransientError):
                await self.store.connect()
                await self.swap.keep_trends(self.store)
        elif isinstance(error, FreezeChanged):
            with contextlib.suppress(TransientError):
                await self.swap.look_at_freeze(self.store)
        elif isinstance(error, UnknownSchema):
            if self._schemas.is_far:
                loop = asyncio.get_running_loop()
                learnt = await loop.run_in_executor(self._loader, self._schemas.learn, self._codec, error)
            else:
                learnt = self._schemas.learn(self._codec, error)
            if learnt.event_header != self._codec.event_header:
                self._read_plays = PlayReader(learnt.event_header)
            self._codec = learnt

    async def _wait_for_generation(self, activation: int) -> None:
        """Load the generation that the store already knows of; look again until CURRENT names it."""
        while not self._stopping.is_set():
            await self.swap.check()
            if self.swap.rewriter.activation >= activation:
                return
            log.warning(
                "waiting_for_generation", activation=activation, remedy="is generations_path the nightly job's?"
            )
            await pause(self._stopping, 1.0)

    async def _drain(self) -> None:
        """Partitions are about to move: finish what is in flight, commit its markers, forget the rest."""
        async with self._working:
            self._epoch += 1
            await self._line.rest()
            if self.checkpoint is not None:
                await self.checkpoint.commit()
                self.checkpoint.progress = {}

    async def _commit_for_ever(self, checkpoint: Checkpoint) -> None:
        while True:
            await asyncio.sleep(COMMIT_EVERY_S)
            await checkpoint.commit()

    async def _watch_log(self, checkpoint: Checkpoint) -> None:
        """A topic that is deleted and made anew in no time may go unseen by the client, which then reads on in the new log. What was
        finished a while ago is read back again and again: the anchors of now may be of the new log already."""
        earlier: dict[int, Anchor] = {}
        while True:
            await asyncio.sleep(self.settings.kafka.metadata_max_age_ms / 1000)
            try:
                await checkpoint.check_log(earlier)
            except HaltError as halt:
                async with self._working:
                    await self._line.rest()
                    self._found = halt
                    with contextlib.suppress(TransientError):
                        await checkpoint.anchor_again(earlier)
                return
            except TransientError as error:
                log.warning("log_not_looked_at", error=str(error), remedy="nothing to do: it is tried again")
            else:
                earlier = checkpoint.anchors

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[tuple[AIOKafkaConsumer, Checkpoint, DeadLetterQueue]]:
        """Connect everything; on the way out drain, commit, leave the group."""
        await self._until_answers(self.store.connect)
        await self.swap.prepare_something()
        self._on_loaded()
        # Not idempotent: letters are told apart by their coordinates, and must be sent again once a refusal is mended.
        producer = await self._until_answers(lambda: make_producer(self.settings, idempotent=False))
        try:
            group_id = self.settings.kafka.group_id
            consumer = await self._until_answers(lambda: make_consumer(self.settings, group_id=group_id))
            try:
                self.consumer = consumer
                checkpoint = self.checkpoint = Checkpoint(consumer, self.store, self.settings)
                consumer.subscribe([self.settings.kafka.topic], listener=_Listener(self))
                background = [
                    asyncio.create_task(self._commit_for_ever(checkpoint)),
                    asyncio.create_task(self.swap.watch(self.store, self.now_ms)),
                    asyncio.create_task(self._watch_log(checkpoint)),
                ]
                try:
                    yield consumer, checkpoint, DeadLetterQueue(producer, self.settings)
                finally:
                    await self._line.abandon()
                    await cancel_all(*background)
                    await _briefly(checkpoint.commit())
                    with contextlib.suppress(TransientError):
                        await self.store.remove_updater(self.instance)
            finally:
                await _briefly(consumer.stop())
        finally:
            await _briefly(producer.stop())
            self._rewriting.close()
            self._planner.close()
            self._loader.shutdown(wait=False)

    async def _until_answers(self, action: Callable[[], Awaitable[T]]) -> T:
        """At start, wait for servers that are not up yet instead of dying in a restart loop."""
        attempt = 0
        while True:
            try:
                return await action()
            except TransientError as error:
                log.warning("waiting", error=str(error))
                await pause(self._stopping, BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
                attempt += 1
                if self._stopping.is_set():
                    raise


async def _briefly(closing: Awaitable[None]) -> None:
    """A hung broker must not keep a stop from ending: what it would have been told, the marker says."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await closing


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Rebalances: drain on the way out, resume in the loop on the way in. The client swallows whatever is raised here."""

    def __init__(self, updater: Updater) -> None:
        self._updater = updater

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._updater._drain()

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._updater._epoch += 1
