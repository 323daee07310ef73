"""The harness's own parts: what it holds for true, what it draws, its proxy."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.codec import Codec
from contracts.errors import RecordError, UserError
from contracts.events import Kind, PlaybackEvent, validate
from runtime.settings import Settings
from sandbox.chaos.aof import cut_at_nonsense
from sandbox.chaos.faults import ALL
from sandbox.chaos.proxy import Proxy
from sandbox.chaos.run import MOST_IN_A_ROUND, Options, Report, draw
from sandbox.chaos.stream import Audience
from sandbox.chaos.truth import Fate, History, Incarnation, Truth
from sandbox.children import find_free_port
from tests.unit.test_state import SMALL, events, state
from viewers.state import merge


@settings(max_examples=300, deadline=None)
@given(st.lists(events(), max_size=14), st.randoms(use_true_random=False))
def test_the_truth_and_the_merge_agree_though_they_are_computed_in_different_ways(
    said: list[PlaybackEvent], rng: random.Random
) -> None:
    history = History()
    for event in rng.sample(said, len(said)) + said[:3]:
        history.add(event, event.event_time_ms)
    assert history.state(SMALL) == merge([state(event) for event in said], SMALL)


def test_every_message_of_the_audience_is_what_its_intent_says() -> None:
    codec = Codec.load()
    truth = Truth(Settings(), codec.decode_event)
    audience = Audience(truth, codec, random.Random(3))
    fates: Counter[Fate] = Counter()
    for message in [*(audience.live() for _ in range(3_000)), *(audience.poison() for _ in range(200))]:
        intent = truth.intents[message.intent]
        fates[intent.fate] += 1
        assert message.private == (b"1" if intent.fate is Fate.PRIVATE else b"0")
        try:
            event = codec.decode_event(message.value)
            validate(event, key=message.key, timestamp_ms=message.timestamp_ms)
        except RecordError:
            assert intent.fate is Fate.DEAD
        else:
            assert intent.fate is not Fate.DEAD
            assert intent.event is not None and replace(intent.event, private=event.private) == event
    assert min(fates.values()) > 50


def test_a_partition_s_accounts_leave_out_what_was_deleted_before_anybody_read_it() -> None:
    life = Incarnation(1)
    life.fates[0] = {0: Fate.EVENT, 1: Fate.DEAD, 2: Fate.PRIVATE, 4: Fate.EVENT, 5: Fate.EVENT}
    life.ends[0] = 6
    life.gone[0] = {4}
    assert life.counts(0) == {"event": 2, "dead": 1, "private": 1, "absent": 2}


def test_draws_follow_from_the_seed_and_leave_no_class_behind() -> None:
    rounds = list(draw(Options(150, 7)))
    assert rounds == list(draw(Options(150, 7))) != list(draw(Options(150, 8)))
    count = Counter(one.fault.name for round_ in rounds for one in round_)
    assert sum(count.values()) == 150
    common = [one.name for one in ALL if not one.rare]
    assert min(count[name] for name in common) >= 150 // len(common)
    assert set(count) == set(common)
    for round_ in rounds:
        assert len(round_) <= MOST_IN_A_ROUND
        assert len(round_) == 1 or not any(one.fault.alone for one in round_)


def test_a_long_run_has_rare_faults_three_times_at_most_and_a_soak_none_that_ends_processes() -> None:
    count = Counter(one.fault.name for round_ in draw(Options(1_000, 7)) for one in round_)
    assert {name: count[name] for name in count if ALL_BY_NAME[name].rare} == {"backlog": 3}
    soak = draw(Options(1, 7, for_s=60))
    drawn = [one.fault for _, round_ in zip(range(60), soak, strict=False) for one in round_]
    assert not any(fault.ends_processes for fault in drawn)


ALL_BY_NAME = {one.name: one for one in ALL}


def test_a_fault_of_the_record_is_drawn_again_and_an_unknown_one_is_named() -> None:
    (first,), (second,) = draw(Options(1, 1, replayed=("poison:77", "store_slow:5")))
    assert [(one.fault.name, one.seed) for one in (first, second)] == [("poison", 77), ("store_slow", 5)]
    with pytest.raises(UserError, match="poison_flood"):
        list(draw(Options(1, 1, only=("earthquake",))))


def test_a_report_with_any_finding_is_not_ok() -> None:
    for name in ("lost", "doubled", "rows_wrong", "private_leaks", "unaccounted"):
        report = Report(1)
        assert report.ok
        setattr(report.findings, name, 1)
        assert not report.ok
        assert report.to_json()[name] == 1
    assert not Report(1, stuck=["a partition"]).ok
    assert not Report(1, surprises=["exit status 1"]).ok


async def test_the_proxy_puts_another_server_behind_an_open_connection() -> None:
    def answers(name: bytes):
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                writer.write(name + line)
            writer.close()

        return serve

    servers = [await asyncio.start_server(answers(name), "127.0.0.1", 0) for name in (b"one ", b"two ")]
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    proxy = Proxy(find_free_port(), ports[0])
    await proxy.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"a\n")
    assert await reader.readline() == b"one a\n"
    assert await proxy.switch(ports[1]) == 1
    writer.write(b"b\n")
    assert await reader.readline() == b"two b\n"
    writer.close()
    await writer.wait_closed()
    await proxy.stop()
    for server in servers:
        server.close()
    await asyncio.sleep(0.05)  # the servers' sides see the end of their connections


def test_kinds_of_plays_that_the_audience_sends_are_those_of_the_contract() -> None:
    audience = Audience(Truth(Settings(), Codec.load().decode_event), Codec.load(), random.Random(1))
    assert {audience.play().kind for _ in range(300)} == {
        Kind.COMPLETE, Kind.STOP, Kind.PROGRESS, Kind.SKIP, Kind.START,
    }  # fmt: skip


def test_a_log_with_a_hole_is_cut_after_the_last_whole_command_or_transaction(tmp_path: Path) -> None:
    def command(*words: bytes) -> bytes:
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)

    whole = b"#TS:1\r\n" + command(b"SELECT", b"0") + command(b"SET", b"a", b"\r\n*1")
    for damage in (
        b"\x00" * 50,
        command(b"SET", b"a", b"b")[:-4],
        command(b"MULTI") + command(b"SET", b"a", b"c"),
        b"*x\r\n",
        b"",
    ):
        path = tmp_path / "log"
        path.write_bytes(whole + damage)
        assert cut_at_nonsense(path) == path.stat().st_size == len(whole)
    transaction = command(b"MULTI") + command(b"SET", b"a", b"c") + command(b"EXEC")
    path.write_bytes(whole + transaction + b"\x00" + command(b"SET", b"a", b"d"))
    assert cut_at_nonsense(path) == len(whole + transaction)
