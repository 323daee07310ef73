"""What the contenders work on: a made-up generation, viewers with histories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from batch.tables import FOLLOWERS
from contracts.events import Kind, PlaybackEvent
from embeddings.generation import Generation
from sandbox import made_up

K = 64
START_MS = 1_700_000_000_000
PLAY_MS = 6_000_000
SMALL_SKEW, LARGE_SKEW, LARGE = 0.5, 0.9, 100_000
"""σ of the norms' logarithm, up to and from so many titles. A large catalogue has a long tail that hardly anybody plays, with small norms:
in trained factors of 12,611 films (MovieTweetings) the median norm is 0.048 of the greatest, where a σ of 0.8 has it; of 3,533
(MovieLens-1M) 0.34."""


def make_generation(n_items: int, k: int = K, seed: int = 1) -> Generation:
    """Random factors with norms like those of trained ones: (n_items, k) float32; random trends, followers and ranker."""
    skew = LARGE_SKEW if n_items >= LARGE else SMALL_SKEW
    made = made_up.make_generation(n_items, k, seed, generation_id=f"bench-{n_items}", skew=skew)
    return replace(made, tables=made_up.make_tables(n_items, seed, followers=FOLLOWERS))


def publish(root: Path, generation: Generation) -> None:
    """Write the generation's folder as the nightly job would."""
    made_up.write_generation_folder(root, generation, created_at_ms=START_MS)


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
