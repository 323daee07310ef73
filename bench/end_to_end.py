"""Events and rows a second from a full topic to rows in the store, on several catalogues: Nearline by one and by two processes, two scripts
around `implicit`, and what no design can do without.

All are processes of their own, on the same Kafka and the same Valkey, interleaved. Viewers are drawn uniformly (of 10,000, so that
97 % of a batch of 512 are different ones) and have a history before the clock starts, the same for everybody. Nearline works the
topic off, its rate runs from a tenth of the events to the last; the scripts work for some seconds. States and rows are checked.

The ceiling: cores / (processor seconds of an event in the bare consumer, in the store and in one product). A design that reads the same
topic, keeps the same bytes in the same store and multiplies with every title takes at least that. (A search that may stop early
does not have to multiply with every title: on a large catalogue it can pass this ceiling.)
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import redis

from bench.common import (
    EVENTS_FROM_S,
    Stage,
    Updaters,
    draw_plays,
    load_average,
    make_stage,
    make_world,
    processor_s,
    seed_number,
)
from bench.naive import MAX_PLAYS, Recommender
from bench.report import Line, Report, Series, WrongResult, interleave, rounded
from contracts.events import PlaybackEvent
from sandbox.processes import ROOT, get_json
from sandbox.replay import replay
from sandbox.servers import Sandbox

CATALOGUES = (3_500, 20_000, 100_000)
VIEWERS = 10_000
HISTORY = 50
EVENTS = 60_000
MEASURED_S = 4.0
"""The scripts are stopped after this."""
REPETITIONS = 3
BATCH = 512
"""Records at once, of Nearline (its default) and of the script that works in batches."""
CHECKED = 100
"""Viewers whose row is compared after each run of a script."""
DELETED_AT_ONCE = 1_000

LABELS = {
    "nearline_1_process": "Nearline, one process",
    "nearline": "Nearline, two processes",
    "naive": "script, one event at a time",
    "batched": "script, in batches",
}
LIMITS = {"consumer": "consumer alone", "store": "store alone", "product": "one product alone"}


def run() -> Report:
    """Every catalogue size, every contender, interleaved."""
    load, lines, figures = load_average(), [], {}
    with tempfile.TemporaryDirectory(prefix="nearline-bench-") as folder, Sandbox(Path(folder)) as sandbox:
        for n_items in CATALOGUES:
            arena = asyncio.run(_make_arena(sandbox, n_items))
            contenders = {
                "nearline_1_process": partial(arena.run_nearline, 1),
                "nearline": partial(arena.run_nearline, 2),
                "naive": partial(arena.run_script, 1),
                "batched": partial(arena.run_script, BATCH),
                **{name: partial(arena.run_limit, name) for name in LIMITS},
            }
            found = interleave(contenders, REPETITIONS)
            lines += _lines(f"{n_items:,} titles", found)
            figures[str(n_items)] = _figures(found)
        servers = {"kafka": sandbox.kafka.version, "store": sandbox.valkey.version}
    sizes = {"viewers": VIEWERS, "history": HISTORY, "events": EVENTS, "repetitions": REPETITIONS}
    details = {**sizes, "load_average": load, **servers}
    return Report("end_to_end", "From a full topic to rows in the store", lines, {"end_to_end": figures}, details)


def _lines(case: str, found: Mapping[str, Mapping[str, Series]]) -> list[Line]:
    lines = [Line(case, label, "events/s", found[name]["events_per_s"]) for name, label in LABELS.items()]
    lines.append(Line(case, "Nearline, two processes", "rows/s", found["nearline"]["rows_per_s"]))
    for name, label in LIMITS.items():
        lines.append(Line(case, label + " (limit)", "µs of a core an event", found[name]["processor_us"]))
    return [*lines, Line(case, "ceiling of any design", "events/s", Series((_ceiling(found),)))]


def _ceiling(found: Mapping[str, Mapping[str, Series]]) -> float:
    """Events a second of all cores."""
    return (os.cpu_count() or 1) * 1e6 / sum(found[name]["processor_us"].median for name in LIMITS)


def _figures(found: Mapping[str, Mapping[str, Series]]) -> dict[str, float]:
    return {
        **{f"{name}_eps": rounded(found[name]["events_per_s"].median) for name in LABELS},
        "nearline_rows_per_s": rounded(found["nearline"]["rows_per_s"].median),
        "ceiling_eps": rounded(_ceiling(found)),
        **{f"{name}_us": rounded(found[name]["processor_us"].median) for name in LIMITS},
    }


async def _make_arena(sandbox: Sandbox, n_items: int) -> Arena:
    """Publish a generation and fill the topic, once for all runs."""
    world = make_world(sandbox.data_dir, n_items)
    stage = await make_stage(
        world, sandbox.kafka.bootstrap, sandbox.valkey, f"bench-{n_items}", viewers=VIEWERS, history=HISTORY
    )
    events = list(draw_plays(world.generation, VIEWERS, EVENTS, seed=3, first_s=EVENTS_FROM_S))
    await replay(stage.settings, events, codec=world.codec)
    return Arena(sandbox, stage, events)


@dataclass
class Arena:
    """One catalogue size: a full topic and a published generation; runs the contenders, each in a namespace of its own."""

    sandbox: Sandbox
    stage: Stage
    events: list[PlaybackEvent]
    runs: int = field(default=0)

    def run_nearline(self, processes: int) -> dict[str, float]:
        """Work the topic off."""
        return asyncio.run(self._run_nearline(processes))

    async def _run_nearline(self, processes: int) -> dict[str, float]:
        stage = self._fresh_stage()
        stage.seed()
        stage.expect(self.events)
        folder = self.sandbox.data_dir / stage.settings.store.namespace
        async with stage.store() as store:
            with Updaters(stage, folder, processes).running() as updaters:
                await stage.wait_finished(store, EVENTS // 10, updaters)
                started, before = time.perf_counter(), await stage.finished(store)
                await stage.wait_finished(store, EVENTS, updaters)
                rate = (EVENTS - before) / (time.perf_counter() - started)
                rows = await _rows_written(updaters)
            await stage.check(store)
        self._delete(stage.settings.store.namespace)
        return {"events_per_s": rate, "rows_per_s": rate * rows / EVENTS}

    def _fresh_stage(self) -> Stage:
        """The same topic for a group and a namespace that nobody has used."""
        name = f"nl-{uuid.uuid4().hex[:8]}"
        settings = self.stage.settings
        return replace(
            self.stage,
            settings=settings.model_copy(
                update={
                    "kafka": settings.kafka.model_copy(update={"group_id": name}),
                    "store": settings.store.model_copy(update={"namespace": name}),
                }
            ),
            sent=0,
            plays={},
        )

    # The scripts

    def run_script(self, batch: int) -> dict[str, float]:
        """`bench.naive`, for some seconds."""
        prefix, world = f"naive-{uuid.uuid4().hex[:8]}", self.stage.world
        seeds = world.seeds(HISTORY)
        with redis.Redis.from_url(self.sandbox.valkey.url) as client:
            pipeline = client.pipeline(transaction=False)
            for number in range(VIEWERS):
                items = seeds[seed_number(number)].items
                pipeline.set(f"{prefix}:plays:viewer-{number}", json.dumps(items))
            pipeline.execute()
            events, seconds, _ = _run_module(
                "bench.naive",
                bootstrap=self.sandbox.kafka.bootstrap,
                topic=self.stage.settings.kafka.topic,
                url=self.sandbox.valkey.url,
                prefix=prefix,
                generations=str(world.folder),
                generation=world.generation.generation_id,
                limit=EVENTS,
                seconds=MEASURED_S,
                batch=batch,
            )
            self._check_script(client, prefix, events)
        self._delete(prefix)
        return {"events_per_s": events / seconds}

    def _check_script(self, client: Any, prefix: str, events: int) -> None:
        """Every event counted once; a sample of rows against an exact solve in float64."""
        keys = [f"{prefix}:plays:viewer-{number}" for number in range(VIEWERS)]
        plays = {f"viewer-{n}": json.loads(found) for n, found in enumerate(client.mget(keys))}
        total = sum(len(played) for played in plays.values())
        if total != VIEWERS * HISTORY + events:
            raise WrongResult(f"the script holds {total} plays, not {VIEWERS * HISTORY + events}")
        recommender = Recommender(self.stage.world.generation)
        changed = [viewer for viewer, played in plays.items() if HISTORY < len(played) < MAX_PLAYS]
        for viewer in changed[:: max(1, len(changed) // CHECKED)]:
            recommender.require_best(plays[viewer], json.loads(client.get(f"{prefix}:row:{viewer}")), viewer)

    # The limits

    def run_limit(self, name: str) -> dict[str, float]:
        """Processor microseconds of an event, of the process and of the server that it asks."""
        world = self.stage.world
        prefix = f"limit-{uuid.uuid4().hex[:8]}"
        written = world.seeds(HISTORY)[0].written
        fields = (9, len(written.state_bytes), len(written.vector_bytes), len(written.row_bytes))
        options: dict[str, dict[str, object]] = {
            "consumer": {"bootstrap": self.sandbox.kafka.bootstrap, "topic": self.stage.settings.kafka.topic},
            "store": {
                "url": self.sandbox.valkey.url,
                "prefix": prefix,
                "viewers": VIEWERS,
                "sizes": ",".join(map(str, fields)),
            },
            "product": {"titles": world.generation.n_items, "k": world.generation.k},
        }
        servers = {"consumer": [self.sandbox.kafka.pid], "store": [self.sandbox.valkey.pid], "product": []}[name]
        pids = [pid for pid in servers if pid is not None]
        before = processor_s(pids)
        done, seconds, processor = _run_module("bench.limit", name, limit=EVENTS, **options[name])
        processor += processor_s(pids) - before
        self._delete(prefix)
        return {"events_per_s": done / seconds, "processor_us": 1e6 * processor / done}

    def _delete(self, prefix: str) -> None:
        """Leave the store as empty as it was found: every run meets the same one."""
        with redis.Redis.from_url(self.sandbox.valkey.url) as client:
            keys = list(client.scan_iter(match=f"{prefix}:*", count=DELETED_AT_ONCE))
            for at in range(0, len(keys), DELETED_AT_ONCE):
                client.unlink(*keys[at : at + DELETED_AT_ONCE])


async def _rows_written(updaters: Updaters) -> float:
    async with httpx.AsyncClient(timeout=5) as client:
        stats = [await get_json(client, service.url + "/stats") for service in updaters.services]
    return sum(float(str(one["rows_written"])) for one in stats)


def _run_module(module: str, *positional: str, **options: object) -> tuple[int, float, float]:
    """Run a contender as a process of its own; what it prints: how many, the seconds, its processor seconds."""
    arguments = [*positional, *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode != 0:
        raise WrongResult(f"{module} failed:\n{done.stderr[-2000:]}")
    count, seconds, processor = done.stdout.split()
    return int(count), float(seconds), float(processor)
