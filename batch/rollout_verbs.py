"""The verbs of a rollout: `generations compare | share | outcome`, `freeze`, `unfreeze`. What they call is imported when they run."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batch.verbs import generations_app, known_generations, print_activation, with_store
from contracts.errors import UserError
from runtime.console import Json, print_json, read_settings

if TYPE_CHECKING:
    from batch.comparison import Comparison, ViewerComparison
    from batch.outcome import Outcome

PRINTED = 5
"""Viewers whose rows are printed on a terminal; `--html` and `--json` have them all."""

_GENERATION = "as `nearline generations list` prints it"


@generations_app.command("compare")
def generations_compare(
    a: Annotated[str, typer.Argument(help=_GENERATION, autocompletion=known_generations)],
    b: Annotated[str, typer.Argument(help=_GENERATION, autocompletion=known_generations)],
    viewers: Annotated[str | None, typer.Option(help="comma-separated ids (default: some are drawn)")] = None,
    draw: Annotated[int, typer.Option(min=1, max=10_000, help="how many viewers to draw, if none are named")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="of the draw: the same seed draws the same viewers")] = 0,
    html: Annotated[Path | None, typer.Option(help="also write a page with every row side by side")] = None,
    json_output: Json = False,
) -> None:
    """Show the rows that two generations would give the same viewers now, side by side. Nothing is written to the store.

    Example: nearline generations compare 20261120T220412.120Z-1d02cc1a 20261121T220409.191Z-e1a2e022 --viewers ana,bo --html a.html
    """
    from batch.comparison import compare
    from batch.comparison_page import render_page

    if html is not None and not html.absolute().parent.is_dir():
        raise UserError(f"--html {html}: there is no folder {html.absolute().parent}; make it, or write elsewhere")
    named = [viewer.strip() for viewer in (viewers or "").split(",") if viewer.strip()]
    found = with_store(
        lambda settings, store: compare(
            settings, store, a, b, viewers=named, draw=draw, seed=seed, now_ms=int(time.time() * 1000)
        )
    )
    if html is not None:
        try:
            html.write_text(render_page(found), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--html {html}: {error.strerror}; write elsewhere") from error
    if json_output:
        print_json(found)
    else:
        _print_comparison(found)
        if html is not None:
            typer.echo(f"every row, side by side: {html}")


@generations_app.command("share")
def generations_share(
    generation_id: Annotated[
        str | None,
        typer.Argument(
            help=f"{_GENERATION} (default: the one that some see already)", autocompletion=known_generations
        ),
    ] = None,
    percent: Annotated[float | None, typer.Option(help="of the viewers, by hash; more than 0, less than 100")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="everybody sees the generation in force again")] = False,
    json_output: Json = False,
) -> None:
    """Have a share of the viewers see another generation, the candidate, and rebuild every row; or change the share, or end it.

    The same viewers every time, and those of 5 % are among those of 10 %. Updaters hold both generations meanwhile: twice the memory.
    `generations activate` of the candidate ends it for everybody, `generations rollback` too.

    Example: nearline generations share 20261121T220409.191Z-e1a2e022 --percent 5
    """
    from batch.activation import share, stop_share

    if stop == (percent is not None) or (stop and generation_id is not None):
        raise UserError("either --percent, with a generation the first time, or --stop alone")
    if percent is None:
        print_activation(stop_share, json_output)
    else:
        print_activation(share, json_output, generation_id, percent)


@generations_app.command("outcome")
def generations_outcome(
    generation_id: Annotated[
        str | None,
        typer.Argument(help="a candidate, now or before (default: of now)", autocompletion=known_generations),
    ] = None,
    json_output: Json = False,
) -> None:
    """Compare what came of the candidate's rows and of everybody else's, shown meanwhile: plays that came from them, with 95 % intervals.

    From the lake, so as of the last nightly copy; players have to report which row led to a play (`row_id`).

    Example: nearline generations outcome 20261121T220409.191Z-e1a2e022
    """
    from batch.outcome import find_outcome

    found = find_outcome(read_settings(), generation_id)
    if json_output:
        print_json(found)
    else:
        _print_outcome(found)


def _print_outcome(found: Outcome) -> None:
    from rich.console import Console
    from rich.table import Table

    from batch.outcome import CANDIDATE, MEASURES, OTHERS

    table = Table("", "viewers", "rows shown", "plays from them", "hits a row", "plays a viewer", "viewers with a play")
    for name in (CANDIDATE, OTHERS):
        arm = found.arms[name]
        told = (f"{value:.4f} ({low:.4f} … {high:.4f})" for value, low, high in map(arm.measures.__getitem__, MEASURES))
        table.add_row(name, f"{arm.viewers:,}", f"{arm.rows:,}", f"{arm.plays:,}", *told)
    differs = (f"{value:+.4f} ({low:+.4f} … {high:+.4f})" for value, low, high in found.difference.values())
    table.add_row("difference", "", "", "", *differs)
    Console().print(table)
    begin, end = (
        datetime.fromtimestamp(ms / 1000, UTC).isoformat(" ", "seconds").removesuffix("+00:00")
        for ms in (found.from_ms, found.to_ms)
    )
    others = ", ".join(found.arms[OTHERS].generations) or "nothing"
    typer.echo(f"{found.candidate} against {others}, shown from {begin} to {end} UTC")


def freeze(
    reason: Annotated[str, typer.Option(help="why, for whoever finds it frozen: one line")] = "",
    json_output: Json = False,
) -> None:
    """Freeze every row as it is: plays go on being kept and counted, rows do not follow them until `nearline unfreeze`.

    Nights, `generations activate` and `rollback` still rewrite rows; an erased viewer's is emptied.

    Example: nearline freeze --reason "odd rows since the player's release, see the incident"
    """
    from batch.freeze import freeze as freeze_rows

    done = with_store(lambda settings, store: freeze_rows(store, reason, now_ms=int(time.time() * 1000)))
    if json_output:
        print_json(done)
        return
    since = datetime.fromtimestamp(done.since_ms / 1000, UTC).isoformat(" ", "seconds").removesuffix("+00:00")
    why = f" ({done.reason})" if done.reason else ""
    typer.echo(f"rows {'have been' if done.already else 'are'} frozen since {since} UTC{why}; back: nearline unfreeze")


def unfreeze(json_output: Json = False) -> None:
    """Let rows follow the plays again, and rebuild everybody's under a new activation. Can be repeated if it was interrupted.

    Example: nearline unfreeze
    """
    from batch.freeze import unfreeze as unfreeze_rows

    done = with_store(unfreeze_rows)
    if json_output:
        print_json(done)
    elif done.rebuilt is None:
        typer.echo("rows follow the plays" + ("" if done.was_frozen else "; they were not frozen"))
    else:
        typer.echo(
            f"rows follow the plays; {done.generation_id} is in force as activation {done.activation}, "
            f"{done.rebuilt.rewritten:,} rows rewritten"
        )


def _print_comparison(found: Comparison) -> None:
    from rich.console import Console

    console = Console()
    for one in found.viewers[:PRINTED]:
        console.print(_table(one))
    if len(found.viewers) > PRINTED:
        typer.echo(f"… and {len(found.viewers) - PRINTED:,} more viewers (--html, --json)")
    typer.echo(
        f"{len(found.viewers):,} viewers: of the first 10 titles {found.overlap:.0%} are shown by both; rank-biased overlap "
        f"{found.rank_biased_overlap:.3f}; the same first title for {found.same_first:.0%}; different titles in the first 10: "
        f"A {found.titles_a:,}, B {found.titles_b:,}"
    )
    for said, reached in (("more", found.shown_more), ("fewer", found.shown_less)):
        if reached:
            listed = ", ".join(f"{one.title} ({one.a:,} → {one.b:,})" for one in reached[:PRINTED])
            typer.echo(f"B shows to {said} viewers: {listed}")


def _table(one: ViewerComparison) -> object:
    """The first ten places of both rows."""
    from itertools import zip_longest

    from rich.table import Table

    from batch.comparison_page import change_of
    from ranking.overlap import DEPTH

    table = Table(
        "#", "A", "", "B", "", title=f"{one.viewer}, who watched {'; '.join(one.plays)}", title_justify="left"
    )
    for place, (left, right) in enumerate(zip_longest(one.a[:DEPTH], one.b[:DEPTH]), 1):
        cells = [
            (tile.title, change_of(tile, alone)) if tile else ("", "")
            for tile, alone in ((left, "gone"), (right, "new"))
        ]
        table.add_row(str(place), *cells[0], *cells[1])
    return table
