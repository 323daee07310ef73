"""A schema that is registered while the home page runs is read without a restart, and one that is not holds up nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from contracts.catalogue import CatalogueItem
from contracts.check import register
from contracts.codec import Codec
from contracts.errors import UnknownSchema
from contracts.registry import DEFAULT_PATH, SCHEMAS_PATH, Registry
from contracts.row_columns import row_of
from contracts.rows import Entry, HomeRow
from homepage.catalogue import LiveCatalogue
from runtime.catalogue_feed import CatalogueFeed
from runtime.learning_codec import RELOAD_S, LearningCodec
from runtime.settings import Settings

ROW = HomeRow("r", "g1", 1, "t1", 5, 4, (Entry("i1", 1.0, "als", ()),))
ITEM = CatalogueItem("i1", "One")
NEW_ID = Registry.load().next_id.to_bytes(4, "big")
UNSET = b"\x00"  # the first branch of the added field: null


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(DEFAULT_PATH, tmp_path / "registry")
    return tmp_path / "registry"


def upgrade(folder: Path, name: str) -> None:
    """Register a version of the schema with one more field, as the producer's next release would."""
    schema = json.loads((SCHEMAS_PATH / f"{name}.avsc").read_text())
    schema["fields"].append({"name": "added", "type": ["null", "long"], "default": None})
    file = folder.parent / f"{name}.avsc"
    file.write_text(json.dumps(schema))
    register(file, Registry.load(folder))


def newer(data: bytes) -> bytes:
    """The same value as the upgraded writer encodes it."""
    return b"\x00" + NEW_ID + data[5:] + UNSET


def test_a_row_of_a_schema_registered_meanwhile_is_read(folder: Path) -> None:
    codec = Codec.load(folder)
    learning = LearningCodec(codec, Clock())
    upgrade(folder, "home_row")
    assert row_of(learning.decode_columns(newer(codec.encode_row(ROW)))) == ROW
    assert row_of(learning.decode_columns(codec.encode_row(ROW))) == ROW


def test_an_unknown_schema_reads_the_registry_once_in_a_while_only(folder: Path) -> None:
    codec, clock = Codec.load(folder), Clock()
    learning = LearningCodec(codec, clock)
    data = newer(codec.encode_row(ROW))
    with pytest.raises(UnknownSchema):
        learning.decode_columns(data)
    upgrade(folder, "home_row")
    with pytest.raises(UnknownSchema):
        learning.decode_columns(data)
    clock.now_s += RELOAD_S
    assert row_of(learning.decode_columns(data)) == ROW


def test_a_half_written_registry_leaves_the_codec_as_it_was(folder: Path) -> None:
    codec = Codec.load(folder)
    learning = LearningCodec(codec, Clock())
    (folder / "index.json").write_text('{"subj')
    with pytest.raises(UnknownSchema):
        learning.decode_columns(newer(codec.encode_row(ROW)))
    assert row_of(learning.decode_columns(codec.encode_row(ROW))) == ROW


@pytest.mark.parametrize(("key", "item_id"), [("i1", "i2"), ("Übung", "Übung"), ("x" * 300, "x" * 300), ("", "")])
def test_a_title_whose_id_is_none_or_not_its_key_is_passed_over(folder: Path, key: str, item_id: str) -> None:
    codec, catalogue = Codec.load(folder), LiveCatalogue(str(folder.parent))
    feed = CatalogueFeed(Settings(), LearningCodec(codec), catalogue)
    with capture_logs() as logs:
        feed.take(key.encode(), codec.encode_item(CatalogueItem(item_id, "Odd")), 0)
    assert [one["event"] for one in logs] == ["catalogue_record_skipped"]
    assert catalogue.get(item_id) is None


def test_a_catalogue_record_of_an_unknown_schema_holds_up_no_take_down_and_is_read_later(folder: Path) -> None:
    codec, clock = Codec.load(folder), Clock()
    catalogue = LiveCatalogue(str(folder.parent))
    feed = CatalogueFeed(Settings(), LearningCodec(codec, clock), catalogue)
    unreadable = newer(codec.encode_item(ITEM))
    with capture_logs() as logs:
        feed.take(b"i1", unreadable, 0)
        feed.take(b"i2", codec.encode_item(CatalogueItem("i2", "Two", taken_down=True)), 1)
        feed.take(b"i3", unreadable, 2)
        feed.take(b"i3", codec.encode_item(CatalogueItem("i3", "Three")), 3)
    assert [one["event"] for one in logs].count("catalogue_record_put_aside") == 1
    two = catalogue.get("i2")
    assert two is not None
    assert two.taken_down
    assert catalogue.get("i1") is None

    upgrade(folder, "catalogue_item")
    feed.take_unread()
    assert catalogue.get("i1") is None  # the registry was read a moment ago
    clock.now_s += RELOAD_S
    feed.take_unread()
    assert catalogue.get("i1") == ITEM
    assert catalogue.get("i3") == CatalogueItem("i3", "Three")  # the newer value won, whatever could be read first
