"""The one function that rewrites a viewer, called by the updater for every event and by the nightly rebuild for everyone.

    read (state, token) → merge facts → unchanged? nothing to do → fold in, rank, encode → compare-and-set
                ↑                                                                              │
                └────────────────────── somebody else wrote: merge into theirs ────────────────┘

Merging is a join and the write is a compare-and-set, so zombies, rebalances, late scripts and the nightly rebuild may all
run at once: the last write to hold always contains everybody's facts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol, TypeVar

from contracts.digests import id_digest
from contracts.errors import FreezeChanged, StaleActivation, StoreUnavailable
from contracts.shares import Share
from viewers import packing
from viewers.kernel import (
    Rewritten,
    Todo,
)
from viewers.packing import unpack
from viewers.rewriter import Rewriter
from viewers.state import EMPTY, ViewerState
from viewers.store import Conflict, FreezeDiffers, Rows, Stale, Store, StoredViewer, ViewerWrite, Written

MAX_ATTEMPTS = 20
"""Compare-and-set rounds before giving up; each lost round means that somebody else's write held."""

OTHER_FACTS = 8
"""So many viewers with plays alone take the time of one with a rating, a hide or an erasure."""

T = TypeVar("T")


class Outcome(Enum):
    """What a job did to its viewer."""

    APPLIED = "applied"
    NOOP = "noop"


class RewriteJob(NamedTuple):
    """Merge facts (none: just recompute) into a viewer. `event_time_ms`: of the newest event among them.

    `packed`: more facts, as packed states: what a batch of plays comes as.
    """

    viewer: str
    facts: ViewerState = EMPTY
    event_time_ms: int | None = None
    packed: tuple[bytes, ...] = ()

    @property
    def parts(self) -> tuple[bytes, ...]:
        """All facts, packed."""
        return self.packed if self.facts is EMPTY else (*self.packed, packing.pack(self.facts))


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall-clock milliseconds at which a row's computation began, and ended, and at which it was known to be in the store."""

    computed_at_ms: float
    rewritten_at_ms: float
    written_at_ms: float


class RewriteResult(NamedTuple):
    """`row_id` and `timing` are None for a no-op."""

    outcome: Outcome
    row_id: str | None = None
    timing: Timing | None = None


class Rewriters(Protocol):
    """Whoever's rewriter: one for everybody (`Rewriter` itself), or one by arm (`viewers/arms.py`)."""

    @property
    def activation(self) -> int:
        """Of every row that is made."""

    @property
    def keeps_rows(self) -> bool:
        """Rows are frozen: states are merged, and no row is made."""

    @property
    def in_force(self) -> Rewriter:
        """Of the generation in force: of what is nobody's own, as default rows are."""

    @property
    def share(self) -> Share | None:
        """Who is rewritten by another generation than that in force; None: nobody."""

    @property
    def held(self) -> Share | None:
        """Whose arm does not load here; None: nobody's. Another process may know it, and no other arm's row will do."""

    def arm(self, viewer: str) -> Rewriter:
        """This viewer's."""


class Worker(Protocol):
    """Where rows are computed (`runtime/worker.py`): one batch at a time."""

    async def run(self, size: int, work: Callable[..., T], *arguments: object) -> T:
        """The result of work on so many viewers."""


class Turn(Protocol):
    """A batch's place among others in flight (`updater/line.py`)."""

    async def to_compute(self) -> Mapping[str, StoredViewer]:
        """Wait until the batch before is computed: its viewers, as the store will hold them."""

    def computed(self, supposed: Mapping[str, StoredViewer]) -> None:
        """This batch is computed; its viewers, as the store will hold them."""

    async def to_write(self) -> None:
        """Wait until all effects of the batch before are done."""


async def rewrite_viewers(
    store: Store,
    jobs: Sequence[RewriteJob],
    rewriter: Rewriters,
    *,
    now_ms: Callable[[], float],
    draw_token: Callable[[], bytes],
    worker: Worker,
    turn: Turn | None = None,
    rows: Rows = Rows.ALWAYS,
) -> list[RewriteResult]:
    """Rewrite distinct viewers; results in the order of `jobs`.

    A viewer is a no-op if the facts change nothing and its row is already of this activation, and so of its arm's generation. `turn`: where
    other batches are in flight.
    `rows`: whether they may be written while they are frozen; a rewriter that keeps rows writes states, and only while they are.
    Errors: `StaleActivation` if the store holds a newer activation; `FreezeChanged`; `StoreUnavailable`, `StoreChanged`. After an error
    some viewers may be rewritten; doing the whole batch again is harmless.
    """
    results: list[RewriteResult | None] = [None] * len(jobs)
    pending = list(range(len(jobs)))
    held = rewriter.held
    stored = await store.read_viewers([job.viewer for job in jobs])
    if turn is not None and (supposed := await turn.to_compute()):
        stored = [supposed.get(job.viewer, one) for job, one in zip(jobs, stored, strict=True)]
    for _ in range(MAX_ATTEMPTS):
        computed_at_ms = now_ms()
        todo = [(jobs[i], stored[i]) for i in pending]
        computed = await worker.run(_size(todo), _compute, rewriter, todo, int(computed_at_ms))
        rewritten_at_ms = now_ms()
        writes: list[tuple[int, ViewerWrite, str]] = []
        for i, rewritten in zip(pending, computed, strict=True):
            if rewritten is None:
                results[i] = RewriteResult(Outcome.NOOP)
                continue
            stays = rewriter.keeps_rows or (held is not None and bool(stored[i].token) and held.holds(jobs[i].viewer))
            write = ViewerWrite(
                jobs[i].viewer,
                stored[i].token,
                draw_token(),
                stored[i].activation if stays else rewriter.activation,
                rewritten.state_bytes,
                rewritten.vector_bytes,
                rewritten.row_bytes,
                _kept(stored[i].state, rewritten.state_bytes) if rewriter.keeps_rows else rows,
            )
            writes.append((i, write, rewritten.row_id))
        if turn is not None:
            await _take_turn(turn, jobs, stored, [write for _, write, _ in writes])
            turn = None
        pending = []
        if not writes:
            break
        tried = [write for _, write, _ in writes]
        if held is not None:
            tried = await _with_held_rows(store, held, tried, [stored[i] for i, _, _ in writes])
        answers = await store.write_viewers(tried)
        timing = Timing(computed_at_ms, rewritten_at_ms, now_ms())
        for (i, _, row_id), answer in zip(writes, answers, strict=True):
            match answer:
                case Written():
                    results[i] = RewriteResult(Outcome.APPLIED, row_id, timing)
                case Conflict(newer):
                    stored[i] = newer
                    pending.append(i)
                case Stale(stored_activation):
                    raise StaleActivation(stored_activation)
                case FreezeDiffers():
                    raise FreezeChanged(
                        "rows were frozen, or follow the plays again, since this batch was begun: it is done again"
                    )
        if not pending:
            break
    if pending:
        raise StoreUnavailable(
            f"{len(pending)} viewers were rewritten by others {MAX_ATTEMPTS} times in a row; "
            "is a second stream writing to this namespace?"
        )
    return [result for result in results if result is not None]


def _size(todo: Sequence[tuple[RewriteJob, StoredViewer]]) -> int:
    """In viewers with plays alone. Other facts are merged by the reference, in Python: a full state takes some 4 ms instead of 0.6."""
    return sum(1 if job.facts is EMPTY else OTHER_FACTS for job, _ in todo)


def _kept(before: bytes, after: bytes) -> Rows:
    """A frozen row stays, unless its viewer was erased: it would go on telling what they watched."""
    return Rows.EMPTY if packing.erased_through_s(after) > packing.erased_through_s(before) else Rows.KEEP


async def _with_held_rows(
    store: Store, share: Share, writes: Sequence[ViewerWrite], before: Sequence[StoredViewer]
) -> list[ViewerWrite]:
    """The same writes, those of the share's viewers, whose arm does not load here, with row and vector as they are stored, read when
    nothing of the batch before is under way any more; and the compare-and-set holds only if nobody wrote since. Who was erased has none."""
    held = [
        number
        for number, (write, one) in enumerate(zip(writes, before, strict=True))
        if one.token and share.holds(write.viewer) and _kept(one.state, write.state) is Rows.KEEP
    ]
    found = await asyncio.gather(*(store.read_viewer(writes[number].viewer) for number in held))
    same = list(writes)
    for number, one in zip(held, found, strict=True):
        same[number] = writes[number]._replace(vector=one.vector, row=one.row)
    return same


async def _take_turn(
    turn: Turn, jobs: Sequence[RewriteJob], stored: Sequence[StoredViewer], writes: Sequence[ViewerWrite]
) -> None:
    """Say what is about to be written, and wait until the batch before has written all of its."""
    supposed = dict(zip([job.viewer for job in jobs], stored, strict=True))
    for write in writes:
        supposed[write.viewer] = StoredViewer(write.new_token, write.activation, write.state)
    turn.computed(supposed)
    await asyncio.sleep(0)  # the batch behind begins to compute before this one's commands are packed
    await turn.to_write()


def _compute(
    rewriter: Rewriters, todo: Sequence[tuple[RewriteJob, StoredViewer]], computed_at_ms: int
) -> list[Rewritten | None]:
    """Merge and rewrite, each by its viewer's arm; None where nothing changes."""
    of_arm: dict[Rewriter, list[int]] = {}
    batch = []
    for number, (job, stored) in enumerate(todo):
        arm = rewriter.arm(job.viewer)
        behind = not rewriter.keeps_rows and stored.activation != rewriter.activation
        if behind and stored.activation > rewriter.activation:
            raise StaleActivation(stored.activation)
        batch.append(Todo(stored.state, job.parts, behind and not arm.keeps_rows, job.event_time_ms))
        of_arm.setdefault(arm, []).append(number)
    done: list[Rewritten | None] = [None] * len(batch)
    try:
        for arm, numbers in of_arm.items():  # the kernel knows one generation a call
            rewritten = arm.rewrite_many([batch[number] for number in numbers], computed_at_ms=computed_at_ms)
            for number, one in zip(numbers, rewritten, strict=True):
                done[number] = one
    except packing.BadState:
        _name_the_bad_one(todo)
        raise
    return done


def _name_the_bad_one(todo: Sequence[tuple[RewriteJob, StoredViewer]]) -> None:
    """Raise the error again with whose state it is."""
    for job, stored in todo:
        try:
            unpack(stored.state)
        except packing.BadState as error:
            raise packing.BadState(
                f"viewer {id_digest(job.viewer):08x} (BLAKE2b of the id, 4 bytes): {error}. If a newer version wrote it, upgrade; if it is "
                "damaged, delete the viewer's key, then: nearline nightly --seed, nearline resume"
            ) from error
