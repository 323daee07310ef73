"""Faults of the log itself: recreated, reset, deleted. Where going on would be wrong the updaters halt, and a person decides."""

from __future__ import annotations

import asyncio
import random

from runtime.kafka import KafkaError, NewTopic, RecordsToDelete, TopicPartition, make_admin, make_consumer
from sandbox.chaos.arena import PARTITIONS, Arena
from sandbox.chaos.waiting import Stuck, wait_until
from sandbox.topics import KEEP_FOR_EVER


async def topic_recreated(arena: Arena, rng: random.Random) -> None:
    """Deleted and made anew, perhaps already longer than it was: a halt, then the next stream epoch."""
    await arena.drain()
    grown = rng.random() < 0.4
    longest = max(arena.truth.now.ends.values())
    if grown:
        await arena.crew.stop()
    await _recreate(arena)
    following = arena.settings.kafka.stream_epoch + 1
    halted = arena.settings
    arena.with_kafka(stream_epoch=following)
    raised, arena.settings = arena.settings, halted  # the updaters are told only when a person has read the halt
    arena.truth.recreated(raised)
    await arena.sender.drop()
    count = 40 if not grown else min(longest + 50, 3_000) * (PARTITIONS + 1)
    await arena.sender.send([arena.audience.event(arena.audience.play()) for _ in range(count)], patiently=True)
    if grown:
        arena.crew.start()
    reason = await arena.until_halted("a recreated topic", epoch=following - 1)
    if "STREAM_EPOCH" not in reason:
        raise Stuck(f"the halt does not say what to do: {reason}")
    await arena.crew.stop()
    arena.settings = raised
    arena.crew.start()
    arena.pin()


async def _recreate(arena: Arena) -> None:
    topic = arena.settings.kafka.topic
    admin = await make_admin(arena.settings)
    try:
        await admin.delete_topics([topic])
        async with asyncio.timeout(60):
            while True:
                response = await admin.create_topics([NewTopic(topic, PARTITIONS, 1, topic_configs=KEEP_FOR_EVER)])
                if all(code == 0 for _, code, *_ in response.topic_errors):
                    return
                await asyncio.sleep(0.2)  # still being deleted
    finally:
        await admin.close()


async def offsets_reset(arena: Arena, rng: random.Random) -> None:
    """Somebody set the group's offsets: to the start, anywhere, past what is finished; or gave the updaters another group."""
    await arena.drain()
    await arena.crew.stop(kill=rng.random() < 0.5)
    await arena.sender.send([arena.audience.live() for _ in range(100)], patiently=True)
    ends = await arena.ends()
    way = rng.choice(("start", "anywhere", "end", "another group"))
    if way == "another group":
        arena.with_kafka(group_id=f"nearline-updater-{rng.getrandbits(32):x}")
    else:
        offsets = {p: {"start": 0, "end": end}.get(way, rng.randint(0, end)) for p, end in ends.items()}
        await wait_until(lambda: _commit(arena, offsets), "group without members")
    arena.crew.start()


async def _commit(arena: Arena, offsets: dict[int, int]) -> bool:
    """False while the group still has members: those that were killed."""
    consumer = await make_consumer(arena.settings, group_id=arena.settings.kafka.group_id)
    topic = arena.settings.kafka.topic
    try:
        consumer.assign([TopicPartition(topic, p) for p in offsets])
        await consumer.commit({TopicPartition(topic, p): offset for p, offset in offsets.items()})
    except KafkaError:
        return False
    finally:
        await consumer.stop()
    return True


async def retention_gap(arena: Arena, rng: random.Random) -> None:
    """Records are deleted before anybody read them; sometimes the lake has a copy, and the night brings the plays back."""
    await arena.drain()
    copied, falls_back = rng.random() < 0.3, rng.random() < 0.5
    await arena.rewrite_log()  # a fallback below this copy would need records that are about to be deleted
    copy = arena.copy_store()
    await arena.crew.stop()
    markers = await arena.markers()
    await arena.sender.send([arena.audience.live() for _ in range(200)], patiently=True)
    ends = await arena.ends()
    gone = {
        p: rng.randint(marker.next_offset, ends[p])
        for p, marker in markers.items()
        if marker is not None and ends[p] > marker.next_offset
    }
    for partition, before in gone.items():
        marker = markers[partition]
        assert marker is not None
        arena.truth.declare_gone(partition, range(marker.next_offset, before))
    await arena.read_truth()
    if copied:
        await arena.night()
    admin = await make_admin(arena.settings)
    try:
        topic = arena.settings.kafka.topic
        await admin.delete_records(
            {TopicPartition(topic, p): RecordsToDelete(before_offset=before) for p, before in gone.items()}
        )
    finally:
        await admin.close()
    arena.crew.start()
    if copied:
        await arena.reach(ends, "after the gap")
        await arena.night("--seed")
        if falls_back:  # what only the lake has is lost once more, and an ordinary night gives it back
            await arena.take_back(copy)
            await arena.reach(ends, "after falling back to before the gap")
            await arena.night()
    arena.truth.end_gap(restored=copied)
    arena.pin()
