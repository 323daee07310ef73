"""Where settings come from, strongest first, and which of them a value came from.

1. arguments          of `load_settings`
2. environment        `NEARLINE_KAFKA__TOPIC=plays`, or `NEARLINE_KAFKA__SASL_PASSWORD_FILE=/run/secrets/x`: the value is the file's text
3. `.env`             the same lines, in a file of the working directory
4. a settings file    TOML, one table a section: the one that `NEARLINE_SETTINGS_FILE` names, else `nearline.toml` of the working
                      directory if there is one
5. defaults

Every source is held against the known keys: one that is none is refused with the nearest that is.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    TomlConfigSettingsSource,
)

from contracts.errors import SettingsError

PREFIX = "NEARLINE_"
SETTINGS_FILE = f"{PREFIX}SETTINGS_FILE"
DEFAULT_FILE = "nearline.toml"

NOT_SETTINGS = ("NEARLINE_REQUIRE", "NEARLINE_FULL", "NEARLINE_VENV", "NEARLINE_CACHE_DIR", "NEARLINE_TEST_")
"""Read by tests and by ./run, not settings of a service."""

_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
"""Variables that Kubernetes writes into every container for every Service of its namespace, by the Service's name."""


class Layer(NamedTuple):
    """One source."""

    name: str
    """As people are told: `environment`, `.env`, a path."""
    source: PydanticBaseSettingsSource
    files: Mapping[str, str] = {}  # a NamedTuple's default, never written
    """Key → `KEY_FILE=path`, for values that were read from a file of their own."""

    def origins(self) -> dict[str, str]:
        """Key → where its value came from, for every key that this source has."""
        return {key: self.files.get(key, self.name) for key in _keys_of(self.source())}


def known_keys(settings_cls: type[BaseModel]) -> list[str]:
    """Every key, as an environment variable: `NEARLINE_KAFKA__TOPIC`."""
    keys = []
    for name, field in settings_cls.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            keys += [f"{PREFIX}{name}__{inner}".upper() for inner in section.model_fields]
        else:
            keys.append(f"{PREFIX}{name}".upper())
    return keys


def nearest(word: str, words: list[str]) -> str:
    """`; did you mean …?`, or nothing."""
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def open_layers(settings_cls: type[BaseSettings]) -> list[Layer]:
    """The sources, strongest first, without arguments and defaults.

    Errors: `SettingsError` for a key that is none, a file that cannot be read, and a key that is set twice in one place.
    """
    known = known_keys(settings_cls)
    environment = EnvSettingsSource(settings_cls).env_vars
    dotenv = DotEnvSettingsSource(settings_cls).env_vars
    layers = [
        _open_variables(settings_cls, "environment", environment, known),
        _open_variables(settings_cls, ".env", dotenv, known),
    ]
    file = environment.get(SETTINGS_FILE.lower()) or dotenv.get(SETTINGS_FILE.lower())
    if file or Path(DEFAULT_FILE).is_file():
        layers.append(_open_file(settings_cls, file or DEFAULT_FILE, known, named=bool(file)))
    return layers


class _Variables(EnvSettingsSource):
    """Variables that were read already."""

    def __init__(self, settings_cls: type[BaseSettings], variables: Mapping[str, str | None]) -> None:
        self._given = variables
        super().__init__(settings_cls)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return self._given


def _open_variables(
    settings_cls: type[BaseSettings], name: str, variables: Mapping[str, str | None], known: list[str]
) -> Layer:
    """The settings among the variables, with the contents of those files that `…_FILE` names."""
    values: dict[str, str | None] = {}
    files: dict[str, str] = {}
    for variable, value in variables.items():
        key = variable.upper()
        if not key.startswith(PREFIX) or key.startswith(NOT_SETTINGS) or key == SETTINGS_FILE:
            continue
        stem = key.removesuffix("_FILE")
        if key in known:
            values[key.lower()] = value
        elif stem != key and stem in known:
            files[stem] = f"{key}={value}"
        else:
            raise SettingsError(f"{key}: no such setting{_hint(key, value, known)}{_where(name)}")
    for stem, given in files.items():
        if stem.lower() in values:
            raise SettingsError(f"{stem} and {stem}_FILE are both set{_where(name)}: unset one of them")
        values[stem.lower()] = _read_secret(given)
    return Layer(name, _Variables(settings_cls, values), files)


def _hint(key: str, value: str | None, known: list[str]) -> str:
    if _SERVICE_LINK.search(key) or (key.endswith("_PORT") and "://" in (value or "")):
        return "; Kubernetes writes it for a Service of that name: set enableServiceLinks: false in the pod's spec"
    return nearest(key, known) + " (nearline settings lists them)"


def _where(name: str) -> str:
    """In a message; the environment is where people look first."""
    return "" if name == "environment" else f" [from {name}]"


def _read_secret(given: str) -> str:
    """The file's text, last newline cut."""
    path = given.partition("=")[2]
    try:
        return Path(path).read_text().rstrip("\n")
    except OSError as error:
        raise SettingsError(f"{given}: cannot read the secret file ({error.strerror})") from error
    except UnicodeDecodeError:
        raise SettingsError(f"{given}: the secret file is not text in UTF-8") from None


def _open_file(settings_cls: type[BaseSettings], path: str, known: list[str], *, named: bool) -> Layer:
    told = f"{SETTINGS_FILE}={path}" if named else path
    try:
        if not Path(path).is_file():
            raise SettingsError(f"{told}: there is no such file")
        source = TomlConfigSettingsSource(settings_cls, Path(path))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f'{told}: is not TOML ({error}); e.g. [kafka] and below it topic = "playback"') from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        raise SettingsError(f"{told}: cannot be read ({reason})") from error
    sections = {key.split("__")[0] for key in known if "__" in key}
    for key in _keys_of(source.toml_data):
        if key not in known and key not in sections:  # a section that is no table: its type is what is wrong with it
            raise SettingsError(f"{_in_file(key)}: no such setting{_nearest_in_file(key, known)} [from {path}]")
    return Layer(path, source)


def _in_file(key: str) -> str:
    """`NEARLINE_KAFKA__TOPIC` as it is written in TOML: `[kafka] topic`."""
    section, _, inner = key.removeprefix(PREFIX).lower().partition("__")
    return f"[{section}] {inner}" if inner else section


def _nearest_in_file(key: str, known: list[str]) -> str:
    return nearest(_in_file(key), [_in_file(one) for one in known])


def _keys_of(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    for name, value in tree.items():
        here = (*path, str(name))
        if isinstance(value, Mapping) and len(here) == 1:
            yield from _keys_of(value, here)
        else:
            yield (PREFIX + "__".join(here)).upper()
