"""Plots as inline SVG, coloured by the page's own variables, so that they follow its light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

Interval = Sequence[float]
"""(value, low, high)."""

WIDTH, ROW, LEFT, RIGHT, TOP = 640, 24, 190, 70, 26
PLOT_HEIGHT, BOTTOM = 220, 34
GRID_LINES = 4


def intervals(rows: Sequence[tuple[str, int, Interval]], title: str) -> str:
    """Dots with their 95 % intervals, one line each. `rows`: (label, which colour, interval). The axis holds 0 and everything."""
    low = min(0.0, *(one[1] for _, _, one in rows))
    high = max(1e-9, *(one[2] for _, _, one in rows))
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return LEFT + (value - low) / span * (WIDTH - LEFT - RIGHT)

    height = TOP + ROW * len(rows) + 8
    parts = [f'<path class="zero" d="M{place(0):.1f} {TOP - 6}V{height - 4}"/>']
    for number, (label, colour, (value, from_, to)) in enumerate(rows):
        y = TOP + ROW * number + ROW / 2
        parts += [
            f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(label)}</text>',
            f'<path class="c{colour} whisker" d="M{place(from_):.1f} {y}H{place(to):.1f}"/>',
            f'<circle class="c{colour} dot" cx="{place(value):.1f}" cy="{y}" r="4.5"/>',
            f'<text class="value" x="{WIDTH - RIGHT + 10}" y="{y + 4}">{value:.3f}</text>',
        ]
    return _svg(WIDTH, height, title, parts)


def lines(series: Mapping[str, Sequence[Interval]], ticks: Sequence[str], title: str) -> str:
    """Lines over the same ticks with their intervals as bands; at least one tick."""
    low = min(0.0, *(one[1] for points in series.values() for one in points))
    high = max(1e-9, *(one[2] for points in series.values() for one in points))
    span = (high - low) or 1.0
    left, right = 56, 20

    def place(tick: int, value: float) -> tuple[float, float]:
        share = tick / (len(ticks) - 1) if len(ticks) > 1 else 0.5
        x = left + 16 + share * (WIDTH - left - right - 32)
        return x, PLOT_HEIGHT - BOTTOM - (value - low) / span * (PLOT_HEIGHT - BOTTOM - TOP)

    parts = []
    for line in range(GRID_LINES + 1):
        value = low + span * line / GRID_LINES
        y = place(0, value)[1]
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{WIDTH - right}"/>')
        parts.append(f'<text class="axis" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.3f}</text>')
    for number, tick in enumerate(ticks):
        x = place(number, low)[0]
        parts.append(
            f'<text class="axis" x="{x:.1f}" y="{PLOT_HEIGHT - 12}" text-anchor="middle">{escape(tick)}</text>'
        )
    for colour, (name, points) in enumerate(series.items()):
        upper = [place(number, one[2]) for number, one in enumerate(points)]
        lower = [place(number, one[1]) for number, one in enumerate(points)]
        path = [place(number, one[0]) for number, one in enumerate(points)]
        if len(points) > 1:
            parts.append(f'<polygon class="c{colour} band" points="{_points([*upper, *lower[::-1]])}"/>')
            parts.append(f'<polyline class="c{colour} line" points="{_points(path)}"/>')
        else:
            parts.append(
                f'<path class="c{colour} whisker" d="M{upper[0][0]:.1f} {upper[0][1]:.1f}V{lower[0][1]:.1f}"/>'
            )
        parts += [f'<circle class="c{colour} dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in path]
        parts.append(f'<text class="c{colour} name" x="{left + 150 * colour}" y="14">{escape(name)}</text>')
    return _svg(WIDTH, PLOT_HEIGHT, title, parts)


def shares(rows: Mapping[str, Sequence[float]], names: Sequence[str], title: str) -> str:
    """Stacked bars that each sum to 1."""
    height = TOP + (ROW + 6) * len(rows) + 8
    parts = [
        f'<text class="c{colour} name" x="{LEFT + 150 * colour}" y="14">{escape(name)}</text>'
        for colour, name in enumerate(names)
    ]
    for number, (label, values) in enumerate(rows.items()):
        x, y = float(LEFT), TOP + (ROW + 6) * number
        parts.append(f'<text x="{LEFT - 10}" y="{y + 17}" text-anchor="end">{escape(label)}</text>')
        for colour, value in enumerate(values):
            width = value * (WIDTH - LEFT - 10)
            parts.append(
                f'<rect class="c{colour} bar" x="{x:.1f}" y="{y + 2}" width="{width:.1f}" height="{ROW - 2}"/>'
            )
            if value >= 0.06:
                parts.append(f'<text class="inside" x="{x + 6:.1f}" y="{y + 17}">{value:.0%}</text>')
            x += width
    return _svg(WIDTH, height, title, parts)


def _points(path: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in path)


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<div class="scroll" tabindex="0"><svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg></div>"
    )
