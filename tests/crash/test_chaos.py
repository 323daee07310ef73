"""Faults of two dozen classes on real servers and real processes. Each run draws anew; the seed that it prints draws the same again.

More of them: `nearline chaos --faults 1000 --seed 1 --json`.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from sandbox.chaos.faults.updaters import ANY_MOMENT, MOMENTS
from sandbox.chaos.run import Options, Run

FAULTS = 24


def require_own_servers() -> None:
    """Faults need servers that may be killed."""
    if "NEARLINE_TEST_KAFKA" in os.environ or "NEARLINE_TEST_STORE" in os.environ:
        pytest.skip("the servers that were given are not ours to break")


@pytest.mark.timeout(900)
async def test_faults_of_two_dozen_classes_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    require_own_servers()
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"\nnearline chaos --faults {FAULTS} --seed {seed}")
    lines: list[str] = []
    report = await Run(Options(FAULTS, seed, folder=tmp_path / "chaos"), lines.append).run()
    told = json.dumps(report.to_json())
    assert report.ok, f"seed {seed}: {told}\n" + "\n".join(lines)
    assert (report.faults, report.events > FAULTS) == (FAULTS, True), told
    assert len(report.by_class) == FAULTS, told  # each of another class


def struck(fault: str, moment: str, count: int = 6) -> tuple[str, ...]:
    """So many faults of a class that strikes an updater, each at that moment."""
    seeds = (seed for seed in itertools.count() if random.Random(seed).choice(MOMENTS) == moment)
    return tuple(f"{fault}:{seed}" for seed in itertools.islice(seeds, count))


BUGS: dict[str, dict[str, Any]] = {
    "no compare-and-set": {"replayed": struck("frozen_past_session", "computed")},
    "marker before the hashes": {"replayed": struck("killed_between_effects", ANY_MOMENT)},
    "start at the committed offset": {"only": ("store_from_older_copy",)},
    "damage accepted": {"only": ("generation_corrupt",)},
    "plays forgotten": {"only": ("aggregator_lost",)},
}
"""Each with the faults that show it, struck at the moment at which it does harm."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", BUGS)
async def test_the_harness_sees_an_updater_that_breaks_the_rules(
    tmp_path: Path, bug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_own_servers()
    monkeypatch.setenv("CHAOS_BUG", bug)
    for seed in range(3):
        options = Options(6, seed, folder=tmp_path / f"chaos-{seed}", rate=400, **BUGS[bug])
        report = await Run(options, lambda line: None).run()
        if not report.ok:
            return
    pytest.fail(f"{bug}: nothing was seen in {3 * 6} faults")
