"""The nightly job on a real Kafka: a tiny world from its events to everybody's row, twice, interrupted, erased, rolled back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from batch import nightly, verbs
from batch.activation import activate, list_generations, rollback, share
from batch.evaluate import Evaluation, Holdout
from batch.forget import forget
from batch.lake import Lake, open_lake
from batch.nightly import NightlyReport, run_nightly
from batch.review.files import find_page, read_content
from contracts.catalogue import CatalogueItem
from contracts.codec import Codec
from contracts.current import Current
from contracts.errors import UserError
from contracts.events import Kind, PlaybackEvent
from contracts.manifest import Decision
from contracts.shares import Share
from embeddings.files import load_generation, load_users
from embeddings.generation import Generation
from embeddings.generations_folder import GenerationsFolder
from runtime.kafka import make_producer
from runtime.progress import SilentProgress
from runtime.settings import Settings, StoreSettings
from sandbox.servers import ValkeyServer
from tests.worlds import T0, play_event
from viewers.memory_store import MemoryServer, MemoryStore
from viewers.packing import unpack
from viewers.redis_store import open_store
from viewers.rewriter import Rewriter
from viewers.state import Limits, merge, state_of

CODEC = Codec.load()
LIMITS = Limits()
VIEWERS, ITEMS, PLAYS = 60, 24, 9
HOLDOUT = Holdout(T0, 1, advisory=False)


def history() -> list[PlaybackEvent]:
    """Two tastes, even and odd: each viewer plays `PLAYS` titles of one kind, in an order of their own; and some of the rest."""
    rng = np.random.default_rng(3)
    events = []
    for viewer in range(VIEWERS):
        mine = rng.permutation(np.arange(viewer % 2, ITEMS, 2))[:PLAYS]
        for n, item in enumerate(mine):
            events.append(play_event(f"v{viewer:02d}", int(item), 3600 * n + viewer))
    events.append(PlaybackEvent("hide1", Kind.HIDE, "v00", T0 + 5000, item_id="tt0000003"))
    events.append(play_event("v01", 5, 7, private=True))
    return sorted(events, key=lambda event: event.event_time_ms)


async def send(settings: Settings, events: Iterable[PlaybackEvent], items: Iterable[CatalogueItem] = ()) -> None:
    producer = await make_producer(settings)
    for event in events:
        headers = [("private", b"1" if event.private else b"0")]
        await producer.send(
            settings.kafka.topic,
            CODEC.encode_event(event),
            key=event.viewer.encode(),
            headers=headers,
            timestamp_ms=event.event_time_ms,
        )
    for item in items:
        await producer.send(settings.kafka.catalogue_topic, CODEC.encode_item(item), key=item.item_id.encode())
    await producer.flush()
    await producer.stop()


def catalogue() -> list[CatalogueItem]:
    titles = [CatalogueItem(f"tt{i:07d}", f"Title {i}", ("even" if i % 2 == 0 else "odd",)) for i in range(ITEMS)]
    return [*titles, CatalogueItem("tt9999999", "Never played")]


async def run(settings: Settings, store: MemoryStore, **options: bool) -> NightlyReport:
    await store.connect()
    return await run_nightly(settings, store, progress=SilentProgress(), **options)


async def test_a_night_takes_events_to_everybodys_row(settings: Settings) -> None:
    store, events = MemoryStore(), history()
    await send(settings, events, catalogue())
    report = await run(settings, store, seed=True)
    assert (report.decision, report.activation, report.published) == ("passed", 1, True), report
    assert (report.copied["events"], report.private, report.copied["catalogue"]) == (len(events) - 1, 1, ITEMS + 1)
    assert sum(report.cutoffs.values()) == len(events)
    assert await store.read_seeded() == report.cutoffs
    assert await store.read_rebuilt(1)
    assert {"*:*", "*:12"} <= (await store.read_default_rows()).keys()
    page = find_page(settings.lake_path, report.generation_id)
    assert f"<h1>{report.generation_id}</h1>" in page.read_text() and "report" in report.seconds
    assert len(read_content(page)["review"]["shown"]) == 5

    generation = load_generation(settings.generations_path, report.generation_id)
    assert generation.item_ids[-1] == "tt9999999" and not generation.item_factors[-1].any()
    rewriter = Rewriter(generation, 1, CODEC.encode_row, LIMITS)
    users, vectors = load_users(settings.generations_path, report.generation_id)
    assert len(store.server.viewers) == len(users) == VIEWERS
    for viewer, stored in store.server.viewers.items():
        mine = [e for e in events if e.viewer == viewer and not e.private]
        state = merge([state_of(e, timestamp_ms=e.event_time_ms) for e in mine], LIMITS)
        assert unpack(stored.state) == state  # what the updater would have made of the same events
        row = CODEC.decode_row(stored.row)
        again = rewriter.rewrite(state, computed_at_ms=row.computed_at_ms)
        assert (stored.row, stored.vector) == (again.row_bytes, again.vector_bytes)
        published = vectors[users.index(viewer)].astype("<f2").tobytes()
        assert published == stored.vector
        parity = int(viewer[1:]) % 2
        first = [int(entry.item_id[2:]) % 2 == parity for entry in row.entries[:3]]
        assert all(first), (viewer, row.entries[:3])


async def test_a_second_night_without_news_changes_nothing(settings: Settings) -> None:
    store = MemoryStore()
    await send(settings, history(), catalogue())
    first = await run(settings, store, seed=True)
    rows = dict(store.server.viewers)
    again = await run(settings, store)
    assert (again.reused, again.generation_id, again.activation) == (True, first.generation_id, 1)
    assert again.copied["events"] == 0
    assert store.server.viewers == rows


async def test_a_night_that_died_after_the_copy_goes_on_with_the_same_plan(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    events = history()
    await send(settings, events)

    def dies(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(nightly, "train_item_factors", dies)
        with pytest.raises(KeyboardInterrupt):
            await run(settings, store)
    await send(settings, [play_event("late", 1, 10**5)])
    report = await run(settings, store, seed=True)
    assert sum(report.cutoffs.values()) == len(events)
    assert "late" not in store.server.viewers
    assert report.published


async def test_two_nights_at_once_are_refused(settings: Settings) -> None:
    store = MemoryStore()
    await send(settings, history())
    first = asyncio.create_task(run(settings, store))
    await asyncio.sleep(0)  # it has the lock now
    with pytest.raises(UserError, match="another job works on this lake"):
        await run(settings, store)
    assert (await first).published


async def test_a_rollback_is_a_new_activation_of_the_older_generation(settings: Settings) -> None:
    store = MemoryStore()
    await send(settings, history())
    first = await run(settings, store, seed=True)
    await send(settings, [play_event("v00", 21, 10**5)])
    second = await run(settings, store, skip_evaluation=True)
    assert second.generation_id != first.generation_id and second.activation == 2
    done = await rollback(settings, store, progress=SilentProgress())
    assert (done.generation_id, done.activation) == (first.generation_id, 3)
    assert {CODEC.decode_row(one.row).generation_id for one in store.server.viewers.values()} == {first.generation_id}
    assert {one.activation for one in store.server.viewers.values()} == {3}
    assert [(info.state, info.activation) for info in list_generations(settings)] == [
        ("in force", 3),
        ("previous", None),
    ]
    with pytest.raises(UserError, match="no generation older"):  # not forward again, to the one that was rolled back
        await rollback(settings, store, progress=SilentProgress())


async def test_a_rollback_passes_over_what_was_published_only(settings: Settings) -> None:
    store = MemoryStore()
    await send(settings, history())
    first = await run(settings, store, seed=True)
    await send(settings, [play_event("v00", 21, 10**5)])
    published = await run(settings, store, skip_evaluation=True, publish_only=True)
    await send(settings, [play_event("v00", 22, 2 * 10**5)])
    third = await run(settings, store, skip_evaluation=True)
    assert len({first.generation_id, published.generation_id, third.generation_id}) == 3
    done = await rollback(settings, store, progress=SilentProgress())
    assert done.generation_id == first.generation_id


async def test_a_night_without_anything_to_learn_from_is_given_up_and_the_next_one_copies_what_came(
    settings: Settings,
) -> None:
    store = MemoryStore()
    with pytest.raises(UserError):
        await run(settings, store)
    left = Path(settings.lake_path) / ".buckets-of-a-killed-job"
    left.mkdir()
    await send(settings, history())
    assert (await run(settings, store, seed=True)).published
    assert not left.exists()


async def test_a_rollback_from_a_generation_that_is_damaged_chooses_nothing(settings: Settings) -> None:
    store = MemoryStore()
    await send(settings, history())
    first = await run(settings, store)
    await send(settings, [play_event("v00", 21, 10**5)])
    await run(settings, store, skip_evaluation=True)
    await activate(settings, store, str(first.generation_id), progress=SilentProgress())
    (Path(settings.generations_path) / str(first.generation_id) / "manifest.json").unlink()
    with pytest.raises(UserError, match="nearline generations activate"):
        await rollback(settings, store, progress=SilentProgress())


async def test_a_forgotten_viewer_leaves_the_lake_the_generations_and_the_next_rebuild(settings: Settings) -> None:
    store = MemoryStore()
    await send(settings, history())
    first = await run(settings, store, seed=True)
    receipt = await forget(settings, "v07", now_ms=int(time.time() * 1000))
    assert receipt.lake_rows == {"events": PLAYS, "impressions": 0}
    assert receipt.generations == (first.generation_id,)
    users, vectors = load_users(settings.generations_path, first.generation_id)
    erased = next(row for row, user in enumerate(users) if user.startswith("~erased~"))
    assert "v07" not in users and not vectors[erased].any()
    for file in Path(settings.lake_path).rglob("*.jsonl"):
        assert "v07" not in file.read_text()
    await send(settings, [play_event("v07", 2, -50)])  # a late event from before: never written, never counted as taste
    report = await run(settings, store, seed=True, skip_evaluation=True)
    assert report.erased == 1
    assert unpack(store.server.viewers["v07"].state).is_empty
    assert store.server.viewers["v07"].row == b""
    assert "v07" not in load_users(settings.generations_path, report.generation_id)[0]
    assert b"v07" not in b"".join(file.read_bytes() for file in open_lake(settings).files("events"))


async def test_copying_twice_into_two_lakes_gives_the_same_rows(settings: Settings, tmp_path: Path) -> None:
    await send(settings, history())
    other = settings.model_copy(update={"lake_path": str(tmp_path / "other")})
    for one in (settings, other):
        await run(
            one.model_copy(update={"generations_path": one.lake_path + "-g"}), MemoryStore(), skip_evaluation=True
        )
    assert rows(Lake(settings.lake_path)) == rows(Lake(other.lake_path))
    assert GenerationsFolder(settings.lake_path + "-g").list()[0].inputs


def rows(lake: Lake) -> list[tuple[object, ...]]:
    found = [
        tuple(row.values())
        for b in lake.batches("events", ["partition", "offset", "event_id"])
        for row in b.to_pylist()
    ]
    return sorted(found)


async def test_what_the_gate_holds_back_changes_nothing_unless_it_is_forced(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    await send(settings, history())
    first = await run(settings, store, seed=True)
    rows = dict(store.server.viewers)
    await send(settings, [play_event("v00", 21, 10**5)])
    monkeypatch.setattr(
        nightly, "evaluate", lambda *a, **k: Evaluation({}, 60, HOLDOUT, Decision("held_back", "worse"))
    )
    held = await run(settings, store)
    assert (held.published, held.decision, held.activation) == (False, "held_back", None)
    assert "held back" in held.headline() and "worse" in held.summary()
    assert store.server.viewers == rows
    forced = await run(settings, store, force=True)
    assert (forced.decision, forced.activation) == ("forced", 2)
    assert forced.generation_id != first.generation_id


async def test_a_night_that_only_publishes_leaves_what_is_in_force_until_it_is_activated(settings: Settings) -> None:
    store = MemoryStore()
    await send(settings, history())
    first = await run(settings, store, seed=True)
    rows = dict(store.server.viewers)
    await send(settings, [play_event("v00", 21, 10**5)])
    made = await run(settings, store, skip_evaluation=True, publish_only=True)
    assert made.published and made.generation_id != first.generation_id
    assert (made.activation, made.rebuilt) == (None, None)
    assert f"nearline generations activate {made.generation_id}" in made.headline()
    assert store.server.viewers == rows and store.server.activation == 1
    assert GenerationsFolder(settings.generations_path).read_current().generation_id == first.generation_id
    again = await run(settings, store, skip_evaluation=True)  # the next night takes it up, as nothing has changed
    assert (again.reused, again.generation_id, again.activation) == (True, made.generation_id, 2)


async def test_a_night_during_a_share_leaves_the_candidate_its_viewers_and_never_puts_it_in_force(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    await send(settings, history())
    first = await run(settings, store, seed=True)
    await send(settings, [play_event("v00", 21, 10**5)])
    made = await run(settings, store, skip_evaluation=True, publish_only=True)
    shared = await share(settings, store, made.generation_id, 40.0, progress=SilentProgress())
    held = await run(settings, store, skip_evaluation=True)  # nothing was played since: it is the candidate once more
    assert (held.generation_id, held.activation, shared.activation) == (made.generation_id, None, 2)
    folder = GenerationsFolder(settings.generations_path)
    assert folder.read_current() == Current(first.generation_id, 2, None, Share(made.generation_id, 40.0))
    await send(settings, [play_event("v00", 22, 2 * 10**5)])
    loaded: list[str] = []

    def load(root: str, generation_id: str) -> Generation:
        loaded.append(generation_id)
        return load_generation(root, generation_id)

    with monkeypatch.context() as patch:
        patch.setattr("batch.activation.load_generation", load)
        third = await run(settings, store, skip_evaluation=True)
    assert loaded == [made.generation_id, third.generation_id]  # to see that it loads, and by which it is rebuilt: once
    current = folder.read_current()
    assert current == Current(third.generation_id, 3, first.generation_id, Share(made.generation_id, 40.0))
    rows = {viewer: CODEC.decode_row(one.row) for viewer, one in store.server.viewers.items() if one.row}
    assert {row.activation for row in rows.values()} == {3}
    assert all(row.generation_id == current.of_viewer(viewer) for viewer, row in rows.items())
    assert {row.generation_id for row in rows.values()} == set(current.generations)

    (Path(settings.generations_path) / str(made.generation_id) / "item_factors.npy").write_bytes(b"gone")
    await run(settings, store, skip_evaluation=True)  # nothing new; what does not load has no viewers
    assert folder.read_current() == Current(third.generation_id, 4, first.generation_id)
    assert {CODEC.decode_row(one.row).generation_id for one in store.server.viewers.values() if one.row} == {
        third.generation_id
    }


async def test_a_corrupt_generation_in_force_is_replaced_by_the_next_night(settings: Settings) -> None:
    store = MemoryStore()
    await send(settings, history())
    first = await run(settings, store, seed=True)
    (Path(settings.generations_path) / str(first.generation_id) / "item_factors.npy").write_bytes(b"gone")
    again = await run(settings, store)  # the same inputs: made again, as what is there does not load
    assert again.published and not again.reused and again.activation == 2


async def test_a_night_on_a_real_store_leaves_every_row_of_its_activation(
    settings: Settings, valkey: ValkeyServer, namespace: str
) -> None:
    settings = settings.model_copy(update={"store": StoreSettings(url=valkey.url, namespace=namespace)})
    await send(settings, history(), catalogue())
    store = open_store(settings.store, settings.keys)
    await store.connect()
    try:
        report = await run_nightly(settings, store, seed=True, progress=SilentProgress())
        found = [viewer async for viewers in store.scan_viewers() for viewer in viewers]
        assert len(set(found)) == VIEWERS
        stored = [await store.read_viewer(viewer) for viewer in found]
        assert {one.activation for one in stored} == {1}
        assert {CODEC.decode_row(one.row).generation_id for one in stored} == {report.generation_id}
        assert await store.read_seeded() == report.cutoffs
        assert await store.highest_activation() == 1
    finally:
        await store.close()


async def test_a_viewer_forgotten_while_the_night_trains_is_taken_out_by_the_next_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    await send(settings, history())
    trained = nightly.train_item_factors

    def forgotten_meanwhile(*args: object, **kwargs: object) -> object:
        asyncio.run(forget(settings, "v07", now_ms=int(time.time() * 1000) + 1000))
        return trained(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(nightly, "train_item_factors", forgotten_meanwhile)
        first = await run(settings, store, skip_evaluation=True, seed=True)
    await run(settings, store, skip_evaluation=True)
    for generation_id in (first.generation_id, GenerationsFolder(settings.generations_path).list()[-1].generation_id):
        assert "v07" not in load_users(settings.generations_path, generation_id)[0]
    assert unpack(store.server.viewers["v07"].state).is_empty


async def test_a_night_on_a_topic_that_is_not_there_says_which(settings: Settings) -> None:
    kafka = settings.kafka.model_copy(update={"topic": f"{settings.kafka.topic}.misspelt"})
    wrong = settings.model_copy(update={"kafka": kafka})
    with pytest.raises(UserError, match="misspelt: not on Kafka"):
        await run(wrong, MemoryStore())


async def test_an_erasure_that_comes_after_the_cut_off_is_obeyed_though_it_is_older_than_the_generation(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    await send(settings, history())
    scrub = nightly._Nightly._scrub

    def erased_on_another_machine(self: object) -> object:  # after the copy, before the scrub: in the topic alone
        asyncio.run(send(settings, [PlaybackEvent("erase.1", Kind.ERASE, "v07", T0 + 10**8)]))
        return scrub(self)

    with monkeypatch.context() as patch:
        patch.setattr(nightly._Nightly, "_scrub", erased_on_another_machine)
        first = await run(settings, store, skip_evaluation=True)
    assert "v07" in load_users(settings.generations_path, first.generation_id)[0]
    await run(settings, store, skip_evaluation=True)
    assert "v07" not in load_users(settings.generations_path, first.generation_id)[0]


async def test_a_night_that_died_without_having_copied_anything_begins_anew(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    await send(settings, history())
    await run(settings, store)
    other = settings.model_copy(update={"train": settings.train.model_copy(update={"factors": 3})})

    def dies(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(nightly, "train_item_factors", dies)
        with pytest.raises(KeyboardInterrupt):
            await run(other, store, skip_evaluation=True)
    await send(settings, [play_event("late", 1, 10**5)])
    assert (await run(other, store, skip_evaluation=True)).copied["events"] == 1


async def test_a_night_first_rebuilds_what_a_store_that_fell_back_has_lost(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    await send(settings, history())
    await run(settings, store, seed=True)
    before = dict(store.server.viewers)
    await send(settings, [play_event("v00", 21, 10**5)])
    second = await run(settings, store, skip_evaluation=True)
    store.server.viewers, store.server.rebuilt = before, {1}
    await send(settings, [play_event("v00", 23, 10**5)])
    monkeypatch.setattr(
        nightly, "evaluate", lambda *a, **k: Evaluation({}, 60, HOLDOUT, Decision("held_back", "worse"))
    )
    assert not (await run(settings, store)).published
    assert {one.activation for one in store.server.viewers.values()} == {second.activation}
    assert await store.read_rebuilt(2)


async def test_a_store_that_was_emptied_gets_the_lakes_plays_back_even_if_the_night_is_held_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    await send(settings, history())
    first = await run(settings, store, seed=True)
    states = {viewer: one.state for viewer, one in store.server.viewers.items()}
    store.server.restart(MemoryServer().snapshot())
    monkeypatch.setattr(
        nightly, "evaluate", lambda *a, **k: Evaluation({}, 60, HOLDOUT, Decision("held_back", "worse"))
    )
    await send(settings, [play_event("late", 1, 10**5)])
    again = await run(settings, store)
    assert not again.published
    assert "lost what the lake had given it" in again.seeded and again.seeded in again.summary()
    assert {v: one.state for v, one in store.server.viewers.items() if v != "late"} == states
    assert "late" in store.server.viewers
    assert await store.read_seeded() == again.cutoffs
    assert {CODEC.decode_row(one.row).generation_id for one in store.server.viewers.values()} == {first.generation_id}


async def test_a_store_that_only_lost_the_seeding_is_seeded_again_once(settings: Settings) -> None:
    store = MemoryStore()
    await send(settings, history())
    before = await run(settings, store, seed=True)
    assert (await run(settings, store)).seeded == ""
    store.server.viewers.pop("v03")
    store.server.seeded = {}
    again = await run(settings, store)
    assert "lost what the lake had given it" in again.seeded
    assert again.reused and again.generation_id == before.generation_id
    assert not unpack(store.server.viewers["v03"].state).is_empty
    assert (await run(settings, store)).seeded == ""


async def test_plays_of_an_older_log_are_given_to_a_store_that_does_not_say_that_it_has_them(
    settings: Settings,
) -> None:
    await send(settings, history())
    await run(settings, MemoryStore())
    kafka = settings.kafka.model_copy(update={"stream_epoch": 2, "topic": f"{settings.kafka.topic}.impressions"})
    store, raised = MemoryStore(), settings.model_copy(update={"kafka": kafka})  # another log, empty; so is the store
    assert settings.kafka.stream in (await run(raised, store)).seeded
    assert len(store.server.viewers) == VIEWERS
    assert (await run(raised, store)).seeded == ""


async def test_an_id_of_a_generation_is_listed_whole_on_a_narrow_terminal(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send(settings, history())
    report = await run(settings, MemoryStore())
    monkeypatch.setattr(verbs, "read_settings", lambda: settings)
    told = CliRunner().invoke(verbs.generations_app, ["list"], env={"COLUMNS": "80"})
    assert str(report.generation_id) in told.output
