"""A night under rules: they come with the generation, rows obey them, say so, and can be recomputed; what was told and disliked counts."""

from __future__ import annotations

from typing import Any

from batch.activation import rollback
from batch.publish import TRAINING
from contracts.catalogue import CatalogueItem
from contracts.events import Kind, PlaybackEvent
from contracts.rows import HomeRow
from contracts.rules import NO_RULES, Rules
from embeddings.files import load_generation, load_manifest
from homepage.inspect import explain_viewer
from runtime.progress import SilentProgress
from runtime.sections import RulesSettings
from runtime.settings import Settings
from tests.integration.test_nightly import CODEC, ITEMS, history, run, send
from tests.worlds import T0, play_event
from viewers.memory_store import MemoryStore

MAKERS = 4


def titles() -> list[CatalogueItem]:
    """Even and odd ones; each maker makes some of both."""
    return [
        CatalogueItem(f"tt{i:07d}", f"Title {i}", ("even" if i % 2 == 0 else "odd",), (f"Maker {i // 2 % MAKERS}",))
        for i in range(ITEMS)
    ]


def ruled(settings: Settings, **rules: Any) -> Settings:
    return settings.model_copy(update={"rules": RulesSettings(**rules)})


async def row_of(store: MemoryStore, viewer: str) -> HomeRow:
    return CODEC.decode_row((await store.read_viewer(viewer)).row)


def evens(row: HomeRow, places: int = 8) -> int:
    return sum(int(entry.item_id[2:]) % 2 == 0 for entry in row.entries[:places])


async def test_rules_come_with_the_generation_and_go_with_it(settings: Settings) -> None:
    store = MemoryStore()
    await send(settings, history(), titles())
    first = await run(ruled(settings, preference_strength=0.0), store, seed=True)
    assert load_generation(settings.generations_path, first.generation_id).rules == NO_RULES
    limited = ruled(settings, per_creator=1, window=3, exploration=0.1)
    second = await run(limited, store, force=True)
    assert second.generation_id != first.generation_id  # nothing new was played: the rules alone are another generation
    manifest = load_manifest(settings.generations_path, second.generation_id)
    assert manifest.rules == Rules(window=3, per_creator=1, exploration=0.1, preference=1.0)
    assert manifest.metrics[TRAINING]["repeats"] == 0

    makers = {item.item_id: item.creators[0] for item in titles()}
    held = 0
    for viewer in ("v00", "v01", "v17"):
        row = await row_of(store, viewer)
        names = [makers[entry.item_id] for entry in row.entries[:9]]
        assert all(len(set(names[at : at + 3])) == 3 for at in range(7)), names
        told = (await explain_viewer(limited, store, CODEC, viewer)).data
        assert told["stored_row_is_recomputed_row"]
        assert [entry["item_id"] for entry in told["entries"]] == [entry.item_id for entry in row.entries]
        rules = {entry["source"]: entry["rule"] for entry in told["entries"] if entry["source"] == "explore"}
        assert all("10% of the places" in rule for rule in rules.values())
        held += sum("at most 1 of creator:Maker_" in entry["rule"] for entry in told["entries"])
    assert held

    await rollback(settings, store, progress=SilentProgress())
    told = (await explain_viewer(settings, store, CODEC, "v00")).data
    assert (told["generation_id"], told["stored_row_is_recomputed_row"]) == (first.generation_id, True)


async def test_who_only_told_what_they_like_has_a_row_of_it(settings: Settings) -> None:
    store = MemoryStore()
    told = [
        PlaybackEvent(f"told-{name}", Kind.PREFER, name, T0 + 9_000_000, preference=f"topic:{name}", value=100)
        for name in ("even", "odd")
    ]
    await send(settings, [*history(), *told], titles())
    await run(settings, store, seed=True)
    even, odd = await row_of(store, "even"), await row_of(store, "odd")
    assert evens(even) > evens(odd) + 3
    assert {reason.item_id for entry in even.entries for reason in entry.reasons} == {"topic:even"}
    data = (await explain_viewer(settings, store, CODEC, "even")).data
    assert data["stored_row_is_recomputed_row"]
    assert data["preferences"] == [{"subject": "topic:even", "value": 1.0}]
    assert data["entries"][0]["plays"][0]["item_id"] == "topic:even"


async def test_a_skip_or_a_dislike_takes_the_title_away_and_lowers_its_like(settings: Settings) -> None:
    store = MemoryStore()
    watched = {name: [play_event(name, 8, 90_000), play_event(name, 0, 90_100)] for name in ("plain", "skips", "rates")}
    disliked = ("tt0000002", "tt0000004", "tt0000006")
    skips = [play_event("skips", item, 91_000 + n, kind=Kind.SKIP, share=0.05) for n, item in enumerate(disliked)]
    rates = [
        PlaybackEvent(f"rate{n}", Kind.RATE, "rates", T0 + 91_000_000 + n, item_id=item, value=-100)
        for n, item in enumerate(disliked)
    ]
    await send(settings, [*history(), *(event for of in watched.values() for event in of), *skips, *rates], titles())
    await run(settings, store, seed=True)
    plain = await row_of(store, "plain")
    assert {"tt0000002", "tt0000004"} <= {entry.item_id for entry in plain.entries}
    score = {entry.item_id: entry.score for entry in plain.entries}
    for viewer in ("skips", "rates"):
        row = await row_of(store, viewer)
        assert not set(disliked) & {entry.item_id for entry in row.entries}
        others = {e.item_id: e.score for e in row.entries if int(e.item_id[2:]) % 2 == 0}
        lower = sum(value < score[item] for item, value in others.items())
        assert lower > 0.8 * len(others), viewer
