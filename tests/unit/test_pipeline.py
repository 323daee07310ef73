"""The pure pipeline: every offset gets exactly one fate, and no private byte goes anywhere."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.anchors import Anchor, anchor_of
from contracts.codec import Codec
from contracts.errors import HaltError, InvalidEvent, KafkaUnavailable, UndecodableRecord, UnknownSchema
from contracts.events import Kind, PlaybackEvent, said_private
from contracts.registry import Registry
from runtime.anchors import remedy
from runtime.kafka import KafkaError
from runtime.settings import Settings
from tests.worlds import T0, play_event
from updater.checkpoint import resume_point
from updater.deadletter import STAGE_OF_ERROR, DeadLetterQueue, FloodGuard, headers, without_erased
from updater.pipeline import DeadLetter, Plan, Position, plan, tallies
from viewers.memory_store import MemoryServer, MemoryStore
from viewers.packing import pack
from viewers.play_reader import PlayReader
from viewers.rewrite import Outcome, RewriteResult
from viewers.state import Limits, ViewerState
from viewers.store import Marker, StoredViewer, Tally

CODEC = Codec(Registry.load())
LIMITS = Limits()


@dataclass(frozen=True)
class FakeRecord:
    offset: int
    value: bytes | None
    key: bytes | None = b"ana"
    partition: int = 0
    timestamp: int = T0 + 60_000
    headers: Sequence[tuple[str, bytes]] = (("private", b"0"),)


def record(offset: int, event: PlaybackEvent, **changes: object) -> FakeRecord:
    return dataclasses.replace(FakeRecord(offset, CODEC.encode_event(event), event.viewer.encode()), **changes)


def decide(records: Sequence[FakeRecord], position: Position | None = None) -> Plan:
    return plan({0: records}, {0: position or Position(0, 0)}, CODEC.decode_event, LIMITS)


def test_plays_of_one_viewer_become_one_job_with_all_facts_and_the_newest_time() -> None:
    decided = decide(
        [record(0, play_event("ana", 1, 5)), record(1, play_event("ben", 1, 6)), record(2, play_event("ana", 2, 9))]
    )
    assert [job.viewer for job in decided.jobs] == ["ana", "ben"]
    assert [p.item_id for p in decided.jobs[0].facts.plays] == ["tt0000002", "tt0000001"]
    assert decided.jobs[0].event_time_ms == T0 + 9000
    assert decided.event_times_ms == [[T0 + 5000, T0 + 9000], [T0 + 6000]]


def test_a_private_play_is_only_counted_even_if_it_could_not_be_applied() -> None:
    decided = decide(
        [
            record(0, play_event("ana", 1, 5, private=True), headers=()),
            record(1, play_event("ana", 1, 5), headers=(("private", b"1"),)),
            FakeRecord(2, b"\x00garbage", headers=(("private", b"1"),)),
            record(3, play_event("ana", 1, 5, private=True), key=b"ben"),
        ]
    )
    assert decided.jobs == []
    assert decided.dead_letters == []
    assert decided.partitions[0].private == 4


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"value": b"\x00garbage"}, UndecodableRecord),
        ({"value": None}, UndecodableRecord),
        ({"key": b"ben"}, InvalidEvent),
        ({"key": None}, InvalidEvent),
        ({"timestamp": T0 - 600_000}, InvalidEvent),
    ],
)
def test_what_can_never_be_applied_is_dead_lettered_with_its_cause(change: dict[str, object], cause: type) -> None:
    decided = decide([record(0, play_event("ana", 1, 5), **change)])
    (letter,) = decided.dead_letters
    assert isinstance(letter.cause, cause)
    assert letter.quotable
    assert decided.partitions[0].dead == 1
    named = dict(headers(letter, "playback"))
    assert named["__connect.errors.topic"] == b"playback"
    assert named["__connect.errors.offset"] == b"0"
    assert named["__connect.errors.stage"].decode() in STAGE_OF_ERROR.values()


@pytest.mark.parametrize("said", [(), (("private", b"yes"),), (("private", b"1 "),)])
def test_an_undecodable_record_that_may_be_private_is_dead_lettered_by_its_coordinates_alone(said: tuple) -> None:
    (letter,) = decide([FakeRecord(7, b"\x00garbage", headers=said)]).dead_letters
    assert not letter.quotable
    assert b"garbage" not in b"".join(value for _, value in headers(letter, "t"))


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (dataclasses.replace(play_event("ana", 1, 5), kind=Kind.UNKNOWN), "unknown kind"),
        (dataclasses.replace(play_event("ana", 1, 5), item_id="a{b}"), "item_id"),
        (dataclasses.replace(play_event("ana", 1, 5), event_id=""), "event_id"),
        (dataclasses.replace(play_event("ana", 1, 5), play_started_at_ms=None), "play_started_at"),
        (dataclasses.replace(play_event("ana", 1, 5), watched_ms=1_000_001), "10 times"),
        (dataclasses.replace(play_event("ana", 1, 5), event_time_ms=T0 // 1000), "seconds"),
        (dataclasses.replace(play_event("ana", 1, 5), event_time_ms=T0 + 86_400_000), "five minutes"),
        (dataclasses.replace(play_event("ana", 1, 5), duration_ms=31 * 86_400_000), "30 days"),
        (dataclasses.replace(play_event("ana", 1, 5), event_time_ms=T0 * 1000), "microseconds"),
        (PlaybackEvent("e", Kind.RATE, "ana", T0, item_id="tt1", value=101), "value"),
        (PlaybackEvent("e", Kind.PREFER, "ana", T0, preference="a b", value=1), "preference"),
    ],
)
def test_an_event_that_breaks_the_contract_is_dead_lettered_and_the_reason_named(
    event: PlaybackEvent, why: str
) -> None:
    (letter,) = decide([record(0, event)]).dead_letters
    assert why in str(letter.cause)


def test_an_unknown_schema_leaves_the_whole_batch_undecided() -> None:
    with pytest.raises(UnknownSchema):
        decide([record(0, play_event("ana", 1, 5)), FakeRecord(1, b"\x00\x00\x0f\x42\x40rest")])


def test_offsets_that_hold_no_record_are_absent_and_records_before_the_marker_are_applied_but_not_counted_again() -> (
    None
):
    records = [
        record(3, play_event("ana", 1, 1)),
        record(4, play_event("ana", 2, 2)),
        record(8, play_event("ben", 3, 3)),
    ]
    decided = decide(records, Position(next_offset=3, uncounted_from=6))
    todo = decided.partitions[0]
    assert len(decided.jobs) == 2
    assert (todo.next_offset, todo.absent, len(todo.jobs)) == (9, 2, 1)
    counted = tallies(decided, [RewriteResult(Outcome.NOOP), RewriteResult(Outcome.APPLIED)])[0]
    assert counted == Tally(applied=1, absent=2)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["play", "private", "poison"])), max_size=20),
    st.integers(0, 30),
)
def test_the_fates_of_a_batch_always_sum_to_the_offsets_it_passes(
    steps: list[tuple[int, str]], uncounted_from: int
) -> None:
    offset, records = -1, []
    for gap, what in steps:
        offset += gap
        event = play_event(f"v{offset % 3}", offset % 5, offset, private=what == "private")
        records.append(record(offset, event, **({"value": b"?"} if what == "poison" else {})))
    decided = decide(records, Position(0, uncounted_from))
    results = [RewriteResult(Outcome.APPLIED if i % 2 else Outcome.NOOP) for i in range(len(decided.jobs))]
    total = tallies(decided, results)[0].total
    assert total == max(0, decided.partitions[0].next_offset - uncounted_from)


def test_records_of_partitions_that_are_not_ours_are_left_alone() -> None:
    decided = plan({3: [record(0, play_event("ana", 1, 5))]}, {0: Position(0, 0)}, CODEC.decode_event, LIMITS)
    assert decided.jobs == []
    assert decided.partitions == {}


def test_nineteen_poison_records_are_dead_letters_and_a_flood_halts() -> None:
    guard = FloodGuard()
    guard.observe(100, 19)
    with pytest.raises(HaltError, match="nearline resume"):
        guard.observe(1, 1)


def test_a_trickle_of_poison_below_one_percent_never_halts() -> None:
    guard = FloodGuard()
    for _ in range(500):
        guard.observe(512, 5)


def test_poison_that_a_rewind_brings_again_is_counted_once() -> None:
    guard = FloodGuard()
    letters = [DeadLetter(FakeRecord(offset, b""), UndecodableRecord("x"), quotable=True) for offset in range(15)]
    for _ in range(10):
        guard.observe(50, guard.fresh(letters, {}))
    again = DeadLetter(FakeRecord(15, b""), UndecodableRecord("x"), quotable=True)
    assert [guard.fresh([*letters, again], {}), guard.fresh([again], {})] == [1, 0]


def test_poison_that_a_marker_has_passed_is_not_counted_again_by_another_process() -> None:
    letters = [DeadLetter(FakeRecord(offset, b""), UndecodableRecord("x"), quotable=True) for offset in range(40)]
    assert FloodGuard().fresh(letters, {0: 30}) == 10
    assert FloodGuard().fresh(letters, {1: 30}) == 40


def test_poison_long_ago_is_forgotten() -> None:
    guard = FloodGuard()
    guard.observe(100, 19)
    for _ in range(40):
        guard.observe(500, 0)
    guard.observe(100, 19)


def resume(**changes: int | Marker | None):
    arguments: dict = {"marker": None, "committed": None, "seeded": None, "beginning": 0, "end": 100}
    return resume_point(**(arguments | changes), where="t[0]", what_to_do=remedy(Settings()))


def test_a_partition_resumes_at_the_lower_of_commit_and_marker() -> None:
    assert resume(marker=Marker(50, 0, applied=50), committed=40).position == 40
    assert resume(marker=Marker(50, 0, applied=50), committed=60).position == 50
    assert resume(marker=Marker(50, 0, applied=50)).position == 50


def test_without_a_marker_a_partition_starts_at_the_lakes_cut_off_or_the_earliest_never_at_the_commit() -> None:
    start = resume(committed=90)
    assert (start.position, start.origin, start.absent) == (0, 0, 0)
    start = resume(committed=90, beginning=7)
    assert (start.position, start.origin, start.absent) == (7, 0, 7)  # what lay below is not in the store
    seeded = resume(committed=90, seeded=30)
    assert (seeded.position, seeded.origin, seeded.absent) == (30, 30, 0)


def test_what_retention_deleted_is_declared_exactly() -> None:
    start = resume(marker=Marker(50, 0, applied=50), committed=50, beginning=70)
    assert (start.position, start.absent) == (70, 20)
    start = resume(marker=Marker(50, 0, applied=50), committed=30, beginning=40)
    assert (start.position, start.absent) == (40, 0)
    start = resume(seeded=50, beginning=70)
    assert (start.position, start.origin, start.absent) == (70, 50, 20)


def test_a_log_that_ends_before_what_was_finished_was_recreated_and_halts() -> None:
    with pytest.raises(HaltError, match=r"t\[0\].*offset 101.*ends at 100.*NEARLINE_KAFKA__STREAM_EPOCH=2 "):
        resume(marker=Marker(101, 0, applied=101))


def test_a_partition_is_anchored_to_its_last_record_that_is_known_not_to_be_private() -> None:
    good, poison = record(3, play_event("ana", 1, 5)), FakeRecord(4, b"not avro")
    hidden = FakeRecord(5, b"not avro", headers=())
    private = record(6, play_event("ana", 2, 6, private=True))
    assert decide([good]).partitions[0].anchor == anchor_of(good)
    assert decide([good, poison, hidden, private]).partitions[0].anchor == anchor_of(poison)
    assert decide([hidden, private]).partitions[0].anchor is None


def test_records_that_differ_in_anything_have_other_anchors_and_an_anchor_survives_being_written() -> None:
    one = FakeRecord(3, b"b", b"aa")
    others = [
        FakeRecord(3, b"ab", b"a"),
        FakeRecord(3, b"", b"aab"),
        FakeRecord(3, None, b"aab"),
        FakeRecord(3, b"aab", None),
        FakeRecord(3, b"aab", b""),
        FakeRecord(4, b"b", b"aa"),
        FakeRecord(3, b"b", b"aa", timestamp=T0),
    ]
    anchors = [anchor_of(each) for each in (one, *others)]
    assert len(set(anchors)) == len(anchors)
    assert [Anchor.parse(str(anchor)) for anchor in anchors] == anchors
    for text in ("", "1:2", "x:2:ab", "1:2:3:4"):
        with pytest.raises(ValueError, match=r"."):
            Anchor.parse(text)


async def test_of_several_letters_that_the_broker_refuses_each_refusal_is_heard() -> None:
    loop, unheard = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: unheard.append(context["message"]))

    class Refusing:
        async def send(self, *where: object, **what: object) -> asyncio.Future[None]:
            ack: asyncio.Future[None] = loop.create_future()
            loop.call_soon(ack.set_exception, KafkaError("no"))
            return ack

    letters = [DeadLetter(FakeRecord(n, b""), UndecodableRecord("x"), quotable=True) for n in range(3)]
    with pytest.raises(KafkaUnavailable):
        await DeadLetterQueue(Refusing(), Settings()).send(letters)
    await asyncio.sleep(0)
    gc.collect()
    assert unheard == []


def test_every_record_error_has_a_stage() -> None:
    letter = DeadLetter(FakeRecord(0, b""), UndecodableRecord("x"), quotable=True)  # type: ignore[arg-type]
    assert dict(headers(letter, "t"))["__connect.errors.stage"] == b"VALUE_CONVERTER"
    assert set(STAGE_OF_ERROR) == {"UndecodableRecord", "InvalidEvent"}


SECOND_S = T0 // 1000 + 60
"""Of the records that `FakeRecord` makes."""


class AnErasure:
    """A store that knows of an erasure of `ana`, and of a viewer whose bytes are no state."""

    def __init__(self, through_s: int) -> None:
        server = MemoryServer()
        server.viewers["ana"] = StoredViewer(state=pack(ViewerState(erased_through_s=through_s)))
        server.viewers["odd"] = StoredViewer(state=b"\xffno state")
        self.store = MemoryStore(server)
        self.asked: list[list[str]] = []

    async def read_viewers(self, viewers: Sequence[str]) -> list[StoredViewer]:
        self.asked.append(list(viewers))
        await self.store.connect()
        return await self.store.read_viewers(viewers)


def quoted(knows: AnErasure, *records: FakeRecord, passed: int = 0) -> list[bool]:
    """Which letters of a batch are quoted."""
    letters = asyncio.run(without_erased(knows, decide(records), {0: passed}))  # type: ignore[arg-type]
    return [letter.quotable for letter in letters]


def test_poison_from_before_an_erasure_is_kept_by_its_coordinates_alone_when_it_is_read_again() -> None:
    of_ana = record(3, play_event("ana", 1, 5), key=b"else")
    poison = [FakeRecord(0, b"?"), FakeRecord(1, b"?", key=b"ben"), FakeRecord(2, b"?", key=b"no id {"), of_ana]
    poison.append(FakeRecord(4, b"?", key=b"odd"))
    assert quoted(AnErasure(SECOND_S), *poison) == [False, True, True, False, False]
    assert quoted(AnErasure(SECOND_S - 1), *poison) == [True, True, True, True, False]  # ana came back, and sent poison
    knows = AnErasure(SECOND_S)
    quoted(knows, *poison)
    assert knows.asked == [["ana", "ben", "else", "odd"]]


def test_poison_that_was_finished_before_is_not_quoted_again_into_a_store_that_forgot_its_erasure() -> None:
    knows = AnErasure(-1)
    assert quoted(knows, FakeRecord(0, b"?"), FakeRecord(1, b"?", key=b"ben"), passed=1) == [False, True]
    assert knows.asked == [["ben"]]


def test_an_erasure_in_the_same_batch_is_obeyed_and_without_letters_nothing_is_read() -> None:
    erase = PlaybackEvent("e1", Kind.ERASE, "ana", T0 + 60_000)
    knows = AnErasure(-1)
    assert quoted(knows, FakeRecord(0, b"?"), record(1, erase)) == [False]
    assert len(knows.asked) == 1
    assert quoted(knows, record(0, play_event("ana", 1, 5)), FakeRecord(1, b"?", headers=())) == [False]
    assert len(knows.asked) == 1


@pytest.mark.parametrize(
    ("said", "private"),
    [
        ([b"0"], False),
        ([b"0", b"0"], False),
        ([b"1"], True),
        ([b"0", b"1"], True),
        ([b"1", b"0"], True),
        ([b"yes", b"1"], True),
        ([b"0", b"yes"], None),
        ([b"yes", b"0"], None),
        ([None, b"0"], None),
        ([], None),
    ],
)
def test_every_header_that_speaks_of_privacy_is_heard(said: list[bytes], private: bool | None) -> None:
    headers = (("trace", b"1"), *(("private", value) for value in said))
    assert said_private(headers) is private
    whole, broken = record(0, play_event("ana", 1, 5), headers=headers), FakeRecord(1, b"?", headers=headers)
    for read_plays in (None, PlayReader(CODEC.event_header)):
        decided = plan({0: [whole, broken]}, {0: Position(0, 0)}, CODEC.decode_event, LIMITS, read_plays)
        assert len(decided.jobs) == (private is not True)
        assert [letter.quotable for letter in decided.dead_letters] == ([] if private else [private is False])
