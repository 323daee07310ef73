"""Reading an anchor back: what is evidence of another log, and what is none."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from contracts.anchors import Anchor, anchor_of
from contracts.errors import HaltError, KafkaUnavailable
from runtime import anchors
from runtime.anchors import check_anchors
from runtime.kafka import TopicPartition
from runtime.settings import Settings

PARTITION = TopicPartition("playback", 0)


def record(offset: int, value: bytes = b"x", timestamp: int = 1_700_000_000_000) -> Any:
    return SimpleNamespace(offset=offset, timestamp=timestamp, key=b"ana", value=value)


class Log:
    """One partition, offset → record; an offset that is not there holds none."""

    def __init__(
        self, records: Sequence[Any], *, beginning: int = 0, end: int | None = None, silent: bool = False
    ) -> None:
        self.records = {one.offset: one for one in records}
        self.beginning = beginning
        self.end = max(self.records, default=-1) + 1 if end is None else end
        self.silent = silent
        self.at = -1

    def assign(self, partitions: Sequence[Any]) -> None:
        self.at = -1

    def seek(self, partition: Any, offset: int) -> None:
        assert self.beginning <= offset < self.end
        self.at = offset

    async def position(self, partition: Any) -> int:
        return self.at

    async def getmany(self, *partitions: Any, timeout_ms: int = 0) -> Mapping[Any, Sequence[Any]]:
        if self.silent:
            await asyncio.sleep(60)
        found = [self.records[offset] for offset in sorted(self.records) if offset >= self.at]
        self.at = self.end
        return {PARTITION: found}

    async def beginning_offsets(self, partitions: Sequence[Any]) -> Mapping[Any, int]:
        return dict.fromkeys(partitions, self.beginning)

    async def end_offsets(self, partitions: Sequence[Any]) -> Mapping[Any, int]:
        return dict.fromkeys(partitions, self.end)


async def check(log: Log, anchor: Anchor) -> None:
    await check_anchors(log, {PARTITION: anchor}, Settings(kafka={"stream_epoch": 4}))


FINISHED = anchor_of(record(5))


@pytest.mark.parametrize(
    "log",
    [
        Log([record(5), record(6)]),
        Log([record(5)], end=9),
        Log([record(4), record(6)]),
        Log([], end=9),
        Log([record(7)], beginning=6),
    ],
    ids=["the same", "the last one", "no record there", "control records alone", "deleted by retention"],
)
async def test_the_same_record_or_none_at_all_is_no_evidence_of_another_log(log: Log) -> None:
    await check(log, FINISHED)


@pytest.mark.parametrize(
    "log",
    [Log([record(5, b"y")]), Log([record(5, timestamp=1_600_000_000_000)]), Log([record(4)])],
    ids=["other bytes", "another time", "a log that ends before it"],
)
async def test_another_record_or_a_log_that_ends_before_it_halts_and_says_what_to_do(log: Log) -> None:
    with pytest.raises(
        HaltError, match=r"playback\[0\].*offset 5.*NEARLINE_KAFKA__STREAM_EPOCH=5 \(it is 4 now\).*nearline resume"
    ):
        await check(log, FINISHED)


async def test_times_that_no_date_can_tell_do_not_break_the_message() -> None:
    for timestamp in (-1, 10**18):
        with pytest.raises(HaltError, match=f"time {timestamp} ms"):
            await check(Log([record(5, timestamp=timestamp)]), FINISHED)


async def test_a_broker_that_does_not_answer_in_time_is_a_transient_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchors, "TIMEOUT_S", 0.01)
    with pytest.raises(KafkaUnavailable, match="reading back"):
        await check(Log([record(5)], silent=True), FINISHED)
