"""The verbs of a rollout, as they are typed, on a real store."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import nearline
from runtime.settings import load_settings
from sandbox.servers import ValkeyServer
from tests.worlds import T0, make_generation, play_event, write_generation_folder
from viewers.packing import pack
from viewers.redis_store import open_store
from viewers.state import state_of
from viewers.store import ViewerWrite


@pytest.fixture
def typed(valkey: ValkeyServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Types a verb, with two published generations and no more in the environment."""
    monkeypatch.setenv("NEARLINE_STORE__URL", valkey.url)
    monkeypatch.setenv("NEARLINE_STORE__NAMESPACE", namespace)
    monkeypatch.setenv("NEARLINE_GENERATIONS_PATH", str(tmp_path / "generations"))
    monkeypatch.setenv("NEARLINE_LAKE_PATH", str(tmp_path / "lake"))
    for number, name in enumerate(("g1", "g2"), 1):
        write_generation_folder(tmp_path / "generations", make_generation(seed=number, generation_id=name))

    def type_(*arguments: str) -> Result:
        return CliRunner().invoke(nearline.app, list(arguments), env={"COLUMNS": "200"})

    return type_


async def keep_plays(viewers: int) -> None:
    """Viewers with two plays and no row."""
    settings = load_settings()
    store = open_store(settings.store, settings.keys)
    await store.connect()
    try:
        for i in range(viewers):
            state = state_of(play_event(f"v{i}", i, i), timestamp_ms=10**12)
            await store.write_viewers([ViewerWrite(f"v{i}", b"", b"token--1", 1, pack(state), b"", b"")])
    finally:
        await store.close()


def test_compare_prints_answers_programs_and_writes_a_page(typed, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    asyncio.run(keep_plays(8))
    page = tmp_path / "review.html"
    told = typed("generations", "compare", "g1", "g2", "--viewers", "v1, v2", "--html", str(page))
    assert told.exit_code == 0, told.output
    assert "v2, who watched Title of tt0000002" in told.output and "rank-biased overlap" in told.output
    assert page.read_text().count("<h2>v") == 2
    answered = json.loads(typed("generations", "compare", "g1", "g2", "--draw", "6", "--json").output)
    assert (len(answered["viewers"]), answered["a"], answered["b"]) == (6, "g1", "g2")


def test_what_compare_cannot_do_is_said_before_anything_is_computed(typed, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    nowhere = typed("generations", "compare", "g1", "g2", "--html", str(tmp_path / "no" / "page.html"))
    assert "there is no folder" in str(nowhere.exception)
    unknown = typed("generations", "compare", "g1", "g2", "--viewers", "nobody")
    assert "nothing is known of nobody" in str(unknown.exception)


def test_freezing_and_letting_go_are_told_and_can_be_repeated(typed) -> None:  # type: ignore[no-untyped-def]
    asyncio.run(keep_plays(3))
    told = typed("freeze", "--reason", "odd rows")
    assert told.exit_code == 0 and "rows are frozen since" in told.output and "(odd rows)" in told.output
    again = json.loads(typed("freeze", "--json").output)
    assert (again["already"], again["reason"]) == (True, "odd rows")
    back = json.loads(typed("unfreeze", "--json").output)
    assert (back["was_frozen"], back["rebuilt"]) == (True, None)  # no generation is in force
    assert "they were not frozen" in typed("unfreeze").output
    assert typed("generations", "activate", "g1").exit_code == 0
    typed("freeze")
    assert "g1 is in force as activation 2, 3 rows rewritten" in typed("unfreeze").output
    assert "--reason" in str(typed("freeze", "--reason", "two\nlines").exception)


def test_a_share_is_begun_changed_and_stopped_and_the_list_marks_the_candidate(typed) -> None:  # type: ignore[no-untyped-def]
    asyncio.run(keep_plays(9))
    none = typed("generations", "share", "g2", "--percent", "50")
    assert "no generation is in force" in str(none.exception)
    assert typed("generations", "activate", "g1").exit_code == 0
    told = typed("generations", "share", "g2", "--percent", "50")
    assert "g1 is in force as activation 2; 50 % of the viewers see g2; 9 rows rewritten" in told.output
    assert "candidate for 50 % (activation 2)" in typed("generations", "list").output
    wider = json.loads(typed("generations", "share", "--percent", "75", "--json").stdout)
    assert (wider["activation"], wider["share"]) == (3, {"generation_id": "g2", "percent": 75.0})
    stopped = typed("generations", "share", "--stop")
    assert "g1 is in force as activation 4; nobody sees g2 beside it any more; 9 rows rewritten" in stopped.output
    assert "candidate" not in typed("generations", "list").output
    typed("generations", "share", "g2", "--percent", "0.5")
    back = json.loads(typed("generations", "activate", "g2", "--json").stdout)
    assert (back["replaced"], back["share"], back["ended"]) == ("g1", None, {"generation_id": "g2", "percent": 0.5})


def test_a_rollback_during_a_share_ends_it(typed) -> None:  # type: ignore[no-untyped-def]
    older = make_generation(seed=3, generation_id="g0")
    write_generation_folder(load_settings().generations_path, older, created_at_ms=T0 - 1)
    typed("generations", "activate", "g0")
    typed("generations", "activate", "g1")
    typed("generations", "share", "g2", "--percent", "5")
    back = json.loads(typed("generations", "rollback", "--json").stdout)
    assert (back["generation_id"], back["replaced"], back["ended"]["generation_id"]) == ("g0", "g1", "g2")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "either --percent"),
        (["g2"], "either --percent"),
        (["g2", "--stop"], "either --percent"),
        (["--percent", "5", "--stop"], "either --percent"),
        (["--percent", "5"], "nobody sees a candidate yet"),
        (["--stop"], "nobody sees a candidate"),
        (["g1", "--percent", "5"], "in force for everybody already"),
        (["g2", "--percent", "100"], "nearline generations activate g2"),
        (["g2", "--percent", "0"], "more than 0 and less than 100"),
        (["g9", "--percent", "5"], "never completely published"),
    ],
)
def test_what_a_share_cannot_be_is_said_and_nothing_changes(typed, arguments: list[str], said: str) -> None:  # type: ignore[no-untyped-def]
    typed("generations", "activate", "g1")
    assert said in str(typed("generations", "share", *arguments).exception)
    assert json.loads(typed("generations", "list", "--json").stdout)[0]["activation"] == 1
