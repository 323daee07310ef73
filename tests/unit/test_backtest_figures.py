"""From answers to figures, on worlds small enough to count by hand; and the tables of plays that are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.backtest.intervals import resample, tabulate
from batch.backtest.measures import circumstances, coverage, diversity, measure, occurrences
from batch.backtest.plays import read_plays
from batch.backtest.refits import Night
from batch.backtest.replay import Answers
from contracts.errors import DataError
from tests.unit.test_backtest import make_plays
from tests.worlds import T0

NOBODY = [-1] * 10


def answers(ranks: Sequence[int], tops: Sequence[Sequence[int]]) -> Answers:
    filled = [[*top, *NOBODY][:10] for top in tops]
    return Answers(np.array(ranks, np.int32), np.array(filled, np.int32))


# Measures


def test_the_measures_of_a_place() -> None:
    plays = make_plays([("a", "x", T0)] * 2 + [("b", f"y{n}", T0 + 1) for n in range(4)])
    nights = [Night(T0 + 1, 2, 2, 6)]
    found = measure(plays, nights, answers([1, 3, 11, 0], [[0], [0], [0], []]))
    assert found["hr@10"].tolist() == [1, 1, 0, 0]
    assert found["hr@50"].tolist() == [1, 1, 1, 0]
    assert found["ndcg@10"].tolist() == [1, 0.5, 0, 0]
    assert found["mrr"].tolist() == pytest.approx([1, 1 / 3, 1 / 11, 0])
    assert found["novelty"][:3].tolist() == [0, 0, 0]  # x is all that was ever played
    assert np.isnan(found["novelty"][3])
    assert "diversity" not in found  # no topics


def test_novelty_is_the_information_of_an_item_by_what_was_known_at_the_refit() -> None:
    plays = make_plays([("a", "x", T0)] * 3 + [("a", "y", T0 + 1)] * 2)
    nights = [Night(T0 + 1, 3, 3, 4), Night(T0 + 2, 4, 4, 5)]
    found = measure(plays, nights, answers([0, 0], [[0, 1], [1]]))["novelty"]
    assert found.tolist() == pytest.approx([(0 + np.log2(4 / 1)) / 2, np.log2(5 / 2)])


def test_diversity_is_the_mean_distance_of_pairs_whose_topics_are_known() -> None:
    topics = np.array([[0b11, 0], [0b01, 0], [0, 1], [0, 0]], np.uint64)
    top = answers([0] * 4, [[0, 1], [0, 1, 2], [0, 0], [0, 3]]).top
    told = diversity(topics, top)
    assert told[:3].tolist() == pytest.approx([0.5, (0.5 + 1 + 1) / 3, 0])
    assert np.isnan(told[3])


def test_coverage_counts_each_item_once_and_knows_what_hangs_on_one_viewer() -> None:
    top = answers([0] * 3, [[0, 1], [1, 2], [1]]).top
    value, error = coverage(np.array([5, 9, 9], np.int32), top, catalogue=10)
    assert value == 0.3
    assert error == pytest.approx(0)  # each of the two viewers alone was shown one item
    _, lopsided = coverage(np.array([5, 9, 9], np.int32), answers([0] * 3, [[0, 1, 3], [1], [1]]).top, catalogue=10)
    assert lopsided == pytest.approx(np.sqrt(1 / 2 * (0.1**2 + 0.1**2)))


def test_earlier_occurrences_are_counted() -> None:
    assert occurrences(np.array([3, 1, 3, 3, 1, 0], np.int32)).tolist() == [0, 0, 1, 2, 1, 0]
    assert occurrences(np.zeros(0, np.int32)).tolist() == []


def test_segments_go_by_the_viewers_plays_and_by_whether_the_item_was_known() -> None:
    known = [("a", "x", T0)] * 4
    asked = [("a", "new", T0 + 1), ("a", "x", T0 + 2), ("b", "x", T0 + 3), *[("b", "new", T0 + 4)] * 4]
    plays = make_plays([*known, *asked])
    nights = [Night(T0 + 1, 4, 4, 11)]
    table = tabulate(plays, nights, circumstances(plays, nights), {"one": answers([1] + [0] * 6, [[0]] * 7)}, 1)
    assert table["one"].keys() == {"all", "0", "1-4", "5-19", "known items", "new items"}
    assert table["one"]["all"]["hr@10"][0] == pytest.approx(1 / 7)
    assert table["one"]["1-4"]["hr@10"][0] == pytest.approx(1 / 5)  # a's fifth play, and b's from the second on
    assert table["one"]["new items"]["hr@10"][0] == 0  # from the fifth play of it on: one, by b
    assert circumstances(plays, nights).item_plays_so_far.tolist() == [0, 4, 5, 1, 2, 3, 4]


# Intervals


def test_the_bootstrap_draws_viewers() -> None:
    """Ten viewers of equal plays, half of them always hit: the mean of ten coins."""
    sums = np.array([[5.0]] * 5 + [[0.0]] * 5)
    drawn = resample(sums, np.full((10, 1), 5.0), seed=1)[:, 0]
    assert set(np.round(drawn * 10, 9)) <= set(range(11))
    assert drawn.mean() == pytest.approx(0.5, abs=0.02)
    assert drawn.std() == pytest.approx(np.sqrt(0.25 / 10), rel=0.1)
    assert (resample(sums, np.full((10, 1), 5.0), seed=1)[:, 0] == drawn).all()
    assert (resample(sums, np.full((10, 1), 5.0), seed=2)[:, 0] != drawn).any()


def test_the_difference_of_arms_that_answer_alike_is_nothing_whoever_is_drawn() -> None:
    rng = np.random.default_rng(3)
    rows = [(f"v{n % 17}", f"i{n % 5}", T0 + n) for n in range(300)]
    plays, nights = make_plays(rows), [Night(T0 + 100, 100, 100, 300)]
    ranks = rng.integers(0, 30, 200).tolist()
    better = [1 if rank == 2 else rank for rank in ranks]  # at 10 it makes no difference
    tops = rng.integers(0, 5, (200, 10)).tolist()
    table = tabulate(
        plays, nights, circumstances(plays, nights), {"a": answers(ranks, tops), "b": answers(better, tops)}, 1
    )
    assert table["b minus a"]["all"]["hr@10"] == (0, 0, 0)
    value, low, high = table["b minus a"]["all"]["mrr"]
    assert 0 < low < value < high
    assert high - low < table["a"]["all"]["mrr"][2] - table["a"]["all"]["mrr"][1]  # pairing pays


# Tables of plays


def write(folder: Path, items: dict[str, Any] | None = None, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), folder / "events.parquet")
    if items is not None:
        pq.write_table(pa.table(items), folder / "items.parquet")
    return folder


GOOD: dict[str, Any] = {"user_id": [7, 9, 7], "item_id": ["x", "y", "x"], "timestamp": [T0, T0, T0 + 5]}


def test_plays_are_read_with_ids_numbered_by_first_appearance(tmp_path: Path) -> None:
    titles = {"item_id": ["y", "z", "x"], "genres": ["Drama|War", "War", "(no genres listed)"]}
    plays = read_plays(write(tmp_path, titles, **GOOD, value=[1.0, None, 2.0]))
    assert plays.viewer.tolist() == [0, 1, 0] and plays.viewer_ids == ("7", "9")
    assert plays.item.tolist() == [0, 1, 0] and plays.item_ids == ("x", "y")
    assert plays.time_ms.tolist() == [T0, T0, T0 + 5]
    assert plays.topics.tolist() == [[0], [0b11]] and plays.catalogue == 3
    listed = {"item_id": ["x"], "topics": [["Noir"]]}
    plays = read_plays(write(tmp_path, listed, **GOOD | {"timestamp": pa.array(GOOD["timestamp"], pa.timestamp("ms"))}))
    assert plays.topics.tolist() == [[1], [0]] and plays.time_ms.tolist() == [T0, T0, T0 + 5]
    assert plays.first(1).item_ids == ("x",) and plays.first(0).viewer_ids == ()
    (tmp_path / "items.parquet").unlink()
    assert read_plays(tmp_path / "events.parquet").topics.shape == (2, 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"timestamp": None}, r"no column timestamp \(it has user_id, item_id\)"),
        ({"user_id": None, "item_id": None}, "no column user_id, item_id"),
        ({"timestamp": [T0, T0 + 5, T0]}, "row 3 is 5 ms before the row ahead of it; sort the table"),
        ({"timestamp": [T0 // 1000] * 3}, "row 1: timestamp 1700000000 is not between 1980 and 2100 .* seconds"),
        ({"timestamp": [T0, T0, T0 * 1000]}, "row 3: timestamp 1700000000000000 is not between"),
        ({"timestamp": [T0, -1, T0]}, "row 2: timestamp -1 is not between"),
        ({"timestamp": [T0, None, T0]}, "row 2: timestamp is empty"),
        ({"timestamp": [1.5, 2.5, 3.5]}, "column timestamp is double; it must be whole milliseconds"),
        ({"user_id": [1.0, 2.0, 3.0]}, "column user_id is double; it must be text or whole numbers"),
        ({"item_id": ["x", None, "y"]}, "row 2: item_id is empty"),
        ({"item_id": ["x", "a b", "y"]}, "row 2: item_id 'a b' is no id"),
        ({"user_id": [], "item_id": [], "timestamp": []}, "holds no play"),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused_with_the_place(tmp_path: Path, changes: Any, said: str) -> None:
    columns = {name: column for name, column in (GOOD | changes).items() if column is not None}
    with pytest.raises(DataError, match=f"events.parquet: .*{said}"):
        read_plays(write(tmp_path, **columns))


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"events\.parquet: no such file; name a folder"):
        read_plays(tmp_path)
    (tmp_path / "events.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"events\.parquet: cannot be read"):
        read_plays(tmp_path)
