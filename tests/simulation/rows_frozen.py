"""Histories in which somebody freezes rows and lets them go again, amid everything else that may happen.

What is checked besides `invariants.py`: while a server is frozen no play changes a row or its activation, but an erasure empties it; and
when rows have been let go, by the order of `batch/freeze.py`, every row follows from its viewer's state again, at rest.

    python -m tests.simulation.rows_frozen --histories 1000
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import updater.consumer
import viewers.rewrite
from tests.simulation import special
from tests.simulation.actors import RebuildProcess
from tests.simulation.invariants import Checker, Violation
from tests.simulation.model_store import SimServer
from tests.simulation.run import History, run_history
from tests.simulation.special import Patches
from tests.simulation.world import Shape, World
from updater.swap import Swap
from viewers.memory_store import MemoryStore
from viewers.packing import erased_through_s
from viewers.rewrite import rewrite_viewers
from viewers.store import Freeze, Rows, StoredViewer, ViewerWrite, WriteResult, Written

ALWAYS = {"hold_rows": 3, "let_go": 3, "activate": 2}


class Release(RebuildProcess):
    """`nearline unfreeze`: CURRENT has a new activation; the switch is lifted; everybody is rebuilt."""

    async def before_rebuild(self) -> None:
        await self.store.write_freeze(None)


class FrozenChecker(Checker):
    """Knows who writes because of a play, and who because somebody asked. `rebuilders`: clients of the latter."""

    rebuilders: set[int]
    under_way: tuple[SimServer, StoredViewer | None] | None = None

    def on_viewer(self, server: SimServer, viewer: str, before: StoredViewer | None, after: StoredViewer) -> None:
        self.under_way = (server, before)
        super().on_viewer(server, viewer, before, after)
        self.under_way = None

    def _check_row(self, viewer: str, stored: StoredViewer) -> None:
        if self.under_way is None or self.cluster.writer in self.rebuilders or self.under_way[0].frozen is None:
            super()._check_row(viewer, stored)
            return
        before = self.under_way[1] or StoredViewer(activation=stored.activation)
        erased = erased_through_s(stored.state) > erased_through_s(before.state)
        expected = (b"" if erased else before.row, before.activation)
        if (stored.row, stored.activation) != expected:
            raise Violation("I2", f"rows are frozen, and {viewer} has {stored} where there was {before}")


class FrozenWorld(World):
    """Somebody freezes rows, and lets them go."""

    CHECKER: type[FrozenChecker] = FrozenChecker
    checker: FrozenChecker

    def __init__(self, seed: int, shape: Shape, trace: Callable[[str], None] | None = None) -> None:
        super().__init__(seed, shape, trace)
        self.cluster.freezes = True
        self.checker = self.CHECKER(self.kafka, self.cluster, shape.limits)
        self.checker.identity_of = self._identity_of
        self.checker.rebuilders = set()
        self._held = False
        self._resting = False

    def do_hold_rows(self) -> None:
        server = self.cluster.primary
        if server.frozen is None:
            before = server.frozen
            server.frozen = Freeze(1, "seen odd rows")
            server.undo.append(("frozen", None, before))
            self._held = True

    def do_let_go(self) -> None:
        if self.generations.current is None or (self.nightly is not None and self.nightly.alive):
            return
        self.put_in_force(replace(self.generations.current, activation=self.next_activation()))
        self._numbers += 1
        self.nightly = Release(self, f"r{self._numbers}", self._numbers)
        self.checker.rebuilders.add(self.nightly.store.client)

    def do_rebuild(self) -> None:
        # A server that lost the end of its log may be frozen again: doctor and alarm say so, and somebody lets go once more.
        if self._resting and (self._held or self.cluster.primary.frozen is not None):
            self.do_kill_nightly()
            self._held = False
            self.do_let_go()
            return
        super().do_rebuild()
        assert self.nightly is not None
        self.checker.rebuilders.add(self.nightly.store.client)

    def do_seed(self) -> None:
        super().do_seed()
        if self.nightly is not None:
            self.checker.rebuilders.add(self.nightly.store.client)

    def rest(self) -> None:
        self._resting = True
        super().rest()
        self._resting = False


def run_frozen(seed: int, trace: Callable[[str], None] | None = None) -> History:
    """One history."""
    return run_history(seed, trace, world_type=FrozenWorld, always=ALWAYS)


# Seeded bugs


def updaters_write_rows_as_if_somebody_had_asked() -> Patches:
    async def always(*arguments: Any, **options: Any) -> Any:
        return await rewrite_viewers(*arguments, **(options | {"rows": Rows.ALWAYS}))

    async def never_frozen(self: Swap, store: object) -> None:
        return None

    return [(updater.consumer, "rewrite_viewers", always), (Swap, "look_at_freeze", never_frozen)]


def the_store_believes_its_writers_about_the_freeze() -> Patches:
    shipped = MemoryStore._write

    def write(self: MemoryStore, one: ViewerWrite) -> WriteResult:
        frozen, kept = self.server.frozen, one.rows in (Rows.KEEP, Rows.EMPTY)
        self.server.frozen = Freeze(1, "") if kept else None
        try:
            return shipped(self, one)
        finally:
            self.server.frozen = frozen

    return [(MemoryStore, "_write", write)]


def an_erased_viewer_keeps_their_frozen_row() -> Patches:
    return [(viewers.rewrite, "_kept", lambda before, after: Rows.KEEP)]


def a_kept_row_is_passed_off_as_one_of_the_activation_in_force() -> Patches:
    shipped = MemoryStore._write_state

    def write_state(self: MemoryStore, one: ViewerWrite, stored: StoredViewer) -> WriteResult:
        answer = shipped(self, one, stored)
        if answer == Written():
            after = self.server.viewers[one.viewer]
            self.server.viewers[one.viewer] = after._replace(activation=max(after.activation, self.server.activation))
        return answer

    return [(MemoryStore, "_write_state", write_state)]


def who_is_new_while_frozen_counts_as_rebuilt() -> Patches:
    shipped = MemoryStore._write_state

    def write_state(self: MemoryStore, one: ViewerWrite, stored: StoredViewer) -> WriteResult:
        return shipped(self, one, stored if stored.token else StoredViewer(activation=self.server.activation))

    return [(MemoryStore, "_write_state", write_state)]


def rows_are_let_go_after_the_rebuild() -> Patches:
    async def before_rebuild(self: Release) -> None:
        return None

    async def run(self: Release) -> None:
        await RebuildProcess.run(self)
        with contextlib.suppress(Exception):
            await self.store.write_freeze(None)

    return [(Release, "before_rebuild", before_rebuild), (Release, "run", run)]


BUGS = (
    updaters_write_rows_as_if_somebody_had_asked,
    the_store_believes_its_writers_about_the_freeze,
    an_erased_viewer_keeps_their_frozen_row,
    a_kept_row_is_passed_off_as_one_of_the_activation_in_force,
    who_is_new_while_frozen_counts_as_rebuilt,
    rows_are_let_go_after_the_rebuild,
)


if __name__ == "__main__":
    raise SystemExit(special.main(__doc__, run_frozen, BUGS))
