"""Retrieval and rows: exact, independent of the batch, without what must not be shown, with reasons that add up."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from contracts.rows import ENTRIES_KEPT, ENTRIES_WITH_REASONS
from embeddings.retrieval import top_candidates
from ranking.rows import RankingInput, popular_entries, rank
from tests.worlds import T0, make_generation
from viewers.rewriter import Rewriter, ranking_input
from viewers.signals import PLAY_SIGNALS, item_signals, play_strength, play_strengths
from viewers.state import COMPLETED, Limits, Play, Register, RegisterKind, ViewerState, item_digest

GENERATION = make_generation(n_items=500, k=16, seed=2)


def viewer(*items: int, seen: tuple[int, ...] = ()) -> RankingInput:
    ids = [GENERATION.item_ids[i] for i in items]
    digests = np.array([item_digest(GENERATION.item_ids[i]) for i in seen], dtype=np.int64)
    return RankingInput(ids, [1.0] * len(ids), list(range(len(ids))), frozenset(ids), digests)


def test_top_candidates_are_those_of_a_full_sort() -> None:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(5, 16)).astype(np.float32)
    excluded = [rng.choice(500, size=30, replace=False).astype(np.int64) for _ in range(5)]
    found = top_candidates(GENERATION, X, excluded, None, 40)
    for x, rows, out in zip(X, found, excluded, strict=True):
        scores = GENERATION.item_factors @ x
        scores[out] = -np.inf
        assert set(rows) == set(np.argsort(-scores)[:40])
        assert (np.diff(scores[rows]) <= 1e-5).all()


def test_fewer_items_than_asked_for_give_what_there_is() -> None:
    small = make_generation(n_items=6, k=4)
    (rows,) = top_candidates(small, np.ones((1, 4), dtype=np.float32), [np.array([2], dtype=np.int64)], None, 40)
    assert sorted(rows) == [0, 1, 3, 4, 5]


def test_ties_go_to_the_lower_row_whatever_else_is_there() -> None:
    flat = dataclasses.replace(make_generation(n_items=50, k=4), item_factors=np.ones((50, 4), dtype=np.float32))
    (rows,) = top_candidates(flat, np.ones((1, 4), dtype=np.float32), [np.array([0], dtype=np.int64)], None, 3)
    assert list(rows) == [1, 2, 3]


def test_a_viewers_row_is_the_same_alone_and_in_any_company() -> None:
    rng = np.random.default_rng(3)
    viewers = [viewer(*rng.choice(500, size=int(rng.integers(1, 40)), replace=False)) for _ in range(33)]
    together = rank(GENERATION, viewers, T0)
    for alone, company in zip((rank(GENERATION, [v], T0)[0] for v in viewers), together, strict=True):
        assert alone.entries == company.entries
        assert (alone.folded.x == company.folded.x).all()


def test_what_was_seen_hidden_or_is_not_available_is_not_shown() -> None:
    until = GENERATION.available_until_ms.copy()
    until[::2] = T0
    limited = dataclasses.replace(GENERATION, available_until_ms=until)
    (ranked,) = rank(limited, [viewer(1, 3, 5, seen=(7, 9))], T0)
    shown = {limited.index[entry.item_id] for entry in ranked.entries}
    assert len(shown) == ENTRIES_KEPT
    assert all(row % 2 == 1 for row in shown)
    assert not shown & {1, 3, 5, 7, 9}


def test_reasons_sum_to_the_als_part_of_the_score() -> None:
    (ranked,) = rank(GENERATION, [viewer(10, 20, 30)], T0)
    contributions = ranked.folded.contributions(GENERATION.item_factors[ranked.rows]) * ranked.weight
    popularity = (1 - ranked.weight) * GENERATION.popularity_score[ranked.rows]
    assert contributions.sum(axis=1) + popularity == pytest.approx([entry.score for entry in ranked.entries], abs=1e-5)
    for entry, row in zip(ranked.entries[:ENTRIES_WITH_REASONS], contributions, strict=False):
        assert [r.contribution for r in entry.reasons] == pytest.approx(
            sorted(row[row > 0], reverse=True)[:3], abs=1e-6
        )
    assert not any(entry.reasons for entry in ranked.entries[ENTRIES_WITH_REASONS:])


def test_a_viewer_whose_items_are_all_unknown_gets_the_popular_titles() -> None:
    unknown = RankingInput(["new1"], [1.0], [0], frozenset({"new1"}), np.array([], dtype=np.int64))
    (ranked,) = rank(GENERATION, [unknown], T0)
    assert [entry.item_id for entry in ranked.entries] == [
        e.item_id for e in popular_entries(GENERATION, T0, maturity=99)
    ]
    assert {entry.source for entry in ranked.entries} == {"popular"}


def test_the_more_was_watched_the_less_popularity_counts() -> None:
    weights = [rank(GENERATION, [viewer(*range(n))], T0)[0].weight for n in (1, 2, 5, 20)]
    assert weights == sorted(weights)
    assert weights[0] < 0.25
    assert weights[-1] > 0.98


def test_the_signal_table_decides_every_share_and_every_flag() -> None:
    assert all(isinstance(play_strength(share, flags), float) for share in range(256) for flags in range(8))
    shares = np.arange(256, dtype=np.uint8)
    for flags in range(8):
        many = play_strengths(shares, np.full(256, flags, dtype=np.uint8))
        assert many.tolist() == pytest.approx([play_strength(share, flags) for share in range(256)])
    assert {signal.name for signal in PLAY_SIGNALS} >= {"completed", "skipped early", "looked in"}


def test_an_item_has_one_signal_its_strongest_at_the_rank_of_its_newest_play() -> None:
    state = ViewerState(
        (
            Play(T0 + 3000, 1, "a", 30, 0),
            Play(T0 + 2000, 1, "b", 255, COMPLETED),
            Play(T0 + 1500, 1, "c", 0, 0),  # looked in: says nothing
            Play(T0 + 1000, 1, "a", 255, COMPLETED),
        )
    )
    assert [(s.item_id, s.strength, s.rank) for s in item_signals(state)] == [("a", 1.0, 0), ("b", 1.0, 1)]


def test_what_is_said_outright_replaces_what_the_plays_say() -> None:
    plays = (Play(T0 + 2000, 1, "a", 255, COMPLETED), Play(T0 + 1000, 1, "b", 255, COMPLETED))
    registers = (
        Register(RegisterKind.RATE, "a", T0 + 9000, 1, -100),
        Register(RegisterKind.RATE, "b", T0 + 9000, 1, None),
        Register(RegisterKind.RATE, "c", T0 + 1500, 1, 50),
        Register(RegisterKind.HIDE, "d", T0 + 500, 1, None),
        Register(RegisterKind.PREFER, "topic:x", T0, 1, 100),
    )
    signals = [(s.item_id, s.strength) for s in item_signals(ViewerState(plays, registers=registers))]
    assert signals == [("a", -1.0), ("c", 0.5), ("b", 1.0), ("d", -1.0)]


def test_an_erased_or_unknown_viewer_has_no_vector_and_no_row() -> None:
    rewriter = Rewriter(GENERATION, 3, lambda row: b"row", Limits())
    erased = rewriter.rewrite(ViewerState(erased_through_s=5), computed_at_ms=T0)
    assert (erased.vector_bytes, erased.row_bytes) == (b"", b"")
    assert erased.state_bytes


def test_without_a_generation_plays_are_kept_and_no_row_is_written() -> None:
    state = ViewerState((Play(T0, 1, "a", 255, COMPLETED),))
    rewritten = Rewriter(None, 0, lambda row: b"row", Limits()).rewrite(state, computed_at_ms=T0)
    assert rewritten.row_bytes == b""
    assert rewritten.state_bytes
    assert ranking_input(state).item_ids == ["a"]
