"""The command line: one verb, one function. Heavy imports happen inside the verbs, so that `--help` is instant."""

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before numpy: a BLAS thread pool slows ALS tenfold and starves the event loop

import asyncio
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from batch.rollout_verbs import freeze, unfreeze
from batch.verbs import evaluate, forget, generations_app, known_generations, nightly, with_store
from bench.verbs import plan
from contracts.errors import HaltError, NearlineError, TransientError, UserError
from runtime.console import Json, print_json, read_settings
from runtime.contract_verbs import contracts_app
from sandbox.verbs import chaos, demo, import_app, replay
from updater.verbs import dlq_app

T = TypeVar("T")

HELP = "Home pages that know what was just watched: a nightly job plus an event-driven updater on Kafka and Redis."

EXIT_STATUSES = """Exit status:
0 done
1 the answer is no: a check failed, something is to be mended, a generation was held back
2 it cannot be done as asked: a setting, an argument, a file
3 the stream is halted: a person decides
4 a server did not answer in time
130, 143 ended by Ctrl-C, SIGTERM"""

app = typer.Typer(
    no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=HELP, epilog=EXIT_STATUSES
)
app.add_typer(generations_app, name="generations")
app.add_typer(contracts_app, name="contracts")
app.add_typer(import_app, name="import")
app.add_typer(dlq_app, name="dlq")
for _verb in (demo, nightly, evaluate, replay, forget, freeze, unfreeze, chaos, plan):
    app.command()(_verb)


@app.command()
def updater() -> None:
    """Fold playback events into viewers' vectors and rows, until SIGTERM or Ctrl-C.

    Example: NEARLINE_KAFKA__BOOTSTRAP_SERVERS=kafka:9092 NEARLINE_STORE__URL=redis://redis:6379/0 nearline updater
    """
    from updater.service import run_updater

    asyncio.run(run_updater(read_settings()))


@app.command()
def trends() -> None:
    """Count what is watched now, for the updaters and the default rows, until SIGTERM or Ctrl-C. A second one stands by.

    Example: NEARLINE_KAFKA__BOOTSTRAP_SERVERS=kafka:9092 NEARLINE_STORE__URL=redis://redis:6379/0 nearline trends
    """
    from trends.service import run_trends

    asyncio.run(run_trends(read_settings()))


@app.command()
def shadow(
    generation_id: Annotated[
        str, typer.Argument(help="as `nearline generations list` prints it", autocompletion=known_generations)
    ],
    share: Annotated[
        float, typer.Option(min=0.01, max=100, help="percent of the viewers who play, chosen by hash")
    ] = 10.0,
) -> None:
    """Compute a generation's rows for viewers who play, beside those they are served, and export how alike they are.

    Nothing is served or written. Until SIGTERM or Ctrl-C.

    Example: NEARLINE_HEALTH__PORT=9101 nearline shadow 20261121T094009.191Z-e1a2e022 --share 5
    """
    from updater.shadow_service import run_shadow

    asyncio.run(run_shadow(read_settings(), generation_id, share))


@app.command()
def homepage() -> None:
    """Serve GET /v1/home/{viewer}, until SIGTERM or Ctrl-C.

    Example: NEARLINE_HOMEPAGE__PORT=8080 nearline homepage
    """
    from homepage.server import main as run_homepage

    run_homepage(read_settings())


@app.command()
def doctor(json_output: Json = False) -> None:
    """Check every dependency, server and setting, and say how to mend what is wrong.

    Exit status: 1 if there is something to mend.

    Example: nearline doctor
    """
    from runtime import doctor as checks

    findings = asyncio.run(checks.diagnose(read_settings()))
    if json_output:
        print_json(findings)
    else:
        checks.render(findings)
    raise SystemExit(checks.exit_code(findings))


@app.command()
def settings(
    json_output: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the reference page of every key instead")] = False,
) -> None:
    """Print every setting in force and where its value came from, secrets hidden.

    Example: nearline settings --json
    """
    from runtime.settings_view import render_reference, render_settings, settings_in_force

    if markdown:
        typer.echo(render_reference(), nl=False)
        return
    found = settings_in_force()
    if json_output:
        print_json({one.key: {"value": one.value, "source": one.source} for one in found})
    else:
        typer.echo(render_settings(found))


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
    view = with_store(lambda settings, store: look(settings, store, make_codec(settings), viewer))
    if json_output:
        print_json(view)
    else:
        inspect.render(view)


@app.command()
def resume(json_output: Json = False) -> None:
    """Clear a halt, after a person has looked at its cause; says what is next.

    Example: nearline resume
    """
    from updater.resume import clear_halt

    cleared = with_store(clear_halt)
    if json_output:
        print_json(cleared)
    else:
        typer.echo(cleared.summary())


def main() -> None:
    """The command line."""
    run_verb(lambda: app(prog_name="nearline"))


def run_verb(verb: Callable[[], None]) -> None:
    """Run a verb; turn our own errors into a message and an exit status."""
    try:
        verb()
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
