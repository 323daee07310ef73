"""Dead letters on a real Kafka: listed by cause, replayed once their cause is mended, never twice; erased viewers leave the topic."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from pathlib import Path

import pytest
import redis.asyncio
from pydantic import SecretStr

from batch.forget import forget, look_at_store, scrub_dead_letters
from batch.lake import open_lake
from contracts import events as contract
from contracts.events import PlaybackEvent
from runtime import deadletters
from runtime.deadletters import Letter, Mark, parse, read_records
from runtime.kafka import ConsumerRecord, TopicPartition, make_consumer, make_producer
from runtime.settings import Settings
from sandbox.processes import environment_of
from sandbox.servers import KafkaServer
from tests.conftest import TopicFactory
from tests.consistency import CODEC, Stage, plays, publish
from tests.worlds import T0, play_event
from updater import dlq
from updater.dlq import erase_viewer, list_letters, replay
from updater.verbs import dlq_app
from viewers.packing import unpack

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
async def stage(stage: Stage, tmp_path: Path) -> Stage:
    stage.settings = stage.settings.model_copy(update={"lake_path": str(tmp_path / "lake")})
    publish(stage, "g1")
    return stage


async def records(settings: Settings) -> list[ConsumerRecord]:
    return [record async for record in read_records(settings)]


async def letters(settings: Settings) -> list[Letter]:
    return [entry for record in await records(settings) if isinstance(entry := parse(record), Letter)]


def rewatched(viewer: str, item: int, second: float) -> PlaybackEvent:
    """A play watched twenty times over: more than the contract allows."""
    return dataclasses.replace(play_event(viewer, item, second), watched_ms=2_000_000)


async def die(*arguments: object) -> None:
    raise ConnectionError("killed here")


async def test_letters_whose_cause_is_mended_are_applied_once_however_often_they_are_replayed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = plays(5, 30)
    wide = [rewatched(f"v{n}", n, 40 + n) for n in range(3)]
    async with stage.updater():
        await stage.send([*good, *wide], raw=[(b"v1", b"not avro"), (b"v2", b"not avro")])
        producer = await make_producer(stage.settings)
        await producer.send_and_wait(stage.settings.kafka.topic, b"perhaps private", key=b"v3")
        await producer.stop()
        await stage.drained(36)
    listing = await list_letters(stage.settings)
    assert (listing.letters, listing.waiting, listing.replayed, listing.unquotable) == (6, 5, 0, 1)
    causes = {one.cause: one for one in listing.causes}
    watched = causes["InvalidEvent: watched_ms is over 10 times the duration"]
    assert (watched.letters, watched.schema_ids, watched.first_ms) == (3, (1,), wide[0].event_time_ms)
    untouched = await replay(stage.settings, now_ms=T0)
    assert (untouched.matched, untouched.sent, untouched.not_replayable, len(untouched.refused)) == (6, 0, 1, 5)

    monkeypatch.setattr(contract, "MAX_WATCHED_RATIO", 100)  # the mended updater
    planned = await replay(stage.settings, cause="watched_ms is over N times", dry_run=True, now_ms=T0)
    assert (planned.matched, planned.sent, len(await letters(stage.settings))) == (3, 3, 6)
    with monkeypatch.context() as crash:
        crash.setattr(dlq, "_mark", die)
        with pytest.raises(ConnectionError):
            await replay(stage.settings, now_ms=T0)  # sent, and died before it was marked
    first = await replay(stage.settings, now_ms=T0)
    again = await replay(stage.settings, now_ms=T0)
    assert (first.sent, again.sent, again.already_replayed) == (3, 0, 3)
    async with stage.updater():
        await stage.drained(36 + 6)
    await stage.assert_consistent()  # `stage.sent` holds the three: the oracle wants each once
    markers = await stage.markers()
    assert sum(m.dead for m in markers) == 6
    after = await list_letters(stage.settings)
    assert (after.letters, after.waiting, after.replayed) == (6, 2, 3)


async def test_a_letter_keeps_its_records_time_and_is_judged_by_it(stage: Stage) -> None:
    producer = await make_producer(stage.settings)
    event = play_event("v1", 1, 3600)
    where = await producer.send_and_wait(
        stage.settings.kafka.topic, CODEC.encode_event(event), key=b"v1", timestamp_ms=T0,
        headers=[("private", b"0"), ("trace", b"\xff")],
    )  # fmt: skip
    await producer.stop()
    async with stage.updater():
        await stage.drained(1)
    (record,) = await records(stage.settings)
    (letter,) = await letters(stage.settings)
    assert (record.timestamp, letter.timestamp_ms) == (T0, T0)
    assert letter.headers == (("private", b"0"), ("trace", b"\xff"))
    report = await replay(stage.settings, now_ms=T0)
    assert "five minutes" in report.refused[0].why
    offsets = [(where.partition, where.offset)]
    forced = await replay(stage.settings, offsets=offsets, force=True, now_ms=T0)
    assert forced.sent == 1
    async with stage.updater():
        await stage.drained(2)
    second = (await letters(stage.settings))[1]
    assert (second.at.partition, second.at.offset) == (where.partition, where.offset + 1)
    assert dataclasses.replace(second, at=letter.at) == letter


async def test_a_letter_that_is_written_again_without_its_bytes_hides_none_that_has_them(stage: Stage) -> None:
    async with stage.updater():
        await stage.send([], raw=[(f"v{n}".encode(), b"?") for n in range(3)])
        await stage.drained(3)
    async with redis.asyncio.Redis.from_url(stage.settings.store.url.get_secret_value()) as client:
        await client.delete(*[key async for key in client.scan_iter(f"{stage.settings.store.namespace}:*")])
    async with stage.updater():  # the commits say that all of it was finished
        await stage.drained(3)
    assert [one.quotable for one in await letters(stage.settings)] == [True] * 3 + [False] * 3
    for viewer in ("v1", "v2"):
        await erase_viewer(stage.settings, viewer, now_ms=T0)
    listing = await list_letters(stage.settings)
    assert (listing.letters, listing.waiting, listing.unquotable, listing.erased) == (1, 1, 0, 2)
    report = await replay(stage.settings, force=True, now_ms=T0)
    assert (report.sent, report.not_replayable) == (1, 0)


async def about(stage: Stage, viewers: int = 4) -> None:
    """Letters about `v0` … by key, by content, broken; and one that is replayed."""
    async with stage.updater():
        raw: list[tuple[bytes, bytes | None]] = []
        for n in range(viewers):
            whole = CODEC.encode_event(play_event(f"v{n}", n, n))
            raw += [(f"v{n}".encode(), b"?"), (b"else", whole), (b"else", whole[:-1])]
        await stage.send([], raw=raw)
        await stage.drained(3 * viewers)
    offset = next(one.at for one in await letters(stage.settings) if one.key == b"v3")
    await replay(stage.settings, offsets=[(offset.partition, offset.offset)], force=True, now_ms=T0)


def holds(found: list[ConsumerRecord], viewer: bytes) -> bool:
    return any(viewer in (r.key or b"") + (r.value or b"") + b"".join(v for _, v in r.headers) for r in found)


async def test_a_forgotten_viewer_leaves_the_dead_letters_and_nobody_else_does(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await about(stage)
    before = {one.at: one for one in await letters(stage.settings)}
    with monkeypatch.context() as crash:
        crash.setattr(deadletters, "_cut", die)
        with pytest.raises(ConnectionError):
            await erase_viewer(stage.settings, "v1", now_ms=T0)  # written again and marked, not cut
    assert (await list_letters(stage.settings)).erased == 3
    receipt = await forget(stage.settings, "v1", now_ms=T0)
    assert receipt.dead_letters == 3
    assert receipt.store.startswith("not yet: no updater is running; the stream has to finish offset")
    found = await records(stage.settings)
    assert not holds(found, b"v1")
    left = await letters(stage.settings)
    assert {one.at: one for one in left} == {
        at: one for at, one in before.items() if not dlq.belongs_to("v1", CODEC)(one)
    }
    assert len({one.at for one in left}) == len(before) - 3  # the crash left some twice
    listing = await list_letters(stage.settings)
    assert (listing.letters, listing.replayed, listing.erased) == (9, 1, 3)
    assert (await forget(stage.settings, "v1", now_ms=T0)).dead_letters == 0


async def test_a_receipt_says_what_became_of_the_viewers_hash(stage: Stage) -> None:
    wall_ms = int(time.time() * 1000)
    async with stage.updater():
        await stage.send(plays(3, 30))
        await stage.drained(30)
        assert (await stage.store.read_viewer("v1")).row
        receipt = await forget(stage.settings, "v1", now_ms=wall_ms)
        assert receipt.store == "emptied"
        emptied = await stage.store.read_viewer("v1")
        assert unpack(emptied.state).is_empty
        assert not emptied.row
        looked = await look_at_store(stage.settings, "v1", receipt.partition, receipt.offset + 1, wall_ms // 1000, 0.3)
        assert looked.startswith(f"not yet: the stream has to finish offset {receipt.offset + 1}")
        looked = await look_at_store(stage.settings, "v2", receipt.partition, receipt.offset, wall_ms // 1000, 0.3)
        assert looked.startswith("not yet: the stream is past the erasure, and the viewer's hash is not")
    store = stage.settings.store.model_copy(update={"url": SecretStr("redis://127.0.0.1:1/0")})
    away = stage.settings.model_copy(update={"store": store})
    assert (await look_at_store(away, "v1", 0, 0, 0, 0.3)).startswith("not yet: ")


async def test_a_log_that_is_cut_below_a_reader_is_read_on_where_it_begins(stage: Stage) -> None:
    await about(stage)
    before = await records(stage.settings)
    assert before[0].offset == 0
    assert await erase_viewer(stage.settings, "v1", now_ms=T0) == 3
    after = await records(stage.settings)
    assert after[0].offset > 0
    tp = TopicPartition(stage.settings.kafka.dead_letter_topic, 0)
    consumer = await make_consumer(stage.settings)
    try:  # as one that began before the cut
        late = [r async for r in deadletters._read_partition(stage.settings, consumer, tp, 0, after[-1].offset + 1)]
    finally:
        await consumer.stop()
    assert [record.offset for record in late] == [record.offset for record in after]


async def test_two_viewers_forgotten_at_once_both_leave(stage: Stage) -> None:
    await about(stage)
    await asyncio.gather(*(erase_viewer(stage.settings, viewer, now_ms=T0) for viewer in ("v0", "v2")))
    for _ in range(2):
        found = await records(stage.settings)
        assert not holds(found, b"v0")
        assert not holds(found, b"v2")
        assert {one.at for one in await letters(stage.settings) if one.key in (b"v1", b"v3")}
        await erase_viewer(stage.settings, "nobody", now_ms=T0)


async def test_what_is_read_again_after_an_erasure_is_not_quoted_and_the_night_takes_what_came_before_it(
    stage: Stage,
) -> None:
    """1. poison, then an erasure  2. the store loses what it did, and no commit tells: nobody knows of it while the poison is read again
    3. the night  4. the log is read again by those who know"""
    kafka = stage.settings.kafka
    nobody = kafka.model_copy(update={"max_batch_records": 1, "group_id": kafka.group_id + "-new"})
    knowing = kafka.model_copy(update={"group_id": kafka.group_id + "-newer"})
    await about(stage)  # 1
    assert (await forget(stage.settings, "v1", now_ms=T0 + 5_000)).dead_letters == 3
    assert not holds(await records(stage.settings), b"v1")
    async with redis.asyncio.Redis.from_url(stage.settings.store.url.get_secret_value()) as client:
        for again, updating in enumerate((stage.updater(kafka=nobody), stage.updater(kafka=knowing))):
            keys = [key async for key in client.scan_iter(match=f"{stage.settings.store.namespace}:*")]
            await client.delete(*(key for key in keys if not again or not key.endswith(b":v:v1")))  # 2, 4
            async with updating:
                await stage.drained(14)  # three for each of four viewers, one replayed, the erasure
            found = await records(stage.settings)
            by_key = [record for record in found if record.key == b"v1"]
            if again:
                assert not by_key
                assert not any(deadletters.viewer_in(one, CODEC) == "v1" for one in await letters(stage.settings))
                assert any(one.key == b"v0" for one in await letters(stage.settings))
                return
            assert by_key
            lake = open_lake(stage.settings)
            assert (await scrub_dead_letters(stage.settings, lake, now_ms=T0) or 0) >= 1  # 3
            assert not holds(await records(stage.settings), b"v1")
            assert any(isinstance(parse(record), Mark) for record in await records(stage.settings))


async def test_without_the_topic_there_are_no_letters(kafka: KafkaServer, topic: TopicFactory, tmp_path: Path) -> None:
    settings = Settings(kafka={"bootstrap_servers": kafka.bootstrap, "topic": await topic(1)})
    assert (await list_letters(settings)).letters == 0
    assert await erase_viewer(settings, "v1", now_ms=T0) == 0


async def test_the_verbs_tell_what_was_found_and_done(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    await about(stage)
    for name, value in environment_of(stage.settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NEARLINE_LOG_LEVEL", "error")

    def verb(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(dlq_app, list(arguments))
        return result.exit_code, result.stdout

    status, text = await asyncio.to_thread(verb, "list", "--json")
    assert status == 0
    assert json.loads(text)["letters"] == 12
    status, text = await asyncio.to_thread(verb, "list")
    assert "12 letters" in text
    status, text = await asyncio.to_thread(verb, "replay", "--dry-run", "--json")
    assert (status, json.loads(text)["already_replayed"], json.loads(text)["sent"]) == (1, 1, 0)
    status, text = await asyncio.to_thread(verb, "replay")
    assert (status, "not sent" in text, "were replayed before" in text) == (1, True, True)
