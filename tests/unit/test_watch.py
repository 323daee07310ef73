"""The watchdog: an updater whose client has silently stalled leaves; one that knows what it waits for does not."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import structlog

from contracts.errors import KafkaUnavailable
from runtime.kafka import KafkaError, TopicPartition
from runtime.settings import Settings
from updater.checkpoint import Progress
from updater.metrics import Metrics
from updater.service import Watch, make_app
from updater.swap import FORGET_AFTER_MS, forget_crashed
from viewers.memory_store import MemoryStore
from viewers.store import Marker


class Broker:
    """The consumer as the watch asks it. `heard`: the end that fetches told of; `end`: the broker's own word, None: no answer."""

    def __init__(self, heard: int | None, end: int | None) -> None:
        self.heard = heard
        self.end = end

    def last_stable_offset(self, partition: TopicPartition) -> int | None:
        return self.heard

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        if self.end is None:
            raise KafkaError("no answer")
        return dict.fromkeys(partitions, self.end)


class Stream:
    """An updater of one partition under watch. `passes(30)`: so many seconds go by, with a look in each."""

    def __init__(self, broker: Broker, *, position: int = 5, stall_timeout_s: float = 30.0) -> None:
        self.now_s = 1000.0
        self.store = MemoryStore()
        self.at = Progress(position, Marker(position, 0, applied=position), 0)
        swap = SimpleNamespace(
            rewriter=SimpleNamespace(activation=1),
            swaps=0,
            refusals=0,
            created_at_s=0.0,
            generation_id="g1",
            lacks_trends=False,
            trends=SimpleNamespace(in_force=None, seen_at_ms=0, refused=0),
            freeze=None,
            share=None,
            candidate_refused=None,
        )
        self.updater: Any = SimpleNamespace(
            settings=Settings(kafka={"stall_timeout_s": stall_timeout_s}),
            store=self.store,
            metrics=Metrics(),
            swap=swap,
            consumer=broker,
            checkpoint=SimpleNamespace(progress={0: self.at}),
            failing_since=None,
            now_ms=lambda: self.now_s * 1000,
        )
        self.watch = Watch(self.updater, lambda: self.now_s)

    async def passes(self, seconds: int) -> None:
        await self.store.connect()
        for _ in range(seconds):
            self.now_s += 1.0
            await self.watch.ask()
            self.watch.look()
            self.watch.check_progress()


async def test_records_that_wait_while_nothing_moves_end_the_process_after_the_set_time() -> None:
    stream = Stream(Broker(heard=8, end=8), stall_timeout_s=12)
    await stream.passes(12)
    with pytest.raises(KafkaUnavailable, match=r"playback\[0\]: 3 records wait at offset 5 .*for 12 s.*fresh process"):
        await stream.passes(2)


async def test_a_fetcher_that_hears_of_nothing_any_more_is_found_out_by_asking_the_broker() -> None:
    stream = Stream(Broker(heard=5, end=5))
    await stream.passes(120)
    stream.updater.consumer.end = 9
    await stream.passes(30)
    with pytest.raises(KafkaUnavailable, match="4 records wait"):
        await stream.passes(2)


async def test_a_record_that_arrives_after_hours_of_silence_has_the_whole_time() -> None:
    stream = Stream(Broker(heard=5, end=5))
    await stream.passes(7200)
    stream.updater.consumer.end = 6
    await stream.passes(29)


async def test_progress_however_slow_is_no_stall() -> None:
    stream = Stream(Broker(heard=1000, end=1000))
    for _ in range(10):
        await stream.passes(29)
        stream.at.position += 1


async def test_an_updater_that_knows_what_it_waits_for_is_left_alone_and_has_the_whole_time_afterwards() -> None:
    stream = Stream(Broker(heard=8, end=8))
    stream.updater.failing_since = 1.0  # the store, the registry or a generation is awaited
    await stream.passes(600)
    stream.updater.failing_since = None
    await stream.passes(29)


@pytest.mark.parametrize("heard", [5, 8])
async def test_a_broker_that_does_not_answer_is_no_stall_of_the_client(heard: int) -> None:
    stream = Stream(Broker(heard=heard, end=None))
    await stream.passes(600)
    stream.updater.consumer.end = 8
    await stream.passes(29)


async def test_a_partition_that_was_elsewhere_meanwhile_has_the_whole_time() -> None:
    stream = Stream(Broker(heard=8, end=8))
    await stream.passes(20)
    stream.updater.checkpoint.progress = {}
    await stream.passes(600)
    stream.updater.checkpoint.progress = {0: stream.at}
    await stream.passes(29)


async def test_updaters_that_went_without_a_word_are_struck_off_after_a_while() -> None:
    store = MemoryStore()
    await store.report_updater("lives", 3, 1_000_000)
    await store.report_updater("crashed", 3, 1_000_000 - FORGET_AFTER_MS - 1)
    await forget_crashed(store, 1_000_000)
    assert await store.read_updaters() == {"lives": (3, 1_000_000)}


async def test_a_sum_that_does_not_come_out_is_logged_once_a_change_and_told_by_a_service_that_stays_ready() -> None:
    stream = Stream(Broker(heard=5, end=5))
    stream.updater.ready, stream.updater.instance = True, "u1"

    def says(applied: int) -> None:
        stream.store.server.markers[0] = Marker(5, 0, applied=applied)

    async def health() -> tuple[int, int]:
        transport = httpx.ASGITransport(make_app(stream.updater, stream.watch))
        async with httpx.AsyncClient(transport=transport, base_url="http://updater") as client:
            answer = await client.get("/health/ready")
        return answer.status_code, answer.json()["unaccounted"]

    with structlog.testing.capture_logs() as logged:
        says(5)
        await stream.passes(3)
        assert await health() == (200, 0)
        assert logged == []
        for applied, lost in ((3, 2), (4, 1), (6, -1)):
            says(applied)
            await stream.passes(3)
            assert await health() == (200, abs(lost))
            (line,) = logged
            assert (line["event"], line["log_level"], line["offsets"]) == ("offsets_unaccounted", "error", lost)
            logged.clear()
        says(5)
        await stream.passes(3)
        assert await health() == (200, 0)
        assert [line["event"] for line in logged] == ["offsets_accounted_for_again"]
