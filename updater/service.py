"""The updater as a process: health, metrics, a once-a-second look at lag, signals, a clean stop."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from contracts.codec import Codec
from contracts.errors import HaltError, KafkaUnavailable, TransientError
from contracts.registry import Registry
from runtime.garbage import keep_what_is_there
from runtime.health import make_health_app
from runtime.http import serve
from runtime.kafka import KafkaError, TopicPartition
from runtime.schemas import Schemas
from runtime.settings import Settings
from runtime.tasks import cancel_all, stop_on_signals
from runtime.tracing import open_tracer
from updater.consumer import Updater
from viewers.play_reader import PlayReader
from viewers.redis_store import open_store
from viewers.store import Marker

log = structlog.get_logger()

TICK_S = 1.0
STALL_ALARM_S = 0.25
ASK_TIMEOUT_S = 5.0
SWITCH_S = 0.0005
"""How long one thread holds the interpreter while another waits. With Python's 5 ms the thread that rewrites waits for the loop, and the
loop for it, longer than either works."""


def make_codec(settings: Settings) -> Codec:
    """A codec of rows, over the registry's folder."""
    return Codec(Registry.load(settings.registry_path))


class Watch:
    """Once a second: lag, what the stored markers account for, generation age; and whether the consumer silently stalled.

    The client is known to stop fetching without an error. A partition with records waiting that has not moved for
    `kafka.stall_timeout_s` ends the process, unless the updater knows what it is waiting for (a server, a schema, a generation).
    """

    def __init__(self, updater: Updater, now_s: Callable[[], float] = time.monotonic) -> None:
        self._updater = updater
        self._now_s = now_s
        self._waiting: dict[int, tuple[int, float]] = {}  # partition → (position, since when records wait there)
        self._ends: dict[int, int] = {}  # partition → the log's end as the broker told it, for those that do not move
        self._stored: dict[int, Marker | None] = {}  # as last read from the store
        self._unaccounted: dict[int, int] = {}  # partition → what was last found, if not 0
        self._stalls: deque[tuple[float, float]] = deque()
        self.lag_records = 0

    async def run(self) -> None:
        """For ever; raises `KafkaUnavailable` on a silent stall."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(TICK_S)
            self._observe_stall(time.monotonic() - before - TICK_S)
            await self.ask()
            self.look()
            self.check_progress()

    def _observe_stall(self, stall_s: float) -> None:
        now = time.monotonic()
        self._stalls.append((now, stall_s))
        while self._stalls[0][0] < now - 10:
            self._stalls.popleft()
        self._updater.metrics.loop_stall.set(max(stall for _, stall in self._stalls))
        if stall_s > STALL_ALARM_S:
            log.warning("event_loop_stalled", stall_s=round(stall_s, 3))

    async def ask(self) -> None:
        """Read the assigned partitions' markers from the store; and from the broker the end of logs in which nothing moves: a fetcher
        that has stopped does not hear of new records, and would call the lag 0."""
        updater, checkpoint, consumer = self._updater, self._updater.checkpoint, self._updater.consumer
        if checkpoint is None or consumer is None:
            return
        with contextlib.suppress(TransientError):  # known to the loop, which says so
            self._stored = await updater.store.read_markers(sorted(checkpoint.progress))
        topic = updater.settings.kafka.topic
        still = [
            TopicPartition(topic, partition)
            for partition, at in checkpoint.progress.items()
            if self._waiting.get(partition, (-1, 0.0))[0] == at.position
        ]
        self._ends = {}
        if still:
            with contextlib.suppress(
                KafkaError, OSError, TimeoutError
            ):  # a broker that is away is no stall of the client
                async with asyncio.timeout(ASK_TIMEOUT_S):
                    self._ends = {tp.partition: end for tp, end in (await consumer.end_offsets(still)).items()}

    def _lag(self, partition: int, position: int) -> int:
        assert self._updater.consumer is not None
        tp = TopicPartition(self._updater.settings.kafka.topic, partition)
        ends = (self._updater.consumer.last_stable_offset(tp), self._ends.get(partition))
        return max([0, *(end - position for end in ends if end is not None)])

    def look(self) -> None:
        """Refresh the gauges from where each partition stands."""
        updater, checkpoint, consumer = self._updater, self._updater.checkpoint, self._updater.consumer
        metrics, kafka = updater.metrics, updater.settings.kafka
        swap = updater.swap
        metrics.activation.set(swap.rewriter.activation)
        metrics.swaps.set(swap.swaps)
        metrics.frozen.set(swap.freeze is not None)
        metrics.share.set(0.0 if swap.share is None else swap.share.percent)
        metrics.candidate_refused.set(swap.candidate_refused is not None)
        metrics.refusals.set(swap.refusals)
        metrics.generation_age.set(max(0.0, updater.now_ms() / 1000 - swap.created_at_s) if swap.created_at_s else 0.0)
        metrics.trends_live.set(not swap.lacks_trends)
        metrics.trends_age.set(self._trends_age_s or 0.0)
        metrics.trends_refused.set(swap.trends.refused)
        if checkpoint is None or consumer is None:
            return
        self.lag_records = 0
        for gauge in (metrics.lag_records, metrics.lag_seconds, metrics.unaccounted):
            gauge.clear()
        for partition, at in checkpoint.progress.items():
            lag = self._lag(partition, at.position)
            self.lag_records += lag
            labels = (kafka.group_id, kafka.topic, str(partition))
            metrics.lag_records.labels(*labels).set(lag)
            behind_s = max(0.0, updater.now_ms() - at.last_timestamp_ms) / 1000 if lag and at.last_timestamp_ms else 0.0
            metrics.lag_seconds.labels(*labels).set(behind_s)
            if partition in self._stored:  # what was never read is not told
                stored = self._stored[partition]
                found = 0 if stored is None else stored.unaccounted
                metrics.unaccounted.labels(*labels).set(found)
                self._tell_unaccounted(partition, found)

    @property
    def _trends_age_s(self) -> float | None:
        """Since the aggregator's last word on the trends that serve; None: the generation's own do."""
        seen_at_ms = self._updater.swap.trends.seen_at_ms
        return max(0.0, (self._updater.now_ms() - seen_at_ms) / 1000) if seen_at_ms else None

    def _tell_unaccounted(self, partition: int, found: int) -> None:
        """Log a sum that does not come out, once a change."""
        if found == self._unaccounted.get(partition, 0):
            return
        self._unaccounted[partition] = found
        topic = self._updater.settings.kafka.topic
        if not found:
            log.info("offsets_accounted_for_again", topic=topic, partition=partition)
            return
        log.error(
            "offsets_unaccounted",
            topic=topic,
            partition=partition,
            offsets=found,
            marker=self._stored[partition],
            remedy="keep log and store as they are: does a second stream write to this namespace, or was the store changed by hand?",
        )

    @property
    def unaccounted(self) -> int:
        """Offsets of the assigned partitions that have no fate, as last read from the store; must be 0."""
        progress = self._updater.checkpoint.progress if self._updater.checkpoint else {}
        return sum(abs(m.unaccounted) for p, m in self._stored.items() if m is not None and p in progress)

    def check_progress(self) -> None:
        """Errors: `KafkaUnavailable` if a partition with records waiting has not moved for too long, and nothing is known to be wrong.

        Only the broker's own word counts: while it does not answer, nobody waits for the client.
        """
        updater, now_s = self._updater, self._now_s()
        progress = updater.checkpoint.progress if updater.checkpoint else {}
        before, self._waiting = self._waiting, {}
        for partition, at in progress.items():
            known, since_s = before.get(partition, (-1, now_s))
            lag, limit_s = self._ends.get(partition, 0) - at.position, updater.settings.kafka.stall_timeout_s
            if known != at.position or lag <= 0 or updater.failing_since is not None:
                since_s = now_s
            self._waiting[partition] = (at.position, since_s)
            if now_s - since_s > limit_s:
                topic = updater.settings.kafka.topic
                raise KafkaUnavailable(
                    f"{topic}[{partition}]: {lag} records wait at offset {at.position} and nothing was finished for {limit_s:g} s, though "
                    "Kafka and the store answer: the client has stalled; leaving, so that a fresh process takes over"
                )

    def stats(self) -> dict[str, object]:
        """What the demo and the live page show."""
        updater = self._updater
        metrics, now_s = updater.metrics, updater.now_ms() / 1000
        progress = updater.checkpoint.progress if updater.checkpoint else {}
        markers = [at.marker for at in progress.values() if at.marker is not None]
        counted = {n: sum(getattr(m, n) for m in markers) for n in ("applied", "noop", "private", "dead", "absent")}
        return {
            "instance": updater.instance,
            "ready": updater.ready,
            "generation_id": updater.swap.generation_id,
            "activation": updater.swap.rewriter.activation,
            "share": None if updater.swap.share is None else asdict(updater.swap.share),
            "candidate_refused": updater.swap.candidate_refused,
            "trends_snapshot": updater.swap.rewriter.trends_snapshot,
            "trends_age_s": self._trends_age_s,
            "partitions": sorted(progress),
            "lag_records": self.lag_records,
            "unaccounted": self.unaccounted,
            "rows_written": metrics.rows_written,
            "freshness_s": asdict(metrics.freshness.total.percentiles()),
            "freshness_recent_s": asdict(metrics.freshness.recent(now_s)),
            **counted,
        }


def make_app(updater: Updater, watch: Watch) -> Starlette:
    """`/health/live`, `/health/ready`, `/metrics`, `/stats`, `/timing/{row_id}`."""

    def ready() -> tuple[bool, dict[str, object]]:
        why = {
            "partitions": sorted(updater.checkpoint.progress) if updater.checkpoint else [],
            "generation_id": updater.swap.generation_id or None,
            "share": None if updater.swap.share is None else asdict(updater.swap.share),
            "candidate_refused": updater.swap.candidate_refused,  # why its viewers' rows stand still
            "frozen": None if updater.swap.freeze is None else asdict(updater.swap.freeze),  # by a person, on purpose
            "unaccounted": watch.unaccounted,  # wrong, and no reason to serve nobody
            "failing_for_s": None
            if updater.failing_since is None
            else round(time.monotonic() - updater.failing_since, 1),
        }
        return updater.ready, {"ready": updater.ready, **why}

    def stats() -> dict[str, object]:
        watch.look()
        return watch.stats()

    async def timing(request: Request) -> Response:
        found = updater.metrics.timing(request.path_params["row_id"])
        return JSONResponse(None if found is None else asdict(found), status_code=404 if found is None else 200)

    return make_health_app(updater.metrics.registry, ready, stats, (Route("/timing/{row_id}", timing),))


async def run_updater(settings: Settings) -> None:
    """Run until SIGTERM or Ctrl-C. Errors: `HaltError`, `KafkaUnavailable` on a silent stall."""
    sys.setswitchinterval(SWITCH_S)
    store = open_store(settings.store, settings.keys)
    schemas, tracer = Schemas(settings), open_tracer(settings.tracing, "nearline-updater")
    codec = await asyncio.to_thread(schemas.begin)
    # The first batch is decoded on the event loop if it is small.
    await asyncio.to_thread(PlayReader(codec.event_header).warm)
    updater = Updater(settings, store, codec, schemas=schemas, tracer=tracer, on_loaded=keep_what_is_there)
    stop_on_signals(updater.stop)
    watch = Watch(updater)
    try:
        health = settings.health
        async with serve(make_app(updater, watch), health.host, health.port, setting="NEARLINE_HEALTH__PORT") as port:
            log.info("updater_listening", host=health.host, port=port, instance=updater.instance)
            await _first_of(updater.run(), watch.run())
    except HaltError as halt:
        log.error("halted", reason=str(halt))
        raise
    finally:
        await store.close()
        if tracer is not None:
            await asyncio.to_thread(tracer.close)
    log.info("updater_stopped", **{k: v for k, v in watch.stats().items() if k in ("rows_written", "unaccounted")})


async def _first_of(main: object, guard: object) -> None:
    """Run `main`; if `guard` raises first, cancel `main` and raise that."""
    tasks = [asyncio.ensure_future(main), asyncio.ensure_future(guard)]  # type: ignore[call-overload]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await cancel_all(*pending)
    for task in done:
        task.result()
