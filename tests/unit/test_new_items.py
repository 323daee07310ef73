"""Items that came since the night: counted, given a vector, carried by snapshots, and served as any item."""

from __future__ import annotations

import itertools
import random
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest

from contracts.catalogue import CatalogueItem
from contracts.codec import Codec
from contracts.errors import GenerationError, StoreChanged, StoreUnavailable
from contracts.events import Kind
from embeddings.added import Added, equal, extended, no_items, unplayed
from embeddings.generation import NEVER_MS, FoldInParameters, Generation
from embeddings.tables import FEATURES, HALF_LIVES_DAYS
from tests.unit.test_trends import count, erasure, report
from tests.worlds import T0, make_generation, make_tables
from trends.checkpoints import changed_fields, counts_of
from trends.counters import FANS, Counts, Decision, Rules
from trends.follow import take_up
from trends.new_items import CONTENT_WEIGHT, added_of, choose, content_of, item_fold
from trends.newcomers import LOOKS, Announced, Newcomers
from trends.snapshots import _HEADER, Snapshot, decode, encode, merge, name_of
from viewers.memory_store import MemoryStore
from viewers.rewriter import Rewriter
from viewers.state import COMPLETED, Limits, Play, ViewerState
from viewers.store import ViewerWrite

N, K = 30, 4
CODEC = Codec.load()
GENERATION = make_generation(N, K).with_tables(replace(make_tables(N), at_ms=T0))
RULES = Rules(GENERATION.index, T0, 1_000, new_titles=3)
DAY_MS = 86_400_000
TOKENS = itertools.count(1)


def added(*ids: str, seed: int = 1, popularity: float = 5.0) -> Added:
    rng, m = np.random.default_rng(seed), len(ids)
    factors = rng.normal(size=(m, K)).astype(np.float16).astype(np.float32)
    bounds = np.zeros(m, np.int64), np.full(m, NEVER_MS, np.int64)
    return Added(tuple(ids), factors, np.full(m, popularity, np.float32), *bounds, np.zeros(m, np.uint8))


def taken(generation: Generation, row: int) -> Generation:
    """The same without what the night would have learnt of a title."""
    factors, popularity = generation.item_factors.copy(), generation.popularity.copy()
    factors[row] = popularity[row] = 0
    return replace(generation, item_factors=factors, popularity=popularity)


# Counting


def test_a_title_that_the_night_has_not_learnt_is_counted_with_who_watched_it() -> None:
    counts = Counts(0)
    took = [
        counts.take(one, RULES, T0 + DAY_MS)
        for one in (
            report("ana", "new-1", 60),
            report("ana", "new-1", 60, at=90),
            report("ben", "new-1", 70),
            report("cyd", "new-1", 80, share=0.0, kind=Kind.START),
            report("ana", "new-1", 90),
        )
    ]
    assert took == [Decision.NEW, Decision.AGAIN, Decision.NEW, Decision.WEAK, Decision.NEW]
    assert counts.new["new-1"].sums[0] == 3
    assert list(counts.new["new-1"].fans) == ["ben", "ana"]
    assert not counts.sums
    assert Counts(0).take(report("ana", "new-1", 60), replace(RULES, new_titles=0), T0 + DAY_MS) is Decision.UNKNOWN


def test_the_newest_viewers_of_a_title_are_kept() -> None:
    counts = count([report(f"v{i}", "new-1", 10 + i) for i in range(FANS + 5)], rules=RULES)
    assert list(counts.new["new-1"].fans) == [f"v{i}" for i in range(5, FANS + 5)]


def test_whoever_is_erased_is_kept_nowhere() -> None:
    counts = count([report("ana", "new-1", 60), report("ben", "new-1", 61), erasure("ana", 100)], rules=RULES)
    assert list(counts.new["new-1"].fans) == ["ben"]
    fields = changed_fields(counts)
    assert not any(b"ana" in value for value in fields.values())


def test_of_too_many_titles_the_least_watched_go() -> None:
    plays = [report(f"v{i}", "hit", 10 + i) for i in range(4)]
    plays += [report(f"w{i}", f"once-{i}", 100 + i) for i in range(50)]
    counts = count(plays, rules=RULES)
    assert "hit" in counts.new
    assert len(counts.new) <= 2 * RULES.new_titles
    assert {title.slot for title in counts.new.values()} <= set(range(2 * RULES.new_titles))


def test_new_titles_come_back_from_checkpoints_as_they_were_wherever_one_reads_again() -> None:
    rng = random.Random(5)
    plays = [report(f"v{rng.randrange(20)}", f"new-{rng.randrange(12)}", 10 + i) for i in range(300)]
    plays.insert(200, erasure("v3", 250))
    whole = count(plays, rules=RULES)
    fields: dict[str, bytes] = {}
    counts = Counts(0)
    for at in (50, 130, 131, len(plays)):
        counts = count(plays[counts.next_offset : at], counts, RULES)
        fields |= changed_fields(counts)
        counts = counts_of(counts.next_offset, fields, "here")
    assert {one: (of.slot, of.sums, list(of.fans)) for one, of in counts.new.items()} == {
        one: (of.slot, of.sums, list(of.fans)) for one, of in whole.new.items()
    }


# Vectors


def test_a_vector_by_viewers_is_the_step_of_als() -> None:
    rng, p = np.random.default_rng(3), FoldInParameters(regularization=0.7, alpha=5)
    X, Y = rng.normal(size=(40, K)).astype(np.float32), 100 * GENERATION.item_factors
    fold, watched = item_fold(X, Y, p), [1, 7, 9]
    c = np.where(np.isin(np.arange(40), watched), 1 + p.alpha, 1.0)
    wanted = np.linalg.solve((X.T * c) @ X + p.regularization * np.eye(K), X[watched].sum(axis=0) * (1 + p.alpha))
    assert fold.vector(X[watched].astype(np.float64), None) == pytest.approx(wanted, rel=1e-5)
    # the content counts as so many viewers
    content = np.ones(K)
    blended = fold.vector(X[watched].astype(np.float64), content)
    assert blended == pytest.approx((3 * wanted + CONTENT_WEIGHT * content) / (3 + CONTENT_WEIGHT), rel=1e-5)
    assert fold.vector(np.zeros((0, K)), content) == pytest.approx(content)


def test_no_vector_is_longer_than_the_longest_of_the_generation() -> None:
    fold = item_fold(np.zeros((0, K), np.float32), GENERATION.item_factors, FoldInParameters())
    longest = np.linalg.norm(GENERATION.item_factors, axis=1).max()
    assert np.linalg.norm(fold.vector(np.zeros((0, K)), np.full(K, 1e6))) == pytest.approx(longest, rel=1e-6)


def test_by_its_content_an_item_lies_where_titles_like_it_lie() -> None:
    Y = np.array([[2, 0], [4, 0], [0, 1], [0, 0]], np.float32)
    items = [
        CatalogueItem("a", "A", topics=("crime",), creators=("ann",)),
        CatalogueItem("b", "B", topics=("crime",)),
        CatalogueItem("c", "C", topics=("song",), creators=("crime",)),
        CatalogueItem("d", "D", topics=("unplayed",)),
    ]
    content = content_of(items, Y)
    assert content.vector(CatalogueItem("x", "X", topics=("crime",))) == pytest.approx([3, 0])
    both = content.vector(CatalogueItem("x", "X", topics=("song",), creators=("ann",)))
    assert both is not None
    assert both[0] > both[1] > 0
    for unknown in (CatalogueItem("x", "X"), CatalogueItem("x", "X", topics=("unplayed",))):
        assert content.vector(unknown) is None


# Which


def test_the_most_played_are_taken_then_the_newest_and_only_what_the_catalogue_has() -> None:
    counts = {0: count([report("a", "x", 60), report("b", "y", 61), report("c", "y", 62)], rules=RULES)}
    titles = {
        one.item_id: one for one in (CatalogueItem("old", "Old", released_at_ms=5), CatalogueItem("x", "X"),
                                     CatalogueItem("young", "Young", released_at_ms=9))
    }  # fmt: skip
    assert [(one.item.item_id, one.plays, one.fans) for one in choose(counts, titles, 2)] == [
        ("x", 1, ("a",)),
        ("young", 0, ()),
    ]
    assert [(one.item.item_id, set(one.fans)) for one in choose(counts, None, 9)] == [("x", {"a"}), ("y", {"b", "c"})]
    assert choose(counts, {}, 9) == []


def test_viewers_of_several_partitions_share_the_places() -> None:
    many = [report(f"v{i}", "x", 60 + i) for i in range(FANS)]
    few = [report(f"w{i}", "x", 60 + i) for i in range(3)]
    (one,) = choose({0: count(many, rules=RULES), 1: count(few, rules=RULES)}, None, 5)
    assert len(one.fans) == FANS
    assert {"w0", "w1", "w2", f"v{FANS - 1}"} <= set(one.fans)
    assert one.plays == FANS + 3


# Served


def test_a_longer_generation_is_the_generation_and_the_items() -> None:
    short = taken(GENERATION, 4)
    assert np.flatnonzero(unplayed(short)).tolist() == [4]
    more = added("tt0000004", "new-1", "new-2")
    longer = extended(short, more)
    assert longer.n_items == N + 2
    assert [longer.index[one] for one in more.item_ids] == [4, N, N + 1] == more.rows(short.index).tolist()
    assert (longer.item_factors[[4, N, N + 1]] == more.item_factors).all()
    kept = np.arange(N) != 4
    assert (longer.item_factors[:N][kept] == short.item_factors[kept]).all()
    assert (longer.popularity_score[:N][kept] == short.popularity_score[kept]).all()
    assert longer.YtY is short.YtY
    assert longer.rows_of_digests(longer.item_digests).tolist() == list(range(N + 2))
    assert (np.diff(longer.popularity[longer.popular_order]) <= 0).all()
    assert extended(short, no_items(K)) is short
    again = replace(longer)  # what is derived from the same columns anew
    assert (again.digest_order == longer.digest_order).all()
    assert again.windows == longer.windows


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (added("tt0000003"), "has a vector"),
        (added("new-1", "new-1"), "twice"),
        (replace(added("new-1"), item_factors=np.zeros((1, K + 1), np.float32)), "another shape"),
        (replace(added("new-1"), item_factors=np.full((1, K), np.nan, np.float32)), "NaN"),
        (replace(added("new-1"), maturity=np.zeros(2, np.uint8)), "another length"),
        (replace(added("new-1"), popularity=np.full(1, -1, np.float32)), "negative"),
    ],
)
def test_items_that_do_not_fit_are_refused(wrong: Added, says: str) -> None:
    with pytest.raises(GenerationError, match=says):
        extended(GENERATION, wrong)


def rewriter(generation: Generation) -> Rewriter:
    return Rewriter(generation, 1, CODEC.encode_row, Limits())


def state_of(*items: str) -> ViewerState:
    plays = [Play(T0 + place, place, item, 255, COMPLETED) for place, item in enumerate(items)]
    return ViewerState(plays=tuple(reversed(plays)))


def entries(of: Rewriter, state: ViewerState) -> list[str]:
    return [one.item_id for one in CODEC.decode_row(of.rewrite(state, computed_at_ms=T0 + 9).row_bytes).entries]


def test_a_snapshot_carries_what_came_since_to_every_row() -> None:
    short = taken(GENERATION, 4)
    weights = np.array([float(name == "trend_1d") for name in FEATURES])
    assert short.tables is not None
    quiet = replace(short.tables, weights=weights, trending=np.zeros((N, len(HALF_LIVES_DAYS)), np.float32))
    own = rewriter(short.with_tables(quiet))
    more = added("new-1", "tt0000004")
    plays = [report(f"v{i}", "new-1", 10 + i) for i in range(9)] + [report("w", "tt0000004", 60)]
    rules = replace(RULES, index={one: row for one, row in short.index.items() if row != 4})
    data = encode(merge({0: count(plays, rules=rules)}, "g1", T0, more, short.index))
    first = take_up(own, data, name_of(data))
    assert equal(first.added, more)
    row = entries(first.rewriter, state_of("tt0000001"))
    assert row[:2] == ["new-1", "tt0000004"]
    assert "new-1" not in entries(first.rewriter, state_of("tt0000001", "new-1"))  # seen
    assert "new-1" not in entries(own, state_of("tt0000001"))
    # as it is folded in: what it says of taste counts from then on
    with_it, without = (one.rank([state_of("tt0000001", "new-1")], computed_at_ms=T0) for one in (first.rewriter, own))
    assert with_it[0] is not None
    assert without[0] is not None
    assert len(with_it[0].folded.rows) == 2
    assert len(without[0].folded.rows) == 1


def test_a_row_with_what_came_since_is_the_same_whoever_makes_it() -> None:
    """By one who was prepared before, by one who begins with it, by the readable twin."""
    plays = [report(f"v{i}", one, 10 + i) for i, one in enumerate(["new-1", "new-2", "new-2", "tt0000003"])]
    more = added("new-1", "new-2", seed=4)
    data = encode(merge({0: count(plays, rules=RULES)}, "g1", T0, more, GENERATION.index))
    ready, fresh = rewriter(GENERATION), rewriter(replace(GENERATION))
    ready.prepare()
    before = take_up(ready, data, name_of(data))
    state = state_of("tt0000001", "new-1", "tt0000009")
    made = before.rewriter.rewrite(state, computed_at_ms=T0)
    assert take_up(fresh, data, name_of(data)).rewriter.rewrite(state, computed_at_ms=T0) == made
    assert take_up(ready, data, name_of(data), before).longer is before.longer
    ranked = before.rewriter.rank([state], computed_at_ms=T0)[0]
    assert ranked is not None
    assert [one.item_id for one in ranked.entries] == [one.item_id for one in CODEC.decode_row(made.row_bytes).entries]


def test_who_met_none_of_them_has_the_vector_that_they_had() -> None:
    own, state = rewriter(GENERATION), state_of("tt0000001", "tt0000009")
    longer = own.extended(added("new-1"))
    assert longer.rewrite(state, computed_at_ms=T0).vector_bytes == own.rewrite(state, computed_at_ms=T0).vector_bytes


def test_a_snapshot_of_the_version_before_still_reads() -> None:
    snapshot = Snapshot("g1", T0 + 5, 7, np.array([2, 9], np.int32), np.ones((2, len(HALF_LIVES_DAYS)), np.float32))
    columns = [np.ascontiguousarray(snapshot.rows, "<i4"), *np.ascontiguousarray(snapshot.live.T, "<f4")]
    body = zlib.compress(b"".join(column.view(np.uint8).reshape(-1, 4).T.tobytes() for column in columns))
    data = b"NLTR\x01\x02g1" + _HEADER.pack(snapshot.at_ms, 7, 2, len(body)) + body
    data += struct.pack("<I", zlib.crc32(data))
    found = decode(data, name_of(data))
    assert (found.rows.tolist(), found.plays, len(found.added)) == ([2, 9], 7, 0)
    assert (found.live == snapshot.live).all()


def test_a_damaged_list_of_items_is_refused() -> None:
    data = encode(merge({}, "g1", T0, added("new-1", "new-2"), GENERATION.index))
    assert decode(data, name_of(data)).added.item_ids == ("new-1", "new-2")
    at = 6 + 2 + _HEADER.size
    for m, k in ((3, K), (2, K + 1), (1, K), (2**32 - 1, K)):
        bad = data[:at] + struct.pack("<IH", m, k) + data[at + 6 : -4]
        bad += struct.pack("<I", zlib.crc32(bad))
        with pytest.raises(GenerationError, match=r"its length|buffer|decode"):
            decode(bad, name_of(bad))


@pytest.mark.parametrize("bad", ["", "Übung", "two words", "x" * 129])
def test_what_is_no_id_never_reaches_the_kernel(bad: str) -> None:
    """It packs ids by their characters, in a table of 128."""
    with pytest.raises(GenerationError, match="id is none"):
        extended(GENERATION, added("new-1", bad))


def test_a_damaged_checkpoint_tells_nobody_who_watched() -> None:
    counts = count([report("secret-viewer", "new-1", 60)], rules=RULES)
    fields = changed_fields(counts)
    fields["t0"] = fields["t0"].replace(b"secret-", b"secret\xff")
    with pytest.raises(StoreChanged) as raised:
        counts_of(counts.next_offset, fields, "here")
    assert "secret" not in str(raised.value)


# From the store's viewers


async def off_loop(action, *arguments):  # type: ignore[no-untyped-def]
    return action(*arguments)


def newcomers(store: MemoryStore, *titles: CatalogueItem, named: bool = True) -> Newcomers:
    announced = Announced({}, GENERATION.index, named=named)
    for one in titles:
        announced.put(one)
    items = [CatalogueItem(one, one, topics=("a" if row % 2 else "b",)) for row, one in enumerate(GENERATION.item_ids)]
    fold = item_fold(GENERATION.item_factors, GENERATION.item_factors, GENERATION.parameters)
    return Newcomers(announced, content_of(items, GENERATION.item_factors), fold, 3, 10, None)  # type: ignore[arg-type]


async def write(store: MemoryStore, viewer: str, x: list[float], activation: int = 3) -> None:
    token = (await store.read_viewer(viewer)).token
    vector = np.array(x, "<f2").tobytes()
    drawn = next(TOKENS).to_bytes(8, "little")
    await store.write_viewers([ViewerWrite(viewer, token, drawn, activation, b"s", vector, b"")])


async def test_an_announced_title_is_served_from_its_content_and_then_by_its_viewers() -> None:
    store = MemoryStore()
    await store.connect()
    own = newcomers(store, CatalogueItem("x", "X", topics=("a",)), CatalogueItem("gone", "Gone", taken_down=True))
    await own.look({}, store.trends, off_loop)
    assert own.added.item_ids == ("x",)
    by_content = own.added.item_factors[0]
    assert by_content.any()
    await write(store, "ana", [0, 0, 0, 2])
    await write(store, "old", [9, 9, 9, 9], activation=2)  # of another generation's space
    counts = {0: count([report("ana", "x", 60), report("old", "x", 61)], rules=RULES)}
    await own.look(counts, store.trends, off_loop)
    by_viewers = own.added.item_factors[0]
    fold, content = own._fold, own._content.vector(CatalogueItem("x", "X", topics=("a",)))
    wanted = fold.vector(np.array([[0.0, 0, 0, 2]]), content)
    assert by_viewers == pytest.approx(wanted, abs=1e-3)
    assert own.added.popularity.tolist() == [2]


async def test_who_sees_another_generation_during_a_share_tells_nothing_of_an_items_vector() -> None:
    """Their vectors are of the same activation, and in another space."""
    store = MemoryStore()
    await store.connect()
    own = newcomers(store, CatalogueItem("x", "X"))
    own._is_ours = lambda viewer: viewer != "candidate"
    await write(store, "ana", [0, 0, 0, 2])
    await write(store, "candidate", [9, 9, 9, 9])
    counts = {0: count([report("ana", "x", 60), report("candidate", "x", 61)], rules=RULES)}
    await own.look(counts, store.trends, off_loop)
    alone = newcomers(store, CatalogueItem("x", "X"))
    await alone.look({0: count([report("ana", "x", 60)], rules=RULES)}, store.trends, off_loop)
    assert np.array_equal(own.added.item_factors, alone.added.item_factors) and own.added.item_factors.any()
    for _ in range(LOOKS):
        await own.look(counts, store.trends, off_loop)
    assert not own._looks, "nobody waits for them either"


async def test_a_viewer_whose_vector_comes_later_is_looked_at_again_and_not_for_ever() -> None:
    store = MemoryStore()
    await store.connect()
    own = newcomers(store, CatalogueItem("x", "X"))
    counts = {0: count([report("ana", "x", 60)], rules=RULES)}
    await own.look(counts, store.trends, off_loop)
    assert not own.added.item_factors.any()
    await write(store, "ana", [0, 0, 0, 2])
    await own.look(counts, store.trends, off_loop)
    assert own.added.item_factors.any()
    for _ in range(LOOKS):
        await own.look(counts, store.trends, off_loop)
    found = own.added
    await write(store, "ana", [2, 0, 0, 0])
    await own.look(counts, store.trends, off_loop)
    assert equal(own.added, found)
    own._announced.remove("x")
    await own.look(counts, store.trends, off_loop)
    assert len(own.added) == 0


async def test_nothing_of_an_erased_viewer_stays_in_an_items_vector() -> None:
    store = MemoryStore()
    await store.connect()
    own = newcomers(store, CatalogueItem("x", "X", topics=("a",)))
    await own.look({}, store.trends, off_loop)
    by_content = own.added
    await write(store, "ana", [0, 0, 0, 2])
    await write(store, "new", [0, 0, 0, 0])  # knows this title alone
    counts = count([report("ana", "x", 60), report("new", "x", 61)], rules=RULES)
    for _ in range(LOOKS + 1):
        await own.look({0: counts}, store.trends, off_loop)
    assert not np.array_equal(own.added.item_factors, by_content.item_factors)
    counts = count([erasure("ana", 120)], counts, RULES)
    await own.look({0: counts}, store.trends, off_loop)
    assert np.array_equal(own.added.item_factors, by_content.item_factors)


async def test_an_erasure_is_not_forgotten_where_the_store_was_away() -> None:
    store = MemoryStore()
    await store.connect()
    own = newcomers(store, CatalogueItem("x", "X", topics=("a",)), CatalogueItem("y", "Y"))
    for viewer in ("ana", "ben"):
        await write(store, viewer, [0, 0, 0, 2])
    counts = count([report("ana", "x", 60), report("ben", "y", 61)], rules=RULES)
    for _ in range(LOOKS + 1):
        await own.look({0: counts}, store.trends, off_loop)
    before = own.added.item_factors[0]
    counts = count([erasure("ana", 120), report("cy", "y", 130)], counts, RULES)

    class Away:
        async def read_vectors(self, viewers: object, activation: int) -> list[bytes]:
            raise StoreUnavailable("away")

    with pytest.raises(StoreUnavailable):
        await own.look({0: counts}, Away(), off_loop)  # type: ignore[arg-type]
    await own.look({0: counts}, store.trends, off_loop)
    assert not np.array_equal(own.added.item_factors[0], before)


async def test_a_title_of_which_the_catalogue_says_something_else_is_looked_at_again() -> None:
    store = MemoryStore()
    await store.connect()
    own = newcomers(store, CatalogueItem("x", "X", topics=("a",)))
    await own.look({}, store.trends, off_loop)
    before = own.added.item_factors[0]
    own._announced.put(CatalogueItem("x", "X", topics=("b",)))
    await own.look({}, store.trends, off_loop)
    assert not np.array_equal(own.added.item_factors[0], before)


async def test_a_rebuild_may_take_longer_than_all_looks() -> None:
    store = MemoryStore()
    await store.connect()
    own = newcomers(store, CatalogueItem("x", "X"))
    await write(store, "ana", [0, 0, 0, 2], activation=2)
    counts = {0: count([report("ana", "x", 60)], rules=RULES)}
    for _ in range(3 * LOOKS):
        await own.look(counts, store.trends, off_loop)
    assert not own.added.item_factors.any()
    await write(store, "ana", [0, 0, 0, 2])
    await own.look(counts, store.trends, off_loop)
    assert own.added.item_factors.any()


async def test_where_the_viewers_cannot_be_read_yet_the_published_vectors_stay() -> None:
    store = MemoryStore()
    await store.connect()
    own = newcomers(store, CatalogueItem("x", "X"))
    own.take_up(added("x"))
    await own.look({0: count([report("ana", "x", 60)], rules=RULES)}, store.trends, off_loop)
    assert (own.added.item_factors == added("x").item_factors).all()


async def test_without_a_catalogue_what_is_played_is_served_once_that_is_sure() -> None:
    store = MemoryStore()
    await store.connect()
    counts = {0: count([report("ana", "x", 60)], rules=RULES)}
    own = newcomers(store, named=False)
    await own.look(counts, store.trends, off_loop)
    assert len(own.added) == 0  # the topic was not read to its end yet

    class Feed:
        caught_up = True

    own._feed = Feed()  # type: ignore[assignment]
    await own.look(counts, store.trends, off_loop)
    assert own.added.item_ids == ("x",)
    own._announced.put(CatalogueItem("y", "Y"))
    await own.look(counts, store.trends, off_loop)
    assert own.added.item_ids == ("y",)


def test_items_without_a_vector_are_found_by_their_trend_alone() -> None:
    (one,) = choose({0: count([report("ana", "x", 60)], rules=RULES)}, None, 5)
    made = added_of([one], {}, K)
    assert (made.item_ids, made.item_factors.tolist(), made.popularity.tolist()) == (("x",), [[0.0] * K], [1.0])
