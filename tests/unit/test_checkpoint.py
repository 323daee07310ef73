"""Resuming while another updater is at work on the same partition: no false alarm."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import pytest
import structlog

from contracts.errors import HaltError, KafkaUnavailable
from runtime.kafka import TopicPartition
from runtime.settings import Settings
from updater.checkpoint import Checkpoint
from viewers.memory_store import MemoryServer, MemoryStore
from viewers.store import Marker

PARTITION = TopicPartition("playback", 0)


class LiveLog:
    """A consumer of one partition; where there is a marker, after each look at its end ten records are written and finished by
    somebody else."""

    def __init__(self, server: MemoryServer, end: int, beginning: int = 0) -> None:
        self._server = server
        self._end = end
        self._beginning = beginning
        self.sought = -1
        self.known = {0}
        self.committed_to: int | None = None

    def assignment(self) -> set[TopicPartition]:
        return {PARTITION}

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {PARTITION: self._beginning}

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        end = self._end
        if self._server.markers:
            self._end += 10
            self._server.markers[0] = Marker(self._end, 0, applied=self._end)
        return {PARTITION: end}

    async def committed(self, partition: TopicPartition) -> int | None:
        return self.committed_to

    def partitions_for_topic(self, topic: str) -> set[int]:
        return self.known

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.sought = offset


async def test_a_marker_that_moves_while_another_updater_resumes_is_not_taken_for_a_cut_log() -> None:
    server = MemoryServer()
    server.markers[0] = Marker(100, 0, applied=100)
    store, log = MemoryStore(server), LiveLog(server, end=100)
    await store.connect()
    await Checkpoint(log, store, Settings()).resume()
    assert log.sought == 100


async def test_what_was_finished_stays_known_when_the_store_falls_back() -> None:
    server = MemoryServer()
    server.markers[0] = Marker(60, 0, applied=60)
    store, log = MemoryStore(server), LiveLog(server, end=100)
    await store.connect()
    checkpoint = Checkpoint(log, store, Settings())
    await checkpoint.resume()
    assert checkpoint.passed == {0: 60}
    server.markers[0] = Marker(20, 0, applied=20)
    await checkpoint.resume()
    assert (log.sought, checkpoint.passed) == (20, {0: 60})
    server.markers.clear()
    log.committed_to = 80
    await checkpoint.resume()
    assert checkpoint.passed == {0: 80}


@pytest.mark.parametrize(("epoch", "committed", "passed"), [(1, 80, 80), (2, 80, 0), (1, 101, 0)])
async def test_commits_of_a_log_that_was_replaced_say_nothing_of_this_one(
    epoch: int, committed: int, passed: int
) -> None:
    store, log = MemoryStore(MemoryServer()), LiveLog(MemoryServer(), end=100)
    await store.connect()
    log.committed_to = committed
    checkpoint = Checkpoint(log, store, Settings(kafka={"stream_epoch": epoch}))
    await checkpoint.resume()
    assert checkpoint.passed == {0: passed}


async def test_a_marker_past_the_end_of_the_log_still_halts() -> None:
    server = MemoryServer()
    server.markers[0] = Marker(101, 0, applied=101)
    store = MemoryStore(server)
    await store.connect()
    with pytest.raises(HaltError, match=r"playback\[0\]: the store has finished offset 101 but the log ends at 100"):
        await Checkpoint(LiveLog(server, end=100), store, Settings()).resume()


@pytest.mark.parametrize(
    ("seeded", "event", "level"),
    [({}, "records_not_in_the_log", "warning"), ({0: 20}, "records_lost_to_retention", "error")],
    ids=["a store that knows nothing", "a store that the lake had filled up to 20"],
)
async def test_what_a_store_without_a_marker_cannot_read_any_more_is_counted_and_told(
    seeded: dict[int, int], event: str, level: str
) -> None:
    server = MemoryServer()
    server.seeded = seeded
    store, log = MemoryStore(server), LiveLog(server, end=100, beginning=30)
    await store.connect()
    with structlog.testing.capture_logs() as told:
        await Checkpoint(log, store, Settings()).resume()
    first = seeded.get(0, 0)
    assert log.sought == 30
    assert server.markers[0] == Marker(30, first, absent=30 - first, gap_end=30)
    (gap,) = [line for line in told if "from_offset" in line]
    assert (gap["event"], gap["log_level"], gap["from_offset"], gap["to_offset"]) == (event, level, first, 30)
    assert "nightly --seed" in gap["remedy"]


async def test_a_new_store_on_a_log_that_begins_at_0_has_nothing_to_tell() -> None:
    server = MemoryServer()
    store, log = MemoryStore(server), LiveLog(server, end=100)
    await store.connect()
    with structlog.testing.capture_logs() as told:
        await Checkpoint(log, store, Settings()).resume()
    assert (log.sought, server.markers, [line["event"] for line in told]) == (0, {}, ["partition_resumed"])


@pytest.mark.parametrize(
    ("count", "marker", "error"),
    [(1, True, HaltError), (1, False, KafkaUnavailable), (0, True, KafkaUnavailable), (3, True, None)],
    ids=["fewer than finished", "fewer, nothing finished", "no topic just now", "the client knew less than the broker"],
)
async def test_a_partition_that_the_topic_has_no_more_halts_where_records_of_it_are_finished(
    monkeypatch: pytest.MonkeyPatch, count: int, marker: bool, error: type[Exception] | None
) -> None:
    async def counted(settings: Settings, topic: str) -> int:
        return count

    monkeypatch.setattr("updater.checkpoint.count_partitions", counted)
    server = MemoryServer()
    store, log = MemoryStore(server), LiveLog(server, end=100)
    await store.connect()
    log.known = {0, 1}
    markers = {0: Marker(5, 0, applied=5), 2: Marker(5, 0, applied=5) if marker else None}
    with pytest.raises(error, match="partitions") if error else contextlib.nullcontext():
        await Checkpoint(log, store, Settings())._require_partitions(markers)
