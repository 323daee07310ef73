"""What to do with a batch of records. Pure: records and positions in, decisions out; no clock, no client.

Every offset of a partition gets exactly one fate: applied, no-op, private, dead-lettered, or absent (never handed to us:
transaction markers, records that compaction or retention removed). `tallies` adds them up once the viewers are rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from contracts.anchors import Anchor, anchor_of
from contracts.errors import RecordError
from contracts.events import PlaybackEvent, said_private, valid_id, validate
from contracts.framing import framed
from viewers.play_reader import Fact
from viewers.rewrite import Outcome, RewriteJob, RewriteResult
from viewers.state import EMPTY, Limits, ViewerState, merge, state_of
from viewers.store import Tally


class Record(Protocol):
    """A Kafka record as the consumer hands it over."""

    partition: int
    offset: int
    timestamp: int  # ms
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Position:
    """Where a partition stands: the next offset to process, and the first that is not yet in the marker's counters."""

    next_offset: int
    uncounted_from: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that can never be applied. `quotable`: its bytes may be kept: it is known not to be private.

    `event_viewer`: whom the event in it is about, where its bytes could be read.
    """

    record: Record
    cause: RecordError
    quotable: bool
    event_viewer: str | None = None

    @property
    def viewers(self) -> frozenset[str]:
        """Whom its key and its event name, as far as these are ids."""
        key = (self.record.key or b"").decode("ascii", "replace")
        return frozenset(name for name in (key, self.event_viewer) if name is not None and valid_id(name))


@dataclass(slots=True)
class PartitionPlan:
    """The fates of one partition's offsets up to `next_offset`. Counts hold only offsets from `uncounted_from` on."""

    partition: int
    uncounted_from: int
    next_offset: int
    records: int = 0
    private: int = 0
    dead: int = 0
    absent: int = 0
    jobs: list[int] = field(default_factory=list)  # per counted event record: index of its viewer's job
    last_timestamp_ms: int = 0
    anchor: Anchor | None = None  # of the last record that is known not to be private

    @property
    def advances(self) -> bool:
        """True if the marker has to move."""
        return self.next_offset > self.uncounted_from


@dataclass(frozen=True, slots=True)
class Plan:
    """A batch's decisions. `event_times_ms[i]`: event times of all records behind `jobs[i]`, for freshness."""

    jobs: list[RewriteJob]
    event_times_ms: list[list[int]]
    dead_letters: list[DeadLetter]
    partitions: dict[int, PartitionPlan]

    @property
    def records(self) -> int:
        return sum(partition.records for partition in self.partitions.values())

    @property
    def positions(self) -> dict[int, Position]:
        """Where its partitions stand once it is finished."""
        return {
            p: Position(todo.next_offset, max(todo.next_offset, todo.uncounted_from))
            for p, todo in self.partitions.items()
        }


def plan(
    batch: Mapping[int, Sequence[Record]],
    positions: Mapping[int, Position],
    decode: Callable[[bytes], PlaybackEvent],
    limits: Limits,
    read_plays: Callable[[Sequence[Record]], Sequence[Fact | None]] | None = None,
) -> Plan:
    """Decide every record of a batch, coalescing the facts of each viewer into one job.

    `batch`: partition → records in offset order; partitions without a position are ignored (not ours any more).
    `read_plays` reads the plays among many records at once; what it leaves (None), and everything without it, is decoded one by one.
    Errors: `UnknownSchema` (and any other transient error of `decode`) leaves the whole batch undecided.
    """
    facts: dict[str, list[ViewerState]] = {}
    packed: dict[str, list[bytes]] = {}
    times: dict[str, list[int]] = {}
    job_of: dict[str, int] = {}
    dead_letters: list[DeadLetter] = []
    partitions: dict[int, PartitionPlan] = {}
    for partition, records in batch.items():
        position = positions.get(partition)
        if position is None:
            continue
        todo = PartitionPlan(partition, position.uncounted_from, position.next_offset)
        partitions[partition] = todo
        last: Record | None = None
        plays: Sequence[Fact | None] = [None] * len(records) if read_plays is None else read_plays(records)
        for record, play in zip(records, plays, strict=True):
            if record.offset < todo.next_offset:
                continue  # fetched before a rewind
            counted = record.offset >= position.uncounted_from
            todo.absent += max(0, record.offset - max(todo.next_offset, position.uncounted_from))
            todo.next_offset = record.offset + 1
            todo.records += 1
            todo.last_timestamp_ms = record.timestamp
            decision = play if play and not said_private(record.headers) else _decide(record, decode)
            if decision is None:
                todo.private += counted
            elif isinstance(decision, DeadLetter):
                dead_letters.append(decision)
                todo.dead += counted
                last = record if decision.quotable else last
            else:
                last = record
                if isinstance(decision, Fact):
                    assert record.key is not None  # it is the viewer: `read_plays` has compared them
                    viewer = record.key.decode()
                    packed.setdefault(viewer, []).append(decision.packed)
                else:
                    viewer = decision.viewer
                    facts.setdefault(viewer, []).append(state_of(decision, timestamp_ms=record.timestamp))
                times.setdefault(viewer, []).append(decision.event_time_ms)
                if counted:
                    todo.jobs.append(job_of.setdefault(viewer, len(job_of)))
                else:
                    job_of.setdefault(viewer, len(job_of))
        todo.anchor = None if last is None else anchor_of(last)
    jobs = [
        RewriteJob(viewer, _joined(facts.get(viewer, ()), limits), max(times[viewer]), tuple(packed.get(viewer, ())))
        for viewer in job_of
    ]
    return Plan(jobs, [times[viewer] for viewer in job_of], dead_letters, partitions)


def _joined(facts: Sequence[ViewerState], limits: Limits) -> ViewerState:
    return merge(facts, limits) if len(facts) > 1 else facts[0] if facts else EMPTY


def _decide(record: Record, decode: Callable[[bytes], PlaybackEvent]) -> PlaybackEvent | DeadLetter | None:
    """The event of a valid record, its dead letter, or None for a private play."""
    said = said_private(record.headers)
    if said is True:
        return None
    event: PlaybackEvent | None = None
    try:
        event = decode(framed(record.value, record.headers))
        if event.private:
            return None
        validate(event, key=record.key, timestamp_ms=record.timestamp)
    except RecordError as error:
        return DeadLetter(record, error, quotable=said is False, event_viewer=None if event is None else event.viewer)
    return event


def tallies(decided: Plan, results: Sequence[RewriteResult]) -> dict[int, Tally]:
    """What happened to each partition's offsets from the old marker to the new; sums to exactly their number."""
    applied = [result.outcome is Outcome.APPLIED for result in results]
    sums = {}
    for partition, todo in decided.partitions.items():
        changed = sum(applied[job] for job in todo.jobs)
        sums[partition] = Tally(changed, len(todo.jobs) - changed, todo.private, todo.dead, todo.absent)
    return sums
