"""The sequence model: known answers, what is not known adds nothing, the compiled twin, training, files."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest

from batch.ranker import train_ranker
from batch.sequence import FEWEST, train_sequence
from contracts.codec import Codec
from contracts.errors import GenerationError
from embeddings import kernel_sequence as kernel
from embeddings.added import Added, extended
from embeddings.files import load_generation
from embeddings.generation import FoldInParameters
from embeddings.sequence import (
    BINS,
    COLUMNS,
    FACTORS,
    GAPS_S,
    HIDDEN,
    PLACES,
    POOLS,
    SequenceNet,
    make_network,
    play_parts,
    scores,
    viewer_vector,
)
from embeddings.table_files import RANKER, RULE_2, SEQUENCE, SEQUENCE_ITEMS, table_bytes
from embeddings.tables import BASE, FEATURES
from ranking import features
from ranking.rows import RankingInput, rank, rank_candidates
from sandbox.made_up import make_sequence
from tests.unit.test_features import GENERATION, TABLES, N, lists, replaced, viewer, weighing
from tests.unit.test_ranker import ITEMS, chains, log_of, no_factors
from tests.worlds import T0, make_generation, make_tables, write_generation_folder
from viewers.rewriter import Rewriter
from viewers.state import COMPLETED, Limits, Play, ViewerState, merge

NET = make_sequence(N)
ROWS_ = np.array([7, 8, 10, 30], np.int64)
AGES_MS = np.array([0, 500, 3_600_000, 10**10], np.int64)


def plain(items: dict[int, tuple[float, float, float]]) -> SequenceNet:
    """Item → e, o, b, in one dimension; a play counts half as much as the next newer one, and a tenth after a day."""
    numbers = np.zeros((N, COLUMNS), np.float32)
    for row, (e, o, b) in items.items():
        numbers[row, [0, FACTORS, 2 * FACTORS]] = e, o, b
    w = np.tile((0.5 ** np.arange(PLACES))[None, :, None], (POOLS, 1, FACTORS))
    v = np.ones((POOLS, BINS, FACTORS))
    v[:, GAPS_S.index(86_400) + 1 :] = 0.1
    zeros = [np.zeros(shape) for shape in ((HIDDEN, POOLS * FACTORS), (HIDDEN,), (HIDDEN, FACTORS))]
    return SequenceNet(numbers, make_network(*(part.astype(np.float32) for part in (w, v, *zeros))))


def state_of(*items: int, apart_ms: int = 60_000) -> ViewerState:
    plays = [
        Play(T0 - place * apart_ms, 1000 - place, GENERATION.item_ids[item], 255, COMPLETED)
        for place, item in enumerate(items)
    ]
    return merge([ViewerState(plays=tuple(plays))], Limits())


# What it computes


def test_a_play_counts_by_its_place_and_by_how_long_ago_it_was() -> None:
    net = plain({1: (1.0, 0, 0), 2: (4.0, 0, 0)})
    rows, day = np.array([1, 2]), 86_400_000
    assert viewer_vector(net, rows, np.array([0, day - 1]))[0] == pytest.approx((1 + 2) * POOLS**0.5)
    assert viewer_vector(net, rows, np.array([0, day]))[0] == pytest.approx((1 + 0.2) * POOLS**0.5)


def test_scores_are_above_the_mean_and_nothing_where_nothing_is_known() -> None:
    net = plain({1: (1.0, 0, 0), 3: (0, 2.0, 0.5), 4: (0, -2.0, 0.5)})
    u = np.zeros(FACTORS)
    u[0] = 1.5
    assert scores(net, u, np.array([3, 4, 5])).tolist() == [3.0, -3.0, 0.0]
    assert scores(net, u, np.array([5, 6])).tolist() == [0.0, 0.0]


def test_a_play_that_the_model_does_not_know_adds_nothing() -> None:
    assert not NET.known[9]
    found = viewer_vector(NET, np.array([7, 9]), np.array([0, 5]))
    assert found == pytest.approx(viewer_vector(NET, np.array([7]), np.array([0])))


def test_what_the_plays_add_and_the_units_own_bias_are_the_whole() -> None:
    u, o = viewer_vector(NET, ROWS_, AGES_MS), NET.items[20, FACTORS : 2 * FACTORS].astype(float)
    sums = play_parts(NET, ROWS_, AGES_MS, 20).sum()
    without_bias = make_network(NET.places, NET.gaps, NET.W1_T, np.zeros(HIDDEN, np.float32), NET.W2)
    no_bias = SequenceNet(NET.items, without_bias)
    assert play_parts(no_bias, ROWS_, AGES_MS, 20).sum() == pytest.approx(o @ viewer_vector(no_bias, ROWS_, AGES_MS))
    assert sums != pytest.approx(o @ u)  # the bias of the units is of no play


def test_the_compiled_twin_computes_the_same() -> None:
    net, look, rows = kernel.make_net(NET), kernel.make_look(), np.arange(40, dtype=np.int32)
    kernel.look_back(net, ROWS_.astype(np.int32), AGES_MS, len(ROWS_), look)
    u = viewer_vector(NET, ROWS_, AGES_MS)
    assert look.u == pytest.approx(u, rel=1e-5, abs=1e-5)
    found = np.empty(40)
    kernel.score_next(net, look.u, rows, 40, found)
    assert found == pytest.approx(scores(NET, u, rows.astype(np.int64)), rel=1e-5, abs=1e-5)
    for row in (9, 20):
        kernel.play_parts(net, len(ROWS_), row, look)
        expected = features.sequence_contributions(
            np.ones(len(BASE)), dataclasses.replace(TABLES, sequence=NET), _history(), row
        )
        assert look.parts[: len(ROWS_)] == pytest.approx(expected, rel=1e-4)


def _history() -> features.History:
    return features.History(ROWS_, AGES_MS, np.arange(len(ROWS_)))


# Rows


def test_a_row_that_weighs_the_sequence_alone_says_so_and_by_which_plays() -> None:
    net = plain({7: (3.0, 0, 0), 8: (1.0, 0, 0), 20: (0, 2.0, 0), 30: (0, 1.0, 0)})
    follows = lists(i7={20: 1.0, 30: 1.0})  # so that they are candidates
    generation = weighing(dataclasses.replace(TABLES, cowatch=follows, sequence=net), sequence=2.0)
    (ranked,) = rank(generation, [viewer(7, 8)], T0)
    ids, root = generation.item_ids, POOLS**0.5
    first = ranked.entries[0]
    assert (first.item_id, first.source) == (ids[20], "sequence")
    assert [(r.item_id, r.contribution) for r in first.reasons] == [
        (ids[7], pytest.approx(2 * 2 * 3 * root)),
        (ids[8], pytest.approx(2 * 2 * 0.5 * root)),
    ]


def test_history_is_what_was_liked_and_is_known_newest_first() -> None:
    ids = [GENERATION.item_ids[5], "unknown", GENERATION.item_ids[6], GENERATION.item_ids[7]]
    found = features.history(GENERATION, ids, [1.0, 1.0, -0.3, 0.6], [5_000, 4_000, 3_000, 1_000])
    assert (found.rows.tolist(), found.ages_ms.tolist(), found.places.tolist()) == ([5, 7], [0, 4_000], [0, 2])
    long = [GENERATION.item_ids[i] for i in range(PLACES + 5)]
    assert len(features.history(GENERATION, long, [1.0] * len(long), ()).rows) == PLACES


def test_compiled_rows_of_the_sequence_are_those_of_the_twin() -> None:
    codec, rng = Codec.load(), np.random.default_rng(5)
    generation = weighing(dataclasses.replace(TABLES, sequence=NET), sequence=1.0, taste=1e-6)
    rewriter = Rewriter(generation, 1, codec.encode_row, Limits())
    for apart_ms in (100, 90_000, 10**8):
        state = state_of(*rng.choice(N, 45, replace=False).tolist(), apart_ms=apart_ms)
        row = codec.decode_row(rewriter.rewrite(state, computed_at_ms=T0).row_bytes)
        (ranked,) = rewriter.rank([state], computed_at_ms=T0)
        assert ranked is not None
        assert [e.item_id for e in row.entries[:10]] == [e.item_id for e in ranked.entries[:10]]
        assert {e.source for e in row.entries[:10]} == {"sequence"}
        for ours, theirs in zip(row.entries[:10], ranked.entries[:10], strict=True):
            assert ours.score == pytest.approx(theirs.score, rel=2**-9)
            assert [r.item_id for r in ours.reasons] == [r.item_id for r in theirs.reasons]
            assert [r.contribution for r in ours.reasons] == pytest.approx(
                [r.contribution for r in theirs.reasons], rel=2**-9
            )
        assert any(e.reasons for e in row.entries[:10])


def test_without_plays_it_says_nothing() -> None:
    nobody = RankingInput([], [], [], frozenset(), np.zeros(0, dtype=np.int64))
    (found,) = rank_candidates(GENERATION, [nobody], T0)
    assert not found.features[:, features.SEQUENCE].any()


def test_items_that_came_since_have_no_score_and_shift_nobody_elses() -> None:
    none = np.zeros(1, np.int64)
    new = Added(
        ("new",), np.ones((1, 16), np.float32), np.ones(1, np.float32), none, none + 2**60, none.astype(np.uint8)
    )
    longer = extended(GENERATION, new)
    assert longer.tables is not None and longer.tables.sequence is not None
    net = longer.tables.sequence
    assert not net.known[N] and (net.items[:N] == TABLES.sequence.items).all()  # type: ignore[union-attr]


# Training


def test_histories_hold_each_liked_title_once_newest_first_with_their_gaps() -> None:
    log = log_of(
        [(0, 0, 0), (0, 1, 400), (0, 0, 86_500_000), (0, 2, 86_500_900), (0, 3, 86_501_000), (1, 1, 86_501_001)]
    )
    liked = np.array([True, True, True, False, True, True])
    H, G = np.full((2, PLACES), 99, np.int32), np.full((2, PLACES), 99, np.uint8)
    kernel.histories(np.array([4, 5]), log.previous, log.item, log.time_ms, liked, log.is_first, -1, H, G)
    assert (H[0, :3].tolist(), G[0, :3].tolist()) == ([0, 1, -1], [0, GAPS_S.index(86_400) + 1, 0])
    assert (H[1] == -1).all()


def test_it_learns_what_follows_what() -> None:
    log = chains()
    net = train_sequence(log, 20)
    assert net is not None
    titles, hits = range(ITEMS), 0
    pairs = [(a, b) for a, b in zip(log.item[log.previous], log.item, strict=True)]
    followers = {a: np.bincount([b for x, b in pairs if x == a]).argmax() for a in titles}
    for title, follower in followers.items():
        u = viewer_vector(net, np.array([title]), np.array([0]))
        found = scores(net, u, np.arange(ITEMS))
        found[title] = -np.inf
        hits += follower in np.argsort(-found)[:5]
    assert hits > 0.8 * ITEMS


def test_the_same_plays_give_the_same_model_and_few_give_none() -> None:
    log = chains()
    one, other = train_sequence(log, 1), train_sequence(log, 1)
    assert one is not None and other is not None
    assert (one.items == other.items).all() and (one.network == other.network).all()
    assert train_sequence(log.first(FEWEST), 1) is None
    assert train_sequence(log, 0) is None


def test_training_takes_as_much_memory_for_a_title_as_it_says() -> None:
    log, titles = chains(), 60_000
    large = dataclasses.replace(log, item_ids=[*log.item_ids, *(f"never-{n}" for n in range(titles - ITEMS))])
    train_sequence(log, 1)  # what is loaded once is no title's
    tracemalloc.start()
    try:
        assert train_sequence(large, 1) is not None
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most / titles < 2_600


def test_a_title_that_no_play_taught_about_is_not_known() -> None:
    log = chains()
    longer = dataclasses.replace(log, item_ids=[*log.item_ids, "never played"])
    net = train_sequence(longer, 1)
    assert net is not None
    assert net.known[:ITEMS].all() and not net.known[ITEMS]


def test_the_ranker_learns_on_plays_that_its_sequence_model_has_not_seen() -> None:
    log = chains()
    begin = len(log) - 600
    changed = dataclasses.replace(log, item=log.item.copy())
    changed.item[begin:] = changed.item[begin:][::-1]

    def trained(of):
        return train_ranker(of, no_factors(of), FoldInParameters(), plays=6000, max_plays=200, sequence_epochs=1)

    ours, theirs = trained(log), trained(changed)
    assert ours.sequence is not None and theirs.sequence is not None
    assert (ours.sequence.items == theirs.sequence.items).all()
    assert ours.weights is not None and ours.weights[FEATURES.index("sequence")] != 0


# Files


def test_it_comes_back_from_its_files(tmp_path) -> None:
    write_generation_folder(tmp_path, GENERATION)
    read = load_generation(tmp_path, "g1").tables
    assert read is not None and read.sequence is not None and TABLES.sequence is not None
    assert (read.sequence.items == TABLES.sequence.items).all()
    assert (read.sequence.network == TABLES.sequence.network).all()


def test_a_generation_without_one_serves_without(tmp_path) -> None:
    tables = dataclasses.replace(TABLES, sequence=None)
    write_generation_folder(tmp_path, dataclasses.replace(GENERATION, tables=tables))
    loaded = load_generation(tmp_path, "g1")
    assert loaded.tables is not None and loaded.tables.sequence is None
    (found,) = rank_candidates(loaded, [viewer(7, 8)], T0)
    assert not found.features[:, features.SEQUENCE].any()


def test_a_ranker_of_the_rule_before_weighs_what_it_did_and_no_sequence(tmp_path) -> None:
    write_generation_folder(tmp_path, GENERATION)
    before = {name: 0.5 for name in FEATURES if not name.startswith("sequence")}
    replaced(tmp_path, RANKER, json.dumps({"rule": RULE_2, "weights": before}).encode())
    read = load_generation(tmp_path, "g1").tables
    assert read is not None
    assert dict(zip(FEATURES, read.weights.tolist(), strict=True)) == before | {
        name: 0.0 for name in FEATURES if name.startswith("sequence")
    }


BAD = {
    "one of two is missing": (SEQUENCE, None),
    "the other is missing": (SEQUENCE_ITEMS, None),
    "of other items": (SEQUENCE_ITEMS, lambda: table_bytes(make_tables(N - 1))[SEQUENCE_ITEMS]),
    "not finite": (
        SEQUENCE,
        lambda: table_bytes(
            dataclasses.replace(TABLES, sequence=SequenceNet(NET.items, np.full_like(NET.network, np.nan)))
        )[SEQUENCE],
    ),
    "not numbers": (SEQUENCE, lambda: b"PK"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_that_is_wrong_is_refused(tmp_path, case: str) -> None:
    write_generation_folder(tmp_path, GENERATION)
    name, make = BAD[case]
    replaced(tmp_path, name, None if make is None else make())
    with pytest.raises(GenerationError, match="publish the generation again"):
        load_generation(tmp_path, "g1")


def test_one_of_other_items_does_not_fit_a_generation() -> None:
    with pytest.raises(GenerationError, match="of other items"):
        make_generation(N, 16).with_tables(dataclasses.replace(TABLES, sequence=make_sequence(N - 1)))
