"""The ranker's sources and features: known answers, parts that add up, tables that survive their files."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from contracts.errors import GenerationError
from contracts.manifest import from_json, to_json
from contracts.rows import ENTRIES_WITH_REASONS
from embeddings.files import MANIFEST, load_generation, verify_generation
from embeddings.generation import Generation
from embeddings.publishing import _entry_of
from embeddings.table_files import COWATCH, RANKER, TRENDING, table_bytes
from embeddings.tables import BASE, FEATURES, SLOTS, STEPS, Cowatch, Tables
from ranking import features
from ranking.rows import SOURCES, RankingInput, popular_entries, rank, rank_candidates
from tests.worlds import T0, make_generation, make_tables, write_generation_folder

N = 300
TABLES = make_tables(N)
GENERATION = dataclasses.replace(make_generation(N, 16, seed=2), tables=TABLES)


def viewer(*items: int, strengths: tuple[float, ...] | None = None) -> RankingInput:
    ids = [GENERATION.item_ids[i] for i in items]
    return RankingInput(
        ids, strengths or [1.0] * len(ids), list(range(len(ids))), frozenset(ids), np.zeros(0, dtype=np.int64)
    )


def weighing(tables: Tables = TABLES, **weights: float) -> Generation:
    """The generation, with only these features counting."""
    vector = np.array([weights.get(name, 0.0) for name in FEATURES])
    return dataclasses.replace(GENERATION, tables=dataclasses.replace(tables, weights=vector))


def lists(**of: dict[int, float]) -> Cowatch:
    """Followers of items by number: {item: lift}; the share is a tenth of the lift, which is the same at every distance."""
    rows = [of.get(f"i{i}", {}) for i in range(N)]
    starts = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    items = np.array([item for row in rows for item in row], dtype=np.int32)
    lift = np.array([lift for row in rows for lift in row.values()], dtype=np.float32)
    return Cowatch(starts, items, lift / 10, np.tile(lift[:, None], (1, len(STEPS))))


def test_what_follows_the_last_play_comes_first_and_says_so() -> None:
    tables = dataclasses.replace(TABLES, cowatch=lists(i7={20: 3.0, 7: 9.0, 8: 8.0}, i8={30: 5.0}))
    (ranked,) = rank(weighing(tables, follows_last_any=2.0, follows_2nd_any=1.0), [viewer(7, 8)], T0)
    first, second, *rest = ranked.entries
    ids = GENERATION.item_ids
    assert (first.item_id, first.score, first.source, first.reasons) == (ids[20], 6.0, "cowatch", ((ids[7], 6.0),))
    assert (second.item_id, second.score, second.source, second.reasons) == (ids[30], 5.0, "cowatch", ((ids[8], 5.0),))
    assert not any(entry.score for entry in rest)


def test_what_was_disliked_is_not_followed() -> None:
    tables = dataclasses.replace(TABLES, cowatch=lists(i7={20: 3.0}, i8={30: 5.0}))
    (ranked,) = rank(weighing(tables, follows_last_any=1.0), [viewer(7, 8, strengths=(-0.3, 1.0))], T0)
    assert ranked.entries[0].item_id == GENERATION.item_ids[30]


def test_the_trend_of_a_day_leads_a_row_that_weighs_nothing_else() -> None:
    (ranked,) = rank(weighing(trend_1d=1.0), [viewer(1, 2, 3)], T0)
    order = [row for row in np.argsort(-TABLES.trending[:, 1], kind="stable").tolist() if row not in (1, 2, 3)]
    shown = [GENERATION.index[entry.item_id] for entry in ranked.entries]
    assert shown[: features.TRENDING_TAKEN] == order[: features.TRENDING_TAKEN]
    assert {entry.source for entry in ranked.entries[:20]} == {"trending"}


def test_parts_and_reasons_sum_to_the_score() -> None:
    (found,) = rank_candidates(GENERATION, [viewer(10, 20, 30, 40, 50)], T0)
    (ranked,) = rank(GENERATION, [viewer(10, 20, 30, 40, 50)], T0)
    weights = features.weights_of(TABLES, found.context)
    by_source = features.parts(weights, found.features)
    assert by_source.sum(axis=1) == pytest.approx(found.features @ weights)
    taste = ranked.folded.contributions(GENERATION.item_factors[found.rows]).sum(axis=1) * ranked.weight
    assert by_source[:, 0] == pytest.approx(taste, abs=1e-5)
    for row, parts in zip(found.rows.tolist(), by_source, strict=True):
        follows = features.following_contributions(weights, found.follows, row, 5)
        assert follows.sum() == pytest.approx(parts[SOURCES.index("cowatch")])


def test_a_lift_without_a_share_is_a_contribution_too() -> None:
    weights = np.arange(len(BASE), dtype=np.float64)
    follows = features.Following(np.array([1]), np.array([7]), np.zeros(1), np.ones((1, len(STEPS))))
    found = features.following_contributions(weights, follows, 7, 2)
    assert found.tolist() == [0.0, weights[features.LIFT + len(STEPS) : features.LIFT + 2 * len(STEPS)].sum()]


def test_every_source_is_named_and_only_the_first_entries_have_reasons() -> None:
    rng = np.random.default_rng(3)
    viewers = [viewer(*rng.choice(N, 20, replace=False)) for _ in range(40)]
    mixed = weighing(taste=3, popularity=5, trend_1d=0.3, follows_any=0.2)
    entries = [entry for ranked in rank(mixed, viewers, T0) for entry in ranked.entries]
    assert {entry.source for entry in entries} == set(SOURCES[:4])
    (ranked,) = rank(mixed, viewers[:1], T0)
    assert not any(entry.reasons for entry in ranked.entries[ENTRIES_WITH_REASONS:])


def test_the_default_row_is_what_the_ranker_makes_of_nobody() -> None:
    entries = popular_entries(GENERATION, T0, maturity=99)
    nobody = RankingInput([], [], [], frozenset(), np.zeros(0, dtype=np.int64))
    (ranked,) = rank(GENERATION, [nobody], T0)
    scores = {entry.item_id: entry.score for entry in ranked.entries}
    assert entries[0].score >= ranked.entries[0].score
    assert [e.score for e in entries] == sorted((e.score for e in entries), reverse=True)
    known = [(entry.score, scores[entry.item_id]) for entry in entries if entry.item_id in scores]
    assert len(known) > 20
    assert [one for one, _ in known] == pytest.approx([other for _, other in known])


# Files


def test_tables_come_back_from_their_files(tmp_path) -> None:
    write_generation_folder(tmp_path, GENERATION)
    verify_generation(tmp_path, "g1")
    read = load_generation(tmp_path, "g1").tables
    assert read is not None
    assert (read.trending == TABLES.trending).all()
    assert (read.weights == TABLES.weights).all()
    for name in ("starts", "items", "share", "lift"):
        ours, theirs = getattr(TABLES.cowatch, name), getattr(read.cowatch, name)
        assert ours.dtype == theirs.dtype
        assert (ours == theirs).all()


def test_a_generation_without_tables_has_none(tmp_path) -> None:
    write_generation_folder(tmp_path, make_generation(N))
    assert load_generation(tmp_path, "g1").tables is None


def replaced(tmp_path, name: str, data: bytes | None) -> None:
    """The file changed (None: taken away) and its checksum with it, as only a wrong writer would."""
    folder = tmp_path / "g1"
    manifest = from_json((folder / MANIFEST).read_bytes(), "here")
    files = {other: entry for other, entry in manifest.files.items() if other != name}
    if data is not None:
        (folder / name).write_bytes(data)
        files[name] = _entry_of(data)
    (folder / MANIFEST).write_text(to_json(dataclasses.replace(manifest, files=files)))


def test_tables_of_the_rule_before_serve_as_they_did(tmp_path) -> None:
    """An older program's files: one lift an entry, 17 weights, of which three are of what is known of few plays."""
    write_generation_folder(tmp_path, GENERATION)
    table = pq.read_table(tmp_path / "g1" / COWATCH).select(["items", "share", "lift"])
    written = io.BytesIO()
    pq.write_table(table, written)
    replaced(tmp_path, COWATCH, written.getvalue())
    slots = {f"follows_{slot}": 0.1 * n for n, slot in enumerate(SLOTS, 1)}
    trends = {f"trend_{of}": 0.2 for of in ("12h", "1d", "3d", "7d", "30d")}
    weights = {"taste": 2.0, "taste_by_evidence": 3.0, "popularity": 0.5, "popularity_without_evidence": 0.7}
    weights |= {"trend_1d_without_evidence": 0.4, "trend_7d_without_evidence": 0.6, "follows_any": 0.9}
    replaced(tmp_path, RANKER, json.dumps({"rule": "softmax-1", "weights": weights | slots | trends}).encode())
    read = load_generation(tmp_path, "g1").tables
    assert read is not None
    found = dict(zip(BASE, features.weights_of(read, features.context(0.25, 2, 10**9)).tolist(), strict=True))
    assert found["taste"] == pytest.approx(2 + 0.25 * 3)
    assert found["popularity"] == pytest.approx(0.5 + 0.75 * 0.7)
    assert [found[name] for name in trends] == pytest.approx([0.2, 0.2 + 0.75 * 0.4, 0.2, 0.2 + 0.75 * 0.6, 0.2])
    assert [found[f"{name}_any"] for name in slots] == pytest.approx(list(slots.values()))
    assert found["follows_any"] == 0.9
    assert (read.cowatch.lift[:, 0] == TABLES.cowatch.lift[:, 0]).all()
    assert not read.cowatch.lift[:, 1:].any()


BAD = {
    "a file is missing": (TRENDING, lambda: None),
    "another rule": (RANKER, lambda: json.dumps({"rule": "softmax-9", "weights": {}}).encode()),
    "a weight is missing": (RANKER, lambda: json.dumps({"rule": "softmax-1", "weights": {"taste": 1}}).encode()),
    "a weight is not finite": (
        RANKER,
        lambda: json.dumps({"rule": "softmax-1", "weights": dict.fromkeys(FEATURES, float("nan"))}).encode(),
    ),
    "not JSON": (RANKER, lambda: b"[" * 100_000),
    "not Parquet": (COWATCH, lambda: b"PAR1"),
    "an item outside the catalogue": (
        COWATCH,
        lambda: table_bytes(dataclasses.replace(TABLES, cowatch=lists(i1={N: 1.0})))[COWATCH],
    ),
    "a negative lift": (
        COWATCH,
        lambda: table_bytes(dataclasses.replace(TABLES, cowatch=lists(i1={2: -1.0})))[COWATCH],
    ),
    "a negative trend": (
        TRENDING,
        lambda: table_bytes(dataclasses.replace(TABLES, trending=-TABLES.trending))[TRENDING],
    ),
    "another shape": (TRENDING, lambda: table_bytes(make_tables(N - 1))[TRENDING]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_table_that_is_wrong_is_refused(tmp_path, case: str) -> None:
    write_generation_folder(tmp_path, GENERATION)
    name, make = BAD[case]
    replaced(tmp_path, name, make())
    with pytest.raises(GenerationError, match=r"publish the generation again|this program ranks by"):
        load_generation(tmp_path, "g1")


def test_a_wrong_table_is_never_published(tmp_path) -> None:
    wrong = dataclasses.replace(make_generation(N - 1), tables=None)
    object.__setattr__(wrong, "tables", TABLES)
    with pytest.raises(GenerationError):
        write_generation_folder(tmp_path, wrong)
    assert not list(tmp_path.iterdir())
