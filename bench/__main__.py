"""`python -m bench [--json] [NAME…]`: run the named measurements, or all of them.

Exit status: 0 done; 1 a contender failed or its results were wrong; 2 no such benchmark, or a server cannot be had.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence

from rich.console import Console

from bench.report import Report, WrongResult, render, write_result
from contracts.errors import UserError

BENCHMARKS = {
    "fold_in": "bench.fold_in",
    "retrieval": "bench.retrieval",
    "viewer_bytes": "bench.viewer_bytes",
    "end_to_end": "bench.end_to_end",
    "live_freshness": "bench.live_freshness",
    "catch_up": "bench.catch_up",
    "cost_growth": "bench.cost_growth",
    "homepage": "bench.homepage",
    "idle": "bench.idle",
    "rebuild": "bench.rebuild",
    "train": "bench.train",
    "footprint": "bench.footprint",
}
"""Name → module with `run() -> Report`. A new benchmark is one module and one entry."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, keep; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run: {', '.join(BENCHMARKS)}")
    parser.add_argument("--json", action="store_true", help="print one line of JSON on standard output")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    console = Console(stderr=options.json)
    if unknown:
        console.print(f"bench: no benchmark {unknown[0]}; there are {', '.join(BENCHMARKS)}", markup=False)
        return 2
    figures: dict[str, object] = {}
    for name in options.names or BENCHMARKS:
        try:
            report: Report = importlib.import_module(BENCHMARKS[name]).run()
        except WrongResult as error:
            console.print(f"bench: {name}: failed: {error}", markup=False)
            return 1
        except UserError as error:
            console.print(f"bench: {name}: {error}", markup=False)
            return 2
        render(report, console)
        console.print(f"kept in bench/results/{write_result(report).name}", style="dim")
        figures.update(report.figures)
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
