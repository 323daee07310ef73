"""Bytes that a viewer takes in the store, by `MEMORY USAGE` on a real Valkey, and what each field holds of them.

Ids of 9 bytes, k = 64 (a vector of float16), a row of 60 entries of which a page shows 50, plays some days apart.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import redis

from bench.report import Line, Report, Series, WrongResult, rounded
from bench.worlds import START_MS, K, make_generation, make_histories
from contracts.codec import Codec
from runtime.settings import Settings
from sandbox.servers import ValkeyServer
from viewers.redis_store import open_store
from viewers.rewriter import Rewriter
from viewers.state import Limits, ViewerState, merge, state_of
from viewers.store import ViewerWrite, Written

PLAYS = (10, 50, 200)
N_ITEMS = 3_500
VIEWERS = 200
APART_MS = 4 * 86_400_000
"""Between two plays at most."""


def run() -> Report:
    """Write viewers with so many plays, ask the server what they take."""
    lines: list[Line] = []
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="nearline-bench-") as folder, ValkeyServer(Path(folder)) as valkey:
        for plays in PLAYS:
            writes = make_viewers(plays)
            used = asyncio.run(_measure(valkey.url, plays, writes))
            fields = {
                "state": [len(write.state) for write in writes],
                "vector": [len(write.vector) for write in writes],
                "row": [len(write.row) for write in writes],
            }
            case = f"{plays} plays"
            lines.append(Line(case, "in the store", "bytes", Series(tuple(map(float, used)))))
            lines += [Line(case, f"field {name}", "bytes", Series(tuple(map(float, v)))) for name, v in fields.items()]
            figures[str(plays)] = rounded(lines[-4].series.median)
        version = valkey.version
    details = {"k": K, "items": N_ITEMS, "viewers": VIEWERS, "store": version}
    return Report("viewer_bytes", "Bytes a viewer", lines, {"viewer_bytes": figures}, details)


def make_viewers(plays: int) -> list[ViewerWrite]:
    """Viewers as the updater would write them."""
    generation, rng = make_generation(N_ITEMS), random.Random(plays)
    rewriter = Rewriter(generation, 1, Codec.load().encode_row, Limits())
    writes = []
    for viewer, history in make_histories(generation, VIEWERS, plays).items():
        state = merge([state_of(event, timestamp_ms=event.event_time_ms) for event in history], rewriter.limits)
        at_ms, spread = START_MS, []
        for play in state.plays:
            at_ms -= rng.randrange(1, APART_MS)
            spread.append(play._replace(started_at_ms=at_ms))
        done = rewriter.rewrite(
            replace(ViewerState(), plays=tuple(spread)), computed_at_ms=START_MS, event_time_ms=START_MS
        )
        writes.append(ViewerWrite(viewer, b"", b"8 bytes.", 1, done.state_bytes, done.vector_bytes, done.row_bytes))
    return writes


async def _measure(url: str, plays: int, writes: list[ViewerWrite]) -> list[int]:
    settings = Settings.model_validate({"store": {"url": url, "namespace": f"b{plays}"}})
    store = open_store(settings.store, settings.keys)
    await store.connect()
    try:
        if not all(isinstance(answer, Written) for answer in await store.write_viewers(writes)):
            raise WrongResult("a viewer was not written")
    finally:
        await store.close()
    with redis.Redis.from_url(url) as client:
        asked: Any = client
        return [asked.memory_usage(settings.keys.viewer(write.viewer), samples=0) for write in writes]
