"""Spans of those events that say they are traced: a valid, sampled `traceparent`, and `private: 0` beside it.

    process                 the event's offset from fetched to accounted for; child of the producer's span and linked to it
    ├── decide              decoded and judged, with the whole batch
    ├── read                its viewer's state read; waited until the batch before was computed
    ├── rewrite             merged, folded in, ranked
    ├── write               waited until the batch before was written; compare-and-set
    └── commit              marker written (the commit to Kafka follows on its own clock)

`nl:trace:<row id>` holds its `traceparent` for an hour, so that the home page's span can be linked to it. It lies beside the row, not
in it: rows are the same to the bit whether they are traced or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from contracts.errors import NearlineError
from contracts.events import said_private
from contracts.traceparent import HEADER, TraceParent, read_sampled
from runtime.tracing import Attributes, Tracer
from updater.pipeline import Plan, Record
from viewers.rewrite import RewriteResult
from viewers.store import Store

MAX_TRACED = 64
"""Events of a batch: whoever traces everything gets a sample all the same."""


class Traced(NamedTuple):
    """A record whose event is traced."""

    record: Record
    parent: TraceParent


class BatchTimes(NamedTuple):
    """Wall-clock milliseconds: fetched, decided, written (all viewers), accounted for."""

    fetched_ms: float
    decided_ms: float
    written_ms: float
    accounted_ms: float


def find_traced(batch: Mapping[int, Sequence[Record]]) -> list[Traced]:
    """The records of a batch that ask for spans."""
    found: list[Traced] = []
    for records in batch.values():
        for record in records:
            named = next((value for name, value in record.headers if name == HEADER), None)
            parent = None if named is None else read_sampled(named)
            if parent is not None and said_private(record.headers) is False:
                found.append(Traced(record, parent))
                if len(found) == MAX_TRACED:
                    return found
    return found


class EventTraces:
    """Tells of batches, beside the line."""

    def __init__(self, tracer: Tracer, store: Store, topic: str) -> None:
        self._tracer = tracer
        self._store = store
        self._topic = topic
        self._telling: set[asyncio.Task[None]] = set()

    def tell(
        self, traced: Sequence[Traced], decided: Plan, results: Sequence[RewriteResult], times: BatchTimes
    ) -> None:
        """What became of these records."""
        of_viewer = {job.viewer: result for job, result in zip(decided.jobs, results, strict=True)}
        dead = {(letter.record.partition, letter.record.offset) for letter in decided.dead_letters}
        rows: dict[str, str] = {}
        for record, parent in traced:
            todo = decided.partitions.get(record.partition)
            if todo is None or not todo.uncounted_from <= record.offset < todo.next_offset:
                continue  # told before a rewind, or not ours any more
            result = of_viewer.get((record.key or b"").decode("ascii", "replace"))
            is_dead = (record.partition, record.offset) in dead
            if result is None and not is_dead:
                continue  # private after all: nothing is told
            decision = "dead" if is_dead or result is None else result.outcome.value
            span = self._tell(record, parent, None if is_dead else result, decision, times)
            if not is_dead and result is not None and result.row_id:
                rows[result.row_id] = str(span)
        if rows:
            task = asyncio.get_running_loop().create_task(self._name(rows))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    def _tell(
        self, record: Record, parent: TraceParent, result: RewriteResult | None, decision: str, times: BatchTimes
    ) -> TraceParent:
        attributes: Attributes = {
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.destination.name": self._topic,
            "messaging.destination.partition.id": str(record.partition),
            "messaging.kafka.offset": record.offset,
            "nearline.decision": decision,
        }
        if result is not None and result.row_id:
            attributes = {**attributes, "nearline.row_id": result.row_id}
        span = self._tracer.tell(
            f"process {self._topic}", times.fetched_ms, times.accounted_ms, attributes,
            parent=parent, link=parent, kind="CONSUMER", failed=decision == "dead",
        )  # fmt: skip
        steps = [("decide", times.fetched_ms, times.decided_ms)]
        if result is not None and result.timing is not None:
            timing = result.timing
            steps += [
                ("read", times.decided_ms, timing.computed_at_ms),
                ("rewrite", timing.computed_at_ms, timing.rewritten_at_ms),
                ("write", timing.rewritten_at_ms, timing.written_at_ms),
            ]
        steps.append(("commit", times.written_ms, times.accounted_ms))
        for name, start_ms, end_ms in steps:
            self._tracer.tell(name, start_ms, end_ms, {}, parent=span)
        return span

    async def _name(self, rows: Mapping[str, str]) -> None:
        try:
            await self._store.write_traces(rows)
        except NearlineError:
            return  # the store's own troubles are told by whoever depends on it
