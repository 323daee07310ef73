"""What a plan is computed from: measured figures out of `bench/results/`, each named with where and when it was seen."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report import RESULTS
from contracts.errors import UserError

GIVEN = "given"


@dataclass(frozen=True, slots=True)
class Constant:
    """One measured number. `source`: `benchmark, date (case)`, or `given`."""

    value: float
    unit: str
    source: str


@dataclass(frozen=True, slots=True)
class Constants:
    """What one event, viewer, request or play costs. Processor time is that of one core of the machine measured on."""

    updater_us: Constant
    store_us: Constant
    request_us: Constant
    rebuild_us: Constant
    train_us: Constant
    viewer_bytes: Constant
    record_bytes: Constant
    lake_bytes: Constant


UNITS = {
    "updater_us": "µs of updater an event",
    "store_us": "µs of store an event",
    "request_us": "µs of service and store a home page",
    "rebuild_us": "µs a viewer of the nightly rebuild",
    "train_us": "µs a viewer and title played, one round of training",
    "viewer_bytes": "bytes of store memory a viewer",
    "record_bytes": "bytes of broker disk an event, one copy",
    "lake_bytes": "bytes of lake an event",
}


def read_constants(
    *, catalogue: float, history: float, given: Mapping[str, float], folder: Path = RESULTS
) -> Constants:
    """The newest figures for a catalogue size and a number of plays a viewer; `given` ones win.

    Costs between two measured sizes are interpolated (straight lines over the logarithm of the size), beyond the ends the nearest
    holds, which its source then says. Errors: `UserError` for a figure that was neither measured nor given.
    """
    results = _Results(folder)

    def constant(name: str, benchmark: str, read: Any) -> Constant:
        if name in given:
            return Constant(given[name], UNITS[name], GIVEN)
        value, case = read(results.figures(name, benchmark))
        return Constant(value, UNITS[name], f"{benchmark}, {results.date(benchmark)}{case}")

    def event_cost(part: str) -> Any:
        def read(figures: Mapping[str, Any]) -> tuple[float, str]:
            growth = figures["cost_growth"]
            at_size, case = interpolate(_curve(growth["catalogue"], part), catalogue, "titles")
            by_history = _curve(growth["history"], part)
            at_history, more = interpolate(by_history, history, "plays")
            return at_size * at_history / by_history[float(growth["base"]["history"])], case + more

        return read

    def memory(figures: Mapping[str, Any]) -> tuple[float, str]:
        return interpolate(_curve(figures["cost_growth"]["history"], "store_bytes"), history, "plays")

    def plain(*path: str) -> Any:
        def read(figures: Any) -> tuple[float, str]:
            for key in path:
                figures = figures[key]
            return float(figures), ""

        return read

    return Constants(
        constant("updater_us", "cost_growth", event_cost("updater_us")),
        constant("store_us", "cost_growth", event_cost("store_us")),
        constant("request_us", "homepage", plain("homepage", "core_us")),
        constant("rebuild_us", "rebuild", plain("rebuild", "core_us")),
        constant("train_us", "train", plain("train", "core_us_per_interaction_iteration")),
        constant("viewer_bytes", "cost_growth", memory),
        constant("record_bytes", "footprint", plain("footprint", "record_bytes")),
        constant("lake_bytes", "footprint", plain("footprint", "lake_bytes")),
    )


def interpolate(curve: Mapping[float, float], at: float, unit: str) -> tuple[float, str]:
    """The value of a measured curve at a size, and ` (…)` if that lies beyond what was measured."""
    sizes = sorted(curve)
    low, high = sizes[0], sizes[-1]
    if at <= low or at >= high:
        end = low if at <= low else high
        return curve[end], "" if at == end else f" (measured at {end:,.0f} {unit})"
    right = next(size for size in sizes if size >= at)
    left = sizes[sizes.index(right) - 1]
    share = (math.log(at) - math.log(left)) / (math.log(right) - math.log(left))
    return curve[left] + share * (curve[right] - curve[left]), ""


def _curve(figures: Mapping[str, Mapping[str, float]], part: str) -> dict[float, float]:
    return {float(size): float(costs[part]) for size, costs in figures.items() if part in costs}


class _Results:
    """The newest result of each benchmark in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, Mapping[str, Any]] = {}

    def figures(self, name: str, benchmark: str) -> Mapping[str, Any]:
        """Errors: `UserError` if there is none."""
        found = sorted(self._folder.glob(f"*Z-{benchmark}.json"))
        if not found:
            raise UserError(
                f"{self._folder}: no result of the benchmark {benchmark}, which measures {name} ({UNITS[name]}): "
                f"run ./run bench {benchmark}, or give --{name.replace('_', '-')}"
            )
        try:
            self._read[benchmark] = json.loads(found[-1].read_text())
            figures: Mapping[str, Any] = self._read[benchmark]["figures"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{found[-1]}: not a result ({error!r}): run ./run bench {benchmark} again") from error
        return figures

    def date(self, benchmark: str) -> str:
        return str(self._read[benchmark].get("date", "without a date"))[:10]
