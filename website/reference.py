"""Reference pages that the code writes: verbs, metrics, the home page's addresses, the store's keys, schemas."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import typer

import contracts.keys
import homepage.service
from contracts.keys import Keys

ROOT = Path(__file__).parent.parent
Family = tuple[str, str, str]
"""(name, kind, what it says)."""


def verbs() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every verb by its words, groups left out."""
    import nearline

    yield from _walk(typer.main.get_command(nearline.app), ())


def _walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from _walk(inner, (*path, name))


def verbs_page() -> str:
    """Each verb's help, as its own parser tells it."""
    import nearline

    parts = [
        "# Verbs",
        "`./run nearline VERB`, or `nearline VERB` in an image. Made from the program itself: what stands here is what `--help` prints.",
        nearline.EXIT_STATUSES.replace("\n", "\n- ").replace("Exit status:\n", "Exit status:\n\n"),
    ]
    for path, command in sorted(verbs(), key=lambda verb: verb[0]):
        text, _, example = (command.help or "").partition("Example: ")
        parts += [
            f"## {' '.join(path)}",
            _prose(text),
            *_parameters(command),
            f"    ./run {example.strip()}" if example else "",
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _prose(text: str) -> str:
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n")).strip()


def _parameters(command: click.Command) -> list[str]:
    rows = []
    for parameter in command.params:
        if parameter.name in ("help", "install_completion", "show_completion"):
            continue
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
        if isinstance(parameter, click.Argument) or parameter.param_type_name == "argument":
            names = f"`{str(parameter.name).upper()}`"
        default = (
            ""
            if parameter.default in (None, False) or callable(parameter.default)
            else f" Default: `{parameter.default}`."
        )
        rows.append(f"| {names} | {cell(str(getattr(parameter, 'help', '') or ''))}{default} |")
    return ["\n".join(["| | |", "|---|---|", *rows])] if rows else []


def cell(text: str) -> str:
    """Text that stays in its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def metrics() -> Mapping[str, list[Family]]:
    """Process → every metric family that it exports."""
    from batch.schedule import NightMetrics
    from homepage.service import Metrics as HomeMetrics
    from trends.service import Metrics as TrendMetrics
    from updater.metrics import Metrics as UpdaterMetrics

    class Idle:
        """An aggregator before its first record, for the shape of what it tells."""

        def __getattr__(self, name: str) -> Any:
            return 0

    made: dict[str, Callable[[], Any]] = {
        "nearline updater": UpdaterMetrics,
        "nearline homepage": HomeMetrics,
        "nearline nightly --at": NightMetrics,
        "nearline trends": lambda: TrendMetrics(Idle()),  # type: ignore[arg-type]
    }
    return {name: _families(make().registry) for name, make in made.items()}


def _families(registry: Any) -> list[Family]:
    found = [
        (one.name + ("_total" if one.type == "counter" else ""), one.type, one.documentation)
        for one in registry.collect()
    ]
    return [one for one in found if one[0].startswith("nearline")]


def metrics_page() -> str:
    """Each process's metrics."""
    parts = [
        "# Metrics",
        "`/metrics` of each process, in Prometheus' text format, beside those of the process itself (`process_…`).",
    ]
    for process, families in metrics().items():
        rows = [f"| `{name}` | {kind} | {cell(text)} |" for name, kind, text in families]
        parts += [f"## {process}", "\n".join(["| metric | kind | what it says |", "|---|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"


def http_page() -> str:
    """The home page's addresses, from the head of its module, and the fields of an answer."""
    from homepage.render import render_row

    text = inspect.getdoc(homepage.service) or ""
    how = inspect.getdoc(render_row) or ""
    return f"# The home page's HTTP\n\n{text}\n\n## The answer\n\n{how}\n\nWho may ask: [security](security.md#the-home-page).\n"


def keys_page() -> str:
    """Each key of the store, from `contracts/keys.py`."""
    keys, fields = Keys("nl", "playback@1"), []
    rows = []
    for name, member in vars(Keys).items():
        if name.startswith("_") or not (isinstance(member, property) or inspect.isfunction(member)):
            continue
        function = member.fget if isinstance(member, property) else member
        text = inspect.getdoc(function)
        if text is None:  # a prefix, not a key
            continue
        arguments = {parameter: f"{{{parameter}}}" for parameter in list(inspect.signature(function).parameters)[1:]}
        key = getattr(keys, name) if isinstance(member, property) else member(keys, **arguments)
        rows.append(f"| `{key}` | {cell(text)} |")
    source = inspect.getsource(contracts.keys)
    for name in ("CONTROL", "STATE", "VECTOR", "ROW"):
        told = source.split(f'{name} = "', 1)[1].split('"""', 2)[1]
        fields.append(f"| `{getattr(contracts.keys, name)}` | {cell(told)} |")
    return (
        "\n\n".join(
            [
                "# Keys of the store",
                "With the namespace `nl` (`store.namespace`) and the stream `playback@1` (topic and epoch). "
                "Their bytes: [contracts](contracts.md).",
                "\n".join(["| key | what it holds |", "|---|---|", *rows]),
                "## Fields of a viewer's hash",
                "\n".join(["| field | what it holds |", "|---|---|", *fields]),
            ]
        )
        + "\n"
    )


def schemas_page() -> str:
    """The fields of each Avro schema."""
    parts = [
        "# Schemas",
        "Of what is written today; older registered versions are read too. Framing and rules: [contracts](contracts.md).",
    ]
    for file in sorted((ROOT / "contracts" / "schemas").glob("*.avsc")):
        schema = json.loads(file.read_text(encoding="utf-8"))
        rows = [
            f"| `{one['name']}` | `{cell(_type(one['type']))}` | {cell(one.get('doc', ''))} |"
            for one in schema["fields"]
        ]
        parts += [
            f"## {file.stem}",
            cell(schema.get("doc", "")),
            "\n".join(["| field | type | |", "|---|---|---|", *rows]),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _type(given: Any) -> str:
    if isinstance(given, list):
        return " or ".join(_type(one) for one in given)
    if not isinstance(given, dict):
        return str(given)
    inner = given.get("items") or given.get("values")
    symbols = ", ".join(given.get("symbols", ()))
    if symbols:
        return f"enum: {symbols}"
    return (
        f"{given['type']} of {_type(inner)}"
        if inner
        else str(given.get("logicalType", given.get("name", given["type"])))
    )


PAGES: dict[str, Callable[[], str]] = {
    "verbs.md": verbs_page,
    "metrics.md": metrics_page,
    "http.md": http_page,
    "keys.md": keys_page,
    "schemas.md": schemas_page,
}
"""Page → who writes it."""
