"""The peers of `end_to_end`: what a good engineer writes in an afternoon, and it works.

One event at a time, or in batches (`--batch`): read the viewers' plays from Redis, fold them in with `implicit`, recommend, write both
back. Commits are the client's automatic ones. It does less than Nearline (no seen items beyond the plays, no popularity for
newcomers, no reasons, no duplicates, no exactness after a crash), which is to its advantage here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import redis.asyncio as redis
from aiokafka import AIOKafkaConsumer
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix

from bench.report import WrongResult
from contracts.codec import Codec
from contracts.events import PlaybackEvent
from contracts.rows import ENTRIES_KEPT
from embeddings.files import load_generation
from embeddings.generation import Generation

MAX_PLAYS = 200
SCORE_TOLERANCE = 1e-3
"""Between float32 scores and float64."""


class Recommender:
    """`implicit` around a generation's item factors."""

    def __init__(self, generation: Generation) -> None:
        p = generation.parameters
        self.generation = generation
        self.confidence = 1 + p.alpha
        self.model: Any = AlternatingLeastSquares(factors=generation.k, regularization=p.regularization, num_threads=1)
        self.model.item_factors = generation.item_factors.copy()  # a loaded one is read-only; implicit wants to write

    def recommend(self, played: Sequence[list[int]]) -> tuple[Any, Any]:
        """(n, m) item rows and (n, m) scores for n viewers who played these item rows."""
        items = [sorted(set(one)) for one in played]
        ends = np.cumsum([0, *map(len, items)])
        data = np.full(ends[-1], self.confidence, dtype=np.float32)
        liked = csr_matrix((data, np.concatenate(items), ends), shape=(len(items), self.generation.n_items))
        return self.model.recommend(np.arange(len(items)), liked, N=ENTRIES_KEPT, recalculate_user=True)  # type: ignore[no-any-return]

    def require_best(self, played: Sequence[int], row: Sequence[tuple[str, float]], viewer: str) -> None:
        """Errors: `WrongResult` if a row is not what an exact solve in float64 gives."""
        generation = self.generation
        Y, items = generation.item_factors.astype(np.float64), sorted(set(played))
        U = Y[items]
        A = generation.YtY + generation.parameters.regularization * np.eye(generation.k)
        x = np.linalg.solve(A + (self.confidence - 1) * U.T @ U, self.confidence * U.sum(axis=0))
        scores = Y @ x
        scores[items] = -np.inf
        chosen = scores[[generation.index[item_id] for item_id, _ in row]]
        if not np.allclose(chosen, np.sort(scores)[::-1][: len(row)], atol=SCORE_TOLERANCE):
            raise WrongResult(f"{viewer}: the script's row is not the best one")


class Script:
    """Reads, folds in, writes."""

    def __init__(self, url: str, prefix: str, generation: Generation) -> None:
        self._recommender = Recommender(generation)
        self._codec = Codec.load()
        self._generation = generation
        self._prefix = prefix
        self.store = redis.from_url(url)

    async def process(self, values: Sequence[bytes]) -> None:
        """Some events at once."""
        events: list[PlaybackEvent] = [self._codec.decode_event(value) for value in values]
        viewers = list(dict.fromkeys(event.viewer for event in events))
        stored = await self.store.mget([f"{self._prefix}:plays:{viewer}" for viewer in viewers])
        plays = {viewer: json.loads(plays or "[]") for viewer, plays in zip(viewers, stored, strict=True)}
        for event in events:
            assert event.item_id is not None
            plays[event.viewer] = [*plays[event.viewer], self._generation.index[event.item_id]][-MAX_PLAYS:]
        rows, scores = self._recommender.recommend([plays[viewer] for viewer in viewers])
        written = {f"{self._prefix}:plays:{viewer}": json.dumps(plays[viewer]) for viewer in viewers}
        for viewer, items, row_scores in zip(viewers, rows.tolist(), scores.tolist(), strict=True):
            row = [[self._generation.item_ids[i], score] for i, score in zip(items, row_scores, strict=True)]
            written[f"{self._prefix}:row:{viewer}"] = json.dumps(row)
        await self.store.mset(written)


async def consume(
    bootstrap: str, topic: str, url: str, prefix: str, generation: Generation, *, limit: int, for_s: float, batch: int
) -> tuple[int, float]:
    """Process `limit` events, or for so many seconds; returns how many, and the seconds from the first to the last."""
    script = Script(url, prefix, generation)
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, group_id=prefix, auto_offset_reset="earliest", enable_auto_commit=True
    )
    await consumer.start()
    try:
        started, done = 0.0, 0
        while done < limit and (not started or time.perf_counter() - started < for_s):
            fetched = await consumer.getmany(timeout_ms=1_000, max_records=batch)
            values = [record.value for records in fetched.values() for record in records]
            if values:
                started = started or time.perf_counter()
                await script.process(values)
                done += len(values)
        return done, time.perf_counter() - started
    finally:
        await consumer.stop()
        await script.store.aclose()


def main() -> None:
    """Print how many events were processed and how many seconds that took."""
    parser = argparse.ArgumentParser()
    for name in ("bootstrap", "topic", "url", "prefix", "generations", "generation"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--batch", type=int, default=1, help="events at once")
    o = parser.parse_args()
    generation = load_generation(Path(o.generations), o.generation)
    done, seconds = asyncio.run(
        consume(o.bootstrap, o.topic, o.url, o.prefix, generation, limit=o.limit, for_s=o.seconds, batch=o.batch)
    )
    sys.stdout.write(f"{done} {seconds} {time.process_time()}\n")


if __name__ == "__main__":
    main()
