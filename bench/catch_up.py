"""How fast an updater catches up after an outage, while people go on watching: in multiples of the live rate.

A producer process sends at a steady rate throughout. The updater is stopped for a while and started again. The clock runs from
the first event that it finishes to the moment when no more than a twentieth of a second's events wait; the ratio is the events
finished per second in between over the live rate. What the start of the process takes is told beside it. After a
minute the clock stops in any case: a ratio of 1 or less never catches up.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from bench.common import EVENTS_FROM_S, POLL_S, Stage, Updaters, load_average, make_stage, make_world
from bench.live_producer import LiveProducer
from bench.report import Line, Report, Series, rounded
from runtime.kafka import TopicPartition, make_consumer
from sandbox.servers import Sandbox
from viewers.redis_store import RedisStore

RATE = 2_000
WARM_S = 3.0
OUTAGE_S = 20.0
LONGEST_S = 60.0
CAUGHT_UP_S = 0.05
REPETITIONS = 2
VIEWERS = 10_000


def run() -> Report:
    """One outage after another."""
    load = load_average()
    with tempfile.TemporaryDirectory(prefix="nearline-bench-") as folder, Sandbox(Path(folder)) as sandbox:
        runs = asyncio.run(_run(sandbox))
    ratios, caught_up, started = (Series(tuple(one[i] for one in runs)) for i in range(3))
    case = f"{OUTAGE_S:g} s at {RATE:,} events/s"
    return Report(
        "catch_up",
        "After an outage",
        [
            Line(case, "catching up", "× the live rate", ratios),
            Line(case, "until nothing waits", "s", caught_up),
            Line(case, "start of the process", "s", started),
        ],
        {"catch_up_ratio": rounded(ratios.median), "catch_up_s": rounded(caught_up.median)},
        {"rate": RATE, "outage_s": OUTAGE_S, "viewers": VIEWERS, "repetitions": REPETITIONS, "load_average": load},
    )


async def _run(sandbox: Sandbox) -> list[tuple[float, float, float]]:
    world = make_world(sandbox.data_dir, 3_500)
    stage = await make_stage(world, sandbox.kafka.bootstrap, sandbox.valkey, "outage", viewers=VIEWERS, history=50)
    stage.seed()
    async with stage.store() as store:
        found = [await _outage(sandbox, stage, store, number) for number in range(REPETITIONS)]
        await stage.check(store)
    return found


async def _outage(sandbox: Sandbox, stage: Stage, store: RedisStore, number: int) -> tuple[float, float, float]:
    """The ratio, the seconds until caught up, the seconds until the first event."""
    seconds = WARM_S + OUTAGE_S + LONGEST_S
    audience = LiveProducer(stage, rate=RATE, seconds=seconds, seed=number, first_s=EVENTS_FROM_S + stage.sent)
    log_end = await _LogEnd.open(stage)
    folder = sandbox.data_dir / f"outage-{number}"
    try:
        with audience.alive():
            await asyncio.to_thread(audience.wait_ready)
            with Updaters(stage, folder / "before").running() as updaters:
                await updaters.wait_ready()
                audience.go()
                await asyncio.sleep(WARM_S)
            await asyncio.sleep(OUTAGE_S)
            with Updaters(stage, folder / "after").running() as updaters:
                found = await _catch_up(stage, store, log_end, updaters)
                told = await asyncio.to_thread(lambda: audience.finish(at_once=True))
                stage.expect(audience.events(int(told["sent"])))
                await stage.wait_finished(store, stage.sent, updaters)
    finally:
        await log_end.close()
    return found


async def _catch_up(
    stage: Stage, store: RedisStore, log_end: _LogEnd, updaters: Updaters
) -> tuple[float, float, float]:
    asked, before = time.perf_counter(), await stage.finished(store)
    while (done := await stage.finished(store)) == before:
        updaters.require_running()
        await asyncio.sleep(POLL_S)
    began, first = time.perf_counter(), done
    while await log_end.read() - (done := await stage.finished(store)) > CAUGHT_UP_S * RATE:
        updaters.require_running()
        if time.perf_counter() > began + LONGEST_S:
            break  # the ratio says how far from catching up it is; the seconds are those of the deadline
        await asyncio.sleep(POLL_S)
    seconds = time.perf_counter() - began
    return (done - first) / seconds / RATE, seconds, began - asked


class _LogEnd:
    """Asks the broker where the topic ends."""

    def __init__(self, consumer: object, partitions: list[object]) -> None:
        self._consumer, self._partitions = consumer, partitions

    @classmethod
    async def open(cls, stage: Stage) -> _LogEnd:
        consumer = await make_consumer(stage.settings)
        return cls(consumer, [TopicPartition(stage.settings.kafka.topic, p) for p in range(stage.partitions)])

    async def read(self) -> int:
        ends: dict[object, int] = await self._consumer.end_offsets(self._partitions)  # type: ignore[attr-defined]
        return sum(ends.values())

    async def close(self) -> None:
        await self._consumer.stop()  # type: ignore[attr-defined]
