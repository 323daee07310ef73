"""Rules over a ranked list: limits, places for what was watched before and for exploration, preferences; the kernel does as its twin."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest

from contracts.codec import Codec
from contracts.errors import GenerationError, SettingsError
from contracts.manifest import from_json
from contracts.rows import ENTRIES_KEPT
from contracts.rules import NO_RULES, Rules, subject
from embeddings.added import Added
from embeddings.files import MANIFEST, load_generation
from embeddings.generation import NEVER_MS, Generation
from embeddings.groups import Groups, make_groups
from ranking import kernel_rules
from ranking.rules import AGAIN, EXPLORE, RANKED, activation, arrange, splitmix
from runtime.settings import load_settings
from tests.worlds import T0, make_generation, make_tables, write_generation_folder
from viewers.kernel import Todo
from viewers.packing import pack, unpack
from viewers.rewriter import Rewriter, ranking_input
from viewers.state import COMPLETED, SKIPPED, Limits, Play, Register, RegisterKind, ViewerState, merge

CODEC = Codec.load()
N = 400
LIMITS = Limits(max_plays=30, max_plays_per_item=3, max_registers=10, max_seen=40)


def groups_of(n: int = N, seed: int = 1) -> Groups:
    """Some titles of two creators, some of none; few topics."""
    rng = np.random.default_rng(seed)
    creators = [[f"Maker {c}" for c in rng.choice(25, rng.integers(0, 3), replace=False)] for _ in range(n)]
    topics = [[f"topic {t}" for t in rng.choice(6, rng.integers(1, 4), replace=False)] for _ in range(n)]
    return make_groups(creators, topics)


def ruled(rules: Rules, *, tables: bool = True, n: int = N) -> Generation:
    generation = make_generation(n, 16, seed=2)
    return dataclasses.replace(generation, rules=rules, groups=groups_of(n), tables=make_tables(n) if tables else None)


def state_of(*items: int, registers: tuple[Register, ...] = ()) -> ViewerState:
    """Watched whole, the first named the newest."""
    plays = [Play(T0 - 1000 * age, age, f"tt{item:07d}", 255, COMPLETED) for age, item in enumerate(items)]
    return merge([ViewerState(tuple(plays), registers=registers)], LIMITS)


def told(name: str, value: int = 100) -> Register:
    return Register(RegisterKind.PREFER, name, T0 - 5_000, 7, value)


def row_of(generation: Generation, state: ViewerState):
    """As the kernel makes it, which its twin agrees with."""
    rewriter = Rewriter(generation, 3, CODEC.encode_row, LIMITS)
    (twin,) = rewriter.rank([state], computed_at_ms=T0)
    row = CODEC.decode_row(rewriter.rewrite(state, computed_at_ms=T0).row_bytes)
    assert [entry.item_id for entry in row.entries] == [entry.item_id for entry in twin.entries]
    assert [entry.source for entry in row.entries] == [entry.source for entry in twin.entries]
    return row, twin


def fullest(generation: Generation, items: list[str], window: int, prefix: str) -> int:
    """The most entries of one group among any `window` in a row."""
    groups = generation.groups
    assert groups is not None
    of = [[groups.names[g] for g in groups.of(generation.index[item])] for item in items]
    return max(
        sum(name in names for names in of[start : start + window])
        for start in range(max(1, len(of) - window + 1))
        for name in {one for names in of[start : start + window] for one in names}
        if name.startswith(prefix)
    )


# Limits


def test_no_window_holds_more_of_a_creator_or_a_topic_than_the_rule_allows() -> None:
    state = state_of(1, 2, 3)
    free = [entry.item_id for entry in row_of(ruled(NO_RULES), state)[0].entries]
    generation = ruled(Rules(window=10, per_creator=1, per_topic=6))
    row, _ = row_of(generation, state)
    items = [entry.item_id for entry in row.entries]
    assert len(items) == len(set(items)) == ENTRIES_KEPT
    assert fullest(generation, items, 10, "creator:") == 1 < fullest(generation, free, 10, "creator:")
    assert fullest(generation, items, 10, "topic:") <= 6 < fullest(generation, free, 10, "topic:")


def test_an_entry_that_a_rule_held_back_says_which() -> None:
    _, twin = row_of(ruled(Rules(per_creator=1)), state_of(1, 2, 3))
    held = [name for name in twin.held_by if name]
    assert held
    assert all(name.startswith("creator:Maker_") for name in held)


def test_the_best_stays_first_and_the_others_keep_their_order_where_no_limit_is_reached() -> None:
    groups = make_groups([["a"], ["a"], ["a"], ["b"], ["b"]], [()] * 5)
    rules = Rules(window=2, per_creator=1)
    places = arrange(rules, groups, ([0, 1, 2, 3, 4], (), ()))
    assert [place.index for place in places] == [0, 3, 1, 4, 2]
    assert [place.held_by for place in places] == [-1, -1, 0, -1, 0]


def test_limits_give_way_where_a_row_would_have_holes() -> None:
    groups = make_groups([["a"]] * 5, [()] * 5)
    places = arrange(Rules(per_creator=1), groups, ([3, 1, 4], (), ()))
    assert [place.index for place in places] == [0, 1, 2]


def test_default_rows_obey_the_limits_too() -> None:
    generation = ruled(Rules(per_creator=1))
    row = CODEC.decode_row(Rewriter(generation, 1, CODEC.encode_row, LIMITS).default_row(computed_at_ms=T0))
    assert len(row.entries) == ENTRIES_KEPT
    assert fullest(generation, [entry.item_id for entry in row.entries], 10, "creator:") == 1


# Exploration


def test_exploration_has_its_share_of_the_places_and_says_so() -> None:
    generation = ruled(Rules(exploration=0.1))
    row, _ = row_of(generation, state_of(1, 2, 3))
    explored = [place for place, entry in enumerate(row.entries) if entry.source == "explore"]
    assert len(explored) == 6
    assert explored == [9, 19, 29, 39, 49, 59]
    median = np.median(generation.popularity)
    assert all(generation.popularity[generation.index[row.entries[place].item_id]] <= median for place in explored)


def test_what_is_explored_follows_from_what_the_row_is_made_of_alone() -> None:
    generation, state = ruled(Rules(exploration=0.2)), state_of(1, 2, 3)
    rewriter = Rewriter(generation, 3, CODEC.encode_row, LIMITS)
    rows = [rewriter.rewrite(state, computed_at_ms=at).row_bytes for at in (T0, T0, T0 + 1)]
    assert rows[0] == rows[1]
    first, other = ({e.item_id for e in CODEC.decode_row(row).entries if e.source == "explore"} for row in rows[1:])
    assert first != other


def test_what_is_explored_lies_closer_to_the_taste_than_what_is_drawn() -> None:
    generation = ruled(Rules(exploration=0.5))
    row, twin = row_of(generation, state_of(1, 2, 3))
    Y = generation.item_factors / np.linalg.norm(generation.item_factors, axis=1, keepdims=True)
    closeness = Y @ twin.folded.x
    explored = [generation.index[entry.item_id] for entry in row.entries if entry.source == "explore"]
    assert closeness[explored].mean() > closeness[generation.explorable].mean()


def test_draws_are_those_of_splitmix64() -> None:
    """Known answers: the first outputs of the published generator for seed 0, which adds the same constant at each step."""
    step = 0x9E3779B97F4A7C15
    assert [splitmix(0), splitmix(step), splitmix(2 * step)] == [
        0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F,
    ]  # fmt: skip


# Repeats


def test_watched_titles_come_back_at_their_share_and_the_newest_does_not() -> None:
    generation, state = ruled(Rules(repeats=0.5, repeat_gap=2)), state_of(5, 6, 7, 8, 7, 9)
    row, _ = row_of(generation, state)
    again = [entry.item_id for entry in row.entries if entry.source == "again"]
    assert again == [
        "tt0000007",
        "tt0000008",
        "tt0000009",
    ]  # by how often and how recently; 5 and 6 were watched a moment ago
    assert [entry.item_id for entry in row.entries[::2]][:3] == again  # half of the places
    assert not {"tt0000005", "tt0000006"} & {entry.item_id for entry in row.entries}


def test_hidden_and_disliked_titles_do_not_come_back() -> None:
    registers = (
        Register(RegisterKind.HIDE, "tt0000007", T0, 1, None), Register(RegisterKind.RATE, "tt0000008", T0, 2, -100),
    )  # fmt: skip
    row, _ = row_of(ruled(Rules(repeats=0.5, repeat_gap=0)), state_of(5, 6, 7, 8, registers=registers))
    assert {e.item_id for e in row.entries if e.source == "again"} == {"tt0000005", "tt0000006"}


def test_a_disliked_title_is_not_shown_though_it_was_never_watched() -> None:
    generation = ruled(NO_RULES)
    first = row_of(generation, state_of(5, 6))[0].entries[0].item_id
    for value, shown in ((-1, False), (0, True), (None, True)):
        state = state_of(5, 6, registers=(Register(RegisterKind.RATE, first, T0, 1, value),))
        row, _ = row_of(generation, state)
        assert (first in [entry.item_id for entry in row.entries]) == shown


def test_without_repeats_nothing_that_was_watched_is_shown() -> None:
    row, _ = row_of(ruled(NO_RULES), state_of(5, 6, 7))
    assert not {"tt0000005", "tt0000006", "tt0000007"} & {entry.item_id for entry in row.entries}


# Preferences


def test_who_only_told_a_preference_has_a_row_of_their_own_that_names_it() -> None:
    generation, name = ruled(Rules(preference=1.0), tables=False), "creator:Maker_3"
    groups, Y = generation.groups, generation.item_factors.copy()
    assert groups is not None
    theirs = [item for row, item in enumerate(generation.item_ids) if name in [groups.names[g] for g in groups.of(row)]]
    Y[[generation.index[item] for item in theirs]] += np.float32(1.0)  # who likes one of them likes the others
    generation = dataclasses.replace(generation, item_factors=Y)
    state = state_of(registers=(told(name),))
    row, twin = row_of(generation, state)
    popular, _ = row_of(dataclasses.replace(generation, rules=NO_RULES), state)
    ours, others = ([entry.item_id in theirs for entry in one.entries[:20]] for one in (row, popular))
    assert sum(ours) > sum(others) + 5
    assert {reason.item_id for entry in row.entries for reason in entry.reasons} == {name}
    assert twin.weight > 0


@pytest.mark.parametrize("tables", [False, True])
def test_what_a_viewer_does_outweighs_what_they_told(tables: bool) -> None:
    generation = ruled(Rules(preference=0.5), tables=tables)
    shares = []
    for plays in (0, 1, 4, 8, 25):
        state = state_of(*range(plays), registers=(told("topic:topic_2"),))
        _, twin = row_of(generation, state)
        preferred = twin.folded.rows >= N
        contributions = np.abs(twin.folded.contributions(generation.item_factors[twin.rows]))
        shares.append(contributions[:, preferred].sum() / contributions.sum())
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0


def test_contributions_of_plays_and_preferences_sum_to_the_taste() -> None:
    generation = ruled(Rules(preference=0.5))
    state = state_of(3, 4, registers=(told("topic:topic_2"), told("title:tt0000009"), told("creator:Maker_3", -100)))
    _, twin = row_of(generation, state)
    assert [generation.fold_ids[row] for row in twin.folded.rows[2:]] == [
        "creator:Maker_3", "tt0000009", "topic:topic_2",
    ]  # fmt: skip
    assert (twin.folded.c > 0).tolist() == [True, True, False, True, True]
    summed = twin.folded.contributions(generation.item_factors[twin.rows]).sum(axis=1)
    assert summed == pytest.approx(twin.als, abs=1e-5)


def test_a_preference_for_something_that_nobody_played_or_that_is_unknown_changes_nothing() -> None:
    generation = ruled(Rules(preference=0.5))
    plain, _ = row_of(generation, state_of(3, 4))
    told_row, _ = row_of(generation, state_of(3, 4, registers=(told("topic:nobody"), told("title:nothing"))))
    assert plain.entries == told_row.entries


@pytest.mark.parametrize("tables", [True, False])
def test_a_catalogue_of_which_hardly_anything_was_played_gives_rows_of_titles_alone(tables: bool) -> None:
    """More titles tie at nothing than the search keeps, so it looks at every title: at none of what preferences are about."""
    n, played = 1_500, 40
    generation = ruled(Rules(preference=1.0), tables=tables, n=n)
    factors, popularity = generation.item_factors.copy(), generation.popularity.copy()
    factors[played:] = popularity[played:] = 0
    generation = dataclasses.replace(generation, item_factors=factors, popularity=popularity)
    assert len(generation.fold_ids) > n
    row, _ = row_of(generation, state_of(1, 2, 3))
    assert len(row.entries) == ENTRIES_KEPT
    assert all(entry.item_id in generation.index for entry in row.entries)


@pytest.mark.parametrize("tables", [True, False])
def test_where_nothing_was_liked_there_is_no_taste_to_choose_by(tables: bool) -> None:
    """Else the twin would fill places, where limits reach far down, that the kernel leaves to what is popular."""
    generation = ruled(Rules(window=60, per_creator=1, preference=0), tables=tables)
    skipped = merge([ViewerState((Play(T0 - 1000, 1, "tt0000007", 5, SKIPPED),))], LIMITS)
    row, twin = row_of(generation, skipped)
    assert len(row.entries) == ENTRIES_KEPT
    assert not twin.folded.x.any()


def test_names_are_told_in_the_alphabet_of_ids() -> None:
    assert subject("creator:", "Ana Ruiz") == "creator:Ana_Ruiz"
    assert len(subject("topic:", "x" * 500)) == 128


# The kernel

RULES = {
    "none": NO_RULES,
    "limits": Rules(window=6, per_creator=1, per_topic=3),
    "all": Rules(10, 2, 5, 0.15, 0.5, 0.3, 1),
    "many repeats": Rules(repeats=0.9, repeat_gap=0),
    "all explored": Rules(exploration=0.5, per_topic=2, window=5),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("tables", [False, True])
def test_rows_are_those_of_the_twin_alone_and_in_any_company(name: str, tables: bool) -> None:
    rng, generation = random.Random(4), ruled(RULES[name], tables=tables)
    rewriter = Rewriter(generation, 3, CODEC.encode_row, LIMITS)
    subjects = ["topic:topic_1", "creator:Maker_2", "title:tt0000004", "topic:nobody"]
    batch = []
    for _ in range(60):
        state = state_of(*(rng.randrange(60) for _ in range(rng.choice([0, 1, 3, 12, 30]))))
        registers = tuple(told(rng.choice(subjects), rng.choice([-100, 50, 100])) for _ in range(rng.randrange(3)))
        registers += tuple(
            Register(RegisterKind.HIDE, f"tt{rng.randrange(60):07d}", T0, 1, None) for _ in range(rng.randrange(2))
        )
        batch.append(Todo(pack(merge([state, ViewerState(registers=registers)], LIMITS)), (), True, None))
    together = rewriter.rewrite_many(batch, computed_at_ms=T0)
    assert together == [rewriter.rewrite_many([todo], computed_at_ms=T0)[0] for todo in batch]
    rows = [
        (one, rewriter.rewrite_by_reference(todo, computed_at_ms=T0)) for one, todo in zip(together, batch, strict=True)
    ]
    rows = [(CODEC.decode_row(a.row_bytes), CODEC.decode_row(b.row_bytes)) for a, b in rows if a.row_bytes]
    assert len(rows) > 40
    for mine, twin in rows:
        assert [e.item_id for e in mine.entries] == [e.item_id for e in twin.entries]
        assert [e.source for e in mine.entries] == [e.source for e in twin.entries]
        assert [e.score for e in mine.entries] == pytest.approx([e.score for e in twin.entries], rel=2e-3, abs=1e-5)
        assert [[r.item_id for r in e.reasons] for e in mine.entries[:3]] == [
            [r.item_id for r in e.reasons] for e in twin.entries[:3]
        ]
    if name == "all":
        assert {e.source for mine, _ in rows for e in mine.entries} >= {"again", "explore"}


# Where rules live


def test_a_generation_brings_its_rules_and_an_older_manifest_has_none(tmp_path) -> None:
    generation = ruled(RULES["all"])
    write_generation_folder(tmp_path, generation)
    read = load_generation(tmp_path, "g1")
    assert read.rules == generation.rules
    state = state_of(1, 2, registers=(told("topic:topic_1"),))
    rows = [Rewriter(one, 3, CODEC.encode_row, LIMITS).rewrite(state, computed_at_ms=T0) for one in (generation, read)]
    assert rows[0] == rows[1]
    text = (tmp_path / "g1" / MANIFEST).read_text()
    content = json.loads(text)
    del content["rules"]
    assert from_json(json.dumps(content), "here").rules == NO_RULES
    content["rules"] = {**dataclasses.asdict(generation.rules), "exploration": 1.5}
    with pytest.raises(GenerationError, match=r"rules\.exploration: must be between 0 and 1"):
        from_json(json.dumps(content), "here")


def test_a_rule_that_limits_nothing_is_refused_with_what_to_do(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEARLINE_RULES__PER_CREATOR", "12")
    with pytest.raises(SettingsError, match="per_creator=12 among any 10 entries limits nothing: lower it"):
        load_settings()


def test_queues_and_activations_are_read_as_documented() -> None:
    places = arrange(Rules(repeats=0.5, exploration=0.25), None, (list(range(100)), [200, 201], [0, 300]))
    assert [place.queue for place in places[:8]] == [AGAIN, RANKED, AGAIN, EXPLORE, RANKED, RANKED, RANKED, RANKED]
    assert activation(4).tolist() == pytest.approx([1, 0.7071, 0.5774, 0.5], abs=1e-4)
    assert ranking_input(unpack(pack(state_of(5, 6, 5)))).activations == pytest.approx([1 + 3**-0.5, 2**-0.5])
    assert len(kernel_rules.make_rule_set(None, 10).starts) == 0


def test_items_that_came_since_the_night_are_ranked_under_its_rules() -> None:
    """They belong to no creator or topic until the night; what was told goes on meaning the same."""
    generation, state = ruled(RULES["all"]), state_of(3, 4, registers=(told("topic:topic_2"),))
    own = Rewriter(generation, 3, CODEC.encode_row, LIMITS)
    (plain,) = own.rank([state], computed_at_ms=T0)
    liked = np.tile(50 * plain.folded.x, (3, 1)).astype(np.float32)
    none, until = np.zeros(3, np.int64), np.full(3, NEVER_MS, np.int64)
    added = Added(("n1", "n2", "n3"), liked, np.ones(3, np.float32), none, until, none.astype(np.uint8))
    rewriter = own.extended(added)
    longer = rewriter.generation
    assert longer is not None
    (twin,) = rewriter.rank([state], computed_at_ms=T0)
    row = CODEC.decode_row(rewriter.rewrite(state, computed_at_ms=T0).row_bytes)
    assert [(e.item_id, e.source) for e in row.entries] == [(e.item_id, e.source) for e in twin.entries]
    assert longer.fold_ids[int(twin.folded.rows[-1])] == "topic:topic_2"
    assert (twin.folded.x == plain.folded.x).all()
    assert {"n1", "n2", "n3"} <= {entry.item_id for entry in row.entries}
