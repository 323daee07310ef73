"""The share of a core that an updater takes while nobody watches anything."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from bench.common import EVENTS_FROM_S, Updaters, draw_plays, load_average, make_stage, make_world, processor_s
from bench.report import Line, Report, Series, rounded
from sandbox.replay import replay
from sandbox.servers import Sandbox

EVENTS = 2_000
"""First, so that everything that is made at the first event is there."""
SETTLE_S = 5.0
IDLE_S = 30.0
REPETITIONS = 2


def run() -> Report:
    """One updater, its topic empty of new events."""
    load = load_average()
    with tempfile.TemporaryDirectory(prefix="nearline-bench-") as folder, Sandbox(Path(folder)) as sandbox:
        shares = asyncio.run(_measure(sandbox))
    series = Series(tuple(shares))
    return Report(
        "idle",
        "An idle updater",
        [Line(f"{IDLE_S:g} s", "Nearline", "% of a core", Series(tuple(100 * share for share in shares)))],
        {"idle_core_share": rounded(series.median)},
        {"seconds": IDLE_S, "repetitions": REPETITIONS, "load_average": load},
    )


async def _measure(sandbox: Sandbox) -> list[float]:
    world = make_world(sandbox.data_dir, 3_500)
    stage = await make_stage(world, sandbox.kafka.bootstrap, sandbox.valkey, "idle", viewers=1_000, history=50)
    stage.seed()
    events = list(draw_plays(world.generation, stage.viewers, EVENTS, seed=1, first_s=EVENTS_FROM_S))
    await replay(stage.settings, events, codec=world.codec)
    stage.expect(events)
    shares = []
    async with stage.store() as store:
        with Updaters(stage, sandbox.data_dir / "idle").running() as updaters:
            await stage.wait_finished(store, EVENTS, updaters)
            await stage.check(store)
            await asyncio.sleep(SETTLE_S)
            for _ in range(REPETITIONS):
                began, before = time.perf_counter(), processor_s(updaters.pids)
                await asyncio.sleep(IDLE_S)
                shares.append((processor_s(updaters.pids) - before) / (time.perf_counter() - began))
            updaters.require_running()
    return shares
