"""What the contenders work on: a made-up generation, viewers with histories, and events of uniformly drawn viewers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from contracts.catalogue import CatalogueItem
from contracts.digests import item_digest
from contracts.events import Kind, PlaybackEvent
from contracts.manifest import CONFIDENCE_RULE, Confidence, Decision, Manifest
from embeddings.generation import NEVER_MS, FoldInParameters, Generation
from embeddings.publishing import Contents, write_generation

K = 64
START_MS = 1_700_000_000_000
PLAY_MS = 6_000_000


def make_generation(n_items: int, k: int = K, seed: int = 1) -> Generation:
    """Random factors with norms like those of trained ones: (n_items, k) float32."""
    rng = np.random.default_rng(seed)
    ids = tuple(f"tt{i:07d}" for i in range(n_items))
    factors = rng.normal(size=(n_items, k)) * rng.lognormal(-1, 0.5, size=(n_items, 1)) / np.sqrt(k)
    return Generation(
        generation_id=f"bench-{n_items}",
        item_ids=ids,
        item_factors=np.ascontiguousarray(factors, dtype=np.float32),
        parameters=FoldInParameters(),
        popularity=rng.pareto(1.2, size=n_items).astype(np.float32),
        available_from_ms=np.zeros(n_items, dtype=np.int64),
        available_until_ms=np.full(n_items, NEVER_MS, dtype=np.int64),
        maturity=np.zeros(n_items, dtype=np.uint8),
        item_digests=np.array([item_digest(item) for item in ids], dtype=np.int64),
    )


def publish(root: Path, generation: Generation) -> None:
    """Write the generation's folder as the nightly job would."""
    write_generation(
        root,
        Manifest(
            generation_id=generation.generation_id,
            created_at_ms=START_MS,
            k=generation.k,
            n_items=generation.n_items,
            n_users=0,
            confidence=Confidence(rule=CONFIDENCE_RULE, **asdict(generation.parameters)),
            stream="playback@1",
            cutoffs={},
            inputs="0" * 64,
            trainer="made up",
            versions={},
            metrics={},
            decision=Decision("unchecked", "made up"),
            files={},
        ),
        Contents(
            [CatalogueItem(item_id, item_id) for item_id in generation.item_ids],
            generation.item_factors,
            generation.popularity,
            [],
            np.zeros((0, generation.k), dtype=np.float32),
        ),
    )


def make_play(viewer: str, item_id: str, second: int) -> PlaybackEvent:
    """A complete play."""
    started_ms = START_MS + second * 1000
    return PlaybackEvent(
        event_id=f"{viewer}.{second}",
        kind=Kind.COMPLETE,
        viewer=viewer,
        event_time_ms=started_ms,
        item_id=item_id,
        play_id=f"p{second}",
        play_started_at_ms=started_ms,
        watched_ms=PLAY_MS,
        duration_ms=PLAY_MS,
    )


def make_histories(generation: Generation, viewers: int, plays: int, seed: int = 2) -> dict[str, list[PlaybackEvent]]:
    """Viewer → so many plays of different titles, oldest first: what everybody knows before the clock starts."""
    rng = np.random.default_rng(seed)
    return {
        f"viewer-{v}": [
            make_play(f"viewer-{v}", generation.item_ids[row], v * plays + i)
            for i, row in enumerate(rng.choice(generation.n_items, plays, replace=False))
        ]
        for v in range(viewers)
    }


def make_events(generation: Generation, viewers: int, count: int, seed: int = 3) -> list[PlaybackEvent]:
    """Plays of uniformly drawn viewers and titles, in time order, after every history."""
    rng = np.random.default_rng(seed)
    who, what = rng.integers(viewers, size=count), rng.integers(generation.n_items, size=count)
    return [
        make_play(f"viewer-{v}", generation.item_ids[row], 10_000_000 + i)
        for i, (v, row) in enumerate(zip(who.tolist(), what.tolist(), strict=True))
    ]
