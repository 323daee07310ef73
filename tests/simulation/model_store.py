"""The store as the updater meets it: servers that crash, fall back and are swapped behind one address.

What a command does is `viewers.memory_store`, command by command. Around it: a log of applied commands (each script is one
entry) of which a crash loses a suffix; older copies; requests that are lost, answered too late, executed late, twice or only
in part; a server that is full and refuses before the first write.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from contracts.errors import StoreChanged, StoreUnavailable
from tests.simulation.clock import ProcessLoop, Scheduler
from viewers.memory_store import MemoryServer, MemoryStore
from viewers.memory_trends import MemoryTrends, MemoryTrendsContent
from viewers.store import Freeze, Marker, MarkerWrite, StoredViewer, ViewerWrite, WriteResult
from viewers.trend_store import TrendStore

TIMEOUT_S = 0.3
"""A client gives up on a pipeline after this."""

OF_A_STREAM = ("markers", "seeded", "halt")
"""Content of a server whose keys name the stream."""

T = TypeVar("T")


class SimServer(MemoryServer):
    """A server with an identity of its own and a log of what each command replaced."""

    def __init__(self, run: int) -> None:
        super().__init__()
        self.run = run
        self.undo: list[tuple[str, Any, Any]] = []  # (content, key or None for all of it, what was there before)
        self.full = False
        self.alive = True
        self.left_behind: set[str] = (
            set()
        )  # the checker's: written with an older activation after a rebuild was recorded
        self.held_below: dict[int, int] = {}  # the checker's: partition → offsets below it are known to be held
        self.excused: set[tuple[int, int]] = set()  # the checker's: deleted by retention and not held here

    def lose(self, entries: int) -> None:
        """Undo the last commands."""
        for _ in range(min(entries, len(self.undo))):
            name, key, before = self.undo.pop()
            if key is None:
                setattr(self, name, before)
            elif before is None:
                getattr(self, name).pop(key)
            else:
                getattr(self, name)[key] = before

    def copy(self, run: int) -> SimServer:
        """Another server with the same content."""
        other = SimServer(run)
        for name, value in self.snapshot().items():
            if name not in ("alive", "full"):
                setattr(other, name, copy.copy(value))
        return other


@dataclass
class StoreFaults:
    """Probabilities of one pipeline; all 0 at quiet points. Every one but `twice` ends in a timeout at the client."""

    lost: float = 0.0  # never executed
    reply_lost: float = 0.0  # executed, nobody hears of it
    late: float = 0.0  # executed when the client has given up
    twice: float = 0.0  # executed, and once more later
    partly: float = 0.0  # the first commands executed, the others late or never
    switched: float = 0.0  # the proxy changes to a successor between two commands
    down: bool = False

    def kinds(self) -> list[tuple[str, float]]:
        return [(name, value) for name, value in vars(self).items() if name != "down" and value]


@dataclass
class Cluster:
    """The servers behind the store's one address. `pins`: clients whose connections still lead to an older one."""

    scheduler: Scheduler
    rng: random.Random
    servers: list[SimServer] = field(default_factory=lambda: [SimServer(1)])
    pins: dict[int, SimServer] = field(default_factory=dict)
    copies: list[SimServer] = field(default_factory=list)
    faults: StoreFaults = field(default_factory=StoreFaults)
    latency_s: float = 0.001
    runs: int = 1
    on_viewer: Callable[[SimServer, str, StoredViewer | None, StoredViewer], None] = lambda *_: None
    on_marker: Callable[[SimServer, int, Marker | None, Marker], None] = lambda *_: None
    on_loss: Callable[[SimServer], None] = lambda server: None
    trace: Callable[[str], None] | None = None
    on_seeded: Callable[[SimServer], None] = lambda server: None
    freezes: bool = False  # whether somebody freezes rows in this world
    writer: int = 0  # the client whose write is under way
    epoch: int = 1  # clients of an earlier one write what belongs to their stream where nobody looks any more

    @property
    def primary(self) -> SimServer:
        return self.servers[-1]

    def route(self, client: int) -> SimServer:
        server = self.pins.get(client)
        return server if server is not None and server.alive else self.primary

    def _new_run(self) -> int:
        self.runs += 1
        return self.runs

    # What happens to servers

    def crash(self, lose: int) -> None:
        """The primary restarts without its last commands."""
        server = self.primary
        server.lose(lose)
        server.run = self._new_run()
        server.held_below = {}
        self._lost(server)

    def _lost(self, server: SimServer) -> None:
        if self.trace is not None:
            self.trace(f"   {server.identity} begins with {server.markers}")
        self.on_loss(server)

    def keep_copy(self) -> None:
        """A backup, or a replica that stops following."""
        self.copies.append(self.primary.copy(0))

    def fall_back(self) -> None:
        """The newest copy takes over; the primary is gone."""
        if self.copies:
            self.primary.alive = False
            self.servers = [self.copies[-1].copy(self._new_run())]
            self._lost(self.primary)

    def fail_over(self, lose: int, *, old_lives: bool, pin: float) -> None:
        """A replica that lags by some commands takes over. The old primary may live on, with some clients still on it."""
        old = self.primary
        new = old.copy(self._new_run())
        new.undo = list(old.undo)
        new.lose(lose)
        old.alive = old_lives
        self.servers = [*self.servers[-1:], new] if old_lives else [new]
        for client in self.pins:
            self.pins[client] = old if old_lives and self.rng.random() < pin else new
        self._lost(new)

    def flip_back(self) -> None:
        """The address leads to the old primary again, which never restarted."""
        if len(self.servers) > 1 and self.servers[-2].alive:
            self.servers[-1], self.servers[-2] = self.servers[-2], self.servers[-1]
            self.pins = dict.fromkeys(self.pins, self.primary)

    def settle(self) -> None:
        """One server, and everybody on it."""
        for server in self.servers[:-1]:
            server.alive = False
        self.servers = [self.primary]
        self.pins = dict.fromkeys(self.pins, self.primary)
        self.primary.full = False

    @property
    def everywhere(self) -> list[SimServer]:
        """Each server once: those that an address leads to, copies, and old ones with a client still on them."""
        return list({id(one): one for one in (*self.servers, *self.copies, *self.pins.values())}.values())

    def begin_stream(self) -> None:
        """The stream epoch is raised: its markers, cut-offs and halt have other keys, and there are none yet."""
        self.epoch += 1
        for server in self.everywhere:
            server.markers, server.seeded, server.halt = {}, {}, None
            server.undo = [entry for entry in server.undo if entry[0] not in OF_A_STREAM]
            server.held_below, server.excused = {}, set()

    # One command, with its entry in the log

    def write_viewer(self, inner: MemoryStore, server: SimServer, write: ViewerWrite, client: int) -> WriteResult:
        before = server.viewers.get(write.viewer)
        inner.server = server
        self.writer = client
        result = inner._write(write)
        after = server.viewers.get(write.viewer)
        if after is not before and after is not None:
            server.undo.append(("viewers", write.viewer, before))
            if self.trace is not None:
                self.trace(
                    f"   {server.identity} {write.viewer} {write.expected_token.hex()}>{write.new_token.hex()} a{write.activation}"
                )
            self.on_viewer(server, write.viewer, before, after)
        return result

    def write_marker(self, inner: MemoryStore, server: SimServer, write: MarkerWrite) -> StoreChanged | None:
        before = server.markers.get(write.partition)
        inner.server = server
        try:
            run_now(inner.write_markers([write]))
        except StoreChanged as error:
            return error
        after = server.markers[write.partition]
        if self.trace is not None:
            self.trace(f"   {server.identity} partition {write.partition}: {after}")
        server.undo.append(("markers", write.partition, before))
        self.on_marker(server, write.partition, before, after)
        return None

    def change(self, inner: MemoryStore, server: SimServer, name: str, action: Coroutine[Any, Any, T]) -> T:
        before = copy.copy(getattr(server, name))
        inner.server = server
        result = run_now(action)
        server.undo.append((name, None, before))
        if self.trace is not None:
            self.trace(f"   {server.identity} {name}: {getattr(server, name)}")
        if name == "seeded":
            self.on_seeded(server)
        return result


class SimStore:
    """`viewers.store.Store`, over the cluster. One client of one process."""

    def __init__(self, cluster: Cluster, loop: ProcessLoop, client: int) -> None:
        self.cluster = cluster
        self.loop = loop
        self.client = client
        self._identity = ""
        self._epoch = cluster.epoch
        cluster.pins[client] = cluster.primary

    @property
    def identity(self) -> str:
        """The server this client believes to talk to."""
        return self._identity

    # One pipeline

    def _call(
        self, commands: Sequence[Callable[[MemoryStore, SimServer], Any]], *, writes: bool, checked: bool = False
    ) -> asyncio.Future[list[Any]]:
        """Send commands and wait. `checked`: the pipeline begins by reading the identity, and fails if it is another."""
        if self.loop.dead:
            raise asyncio.CancelledError
        cluster, scheduler = self.cluster, self.cluster.scheduler
        rng, faults = cluster.rng, cluster.faults
        future = self.loop.create_future()
        going_s, coming_s = rng.random() * cluster.latency_s, rng.random() * cluster.latency_s
        fault = _draw(rng, faults.kinds())
        if faults.down:
            self.loop.reply(going_s, future, None, StoreUnavailable("connection refused"))
            return future
        inner = MemoryStore(cluster.primary)
        inner._identity = self._identity  # as known when the request was made

        def execute(some: Sequence[Callable[[MemoryStore, SimServer], Any]], switch: bool = False) -> list[Any]:
            server = cluster.route(self.client)
            scheduler.steps += 1 + len(some)
            if writes and server.full:
                raise StoreUnavailable("the store refuses: out of memory")
            changed: StoreChanged | None = None
            if checked:
                inner.server = server
                try:
                    inner._check()
                except StoreChanged as error:
                    changed = error
            answers = []
            for i, command in enumerate(some):
                if switch and i == len(some) // 2:
                    cluster.fail_over(rng.randint(0, 4), old_lives=False, pin=0.0)
                    server = cluster.primary
                answers.append(command(inner, server))
            if changed is not None:
                raise changed
            return answers

        def arrive() -> None:
            value: list[Any] | None = None
            error: Exception | None = None
            try:
                value = execute(commands, switch=fault == "switched" and writes)
            except (StoreChanged, StoreUnavailable) as raised:
                error = raised
            scheduler.steps += 1
            self.loop.reply(coming_s, future, value, error)

        def late(some: Sequence[Callable[[MemoryStore, SimServer], Any]]) -> None:
            try:
                execute(some)
            except (StoreChanged, StoreUnavailable):
                pass  # nobody listens any more

        if fault in (None, "twice", "switched"):
            scheduler.later(going_s, arrive)
            if fault == "twice" and writes:
                scheduler.later(going_s + rng.random() * 0.2, late, commands)
            return future
        self.loop.reply(TIMEOUT_S, future, None, StoreUnavailable(f"no answer ({fault})"))
        if fault == "reply_lost":
            scheduler.later(going_s, late, commands)
        elif fault == "late":
            scheduler.later(TIMEOUT_S + rng.random() * 0.5, late, commands)
        elif fault == "partly":
            shuffled = list(commands)
            if rng.random() < 0.5:
                rng.shuffle(shuffled)
            cut = rng.randint(0, len(shuffled))
            scheduler.later(going_s, late, shuffled[:cut])
            if rng.random() < 0.5:
                scheduler.later(TIMEOUT_S + rng.random() * 0.5, late, shuffled[cut:])
        return future

    # viewers.store.Store

    @property
    def trends(self) -> TrendStore:
        """Generations have no tables here, so nobody asks for trends: they are no part of what is simulated."""
        return MemoryTrends(MemoryTrendsContent(), self.cluster.primary)

    async def connect(self) -> str:
        self.cluster.pins[self.client] = self.cluster.primary
        (self._identity,) = await self._call([lambda inner, server: server.identity], writes=False)
        return self._identity

    async def check_identity(self) -> None:
        await self._call([], writes=False, checked=True)

    async def close(self) -> None:
        return None

    async def read_viewers(self, viewers: Sequence[str]) -> list[StoredViewer]:
        if not viewers:
            return []

        def read(viewer: str) -> Callable[[MemoryStore, SimServer], StoredViewer]:
            def command(inner: MemoryStore, server: SimServer) -> StoredViewer:
                found = server.viewers.get(viewer)
                return StoredViewer() if found is None else StoredViewer(found.token, found.activation, found.state)

            return command

        return await self._call([read(viewer) for viewer in viewers], writes=False, checked=True)

    async def read_viewer(self, viewer: str) -> StoredViewer:
        (found,) = await self._call([lambda inner, server: server.viewers.get(viewer, StoredViewer())], writes=False)
        answer: StoredViewer = found
        return answer

    async def read_row(self, viewer: str) -> bytes:
        return (await self.read_viewer(viewer)).row

    async def read_state(self, viewer: str) -> bytes:
        return (await self.read_viewer(viewer)).state

    async def write_viewers(self, writes: Sequence[ViewerWrite]) -> list[WriteResult]:
        if not writes:
            return []
        cluster = self.cluster
        return await self._call(
            [
                lambda inner, server, write=write: cluster.write_viewer(inner, server, write, self.client)
                for write in writes
            ],
            writes=True,
            checked=True,
        )

    async def read_marker(self, partition: int) -> Marker | None:
        return (await self.read_markers([partition]))[partition]

    async def read_markers(self, partitions: Sequence[int]) -> dict[int, Marker | None]:
        def read(partition: int) -> Callable[[MemoryStore, SimServer], Marker | None]:
            return lambda inner, server: server.markers.get(partition)

        found = await self._call([read(partition) for partition in partitions], writes=False, checked=True)
        return dict(zip(partitions, found, strict=True))

    async def write_markers(self, writes: Sequence[MarkerWrite]) -> None:
        if not writes:
            return
        cluster = self.cluster
        answers = await self._call(
            [
                lambda inner, server, write=write: (
                    cluster.write_marker(inner, server, write) if self._epoch == cluster.epoch else None
                )
                for write in writes
            ],
            writes=True,
        )
        for answer in answers:
            if answer is not None:
                raise answer

    async def scan_viewers(self) -> AsyncIterator[list[str]]:
        (found,) = await self._call([lambda inner, server: list(server.viewers)], writes=False)
        for start in range(0, len(found), 2):
            yield found[start : start + 2]

    async def _read(self, name: str, *, checked: bool = False) -> Any:
        (found,) = await self._call(
            [lambda inner, server: copy.copy(getattr(server, name))], writes=False, checked=checked
        )
        return found

    async def _change(self, name: str, method: str, *arguments: Any) -> Any:
        cluster = self.cluster

        def change(inner: MemoryStore, server: SimServer) -> Any:
            if name in OF_A_STREAM and self._epoch != cluster.epoch:
                return None
            return cluster.change(inner, server, name, _on(inner, server, method, arguments))

        (answer,) = await self._call(
            [change],
            writes=True,
        )
        return answer

    async def read_seeded(self) -> Mapping[int, int]:
        found: Mapping[int, int] = await self._read("seeded", checked=True)
        return found

    async def write_seeded(self, cutoffs: Mapping[int, int]) -> None:
        await self._change("seeded", "write_seeded", cutoffs)

    async def read_halt(self) -> str | None:
        found: str | None = await self._read("halt")
        return found

    async def write_halt(self, reason: str | None) -> None:
        await self._change("halt", "write_halt", reason)

    async def read_freeze(self) -> Freeze | None:
        if not self.cluster.freezes:
            return None  # nobody ever asks: older histories stay what they were
        found: Freeze | None = await self._read("frozen")
        return found

    async def write_freeze(self, freeze: Freeze | None) -> None:
        await self._change("frozen", "write_freeze", freeze)

    async def highest_activation(self) -> int:
        found: int = await self._read("activation")
        return found

    async def announce_activation(self, activation: int) -> None:
        await self._change("activation", "announce_activation", activation)

    async def report_updater(self, instance: str, activation: int, now_ms: int) -> None:
        await self._change("updaters", "report_updater", instance, activation, now_ms)

    async def remove_updater(self, instance: str) -> None:
        await self._change("updaters", "remove_updater", instance)

    async def read_updaters(self) -> Mapping[str, tuple[int, int]]:
        found: Mapping[str, tuple[int, int]] = await self._read("updaters")
        return found

    async def read_rebuilt(self, activation: int) -> bool:
        return activation in await self._read("rebuilt")

    async def write_rebuilt(self, activation: int) -> None:
        await self._change("rebuilt", "write_rebuilt", activation)

    async def read_default_rows(self) -> Mapping[str, bytes]:
        found: Mapping[str, bytes] = await self._read("default_rows")
        return found

    async def write_default_rows(self, rows: Mapping[str, bytes]) -> None:
        await self._change("default_rows", "write_default_rows", rows)


def run_now(action: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        action.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("a command of the memory store waits")


def _on(inner: MemoryStore, server: SimServer, method: str, arguments: tuple[Any, ...]) -> Coroutine[Any, Any, Any]:
    inner.server = server
    action: Coroutine[Any, Any, Any] = getattr(inner, method)(*arguments)
    return action


def _draw(rng: random.Random, kinds: Sequence[tuple[str, float]]) -> str | None:
    """One of the faults, or none."""
    if not kinds:
        return None
    chance = rng.random()
    for name, probability in kinds:
        if chance < probability:
            return name
        chance -= probability
    return None
