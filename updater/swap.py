"""Taking up a new generation, or fresher trends for it, while running: made ready beside what serves, swapped between two batches."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

import structlog

from contracts.errors import GenerationError, NearlineError
from contracts.rows import HomeRow
from embeddings.compiled import is_compiled
from embeddings.files import GenerationsFolder, load_generation
from trends.follow import Follower
from viewers.rewrite import Rewriter
from viewers.state import Limits
from viewers.store import Freeze, Store

log = structlog.get_logger()

POLL_S = 1.0
FORGET_EVERY_POLLS = 60
FORGET_AFTER_MS = 10 * 60_000
"""An updater that has not reported for so long has crashed: those that live strike it off. (Nobody waits for it after 15 s.)"""

T = TypeVar("T")


class Swap:
    """Holds the rewriter in force. `check` looks at CURRENT; the loop reads `rewriter` once a batch."""

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
        self._refused: int | None = None
        self.trends = Follower()
        self._own = self.rewriter = Rewriter(None, 0, encode_row, limits)  # `_own`: with the generation's own trends
        self._keeper = Rewriter(None, 0, encode_row, limits, keeps_rows=True)
        self.freeze: Freeze | None = None
        self.created_at_s = 0.0  # when the generation in force was made, UTC seconds
        self.swaps = 0
        self.refusals = 0

    @property
    def generation_id(self) -> str:
        generation = self.rewriter.generation
        return "" if generation is None else generation.generation_id

    @property
    def serving(self) -> Rewriter:
        """What the next batch is rewritten by: while rows are frozen states are merged, and no row is made."""
        return self.rewriter if self.freeze is None else self._keeper

    @property
    def lacks_trends(self) -> bool:
        """Whether trends of now could serve, and do not. (A generation made from too few plays has none to add to.)"""
        tables = None if self._own.generation is None else self._own.generation.tables
        return tables is not None and tables.at_ms > 0 and self.trends.in_force is None

    async def check(self) -> bool:
        """Load what CURRENT names if its activation is newer. True if swapped.

        A bad generation is refused, once per activation, and the old one stays in force.
        """
        try:
            current = await self._off_loop(self._folder.read_current)
        except GenerationError as error:
            self._refuse(0, error)
            return False
        if current is None:  # a first day begins: the first batch should not wait either
            await self._prepare(self.rewriter)
        if current is None or current.activation <= self.rewriter.activation or current.activation == self._refused:
            return False
        started = time.monotonic()
        try:
            generation = self._own.generation
            if generation is None or current.generation_id != generation.generation_id:
                generation = await self._off_loop(load_generation, self._path, current.generation_id)
            self.created_at_s = await self._off_loop(self._folder.created_at_s, current.generation_id)
        except GenerationError as error:
            self._refuse(current.activation, error)
            return False
        rewriter = Rewriter(generation, current.activation, self._encode_row, self._limits)
        await self._prepare(rewriter)
        self._own = self.rewriter = rewriter
        self.trends.forget()
        self.swaps += 1
        log.info(
            "generation_swapped",
            generation_id=current.generation_id,
            activation=current.activation,
            load_s=round(time.monotonic() - started, 3),
        )
        return True

    async def follow_trends(self, store: Store) -> None:
        """Have the newest trends serve, without rewriting any row: each viewer's next one is made from them. Errors: `StoreUnavailable`."""
        own = self._own
        rewriter = await self.trends.look(store.trends, own, self._off_loop)
        if self._own is not own:  # a generation was swapped meanwhile
            self.trends.forget()
        elif rewriter is not None:
            self.rewriter = rewriter

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

    def _refuse(self, activation: int, error: GenerationError) -> None:
        if activation == self._refused:
            return
        self._refused = activation
        self.refusals += 1
        log.error(
            "generation_refused", error=str(error), in_force=self.generation_id, remedy="nearline generations rollback"
        )

    async def _off_loop(self, action: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, action, *arguments)

    async def watch(self, store: Store, now_ms: Callable[[], float]) -> None:
        """Check and report for ever; ends by cancellation."""
        for poll in itertools.count():
            try:
                await self.check()
                await self.look_at_freeze(store)
                await store.announce_activation(self.rewriter.activation)  # a store that fell back may have forgotten
                await store.report_updater(self._instance, self.rewriter.activation, int(now_ms()))
                if poll % FORGET_EVERY_POLLS == 0:
                    await forget_crashed(store, int(now_ms()))
                await self.follow_trends(store)
            except NearlineError as error:
                log.warning("generation_watch_failed", error=str(error))
            await asyncio.sleep(POLL_S)


async def forget_crashed(store: Store, now_ms: int) -> None:
    """Strike off updaters that went without a word. One that lives after all is back with its next report, a second later."""
    for instance, (_, reported_at_ms) in (await store.read_updaters()).items():
        if now_ms - reported_at_ms > FORGET_AFTER_MS:
            await store.remove_updater(instance)
