"""The peer of `end_to_end`: what a good engineer writes in an afternoon, and it works.

One event at a time: read the viewer's plays from Redis, fold them in with `implicit`, recommend, write both back. Commits are
the client's automatic ones. It does less than Nearline (no seen items beyond the plays, no popularity for newcomers, no
reasons, no duplicates, no exactness after a crash), which is to its advantage here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import redis.asyncio as redis
from aiokafka import AIOKafkaConsumer
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix

from contracts.codec import Codec
from contracts.events import PlaybackEvent
from contracts.rows import ENTRIES_KEPT
from embeddings.files import load_generation
from embeddings.generation import Generation

MAX_PLAYS = 200


class Recommender:
    """`implicit` around a generation's item factors."""

    def __init__(self, generation: Generation) -> None:
        p = generation.parameters
        self.generation = generation
        self.confidence = 1 + p.alpha
        self.model: Any = AlternatingLeastSquares(factors=generation.k, regularization=p.regularization, num_threads=1)
        self.model.item_factors = generation.item_factors.copy()  # a loaded one is read-only; implicit wants to write

    def recommend(self, played: list[int]) -> tuple[Any, Any]:
        """(m,) item rows and (m,) scores for a viewer who played these item rows."""
        items = sorted(set(played))
        data = np.full(len(items), self.confidence, dtype=np.float32)
        liked = csr_matrix((data, items, [0, len(items)]), shape=(1, self.generation.n_items))
        return self.model.recommend(0, liked, N=ENTRIES_KEPT, recalculate_user=True)  # type: ignore[no-any-return]


async def consume(
    bootstrap: str, topic: str, url: str, prefix: str, generation: Generation, *, limit: int, for_s: float
) -> tuple[int, float]:
    """Process `limit` events, or for so many seconds; returns how many, and the seconds from the first to the last."""
    recommender = Recommender(generation)
    codec = Codec.load()
    store = redis.from_url(url)
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, group_id=prefix, auto_offset_reset="earliest", enable_auto_commit=True
    )
    await consumer.start()
    try:
        started, done = 0.0, 0
        async for record in consumer:
            started = started or time.perf_counter()
            event: PlaybackEvent = codec.decode_event(record.value)
            assert event.item_id is not None
            played = json.loads(await store.get(f"{prefix}:plays:{event.viewer}") or "[]")
            played = [*played, generation.index[event.item_id]][-MAX_PLAYS:]
            rows, scores = recommender.recommend(played)
            row = [[generation.item_ids[i], float(score)] for i, score in zip(rows, scores, strict=True)]
            await store.mset(
                {
                    f"{prefix}:plays:{event.viewer}": json.dumps(played),
                    f"{prefix}:row:{event.viewer}": json.dumps(row),
                }
            )
            done += 1
            if done == limit or time.perf_counter() - started > for_s:
                break
        return done, time.perf_counter() - started
    finally:
        await consumer.stop()
        await store.aclose()


def main() -> None:
    """Print how many events were processed and how many seconds that took."""
    parser = argparse.ArgumentParser()
    for name in ("bootstrap", "topic", "url", "prefix", "generations", "generation"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    o = parser.parse_args()
    generation = load_generation(Path(o.generations), o.generation)
    done, seconds = asyncio.run(
        consume(o.bootstrap, o.topic, o.url, o.prefix, generation, limit=o.limit, for_s=o.seconds)
    )
    sys.stdout.write(f"{done} {seconds}\n")


if __name__ == "__main__":
    main()
