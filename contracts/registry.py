"""A schema registry in a folder: subjects, their versions, and the id that every record carries. No server, no lock.

(`runtime/schema_server.py` reads a Confluent-compatible registry's server into the same value.)

Layout: `index.json` lists, per subject (`playback_event-value`), its versions with schema id and file name; each file holds one
schema. Ids are never reused and files never change, so a record written years ago still names the schema that wrote it.

A schema is refused when decoding could be made to cost more than its bytes: recursive ones crash the decoder, and items of
zero width let a seven-byte count allocate without bound.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contracts.errors import ContractError

Schema = dict[str, Any] | list[Any] | str
"""An Avro schema as parsed JSON."""

DEFAULT_PATH = Path(__file__).parent / "registry"
"""The committed registry."""

SCHEMAS_PATH = Path(__file__).parent / "schemas"
"""The schemas this code reads and writes: `<name>.avsc`, subject `<name>-value`."""

MAX_SCHEMA_DEPTH = 64
"""Levels of objects and lists: several times what ours have."""

MAX_SCHEMA_BYTES = 64 * 1024
"""Longest schema file, bytes: ten times the largest one here; a bigger one is a mistake."""

FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
"""A schema's file lies beside the index: no path, no device."""

MAX_DEPTH = 16
"""Deepest nesting of a schema: bounds the decoder's recursion."""

MAX_SCHEMA_ID = 2**31 - 1
"""Confluent's ids are positive 32-bit numbers."""

MAX_ID_IN_FOLDER = 1_000_000
"""A folder's ids count up from 1: a greater one is noise behind a zero byte, and waiting for it would block the partition for ever.
A server can be asked, and its ids may be any."""

_PRIMITIVE_WIDTHS = {
    "null": 0, "boolean": 1, "int": 1, "long": 1, "float": 4, "double": 8, "bytes": 1, "string": 1,
}  # fmt: skip
"""Fewest bytes of a value of each primitive type."""


@dataclass(frozen=True, slots=True)
class Version:
    """One registered schema of a subject. `version` counts from 1 within the subject."""

    subject: str
    version: int
    schema_id: int
    schema: Schema


@dataclass(frozen=True, slots=True)
class Registry:
    """Every registered schema, as read at one moment. Immutable: `load` again to see what was registered since."""

    path: Path
    subjects: Mapping[str, tuple[Version, ...]]
    server: str = ""
    """The address of the server that it was read from; empty: from the folder `path`."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Contract → its subject on the server (`playback_event` → `playback-value`); others are named after the contract."""
    guids: Mapping[bytes, int] = field(default_factory=dict)
    """GUID → schema id, of the versions here."""
    refused: Mapping[int | bytes, str] = field(default_factory=dict)
    """Ids and GUIDs that no record of ours can be read by → why."""
    is_read: bool = True
    """False: the server has not answered yet; nothing can be encoded, and whatever is to be decoded waits."""

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return self.server or str(self.path)

    @property
    def max_id(self) -> int:
        """A greater id cannot be one of its."""
        return MAX_SCHEMA_ID if self.server else MAX_ID_IN_FOLDER

    def subject(self, name: str) -> str:
        """The subject of a contract."""
        return self.names.get(name) or subject_for(name)

    @classmethod
    def load(cls, path: Path | str | None = None) -> Registry:
        """Read the registry in `path` (None: the committed one).

        Raises `ContractError` if it is malformed, has a duplicate, or holds a schema that is unsafe to decode."""
        folder = Path(path) if path is not None else DEFAULT_PATH
        index_path = folder / "index.json"
        index = read_json(index_path)
        subjects: dict[str, tuple[Version, ...]] = {}
        owners: dict[int, str] = {}
        try:
            for subject, rows in index["subjects"].items():
                versions = tuple(
                    Version(subject, int(row["version"]), int(row["id"]), read_json(folder / _file_name(row["file"])))
                    for row in rows
                )
                _check_versions(index_path, subject, versions, owners)
                subjects[subject] = versions
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ContractError(
                f"{index_path}: malformed index ({error!r}); restore it from version control"
            ) from error
        return cls(folder, subjects)

    def versions(self, subject: str) -> tuple[Version, ...]:
        """The subject's versions, oldest first; empty if it is not registered."""
        return self.subjects.get(subject, ())

    def find(self, subject: str, schema: Schema) -> Version | None:
        """The version that holds this schema (documentation aside), or None."""
        wanted = without_docs(schema)
        return next((one for one in self.versions(subject) if without_docs(one.schema) == wanted), None)

    def subject_of(self, schema_id: int) -> str | None:
        """The subject that a schema id belongs to, or None."""
        for subject, versions in self.subjects.items():
            if any(one.schema_id == schema_id for one in versions):
                return subject
        return None

    @property
    def next_id(self) -> int:
        """The id that the next registered schema gets."""
        return 1 + max((one.schema_id for versions in self.subjects.values() for one in versions), default=0)


def _file_name(name: Any) -> str:
    if not isinstance(name, str) or FILE_NAME.fullmatch(name) is None:
        raise ValueError("a schema's file is named by A-Z a-z 0-9 . _ -")
    return name


def subject_for(name: str) -> str:
    """`home_row` → `home_row-value`."""
    return f"{name}-value"


def read_json(path: Path) -> Any:
    """Parsed content of a small JSON file; raises `ContractError` naming the file."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_SCHEMA_BYTES + 1)
    except OSError as error:
        raise ContractError(f"{path}: cannot be read ({error.strerror})") from error
    if len(raw) > MAX_SCHEMA_BYTES:
        raise ContractError(f"{path}: more than the {MAX_SCHEMA_BYTES} bytes that a schema may have")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ContractError(f"{path}: not JSON ({error})") from error
    if _is_deeper(content, MAX_SCHEMA_DEPTH):
        raise ContractError(f"{path}: nested deeper than the {MAX_SCHEMA_DEPTH} levels that a schema may have")
    return content


def _is_deeper(content: Any, depth: int) -> bool:
    """Level by level: from Python 3.12 on the parser takes what no recursion of ours survives."""
    level = [content]
    while level and depth >= 0:
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [value for values in inner for value in values]
        depth -= 1
    return bool(level)


def without_docs(schema: Any) -> Any:
    """The schema without its `doc` texts: what decides how bytes are read."""
    if isinstance(schema, dict):
        return {
            key: value if key == "default" else without_docs(value) for key, value in schema.items() if key != "doc"
        }
    if isinstance(schema, list):
        return [without_docs(one) for one in schema]
    return schema


def schema_problems(schema: Schema) -> list[str]:
    """Why this schema must not be used to decode bytes from outside; empty if it may."""
    problems: list[str] = []
    _Walk(problems).width(schema, "", "schema", 0)
    return problems


class _Walk:
    """One walk over a schema: resolves names, finds cycles, and computes the fewest bytes of each value."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        self.open: set[str] = set()
        self.named: dict[str, int] = {}

    def width(self, schema: Any, namespace: str, where: str, depth: int) -> int:
        """Fewest bytes that a value takes. Appends to `problems`; a broken part counts as one byte."""
        if depth > MAX_DEPTH:
            self.problems.append(f"{where}: nested deeper than {MAX_DEPTH} levels")
            return 1
        if isinstance(schema, str):
            return self._reference(schema, namespace, where)
        if isinstance(schema, list):
            for number, branch in enumerate(schema):
                self.width(branch, namespace, f"{where}[{number}]", depth + 1)
            return 1
        if not isinstance(schema, dict) or "type" not in schema:
            self.problems.append(f"{where}: not a schema")
            return 1
        kind = schema["type"]
        if kind == "array" or kind == "map":
            inner = "items" if kind == "array" else "values"
            width = self.width(schema.get(inner), namespace, f"{where}.{inner}", depth + 1)
            if kind == "array" and width == 0:
                self.problems.append(f"{where}: items of zero width: a few bytes could claim any number of them")
            return 1
        if kind in ("record", "enum", "fixed"):
            return self._named(schema, namespace, where, depth)
        return self.width(kind, namespace, where, depth + 1)

    def _reference(self, name: str, namespace: str, where: str) -> int:
        if name in _PRIMITIVE_WIDTHS:
            return _PRIMITIVE_WIDTHS[name]
        full = _full_name(name, namespace)
        if full in self.open:
            self.problems.append(f"{where}: recursive ({full} within itself): a few bytes could nest without bound")
            return 1
        if full not in self.named:
            self.problems.append(f"{where}: unknown type {full}")
            return 1
        return self.named[full]

    def _named(self, schema: dict[str, Any], namespace: str, where: str, depth: int) -> int:
        full = _full_name(str(schema.get("name", "")), str(schema.get("namespace", namespace)))
        if full in self.named or full in self.open:
            self.problems.append(f"{where}: {full} is defined twice")
            return 1
        inner = full.rpartition(".")[0]
        if schema["type"] == "enum":
            width = 1
        elif schema["type"] == "fixed":
            size = schema.get("size")
            width = size if isinstance(size, int) else 0
        else:
            self.open.add(full)
            fields = schema.get("fields")
            width = 0
            if not isinstance(fields, list):
                self.problems.append(f"{where}: a record without a list of fields")
            for field in fields if isinstance(fields, list) else []:
                name = field.get("name") if isinstance(field, dict) else None
                width += self.width(field.get("type") if name else None, inner, f"{where}.{name}", depth + 1)
            self.open.discard(full)
        self.named[full] = width
        return width


def _full_name(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _check_versions(path: Path, subject: str, versions: tuple[Version, ...], owners: dict[int, str]) -> None:
    """Raise `ContractError` for a gap, a duplicate id, a duplicate schema or an unsafe schema; add the ids to `owners`."""
    if [one.version for one in versions] != list(range(1, len(versions) + 1)):
        raise ContractError(f"{path}: {subject}: versions must count from 1 without gaps")
    seen: list[Any] = []
    for one in versions:
        where = f"{path}: {subject} version {one.version}"
        if not 0 < one.schema_id <= MAX_SCHEMA_ID:
            raise ContractError(f"{where}: schema id {one.schema_id} is not a positive 32-bit number")
        if one.schema_id in owners:
            raise ContractError(f"{where}: schema id {one.schema_id} already belongs to {owners[one.schema_id]}")
        owners[one.schema_id] = f"{subject} version {one.version}"
        if without_docs(one.schema) in seen:
            raise ContractError(f"{where}: the same schema is registered twice")
        seen.append(without_docs(one.schema))
        problems = schema_problems(one.schema)
        if problems:
            raise ContractError(f"{where}: {'; '.join(problems)}")
