"""Nothing lost, nothing doubled? Reads the whole log in a way of its own and compares every viewer's stored state with it.

    markers ──► states ──► the log to its end        in this order, while the stream goes on

What lies below a marker was in the states when they were read, and what was in the states lies before the end of the log. So a
viewer without any record from the markers on must be exactly what the log says; the others are asked again, with new markers.

It runs as a process of its own at the lowest priority (`OracleProcess` starts it and asks it), so that looking disturbs nothing. It
never merges as the updater does (`chaos/truth.py`), and a sender says in a header which records can never be applied.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field

from contracts.codec import Codec
from contracts.errors import NearlineError, RecordError
from contracts.events import PlaybackEvent, validate
from runtime.kafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition, kafka_errors, make_consumer
from runtime.settings import Settings, load_settings
from sandbox.action_views import Verdict
from sandbox.chaos.truth import History, partitions_of
from viewers.packing import unpack
from viewers.redis_store import open_store
from viewers.state import Limits, ViewerState
from viewers.store import Marker, Store

POISON = "sandbox.poison"
"""Header of a record that was made so that it can never be applied."""
ROUNDS = 8
"""Looks at viewers who were moving; at a hundred events a second two or three are enough."""
ROUND_PAUSE_S = 0.05
STATES_AT_ONCE = 500
PROBLEMS_TOLD = 5


@dataclass(slots=True)
class _Partition:
    """One partition as it was read: the offsets of what is not an event, ascending."""

    read_to: int = 0
    private: list[int] = field(default_factory=list)
    dead: list[int] = field(default_factory=list)
    absent: list[int] = field(default_factory=list)


class Ledger:
    """The log as far as it was read: every viewer's facts, and what must have become of each offset."""

    def __init__(self, decode: Callable[[bytes], PlaybackEvent], limits: Limits) -> None:
        self._decode, self._limits = decode, limits
        self._histories: dict[str, History] = defaultdict(History)
        self._newest: dict[str, tuple[int, int]] = {}  # viewer → (partition, offset) of their newest event
        self.partitions: dict[int, _Partition] = defaultdict(_Partition)
        self.events = 0

    @property
    def viewers(self) -> Iterable[str]:
        """Everybody the log tells of."""
        return self._histories.keys()

    def take(self, partition: int, records: Iterable[ConsumerRecord]) -> None:
        """Read on. Records come in the order of their offsets."""
        at = self.partitions[partition]
        for record in records:
            at.absent.extend(range(at.read_to, record.offset))
            at.read_to = record.offset + 1
            headers = dict(record.headers)
            if POISON in headers:
                at.dead.append(record.offset)
            elif headers.get("private") == b"1":
                at.private.append(record.offset)
            else:
                self._take_event(at, record)

    def _take_event(self, at: _Partition, record: ConsumerRecord) -> None:
        try:
            event = self._decode(record.value or b"")
            validate(event, key=record.key, timestamp_ms=record.timestamp)
        except RecordError:  # somebody else's experiment
            at.dead.append(record.offset)
            return
        if event.private:
            at.private.append(record.offset)
            return
        self.events += 1
        self._histories[event.viewer].add(event, record.timestamp)
        self._newest[event.viewer] = (record.partition, record.offset)

    def is_moving(self, viewer: str, markers: Mapping[int, Marker | None]) -> bool:
        """Whether the viewer has events that the markers do not cover."""
        partition, offset = self._newest.get(viewer, (-1, -1))
        marker = markers.get(partition)
        return partition >= 0 and offset >= (marker.next_offset if marker else 0)

    def compare(self, viewer: str, actual: ViewerState) -> tuple[int, int, int]:
        """Plays that the state must have, facts that it lacks, facts that it has too many."""
        history = self._histories.get(viewer)
        expected = history.state(self._limits) if history is not None else ViewerState()
        plays = len(expected.plays) + len(expected.seen)
        if actual == expected:
            return plays, 0, 0
        wanted, found = _facts(expected), _facts(actual)
        return (
            plays,
            len(wanted - found),
            len(found - wanted) or int(wanted == found),
        )  # the same facts in a wrong order

    def misaccounted(self, partition: int, marker: Marker) -> int:
        """By how many offsets the partition's account is wrong, from its origin to its marker."""
        at = self.partitions[partition]
        counted = {name: _between(getattr(at, name), marker) for name in ("private", "dead", "absent")}
        off: int = sum(abs(getattr(marker, name) - count) for name, count in counted.items())
        events = marker.next_offset - marker.origin - sum(counted.values())
        return off + abs(marker.unaccounted) + abs(marker.applied + marker.noop - events)


def _between(offsets: Sequence[int], marker: Marker) -> int:
    return bisect_left(offsets, marker.next_offset) - bisect_left(offsets, marker.origin)


def _facts(state: ViewerState) -> set[object]:
    return {*state.plays, *(("seen", one) for one in state.seen), *state.registers, ("erased", state.erased_through_s)}


class Oracle:
    """A ledger that reads on by itself, and the store beside it."""

    def __init__(self, settings: Settings, store: Store, consumer: AIOKafkaConsumer, partitions: Sequence[int]) -> None:
        self._settings, self._store, self._consumer = settings, store, consumer
        self._topics = [TopicPartition(settings.kafka.topic, partition) for partition in partitions]
        codec, limits = Codec.load(settings.registry_path), Limits(**settings.state.model_dump())
        self.ledger = Ledger(codec.decode_event, limits)

    async def check(self, sent: int) -> Verdict:
        """Compare. `sent`: records that Kafka has acknowledged so far, all of which must be in the log. Errors: `TransientError`."""
        started, ledger, store = time.monotonic(), self.ledger, self._store
        viewers = plays = lost = doubled = unaccounted = behind = 0
        problems: list[str] = []
        highest = await store.highest_activation()
        await self._read_on()  # the long way, so that it is short below
        pending = {*ledger.viewers, *[viewer async for batch in store.scan_viewers() for viewer in batch]}
        for round_ in range(ROUNDS):
            await asyncio.sleep(ROUND_PAUSE_S if round_ else 0)
            markers = await store.read_markers([tp.partition for tp in self._topics])
            states = await self._states(sorted(pending))
            await self._read_on()
            for viewer, (activation, packed) in states.items():
                if ledger.is_moving(viewer, markers):
                    continue
                pending.discard(viewer)
                kept, missing, more = ledger.compare(viewer, unpack(packed))
                viewers, plays, lost, doubled = viewers + 1, plays + kept, lost + missing, doubled + more
                behind += activation < highest and bool(packed)
                if (missing or more) and len(problems) < PROBLEMS_TOLD:
                    problems.append(f"viewer {viewer}: {missing} facts missing, {more} too many")
            if not pending:
                break
        for partition, marker in sorted(markers.items()):
            off = ledger.misaccounted(partition, marker) if marker is not None else 0
            unaccounted += off
            if off:
                problems.append(f"partition {partition}: the account is off by {off}: {marker}")
        log_records = sum(ledger.partitions[tp.partition].read_to for tp in self._topics)
        if log_records < sent:
            lost += sent - log_records
            problems.append(f"{sent:,} records were acknowledged, and the log holds {log_records:,}")
        return Verdict(
            viewers, plays, ledger.events, lost, doubled, unaccounted, len(pending), behind,
            round(time.monotonic() - started, 2), tuple(problems),
        )  # fmt: skip

    async def _states(self, viewers: Sequence[str]) -> dict[str, tuple[int, bytes]]:
        found: dict[str, tuple[int, bytes]] = {}
        for start in range(0, len(viewers), STATES_AT_ONCE):
            names = viewers[start : start + STATES_AT_ONCE]
            stored = await self._store.read_viewers(names)
            found |= {name: (one.activation, one.state) for name, one in zip(names, stored, strict=True)}
        return found

    async def _read_on(self) -> None:
        """To where the log ends now."""
        with kafka_errors("reading the log", self._settings):
            ends = await self._consumer.end_offsets(self._topics)
            while any(self.ledger.partitions[tp.partition].read_to < end for tp, end in ends.items()):
                for tp, records in (await self._consumer.getmany(timeout_ms=200, max_records=5_000)).items():
                    self.ledger.take(tp.partition, records)


@asynccontextmanager
async def open_oracle(settings: Settings) -> AsyncIterator[Oracle]:
    """With connections of its own. Errors: `TransientError`."""
    store = open_store(settings.store, settings.keys)
    consumer = await make_consumer(settings)
    try:
        await store.connect()
        partitions = await partitions_of(settings)
        oracle = Oracle(settings, store, consumer, partitions)
        with kafka_errors("reading the log", settings):
            consumer.assign(oracle._topics)
            for tp in oracle._topics:
                consumer.seek(tp, 0)  # a log without its beginning is an error: what it held cannot be compared
        yield oracle
    finally:
        await consumer.stop()
        await store.close()


async def serve() -> None:
    """Answer each line of standard input, `{"sent": N}`, with a verdict or `{"error": …}` on standard output, until it ends."""
    loop = asyncio.get_running_loop()
    async with open_oracle(load_settings()) as oracle:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            try:
                answer = asdict(await oracle.check(json.loads(line)["sent"]))
            except NearlineError as error:
                answer = {"error": str(error)}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve())
