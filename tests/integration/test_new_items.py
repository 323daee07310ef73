"""A title that came after the night, on real servers and real processes: announced, watched by five, in the row of a sixth, in a minute."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from contracts.catalogue import CatalogueItem
from contracts.manifest import CONFIDENCE_RULE, Confidence, Decision, Manifest
from embeddings.files import load_generation
from embeddings.generation import FoldInParameters
from embeddings.generations_folder import GenerationsFolder
from embeddings.publishing import Contents, write_generation
from embeddings.tables import FEATURES, Cowatch, Tables
from homepage.inspect import explain_viewer
from runtime.kafka import make_producer
from sandbox.processes import Service, environment_of
from sandbox.topics import ensure_topics
from tests.consistency import CODEC, PARTITIONS, Stage
from tests.worlds import play_event, wait_until
from trends.follow import take_up
from viewers.packing import unpack
from viewers.rewriter import NO_TRENDS, Rewriter
from viewers.state import Limits

TITLES, K = 120, 2
CRIME, SONG = range(60), range(60, TITLES)
HEAD = 20
"""Of a row: fewer than there are titles of a kind."""
FIRST = ("v1", "v2", "v3", "v4", "v5")
TASTE_ALONE = np.array([float(name == "taste") for name in FEATURES])
"""Rows are in the order of taste: what is trending, or new, is worth nothing by itself."""


@pytest.fixture
async def stage(stage: Stage) -> Stage:
    await ensure_topics(stage.settings, PARTITIONS)
    publish(stage)
    return stage


@pytest.fixture
async def services(stage: Stage, tmp_path: Path) -> AsyncIterator[Service]:
    """Updater, aggregator and home page as processes of their own; the home page."""
    made = []
    for verb, port in (("updater", "HEALTH"), ("trends", "HEALTH"), ("homepage", "HOMEPAGE")):
        environment = environment_of(stage.settings)
        made.append(Service(verb, environment, tmp_path / verb, port_setting=f"NEARLINE_{port}__PORT"))
        made[-1].start()
    try:
        await asyncio.gather(*(service.wait_ready() for service in made))
        yield made[-1]
    finally:
        for service in made:
            service.stop(kill=True)


def publish(stage: Stage) -> None:
    """Two kinds of titles, and people who like the one or the other; nothing was watched lately."""
    rng = np.random.default_rng(1)
    kinds = np.eye(2, K)[[0] * len(CRIME) + [1] * len(SONG)]
    Y = (kinds + rng.normal(scale=0.1, size=(TITLES, K))).astype(np.float32)
    X = (np.eye(2, K)[rng.integers(0, 2, 50)] * 0.5 + rng.normal(scale=0.1, size=(50, K))).astype(np.float32)
    items = [
        CatalogueItem(f"tt{row:07d}", f"Title {row}", topics=("crime" if row in CRIME else "song",))
        for row in range(TITLES)
    ]
    tables = Tables(np.zeros((TITLES, 5), np.float32), Cowatch.empty(TITLES), TASTE_ALONE, at_ms=1)
    manifest = Manifest(
        generation_id="g1", created_at_ms=1, k=K, n_items=TITLES, n_users=len(X), stream="none@1", cutoffs={},
        confidence=Confidence(rule=CONFIDENCE_RULE, **dataclasses.asdict(FoldInParameters())), inputs="0" * 64,
        trainer="made up", versions={}, metrics={}, decision=Decision("unchecked", "made up"), files={},
    )  # fmt: skip
    contents = Contents(items, Y, np.ones(TITLES, np.float32), [f"u{row}" for row in range(len(X))], X, tables)
    write_generation(stage.settings.generations_path, manifest, contents)
    GenerationsFolder(stage.settings.generations_path).activate("g1", floor=0)


class World:
    """People who watch."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._began_s = int(time.time()) - 1_700_000_000 - 3_600
        self._plays = 0

    async def watch(self, viewer: str, *items: int | str) -> None:
        for item in items:
            self._plays += 1
            await self._stage.send([play_event(viewer, item, self._began_s + self._plays)])

    async def announce(self, *items: CatalogueItem) -> None:
        producer = await make_producer(self._stage.settings)
        for item in items:
            topic = self._stage.settings.kafka.catalogue_topic
            await producer.send_and_wait(topic, CODEC.encode_item(item), key=item.item_id.encode())
        await producer.stop()

    async def row(self, viewer: str) -> list[str]:
        stored = await self._stage.store.read_viewer(viewer)
        return [entry.item_id for entry in CODEC.decode_row(stored.row).entries] if stored.row else []


@pytest.mark.timeout(240)  # several processes start and are waited for
async def test_a_title_that_came_today_is_in_the_row_of_who_likes_what_its_first_viewers_like(
    stage: Stage, services: Service
) -> None:
    world, seen = World(stage), itertools.cycle(range(10, 30))
    for number, viewer in enumerate(FIRST):
        await world.watch(viewer, *range(40 + 3 * number, 43 + 3 * number))
    await world.watch("sixth", 4, 5)
    await world.watch("other", 61, 62)
    await world.announce(
        CatalogueItem("tt-new", "Just out"), CatalogueItem("tt-crime", "A new crime", topics=("crime",))
    )

    async def in_sixths_row(item: str) -> bool:
        await world.watch("sixth", next(seen))
        return item in (await world.row("sixth"))[:HEAD]

    # from what it is about, before anybody has watched it
    await wait_until(lambda: in_sixths_row("tt-crime"), "the announced title is in the row", 60)
    assert "tt-new" not in (await world.row("sixth"))[:HEAD]  # of that nothing is known yet
    for viewer in FIRST:
        await world.watch(viewer, "tt-new")
    await wait_until(lambda: in_sixths_row("tt-new"), "the title that five have watched is in the row", 60)
    await world.watch("other", 63)

    async def others_row_has_it_not() -> bool:
        row = await world.row("other")
        return len(row) >= HEAD and "tt-new" not in row[:HEAD]

    await wait_until(others_row_has_it_not, "who likes the other kind is not shown it")

    async def is_shown() -> bool:
        async with httpx.AsyncClient() as client:
            page = (await client.get(f"{services.url}/v1/home/sixth")).json()
        return "Just out" in [entry["title"] for entry in page["entries"]]

    await wait_until(is_shown, "the home page shows its name")
    await world.watch("v1", 6)
    await wait_until(lambda: is_seen(world), "who has watched it is not shown it again")
    await assert_rows_follow(stage)
    told = (await explain_viewer(stage.settings, stage.store, CODEC, "sixth")).data
    assert told["stored_row_is_recomputed_row"]
    (entry,) = [one for one in told["entries"] if one["item_id"] == "tt-new"]
    assert entry["als"] > 0
    assert entry["score"] == pytest.approx(entry["als"], rel=1e-3)  # taste alone decides here


async def is_seen(world: World) -> bool:
    row = await world.row("v1")
    return bool(row) and "tt-new" not in row and "tt-crime" in row


async def assert_rows_follow(stage: Stage) -> None:
    """Every row is what the rewrite gives for its state, its generation and the snapshot that it names."""
    generation, longer = load_generation(stage.settings.generations_path, "g1"), 0
    async for batch in stage.store.scan_viewers():
        for viewer in batch:
            stored = await stage.store.read_viewer(viewer)
            row = CODEC.decode_row(stored.row)
            rewriter = Rewriter(generation, row.activation, CODEC.encode_row, Limits())
            if row.trends_snapshot != NO_TRENDS:
                data = await stage.store.trends.read_snapshot(row.trends_snapshot)
                rewriter = take_up(rewriter, data, row.trends_snapshot).rewriter
            again = rewriter.rewrite(
                unpack(stored.state), computed_at_ms=row.computed_at_ms, event_time_ms=row.event_time_ms
            )
            assert again.row_bytes == stored.row, viewer
            assert rewriter.generation is not None
            longer += rewriter.generation.n_items > TITLES
    assert longer
