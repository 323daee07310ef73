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
from tests.worlds import make_generation, play_event, write_generation_folder
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
