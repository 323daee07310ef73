"""`nearline forget ID`: an erasure event for the live side, the ledger and a scrub for the lake, the dead letters, and a receipt.

1. The ERASE event, acknowledged by the broker    the updater empties the viewer's state; copies remember it too
2. The ledger                                     from now on no read of the lake gives the viewer's rows
3. The dead letters about the viewer              cut out of their topic
4. The files of the lake, and the vectors in published generations
5. The store is looked at, for a while            has an updater processed the event, and is the hash empty?

A crash in between is mended by asking again: each step is a join. If a nightly job is at work, it does step 4 if it has not come to
its own scrub yet, and the next night if it has: then what is being trained still holds the viewer until then.
Every night looks for dead letters of erased viewers again: an updater that was behind may have written one after step 3, and so may
one whose store fell back to before the erasure and that reads the viewer's poison again before it comes to the erasure.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from batch.interactions import remove_leftovers
from batch.lake import Lake, ScrubReport, open_lake
from batch.lock import LakeInUse, lake_lock
from batch.review.files import scrub_reports
from contracts.errors import KafkaUnavailable, TransientError, UserError
from contracts.events import Kind, PlaybackEvent, valid_id
from embeddings.generations_folder import GenerationsFolder
from embeddings.publishing import remove_users
from runtime.deadletters import Letter, belongs_to, viewer_in
from runtime.deadletters import erase as erase_letters
from runtime.kafka import kafka_errors, make_producer
from runtime.schemas import open_codec
from runtime.settings import Settings
from runtime.tasks import stop_client
from viewers.packing import BadState, unpack
from viewers.redis_store import open_store
from viewers.store import Store

log = structlog.get_logger()

STORE_WAIT_S = 10.0
"""How long a receipt waits for the updaters: they are milliseconds behind, or something is wrong and the receipt says so."""
STORE_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was removed, and where. `viewer_digest`: the keyed hash in the ledger, which proves the erasure without naming anyone.

    `dead_letters`: None if they could not be taken out (the log says why; the next night tries again). `lake_rows`, `generations`:
    None if a nightly job was at work: the next night removes them at the latest. `store`: `emptied`, or `not yet: ` and why.
    """

    viewer_digest: str
    erased_through_ms: int
    partition: int
    offset: int
    dead_letters: int | None
    lake_rows: dict[str, int] | None
    generations: tuple[str, ...] | None
    store: str


async def forget(settings: Settings, viewer: str, *, now_ms: int, store_wait_s: float = STORE_WAIT_S) -> Receipt:
    """Erase everything up to now. A viewer who comes back starts anew.

    `store_wait_s`: how long to wait for the updaters; with none running the store is looked at once.

    Errors: `UserError` if it is no id, `KafkaUnavailable`: nothing is done then.
    """
    if not valid_id(viewer):
        raise UserError("not a viewer id (1-128 characters of A-Z a-z 0-9 . _ : | @ ~ -)")
    event = PlaybackEvent(f"erase.{uuid.uuid4()}", Kind.ERASE, viewer, now_ms)
    codec = await asyncio.to_thread(open_codec, settings)
    value = codec.encode_event(event)
    producer = await make_producer(settings)
    try:
        with kafka_errors("sending the erasure", settings):  # 1
            sent = await producer.send_and_wait(
                settings.kafka.topic, value, key=viewer.encode(), timestamp_ms=now_ms, headers=[("private", b"0")]
            )
    finally:
        await stop_client(producer)
    lake = await asyncio.to_thread(open_lake, settings)
    await asyncio.to_thread(lake.ledger.append, {viewer: now_ms // 1000})  # 2
    dead_letters = await _erase_letters(settings, belongs_to(viewer, codec), now_ms)  # 3
    rows: dict[str, int] | None = None
    generations: tuple[str, ...] | None = None
    try:
        with lake_lock(settings.lake_path):  # 4
            await asyncio.to_thread(remove_leftovers, settings.lake_path)
            folder = GenerationsFolder(settings.generations_path)
            report, generations = await asyncio.to_thread(scrub, folder, lake)
            rows = report.rows
    except LakeInUse:
        pass  # a nightly job is at work: the ledger is read by it or by the next one
    emptied = await look_at_store(settings, viewer, sent.partition, sent.offset, now_ms // 1000, store_wait_s)  # 5
    return Receipt(
        lake.ledger.digest(viewer), now_ms, sent.partition, sent.offset, dead_letters, rows, generations, emptied
    )


async def look_at_store(
    settings: Settings, viewer: str, partition: int, offset: int, through_s: int, wait_s: float
) -> str:
    """`emptied` once the partition's marker has passed the erasure at `offset` and the viewer's hash has obeyed it; else `not yet: ` and
    why, after `wait_s`, or at once where nobody is there to wait for."""
    store = open_store(settings.store, settings.keys)
    ends = asyncio.get_running_loop().time() + wait_s
    try:
        await store.connect()
        while True:
            why = await _not_emptied(store, viewer, partition, offset, through_s)
            if why is None:
                return "emptied"
            running = await store.read_updaters()
            if not running:
                return f"not yet: no updater is running; {why}"
            if asyncio.get_running_loop().time() > ends:
                return f"not yet: {why}"
            await asyncio.sleep(STORE_POLL_S)
    except TransientError as error:
        return f"not yet: {error}"
    finally:
        await store.close()


async def _not_emptied(store: Store, viewer: str, partition: int, offset: int, through_s: int) -> str | None:
    """Why the viewer's hash may still hold something; None if it cannot."""
    marker = await store.read_marker(partition)
    if marker is None or marker.next_offset <= offset:
        at = "nothing of it was" if marker is None else f"it is at {marker.next_offset:,}"
        return f"the stream has to finish offset {offset:,} of partition {partition}, and {at} finished"
    try:
        state = unpack((await store.read_viewer(viewer)).state)
    except BadState as error:
        return f"the viewer's hash cannot be read: {error}"
    if state.erased_through_s < through_s:
        return "the stream is past the erasure, and the viewer's hash is not: the store fell back, or was changed by hand; ask again"
    return None


async def scrub_dead_letters(settings: Settings, lake: Lake, *, now_ms: int) -> int | None:
    """Take the letters of every viewer in the ledger out of the topic, as far as their erasure covers them; returns how many, or
    None if that could not be done."""
    codec = await asyncio.to_thread(open_codec, settings)

    def erased(letter: Letter) -> bool:
        viewers = {(letter.key or b"").decode("utf-8", "replace"), viewer_in(letter, codec)}
        through_s = max(lake.ledger.through_s(name) for name in viewers if name is not None)
        return through_s >= max(0, letter.timestamp_ms // 1000)

    return await _erase_letters(settings, erased, now_ms) if len(lake.ledger) else 0


async def _erase_letters(settings: Settings, belongs: Callable[[Letter], bool], now_ms: int) -> int | None:
    try:
        return await erase_letters(settings, belongs, now_ms=now_ms)
    except KafkaUnavailable as error:
        log.error("dead_letters_not_erased", problem=str(error), remedy="nearline forget again, or the next night")
        return None


def scrub(folder: GenerationsFolder, lake: Lake) -> tuple[ScrubReport, tuple[str, ...]]:
    """Remove what erasures cover, if there are new ones. Returns what went from the lake, and the generations that held some.

    1. The files of the lake, and its reports   2. the generations   3. how far the ledger is obeyed, noted last: a crash before it does
    all again
    Errors: `DataError`, `GenerationError`.
    """
    report = lake.scrub()  # 1
    if not report.due:
        return report, ()
    scrub_reports(lake)
    held = scrub_generations(folder, lake)  # 2
    lake.note_scrubbed()  # 3
    return report, held


def scrub_generations(folder: GenerationsFolder, lake: Lake) -> tuple[str, ...]:
    """Remove the vectors of viewers from every generation that did not obey their erasure yet; returns those that held some.

    Lines of the ledger are compared, not times: an erasure may reach the ledger after a generation was made and be dated before.
    Errors: `GenerationError`.
    """
    held = []
    for manifest in folder.list():
        obeyed = manifest.ledger_lines
        if remove_users(folder, manifest.generation_id, lambda user: lake.ledger.line_of(user) > obeyed):  # noqa: B023 (called at once)
            held.append(manifest.generation_id)
    return tuple(held)
