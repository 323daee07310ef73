"""Faults of two dozen classes on real servers and real processes. Each run draws anew; the seed that it prints draws the same again.

More of them: `nearline chaos --faults 1000 --seed 1 --json`.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

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


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "bug", ["no compare-and-set", "marker before the hashes", "start at the committed offset", "damage accepted"]
)
async def test_the_harness_sees_an_updater_that_breaks_the_rules(
    tmp_path: Path, bug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_own_servers()
    monkeypatch.setenv("CHAOS_BUG", bug)
    fault = {
        "no compare-and-set": "frozen_past_session",
        "marker before the hashes": "killed_between_effects",
        "start at the committed offset": "store_from_older_copy",
        "damage accepted": "generation_corrupt",
    }[bug]
    for seed in range(3):
        options = Options(6, seed, only=(fault,), folder=tmp_path / f"chaos-{seed}", rate=400)
        report = await Run(options, lambda line: None).run()
        if not report.ok:
            return
    pytest.fail(f"{bug}: nothing was seen in {3 * 6} faults")
