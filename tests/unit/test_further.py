"""Rows below the first: what goes with a title, whose row is made of it, and what may not be in it."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.companions import BETA, make_companions
from contracts.catalogue import CatalogueItem
from contracts.digests import item_digest
from contracts.errors import GenerationError
from contracts.row_columns import RowColumns
from embeddings.companions import COMPANIONS, KEPT, Companions, Lists, companion_bytes, parse_companions
from embeddings.files import verify_generation
from embeddings.generation import Generation
from embeddings.tables import Cowatch
from homepage.catalogue import COMPANIONS_AGAIN, Catalogue, LiveCatalogue, load_catalogue, load_companions
from homepage.further import NOT_REPEATED, ChosenRow, choose_rows, parse_names
from homepage.render import Audience, select_entries
from ranking.because import PLAYS_TRIED, offer_because
from ranking.further import FURTHER_ROWS, LEAST_SHOWN, MOST_SHOWN, FurtherRow
from ranking.offers import Known, Offer
from tests.worlds import T0, make_generation, make_tables, write_generation_folder
from viewers.known import known_of
from viewers.packing import pack
from viewers.state import COMPLETED, SKIPPED, Play, Register, RegisterKind, ViewerState

N = 60
IDS = tuple(f"i{n}" for n in range(N))


def companions(**lists: list[int]) -> Companions:
    """Title → the titles that go with it, best first."""
    each = [lists.get(item_id, []) for item_id in IDS]
    items = [row for one in each for row in one]
    scores = [1 - place / 64 for one in each for place in range(len(one))]
    starts = np.concatenate([[0], np.cumsum([len(one) for one in each])]).astype(np.int64)
    return Companions(IDS, Lists(starts, np.array(items, np.int32), np.array(scores, np.float32)))


def play(item: int, second: int, share: int = 255, flags: int = COMPLETED) -> Play:
    return Play(T0 + second * 1000, second, f"i{item}", share, flags)


def state_of(*plays: Play, **parts: object) -> ViewerState:
    return ViewerState(plays=tuple(sorted(plays, reverse=True)), **parts)  # type: ignore[arg-type]


def said(kind: RegisterKind, item: int, value: int | None = None) -> Register:
    return Register(kind, f"i{item}", T0, 1, value)


# What is known of a viewer


def test_the_newest_liked_play_comes_first_and_what_was_looked_into_is_not_liked() -> None:
    state = state_of(play(1, 10), play(2, 20, 30, 0), play(3, 30, 20, SKIPPED), play(4, 5, 140, 0), play(5, 40, 2, 0))
    known = known_of(state, T0 + 10**6)
    assert known.liked == ("i1", "i4")
    assert known.out == {"i1", "i2", "i3", "i4", "i5"}


def test_a_rating_decides_over_the_play_and_a_rating_alone_is_no_play() -> None:
    registers = (said(RegisterKind.RATE, 1, -50), said(RegisterKind.RATE, 2, 80), said(RegisterKind.HIDE, 3))
    state = state_of(play(1, 30), play(3, 20), play(4, 10), registers=registers)
    known = known_of(state, T0 + 10**6)
    assert known.liked == ("i4",)
    assert not known.may_see("i1")
    assert known.may_see("i2")


def test_a_play_that_the_first_row_does_not_know_changes_no_heading_but_was_watched() -> None:
    known = known_of(state_of(play(1, 10), play(2, 20)), T0 + 15_000)
    assert known.liked == ("i1",)
    assert not known.may_see("i2")
    again = state_of(
        play(1, 10), play(3, 5), play(3, 20), play(4, 3, 30, 0), play(4, 30)
    )  # 3 once more, 4 to its end this time
    assert known_of(again, T0 + 15_000).liked == ("i1", "i3")


def test_scores_are_of_few_numbers_whose_text_a_page_keeps() -> None:
    scores = [score for _, score in small_lists().of("tt0000003")]
    assert scores == np.array(scores, np.float16).tolist()


def small_lists() -> Companions:
    generation = small()
    return Companions(generation.item_ids, make_companions(generation))


def test_what_only_the_digests_know_is_not_shown() -> None:
    known = known_of(state_of(play(1, 10), seen=((item_digest("i7"), 1),)), T0 + 10**6)
    assert not known.may_see("i7")
    assert known.may_see("i8")


# Because you watched


def test_the_row_is_about_the_newest_liked_title_that_something_goes_with() -> None:
    known = Known(("new", "i1", "i2"), frozenset({"i1", "i2", "i6"}), frozenset({item_digest("i7")}))
    table = companions(i1=[5, 6, 7, 8, 9], i2=[10])
    first, second = offer_because(known, table, {"i8"})
    assert (first.about, first.item_ids) == ("i1", ("i5", "i9"))
    assert list(first.scores) == sorted(first.scores, reverse=True)
    assert (second.about, second.item_ids) == ("i2", ("i10",))


def test_no_older_play_than_the_newest_few_is_looked_at() -> None:
    known = Known(tuple(f"i{n}" for n in range(10, 10 + PLAYS_TRIED + 1)))
    assert list(offer_because(known, companions(**{f"i{10 + PLAYS_TRIED}": [1, 2]}), ())) == []
    assert [one.about for one in offer_because(known, companions(**{f"i{9 + PLAYS_TRIED}": [1, 2]}), ())]


# What goes with a title


def small(cowatch: Cowatch | None = None, n: int = 200) -> Generation:
    generation = make_generation(n, 8, 3)
    tables = make_tables(n, 3)
    return generation.with_tables(tables if cowatch is None else replace(tables, cowatch=cowatch))


def test_a_score_is_how_likely_a_title_comes_next_by_counts_and_for_the_rest_by_taste_and_popularity() -> None:
    n = 200
    share = np.array([0.2, 0.2, 0.01], np.float32)
    lists = Cowatch(
        np.array([0, 3, *[3] * (n - 1)], np.int64), np.array([9, 5, 7], np.int32), share, np.zeros((3, 4), np.float32)
    )
    generation = small(lists)
    table = Companions(generation.item_ids, make_companions(generation))
    U = generation.item_factors.astype(np.float64)
    U /= np.linalg.norm(U, axis=1, keepdims=True)
    for row in (0, 1, 17):
        followed = dict(zip([9, 5, 7], share.tolist(), strict=True)) if row == 0 else {}
        likely = generation.popularity.astype(np.float64) * np.exp(BETA * (U @ U[row]))
        rest = 1 - sum(followed.values())
        score = {
            other: followed.get(other, 0.0) + rest * float(likely[other] / likely.sum())
            for other in range(n)
            if other != row
        }
        best = sorted(score, key=lambda one: (-score[one], one))[:KEPT]
        assert [item for item, _ in table.of(generation.item_ids[row])] == [generation.item_ids[one] for one in best]
        assert [value for _, value in table.of(generation.item_ids[row])] == pytest.approx(
            [score[one] for one in best], rel=2**-10, abs=2**-24
        )
    assert {item for item, _ in table.of("tt0000000")[:2]} == {"tt0000005", "tt0000009"}


def test_a_list_never_holds_its_own_title_nor_one_that_may_not_be_shown_nor_one_that_nobody_played() -> None:
    generation = small()
    generation = replace(
        generation, popularity=np.where(np.arange(200) % 7, generation.popularity, 0).astype(np.float32)
    )
    shown = np.arange(200) % 3 != 0
    lists = make_companions(generation, shown)
    assert len(lists.items)
    assert not (lists.items % 7 == 0).any()
    assert not (lists.items % 3 == 0).any()
    assert not (lists.items == np.repeat(np.arange(200), np.diff(lists.starts))).any()
    assert np.diff(lists.starts).max() <= KEPT


def test_without_tables_taste_alone_says_what_goes_with_what_and_one_title_goes_with_nothing() -> None:
    assert len(make_companions(make_generation(30, 4)).items)
    assert len(make_companions(make_generation(1, 1)).items) == 0


def test_lists_are_read_as_they_were_written_and_published(tmp_path: Path) -> None:
    generation = small()
    lists = make_companions(generation)
    for one, other in zip(parse_companions(companion_bytes(lists), 200, "g1"), lists, strict=True):
        assert np.array_equal(one, other)
    write_generation_folder(tmp_path, generation)
    assert COMPANIONS in verify_generation(tmp_path, "g1").files
    folder = tmp_path / "g1"
    read = load_companions(folder, tuple(load_catalogue(folder)))
    assert read.of("tt0000003") == Companions(generation.item_ids, lists).of("tt0000003")
    (folder / COMPANIONS).unlink()
    assert load_companions(folder, generation.item_ids).of("tt0000003") == []  # an older program's
    with pytest.raises(GenerationError, match=COMPANIONS):
        verify_generation(tmp_path, "g1")


async def test_lists_that_could_not_be_read_are_tried_again_and_the_titles_are_there_meanwhile(tmp_path: Path) -> None:
    write_generation_folder(tmp_path, small())
    (tmp_path / "CURRENT").write_text('{"generation_id": "g1", "activation": 1}')
    there = tmp_path / "g1" / COMPANIONS
    whole = there.read_bytes()
    there.write_bytes(whole[:100])
    live = LiveCatalogue(str(tmp_path))
    assert await live.refresh()
    assert (live.activation, live.companions.of("tt0000003")) == (1, [])
    tried = [await live.refresh() for _ in range(COMPANIONS_AGAIN)]
    there.write_bytes(whole)
    tried += [await live.refresh() for _ in range(COMPANIONS_AGAIN)]
    assert sum(tried) == 1
    assert live.companions.of("tt0000003")
    assert not await live.refresh()


def parquet(**columns: pa.Array) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def lists_of(values: list[list[float]], kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.list_(kind))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nothing of the kind",
        parquet(items=lists_of([[1], []], pa.int32())),
        companion_bytes(Lists(np.array([0, 1, 1]), np.array([2], np.int32), np.array([0.5], np.float32))),
        companion_bytes(Lists(np.array([0, 1, 1]), np.array([-1], np.int32), np.array([0.5], np.float32))),
        companion_bytes(Lists(np.array([0, 1, 1]), np.array([1], np.int32), np.array([np.nan], np.float32))),
        companion_bytes(Lists(np.array([0, 1, 1]), np.array([1], np.int32), np.array([1e9], np.float32))),
        companion_bytes(Lists(np.array([0, 1]), np.array([0], np.int32), np.array([0.5], np.float32))),
    ],
)
def test_what_is_no_list_of_titles_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(GenerationError, match=rf"g1/{COMPANIONS}"):
        parse_companions(data, 2, "g1")


# What a page chooses


def catalogue(table: Companions, **changes: CatalogueItem) -> Catalogue:
    items = {item_id: CatalogueItem(item_id, f"Title {item_id}") for item_id in IDS}
    return Catalogue(items | changes, "g1", 1, table)


def choose(
    table: Companions,
    state: ViewerState,
    *names: str,
    titles: Catalogue | None = None,
    audience: Audience | None = None,
    first: tuple[str, ...] = (),
    limit: int = 50,
) -> list[ChosenRow]:
    row = RowColumns("r1", "g1", 1, "t1", T0 + 10**6, None, first, (0.0,) * len(first), ("als",), (0,) * len(first))
    titles, audience = titles or catalogue(table), audience or Audience()
    shown = select_entries(row, titles, audience, now_ms=T0 + 10**6, limit=limit)
    return choose_rows(
        names or ("because",), pack(state), row, shown, titles, audience, now_ms=T0 + 10**6, limit=limit
    )  # fmt: skip


def ids_of(one: ChosenRow) -> list[str]:
    return [one.row.items[place] for place in one.selection.places]


def test_a_row_names_the_title_that_it_is_about_and_shows_no_more_than_a_strip() -> None:
    (one,) = choose(companions(i1=list(range(2, 40))), state_of(play(1, 10)))
    assert (one.name, one.heading, one.row.row_id) == ("because", "Because you watched Title i1", "r1-because")
    assert one.about == CatalogueItem("i1", "Title i1")
    assert ids_of(one) == [f"i{n}" for n in range(2, 2 + MOST_SHOWN)]
    assert set(one.row.sources) == {"because"}


def test_availability_maturity_and_territory_hold_as_for_the_first_row() -> None:
    table = companions(i1=list(range(2, 12)))
    changes = {
        "i2": CatalogueItem("i2", "Taken down", taken_down=True),
        "i3": CatalogueItem("i3", "Over", available_until_ms=T0),
        "i4": CatalogueItem("i4", "Not yet", available_from_ms=T0 + 10**9),
        "i5": CatalogueItem("i5", "For adults", maturity=18),
        "i6": CatalogueItem("i6", "Elsewhere", territories=("FR",)),
    }
    titles = catalogue(table, **changes)
    del titles.items["i7"]  # type: ignore[attr-defined]
    (one,) = choose(table, state_of(play(1, 10)), titles=titles, audience=Audience("GB", 12))
    assert ids_of(one) == ["i8", "i9", "i10", "i11"]
    assert one.selection.dropped == {"taken_down": 1, "expired": 2, "maturity": 1, "territory": 1, "unknown": 1}


def test_a_child_is_not_told_of_a_title_for_adults_nor_anybody_of_one_that_has_no_name() -> None:
    table = companions(i1=[3, 4, 5, 6], i2=[7, 8, 9, 10])
    titles = catalogue(table, i1=CatalogueItem("i1", "For adults", maturity=18))
    state = state_of(play(1, 20), play(2, 10))
    assert [one.heading for one in choose(table, state, titles=titles)] == ["Because you watched For adults"]
    (one,) = choose(table, state, titles=titles, audience=Audience(maturity=12))
    assert one.heading == "Because you watched Title i2"
    gone = catalogue(
        table, i1=CatalogueItem("i1", "i1", taken_down=True)
    )  # as the feed leaves a title that it holds no more
    (one,) = choose(table, state, titles=gone)
    assert one.heading == "Because you watched Title i2"
    nameless = Catalogue({item_id: item for item_id, item in titles.items.items() if item_id != "i2"}, "g1", 1, table)
    assert choose(table, state, titles=nameless, audience=Audience(maturity=12)) == []


def test_a_row_of_a_few_titles_is_none_and_the_play_before_is_looked_at() -> None:
    table = companions(i1=list(range(3, 2 + LEAST_SHOWN)), i2=list(range(20, 20 + LEAST_SHOWN)))
    (one,) = choose(table, state_of(play(1, 20), play(2, 10)))
    assert one.heading == "Because you watched Title i2"
    assert choose(table, state_of(play(1, 20))) == []
    assert len(ids_of(choose(table, state_of(play(1, 20)), limit=2)[0])) == 2  # all that was asked for


def test_what_stands_on_the_screen_above_is_not_shown_again() -> None:
    table = companions(i1=list(range(2, 40)))
    first = tuple(f"i{n}" for n in range(2, 40))
    (one,) = choose(table, state_of(play(1, 10)), first=first)
    assert ids_of(one)[0] == f"i{2 + NOT_REPEATED}"
    (one,) = choose(table, state_of(play(1, 10)), first=first, limit=5)
    assert ids_of(one) == ["i7", "i8", "i9", "i10", "i11"]


def test_who_has_watched_nothing_or_was_erased_has_no_such_row() -> None:
    table = companions(i1=[2, 3, 4, 5])
    assert choose(table, ViewerState()) == []
    assert choose(table, ViewerState(erased_through_s=5)) == []
    assert choose(Companions(), state_of(play(1, 10))) == []


def test_a_row_of_a_teams_own_is_one_module_and_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Served by the same rules, and without the titles of the rows before it."""

    def offer_longest_ago(known: Known, table: Companions, shown: Collection[str]) -> Iterator[Offer]:
        ids = [item for item in reversed(table.item_ids) if item not in shown and known.may_see(item)]
        yield Offer("", tuple(ids), tuple(1.0 for _ in ids))

    monkeypatch.setitem(FURTHER_ROWS, "mine", FurtherRow("A row of our own", "mine", "nothing", offer_longest_ago))
    assert parse_names("mine,because,mine") == ("mine", "because")
    assert parse_names("mine,other") is None
    table = companions(i1=[*range(30, N), 2, 3, 4, 5])
    mine, because = choose(table, state_of(play(1, 10), play(59, 5, 10, 0)), "mine", "because")
    assert (mine.heading, mine.about, mine.row.row_id) == ("A row of our own", None, "r1-mine")
    assert ids_of(mine)[0] == "i58"
    assert not set(ids_of(mine)) & set(ids_of(because))


def test_every_row_has_a_name_that_a_row_id_can_end_in() -> None:
    assert all(name.isidentifier() and name.islower() for name in FURTHER_ROWS)
