"""Real updater processes that are killed, frozen, stopped and cut off: every play counts once, whatever the moment.

The order of effects is that of `updater/checkpoint.py`: dead letters, hashes, marker, commit. Processes are killed at random
moments under a live stream; between each two effects the power is cut inside this process, where the moment can be chosen.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from contracts.errors import KafkaUnavailable
from runtime.kafka import AIOKafkaConsumer, make_consumer
from runtime.settings import KafkaSettings, Settings
from sandbox.processes import Service, ServiceUnavailable, environment_of, get_json
from sandbox.servers import KafkaServer, ValkeyServer
from sandbox.topics import ensure_topics
from tests.consistency import CODEC, PARTITIONS, Stage, make_stage, plays, publish
from tests.worlds import wait_until
from updater.consumer import Updater
from updater.deadletter import DeadLetterQueue
from updater.pipeline import DeadLetter
from viewers.redis_store import RedisStore, open_store
from viewers.store import MarkerWrite, ViewerWrite, WriteResult

SESSION_MS = 6_000 if "NEARLINE_TEST_KAFKA" in os.environ else 2_000
"""A dead updater keeps its partitions this long. A broker's default minimum is 6 s; the sandbox's own allows less."""

BACKLOG = 300
"""Unfinished events ahead of the updaters: several batches, so that a kill finds one in hand."""

POISON = (b"v1", b"not avro")


# The stage, its processes and its stream


@pytest.fixture
async def stage(stage: Stage) -> Stage:
    stage.settings = with_kafka(stage.settings, session_timeout_ms=SESSION_MS)
    publish(stage, "g1")
    return stage


@pytest.fixture
def start(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Service]]:
    """Starts an updater process by name; kills what is left at the end."""
    with processes(stage.settings, tmp_path, monkeypatch) as make:
        yield make


@contextlib.contextmanager
def processes(settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Service]]:
    """Makes and starts updater processes of these settings by name; kills what is left at the end."""
    for name in [name for name in os.environ if name.startswith("NEARLINE_") and name != "NEARLINE_CACHE_DIR"]:
        monkeypatch.delenv(name)  # what the test run was told is not the updater's
    made: list[Service] = []

    def make(name: str) -> Service:
        service = Service("updater", environment_of(settings), folder / name, port_setting="NEARLINE_HEALTH__PORT")
        made.append(service)
        service.start()
        return service

    try:
        yield make
    finally:
        for service in made:
            kill(service)


def with_kafka(settings: Settings, **changes: object) -> Settings:
    kafka = KafkaSettings(**(settings.kafka.model_dump() | changes))
    return settings.model_copy(update={"kafka": kafka})


def kill(service: Service) -> None:
    """SIGKILL, and gone."""
    service.stop(kill=True)


def exit_status(service: Service) -> str:
    """Wait until the process ends by itself; its status as its owner saw it."""
    status = service._child._read_line(15)
    service._child.stop(kill=True)
    return status


async def stats(service: Service) -> dict[str, Any]:
    """What the process tells of itself; empty while it does not answer."""
    async with httpx.AsyncClient(timeout=2) as client:
        try:
            return await get_json(client, service.url + "/stats")
        except ServiceUnavailable:  # not up yet, frozen, or just killed
            return {}


async def owns(service: Service, partitions: int) -> bool:
    return len((await stats(service)).get("partitions", ())) == partitions


class Stream:
    """Sends plays, and now and then poison, `BACKLOG` ahead of what is finished, until the block ends."""

    def __init__(self, stage: Stage, *, poison: int = 0) -> None:
        self._stage = stage
        self._poison = poison
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    async def __aenter__(self) -> Stream:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ended = True
        assert self._task is not None
        await self._task

    async def _run(self) -> None:
        stage = self._stage
        while not self._ended:
            if len(stage.sent) - await stage.finished() > BACKLOG:
                await asyncio.sleep(0.01)
                continue
            poison = [POISON] if stage.poison < self._poison else []
            with contextlib.suppress(KafkaUnavailable):  # no broker to connect to: nothing was sent
                await stage.send(plays(23, 60, start=len(stage.sent)), raw=poison)

    async def moves(self, count: int) -> None:
        """Wait until the updaters have finished `count` more."""
        await self._stage.drained(await self._stage.finished() + count)


def coordinates(letters: Sequence[Any]) -> Counter[bytes]:
    """How often each dead record was dead-lettered."""
    told = [dict(letter.headers) for letter in letters]
    return Counter(t["__connect.errors.partition"] + b"/" + t["__connect.errors.offset"] for t in told)


# Processes


async def test_killed_again_and_again_in_mid_stream_every_play_counts_once(
    stage: Stage, start: Callable[[str], Service]
) -> None:
    rng = random.Random(5)
    async with Stream(stage, poison=6) as stream:
        for _ in range(4):
            service = start("one")
            await stream.moves(rng.randint(1, 400))
            await asyncio.sleep(rng.uniform(0, 0.05))
            kill(service)
        service = start("one")
        await stream.moves(1)
    await stage.drained(len(stage.sent) + stage.poison)
    service.stop()
    await stage.assert_consistent()
    await stage.assert_accounted()
    assert len(coordinates(await stage.dead_letters())) == stage.poison == 6


async def test_frozen_past_its_session_and_woken_up_an_updater_doubles_nothing(
    stage: Stage, start: Callable[[str], Service]
) -> None:
    frozen, other = start("frozen"), start("other")
    async with Stream(stage) as stream:
        await wait_until(lambda: shared(frozen, other), "both have work")
        await stream.moves(50)
        frozen.signal("STOP")
        await wait_until(lambda: owns(other, PARTITIONS), "the other takes over")
        await stream.moves(200)
        frozen.signal("CONT")
        await stream.moves(200)
        await wait_until(lambda: shared(frozen, other), "both have work again")
        await stream.moves(200)
    await stage.drained(len(stage.sent))
    frozen.require_running()
    other.require_running()
    await stage.assert_consistent()
    await stage.assert_accounted()


async def shared(one: Service, two: Service) -> bool:
    """Each has partitions, together all."""
    shares = [(await stats(service)).get("partitions", []) for service in (one, two)]
    return all(shares) and sorted(shares[0] + shares[1]) == list(range(PARTITIONS))


async def test_asked_to_stop_it_commits_its_markers_leaves_the_group_and_ends_with_status_0(
    stage: Stage, start: Callable[[str], Service]
) -> None:
    service = start("one")
    async with Stream(stage) as stream:
        await stream.moves(200)
        service.signal("TERM")
        assert await asyncio.to_thread(exit_status, service) == "exit 0"
        markers = {p: await stage.store.read_marker(p) for p in range(PARTITIONS)}
        assert await stage.committed() == {p: m.next_offset if m else None for p, m in markers.items()}
        assert await members(stage) == []
        assert await stage.store.read_updaters() == {}
        service = start("two")
        await stream.moves(1)
    await stage.drained(len(stage.sent))
    await stage.assert_consistent()
    await stage.assert_accounted()


async def members(stage: Stage) -> list[Any]:
    """Who is in the updaters' group."""
    admin = AIOKafkaAdminClient(bootstrap_servers=stage.settings.kafka.bootstrap_servers)
    await admin.start()
    try:
        (answer,) = await admin.describe_consumer_groups([stage.settings.kafka.group_id])
        ((_, group, _, _, _, found, *_),) = answer.groups
        assert group == stage.settings.kafka.group_id
        return list(found)
    finally:
        await admin.close()


async def test_a_broker_killed_and_restarted_under_the_stream_loses_and_doubles_nothing(
    fresh_kafka: KafkaServer, valkey: ValkeyServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncExitStack() as stack:
        stage = await make_stage(fresh_kafka.bootstrap, valkey.url, "playback", namespace, tmp_path)
        stack.push_async_callback(stage.store.close)
        await ensure_topics(stage.settings, PARTITIONS)
        publish(stage, "g1")
        service = stack.enter_context(processes(stage.settings, tmp_path, monkeypatch))("one")
        async with Stream(stage) as stream:
            await stream.moves(200)
            await asyncio.to_thread(fresh_kafka.kill)
            await asyncio.to_thread(fresh_kafka.start)
            await stream.moves(400)
        await stage.drained(sum((await stage.ends()).values()))
        service.require_running()
        await stage.assert_consistent()
        await stage.assert_accounted_by_the_log()


# Power cuts between each two effects


class PowerCut(BaseException):
    """Not an `Exception`: nothing in the updater may catch it and go on."""


class Power:
    """Cut at the `after`-th time that `point` is reached; from then on nothing has an effect any more."""

    def __init__(self, point: str, after: int) -> None:
        self.point = point
        self.left = after
        self.off = False

    def check(self) -> None:
        """Before every effect."""
        if self.off:
            raise PowerCut(self.point)

    def reached(self, point: str) -> None:
        if point == self.point:
            self.left -= 1
            self.off = self.off or self.left == 0
        self.check()


class WiredStore:
    """The real store on this power supply."""

    def __init__(self, store: RedisStore, power: Power) -> None:
        self._store = store
        self._power = power

    def __getattr__(self, name: str) -> Any:
        self._power.check()
        return getattr(self._store, name)

    async def write_viewers(self, writes: Sequence[ViewerWrite]) -> list[WriteResult]:
        self._power.check()
        half = len(writes) // 2
        results = await self._store.write_viewers(writes[:half])
        if half:
            self._power.reached("half of the hashes")
        results += await self._store.write_viewers(writes[half:])
        self._power.reached("hashes")
        return results

    async def write_markers(self, writes: Sequence[MarkerWrite]) -> None:
        self._power.check()
        await self._store.write_markers(writes)
        if writes:
            self._power.reached("marker")


def wire(monkeypatch: pytest.MonkeyPatch, power: Power) -> None:
    """Put the updater's way to Kafka on this power supply."""

    class WiredQueue(DeadLetterQueue):
        async def send(self, letters: Sequence[DeadLetter]) -> None:
            power.check()
            await super().send(letters)
            if letters:
                power.reached("dead letters")

    async def make_wired_consumer(*arguments: Any, **named: Any) -> AIOKafkaConsumer:
        consumer = await make_consumer(*arguments, **named)
        commit = consumer.commit

        async def wired_commit(offsets: Any) -> None:
            power.reached("about to commit")
            await commit(offsets)
            power.reached("commit")

        consumer.commit = wired_commit
        return consumer

    monkeypatch.setattr("updater.consumer.DeadLetterQueue", WiredQueue)
    monkeypatch.setattr("updater.consumer.make_consumer", make_wired_consumer)


@pytest.mark.parametrize(
    ("point", "after"),
    [
        ("dead letters", 1),
        ("dead letters", 2),
        ("half of the hashes", 3),
        ("hashes", 1),
        ("hashes", 3),
        ("marker", 1),
        ("marker", 3),
        ("about to commit", 1),
        ("commit", 1),
    ],
)
async def test_power_cut_between_two_effects_and_every_play_counts_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, point: str, after: int
) -> None:
    for start in range(0, 300, 60):
        await stage.send(plays(23, 60, start=start), raw=[POISON])
    power = Power(point, after)
    with monkeypatch.context() as patch:
        wire(patch, power)
        store = open_store(stage.settings.store, stage.settings.keys)
        with pytest.raises(PowerCut):
            await Updater(stage.settings, WiredStore(store, power), CODEC, instance="cut").run()
        await store.close()
    finished, committed = await stage.finished(), await stage.committed()
    assert sum(offset or 0 for offset in committed.values()) <= finished
    if (point, after) == ("hashes", 1):
        assert finished == 0
    async with stage.updater():
        await stage.drained(len(stage.sent) + stage.poison)
    await stage.assert_consistent()
    await stage.assert_accounted()
    letters = coordinates(await stage.dead_letters())
    assert len(letters) == stage.poison
    assert max(letters.values()) <= 2
    assert point not in TWICE or max(letters.values()) == 2


TWICE = ("dead letters",)
"""Cut right after them, dead letters are sent again; later the batch that held them may be finished."""
