"""The evaluation on a checkerboard, where the answer is known: viewers of even number like even items, the others odd ones."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from batch.evaluate import (
    MIN_FRESH_PLAYS,
    Case,
    Holdout,
    choose_holdout,
    decide,
    evaluate,
    make_generation,
    measure,
    popularity_warning,
    read_cases,
)
from batch.lake import Lake
from embeddings.generation import FoldInParameters, Generation
from ranking.rows import RankingInput
from tests.unit.test_interactions import put
from tests.worlds import T0, play_event
from viewers.state import Limits

N = 12
IDS = [f"tt{i:07d}" for i in range(N)]


def checkerboard(flat: bool = False) -> Generation:
    """Even items point one way, odd ones the other; `flat`: all the same way, so that taste says nothing."""
    Y = np.zeros((N, 2), dtype=np.float32)
    Y[np.arange(N), 0 if flat else np.arange(N) % 2] = 1
    Y[:, 0] *= np.linspace(1, 0.9, N)  # no ties among the even ones
    return make_generation("g", IDS, Y, np.arange(N, 0, -1).astype(np.float32), FoldInParameters())


def case(*seen: int, wanted: list[int]) -> Case:
    ids = [IDS[i] for i in seen]
    viewer = RankingInput(ids, [1.0] * len(ids), list(range(len(ids))), frozenset(ids), np.zeros(0, np.int64))
    return Case(viewer, tuple(IDS[i] for i in wanted))


def test_a_perfect_model_finds_every_held_out_play_first() -> None:
    metrics = measure(checkerboard(), [case(0, 2, wanted=[4, 6, 8, 10])])
    assert metrics["hr@10"] == metrics["ndcg@10"] == metrics["recall@10"] == metrics["auc"] == 1
    assert metrics["precision@10"] == pytest.approx(0.4)
    assert metrics["coverage@10"] == pytest.approx(10 / 12)  # all but the two seen


def test_a_wanted_item_in_third_place_has_the_ndcg_of_third_place() -> None:
    metrics = measure(checkerboard(), [case(0, 2, wanted=[8])])  # behind 4 and 6
    assert metrics["ndcg@10"] == pytest.approx(1 / math.log2(4))
    assert metrics["auc"] == pytest.approx(7 / 9)  # of nine other unseen items, two are ahead


def test_popularity_gives_everybody_the_same_order_minus_what_they_have_seen() -> None:
    metrics = measure(checkerboard(), [case(0, 1, wanted=[3])], popularity=True)
    assert metrics["ndcg@10"] == pytest.approx(1 / math.log2(3))  # behind item 2


def test_an_item_that_the_generation_does_not_know_counts_as_missed() -> None:
    known = case(0, wanted=[2])
    metrics = measure(checkerboard(), [Case(known.viewer, (IDS[2], "new-tonight"))])
    assert metrics["recall@10"] == metrics["auc"] == 0.5


def test_ties_share_the_auc() -> None:
    Y = np.ones((4, 1), dtype=np.float32)
    flat = make_generation("g", IDS[:4], Y, np.zeros(4, dtype=np.float32), FoldInParameters())
    assert measure(flat, [case(0, wanted=[2])])["auc"] == 0.5


HELD = Holdout(T0, 100, advisory=False)


def test_a_model_that_lost_its_taste_is_held_back() -> None:
    cases = [case(1, 3, wanted=[9, 11]) for _ in range(30)]
    judged = evaluate(checkerboard(flat=True), checkerboard(), cases, HELD, 0.1)
    assert judged.decision.verdict == "held_back" and not judged.passed
    assert "worse by more than 10%" in judged.decision.reason
    swapped = evaluate(checkerboard(), checkerboard(flat=True), cases, HELD, 0.1)
    assert swapped.passed and swapped.arms.keys() == {"candidate", "popularity", "in_force"}


@pytest.mark.parametrize(
    ("candidate", "in_force", "advisory", "verdict"),
    [
        (0.10, None, False, "passed"),
        (0.10, 0.11, False, "passed"),  # within the margin of a tenth
        (0.10, 0.12, False, "held_back"),
        (0.10, 0.12, True, "passed"),  # the one in force has seen the answers
        (0.0, None, False, "held_back"),
        (0.0, 0.0, True, "held_back"),
        (math.nan, None, False, "held_back"),
    ],
)
def test_the_gate(candidate: float, in_force: float | None, advisory: bool, verdict: str) -> None:
    arms = {"candidate": {"ndcg@10": candidate}}
    if in_force is not None:
        arms["in_force"] = {"ndcg@10": in_force}
    assert decide(arms, 100, 0.1, advisory=advisory).verdict == verdict


def test_too_few_viewers_judge_nothing_and_popularity_only_warns() -> None:
    assert decide({"candidate": {"ndcg@10": 0.0}}, 3, 0.1, advisory=False).verdict == "unchecked"
    assert popularity_warning({"candidate": {"ndcg@10": 0.1}, "popularity": {"ndcg@10": 0.2}}, 0.1)
    assert not popularity_warning({"candidate": {"ndcg@10": 0.19}, "popularity": {"ndcg@10": 0.2}}, 0.1)


def test_plays_are_held_out_from_where_the_generation_in_force_ends(tmp_path: Path) -> None:
    plays = [play_event(f"v{n % 50}", n % 30, n) for n in range(2 * MIN_FRESH_PLAYS)]
    lake = put(Lake(tmp_path), plays)
    assert choose_holdout(lake, 0.75, None) == Holdout(T0 + 100_000, 300, advisory=False)
    known_ms = T0 + 150_000
    assert choose_holdout(lake, 0.75, known_ms) == Holdout(known_ms + 1, 249, advisory=False)
    trained_today = T0 + 300_000
    assert choose_holdout(lake, 0.75, trained_today) == Holdout(T0 + 100_000, 300, advisory=True)
    assert choose_holdout(Lake(tmp_path / "none"), 0.05, None) is None


def test_a_case_asks_for_new_liked_items_of_viewers_with_a_past(tmp_path: Path) -> None:
    events = [
        play_event("ana", 1, 0),
        play_event("ana", 1, 100),  # seen before the cut: not asked for
        play_event("ana", 2, 101),
        play_event("ana", 3, 102, share=0.01, kind=play_event("x", 1, 0).kind.START),  # only looked in
        play_event("new", 2, 103),  # no past
    ]
    cases = read_cases(put(Lake(tmp_path), events), Limits(), T0 + 50_000)
    assert [(list(c.viewer.item_ids), c.wanted) for c in cases] == [(["tt0000001"], ("tt0000002",))]
