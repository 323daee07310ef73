"""The command line: one verb, one function. Heavy imports happen inside the verbs, so that `--help` is instant.

Exit status: 0 done; 1 the answer is no (a check failed, a generation was held back); 2 what was asked cannot be done as asked;
3 halted, a person decides; 4 a server did not answer in time.
"""

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before numpy: a BLAS thread pool slows ALS tenfold and starves the event loop

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from contracts.errors import HaltError, NearlineError, TransientError, UserError

if TYPE_CHECKING:
    from runtime.settings import Settings
    from viewers.redis_store import RedisStore

T = TypeVar("T")

app = typer.Typer(
    no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__ and __doc__.split("\n\n")[0]
)
generations_app = typer.Typer(no_args_is_help=True, help="List, activate and roll back generations.")
contracts_app = typer.Typer(no_args_is_help=True, help="Check and register Avro schemas.")
import_app = typer.Typer(no_args_is_help=True, help="Bring a data set into the layout that replay and evaluate read.")
app.add_typer(generations_app, name="generations")
app.add_typer(contracts_app, name="contracts")
app.add_typer(import_app, name="import")

Json = Annotated[bool, typer.Option("--json", help="print one line of JSON on standard output")]


def _settings(**overrides: Any) -> Settings:
    """Read the settings and set up the logs."""
    from runtime.logs import configure_logs
    from runtime.settings import load_settings

    settings = load_settings(**overrides)
    configure_logs(settings)
    return settings


def _with_store(work: Callable[[Settings, RedisStore], Awaitable[T]]) -> T:
    """Run something with the settings and a connected store."""
    from updater.service import make_store

    settings = _settings()

    async def connected() -> T:
        store = make_store(settings)
        try:
            await store.connect()
            return await work(settings, store)
        finally:
            await store.close()

    return asyncio.run(connected())


def _plain(value: Any) -> Any:
    """JSON-able form of what the verbs return."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    return value


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(_plain(value), allow_nan=False))


@app.command()
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

    Example: nearline demo --for 30 --json
    """
    from sandbox.demo import DemoOptions, run_demo

    raise SystemExit(run_demo(DemoOptions(run_for_s, json_output, rate, seed, port)))


@app.command()
def updater() -> None:
    """Fold playback events into viewers' vectors and rows, until SIGTERM or Ctrl-C.

    Example: NEARLINE_KAFKA__BOOTSTRAP_SERVERS=kafka:9092 NEARLINE_STORE__URL=redis://redis:6379/0 nearline updater
    """
    from updater.service import run_updater

    asyncio.run(run_updater(_settings()))


@app.command()
def homepage() -> None:
    """Serve GET /v1/home/{viewer}, until SIGTERM or Ctrl-C.

    Example: NEARLINE_HOMEPAGE__PORT=8080 nearline homepage
    """
    from homepage.server import main as run_homepage

    run_homepage(_settings())


@app.command()
def nightly(
    json_output: Json = False,
    force: Annotated[
        bool, typer.Option("--force", help="publish even if the evaluation holds the generation back")
    ] = False,
    skip_evaluation: Annotated[
        bool, typer.Option("--skip-evaluation", help="train and publish without comparing")
    ] = False,
    seed: Annotated[
        bool, typer.Option("--seed", help="also fold every play of the lake into the viewers' states")
    ] = False,
) -> None:
    """Copy new records to the lake, train, evaluate, publish, activate, rebuild every row.

    Example: nearline nightly --json
    """
    from batch.nightly import run_nightly

    report = _with_store(
        lambda settings, store: run_nightly(settings, store, force=force, skip_evaluation=skip_evaluation, seed=seed)
    )
    if json_output:
        _print_json(report)
    else:
        typer.echo(report.summary())
    if not report.published:
        raise SystemExit(1)


@app.command()
def doctor(json_output: Json = False) -> None:
    """Check every dependency, server and setting, and say how to mend what is wrong.

    Example: nearline doctor
    """
    from runtime import doctor as checks

    findings = asyncio.run(checks.diagnose(_settings()))
    if json_output:
        _print_json(findings)
    else:
        checks.render(findings)
    raise SystemExit(checks.exit_code(findings))


@app.command()
def settings(json_output: Json = False) -> None:
    """Print the settings in force, secrets hidden.

    Example: nearline settings --json
    """
    values = _settings().model_dump(mode="json")
    if json_output:
        _print_json(values)
        return
    for name, value in values.items():
        for key, inner in value.items() if isinstance(value, dict) else [(None, value)]:
            typer.echo(f"NEARLINE_{name}{'__' + key if key else ''}".upper() + f"={'' if inner is None else inner}")


@app.command()
def show(
    what: Annotated[str, typer.Argument(help="viewer")],
    viewer: Annotated[str, typer.Argument(help="the viewer's id")],
    json_output: Json = False,
) -> None:
    """Show what is stored of a viewer: plays, registers, row, generation, freshness.

    Example: nearline show viewer ana-0042
    """
    from homepage import inspect

    if what != "viewer":
        raise UserError(f"show {what}: only `nearline show viewer ID` exists")
    _print_view(inspect.show_viewer, viewer, json_output)


@app.command()
def explain(viewer: Annotated[str, typer.Argument(help="the viewer's id")], json_output: Json = False) -> None:
    """Recompute a viewer's row from the stored state and say which plays every entry comes from.

    Example: nearline explain ana-0042 --json
    """
    from homepage import inspect

    _print_view(inspect.explain_viewer, viewer, json_output)


def _print_view(look: Any, viewer: str, json_output: bool) -> None:
    from contracts.events import valid_id
    from homepage import inspect
    from updater.service import make_codec

    if not valid_id(viewer):
        raise UserError(f"{viewer!r} is not a viewer id (1-128 characters of A-Z a-z 0-9 . _ : | @ ~ -)")
    view = _with_store(lambda settings, store: look(settings, store, make_codec(settings), viewer))
    if json_output:
        _print_json(view)
    else:
        inspect.render(view)


@app.command()
def resume() -> None:
    """Clear a halt, after a person has looked at its cause; the updaters start again.

    Example: nearline resume
    """

    async def clear(_: Settings, store: RedisStore) -> str | None:
        reason = await store.read_halt()
        await store.write_halt(None)
        return reason

    reason = _with_store(clear)
    typer.echo("nothing was halted" if reason is None else f"cleared: {reason}")


@app.command()
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
    report = asyncio.run(send(_settings(), to_events(dataset), speed=factor, items=dataset.items))
    if json_output:
        _print_json(report)
    else:
        typer.echo(report.summary())


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
    time: Annotated[str, typer.Option(help="column of the time, ms since 1970 UTC")] = "timestamp",
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

    columns = {"user": user, "item": item, "time": time, "value": value}
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
        _print_json(report)
        return
    typer.echo(
        f"{report['plays']:,} plays of {report['items']:,} titles by {report['viewers']:,} viewers written to {out}"
    )
    for reason, count in dataset.rejected.counts.items():
        typer.echo(f"  not used: {count:,} × {reason}")
    for example in dataset.rejected.examples:
        typer.echo(f"    {example}")
    typer.echo(f"next: nearline replay {out} --speed max")


@contracts_app.command("check")
def contracts_check(
    schemas: Annotated[Path | None, typer.Option(help="folder of .avsc files (default: this program's)")] = None,
    json_output: Json = False,
) -> None:
    """Can yesterday's readers and writers live with these schemas?

    Example: nearline contracts check --schemas contracts/schemas
    """
    from contracts.check import check
    from contracts.registry import Registry

    report = check(schemas, Registry.load(_settings().registry_path))
    if json_output:
        _print_json(report)
    else:
        for one in report.subjects:
            typer.echo(f"{one.status:<13} {one.subject}" + (f" (id {one.schema_id})" if one.schema_id else ""))
            for line in (*one.problems, *([one.hint] if one.hint else [])):
                typer.echo(f"              {line}")
    raise SystemExit(0 if report.ok else 1)


@contracts_app.command("register")
def contracts_register(
    schema: Annotated[Path, typer.Argument(help="the .avsc file, named after its subject")],
    registry: Annotated[
        Path | None, typer.Option(help="folder of the registry (default: the one in the settings)")
    ] = None,
) -> None:
    """Add a compatible schema to the registry.

    Example: nearline contracts register contracts/schemas/playback_event.avsc
    """
    from contracts.check import open_or_create, register
    from contracts.registry import Registry

    path = registry or _settings().registry_path
    known = Registry.load() if path is None else open_or_create(path)
    typer.echo(f"registered in {register(schema, known).path}")


@generations_app.command("list")
def generations_list(json_output: Json = False) -> None:
    """List the published generations, the one in force marked.

    Example: nearline generations list
    """
    from batch.nightly import list_generations

    found = list_generations(_settings())
    if json_output:
        _print_json(found)
        return
    for one in found:
        typer.echo(f"{'*' if one.in_force else ' '} {one.generation_id}  {one.summary()}")
    if not found:
        typer.echo("no generation yet; make one: nearline nightly")


@generations_app.command("activate")
def generations_activate(
    generation_id: Annotated[str, typer.Argument(help="as `nearline generations list` prints it")],
    json_output: Json = False,
) -> None:
    """Put a published generation in force, under a new activation, and rebuild every row.

    Example: nearline generations activate 2026-01-31T22-00-00
    """
    from batch.nightly import activate

    _print_activation(activate, json_output, generation_id)


@generations_app.command("rollback")
def generations_rollback(json_output: Json = False) -> None:
    """Put the generation before the one in force back in force, and rebuild every row.

    Example: nearline generations rollback
    """
    from batch.nightly import rollback

    _print_activation(rollback, json_output)


def _print_activation(action: Any, json_output: bool, *arguments: str) -> None:
    report = _with_store(lambda settings, store: action(settings, store, *arguments))
    if json_output:
        _print_json(report)
    else:
        typer.echo(report.summary())


@app.command()
def forget(viewer: Annotated[str, typer.Argument(help="the viewer's id")], json_output: Json = False) -> None:
    """Erase a viewer everywhere: store, lake, the next generation; prints what was removed where.

    Example: nearline forget ana-0042
    """
    from batch.forget import forget as erase

    report = _with_store(lambda settings, store: erase(settings, store, viewer))
    if json_output:
        _print_json(report)
    else:
        typer.echo(report.summary())


def main() -> None:
    """Run a verb; turn our own errors into a message and an exit status."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        _fail(error, 2)
    except HaltError as error:
        _fail(error, 3)
    except TransientError as error:
        _fail(error, 4)
    except NearlineError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _fail(error: Exception, status: int) -> None:
    print(f"nearline: {error}", file=sys.stderr)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
