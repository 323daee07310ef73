"""What the aggregator does beside counting: it holds its lease on through long work, and loads a generation once."""

from __future__ import annotations

import asyncio
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from contracts.codec import Codec
from contracts.errors import StoreChanged
from contracts.shares import Share
from embeddings.generations_folder import GenerationsFolder
from runtime.kafka import TopicPartition
from runtime.settings import Settings
from tests.unit.test_trends import erasure, report
from tests.worlds import T0, make_generation, make_tables, wait_until, write_generation_folder
from trends.aggregator import Aggregator
from trends.checkpoints import counts_of
from trends.counters import Counts, Report, share_erasures
from trends.counting import Counting
from trends.process import LEASE_MS
from trends.publishing import Publisher
from viewers.memory_store import MemoryServer, MemoryStore

CODEC = Codec.load()


def aggregator(tmp_path: Path, server: MemoryServer, *, for_candidate: bool = False) -> Aggregator:
    settings = Settings(generations_path=str(tmp_path))
    return Aggregator(settings, MemoryStore(server), CODEC, instance="a", for_candidate=for_candidate)


async def test_what_takes_longer_than_the_lease_does_not_lose_it(tmp_path: Path) -> None:
    """The default rows of a large catalogue and many territories do."""
    server, held, done = MemoryServer(), 0, threading.Event()
    made = aggregator(tmp_path, server)
    trends = made.process.store.trends
    assert await trends.hold("a", LEASE_MS)
    working = asyncio.create_task(made.process.holding(done.wait, 60))
    for _ in range(3):
        server.trends.now_ms += LEASE_MS - 1
        before = server.trends.owner
        await wait_until(lambda before=before: server.trends.owner != before, "the lease is held on")
        held += not await trends.hold("b", LEASE_MS)
    done.set()
    assert await working
    assert held == 3


async def test_a_lease_that_ran_out_is_taken_again_unless_another_has_it(tmp_path: Path) -> None:
    """Else who counts alone, and is once held up for too long before each snapshot, would never publish any."""
    server = MemoryServer()
    write_generation_folder(tmp_path, make_generation().with_tables(replace(make_tables(200), at_ms=T0)))
    GenerationsFolder(str(tmp_path)).activate("g1", floor=0)
    made = aggregator(tmp_path, server)
    trends = made.process.store.trends
    assert await trends.hold("a", LEASE_MS)
    base = made._load()
    assert base is not None
    server.trends.now_ms += LEASE_MS
    await Publisher(made.process, base, {}).publish()
    pointer = await trends.read_pointer("g1")
    assert pointer is not None
    server.trends.now_ms += LEASE_MS
    assert await trends.hold("b", LEASE_MS)
    with pytest.raises(StoreChanged, match="another"):
        await Publisher(made.process, base, {}).publish()
    assert await trends.read_pointer("g1") == pointer


async def test_a_generation_that_knows_no_trends_is_not_loaded_again(tmp_path: Path) -> None:
    """It is asked for every second."""
    write_generation_folder(tmp_path, make_generation())
    GenerationsFolder(str(tmp_path)).activate("g1", floor=0)
    made = aggregator(tmp_path, MemoryServer())
    assert made._load() is None
    assert made._loaded is not None
    shutil.rmtree(tmp_path / "g1")
    assert made._load() is None
    assert made._refused.failing is None


async def test_the_candidates_counts_are_of_its_generation_and_default_rows_are_none_of_its_business(
    tmp_path: Path,
) -> None:
    for name in ("g1", "g2", "g0"):
        made = make_generation(generation_id=name).with_tables(replace(make_tables(200), at_ms=T0))
        write_generation_folder(tmp_path, made)
    folder, server = GenerationsFolder(str(tmp_path)), MemoryServer()
    folder.activate("g1", floor=0)
    one, other = aggregator(tmp_path, server), aggregator(tmp_path, server, for_candidate=True)
    assert one._load() is not None and other._load() is None, "nobody sees a candidate"
    share = folder.share(Share("g2", 30), floor=0).share
    bases = [one._load(), other._load()]
    assert [base.generation_id for base in bases if base] == ["g1", "g2"]
    assert [base.rewriter.activation for base in bases if base] == [2, 2]
    viewers = [f"v{i}" for i in range(50)]
    ours = [{viewer for viewer in viewers if base and base.newcomers._is_ours(viewer)} for base in bases]
    assert ours[1] == {viewer for viewer in viewers if share.holds(viewer)} and ours[0] == {*viewers} - ours[1]
    assert await one.process.store.trends.hold("a", LEASE_MS)
    await one.process.store.announce_activation(2)
    for made, base in zip((other, one), reversed(bases), strict=True):
        assert base is not None
        publisher = Publisher(made.process, base, {})
        await publisher.publish()
        await publisher.write_default_rows()
        rows = {CODEC.decode_row(row).generation_id for row in (await made.process.store.read_default_rows()).values()}
        assert rows == (set() if made is other else {"g1"})
    folder.activate("g1", floor=0, ends_share=True)
    assert other._load() is None and await other.is_over(bases[1])  # type: ignore[arg-type]


async def test_beside_a_bad_generation_the_one_before_is_counted_on_and_a_mended_one_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trends.aggregator.REFUSED_AGAIN_LOOKS", 3)
    for name in ("g1", "g2"):
        write_generation_folder(
            tmp_path, make_generation(generation_id=name).with_tables(replace(make_tables(200), at_ms=T0))
        )
    folder, server = GenerationsFolder(str(tmp_path)), MemoryServer()
    folder.activate("g1", floor=0)
    made = aggregator(tmp_path, server)
    assert await made.process.store.trends.hold("a", LEASE_MS)
    base = made._load()
    assert base is not None
    folder.activate("g2", floor=0)
    trending = tmp_path / "g2" / "trending.npy"
    whole = trending.read_bytes()
    trending.write_bytes(whole[:-1])
    assert [await made.is_over(base) for _ in range(4)] == [False] * 4
    trending.write_bytes(whole)
    assert True in [await made.is_over(base) for _ in range(3)]
    after = made._load()
    assert after is not None
    assert after.generation_id == "g2"


class Log:
    """A consumer whose partitions have these ends."""

    def __init__(self) -> None:
        self.ends = [0, 0]

    async def position(self, tp: TopicPartition) -> int:
        return self.ends[tp.partition]

    def read(self, counting: Counting, partition: int, *reports: Report) -> None:
        at = self.ends[partition]
        records = [SimpleNamespace(offset=at + i, report=one) for i, one in enumerate(reports)]
        self.ends[partition] += len(records)
        counting._take({TopicPartition("playback", partition): records})  # type: ignore[dict-item]


@pytest.fixture
async def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counting:
    """Two partitions of which nothing was read, one generation in force after another."""
    monkeypatch.setattr("trends.counting.report_of", lambda record, _: record.report)
    for name in ("g0", "g1"):
        made = make_generation(generation_id=name).with_tables(replace(make_tables(200), at_ms=T0))
        write_generation_folder(tmp_path, made)
        GenerationsFolder(str(tmp_path)).activate(name, floor=0)
    of = aggregator(tmp_path, MemoryServer())
    assert await of.process.store.trends.hold("a", LEASE_MS)
    base = of._load()
    assert base is not None
    new = Counting(of.process, base, Log())  # type: ignore[arg-type]
    new._counts, new._stored = {0: Counts(0), 1: Counts(0)}, {0: None, 1: None}
    return new


async def fans(counting: Counting, generation_id: str = "g1") -> dict[int, list[str]]:
    """Partition → who watched a new title, as the store has it."""
    found = {}
    for partition in counting._counts:
        next_offset, fields = await counting._process.store.trends.read_checkpoint(generation_id, partition)
        assert next_offset is not None
        counts = counts_of(next_offset, fields, "here")
        found[partition] = sorted(fan for title in counts.new.values() for fan in title.fans)
    return found


async def test_who_watched_what_is_kept_for_both_arms_of_a_share(counting: Counting) -> None:
    """Both are counted for, and an erasure is looked for in both."""
    current = replace(counting._base.current, share=Share("g0", 5))
    beside = Counting(counting._process, replace(counting._base, generation_id="g0", current=current), Log())  # type: ignore[arg-type]
    beside._counts, beside._stored = {0: Counts(0), 1: Counts(0)}, {0: None, 1: None}
    beside._consumer.read(beside, 1, report("ana", "new-1", 60))  # type: ignore[attr-defined]
    await beside._checkpoint()
    counting._base = replace(counting._base, current=current)
    await counting._forget_who_watched_before()
    assert await fans(counting, "g0") == {0: [], 1: ["ana"]}
    beside._consumer.read(beside, 0, erasure("ana", 100))  # type: ignore[attr-defined]
    await beside._checkpoint()
    assert await fans(counting, "g0") == {0: [], 1: []}


async def test_an_erasure_reaches_what_was_kept_before_the_viewers_key_moved(counting: Counting) -> None:
    """Partitions were added: the viewer's plays lie in one log, the erasure in another, which has nothing else to count."""
    log: Log = counting._consumer  # type: ignore[assignment]
    log.read(counting, 0, report("ana", "new-1", 60), report("ben", "new-1", 70))  # type: ignore[arg-type]
    await counting._checkpoint()
    assert await fans(counting) == {0: ["ana", "ben"], 1: []}
    log.read(counting, 1, erasure("ana", 100))
    await counting._checkpoint()
    assert await fans(counting) == {0: ["ben"], 1: []}


async def test_an_erasure_that_is_read_before_the_plays_of_another_log_reaches_them(counting: Counting) -> None:
    """A generation is in force again and counts from its last checkpoint: one log is through before the other begins."""
    log: Log = counting._consumer  # type: ignore[assignment]
    share_erasures(counting._counts.values())
    log.read(counting, 1, erasure("ana", 100))
    log.read(counting, 0, report("ana", "new-1", 60), report("ben", "new-1", 70))  # type: ignore[arg-type]
    await counting._checkpoint()
    assert await fans(counting) == {0: ["ben"], 1: []}
    assert counting._counts[0].new["new-1"].sums[0] == 2
    again = {partition: Counts(0) for partition in (0, 1)}  # another process: what was erased is in the checkpoint
    again[1] = counts_of(1, (await counting._process.store.trends.read_checkpoint("g1", 1))[1], "here")
    share_erasures(again.values())
    counting._counts = again
    log.read(counting, 0, report("ana", "new-1", 60), report("ana", "new-1", 150))  # type: ignore[arg-type]
    assert list(again[0].new["new-1"].fans) == ["ana"], "she is back"
    log.read(counting, 0, report("ana", "new-2", 99))  # type: ignore[arg-type]
    assert list(again[0].new["new-2"].fans) == []


async def test_who_watched_what_is_forgotten_with_the_generation_that_it_was_counted_for(counting: Counting) -> None:
    """Erasures are looked for in the counts of the generation in force alone. The sums stay, for a rollback."""
    before = Counting(counting._process, replace(counting._base, generation_id="g0"), Log())  # type: ignore[arg-type]
    before._counts, before._stored = {0: Counts(0), 1: Counts(0)}, {0: None, 1: None}
    before._consumer.read(before, 1, report("ana", "new-1", 60), report("ben", 3, 70))  # type: ignore[attr-defined,arg-type]
    await before._checkpoint()
    assert await fans(counting, "g0") == {0: [], 1: ["ana"]}
    for _ in range(2):
        await counting._forget_who_watched_before()
        assert await fans(counting, "g0") == {0: [], 1: []}
    next_offset, fields = await counting._process.store.trends.read_checkpoint("g0", 1)
    assert (next_offset, counts_of(2, fields, "here").counted) == (2, 2)
    assert not any(b"ana" in value for value in fields.values())


async def test_who_watched_what_is_forgotten_where_the_generation_in_force_knows_no_trends(
    counting: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is counted then, and no erasure would be heard of."""

    async def two(settings: Settings, topic: str) -> int:
        return 2

    monkeypatch.setattr("trends.aggregator.require_partitions", two)
    counting._consumer.read(counting, 1, report("ana", "new-1", 60))  # type: ignore[attr-defined,arg-type]
    await counting._checkpoint()
    write_generation_folder(tmp_path, make_generation(generation_id="bare"))
    settings, store = Settings(generations_path=str(tmp_path)), counting._process.store
    made = Aggregator(settings, store, CODEC, instance=counting._process.instance)
    assert made._load() is not None
    await made._leave_what_was_counted()
    assert await fans(counting) == {0: [], 1: ["ana"]}, "it is in force"
    GenerationsFolder(str(tmp_path)).activate("bare", floor=0)
    assert made._load() is None
    await made._leave_what_was_counted()
    assert await fans(counting) == {0: [], 1: []}
