"""Avro in Confluent's framing (`contracts/framing.py`): which schema wrote it, then the body. Alone imports fastavro.

fastavro accepts what no honest writer sends (trailing bytes, index −1 of an enum or a union, over-long numbers). So a value counts
only if the writer's schema is registered for its subject, the record is short, and encoding the decoded value again would
give the same bytes. `contracts/flat.py` checks that while it reads; for a schema that it cannot read, the value is encoded again
and compared. Whatever goes wrong inside is one error, `UndecodableRecord`, which never quotes the payload.

Records of older (or newer) registered schemas are read by schema resolution into the schema that this code was written for.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from fastavro import parse_schema, schemaless_reader, schemaless_writer

from contracts.catalogue import CatalogueItem
from contracts.errors import ContractError, UndecodableRecord, UnknownSchema
from contracts.events import Kind, PlaybackEvent
from contracts.flat import BOOLEAN, ENUM, INT, LONG, OPTIONAL, STRING, compile_flat
from contracts.framing import V0_BYTES, V1, V1_BYTES
from contracts.registry import SCHEMAS_PATH, Registry, Schema, read_json
from contracts.row_columns import RowColumns, read_columns, read_row, row_record
from contracts.rows import HomeRow, Impression

MAX_RECORD_BYTES = 16 * 1024
"""Longest framed record, bytes. A home row of 60 entries with ids of 128 characters and three reasons each takes 12 KiB."""

MAGIC = b"\x00"
HEADER_BYTES = V0_BYTES

T = TypeVar("T")
Record = dict[str, Any]


class Codec:
    """Encodes and decodes everything that crosses a process boundary. Immutable; safe to share between threads.

    Decoding raises `UndecodableRecord` (this record can never be read) or `UnknownSchema` (the registry may learn the id: load
    it again, build a new codec, try again). Encoding raises `ContractError` if the value cannot be written.
    """

    def __init__(self, registry: Registry, schemas: Path = SCHEMAS_PATH, rows: Registry | None = None) -> None:
        """`rows`: where the schema of rows is, if not there: rows never leave the store. Raises `ContractError` if a schema of this code
        is not registered."""
        self.registry = registry
        self._event = _Subject(registry, "playback_event", schemas)
        self._row = _Subject(rows or registry, "home_row", schemas)
        self._item = _Subject(registry, "catalogue_item", schemas)
        self._impression = _Subject(registry, "impression", schemas)

    @classmethod
    def load(cls, path: Path | str | None = None) -> Codec:
        """A codec over the registry in `path` (None: the committed one)."""
        return cls(Registry.load(path))

    def encode_event(self, event: PlaybackEvent) -> bytes:
        """One record value of the playback topic."""
        return self._event.encode(_event_record(event))

    def decode_event(self, data: bytes) -> PlaybackEvent:
        """The event in a record value of the playback topic; `contracts.events.validate` comes next."""
        return self._event.decode(data, _read_event)

    @property
    def event_header(self) -> bytes | None:
        """The five bytes before the body of an event, if its schema is the one that `viewers/kernel_events.py` reads; else None."""
        flat = self._event.flat
        as_read = flat is not None and tuple((op, name) for op, name, _ in flat.fields) == _EVENT_FIELDS
        return self._event.header if as_read else None

    def encode_row(self, row: HomeRow) -> bytes:
        """Field `r` of the viewer's hash. Scores are kept as float16; ids are 1-255 ASCII characters."""
        return self._row.encode(row_record(row))

    def decode_row(self, data: bytes) -> HomeRow:
        """The row in field `r` (which must not be empty)."""
        return self._row.decode(data, read_row)

    def decode_columns(self, data: bytes) -> RowColumns:
        """As `decode_row`, by its columns: half the time, for who needs no object for each entry."""
        return self._row.decode(data, read_columns)

    def encode_item(self, item: CatalogueItem) -> bytes:
        """One record value of the catalogue topic."""
        return self._item.encode(_item_record(item))

    def decode_item(self, data: bytes) -> CatalogueItem:
        """The title in a record value of the catalogue topic."""
        return self._item.decode(data, _read_item)

    def encode_impression(self, impression: Impression) -> bytes:
        """One record value of the impressions topic."""
        return self._impression.encode(_impression_record(impression))

    def decode_impression(self, data: bytes) -> Impression:
        """The impression in a record value of the impressions topic."""
        return self._impression.decode(data, _read_impression)


class _Subject:
    """The schemas of one subject: the one this code writes and reads into, and every registered writer's."""

    __slots__ = ("flat", "flats", "guids", "header", "name", "registry", "schema_id", "writers")

    def __init__(self, registry: Registry, name: str, schemas: Path) -> None:
        self.name = registry.subject(name)
        self.registry = registry
        self.guids = registry.guids
        schema = read_json(schemas / f"{name}.avsc")
        version = registry.find(self.name, schema)
        if version is None and registry.is_read:
            raise ContractError(
                f"{schemas / name}.avsc is not registered as {self.name} in {registry.place}; run: nearline contracts register"
                + (f" --registry {registry.server}" if registry.server else "")
            )
        self.schema_id = 0 if version is None else version.schema_id
        self.header = MAGIC + self.schema_id.to_bytes(4, "big")
        self.writers = {one.schema_id: _parse(one.schema) for one in registry.versions(self.name)}
        self.flats = {one.schema_id: compile_flat(one.schema) for one in registry.versions(self.name)}
        self.flat = self.flats.get(self.schema_id)

    def encode(self, record: Record) -> bytes:
        """Frame and body; raises `ContractError` if the value does not fit the schema or is too long, `UnknownSchema` if the registry
        has not answered yet."""
        if not self.schema_id:
            raise UnknownSchema(f"{self.name}: {self.registry.place} has not been read yet")
        try:
            data = self.header + (
                self.flat.encode(record) if self.flat is not None else _write(self.writers[self.schema_id], record)
            )
        except Exception as error:
            raise ContractError(f"{self.name}: a value does not fit the schema ({type(error).__name__})") from error
        if len(data) > MAX_RECORD_BYTES:
            raise ContractError(
                f"{self.name}: {len(data)} bytes, more than the {MAX_RECORD_BYTES} that a record may have"
            )
        return data

    def decode(self, data: bytes, build: Callable[[Record], T]) -> T:
        """The value, built by `build`; raises `UndecodableRecord` or `UnknownSchema`."""
        length = len(data)
        if length > MAX_RECORD_BYTES or length < HEADER_BYTES or data[0] != 0:
            schema_id, at = self._written_by_guid(data), V1_BYTES
        else:
            schema_id, at = int.from_bytes(data[1:HEADER_BYTES], "big"), HEADER_BYTES
            if schema_id not in self.writers:
                raise self._unknown(schema_id)
        problem = "not the canonical bytes of its value"
        try:
            record = self._read(data, at, schema_id)
            if record is not None:
                return build(record)
        except Exception as error:  # noqa: BLE001 - decoding errors are of any class; all mean the same
            # Only the class is told: the texts of decoding errors quote values, and so would the chained cause.
            problem = f"{type(error).__name__} while decoding"
        raise UndecodableRecord(f"{self.name}: schema id {schema_id}: {problem}")

    def _read(self, data: bytes, at: int, schema_id: int) -> Record | None:
        """The record whose body begins at `at`, as this code's schema has it; None if its bytes are not canonical."""
        body = data[at:]
        writer, flat = self.writers[schema_id], self.flats[schema_id]
        if flat is not None:
            record = flat.decode(data, at)
        else:
            record = _read(body, writer, None)
            if _write(writer, record) != body:
                return None
        return record if schema_id == self.schema_id else _read(body, writer, self.writers[self.schema_id])

    def _written_by_guid(self, data: bytes) -> int:
        """The writer's schema id of a value in the v1 framing. Raises `UndecodableRecord`, `UnknownSchema`."""
        if not V1_BYTES <= len(data) <= MAX_RECORD_BYTES or data[0] != V1:
            raise UndecodableRecord(self._framing_problem(data))
        guid = data[1:V1_BYTES]
        schema_id = self.guids.get(guid, 0)
        if schema_id not in self.writers:
            raise self._unknown(guid)
        return schema_id

    def _framing_problem(self, data: bytes) -> str:
        if len(data) > MAX_RECORD_BYTES:
            return f"{self.name}: {len(data)} bytes, more than the {MAX_RECORD_BYTES} that a record may have"
        if len(data) < HEADER_BYTES:
            return f"{self.name}: {len(data)} bytes, fewer than the {HEADER_BYTES} of the frame"
        if data[0] == V1:
            return f"{self.name}: {len(data)} bytes, fewer than the {V1_BYTES} of the frame"
        return f"{self.name}: does not start with 0x00: not in Confluent's framing"

    def _unknown(self, schema: int | bytes) -> Exception:
        """What to do about an id, or a GUID, that is none of this subject's."""
        registry = self.registry
        told = f"schema id {schema}" if isinstance(schema, int) else f"schema GUID {UUID(bytes=schema)}"
        owner = registry.subject_of(schema if isinstance(schema, int) else registry.guids.get(schema, 0))
        if owner is not None:
            return UndecodableRecord(f"{told} belongs to {owner}, not to {self.name}")
        if schema in registry.refused:
            return UndecodableRecord(f"{self.name}: {told} {registry.refused[schema]}")
        if isinstance(schema, int) and not 0 < schema <= registry.max_id:
            return UndecodableRecord(f"{self.name}: {told} cannot be a registry's")
        if isinstance(schema, bytes) and not registry.server:
            return UndecodableRecord(f"{self.name}: {told}: only a registry's server knows GUIDs")
        return UnknownSchema(
            f"{self.name}: {told} is not in the registry {registry.place}; register the writer's schema", schema
        )


def _parse(schema: Schema) -> Any:
    """Parsed once, without logical types: times stay whole milliseconds, and no date can overflow."""
    try:
        return parse_schema(_without_logical_types(schema))
    except Exception as error:
        raise ContractError(f"a registered schema is not Avro: {error}") from error


def _without_logical_types(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {key: _without_logical_types(value) for key, value in schema.items() if key != "logicalType"}
    if isinstance(schema, list):
        return [_without_logical_types(one) for one in schema]
    return schema


def _read(body: bytes, writer: Any, reader: Any) -> Any:
    return schemaless_reader(BytesIO(body), writer, reader)


def _write(schema: Any, record: Any) -> bytes:
    sink = BytesIO()
    schemaless_writer(sink, schema, record)
    return sink.getvalue()


# Values to records and back, one pair per contract.

_KINDS = {kind.value: kind for kind in Kind}

_EVENT_FIELDS = (
    (STRING, "event_id"),
    (ENUM, "kind"),
    (STRING, "viewer"),
    (LONG, "event_time"),
    (BOOLEAN, "private"),
    (OPTIONAL + STRING, "item_id"),
    (OPTIONAL + STRING, "play_id"),
    (OPTIONAL + LONG, "play_started_at"),
    (OPTIONAL + LONG, "watched_ms"),
    (OPTIONAL + LONG, "duration_ms"),
    (OPTIONAL + INT, "value"),
    (OPTIONAL + STRING, "preference"),
    (OPTIONAL + STRING, "row_id"),
    (OPTIONAL + INT, "row_position"),
)


def _event_record(event: PlaybackEvent) -> Record:
    return {
        "event_id": event.event_id,
        "kind": event.kind.value,
        "viewer": event.viewer,
        "event_time": event.event_time_ms,
        "private": event.private,
        "item_id": event.item_id,
        "play_id": event.play_id,
        "play_started_at": event.play_started_at_ms,
        "watched_ms": event.watched_ms,
        "duration_ms": event.duration_ms,
        "value": event.value,
        "preference": event.preference,
        "row_id": event.row_id,
        "row_position": event.row_position,
    }


def _read_event(record: Record) -> PlaybackEvent:
    return PlaybackEvent(
        record["event_id"],
        _KINDS[record["kind"]],
        record["viewer"],
        record["event_time"],
        record["private"],
        record["item_id"],
        record["play_id"],
        record["play_started_at"],
        record["watched_ms"],
        record["duration_ms"],
        record["value"],
        record["preference"],
        record["row_id"],
        record["row_position"],
    )


def _item_record(item: CatalogueItem) -> Record:
    return {
        "item_id": item.item_id,
        "title": item.title,
        "topics": list(item.topics),
        "creators": list(item.creators),
        "duration_ms": item.duration_ms,
        "maturity": item.maturity,
        "territories": list(item.territories),
        "available_from": item.available_from_ms,
        "available_until": item.available_until_ms,
        "released_at": item.released_at_ms,
        "taken_down": item.taken_down,
    }


def _read_item(record: Record) -> CatalogueItem:
    return CatalogueItem(
        record["item_id"],
        record["title"],
        tuple(record["topics"]),
        tuple(record["creators"]),
        record["duration_ms"],
        record["maturity"],
        tuple(record["territories"]),
        record["available_from"],
        record["available_until"],
        record["released_at"],
        record["taken_down"],
    )


def _impression_record(impression: Impression) -> Record:
    return {
        "impression_id": impression.impression_id,
        "viewer": impression.viewer,
        "row_id": impression.row_id,
        "generation_id": impression.generation_id,
        "served_at": impression.served_at_ms,
        "default_row": impression.default_row,
        "item_ids": list(impression.item_ids),
    }


def _read_impression(record: Record) -> Impression:
    return Impression(
        record["impression_id"],
        record["viewer"],
        record["row_id"],
        record["generation_id"],
        record["served_at"],
        record["default_row"],
        tuple(record["item_ids"]),
    )
