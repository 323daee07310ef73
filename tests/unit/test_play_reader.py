"""The compiled reader of plays: what it reads is what the codec makes of it; what it leaves, the codec decides."""

from __future__ import annotations

import dataclasses
import random

import pytest

from contracts.codec import Codec
from contracts.errors import RecordError, UnknownSchema
from contracts.events import PLAY_KINDS, Kind, validate
from tests.worlds import T0, play_event
from updater.pipeline import Position, plan
from viewers.packing import pack, unpack
from viewers.play_reader import Fact, PlayReader
from viewers.state import Limits, merge, state_of

CODEC = Codec.load()
PLAYS = [Kind.START, Kind.PROGRESS, Kind.COMPLETE, Kind.STOP, Kind.SKIP]


@dataclasses.dataclass
class FakeRecord:
    key: bytes | None
    value: bytes | None
    timestamp: int = T0 + 10**9
    offset: int = 0
    partition: int = 0
    headers: tuple[tuple[str, bytes], ...] = (("private", b"0"),)


def made_up_record(rng: random.Random) -> FakeRecord:
    """An event of any kind, valid or nearly, in bytes that are often damaged."""
    event = play_event(
        f"v{rng.randrange(99)}", rng.choice([rng.randrange(500), "x" * 128, "a-b.c:d|e@f~g_h"]), rng.randrange(10**6),
        kind=rng.choice(PLAYS), share=rng.random() * 2, private=rng.random() < 0.1,
    )  # fmt: skip
    changes = {
        "row_id": rng.choice([None, "r1", "not an id"]), "row_position": rng.choice([None, 3, -1, 2**31 - 1]),
    } if rng.random() < 0.3 else {}  # fmt: skip
    if rng.random() < 0.1:
        changes |= {"kind": rng.choice(list(Kind)), "value": rng.choice([None, 5])}
    if rng.random() < 0.1:
        changes |= {"watched_ms": rng.choice([-1, 0, 10**9, None]), "duration_ms": rng.choice([0, 1, 10**12])}
    if rng.random() < 0.05:
        changes |= {"event_time_ms": rng.choice([0, T0 * 10, T0 + 2 * 10**9])}
    value = bytearray(CODEC.encode_event(dataclasses.replace(event, **changes)))
    if rng.random() < 0.3:
        value[rng.randrange(len(value))] = rng.randrange(256)
    if rng.random() < 0.1:
        value = value[: rng.randrange(len(value))]
    if rng.random() < 0.05:
        value.append(0)
    key = rng.choice([b"other", None]) if rng.random() < 0.05 else event.viewer.encode()
    return FakeRecord(key, bytes(value), T0 + 10**9 - rng.choice([0, 0, 10**9]))


def decoded(record: FakeRecord) -> Fact | None:
    """The fact of a valid, public report on a play, by the codec."""
    try:
        event = CODEC.decode_event(record.value or b"")
        validate(event, key=record.key, timestamp_ms=record.timestamp)
    except (RecordError, UnknownSchema):
        return None
    if event.private or event.kind not in PLAY_KINDS or event.value is not None or event.preference is not None:
        return None
    return Fact(pack(state_of(event, timestamp_ms=record.timestamp)), event.event_time_ms)


def test_exactly_the_plays_that_the_codec_finds_valid_are_read() -> None:
    rng = random.Random(1)
    records = [made_up_record(rng) for _ in range(5_000)]
    found = PlayReader(CODEC.event_header)(records)
    assert found == [decoded(record) for record in records]
    assert 500 < sum(fact is not None for fact in found) < 4_500


def test_nothing_is_read_of_a_schema_that_the_reader_was_not_written_for() -> None:
    record = FakeRecord(b"ana", CODEC.encode_event(play_event("ana", 1, 5)))
    assert PlayReader(None)([record]) == [None]
    assert PlayReader(b"\x00\x00\x00\x00\x63")([record]) == [None]
    assert PlayReader(CODEC.event_header)([]) == []


@pytest.mark.parametrize("read_plays", [None, PlayReader(CODEC.event_header)])
def test_a_batch_is_decided_alike_with_and_without_the_reader(read_plays: PlayReader | None) -> None:
    events = [
        play_event("ana", 1, 5), play_event("ben", 2, 6, private=True), play_event("ana", 2, 9),
        dataclasses.replace(play_event("ana", 3, 10), kind=Kind.HIDE), play_event("cay", 3, 11, kind=Kind.UNKNOWN),
    ]  # fmt: skip
    records = [FakeRecord(e.viewer.encode(), CODEC.encode_event(e), offset=i) for i, e in enumerate(events)]
    records.append(
        FakeRecord(b"dan", CODEC.encode_event(play_event("dan", 3, 12)), offset=5, headers=(("private", b"1"),))
    )
    decided = plan({0: records}, {0: Position(0, 0)}, CODEC.decode_event, Limits(), read_plays)
    (job,) = decided.jobs
    state = merge(map(unpack, job.parts), Limits())
    assert [play.item_id for play in state.plays] == ["tt0000002", "tt0000001"]
    assert [register.subject for register in state.registers] == ["tt0000003"]
    todo = decided.partitions[0]
    assert (todo.records, todo.private, todo.dead, todo.jobs) == (6, 2, 1, [0, 0, 0])
    assert decided.event_times_ms == [[T0 + 5_000, T0 + 9_000, T0 + 10_000]]
