"""A generation beside the one that serves: rows for viewers who play now, compared with what they are served, shown to nobody.

1. Follow the log from now on. Its keys say who plays; of these a share, by hash. No value is decoded, no offset is committed
2. A little later read the viewer's hash: state and row in it were written together
3. Compute the row that the shadow generation gives that state; compare the two; count

Nothing is written anywhere, so a crash leaves nothing behind, and the user of this process needs no right to write.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from contracts.codec import Codec
from contracts.errors import NearlineError, TransientError
from contracts.events import said_private, valid_id
from contracts.rows import ENTRIES_SHOWN, HomeRow
from contracts.shares import in_share
from embeddings.files import load_generation
from ranking.overlap import DEPTH, overlap_at, rank_biased_overlap
from runtime.kafka import (
    AIOKafkaConsumer,
    ConsumerRecord,
    TopicPartition,
    count_partitions,
    kafka_errors,
    make_consumer,
    require_partitions,
)
from runtime.settings import Settings
from runtime.tasks import pause, stop_client
from viewers.kernel import Todo
from viewers.rewriter import Rewriter
from viewers.state import Limits
from viewers.store import Store, StoredViewer

log = structlog.get_logger()

T = TypeVar("T")

SETTLE_S = 2.0
"""Between a record and the look at its viewer: their updater has long written by then."""
FETCH_WAIT_MS = 200
BATCH = 64
"""Viewers read and ranked at once."""
MOST_WAITING = 4_096
"""Viewers remembered until their time comes; more are passed over, and counted: a smaller share would do."""
LOOK_EVERY_S = 30.0
"""At the topic, for partitions that were added."""
BACKOFF_S = 1.0

COMPARED, IN_FORCE, NO_ROW, FAILED, SKIPPED = OUTCOMES = ("compared", "in_force", "no_row", "failed", "skipped")
_ALIKE = tuple(n / 10 for n in range(11))
_SECONDS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 1e-1)


class Metrics:
    """What `/metrics` tells. `outcome`: compared; in_force: the served row is of this very generation; no_row: nothing is served of
    their own; failed: no row could be made; skipped: too many at once."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        ProcessCollector(registry=r)
        self.viewers = Counter("nearline_shadow_viewers_total", "viewers looked at", ["outcome"], registry=r)
        for outcome in OUTCOMES:
            self.viewers.labels(outcome)
        self.overlap = Histogram(
            "nearline_shadow_overlap", "share of the first ten places with the same titles", buckets=_ALIKE, registry=r
        )
        self.alike = Histogram(
            "nearline_shadow_rank_biased_overlap", "likeness of whole rows", buckets=_ALIKE, registry=r
        )
        self.same_first = Counter("nearline_shadow_same_first_total", "rows with the same first title", registry=r)
        self.short = Counter("nearline_shadow_short_rows_total", "rows shorter than the served one", registry=r)
        self.seconds = Histogram("nearline_shadow_row_seconds", "time to compute one row", buckets=_SECONDS, registry=r)
        self.waiting = Gauge("nearline_shadow_waiting", "viewers whose time has not come", registry=r)

    def count(self, outcome: str) -> int:
        """Viewers with that outcome so far."""
        return int(self.viewers.labels(outcome)._value.get())


class Shadow:
    """One shadow generation. `store` need not be connected: only hashes are read. `percent`: of the viewers who play."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        codec: Codec,
        generation_id: str,
        percent: float,
        *,
        now_ms: Callable[[], float] = lambda: time.time() * 1000,
    ) -> None:
        self.generation_id = generation_id
        self.percent = percent
        self.metrics = Metrics()
        self.ready = False
        self._settings = settings
        self._store = store
        self._codec = codec
        self._now_ms = now_ms
        self._rewriter: Rewriter | None = None
        self._waiting: dict[str, float] = {}  # viewer → when to look, in that order
        self._told: set[str] = set()  # kinds of failure that the log has already
        self._stopping = asyncio.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="shadow")

    def stop(self) -> None:
        """Leave."""
        self._stopping.set()

    async def load(self) -> None:
        """Load the generation. Errors: `GenerationError`: then there is nothing to shadow."""
        generation = await self._off_loop(load_generation, self._settings.generations_path, self.generation_id)
        limits = Limits(**self._settings.state.model_dump())
        rewriter = Rewriter(generation, 0, self._codec.encode_row, limits)
        await self._off_loop(rewriter.prepare)
        self._rewriter = rewriter

    async def run(self) -> None:
        """Follow and compare until `stop`; servers that are away are waited for."""
        if self._rewriter is None:
            await self.load()
        while not self._stopping.is_set():
            try:
                await self._follow()
            except TransientError as error:
                log.warning("shadow_again", cause=type(error).__name__, error=str(error))
                self.ready = False
                await pause(self._stopping, BACKOFF_S)
        self._executor.shutdown(wait=False)

    async def _follow(self) -> None:
        """Until `stop`, or until partitions were added."""
        topic = self._settings.kafka.topic
        partitions = await require_partitions(self._settings, topic)
        consumer = await make_consumer(self._settings)
        try:
            assigned = [TopicPartition(topic, partition) for partition in range(partitions)]
            with kafka_errors(f"reading the end of {topic}", self._settings):
                consumer.assign(assigned)
                await consumer.seek_to_end(*assigned)
                for tp in assigned:
                    await consumer.position(tp)  # now, not at the first fetch
            self.ready = True
            look_at_s = time.monotonic() + LOOK_EVERY_S
            while not self._stopping.is_set():
                await self._step(consumer)
                if time.monotonic() >= look_at_s:
                    if await count_partitions(self._settings, topic) != partitions:
                        return
                    look_at_s = time.monotonic() + LOOK_EVERY_S
        finally:
            await stop_client(consumer)

    async def _step(self, consumer: AIOKafkaConsumer) -> None:
        with kafka_errors(f"reading {self._settings.kafka.topic}", self._settings):
            fetched = await consumer.getmany(timeout_ms=FETCH_WAIT_MS)
        now_s = time.monotonic()
        for records in fetched.values():
            self.take(records, now_s)
        while due := self._due(now_s):
            await self.look(due)
        self.metrics.waiting.set(len(self._waiting))

    def take(self, records: Sequence[ConsumerRecord], now_s: float) -> None:
        """Remember who plays. A viewer who waits already is not put off: one who never stops playing is looked at too."""
        for record in records:
            key = (record.key or b"").decode("ascii", "replace")
            if said_private(record.headers) is True or not valid_id(key):
                continue
            if key in self._waiting or not in_share(key, self.generation_id, self.percent):
                continue
            if len(self._waiting) >= MOST_WAITING:
                self.metrics.viewers.labels(SKIPPED).inc()
                continue
            self._waiting[key] = now_s + SETTLE_S

    def _due(self, now_s: float) -> list[str]:
        due: list[str] = []
        for viewer, at_s in self._waiting.items():
            if at_s > now_s or len(due) == BATCH:
                break
            due.append(viewer)
        for viewer in due:
            del self._waiting[viewer]
        return due

    async def look(self, viewers: Sequence[str]) -> None:
        """Steps 2 and 3. Errors: `StoreUnavailable`."""
        stored = await asyncio.gather(*map(self._store.read_viewer, viewers))
        await self._off_loop(self._compare, stored)

    def _compare(self, stored: Sequence[StoredViewer]) -> None:
        """Off the loop."""
        served: list[tuple[StoredViewer, HomeRow]] = []
        for one in stored:
            if not one.row:
                self.metrics.viewers.labels(NO_ROW).inc()
                continue
            row = self._decoded(one.row)
            if row is not None and row.generation_id == self.generation_id:
                self.metrics.viewers.labels(IN_FORCE).inc()
            elif row is not None:
                served.append((one, row))
        made = self._rows([one for one, _ in served])
        for (_, row), other in zip(served, made, strict=True):
            if other is not None:
                self._count(row, other)

    def _rows(self, stored: Sequence[StoredViewer]) -> list[HomeRow | None]:
        """The shadow generation's rows; None where that failed. All at once; one by one if one of them fails."""
        assert self._rewriter is not None
        if not stored:
            return []
        todo = [Todo(one.state, (), True, None) for one in stored]
        started = time.perf_counter()
        try:
            made = self._rewriter.rewrite_many(todo, computed_at_ms=int(self._now_ms()))
        except NearlineError as error:
            if len(stored) > 1:
                return [self._rows([one])[0] for one in stored]
            self._failed(error)
            return [None]
        each_s = (time.perf_counter() - started) / len(stored)
        for _ in stored:
            self.metrics.seconds.observe(each_s)
        return [self._decoded(b"" if one is None else one.row_bytes) for one in made]

    def _decoded(self, row: bytes) -> HomeRow | None:
        try:
            return self._codec.decode_row(row)
        except NearlineError as error:
            self._failed(error)
            return None

    def _failed(self, error: NearlineError) -> None:
        self.metrics.viewers.labels(FAILED).inc()
        kind = type(error).__name__
        if kind not in self._told:
            self._told.add(kind)
            log.error("shadow_row_failed", generation_id=self.generation_id, cause=kind, error=str(error))

    def _count(self, served: HomeRow, other: HomeRow) -> None:
        metrics = self.metrics
        a, b = ([entry.item_id for entry in row.entries[:ENTRIES_SHOWN]] for row in (served, other))
        metrics.viewers.labels(COMPARED).inc()
        metrics.overlap.observe(overlap_at(DEPTH, a, b))
        metrics.alike.observe(rank_biased_overlap(a, b))
        metrics.same_first.inc(a[:1] == b[:1])
        metrics.short.inc(len(b) < len(a))

    def stats(self) -> dict[str, object]:
        """Means so far."""
        registry, compared = self.metrics.registry, self.metrics.count(COMPARED)

        def mean(name: str) -> float | None:
            count = registry.get_sample_value(f"{name}_count") or 0.0
            return (registry.get_sample_value(f"{name}_sum") or 0.0) / count if count else None

        return {
            "generation_id": self.generation_id,
            "percent": self.percent,
            "viewers": {outcome: self.metrics.count(outcome) for outcome in OUTCOMES},
            "overlap": mean("nearline_shadow_overlap"),
            "rank_biased_overlap": mean("nearline_shadow_rank_biased_overlap"),
            "same_first": self.metrics.same_first._value.get() / compared if compared else None,
            "short_rows": int(self.metrics.short._value.get()),
            "row_seconds": mean("nearline_shadow_row_seconds"),
        }

    async def _off_loop(self, action: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, action, *arguments)
