"""The verbs of the nightly side: `nightly`, `evaluate`, `generations`, `forget`. What they call is imported when they run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from contracts.errors import UserError
from runtime.console import Json, print_json, read_settings
from runtime.tasks import run_until_signalled

if TYPE_CHECKING:
    from batch.activation import ActivationReport
    from batch.report import NightlyReport
    from runtime.settings import Settings
    from viewers.redis_store import RedisStore

T = TypeVar("T")

generations_app = typer.Typer(no_args_is_help=True, help="List, compare, share, activate and roll back generations.")


async def with_connected(settings: Settings, work: Callable[[Settings, RedisStore], Awaitable[T]]) -> T:
    """Run something with a connected store."""
    from viewers.redis_store import open_store

    store = open_store(settings.store, settings.keys)
    try:
        await store.connect()
        return await work(settings, store)
    finally:
        await store.close()


def with_store(work: Callable[[Settings, RedisStore], Awaitable[T]]) -> T:
    """Run something with the settings and a connected store; SIGTERM and Ctrl-C end it at once."""
    return run_until_signalled(with_connected(read_settings(), work))


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
    publish_only: Annotated[
        bool, typer.Option("--publish-only", help="publish without putting in force: see `generations compare`")
    ] = False,
    at: Annotated[
        str | None,
        typer.Option(help="stay, and run a night every day at this time of NEARLINE_NIGHTLY__TIME_ZONE, e.g. 22:00"),
    ] = None,
) -> None:
    """Copy new records to the lake, train, evaluate, publish, activate, rebuild every row.

    With --at it stays until SIGTERM or Ctrl-C; a night that was missed is caught up at once.

    Exit status: 1 if the generation was held back, 2 if another job or scheduler works on this lake, 3 if the stream is halted, 4 if a
    server stayed away.

    Example: nearline nightly --at 22:00
    """
    from batch.nightly import run_nightly

    if at is not None:
        if force or seed:
            raise UserError(f"--at {at}: every night by itself; run the one that needs --force or --seed by hand")
        _stay(at, json_output, skip_evaluation=skip_evaluation, publish_only=publish_only)
        return
    report = with_store(
        lambda settings, store: run_nightly(
            settings, store, force=force, skip_evaluation=skip_evaluation, seed=seed, publish_only=publish_only
        )
    )
    if json_output:
        print_json(report)
    else:
        typer.echo(report.summary())
    if not report.published:
        raise SystemExit(1)


def _stay(at: str, json_output: bool, *, skip_evaluation: bool, publish_only: bool) -> None:
    from batch.nightly import run_nightly
    from batch.schedule import Daily
    from batch.schedule_service import run_schedule

    settings = read_settings()
    daily = Daily.parse(at, settings.nightly.time_zone)

    async def night() -> NightlyReport:
        return await with_connected(
            settings,
            lambda settings, store: run_nightly(
                settings, store, skip_evaluation=skip_evaluation, publish_only=publish_only
            ),
        )

    run_schedule(settings, daily, night, on_report=print_json if json_output else None)


def evaluate(
    path: Annotated[Path, typer.Argument(help="folder with events.parquet and items.parquet (see `nearline import`)")],
    test_share: Annotated[float, typer.Option(help="newest share of the plays before which rows are asked for")] = 0.15,
    refit_days: Annotated[float, typer.Option(help="days between two refits")] = 1.0,
    arms: Annotated[str | None, typer.Option(help="comma-separated names (default: all)")] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of training and bootstrap")] = 20,
    validation: Annotated[
        bool, typer.Option("--validation", help="play the share before the test share instead, to choose parameters by")
    ] = False,
    json_output: Json = False,
) -> None:
    """Play a data set in time order and measure the row that each arm would have shown before every play.

    Example: nearline evaluate data/ml-1m --arms nightly,incremental --refit-days 3
    """
    from rich.console import Console

    from batch.backtest.run import Options, render, run_backtest

    options = Options(test_share, refit_days, arms, seed, validation)
    backtest = run_backtest(path, options, read_settings())
    render(backtest, Console(stderr=json_output))
    if json_output:
        print_json(backtest.table)


@generations_app.command("list")
def generations_list(json_output: Json = False) -> None:
    """List the published generations, the one in force and a candidate marked.

    Example: nearline generations list
    """
    from batch.activation import list_generations

    found = list_generations(read_settings())
    if json_output:
        print_json(found)
        return
    from rich.console import Console
    from rich.table import Column, Table

    widest = max((len(one.generation_id) for one in found), default=0)  # whole on any terminal: people copy it
    table = Table(
        Column("generation", no_wrap=True, overflow="fold", min_width=widest),
        *("made (UTC)", "titles", "viewers", "k", "NDCG@10", "gate", "state"),
    )
    for one in found:
        made = datetime.fromtimestamp(one.created_at_ms / 1000, UTC).isoformat(" ", "seconds").removesuffix("+00:00")
        ndcg = "" if one.ndcg_at_10 is None else f"{one.ndcg_at_10:.4f}"
        state = one.state + ("" if one.percent is None else f" for {one.percent:g} %")
        state += f" (activation {one.activation})" if one.activation else ""
        table.add_row(
            one.generation_id, made, f"{one.items:,}", f"{one.users:,}", str(one.k), ndcg, one.decision, state
        )
    Console().print(table)
    if not found:
        typer.echo("no generation yet; make one: nearline nightly")


def known_generations(incomplete: str) -> list[str]:
    """For the shell's completion; nothing rather than an error."""
    from batch.activation import list_generations
    from contracts.errors import NearlineError
    from runtime.settings import load_settings

    try:
        return [
            one.generation_id for one in list_generations(load_settings()) if one.generation_id.startswith(incomplete)
        ]
    except NearlineError:
        return []


@generations_app.command("activate")
def generations_activate(
    generation_id: Annotated[
        str, typer.Argument(help="as `nearline generations list` prints it", autocompletion=known_generations)
    ],
    json_output: Json = False,
) -> None:
    """Put a published generation in force for everybody, under a new activation, and rebuild every row. Ends a share.

    Example: nearline generations activate 20261121T094009.191Z-e1a2e022
    """
    from batch.activation import activate

    print_activation(activate, json_output, generation_id)


@generations_app.command("rollback")
def generations_rollback(json_output: Json = False) -> None:
    """Put back the generation that was in force before (else the newest older one that is kept), and rebuild every row. Ends a share.

    Example: nearline generations rollback
    """
    from batch.activation import rollback

    print_activation(rollback, json_output)


@generations_app.command("report")
def generations_report(
    generation_id: Annotated[
        str | None,
        typer.Argument(help="a night's generation (default: the newest report)", autocompletion=known_generations),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="copy the page here (default: print where it lies)")] = None,
    json_output: Json = False,
) -> None:
    """The report of a night: one HTML page with the decision, every arm's metrics, lift, drift, coverage, and five viewers' rows.

    Example: nearline generations report --out report.html
    """
    from batch.review.files import copy_page, find_page, read_content

    page = find_page(read_settings().lake_path, generation_id)
    if json_output:
        print_json(read_content(page))
        return
    typer.echo(page if out is None else copy_page(page, out))


def print_activation(action: Any, json_output: bool, *arguments: Any) -> None:
    """Run something that ends in an `ActivationReport`, and print that."""
    report = with_store(lambda settings, store: action(settings, store, *arguments))
    if json_output:
        print_json(report)
        return
    replaced = f" in place of {report.replaced}" if report.replaced else ""
    typer.echo(
        f"{report.generation_id} is in force as activation {report.activation}{replaced}{_share(report)}; "
        f"{report.rebuilt.rewritten:,} rows rewritten"
    )


def _share(report: ActivationReport) -> str:
    """Who sees a candidate, in words."""
    if report.share is not None:
        return f"; {report.share.percent:g} % of the viewers see {report.share.generation_id}"
    return f"; nobody sees {report.ended.generation_id} beside it any more" if report.ended is not None else ""


def forget(viewer: Annotated[str, typer.Argument(help="the viewer's id")], json_output: Json = False) -> None:
    """Erase a viewer everywhere: store, dead letters, lake, generations; prints what was removed where.

    Example: nearline forget ana-0042
    """
    from batch.forget import forget as erase

    receipt = asyncio.run(erase(read_settings(), viewer, now_ms=int(time.time() * 1000)))
    if json_output:
        print_json(receipt)
        return
    through = datetime.fromtimestamp(receipt.erased_through_ms / 1000, UTC).isoformat(" ", "seconds")
    typer.echo(f"erased through {through}, as {receipt.viewer_digest} in the ledger of erasures")
    typer.echo(f"  stream       erasure sent, partition {receipt.partition} offset {receipt.offset}")
    typer.echo(f"  store        {receipt.store}")
    typer.echo(
        "  dead letters "
        + ("not reached, see the log; ask again" if receipt.dead_letters is None else f"{receipt.dead_letters:,}")
    )
    if receipt.lake_rows is None:
        typer.echo(
            "  lake         a nightly job is at work: no read of the lake gives the viewer any more, and the next night at the latest "
            "removes what is left, from the lake and the generations"
        )
    else:
        typer.echo(
            "  lake         "
            + (", ".join(f"{rows:,} {kind}" for kind, rows in receipt.lake_rows.items()) or "held nothing")
        )
        typer.echo("  generations  " + (", ".join(receipt.generations or ()) or "held nothing"))
