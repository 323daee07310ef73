"""The importers: every layout of the public data sets, in tiny files made here, with lines that are wrong on purpose."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import DataError
from contracts.events import Kind, PlaybackEvent, valid_id, validate
from sandbox.datasets import Dataset, PlayRule, Rejected, sanitise_id, to_events
from sandbox.importers import read_events, read_movielens, write_dataset

SHARED_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def write(folder: Path, **files: str) -> Path:
    """Files by name (`__` stands for a dot), in Latin-1 like the oldest sets."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_bytes(text.encode("latin-1"))
    return folder


def make_1m(folder: Path) -> Path:
    return write(
        folder,
        ratings__dat="1::10::5::978300760\n2::20::3::978300100\nbroken line\n1::20::4::978300000\n1::x y::5::notatime\n",
        movies__dat="10::Café Society (1995)::Comedy|Drama\n20::Heat (1995)::Action\nnonsense\n",
    )


def make_latest(folder: Path) -> Path:
    return write(
        folder,
        ratings__csv="userId,movieId,rating,timestamp\n"
        "1,10,5.0,978300760\n2,20,3.0,978300100\n1,20\n1,20,4.0,978300000\n,10,5.0,978300000\n",
        movies__csv="movieId,title,genres\n"
        '10,"American President, The (1995)",Comedy|Drama\n20,Heat (1995),(no genres listed)\n,No Id,Drama\n',
    )


def make_100k(folder: Path) -> Path:
    flags = "|".join("1" if place in (5, 8) else "0" for place in range(19))
    titles = f"10|Café Society (1995)|01-Jan-1995||http://x|{flags}\n20|Heat (1995)|01-Jan-1995||http://x|{flags}\n30|short\n"
    return write(
        folder,
        u__data="1\t10\t5\t978300760\n2\t20\t3\t978300100\n1\t20\n1\t20\t4\t978300000\n9\t9\t9\t-5\n",
        u__item=titles,
    )


@pytest.mark.parametrize(
    ("make", "title", "topics", "bad"),
    [
        (make_1m, "Café Society (1995)", ("Comedy", "Drama"), ["ratings.dat:3", "ratings.dat:5", "movies.dat:3"]),
        (
            make_latest,
            "American President, The (1995)",
            ("Comedy", "Drama"),
            ["ratings.csv:4", "ratings.csv:6", "movies.csv:4"],
        ),
        (make_100k, "Café Society (1995)", ("Comedy", "Drama"), ["u.data:3", "u.data:5", "u.item:3"]),
    ],
)
def test_every_movielens_layout_is_read_in_time_order_and_its_bad_lines_are_told(
    make: object, title: str, topics: tuple[str, ...], bad: list[str], tmp_path: Path
) -> None:
    """Same three ratings from each layout, seconds turned to milliseconds, and each bad line named by file and line."""
    assert callable(make)
    dataset = read_movielens(make(tmp_path / "ml"))
    plays = [
        (dataset.viewers[viewer], dataset.items[item].item_id, time_ms, value)
        for viewer, item, time_ms, value in zip(
            dataset.viewer, dataset.item, dataset.time_ms, dataset.value, strict=True
        )
    ]
    assert plays == [("1", "20", 978300000000, 4.0), ("2", "20", 978300100000, 3.0), ("1", "10", 978300760000, 5.0)]
    first = next(item for item in dataset.items if item.item_id == "10")
    assert (first.title, first.topics, first.released_at_ms) == (title, topics, 788918400000)
    assert dataset.is_rating
    assert dataset.rejected.total == len(bad)
    shown = "\n".join(dataset.rejected.examples)
    assert all(place in shown for place in bad), shown


def test_many_bad_lines_are_counted_by_reason_and_only_the_first_shown(tmp_path: Path) -> None:
    """A hundred broken lines make one count and five examples."""
    folder = make_1m(tmp_path / "ml")
    with (folder / "ratings.dat").open("a") as out:
        out.write("1::2\n" * 100)
    rejected = read_movielens(folder).rejected
    assert rejected.counts["2 fields instead of 4"] == 100
    assert len(rejected.examples) == 5


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no MovieLens folder"),
        ({"ratings__dat": "1::1::5::978300760\n"}, r"movies\.dat: missing"),
        ({"ratings__dat": "x\ny\n", "movies__dat": ""}, r"not one row can be used: .*ratings\.dat:1: 1 fields"),
        ({"ratings__dat": "", "movies__dat": ""}, "empty"),
        ({"ratings__csv": "a,b\n1,2\n", "movies__csv": "movieId,title,genres\n"}, "no column userId.*it has a, b"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused_with_the_reason(
    files: dict[str, str], says: str, tmp_path: Path
) -> None:
    """The message names what is missing."""
    with pytest.raises(DataError, match=says):
        read_movielens(write(tmp_path / "ml", **files))


def test_a_rating_from_the_threshold_on_is_a_complete_play(tmp_path: Path) -> None:
    """Ratings of 4 and 5 start and complete, the 3 does not; every event is one that the updater accepts."""
    events = list(to_events(read_movielens(make_1m(tmp_path / "ml"))))
    assert [(event.viewer, event.item_id, event.kind) for event in events] == [
        ("1", "20", Kind.START),
        ("1", "20", Kind.COMPLETE),
        ("1", "10", Kind.START),
        ("1", "10", Kind.COMPLETE),
    ]
    for event in events:
        validate(event, key=event.viewer.encode(), timestamp_ms=event.event_time_ms)


def test_ratings_can_be_sent_as_ratings_too(tmp_path: Path) -> None:
    """One star is -100 and five are 100; a rating below the threshold is sent as a rating alone."""
    rule = PlayRule(threshold=4.0, starts=False, rates=True)
    events = list(to_events(read_movielens(make_1m(tmp_path / "ml")), rule))
    assert [(event.kind, event.value) for event in events] == [
        (Kind.COMPLETE, None),
        (Kind.RATE, 50),
        (Kind.RATE, 0),
        (Kind.COMPLETE, None),
        (Kind.RATE, 100),
    ]
    for event in events:
        validate(event, key=event.viewer.encode(), timestamp_ms=event.event_time_ms)


def test_reading_twice_gives_the_same_ids_and_no_id_twice(tmp_path: Path) -> None:
    """Ids come from the row in its file, so a second replay is made of duplicates only."""
    folder = make_1m(tmp_path / "ml")
    rule = PlayRule(threshold=None, rates=True)
    first = [event.event_id for event in to_events(read_movielens(folder), rule)]
    assert first == [event.event_id for event in to_events(read_movielens(folder), rule)]
    assert len(set(first)) == len(first) == 9


def test_a_table_of_plays_is_read_from_parquet_and_from_csv_alike(tmp_path: Path) -> None:
    """The same rows under other column names give the same events; without values every row is a play."""
    columns = {"user": "who", "item": "what", "time": "when"}
    table = pa.table({"who": [7, 8], "what": ["a", "b"], "when": [1_700_000_001_000, 1_700_000_000_000]})
    for suffix in ("parquet", "csv"):
        (tmp_path / suffix).mkdir()
    pq.write_table(table, tmp_path / "parquet" / "plays.parquet")
    (tmp_path / "csv" / "plays.csv").write_text("who,what,when\n7,a,1700000001000\n8,b,1700000000000\n")
    read: list[list[PlaybackEvent]] = [
        list(to_events(read_events(tmp_path / suffix / f"plays.{suffix}", columns=columns)))
        for suffix in ("parquet", "csv")
    ]
    assert [(one.viewer, one.item_id, one.kind) for one in read[0]] == [
        ("8", "b", Kind.START), ("8", "b", Kind.COMPLETE), ("7", "a", Kind.START), ("7", "a", Kind.COMPLETE),
    ]  # fmt: skip
    assert [(one.viewer, one.event_time_ms) for one in read[0]] == [(one.viewer, one.event_time_ms) for one in read[1]]


def test_what_is_written_is_read_again_as_the_same_plays(tmp_path: Path) -> None:
    """An imported set replays as the original does: same viewers, items, times and titles; ratings below 4 are gone."""
    dataset = read_movielens(make_1m(tmp_path / "ml"))
    assert write_dataset(dataset, tmp_path / "out") == 2
    again = read_events(tmp_path / "out")
    fields = [(one.kind, one.viewer, one.item_id, one.event_time_ms) for one in to_events(dataset)]
    assert [(one.kind, one.viewer, one.item_id, one.event_time_ms) for one in to_events(again)] == fields
    assert {item.item_id: item for item in again.items} == {item.item_id: item for item in dataset.items}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["events.parquet", "items.parquet"]


def test_a_folder_of_tables_brings_its_titles_along(tmp_path: Path) -> None:
    """Titles and topics come from the items table; an item without a title is named by its id."""
    pq.write_table(
        pa.table({"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": [978300760000, 978300761000]}),
        tmp_path / "events.parquet",
    )
    pq.write_table(
        pa.table({"item_id": ["a", "c"], "title": ["Heat (1995)", "Unplayed"], "topics": [["Action"], ["Drama"]]}),
        tmp_path / "items.parquet",
    )
    dataset = read_events(tmp_path)
    assert [(item.item_id, item.title, item.topics) for item in dataset.items] == [
        ("a", "Heat (1995)", ("Action",)),
        ("b", "b", ()),
        ("c", "Unplayed", ("Drama",)),
    ]


def test_a_table_without_its_columns_says_which_and_what_it_has(tmp_path: Path) -> None:
    """A wrong mapping is told with both sides."""
    pq.write_table(pa.table({"a": [1], "item_id": ["x"]}), tmp_path / "plays.parquet")
    with pytest.raises(DataError, match=r"no column user_id, timestamp \(it has a, item_id\)"):
        read_events(tmp_path / "plays.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="cannot be read"):
        read_events(tmp_path / "broken.parquet")


def test_seconds_taken_for_milliseconds_end_before_the_year_2000_and_are_refused(tmp_path: Path) -> None:
    """Units come from the layout, never from a guess: the message tells how to go on."""
    (tmp_path / "plays.csv").write_text("user_id,item_id,timestamp\nu,i,978300760\n")
    dataset = read_events(tmp_path / "plays.csv")
    with pytest.raises(DataError, match="before the year 2000"):
        list(to_events(dataset))
    moved = dataset.ending_at(1_700_000_000_000)
    assert [event.event_time_ms for event in to_events(moved)] == [1_700_000_000_000] * 2


def test_ids_outside_the_alphabet_are_encoded_or_rejected_never_merged(tmp_path: Path) -> None:
    """Spaces and accents are written in hex, empty and over-long ids are counted, and two ids never become one."""
    (tmp_path / "plays.csv").write_text(
        "user_id,item_id,timestamp\n"
        "José B,i{1},978300760000\n"
        f",i,978300760000\n{'x' * 129},i,978300760000\n"
        "Jos~C3~A9~20B,i{1},978300760000\n",
        encoding="utf-8",
    )
    dataset = read_events(tmp_path / "plays.csv")
    assert dataset.viewers == ("Jos~C3~A9~20B",)
    assert dataset.items[0].item_id == "i~7B1~7D"
    assert dataset.rejected.total == 3


@given(st.text(max_size=30))
def test_a_sanitised_id_is_an_id(text: str) -> None:
    """Whatever comes in, what comes out is of the alphabet, and an id is left as it is."""
    found = sanitise_id(text)
    assert found is None or valid_id(found)
    assert not valid_id(text) or found == text


def test_the_shared_sets_are_read_whole() -> None:
    """Every row of the real data sets is used."""
    if not SHARED_DATA.exists():
        pytest.skip("no shared data sets beside the repository; the tiny ones above stand in")
    dataset: Dataset = read_events(SHARED_DATA / "movietweetings")
    assert (len(dataset), len(dataset.viewers), len(dataset.items)) == (141_695, 21_081, 12_611)
    assert dataset.rejected == Rejected({}, ())
    assert bool((dataset.time_ms[1:] >= dataset.time_ms[:-1]).all())
