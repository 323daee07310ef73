"""The invariants at a quiet point: state, vector and row of every viewer, the accounts, the dead letters, and what nobody may see."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import redis.asyncio as redis

from contracts.current import Current
from contracts.errors import NearlineError
from embeddings.files import load_manifest
from runtime.deadletters import ERASED, Coordinates, Mark, parse
from runtime.kafka import ConsumerRecord, TopicPartition, make_consumer
from sandbox.chaos.arena import Arena
from sandbox.chaos.stream import SECRET, leaving
from sandbox.chaos.trends_truth import may_be_kept, plays_counted, was_counted
from sandbox.chaos.truth import Fate
from sandbox.chaos.waiting import Stuck, wait_until
from trends.checkpoints import counts_of
from viewers.packing import unpack
from viewers.redis_store import RedisStore
from viewers.rewriter import Rewriter
from viewers.state import ViewerState
from viewers.store import StoredViewer

COMMITS_S = 5.0
"""Ten times what lies between two commits."""


@dataclass(slots=True)
class Findings:
    """What was wrong; all 0 when nothing was. `details`: the first of each, in words."""

    lost: int = 0
    doubled: int = 0
    rows_wrong: int = 0
    private_leaks: int = 0
    unaccounted: int = 0
    details: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.lost + self.doubled + self.rows_wrong + self.private_leaks + self.unaccounted

    def add(self, other: Findings) -> None:
        """Sum up."""
        for name in ("lost", "doubled", "rows_wrong", "private_leaks", "unaccounted"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.details += other.details

    def say(self, text: str) -> None:
        """Keep a detail, if there are not too many yet."""
        if len(self.details) < 20:
            self.details.append(text)


class Checks:
    """Looks at an arena at rest. What was found once is not found again: the next check starts from the store as it is."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._read_to: dict[Path, int] = {}
        self._letters: set[Coordinates] = set()
        self._parquet: set[Path] = set()
        self._forgotten = 0

    async def run(self) -> Findings:
        """Everything, after `Arena.drain`."""
        found = Findings()
        await self._trends(found)
        await self._viewers(found)
        await self._accounts(found)
        await self._dead_letters(found)
        await self._secrets(found)
        return found

    # I1 and I2

    async def _viewers(self, found: Findings) -> None:
        arena = self._arena
        current = arena.folder_of_generations.read_current()
        assert current is not None
        async with arena.store() as store:
            behind = not await store.read_rebuilt(max(current.activation, await store.highest_activation()))
            if behind:  # rows of an older activation may be there; each must still be right for its own
                async for batch in store.scan_viewers():
                    for viewer in batch:
                        await self._viewer(viewer, await store.read_viewer(viewer), None, found)
                await arena.activate(current.generation_id)  # what the next night would do first
                current = arena.folder_of_generations.read_current()
                assert current is not None
            stored = {viewer async for batch in store.scan_viewers() for viewer in batch}
            for viewer in sorted(stored | arena.truth.histories.keys()):
                await self._viewer(viewer, await store.read_viewer(viewer), current, found)
            await self._default_row(store, found)

    async def _default_row(self, store: RedisStore, found: Findings) -> None:
        """What viewers without a row see follows from the generation and the snapshot that it names, too."""
        arena = self._arena
        stored = (await store.read_default_rows()).get("*:*", b"")
        if not stored:
            return  # before the first rebuild, or in a store that has lost it
        row = arena.codec.decode_row(stored)
        try:
            own = Rewriter(arena.generation(row.generation_id), row.activation, arena.codec.encode_row, arena.limits)
            again = arena.snapshots.rewriter(own, row.trends_snapshot).default_row(computed_at_ms=row.computed_at_ms)
        except NearlineError as error:
            again, why = b"", str(error)
        else:
            why = f"it differs; of activation {row.activation}, snapshot {row.trends_snapshot}"
        if again != stored:
            found.rows_wrong += 1
            found.say(f"the default row: {why}")

    async def _viewer(self, viewer: str, stored: StoredViewer, current: Current | None, found: Findings) -> None:
        """`current`: what everybody's row must be of by now; None: of any activation."""
        arena = self._arena
        history = arena.truth.histories.get(viewer)
        expected = history.state(arena.limits) if history is not None else ViewerState()
        actual = unpack(stored.state)
        self._look_for_secrets(viewer, actual, stored.row, found)
        if actual != expected:
            lost, more = _difference(expected, actual), _difference(actual, expected)
            found.lost += lost
            found.doubled += more
            found.say(f"state of {viewer}: {lost} facts missing, {more} too many: {_explain(expected, actual)}")
        if expected.is_empty and not stored.row:
            return
        try:
            row = arena.codec.decode_row(stored.row)
            own = Rewriter(arena.generation(row.generation_id), row.activation, arena.codec.encode_row, arena.limits)
            rewriter = arena.snapshots.rewriter(own, row.trends_snapshot)
            again = rewriter.rewrite(actual, computed_at_ms=row.computed_at_ms, event_time_ms=row.event_time_ms)
        except NearlineError as error:
            found.rows_wrong += 1
            found.say(f"row of {viewer}: {error}")
            return
        wrong = [
            name
            for name, same in (
                ("activation", row.activation == stored.activation == (current or stored).activation),
                ("generation", current is None or row.generation_id == current.of_viewer(viewer)),
                ("vector", again.vector_bytes == stored.vector),
                ("row", again.row_bytes == stored.row),
            )
            if not same
        ]
        if wrong:
            found.rows_wrong += 1
            found.say(
                f"row of {viewer}: {wrong} differ; row of {row.generation_id}, activation {row.activation}, hash {stored.activation}, "
                f"in force {current}"
            )

    def _look_for_secrets(self, viewer: str, state: ViewerState, row: bytes, found: Findings) -> None:
        """Ids are packed in states and rows: only who reads them sees them. A title that somebody who was erased once watched may be
        recommended to others; that they watched it may stand nowhere."""
        watched = [play.item_id for play in state.plays] + [register.subject for register in state.registers]
        shown = []
        if row:
            with contextlib.suppress(NearlineError):  # a row that cannot be read is found elsewhere
                for entry in self._arena.codec.decode_row(row).entries:
                    shown.append(entry.item_id)
                    watched += [reason.item_id for reason in entry.reasons]
        leaked = [one for one in watched if one.startswith(tuple(self._arena.secrets))]
        leaked += [one for one in shown if one.startswith(SECRET)]
        if leaked:
            found.private_leaks += len(leaked)
            found.say(f"state or row of {viewer} holds {leaked[:3]}")

    async def _trends(self, found: Findings) -> None:
        """What was counted for the generation in force is what the log says, each play once."""
        arena = self._arena
        generation = arena.snapshots.followed()
        if generation is None or generation.tables is None:
            return
        manifest = load_manifest(arena.settings.generations_path, generation.generation_id)
        cutoffs = manifest.cutoffs if manifest.stream == arena.settings.kafka.stream else {}
        now = arena.truth.now
        async with arena.store() as store:
            for partition in now.ends:
                where = f"{generation.generation_id}[{partition}]"
                next_offset, fields = await store.trends.read_checkpoint(generation.generation_id, partition)
                if next_offset is None:
                    continue  # `drain` waits for it where there is anything to count
                counts = counts_of(next_offset, fields, where)
                actual: Counter[int | str] = Counter({row: int(sums[0]) for row, sums in counts.sums.items()})
                actual.update({item_id: int(title.sums[0]) for item_id, title in counts.new.items()})
                fans = {(item_id, fan) for item_id, title in counts.new.items() for fan in title.fans}
                kept = fans - may_be_kept(now.said[partition], generation.index, generation.tables.at_ms)
                found.private_leaks += len(kept)
                if kept:
                    found.say(f"trends of {where} keep viewers who did not watch, or were erased: {sorted(kept)[:3]}")
                of = (now.said[partition], generation.index, generation.tables.at_ms, cutoffs.get(partition, 0))
                if was_counted(actual, *of, now.begins[partition]):
                    continue
                expected = plays_counted(*of)
                lost, more = (expected - actual).total(), (actual - expected).total()
                found.lost += lost
                found.doubled += more
                found.say(f"trends of {where} at {next_offset}: {lost} plays missing, {more} too many")

    # I3 and I5

    async def _accounts(self, found: Findings) -> None:
        arena = self._arena
        for partition, marker in (await arena.markers()).items():
            truth = arena.truth.now.counts(partition)
            end = arena.truth.now.ends[partition]
            where = f"{arena.settings.kafka.stream}[{partition}]"
            if marker is None:
                found.unaccounted += end
                if end:
                    found.say(f"{where}: no marker, the log ends at {end}")
                continue
            wrong = abs(marker.unaccounted) + abs(marker.next_offset - end) + abs(marker.origin)
            for name in (Fate.PRIVATE.value, Fate.DEAD.value, "absent"):
                wrong += abs(getattr(marker, name) - truth[name])
            wrong += abs(marker.applied + marker.noop - truth[Fate.EVENT.value])
            if wrong:
                found.unaccounted += wrong
                found.say(f"{where}: {marker} with the log at {end} and {dict(truth)}")
        try:  # a fallback takes the markers back before the next commit does the same
            await wait_until(self._committed_within, "commits within the markers", COMMITS_S)
        except Stuck as stuck:
            found.unaccounted += 1
            found.say(f"{stuck}: committed {await self._committed()}, markers {await arena.markers()}")

    async def _committed_within(self) -> bool:
        """Whether no partition is committed past its marker."""
        committed = await self._committed()
        return all(
            (committed.get(p) or 0) <= (m.next_offset if m else 0) for p, m in (await self._arena.markers()).items()
        )

    async def _committed(self) -> dict[int, int | None]:
        arena = self._arena
        consumer = await make_consumer(arena.settings, group_id=arena.settings.kafka.group_id)
        try:
            topic = arena.settings.kafka.topic
            return {p: await consumer.committed(TopicPartition(topic, p)) for p in arena.truth.now.ends}
        finally:
            await consumer.stop()

    async def _dead_letters(self, found: Findings) -> None:
        """Every dead record has its letter, at least one, or a mark that an erasure took it out; nothing else has."""
        arena = self._arena
        erased: set[Coordinates] = set()
        for record in await self._read_dead_letters():
            letter = parse(record)
            if isinstance(letter, Mark):
                erased |= {letter.at} if letter.kind == ERASED else set()
            elif letter is not None:
                self._letters.add(letter.at)
            content = b"\x00".join(
                [record.key or b"", record.value or b"", *(value or b"" for _, value in record.headers)]
            )
            if any(secret.encode() in content for secret in (SECRET, *arena.forgotten)):
                found.private_leaks += 1
                found.say(f"the dead letter {letter} holds what nobody may see")
        now = arena.truth.now
        wanted = {
            Coordinates(arena.settings.kafka.topic, now.epoch, partition, offset)
            for partition, fates in now.fates.items()
            for offset, fate in fates.items()
            if fate is Fate.DEAD and offset not in now.gone[partition]
        }
        have = {letter for letter in self._letters if letter.epoch == now.epoch}
        if missing := wanted - have - erased:
            found.lost += len(missing)
            found.say(f"{len(missing)} dead records without a letter, e.g. {sorted(missing)[:3]}")
        if more := have - wanted:
            found.doubled += len(more)
            found.say(f"{len(more)} letters of records that are not dead, e.g. {sorted(more)[:3]}")

    async def _read_dead_letters(self) -> list[ConsumerRecord]:
        """The whole topic: what was harmless when it was read may hold what was erased since."""
        arena = self._arena
        consumer = await make_consumer(arena.settings)
        records: list[ConsumerRecord] = []
        try:
            tp = TopicPartition(arena.settings.kafka.dead_letter_topic, 0)
            consumer.assign([tp])
            consumer.seek(tp, (await consumer.beginning_offsets([tp]))[tp])
            end = (await consumer.end_offsets([tp]))[tp]
            while await consumer.position(tp) < end:
                records += [one for found in (await consumer.getmany(timeout_ms=200)).values() for one in found]
        finally:
            await consumer.stop()
        return records

    # I4

    async def _secrets(self, found: Findings) -> None:
        arena = self._arena
        texts: dict[str, bytes] = {}
        for path in [*arena.folder.glob("*.log"), *arena.folder.glob("*/*.log")]:
            if path.name in ("kafka.log", "valkey.log"):
                continue  # not ours
            with path.open("rb") as file:
                file.seek(self._read_to.get(path, 0))
                texts[path.name] = file.read()
                self._read_to[path] = file.tell()
        texts |= await self._pages()
        texts |= await self._stored()
        self._files(found)
        prefix = f"key {arena.settings.keys.namespace}:trends:"
        for where, content in texts.items():
            # Titles that only an erased viewer has watched are counted as any: there it is the viewer who may not stand.
            secrets = {SECRET, *map(leaving, arena.secrets - {SECRET})} if where.startswith(prefix) else arena.secrets
            for secret in secrets:
                if secret.encode() in content:
                    found.private_leaks += 1
                    found.say(f"{where} holds what nobody may see ({secret}…)")

    async def _pages(self) -> dict[str, bytes]:
        """What the updaters tell of themselves."""
        pages = {}
        async with httpx.AsyncClient(timeout=2) as client:
            for slot in self._arena.crew.all:
                for path in ("/metrics", "/stats"):
                    if slot.service is not None and slot.service.running:
                        try:
                            pages[slot.name + path] = (await client.get(slot.service.url + path)).content
                        except httpx.HTTPError:
                            continue  # just starting, or busy
        return pages

    def _files(self, found: Findings) -> None:
        """The lake and every generation that nights have written since the last look; all of them after somebody was forgotten.

        A title's id is no secret of the viewer who watched it: of a forgotten one, generations are searched for the viewer's id.
        """
        arena = self._arena
        if len(arena.forgotten) != self._forgotten:
            self._forgotten = len(arena.forgotten)
            self._parquet.clear()
        for root, secrets in (
            (arena.settings.lake_path, {SECRET, *arena.forgotten, *arena.forgotten.values()}),
            (arena.settings.generations_path, {SECRET, *arena.forgotten.values()}),
        ):
            for path in sorted(Path(root).glob("**/*.parquet")):
                if path in self._parquet:
                    continue
                self._parquet.add(path)
                words = "\n".join(str(one) for column in pq.read_table(path).to_pydict().values() for one in column)
                if leaked := [secret for secret in secrets if secret in words]:
                    found.private_leaks += len(leaked)
                    found.say(f"{path} holds what nobody may see ({leaked[:3]})")

    async def _stored(self) -> dict[str, bytes]:
        """Every byte of the store."""
        client = redis.Redis.from_url(self._arena.valkey.url, protocol=2)
        contents: dict[str, bytes] = {}
        try:
            async for key in client.scan_iter(count=500):
                if await client.type(key) == b"hash":
                    parts: list[Any] = [part for pair in (await client.hgetall(key)).items() for part in pair]
                else:
                    parts = [await client.get(key) or b""]
                contents[f"key {key.decode()}"] = b"\x00".join([key, *parts])
        finally:
            await client.aclose()
        return contents


def _difference(one: ViewerState, other: ViewerState) -> int:
    """How many facts of `one` are not in `other`."""
    return sum(
        (Counter(getattr(one, part)) - Counter(getattr(other, part))).total() for part in ("plays", "seen", "registers")
    ) + (one.erased_through_s > other.erased_through_s)


def _explain(expected: ViewerState, actual: ViewerState) -> str:
    """The first facts that differ."""
    return "; ".join(
        f"{part}: missing {sorted(set(a) - set(b))[:2]}, too many {sorted(set(b) - set(a))[:2]}"
        for part in ("plays", "seen", "registers")
        if (a := getattr(expected, part)) != (b := getattr(actual, part))
    )
