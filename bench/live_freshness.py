"""How fresh rows are while people watch: from an event's time to the moment when another process can read the row that knows it.

A producer process sends at a steady rate. Beside it this process is a player and a home page: some times a second it sends
an event of its own, timed by its own clock, and looks in the store again and again until that viewer's row has changed. What
it measures is what a viewer would wait; nothing that the updater reports is used. The looking (a read a millisecond) and the
producer run on the same cores. A rate is saturated when more than a second's events still wait at its end, or the producer
could not keep it; higher rates are not tried then. Afterwards states and rows are checked.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import redis.asyncio as redis

from bench.common import EVENTS_FROM_S, Seed, Stage, Updaters, load_average, make_stage, make_world, seed_number
from bench.live_producer import LiveProducer
from bench.report import Line, Report, Series, WrongResult, rounded
from bench.worlds import make_play
from contracts import keys as fields
from contracts.events import PlaybackEvent
from runtime.kafka import make_producer
from sandbox.replay import send_event
from sandbox.servers import Sandbox
from viewers.redis_store import RedisStore

RATES = (500, 1_000, 2_000, 5_000, 10_000, 12_000)
"""Events/s, the probes among them."""
PROBES_PER_S = 25
"""More of them take so much of the two cores, by looking every millisecond, that they measure themselves."""
PROBED = 2_000
"""Viewers that are probed in turn: none twice at once."""
SECONDS = 20.0
WARM_S = 2.0
"""Probes of the first seconds of a rate do not count."""
REPETITIONS = 2
VIEWERS = 10_000
N_ITEMS = 3_500
HISTORY = 50
LOOK_S = 0.001
LOST_AFTER_S = 30.0


def run() -> Report:
    """Every rate, twice over."""
    load = load_average()
    with tempfile.TemporaryDirectory(prefix="nearline-bench-") as folder, Sandbox(Path(folder)) as sandbox:
        found = asyncio.run(_Live(sandbox).run())
        servers = {"kafka": sandbox.kafka.version, "store": sandbox.valkey.version}
    lines, figures = [], {}
    for rate, runs in found.items():
        case = f"{rate:,} events/s"
        for name, unit in (("p50", "ms"), ("p99", "ms"), ("lag", "events at the end")):
            lines.append(Line(case, name, unit, Series(tuple(run[name] for run in runs))))
        figures[str(rate)] = {name: rounded(Series(tuple(run[name] for run in runs)).median) for name in runs[0]}
    details = {
        "viewers": VIEWERS, "titles": N_ITEMS, "history": HISTORY, "seconds": SECONDS, "probes_per_s": PROBES_PER_S,
        "repetitions": REPETITIONS, "updater_processes": 1, "load_average": load, **servers,
    }  # fmt: skip
    return Report(
        "live_freshness", "From an event to a row that can be read", lines, {"live_freshness_ms": figures}, details
    )


@dataclass
class _Probe:
    """An event on its way: when it was made, and the row that must change."""

    event: PlaybackEvent
    made_ms: float
    old_row: bytes


@dataclass
class _Reader:
    """Sends probes and looks for their rows."""

    stage: Stage
    rows: dict[str, bytes]
    number: int = 0
    waiting: dict[str, _Probe] = field(default_factory=dict)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    """(made at, ms until readable) of every probe that has arrived."""

    async def probe(self, seconds: float) -> None:
        """Send for so long, and look until every row has come. Errors: `WrongResult` for a row that never came."""
        producer = await make_producer(self.stage.settings)
        client = redis.Redis.from_url(self.stage.valkey.url)
        looking = asyncio.create_task(self._look(client))
        try:
            started, sent = time.perf_counter(), 0
            while (now := time.perf_counter()) < started + seconds:
                while sent < (now - started) * PROBES_PER_S:
                    await self._send(producer)
                    sent += 1
                if looking.done():
                    looking.result()
                await asyncio.sleep(1 / PROBES_PER_S / 2)
            while self.waiting:
                if looking.done():
                    looking.result()
                await asyncio.sleep(0.01)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            await producer.stop()
            await client.aclose()

    async def _send(self, producer: Any) -> None:
        viewer = f"probe-{self.number % PROBED}"
        if viewer in self.waiting:
            return  # far behind: this one is counted when it comes
        generation = self.stage.world.generation
        event = make_play(viewer, str(generation.item_ids[self.number * 7 % generation.n_items]), 0)
        made_ms = time.time() * 1000
        event = PlaybackEvent(
            **{name: getattr(event, name) for name in ("kind", "viewer", "item_id", "watched_ms", "duration_ms")},
            event_id=f"{viewer}.{self.number}",
            play_id=f"probe{self.number}",
            event_time_ms=int(made_ms),
            play_started_at_ms=int(made_ms),
        )
        self.number += 1
        self.waiting[viewer] = _Probe(event, made_ms, self.rows[viewer])
        self.stage.expect([event])
        await send_event(producer, self.stage.world.codec, self.stage.settings, event)

    async def _look(self, client: Any) -> None:
        while True:
            probes = list(self.waiting.items())
            if probes:
                pipeline = client.pipeline(transaction=False)
                for viewer, _ in probes:
                    pipeline.hget(self.stage.settings.keys.viewer(viewer), fields.ROW)
                found = await pipeline.execute()
                now_ms = time.time() * 1000
                for (viewer, probe), row in zip(probes, found, strict=True):
                    if row != probe.old_row:
                        self._arrived(viewer, probe, row, now_ms)
                    elif now_ms - probe.made_ms > LOST_AFTER_S * 1000:
                        raise WrongResult(f"{viewer}: no row within {LOST_AFTER_S:g} s")
            await asyncio.sleep(LOOK_S)

    def _arrived(self, viewer: str, probe: _Probe, row: bytes, now_ms: float) -> None:
        del self.waiting[viewer]
        self.rows[viewer] = row
        self.latencies.append((probe.made_ms, now_ms - probe.made_ms))
        knows = self.stage.world.codec.decode_row(row).event_time_ms
        if knows != probe.event.event_time_ms:
            raise WrongResult(f"{viewer}: a row of the event at {knows}, not of that at {probe.event.event_time_ms}")


class _Live:
    """One updater, one rate after another."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._number = 0

    async def run(self) -> dict[int, list[dict[str, float]]]:
        world = make_world(self._sandbox.data_dir, N_ITEMS)
        stage = await make_stage(
            world, self._sandbox.kafka.bootstrap, self._sandbox.valkey, "live", viewers=VIEWERS, history=HISTORY
        )
        probed = [f"probe-{number}" for number in range(PROBED)]
        stage.seed()
        stage.seed(probed)
        seeds: list[Seed] = world.seeds(HISTORY)
        reader = _Reader(stage, {viewer: seeds[seed_number(viewer)].written.row_bytes for viewer in probed})
        found: dict[int, list[dict[str, float]]] = {}
        async with stage.store() as store:
            with Updaters(stage, self._sandbox.data_dir / "live").running() as updaters:
                await updaters.wait_ready()
                for _ in range(REPETITIONS):
                    for rate in RATES:
                        measured = await self._measure(stage, store, updaters, reader, rate)
                        found.setdefault(rate, []).append(measured)
                        if measured["saturated"]:
                            break
            await stage.check(store)
        return found

    async def _measure(
        self, stage: Stage, store: RedisStore, updaters: Updaters, reader: _Reader, rate: int
    ) -> dict[str, float]:
        self._number += 1
        background = LiveProducer(
            stage, rate=rate - PROBES_PER_S, seconds=SECONDS, seed=self._number, first_s=EVENTS_FROM_S + stage.sent
        )
        with background.alive():
            await asyncio.to_thread(background.wait_ready)
            reader.latencies.clear()
            began_ms = time.time() * 1000
            background.go()
            probing = asyncio.create_task(reader.probe(SECONDS))
            told = await asyncio.to_thread(background.finish)
        stage.expect(background.events(int(told["sent"])))
        lag = stage.sent - await stage.finished(store)
        await probing
        await stage.wait_finished(store, stage.sent, updaters)
        counted = [ms for made_ms, ms in reader.latencies if made_ms >= began_ms + WARM_S * 1000]
        saturated = lag > rate or told["behind_s"] > 1.0
        return {
            "p50": float(np.quantile(counted, 0.5)),
            "p99": float(np.quantile(counted, 0.99)),
            "lag": float(lag),
            "rate": told["sent"] / told["seconds"] + PROBES_PER_S,
            "saturated": float(saturated),
        }
