"""Small generations with known content: for tests and for faults, where nothing has to be trained."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from batch.companions import make_companions
from contracts.catalogue import CatalogueItem
from contracts.manifest import CONFIDENCE_RULE, Confidence, Decision, Manifest
from contracts.rules import CREATOR, TOPIC, Rules
from embeddings.generation import NEVER_MS, FoldInParameters, Generation
from embeddings.groups import make_groups
from embeddings.publishing import Contents, write_generation
from embeddings.sequence import COLUMNS, FACTORS, ROWS, SequenceNet
from embeddings.tables import FEATURES, HALF_LIVES_DAYS, STEPS, Cowatch, Tables
from viewers.state import item_digest

T0 = 1_700_000_000_000
"""A Tuesday in November 2023, UTC milliseconds."""


def make_generation(
    n_items: int = 200,
    k: int = 8,
    seed: int = 1,
    *,
    generation_id: str = "g1",
    parameters: FoldInParameters | None = None,
    skew: float = 0.5,
) -> Generation:
    """Random factors with norms like those of real ones (`skew`: σ of their logarithm).

    Item ids `tt0000000` …; every item always available.
    """
    rng = np.random.default_rng(seed)
    ids = tuple(f"tt{i:07d}" for i in range(n_items))
    factors = rng.normal(size=(n_items, k)) * rng.lognormal(-1, skew, size=(n_items, 1)) / np.sqrt(k)
    return Generation(
        generation_id=generation_id,
        item_ids=ids,
        item_factors=np.ascontiguousarray(factors, dtype=np.float32),
        parameters=parameters or FoldInParameters(),
        popularity=rng.pareto(1.2, size=n_items).astype(np.float32),
        available_from_ms=np.zeros(n_items, dtype=np.int64),
        available_until_ms=np.full(n_items, NEVER_MS, dtype=np.int64),
        maturity=np.zeros(n_items, dtype=np.uint8),
        item_digests=np.array([item_digest(item) for item in ids], dtype=np.int64),
    )


def make_tables(n_items: int, seed: int = 1, *, followers: int = 40) -> Tables:
    """Random trends and lists of followers, up to so many an item, some empty; weights of either sign; a sequence model."""
    rng = np.random.default_rng(seed)
    sizes = np.minimum(rng.integers(0, followers + 1, n_items) * (rng.random(n_items) < 0.9), n_items)
    items = [rng.choice(n_items, size, replace=False) for size in sizes.tolist()]
    share, lift = rng.random(int(sizes.sum())) / 10, rng.random((int(sizes.sum()), len(STEPS))) * 3
    cowatch = Cowatch(
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.concatenate(items).astype(np.int32) if items else np.zeros(0, np.int32),
        share.astype(np.float32),
        lift.astype(np.float32),
    )
    trending = rng.pareto(1.2, size=(n_items, len(HALF_LIVES_DAYS))).astype(np.float32)
    return Tables(trending, cowatch, rng.normal(0.1, 0.3, len(FEATURES)), sequence=make_sequence(n_items, seed))


def make_sequence(n_items: int, seed: int = 1) -> SequenceNet:
    """A random sequence model that does not know every ninth item."""
    rng = np.random.default_rng(seed)
    items = rng.normal(0, 0.3, (n_items, COLUMNS)).astype(np.float32)
    items[::9] = 0
    return SequenceNet(items, rng.normal(0.1, 0.2, (ROWS, FACTORS)).astype(np.float32))


def make_rules(n_items: int) -> dict[str, Any]:
    """`rules` and `groups` of a generation of so many items: every rule, forty creators, the nine topics of `chaos/stream.py`."""
    groups = make_groups([[f"maker {i % 40}"] for i in range(n_items)], [[f"{i % 9}"] for i in range(n_items)])
    rules = Rules(per_creator=1, per_topic=3, exploration=0.1, preference=1.0, repeats=0.2)
    return {"rules": rules, "groups": groups}


def write_generation_folder(root: str | Path, generation: Generation, *, created_at_ms: int = T0) -> None:
    """Publish a made-up generation as the nightly job would; titles are their ids."""
    write_generation(
        root,
        Manifest(
            generation_id=generation.generation_id,
            created_at_ms=created_at_ms,
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
            rules=generation.rules,
        ),
        Contents(
            [_title(generation, row) for row in range(generation.n_items)],
            generation.item_factors,
            generation.popularity,
            [],
            np.zeros((0, generation.k), dtype=np.float32),
            generation.tables,
            make_companions(generation.with_tables(generation.tables)),
        ),
    )


def _title(generation: Generation, row: int) -> CatalogueItem:
    item_id = generation.item_ids[row]
    names = [] if generation.groups is None else [generation.groups.names[group] for group in generation.groups.of(row)]
    topics, creators = (
        tuple(name.removeprefix(kind) for name in names if name.startswith(kind)) for kind in (TOPIC, CREATOR)
    )
    return CatalogueItem(item_id, f"Title of {item_id}", topics, creators)
