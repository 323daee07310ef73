"""The verbs of the dead letters: `dlq list` and `dlq replay`. What they call is imported when they run."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from runtime.console import Json, print_json, read_settings

dlq_app = typer.Typer(no_args_is_help=True, help="List dead letters by cause, and send them again.")


def _moment(time_ms: int) -> str:
    if time_ms < 0:
        return "unknown"
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(" ", "seconds").removesuffix("+00:00")


@dlq_app.command("list")
def dlq_list(json_output: Json = False) -> None:
    """Show what could not be applied, by cause: how many, since when, where, and which schema wrote it.

    Example: nearline dlq list
    """
    from updater.dlq import list_letters

    found = asyncio.run(list_letters(read_settings()))
    if json_output:
        print_json(found)
        return
    if found.causes:
        from rich.console import Console
        from rich.table import Table

        table = Table("cause", "letters", "waiting", "first (UTC)", "last (UTC)", "offsets", "schema ids", "e.g.")
        for one in found.causes:
            table.add_row(
                one.cause, f"{one.letters:,}", f"{one.waiting:,}", _moment(one.first_ms), _moment(one.last_ms),
                "\n".join(f"{where} {low}–{high}" for where, (low, high) in one.offsets.items()),
                ", ".join(map(str, one.schema_ids)), " ".join(one.examples),
            )  # fmt: skip
        Console().print(table)
    typer.echo(
        f"{found.topic}: {found.letters:,} letters: {found.waiting:,} can be replayed, {found.replayed:,} were, "
        f"{found.unquotable:,} are kept by coordinates alone; {found.erased:,} erased"
    )


@dlq_app.command("replay")
def dlq_replay(
    cause: Annotated[
        str | None, typer.Option(help="only letters whose class and message hold this text, as `dlq list` prints it")
    ] = None,
    offset: Annotated[
        list[str] | None, typer.Option(help="only this letter, as partition:offset of its record; may be repeated")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be sent, send nothing")] = False,
    force: Annotated[bool, typer.Option("--force", help="also send what the updater would refuse again")] = False,
    json_output: Json = False,
) -> None:
    """Send dead letters to their topic again, after their cause was mended. Each is sent once, however often this is run.

    Exit status: 1 if some were not sent, as the updater would refuse them again.

    Example: nearline dlq replay --cause "schema id" --dry-run
    """
    from updater.dlq import parse_offset, refusals_by_cause, replay

    wanted = [parse_offset(one) for one in offset or ()]
    report = asyncio.run(
        replay(
            read_settings(), cause=cause, offsets=wanted, dry_run=dry_run, force=force, now_ms=int(time.time() * 1000)
        )
    )
    if json_output:
        print_json(report)
    else:
        typer.echo(f"{report.matched:,} letters match: {report.sent:,} {'would be ' if dry_run else ''}sent again")
        if report.already_replayed:
            typer.echo(f"  {report.already_replayed:,} were replayed before")
        if report.not_replayable:
            typer.echo(f"  {report.not_replayable:,} have no bytes: their records may have been private")
        for why, count, example in refusals_by_cause(report.refused):
            typer.echo(f"  {count:,} not sent, such as {example}: {why}")
    if report.refused:
        raise SystemExit(1)
