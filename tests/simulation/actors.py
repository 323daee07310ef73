"""The processes of a history: shipped updaters and a shipped rebuild, each on a loop of its own, and what they are given.

Shipped and run as they are: `Updater.run` with its listener, background tasks and back-offs, `Checkpoint`, `DeadLetterQueue`,
`Swap`, `plan`, `tallies`, `rewrite_viewers`, `merge`, packing, `Rebuild`. Stood in for: the clients of Kafka and of the store
(the models), the codec (a table), the generations folder (two names), and the numbers of a row (its state's digest).

States are merged by the reference (`viewers/state.py`, `viewers/packing.py`), not by the compiled kernel, and plays are read by the
codec's stand-in, not by the compiled reader: what is simulated is the order of effects. That the kernels compute the same is shown by
`tests/unit/test_kernel.py` and, for the reader, by `tests/fuzz`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import batch.rebuild
import runtime.worker
import updater.checkpoint
import updater.consumer
import updater.swap
import viewers.rewrite
import viewers.rewriter
from contracts.current import Current
from contracts.errors import GenerationError, HaltError, TransientError, UndecodableRecord, UnknownSchema, UserError
from contracts.events import PlaybackEvent
from runtime.kafka import kafka_errors
from runtime.settings import KafkaSettings, StateSettings
from tests.simulation.clock import ProcessLoop, Scheduler
from tests.simulation.invariants import Violation, row_of
from tests.simulation.model_kafka import KafkaModel, SimConsumer, SimProducer
from tests.simulation.model_store import Cluster, SimStore
from updater.consumer import Updater
from viewers import packing
from viewers.arms import Arms
from viewers.kernel import REWRITTEN, Rewritten, Todo
from viewers.rewrite import Rewriters
from viewers.rewriter import Rewriter
from viewers.state import Limits, ViewerState

TOPIC = "playback"
NEW_SCHEMA = b"\x07"
"""First byte of a value whose schema the registry learns later."""

UPDATERS_DEADLINE_S = 20.0
UPDATER_SILENT_S = 5.0
"""An activation waits this long for updaters, and for those that reported within this."""


class SimCodec:
    """Decodes what the world's producers wrote; anything else cannot be decoded."""

    event_header = None

    def __init__(self, events: dict[bytes, PlaybackEvent], *, knows_new: bool) -> None:
        self._events = events
        self._knows_new = knows_new

    def decode_event(self, value: bytes) -> PlaybackEvent:
        event = self._events.get(value)
        if event is None:
            raise UndecodableRecord("not one canonical value")
        if value[:1] == NEW_SCHEMA and not self._knows_new:
            raise UnknownSchema("schema id 7")
        return event

    def encode_row(self, row: object) -> bytes:
        raise AssertionError("rows are stood in for")


class SimRewriter(Rewriter):
    """The shipped rewriter's interface; a row is its state's digest, its generation and its activation."""

    is_prepared = True

    def rewrite_many(self, batch: Sequence[Todo], *, computed_at_ms: int) -> list[Rewritten | None]:
        merged = [self._merge_by_reference(one) for one in batch]
        return [self._tiny(packing.unpack(one.stored)) if one.force else None for one in merged]

    def _tiny(self, state: ViewerState) -> Rewritten:
        packed = packing.pack(state)
        if self.generation is None or state.is_empty:
            return Rewritten(REWRITTEN, packed)
        row = row_of(packed, self.activation, self.generation.generation_id)
        return Rewritten(REWRITTEN, packed, b"", row)

    def default_row(self, **who: object) -> bytes:
        return b"default"


class Generations:
    """CURRENT, and the generations that it may name."""

    def __init__(self) -> None:
        self.current: Current | None = None
        self.unreadable = False

    def load(self, generation_id: str) -> Any:
        return SimpleNamespace(generation_id=generation_id, tables=None)

    def load_here(self, generation_id: str) -> Any:
        """The same, where updaters load it from. Errors: `GenerationError`."""
        return self.load(generation_id)


class SimFolder:
    """`embeddings.generations_folder.GenerationsFolder` over `Generations`."""

    def __init__(self, generations: Generations) -> None:
        self._generations = generations

    def read_current(self) -> Current | None:
        if self._generations.unreadable:
            raise GenerationError("CURRENT cannot be read")
        return self._generations.current

    def created_at_s(self, generation_id: str) -> float:
        return 0.0


class NoMetrics:
    """`updater.metrics.Metrics`, counting nothing."""

    rows_written = 0

    def __init__(self) -> None:
        self.records = self.retries = self.batches = self

    def labels(self, *labels: object) -> NoMetrics:
        return self

    def inc(self, amount: float = 1) -> None:
        return None

    def count_rows(self, viewers: object, share: object) -> None:
        return None

    def observe_rows(self, row_ids: object, timing: object, event_times_ms: object) -> None:
        return None


class Log:
    """`structlog`'s logger: to the running history's trace, if it keeps one."""

    def __init__(self) -> None:
        self.write: Callable[[str], None] | None = None

    def info(self, event: str, **fields: object) -> None:
        if self.write is not None:
            self.write(f"{event} " + " ".join(f"{name}={value}" for name, value in fields.items()))

    warning = error = info


LOG = Log()


@contextlib.contextmanager
def stand_ins(few: int = -1) -> Iterator[None]:
    """Give the shipped modules the models instead of clients. What belongs to one world travels in its settings. `few`: so many are worked
    on by the loop itself; −1: nothing is, as what takes its time meets more."""

    async def make_consumer(settings: Any, *, group_id: str | None = None) -> SimConsumer:
        made: SimConsumer = settings.process.make_consumer()
        return made

    async def make_reader(settings: Any) -> SimConsumer:
        process = settings.process
        with kafka_errors("connecting the consumer", settings):
            await process.kafka.call(process.loop, lambda: None)
        return SimConsumer(process.kafka, process.loop)

    async def make_producer(settings: Any, **options: object) -> SimProducer:
        return SimProducer(settings.process.kafka, settings.process.loop)

    unpack = functools.lru_cache(1 << 12)(
        packing.unpack
    )  # histories write few different states, and read them again and again
    patches = [
        (updater.consumer, "make_consumer", make_consumer),
        (updater.consumer, "make_producer", make_producer),
        (updater.consumer, "assignment_of", lambda consumer: consumer.assignment_token),
        (updater.checkpoint, "make_consumer", make_reader),
        (updater.consumer, "Metrics", NoMetrics),
        (updater.consumer, "Schemas", SimSchemas),
        (updater.consumer, "draw_token", lambda: _of_running().draw_token()),
        (updater.consumer, "time", SimpleNamespace(time=_now_s, monotonic=_now_s)),
        (updater.swap, "time", SimpleNamespace(time=_now_s, monotonic=_now_s)),
        (updater.swap, "GenerationsFolder", SimFolder),
        (updater.swap, "load_generation", lambda generations, generation_id: generations.load_here(generation_id)),
        (updater.swap, "Rewriter", SimRewriter),
        *((module, "log", LOG) for module in (updater.consumer, updater.checkpoint, updater.swap)),
        (batch.rebuild, "BATCH", 2),
        (runtime.worker, "FEW", few),
        (packing, "unpack", unpack),
        (viewers.rewrite, "unpack", unpack),
        (viewers.rewriter, "unpack", unpack),
    ]
    with contextlib.ExitStack() as stack:
        for target, name, value in patches:
            stack.enter_context(mock.patch.object(target, name, value))
        yield


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _of_running() -> Process:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    return loop.process


class SimLoop(ProcessLoop):
    """A process's loop, which knows its process."""

    process: Process


class World:
    """What the actors need of a world (see `world.py`)."""

    scheduler: Scheduler
    kafka: KafkaModel
    cluster: Cluster
    rng: random.Random
    generations: Generations
    limits: Limits
    batch_records: int
    compute_s: float
    stream_epoch: int

    def codec(self) -> SimCodec:
        raise NotImplementedError


class SimSchemas:
    """The registry of the world."""

    is_far = False

    def __init__(self, settings: Any) -> None:
        self._world = settings.registry_path

    def learn(self, known: SimCodec, unknown: object) -> SimCodec:
        return self._world.codec()

    def doubting(self, known: SimCodec) -> SimCodec:
        return known


class Process:
    """A process: a loop, clients, and a main coroutine. `ended`: it came to its end by itself; `error`: with this."""

    def __init__(self, world: World, name: str, number: int) -> None:
        self.world = world
        self.name = name
        self.kafka = world.kafka
        self.loop = SimLoop(world.scheduler)
        self.loop.process = self
        self.loop.compute_delay_s = lambda: world.rng.random() * world.compute_s
        self.store = SimStore(world.cluster, self.loop, number)
        self.consumer: SimConsumer | None = None
        self.ended = False
        self.error: BaseException | None = None
        self._token_rng = random.Random(world.rng.random())
        self._main: asyncio.Task[None] | None = None

    def draw_token(self) -> bytes:
        return self._token_rng.randbytes(8)

    def make_consumer(self) -> SimConsumer:
        self.consumer = SimConsumer(self.kafka, self.loop)
        return self.consumer

    def start(self, main: Callable[[], Any]) -> None:
        def begin() -> None:
            self._main = self.loop.create_task(main())
            self._main.add_done_callback(self._end)

        self.loop.call_soon(begin)

    def _end(self, task: asyncio.Task[None]) -> None:
        if self.loop.dead:
            return
        self.ended = True
        self.error = None if task.cancelled() else task.exception()
        if isinstance(self.error, Violation):
            raise self.error
        self.kill()

    def kill(self) -> None:
        """SIGKILL; and what the kernel and the group notice of it."""
        self.loop.kill()
        self.world.cluster.pins.pop(self.store.client, None)
        self.kafka.consumers = [consumer for consumer in self.kafka.consumers if consumer.loop is not self.loop]

    @property
    def alive(self) -> bool:
        return not self.loop.dead


class UpdaterProcess(Process):
    """A shipped updater."""

    def __init__(self, world: World, name: str, number: int) -> None:
        super().__init__(world, name, number)
        limits = world.limits
        settings = SimpleNamespace(
            kafka=KafkaSettings(topic=TOPIC, stream_epoch=world.stream_epoch, max_batch_records=world.batch_records),
            state=StateSettings(
                max_plays=limits.max_plays,
                max_plays_per_item=limits.max_plays_per_item,
                max_registers=limits.max_registers,
                max_seen=limits.max_seen,
            ),
            generations_path=world.generations,
            registry_path=world,
            process=self,
        )
        scheduler = world.scheduler
        self.updater = Updater(
            settings,  # type: ignore[arg-type]
            self.store,
            world.codec(),  # type: ignore[arg-type]
            instance=name,
            now_ms=lambda: scheduler.now_s * 1000,
        )
        self.start(self.updater.run)

    @property
    def fault(self) -> BaseException | None:
        """What ended this updater, if it is neither what a person must decide nor a stop while it waited for servers to start."""
        if isinstance(self.error, HaltError):
            return None
        return None if self.updater._stopping.is_set() and isinstance(self.error, TransientError) else self.error


class RebuildProcess(Process):
    """The shipped rebuild for what CURRENT names, again and again until it is recorded (as the nightly job's next run would)."""

    def __init__(
        self,
        world: World,
        name: str,
        number: int,
        *,
        lake: tuple[list[tuple[str, ViewerState]], dict[int, int]] | None = None,
    ) -> None:
        super().__init__(world, name, number)
        self.lake = lake
        self.start(self.run)

    async def before_rebuild(self) -> None:
        """What else has to be done before rows are rewritten."""

    def rewriters(self, current: Current) -> Rewriters:
        """As `batch.activation.Activator` makes them."""
        load, encode_row, limits = self.world.generations.load, self.world.codec().encode_row, self.world.limits
        in_force, *candidate = [
            SimRewriter(load(one), current.activation, encode_row, limits) for one in current.generations
        ]
        return in_force if current.share is None else Arms(in_force, candidate[0], current.share)

    async def run(self) -> None:
        world = self.world
        while True:
            current = world.generations.current
            if current is None:
                return
            try:
                await self.store.connect()
                await self.store.announce_activation(current.activation)
                if self.lake is None and await self.store.read_rebuilt(current.activation):
                    return
                await self._wait_for_updaters(current.activation)
                await self.before_rebuild()
                rebuild = batch.rebuild.Rebuild(
                    self.store,
                    self.rewriters(current),
                    now_ms=lambda: world.scheduler.now_s * 1000,
                    draw_token=self.draw_token,
                )
                facts, seeded = (None, None) if self.lake is None else self.lake
                await rebuild.run(facts, seeded=seeded)
                return
            except TransientError:
                await asyncio.sleep(0.1)
            except UserError:
                await asyncio.sleep(0.01)  # a newer activation took over: its own rebuild covers everybody

    async def _wait_for_updaters(self, activation: int) -> None:
        """As `batch.activation.Activator` does: every updater that still reports has taken the activation up, or a deadline."""
        ends_s = self.loop.time() + UPDATERS_DEADLINE_S
        while self.loop.time() < ends_s:
            reports = await self.store.read_updaters()
            oldest_ms = (self.loop.time() - UPDATER_SILENT_S) * 1000
            if all(serves >= activation or at_ms < oldest_ms for serves, at_ms in reports.values()):
                return
            await asyncio.sleep(0.25)
