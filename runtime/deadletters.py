"""The dead letter topic: what lies in it, marks beside the letters, and taking letters out for good.

A letter is identified by the coordinates of its record: topic, stream epoch, partition, offset. It may be there several times. Three
kinds of records lie in the topic:

    letter    the record's own key, value and headers, if they may be quoted; then the headers of `LETTER_TAIL`, in that order
    mark      no key, an empty value; a header `nearline.replayed` or `nearline.erased` (when, ms), then the coordinates: `MARK_TAIL`
    foreign   anything else; left as it is

What is ours stands at the end of the headers, so no record can pass itself off as something else by headers it came with.

A log can only be cut at its front. So `erase` writes what must stay again at the end and cuts off what was there before; the broker
gives what is cut to nobody from then on, and its bytes leave the disk with their segment. Compaction was no way: it needs the
coordinates as the key, where Connect's tools look for the record's own, never touches the newest segment, and has no deadline.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from contracts.codec import Codec
from contracts.errors import KafkaUnavailable, TransientError, UndecodableRecord
from contracts.framing import frame_of, framed
from runtime.kafka import (
    AIOKafkaConsumer,
    AIOKafkaProducer,
    ConsumerRecord,
    OffsetOutOfRangeError,
    RecordsToDelete,
    TopicPartition,
    count_partitions,
    kafka_errors,
    make_admin,
    make_consumer,
    make_producer,
)
from runtime.settings import Settings

SOURCE_TIMESTAMP = "nearline.source.timestamp"
SOURCE_EPOCH = "nearline.source.epoch"
SOURCE_SIZE = "nearline.source.size_bytes"
SOURCE_SHA256 = "nearline.source.sha256"
REPLAYED = "nearline.replayed"
ERASED = "nearline.erased"

CONNECT_TAIL = tuple(
    f"__connect.errors.{name}"
    for name in ("topic", "partition", "offset", "stage", "exception.class.name", "exception.message")
)
"""Kafka Connect's names; letters of the first version end with them."""

LETTER_TAIL = (*CONNECT_TAIL, SOURCE_TIMESTAMP, SOURCE_EPOCH)
GIANT_TAIL = (*LETTER_TAIL, SOURCE_SIZE, SOURCE_SHA256)
"""Letters of records that are too large to be quoted: they tell the size and the digest."""
MARK_TAIL = ("nearline.source.topic", SOURCE_EPOCH, "nearline.source.partition", "nearline.source.offset")

FIRST_EPOCH = 1
"""The epoch of letters of the first version, which do not tell."""

CHUNK_RECORDS = 500
"""Records on their way at once."""

ERASE_ROUNDS = 5
"""Two who erase at the same time may write again what the other took out, and see it in the next round."""

READ_DEADLINE_S = 30.0
"""Without any record in this time the broker counts as away."""

Headers = Sequence[tuple[str, bytes]]


class Coordinates(NamedTuple):
    """Where a dead record lay. Printed as `partition:offset`, which `nearline dlq replay --offset` takes."""

    topic: str
    epoch: int
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter. `error` is the class that refused the record, `timestamp_ms` the record's own; `headers` are the record's.

    `quotable`: the record was known not to be private, so its key, bytes and headers are here.
    """

    at: Coordinates
    error: str
    message: str
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    measured: bool = False
    """Too large to be quoted: its size and digest are told."""

    @property
    def tells(self) -> int:
        """How much it holds. A record that is read again gets a letter with its coordinates alone (0): it must not hide the first one."""
        return 2 if self.quotable else int(self.measured)

    @property
    def quotable(self) -> bool:
        return bool(self.headers)  # the header private=0 at least

    @property
    def schema_id(self) -> int | None:
        """The writer's schema id, if the bytes are framed."""
        named = frame_of(framed(self.value, self.headers))
        return named if isinstance(named, int) else None


@dataclass(frozen=True, slots=True)
class Mark:
    """What happened to a letter afterwards. `kind`: `REPLAYED` or `ERASED`."""

    at: Coordinates
    kind: str


def parse(record: ConsumerRecord) -> Letter | Mark | None:
    """What a record of the dead letter topic is; None for what somebody else put there."""
    headers: list[tuple[str, bytes]] = list(record.headers)
    for tail in (GIANT_TAIL, LETTER_TAIL, CONNECT_TAIL):
        if tuple(name for name, _ in headers[-len(tail) :]) != tail:
            continue
        said = {name: (value or b"").decode("utf-8", "replace") for name, value in headers[-len(tail) :]}
        topic, partition, offset, _, error, message = (said[name] for name in CONNECT_TAIL)
        at = _coordinates(topic, said.get(SOURCE_EPOCH, str(FIRST_EPOCH)), partition, offset)
        timestamp = said.get(SOURCE_TIMESTAMP, str(record.timestamp))
        if at is None or re.fullmatch(r"-?[0-9]{1,19}", timestamp) is None:
            return None
        own = tuple((name, value or b"") for name, value in headers[: -len(tail)])
        value = record.value if own else None
        measured = tail is GIANT_TAIL
        return Letter(at, error.removeprefix("nearline."), message, int(timestamp), record.key, value, own, measured)
    names = tuple(name for name, _ in headers)
    if not record.value and names[1:] == MARK_TAIL and names[0] in (REPLAYED, ERASED):
        at = _coordinates(*((value or b"").decode("utf-8", "replace") for _, value in headers[1:]))
        return None if at is None else Mark(at, names[0])
    return None


def _coordinates(topic: str, epoch: str, partition: str, offset: str) -> Coordinates | None:
    numbers = (epoch, partition, offset)
    if not all(re.fullmatch(r"[0-9]{1,19}", number) for number in numbers):
        return None
    return Coordinates(topic, *map(int, numbers))


def mark_headers(at: Coordinates, kind: str, now_ms: int) -> list[tuple[str, bytes]]:
    """The headers of a mark."""
    values = (now_ms, at.topic, at.epoch, at.partition, at.offset)
    return [(name, str(value).encode()) for name, value in zip((kind, *MARK_TAIL), values, strict=True)]


async def read_records(settings: Settings) -> AsyncGenerator[ConsumerRecord, None]:
    """Every record of the dead letter topic as it stands now, partition by partition. Nothing if there is no such topic.

    Errors: `KafkaUnavailable`.
    """
    topic = settings.kafka.dead_letter_topic
    partitions = await _partitions(settings)
    if not partitions:
        return
    consumer = await make_consumer(settings)
    try:
        with kafka_errors(f"reading {topic}", settings):
            consumer.assign(partitions)
            begins = await consumer.beginning_offsets(partitions)
            ends = await consumer.end_offsets(partitions)
        for tp in partitions:
            async with aclosing(_read_partition(settings, consumer, tp, begins[tp], ends[tp])) as records:
                async for record in records:
                    yield record
    finally:
        await consumer.stop()


async def _read_partition(
    settings: Settings, consumer: AIOKafkaConsumer, tp: TopicPartition, begin: int, end: int
) -> AsyncGenerator[ConsumerRecord, None]:
    loop = asyncio.get_running_loop()
    position, moved_at = begin, loop.time()
    with kafka_errors(f"reading {tp.topic}", settings):
        consumer.assign([tp])
        consumer.seek(tp, begin)
    while position < end:
        with kafka_errors(f"reading {tp.topic}", settings):
            fetched: list[ConsumerRecord] = []
            with suppress(OffsetOutOfRangeError):  # told, or nothing: somebody cut the log while we read
                fetched = (await consumer.getmany(tp, timeout_ms=500)).get(tp, [])
            if not fetched:
                first = (await consumer.beginning_offsets([tp]))[tp]
                if first > position:
                    consumer.seek(tp, first)
        for record in fetched:
            if record.offset < end:
                yield record
        with kafka_errors(f"reading {tp.topic}", settings):
            before, position = position, await consumer.position(tp)
            if position > before:
                moved_at = loop.time()
            elif loop.time() > moved_at + READ_DEADLINE_S:
                raise TimeoutError(f"no record in {READ_DEADLINE_S:g} s at offset {position}")


async def _partitions(settings: Settings) -> list[TopicPartition]:
    topic = settings.kafka.dead_letter_topic
    return [TopicPartition(topic, number) for number in range(await count_partitions(settings, topic))]


class Writer:
    """Writes to the dead letter topic and waits for every acknowledgement, a chunk at a time."""

    def __init__(self, settings: Settings, producer: AIOKafkaProducer) -> None:
        self._settings = settings
        self._producer = producer
        self._chunk: list[Any] = []

    async def mark(self, at: Coordinates, kind: str, now_ms: int) -> None:
        await self._add(value=b"", headers=mark_headers(at, kind, now_ms))

    async def copy(self, record: ConsumerRecord) -> None:
        await self._add(
            key=record.key,
            value=b"" if record.key is None and record.value is None else record.value,
            headers=list(record.headers),
            timestamp_ms=record.timestamp if record.timestamp >= 0 else None,
            partition=record.partition,
        )

    async def flush(self) -> None:
        """Wait for what is on its way. Errors: `KafkaUnavailable`."""
        with kafka_errors(f"writing to {self._settings.kafka.dead_letter_topic}", self._settings):
            chunk, self._chunk = self._chunk, []
            for ack in chunk:
                await ack

    async def _add(self, **what: Any) -> None:
        with kafka_errors(f"writing to {self._settings.kafka.dead_letter_topic}", self._settings):
            self._chunk.append(await self._producer.send(self._settings.kafka.dead_letter_topic, **what))
        if len(self._chunk) >= CHUNK_RECORDS:
            await self.flush()


@asynccontextmanager
async def writer(settings: Settings) -> AsyncIterator[Writer]:
    """A `Writer` with a producer of its own; flush it before the block ends."""
    producer = await make_producer(settings)
    try:
        yield Writer(settings, producer)
    finally:
        await producer.stop()


@dataclass(slots=True)
class _Found:
    """What a look through the topic says about an erasure. `asked`: letters that belong; `going`: with those that another run left
    marked; `cuts`: partition → offset after the last letter that must go."""

    asked: set[Coordinates]
    going: set[Coordinates]
    marked: set[Coordinates]
    cuts: dict[int, int]


async def erase(settings: Settings, belongs: Callable[[Letter], bool], *, now_ms: int) -> int:
    """Take the letters for which `belongs` is true out of the topic; returns how many different ones there were.

    1. Mark them erased                                from now on no list and no replay has them
    2. Write again what lies before the last of them   letters that stay, and marks
    3. Cut the topic's partitions there (DeleteRecords)
    4. Look again, until none is left

    A crash after any step leaves letters twice, never too few; asking again finishes it. Who erases at the same time sees the marks
    and leaves those letters out, at the latest in step 4. Errors: `KafkaUnavailable`.
    """
    gone: set[Coordinates] = set()
    for _ in range(ERASE_ROUNDS):
        found = await _look(settings, belongs)
        if not found.cuts:
            return len(gone)
        gone |= found.asked
        async with writer(settings) as out:
            for at in found.going - found.marked:
                await out.mark(at, ERASED, now_ms)
            await out.flush()  # 1
            await _write_again(settings, found, out)
            await out.flush()  # 2
        await _cut(settings, found.cuts)  # 3
    raise KafkaUnavailable(
        f"{settings.kafka.dead_letter_topic}: letters came back {ERASE_ROUNDS} times; who else writes there? Ask again"
    )


async def _look(settings: Settings, belongs: Callable[[Letter], bool]) -> _Found:
    asked: set[Coordinates] = set()
    marked: set[Coordinates] = set()
    last: dict[tuple[Coordinates, int], int] = {}
    async with aclosing(read_records(settings)) as records:
        async for record in records:
            entry = parse(record)
            if isinstance(entry, Mark):
                if entry.kind == ERASED:
                    marked.add(entry.at)
            elif entry is not None and entry.quotable:
                last[entry.at, record.partition] = record.offset + 1
                if belongs(entry):
                    asked.add(entry.at)
    cuts: dict[int, int] = {}
    going = asked | marked & {at for at, _ in last}  # what another run marked and did not get to cut, or wrote again
    for (at, partition), offset in last.items():
        if at in going:
            cuts[partition] = max(offset, cuts.get(partition, 0))
    return _Found(asked, going, marked, cuts)


async def _write_again(settings: Settings, found: _Found, out: Writer) -> None:
    """What lies before the cuts and stays, each letter (of those that tell as much) and each mark once."""
    written: set[tuple[Coordinates, str | int]] = set()
    async with aclosing(read_records(settings)) as records:
        async for record in records:
            if record.offset >= found.cuts.get(record.partition, 0):
                continue
            entry = parse(record)
            if entry is not None:
                what = (entry.at, entry.kind if isinstance(entry, Mark) else entry.tells)
                if what in written or (isinstance(entry, Letter) and entry.quotable and entry.at in found.going):
                    continue
                written.add(what)
            await out.copy(record)


async def _cut(settings: Settings, cuts: dict[int, int]) -> None:
    topic = settings.kafka.dead_letter_topic
    admin = await make_admin(settings)
    try:
        with kafka_errors(
            f"deleting records of {topic} (needs the right to delete, and cleanup.policy=delete)", settings
        ):
            await admin.delete_records({TopicPartition(topic, p): RecordsToDelete(end) for p, end in cuts.items()})
    finally:
        await admin.close()


def belongs_to(viewer: str, codec: Codec) -> Callable[[Letter], bool]:
    """Is a letter about this viewer? By its key, by the event in it, or, where the bytes cannot be read, by the id standing in
    them: rather one letter too many than one of an erased viewer's too few."""
    key = viewer.encode()
    length = bytes([len(key) << 1]) if len(key) < 64 else bytes([(len(key) << 1) & 127 | 128, len(key) >> 6])
    alphabet = rb"[A-Za-z0-9._:|@~-]"
    pattern = re.compile(
        re.escape(length + key) + rb"|(?<!" + alphabet + rb")" + re.escape(key) + rb"(?!" + alphabet + rb")"
    )

    def belongs(letter: Letter) -> bool:
        if letter.key == key:
            return True
        named = viewer_in(letter, codec)
        if named is not None:
            return named == viewer
        return any(pattern.search(text) for text in _texts(letter))

    return belongs


def viewer_in(letter: Letter, codec: Codec) -> str | None:
    """The viewer in a letter's event; None if the bytes cannot be read."""
    try:
        return codec.decode_event(framed(letter.value, letter.headers)).viewer
    except (UndecodableRecord, TransientError):
        return None


def _texts(letter: Letter) -> Iterable[bytes]:
    yield letter.key or b""
    yield letter.value or b""
    for _, value in letter.headers:
        yield value
