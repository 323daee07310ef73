"""Generation folders: what is refused, what a crash may leave, and activations that only grow."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from contracts.catalogue import CatalogueItem
from contracts.current import Current
from contracts.errors import GenerationError
from contracts.manifest import CONFIDENCE_RULE, Confidence, Decision, Manifest, from_json, to_json
from contracts.shares import Share
from embeddings import publishing
from embeddings.files import Root, load_generation, load_items, load_users, open_root, parse_factors, verify_generation
from embeddings.generation import NEVER_MS
from embeddings.generations_folder import GenerationsFolder
from embeddings.publishing import Contents, remove_users, write_generation

ITEMS = [
    CatalogueItem("a", "Ana", ("drama",), ("Ruiz",), 90_000, 12, ("es",), 5, None, 7, False),
    CatalogueItem("b", "Bob", taken_down=True, available_until_ms=99),
    CatalogueItem("c", "Cid", available_until_ms=99),
]


def manifest(generation_id: str = "g1", created_at_ms: int = 1, **changes: object) -> Manifest:
    confidence = Confidence(CONFIDENCE_RULE, 2.0, 10.0, 0.1, 5.0, 2.0)
    made = Manifest(
        generation_id, created_at_ms, 2, 3, 2, confidence, "playback@1", {0: 5, 1: 7}, "in", "implicit-als",
        {"numpy": "2"}, {"candidate": {"ndcg@10": 0.1}}, Decision("passed", "ok"), {},
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def contents(items: list[CatalogueItem] | None = None) -> Contents:
    items = ITEMS if items is None else items
    factors = np.arange(2 * len(items), dtype=np.float32).reshape(-1, 2)
    popularity = np.arange(len(items), dtype=np.float32)
    return Contents(items, factors, popularity, ["v1", "v2"], np.ones((2, 2), dtype=np.float32))


def publish(root: Path | str, generation_id: str = "g1", created_at_ms: int = 1) -> Manifest:
    return write_generation(root, manifest(generation_id, created_at_ms), contents())


@pytest.mark.parametrize("form", [str, lambda path: f"file://{path}", lambda path: f"{path}/"])
def test_what_was_published_is_what_loads_by_path_and_by_url(tmp_path: Path, form: Callable[[Path], str]) -> None:
    root = form(tmp_path)
    publish(root)
    generation = load_generation(root, "g1")
    assert generation.item_ids == ("a", "b", "c")
    assert generation.item_factors.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert generation.parameters.regularization == 2.0
    assert generation.available_from_ms.tolist() == [5, 0, 0]
    assert generation.available_until_ms.tolist() == [NEVER_MS, 0, 99]  # taken down wins over the window
    assert generation.maturity.tolist() == [12, 0, 0]
    assert load_items(root, "g1") == ITEMS
    assert load_users(root, "g1")[0] == ["v1", "v2"]


def replace_file(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data)  # type: ignore[func-returns-value]


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "items.parquet").read_bytes())
    data[50] ^= 1
    (folder / "items.parquet").write_bytes(data)


def edit(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(content | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "never completely published"),
        (lambda folder: (folder / "item_factors.npy").unlink(), "missing"),
        (replace_file("item_factors.npy", b"short"), "truncated or replaced; publish the generation again"),
        (flip_a_byte, "sha256"),
        (replace_file("manifest.json", b"{"), "not JSON"),
        (replace_file("manifest.json", b"[" * 100_000), "not JSON"),
        (replace_file("manifest.json", b" " * (2 << 20)), "bytes, more than"),
        (edit(k=3), r"wanted float32 \(3, 3\)"),
        (edit(n_items=4), "wanted float32"),
        (edit(k="2"), "field k: a whole number"),
        (edit(generation_id="g2"), "renamed or copied"),
        (edit(cutoffs={"x": 1}), "field cutoffs.x: not a partition number"),
        (edit(files={}), "field files: item_factors.npy is not listed"),
        (edit(files={"../x.npy": {"sha256": "0" * 64, "size_bytes": 1}}), "not a plain file name"),
        (edit(format=2), "field format: found 2"),
        (edit(surprise=1), "field surprise: not a field of this format"),
        (edit(metrics={"a": {"b": "c"}}), "field metrics.a.b: a finite number"),
    ],
)
def test_a_damaged_generation_is_refused_with_what_is_wrong(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    publish(tmp_path)
    damage(tmp_path / "g1")
    with pytest.raises(GenerationError, match=message):
        load_generation(tmp_path, "g1")
    with pytest.raises(GenerationError):
        GenerationsFolder(tmp_path).activate("g1", floor=0)
    assert GenerationsFolder(tmp_path).read_current() is None


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dataclasses.replace(contents(), item_factors=np.full((3, 2), np.nan, dtype=np.float32)), "NaN"),
        (dataclasses.replace(contents(), user_factors=np.full((2, 2), np.inf, dtype=np.float32)), "NaN"),
        (contents([ITEMS[0], ITEMS[0], ITEMS[1]]), "not unique"),
        (dataclasses.replace(contents(), popularity=np.full(3, -1, dtype=np.float32)), "popularity"),
        (dataclasses.replace(contents(), item_factors=np.zeros((2, 2), dtype=np.float32)), "wanted float32"),
    ],
)
def test_what_could_not_be_loaded_is_not_published(tmp_path: Path, bad: Contents, message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        write_generation(tmp_path, manifest(), bad)
    assert GenerationsFolder(tmp_path).list() == []
    assert [path.name for path in tmp_path.iterdir()] == []


def test_an_object_array_is_refused_without_unpickling() -> None:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1, 1), }"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"cos\nsystem\n"
    with pytest.raises(GenerationError, match="wanted float32"):
        parse_factors(data, 1, 1, "here", "item_factors.npy")


def test_a_generation_that_was_never_finished_is_invisible_and_can_be_published_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*args: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "to_json", dies)
        with pytest.raises(KeyboardInterrupt):
            publish(tmp_path)
    (tmp_path / "g1").mkdir()  # as a tool that copies folders would leave it
    (tmp_path / "g1" / "items.parquet").write_bytes(b"half")
    assert GenerationsFolder(tmp_path).list() == []
    publish(tmp_path)
    assert [one.generation_id for one in GenerationsFolder(tmp_path).list()] == ["g1"]


def test_a_published_generation_is_never_changed(tmp_path: Path) -> None:
    publish(tmp_path)
    with pytest.raises(GenerationError, match="exists already"):
        publish(tmp_path)


def test_a_manifest_survives_its_json(tmp_path: Path) -> None:
    whole = publish(tmp_path)
    assert from_json(to_json(whole), "m") == whole
    with pytest.raises(GenerationError, match="not finite"):
        to_json(manifest(metrics={"candidate": {"ndcg@10": float("nan")}}))


@pytest.mark.parametrize("name", ["../g1", "CURRENT", ".hidden", "", "a/b"])
def test_a_name_that_could_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(GenerationError, match="not the name of a generation"):
        load_generation(tmp_path, name)


def test_activations_grow_past_the_last_one_and_past_what_the_store_knows(tmp_path: Path) -> None:
    publish(tmp_path, "g1")
    publish(tmp_path, "g2", 2)
    folder = GenerationsFolder(tmp_path)
    assert folder.activate("g1", floor=0).activation == 1
    assert folder.activate("g2", floor=0).activation == 2
    again = folder.activate("g1", floor=7)  # a rollback
    assert (again.generation_id, again.activation, again.previous) == ("g1", 8, "g2")
    assert folder.read_current() == again
    assert folder.activate("g1", floor=0).previous == "g2"


def test_a_share_is_an_activation_that_nights_keep_and_that_ends_where_it_is_told_to(tmp_path: Path) -> None:
    for number, name in enumerate(("g1", "g2", "g3")):
        publish(tmp_path, name, number)
    folder = GenerationsFolder(tmp_path)
    with pytest.raises(GenerationError, match="another generation must be in force"):
        folder.share(Share("g2", 5), floor=0)
    folder.activate("g1", floor=0)
    with pytest.raises(GenerationError, match="another generation must be in force"):
        folder.share(Share("g1", 5), floor=0)
    with pytest.raises(GenerationError, match="never completely published"):
        folder.share(Share("g9", 5), floor=0)
    shared = folder.share(Share("g2", 5), floor=6)
    assert shared == folder.read_current() == Current("g1", 7, None, Share("g2", 5))
    assert folder.share(Share("g2", 12.5), floor=0) == Current("g1", 8, None, Share("g2", 12.5))
    assert folder.activate("g3", floor=0) == Current("g3", 9, "g1", Share("g2", 12.5))
    assert folder.activate("g3", floor=0) == Current("g3", 10, "g1", Share("g2", 12.5))
    assert folder.prune(1) == [], "the candidate serves, and g1 is the way back"
    assert folder.activate("g3", floor=0, ends_share=True) == folder.read_current() == Current("g3", 11, "g1")
    folder.share(Share("g2", 5), floor=0)
    assert folder.activate("g2", floor=0) == Current("g2", 13, "g3"), "the candidate for all is no candidate"
    assert b"share" not in (tmp_path / "CURRENT").read_bytes(), "as older programs write it"


def test_a_share_beside_what_does_not_load_is_refused_and_current_stays(tmp_path: Path) -> None:
    """Nobody could take its activation up."""
    for name in ("g1", "g2"):
        publish(tmp_path, name)
    folder = GenerationsFolder(tmp_path)
    folder.activate("g1", floor=0)
    factors = tmp_path / "g1" / "item_factors.npy"
    factors.write_bytes(factors.read_bytes()[:-1])
    with pytest.raises(GenerationError, match=r"g1/item_factors\.npy"):
        folder.share(Share("g2", 5), floor=0)
    assert folder.read_current() == Current("g1", 1)


def test_what_is_in_force_can_be_put_in_force_again_without_naming_it(tmp_path: Path) -> None:
    publish(tmp_path)
    folder = GenerationsFolder(tmp_path)
    with pytest.raises(GenerationError, match="nothing is in force"):
        folder.activate(None, floor=0)
    folder.activate("g1", floor=0)
    assert folder.activate(None, floor=0) == Current("g1", 2)


@pytest.mark.parametrize(
    "share",
    [5, {}, {"generation_id": "g2"}, {"percent": 5}, {"generation_id": "../g2", "percent": 5}]
    + [{"generation_id": "g2", "percent": percent} for percent in (0, 100, -1, "5", True, None, float("nan"))],
)
def test_a_share_that_is_none_makes_current_unreadable(tmp_path: Path, share: object) -> None:
    publish(tmp_path)
    (tmp_path / "CURRENT").write_text(json.dumps({"generation_id": "g1", "activation": 3, "share": share}))
    with pytest.raises(GenerationError, match="CURRENT: unreadable"):
        GenerationsFolder(tmp_path).read_current()


def test_concurrent_activations_all_get_a_number_of_their_own(tmp_path: Path) -> None:
    publish(tmp_path)
    numbers: list[int] = []

    def activate() -> None:
        numbers.extend(GenerationsFolder(tmp_path).activate("g1", floor=0).activation for _ in range(5))

    threads = [threading.Thread(target=activate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 21))


def test_an_unreadable_current_is_told_and_an_activation_above_the_floor_mends_it(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / "CURRENT").write_text("{")
    with pytest.raises(GenerationError, match="CURRENT: unreadable"):
        GenerationsFolder(tmp_path).read_current()
    assert GenerationsFolder(tmp_path).activate("g1", floor=41).activation == 42


def test_pruning_keeps_the_newest_the_one_in_force_and_the_one_before(tmp_path: Path) -> None:
    for n in range(1, 7):
        publish(tmp_path, f"g{n}", n)
    folder = GenerationsFolder(tmp_path)
    folder.activate("g2", floor=0)
    folder.activate("g1", floor=0)
    (tmp_path / ".tmp-g9").mkdir()
    assert folder.prune(2) == ["g3", "g4"]
    assert [one.generation_id for one in folder.list()] == ["g1", "g2", "g5", "g6"]
    assert not (tmp_path / ".tmp-g9").exists()


def test_a_forgotten_viewer_leaves_the_user_vectors_and_a_crash_in_between_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path)
    folder = GenerationsFolder(tmp_path)
    written = publishing._replace_file
    for survives in range(3):
        calls: list[str] = []

        def dies(root: Root, relative: str, data: bytes, calls: list[str] = calls, survives: int = survives) -> None:
            if len(calls) == survives:
                raise KeyboardInterrupt
            calls.append(relative)
            written(root, relative, data)

        with monkeypatch.context() as patch:
            patch.setattr(publishing, "_replace_file", dies)
            with pytest.raises(KeyboardInterrupt):
                remove_users(folder, "g1", lambda viewer: viewer == "v1")
        load_generation(tmp_path, "g1")  # serving is never disturbed
    assert remove_users(folder, "g1", lambda viewer: viewer == "v1") == 1
    assert remove_users(folder, "g1", lambda viewer: viewer == "v1") == 0
    verify_generation(tmp_path, "g1")
    users, vectors = load_users(tmp_path, "g1")
    assert (users, vectors.tolist()) == (["~erased~0", "v2"], [[0, 0], [1, 1]])


def test_a_folder_that_is_not_there_has_no_generations(tmp_path: Path) -> None:
    folder = GenerationsFolder(tmp_path / "none")
    assert (folder.list(), folder.read_current()) == ([], None)
    with pytest.raises(GenerationError, match="not a folder or URL"):
        open_root("nonsense://x")


def test_a_copied_folder_loads_elsewhere(tmp_path: Path) -> None:
    publish(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert load_generation(tmp_path / "there", "g1").n_items == 3
