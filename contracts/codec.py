"""Avro in Confluent's framing: `0x00`, the writer's schema id as four big-endian bytes, the body. Alone imports fastavro.

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

from fastavro import parse_schema, schemaless_reader, schemaless_writer

from contracts.catalogue import CatalogueItem
from contracts.errors import ContractError, UndecodableRecord, UnknownSchema
from contracts.events import Kind, PlaybackEvent
from contracts.flat import BOOLEAN, ENUM, INT, LONG, OPTIONAL, STRING, compile_flat
from contracts.registry import SCHEMAS_PATH, Registry, Schema, read_json, subject_for
from contracts.row_columns import RowColumns, read_columns, read_row, row_record
from contracts.rows import HomeRow, Impression

MAX_RECORD_BYTES = 16 * 1024
"""Longest framed record, bytes. A home row of 60 entries with ids of 128 characters and three reasons each takes 12 KiB."""

MAX_SCHEMA_ID = 1_000_000
"""Registries count up from 1: a greater id is noise behind a zero byte, and waiting for it would block the partition for ever."""

MAGIC = b"\x00"
HEADER_BYTES = 5

T = TypeVar("T")
Record = dict[str, Any]


class Codec:
    """Encodes and decodes everything that crosses a process boundary. Immutable; safe to share between threads.

    Decoding raises `UndecodableRecord` (this record can never be read) or `UnknownSchema` (the registry may learn the id: load
    it again, build a new codec, try again). Encoding raises `ContractError` if the value cannot be written.
    """

    def __init__(self, registry: Registry, schemas: Path = SCHEMAS_PATH) -> None:
        """Raises `ContractError` if a schema of this code is not registered."""
        self.registry = registry
        self._event = _Subject(registry, "playback_event", schemas)
        self._row = _Subject(registry, "home_row", schemas)
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

    __slots__ = ("flat", "flats", "header", "name", "registry", "schema_id", "writers")

    def __init__(self, registry: Registry, name: str, schemas: Path) -> None:
        self.name = subject_for(name)
        self.registry = registry
        schema = read_json(schemas / f"{name}.avsc")
        version = registry.find(self.name, schema)
        if version is None:
            raise ContractError(
                f"{schemas / name}.avsc is not registered in {registry.path}; run: nearline contracts register"
            )
        self.schema_id = version.schema_id
        self.header = MAGIC + version.schema_id.to_bytes(4, "big")
        self.writers = {one.schema_id: _parse(one.schema) for one in registry.versions(self.name)}
        self.flats = {one.schema_id: compile_flat(one.schema) for one in registry.versions(self.name)}
        self.flat = self.flats[version.schema_id]

    def encode(self, record: Record) -> bytes:
        """Frame and body; raises `ContractError` if the value does not fit the schema or is too long."""
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
            raise UndecodableRecord(self._framing_problem(data))
        schema_id = int.from_bytes(data[1:HEADER_BYTES], "big")
        if schema_id not in self.writers:
            raise self._unknown(schema_id)
        problem = "not the canonical bytes of its value"
        try:
            record = self._read(data, schema_id)
            if record is not None:
                return build(record)
        except Exception as error:  # noqa: BLE001 - decoding errors are of any class; all mean the same
            # Only the class is told: the texts of decoding errors quote values, and so would the chained cause.
            problem = f"{type(error).__name__} while decoding"
        raise UndecodableRecord(f"{self.name}: schema id {schema_id}: {problem}")

    def _read(self, data: bytes, schema_id: int) -> Record | None:
        """The record as this code's schema has it; None if its bytes are not canonical."""
        body = data[HEADER_BYTES:]
        writer, flat = self.writers[schema_id], self.flats[schema_id]
        if flat is not None:
            record = flat.decode(data, HEADER_BYTES)
        else:
            record = _read(body, writer, None)
            if _write(writer, record) != body:
                return None
        return record if schema_id == self.schema_id else _read(body, writer, self.writers[self.schema_id])

    def _framing_problem(self, data: bytes) -> str:
        if len(data) > MAX_RECORD_BYTES:
            return f"{self.name}: {len(data)} bytes, more than the {MAX_RECORD_BYTES} that a record may have"
        if len(data) < HEADER_BYTES:
            return f"{self.name}: {len(data)} bytes, fewer than the {HEADER_BYTES} of the frame"
        return f"{self.name}: does not start with 0x00: not in Confluent's framing"

    def _unknown(self, schema_id: int) -> Exception:
        owner = self.registry.subject_of(schema_id)
        if owner is not None:
            return UndecodableRecord(f"schema id {schema_id} belongs to {owner}, not to {self.name}")
        if not 0 < schema_id <= MAX_SCHEMA_ID:
            return UndecodableRecord(f"{self.name}: schema id {schema_id} cannot be a registry's")
        return UnknownSchema(
            f"{self.name}: schema id {schema_id} is not in the registry {self.registry.path}; register the writer's schema"
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
