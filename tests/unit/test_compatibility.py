"""docs/compatibility.md says what was recorded, and what is claimed elsewhere is in it."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from tests.compatibility import PAGE, count, read_runs, render

ROOT = Path(__file__).parents[2]
JUNIT = '<testsuites><testsuite tests="9" failures="1" errors="1" skipped="2"></testsuite></testsuites>'


def test_a_run_is_told_as_it_was_recorded(tmp_path: Path) -> None:
    assert count(JUNIT) == {"passed": 5, "failed": 2, "skipped": 2}
    facts = {
        "python": "3.13.0",
        "server": "Redis 7.0.15",
        "paths": "tests/contract",
        "date": "2026-11-21",
        "packages": "numpy 2",
    }
    for python, name in (("3.13", "redis"), ("3.9", "unit")):
        folder = tmp_path / python
        folder.mkdir()
        (folder / f"{name}.json").write_text(json.dumps(facts | {"python": python}))
        (folder / f"{name}.xml").write_text(JUNIT)
    (tmp_path / "3.13" / "valkey.json").write_text(json.dumps(facts))  # a run that left no results
    runs = read_runs(tmp_path)
    assert [(run.python, run.name, run.failed) for run in runs] == [("3.9", "unit", 2), ("3.13", "redis", 2)]
    assert "| 3.13 | Redis 7.0.15 | `tests/contract` | 5 | 2 | 2 | 2026-11-21 |" in render(runs)


def test_only_what_was_seen_to_pass_is_claimed() -> None:
    claimed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    lines = re.findall(r"^\| (3\.\d+)\.\d+ \|.*\| ([\d,]+) \| [\d,]+ \| [-\d]+ \|$", PAGE.read_text(), re.MULTILINE)
    assert lines
    failing = {python for python, failed in lines if failed != "0"}
    assert {one.rpartition(" ")[2] for one in claimed} <= {python for python, _ in lines} - failing
