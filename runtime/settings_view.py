"""Settings for people: what is in force and where it came from; and the reference page, made from the settings themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from runtime.settings import Settings, read_with_origins
from runtime.sources import PREFIX

HIDDEN = "**********"

_HEAD = """\
# Settings

*Made from the code by `./run nearline settings --markdown > docs/settings.md`; a test compares.*

One set of keys, from the sandbox to a cluster; only addresses change. A value is taken from the first of:

1. the environment: `NEARLINE_KAFKA__TOPIC=plays`
2. `.env` in the working directory: the same lines
3. a TOML file, `nearline.toml` in the working directory or the one that `NEARLINE_SETTINGS_FILE` names, with a table for each section:

       generations_path = "/data/generations"
       [kafka]
       topic = "plays"

4. its default, below

In the environment and in `.env` every key may be given as `…_FILE` instead: `NEARLINE_KAFKA__SASL_PASSWORD_FILE=/run/secrets/kafka`
takes the file's text, without its last newline. Passwords and keys belong there.

`nearline settings` prints every key, its value and where it came from, secrets hidden; `--json` the same for programs. A key that is
none, in any of these places, ends every verb with exit status 2 and the nearest one that is.
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """One key in force. `source`: `default`, `environment`, `.env`, a settings file's path, or `KEY_FILE=path`."""

    key: str
    value: Any
    source: str


def settings_in_force() -> list[Setting]:
    """Every key, in the order of the code. Secrets are hidden. Errors: `SettingsError`."""
    settings, origins = read_with_origins()
    found = []
    for section, name, _ in _fields():
        holder = getattr(settings, section) if section else settings
        key = _key(section, name)
        found.append(Setting(key, _shown(key, getattr(holder, name)), origins.get(key, "default")))
    return found


def render_settings(settings: list[Setting]) -> str:
    """Lines of `KEY=value  # source`, which `.env` takes too (but for what is hidden); what is unset is a comment."""
    lines = [(f"# {one.key}=" if one.value is None else f"{one.key}={one.value}", one.source) for one in settings]
    width = min(64, max(len(line) for line, _ in lines))
    return "\n".join(f"{line:<{width}}  # {source}" for line, source in lines)


def render_reference() -> str:
    """`docs/settings.md`."""
    lines = [_HEAD.rstrip()]
    before: str | None = None
    for section, name, field in _fields():
        if section != before:
            title = section or "All"
            about = _section_class(section).__doc__ if section else "Outside of any section."
            first = (about or "").strip().partition("\n")[0]
            lines += [f"\n## {title}\n", f"{first}\n", "| key | default | takes | meaning |", "|---|---|---|---|"]
            before = section
        cells = (f"`{_key(section, name)}`", _default(field), _takes(field), field.description or "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _fields() -> Iterator[tuple[str, str, FieldInfo]]:
    """(section, name, field); those without a section first."""
    for name, field in Settings.model_fields.items():
        if not _is_section(field):
            yield "", name, field
    for section, field in Settings.model_fields.items():
        if _is_section(field):
            for name, inner in _section_class(section).model_fields.items():
                yield section, name, inner


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _section_class(section: str) -> type[BaseModel]:
    found = Settings.model_fields[section].annotation
    assert isinstance(found, type)
    assert issubclass(found, BaseModel)
    return found


def _key(section: str, name: str) -> str:
    return f"{PREFIX}{section + '__' if section else ''}{name}".upper()


def _shown(key: str, value: Any) -> Any:
    """Without secrets; of the store's URL what is none: a host that is not the expected one is what people look for."""
    if isinstance(value, SecretStr):
        return _address(value.get_secret_value()) if key == f"{PREFIX}STORE__URL" else HIDDEN
    return str(value) if isinstance(value, Path) else value


def _address(url: str) -> str:
    """A checked URL without user, password and options."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    user = f"{HIDDEN}@" if "@" in parts.netloc else ""
    return f"{parts.scheme}://{user}{host}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None or value == "":
        return "unset"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()  # a default is no secret
    return f"`{value}`"


_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path", SecretStr: "secret"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _takes(field: FieldInfo) -> str:
    """What a value may be, in a few words."""
    annotation: Any = field.annotation
    metadata = list(field.metadata)
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        metadata += more
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(one for one in get_args(annotation) if one is not NoneType)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(annotation))
    told = [_PLAIN[annotation]]
    for one in metadata:
        told += [f"{sign} {getattr(one, bound):,}" for bound, sign in _BOUNDS.items() if hasattr(one, bound)]
        if pattern := getattr(one, "pattern", None):
            told.append("`" + pattern.removeprefix("^").removesuffix("$") + "`")
        if getattr(one, "min_length", None):
            told.append("not empty")
    return ", ".join(told)
