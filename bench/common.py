"""What the benchmarks on real servers share: a published world, a store full of viewers, updater processes, the processor time that
they take, and the check that every row is right."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import redis

from bench.report import WrongResult
from bench.worlds import make_generation, make_play, publish
from contracts import keys as fields
from contracts.codec import Codec
from contracts.events import PlaybackEvent
from embeddings.generation import Generation
from embeddings.generations_folder import GenerationsFolder
from runtime.settings import Settings
from sandbox.processes import Service, environment_of
from sandbox.topics import ensure_topics
from sandbox.valkey_server import ValkeyServer
from viewers.kernel import Rewritten
from viewers.packing import unpack
from viewers.redis_store import RedisStore, open_store
from viewers.rewriter import Rewriter
from viewers.state import Limits, ViewerState, merge, state_of

DISTINCT = 1_000
"""Different states among the seeded viewers: what a state costs does not depend on whose it is."""
EVENTS_FROM_S = 10_000_000
"""Events begin so long after the histories, in seconds of the made-up clock."""
CHECKED = 200
"""Viewers whose state and row are compared after a run."""
POLL_S = 0.03
DEADLINE_S = 120.0
WRITE_BATCH = 1_000


@dataclass(frozen=True, slots=True)
class Seed:
    """A viewer as the nightly rebuild leaves them. `items`: (history,) rows of the generation, oldest first."""

    items: tuple[int, ...]
    written: Rewritten


@dataclass
class World:
    """A published generation in force."""

    folder: Path
    generation: Generation
    activation: int
    codec: Codec
    rewriter: Rewriter
    _seeds: dict[int, list[Seed]] = field(default_factory=dict)

    def seeds(self, history: int) -> list[Seed]:
        """`DISTINCT` viewers with so many plays of different titles."""
        if history not in self._seeds:
            rng = np.random.default_rng(history)
            n = self.generation.n_items
            drawn = [tuple(rng.choice(n, history, replace=False).tolist()) for _ in range(DISTINCT)]
            self._seeds[history] = [
                Seed(items, self.rewriter.rewrite(self.merged(self.history_of("seed", items)), computed_at_ms=1))
                for items in drawn
            ]
        return self._seeds[history]

    def history_of(self, viewer: str, items: Sequence[int]) -> list[PlaybackEvent]:
        ids = self.generation.item_ids
        return [make_play(viewer, str(ids[row]), second) for second, row in enumerate(items)]

    def merged(self, plays: Iterable[PlaybackEvent]) -> ViewerState:
        """By the readable reference."""
        return merge([state_of(e, timestamp_ms=e.event_time_ms) for e in plays], self.rewriter.limits)


def make_world(folder: Path, n_items: int) -> World:
    """Publish and activate a made-up generation of so many titles, k = 64."""
    generation = make_generation(n_items)
    root = folder / f"generations-{n_items}"
    publish(root, generation)
    activation = GenerationsFolder(root).activate(generation.generation_id, floor=0).activation
    codec = Codec.load()
    return World(root, generation, activation, codec, Rewriter(generation, activation, codec.encode_row, Limits()))


@dataclass
class Stage:
    """One topic, one namespace of a store, and the viewers in it."""

    world: World
    settings: Settings
    valkey: ValkeyServer
    viewers: int
    history: int
    partitions: int
    sent: int = 0
    """Events in the topic."""
    plays: dict[str, list[PlaybackEvent]] = field(default_factory=dict)
    """Viewer → the events in the topic, since the viewer was seeded last."""

    def seed(self, viewers: Iterable[int | str] | None = None) -> None:
        """Write these viewers (None: all) as the nightly rebuild would have left them."""
        seeds = self.world.seeds(self.history)
        control = b"seeded.." + str(self.world.activation).encode()
        with redis.Redis.from_url(self.valkey.url) as client:
            pipeline = client.pipeline(transaction=False)
            for at, viewer in enumerate(range(self.viewers) if viewers is None else viewers):
                w = seeds[seed_number(viewer)].written
                pipeline.execute_command(
                    *("HSET", self.settings.keys.viewer(viewer_id(viewer)), fields.CONTROL, control),
                    *(fields.STATE, w.state_bytes, fields.VECTOR, w.vector_bytes, fields.ROW, w.row_bytes),
                )
                if at % WRITE_BATCH == WRITE_BATCH - 1:
                    pipeline.execute()
            pipeline.execute()

    def reseed(self) -> None:
        """Everybody whom an event has touched, as they were."""
        self.seed(self.plays)
        self.plays.clear()

    def expect(self, events: Iterable[PlaybackEvent]) -> None:
        """Note what the topic holds."""
        for event in events:
            self.plays.setdefault(event.viewer, []).append(event)
            self.sent += 1

    async def check(self, store: RedisStore) -> None:
        """Every event has a fate and was applied; of a sample, state and row are what the reference makes of all plays.

        Errors: `WrongResult`."""
        markers = await store.read_markers(range(self.partitions))
        for partition, marker in markers.items():
            if marker is not None and (marker.unaccounted or marker.applied != marker.next_offset):
                raise WrongResult(f"partition {partition}: {marker.applied} of {marker.next_offset} events applied")
        for viewer in list(self.plays)[:: max(1, len(self.plays) // CHECKED)]:
            await self._check_viewer(store, viewer)

    async def _check_viewer(self, store: RedisStore, viewer: str) -> None:
        stored = await store.read_viewer(viewer)
        items = self.world.seeds(self.history)[seed_number(viewer)].items
        state = self.world.merged([*self.world.history_of(viewer, items), *self.plays[viewer]])
        if unpack(stored.state) != state:
            raise WrongResult(f"{viewer}: not the state that its plays give")
        row = self.world.codec.decode_row(stored.row)
        again = self.world.rewriter.rewrite(state, computed_at_ms=row.computed_at_ms, event_time_ms=row.event_time_ms)
        if (again.vector_bytes, again.row_bytes) != (stored.vector, stored.row):
            raise WrongResult(f"{viewer}: not the row that its state gives")

    @asynccontextmanager
    async def store(self) -> AsyncIterator[RedisStore]:
        """A connected client."""
        store = open_store(self.settings.store, self.settings.keys)
        await store.connect()
        try:
            yield store
        finally:
            await store.close()

    async def finished(self, store: RedisStore) -> int:
        """Offsets with a fate."""
        markers = await store.read_markers(range(self.partitions))
        return sum(marker.next_offset for marker in markers.values() if marker is not None)

    async def wait_finished(self, store: RedisStore, events: int, updaters: Updaters) -> None:
        """Errors: `WrongResult` if it takes too long, `SandboxError` if an updater has ended."""
        deadline = time.perf_counter() + DEADLINE_S
        while (done := await self.finished(store)) < events:
            updaters.require_running()
            if time.perf_counter() > deadline:
                raise WrongResult(f"{done} of {events} events finished within {DEADLINE_S:g} s")
            await asyncio.sleep(POLL_S)


def viewer_id(viewer: int | str) -> str:
    return viewer if isinstance(viewer, str) else f"viewer-{viewer}"


def seed_number(viewer: int | str) -> int:
    """Which of the distinct states a viewer has: by the number at the end of the id."""
    return int(viewer.rpartition("-")[2] if isinstance(viewer, str) else viewer) % DISTINCT


async def make_stage(
    world: World,
    bootstrap: str,
    valkey: ValkeyServer,
    name: str,
    *,
    viewers: int,
    history: int,
    partitions: int = 4,
) -> Stage:
    """A topic and a namespace of this name; the viewers are not seeded yet."""
    settings = Settings.model_validate(
        {
            "kafka": {"bootstrap_servers": bootstrap, "topic": name, "group_id": name},
            "store": {"url": valkey.url, "namespace": name},
            "generations_path": str(world.folder),
            "log_level": "warning",
        }
    )
    await ensure_topics(settings, partitions)
    return Stage(world, settings, valkey, viewers, history, partitions)


class Updaters:
    """Updater processes as an operator starts them."""

    def __init__(self, stage: Stage, folder: Path, count: int = 1) -> None:
        environment = environment_of(stage.settings)
        self.services = [
            Service("updater", environment, folder / f"updater-{number}", port_setting="NEARLINE_HEALTH__PORT")
            for number in range(count)
        ]

    @property
    def pids(self) -> list[int]:
        return [service.pid for service in self.services if service.pid is not None]

    def require_running(self) -> None:
        for service in self.services:
            service.require_running()

    @contextmanager
    def running(self) -> Iterator[Updaters]:
        try:
            for service in self.services:
                service.log.parent.mkdir(parents=True, exist_ok=True)
                (service.log.parent / service.verb).mkdir(exist_ok=True)
                service.start()
            yield self
        finally:
            for service in self.services:
                service.stop()

    async def wait_ready(self) -> None:
        for service in self.services:
            await service.wait_ready()


def processor_s(pids: Iterable[int]) -> float:
    """Processor seconds that these processes have taken so far."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return float(sum(one.user + one.system for one in times))


def load_average() -> float:
    """Of the last minute, to be kept beside a result: how much else the machine had to do."""
    return round(os.getloadavg()[0], 2)


def draw_plays(generation: Generation, viewers: int, count: int, *, seed: int, first_s: int) -> Iterator[PlaybackEvent]:
    """Plays of uniformly drawn viewers and titles, in time order; `first_s`: the made-up second of the first."""
    rng = np.random.default_rng(seed)
    who, what = rng.integers(viewers, size=count), rng.integers(generation.n_items, size=count)
    for number, (viewer, row) in enumerate(zip(who.tolist(), what.tolist(), strict=True)):
        yield make_play(f"viewer-{viewer}", str(generation.item_ids[row]), first_s + number)
