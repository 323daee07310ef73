"""The aggregator: reads the log from the cut-off of the generation in force, counts, and publishes what it has counted. During a share the
process has a second one, for the candidate: both arms have trends of now.

One process counts at a time, all partitions; others stand by, and the first that finds its lease run out goes on. (Whoever decodes records
alone is far ahead of those who fold them in, so sharing partitions would buy nothing, and one process need not read others' counts to
add them up.) The lease only spares work. What guards the counts is the checkpoint: counts, next offset and the plays remembered move in
one write, where the stored offset is the expected one.

While it holds the lease, in this order (1 and 2: `counting.py`; 3 and 4: `publishing.py`; the lease: `process.py`; here: which generation
is counted for, and what happens when something fails):

1. read records, count them                   nothing is left behind
2. checkpoint what has changed                a crash before it: read again from the last one, counted once all the same
3. snapshot, then the pointer to it           a crash before it: the next publisher's snapshot holds these counts too
   (before it: vectors of new items            as they are read anew)
4. default rows                               a crash before it: the next ones follow within a minute

One answer to every fault: take up again what the store holds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from contracts.codec import Codec
from contracts.current import Current
from contracts.errors import GenerationError, StoreChanged, TransientError, UnknownSchema
from embeddings.generations_folder import GenerationsFolder
from runtime.again import Again
from runtime.kafka import make_consumer, require_partitions
from runtime.schemas import Schemas
from runtime.settings import Settings
from runtime.tasks import pause, stop_client
from trends.base import Base, load_base
from trends.counting import Counting, forget_who_watched
from trends.process import LOOK_EVERY_S, Figures, Process, wall_ms
from viewers.store import Store

log = structlog.get_logger()

REFUSED_AGAIN_LOOKS = 15
"""A generation that was refused is tried again: its files may have been out of reach, or were mended in place."""
BACKOFF_S = 1.0


class Aggregator:
    """What a process counts for one generation: the one in force, or a share's candidate. `run` ends after `stop`."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        codec: Codec,
        *,
        instance: str,
        now_ms: Callable[[], int] = wall_ms,
        schemas: Schemas | None = None,
        for_candidate: bool = False,
    ) -> None:
        """`schemas`: where `codec` is from; None: what the settings name. `for_candidate`: beside the process's other one, by its lease."""
        schemas = schemas or Schemas(settings)
        self.process = Process(settings, store, codec, schemas, instance, for_candidate, now_ms)
        self._folder = GenerationsFolder(settings.generations_path)
        self._base: Base | None = None
        self._loaded: Current | None = None  # what `_base` is of, if trends can be added to it
        self._left: Current | None = None  # no viewers are kept of generations that this one does not name
        self._refused: Again[Current] = Again(REFUSED_AGAIN_LOOKS)
        self._told = ""  # why it was
        self._stopping = asyncio.Event()

    @property
    def figures(self) -> Figures:
        """What it tells of itself."""
        return self.process.figures

    def stop(self) -> None:
        """Checkpoint what was counted, leave."""
        self._stopping.set()

    async def run(self) -> None:
        """Count until `stop`."""
        await self._until_connected()
        while not self._stopping.is_set():
            try:
                if not await self.process.takes_lease():
                    self.figures.counting, self.figures.standing_by = False, True
                    await pause(self._stopping, LOOK_EVERY_S)
                    continue
                self.figures.standing_by = False
                base = await self.process.holding(self._load)
                if base is None:
                    await self._leave_what_was_counted()
                    self.figures.counting = self.figures.counting and not self.process.for_candidate
                    await pause(self._stopping, LOOK_EVERY_S)
                    continue
                await self._count_for(base)
            except (TransientError, GenerationError) as error:  # the folder may be out of reach for a while
                log.warning("counting_again", cause=type(error).__name__, error=str(error))
                self.figures.counting = False
                await self._mend(error)
                await pause(self._stopping, BACKOFF_S)
        await self.process.close()

    def _load(self) -> Base | None:
        """What CURRENT names, if trends can be added to it; the one before where it is a bad one."""
        current: Current | None = None
        try:
            current = self._folder.read_current()
            if current is None:
                return None
            if self.process.for_candidate and current.share is None:
                self._base = self._loaded = None
            elif current != self._loaded and self._refused.is_due(current):
                generation_id = current.generations[self.process.for_candidate]
                self._base = load_base(self.process.settings, current, generation_id, self.process.codec.encode_row)
                self._loaded = current
        except GenerationError as error:  # the updaters refuse it too, and serve the one before
            if str(error) != self._told:
                log.error("generation_refused", error=str(error))
            self._refused.has_failed(current)
            self._told = str(error)
        return self._base

    async def _leave_what_was_counted(self) -> None:
        """Where the generation in force knows no trends: nothing is counted for it, and so no erasure is heard of."""
        current = None if self._base is not None or self.process.for_candidate else self._loaded
        if current is None or current == self._left:
            return
        partitions = await require_partitions(self.process.settings, self.process.settings.kafka.topic)
        await forget_who_watched(self.process, current.generations[1:], range(partitions))
        self._left = current

    async def _count_for(self, base: Base) -> None:
        """Until another generation is in force, the lease is another's, partitions were added, or `stop`."""
        consumer = await make_consumer(self.process.settings)
        try:
            counting = Counting(self.process, base, consumer)
            await counting.begin()
            self.figures.counting = True
            async with base.newcomers.following(self.process.codec, self.process.schemas):
                await counting.go_on(lambda: self.is_over(base))
        finally:
            await stop_client(consumer)

    async def is_over(self, base: Base) -> bool:
        """Whether something else is to be done than counting for this generation."""
        current = await self.process.off_loop(self._folder.current_or_none)
        is_another = current is not None and current != base.current and self._refused.is_due(current)
        if is_another and await self.process.holding(self._load) is not base:
            return True  # and not a bad one, beside which what is counted goes on
        return self._stopping.is_set() or not await self.process.takes_lease()

    async def _until_connected(self) -> None:
        while not self._stopping.is_set():
            try:
                await self.process.store.connect()
                return
            except TransientError as error:
                log.warning("waiting", error=str(error))
                await pause(self._stopping, BACKOFF_S)

    async def _mend(self, error: Exception) -> None:
        if isinstance(error, StoreChanged):
            with contextlib.suppress(TransientError):
                await self.process.store.connect()
        elif isinstance(error, UnknownSchema):
            self.process.codec = await self.process.off_loop(self.process.schemas.learn, self.process.codec, error)
