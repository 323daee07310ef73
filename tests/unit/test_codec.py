"""The codec: what goes in comes out, and nothing else comes out."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import codec as module
from contracts.catalogue import CatalogueItem
from contracts.check import open_or_create, register
from contracts.codec import MAX_RECORD_BYTES, Codec
from contracts.errors import ContractError, RecordError, UndecodableRecord, UnknownSchema
from contracts.events import Kind, PlaybackEvent
from contracts.registry import SCHEMAS_PATH, Registry
from contracts.row_columns import row_record
from contracts.rows import ENTRIES_KEPT, Entry, HomeRow, Impression, Reason

CODEC = Codec.load()
EVENT = PlaybackEvent("e1", Kind.PROGRESS, "ana", 1_700_000_000_000, False, "i1", "p1", 1_699_999_000_000, 10, 20)

longs = st.integers(-(2**63), 2**63 - 1)
ints = st.integers(-(2**31), 2**31 - 1)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
halves = st.floats(-65504, 65504, width=16)
ids = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:|@~-", min_size=1, max_size=20)

events = st.builds(
    PlaybackEvent, texts, st.sampled_from(Kind), texts, longs, st.booleans(), texts | st.none(), texts | st.none(),
    longs | st.none(), longs | st.none(), longs | st.none(), ints | st.none(), texts | st.none(), texts | st.none(),
    ints | st.none(),
)  # fmt: skip
entries = st.builds(
    Entry, ids, halves, st.sampled_from(["als", "popular", "new"]),
    st.lists(st.builds(Reason, ids, halves), max_size=3).map(tuple), longs | st.none(), longs | st.none(),
)  # fmt: skip
rows = st.builds(
    HomeRow, texts, texts, longs, texts, longs, longs | st.none(), st.lists(entries, max_size=ENTRIES_KEPT).map(tuple)
)
lists = st.lists(texts, max_size=4).map(tuple)
items = st.builds(
    CatalogueItem, texts, texts, lists, lists, longs | st.none(), longs, lists, longs | st.none(), longs | st.none(),
    longs | st.none(), st.booleans(),
)  # fmt: skip
impressions = st.builds(Impression, texts, texts, texts, texts, longs, st.booleans(), lists)


@given(events)
def test_an_event_comes_back_as_it_went(event: PlaybackEvent) -> None:
    """Every field of every kind survives the round trip."""
    assert CODEC.decode_event(CODEC.encode_event(event)) == event


@given(rows)
@settings(max_examples=50)
def test_a_row_comes_back_as_it_went(row: HomeRow) -> None:
    """Sources, reasons and windows survive the columns, for rows of every length."""
    assert CODEC.decode_row(CODEC.encode_row(row)) == row


@given(items)
def test_a_title_comes_back_as_it_went(item: CatalogueItem) -> None:
    """Every field of a catalogue item survives the round trip."""
    assert CODEC.decode_item(CODEC.encode_item(item)) == item


@given(impressions)
def test_an_impression_comes_back_as_it_went(impression: Impression) -> None:
    """Every field of an impression survives the round trip."""
    assert CODEC.decode_impression(CODEC.encode_impression(impression)) == impression


def test_an_event_on_the_wire_is_what_avro_and_confluent_say() -> None:
    """The bytes of a known event, written out by hand from the two specifications."""
    event = PlaybackEvent("e", Kind.RATE, "v", 1, True, item_id="i", value=-1)
    expected = b"\x00" + struct.pack(">I", 1) + b"\x02e" + b"\x0c" + b"\x02v" + b"\x02" + b"\x01"
    expected += b"\x02\x02i" + b"\x00\x00\x00\x00" + b"\x02\x01" + b"\x00\x00\x00"
    assert CODEC.encode_event(event) == expected


def test_the_enum_of_kinds_is_the_enum_of_the_schema() -> None:
    """Same symbols in the same order, with the default that a newer kind falls back to."""
    schema = json.loads((SCHEMAS_PATH / "playback_event.avsc").read_text())
    kind = next(field["type"] for field in schema["fields"] if field["name"] == "kind")
    assert kind["symbols"] == [one.value for one in Kind]
    assert kind["default"] == Kind.UNKNOWN.value


def test_a_full_row_with_the_longest_ids_fits_into_one_record() -> None:
    """60 entries of 128-character ids, windows on all and three reasons on ten stay within the limit."""
    reasons = tuple(Reason("r" * 128, 0.5) for _ in range(3))
    row = HomeRow("r" * 128, "g" * 128, 1, "t" * 64, 1, 1, tuple(
        Entry(f"{n:0>128}", 0.5, "als", reasons if n < 10 else (), 2**62, 2**62) for n in range(ENTRIES_KEPT)
    ))  # fmt: skip
    assert CODEC.decode_row(CODEC.encode_row(row)) == row


DECODERS: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], bytes], bytes]] = {
    "event": (CODEC.decode_event, CODEC.encode_event, CODEC.encode_event(replace(EVENT, row_id="r", row_position=3))),
    "row": (
        CODEC.decode_row,
        CODEC.encode_row,
        CODEC.encode_row(
            HomeRow(
                "r", "g", 1, "t", 5, None, (Entry("a", 0.5, "als", (Reason("b", 0.25),), 1, 9), Entry("c", 0.1, "new"))
            )
        ),
    ),
    "impression": (
        CODEC.decode_impression,
        CODEC.encode_impression,
        CODEC.encode_impression(Impression("m", "v", "r", "g", 7, True, ("a", "b"))),
    ),
}


@pytest.mark.parametrize("name", DECODERS)
def test_every_truncation_is_refused(name: str) -> None:
    """No prefix of a record is a record."""
    decode, _, whole = DECODERS[name]
    decode(whole)
    for length in range(len(whole)):
        with pytest.raises(UndecodableRecord):
            decode(whole[:length])


@pytest.mark.parametrize("name", DECODERS)
@given(tail=st.binary(min_size=1, max_size=9))
def test_trailing_bytes_are_refused(name: str, tail: bytes) -> None:
    """A record ends where its value ends."""
    decode, _, whole = DECODERS[name]
    with pytest.raises(UndecodableRecord):
        decode(whole + tail)


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.data())
@settings(max_examples=300)
def test_mutated_bytes_are_refused_or_are_the_only_spelling_of_their_value(name: str, data: st.DataObject) -> None:
    """Whatever is accepted encodes to exactly the bytes that were read; nothing else is ever raised."""
    decode, encode, whole = DECODERS[name]
    place = data.draw(st.integers(5, len(whole) - 1))
    cut = data.draw(st.integers(0, 3))
    mutated = whole[:place] + data.draw(st.binary(max_size=12)) + whole[place + cut :]
    try:
        value = decode(mutated)
    except RecordError:
        return
    assert encode(value) == mutated


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_arbitrary_bodies_never_raise_anything_else(body: bytes) -> None:
    """A body of random bytes is a value or an undecodable record."""
    for schema_id, decode in (
        (1, CODEC.decode_event),
        (2, CODEC.decode_row),
        (5, CODEC.decode_row),
        (4, CODEC.decode_impression),
    ):
        with contextlib.suppress(UndecodableRecord):
            assert decode(b"\x00" + schema_id.to_bytes(4, "big") + body) is not None


HEAD = b"\x00\x00\x00\x00\x01" + b"\x02e"
REST = b"\x02v\x02\x00" + b"\x00" * 9


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(HEAD + b"\x01" + REST, id="enum index -1"),
        pytest.param(HEAD + b"\x7e" + REST, id="enum index past the end"),
        pytest.param(HEAD + b"\x82\x00" + REST, id="an over-long number"),
        pytest.param(HEAD + b"\x02\x02v\x02\x00" + b"\x01" + b"\x00" * 8, id="union index -1"),
        pytest.param(HEAD + b"\x02\x02v\x02\x00" + b"\x04" + b"\x00" * 8, id="union index past the end"),
        pytest.param(HEAD + b"\x02\x02v\x02\x07" + b"\x00" * 9, id="a boolean that is neither 0 nor 1"),
        pytest.param(HEAD + b"\x02\x02\xff\x02\x00" + b"\x00" * 9, id="text that is not UTF-8"),
        pytest.param(HEAD + b"\x02\x01\x02\x00" + b"\x00" * 9, id="text of negative length"),
        pytest.param(HEAD + b"\x02\x02v" + b"\xff" * 9 + b"\x7f\x00" + b"\x00" * 9, id="a time of more than 64 bits"),
        (
            HEAD + b"\x02\x02v\x02\x00" + b"\x00" * 5 + b"\x02" + b"\xfe" * 4 + b"\x7f" + b"\x00" * 3,
            "an int of 35 bits",
        ),
    ],
)
def test_what_the_library_accepts_and_no_honest_writer_sends_is_refused(record: bytes) -> None:
    """Bad indexes, over-long numbers, bad booleans and bad text are undecodable; the honest twin is not."""
    assert CODEC.decode_event(HEAD + b"\x02" + REST).kind is Kind.START
    with pytest.raises(UndecodableRecord):
        CODEC.decode_event(record)


def test_the_message_never_holds_the_payload() -> None:
    """Neither the text nor the chain of an undecodable record quotes it."""
    record = CODEC.encode_event(replace(EVENT, viewer="secret-viewer"))
    for bad in (record + b"\x00", record[:-3], record.replace(b"secret", b"\xff\xffcret")):
        with pytest.raises(UndecodableRecord) as caught:
            CODEC.decode_event(bad)
        assert "cret" not in str(caught.value)
        assert caught.value.__context__ is None
        assert caught.value.__cause__ is None


def test_a_record_of_an_unknown_schema_waits_for_the_registry() -> None:
    """An id nobody registered is transient; an id of another subject and a foreign frame are not."""
    body = CODEC.encode_event(EVENT)[5:]
    with pytest.raises(UnknownSchema, match="schema id 99"):
        CODEC.decode_event(b"\x00\x00\x00\x00\x63" + body)
    with pytest.raises(UndecodableRecord, match="belongs to home_row-value"):
        CODEC.decode_event(b"\x00\x00\x00\x00\x02" + body)
    with pytest.raises(UndecodableRecord, match="framing"):
        CODEC.decode_event(b"\x02\x00\x00\x00\x01" + body)
    with pytest.raises(UndecodableRecord, match="only a registry's server knows GUIDs"):
        CODEC.decode_event(b"\x01" + bytes(16) + body)


def test_a_record_over_the_limit_is_refused_unread_and_never_written() -> None:
    """16 KiB is the most that is read or written."""
    longest = replace(EVENT, viewer="v" * (MAX_RECORD_BYTES - 200))
    assert CODEC.decode_event(CODEC.encode_event(longest)) == longest
    with pytest.raises(UndecodableRecord, match="more than"):
        CODEC.decode_event(b"\x00\x00\x00\x00\x01" + b"x" * MAX_RECORD_BYTES)
    with pytest.raises(ContractError, match="more than"):
        CODEC.encode_event(replace(EVENT, viewer="v" * MAX_RECORD_BYTES))


@pytest.mark.parametrize(
    "bad",
    [
        {"items": ["a"], "scores": [0.5]},
        {"half_scores": b"\x00\x38\x00\x38"},
        {"half_scores": b"\x00\x38\x00"},
        {"half_scores": b"\x00\x7c"},
        {"half_scores": b""},
        {"ids": b""},
        {"ids": b"\x02ab\x02\x21"},
        {"ids": b"\x02ba\x02\x10"},
        {"ids": b"\x02ab\x00\x02\x01"},
        {"ids": b"\x02ab\x02\x01\x00"},
        {"ids": b"\x03abc\x02\x01"},
        {"entry_sources": b"\x05"},
        {"entry_sources": b"\x00"},
        {"source_indexes": b"\x00"},
        {"reason_counts": b"\x02"},
        {"reason_items": ["x"], "reason_contributions": [0.5], "reason_counts": b""},
        {"reason_ids": b"\x00", "half_contributions": b"\x00\x38", "reason_counts": b"\x01"},
        {"reason_counts": b"\x00\x00"},
        {"until_positions": b"\x01", "available_until": [5]},
        {"from_positions": b"\x00", "available_from": []},
        {"from_positions": b"\x00\x00", "available_from": [5, 5]},
        {"sources": ["als", "popular"]},
        {"sources": ["als", "als"]},
        {"sources": ["als", "new"], "entry_sources": b"\x01"},
        {"sources": ["als", "new"], "entry_sources": b"\x02"},
        {"reason_counts": b"\x00"},
    ],
)
def test_a_row_whose_columns_disagree_is_refused(bad: dict[str, Any]) -> None:
    """Valid Avro is not enough: every column must fit the entries."""
    record = row_record(HomeRow("r", "g", 1, "t", 5, None, (Entry("ab", 0.5, "als"),)))
    subject = CODEC._row
    assert CODEC.decode_row(subject.encode(record)).row_id == "r"
    with pytest.raises(UndecodableRecord):
        CODEC.decode_row(subject.encode(record | bad))


def registry_of_writers(folder: Path, *changes: Callable[[dict[str, Any]], None]) -> Registry:
    """The committed subjects, with the event schema registered as each change leaves it, then as it is."""
    registry = open_or_create(folder / "registry")
    for change in (*changes, dict[str, Any].copy):
        schema = json.loads((SCHEMAS_PATH / "playback_event.avsc").read_text())
        change(schema)
        file = folder / "playback_event.avsc"
        file.write_text(json.dumps(schema))
        registry = register(file, registry)
    for name in ("home_row", "catalogue_item", "impression"):
        registry = register(SCHEMAS_PATH / f"{name}.avsc", registry)
    return registry


def test_an_older_writers_record_is_read_with_the_defaults_of_what_it_lacks(tmp_path: Path) -> None:
    """A player that knows nothing of rows yet is understood; its bytes are held against its own schema."""

    def without_rows(schema: dict[str, Any]) -> None:
        schema["fields"] = [one for one in schema["fields"] if not one["name"].startswith("row_")]

    codec = Codec(registry_of_writers(tmp_path, without_rows))
    new = codec.encode_event(EVENT)
    assert new[4] == 2
    old = b"\x00\x00\x00\x00\x01" + new[5:-2]
    assert codec.decode_event(old) == EVENT
    with pytest.raises(UndecodableRecord):
        codec.decode_event(old + b"\x00\x00")


def test_a_newer_writers_kind_is_read_as_unknown(tmp_path: Path) -> None:
    """An enum symbol appended after this code was written is its default, not an error."""

    def with_kind(schema: dict[str, Any]) -> None:
        schema["fields"][1]["type"]["symbols"].append("pause")

    registry = registry_of_writers(tmp_path)
    schema = json.loads((SCHEMAS_PATH / "playback_event.avsc").read_text())
    with_kind(schema)
    (tmp_path / "playback_event.avsc").write_text(json.dumps(schema))
    codec = Codec(register(tmp_path / "playback_event.avsc", registry))
    body = codec.encode_event(replace(EVENT, event_id="e"))[5:]
    assert body[2] == 2 * list(Kind).index(EVENT.kind)
    newer = b"\x00\x00\x00\x00\x05" + body[:2] + bytes([2 * len(Kind)]) + body[3:]
    assert codec.decode_event(newer).kind is Kind.UNKNOWN


def test_code_whose_schema_is_not_registered_does_not_start(tmp_path: Path) -> None:
    """The message says which schema and how to register it."""
    with pytest.raises(ContractError, match=r"playback_event\.avsc is not registered.*contracts register"):
        Codec(open_or_create(tmp_path))


CONTRACTS: dict[str, tuple[Any, st.SearchStrategy[Any], Callable[[Any], bytes]]] = {
    "playback_event": (CODEC._event, events, CODEC.encode_event),
    "home_row": (CODEC._row, rows, CODEC.encode_row),
    "catalogue_item": (CODEC._item, items, CODEC.encode_item),
    "impression": (CODEC._impression, impressions, CODEC.encode_impression),
}


@pytest.mark.parametrize("name", CONTRACTS)
@given(data=st.data())
@settings(max_examples=100)
def test_the_strict_reader_accepts_exactly_what_the_library_would_write_again(name: str, data: st.DataObject) -> None:
    """On bytes near a real record, ours and fastavro's decode-encode-compare agree on verdict and value."""
    subject, values, encode = CONTRACTS[name]
    body = encode(data.draw(values))[5:]
    writer = subject.writers[subject.schema_id]
    assert module._write(writer, module._read(body, writer, None)) == body
    for _ in range(4):
        place = data.draw(st.integers(0, len(body)))
        mutated = body[:place] + data.draw(st.binary(max_size=3)) + body[place + data.draw(st.integers(0, 3)) :]
        ours = theirs = None
        with contextlib.suppress(Exception):
            ours = subject.flat.decode(mutated, 0)
        with contextlib.suppress(Exception):
            read = module._read(mutated, writer, None)
            theirs = read if module._write(writer, read) == mutated else None
        assert repr(ours) == repr(theirs)  # as text, because NaN is not equal to itself


def test_a_schema_that_is_not_flat_is_left_to_the_library(tmp_path: Path) -> None:
    """A nested writer is read by fastavro, resolved into this code's schema, and still held to one spelling."""

    def nested(schema: dict[str, Any]) -> None:
        inner = {"type": "record", "name": "Extra", "fields": [{"name": "n", "type": "long"}]}
        schema["fields"].append({"name": "extra", "type": ["null", inner], "default": None})

    codec = Codec(registry_of_writers(tmp_path, nested))
    assert codec._event.flats[1] is None
    assert codec._event.flats[2] is not None
    body = codec.encode_event(EVENT)[5:]
    assert codec.decode_event(b"\x00\x00\x00\x00\x01" + body + b"\x02\x08") == EVENT
    for bad in (b"\x01", b"\x02\x88\x00", b"\x00\x00", b""):
        with pytest.raises(UndecodableRecord):
            codec.decode_event(b"\x00\x00\x00\x00\x01" + body + bad)
