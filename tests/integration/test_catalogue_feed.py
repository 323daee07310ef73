"""A title that is taken down is gone from the pages at once, without waiting for the next generation."""

from __future__ import annotations

import asyncio
import dataclasses

from contracts.catalogue import CatalogueItem
from contracts.codec import Codec
from embeddings.generations_folder import GenerationsFolder
from homepage.catalogue import LiveCatalogue
from runtime.catalogue_feed import CatalogueFeed
from runtime.kafka import make_producer
from runtime.learning_codec import LearningCodec
from runtime.settings import Settings
from sandbox.servers import KafkaServer
from sandbox.topics import ensure_topics
from tests.worlds import make_generation, wait_until, write_generation_folder

CODEC = Codec.load()


async def test_the_feed_wins_over_the_generation_and_skips_what_it_cannot_read(
    kafka: KafkaServer, namespace: str, tmp_path
) -> None:
    generations = str(tmp_path / "generations")
    settings = Settings(kafka={"bootstrap_servers": kafka.bootstrap, "topic": namespace}, generations_path=generations)
    write_generation_folder(generations, make_generation(5))
    GenerationsFolder(generations).activate("g1", floor=0)
    catalogue = LiveCatalogue(generations)
    await catalogue.refresh()
    item = catalogue.get("tt0000001")
    assert item is not None
    feed = asyncio.create_task(CatalogueFeed(settings, LearningCodec(CODEC), catalogue).run())
    try:
        await ensure_topics(settings, 1)
        producer = await make_producer(settings)
        taken_down = dataclasses.replace(item, taken_down=True)
        new = CatalogueItem("tt-new", "Just out")
        for key, value in (
            (item.item_id, CODEC.encode_item(taken_down)),
            ("bad", b"not avro"),
            ("tt0000003", None),
            (new.item_id, CODEC.encode_item(new)),
        ):
            await producer.send_and_wait(settings.kafka.catalogue_topic, value, key=key.encode())
        await producer.stop()
        await wait_until(lambda: catalogue.get("tt-new") is not None, "the feed")
        assert catalogue.get("tt0000001") == taken_down
        assert catalogue.get("tt0000002") is not None
        removed = catalogue.get("tt0000003")
        assert removed is not None
        assert removed.taken_down
    finally:
        feed.cancel()
        await asyncio.gather(feed, return_exceptions=True)
