"""Kafka as the updater meets it: partitions, a group with eager rebalances, commits, retention; and what goes wrong there.

Modelled on aiokafka's consumer: after an assignment the position is the committed offset until somebody seeks; a consumer
that was thrown out of its group goes on fetching with its old assignment, and only its commits fail; a commit or a send
may fail although it took effect.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiokafka.errors import OffsetOutOfRangeError, RequestTimedOutError

from runtime.kafka import (
    CommitFailedError,
    ConsumerRebalanceListener,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    TopicPartition,
)
from tests.simulation.clock import ProcessLoop, Scheduler

REBALANCE_TIMEOUT_S = 2.0
_NEVER_S = 60.0


class SimRecord(NamedTuple):
    """`updater.pipeline.Record`."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class DeadLetterRecord(NamedTuple):
    """What lies in the dead letter topic."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]

    @property
    def coordinates(self) -> tuple[int, int]:
        """Partition and offset of the record it was made of."""
        said = dict(self.headers)
        return int(said["__connect.errors.partition"]), int(said["__connect.errors.offset"])


@dataclass
class Faults:
    """Probabilities of one call; all 0 at quiet points."""

    fails: float = 0.0  # error, without effect
    fails_after: float = 0.0  # error, with effect
    hangs: float = 0.0  # no answer for a minute
    down: bool = False


@dataclass
class Log:
    """One partition. A None is an offset without a record (a transaction marker, a compacted record)."""

    records: list[SimRecord | None] = field(default_factory=list)
    beginning: int = 0

    @property
    def end(self) -> int:
        return len(self.records)


class KafkaModel:
    """One topic, its dead letter topic and one consumer group."""

    def __init__(self, scheduler: Scheduler, rng: random.Random, topic: str, partitions: int) -> None:
        self.scheduler = scheduler
        self.rng = rng
        self.topic = topic
        self.logs = [Log() for _ in range(partitions)]
        self.incarnation = 1
        self.committed: dict[int, int] = {}
        self.dead_letters: list[DeadLetterRecord] = []
        self.faults = Faults()
        self.latency_s = 0.002
        self.consumers: list[SimConsumer] = []
        self.on_commit: Callable[[int, int], None] = lambda partition, offset: None
        self.on_dead_letter: Callable[[DeadLetterRecord], None] = lambda letter: None
        self.on_seek: Callable[[SimConsumer, int, int], None] = lambda consumer, partition, offset: None
        self._round = 0
        self._under_way = False
        self._again = False
        self._joined: list[SimConsumer] = []
        self._expected: list[SimConsumer] = []

    # Producers and retention

    def append(
        self,
        partition: int,
        timestamp: int,
        key: bytes | None,
        value: bytes | None,
        headers: tuple[tuple[str, bytes], ...],
    ) -> int:
        """One more record; returns its offset."""
        log = self.logs[partition]
        log.records.append(SimRecord(partition, log.end, timestamp, key, value, headers))
        self._wake()
        return log.end - 1

    def append_nothing(self, partition: int) -> None:
        """An offset that will never hold a record."""
        self.logs[partition].records.append(None)
        self._wake()

    def make_anew(self) -> list[Log]:
        """The topic is deleted and created again, empty; nobody is in the group. The old logs."""
        old, self.logs = self.logs, [Log() for _ in self.logs]
        self.incarnation += 1
        return old

    def _wake(self) -> None:
        self.scheduler.steps += 1
        for consumer in self.consumers:
            consumer.wake()

    # Calls over the network

    def call(self, loop: ProcessLoop, effect: Callable[[], Any]) -> asyncio.Future[Any]:
        """A request and its answer; `effect` happens at the broker."""
        if loop.dead:
            raise asyncio.CancelledError
        future = loop.create_future()
        rng, faults = self.rng, self.faults
        going_s, coming_s = rng.random() * self.latency_s, rng.random() * self.latency_s
        chance = rng.random()
        if faults.down or chance < faults.fails:
            loop.reply(going_s + coming_s, future, None, RequestTimedOutError("the broker did not answer"))
            return future
        chance -= faults.fails
        lost = chance < faults.fails_after
        if faults.fails_after <= chance < faults.fails_after + faults.hangs:
            coming_s += _NEVER_S

        def arrive() -> None:
            self.scheduler.steps += 2
            value, error = None, None
            try:
                value = effect()
            except KafkaError as raised:
                error = raised
            if lost:
                error = RequestTimedOutError("the broker's answer was lost")
            loop.reply(coming_s, future, value, error)

        self.scheduler.later(going_s, arrive)
        return future

    # The group

    def rebalance(self) -> None:
        """Ask every member that answers to give up its partitions, then deal them out anew."""
        if self._under_way:
            self._again = True
            return
        self._under_way = True
        self._round += 1
        self.scheduler.steps += 1
        self._joined = []
        self._expected = [c for c in self.consumers if c.listener is not None and not (c.loop.frozen or c.loop.dead)]
        for consumer in self._expected:
            consumer.leave_for(self._round)
        self.scheduler.later(REBALANCE_TIMEOUT_S, self._deal, self._round)
        if not self._expected:
            self._deal(self._round)

    def join(self, consumer: SimConsumer, round_: int) -> None:
        """A member has given up its partitions."""
        if not self._under_way or round_ != self._round:
            self.scheduler.later(0.01, self.rebalance)  # too late for that round: it has to be done again
            return
        self._joined.append(consumer)
        if all(c in self._joined or c.loop.dead or c.stopped for c in self._expected):
            self._deal(round_)

    def _deal(self, round_: int) -> None:
        if not self._under_way or round_ != self._round:
            return
        self._under_way = False
        members = [c for c in self._joined if not c.loop.dead and not c.stopped]
        self.rng.shuffle(members)
        shares: list[set[TopicPartition]] = [set() for _ in members]
        for partition in range(len(self.logs)):
            if members:
                shares[partition % len(members)].add(TopicPartition(self.topic, partition))
        for consumer, share in zip(members, shares, strict=True):
            consumer.deal(share, round_)
        late = [c for c in self._expected if c not in members and not c.loop.dead and not c.stopped]
        if self._again or late:
            self._again = False
            self.scheduler.later(0.02, self.rebalance)

    @property
    def settled(self) -> bool:
        """Every partition has one owner that knows it."""
        owned = [tp for c in self.consumers if c.is_member for tp in c.assigned]
        return not self._under_way and not self._again and len(owned) == len(set(owned)) == len(self.logs)

    @property
    def round(self) -> int:
        """The group's generation."""
        return self._round


class SimConsumer:
    """aiokafka's consumer, as far as the updater uses it."""

    def __init__(self, kafka: KafkaModel, loop: ProcessLoop) -> None:
        self.kafka = kafka
        self.loop = loop
        self.listener: ConsumerRebalanceListener | None = None
        self.assigned: set[TopicPartition] = set()
        self.positions: dict[int, int] = {}
        self.stopped = False
        self.assignment_token: object = None
        self._round = -1
        self._waiter: asyncio.Future[None] | None = None
        kafka.consumers.append(self)

    @property
    def is_member(self) -> bool:
        """The group knows this consumer's assignment."""
        return self._round == self.kafka.round and not self.loop.dead and not self.stopped

    # Called by the group

    def leave_for(self, round_: int) -> None:
        async def leave() -> None:
            assert self.listener is not None
            await self.listener.on_partitions_revoked(frozenset(self.assigned))
            self.kafka.join(self, round_)

        Runner(self.loop, leave)

    def deal(self, share: set[TopicPartition], round_: int) -> None:
        async def take() -> None:
            assert self.listener is not None
            self.assigned, self.positions, self._round = share, {}, round_
            self.assignment_token = object()
            if (
                self.kafka.rng.random() < 0.5
            ):  # the client goes on from the committed offsets before its listener hears of it
                await asyncio.sleep(self.kafka.rng.random() * 0.3)
            await self.listener.on_partitions_assigned(frozenset(share))
            self.wake()

        Runner(self.loop, take)

    def wake(self) -> None:
        if self._waiter is not None:
            self.loop.reply(0.0, self._waiter, None, None)
            self._waiter = None

    # Called by the updater

    def subscribe(self, topics: list[str], listener: ConsumerRebalanceListener) -> None:
        self.listener = listener
        self.kafka.scheduler.later(0.005, self.kafka.rebalance)

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """`assign` of a consumer without a group."""
        assert self.listener is None
        self.assigned, self.positions = set(partitions), {}

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self.assigned)

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        logs = self.kafka.logs
        found: dict[TopicPartition, int] = await self.kafka.call(
            self.loop, lambda: {tp: logs[tp.partition].beginning for tp in partitions}
        )
        return found

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        logs = self.kafka.logs
        found: dict[TopicPartition, int] = await self.kafka.call(
            self.loop, lambda: {tp: logs[tp.partition].end for tp in partitions}
        )
        return found

    async def committed(self, tp: TopicPartition) -> int | None:
        found: int | None = await self.kafka.call(self.loop, lambda: self.kafka.committed.get(tp.partition))
        return found

    def seek(self, tp: TopicPartition, offset: int) -> None:
        if self.loop.dead:
            raise asyncio.CancelledError
        if tp not in self.assigned:
            raise IllegalStateError(f"{tp} is not assigned")
        if self.listener is not None:
            self.kafka.on_seek(self, tp.partition, offset)
        self.positions[tp.partition] = offset

    def partitions_for_topic(self, topic: str) -> set[int]:
        """What the client knows of the topic: here always what is."""
        return set(range(len(self.kafka.logs)))

    async def topics(self) -> set[str]:
        """The topic is always there."""
        return {self.kafka.topic}

    async def position(self, tp: TopicPartition) -> int:
        if tp not in self.assigned:
            raise IllegalStateError(f"{tp} is not assigned")
        if tp.partition not in self.positions:
            committed = await self.committed(tp)
            if committed is None:
                raise NoOffsetForPartitionError(tp)
            self.positions.setdefault(tp.partition, committed)
        return self.positions[tp.partition]

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        if not set(offsets) <= self.assigned:
            raise IllegalStateError("a partition is not assigned")

        def effect() -> None:
            if not self.is_member:
                raise CommitFailedError
            for tp, offset in offsets.items():
                self.kafka.on_commit(tp.partition, offset)
                self.kafka.committed[tp.partition] = offset

        await self.kafka.call(self.loop, effect)

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[SimRecord]]:
        ends_s = self.loop.time() + timeout_ms / 1000
        while True:
            asked = {tp: self.positions.get(tp.partition) for tp in partitions or self.assigned}
            found = await self.kafka.call(self.loop, lambda asked=asked: self._read(asked, max_records or 512))
            taken = self._take(found)
            if taken or self.loop.time() >= ends_s:
                return taken
            self._waiter = waiter = self.loop.create_future()
            if self._is_behind():
                self.wake()
            timer = self.loop.call_at(ends_s, _let_go, waiter)
            try:
                await waiter
            finally:
                timer.cancel()

    def _is_behind(self) -> bool:
        """A record has arrived while the last answer was under way."""
        return any(self.positions[p] < self.kafka.logs[p].end for _, p in self.assigned if p in self.positions)

    def _read(
        self, asked: dict[TopicPartition, int | None], at_most: int
    ) -> dict[TopicPartition, tuple[int, list[SimRecord], int]]:
        """At the broker: partition → position asked for, records, next position."""
        found = {}
        for tp in sorted(asked):
            position = asked[tp]
            log = self.kafka.logs[tp.partition]
            if position is None:
                position = self.kafka.committed.get(tp.partition)
                if position is None:
                    raise NoOffsetForPartitionError(tp)
            if not log.beginning <= position <= log.end:
                raise OffsetOutOfRangeError(tp)
            records: list[SimRecord] = []
            next_position = position
            for offset in range(position, log.end):
                if at_most == 0:
                    break
                record = log.records[offset]
                next_position = offset + 1
                if record is not None:
                    records.append(record)
                    at_most -= 1
            found[tp] = (position, records, next_position)
        return found

    def _take(
        self, found: Mapping[TopicPartition, tuple[int, list[SimRecord], int]]
    ) -> dict[TopicPartition, list[SimRecord]]:
        """Back in the process: only what still is at the position."""
        taken = {}
        for tp, (position, records, next_position) in found.items():
            if tp in self.assigned and self.positions.setdefault(tp.partition, position) == position:
                self.positions[tp.partition] = next_position
                if records:
                    taken[tp] = records
        self.kafka.scheduler.steps += sum(map(len, taken.values()))
        return taken

    async def stop(self) -> None:
        self.stopped = True
        if self in self.kafka.consumers and self.listener is None:
            self.kafka.consumers.remove(self)
        elif not self.loop.dead:
            self.kafka.scheduler.later(0.01, self.kafka.rebalance)


class SimProducer:
    """aiokafka's producer, as far as dead letters use it."""

    def __init__(self, kafka: KafkaModel, loop: ProcessLoop) -> None:
        self.kafka = kafka
        self.loop = loop
        self._incarnation = kafka.incarnation

    async def send(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, bytes]],
        timestamp_ms: int | None = None,
    ) -> asyncio.Future[None]:
        letter = DeadLetterRecord(key, value, tuple(headers))

        def effect() -> None:
            if self._incarnation != self.kafka.incarnation:
                return  # a late letter about the log that was
            self.kafka.on_dead_letter(letter)
            self.kafka.dead_letters.append(letter)

        return self.kafka.call(self.loop, effect)

    async def stop(self) -> None:
        return None


class Runner:
    """Starts a coroutine in a process from outside it."""

    def __init__(self, loop: ProcessLoop, start: Callable[[], Any]) -> None:
        loop.call_soon(lambda: loop.create_task(start()))


def _let_go(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
