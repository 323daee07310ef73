"""The verbs of the sandbox: `demo`, `import`, `replay`, `chaos`. What they call is imported when they run."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Annotated, Any

import typer

from contracts.errors import UserError
from runtime.console import Json, print_json, read_settings

import_app = typer.Typer(no_args_is_help=True, help="Bring a data set into the layout that replay and evaluate read.")


def demo(
    run_for_s: Annotated[
        float | None, typer.Option("--for", help="stop by itself after this many seconds of live events")
    ] = None,
    json_output: Json = False,
    rate: Annotated[float, typer.Option(help="live events per second")] = 100.0,
    seed: Annotated[int, typer.Option(help="seed of the simulated service")] = 7,
    port: Annotated[int, typer.Option(help="port of the live page (0: a free one)")] = 8800,
) -> None:
    """Start everything on this machine: Kafka, Valkey, a simulated streaming service, the nightly job, live updates, a page.

    Exit status: 1 unless every event is accounted for.

    Example: nearline demo --for 30 --json
    """
    from sandbox.demo import DemoOptions, run_demo

    raise SystemExit(run_demo(DemoOptions(run_for_s, json_output, rate, seed, port)))


def replay(
    path: Annotated[Path, typer.Argument(help="folder with events.parquet and items.parquet (see `nearline import`)")],
    speed: Annotated[str, typer.Option(help="`max`, or how many times faster than it happened")] = "max",
    json_output: Json = False,
) -> None:
    """Send a data set in time order through the real topic.

    Example: nearline replay data/ml-1m --speed max
    """
    from sandbox.datasets import to_events
    from sandbox.importers import read_events
    from sandbox.replay import replay as send

    factor = None if speed == "max" else _positive(speed)
    dataset = read_events(path)
    report = asyncio.run(send(read_settings(), to_events(dataset), speed=factor, items=dataset.items))
    if json_output:
        print_json(report)
    else:
        typer.echo(report.summary())


def chaos(
    faults: Annotated[int, typer.Option(help="how many faults")] = 24,
    seed: Annotated[int | None, typer.Option(help="seed of everything that is drawn (default: a fresh one)")] = None,
    run_for: Annotated[
        str | None, typer.Option("--for", help="instead: this long (20m, 90s, 1h), watching memory and open files")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="only this class (may be repeated)")] = None,
    fault: Annotated[
        list[str] | None, typer.Option(help="exactly this one, as faults.jsonl has it: name:seed (may be repeated)")
    ] = None,
    rate: Annotated[float, typer.Option(help="live events per second")] = 120.0,
    folder: Annotated[Path | None, typer.Option(help="where everything is kept (default: a temporary folder)")] = None,
    list_classes: Annotated[bool, typer.Option("--list", help="the classes of faults, and nothing else")] = False,
    json_output: Json = False,
) -> None:
    """Break a real Kafka, a real store and real updaters under a live stream, and prove that no play was lost or counted twice.

    Exit status: 1 unless nothing was lost, doubled, wrong, leaked or unaccounted.

    Example: nearline chaos --faults 24 --seed 7 --json
    """
    from sandbox.chaos.faults import ALL
    from sandbox.chaos.run import Options, run_chaos

    if list_classes:
        for one in ALL:
            typer.echo(f"{one.name:<26} {(one.action.__doc__ or '').splitlines()[0]}")
        return
    options = Options(
        faults=_at_least_one(faults),
        seed=random.SystemRandom().randrange(1 << 32) if seed is None else seed,
        for_s=None if run_for is None else _seconds(run_for),
        only=tuple(only or ()),
        replayed=tuple(fault or ()),
        rate=rate,
        folder=folder,
    )
    report = run_chaos(options)
    if json_output:
        print_json(report.to_json())
    else:
        typer.echo(report.summary())
    raise SystemExit(0 if report.ok else 1)


def _at_least_one(count: int) -> int:
    if count < 1:
        raise UserError(f"--faults {count}: at least 1")
    return count


def _seconds(text: str) -> float:
    """`20m`, `90s`, `1.5h`, `90`."""
    factor = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:], 0.0)
    try:
        value = float(text[:-1]) * factor if factor else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"--for {text}: a time such as 20m, 90s or 1h")
    return value


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise UserError(f"--speed {text}: give `max` or a number above 0")
    return value


@import_app.command("movielens")
def import_movielens(
    path: Annotated[Path, typer.Argument(help="an unpacked MovieLens folder (100K, 1M, 10M, 20M or later, latest)")],
    out: Annotated[Path, typer.Option("--out", help="folder to write events.parquet and items.parquet to")],
    json_output: Json = False,
) -> None:
    """Read a MovieLens folder; bad lines are counted and shown.

    Example: nearline import movielens ml-1m --out data/ml-1m
    """
    from sandbox.importers import read_movielens

    _write_dataset(read_movielens(path), out, json_output)


@import_app.command("events")
def import_events(
    path: Annotated[Path, typer.Argument(help="a folder with events.parquet (or .csv) and items, or one such file")],
    out: Annotated[Path, typer.Option("--out", help="folder to write events.parquet and items.parquet to")],
    items: Annotated[Path | None, typer.Option(help="table of titles: item_id, title, genres or topics")] = None,
    user: Annotated[str, typer.Option(help="column of the viewer's id")] = "user_id",
    item: Annotated[str, typer.Option(help="column of the item's id")] = "item_id",
    when: Annotated[str, typer.Option("--time", help="column of the time, ms since 1970 UTC")] = "timestamp",
    value: Annotated[str, typer.Option(help="column of the rating, if there is one")] = "value",
    ratings: Annotated[
        bool, typer.Option("--ratings", help="the values are ratings: only those from 4 on are plays")
    ] = False,
    json_output: Json = False,
) -> None:
    """Read a table of plays, Parquet or CSV, with columns mapped by options.

    Example: nearline import events plays.csv --user customer --time ts_ms --out data/mine
    """
    from sandbox.importers import read_events

    columns = {"user": user, "item": item, "time": when, "value": value}
    _write_dataset(read_events(path, items=items, columns=columns, is_rating=ratings), out, json_output)


def _write_dataset(dataset: Any, out: Path, json_output: bool) -> None:
    from sandbox.importers import write_dataset

    write_dataset(dataset, out)
    report = {
        "out": out,
        "plays": len(dataset),
        "viewers": len(dataset.viewers),
        "items": len(dataset.items),
        "rejected": dict(dataset.rejected.counts),
        "examples": dataset.rejected.examples,
    }
    if json_output:
        print_json(report)
        return
    typer.echo(
        f"{report['plays']:,} plays of {report['items']:,} titles by {report['viewers']:,} viewers written to {out}"
    )
    for reason, count in dataset.rejected.counts.items():
        typer.echo(f"  not used: {count:,} × {reason}")
    for example in dataset.rejected.examples:
        typer.echo(f"    {example}")
    typer.echo(f"next: nearline replay {out} --speed max")
