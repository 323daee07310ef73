"""Bytes that one playback event takes on the broker's disk and in the lake, with ids as a service has them.

Ids are random, as UUIDs are: ids that count up, like those of the other benchmarks, would compress several times better. Events come in
order of time over an hour. No processor time: these are sizes.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from batch.copy import copy_records
from batch.lake import Lake
from bench.report import Line, Report, Series, WrongResult, rounded
from bench.worlds import START_MS, make_play
from contracts.codec import Codec
from contracts.events import PlaybackEvent
from runtime.kafka import make_consumer
from runtime.settings import Settings
from sandbox.replay import replay
from sandbox.servers import Sandbox
from sandbox.topics import ensure_topics

EVENTS = 100_000
VIEWERS = 20_000
TITLES = 5_000
HOUR_MS = 3_600_000
PARTITIONS = 4


def run() -> Report:
    """One topic, one copy."""
    with tempfile.TemporaryDirectory(prefix="nearline-bench-") as folder, Sandbox(Path(folder)) as sandbox:
        sizes = asyncio.run(_measure(sandbox))
    return Report(
        "footprint",
        "Bytes an event",
        [
            Line("one copy, as sent", "broker's disk", "bytes", Series((sizes["record_bytes"],))),
            Line("zstd, by the hour", "lake", "bytes", Series((sizes["lake_bytes"],))),
            Line("Avro alone", "value of the record", "bytes", Series((sizes["value_bytes"],))),
        ],
        {"footprint": {name: rounded(size) for name, size in sizes.items()}},
        {"events": EVENTS, "viewers": VIEWERS, "titles": TITLES, "kafka": sandbox.kafka.version},
    )


async def _measure(sandbox: Sandbox) -> dict[str, float]:
    settings = Settings.model_validate(
        {"kafka": {"bootstrap_servers": sandbox.kafka.bootstrap, "topic": "footprint"}, "log_level": "warning"}
    )
    await ensure_topics(settings, PARTITIONS)
    codec = Codec.load()
    events = list(_events())
    await replay(settings, events, codec=codec)
    logs = sandbox.data_dir / "kafka" / "logs"
    on_disk = sum(file.stat().st_size for file in logs.glob("footprint-*/*.log"))
    lake = Lake(sandbox.data_dir / "lake")
    consumer = await make_consumer(settings)
    try:
        await copy_records(settings, lake, codec, consumer, {settings.kafka.topic: PARTITIONS})
    finally:
        await consumer.stop()
    if lake.count("events") != EVENTS:
        raise WrongResult(f"the lake holds {lake.count('events')} of {EVENTS} events")
    in_lake = sum(file.stat().st_size for file in lake.files("events"))
    return {
        "record_bytes": on_disk / EVENTS,
        "lake_bytes": in_lake / EVENTS,
        "value_bytes": sum(len(codec.encode_event(event)) for event in events[:1000]) / 1000,
    }


def _events() -> Iterator[PlaybackEvent]:
    rng = random.Random(1)
    viewers = [f"{rng.getrandbits(128):032x}" for _ in range(VIEWERS)]
    titles = [f"tt{rng.randrange(10_000_000):07d}" for _ in range(TITLES)]
    for number in range(EVENTS):
        time_ms = START_MS - START_MS % HOUR_MS + number * HOUR_MS // EVENTS
        yield replace(
            make_play(rng.choice(viewers), rng.choice(titles), 0),
            event_id=f"{rng.getrandbits(128):032x}",
            play_id=f"{rng.getrandbits(64):016x}",
            event_time_ms=time_ms,
            play_started_at_ms=time_ms - rng.randrange(HOUR_MS),
            watched_ms=rng.randrange(6_000_000),
        )
