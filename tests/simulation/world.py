"""One world: a topic, a store, updaters, a nightly job, and what may happen to them. A history is a function of its seed.

The reference merge runs here, not the compiled kernel (`actors.py` says what is shipped and what stands in).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass

from contracts.current import Current
from contracts.events import Kind, PlaybackEvent
from tests.simulation import actors
from tests.simulation.actors import NEW_SCHEMA, TOPIC, Generations, RebuildProcess, SimCodec, UpdaterProcess
from tests.simulation.clock import Scheduler
from tests.simulation.invariants import SECRET, Checker, Fact, Violation, fact_of_event
from tests.simulation.made_anew import make_anew
from tests.simulation.model_kafka import Faults, KafkaModel, Log, SimConsumer
from tests.simulation.model_store import Cluster, StoreFaults
from viewers.state import Limits, ViewerState, merge

T0 = 1_700_000_000_000
REST_S = 150.0
"""A history that has been healed must come to rest within this, virtual seconds."""

MAX_PARTITIONS = 5

SMALL = Limits(max_plays=4, max_plays_per_item=2, max_registers=3, max_seen=3)

PLAYS = (Kind.START, Kind.PROGRESS, Kind.COMPLETE, Kind.STOP, Kind.SKIP)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a world is made of. Small on purpose: few viewers, items and instants collide often."""

    updaters: int = 2
    partitions: int = 2
    viewers: int = 3
    items: int = 6
    batch_records: int = 4
    compute_s: float = 0.003
    store_s: float = 0.001
    limits: Limits = SMALL


class World(actors.World):
    """Everything of one history. `act` does one of `ACTIONS`, `advance` lets time pass, `rest` heals and checks."""

    def __init__(self, seed: int, shape: Shape, trace: Callable[[str], None] | None = None) -> None:
        self.rng = random.Random(seed)
        self.shape = shape
        self.limits = shape.limits
        self.batch_records = shape.batch_records
        self.compute_s = shape.compute_s
        self.scheduler = Scheduler()
        self.kafka = KafkaModel(self.scheduler, random.Random(seed + 1), TOPIC, shape.partitions)
        self.cluster = Cluster(self.scheduler, random.Random(seed + 2))
        self.cluster.latency_s = shape.store_s
        self.checker = Checker(self.kafka, self.cluster, shape.limits)
        self.checker.identity_of = self._identity_of
        self.generations = Generations()
        self.updaters: list[UpdaterProcess] = []
        self.nightly: RebuildProcess | None = None
        self.events: dict[bytes, PlaybackEvent] = {}
        self.knows_new = False
        self.poison = 0
        self.stream_epoch = 1
        self.of_old_logs: list[Fact] = []  # what the lake has of topics that were made anew
        self._numbers = 0
        self.copied: dict[int, int] = {}
        self._sent: list[tuple[PlaybackEvent, int, bytes]] = []
        self._trace = trace
        actors.LOG.write = None if trace is None else self.trace
        self.cluster.trace = self.trace if trace is not None else None
        for _ in range(shape.updaters):
            self.start_updater()

    def trace(self, what: str) -> None:
        if self._trace is not None:
            self._trace(f"{self.scheduler.now_s:9.4f}  {what}")

    def _identity_of(self, consumer: SimConsumer) -> str | None:
        return next((u.store.identity for u in self.updaters if u.consumer is consumer), None)

    def codec(self) -> SimCodec:
        return SimCodec(self.events, knows_new=self.knows_new)

    def start_updater(self) -> None:
        self._numbers += 1
        self.updaters.append(UpdaterProcess(self, f"u{self._numbers}", self._numbers))

    # Events

    def event(self, viewer: str, item: str) -> PlaybackEvent:
        """An event that collides with others: few instants, play ids and items."""
        rng = self.rng
        now_ms = T0 + int(self.scheduler.now_s * 1000)
        back = rng.choice((0, 0, 0, 400, 800, 1200, 2400, 6000))
        time_ms = (now_ms - back) // 400 * 400 + (0 if rng.random() < 0.8 else rng.randint(0, 399))
        kind = rng.choices(
            (*PLAYS, Kind.RATE, Kind.CLEAR_RATING, Kind.HIDE, Kind.PREFER, Kind.ERASE),
            (3, 3, 4, 2, 2, 2, 1, 1, 1, 1),
        )[0]
        event = PlaybackEvent(f"e{rng.randint(0, 99)}", kind, viewer, time_ms)
        if kind in PLAYS:
            return dataclasses.replace(
                event,
                item_id=item,
                play_id=f"p{rng.randint(0, 2)}",
                play_started_at_ms=time_ms,
                watched_ms=rng.randint(0, 120),
                duration_ms=100,
            )
        if kind is Kind.PREFER:
            return dataclasses.replace(event, preference=f"topic:{rng.randint(0, 2)}", value=rng.randint(-100, 100))
        if kind is Kind.ERASE:
            return dataclasses.replace(event, event_time_ms=time_ms + rng.choice((0, 0, 1_000)))
        value = rng.randint(-100, 100) if kind is Kind.RATE else None
        return dataclasses.replace(event, item_id=item, value=value)

    def _viewer(self) -> str:
        return f"v{self.rng.randrange(self.shape.viewers)}"

    def _partition(self, viewer: str) -> int:
        return int(viewer[1:]) % len(self.kafka.logs)

    def encode(self, event: PlaybackEvent, first: bytes = b"\x00") -> bytes:
        value = first + repr(event).encode()
        self.events[value] = event
        return value

    def send(self, event: PlaybackEvent, first: bytes = b"\x00") -> None:
        """A good event; its producer may retry, so that it is in the log more than once."""
        value = self.encode(event, first)
        timestamp = T0 + int(self.scheduler.now_s * 1000) + self.rng.choice((0, 0, 5, 500))
        if event.event_time_ms > timestamp + 250_000:
            raise AssertionError("a good event from the future")
        self._sent.append((event, timestamp, value))
        for _ in range(self.rng.choice((1, 1, 1, 1, 2, 3))):
            self.append(event, timestamp, value)

    def append(self, event: PlaybackEvent, timestamp: int, value: bytes) -> None:
        partition = self._partition(event.viewer)
        self.checker.facts[partition].append(fact_of_event(event, timestamp))
        offset = self.kafka.append(partition, timestamp, event.viewer.encode(), value, (("private", b"0"),))
        self.trace(
            f"log {partition}[{offset}] {event.kind.value} {event.viewer} {event.item_id} {event.event_time_ms - T0}"
        )

    def append_other(
        self, partition: int, fact: Fact, key: bytes | None, value: bytes | None, *headers: tuple[str, bytes]
    ) -> None:
        self.checker.facts[partition].append(fact)
        offset = self.kafka.append(partition, T0 + int(self.scheduler.now_s * 1000), key, value, headers)
        self.trace(f"log {partition}[{offset}] {fact.kind} {headers}")

    # Actions: what producers do

    def do_play(self) -> None:
        item = f"i{self.rng.randrange(self.shape.items):02d}."
        self.send(self.event(self._viewer(), item))

    def do_burst(self) -> None:
        for _ in range(self.rng.randint(2, 8)):
            self.do_play()

    def do_repeat(self) -> None:
        """An old event once more: a producer's retry, or a dead letter driven again."""
        if self._sent:
            self.append(*self.rng.choice(self._sent))

    def do_private(self) -> None:
        viewer = self._viewer()
        event = dataclasses.replace(self.event(viewer, SECRET), private=True)
        value = self.encode(event)
        headers = self.rng.choice(((("private", b"1"),), (("private", b"1"),), (), (("private", b"0"),)))
        if headers == (("private", b"1"),) and self.rng.random() < 0.3:
            value = b"\x00?" + SECRET.encode()
        self.append_other(self._partition(viewer), Fact("private"), viewer.encode(), value, *headers)

    def do_poison(self) -> None:
        """A record that can never be applied."""
        if self.poison >= 12:
            return  # a flood halts, as it should
        self.poison += 1
        viewer = self._viewer()
        quotable = self.rng.random() < 0.5
        headers = (("private", b"0"),) if quotable else self.rng.choice(((), (("private", b"yes"),)))
        key: bytes | None = viewer.encode()
        value: bytes | None = b"\x00?garbage" if quotable else b"\x00?" + SECRET.encode()
        what = self.rng.random()
        if what < 0.2:
            event = self.event(viewer, "bad.")
            value, key = self.encode(event), self.rng.choice((None, b"somebody"))
        elif what < 0.4:
            event = self.event(viewer, "bad.")
            value = self.encode(dataclasses.replace(event, event_time_ms=event.event_time_ms + 86_400_000))
        elif what < 0.5:
            value = None
        self.append_other(self._partition(viewer), Fact("poison", quotable=quotable), key, value, *headers)

    def do_nothing_records(self) -> None:
        """Transaction markers, or records that compaction took."""
        partition = self.rng.randrange(len(self.kafka.logs))
        for _ in range(self.rng.randint(1, 3)):
            self.checker.facts[partition].append(Fact("nothing"))
            self.kafka.append_nothing(partition)

    def do_new_schema(self) -> None:
        """A producer writes with a schema that the registry learns a little later."""
        item = f"i{self.rng.randrange(self.shape.items):02d}."
        self.send(self.event(self._viewer(), item), NEW_SCHEMA)
        self.scheduler.later(self.rng.random(), self._learn)

    def _learn(self) -> None:
        self.knows_new = True

    # Actions: what happens to Kafka

    def do_rebalance(self) -> None:
        self.kafka.rebalance()

    def do_forget_commits(self) -> None:
        """The group's offsets are lost, or an older copy of them is in force."""
        partition = self.rng.randrange(len(self.kafka.logs))
        committed = self.kafka.committed
        if self.rng.random() < 0.5:
            committed.pop(partition, None)
        elif partition in committed:
            committed[partition] = self.rng.randint(0, committed[partition])

    def do_commit_by_hand(self) -> None:
        """Somebody sets the group's offsets: back, or ahead of what is finished, even past the log's end."""
        partition = self.rng.randrange(len(self.kafka.logs))
        self.kafka.committed[partition] = self.rng.randint(0, self.kafka.logs[partition].end + 2)

    def do_retention(self) -> None:
        """The oldest records are deleted, read or not."""
        partition = self.rng.randrange(len(self.kafka.logs))
        log = self.kafka.logs[partition]
        log.beginning = min(log.end, log.beginning + self.rng.randint(1, 6))
        self.checker.on_retention()

    def do_add_partition(self) -> None:
        """The topic is given one more; keys move. The group hears of it with the next look at the topic."""
        if len(self.kafka.logs) < MAX_PARTITIONS:
            self.checker.facts.append([])
            self.kafka.logs.append(Log())
            self.scheduler.later(self.rng.random(), self.kafka.rebalance)

    def do_make_anew(self) -> None:
        """The topic is deleted and created again, once in a history."""
        if self.stream_epoch == 1:
            make_anew(self)

    def do_kafka_trouble(self) -> None:
        rng = self.rng
        self.kafka.faults = Faults(
            rng.choice((0.0, 0.1, 0.3)), rng.choice((0.0, 0.1, 0.3)), rng.choice((0.0, 0.0, 0.01)), rng.random() < 0.2
        )
        self.scheduler.later(rng.random() * 1.5, self.calm_kafka)

    def calm_kafka(self) -> None:
        self.kafka.faults = Faults()

    # Actions: what happens to the store

    def do_crash(self) -> None:
        self.cluster.crash(self.rng.choice((0, 1, 1, 2, 3, 5, 8, 20, 1000)))

    def do_keep_copy(self) -> None:
        self.cluster.keep_copy()

    def do_fall_back(self) -> None:
        self.cluster.fall_back()

    def do_fail_over(self) -> None:
        rng = self.rng
        self.cluster.fail_over(
            rng.choice((0, 1, 2, 3, 6)), old_lives=rng.random() < 0.6, pin=rng.choice((0.0, 0.5, 1.0))
        )

    def do_flip_back(self) -> None:
        self.cluster.flip_back()

    def do_store_trouble(self) -> None:
        rng = self.rng
        some = {
            name: rng.choice((0.05, 0.2, 0.4))
            for name in ("lost", "reply_lost", "late", "twice", "partly")
            if rng.random() < 0.4
        }
        switched = 0.05 if rng.random() < 0.15 else 0.0
        self.cluster.faults = StoreFaults(**some, switched=switched, down=rng.random() < 0.1)
        self.scheduler.later(rng.random() * 2, self.calm_store)

    def calm_store(self) -> None:
        self.cluster.faults = StoreFaults()

    def do_fill(self) -> None:
        """Out of memory, for a while."""
        server = self.cluster.primary
        server.full = True
        self.scheduler.later(self.rng.random(), lambda: setattr(server, "full", False))

    # Actions: what happens to processes

    def _some_updater(self) -> UpdaterProcess | None:
        running = [u for u in self.updaters if u.alive]
        return self.rng.choice(running) if running else None

    def do_kill(self) -> None:
        """SIGKILL; another is started, at once or later. The group notices after a while."""
        victim = self._some_updater()
        if victim is None:
            return
        self.trace(f"kill {victim.name}")
        victim.kill()
        self.scheduler.later(self.rng.random() * 0.5, self.kafka.rebalance)
        self.scheduler.later(self.rng.random() * 0.5, self._supervise)

    def do_stop(self) -> None:
        """SIGTERM."""
        victim = self._some_updater()
        if victim is not None and not victim.loop.frozen:
            self.trace(f"stop {victim.name}")
            victim.loop.call_soon(victim.updater.stop)
            self.scheduler.later(self.rng.random() * 0.5, self._supervise)

    def do_freeze(self) -> None:
        """A zombie: it is paused, the group gives its partitions to others, and it goes on where it was."""
        victim = self._some_updater()
        if victim is None or victim.loop.frozen:
            return
        self.trace(f"freeze {victim.name}")
        victim.loop.freeze()
        if self.rng.random() < 0.8:
            self.scheduler.later(self.rng.random() * 0.1, self.kafka.rebalance)
        self.scheduler.later(self.rng.choice((0.01, 0.1, 0.5, 3.0)) * self.rng.random(), self._thaw, victim)

    def _thaw(self, victim: UpdaterProcess) -> None:
        if victim.alive and victim.loop.frozen:
            self.trace(f"thaw {victim.name}")
            victim.loop.thaw()
            self.scheduler.later(self.rng.random() * 0.5, self.kafka.rebalance)  # its next heartbeat finds out

    def _supervise(self) -> None:
        """As many updaters as there should be; none may have ended by itself."""
        for updater in self.updaters:
            if updater.fault is not None:
                raise Violation("I6", f"{updater.name} ended with {updater.fault!r}") from updater.fault
        self.updaters = [u for u in self.updaters if u.alive]
        while len(self.updaters) < self.shape.updaters:
            self.start_updater()

    # Actions: the nightly job

    def do_activate(self) -> None:
        """CURRENT moves: to another generation, or back to one that was."""
        self.put_in_force(Current(f"g{self.rng.randint(1, 3)}", self.next_activation()))
        self.do_rebuild()

    def next_activation(self) -> int:
        return 1 if self.generations.current is None else self.generations.current.activation + 1

    def put_in_force(self, current: Current) -> None:
        """CURRENT says so from now on."""
        self.checker.generation_of[current.activation] = current.generation_id
        self.generations.current = current

    def do_rebuild(self) -> None:
        if self.nightly is None or not self.nightly.alive:
            self._numbers += 1
            self.nightly = RebuildProcess(self, f"n{self._numbers}", self._numbers)

    def do_seed(self) -> None:
        """A rebuild from the lake, which holds everything up to its cut-offs (as far as it could still be read)."""
        if self.generations.current is None or (self.nightly is not None and self.nightly.alive):
            return
        cutoffs: dict[int, int] = {}
        parts: dict[str, list[ViewerState]] = {}
        for partition, log in enumerate(self.kafka.logs):
            least = max(log.beginning, self.copied.get(partition, 0))  # the lake's copy only grows
            cutoffs[partition] = self.copied[partition] = self.rng.randint(least, log.end)
            for fact in self.checker.facts[partition][: cutoffs[partition]]:
                if fact.event is not None and fact.alone is not None:
                    parts.setdefault(fact.event.viewer, []).append(fact.alone)
        for fact in self.of_old_logs:
            if fact.event is not None and fact.alone is not None:
                parts.setdefault(fact.event.viewer, []).append(fact.alone)
        self._numbers += 1
        facts = [(viewer, merge(states, self.limits)) for viewer, states in parts.items()]
        self.nightly = RebuildProcess(self, f"n{self._numbers}", self._numbers, lake=(facts, cutoffs))

    def do_kill_nightly(self) -> None:
        if self.nightly is not None and self.nightly.alive:
            self.nightly.kill()

    def do_unreadable_current(self) -> None:
        self.generations.unreadable = True
        self.scheduler.later(self.rng.random() * 2, lambda: setattr(self.generations, "unreadable", False))

    # Running

    def act(self, name: str) -> None:
        """Do one of `ACTIONS`."""
        self.scheduler.steps += 1
        if self._trace is not None and name not in ("play", "burst"):
            self.trace(f"-- {name}")
        getattr(self, f"do_{name}")()

    def advance(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.scheduler.run_until(self.scheduler.now_s + seconds)
        self._look_at_processes()

    def _look_at_processes(self) -> None:
        for process in (*self.updaters, *([self.nightly] if self.nightly else [])):
            if process.loop.unhandled:
                raise Violation("I6", f"{process.name}: {process.loop.unhandled[0]}")
        if self.nightly is not None and self.nightly.ended and self.nightly.error is not None:
            raise Violation("I6", f"the rebuild ended with {self.nightly.error!r}") from self.nightly.error
        if any(u.fault for u in self.updaters):
            self._supervise()

    def rest(self) -> None:
        """Heal everything, wait until nothing is left to do, and compare with the oracle."""
        self.trace("-- rest")
        self.calm_kafka()
        self.calm_store()
        self._learn()
        self.generations.unreadable = False
        self.cluster.settle()
        for updater in self.updaters:
            self._thaw(updater)
        self._supervise()
        if not self.kafka.settled or self.rng.random() < 0.3:
            self.kafka.rebalance()
        if self.generations.current is None:
            self.do_activate()
        ends_s = self.scheduler.now_s + REST_S
        if not self.scheduler.run_until(ends_s, self._drained):
            raise Violation("I6", f"not at rest after {REST_S:g} s: {self._why_not()}")
        self.do_rebuild()
        # An updater that had resumed before a seeding moves its markers from where it stood: the log is finished twice.
        if not self.scheduler.run_until(ends_s, lambda: self._rebuilt() and self._drained()):
            raise Violation("I6", f"the rebuild has not ended after {REST_S:g} s")
        self._look_at_processes()
        assert self.generations.current is not None
        self.checker.check_quiet(self.generations.current.activation)

    def _why_not(self) -> str:
        server = self.cluster.primary
        ends = {p: (server.markers.get(p), log.end) for p, log in enumerate(self.kafka.logs)}
        names = [(u.name, u.alive, u.updater.ready, u.error) for u in self.updaters]
        return f"{ends}, {names}, group settled: {self.kafka.settled}"

    def _drained(self) -> bool:
        self._supervise()
        server = self.cluster.primary
        for partition, log in enumerate(self.kafka.logs):
            marker = server.markers.get(partition)
            done = max(log.beginning, server.seeded.get(partition, 0)) if marker is None else marker.next_offset
            if done != log.end:
                return False
        return self.kafka.settled and all(u.updater.ready for u in self.updaters)

    def _rebuilt(self) -> bool:
        """The nightly job has ended and recorded that everybody has the activation in force; if not, its next run will."""
        assert self.nightly is not None and self.generations.current is not None
        if self.nightly.alive or self.nightly.error is not None:
            return self.nightly.error is not None
        if self.generations.current.activation in self.cluster.primary.rebuilt:
            return True
        self.do_rebuild()
        return False

    def close(self) -> None:
        """End every process."""
        actors.LOG.write = None
        for process in (*self.updaters, *([self.nightly] if self.nightly else [])):
            process.kill()


ACTIONS = [name.removeprefix("do_") for name in vars(World) if name.startswith("do_")]
