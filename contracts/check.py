"""May this schema follow those that are registered? And the one way to register it.

Both directions count: an updater is upgraded while older players still write (the new reader reads every registered writer), and a
writer is upgraded while an older updater still runs (every registered reader reads the new writer). Avro's own checker
decides; it ignores logical types, so a change of unit (milliseconds to microseconds) is looked for here.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType, lookup_writer_field
from avro.errors import AvroException
from avro.schema import RecordSchema, parse

from contracts.errors import ContractError
from contracts.registry import (
    SCHEMAS_PATH,
    Registry,
    Schema,
    Version,
    read_json,
    schema_problems,
    without_docs,
)

Status = Literal["ok", "unregistered", "incompatible"]


@dataclass(frozen=True, slots=True)
class SubjectReport:
    """What was found for one schema file. `hint` says what to do; empty when nothing is to be done."""

    subject: str
    file: str
    status: Status
    schema_id: int | None
    problems: tuple[str, ...]
    hint: str


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome for every schema file of a folder."""

    subjects: tuple[SubjectReport, ...]

    @property
    def ok(self) -> bool:
        """Every schema is registered as it stands."""
        return all(one.status == "ok" for one in self.subjects)

    @property
    def compatible(self) -> bool:
        """No schema would break a reader; some may still have to be registered."""
        return all(one.status != "incompatible" for one in self.subjects)


def check_compatibility(old: Schema, new: Schema) -> list[str]:
    """Why `new` must not follow `old`: each problem names the direction and the field. Empty if it may."""
    problems = [f"FORWARD (a reader of the old schema, a writer of the new): {one}" for one in _cannot_read(old, new)]
    problems += [f"BACKWARD (a reader of the new schema, a writer of the old): {one}" for one in _cannot_read(new, old)]
    problems += _unit_changes(old, new)
    return problems


def check(schemas_dir: Path | str | None = None, registry: Registry | None = None) -> Report:
    """Compare every `.avsc` in `schemas_dir` (None: those of this code) with its registered versions."""
    folder = Path(schemas_dir) if schemas_dir is not None else SCHEMAS_PATH
    known = registry if registry is not None else Registry.load()
    files = [file for file in sorted(folder.glob("*.avsc")) if not known.names or file.stem in known.names]
    if not files:
        raise ContractError(f"{folder}: no .avsc file; name the folder that holds the schemas")
    reports = [_check_file(file, known) for file in files]
    named = {one.subject for one in reports}
    reports += [
        SubjectReport(
            subject, "", "incompatible", None, ("the schema file is gone, while the subject is registered",),
            f"restore {folder / subject.removesuffix('-value')}.avsc",
        )
        for subject in known.subjects
        if subject not in named
    ]  # fmt: skip
    return Report(tuple(reports))


def register(file: Path | str, registry: Registry) -> Registry:
    """Add the schema in `file` (`<name>.avsc`) to the registry's folder and return the registry as it is then.

    Registering a registered schema changes nothing. Raises `ContractError` if the schema is unsafe or incompatible. The schema
    file is written first and the index replaced last: a crash in between leaves an unused file, which the next try overwrites.
    """
    path = Path(file)
    report = check_file(path, registry)
    if report.status == "ok":
        return registry
    schema = read_json(path)
    versions = registry.versions(report.subject)
    added = Version(report.subject, len(versions) + 1, registry.next_id, schema)
    subjects = dict(registry.subjects) | {report.subject: (*versions, added)}
    registry.path.mkdir(parents=True, exist_ok=True)
    _replace(registry.path / _file_name(added), schema)  # 1: the schema
    _replace(registry.path / "index.json", _index(subjects))  # 2: the index that names it
    return Registry.load(registry.path)


def open_or_create(path: Path | str) -> Registry:
    """The registry in `path`; an empty one (nothing written yet) if the folder has no index."""
    folder = Path(path)
    return Registry.load(folder) if (folder / "index.json").exists() else Registry(folder, {})


def check_file(path: Path, registry: Registry) -> SubjectReport:
    """One schema, which must not be refused. Errors: `ContractError` if it is incompatible."""
    report = _check_file(path, registry)
    if report.status == "incompatible":
        raise ContractError(f"{path}: not registered: " + "; ".join(report.problems))
    return report


def _check_file(path: Path, registry: Registry) -> SubjectReport:
    subject = registry.subject(path.stem)
    schema = read_json(path)
    problems = schema_problems(schema)
    same = registry.find(subject, schema)
    versions = registry.versions(subject)
    if same is not None and (same is versions[-1] or registry.server):  # there producers may be ahead of us
        return SubjectReport(subject, str(path), "ok", same.schema_id, (), "")
    if not problems and same is not None:
        problems = [f"is version {same.version}, while version {versions[-1].version} is registered: do not go back"]
    if not problems:
        problems = _avro_problems(schema) or [
            f"version {one.version}: {problem}"
            for one in versions
            for problem in check_compatibility(one.schema, schema)
        ]
    if problems:
        hint = f"change {path.name}: give a new field a default, keep removed fields, append enum symbols, keep types"
        return SubjectReport(subject, str(path), "incompatible", None, tuple(problems), hint)
    where = f" --registry {registry.server}" if registry.server else ""
    return SubjectReport(subject, str(path), "unregistered", None, (), f"nearline contracts register {path}{where}")


def _avro_problems(schema: Schema) -> list[str]:
    try:
        parse(json.dumps(schema))
    except AvroException as error:
        return [f"not Avro: {error}"]
    return []


def _cannot_read(reader_schema: Schema, writer_schema: Schema) -> list[str]:
    """Problems of a reader of one schema with values of the other, each naming its field."""
    reader, writer = parse(json.dumps(reader_schema)), parse(json.dumps(writer_schema))
    problems = []
    if isinstance(reader, RecordSchema) and isinstance(writer, RecordSchema):
        for field in reader.fields:
            sent = lookup_writer_field(writer_schema=writer, reader_field=field)
            if sent is None:
                if not field.has_default:
                    problems.append(f"field {field.name}: not sent, and without a default")
                continue
            found = _checker().get_compatibility(field.type, sent.type)
            if found.compatibility is not SchemaCompatibilityType.compatible:
                problems.append(f"field {field.name}: {', '.join(sorted(found.messages))}")
    whole = _checker().get_compatibility(reader, writer)
    if whole.compatibility is not SchemaCompatibilityType.compatible and not problems:
        problems.append(f"{', '.join(sorted(whole.messages))} at {', '.join(sorted(whole.locations))}")
    return problems


def _checker() -> ReaderWriterCompatibilityChecker:
    return ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call]  # avro types all but its constructor


def _unit_changes(old: Schema, new: Schema) -> list[str]:
    before, after = _logical_types(old), _logical_types(new)
    return [
        f"BOTH: field {name}: logical type {before[name]} became {after[name]}: every value would be misread"
        for name in before
        if name in after and before[name] != after[name]
    ]


def _logical_types(schema: Schema) -> dict[str, list[str]]:
    """Field name → the logical types in its schema, for the fields of the outermost record."""
    fields = schema.get("fields", []) if isinstance(schema, dict) else []
    return {field["name"]: _collect(without_docs(field["type"])) for field in fields}


def _collect(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [name for one in schema for name in _collect(one)]
    if isinstance(schema, dict):
        own = [str(schema["logicalType"])] if "logicalType" in schema else []
        return own + [name for key, value in schema.items() if key != "default" for name in _collect(value)]
    return []


def _file_name(version: Version) -> str:
    return f"{version.subject}.v{version.version}.avsc"


def _index(subjects: dict[str, tuple[Version, ...]]) -> dict[str, Any]:
    return {
        "subjects": {
            subject: [{"version": one.version, "id": one.schema_id, "file": _file_name(one)} for one in versions]
            for subject, versions in sorted(subjects.items())
        }
    }


def _replace(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as out:
        json.dump(content, out, indent=2, ensure_ascii=False)
        out.write("\n")
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
