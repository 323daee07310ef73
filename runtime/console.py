"""What every verb needs: settings with logs set up, and one line of JSON on standard output."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="print one line of JSON on standard output")]


def read_settings() -> Settings:
    """Read the settings and set up the logs. Errors: `SettingsError`."""
    from runtime.logs import configure_logs
    from runtime.settings import load_settings

    settings = load_settings()
    configure_logs(settings)
    return settings


def to_plain(value: Any) -> Any:
    """JSON-able form of what the verbs return."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(inner) for inner in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    return value


def print_json(value: Any) -> None:
    """Print one line."""
    typer.echo(json.dumps(to_plain(value), allow_nan=False))
