"""Histories of a share whose candidate is damaged where updaters load it from, and mended: those that have it loaded go on with it, those
that start or meet an activation of it serve the others and keep its viewers' rows.

What is checked besides `rows_shared.py`: a row that does not follow from its viewer's state is, with its activation, the one that was there
before, its viewer belongs to the share, and an erasure empties it; and once the candidate is mended and everybody rebuilt, as the log says
who should, every row follows again, at rest.

    python -m tests.simulation.rows_held --histories 1000
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import viewers.rewrite
from contracts.errors import GenerationError
from contracts.shares import Share
from tests.simulation import special
from tests.simulation.invariants import Violation
from tests.simulation.rows_shared import ALWAYS as OF_SHARES
from tests.simulation.rows_shared import SharedChecker, SharedWorld
from tests.simulation.run import History, run_history
from tests.simulation.special import Patches
from viewers.arms import Arms
from viewers.packing import erased_through_s
from viewers.rewriter import Rewriter
from viewers.store import StoredViewer, ViewerWrite

ALWAYS = OF_SHARES | {"damage": 10, "mend": 2, "kill": 6, "rebuild": 3}


class HeldChecker(SharedChecker):
    """`damaged`: since the last rest some candidate was."""

    damaged = False
    held = 0

    def _check_row(self, viewer: str, stored: StoredViewer) -> None:
        before = None if self.under_way is None else self.under_way[1]
        if self.under_way is None or not self.damaged or self.under_way[0].frozen is not None:
            super()._check_row(viewer, stored)
            return
        try:
            super()._check_row(viewer, stored)
        except Violation:
            if not self._is_held(viewer, before or StoredViewer(activation=stored.activation), stored):
                raise
            self.held += 1

    def _is_held(self, viewer: str, before: StoredViewer, stored: StoredViewer) -> bool:
        erased = erased_through_s(stored.state) > erased_through_s(before.state)
        shares = [share for activation, share in self.shares.items() if activation >= stored.activation]
        is_candidates = any(Share(*share).holds(viewer) for share in shares)
        return is_candidates and (stored.row, stored.activation) == (b"" if erased else before.row, before.activation)


class HeldWorld(SharedWorld):
    """Somebody damages the candidate's files on the updaters' disk, and mends them. Who rebuilds has a whole copy."""

    CHECKER = HeldChecker
    checker: HeldChecker

    def __init__(self, seed: int, *arguments: Any) -> None:
        self.damaged: str | None = None
        super().__init__(seed, *arguments)
        self.generations.load_here = self._load_here  # type: ignore[method-assign]

    def _load_here(self, generation_id: str) -> Any:
        current = self.generations.current
        if self.damaged == generation_id and current is not None and generation_id in current.generations[1:]:
            raise GenerationError(f"{generation_id}/item_factors.npy: truncated")
        return self.generations.load(generation_id)

    def do_damage(self) -> None:
        current = self.generations.current
        if current is None or current.share is None:
            self.do_share()
            current = self.generations.current
        if current is not None and current.share is not None:
            self.damaged, self.checker.damaged = current.share.generation_id, True

    def do_mend(self) -> None:
        self.damaged = None

    def rest(self) -> None:
        self.do_mend()
        current = self.generations.current
        if self.checker.damaged and current is not None:
            self.do_kill_nightly()
            self.put_in_force(
                replace(current, activation=self.next_activation())
            )  # share --percent, or what comes next
            self.do_rebuild()
        super().rest()
        self.checker.damaged = False


def run_held(seed: int, trace: Callable[[str], None] | None = None) -> History:
    """One history."""
    return run_history(seed, trace, world_type=HeldWorld, always=ALWAYS)


# Seeded bugs


def who_cannot_load_the_candidate_serves_its_viewers_the_other_arm() -> Patches:
    def arm(self: Arms, viewer: str) -> Rewriter:
        return self.candidate if self.share.holds(viewer) and not self.candidate.keeps_rows else self.in_force

    return [(Arms, "arm", arm), (Arms, "held", None)]


def a_row_that_cannot_be_made_is_emptied() -> Patches:
    return [(Arms, "held", None)]


def a_row_of_before_is_passed_off_as_one_of_the_activation_in_force() -> Patches:
    shipped = viewers.rewrite._with_held_rows

    async def as_of_now(store: Any, share: Share, writes: Sequence[ViewerWrite], before: Any) -> list[ViewerWrite]:
        kept = await shipped(store, share, writes, before)
        newest = max(write.activation for write in kept)
        return [write._replace(activation=newest) for write in kept]

    return [(viewers.rewrite, "_with_held_rows", as_of_now)]


def who_was_erased_keeps_the_row_that_cannot_be_made() -> Patches:
    async def kept(store: Any, share: Share, writes: Sequence[ViewerWrite], before: Any) -> list[ViewerWrite]:
        found = [await store.read_viewer(write.viewer) for write in writes]
        return [
            write._replace(vector=one.vector, row=one.row) if share.holds(write.viewer) else write
            for write, one in zip(writes, found, strict=True)
        ]

    return [(viewers.rewrite, "_with_held_rows", kept)]


def a_row_that_was_read_once_is_written_back_for_ever() -> Patches:
    shipped = viewers.rewrite._with_held_rows
    rows: dict[tuple[int, str], bytes] = {}

    async def remembered(store: Any, share: Share, writes: Sequence[ViewerWrite], before: Any) -> list[ViewerWrite]:
        kept = await shipped(store, share, writes, before)
        return [
            write._replace(row=rows.setdefault((id(store), write.viewer), write.row))
            if share.holds(write.viewer)
            else write
            for write in kept
        ]

    return [(viewers.rewrite, "_with_held_rows", remembered)]


BUGS = (
    who_cannot_load_the_candidate_serves_its_viewers_the_other_arm,
    a_row_that_cannot_be_made_is_emptied,
    a_row_of_before_is_passed_off_as_one_of_the_activation_in_force,
    who_was_erased_keeps_the_row_that_cannot_be_made,
    a_row_that_was_read_once_is_written_back_for_ever,
)


if __name__ == "__main__":
    raise SystemExit(special.main(__doc__, run_held, BUGS))
