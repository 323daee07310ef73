"""A plan and its simulated day, for a person and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.constants import Constants
from bench.plan import Demand, Step, compute_plan
from bench.planned_day import BURST_HOUR, OUTAGE_HOUR, Day, add_burst, daily_rates, draw, simulate, tell_delay

LABELS = {
    "mean": "events, mean of the day",
    "peak": "events, busiest minute",
    "capacity": "events that must be managed",
    "updater_cores": "updater cores",
    "updater_processes": "updater processes",
    "partitions": "partitions of the topic",
    "store_cores": "store cores",
    "store_memory": "store memory, one copy",
    "store_shards": "store shards",
    "memory_copies": "store memory, all copies",
    "kafka_disk": "broker disk",
    "lake": "lake",
    "rebuild_cores": "rebuild, half of the night",
    "train_cores": "training, other half",
    "requests_peak": "home pages, busiest minute",
    "homepage_cores": "home-page cores",
}
ONE_STORE = "Today one Nearline writes to one store: several shards mean several streams, each with its own part of the viewers."


@dataclass(frozen=True, slots=True)
class PlanReport:
    """Everything that `nearline plan` tells."""

    demand: Demand
    constants: Constants
    steps: Mapping[str, Step]
    day: Day

    def to_json(self) -> dict[str, Any]:
        """Numbers, formulas and sources; the day by the hour, worst minute."""
        return {
            "demand": asdict(self.demand),
            "constants": asdict(self.constants),
            "plan": {
                name: {"value": step.value, "unit": step.unit, "formula": step.formula}
                for name, step in self.steps.items()
            },
            "day": {
                "greatest_lag_events": self.day.greatest_lag,
                "greatest_delay_s": self.day.greatest_delay_s,
                "outage_caught_up_hour": self.day.outage_caught_up_hour,
                "burst_delay_s": self.day.burst_delay_s,
                "lag_at_end_events": self.day.lag_at_end,
                "hours": [
                    {
                        "hour": hour,
                        "events_per_s": max(one.arriving for one in minutes),
                        "lag_events": max(one.lag for one in minutes),
                        "delay_s": max(one.delay_s for one in minutes),
                    }
                    for hour in range(24)
                    for minutes in [self.day.minutes[hour * 60 : hour * 60 + 60]]
                ],
            },
        }


def make_report(demand: Demand, constants: Constants) -> PlanReport:
    """Compute the plan, and run a day with what it provides. Errors: `UserError`."""
    steps = compute_plan(demand, constants)
    mean = steps["mean"].value
    rates = add_burst(daily_rates(mean, demand.peak_factor), mean, demand.burst)
    return PlanReport(demand, constants, steps, simulate(rates, steps["capacity"].value, outage_h=demand.outage_h))


def render(report: PlanReport) -> None:
    """Tables for a person."""
    console = Console(highlight=False)
    title = f"{report.demand.viewers:,.0f} viewers, {report.demand.events_per_day:,.0f} events a day"
    table = Table(title=title, title_justify="left", title_style="bold")
    for column, justify in (("", "left"), ("needed", "right"), ("unit", "left"), ("how", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for name, step in report.steps.items():
        table.add_row(LABELS[name], tell_number(step.value), step.unit, step.formula)
    console.print(table)
    sources = Table(title="Computed from", title_justify="left", title_style="bold")
    for column in ("constant", "value", "unit", "source"):
        sources.add_column(column, justify="right" if column == "value" else "left")
    for name in Constants.__slots__:
        constant = getattr(report.constants, name)
        sources.add_row("--" + name.replace("_", "-"), tell_number(constant.value), constant.unit, constant.source)
    console.print(sources)
    _render_day(report, console)
    if report.steps["store_shards"].value > 1:
        console.print(ONE_STORE, markup=False)


def _render_day(report: PlanReport, console: Console) -> None:
    """The day as a bar an hour, and what it comes to."""
    capacity, day = report.steps["capacity"].value, report.day
    table = Table(
        title=f"A bad day with {capacity:,.0f} events/s: outage of {report.demand.outage_h:g} h at {OUTAGE_HOUR:g}:00, "
        f"burst of {report.demand.burst:g} × the mean at {BURST_HOUR:g}:00 (worst minute of each hour)",
        title_justify="left",
        title_style="bold",
    )
    for column, justify in (("hour", "left"), ("events/s", "right"), ("rows behind", "right"), ("of capacity", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for line in draw(day, capacity):
        table.add_row(*line)
    console.print(table)
    if report.demand.outage_h > 0:
        at = day.outage_caught_up_hour
        told = "not caught up that day" if at is None else f"caught up at {int(at)}:{round(at % 1 * 60):02d}"
        console.print(f"Outage: at worst {day.greatest_lag:,.0f} events behind; {told}.", markup=False)
    console.print(f"Evening and burst: at worst {tell_delay(day.burst_delay_s)} behind.", markup=False)


def tell_number(value: float) -> str:
    """`0.031`, `4.2`, `138`, `115,741`."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2g}" if value < 10 else f"{value:.1f}"
