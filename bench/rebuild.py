"""Everybody's row, as the night rebuilds it, beside what recomputing everybody every few minutes would be written as in an afternoon.

Nearline: `batch.rebuild`, with its sweep, into hashes that are compared and set, with reasons. The peer: viewers' plays as JSON out of the
store, 512 viewers at a time through `implicit`'s `recommend` (one thread), rows as JSON into the store. Both on the same viewers and
the same store, interleaved; samples of both are checked.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import redis

from batch.rebuild import Rebuild
from bench.common import CHECKED, Stage, load_average, make_stage, make_world, processor_s
from bench.naive import Recommender
from bench.report import Line, Report, WrongResult, interleave, rounded
from sandbox.servers import Sandbox
from viewers.packing import unpack
from viewers.rewriter import Rewriter

VIEWERS = 20_000
N_ITEMS = 3_500
HISTORY = 50
REPETITIONS = 3
BATCH = 512
SCORE_TOLERANCE = 1e-3
"""Between float32 scores and float64."""


def run() -> Report:
    """Both, interleaved."""
    load = load_average()
    with tempfile.TemporaryDirectory(prefix="nearline-bench-") as folder, Sandbox(Path(folder)) as sandbox:
        world = make_world(sandbox.data_dir, N_ITEMS)
        stage = asyncio.run(
            make_stage(world, sandbox.kafka.bootstrap, sandbox.valkey, "rebuild", viewers=VIEWERS, history=HISTORY)
        )
        stage.seed()
        nearline, peer = _Nearline(stage), _Peer(stage)
        found = interleave({"nearline": nearline.run, "implicit": peer.run}, REPETITIONS)
        servers = {"store": sandbox.valkey.version}
    lines = [
        Line(f"{VIEWERS:,} viewers, {HISTORY} plays", f"{label}{more}", unit, found[name][quantity])
        for name, label in (("nearline", "Nearline"), ("implicit", "implicit in batches"))
        for quantity, more, unit in (
            ("viewers_per_s", "", "viewers/s"),
            ("core_us", ", with the store", "core-µs a viewer"),
        )
    ]
    figures = {q: rounded(series.median) for q, series in found["nearline"].items()}
    figures |= {f"implicit_{q}": rounded(series.median) for q, series in found["implicit"].items()}
    details = {
        "viewers": VIEWERS, "titles": N_ITEMS, "history": HISTORY, "repetitions": REPETITIONS, "load_average": load,
        **servers,
    }  # fmt: skip
    return Report("rebuild", "Rows for everyone", lines, {"rebuild": figures}, details)


class _Timed:
    """Runs, and says how many viewers a second that was and how much processor time it took."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def run(self) -> dict[str, float]:
        assert self.stage.valkey.pid is not None
        pids = [os.getpid(), self.stage.valkey.pid]
        began, before = time.perf_counter(), processor_s(pids)
        self.work()
        seconds, core_s = time.perf_counter() - began, processor_s(pids) - before
        self.check()
        return {"viewers_per_s": VIEWERS / seconds, "core_us": core_s * 1e6 / VIEWERS}

    def work(self) -> None:
        raise NotImplementedError

    def check(self) -> None:
        raise NotImplementedError


class _Nearline(_Timed):
    """The rebuild of one activation after another."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._activation = stage.world.activation
        self._rewriter = stage.world.rewriter

    def work(self) -> None:
        world = self.stage.world
        self._activation += 1
        self._rewriter = Rewriter(world.generation, self._activation, world.codec.encode_row, world.rewriter.limits)
        self._rewriter.prepare()
        asyncio.run(self._rebuild())

    async def _rebuild(self) -> None:
        async with self.stage.store() as store:
            rebuild = Rebuild(
                store, self._rewriter, now_ms=lambda: time.time() * 1000, draw_token=lambda: os.urandom(8)
            )
            done = await rebuild.run()
        if done.rewritten != VIEWERS:
            raise WrongResult(f"{done.rewritten} of {VIEWERS} viewers were rewritten")

    def check(self) -> None:
        asyncio.run(self._check())

    async def _check(self) -> None:
        async with self.stage.store() as store:
            for number in range(0, VIEWERS, VIEWERS // CHECKED):
                stored = await store.read_viewer(f"viewer-{number}")
                row = self.stage.world.codec.decode_row(stored.row)
                again = self._rewriter.rewrite(unpack(stored.state), computed_at_ms=row.computed_at_ms)
                if stored.activation != self._activation or again.row_bytes != stored.row:
                    raise WrongResult(f"viewer-{number}: not the row of activation {self._activation}")


class _Peer(_Timed):
    """`implicit`'s batched `recommend` and two keys a viewer."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._recommender = Recommender(stage.world.generation)
        seeds = stage.world.seeds(HISTORY)
        with redis.Redis.from_url(stage.valkey.url) as client:
            pipeline = client.pipeline(transaction=False)
            for number in range(VIEWERS):
                pipeline.set(f"peer:plays:{number}", json.dumps(list(seeds[number % len(seeds)].items)))
            pipeline.execute()

    def work(self) -> None:
        ids = self.stage.world.generation.item_ids
        with redis.Redis.from_url(self.stage.valkey.url) as client:
            for start in range(0, VIEWERS, BATCH):
                numbers = range(start, min(VIEWERS, start + BATCH))
                found: Any = client.mget([f"peer:plays:{number}" for number in numbers])
                rows, scores = self._recommender.recommend([json.loads(text) for text in found])
                client.mset(
                    {
                        f"peer:row:{number}": json.dumps(
                            [[ids[i], s] for i, s in zip(row.tolist(), some.tolist(), strict=True)]
                        )
                        for number, row, some in zip(numbers, rows, scores, strict=True)
                    }
                )

    def check(self) -> None:
        seeds = self.stage.world.seeds(HISTORY)
        with redis.Redis.from_url(self.stage.valkey.url) as client:
            for number in range(0, VIEWERS, VIEWERS // CHECKED):
                text: Any = client.get(f"peer:row:{number}")
                self._recommender.require_best(seeds[number % len(seeds)].items, json.loads(text), f"viewer {number}")
