"""Simulated histories: whatever happens to processes, Kafka and the store, afterwards every viewer's state is the oracle's.

By the reference merge, not the compiled kernel (`actors.py`).
"""

from __future__ import annotations

import contextlib
import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.simulation import rows_frozen, rows_held, rows_shared, special
from tests.simulation.actors import stand_ins
from tests.simulation.bugs import BUGS, FIRST_SEEN, find
from tests.simulation.model_kafka import Faults
from tests.simulation.run import COMMON, run_histories
from tests.simulation.special import Bug
from tests.simulation.world import ACTIONS, Shape, World

HISTORIES = 200


def test_seeded_histories_hold_every_invariant() -> None:
    for history in run_histories(1, HISTORIES):
        assert history.violation is None, f"python -m tests.simulation.run --seed {history.seed} --histories 1 --trace"


def test_seeded_histories_hold_where_little_is_worked_on_by_the_loop_itself() -> None:
    for history in run_histories(1, HISTORIES, few=16):
        again = f"python -m tests.simulation.run --few 16 --seed {history.seed} --histories 1 --trace"
        assert history.violation is None, again


def test_a_history_is_a_function_of_its_seed() -> None:
    first, second = run_histories(7, 5), run_histories(7, 5)
    assert first == second
    assert len({history.steps for history in first}) > 1


def test_a_broker_silent_while_an_updater_resumes_does_not_end_the_updater() -> None:
    with stand_ins():
        world = World(1, Shape(updaters=1))
        world.kafka.faults = Faults(hangs=1.0)
        world.advance(45.0)
        assert world.updaters[0].alive
        world.do_burst()
        world.rest()
        world.close()


@pytest.mark.parametrize("name", BUGS)
def test_a_seeded_bug_is_seen(name: str) -> None:
    found = find(name, FIRST_SEEN.get(name, 1))
    assert found is not None, f"{name}: not seen in {BUGS[name].within} histories"


SPECIAL = {
    "rows_frozen": (rows_frozen.run_frozen, rows_frozen.BUGS),
    "rows_shared": (rows_shared.run_shared, rows_shared.BUGS),
    "rows_held": (rows_held.run_held, rows_held.BUGS),
}
"""Histories of one thing amid everything else: module → its histories, and the bugs that they must see."""


@pytest.mark.parametrize("module", SPECIAL)
def test_histories_of_one_thing_amid_everything_else_hold_every_invariant(module: str) -> None:
    run, _ = SPECIAL[module]
    with stand_ins():
        for seed in range(1, HISTORIES + 1):
            again = f"python -m tests.simulation.{module} --seed {seed} --histories 1 --trace"
            assert run(seed).violation is None, again


@pytest.mark.parametrize(("module", "bug"), [(module, bug) for module, (_, bugs) in SPECIAL.items() for bug in bugs])
def test_a_seeded_bug_of_one_thing_is_seen(module: str, bug: Bug) -> None:
    run, _ = SPECIAL[module]
    assert special.find(run, bug) is not None


@pytest.mark.parametrize(
    "name", ["private_plays_are_applied", "erasures_are_not_obeyed", "the_erased_second_is_off_by_one"]
)
def test_what_must_be_unsaid_is_found_by_looking_into_the_states(name: str) -> None:
    found = find(name, FIRST_SEEN.get(name, 1))
    assert found is not None
    assert found[1].invariant == "I4"


class Histories(RuleBasedStateMachine):
    """The same actions, chosen and shrunk by Hypothesis."""

    @initialize(
        seed=st.integers(0, 1_000),
        updaters=st.integers(1, 3),
        partitions=st.integers(1, 3),
        viewers=st.integers(1, 4),
        batch_records=st.sampled_from((1, 4, 16)),
    )
    def begin(self, seed: int, updaters: int, partitions: int, viewers: int, batch_records: int) -> None:
        self.patched = contextlib.ExitStack()
        self.patched.enter_context(stand_ins())
        self.world = World(
            seed, Shape(updaters=updaters, partitions=partitions, viewers=viewers, batch_records=batch_records)
        )
        self.world.advance(0.05)

    @rule(name=st.sampled_from(list(COMMON)), times=st.integers(1, 5), seconds=st.sampled_from((0.0, 0.002, 0.02)))
    def produce(self, name: str, times: int, seconds: float) -> None:
        for _ in itertools.repeat(None, times):
            self.world.act(name)
            self.world.advance(seconds)

    @rule(name=st.sampled_from([name for name in ACTIONS if name not in COMMON]))
    def disturb(self, name: str) -> None:
        self.world.act(name)

    @rule(seconds=st.sampled_from((0.001, 0.01, 0.1, 1.0)))
    def wait(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule()
    def rest(self) -> None:
        self.world.rest()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.world.rest()
            finally:
                self.world.close()
                self.patched.close()


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=100,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
