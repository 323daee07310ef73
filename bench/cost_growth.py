"""What one event costs, in processor time of updater and store, as everything else grows: viewers, titles, history, partitions,
processes.

Each case differs from the base in one size. The topic is filled, the updater works it off, and the processor time between a
tenth of the events and the last is divided by the events between; then whoever was touched is put back as they were. Cases are
interleaved. Viewers are drawn uniformly. Each number of viewers has a store of its own.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import redis

from bench.common import (
    EVENTS_FROM_S,
    Stage,
    Updaters,
    World,
    draw_plays,
    load_average,
    make_stage,
    make_world,
    processor_s,
)
from bench.report import Line, Report, Series, interleave, rounded
from sandbox.children import wait_until
from sandbox.replay import replay
from sandbox.servers import Sandbox
from sandbox.valkey_server import ValkeyServer

EVENTS = 20_000
REPETITIONS = 3
SETTLE_S = 300.0


@dataclass(frozen=True, slots=True)
class Case:
    """One size of everything."""

    viewers: int = 10_000
    catalogue: int = 3_500
    history: int = 50
    partitions: int = 4
    processes: int = 1


BASE = Case()
CURVES: Mapping[str, tuple[int, ...]] = {
    "viewers": (10_000, 100_000, 1_000_000),
    "catalogue": (3_500, 20_000, 100_000),
    "history": (10, 50, 200),
    "partitions": (1, 4, 16),
    "processes": (1, 2),
}
LABELS = {
    "viewers": "viewers",
    "catalogue": "titles",
    "history": "plays a viewer",
    "partitions": "partitions",
    "processes": "updater processes",
}


def run() -> Report:
    """Every curve, interleaved."""
    load = load_average()
    cases = {Case.__repr__(case): case for case in (replace(BASE, **{k: v}) for k, vs in CURVES.items() for v in vs)}
    with tempfile.TemporaryDirectory(prefix="nearline-bench-") as folder, Sandbox(Path(folder)) as sandbox:
        with ExitStack() as stack:
            stages, memory = _make_stages(sandbox, list(cases.values()), stack)
            contenders = {name: partial(_Runner(stages[case], case, Path(folder)).run) for name, case in cases.items()}
            found = interleave(contenders, REPETITIONS)
        servers = {"kafka": sandbox.kafka.version, "store": sandbox.valkey.version}
    lines: list[Line] = []
    figures: dict[str, Any] = {"base": {name: getattr(BASE, name) for name in CURVES}}
    for dimension, sizes in CURVES.items():
        curve = figures.setdefault(dimension, {})
        for size in sizes:
            case = replace(BASE, **{dimension: size})
            measured = found[repr(case)]
            label = f"{size:,} {LABELS[dimension]}"
            for quantity, unit in (("updater_us", "µs an event"), ("store_us", "µs an event"), ("eps", "events/s")):
                lines.append(Line(label, quantity.partition("_")[0], unit, measured[quantity]))
            curve[str(size)] = {name: rounded(series.median) for name, series in measured.items()}
            if dimension in ("viewers", "history"):
                curve[str(size)]["store_bytes"] = rounded(memory[case])
                lines.append(Line(label, "store memory", "bytes a viewer", Series((memory[case],))))
    total = [
        sum(found[repr(replace(BASE, viewers=viewers))][part].median for part in ("updater_us", "store_us"))
        for viewers in (CURVES["viewers"][0], CURVES["viewers"][-1])
    ]
    details = {"events": EVENTS, "repetitions": REPETITIONS, "load_average": load, **servers}
    all_figures = {"cost_growth": figures, "cost_1m_over_10k_viewers": rounded(total[1] / total[0])}
    return Report("cost_growth", "Processor time of one event", lines, all_figures, details)


def _make_stages(sandbox: Sandbox, cases: list[Case], stack: ExitStack) -> tuple[dict[Case, Stage], dict[Case, float]]:
    """A topic and a seeded namespace for each case; and the bytes of store memory that a seeded viewer takes."""
    folder = sandbox.data_dir
    worlds: dict[int, World] = {}
    stores: dict[int, ValkeyServer] = {BASE.viewers: sandbox.valkey}
    stages, memory = {}, {}
    for number, case in enumerate(dict.fromkeys(cases)):
        if case.catalogue not in worlds:
            worlds[case.catalogue] = make_world(folder, case.catalogue)
        if case.viewers not in stores:
            stores[case.viewers] = stack.enter_context(ValkeyServer(folder / f"valkey-{case.viewers}"))
        world, store = worlds[case.catalogue], stores[case.viewers]
        stage = asyncio.run(
            make_stage(
                *(world, sandbox.kafka.bootstrap, store, f"growth-{number}"),
                viewers=case.viewers, history=case.history, partitions=case.partitions,
            )
        )  # fmt: skip
        before = _used_memory(store.url)
        stage.seed()
        _settle(store.url)
        memory[case] = (_used_memory(store.url) - before) / case.viewers
        stages[case] = stage
    return stages, memory


def _used_memory(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("memory")["used_memory"])


def _settle(url: str) -> None:
    """Wait until the store is not busy rewriting its log."""
    with redis.Redis.from_url(url) as client:
        wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], SETTLE_S)


class _Runner:
    """One case, again and again."""

    def __init__(self, stage: Stage, case: Case, folder: Path) -> None:
        self._stage, self._case, self._folder = stage, case, folder
        self._runs = 0

    def run(self) -> dict[str, float]:
        return asyncio.run(self._run())

    async def _run(self) -> dict[str, float]:
        stage = self._stage
        before = stage.sent
        events = list(
            draw_plays(
                stage.world.generation, stage.viewers, EVENTS, seed=100 + self._runs, first_s=EVENTS_FROM_S + before
            )
        )
        await replay(stage.settings, events, codec=stage.world.codec)
        stage.expect(events)
        self._runs += 1
        folder = self._folder / stage.settings.store.namespace / str(self._runs)
        async with stage.store() as store:
            with Updaters(stage, folder, self._case.processes).running() as updaters:
                await stage.wait_finished(store, before + EVENTS // 10, updaters)
                first = await self._look(store, updaters)
                await stage.wait_finished(store, before + EVENTS, updaters)
                last = await self._look(store, updaters)
            await stage.check(store)
        stage.reseed()
        _settle(stage.valkey.url)
        done, seconds, updater_s, store_s = (late - early for late, early in zip(last, first, strict=True))
        return {"updater_us": updater_s * 1e6 / done, "store_us": store_s * 1e6 / done, "eps": done / seconds}

    async def _look(self, store: Any, updaters: Updaters) -> tuple[float, float, float, float]:
        """Events finished, the clock, processor seconds of updaters and store."""
        done = await self._stage.finished(store)
        assert self._stage.valkey.pid is not None
        return done, time.perf_counter(), processor_s(updaters.pids), processor_s([self._stage.valkey.pid])
