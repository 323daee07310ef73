"""A stream under test, and the question that every test of the updater ends in.

`Stage` is one topic, one namespace of a store and one generations folder. `assert_consistent` asks: is each viewer's state,
to the bit, what a separate and simple path computes from the log, and is each vector and row what the rewrite gives for that
state? `assert_accounted` asks: has every offset exactly one fate?
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from contracts.codec import Codec
from contracts.events import PlaybackEvent
from contracts.registry import Registry
from embeddings.generations_folder import GenerationsFolder
from runtime.kafka import ConsumerRecord, TopicPartition, make_consumer, make_producer
from runtime.settings import Settings
from tests.unit.test_state import oracle
from tests.worlds import T0, make_generation, play_event, wait_until, write_generation_folder
from updater.consumer import Updater
from viewers.packing import unpack
from viewers.redis_store import RedisStore, open_store
from viewers.rewriter import Rewriter
from viewers.state import Limits
from viewers.store import Marker

CODEC = Codec(Registry.load())
PARTITIONS = 3

GENERATIONS = {
    "g1": make_generation(120, 8, 1, generation_id="g1"),
    "g2": make_generation(140, 8, 2, generation_id="g2"),
}


@dataclasses.dataclass
class Stage:
    """One topic, one namespace, one generations folder."""

    settings: Settings
    store: RedisStore
    sent: list[PlaybackEvent] = dataclasses.field(default_factory=list)
    poison: int = 0
    partitions: int = PARTITIONS

    async def send(self, events: Iterable[PlaybackEvent], *, raw: Iterable[tuple[bytes, bytes | None]] = ()) -> None:
        """Produce events (and raw key/value pairs) and wait for their acknowledgements."""
        producer = await make_producer(self.settings)
        topic, acks = self.settings.kafka.topic, []
        for event in events:
            acks.append(
                await producer.send(
                    topic,
                    CODEC.encode_event(event),
                    key=event.viewer.encode(),
                    timestamp_ms=event.event_time_ms,
                    headers=[("private", b"1" if event.private else b"0")],
                )
            )
            self.sent.append(event)
        for key, value in raw:
            acks.append(await producer.send(topic, value, key=key, headers=[("private", b"0")], timestamp_ms=T0))
            self.poison += 1
        await asyncio.gather(*acks)
        await producer.stop()

    @contextlib.asynccontextmanager
    async def updater(self, **changes: object) -> AsyncIterator[Updater]:
        """An updater running beside the test; stopped cleanly at the end."""
        settings = self.settings.model_copy(update=changes)
        store = open_store(settings.store, settings.keys)
        updater = Updater(settings, store, CODEC, instance=f"u{id(store)}")
        task = asyncio.create_task(updater.run())
        try:
            yield updater
        finally:
            updater.stop()
            try:
                await asyncio.wait_for(task, 30)
            finally:
                await store.close()

    async def markers(self) -> list[Marker]:
        """The markers that exist."""
        found = [await self.store.read_marker(p) for p in range(self.partitions)]
        return [marker for marker in found if marker is not None]

    async def finished(self) -> int:
        """Offsets accounted for in all partitions."""
        markers = await self.markers()
        assert all(marker.unaccounted == 0 for marker in markers)
        return sum(marker.next_offset for marker in markers)

    async def drained(self, count: int) -> None:
        """Wait until this many offsets are finished."""

        async def done() -> bool:
            return await self.finished() >= count

        await wait_until(done, f"{count} offsets finished")

    async def ends(self) -> dict[TopicPartition, int]:
        """Where each partition of the log ends."""
        consumer = await make_consumer(self.settings)
        try:
            found: dict[TopicPartition, int] = await consumer.end_offsets(
                [TopicPartition(self.settings.kafka.topic, p) for p in range(self.partitions)]
            )
        finally:
            await consumer.stop()
        return found

    async def committed(self) -> dict[int, int | None]:
        """Partition → the group's committed offset."""
        consumer = await make_consumer(self.settings, group_id=self.settings.kafka.group_id)
        try:
            topic = self.settings.kafka.topic
            return {p: await consumer.committed(TopicPartition(topic, p)) for p in range(self.partitions)}
        finally:
            await consumer.stop()

    async def dead_letters(self) -> list[ConsumerRecord]:
        """Every dead letter so far."""
        return await self._records([TopicPartition(self.settings.kafka.dead_letter_topic, 0)])

    async def log(self) -> list[ConsumerRecord]:
        """Every record of the topic."""
        return await self._records([TopicPartition(self.settings.kafka.topic, p) for p in range(self.partitions)])

    async def _records(self, partitions: list[TopicPartition]) -> list[ConsumerRecord]:
        consumer = await make_consumer(self.settings)
        try:
            consumer.assign(partitions)
            for partition in partitions:
                consumer.seek(partition, 0)
            count = sum((await consumer.end_offsets(partitions)).values())
            records: list[ConsumerRecord] = []
            async with asyncio.timeout(20):
                while len(records) < count:
                    records += [r for found in (await consumer.getmany(timeout_ms=200)).values() for r in found]
        finally:
            await consumer.stop()
        return records

    async def assert_consistent(self, generation_id: str | None = "g1") -> None:
        """I1 and I2: state from the oracle, row and vector from the rewrite of that state by its viewer's arm at the row's own time.

        `generation_id`: what is in force; a share may see another."""
        current = GenerationsFolder(self.settings.generations_path).read_current()
        by_viewer: dict[str, list[PlaybackEvent]] = {}
        for event in self.sent:
            if not event.private:
                by_viewer.setdefault(event.viewer, []).append(event)
        limits = Limits(**self.settings.state.model_dump())
        for viewer, history in by_viewer.items():
            stored = await self.store.read_viewer(viewer)
            assert unpack(stored.state) == oracle(history, limits), viewer
            if generation_id is None:
                assert stored.row == b""
                continue
            row = CODEC.decode_row(stored.row)
            assert current is not None
            assert current.generation_id == generation_id
            own, activation = current.of_viewer(viewer), current.activation
            assert (row.generation_id, row.activation) == (own, activation) == (own, stored.activation)
            rewriter = Rewriter(GENERATIONS[own], stored.activation, CODEC.encode_row, limits)
            again = rewriter.rewrite(
                unpack(stored.state), computed_at_ms=row.computed_at_ms, event_time_ms=row.event_time_ms
            )
            assert (again.vector_bytes, again.row_bytes) == (stored.vector, stored.row), viewer
        found = {viewer async for batch in self.store.scan_viewers() for viewer in batch}
        assert found == set(by_viewer)

    async def assert_accounted(self) -> None:
        """Every offset has exactly one fate, and each fate's number is that of what was sent."""
        await self._assert_fates(
            records=len(self.sent) + self.poison, private=sum(event.private for event in self.sent), dead=self.poison
        )

    async def assert_accounted_by_the_log(self) -> None:
        """The same where the log may hold a record twice: a broker that restarts forgets the producers of records whose time is
        longer past than its `producer.id.expiration.ms`, and takes what they send again for new."""
        log = await self.log()
        assert {(r.key, r.value) for r in log} == {(e.viewer.encode(), CODEC.encode_event(e)) for e in self.sent}
        await self._assert_fates(
            records=len(log), private=sum(dict(r.headers)["private"] == b"1" for r in log), dead=self.poison
        )

    async def _assert_fates(self, *, records: int, private: int, dead: int) -> None:
        markers = await self.markers()
        ends = await self.ends()
        assert (sum(m.next_offset for m in markers), sum(ends.values())) == (records, records)
        assert all(m.unaccounted == 0 and m.origin == 0 for m in markers)
        fates = {name: sum(getattr(m, name) for m in markers) for name in ("private", "dead", "absent")}
        assert fates == {"private": private, "dead": dead, "absent": 0}
        assert sum(m.applied + m.noop for m in markers) == records - private - dead


async def make_stage(bootstrap: str, url: str, topic: str, namespace: str, tmp_path: Path) -> Stage:
    """A stage on these servers; the topic exists already."""
    settings = Settings(
        kafka={"bootstrap_servers": bootstrap, "topic": topic, "group_id": topic, "max_batch_records": 64},
        store={"url": url, "namespace": namespace},
        state={"max_plays": 20},
        generations_path=str(tmp_path / "generations"),
    )
    store = open_store(settings.store, settings.keys)
    await store.connect()
    return Stage(settings, store)


def publish(stage: Stage, generation_id: str) -> int:
    """Write the generation's folder and activate it; the activation."""
    folder = GenerationsFolder(stage.settings.generations_path)
    if generation_id not in [m.generation_id for m in folder.list()]:
        write_generation_folder(stage.settings.generations_path, GENERATIONS[generation_id])
    return folder.activate(generation_id, floor=0).activation


def plays(viewers: int, count: int, *, start: int = 0) -> list[PlaybackEvent]:
    """Plays of several viewers, some private, some of items that no generation knows."""
    events = []
    for i in range(start, start + count):
        item: int | str = f"new{i % 7}" if i % 11 == 0 else (i * 7) % 120
        events.append(play_event(f"v{i % viewers}", item, i, private=i % 13 == 5, share=(i % 10) / 10 + 0.1))
    return events
