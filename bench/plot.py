"""`python -m bench.plot`: the main curves out of the newest results, as one SVG for the README (`docs/cost.svg`)."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from bench.report import RESULTS
from contracts.errors import UserError

OUT = Path(__file__).resolve().parent.parent / "docs" / "cost.svg"
WIDTH, HEIGHT = 300, 220
LEFT, RIGHT, TOP, BOTTOM = 48, 16, 44, 34
COLOURS = ("#0b6e99", "#c2571a")
GRID_LINES = 4

Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One small plot: the x axis is logarithmic, the y axis begins at 0."""

    title: str
    x_label: str
    curves: Mapping[str, Curve]


def draw(panels: Sequence[Panel], note: str) -> str:
    """The panels side by side, as SVG."""
    width = WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + 18}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{HEIGHT + 18}" fill="#fff"/>',
    ]
    for number, panel in enumerate(panels):
        parts += [f'<g transform="translate({number * WIDTH},0)">', *_draw_panel(panel), "</g>"]
    parts += [f'<text x="{LEFT}" y="{HEIGHT + 8}" fill="#666">{escape(note)}</text>', "</svg>"]
    return "\n".join(parts) + "\n"


def _draw_panel(panel: Panel) -> list[str]:
    points = [point for curve in panel.curves.values() for point in curve]
    sizes = sorted({x for x, _ in points})
    top = nice_ceiling(max(y for _, y in points))
    low, high = math.log(sizes[0]), math.log(sizes[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        share = (math.log(x) - low) / (high - low) if high > low else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="16" font-weight="bold" fill="#222">{escape(panel.title)}</text>']
    for line in range(GRID_LINES + 1):
        y = top * line / GRID_LINES
        _, at = place(sizes[0], y)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end" fill="#666">{y:g}</text>')
    for x in sizes:
        at, _ = place(x, 0)
        parts.append(
            f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle" fill="#666">{short(x)}</text>'
        )
    parts.append(
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end" fill="#666">{escape(panel.x_label)}</text>'
    )
    for number, (name, curve) in enumerate(panel.curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [place(x, y) for x, y in sorted(curve)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        parts.append(f'<text x="{LEFT + 90 * number}" y="32" fill="{colour}">{escape(name)}</text>')
    return parts


def nice_ceiling(value: float) -> float:
    """The next of 1, 2, 4, 8 · 10ⁿ at or above a value above 0."""
    power = 10 ** math.floor(math.log10(value))
    return float(next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value * (1 - 1e-9)))


def short(value: float) -> str:
    """`500`, `20k`, `1M`."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def panels_of(growth: Mapping[str, Any], live: Mapping[str, Any]) -> list[Panel]:
    """Cost of an event against what grows; freshness against the rate, as far as it was kept up with."""
    panels = []
    for dimension, label in (("viewers", "viewers"), ("catalogue", "titles"), ("history", "plays a viewer")):
        curves = {
            name: [(float(size), float(costs[part])) for size, costs in growth[dimension].items()]
            for name, part in (("updater", "updater_us"), ("store", "store_us"))
        }
        panels.append(Panel("core-µs an event", label, curves))
    kept_up = {rate: found for rate, found in live.items() if not found["saturated"]}
    if kept_up:
        curves = {
            name: [(float(rate), float(found[name])) for rate, found in kept_up.items()] for name in ("p50", "p99")
        }
        panels.append(Panel("ms from event to readable row", "events/s, live", curves))
    return panels


def main() -> None:
    """Write the plot. Errors: `UserError` if a result is missing."""
    results = {}
    for name in ("cost_growth", "live_freshness"):
        found = sorted(RESULTS.glob(f"*Z-{name}.json"))
        if not found:
            raise UserError(f"{RESULTS}: no result of {name}: run ./run bench {name}")
        results[name] = json.loads(found[-1].read_text())
    growth, live = results["cost_growth"], results["live_freshness"]
    machine = growth["machine"]
    note = (
        f"{machine['processor']}, {machine['cores']} cores, {growth['date'][:10]}: "
        "./run bench cost_growth live_freshness; python -m bench.plot"
    )
    OUT.write_text(draw(panels_of(growth["figures"]["cost_growth"], live["figures"]["live_freshness_ms"]), note))
    sys.stdout.write(f"{OUT}\n")


if __name__ == "__main__":
    main()
