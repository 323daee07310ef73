"""What came of a share, from a lake whose impressions and plays are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

import nearline
from batch.lake import EVENTS_SCHEMA, IMPRESSIONS_SCHEMA, Lake, write_parquet
from batch.outcome import CANDIDATE, OTHERS, Outcome, compare_arms, find_outcome
from contracts.errors import UserError
from runtime.settings import Settings
from tests.worlds import T0

HOUR_MS = 3_600_000


class World:
    """A lake that is told what was shown and played."""

    def __init__(self, folder: Path) -> None:
        self.lake = Lake(folder)
        self.impressions: list[dict[str, object]] = []
        self.events: list[dict[str, object]] = []

    def show(self, viewer: str, row_id: str, generation_id: str, hour: float = 0, *, default: bool = False) -> None:
        told = {
            "impression_id": f"i{len(self.impressions)}",
            "served_at_ms": T0 + int(hour * HOUR_MS),
            "item_ids": ["a"],
        }
        own = {"viewer": viewer, "row_id": row_id, "generation_id": generation_id, "default_row": default}
        self.impressions.append(self.place(len(self.impressions)) | told | own)

    def play(
        self, viewer: str, row_id: str | None, *, kind: str = "complete", play: int = 0, watched: int = 100
    ) -> None:
        told = {
            "event_id": f"e{len(self.events)}",
            "kind": kind,
            "event_time_ms": T0 + play,
            "play_started_at_ms": T0 + play,
        }
        of = {"item_id": f"a{play}", "play_id": f"p{play}", "watched_ms": watched, "duration_ms": 100}
        self.events.append(self.place(len(self.events)) | told | of | {"viewer": viewer, "row_id": row_id})

    @staticmethod
    def place(offset: int) -> dict[str, object]:
        return {"epoch": 1, "partition": 0, "offset": offset, "timestamp_ms": T0}

    def compare(self, candidate: str = "g2") -> Outcome:
        for kind, rows, schema in (
            ("impressions", self.impressions, IMPRESSIONS_SCHEMA),
            ("events", self.events, EVENTS_SCHEMA),
        ):
            for half, part in enumerate((rows[::2], rows[1::2])):  # a row's impressions, a play's events, in two files
                if part:
                    path = self.lake.path / kind / "dt=2026-01-01" / "hour=00" / f"{half}.parquet"
                    write_parquet(path, pa.Table.from_pylist(part, schema=schema))
        return compare_arms(self.lake, candidate)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_row_counts_once_for_each_viewer_and_so_does_a_play_that_came_from_it(world: World) -> None:
    for hour in range(4):
        world.show("ana", "r1", "g2", hour)
    world.show("ana", "r2", "g2", 1)
    world.show("ben", "r1", "g1", 1)  # equal states have equal ids: it is ben's all the same
    world.show("cid", "r3", "g1", 2)
    for kind in ("start", "progress", "complete"):
        world.play("ana", "r1", kind=kind)
    world.play("ana", "r1", play=1)
    world.play("cid", "r3", kind="skip", watched=1)  # says nothing good
    world.play("cid", None, play=2)  # came from elsewhere
    world.play("ben", "nowhere", play=3)  # of a row that nobody was shown
    found = world.compare()
    candidate, others = found.arms[CANDIDATE], found.arms[OTHERS]
    assert (candidate.generations, others.generations) == (("g2",), ("g1",))
    assert (candidate.viewers, candidate.rows, candidate.hits, candidate.plays) == (1, 2, 1, 2)
    assert (others.viewers, others.rows, others.hits, others.plays) == (2, 2, 0, 0)
    values = {name: value for name, (value, _, _) in candidate.measures.items()}
    assert values == {"hit_rate": 0.5, "plays_per_viewer": 2.0, "viewers_with_a_play": 1.0}
    assert {name: value for name, (value, _, _) in found.difference.items()} == values
    assert (found.from_ms, found.to_ms) == (T0, T0 + 2 * HOUR_MS)


def test_default_rows_and_rows_of_other_days_are_nobodys_arm(world: World) -> None:
    world.show("ana", "r1", "g2", 10)
    world.show("ana", "r2", "g2", 12)
    world.show("ben", "before", "g1", 9)
    world.show("ben", "meanwhile", "g1", 11)
    world.show("cid", "meanwhile too", "g3", 12)
    world.show("ben", "after", "g1", 13)
    world.show("dan", "default-g1", "g1", 11, default=True)
    others = world.compare().arms[OTHERS]
    assert (others.generations, others.viewers, others.rows) == (("g1", "g3"), 2, 2)


def test_what_everybody_was_shown_after_the_share_is_not_compared(world: World) -> None:
    world.show("ana", "r1", "g2", 10)
    world.show("ben", "r2", "g1", 11)
    world.show("ana", "r3", "g2", 11)
    for hour, viewer in ((20, "ana"), (21, "ben"), (30, "cid")):
        world.show(viewer, f"everybody's-{hour}", "g2", hour)
    found = world.compare()
    assert (found.arms[CANDIDATE].rows, found.arms[CANDIDATE].viewers, found.arms[OTHERS].rows) == (2, 1, 1)
    assert found.to_ms == T0 + 11 * HOUR_MS


def test_who_was_erased_is_left_out(world: World) -> None:
    for viewer in ("ana", "ben", "cid"):
        world.show(viewer, f"r-{viewer}", "g1" if viewer == "cid" else "g2")
        world.play(viewer, f"r-{viewer}")
    world.lake.ledger.append({"ben": (T0 + HOUR_MS) // 1000})
    assert world.compare().arms[CANDIDATE].viewers == 1


def test_an_interval_tells_an_effect_from_none(world: World) -> None:
    rng = np.random.default_rng(1)
    for number in range(600):
        generation_id = "g2" if number % 2 else "g1"
        for row in range(4):
            world.show(f"v{number}", f"r{number}-{row}", generation_id, row)
            if rng.random() < (0.3 if generation_id == "g2" else 0.2):
                world.play(f"v{number}", f"r{number}-{row}", play=row)
    found = world.compare()
    value, low, high = found.difference["hit_rate"]
    assert 0 < low < value < high and value == pytest.approx(0.1, abs=0.04)
    world.events = [one for one in world.events if rng.random() < (2 / 3 if int(str(one["viewer"])[1:]) % 2 else 1)]
    value, low, high = world.compare().difference["hit_rate"]
    assert low < 0 < high


def test_the_verb_says_who_was_compared_with_whom(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for viewer, generation_id in (("ana", "g2"), ("ben", "g1"), ("cid", "g1")):
        world.show(viewer, "r1", generation_id)
    world.play("ben", "r1")
    found = world.compare()
    monkeypatch.setenv("NEARLINE_LAKE_PATH", str(world.lake.path))

    def typed(*more: str) -> str:
        done = CliRunner().invoke(nearline.app, ["generations", "outcome", "g2", *more], env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "g2 against g1, shown from " in typed() and "0.5000" in typed()
    answered = json.loads(typed("--json"))
    assert answered["arms"]["others"]["hits"] == 1
    assert answered["difference"]["hit_rate"] == list(found.difference["hit_rate"])


def test_what_nobody_was_shown_cannot_be_compared(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no row of g2"):
        world.compare()
    world.show("ana", "r1", "g2")
    with pytest.raises(UserError, match="nothing to compare with"):
        world.compare()
    with pytest.raises(UserError, match="nobody sees a candidate now"):
        find_outcome(Settings(generations_path=str(tmp_path / "none"), lake_path=str(tmp_path)), None)
