"""Reporting what was shown, without ever delaying or failing a response: a bounded queue that drops and counts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
from prometheus_client import Counter

from contracts.codec import Codec
from contracts.errors import KafkaUnavailable, NearlineError
from contracts.rows import Impression
from runtime.kafka import AIOKafkaProducer, KafkaError, make_producer
from runtime.kafka_reasons import explain
from runtime.learning_codec import LearningCodec
from runtime.settings import Settings

QUEUE_LIMIT = 10_000
"""Impressions waiting at most: some seconds of traffic and about 10 MB; more means that the broker is away."""

RETRY_S = 1.0
"""Pause between two tries to reach the broker."""

CLOSE_DEADLINE_S = 3.0
"""How long a stop waits for what is queued."""

log = structlog.get_logger()


class ImpressionSink(Protocol):
    """Where impressions go."""

    def offer(self, impression: Impression) -> bool:
        """Take it, or refuse (False) at once; never waits, never raises."""


class NoImpressions:
    """Takes and forgets."""

    def offer(self, impression: Impression) -> bool:
        """Always True."""
        return True


class QueuedImpressions:
    """A bounded queue before `send`, which a background task (`run`) calls; failures are counted as `lost`.

    `send` must hand over one impression and may wait; it raises `NearlineError` if it cannot."""

    def __init__(self, send: Callable[[Impression], Awaitable[None]], lost: Counter, limit: int = QUEUE_LIMIT) -> None:
        self._send = send
        self._lost = lost
        self._queue: asyncio.Queue[Impression] = asyncio.Queue(limit)

    def offer(self, impression: Impression) -> bool:
        """False if the queue is full."""
        try:
            self._queue.put_nowait(impression)
        except asyncio.QueueFull:
            return False
        return True

    async def run(self) -> None:
        """Send what is queued, until cancelled."""
        while True:
            impression = await self._queue.get()
            try:
                await self._send(impression)
            except NearlineError as error:
                self._lost.inc()
                log.warning("impression_lost", problem=str(error))
            finally:
                self._queue.task_done()

    async def drain(self, deadline_s: float = CLOSE_DEADLINE_S) -> None:
        """Wait until everything queued was sent, at most `deadline_s` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await self._queue.join()


class KafkaImpressions:
    """Sends to the impressions topic; connects on the first impression and again after the broker was away.

    Delivery is at most once per impression as seen from here: an acknowledgement is awaited by the client, not by us."""

    def __init__(self, settings: Settings, codec: Codec | LearningCodec, lost: Counter) -> None:
        self._settings = settings
        self._codec = codec
        self._lost = lost
        self._producer: AIOKafkaProducer | None = None
        self._reported = ""

    async def send(self, impression: Impression) -> None:
        """Hand one impression to the client; raises `KafkaUnavailable` after a pause if the broker is away."""
        value = self._codec.encode_impression(impression)
        try:
            if self._producer is None:
                self._producer = await make_producer(self._settings, linger_ms=50, idempotent=False)
            sent = await self._producer.send(
                self._settings.kafka.impressions_topic,
                value,
                key=impression.viewer.encode(),
                timestamp_ms=impression.served_at_ms,
            )
        except (KafkaError, OSError, KafkaUnavailable) as error:
            await asyncio.sleep(RETRY_S)
            if isinstance(error, KafkaUnavailable):
                raise
            raise KafkaUnavailable(f"impression not sent: {explain(error, self._settings.kafka)}") from error
        sent.add_done_callback(self._acknowledged)

    def _acknowledged(self, sent: asyncio.Future[object]) -> None:
        error = None if sent.cancelled() else sent.exception()
        if sent.cancelled() or error is not None:
            self._lost.inc()
        if error is not None and (problem := explain(error, self._settings.kafka)) != self._reported:
            self._reported = problem  # once: every impression would say it
            log.warning("impressions_refused", topic=self._settings.kafka.impressions_topic, problem=problem)

    async def close(self) -> None:
        """Flush and disconnect."""
        if self._producer is not None:
            with contextlib.suppress(KafkaError, OSError):
                await self._producer.stop()
            self._producer = None
