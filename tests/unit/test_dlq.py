"""Dead letters, read back: what a letter is, what it is about, why it was refused, and whether sending it again would help."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.codec import Codec
from contracts.errors import InvalidEvent, UndecodableRecord, UserError
from contracts.events import Kind, PlaybackEvent
from runtime.deadletters import ERASED, REPLAYED, Coordinates, Letter, Mark, belongs_to, mark_headers, parse
from tests.unit.test_pipeline import FakeRecord
from tests.worlds import T0, play_event
from updater.deadletter import MAX_QUOTED_BYTES, _value, headers
from updater.dlq import _has_cause, group, parse_offset, refusal
from updater.pipeline import DeadLetter
from viewers.state import Limits

CODEC = Codec.load()
EVENT = play_event("ana", 1, 5)


def written(letter: DeadLetter, topic: str = "playback", epoch: int = 1) -> SimpleNamespace:
    """The record of the dead letter topic that the updater makes of a letter."""
    record = letter.record
    return SimpleNamespace(
        key=record.key if letter.quotable else None,
        value=_value(letter),
        headers=tuple(headers(letter, topic, epoch)),
        timestamp=record.timestamp,
    )


def letter_of(event: PlaybackEvent | bytes | None = EVENT, **changes: object) -> Letter:
    value = CODEC.encode_event(event) if isinstance(event, PlaybackEvent) else event
    record = dataclasses.replace(FakeRecord(7, value, partition=2), **changes)
    read = parse(written(DeadLetter(record, InvalidEvent("why"), quotable=True)))
    assert isinstance(read, Letter)
    return read


def test_a_letter_is_read_as_the_record_it_was() -> None:
    record = FakeRecord(7, b"bytes", b"key", 2, T0 + 1, (("private", b"0"), ("trace", b"\xff")))
    read = parse(written(DeadLetter(record, UndecodableRecord("bad"), quotable=True), epoch=3))
    at = Coordinates("playback", 3, 2, 7)
    assert read == Letter(at, "UndecodableRecord", "bad", T0 + 1, b"key", b"bytes", record.headers)
    assert read.quotable


def test_a_letter_that_may_be_private_keeps_its_coordinates_and_time_alone() -> None:
    record = FakeRecord(7, b"secret", b"ana", headers=(("x", b"secret"),))
    read = parse(written(DeadLetter(record, UndecodableRecord("bad"), quotable=False)))
    assert isinstance(read, Letter)
    assert not read.quotable
    assert (read.key, read.value, read.headers, read.timestamp_ms) == (None, None, (), record.timestamp)


def test_a_letter_of_a_record_too_large_to_be_quoted_is_a_letter_all_the_same() -> None:
    record = FakeRecord(7, b"x" * (MAX_QUOTED_BYTES + 1), b"ana", headers=(("private", b"0"),))
    read = parse(written(DeadLetter(record, UndecodableRecord("too long"), quotable=True), epoch=3))
    assert isinstance(read, Letter)
    assert (read.at, read.message, read.headers, read.quotable) == (
        Coordinates("playback", 3, 0, 7), "too long", (), False,
    )  # fmt: skip


def test_a_letter_of_the_first_version_is_read_with_the_time_it_was_written_at() -> None:
    made = written(DeadLetter(FakeRecord(7, b"bytes"), UndecodableRecord("bad"), quotable=True))
    read = parse(SimpleNamespace(key=b"ana", value=b"bytes", headers=made.headers[:-2], timestamp=T0 + 99))
    assert isinstance(read, Letter)
    assert (read.at, read.timestamp_ms, read.quotable) == (Coordinates("playback", 1, 0, 7), T0 + 99, True)


@pytest.mark.parametrize("kind", [REPLAYED, ERASED])
def test_a_mark_names_its_letter(kind: str) -> None:
    at = Coordinates("playback", 2, 3, 17)
    record = SimpleNamespace(key=None, value=b"", headers=tuple(mark_headers(at, kind, T0)), timestamp=T0)
    assert parse(record) == Mark(at, kind)


def test_headers_that_a_record_came_with_do_not_make_its_letter_anything_else() -> None:
    other = Coordinates("playback", 1, 0, 1)
    spoofed = (*mark_headers(other, REPLAYED, T0), ("__connect.errors.offset", b"1"), ("private", b"0"))
    read = letter_of(None, key=None, headers=spoofed)
    assert (read.at.offset, read.headers) == (7, spoofed)


@given(st.lists(st.tuples(st.text(max_size=40), st.none() | st.binary(max_size=20)), max_size=12), st.binary())
def test_whatever_lies_in_the_topic_is_a_letter_a_mark_or_foreign(fields: list, value: bytes) -> None:
    assert parse(SimpleNamespace(key=b"k", value=value, headers=tuple(fields), timestamp=0)) is None


@given(st.lists(st.binary(max_size=25), min_size=8, max_size=8), st.integers(-1, 2**63 - 1))
def test_a_letter_with_odd_numbers_is_foreign(values: list[bytes], timestamp: int) -> None:
    names = [name for name, _ in headers(DeadLetter(FakeRecord(0, b""), UndecodableRecord("x"), True), "t")][1:]
    made = SimpleNamespace(key=None, value=b"", headers=tuple(zip(names, values, strict=True)), timestamp=timestamp)
    read = parse(made)
    assert read is None or (isinstance(read, Letter) and read.at.offset >= 0)


def test_letters_are_grouped_by_class_and_message_and_differing_numbers_count_as_one_cause() -> None:
    frame, own = b"\x00\x00\x00\x00\x09", (("private", b"0"),)
    letters = [
        Letter(
            Coordinates("t", 1, n % 2, n), "UndecodableRecord", f"schema id 9: {n + 20} bytes", T0 + n, b"k", frame, own
        )
        for n in range(5)
    ]
    letters.append(dataclasses.replace(letters[0], at=Coordinates("t", 1, 0, 99), message="other", value=b"{}"))
    letters.append(Letter(Coordinates("t", 1, 1, 50), "UndecodableRecord", "other", T0 + 77, None, None, ()))
    first, second = group(letters, {Coordinates("t", 1, 0, 2)})
    assert first.cause == "UndecodableRecord: schema id 9: N bytes"
    assert (first.letters, first.waiting, first.replayed, first.unquotable) == (5, 4, 1, 0)
    assert (first.first_ms, first.last_ms, first.schema_ids) == (T0, T0 + 4, (9,))
    assert (first.partitions, first.offsets) == ((0, 1), {"t/0": (0, 4), "t/1": (1, 3)})
    assert first.examples == ("0:0", "1:1", "0:2")
    assert (second.cause, second.letters, second.waiting, second.unquotable) == ("UndecodableRecord: other", 2, 1, 1)
    assert second.schema_ids == ()


def test_a_cause_is_chosen_by_any_part_of_what_the_list_prints() -> None:
    letter = letter_of()
    letter = dataclasses.replace(letter, error="UndecodableRecord", message="v: 20 bytes, more than the 10 (that)")
    for text in ("UndecodableRecord: v: N bytes", "undecodable", "20 bytes", "more than the N (that)", "N bytes, more"):
        assert _has_cause(letter, text), text
    for text in ("InvalidEvent", "21 bytes", "bytes N"):
        assert not _has_cause(letter, text), text


def test_a_letter_is_sent_again_only_if_the_updater_would_take_it_now() -> None:
    assert refusal(letter_of(), CODEC.decode_event, Limits()) is None
    wide = dataclasses.replace(EVENT, watched_ms=2_000_000)
    for bad in (letter_of(wide), letter_of(b"\x00garbage"), letter_of(None), letter_of(key=b"ben")):
        assert str(refusal(bad, CODEC.decode_event, Limits())).startswith("would be refused again: ")
        assert refusal(bad, CODEC.decode_event, Limits(), force=True) is None


def test_an_event_time_is_judged_by_the_records_time_not_by_that_of_the_replay() -> None:
    later = play_event("ana", 1, 3600)
    assert "five minutes" in str(refusal(letter_of(later, timestamp=T0), CODEC.decode_event, Limits()))
    assert refusal(letter_of(later, timestamp=T0 + 3_600_000), CODEC.decode_event, Limits()) is None


@pytest.mark.parametrize("force", [False, True])
def test_what_would_stop_the_stream_and_what_is_private_is_never_sent(force: bool) -> None:
    waits = letter_of(b"\x00\x00\x00\x00\x63" + b"x")
    assert "would wait" in str(refusal(waits, CODEC.decode_event, Limits(), force=force))
    private = letter_of(play_event("ana", 1, 5, private=True))
    assert "private" in str(refusal(private, CODEC.decode_event, Limits(), force=force))


@pytest.mark.parametrize("viewer", ["v1", "x" * 40, "x" * 100])
def test_a_letter_is_about_whom_its_key_its_event_or_its_broken_bytes_name(viewer: str) -> None:
    belongs = belongs_to(viewer, CODEC)
    whole = CODEC.encode_event(play_event(viewer, 1, 5))
    for theirs in (
        letter_of(b"?", key=viewer.encode()),
        letter_of(whole, key=b"somebody"),
        letter_of(whole[:-1], key=b"somebody"),
        letter_of(b'{"viewer": "' + viewer.encode() + b'"}', key=None),
        letter_of(b"?", key=None, headers=(("private", b"0"), ("profile", viewer.encode()))),
    ):
        assert belongs(theirs)
    longer = f"{viewer}0"
    for others in (
        letter_of(CODEC.encode_event(play_event(longer, 1, 5)), key=longer.encode()),
        letter_of(b'{"viewer": "' + longer.encode() + b'"}', key=longer.encode()),
        letter_of(CODEC.encode_event(PlaybackEvent("e", Kind.RATE, "ben", T0, item_id=viewer, value=5)), key=b"ben"),
    ):
        assert not belongs(others)


def test_an_offset_is_told_as_the_list_prints_it() -> None:
    assert parse_offset(str(Coordinates("t", 1, 3, 17))) == (3, 17)
    for bad in ("17", "3:", "-1:2", "3:17:4", "a:b"):
        with pytest.raises(UserError, match="3:17"):
            parse_offset(bad)
