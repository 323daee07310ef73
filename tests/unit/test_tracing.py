"""What is traced, what is not, and that nothing of it is there when it is off."""

from __future__ import annotations

import dataclasses
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from contracts.codec import Codec
from contracts.errors import SettingsError
from contracts.traceparent import TraceParent, read_sampled
from homepage.traces import QUEUE, PageTraces
from runtime.sections import TracingSettings
from runtime.settings import load_settings
from runtime.tracing import Tracer, open_tracer
from tests.worlds import T0, play_event
from updater.pipeline import Position, plan
from updater.traces import MAX_TRACED, BatchTimes, EventTraces, find_traced
from viewers.memory_store import MemoryServer, MemoryStore
from viewers.rewrite import Outcome, RewriteResult
from viewers.state import Limits

ROOT = Path(__file__).parent.parent.parent
NAMED = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_only_a_well_formed_and_sampled_traceparent_counts() -> None:
    span = read_sampled(NAMED)
    assert span == TraceParent(0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7)
    assert str(span).encode() == NAMED
    for other in (
        None, b"", NAMED[:-2] + b"00", NAMED[:-1], NAMED + b"0", NAMED.upper(), b"ff" + NAMED[2:],
        b"00-" + b"0" * 32 + NAMED[35:], NAMED[:36] + b"0" * 16 + b"-01",
    ):  # fmt: skip
        assert read_sampled(other) is None, other


def record(*headers: tuple[str, bytes]) -> SimpleNamespace:
    return SimpleNamespace(partition=0, offset=0, timestamp=0, key=b"ana", value=b"", headers=headers)


def test_events_that_are_private_or_may_be_are_never_traced() -> None:
    asked = ("traceparent", NAMED)
    batch = [
        record(asked),
        record(asked, ("private", b"1")),
        record(("private", b"0")),
        record(asked, ("private", b"0")),
    ]
    assert [one.record for one in find_traced({0: batch})] == [batch[3]]
    many = {0: [batch[3]] * (MAX_TRACED + 5)}
    assert len(find_traced(many)) == MAX_TRACED


def test_a_process_that_does_not_trace_does_not_even_load_what_sends_spans() -> None:
    code = (
        "import sys, updater.service, homepage.server; from runtime.tracing import open_tracer; "
        "from runtime.settings import Settings; "
        "assert open_tracer(Settings(_env_file=None).tracing, 'x') is None; "
        "sys.exit(any(name.startswith('opentelemetry.exporter') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_missing_library_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(SettingsError, match=r"pip install 'nearline\[tracing\]'"):
        open_tracer(TracingSettings(endpoint="http://127.0.0.1:1"), "x")


def test_a_collector_that_is_away_is_told_and_stops_nobody() -> None:
    tracer = Tracer(TracingSettings(endpoint="http://127.0.0.1:1"), "x")
    with capture_logs() as logs:
        tracer.tell("a", 0.0, 1.0, {})
        tracer.close()
    assert [(one["event"], one["endpoint"]) for one in logs] == [("spans_not_sent", "http://127.0.0.1:1")]


def test_a_stop_waits_for_a_silent_collector_once_and_not_for_each_batch_of_a_full_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runtime.tracing.EXPORT_TIMEOUT_S", 1)
    monkeypatch.setattr("runtime.tracing.STOP_TIMEOUT_S", 1.5)
    with socket.create_server(("127.0.0.1", 0)) as silent, capture_logs() as logs:
        tracer = Tracer(TracingSettings(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}"), "x")
        for _ in range(2_000):  # four batches
            tracer.tell("a", 0.0, 1.0, {})
        tracer.close()
        assert len(logs) < 4
        silent.close()
        for thread in threading.enumerate():  # its last lines are not to be another test's
            if thread.name == "last-spans":
                thread.join(20)


def test_an_endpoint_that_is_none_is_refused_without_quoting_it() -> None:
    for wrong, said in (
        ("collector:4318", "must be an http://"), ("http://u:secret@c:4318", "no part of it"), ("http://c:secret", "not a URL"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=said) as refused:
            load_settings(tracing={"endpoint": wrong})
        assert "secret" not in str(refused.value)


class Silent:
    """A tracer that nobody may ask to tell."""

    def draw(self) -> bool:
        return False


async def test_old_rows_and_untraced_views_cost_no_look_up_and_a_full_queue_costs_nobody_a_page() -> None:
    traces = PageTraces(Silent(), MemoryStore(MemoryServer()))
    now_ms = 4_000_000_000_000
    traces.served(None, "r1", 0, "own", 0.001)
    traces.served(None, "r1", now_ms, "default", 0.001)
    assert traces._queue.empty()
    for _ in range(QUEUE + 5):
        traces.served(NAMED.decode(), "r1", 0, "own", 0.001)
    assert traces._queue.qsize() == QUEUE


class Told:
    """A tracer that remembers."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, dict[str, object]]] = []

    def tell(
        self, name: str, start_ms: float, end_ms: float, attributes: dict[str, object], **_: object
    ) -> TraceParent:
        self.spans.append((name, attributes))
        return TraceParent(1, 2)


async def test_a_private_play_whose_header_denies_it_is_not_told_beside_its_viewers_other_plays() -> None:
    codec, asked = Codec.load(), [("traceparent", NAMED), ("private", b"0")]
    public = play_event("ana", 1, 0)
    batch = {0: [
        SimpleNamespace(partition=0, offset=n, timestamp=T0, key=b"ana", value=codec.encode_event(event), headers=asked)
        for n, event in enumerate([public, dataclasses.replace(public, event_id="other", private=True)])
    ]}  # fmt: skip
    decided = plan(batch, {0: Position(0, 0)}, codec.decode_event, Limits())
    results = [RewriteResult(Outcome.APPLIED) for _ in decided.jobs]
    tracer = Told()
    EventTraces(tracer, MemoryStore(MemoryServer()), "playback").tell(
        find_traced(batch), decided, results, BatchTimes(0, 1, 2, 3)
    )
    assert (decided.partitions[0].private, len(decided.jobs)) == (1, 1)
    assert [at["messaging.kafka.offset"] for name, at in tracer.spans if name.startswith("process")] == [0]
