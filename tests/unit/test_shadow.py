"""A shadow generation: whom it looks at, what it counts, and that it changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from contracts.codec import Codec
from contracts.errors import GenerationError
from contracts.rows import ENTRIES_SHOWN
from embeddings.generation import FoldInParameters
from ranking.overlap import overlap_at, rank_biased_overlap
from runtime.settings import Settings
from tests.worlds import T0, make_generation, play_event, write_generation_folder
from updater.shadow import BATCH, MOST_WAITING, SETTLE_S, Shadow
from viewers.memory_store import MemoryStore
from viewers.packing import pack
from viewers.rewriter import Rewriter
from viewers.state import Limits, ViewerState, merge, state_of
from viewers.store import StoredViewer

CODEC = Codec.load()
LIMITS = Limits()
OTHER = replace(FoldInParameters(), regularization=FoldInParameters().regularization * 100)  # alike, and not the same
GENERATIONS = {
    "g1": make_generation(generation_id="g1"),
    "g2": make_generation(generation_id="g2", parameters=OTHER),
}


def state_with(viewer: str, *items: int) -> ViewerState:
    events = [play_event(viewer, item, second) for second, item in enumerate(items)]
    return merge([state_of(event, timestamp_ms=event.event_time_ms) for event in events], LIMITS)


def served(viewer: str, item: int, generation_id: str = "g1") -> StoredViewer:
    state = state_with(viewer, item, item + 1)
    row = Rewriter(GENERATIONS[generation_id], 3, CODEC.encode_row, LIMITS).rewrite(state, computed_at_ms=T0)
    return StoredViewer(b"token--1", 3, pack(state), row.vector_bytes, row.row_bytes)


@pytest.fixture
async def shadow(tmp_path: Path) -> Shadow:
    settings = Settings(generations_path=str(tmp_path / "g"))
    for generation in GENERATIONS.values():
        write_generation_folder(settings.generations_path, generation)
    made = Shadow(settings, MemoryStore(), CODEC, "g2", 100, now_ms=lambda: T0)
    await made.load()
    return made


def content(shadow: Shadow) -> dict[str, StoredViewer]:
    store: Any = shadow._store
    return store.server.viewers  # type: ignore[no-any-return]


async def test_what_is_counted_is_how_the_served_row_differs_from_the_shadow_generations(shadow: Shadow) -> None:
    content(shadow).update({f"v{i}": served(f"v{i}", i) for i in range(5)})
    before = dict(content(shadow))
    await shadow.look([*before])
    assert content(shadow) == before
    overlaps, alike = [], []
    for viewer, one in before.items():
        a = CODEC.decode_row(one.row)
        b = CODEC.decode_row(served(viewer, int(viewer[1:]), "g2").row)
        lists = [[entry.item_id for entry in row.entries[:ENTRIES_SHOWN]] for row in (a, b)]
        overlaps.append(overlap_at(10, *lists))
        alike.append(rank_biased_overlap(*lists))
    stats: dict[str, Any] = shadow.stats()
    assert stats["viewers"] == {"compared": 5, "in_force": 0, "no_row": 0, "failed": 0, "skipped": 0}
    assert stats["overlap"] == pytest.approx(sum(overlaps) / 5)
    assert stats["rank_biased_overlap"] == pytest.approx(sum(alike) / 5)
    assert 0 < stats["overlap"] < 1 and stats["row_seconds"] > 0 and stats["short_rows"] == 0


async def test_rows_of_the_shadow_generation_itself_and_viewers_without_a_row_are_told_apart(shadow: Shadow) -> None:
    content(shadow)["same"] = served("same", 1, "g2")
    content(shadow)["kept"] = StoredViewer(b"token--1", 0, pack(state_with("kept", 1)))
    await shadow.look(["same", "kept", "nobody"])
    stats: dict[str, Any] = shadow.stats()
    assert stats["viewers"] == {"compared": 0, "in_force": 1, "no_row": 2, "failed": 0, "skipped": 0}
    assert stats["overlap"] is None


async def test_what_cannot_be_computed_is_counted_and_does_not_spoil_its_neighbours(shadow: Shadow) -> None:
    good, bad = served("v1", 1), served("v2", 2)
    content(shadow).update(v1=good, v2=bad._replace(state=b"\x02 no state"), v3=good._replace(row=b"no row"))
    await shadow.look(["v1", "v2", "v3"])
    stats: dict[str, Any] = shadow.stats()
    assert stats["viewers"] == {"compared": 1, "in_force": 0, "no_row": 0, "failed": 2, "skipped": 0}


def record(key: bytes | None, *headers: tuple[str, bytes]) -> Any:
    return SimpleNamespace(key=key, headers=headers)


async def test_a_viewer_is_looked_at_a_little_after_the_first_play_and_once(shadow: Shadow) -> None:
    shadow.take([record(b"ana"), record(b"ben")], 100.0)
    shadow.take([record(b"ana")], 101.0)
    assert shadow._due(100.0 + SETTLE_S - 0.01) == []
    assert shadow._due(100.0 + SETTLE_S) == ["ana", "ben"]
    assert shadow._due(200.0) == []


async def test_private_records_and_keys_that_are_no_ids_lead_to_nobody(shadow: Shadow) -> None:
    shadow.take([record(b"ana", ("private", b"1")), record(None), record(b"{x}"), record("é".encode())], 0.0)
    assert shadow._due(10.0) == []
    shadow.take([record(b"ana", ("private", b"0"))], 0.0)
    assert shadow._due(10.0) == ["ana"]


async def test_what_waits_is_bounded(shadow: Shadow) -> None:
    shadow.take([record(b"v%d" % i) for i in range(MOST_WAITING + 3)], 0.0)
    assert shadow.metrics.count("skipped") == 3
    found = []
    while due := shadow._due(10.0):
        assert len(due) <= BATCH
        found += due
    assert len(found) == MOST_WAITING


async def test_a_generation_that_is_not_there_ends_it(tmp_path: Path) -> None:
    shadow = Shadow(Settings(generations_path=str(tmp_path)), MemoryStore(), CODEC, "g9", 100)
    with pytest.raises(GenerationError, match="g9"):
        await shadow.load()
