"""The harness's producer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable

from contracts.errors import NearlineError
from runtime.kafka import AIOKafkaProducer, KafkaError, make_producer
from runtime.settings import Settings
from sandbox.chaos.stream import Message
from sandbox.chaos.truth import INTENT


class Sender:
    """Sends one list of messages at a time."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self.sending = asyncio.Lock()

    async def send(self, messages: Iterable[Message], *, patiently: bool = False) -> None:
        """Send, and wait for the acknowledgements. What a broker that is away does not take is not sent again, unless `patiently`.

        What arrived all the same, once or twice, the truth reads from the log.
        """
        messages = list(messages)
        async with self.sending:
            while True:
                try:
                    if self._producer is None:
                        self._producer = await make_producer(self._settings())
                    acks = [await self._produce(self._producer, message) for message in messages]
                    await asyncio.wait_for(asyncio.gather(*acks), 20)
                    return
                except (KafkaError, NearlineError, TimeoutError, OSError):
                    await self._drop()
                    if not patiently:
                        return
                    await asyncio.sleep(0.2)

    async def _produce(self, producer: AIOKafkaProducer, message: Message) -> asyncio.Future[object]:
        headers = [(INTENT, str(message.intent).encode())]
        if message.private is not None:
            headers.append(("private", message.private))
        sent: asyncio.Future[object] = await producer.send(
            self._settings().kafka.topic,
            message.value,
            key=message.key,
            partition=message.partition,
            timestamp_ms=message.timestamp_ms,
            headers=headers,
        )
        return sent

    async def drop(self) -> None:
        """The next message is sent by a new producer, which looks at the topic as it is then."""
        async with self.sending:
            await self._drop()

    async def _drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(5):
                    await producer.stop()
