"""Taking up a new generation, or fresher trends for it, while running: made ready beside what serves, swapped between two batches."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from typing import Any, TypeVar

import structlog

from contracts.current import Current
from contracts.errors import GenerationError, NearlineError
from contracts.rows import HomeRow
from contracts.shares import Share
from embeddings.compiled import is_compiled
from embeddings.files import load_generation
from embeddings.generation import Generation
from embeddings.generations_folder import GenerationsFolder
from runtime.again import Again
from trends.follow import Follower
from viewers.arms import Arms
from viewers.rewrite import Rewriters
from viewers.rewriter import Rewriter
from viewers.state import Limits
from viewers.store import Freeze, Store

log = structlog.get_logger()

POLL_S = 1.0
REFUSED_AGAIN_POLLS = 15
"""A generation that was refused is tried again: its files may have been out of reach, or were mended in place."""
FORGET_EVERY_POLLS = 60
FORGET_AFTER_MS = 10 * 60_000
"""An updater that has not reported for so long has crashed: those that live strike it off. (Nobody waits for it after 15 s.)"""

T = TypeVar("T")


class Serving:
    """A generation as it serves. `own`: with its own trends; `rewriter`: with the newest, from `trends`."""

    def __init__(self, own: Rewriter) -> None:
        self.own = self.rewriter = own
        self.trends = Follower()

    def swap(self, own: Rewriter) -> None:
        """Another one serves from now on; or the same, under another activation."""
        self.own = self.rewriter = own
        self.trends.forget()

    @property
    def lacks_trends(self) -> bool:
        """Whether trends of now could serve, and do not. (A generation made from too few plays has none to add to.)"""
        tables = None if self.own.generation is None else self.own.generation.tables
        return tables is not None and tables.at_ms > 0 and self.trends.in_force is None

    async def follow_trends(self, store: Store, off_loop: Callable[..., Awaitable[Any]]) -> None:
        """Have the newest trends serve. Errors: `StoreUnavailable`."""
        own = self.own
        rewriter = await self.trends.look(store.trends, own, off_loop)
        if self.own is not own:  # a generation was swapped meanwhile
            self.trends.forget()
        elif rewriter is not None:
            self.rewriter = rewriter


class Swap:
    """Holds what is in force: a generation, and during a share the candidate beside it. `check` looks at CURRENT; the loop reads `serving`
    once a batch."""

    def __init__(
        self,
        generations_path: str,
        encode_row: Callable[[HomeRow], bytes],
        limits: Limits,
        executor: Executor,
        instance: str,
    ) -> None:
        self._path = generations_path
        self._folder = GenerationsFolder(generations_path)
        self._encode_row = encode_row
        self._limits = limits
        self._executor = executor
        self._instance = instance
        self._refused: Again[int] = Again(REFUSED_AGAIN_POLLS)  # an activation; 0: CURRENT itself
        self._refused_share: Share | None = None  # whose candidate was what was bad
        self._in_force = Serving(Rewriter(None, 0, encode_row, limits))
        self._candidate: tuple[Share, Serving] | None = None
        self._keeper = Rewriter(None, 0, encode_row, limits, keeps_rows=True)
        self.freeze: Freeze | None = None
        self.created_at_s = 0.0  # when the generation in force was made, UTC seconds
        self.candidate_refused: str | None = None  # why the rows of the candidate's viewers are kept as they are
        self.swaps = 0
        self.refusals = 0

    @property
    def generation_id(self) -> str:
        generation = self.rewriter.generation
        return "" if generation is None else generation.generation_id

    @property
    def rewriter(self) -> Rewriter:
        """The generation in force."""
        return self._in_force.rewriter

    @property
    def trends(self) -> Follower:
        """Those of the generation in force."""
        return self._in_force.trends

    @property
    def share(self) -> Share | None:
        """Who sees a candidate; None: nobody."""
        return None if self._candidate is None else self._candidate[0]

    @property
    def serving(self) -> Rewriters:
        """What the next batch is rewritten by: while rows are frozen states are merged, and no row is made."""
        if self.freeze is not None:
            return self._keeper
        if self._candidate is None:
            return self.rewriter
        share, candidate = self._candidate
        return Arms(self.rewriter, candidate.rewriter, share)

    @property
    def lacks_trends(self) -> bool:
        """Whether trends of now could serve some viewers, and do not."""
        return any(one.lacks_trends for one in self._all)

    @property
    def _all(self) -> Sequence[Serving]:
        return (self._in_force,) if self._candidate is None else (self._in_force, self._candidate[1])

    async def prepare_something(self) -> None:
        """Look at CURRENT for the first time: whatever comes of it, the first batch finds a kernel that is ready."""
        await self.check()
        await self._prepare(self.rewriter)

    async def check(self, *, patient: bool = False) -> bool:
        """Load what CURRENT names if its activation is newer. True if swapped.

        A bad generation is refused, told once per activation and tried again now and then, and what was in force stays. So it does where
        only the candidate is bad, as long as that serves: while `patient`. Who cannot go on without this activation, as nothing serves yet
        or viewers of it were met, takes it up all the same: whoever the generation in force is for is served by it, and the candidate's
        viewers keep the rows that they have, whatever they play, until it loads or the share ends.
        """
        try:
            current = await self._off_loop(self._folder.read_current)
        except GenerationError as error:
            self._refuse(0, error)
            return False
        if current is None:  # a first day begins: the first batch should not wait either
            await self._prepare(self.rewriter)
            return False
        is_new = current.activation > self.rewriter.activation
        again = self.candidate_refused is not None and current.activation == self.rewriter.activation
        may_keep_rows = is_new and not (patient and self.generation_id)
        at_once = may_keep_rows and self._refused.failing == current.activation and self._refused_share is not None
        if not (is_new or again) or not (at_once or self._refused.is_due(current.activation)):
            return False
        return await self._load(current, may_keep_rows)

    async def _load(self, current: Current, may_keep_rows: bool) -> bool:
        """Have this serve, if need be without its candidate; True unless it is refused."""
        started = time.monotonic()
        try:
            rewriters = [await self._rewriter_of(current.generation_id, current)]
            created_at_s = await self._off_loop(self._folder.created_at_s, current.generation_id)
        except GenerationError as error:
            self._refuse(current.activation, error)
            return False
        kept: str | None = None
        if current.share is not None:
            try:
                rewriters.append(await self._rewriter_of(current.share.generation_id, current))
            except GenerationError as error:
                self._refuse(current.activation, error, current.share)
                if not may_keep_rows:
                    return False
                kept = str(error)
                rewriters.append(Rewriter(None, current.activation, self._encode_row, self._limits, keeps_rows=True))
        for rewriter in rewriters:
            await self._prepare(rewriter)
        self._take_up(current, rewriters)
        self.created_at_s = created_at_s
        self.swaps += 1
        log.info(
            "generation_swapped",
            generation_id=current.generation_id,
            activation=current.activation,
            load_s=round(time.monotonic() - started, 3),
            **({} if current.share is None else {"share": asdict(current.share)}),
        )
        self._tell_of_candidate(current, kept)
        return True

    def _tell_of_candidate(self, current: Current, kept: str | None) -> None:
        """Once a change: its viewers' rows are kept (why), or follow their plays again."""
        before, self.candidate_refused = self.candidate_refused, kept
        if current.share is None or (before is None and kept is None):
            return
        share = asdict(current.share)
        if kept is not None:
            log.warning("candidate_rows_kept", share=share, error=kept, remedy=_mend(current.share))
        else:
            remedy = f"who played meanwhile and does not again is behind until: {_again(current.share)}"
            log.warning("candidate_rows_follow_again", share=share, remedy=remedy)

    async def _rewriter_of(self, generation_id: str, current: Current) -> Rewriter:
        """Of a generation that serves already, or that is loaded now. Errors: `GenerationError`."""
        generation: Generation | None = None
        for one in self._all:
            known = one.own.generation
            if known is not None and known.generation_id == generation_id:
                generation = known
        if generation is None:
            generation = await self._off_loop(load_generation, self._path, generation_id)
        return Rewriter(generation, current.activation, self._encode_row, self._limits)

    def _take_up(self, current: Current, rewriters: Sequence[Rewriter]) -> None:
        """All at once: no batch sees one arm of this activation and one of another."""
        self._in_force.swap(rewriters[0])
        if current.share is None:
            self._candidate = None
            return
        candidate = Serving(rewriters[1]) if self._candidate is None else self._candidate[1]
        candidate.swap(rewriters[1])
        self._candidate = (current.share, candidate)

    async def follow_trends(self, store: Store) -> None:
        """Have the newest trends serve, without rewriting any row: each viewer's next one is made from them. Errors: `StoreUnavailable`."""
        for one in self._all:
            await one.follow_trends(store, self._off_loop)

    async def keep_trends(self, store: Store) -> None:
        """Have the store hold the snapshots that rows of this process name. Errors: `StoreUnavailable`."""
        for one in self._all:
            await one.trends.keep(store.trends)

    async def look_at_freeze(self, store: Store) -> None:
        """Whether rows are frozen, as the store says. Errors: `StoreUnavailable`."""
        freeze = await store.read_freeze()
        if freeze is not None:
            await self._prepare(self._keeper)
        if freeze is not None and self.freeze is None:
            log.warning("rows_frozen", since_ms=freeze.since_ms, reason=freeze.reason, remedy="nearline unfreeze")
        elif freeze is None and self.freeze is not None:
            log.info("rows_follow_plays_again")
        self.freeze = freeze

    async def _prepare(self, rewriter: Rewriter) -> None:
        """What would otherwise hold up the first batch."""
        if rewriter.is_prepared:
            return
        if not is_compiled():
            log.info("compiling", what="the kernels of this version, once a machine", takes="less than a minute")
        await self._off_loop(rewriter.prepare)

    def _refuse(self, activation: int, error: GenerationError, share: Share | None = None) -> None:
        """`share`: it is the candidate that is bad."""
        self._refused_share = share
        if not self._refused.has_failed(activation):
            return
        self.refusals += 1
        remedy = "nearline generations rollback" if share is None else _mend(share)
        log.error("generation_refused", error=str(error), in_force=self.generation_id, remedy=remedy)

    async def _off_loop(self, action: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, action, *arguments)

    async def watch(self, store: Store, now_ms: Callable[[], float]) -> None:
        """Check and report for ever; ends by cancellation."""
        for poll in itertools.count():
            try:
                await self.check(patient=True)
                await self.look_at_freeze(store)
                await store.announce_activation(self.rewriter.activation)  # a store that fell back may have forgotten
                await store.report_updater(self._instance, self.rewriter.activation, int(now_ms()))
                if poll % FORGET_EVERY_POLLS == 0:
                    await forget_crashed(store, int(now_ms()))
                await self.follow_trends(store)
            except NearlineError as error:
                log.warning("generation_watch_failed", error=str(error))
            await asyncio.sleep(POLL_S)


def _again(share: Share) -> str:
    """The verb that rebuilds everybody, and changes nothing else."""
    return f"nearline generations share --percent {share.percent:g}"


def _mend(share: Share) -> str:
    return f"mend the candidate's files, then {_again(share)}; or nearline generations share --stop"


async def forget_crashed(store: Store, now_ms: int) -> None:
    """Strike off updaters that went without a word. One that lives after all is back with its next report, a second later."""
    for instance, (_, reported_at_ms) in (await store.read_updaters()).items():
        if now_ms - reported_at_ms > FORGET_AFTER_MS:
            await store.remove_updater(instance)
