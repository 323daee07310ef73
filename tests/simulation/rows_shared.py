"""Histories in which a share of the viewers sees a candidate: it begins, is changed and ends, nights replace what is in force meanwhile,
rows are frozen and let go, amid everything else that may happen.

What is checked besides `invariants.py` and `rows_frozen.py`: every row, at every write and at rest, is of the generation that its
activation gives its viewer. Who belongs to a share is worked out here once more, from what CURRENT said under that activation.

    python -m tests.simulation.rows_shared --histories 1000
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import viewers.rewrite
from contracts.current import Current
from contracts.errors import StaleActivation
from contracts.shares import Share
from tests.simulation import special
from tests.simulation.actors import RebuildProcess
from tests.simulation.model_kafka import KafkaModel
from tests.simulation.model_store import Cluster
from tests.simulation.rows_frozen import FrozenChecker, FrozenWorld
from tests.simulation.run import History, run_history
from tests.simulation.special import Patches
from updater.swap import Swap
from viewers.arms import Arms
from viewers.rewrite import RewriteJob, Rewriters
from viewers.rewriter import Rewriter
from viewers.state import Limits
from viewers.store import StoredViewer

ALWAYS = {"share": 4, "stop_share": 2, "night": 2, "activate": 1, "hold_rows": 1, "let_go": 1}
GENERATIONS = ("g1", "g2", "g3")
PERCENTS = (20, 50, 80)


class SharedChecker(FrozenChecker):
    """Knows who had to see what under each activation. `shares`: activation → (candidate, percent)."""

    def __init__(self, kafka: KafkaModel, cluster: Cluster, limits: Limits) -> None:
        super().__init__(kafka, cluster, limits)
        self.shares: dict[int, tuple[str, float]] = {}

    def generation_for(self, viewer: str, activation: int) -> str:
        candidate, percent = self.shares.get(activation, ("", 0))
        digest = hashlib.blake2b(f"{candidate}|{viewer}".encode(), digest_size=8, person=b"rollout").digest()
        in_share = int.from_bytes(digest, "big") * 100 < percent * 2**64
        return candidate if in_share else super().generation_for(viewer, activation)


class SharedWorld(FrozenWorld):
    """Somebody has a share of the viewers see a candidate. Each change is a new activation and a rebuild, as by the verbs."""

    CHECKER = SharedChecker
    checker: SharedChecker

    def put_in_force(self, current: Current) -> None:
        self.checker.shares.pop(current.activation, None)
        if current.share is not None:
            self.checker.shares[current.activation] = (current.share.generation_id, current.share.percent)
        super().put_in_force(current)

    def do_share(self) -> None:
        """A share begins, becomes larger or smaller, or is another candidate's."""
        current = self.generations.current
        if current is None:
            return
        others = [one for one in GENERATIONS if one != current.generation_id]
        share = Share(self.rng.choice(others), self.rng.choice(PERCENTS))
        self.put_in_force(replace(current, activation=self.next_activation(), share=share))
        self.do_rebuild()

    def do_stop_share(self) -> None:
        current = self.generations.current
        if current is not None and current.share is not None:
            self.put_in_force(replace(current, activation=self.next_activation(), share=None))
            self.do_rebuild()

    def do_night(self) -> None:
        """A nightly job puts another generation in force, and leaves the candidate its viewers."""
        current = self.generations.current
        if current is None or current.share is None:
            self.do_activate()
            return
        left = [one for one in GENERATIONS if one != current.share.generation_id]
        self.put_in_force(replace(current, generation_id=self.rng.choice(left), activation=self.next_activation()))
        self.do_rebuild()


def run_shared(seed: int, trace: Callable[[str], None] | None = None) -> History:
    """One history."""
    return run_history(seed, trace, world_type=SharedWorld, always=ALWAYS)


# Seeded bugs


def a_row_is_made_by_the_wrong_arm() -> Patches:
    return [(Arms, "arm", lambda self, viewer: self.in_force if self.share.holds(viewer) else self.candidate)]


def a_batch_is_rewritten_by_the_arm_of_its_first_viewer() -> Patches:
    shipped = viewers.rewrite._compute

    def compute(rewriter: Rewriters, todo: Sequence[tuple[RewriteJob, StoredViewer]], at_ms: int) -> Any:
        return shipped(rewriter.arm(todo[0][0].viewer) if todo else rewriter, todo, at_ms)

    return [(viewers.rewrite, "_compute", compute)]


def what_the_arms_made_is_strung_together_instead_of_put_back_in_order() -> Patches:
    shipped = viewers.rewrite._compute

    def compute(rewriter: Rewriters, todo: Sequence[tuple[RewriteJob, StoredViewer]], at_ms: int) -> Any:
        if any(stored.activation > rewriter.activation for _, stored in todo) and not rewriter.keeps_rows:
            raise StaleActivation(max(stored.activation for _, stored in todo))
        by_arm: dict[Rewriter, list[tuple[RewriteJob, StoredViewer]]] = {}
        for one in todo:
            by_arm.setdefault(rewriter.arm(one[0].viewer), []).append(one)
        return [made for arm, part in by_arm.items() for made in shipped(arm, part, at_ms)]

    return [(viewers.rewrite, "_compute", compute)]


def the_candidate_is_taken_up_a_poll_after_its_activation() -> Patches:
    shipped = Swap.check
    late: dict[int, Any] = {}

    async def check(self: Swap, *, patient: bool = False) -> bool:
        if id(self) in late:
            self._candidate = late.pop(id(self))
        before = self._candidate
        swapped = await shipped(self, patient=patient)
        if swapped and self._candidate is not None:
            late[id(self)], self._candidate = self._candidate, None if before is None else self._candidate
        return swapped

    return [(Swap, "check", check)]


def an_updater_keeps_the_candidate_after_the_share_ended() -> Patches:
    shipped = Swap._take_up

    def take_up(self: Swap, current: Current, rewriters: Sequence[Rewriter]) -> None:
        before = self._candidate
        shipped(self, current, rewriters)
        if self._candidate is None and before is not None:
            share, candidate = before
            candidate.swap(
                type(rewriters[0])(candidate.own.generation, current.activation, self._encode_row, self._limits)
            )
            self._candidate = (share, candidate)

    return [(Swap, "_take_up", take_up)]


def the_rebuild_knows_one_generation() -> Patches:
    shipped = RebuildProcess.rewriters
    return [(RebuildProcess, "rewriters", lambda self, current: shipped(self, current).in_force)]


def another_percentage_is_no_new_activation() -> Patches:
    def next_activation(self: SharedWorld) -> int:
        current = self.generations.current
        if current is None:
            return 1
        return current.activation + (current.share is None)

    return [(SharedWorld, "next_activation", next_activation)]


BUGS = (
    a_row_is_made_by_the_wrong_arm,
    a_batch_is_rewritten_by_the_arm_of_its_first_viewer,
    what_the_arms_made_is_strung_together_instead_of_put_back_in_order,
    the_candidate_is_taken_up_a_poll_after_its_activation,
    an_updater_keeps_the_candidate_after_the_share_ended,
    the_rebuild_knows_one_generation,
    another_percentage_is_no_new_activation,
)


if __name__ == "__main__":
    raise SystemExit(special.main(__doc__, run_shared, BUGS))
