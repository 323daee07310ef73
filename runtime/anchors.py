"""Reading anchors back: is this still the log that was read before?"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from contracts.anchors import Anchor, anchor_of
from contracts.errors import HaltError
from runtime.kafka import TopicPartition, kafka_errors
from runtime.settings import Settings

TIMEOUT_S = 10.0
"""For all partitions together. A broker that needs longer is slow, which is no evidence of anything: try again."""
POLL_MS = 500


class Reader(Protocol):
    """What is needed of aiokafka's consumer, one without a group; tests script one."""

    def assign(self, partitions: Sequence[Any]) -> None: ...
    def seek(self, partition: Any, offset: int) -> None: ...
    async def position(self, partition: Any) -> int: ...
    async def getmany(self, *partitions: Any, timeout_ms: int = 0) -> Mapping[Any, Sequence[Any]]: ...
    async def beginning_offsets(self, partitions: Sequence[Any]) -> Mapping[Any, int]: ...
    async def end_offsets(self, partitions: Sequence[Any]) -> Mapping[Any, int]: ...


def remedy(settings: Settings) -> str:
    """How a person goes on after the topic has become another one."""
    epoch = settings.kafka.stream_epoch
    return (
        f"If it is a new topic: set NEARLINE_KAFKA__STREAM_EPOCH={epoch + 1} (it is {epoch} now) for every updater and the nightly job and "
        "start them again: it is read from its start, and what viewers have watched stays. If the old log can be restored: do "
        "that, then nearline resume"
    )


async def check_anchors(reader: Reader, anchors: Mapping[TopicPartition, Anchor], settings: Settings) -> None:
    """Compare what lies at each anchor's offset with the anchor: one fetch a partition. Replaces the reader's assignment.

    An offset without a record (deleted by retention, a control record) is no evidence, and passes.
    Errors: `HaltError` if a record is another one or the log ends before it; `KafkaUnavailable` if there is no
    answer in time.
    """
    if not anchors:
        return
    with kafka_errors("reading back the last finished records", settings):
        async with asyncio.timeout(TIMEOUT_S):
            found = await _read_back(reader, anchors, settings)
    for tp, record in sorted(found.items()):
        if record != anchors[tp]:
            raise HaltError(
                f"{tp.topic}[{tp.partition}]: the record at offset {record.offset} is not the one that was finished there: it is of "
                f"{_moment(record)}, the finished one was of {_moment(anchors[tp])}. The topic was deleted and made anew, or its log "
                f"was replaced. {remedy(settings)}"
            )


async def _read_back(
    reader: Reader, anchors: Mapping[TopicPartition, Anchor], settings: Settings
) -> dict[TopicPartition, Anchor]:
    """What lies at the anchors' offsets now; partitions where nothing does are left out."""
    beginnings = await reader.beginning_offsets(list(anchors))
    ends = await reader.end_offsets(list(anchors))
    pending = []
    for tp, anchor in sorted(anchors.items()):
        if ends[tp] <= anchor.offset:
            raise HaltError(
                f"{tp.topic}[{tp.partition}]: offset {anchor.offset} was finished, but the log ends at {ends[tp]}: the topic was "
                f"recreated or cut. {remedy(settings)}"
            )
        if beginnings[tp] <= anchor.offset:
            pending.append(tp)
    reader.assign(pending)  # the others would be fetched without an offset
    for tp in pending:
        reader.seek(tp, anchors[tp].offset)
    found = {}
    while pending:
        fetched = await reader.getmany(*pending, timeout_ms=POLL_MS)
        for tp, records in fetched.items():
            if records and records[0].offset == anchors[tp].offset:
                found[tp] = anchor_of(records[0])
        pending = [tp for tp in pending if await reader.position(tp) <= anchors[tp].offset]
    return found


def _moment(anchor: Anchor) -> str:
    if not 0 <= anchor.timestamp_ms < 253_402_300_800_000:  # year 10000: no date can tell it
        return f"time {anchor.timestamp_ms} ms"
    return datetime.fromtimestamp(anchor.timestamp_ms / 1000, UTC).isoformat(" ", "milliseconds")
