"""Run histories: `python -m tests.simulation.run --histories 1000 --seed 1 [--json]`.

The reference merge runs here, not the compiled kernel (`actors.py`).
A failing history prints its seed; `--seed THAT --histories 1 --trace` shows what happened, step by step.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

from tests.simulation.actors import stand_ins
from tests.simulation.invariants import Violation
from tests.simulation.world import ACTIONS, Shape, World

COMMON = {"play": 30, "burst": 12, "repeat": 4, "private": 3, "poison": 2, "nothing_records": 2}
"""What producers do, by weight. Everything else is drawn from the history's own selection."""

THEMES = (
    ("activate", "seed", "rebuild", "crash", "fail_over"),
    ("activate", "seed", "rebuild", "freeze", "rebalance", "kill"),
    ("keep_copy", "fall_back", "crash", "fail_over", "flip_back"),
    ("freeze", "rebalance", "store_trouble", "kafka_trouble"),
    ("retention", "forget_commits", "crash", "stop", "kill"),
    ("commit_by_hand", "rebalance", "freeze"),
    ("add_partition", "make_anew", "seed", "rebalance", "kill", "crash"),
)
"""What goes wrong together; half of the histories draw from all faults instead."""


@dataclass(frozen=True, slots=True)
class History:
    """What came of one seed. `violation` None: everything held."""

    seed: int
    steps: int
    violation: str | None = None
    invariant: str | None = None


def run_history(
    seed: int,
    trace: Callable[[str], None] | None = None,
    *,
    world_type: type[World] = World,
    always: Mapping[str, int] = MappingProxyType({}),
) -> History:
    """One history. Which faults may happen, how often and to whom is drawn first: no history has them all.

    `always`: actions of `world_type` that every history has, by weight.
    """
    rng = random.Random(seed * 1_000_003)
    shape = Shape(
        updaters=rng.choice((1, 2, 2, 3)),
        partitions=rng.choice((1, 2, 3)),
        viewers=rng.choice((1, 2, 3, 5)),
        items=rng.choice((2, 4, 8)),
        batch_records=rng.choice((1, 2, 4, 16)),
        compute_s=rng.choice((0.0005, 0.003, 0.02)),
        store_s=rng.choice((0.001, 0.001, 0.01)),
    )
    rare = [name for name in ACTIONS if name not in COMMON]
    chosen = rng.sample(rare, rng.randint(1, 6)) if rng.random() < 0.5 else list(rng.choice(THEMES))
    weights = COMMON | {name: rng.choice((2, 5, 12)) for name in chosen} | dict(always)
    names, weight = list(weights), list(weights.values())
    pace_s = rng.choice((0.002, 0.01, 0.05))
    world = world_type(seed, shape, trace)
    try:
        world.advance(0.05)
        for _ in range(rng.choice((1, 1, 2))):
            for name in rng.choices(names, weight, k=rng.randint(20, 80)):
                world.act(name)
                world.advance(rng.random() * pace_s)
            if rng.random() < 0.3:  # the last blow falls on a stream that has nothing to do
                world.advance(1.0)
                world.act(rng.choice(chosen))
            world.rest()
    except Violation as violation:
        return History(seed, world.scheduler.steps, str(violation), violation.invariant)
    except Exception as error:
        if trace is not None:
            raise
        return History(seed, world.scheduler.steps, f"{type(error).__name__}: {error}", "crash")
    finally:
        world.close()
    return History(seed, world.scheduler.steps)


def run_histories(first_seed: int, count: int, *, keep_going: bool = True, few: int = -1) -> list[History]:
    """Histories of consecutive seeds; only up to the first violation if not `keep_going`. `few`: as `stand_ins` takes it."""
    done = []
    with stand_ins(few):
        for seed in range(first_seed, first_seed + count):
            done.append(run_history(seed))
            if done[-1].violation is not None and not keep_going:
                break
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--histories", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one object at the end")
    parser.add_argument("--few", type=int, default=-1, help="so many are worked on by the loop itself; -1: none")
    parser.add_argument("--trace", action="store_true", help="print what happens")
    asked = parser.parse_args()
    gc.freeze()
    started = time.perf_counter()
    steps, failed = 0, []
    with stand_ins(asked.few):
        for seed in range(asked.seed, asked.seed + asked.histories):
            history = run_history(seed, print if asked.trace else None)
            steps += history.steps
            if history.violation is not None:
                failed.append(history)
                print(
                    f"seed {seed}: {history.violation}\n  again: --seed {seed} --histories 1 --trace", file=sys.stderr
                )
    minutes = (time.perf_counter() - started) / 60
    report = {
        "histories": asked.histories,
        "first_seed": asked.seed,
        "steps": steps,
        "steps_per_minute": round(steps / minutes),
        "histories_per_minute": round(asked.histories / minutes),
        "violations": [asdict(history) for history in failed],
    }
    if asked.json:
        print(json.dumps(report))
    else:
        print(
            f"{asked.histories} histories, {steps:,} steps, {len(failed)} violations; "
            f"{report['steps_per_minute']:,} steps and {report['histories_per_minute']:,} histories a minute"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
