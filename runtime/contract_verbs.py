"""The verbs of the schemas: `contracts check` and `contracts register`. What they call is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runtime.console import Json, print_json, read_settings

if TYPE_CHECKING:
    from contracts.check import Report
    from runtime.schema_server import SchemaServer

contracts_app = typer.Typer(no_args_is_help=True, help="Check and register Avro schemas.")

Place = Annotated[
    str | None, typer.Option("--registry", help="folder of the registry, or its server's URL (default: the settings')")
]


def _server(place: str | None) -> SchemaServer | None:
    """The registry's server, if that is where schemas are."""
    settings = read_settings()
    url = place if place is not None and "://" in place else None  # a wrong scheme is refused like a setting
    if url is None and (place is not None or not settings.schemas.registry_url):
        return None
    from runtime.schema_server import SchemaServer
    from runtime.settings import load_settings

    if url is not None:  # the settings' login goes with the address that is asked for, which is checked like theirs
        schemas = settings.schemas.model_dump(exclude_unset=True) | {"registry_url": url}
        settings = load_settings(schemas=schemas, registry_path=None)
    return SchemaServer(settings)


@contracts_app.command("check")
def contracts_check(
    schemas: Annotated[Path | None, typer.Option(help="folder of .avsc files (default: this program's)")] = None,
    registry: Place = None,
    json_output: Json = False,
) -> None:
    """Can yesterday's readers and writers live with these schemas? With a server: has it ours, or would it take them?

    Exit status: 1 if they cannot, or are not registered.

    Example: nearline contracts check --schemas contracts/schemas
    """
    from contracts.check import check
    from contracts.registry import Registry

    server = _server(registry)
    if server is None:
        report = check(schemas, Registry.load(registry or read_settings().registry_path))
    else:
        report = _with_objections(server, check(schemas, server.read()))
    if json_output:
        print_json(report)
    else:
        for one in report.subjects:
            typer.echo(f"{one.status:<13} {one.subject}" + (f" (id {one.schema_id})" if one.schema_id else ""))
            for line in (*one.problems, *([one.hint] if one.hint else [])):
                typer.echo(f"              {line}")
    raise SystemExit(0 if report.ok else 1)


def _with_objections(server: SchemaServer, report: Report) -> Report:
    """What the server itself would say to those that are not registered yet."""
    from dataclasses import replace

    from contracts.check import Report
    from contracts.registry import read_json

    found = []
    for one in report.subjects:
        said = server.objections(one.subject, read_json(Path(one.file))) if one.status == "unregistered" else []
        found.append(replace(one, status="incompatible", problems=tuple(said)) if said else one)
    return Report(tuple(found))


@contracts_app.command("register")
def contracts_register(
    schema: Annotated[
        Path | None, typer.Argument(help="the .avsc file, named after its contract (default: all of this program's)")
    ] = None,
    registry: Place = None,
    json_output: Json = False,
) -> None:
    """Add compatible schemas to the registry. On a server they stand under the topics' names: playback-value.

    Example: nearline contracts register contracts/schemas/playback_event.avsc
    """
    from contracts.check import open_or_create, register
    from contracts.registry import SCHEMAS_PATH, Registry

    files = [schema] if schema is not None else sorted(SCHEMAS_PATH.glob("*.avsc"))
    server = _server(registry)
    if server is None:
        path = registry or read_settings().registry_path
        known = Registry.load() if path is None else open_or_create(path)
        for file in files:
            known = register(file, known)
        place = str(known.path)
    else:
        _register_on(server, files, named=schema is not None)
        place = server.url
    if json_output:
        print_json({"registered_in": place})
    else:
        typer.echo(f"registered in {place}")


def _register_on(server: SchemaServer, files: list[Path], *, named: bool) -> None:
    """Those that belong to a topic. Errors: `ContractError`."""
    from contracts.check import check_file
    from contracts.errors import ContractError
    from contracts.registry import read_json

    known = server.read()
    for file in files:
        if file.stem in known.names:
            report = check_file(file, known)
            if report.status != "ok":
                server.register(report.subject, read_json(file))
        elif named:
            raise ContractError(f"{file}: belongs to no topic; those that do: {', '.join(sorted(known.names))}")
