"""When a night folds the lake's plays in though nobody asked for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from batch.lake import Lake
from batch.report import NightlyReport
from batch.seeding import NOTE, Seeding, read_note, why_seed, write_note
from contracts.errors import DataError
from viewers.store import Marker

STREAM = "playback@1"


def why(
    noted: Seeding | None = None,
    seeded: dict[int, int] | None = None,
    markers: dict[int, Marker | None] | None = None,
    older_logs: tuple[str, ...] = (),
) -> str:
    return why_seed(noted, seeded or {}, markers or {}, older_logs)


def test_a_store_that_was_never_given_anything_and_lacks_nothing_is_left_alone() -> None:
    assert why(markers={0: Marker(50, 0, applied=50), 1: None}) == ""


def test_a_store_that_lost_what_the_lake_had_given_it_is_given_it_again() -> None:
    noted = Seeding(STREAM, {0: 10, 1: 20, 2: 0})
    assert why(noted, {0: 10, 1: 20}) == ""
    assert why(noted, {0: 30, 1: 20}) == ""
    assert "partitions 1" in why(noted, {0: 10, 1: 19})
    assert "partitions 0, 1" in why(noted)


def test_after_a_raised_stream_epoch_the_store_is_asked_once_whether_it_still_has_the_plays_of_the_older_log() -> None:
    assert "playback@0" in why(older_logs=("playback@0",))
    assert why(seeded={0: 3}, older_logs=("playback@0",)) == ""


def test_a_declared_gap_is_filled_from_the_lake_once() -> None:
    gap = {0: Marker(90, 0, applied=20, absent=70, gap_end=70), 1: Marker(5, 0, applied=5)}
    assert "retention deleted records of partitions 0 " in why(markers=gap)
    assert "partitions 0 " in why(seeded={0: 69}, markers=gap)
    assert why(seeded={0: 70}, markers=gap) == ""


def test_control_records_are_no_gap() -> None:
    assert why(markers={0: Marker(90, 0, applied=60, absent=30)}) == ""


def test_many_partitions_are_not_all_named() -> None:
    told = why(Seeding(STREAM, dict.fromkeys(range(25), 1)))
    assert told.endswith("8, 9 and 15 more")


def test_a_note_is_read_back_and_one_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    assert read_note(lake, STREAM) is None
    write_note(lake, Seeding(STREAM, {0: 7, 11: 0}))
    assert read_note(lake, STREAM) == Seeding(STREAM, {0: 7, 11: 0})
    assert read_note(lake, "playback@2") is None
    (tmp_path / NOTE).write_text('{"stream": "playback@1", "cutoffs": [7]}')
    with pytest.raises(DataError, match=r"seeded\.json.*remove it and run: nearline nightly --seed"):
        read_note(lake, STREAM)


def test_a_nights_summary_says_why_the_lake_was_folded_in() -> None:
    assert (
        "seeded      every play of the lake was folded in: because"
        in NightlyReport("p", "", seeded="because").summary()
    )
    assert "seeded" not in NightlyReport("p", "").summary()
