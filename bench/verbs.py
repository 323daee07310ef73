"""The verb `plan`. What it calls is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.console import Json, print_json


def _option(what: str) -> Any:
    return typer.Option(help=what)


_CONSTANT = "in place of the measured one: "


def plan(  # one option, one argument: the same names as `bench.plan.Demand`
    viewers: Annotated[float, _option("viewers (profiles) with a state, e.g. 200e6")],
    events_per_day: Annotated[float, _option("playback events a day, e.g. 4e9")],
    requests_per_day: Annotated[float | None, _option("home pages a day (default: as many as events)")] = None,
    catalogue: Annotated[float, _option("titles")] = 20_000,
    history: Annotated[float, _option("plays kept of a viewer, on average")] = 50,
    peak_factor: Annotated[float, _option("the busiest minute, in means of the day")] = 2.5,
    utilisation: Annotated[float, _option("share of a core that the peak may use")] = 0.6,
    outage_h: Annotated[float, _option("an outage that must be caught up, hours")] = 1.0,
    catch_up_h: Annotated[float, _option("… within so many hours, at the peak")] = 2.0,
    shard_gib: Annotated[float, _option("memory of a store shard for data, GiB")] = 64.0,
    store_copies: Annotated[float, _option("copies of the store: primary and replicas")] = 2,
    kafka_days: Annotated[float, _option("retention of the topic, days")] = 7,
    kafka_copies: Annotated[float, _option("replication factor of the topic")] = 3,
    lake_days: Annotated[float, _option("days that the lake keeps")] = 400,
    night_h: Annotated[float, _option("hours for training and the rebuild, half each")] = 4.0,
    train_iterations: Annotated[float, _option("rounds of training")] = 12,
    train_titles: Annotated[float, _option("titles a viewer has played, as trained on")] = 50,
    burst: Annotated[float, _option("a popular creator's burst in the simulated day, in means of the day")] = 1.0,
    updater_us: Annotated[float | None, _option(_CONSTANT + "µs of updater an event")] = None,
    store_us: Annotated[float | None, _option(_CONSTANT + "µs of store an event")] = None,
    request_us: Annotated[float | None, _option(_CONSTANT + "µs a home page")] = None,
    rebuild_us: Annotated[float | None, _option(_CONSTANT + "µs a viewer of the rebuild")] = None,
    train_us: Annotated[float | None, _option(_CONSTANT + "µs a viewer and title, one round of training")] = None,
    viewer_bytes: Annotated[float | None, _option(_CONSTANT + "bytes of store memory a viewer")] = None,
    record_bytes: Annotated[float | None, _option(_CONSTANT + "bytes of broker disk an event")] = None,
    lake_bytes: Annotated[float | None, _option(_CONSTANT + "bytes of lake an event")] = None,
    results: Annotated[Path | None, _option("folder of benchmark results (default: those that come with this)")] = None,
    json_output: Json = False,
) -> None:
    """Compute from measured costs what a service of a given size needs, and how far behind it falls on a bad day.

    Example: nearline plan --viewers 200e6 --events-per-day 4e9 --catalogue 20000 --history 50
    """
    arguments = dict(locals())
    from bench.constants import UNITS, read_constants
    from bench.plan import Demand, check_demand
    from bench.plan_report import make_report, render
    from bench.report import RESULTS

    arguments["requests_per_day"] = events_per_day if requests_per_day is None else requests_per_day
    demand = Demand(**{name: float(arguments[name]) for name in Demand.__slots__})
    check_demand(demand)
    given = {name: arguments[name] for name in UNITS if arguments[name] is not None}
    constants = read_constants(catalogue=catalogue, history=history, given=given, folder=results or RESULTS)
    report = make_report(demand, constants)
    if json_output:
        print_json(report.to_json())
    else:
        render(report)
