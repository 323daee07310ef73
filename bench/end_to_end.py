"""Events and rows a second from a full topic to rows in the store: Nearline's updater, a naive script, the bare consumer.

All three are processes of their own, on the same Kafka and the same Valkey, one after another and interleaved. Viewers have a
history before the clock starts, the same for both who use one. Each works for some seconds, or until the topic is done:
Nearline's rate runs from its first finished batch to the last, the naive script's from its first record. States and rows are
then checked.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import redis

from bench.naive import MAX_PLAYS, Recommender
from bench.report import Line, Report, WrongResult, interleave, rounded
from bench.worlds import make_events, make_generation, make_histories, publish
from contracts.codec import Codec
from contracts.events import PlaybackEvent
from embeddings.files import GenerationsFolder
from embeddings.generation import Generation
from runtime.kafka import choose_partition
from runtime.settings import Settings
from sandbox.processes import ROOT, Service, get_json
from sandbox.replay import replay
from sandbox.servers import Sandbox
from sandbox.topics import ensure_topics
from viewers.packing import pack, unpack
from viewers.redis_store import RedisStore, open_store
from viewers.rewrite import Rewriter
from viewers.state import Limits, ViewerState, merge, state_of
from viewers.store import ViewerWrite, Written

CATALOGUES = (3_500,)
VIEWERS = 5_000
HISTORY = 20
EVENTS = 60_000
MEASURED_S = 5.0
"""Nearline and the naive script are stopped after this; the consumer reads everything in less."""
REPETITIONS = 3
PARTITIONS = 4
CHECKED = 200
"""Viewers whose state and row are compared after each run."""
START_DEADLINE_S = 60.0
POLL_S = 0.01
"""How often the markers are looked at: 2 % of a core, and 0.2 % of what is measured."""
WRITE_BATCH = 500
SCORE_TOLERANCE = 1e-3
"""Between the naive script's float32 scores and float64."""


def run() -> Report:
    """Every catalogue size, every contender, interleaved."""
    lines: list[Line] = []
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="nearline-bench-") as folder, Sandbox(Path(folder)) as sandbox:
        for n_items in CATALOGUES:
            with arena(sandbox, n_items) as a:
                found = interleave(
                    {"nearline": a.run_nearline, "naive": a.run_naive, "consumer": a.run_consumer}, REPETITIONS
                )
            case = f"{n_items:,} titles"
            for name, label in LABELS.items():
                lines.append(Line(case, label, "events/s", found[name]["events_per_s"]))
            lines.append(Line(case, "Nearline", "rows/s", found["nearline"]["rows_per_s"]))
            figures[str(n_items)] = {
                **{f"{name}_eps": rounded(found[name]["events_per_s"].median) for name in LABELS},
                "nearline_rows_per_s": rounded(found["nearline"]["rows_per_s"].median),
            }
        servers = {"kafka": sandbox.kafka.version, "store": sandbox.valkey.version}
    details = {
        "viewers": VIEWERS,
        "history": HISTORY,
        "events": EVENTS,
        "measured_s": MEASURED_S,
        "partitions": PARTITIONS,
        "repetitions": REPETITIONS,
        **servers,
    }
    return Report("end_to_end", "From a full topic to rows in the store", lines, {"end_to_end": figures}, details)


LABELS = {"nearline": "Nearline", "naive": "naive script", "consumer": "consumer alone (limit)"}


@contextmanager
def arena(sandbox: Sandbox, n_items: int) -> Iterator[Arena]:
    """Fill the topic and compute the viewers' starting states, once for all runs."""
    generation = make_generation(n_items)
    folder = sandbox.data_dir / f"generations-{n_items}"
    publish(folder, generation)
    activation = GenerationsFolder(folder).activate(generation.generation_id, floor=0).activation
    histories = make_histories(generation, VIEWERS, HISTORY)
    events = make_events(generation, VIEWERS, EVENTS)
    codec = Codec.load()
    limits = Limits()
    rewriter = Rewriter(generation, activation, codec.encode_row, limits)
    made = Arena(sandbox, f"bench-{n_items}", folder, generation, codec, rewriter, histories, events)
    asyncio.run(made.fill())
    yield made


@dataclass
class Arena:
    """One catalogue size: a full topic, a published generation, viewers with histories; runs the contenders."""

    sandbox: Sandbox
    topic: str
    folder: Path
    generation: Generation
    codec: Codec
    rewriter: Rewriter
    histories: Mapping[str, list[PlaybackEvent]]
    events: list[PlaybackEvent]
    seeds: list[ViewerWrite] | None = None

    def settings(self, namespace: str) -> Settings:
        return Settings.model_validate(
            {
                "kafka": {
                    "bootstrap_servers": self.sandbox.kafka.bootstrap,
                    "topic": self.topic,
                    "group_id": namespace,
                },
                "store": {"url": self.sandbox.valkey.url, "namespace": namespace},
                "generations_path": str(self.folder),
            }
        )

    async def fill(self) -> None:
        """The events into the topic."""
        settings = self.settings("fill")
        await ensure_topics(settings, PARTITIONS)
        await replay(settings, self.events, codec=self.codec)

    # Nearline

    def run_nearline(self) -> dict[str, float]:
        return asyncio.run(self._with_store(f"nl-{uuid.uuid4().hex[:8]}"))

    async def _with_store(self, namespace: str) -> dict[str, float]:
        settings = self.settings(namespace)
        store = open_store(settings.store, settings.keys)
        await store.connect()
        try:
            await self._seed(store)
            found = await self._drain(settings, store)
            await self._check_nearline(store)
        finally:
            await store.close()
            _delete(self.sandbox.valkey.url, namespace)
        return found

    async def _seed(self, store: RedisStore) -> None:
        """Every viewer as the nightly rebuild would have left them."""
        if self.seeds is None:
            self.seeds = [self._seed_of(viewer, history) for viewer, history in self.histories.items()]
        for at in range(0, len(self.seeds), WRITE_BATCH):
            answers = await store.write_viewers(self.seeds[at : at + WRITE_BATCH])
            if not all(isinstance(answer, Written) for answer in answers):
                raise WrongResult("a starting state was not written")

    def _seed_of(self, viewer: str, history: list[PlaybackEvent]) -> ViewerWrite:
        state = merge([state_of(e, timestamp_ms=e.event_time_ms) for e in history], self.rewriter.limits)
        first = self.rewriter.rewrite(state, computed_at_ms=history[-1].event_time_ms)
        return ViewerWrite(
            viewer, b"", b"seeded..", self.rewriter.activation, first.state_bytes, first.vector_bytes, first.row_bytes
        )

    async def _drain(self, settings: Settings, store: RedisStore) -> dict[str, float]:
        """Start the updater, wait until every event is finished."""
        environment = {
            "NEARLINE_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
            "NEARLINE_KAFKA__TOPIC": settings.kafka.topic,
            "NEARLINE_KAFKA__GROUP_ID": settings.kafka.group_id,
            "NEARLINE_STORE__URL": settings.store.url.get_secret_value(),
            "NEARLINE_STORE__NAMESPACE": settings.store.namespace,
            "NEARLINE_GENERATIONS_PATH": settings.generations_path,
            "NEARLINE_LOG_LEVEL": "warning",
        }
        folder = self.sandbox.data_dir / settings.store.namespace
        updater = Service("updater", environment, folder, port_setting="NEARLINE_HEALTH__PORT")
        updater.start()
        try:
            asked = time.perf_counter()
            while (before := await _finished(store)) == 0:
                updater.require_running()
                if time.perf_counter() > asked + START_DEADLINE_S:
                    raise WrongResult(f"nothing finished within {START_DEADLINE_S:g} s")
                await asyncio.sleep(POLL_S)
            started, done = time.perf_counter(), before
            while done < EVENTS and time.perf_counter() < started + MEASURED_S:
                await asyncio.sleep(POLL_S)
                done = await _finished(store)
            seconds = time.perf_counter() - started
            async with httpx.AsyncClient(timeout=5) as client:
                stats = await get_json(client, updater.url + "/stats")
        finally:
            updater.stop()
        rows_per_event = float(str(stats["rows_written"])) / float(str(stats["applied"]))
        rate = (done - before) / seconds
        return {"events_per_s": rate, "rows_per_s": rate * rows_per_event}

    async def _check_nearline(self, store: RedisStore) -> None:
        """Every finished event counted as applied; state from the plays by sorting, row and vector from the state."""
        plays: dict[str, list[PlaybackEvent]] = {viewer: list(history) for viewer, history in self.histories.items()}
        left = {}
        for partition in range(PARTITIONS):
            marker = await store.read_marker(partition)
            left[partition] = 0 if marker is None else marker.next_offset
            if marker is not None and (marker.unaccounted or marker.applied != marker.next_offset):
                raise WrongResult(f"partition {partition}: {marker.applied} of {marker.next_offset} events applied")
        for event in self.events:  # in each partition, the first so many
            partition = choose_partition(event.viewer.encode(), PARTITIONS)
            if left[partition]:
                left[partition] -= 1
                plays[event.viewer].append(event)
        for viewer in list(plays)[:: VIEWERS // CHECKED]:
            stored = await store.read_viewer(viewer)
            found = [state_of(e, timestamp_ms=e.event_time_ms).plays[0] for e in plays[viewer]]
            if stored.state != pack(ViewerState(plays=tuple(sorted(found, reverse=True)))):
                raise WrongResult(f"{viewer}: not the state that its plays give")
            row = self.codec.decode_row(stored.row)
            again = self.rewriter.rewrite(
                unpack(stored.state), computed_at_ms=row.computed_at_ms, event_time_ms=row.event_time_ms
            )
            if (again.vector_bytes, again.row_bytes) != (stored.vector, stored.row):
                raise WrongResult(f"{viewer}: not the row that its state gives")

    # The naive script

    def run_naive(self) -> dict[str, float]:
        prefix = f"naive-{uuid.uuid4().hex[:8]}"
        index = self.generation.index
        with redis.Redis.from_url(self.sandbox.valkey.url) as client:
            pipeline = client.pipeline(transaction=False)
            for viewer, history in self.histories.items():
                pipeline.set(f"{prefix}:plays:{viewer}", json.dumps([index[str(e.item_id)] for e in history]))
            pipeline.execute()
            events, seconds = _run_script(
                "bench.naive",
                bootstrap=self.sandbox.kafka.bootstrap,
                topic=self.topic,
                url=self.sandbox.valkey.url,
                prefix=prefix,
                generations=str(self.folder),
                generation=self.generation.generation_id,
                limit=len(self.events),
                seconds=MEASURED_S,
            )
            self._check_naive(client, prefix, events)
        _delete(self.sandbox.valkey.url, prefix)
        return {"events_per_s": events / seconds}

    def _check_naive(self, client: Any, prefix: str, events: int) -> None:
        """Every event counted once; a sample of rows against an exact solve in float64."""
        plays = {v: json.loads(client.get(f"{prefix}:plays:{v}")) for v in self.histories}
        total = sum(len(played) for played in plays.values())
        if total != VIEWERS * HISTORY + events:
            raise WrongResult(f"the naive script holds {total} plays, not {VIEWERS * HISTORY + events}")
        Y = self.generation.item_factors.astype(np.float64)
        confidence = Recommender(self.generation).confidence
        changed = [viewer for viewer, played in plays.items() if HISTORY < len(played) < MAX_PLAYS]
        for viewer in changed[:: max(1, len(changed) // CHECKED)]:
            played = sorted(set(plays[viewer]))
            U = Y[played]
            A = self.generation.YtY + self.generation.parameters.regularization * np.eye(self.generation.k)
            x = np.linalg.solve(A + (confidence - 1) * U.T @ U, confidence * U.sum(axis=0))
            scores = Y @ x
            scores[played] = -np.inf
            row = json.loads(client.get(f"{prefix}:row:{viewer}"))
            chosen = scores[[self.generation.index[item_id] for item_id, _ in row]]
            if not np.allclose(chosen, np.sort(scores)[::-1][: len(row)], atol=SCORE_TOLERANCE):
                raise WrongResult(f"{viewer}: the naive script's row is not the best one")

    # The limit

    def run_consumer(self) -> dict[str, float]:
        events, seconds = _run_script(
            "bench.limit", bootstrap=self.sandbox.kafka.bootstrap, topic=self.topic, limit=len(self.events)
        )
        return {"events_per_s": events / seconds}


async def _finished(store: RedisStore) -> int:
    """Offsets with a fate."""
    markers = [await store.read_marker(partition) for partition in range(PARTITIONS)]
    return sum(marker.next_offset for marker in markers if marker is not None)


def _run_script(module: str, **options: object) -> tuple[int, float]:
    """Run a contender as a process of its own; the events and seconds that it prints."""
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode != 0:
        raise WrongResult(f"{module} failed:\n{done.stderr[-2000:]}")
    events, seconds = done.stdout.split()
    return int(events), float(seconds)


def _delete(url: str, prefix: str) -> None:
    """Leave the store as empty as it was found: every run meets the same one."""
    with redis.Redis.from_url(url) as client:
        batch: list[bytes] = []
        for key in client.scan_iter(match=f"{prefix}:*", count=1_000):
            batch.append(key)
            if len(batch) == WRITE_BATCH:
                client.unlink(*batch)
                batch.clear()
        if batch:
            client.unlink(*batch)
