"""The planned copy and the lake's reading, on a scripted consumer: crashes, gaps, private and erased records."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batch.copy import copy_records
from batch.lake import Lake
from batch.plans import CopyPlan, CopyReport, Plans, Range, draw_plan
from contracts.catalogue import CatalogueItem
from contracts.codec import Codec
from contracts.errors import DataError, HaltError, KafkaUnavailable, UserError
from contracts.events import Kind, PlaybackEvent
from contracts.rows import Impression
from runtime.kafka import TopicPartition
from runtime.settings import Settings
from tests.worlds import T0, play_event

CODEC = Codec.load()
COLUMNS = ["partition", "offset", "viewer", "item_id"]


class FakeLog:
    """Topics in memory, and a consumer of them. `crash_after`: fetches until the process dies, None for never."""

    def __init__(self) -> None:
        self.records: dict[Any, list[Any]] = {}
        self.beginning: dict[Any, int] = {}
        self.positions: dict[Any, int] = {}
        self.crash_after: int | None = None
        self.fetched: list[tuple[int, int]] = []  # (partition, offset) of events, in order of reading

    def append(self, topic: str, partition: int, key: bytes, value: bytes | None, *, private: bytes = b"0") -> None:
        tp = TopicPartition(topic, partition)
        log = self.records.setdefault(tp, [])
        headers = (("private", private),)
        log.append(
            SimpleNamespace(
                partition=partition, offset=len(log), timestamp=T0 + 10**9, key=key, value=value, headers=headers
            )
        )

    def play(self, event: PlaybackEvent, partition: int = 0) -> None:
        private = b"1" if event.private else b"0"
        self.append("playback", partition, event.viewer.encode(), CODEC.encode_event(event), private=private)

    @property
    def partitions(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for tp in self.records:
            counts[tp.topic] = max(counts.get(tp.topic, 0), tp.partition + 1)
        return counts

    def assign(self, partitions: Sequence[Any]) -> None:
        self.positions = {}

    def seek(self, partition: Any, offset: int) -> None:
        self.positions[partition] = offset

    async def position(self, partition: Any) -> int:
        return self.positions[partition]

    async def getmany(self, *partitions: Any, timeout_ms: int = 0) -> Mapping[Any, Sequence[Any]]:
        if self.crash_after is not None:
            if self.crash_after == 0:
                raise KafkaUnavailable("scripted")
            self.crash_after -= 1
        found = {}
        for tp in partitions:
            start = max(self.positions[tp], self.beginning.get(tp, 0))
            found[tp] = self.records[tp][start : start + 3]  # more than asked for, like a broker
            self.positions[tp] = start + len(found[tp])
            if tp.topic == "playback":
                self.fetched += [(tp.partition, record.offset) for record in found[tp]]
        return found

    async def beginning_offsets(self, partitions: Sequence[Any]) -> Mapping[Any, int]:
        return {tp: self.beginning.get(tp, 0) for tp in partitions}

    async def end_offsets(self, partitions: Sequence[Any]) -> Mapping[Any, int]:
        return {tp: len(self.records.get(tp, ())) for tp in partitions}


async def copy(lake: Lake, log: FakeLog, *, chunk: int = 4, epoch: int = 1) -> CopyReport:
    settings = Settings(kafka={"stream_epoch": epoch})
    return await copy_records(settings, lake, CODEC, log, log.partitions, chunk_records=chunk)


def rows(lake: Lake, columns: Sequence[str] = COLUMNS, kind: str = "events") -> list[tuple[Any, ...]]:
    return sorted(tuple(row.values()) for batch in lake.batches(kind, columns) for row in batch.to_pylist())


def plays(log: FakeLog, count: int, partition: int = 0, viewer: str = "ana") -> None:
    start = len(log.records.get(TopicPartition("playback", partition), ()))
    for i in range(start, start + count):
        log.play(play_event(f"{viewer}{partition}", i, 1800 * i), partition)


async def test_every_record_is_copied_once_into_the_hour_it_happened_in(tmp_path: Path) -> None:
    log, lake = FakeLog(), Lake(tmp_path)
    plays(log, 10)
    plays(log, 3, partition=1)
    report = await copy(lake, log)
    assert report.written == {"events": 13, "impressions": 0, "catalogue": 0}
    assert report.cutoffs == {0: 10, 1: 3}
    assert [(p, o) for p, o, _, _ in rows(lake)] == [(0, o) for o in range(10)] + [(1, o) for o in range(3)]
    folders = {str(file.parent.relative_to(tmp_path)) for file in lake.files("events")}
    assert "events/dt=2023-11-14/hour=22" in folders  # T0 is 2023-11-14 22:13 UTC


async def test_a_second_copy_starts_where_the_first_ended_and_a_new_partition_at_its_start(tmp_path: Path) -> None:
    log, lake = FakeLog(), Lake(tmp_path)
    plays(log, 5)
    await copy(lake, log)
    log.fetched.clear()
    plays(log, 2)
    plays(log, 2, partition=1)
    report = await copy(lake, log)
    assert report.written["events"] == 4
    assert min(log.fetched) == (0, 4)  # read back: is it the same log?
    assert len(rows(lake)) == 9


@pytest.mark.parametrize("crash_after", range(5))
async def test_a_repeat_after_a_crash_follows_the_plan_and_gives_the_same_lake(
    tmp_path: Path, crash_after: int
) -> None:
    log, lake = FakeLog(), Lake(tmp_path)
    plays(log, 9)
    plays(log, 6, partition=1)
    log.crash_after = crash_after
    with pytest.raises(KafkaUnavailable):
        await copy(lake, log)
    plays(log, 4)  # came after the plan was made: for the next one
    log.crash_after = None
    report = await copy(Lake(tmp_path), log)
    assert (report.plan, report.cutoffs, report.written["events"]) == (1, {0: 9, 1: 6}, 15)
    assert [(p, o) for p, o, _, _ in rows(lake)] == [(0, o) for o in range(9)] + [(1, o) for o in range(6)]


async def test_a_topic_that_is_not_there_is_named_and_nothing_is_planned(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"topic playback: not on Kafka at .*create it"):
        await copy(Lake(tmp_path), FakeLog())
    assert not (tmp_path / "plans").exists()


async def test_what_retention_deleted_before_the_copy_is_counted_as_lost(tmp_path: Path) -> None:
    log, lake = FakeLog(), Lake(tmp_path)
    plays(log, 9)
    log.beginning[TopicPartition("playback", 0)] = 6
    report = await copy(lake, log)
    assert (report.lost, report.absent, report.written["events"]) == (6, 0, 3)


async def test_private_records_are_counted_and_never_written(tmp_path: Path) -> None:
    log, lake = FakeLog(), Lake(tmp_path)
    log.play(play_event("ana", 1, 0, private=True))
    log.append("playback", 0, b"ana", b"not even Avro", private=b"1")
    hidden = dataclasses.replace(play_event("ana", 2, 0), private=True)  # the header does not say so
    log.append("playback", 0, b"ana", CODEC.encode_event(hidden), private=b"0")
    log.play(play_event("ana", 3, 0))
    report = await copy(lake, log)
    assert (report.private, report.written["events"]) == (3, 1)
    assert [row[3] for row in rows(lake)] == ["tt0000003"]


async def test_records_that_cannot_be_applied_are_skipped_and_counted(tmp_path: Path) -> None:
    log, lake = FakeLog(), Lake(tmp_path)
    log.append("playback", 0, b"ana", b"\x00\x00\x00\x00\x01rubbish")
    log.append("playback", 0, b"bob", CODEC.encode_event(play_event("ana", 1, 0)))  # the key is not the viewer
    log.append("playback", 0, b"ana", None)
    report = await copy(lake, log)
    assert (report.invalid, report.written["events"]) == (3, 0)


def erase_event(viewer: str, second: float) -> PlaybackEvent:
    return PlaybackEvent(f"e{second}", Kind.ERASE, viewer, T0 + int(second * 1000))


async def test_an_erasure_is_kept_as_a_hash_and_filters_reads_at_once(tmp_path: Path) -> None:
    log, lake = FakeLog(), Lake(tmp_path)
    log.play(play_event("ana", 1, 10))
    log.play(play_event("bob", 1, 10))
    await copy(lake, log)
    log.play(erase_event("ana", 20))
    log.play(play_event("ana", 2, 15))  # arrived late: before the erasure, so never written
    log.play(play_event("ana", 3, 30))  # came back
    report = await copy(lake, log)
    assert (report.erasures, report.erased, report.written["events"]) == (1, 1, 1)
    assert [row[2:] for row in rows(lake)] == [("bob", "tt0000001"), ("ana", "tt0000003")]
    assert "ana" not in (tmp_path / "erasures.jsonl").read_text()
    assert lake.count("events") == 3  # still in the file, no longer in any read


async def test_a_scrub_removes_the_rows_from_the_files_and_is_done_once(tmp_path: Path) -> None:
    log, lake = FakeLog(), Lake(tmp_path)
    for viewer in ("ana", "bob"):
        log.play(play_event(viewer, 1, 10))
        log.play(play_event(viewer, 2, 7200))
    await copy(lake, log)
    lake.ledger.append({"ana": T0 // 1000 + 20})
    assert lake.scrub().rows == {"events": 1, "impressions": 0}
    assert (lake.count("events"), lake.scrub().due) == (3, True)  # until somebody says that it has been done everywhere
    lake.note_scrubbed()
    assert not lake.scrub().due
    assert (tmp_path / "lake.key").stat().st_mode & 0o777 == 0o600


async def test_a_torn_last_line_of_the_ledger_is_cut_and_another_key_is_refused(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.ledger.append({"ana": 5})
    with (tmp_path / "erasures.jsonl").open("a") as out:
        out.write('{"viewer": "12')
    lake = Lake(tmp_path)
    lake.ledger.append({"bob": 7})
    again = Lake(tmp_path)
    assert [again.ledger.through_s(viewer) for viewer in ("ana", "bob", "cid")] == [5, 7, -1]
    with pytest.raises(DataError, match="another key"):
        Lake(tmp_path, key="0123456789abcdef")


def test_two_who_write_the_ledger_in_turn_count_each_others_lines(tmp_path: Path) -> None:
    one, two = Lake(tmp_path).ledger, Lake(tmp_path).ledger  # neither has seen a line
    one.append({"ana": 5})
    two.append({"bob": 6})
    one.append({"bob": 6, "cid": 7})  # bob is known by now
    assert (one.lines, one.line_of("bob"), one.line_of("cid"), one.line_of("dan")) == (4, 3, 4, 0)
    assert Lake(tmp_path).ledger.lines == 4  # the key's line, ana, bob, cid


def test_many_who_begin_the_ledger_at_once_lose_nothing(tmp_path: Path) -> None:
    ledgers = [Lake(tmp_path).ledger for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: ledgers[n].append({f"v{n}": n}), range(16)))
    again = Lake(tmp_path).ledger
    assert [again.through_s(f"v{n}") for n in range(16)] == list(range(16))
    assert again.lines == 17


async def test_the_latest_version_of_a_title_wins_and_a_record_without_a_value_deletes_it(tmp_path: Path) -> None:
    log, lake = FakeLog(), Lake(tmp_path)
    plays(log, 1)
    for item in (CatalogueItem("a", "Old"), CatalogueItem("b", "Gone"), CatalogueItem("a", "New", ("drama",))):
        log.append("playback.catalogue", 0, item.item_id.encode(), CODEC.encode_item(item))
    log.append("playback.catalogue", 0, b"b", None)
    report = await copy(lake, log)
    assert report.written["catalogue"] == 4
    assert lake.catalogue() == [CatalogueItem("a", "New", ("drama",))]


async def test_the_later_offset_wins_whatever_the_producers_clock_said(tmp_path: Path) -> None:
    log, lake = FakeLog(), Lake(tmp_path)
    plays(log, 1)
    for title, timestamp_ms in (("First", T0 + 9000), ("Second", T0 + 5000), ("Third", T0)):
        log.append("playback.catalogue", 0, b"a", CODEC.encode_item(CatalogueItem("a", title)))
        log.records[TopicPartition("playback.catalogue", 0)][-1].timestamp = timestamp_ms
        if title == "Second":
            await copy(lake, log)  # the third comes with another plan
    await copy(lake, log)
    assert lake.catalogue() == [CatalogueItem("a", "Third")]


async def test_impressions_are_copied_too(tmp_path: Path) -> None:
    log, lake = FakeLog(), Lake(tmp_path)
    plays(log, 1)
    shown = Impression("i1", "ana", "r1", "g1", T0, False, ("a", "b"))
    log.append("playback.impressions", 0, b"ana", CODEC.encode_impression(shown))
    await copy(lake, log)
    assert rows(lake, ["viewer", "item_ids"], "impressions") == [("ana", ["a", "b"])]


def plan(**ends: int) -> CopyPlan:
    return CopyPlan(3, "playback@1", 1, 10, tuple(Range(k, "playback", 0, 0, end) for k, end in ends.items()))


def test_a_log_that_ends_before_what_was_copied_halts_and_a_new_epoch_starts_at_its_beginning() -> None:
    ends = {("events", "playback", 0): 5}
    with pytest.raises(HaltError, match="recreated or cut"):
        draw_plan(plan(events=9), ends, Settings())
    again = draw_plan(plan(events=9), ends, Settings(kafka={"stream_epoch": 2}))
    assert (again.number, again.ranges[0].from_offset, again.ranges[0].to_offset) == (4, 0, 5)


async def test_a_log_that_was_made_anew_and_has_grown_past_what_was_copied_is_not_mixed_in(tmp_path: Path) -> None:
    log, lake = FakeLog(), Lake(tmp_path)
    plays(log, 10)
    await copy(lake, log)
    log.records.clear()
    plays(log, 15, viewer="ben")
    with pytest.raises(HaltError, match=r"playback\[0\].*offset 9 .*STREAM_EPOCH=2 .*nightly"):
        await copy(lake, log)
    assert len(rows(lake)) == 10
    assert (await copy(lake, log, epoch=2)).written["events"] == 15
    assert {(e, v) for e, v in rows(lake, ["epoch", "viewer"])} == {(1, "ana0"), (2, "ben0")}


async def test_the_newest_copied_record_is_compared_even_if_the_last_copies_brought_nothing_that_may_be_kept(
    tmp_path: Path,
) -> None:
    log, lake = FakeLog(), Lake(tmp_path)
    plays(log, 3)
    await copy(lake, log)
    log.play(dataclasses.replace(play_event("ana0", 5, 9000), private=True))
    await copy(lake, log)
    await copy(lake, log)
    log.records.clear()
    plays(log, 9, viewer="ben")
    with pytest.raises(HaltError, match="offset 2 "):
        await copy(lake, log)


async def test_retention_that_took_the_newest_copied_record_is_no_evidence(tmp_path: Path) -> None:
    log, lake = FakeLog(), Lake(tmp_path)
    plays(log, 4)
    await copy(lake, log)
    plays(log, 4)
    log.beginning[TopicPartition("playback", 0)] = 6
    report = await copy(lake, log)
    assert (report.lost, report.written["events"]) == (2, 2)


async def test_a_plan_that_was_not_finished_when_the_topic_was_made_anew_is_ended_and_its_other_topics_are_copied(
    tmp_path: Path,
) -> None:
    log, lake = FakeLog(), Lake(tmp_path)
    plays(log, 10)
    log.append(
        "playback.impressions",
        0,
        b"ana",
        CODEC.encode_impression(Impression("i1", "ana", "r1", "g1", T0, False, ("a",))),
    )
    log.crash_after = 2
    with pytest.raises(KafkaUnavailable):
        await copy(lake, log)
    log.crash_after = None
    del log.records[TopicPartition("playback", 0)]
    plays(log, 20, viewer="ben")
    report = await copy(lake, log, epoch=2)
    assert (report.plan, report.lost, report.written["events"]) == (2, 0, 20)
    ended = Plans(lake).report(CopyPlan(1, "playback@1", 1, 4, ()))
    assert ended is not None
    assert (ended.written, ended.lost) == ({"events": 4, "impressions": 1, "catalogue": 0}, 6)
    assert sorted({(e, v) for e, v in rows(lake, ["epoch", "viewer"])}) == [(1, "ana0"), (2, "ben0")]
    assert len(rows(lake)) == 24


def covered(chunks: Iterable[tuple[str, tuple[Range, ...]]]) -> list[int]:
    return sorted(o for _, ranges in chunks for one in ranges for o in range(one.from_offset, one.to_offset))


def test_the_chunks_of_a_plan_cover_it_without_overlap() -> None:
    assert covered(plan(events=37).chunks()) == list(range(37))
    assert plan(events=0).chunks() == []
