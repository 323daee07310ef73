"""Taking viewers who asked to be forgotten out of what was published."""

from __future__ import annotations

from pathlib import Path

import pytest

from batch.forget import scrub, scrub_generations
from batch.lake import Lake
from embeddings import publishing
from embeddings.files import load_users
from embeddings.generations_folder import GenerationsFolder
from embeddings.publishing import write_generation
from embeddings.roots import Root
from tests.unit.test_files import contents, manifest

DAY_MS = 86_400_000


def publish(tmp_path: Path, *, ledger_lines: int) -> GenerationsFolder:
    """A generation of the viewers v1 and v2, made on the second day, that obeyed so many lines of the ledger."""
    write_generation(tmp_path / "g", manifest(created_at_ms=2 * DAY_MS, ledger_lines=ledger_lines), contents())
    return GenerationsFolder(tmp_path / "g")


def test_an_erasure_that_reaches_the_ledger_later_is_obeyed_whatever_its_date(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    lake.ledger.append({"somebody": 5})
    folder = publish(tmp_path, ledger_lines=lake.ledger.lines)
    assert scrub_generations(folder, lake) == ()
    lake.ledger.append({"v1": DAY_MS // 1000})  # a day before the generation was made: its event came after the copy
    assert scrub_generations(folder, lake) == ("g1",)
    users, vectors = load_users(folder.root, "g1")
    assert users == ["~erased~0", "v2"] and not vectors[0].any()


def test_a_generation_that_obeyed_an_erasure_keeps_the_viewer_who_came_back(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    lake.ledger.append({"v1": 3 * DAY_MS // 1000})
    folder = publish(tmp_path, ledger_lines=lake.ledger.lines)
    assert scrub_generations(folder, lake) == ()
    assert load_users(folder.root, "g1")[0] == ["v1", "v2"]


@pytest.mark.parametrize("file", ["manifest.json", "user_factors.npy", "users.parquet", "scrubbed.json"])
def test_a_scrub_that_died_before_it_wrote_a_file_is_ended_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    lake = Lake(tmp_path / "lake")
    folder = publish(tmp_path, ledger_lines=0)
    lake.ledger.append({"v1": 5})
    replace_file = publishing._replace_file

    def dies(root: Root, relative: str, data: bytes) -> None:
        if relative.endswith(file):
            raise KeyboardInterrupt
        replace_file(root, relative, data)

    def dies_noting() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "_replace_file", dies)
        if file == "scrubbed.json":
            patch.setattr(lake, "note_scrubbed", dies_noting)
        with pytest.raises(KeyboardInterrupt):
            scrub(folder, lake)
    report, _ = scrub(folder, Lake(tmp_path / "lake"))
    assert report.due
    users, vectors = load_users(folder.root, "g1")
    assert users == ["~erased~0", "v2"] and not vectors[0].any()
    assert not Lake(tmp_path / "lake").scrub().due
