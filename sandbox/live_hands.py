"""The hands of the live page's buttons (`live_actions.py`): the demo's producer, its updater, its nightly job."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from contracts.codec import Codec
from contracts.errors import NearlineError
from contracts.events import Kind, PlaybackEvent
from runtime.deadletters import Letter, parse, read_records
from runtime.kafka import AIOKafkaProducer, kafka_errors
from runtime.settings import Settings
from sandbox.chaos.truth import partitions_of
from sandbox.live_actions import CHUNK, Actions, DeadLetter, Hands, Plays
from sandbox.live_sources import NightSnapshot, UpdaterProbe, open_log
from sandbox.oracle import POISON
from sandbox.oracle_process import OracleProcess
from sandbox.processes import Job, describe_end
from sandbox.replay import send_event
from sandbox.supervisor import Supervisor
from sandbox.world import World
from viewers.store import Store

FIRST_TITLES = 12
"""A burst plays one of the first titles of each viewer's row: what a page shows."""
ASKED_AT_ONCE = 8
DEFAULT_DURATION_MS = 45 * 60_000
HOUR_MS = 3_600_000
SOMEBODY_ELSE = b"somebody-else"


def whole_play(viewer: str, item_id: str, duration_ms: int, now_ms: int) -> PlaybackEvent:
    """A title watched to its end, told in one event."""
    return PlaybackEvent(
        event_id=uuid.uuid4().hex,
        kind=Kind.COMPLETE,
        viewer=viewer,
        event_time_ms=now_ms,
        item_id=item_id,
        play_id=uuid.uuid4().hex,
        play_started_at_ms=now_ms,
        watched_ms=duration_ms,
        duration_ms=duration_ms,
    )


def poison_of(event: PlaybackEvent, codec: Codec) -> list[tuple[bytes, bytes]]:
    """(key, value) of records that can never be applied, each for a reason of its own; made from a good event."""
    key, good = event.viewer.encode(), codec.encode_event(event)
    tomorrow = dataclasses.replace(event, event_time_ms=event.event_time_ms + 24 * HOUR_MS)
    endless = dataclasses.replace(event, watched_ms=11 * (event.duration_ms or 1))
    return [
        (key, b"not Avro at all"),
        (key, good[:-1]),
        (key, good + b"\x00"),
        (key, codec.encode_event(tomorrow)),
        (key, codec.encode_event(endless)),
        (SOMEBODY_ELSE, good),
    ]


class _Sender:
    """Sends what the buttons send. `on_sent` is told how many records are on their way."""

    def __init__(
        self,
        settings: Settings,
        codec: Codec,
        producer: AIOKafkaProducer,
        world: World,
        last_night: NightSnapshot,
        on_sent: Callable[[int], None],
    ) -> None:
        self._settings, self._codec, self._producer = settings, codec, producer
        self._world, self._last_night, self._on_sent = world, last_night, on_sent
        self._durations = {item.item_id: item.duration_ms or DEFAULT_DURATION_MS for item in world.catalogue}

    async def plays(self, count: int) -> list[tuple[str, int]]:
        """So many viewers press play on something in their row, at once; who, and when, UTC ms."""
        chosen, sent = await self._choose(count), []
        acknowledged: list[asyncio.Future[Any]] = []
        for number, (viewer, item_id) in enumerate(chosen):
            event = whole_play(viewer, item_id, self._durations[item_id], int(time.time() * 1000))
            acknowledged.append(await send_event(self._producer, self._codec, self._settings, event))
            self._on_sent(1)
            sent.append((viewer, event.event_time_ms))
            if number % CHUNK == 0:
                await asyncio.sleep(0)
        with kafka_errors("sending a burst", self._settings):
            await asyncio.gather(*acknowledged)
        return sent

    async def _choose(self, count: int) -> list[tuple[str, str]]:
        """(viewer, title): different viewers as long as there are some."""
        viewers = random.sample(self._world.viewers, len(self._world.viewers))
        found = []
        for number in range(count):
            viewer = viewers[number % len(viewers)].viewer
            data = await self._last_night(viewer)
            row = [e.item_id for e in self._codec.decode_row(data).entries[:FIRST_TITLES]] if data else []
            known = [item for item in row if item in self._durations] or [random.choice(self._world.catalogue).item_id]
            found.append((viewer, random.choice(known)))
            if number % CHUNK == 0:
                await asyncio.sleep(0)
        return found

    async def poison(self, count: int) -> list[tuple[int, int]]:
        """(partition, offset) of each."""
        now_ms = int(time.time() * 1000)
        places = []
        for number in range(count):
            viewer = random.choice(self._world.viewers).viewer
            item = random.choice(self._world.catalogue)
            event = whole_play(viewer, item.item_id, self._durations[item.item_id], now_ms)
            kinds = poison_of(event, self._codec)
            key, value = kinds[number % len(kinds)]
            with kafka_errors("sending poison", self._settings):
                sent = await self._producer.send(
                    self._settings.kafka.topic,
                    value,
                    key=key,
                    timestamp_ms=now_ms,
                    headers=[("private", b"0"), (POISON, b"1")],
                )
                self._on_sent(1)
                metadata = await sent
            places.append((int(metadata.partition), int(metadata.offset)))
        return places


async def read_waits(store: Store, codec: Codec, probe: UpdaterProbe, plays: Plays) -> list[float]:
    """From event to row written, ms, of the plays that their viewer's row is about and whose timing the updater remembers."""

    async def wait_of(viewer: str, event_ms: int) -> float | None:
        data = await store.read_row(viewer)
        row = codec.decode_row(data) if data else None
        if row is None or row.event_time_ms != event_ms:
            return None  # there was a later event since
        timing = await probe.timing(row.row_id)
        return None if timing is None else timing.written_at_ms - event_ms

    waits: list[float] = []
    for start in range(0, len(plays), ASKED_AT_ONCE):
        found = await asyncio.gather(*(wait_of(*play) for play in plays[start : start + ASKED_AT_ONCE]))
        waits += [wait for wait in found if wait is not None]
    return waits


async def read_letters(settings: Settings) -> list[DeadLetter]:
    """Every dead letter of the topic as it stands now. Errors: `KafkaUnavailable`."""
    async with aclosing(read_records(settings)) as records:
        parsed = [parse(record) async for record in records]
    return [
        DeadLetter((letter.at.partition, letter.at.offset), letter.error, letter.message)
        for letter in parsed
        if isinstance(letter, Letter) and letter.at.topic == settings.kafka.topic
    ]


async def run_night(environment: Mapping[str, str], folder: Path) -> str:
    """A nightly run whose generation is published whatever the gate says; its last line. Errors: `NearlineError`."""
    job = Job("nightly", ("nightly", "--force"), environment, folder)
    status = await job.run()
    if status != 0:
        raise NearlineError(f"nearline nightly: {describe_end(status)}; the end of {job.log}:\n{job.tail(3)}")
    return job.tail()


@asynccontextmanager
async def open_actions(
    *,
    settings: Settings,
    environment: Mapping[str, str],
    folder: Path,
    store: Store,
    codec: Codec,
    producer: AIOKafkaProducer,
    world: World,
    last_night: NightSnapshot,
    supervisor: Supervisor,
    probe: UpdaterProbe,
    on_sent: Callable[[int], None],
    sent: Callable[[], int],
    partitions: Sequence[int] | None = None,
    burst_plays: int | None = None,
) -> AsyncIterator[Actions]:
    """The buttons over what the demo has open. `sent`: records handed to the producer since the log began; `folder`: for processes.

    What a button has started ends with the block.
    """

    async def acknowledged() -> int:
        handed_over = sent()
        with kafka_errors("waiting for acknowledgements", settings):
            await producer.flush()
        return handed_over

    sender = _Sender(settings, codec, producer, world, last_night, on_sent)
    oracle = OracleProcess(environment, folder)
    async with open_log(settings, store, partitions or await partitions_of(settings)) as log:
        hands = Hands(
            log=log,
            kill=supervisor.kill,
            send_poison=sender.poison,
            letters=lambda: read_letters(settings),
            send_plays=sender.plays,
            waits_ms=lambda plays: read_waits(store, codec, probe, plays),
            nightly=lambda: run_night(environment, folder),
            sent=acknowledged,
            check=oracle.check,
            stats=probe.stats,
        )
        actions = Actions(hands) if burst_plays is None else Actions(hands, burst_plays=burst_plays)
        try:
            yield actions
        finally:
            await actions.close()
            await oracle.close()
