"""A night with enough plays to learn from: what follows what is served, recomputed, kept out by a setting, and rolled back."""

from __future__ import annotations

import numpy as np

from batch.activation import rollback
from batch.publish import TRAINING
from contracts.events import PlaybackEvent
from embeddings.files import load_generation, load_manifest
from runtime.progress import SilentProgress
from runtime.settings import Settings
from tests.integration.test_nightly import CODEC, LIMITS, run, send
from tests.worlds import play_event
from viewers.memory_store import MemoryStore
from viewers.packing import unpack
from viewers.rewriter import Rewriter

VIEWERS, ITEMS, EACH = 60, 400, 80


def a_ring(turns: range, seed: int = 5) -> list[PlaybackEvent]:
    """Everybody goes from one title to the next of a ring, four times of five; six turns a day."""
    rng = np.random.default_rng(seed)
    at, events = rng.integers(0, ITEMS, VIEWERS), []
    for turn in range(turns.stop):
        for viewer in range(VIEWERS):
            at[viewer] = (at[viewer] + 1) % ITEMS if rng.random() < 0.8 else rng.integers(0, ITEMS)
            if turn in turns:
                events.append(play_event(f"v{viewer:02d}", int(at[viewer]), 14_400 * turn + viewer))
    return events


async def test_a_night_learns_what_follows_and_every_row_can_be_recomputed(settings: Settings) -> None:
    store = MemoryStore()
    await send(settings, a_ring(range(EACH)))
    report = await run(settings, store, seed=True)
    generation = load_generation(settings.generations_path, report.generation_id)
    assert generation.tables is not None and generation.tables.sequence is not None
    training = load_manifest(settings.generations_path, report.generation_id).metrics[TRAINING]
    assert training["ranker_ndcg@10"] > training["blend_ndcg@10"]
    rewriter, hits = Rewriter(generation, 1, CODEC.encode_row, LIMITS), 0
    for stored in store.server.viewers.values():
        state, row = unpack(stored.state), CODEC.decode_row(stored.row)
        assert rewriter.rewrite(state, computed_at_ms=row.computed_at_ms).row_bytes == stored.row
        following = f"tt{(int(state.plays[0].item_id[2:]) + 1) % ITEMS:07d}"
        for entry in row.entries[:3]:
            if entry.item_id == following and entry.source == "cowatch":
                hits += entry.reasons[0].item_id == state.plays[0].item_id
    assert hits > VIEWERS / 2
    default = CODEC.decode_row((await store.read_default_rows())["*:*"])
    assert {entry.source for entry in default.entries} <= {"popular", "trending"}


async def test_a_generation_without_a_ranker_is_served_blended_and_a_rollback_brings_it_back(
    settings: Settings,
) -> None:
    store = MemoryStore()
    await send(settings, a_ring(range(EACH - 10)))
    without = settings.model_copy(update={"train": settings.train.model_copy(update={"ranker_plays": 0})})
    first = await run(without, store, seed=True)
    assert load_generation(settings.generations_path, first.generation_id).tables is None
    await send(settings, a_ring(range(EACH - 10, EACH)))
    pairs = settings.model_copy(update={"train": settings.train.model_copy(update={"sequence_epochs": 0})})
    second = await run(pairs, store, seed=True, force=True)
    tables = load_generation(settings.generations_path, second.generation_id).tables
    assert tables is not None and tables.sequence is None
    assert "cowatch" in sources(store)
    await rollback(settings, store, progress=SilentProgress())
    assert sources(store) <= {"als", "popular", "again"}  # a ring is played again


def sources(store: MemoryStore) -> set[str]:
    """Of everybody's entries."""
    rows = [CODEC.decode_row(stored.row) for stored in store.server.viewers.values()]
    return {entry.source for row in rows for entry in row.entries}
