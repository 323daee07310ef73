"""An event with a `traceparent` on real servers: its spans from the updater's process and from the home page's are of one trace."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from runtime.kafka import make_producer
from runtime.settings import Settings
from sandbox.processes import environment_of
from tests.consistency import CODEC, Stage, publish
from tests.integration.test_observability import ROOT, child, free_port, until
from tests.worlds import play_event

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PAGE_TRACE = "0af7651916cd43dd8448eb211c80319c"


class Span(NamedTuple):
    service: str
    name: str
    trace: str
    span: str
    parent: str
    links: list[str]
    attributes: dict[str, str]
    start_ns: int
    end_ns: int


class Collector:
    """Takes OTLP over HTTP, as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.raw = b""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                collector.take(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def take(self, body: bytes) -> None:
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                for one in scope.spans:
                    attributes = {a.key: a.value.string_value or str(a.value.int_value) for a in one.attributes}
                    links = [f"{link.trace_id.hex()}-{link.span_id.hex()}" for link in one.links]
                    names = one.trace_id.hex(), one.span_id.hex(), one.parent_span_id.hex()
                    times = one.start_time_unix_nano, one.end_time_unix_nano
                    self.spans.append(Span(named["service.name"], one.name, *names, links, attributes, *times))

    def named(self, name: str, trace: str = TRACE) -> list[Span]:
        return [one for one in self.spans if one.name == name and one.trace == trace]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


async def send(settings: Settings, viewer: str, item: int, *headers: tuple[str, bytes], private: bool = False) -> None:
    event = play_event(viewer, item, item, private=private)
    producer = await make_producer(settings)
    await producer.send_and_wait(
        settings.kafka.topic, CODEC.encode_event(event), key=viewer.encode(), timestamp_ms=event.event_time_ms,
        headers=[("private", b"1" if private else b"0"), *headers],
    )  # fmt: skip
    await producer.stop()


async def test_an_event_is_followed_from_its_header_through_the_row_to_the_page(
    stage: Stage, collector: Collector, tmp_path: Path
) -> None:
    publish(stage, "g1")
    page, health = free_port(), free_port()
    settings = Settings(
        **stage.settings.model_dump()
        | {"tracing": {"endpoint": collector.url}, "homepage": {"port": page}, "health": {"port": health}}
    )
    environment = environment_of(settings) | {"OTEL_BSP_SCHEDULE_DELAY": "200", "PYTHONPATH": str(ROOT)}
    asked = ("traceparent", f"00-{TRACE}-{SPAN}-01".encode())
    command = [sys.executable, str(ROOT / "nearline.py")]
    with (
        child([*command, "updater"], tmp_path / "updater.log", environment),
        child([*command, "homepage"], tmp_path / "homepage.log", environment),
    ):
        async with httpx.AsyncClient() as client:

            async def ready() -> bool:
                found = await client.get(f"http://127.0.0.1:{health}/health/ready")
                live = await client.get(f"http://127.0.0.1:{page}/health/live")
                return found.status_code == live.status_code == 200

            await until(ready, "both are ready", tmp_path)
            await send(settings, "zq-ana", 1, asked)
            await send(settings, "zq-ben", 2, ("traceparent", f"00-{'a' * 32}-{SPAN}-00".encode()))
            await send(settings, "zq-cid", 3, ("traceparent", f"00-{'b' * 32}-{SPAN}-01".encode()), private=True)
            await stage.drained(3)
            first = await client.get(f"http://127.0.0.1:{page}/v1/home/zq-ana")
            own = {"traceparent": f"00-{PAGE_TRACE}-{SPAN}-01"}
            second = await client.get(f"http://127.0.0.1:{page}/v1/home/zq-ana", headers=own)
            await client.get(f"http://127.0.0.1:{page}/v1/home/zq-ben")

            async def told() -> bool:
                return bool(collector.named("GET /v1/home") and collector.named("GET /v1/home", PAGE_TRACE))

            await until(told, "both pages are told", tmp_path)
        row_id = first.json()["row_id"]
        assert second.json()["row_id"] == row_id
        ttl_s = await stage.store._command("TTL", stage.store.keys.trace(row_id))
        assert 3_500 < ttl_s <= 3_600
    (process,) = collector.named(f"process {settings.kafka.topic}")
    assert (process.service, process.parent, process.links) == ("nearline-updater", SPAN, [f"{TRACE}-{SPAN}"])
    assert process.attributes["nearline.decision"] == "applied"
    assert process.attributes["nearline.row_id"] == row_id
    assert process.attributes["messaging.kafka.offset"] == "0"
    steps = [one for one in collector.spans if one.parent == process.span and one.service == "nearline-updater"]
    assert [one.name for one in steps] == ["decide", "read", "rewrite", "write", "commit"]
    assert all(process.start_ns <= one.start_ns <= one.end_ns <= process.end_ns for one in steps)
    assert all(before.end_ns <= after.start_ns for before, after in pairwise(steps))
    (seen,) = collector.named("GET /v1/home")
    assert (seen.service, seen.parent) == ("nearline-homepage", process.span), "one trace from the player to the page"
    assert seen.attributes["nearline.row_id"] == row_id
    (asked_for,) = collector.named("GET /v1/home", PAGE_TRACE)
    assert asked_for.parent == SPAN
    assert asked_for.links == [f"{TRACE}-{process.span}"], "a request's own trace is linked to the event's"
    assert {one.trace for one in collector.spans} == {TRACE, PAGE_TRACE}, "neither the unsampled nor the private one"
    assert b"zq-" not in collector.raw, "no viewer"
    assert b"tt00" not in collector.raw, "no item"
