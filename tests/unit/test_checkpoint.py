"""Resuming while another updater is at work on the same partition: no false alarm."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from contracts.errors import HaltError
from runtime.kafka import TopicPartition
from runtime.settings import Settings
from updater.checkpoint import Checkpoint
from viewers.memory_store import MemoryServer, MemoryStore
from viewers.store import Marker

PARTITION = TopicPartition("playback", 0)


class LiveLog:
    """A consumer of one partition; after each look at its end, ten records are written and finished by somebody else."""

    def __init__(self, server: MemoryServer, end: int) -> None:
        self._server = server
        self._end = end
        self.sought = -1

    def assignment(self) -> set[TopicPartition]:
        return {PARTITION}

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {PARTITION: 0}

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        end = self._end
        self._end += 10
        self._server.markers[0] = Marker(self._end, 0, applied=self._end)
        return {PARTITION: end}

    async def committed(self, partition: TopicPartition) -> int | None:
        return None

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.sought = offset


async def test_a_marker_that_moves_while_another_updater_resumes_is_not_taken_for_a_cut_log() -> None:
    server = MemoryServer()
    server.markers[0] = Marker(100, 0, applied=100)
    store, log = MemoryStore(server), LiveLog(server, end=100)
    await store.connect()
    await Checkpoint(log, store, Settings()).resume()
    assert log.sought == 100


async def test_a_marker_past_the_end_of_the_log_still_halts() -> None:
    server = MemoryServer()
    server.markers[0] = Marker(101, 0, applied=101)
    store = MemoryStore(server)
    await store.connect()
    with pytest.raises(HaltError, match=r"playback\[0\]: the store has finished offset 101 but the log ends at 100"):
        await Checkpoint(LiveLog(server, end=100), store, Settings()).resume()
