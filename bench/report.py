"""What a benchmark found: medians and spread, as a table, as JSON, and as a dated file in `bench/results/`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("aiokafka", "fastavro", "hiredis", "implicit", "numpy", "redis", "scipy")


class WrongResult(Exception):
    """A contender was fast and wrong: the benchmark fails."""


@dataclass(frozen=True, slots=True)
class Series:
    """One measured quantity over the repetitions."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """(greatest − least) / median."""
        return (max(self.values) - min(self.values)) / self.median if self.median else 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table: who did how much of what."""

    case: str
    contender: str
    unit: str
    series: Series


@dataclass(frozen=True, slots=True)
class Report:
    """A finished benchmark. `figures`: its part of the JSON line; `details`: sizes and settings that it ran with."""

    name: str
    title: str
    lines: Sequence[Line]
    figures: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)


def interleave(
    contenders: Mapping[str, Callable[[], Mapping[str, float]]], repetitions: int
) -> dict[str, dict[str, Series]]:
    """Run every contender once per repetition, in a rotated order: contender → quantity → its values.

    Interleaved, so that a slow minute of the machine meets them all; rotated, so that nobody always runs after the same one.
    """
    names = list(contenders)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for repetition in range(repetitions):
        turn = repetition % len(names)
        for name in names[turn:] + names[:turn]:
            for quantity, value in contenders[name]().items():
                found[name].setdefault(quantity, []).append(value)
    return {
        name: {quantity: Series(tuple(values)) for quantity, values in quantities.items()}
        for name, quantities in found.items()
    }


def rounded(value: float) -> float:
    """Three significant digits: what the spread of these measurements carries."""
    return float(f"{value:.3g}")


def render(report: Report, console: Console) -> None:
    """The table for a person."""
    table = Table(title=report.title, title_justify="left", title_style="bold")
    table.add_column("case")
    table.add_column("contender")
    table.add_column("median", justify="right")
    table.add_column("unit")
    table.add_column("spread", justify="right")
    table.add_column("runs", justify="right")
    case = ""
    for line in report.lines:
        median = line.series.median
        table.add_row(
            line.case if line.case != case else "",
            line.contender,
            f"{median:,.0f}" if median >= 100 else f"{median:.3g}",
            line.unit,
            f"{line.series.spread:.0%}",
            str(len(line.series.values)),
        )
        case = line.case
    console.print(table)


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores, versions."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "versions": {"python": platform.python_version(), **versions},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def write_result(report: Report, folder: Path = RESULTS) -> Path:
    """Keep a report with its date, machine and versions, every single value included; returns the file."""
    now = datetime.now(UTC)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{now:%Y-%m-%dT%H%M%SZ}-{report.name}.json"
    content = {
        "benchmark": report.name,
        "date": now.isoformat(timespec="seconds"),
        "machine": machine(),
        "details": dict(report.details),
        "figures": dict(report.figures),
        "lines": [
            {
                "case": line.case,
                "contender": line.contender,
                "unit": line.unit,
                "median": rounded(line.series.median),
                "values": [rounded(value) for value in line.series.values],
            }
            for line in report.lines
        ],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path
