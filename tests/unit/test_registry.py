"""The registry and the compatibility check: what may be registered, and what an incompatible change is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contracts.check import check, check_compatibility, open_or_create, register
from contracts.errors import ContractError
from contracts.registry import SCHEMAS_PATH, Registry, schema_problems

RECORD: dict[str, Any] = {
    "type": "record",
    "name": "Thing",
    "namespace": "nearline",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "kind", "type": {"type": "enum", "name": "K", "symbols": ["unknown", "a"], "default": "unknown"}},
    ],
}


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(json.dumps(RECORD))
    change(schema)
    return schema


def write_schema(folder: Path, schema: Any, name: str = "thing") -> Path:
    file = folder / f"{name}.avsc"
    file.write_text(json.dumps(schema))
    return file


def test_the_schemas_of_this_code_are_registered_as_they_stand() -> None:
    """The working tree and the committed registry agree, and ids are what records already carry."""
    report = check()
    assert report.ok, [one for one in report.subjects if one.status != "ok"]
    ids = {one.subject: one.schema_id for one in report.subjects}
    assert ids == {"playback_event-value": 1, "home_row-value": 5, "catalogue_item-value": 3, "impression-value": 4}


@pytest.mark.parametrize("name", ["playback_event", "home_row", "catalogue_item", "impression"])
def test_every_field_of_every_schema_is_documented(name: str) -> None:
    """A reader in another language has nothing but the schema."""
    fields = json.loads((SCHEMAS_PATH / f"{name}.avsc").read_text())["fields"]
    assert fields
    assert [one["name"] for one in fields if not one.get("doc")] == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s["fields"].append({"name": "n", "type": "long"}), ["BACKWARD", "field n"]),
        (lambda s: s["fields"].pop(0), ["FORWARD", "field id"]),
        (lambda s: s["fields"][0].update(type="long"), ["field id"]),
        (lambda s: s["fields"][1].update(type="int"), ["field at"]),
        (lambda s: s["fields"][1].update(type={"type": "long", "logicalType": "timestamp-micros"}), ["at", "micros"]),
        (lambda s: s.update(name="Other"), ["Thing"]),
    ],
)
def test_an_incompatible_change_is_told_with_field_and_direction(
    change: Callable[[dict[str, Any]], Any], says: list[str], tmp_path: Path
) -> None:
    """It is reported, and it cannot be registered."""
    new = changed(change)
    problems = " | ".join(check_compatibility(RECORD, new))
    assert problems
    assert all(word in problems for word in says), problems
    registry = register(write_schema(tmp_path, RECORD), open_or_create(tmp_path / "registry"))
    file = write_schema(tmp_path, new)
    report = check(tmp_path, registry)
    assert [one.status for one in report.subjects] == ["incompatible"]
    assert not report.compatible
    with pytest.raises(ContractError, match="not registered"):
        register(file, registry)
    assert len(Registry.load(registry.path).versions("thing-value")) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["fields"].append({"name": "n", "type": ["null", "long"], "default": None}),
        lambda s: s["fields"][2]["type"]["symbols"].append("b"),
    ],
)
def test_a_compatible_change_is_told_how_to_register_and_gets_the_next_id(
    change: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    """A field with a default, or an appended symbol, becomes version 2; version 1 stays readable."""
    registry = register(write_schema(tmp_path, RECORD), open_or_create(tmp_path / "registry"))
    file = write_schema(tmp_path, changed(change))
    report = check(tmp_path, registry)
    (found,) = report.subjects
    assert (found.status, report.ok, report.compatible) == ("unregistered", False, True)
    assert "contracts register" in found.hint
    registry = register(file, registry)
    assert [(one.version, one.schema_id) for one in registry.versions("thing-value")] == [(1, 1), (2, 2)]
    assert check(tmp_path, registry).ok
    assert register(file, registry) is registry


def test_a_change_must_suit_every_registered_version_not_only_the_last(tmp_path: Path) -> None:
    """A field that version 1 reads without a default may not go, though version 2 gave it one."""
    registry = register(write_schema(tmp_path, RECORD), open_or_create(tmp_path / "registry"))
    registry = register(write_schema(tmp_path, changed(lambda s: s["fields"][0].update(default="x"))), registry)
    write_schema(tmp_path, changed(lambda s: s["fields"].pop(0)))
    (found,) = check(tmp_path, registry).subjects
    assert found.status == "incompatible"
    assert any(one.startswith("version 1: FORWARD") for one in found.problems)
    assert not any(one.startswith("version 2") for one in found.problems)


def test_going_back_to_an_earlier_version_is_refused(tmp_path: Path) -> None:
    """A registered schema that is no longer the last is told apart from an unknown one."""
    registry = register(write_schema(tmp_path, RECORD), open_or_create(tmp_path / "registry"))
    registry = register(write_schema(tmp_path, changed(lambda s: s["fields"][0].update(default="x"))), registry)
    write_schema(tmp_path, RECORD)
    (found,) = check(tmp_path, registry).subjects
    assert found.status == "incompatible"
    assert "version 1" in found.problems[0]


def test_documentation_may_change_freely(tmp_path: Path) -> None:
    """A doc text decides nothing about bytes, so it needs no new version."""
    registry = register(write_schema(tmp_path, RECORD), open_or_create(tmp_path / "registry"))
    write_schema(tmp_path, changed(lambda s: s["fields"][0].update(doc="An id.")))
    assert check(tmp_path, registry).ok


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "record", "name": "R", "fields": [{"name": "r", "type": ["null", "R"]}]}, "recursive"),
        (
            {"type": "record", "name": "R", "namespace": "n", "fields": [
                {"name": "a", "type": {"type": "array", "items": {"type": "record", "name": "S", "fields": [
                    {"name": "back", "type": ["null", "n.R"]}]}}}]},
            "recursive",
        ),
        ({"type": "array", "items": "null"}, "zero width"),
        ({"type": "array", "items": {"type": "record", "name": "E", "fields": []}}, "zero width"),
        ({"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}}, "zero width"),
        (
            {"type": "array", "items": {"type": "record", "name": "E", "fields": [{"name": "n", "type": "null"}]}},
            "zero width",
        ),
        ({"type": "record", "name": "R", "fields": [{"name": "x", "type": "Missing"}]}, "unknown type"),
        ({"name": "no type"}, "not a schema"),
    ],
)  # fmt: skip
def test_schemas_that_make_decoding_unbounded_are_refused(schema: Any, says: str, tmp_path: Path) -> None:
    """Recursion and items of zero width never enter the registry, nor does one that holds them load."""
    assert any(says in problem for problem in schema_problems(schema))
    registry = open_or_create(tmp_path / "registry")
    with pytest.raises(ContractError, match=says):
        register(write_schema(tmp_path, schema), registry)
    folder = tmp_path / "handmade"
    folder.mkdir()
    write_schema(folder, schema)
    index = {"subjects": {"thing-value": [{"version": 1, "id": 1, "file": "thing.avsc"}]}}
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(ContractError, match=says):
        Registry.load(folder)


def test_deep_nesting_is_refused_instead_of_overflowing_the_stack() -> None:
    """A schema of a thousand nested arrays is told, not followed."""
    schema: Any = "string"
    for _ in range(1000):
        schema = {"type": "array", "items": schema}
    assert any("deeper" in problem for problem in schema_problems(schema))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [{"version": 1, "id": 1, "file": "thing.avsc"}, {"version": 2, "id": 1, "file": "other.avsc"}],
            "already belongs",
        ),
        ([{"version": 1, "id": 1, "file": "thing.avsc"}, {"version": 2, "id": 2, "file": "thing.avsc"}], "twice"),
        ([{"version": 2, "id": 1, "file": "thing.avsc"}], "without gaps"),
        ([{"version": 1, "id": 0, "file": "thing.avsc"}], "positive"),
        ([{"version": 1, "id": 1}], "malformed"),
        ([{"version": 1, "id": 1, "file": "gone.avsc"}], "cannot be read"),
    ],
)
def test_a_registry_that_contradicts_itself_is_refused(rows: list[Any], says: str, tmp_path: Path) -> None:
    """Duplicate ids or schemas, gaps, and missing files are found when it is loaded."""
    write_schema(tmp_path, RECORD)
    write_schema(tmp_path, changed(lambda s: s["fields"][0].update(default="x")), "other")
    (tmp_path / "index.json").write_text(json.dumps({"subjects": {"thing-value": rows}}))
    with pytest.raises(ContractError, match=says):
        Registry.load(tmp_path)


def test_a_schema_file_over_the_limit_is_not_parsed(tmp_path: Path) -> None:
    """64 KiB is the most that is read."""
    file = tmp_path / "thing.avsc"
    file.write_text(" " * 70_000 + json.dumps(RECORD))
    with pytest.raises(ContractError, match="more than"):
        register(file, open_or_create(tmp_path / "registry"))


def test_a_folder_without_schemas_is_an_error_not_a_success(tmp_path: Path) -> None:
    """A mistyped folder must not look like a passed check."""
    with pytest.raises(ContractError, match=r"no \.avsc"):
        check(tmp_path)
