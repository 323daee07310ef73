"""What must be true afterwards, computed from the log in a way of its own.

Every record that the harness sends says in a header which of its intents it carries, and the log says which of them arrived, where
and how often. So nothing here decodes, validates or merges as the updater does: each viewer's facts are gathered in dictionaries and
cut once, at the end.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from contracts.events import PlaybackEvent
from runtime.kafka import ConsumerRecord, TopicPartition, count_partitions, kafka_errors, make_consumer
from runtime.settings import Settings
from sandbox.chaos.trends_truth import Said
from viewers.state import Limits, Play, Register, ViewerState, item_digest, state_of

INTENT = "intent"
"""Header: the number of the intent that a record carries, decimal."""


class Fate(Enum):
    """What must become of a record: an event is applied or a no-op (which of the two may shift after a crash)."""

    EVENT = "event"
    PRIVATE = "private"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Intent:
    """A record as it was meant. `event`: of fate EVENT and PRIVATE."""

    fate: Fate
    event: PlaybackEvent | None = None


@dataclass(slots=True)
class Incarnation:
    """One life of the topic. `fates[p][o]`: of the record at an offset; `gone[p]`: offsets deleted before anybody applied them. `said[p]`:
    its events, but for those; `begins[p]`: where the log has begun, at one time or another."""

    epoch: int
    fates: dict[int, dict[int, Fate]] = field(default_factory=lambda: defaultdict(dict))
    gone: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    ends: dict[int, int] = field(default_factory=dict)
    said: dict[int, list[Said]] = field(default_factory=lambda: defaultdict(list))
    begins: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))

    def counts(self, partition: int) -> Counter[str]:
        """What the partition's counters must say: event, private, dead, absent."""
        gone, fates = self.gone[partition], self.fates[partition]
        counted = Counter(fate.value for offset, fate in fates.items() if offset not in gone)
        counted["absent"] = self.ends.get(partition, 0) - len(fates.keys() - gone)
        return counted


class History:
    """One viewer's facts: dictionaries that grow, cut when somebody asks."""

    def __init__(self) -> None:
        self._plays: dict[tuple[int, int, str], tuple[int, int]] = {}
        self._registers: dict[tuple[int, str], list[Register]] = defaultdict(list)
        self._erased_s = -1

    def add(self, event: PlaybackEvent, timestamp_ms: int) -> None:
        """Take one event's facts."""
        facts = state_of(event, timestamp_ms=timestamp_ms)
        for play in facts.plays:
            share, flags = self._plays.get(play[:3], (0, 0))
            self._plays[play[:3]] = (max(share, play.share), flags | play.flags)
        for register in facts.registers:
            self._registers[(int(register.kind), register.subject)].append(register)
        self._erased_s = max(self._erased_s, facts.erased_through_s)

    def state(self, limits: Limits) -> ViewerState:
        """The state that all of it comes to."""
        kept: list[Play] = []
        of_item: Counter[str] = Counter()
        seen: dict[int, int] = {}
        for identity in sorted((one for one in self._plays if one[0] // 1000 > self._erased_s), reverse=True):
            started_ms, _, item = identity
            of_item[item] += 1
            if of_item[item] <= limits.max_plays_per_item and len(kept) < limits.max_plays:
                kept.append(Play(*identity, *self._plays[identity]))
            else:
                seen[item_digest(item)] = max(seen.get(item_digest(item), 0), started_ms // 1000)
        newest_seen = sorted(seen.items(), key=lambda one: (one[1], one[0]), reverse=True)[: limits.max_seen]
        said = {}
        for subject, registers in self._registers.items():
            valid = [one for one in registers if one.event_time_ms // 1000 > self._erased_s]
            if valid:
                said[subject] = max(valid, key=lambda one: one.order)
        newest = sorted(said.items(), key=lambda one: (one[1].order, one[0]), reverse=True)[: limits.max_registers]
        return ViewerState(
            tuple(kept), tuple(sorted(newest_seen)), tuple(one for _, one in sorted(newest)), self._erased_s
        )


class Truth:
    """Reads the log as it grows, and holds what every viewer's state must be."""

    def __init__(self, settings: Settings, decode: Callable[[bytes], PlaybackEvent]) -> None:
        self.settings = settings
        self._decode = decode
        self.intents: list[Intent] = []
        self.histories: dict[str, History] = defaultdict(History)
        self.incarnations = [Incarnation(settings.kafka.stream_epoch)]
        self.events = 0
        self._kept_back: list[tuple[PlaybackEvent, int]] = []

    @property
    def now(self) -> Incarnation:
        """The topic's life in force."""
        return self.incarnations[-1]

    def intend(self, intent: Intent) -> int:
        """Note what the next record carries; its number, for the header."""
        self.intents.append(intent)
        return len(self.intents) - 1

    def recreated(self, settings: Settings) -> None:
        """The topic starts anew under these settings; what was read of the old one stays true."""
        self.settings = settings
        self.incarnations.append(Incarnation(settings.kafka.stream_epoch))

    def declare_gone(self, partition: int, offsets: Iterable[int]) -> None:
        """These offsets, not read here yet, will be deleted before an updater reads them: counted absent."""
        self.now.gone[partition].update(offsets)

    def end_gap(self, *, restored: bool) -> None:
        """What was declared gone since the last gap is lost, or came back from the lake: then the plays count after all. The
        offsets stay absent."""
        for event, timestamp_ms in self._kept_back if restored else ():
            self.histories[event.viewer].add(event, timestamp_ms)
        self._kept_back.clear()

    async def catch_up(self) -> Mapping[int, int]:
        """Read what is new; partition → the log's end. Errors: `KafkaUnavailable`."""
        topic = self.settings.kafka.topic
        consumer = await make_consumer(self.settings)
        try:
            with kafka_errors(f"reading {topic}", self.settings):
                partitions = await partitions_of(self.settings)
                assigned = [TopicPartition(topic, p) for p in partitions]
                consumer.assign(assigned)
                ends = await consumer.end_offsets(assigned)
                begins = await consumer.beginning_offsets(assigned)
                behind = {tp for tp in assigned if self._read_to(tp.partition) < ends[tp]}
                for tp in assigned:
                    self.now.begins[tp.partition].add(begins[tp])
                    consumer.seek(tp, max(self._read_to(tp.partition), begins[tp]))
                while behind:
                    for tp, records in (await consumer.getmany(timeout_ms=200, max_records=10_000)).items():
                        self._take(tp.partition, records)
                    for tp in sorted(behind):
                        if await consumer.position(tp) >= ends[tp]:
                            self.now.ends[tp.partition] = ends[tp]
                            behind.discard(tp)
        finally:
            await consumer.stop()
        self.now.ends |= {tp.partition: end for tp, end in ends.items()}
        return {tp.partition: end for tp, end in ends.items()}

    def _read_to(self, partition: int) -> int:
        return self.now.ends.get(partition, 0)

    def _take(self, partition: int, records: Iterable[ConsumerRecord]) -> None:
        fates, gone = self.now.fates[partition], self.now.gone[partition]
        for record in records:
            number = dict(record.headers).get(INTENT)
            # A record of a verb (`forget`) was not sent by the harness.
            intent = Intent(Fate.EVENT, self._decode(record.value)) if number is None else self.intents[int(number)]
            fates[record.offset] = intent.fate
            self.events += 1
            if intent.fate is Fate.EVENT and intent.event is not None:
                if record.offset in gone:
                    self._kept_back.append((intent.event, record.timestamp))
                else:
                    self.histories[intent.event.viewer].add(intent.event, record.timestamp)
                    self.now.said[partition].append(Said(record.offset, record.timestamp, intent.event))
            self.now.ends[partition] = record.offset + 1


async def partitions_of(settings: Settings) -> range:
    """The topic's partitions now. Errors: `KafkaUnavailable`."""
    return range(await count_partitions(settings, settings.kafka.topic))
