"""What must hold, and an oracle that says what every viewer's state should be.

I1  at quiet points every viewer's state is the oracle's
I2  every row is f(state, activation), of the viewer's arm: looked at on every write; at quiet points every row is of the newest activation
    (let pass: a viewer written with an older one after the rebuild was recorded, which a stored row would have refused and a
    new viewer has none: it waits for its next event or the next night; see `SimServer.left_behind`)
I3  at every step, on every server: whatever lies below min(committed, marker) has its effect there (an event in its viewer's
    state, a poison record in the dead letter topic); so has whatever lies below where an updater seeks; commits follow markers,
    and every marker is anchored to the newest finished record that is not private
I4  no private or erased item in what the bytes in the store say, none in a dead letter
I5  at every step marker - origin = the sum of the fates, each fate as the log says; at quiet points the marker is the log's end
I6  no updater ends by itself, and every history comes to rest
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from contracts.anchors import anchor_of
from contracts.digests import id_digest, item_digest
from contracts.events import PLAY_KINDS, Kind, PlaybackEvent
from tests.simulation.model_kafka import DeadLetterRecord, KafkaModel, SimConsumer
from tests.simulation.model_store import Cluster, SimServer
from viewers.packing import pack, unpack
from viewers.state import Limits, Play, Register, RegisterKind, ViewerState, merge, state_of
from viewers.store import Marker, StoredViewer

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "secret"
"""Items that only private plays name begin with it."""

FLAGS = {Kind.COMPLETE: 1, Kind.STOP: 2, Kind.SKIP: 4}


class Violation(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant


@dataclass(frozen=True, slots=True)
class Fact:
    """What an offset holds. `kind`: event, private, poison or nothing. `quotable`: its dead letter may hold its bytes."""

    kind: str
    event: PlaybackEvent | None = None
    timestamp: int = 0
    quotable: bool = False
    alone: ViewerState | None = None  # what the event says alone


def fact_of_event(event: PlaybackEvent, timestamp: int) -> Fact:
    return Fact("event", event, timestamp, alone=state_of(event, timestamp_ms=timestamp))


def oracle(history: Iterable[Fact], limits: Limits) -> ViewerState:
    """A viewer's state from all events at once: sort, group, take the first. Never merges, never cuts twice."""
    facts = [(fact.event, fact.timestamp) for fact in history if fact.event is not None]
    erased_s = max((min(e.event_time_ms, at) // 1000 for e, at in facts if e.kind is Kind.ERASE), default=-1)

    reports: dict[tuple[int, int, str], list[PlaybackEvent]] = {}
    for event, _ in facts:
        if event.kind in PLAY_KINDS and (event.play_started_at_ms or 0) // 1000 > erased_s:
            identity = (event.play_started_at_ms or 0, id_digest(event.play_id or ""), event.item_id or "")
            reports.setdefault(identity, []).append(event)
    plays = []
    for identity in sorted(reports, reverse=True):
        shares = [min(255, 255 * (e.watched_ms or 0) // (e.duration_ms or 1)) for e in reports[identity]]
        flags = {FLAGS.get(e.kind, 0) for e in reports[identity]}
        plays.append(Play(*identity, max(shares), sum(flags)))

    kept: list[Play] = []
    for play in plays:
        of_item = sum(other.item_id == play.item_id for other in kept)
        if of_item < limits.max_plays_per_item and len(kept) < limits.max_plays:
            kept.append(play)
    newest: dict[str, int] = {}
    for play in plays:
        if play not in kept:
            newest.setdefault(play.item_id, play.started_at_ms // 1000)
    seen = sorted(((start_s, item_digest(item)) for item, start_s in newest.items()), reverse=True)[: limits.max_seen]

    said: dict[tuple[int, str], Register] = {}
    for event, _ in facts:
        kind = {
            Kind.RATE: RegisterKind.RATE,
            Kind.CLEAR_RATING: RegisterKind.RATE,
            Kind.HIDE: RegisterKind.HIDE,
            Kind.PREFER: RegisterKind.PREFER,
        }.get(event.kind)
        if kind is None or event.event_time_ms // 1000 <= erased_s:
            continue
        subject = event.preference if kind is RegisterKind.PREFER else event.item_id
        value = event.value if event.kind in (Kind.RATE, Kind.PREFER) else None
        register = Register(kind, subject or "", event.event_time_ms, id_digest(event.event_id), value)
        known = said.get((int(kind), register.subject))
        if known is None or _order(register) > _order(known):
            said[(int(kind), register.subject)] = register
    registers = sorted(said.items(), key=lambda pair: (_order(pair[1]), pair[0]), reverse=True)[: limits.max_registers]
    return ViewerState(
        tuple(kept),
        tuple(sorted((digest, start_s) for start_s, digest in seen)),
        tuple(register for _, register in sorted(registers)),
        erased_s,
    )


def _order(register: Register) -> tuple[int, int, int]:
    return (register.event_time_ms, register.event_digest, -1000 if register.value is None else register.value)


def named_in(state: ViewerState) -> set[str]:
    """The ids that a state tells: items of plays, subjects of registers."""
    return {play.item_id for play in state.plays} | {register.subject for register in state.registers}


def row_of(state_bytes: bytes, activation: int, generation_id: str) -> bytes:
    """The tiny row that stands for a home row: it names its state, its generation and its activation."""
    digest = hashlib.blake2b(state_bytes, digest_size=8).hexdigest()
    return f"{generation_id}|{activation}|{digest}".encode()


class Checker:
    """Looks at everything that happens in one world."""

    def __init__(self, kafka: KafkaModel, cluster: Cluster, limits: Limits) -> None:
        self.kafka = kafka
        self.cluster = cluster
        self.limits = limits
        self.facts: list[list[Fact]] = [[] for _ in kafka.logs]
        self.of_old_logs: list[Fact] = []
        self.generation_of: dict[int, str] = {}  # activation → generation
        self.lettered: set[tuple[int, int]] = set()
        self.identity_of: Callable[[SimConsumer], str | None] = lambda consumer: None
        self._highest_marker: dict[int, int] = {}
        self._unpacked: dict[bytes, ViewerState] = {}
        kafka.on_commit = self.on_commit
        kafka.on_dead_letter = self.on_dead_letter
        kafka.on_seek = self.on_seek
        cluster.on_viewer = self.on_viewer
        cluster.on_marker = self.on_marker
        cluster.on_loss = self.on_loss
        cluster.on_seeded = self.on_seeded

    # At every step

    def on_viewer(self, server: SimServer, viewer: str, before: StoredViewer | None, after: StoredViewer) -> None:
        """A viewer's hash was written: nothing that must be unsaid is in it, nothing it knew is gone, and its row is of its state."""
        self._check_unsaid(viewer, after)
        if before is not None:
            old, new = self.unpacked(before.state), self.unpacked(after.state)
            if old != new and self._missing(new, old):
                raise Violation("I3", f"a write of {viewer} on {server.identity} loses what was there")
            if after.activation < before.activation:
                raise Violation("I2", f"{viewer} goes back from activation {before.activation} to {after.activation}")
        self._check_row(viewer, after)
        if after.activation < max(server.rebuilt, default=0):
            server.left_behind.add(viewer)

    def _check_unsaid(self, viewer: str, stored: StoredViewer) -> None:
        """No private item, and nothing from before the viewer's erasure. Ids are packed: they are looked for in what the bytes say."""
        state = self.unpacked(stored.state)
        if any(item.startswith(SECRET) for item in named_in(state)) or SECRET.encode() in stored.row:
            raise Violation("I4", f"a private item is in the hash of {viewer}")
        if item_digest(SECRET) in (digest for digest, _ in state.seen):
            raise Violation("I4", f"a private item counts as seen by {viewer}")
        times_s = [play.started_at_ms // 1000 for play in state.plays] + [start_s for _, start_s in state.seen]
        times_s += [register.event_time_ms // 1000 for register in state.registers]
        if any(at_s <= state.erased_through_s for at_s in times_s):
            raise Violation("I4", f"what {viewer} had erased is in their hash: {state}")

    def _check_row(self, viewer: str, stored: StoredViewer) -> None:
        empty = self.unpacked(stored.state).is_empty
        if empty or not stored.activation:
            expected = b""
        else:
            expected = row_of(stored.state, stored.activation, self.generation_for(viewer, stored.activation))
        if stored.row != expected:
            raise Violation("I2", f"the row of {viewer} is {stored.row!r} where {expected!r} follows from its state")

    def generation_for(self, viewer: str, activation: int) -> str:
        """The generation that a viewer's row of an activation must be made by."""
        return self.generation_of[activation]

    def on_marker(self, server: SimServer, partition: int, before: Marker | None, after: Marker) -> None:
        """A marker moved."""
        if after.unaccounted:
            raise Violation("I5", f"partition {partition}: {after.unaccounted} offsets without a fate in {after}")
        if before is None and after.origin > server.seeded.get(partition, 0):
            raise Violation("I5", f"partition {partition}: nobody accounts for what lay below {after.origin}: {after}")
        if before is not None and after.next_offset <= before.next_offset:
            raise Violation("I5", f"partition {partition}: the marker goes from {before} to {after}")
        if self.kafka.logs[partition].beginning == 0:
            self._check_fates(partition, after)
            self._check_anchor(partition, after)
        highest = self._highest_marker.get(partition, 0)
        self._highest_marker[partition] = max(highest, after.next_offset)
        self._check_resume(server, partition)

    def _check_fates(self, partition: int, marker: Marker) -> None:
        kinds = [fact.kind for fact in self.facts[partition][marker.origin : marker.next_offset]]
        for kind, counted in (
            ("event", marker.applied + marker.noop),
            ("private", marker.private),
            ("poison", marker.dead),
            ("nothing", marker.absent),
        ):
            if kinds.count(kind) != counted:
                raise Violation("I5", f"partition {partition}: {kinds.count(kind)} offsets of {kind}, counted {marker}")

    def _check_anchor(self, partition: int, marker: Marker) -> None:
        facts, records = self.facts[partition], self.kafka.logs[partition].records
        if marker.anchor is not None and facts[marker.anchor.offset].kind == "private":
            raise Violation("I4", f"partition {partition}: anchored to a private record: {marker}")
        for offset in reversed(range(marker.origin, marker.next_offset)):
            if facts[offset].kind == "event" or (facts[offset].kind == "poison" and facts[offset].quotable):
                record = records[offset]
                if record is None or marker.anchor != anchor_of(record):
                    raise Violation("I3", f"partition {partition}: {marker} is not anchored to its record at {offset}")
                return

    def begin_log(self) -> None:
        """The topic is another one. What its records did may stay; who had not read them cannot any more."""
        self.of_old_logs += [fact for facts in self.facts for fact in facts if fact.event is not None]
        self.facts = [[] for _ in self.kafka.logs]
        self.lettered = set()
        self._highest_marker = {}
        for server in self.cluster.everywhere:
            server.held_below, server.excused = {}, set()

    def on_loss(self, server: SimServer) -> None:
        """A server came back without its last commands, or another took its place."""
        self._excuse(server)
        for partition in range(len(self.kafka.logs)):
            server.held_below.pop(partition, None)
            self._check_resume(server, partition)

    def on_seeded(self, server: SimServer) -> None:
        """A rebuild from the lake was recorded: updaters without a marker will start at its cut-offs."""
        for partition in range(len(self.kafka.logs)):
            self._check_resume(server, partition)

    def on_retention(self) -> None:
        """The log's beginning moved: what was deleted before it had its effect is lost, and only that."""
        for server in self.cluster.everywhere:
            self._excuse(server)

    def _excuse(self, server: SimServer) -> None:
        for partition, log in enumerate(self.kafka.logs):
            for offset in range(log.beginning):
                if (partition, offset) not in server.excused and not self._held(server, partition, offset):
                    server.excused.add((partition, offset))

    def on_commit(self, partition: int, offset: int) -> None:
        """An offset is about to be committed."""
        if offset > self._highest_marker.get(partition, 0):
            raise Violation("I3", f"partition {partition}: {offset} is committed, and no marker ever was there")

    def on_seek(self, consumer: SimConsumer, partition: int, offset: int) -> None:
        """An updater resumes: if it still is the same server, everything below is there."""
        identity = self.identity_of(consumer)
        for server in self.cluster.servers:
            if server.identity == identity:
                self._check_held(server, partition, offset, "an updater resumes at")

    def on_dead_letter(self, letter: DeadLetterRecord) -> None:
        """A dead letter arrives."""
        partition, offset = letter.coordinates
        fact = self.facts[partition][offset]
        if fact.kind == "private" or SECRET.encode() in (letter.value or b"") + (letter.key or b""):
            raise Violation("I4", f"a private record is a dead letter: {letter}")
        if fact.kind != "poison":
            raise Violation("I5", f"a good record is a dead letter: {letter}")
        if (letter.value or letter.key) and not fact.quotable:
            raise Violation("I4", f"a record that may be private is quoted: {letter}")
        self.lettered.add((partition, offset))

    def _check_resume(self, server: SimServer, partition: int) -> None:
        marker = server.markers.get(partition)
        if marker is None:
            resume = server.seeded.get(partition, 0)
        else:
            resume = min(self.kafka.committed.get(partition, marker.next_offset), marker.next_offset)
        self._check_held(server, partition, resume, "one would resume at")

    def _check_held(self, server: SimServer, partition: int, below: int, how: str) -> None:
        known = server.held_below.get(partition, 0)
        for offset in range(known, below):
            if (partition, offset) not in server.excused and not self._held(server, partition, offset):
                raise Violation(
                    "I3",
                    f"partition {partition}: {how} {below} on {server.identity}, "
                    f"which does not hold the effect of offset {offset}: {self.facts[partition][offset]}",
                )
        if below > known:
            server.held_below[partition] = below

    def _held(self, server: SimServer, partition: int, offset: int) -> bool:
        if offset >= len(self.facts[partition]):
            return False
        fact = self.facts[partition][offset]
        if fact.event is not None:
            return self._has(server, fact)
        if fact.kind != "poison" or (partition, offset) in self.lettered:
            return True
        # What the lake seeded was never handed to an updater: no dead letter is owed for it.
        marker = server.markers.get(partition)
        return offset < max(server.seeded.get(partition, 0), 0 if marker is None else marker.origin)

    def _has(self, server: SimServer, fact: Fact) -> bool:
        assert fact.event is not None and fact.alone is not None
        stored = server.viewers.get(fact.event.viewer)
        return stored is not None and not self._missing(self.unpacked(stored.state), fact.alone)

    def _missing(self, state: ViewerState, part: ViewerState) -> bool:
        """True if `state` would change by merging `part` into it."""
        return merge((state, part), self.limits) != state

    def unpacked(self, data: bytes) -> ViewerState:
        known = self._unpacked.get(data)
        if known is None:
            known = self._unpacked[data] = unpack(data)
        return known

    # At quiet points

    def check_quiet(self, activation: int) -> None:
        """Everything has been processed and rebuilt: compare with the oracle."""
        server = self.cluster.primary
        of_viewer: dict[str, list[Fact]] = {}
        for partition, facts in enumerate(self.facts):
            for offset, fact in enumerate(facts):
                if fact.event is None:
                    continue
                if (partition, offset) in server.excused and not self._held(server, partition, offset):
                    continue
                of_viewer.setdefault(fact.event.viewer, []).append(fact)
        for fact in self.of_old_logs:
            if fact.event is not None and self._has(server, fact):
                of_viewer.setdefault(fact.event.viewer, []).append(fact)
        for viewer, history in of_viewer.items():
            self._check_viewer(viewer, history, server.viewers.get(viewer, StoredViewer()), activation)
        for viewer in server.viewers:
            if viewer not in of_viewer:
                raise Violation("I1", f"nobody ever named {viewer}")
        for partition, log in enumerate(self.kafka.logs):
            marker = server.markers.get(partition)
            end = server.seeded.get(partition, log.beginning) if marker is None else marker.next_offset
            if end != log.end:
                raise Violation("I5", f"partition {partition} ends at {log.end}, its marker is {marker}")
            if marker is not None and marker.unaccounted:
                raise Violation("I5", f"partition {partition}: {marker}")

    def _check_viewer(self, viewer: str, history: list[Fact], stored: StoredViewer, activation: int) -> None:
        expected = oracle(history, self.limits)
        found = unpack(stored.state)
        self._check_erased(viewer, history, found, expected.erased_through_s)
        if found != expected:
            raise Violation("I1", f"{viewer}: {found} where the log gives {expected}")
        if stored.state != pack(expected):
            raise Violation("I1", f"{viewer}: equal states, other bytes")
        if stored.activation != activation and not (
            viewer in self.cluster.primary.left_behind and stored.activation < activation
        ):
            raise Violation("I2", f"{viewer} has activation {stored.activation} where {activation} is in force")
        self._check_row(viewer, stored)

    def _check_erased(self, viewer: str, history: list[Fact], found: ViewerState, erased_s: int) -> None:
        """No item is left of which the log says nothing after the erasure."""
        gone: set[str] = set()
        there: set[str] = set()
        for fact in history:
            event = fact.event
            if event is not None and event.item_id is not None:
                at_ms = event.event_time_ms if event.play_started_at_ms is None else event.play_started_at_ms
                (there if at_ms // 1000 > erased_s else gone).add(event.item_id)
        named, seen = named_in(found), {digest for digest, _ in found.seen}
        for item in gone - there:
            if item in named or item_digest(item) in seen:
                raise Violation("I4", f"{viewer}: erased item {item} is still there")
