"""Reference pages that the code writes: verbs, metrics, the home page's addresses, the store's keys, schemas."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import typer

import contracts.keys
import homepage.service
from contracts.catalogue import CatalogueItem
from contracts.codec import Codec
from contracts.keys import Keys
from contracts.rows import Entry, HomeRow
from homepage.catalogue import Catalogue
from homepage.render import Audience, render_row, select_entries

ROOT = Path(__file__).parent.parent
Family = tuple[str, str, str]
"""(name, kind, what it says)."""


def verbs() -> Iterator[tuple[tuple[str, ...], Any]]:
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


def _parameters(command: Any) -> list[str]:
    rows = []
    for parameter in command.params:
        if parameter.name in ("help", "install_completion", "show_completion"):
            continue
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
        if parameter.param_type_name == "argument":
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
    from trends.process import Figures
    from trends.service import Metrics as TrendMetrics
    from updater.metrics import Metrics as UpdaterMetrics

    made: dict[str, Callable[[], Any]] = {
        "nearline updater": UpdaterMetrics,
        "nearline homepage": HomeMetrics,
        "nearline nightly --at": NightMetrics,
        "nearline trends": lambda: TrendMetrics(SimpleNamespace(figures=Figures())),  # type: ignore[arg-type]
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
    text = inspect.getdoc(homepage.service) or ""
    rows = [f"| `{name}` | {cell(str(value))} |" for name, value in example_answer().items() if name != "entries"]
    entry = [f"| `entries[].{name}` | {cell(str(value))} |" for name, value in example_answer()["entries"][0].items()]
    return (
        "\n\n".join(
            [
                "# The home page's HTTP",
                text,
                "Who may ask, and the limits: [security](security.md#the-home-page).",
                "## The answer",
                f"JSON. {' '.join((inspect.getdoc(render_row) or '').split())}",
                "\n".join(["| field | for example |", "|---|---|", *rows, *entry]),
            ]
        )
        + "\n"
    )


def example_answer() -> dict[str, Any]:
    """What the renderer makes of a row of one entry."""
    codec = Codec.load()
    row = HomeRow("0f3a…", "20261121T220000.000Z-0123abcd", 7, "-", 2_000, 1_980, (Entry("tt0000001", 0.5, "als"),))
    catalogue = Catalogue({"tt0000001": CatalogueItem("tt0000001", "A title", ("drama",))}, activation=7)
    columns = codec.decode_columns(codec.encode_row(row))
    selection = select_entries(columns, catalogue, Audience(), now_ms=2_010, limit=1)
    rendered = render_row(columns, selection, catalogue, viewer="ana-0042", now_ms=2_010, default=False, degraded=False)
    answer: dict[str, Any] = json.loads(rendered)
    return answer


def keys_page() -> str:
    """Each key of the store, from `contracts/keys.py`."""
    keys, fields = Keys("nl", "playback@1"), []
    rows = []
    for name, member in vars(Keys).items():
        if name.startswith("_") or not (isinstance(member, property) or inspect.isfunction(member)):
            continue
        function = member.fget if isinstance(member, property) else member
        text = inspect.getdoc(function)
        if function is None or text is None:  # a prefix, not a key
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
