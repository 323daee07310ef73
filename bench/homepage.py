"""Home pages a second, and how long the slowest in a hundred takes: reading a row that is there, against scoring on request.

All services run at once on the same store; the load meets one after the other, interleaved; of two replicas each has half of the
connections, as behind a balancer. Connections that ask again at once show how many pages a second there can be, and then pages wait
for each other; connections that pause for PAUSE_MS show how long a page takes where there is room. Hits are viewers drawn uniformly, each
with a row; misses are viewers whom nobody knows. Impressions go to a real Kafka. Processor time is that of the service and the store
together; the load generator runs on the same cores, and its own time does not count. Beforehand both must serve what the
store, or the kernel, says; afterwards every hit must have been the viewer's own row.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from bench.common import Stage, load_average, make_stage, make_world, processor_s
from bench.load import generator, run_loads
from bench.report import Line, Report, WrongResult, interleave, rounded
from contracts.rows import ENTRIES_SHOWN
from sandbox.processes import Service, environment_of
from sandbox.servers import Sandbox
from viewers.kernel import Todo

CONNECTIONS = (1, 32)
PAUSE_MS = 4
SECONDS = 5.0
REPETITIONS = 3
VIEWERS = 10_000
N_ITEMS = 3_500
CHECKED = 50
PATH = "/v1/home/"
HIT, MISS = "viewer-", "nobody-"
REPLICAS = "two_replicas"
LABELS = {"nearline": "Nearline", REPLICAS: "Nearline, two replicas", "on_request": "scored on request"}


def run() -> Report:
    """Hits and misses, at each number of connections."""
    load = load_average()
    with tempfile.TemporaryDirectory(prefix="nearline-bench-") as folder, Sandbox(Path(folder)) as sandbox:
        found = asyncio.run(_run(sandbox))
    lines: list[Line] = []
    figures: dict[str, Any] = {}
    for name, measured in found.items():
        case, who = name.split("|")
        for quantity, unit in (("rps", "requests/s"), ("p50_ms", "ms"), ("p99_ms", "ms"), ("core_us", "µs")):
            lines.append(Line(case, f"{LABELS[who]}, {quantity.partition('_')[0]}", unit, measured[quantity]))
        figures.setdefault(who, {})[case] = {one: rounded(series.median) for one, series in measured.items()}
    steady, busiest = figures[REPLICAS][PAUSING], figures[REPLICAS][_case("hit", CONNECTIONS[-1])]
    figures |= {"replicas": 2, "most_rps": busiest["rps"]} | {
        name: steady[name] for name in ("rps", "p99_ms", "core_us")
    }
    details = {
        "viewers": VIEWERS, "titles": N_ITEMS, "history": 50, "seconds": SECONDS, "repetitions": REPETITIONS,
        "load_generator": generator(), "load_average": load,
    }  # fmt: skip
    return Report("homepage", "Home pages", lines, {"homepage": figures}, details)


def _case(kind: str, connections: int) -> str:
    return f"{kind}, {connections} connection{'s' if connections > 1 else ''}"


PAUSING = f"{_case('hit', CONNECTIONS[-1])}, a page {PAUSE_MS} ms after the last"


async def _run(sandbox: Sandbox) -> Any:
    world = make_world(sandbox.data_dir, N_ITEMS)
    stage = await make_stage(world, sandbox.kafka.bootstrap, sandbox.valkey, "home", viewers=VIEWERS, history=50)
    stage.seed()
    async with stage.store() as store:
        await store.write_default_rows({"*:*": world.rewriter.default_row(computed_at_ms=1)})
    environment = environment_of(stage.settings)
    services = {
        "nearline": Service("homepage", environment, sandbox.data_dir / "nearline", port_setting=PORT),
        REPLICAS: Service("homepage", environment, sandbox.data_dir / "replica", port_setting=PORT),
        "on_request": Service(
            "homepage",
            environment,
            sandbox.data_dir / "on-request",
            port_setting=PORT,
            program=("-m", "bench.on_request"),
        ),
    }
    try:
        for service in services.values():
            service.log.parent.mkdir(parents=True)
            (service.log.parent / service.verb).mkdir()
            service.start()
        for name, service in services.items():
            await service.wait_ready()
            await _check(stage, service, name == "on_request")
        loaded = {name: [service] for name, service in services.items()}
        loaded[REPLICAS].append(services["nearline"])
        runners = {}
        for connections in CONNECTIONS:
            for kind, prefix in (("hit", HIT), ("miss", MISS)):
                for who, replicas in loaded.items():
                    if len(replicas) > connections or (kind == "miss" and who == "on_request"):
                        continue  # without a state there is nothing to score
                    runner = _Runner(LABELS[who], stage, replicas, prefix, connections)
                    runners[f"{_case(kind, connections)}|{who}"] = partial(runner.run)
        paused = _Runner(LABELS[REPLICAS], stage, loaded[REPLICAS], HIT, CONNECTIONS[-1], PAUSE_MS)
        runners[f"{PAUSING}|{REPLICAS}"] = partial(paused.run)
        return await asyncio.to_thread(interleave, runners, REPETITIONS)
    finally:
        for service in services.values():
            service.stop()


PORT = "NEARLINE_HOMEPAGE__PORT"


async def _check(stage: Stage, service: Service, on_request: bool) -> None:
    """A sample of pages shows the titles of the stored row, or of the row that the kernel makes of the stored state now. Errors:
    `WrongResult`."""
    async with stage.store() as store, httpx.AsyncClient(timeout=5) as client:
        for number in range(0, VIEWERS, VIEWERS // CHECKED):
            viewer = f"{HIT}{number}"
            stored = await store.read_viewer(viewer)
            row = stored.row
            if on_request:
                now_ms = time.time_ns() // 1_000_000
                todo = Todo(stored.state, (), True, None)
                (made,) = stage.world.rewriter.rewrite_many([todo], computed_at_ms=now_ms)
                row = made.row_bytes if made is not None else b""
            page = (await client.get(f"{service.url}{PATH}{viewer}")).json()
            shown = [entry["item_id"] for entry in page["entries"]]
            if shown != [entry.item_id for entry in stage.world.codec.decode_row(row).entries[:ENTRIES_SHOWN]]:
                raise WrongResult(f"{viewer}: the page does not show the row")


@dataclass
class _Runner:
    """A service, one process or several, under one kind of load."""

    who: str
    stage: Stage
    replicas: list[Service]
    prefix: str
    connections: int
    pause_ms: int = 0

    def run(self) -> dict[str, float]:
        pids = [pid for pid in (*(one.pid for one in self.replicas), self.stage.valkey.pid) if pid is not None]
        outcome = "own" if self.prefix == HIT else "default"
        before, served = processor_s(pids), self._served(outcome)
        urls = [one.url for one in self.replicas]
        load = run_loads(
            urls, PATH + self.prefix, VIEWERS, connections=self.connections, seconds=SECONDS, pause_ms=self.pause_ms
        )
        took_s, served = processor_s(pids) - before, self._served(outcome) - served
        if served < load.requests:
            raise WrongResult(
                f"{self.who}, {self.connections} connections: {load.requests - served} of {load.requests} pages were not the "
                f"viewer's {outcome} row; on a busy machine some take longer than the service's deadline: try on a quieter one"
            )
        return {
            "rps": load.requests / load.seconds,
            "p50_ms": load.p50_ms,
            "p99_ms": load.p99_ms,
            "core_us": took_s * 1e6 / load.requests,
        }

    def _served(self, outcome: str) -> int:
        """Pages of this outcome so far, as the processes count them."""
        start = f'nearline_homepage_requests_total{{outcome="{outcome}"}} '
        texts = [httpx.get(one.url + "/metrics", timeout=5).text for one in self.replicas]
        counts = [line.removeprefix(start) for text in texts for line in text.splitlines() if line.startswith(start)]
        return int(sum(map(float, counts)))
