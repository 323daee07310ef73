"""`nearline dlq`: what lies in the dead letter topic, by cause, and sending letters again once their cause is mended.

A letter is sent again with its record's own bytes, key, headers, partition and timestamp, so the updater judges it as it would have
judged the record. Two steps, a chunk at a time:

1. the records, acknowledged     a crash here: the next replay sends them again, and merging changes nothing
2. a mark for each letter        from now on every replay passes it over

Before that each letter is decided by the updater's own `plan` with the registry as it is now: what would only become a dead letter
again, or would make the stream wait for a schema, stays where it is.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from contracts.errors import TransientError, UserError
from contracts.events import PlaybackEvent
from runtime.deadletters import (
    CHUNK_RECORDS,
    ERASED,
    REPLAYED,
    Coordinates,
    Letter,
    Mark,
    Writer,
    belongs_to,
    erase,
    parse,
    read_records,
    writer,
)
from runtime.kafka import AIOKafkaProducer, kafka_errors, make_producer
from runtime.schemas import open_codec
from runtime.settings import Settings
from updater.pipeline import Position, plan
from viewers.state import Limits

EXAMPLES = 3
"""Coordinates quoted per cause."""

_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Cause:
    """Dead letters that were refused for the same reason. Each coordinate counts once.

    `cause`: class and message, `N` where the messages differ in a number. `waiting`: quotable and not replayed yet. `unquotable`: kept
    by coordinates alone, as they may be private. Times are the records' own. `offsets`: `topic/partition` → first and last.
    """

    cause: str
    letters: int
    waiting: int
    replayed: int
    unquotable: int
    first_ms: int
    last_ms: int
    topics: tuple[str, ...]
    partitions: tuple[int, ...]
    offsets: dict[str, tuple[int, int]]
    schema_ids: tuple[int, ...]
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """The dead letter topic at one moment. `duplicates`: letters beyond the first of the same coordinates; `erased`: those of viewers who
    asked to be forgotten; `foreign`: records that are no letters of ours."""

    topic: str
    letters: int
    waiting: int
    replayed: int
    unquotable: int
    erased: int
    duplicates: int
    foreign: int
    causes: tuple[Cause, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A letter that was not sent, and why."""

    letter: str
    why: str


@dataclass(slots=True)
class Replay:
    """What a replay did. `matched` letters = sent + already_replayed + not_replayable + refused (or would be, with `dry_run`)."""

    topic: str
    dry_run: bool
    matched: int = 0
    sent: int = 0
    already_replayed: int = 0
    not_replayable: int = 0
    refused: list[Refusal] = field(default_factory=list)


@dataclass(slots=True)
class _Group:
    """A cause while letters are added."""

    error: str
    words: list[str]  # the message, numbers at the odd places
    letters: int = 0
    waiting: int = 0
    replayed: int = 0
    unquotable: int = 0
    times: list[int] = field(default_factory=list)
    offsets: dict[str, tuple[int, int]] = field(default_factory=dict)
    partitions: set[int] = field(default_factory=set)
    topics: set[str] = field(default_factory=set)
    schema_ids: set[int] = field(default_factory=set)
    examples: list[str] = field(default_factory=list)

    def add(self, letter: Letter, *, replayed: bool) -> None:
        for place, word in enumerate(_NUMBER.split(letter.message)):
            if self.words[place] != word:
                self.words[place] = "N"
        self.letters += 1
        self.replayed += replayed
        self.unquotable += not letter.quotable
        self.waiting += letter.quotable and not replayed
        self.times = [min([*self.times, letter.timestamp_ms]), max([*self.times, letter.timestamp_ms])]
        where = f"{letter.at.topic}/{letter.at.partition}"
        low, high = self.offsets.get(where, (letter.at.offset, letter.at.offset))
        self.offsets[where] = (min(low, letter.at.offset), max(high, letter.at.offset))
        self.partitions.add(letter.at.partition)
        self.topics.add(letter.at.topic)
        if letter.schema_id is not None:
            self.schema_ids.add(letter.schema_id)
        if len(self.examples) < EXAMPLES:
            self.examples.append(str(letter.at))

    def finished(self) -> Cause:
        return Cause(
            f"{self.error}: {''.join(self.words)}", self.letters, self.waiting, self.replayed, self.unquotable,
            self.times[0], self.times[1], tuple(sorted(self.topics)), tuple(sorted(self.partitions)),
            dict(sorted(self.offsets.items())), tuple(sorted(self.schema_ids)), tuple(self.examples),
        )  # fmt: skip


def group(letters: Iterable[Letter], replayed: Collection[Coordinates] = ()) -> tuple[Cause, ...]:
    """Letters of different coordinates by cause, the most frequent first. Pure."""
    groups: dict[tuple[str, tuple[str, ...]], _Group] = {}
    for letter in letters:
        words = _NUMBER.split(letter.message)
        key = (letter.error, tuple(words[::2]))
        groups.setdefault(key, _Group(letter.error, words)).add(letter, replayed=letter.at in replayed)
    return tuple(sorted((one.finished() for one in groups.values()), key=lambda one: (-one.letters, one.cause)))


async def list_letters(settings: Settings) -> Listing:
    """What lies in the dead letter topic. Errors: `KafkaUnavailable`."""
    seen: dict[Coordinates, Letter] = {}
    marks: dict[str, set[Coordinates]] = {REPLAYED: set(), ERASED: set()}
    duplicates = foreign = 0
    async with aclosing(read_records(settings)) as records:
        async for record in records:
            entry = parse(record)
            if isinstance(entry, Mark):
                marks[entry.kind].add(entry.at)
            elif entry is None:
                foreign += 1
            else:
                known = seen.get(entry.at)
                duplicates += known is not None
                if known is None or entry.tells > known.tells:
                    seen[entry.at] = _slim(entry)
    letters = [letter for at, letter in seen.items() if at not in marks[ERASED]]
    causes = group(letters, marks[REPLAYED])
    sums = {
        name: sum(getattr(one, name) for one in causes) for name in ("letters", "waiting", "replayed", "unquotable")
    }
    return Listing(
        settings.kafka.dead_letter_topic, **sums, erased=len(marks[ERASED]), duplicates=duplicates, foreign=foreign, causes=causes
    )  # fmt: skip


def _slim(letter: Letter) -> Letter:
    """Without what a list does not need; the frame stays, for the schema id."""
    return Letter(
        letter.at, letter.error, letter.message, letter.timestamp_ms, None, (letter.value or b"")[:5], letter.headers[:1],
        letter.measured,
    )  # fmt: skip


async def replay(
    settings: Settings,
    *,
    cause: str | None = None,
    offsets: Sequence[tuple[int, int]] = (),
    dry_run: bool = False,
    force: bool = False,
    now_ms: int,
) -> Replay:
    """Send the letters again that match: `cause` is part of class and message, `offsets` are (partition, offset); none given: all.

    `force` also sends what the updater would refuse again, but never what would make the stream wait, and never private plays.
    Errors: `KafkaUnavailable`: what was sent and not marked is sent again by the next replay, which changes nothing.
    """
    report = Replay(settings.kafka.dead_letter_topic, dry_run)
    codec = await asyncio.to_thread(open_codec, settings)
    limits = Limits(**settings.state.model_dump())
    replayed, erased, quoted = await _look_ahead(settings)
    producer = await make_producer(settings)
    try:
        async with writer(settings) as marks:
            async for chunk in _chunks(_matching(settings, cause, frozenset(offsets), quoted)):
                due = []
                for letter in chunk:
                    if letter.at in erased:
                        continue
                    report.matched += 1
                    why = refusal(letter, codec.decode_event, limits, force=force)
                    if letter.at in replayed:
                        report.already_replayed += 1
                    elif not letter.quotable:
                        report.not_replayable += 1
                    elif why is not None:
                        report.refused.append(Refusal(str(letter.at), why))
                    else:
                        due.append(letter)
                if not dry_run:
                    await _send(settings, producer, due)  # 1
                    await _mark(marks, due, now_ms)  # 2
                report.sent += len(due)
    finally:
        await producer.stop()
    return report


def refusal(
    letter: Letter, decode: Callable[[bytes], PlaybackEvent], limits: Limits, *, force: bool = False
) -> str | None:
    """Why a letter must not be sent again; None if it may. Decided by what the updater itself does with the record. Pure."""
    record = _Again(
        letter.at.partition, letter.at.offset, letter.timestamp_ms, letter.key, letter.value, letter.headers
    )
    try:
        decided = plan(
            {record.partition: [record]}, {record.partition: Position(record.offset, record.offset)}, decode, limits
        )
    except TransientError as error:
        return f"the stream would wait for it: {error}"
    if decided.partitions[record.partition].private:
        return "a private play: only counted"
    if decided.dead_letters and not force:
        cause = decided.dead_letters[0].cause
        return f"would be refused again: {type(cause).__name__}: {cause}"
    return None


@dataclass(slots=True)
class _Again:
    """A letter as the record it was: `updater.pipeline.Record`."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


async def _look_ahead(settings: Settings) -> tuple[set[Coordinates], set[Coordinates], set[Coordinates]]:
    """What was replayed, what was erased, and of what there is a letter with its bytes."""
    marks: dict[str, set[Coordinates]] = {REPLAYED: set(), ERASED: set()}
    quoted: set[Coordinates] = set()
    async with aclosing(read_records(settings)) as records:
        async for record in records:
            entry = parse(record)
            if isinstance(entry, Mark):
                marks[entry.kind].add(entry.at)
            elif entry is not None and entry.quotable:
                quoted.add(entry.at)
    return marks[REPLAYED], marks[ERASED], quoted


async def _matching(
    settings: Settings, cause: str | None, offsets: Collection[tuple[int, int]], quoted: Collection[Coordinates]
) -> AsyncIterator[Letter]:
    """Letters of this stream that are asked for, each once: one with its bytes, where there is one (`quoted`)."""
    seen: set[Coordinates] = set()
    async with aclosing(read_records(settings)) as records:
        async for record in records:
            letter = parse(record)
            if not isinstance(letter, Letter) or letter.at in seen or letter.at.topic != settings.kafka.topic:
                continue
            if letter.at in quoted and not letter.quotable:
                continue
            if offsets and (letter.at.partition, letter.at.offset) not in offsets:
                continue
            if cause is not None and not _has_cause(letter, cause):
                continue
            seen.add(letter.at)
            yield letter


def _has_cause(letter: Letter, text: str) -> bool:
    """Is the text part of class and message? `N` stands for any number, as the list prints it."""
    pattern = r"(?:\d+|N)".join(map(re.escape, re.split(r"\bN\b", text)))
    return re.search(pattern, f"{letter.error}: {letter.message}", re.IGNORECASE) is not None


async def _chunks(letters: AsyncIterator[Letter]) -> AsyncIterator[list[Letter]]:
    chunk: list[Letter] = []
    async for letter in letters:
        chunk.append(letter)
        if len(chunk) == CHUNK_RECORDS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


async def _send(settings: Settings, producer: AIOKafkaProducer, letters: Sequence[Letter]) -> None:
    """To the partition that each came from, so that a viewer's records stay together."""
    if not letters:
        return
    topic = settings.kafka.topic
    with kafka_errors(f"replaying dead letters into {topic}", settings):
        partitions = await producer.partitions_for(topic)
        acks = [
            await producer.send(
                topic,
                letter.value,
                key=letter.key,
                partition=letter.at.partition if letter.at.partition in partitions else None,
                timestamp_ms=letter.timestamp_ms if letter.timestamp_ms >= 0 else None,
                headers=list(letter.headers),
            )
            for letter in letters
        ]
        for ack in acks:
            await ack


async def _mark(marks: Writer, letters: Sequence[Letter], now_ms: int) -> None:
    for letter in letters:
        await marks.mark(letter.at, REPLAYED, now_ms)
    await marks.flush()


async def erase_viewer(settings: Settings, viewer: str, *, now_ms: int) -> int:
    """Take every letter about a viewer out of the topic; returns how many. Errors: `KafkaUnavailable`."""
    return await erase(settings, belongs_to(viewer, await asyncio.to_thread(open_codec, settings)), now_ms=now_ms)


def parse_offset(text: str) -> tuple[int, int]:
    """`3:17` → (3, 17). Errors: `UserError`."""
    found = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,19})", text)
    if found is None:
        raise UserError(f"--offset {text}: partition and offset are wanted, such as 3:17")
    return int(found[1]), int(found[2])


def refusals_by_cause(refused: Iterable[Refusal]) -> list[tuple[str, int, str]]:
    """(why, how many, an example), the most frequent first; differing numbers count as one reason."""
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for one in refused:
        why = _NUMBER.sub("N", one.why)
        counts[why] += 1
        examples.setdefault(why, one.letter)
    return [(why, count, examples[why]) for why, count in counts.most_common()]
