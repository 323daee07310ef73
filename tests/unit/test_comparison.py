"""Two generations side by side: figures with known answers, rows that would be served, a page in which nothing is markup."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.comparison import compare, compare_rows, summarize
from batch.comparison_page import change_of, render_page
from contracts.codec import Codec
from contracts.errors import GenerationError, UserError
from contracts.rows import ENTRIES_SHOWN, Entry
from embeddings.files import load_generation
from ranking.overlap import overlap_at, rank_biased_overlap
from runtime.settings import Settings
from tests.worlds import T0, make_generation, play_event, write_generation_folder
from viewers.memory_store import MemoryStore
from viewers.packing import pack
from viewers.rewriter import Rewriter
from viewers.state import EMPTY, Limits, ViewerState, merge, state_of
from viewers.store import StoredViewer

LIMITS = Limits()
CODEC = Codec.load()


def entries(*items: str) -> list[Entry]:
    return [Entry(item, 1.0, "als") for item in items]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("abc", "abc", 1.0),
        ("abc", "xyz", 0.0),
        ("", "", 1.0),
        ("a", "", 0.0),
        ("ab", "ba", 0.9),  # X = 0, 2: 2/2 · p² + (1 − p)/p · (0 + p²) = 0.81 + 0.09
        ("abc", "axb", 0.685),  # X = 1, 1, 2: 2/3 · p³ + (1 − p)/p · (p + p²/2 + 2/3 · p³) = 0.486 + 0.199
    ],
)
def test_rank_biased_overlap_has_known_answers(a: str, b: str, expected: float) -> None:
    assert rank_biased_overlap(a, b) == pytest.approx(expected)


@given(st.permutations("abcdefgh"), st.permutations("abcdefgh"))
def test_rank_biased_overlap_is_symmetric_and_1_only_for_the_same_order(a: list[str], b: list[str]) -> None:
    found = rank_biased_overlap(a, b)
    assert found == pytest.approx(rank_biased_overlap(b, a))
    assert (found == pytest.approx(1.0)) == (a == b)


def test_overlap_counts_the_first_places_in_any_order() -> None:
    assert overlap_at(3, "abcx", "cbay") == 1.0
    assert overlap_at(3, "abc", "xbc") == pytest.approx(2 / 3)
    assert overlap_at(10, "ab", "abcd") == 0.5
    assert overlap_at(10, "", "") == 1.0


def test_an_entry_is_new_gone_moved_or_at_its_place() -> None:
    one = compare_rows("v", (), entries("a", "b", "c"), entries("a", "c", "d"), {"a": "Alpha"})
    assert (one.new, one.gone, one.moved) == (1, 1, 1)
    assert [change_of(tile, "gone") for tile in one.a] == ["", "gone", "there 2"]
    assert [change_of(tile, "new") for tile in one.b] == ["", "there 3", "new"]
    assert [tile.title for tile in one.a] == ["Alpha", "b", "c"]


def test_titles_are_told_that_more_and_fewer_viewers_would_see() -> None:
    rows = [(entries("a", "b"), entries("c", "a")), (entries("b", "a"), entries("c", "a"))]
    found = summarize("A", "B", T0, [compare_rows(f"v{i}", (), a, b, {}) for i, (a, b) in enumerate(rows)])
    assert [(one.item_id, one.a, one.b) for one in found.shown_more] == [("c", 0, 2)]
    assert [(one.item_id, one.a, one.b) for one in found.shown_less] == [("b", 2, 0)]
    assert (found.same_first, found.titles_a, found.titles_b, found.overlap) == (0.0, 2, 2, 0.5)


def test_nothing_in_the_page_is_taken_for_markup() -> None:
    evil = "<script>alert(1)</script>&"
    one = compare_rows(evil, (evil,), entries("a"), entries("b"), {"a": evil, "b": evil})
    page = render_page(summarize(evil, evil, T0, [one]))
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in page
    assert "http" not in page  # it needs nothing else


def state_with(viewer: str, *items: int) -> ViewerState:
    events = [play_event(viewer, item, second) for second, item in enumerate(items)]
    return merge([state_of(event, timestamp_ms=event.event_time_ms) for event in events], LIMITS)


@pytest.fixture
def world(tmp_path: Path) -> tuple[Settings, MemoryStore]:
    """Two generations, ten viewers with plays and one without."""
    settings = Settings(generations_path=str(tmp_path / "g"))
    for number, name in enumerate(("g1", "g2"), 1):
        write_generation_folder(settings.generations_path, make_generation(seed=number, generation_id=name))
    store = MemoryStore()
    for i in range(10):
        stored = StoredViewer(b"token--1", 1, pack(state_with(f"v{i}", i, i + 20)), b"", b"as it was")
        store.server.viewers[f"v{i}"] = stored
    store.server.viewers["erased"] = StoredViewer(b"token--1", 1, pack(EMPTY))
    return settings, store


async def test_the_rows_are_those_that_each_generation_would_serve_now(world: tuple[Settings, MemoryStore]) -> None:
    settings, store = world
    await store.connect()
    before = dict(store.server.viewers)
    found = await compare(settings, store, "g1", "g2", viewers=["v3", "v1", "v3"], now_ms=T0 + 10**7)
    assert [one.viewer for one in found.viewers] == ["v3", "v1"]
    assert store.server.viewers == before
    for one, viewer in zip(found.viewers, (3, 1), strict=True):
        state = state_with(f"v{viewer}", viewer, viewer + 20)
        assert one.plays == (f"Title of tt{viewer + 20:07d}", f"Title of tt{viewer:07d}")
        for side, name in ((one.a, "g1"), (one.b, "g2")):
            rewriter = Rewriter(load_generation(settings.generations_path, name), 7, CODEC.encode_row, LIMITS)
            served = CODEC.decode_row(rewriter.rewrite(state, computed_at_ms=T0 + 10**7).row_bytes).entries[
                :ENTRIES_SHOWN
            ]
            assert [(tile.item_id, tile.source) for tile in side] == [(entry.item_id, entry.source) for entry in served]
    same = await compare(settings, store, "g1", "g1", viewers=["v3"], now_ms=T0 + 10**7)
    assert (same.overlap, same.rank_biased_overlap, same.same_first) == (1.0, pytest.approx(1.0), 1.0)
    assert not same.shown_more and not same.shown_less


async def test_a_draw_is_the_same_again_and_leaves_out_whom_nothing_is_known_of(
    world: tuple[Settings, MemoryStore],
) -> None:
    settings, store = world
    await store.connect()

    async def drawn(seed: int, count: int) -> list[str]:
        found = await compare(settings, store, "g1", "g2", draw=count, seed=seed, now_ms=T0)
        return [one.viewer for one in found.viewers]

    first = await drawn(0, 4)
    assert len(set(first)) == 4 and "erased" not in first
    store.server.viewers = dict(reversed(store.server.viewers.items()))  # another order in the store
    assert await drawn(0, 4) == first
    assert await drawn(1, 4) != first
    assert sorted(await drawn(0, 50)) == sorted(f"v{i}" for i in range(10))


async def test_what_cannot_be_compared_is_said(world: tuple[Settings, MemoryStore]) -> None:
    settings, store = world
    await store.connect()
    with pytest.raises(UserError, match="nothing is known of erased, nobody"):
        await compare(settings, store, "g1", "g2", viewers=["v1", "erased", "nobody"], now_ms=T0)
    with pytest.raises(GenerationError, match="g3"):
        await compare(settings, store, "g1", "g3", viewers=["v1"], now_ms=T0)
    store.server.viewers.clear()
    with pytest.raises(UserError, match="no viewer"):
        await compare(settings, store, "g1", "g2", now_ms=T0)
