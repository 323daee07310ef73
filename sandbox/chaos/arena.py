"""Where faults happen: a real Kafka, a real Valkey behind a proxy, updater processes that are restarted when they end, a stream."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import redis.asyncio as redis
import structlog
from pydantic import SecretStr

from batch.activation import activate
from contracts.catalogue import CatalogueItem
from contracts.codec import Codec
from contracts.errors import NearlineError
from contracts.registry import DEFAULT_PATH as REGISTRY
from embeddings.files import load_generation
from embeddings.generation import Generation
from embeddings.generations_folder import GenerationsFolder
from runtime.kafka import KafkaError, TopicPartition, make_consumer, make_producer
from runtime.progress import SilentProgress
from runtime.settings import KafkaSettings, Settings, load_settings
from runtime.tasks import cancel_all
from sandbox.chaos.aof import cut_at_nonsense, newest_log
from sandbox.chaos.crew import Crew
from sandbox.chaos.proxy import Proxy
from sandbox.chaos.sender import Sender
from sandbox.chaos.snapshots import Snapshots
from sandbox.chaos.stream import ITEMS, SECRET, Audience
from sandbox.chaos.truth import Truth, partitions_of
from sandbox.chaos.waiting import GIVE_UP_S, Stuck, wait_until
from sandbox.children import SandboxError, find_free_port
from sandbox.kafka_server import KafkaServer
from sandbox.made_up import T0, make_generation, make_rules, make_tables, write_generation_folder
from sandbox.processes import ROOT, environment_of
from sandbox.topics import ensure_topics
from sandbox.valkey_server import ValkeyServer
from viewers.precompile import compile_kernels
from viewers.redis_store import RedisStore, open_store
from viewers.state import Limits
from viewers.store import Marker

log = structlog.get_logger()

PARTITIONS = 4
GENERATIONS = {f"made-up-{i}": (120 + 4 * i, i) for i in range(1, 6)}
"""Generation → (titles, seed); the first is in force at the start."""
FACTORS = 16
SESSION_MS = 2_000
"""A dead updater keeps its partitions this long."""
PATIENCE_S = 10.0
"""For a connection of the harness's own, and for a call: on a machine that does much else, its loop stands still for a while."""
TRY_AGAIN_STATUS = 4
BAD_FORMAT = "Bad file format reading the append only file"
FLOOD = "could not be applied"
"""In the reason of a halt for too many records that cannot be applied."""


class Arena:
    """Everything that faults act on. `async with`: started and stopped."""

    def __init__(self, folder: Path, seed: int, *, rate: float = 120.0, updaters: int = 2, spare: bool = False) -> None:
        self.folder = folder
        self.rate = rate
        self.kafka = KafkaServer(folder / "kafka")
        self.valkey = ValkeyServer(folder / "valkey-0")
        self.proxy = Proxy(find_free_port(), 0)
        self.crew = Crew(folder, lambda: self.settings, updaters, spare=spare)
        self.sender = Sender(lambda: self.settings)
        self.settings = Settings()
        self.codec = Codec.load()
        self.truth = Truth(self.settings, self.codec.decode_event)
        self.audience = Audience(self.truth, self.codec, random.Random(seed))
        self.generations: dict[str, Generation] = {}
        self.snapshots = Snapshots(self)
        self.limits = Limits()
        self.copies: list[Path] = []
        self.secrets = {SECRET}
        self.forgotten: dict[str, str] = {}
        self.points: Counter[str] = Counter()
        self.behind: dict[str, list[float]] = {}  # class of faults → seconds, of each fault the worst
        self.halts = 0
        self.repaired = 0
        self._stores = 0
        self._pinned = True
        self._tasks: list[asyncio.Task[None]] = []
        self._flowing = asyncio.Event()

    # Start and end

    async def __aenter__(self) -> Arena:
        await asyncio.gather(
            asyncio.to_thread(self.kafka.start),
            asyncio.to_thread(self.valkey.start),
            asyncio.to_thread(compile_kernels),  # once a machine; no fault waits for it
        )
        self.proxy.target_port = self._store_port
        await self.proxy.start()
        shutil.copytree(REGISTRY, self.folder / "registry")
        self.settings = self._make_settings()
        self.limits = Limits(**self.settings.state.model_dump())
        self.truth.settings = self.settings
        await ensure_topics(self.settings, PARTITIONS)
        await self._announce()
        for generation_id, (titles, seed) in GENERATIONS.items():
            made = make_generation(titles, FACTORS, seed, generation_id=generation_id)
            made = replace(made, tables=replace(make_tables(titles, seed), at_ms=T0 + seed), **make_rules(titles))
            write_generation_folder(self.settings.generations_path, made, created_at_ms=T0 + seed)
        self.folder_of_generations.activate(next(iter(GENERATIONS)), floor=0)
        self._tasks = [
            asyncio.create_task(self.crew.supervise()),
            asyncio.create_task(self._stream()),
        ]
        for task in self._tasks:
            task.add_done_callback(self._note_failure)
        self._flowing.set()
        return self

    async def _announce(self) -> None:
        """Every title that is ever played: what a generation lacks is then served from the snapshots' items."""
        codec, producer = Codec.load(self.settings.registry_path), await make_producer(self.settings)
        for row in range(ITEMS):
            item = CatalogueItem(f"tt{row:07d}", f"Title {row}")
            topic = self.settings.kafka.catalogue_topic
            await producer.send(topic, codec.encode_item(item), key=item.item_id.encode())
        await producer.stop()

    async def __aexit__(self, *_: object) -> None:
        await cancel_all(*self._tasks)
        await self.crew.stop(kill=True)
        await self.sender.drop()
        await self.proxy.stop()
        await asyncio.to_thread(self.kafka.stop, kill=True)
        await asyncio.to_thread(self.valkey.stop, kill=True)

    def _make_settings(self) -> Settings:
        return load_settings(
            kafka={
                "bootstrap_servers": self.kafka.bootstrap,
                "session_timeout_ms": SESSION_MS,
                "max_batch_records": 128,
            },
            store={"url": f"redis://127.0.0.1:{self.proxy.port}/0"},
            state={"max_plays": 20, "max_registers": 12, "max_plays_per_item": 2},
            train={"factors": FACTORS, "keep_generations": 1_000},
            trends={"interval_s": 0.5, "remembered_plays": 10_000_000},
            generations_path=str(self.folder / "generations"),
            lake_path=str(self.folder / "lake"),
            registry_path=str(self.folder / "registry"),
            log_format="json",
        )

    def with_kafka(self, **changes: object) -> Settings:
        """Change the settings of Kafka for what starts from now on; the settings before."""
        before = self.settings
        kafka = KafkaSettings(**(before.kafka.model_dump() | changes))
        self.settings = before.model_copy(update={"kafka": kafka})
        return before

    @property
    def folder_of_generations(self) -> GenerationsFolder:
        return GenerationsFolder(self.settings.generations_path)

    def generation(self, generation_id: str) -> Generation:
        """A published generation, as the updaters load it."""
        if generation_id not in self.generations:
            self.generations[generation_id] = load_generation(self.settings.generations_path, generation_id)
        return self.generations[generation_id]

    async def activate(self, generation_id: str) -> None:
        """Put a generation in force and rebuild every row, as the verb does."""
        async with self.store() as store:
            await activate(self.settings, store, generation_id, progress=SilentProgress())

    # The store

    @property
    def _store_port(self) -> int:
        assert self.valkey.port is not None
        return self.valkey.port

    @contextlib.asynccontextmanager
    async def store(self) -> AsyncIterator[RedisStore]:
        """A connection of the harness's own, past the proxy, with more patience than the product's."""
        changes = {"url": SecretStr(self.valkey.url), "connect_timeout_s": PATIENCE_S, "command_timeout_s": PATIENCE_S}
        config = self.settings.store.model_copy(update=changes)
        store = open_store(config, self.settings.keys)
        try:
            await store.connect()
            yield store
        finally:
            await store.close()

    @property
    def aof(self) -> Path:
        """The folder of the store's append-only files."""
        return self.valkey.data_dir / "appendonlydir"

    def log_file(self) -> Path:
        """The append-only file that grows."""
        return newest_log(self.aof)

    def copy_store(self) -> Path:
        """A copy of the store as it is on disk now: what a replica that lags would hold."""
        self._stores += 1
        copy = self.folder / f"copy-{self._stores}"
        shutil.copytree(self.aof, copy / "appendonlydir")
        return copy

    async def take_back(self, copy: Path) -> None:
        """Kill the store and start it again from a copy."""
        await asyncio.to_thread(self.valkey.kill)
        shutil.rmtree(self.aof)
        shutil.copytree(copy / "appendonlydir", self.aof)
        await self.start_store()

    def adopt(self, copy: Path) -> ValkeyServer:
        """A second server with a copy's content, not started yet."""
        self._stores += 1
        folder = self.folder / f"valkey-{self._stores}"
        shutil.copytree(copy, folder)
        return ValkeyServer(folder)

    async def markers(self) -> dict[int, Marker | None]:
        """Every partition's marker."""
        return await self.markers_of(self.truth.now.ends)

    async def markers_of(self, partitions: Iterable[int]) -> dict[int, Marker | None]:
        """These partitions' markers. Errors: `StoreUnavailable`."""
        async with self.store() as store:
            return {p: await store.read_marker(p) for p in sorted(partitions)}

    async def halt_reason(self, epoch: int | None = None) -> str | None:
        """Why the stream (of this epoch) is halted."""
        async with self.store() as store:
            store.keys = replace(store.keys, stream=f"{self.settings.kafka.topic}@{epoch}") if epoch else store.keys
            return await store.read_halt()

    async def start_store(self, server: ValkeyServer | None = None) -> None:
        """Start it again; if it refuses its append-only file, cut the file where it stops making sense, as `valkey-check-aof --fix`
        does, and as its message asks an operator to.

        Seen with Valkey 9.1.2: after a rewrite of the file, a write that the disk cut short leaves a hole of zeros in it."""
        server = server or self.valkey
        try:
            await asyncio.to_thread(server.start)
        except SandboxError as error:
            if BAD_FORMAT not in str(error):
                raise
            self.repaired += 1
            cut_at_nonsense(newest_log(server.data_dir / "appendonlydir"))
            await asyncio.to_thread(server.start)

    def pin(self) -> None:
        """What is finished now can never be replayed: from now on no fault may take the store back before it."""
        self.copies.clear()
        self._pinned = False

    async def rewrite_log(self) -> None:
        """The append-only file written anew: a hole in it, from a disk that was full, is gone."""
        client = redis.Redis.from_url(self.valkey.url, protocol=2)
        try:
            await client.bgrewriteaof()
            await wait_until(lambda: _rewritten(client), "the append-only file to be rewritten")
        finally:
            await client.aclose()

    async def settle(self) -> None:
        """At rest, after the checks: what later faults may fall back to."""
        if not self._pinned:
            await self.rewrite_log()
            self._pinned = True
        for old in self.copies[:-2]:
            shutil.rmtree(old, ignore_errors=True)
        self.copies = [*self.copies[-2:], self.copy_store()]

    def _note_failure(self, task: asyncio.Task[None]) -> None:
        """The harness's own parts must not end unseen."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.crew.surprises.append(f"the harness: {error!r}")

    async def verb(
        self, *arguments: str, deadline_s: float = 120.0, kill_after_s: float | None = None, attempts: int = 5
    ) -> str:
        """Run a verb of the command line as an operator would, again if a server did not answer in time; what it said.

        Errors: `Stuck` if it fails (not when killed)."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NEARLINE_")}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(ROOT / "nearline.py"),
            *arguments,
            env={**environment, **environment_of(self.settings)},
            cwd=self.folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), kill_after_s or deadline_s)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            if kill_after_s is not None:
                return "killed"
            raise Stuck(f"nearline {' '.join(arguments)} took over {deadline_s:g} s") from None
        text = output.decode(errors="replace")
        with (self.folder / "verbs.log").open("a") as file:
            file.write(f"$ nearline {' '.join(arguments)}\n{text}\n")
        if process.returncode == TRY_AGAIN_STATUS and attempts > 1:
            return await self.verb(*arguments, deadline_s=deadline_s, attempts=attempts - 1)
        if process.returncode not in (0, 1):
            raise Stuck(f"nearline {' '.join(arguments)}: exit status {process.returncode}: {text[-1500:]}")
        return text

    # The stream

    async def _stream(self) -> None:
        """Messages at the rate, in small bursts, while it flows."""
        while True:
            await self._flowing.wait()
            await self.sender.send([self.audience.live() for _ in range(max(1, round(self.rate / 20)))])
            await asyncio.sleep(0.05)

    def pause_stream(self) -> None:
        """Nothing new from the audience."""
        self._flowing.clear()

    def resume_stream(self) -> None:
        """As before."""
        self._flowing.set()

    # Waiting

    async def ends(self) -> Mapping[int, int]:
        """Where each partition of the log ends now; waits for a broker that is away."""
        topic = self.settings.kafka.topic
        async with asyncio.timeout(GIVE_UP_S):
            while True:
                try:
                    consumer = await make_consumer(self.settings)
                    try:
                        partitions = await partitions_of(self.settings)
                        found = await consumer.end_offsets([TopicPartition(topic, p) for p in partitions])
                        return {tp.partition: end for tp, end in found.items()}
                    finally:
                        await consumer.stop()
                except (KafkaError, NearlineError):
                    await asyncio.sleep(0.2)

    async def reach(self, ends: Mapping[int, int], what: str) -> float:
        """Wait until every marker is there; seconds waited. Errors: `Stuck`."""
        started = time.monotonic()
        behind: dict[int, object] = {}
        while time.monotonic() - started < GIVE_UP_S:
            try:
                async with self.store() as store:
                    reached = {p: await store.read_marker(p) for p in ends}
                behind = {
                    p: (marker.next_offset if marker else None, ends[p])
                    for p, marker in reached.items()
                    if ends[p] > (marker.next_offset if marker else 0)
                }
                if not behind:
                    return time.monotonic() - started
                if FLOOD in (await self.halt_reason() or ""):  # poison enough for a halt: a person looks, and goes on
                    self.halts += 1
                    await self.verb("resume")
            except NearlineError:
                pass  # the store is not back yet
            await asyncio.sleep(0.1)
        reason = await self.halt_reason()
        halted = f"; halted: {reason}" if reason else ""
        raise Stuck(f"{what}: after {GIVE_UP_S:g} s partitions are behind (at, end): {behind}{halted}")

    async def drain(self) -> None:
        """Pause the stream, read the truth, wait until everything is finished, and counted. Errors: `Stuck`."""
        self.pause_stream()
        async with self.sender.sending:
            pass
        ends = await self.read_truth()
        await self.reach(ends, "draining")
        await self.snapshots.until_counted(ends)

    async def read_truth(self) -> Mapping[int, int]:
        """The log, read to its end; waits for a broker that is away."""
        async with asyncio.timeout(GIVE_UP_S):
            while True:
                try:
                    return await self.truth.catch_up()
                except (KafkaError, NearlineError) as error:
                    log.info("truth_waits", error=str(error))
                    await asyncio.sleep(0.3)

    async def until_halted(self, what: str, *, epoch: int | None = None, deadline_s: float = GIVE_UP_S) -> str:
        """Wait for the halt; its reason. Errors: `Stuck`."""
        ends = time.monotonic() + deadline_s
        while time.monotonic() < ends:
            with contextlib.suppress(NearlineError):
                if reason := await self.halt_reason(epoch):
                    return reason
            await asyncio.sleep(0.1)
        raise Stuck(f"{what}: no halt within {deadline_s:g} s")

    async def resume_after_halt(self) -> None:
        """A person has looked: `nearline resume`, until no halt comes any more from what is in the log."""
        ends = await self.ends()
        deadline = time.monotonic() + GIVE_UP_S
        while time.monotonic() < deadline:
            if await self.halt_reason():
                self.halts += 1
                await self.verb("resume")
            markers = await self.markers_of(ends)
            if all(marker is not None and marker.next_offset >= ends[p] for p, marker in markers.items()):
                return
            await asyncio.sleep(0.2)
        raise Stuck("after a halt was cleared the stream did not go on")

    async def night(self, *options: str) -> None:
        """The nightly job's own process."""
        await self.verb("nightly", "--force", "--skip-evaluation", *options)


async def _rewritten(client: redis.Redis) -> bool:
    return not (await client.info("persistence"))["aof_rewrite_in_progress"]
