"""What one partition's log says of a generation's titles since its cut-off. Pure: the same records give the same counts, to the bit.

A play counts once, at its first report that says something good of it (`viewers.signals`), with the record's timestamp as its time: an
event's own clock decides nothing but whether the play is too old. Sums are kept by forward decay: a play at time t adds 2^((t − L) / h)
for each half-life h, where L is the time of the partition's first counted play, so that no sum has to be touched again as time passes.
It adds 1/√(1 + n) of that, where n is how many plays of the same viewer are remembered: one who watches, or rates, a hundred titles in
an evening is no trend of a hundred titles. (Without it who comes new is shown what one person has just been through.)

A play, and whose it is, is remembered while it could come again. The partition's clock is the newest timestamp read; what was counted
over `REMEMBERED_MS` before it is forgotten, and plays that began before that are not counted any more, so that nothing counts twice. The
same line moves up when there are more plays than may be remembered. Plays from before the trends of the generation (`since_ms`) are in
them already, or wait for the next night.

Titles that the generation has no vector of are counted alike, under their ids, with who watched them last: from these comes their vector
(`new_items.py`). The least watched go when there are too many. Whether they may be shown is no matter of the log, and not decided here.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from typing import NamedTuple

from contracts.digests import id_digest
from contracts.events import FUTURE_TOLERANCE_MS
from embeddings.tables import HALF_LIVES_DAYS, WEEK
from viewers.signals import play_strength
from viewers.state import Play, ViewerState

HOUR_MS = 3_600_000
REMEMBERED_MS = 6 * HOUR_MS
"""A play that is reported on for longer counts all the same, by its first good report."""
SLOT_MS = 120_000
"""Plays are remembered and forgotten by slots of the partition's clock; a slot is what a checkpoint writes again as it grows."""
AHEAD_MS = HOUR_MS
"""A record so far ahead of our clock is passed over: it would move the partition's clock, and nothing would count until it is reached.
(A broker refuses such records unless `message.timestamp.after.max.ms` was raised.)"""
MOST_ERASURES = 10_000
"""Remembered of a partition."""
MOST_ERASED_ANYWHERE = 1_000_000
"""Remembered of all."""
GREATEST_EXPONENT = 900.0
"""Of 2, which float64 still holds: 450 days at the shortest half-life, in which a generation is long replaced."""

_HALF_LIVES_MS = tuple(days * 24 * HOUR_MS for days in HALF_LIVES_DAYS)


FANS = 64
"""Viewers kept of a new title, those who came last: twice as many change its vector little."""

Remembered = tuple[int, int]
"""A play's digest (64 bits), its viewer's (32 bits)."""


class Report(NamedTuple):
    """One valid, public record. `facts`: what it says alone (`viewers.state.state_of`)."""

    timestamp_ms: int
    viewer: str
    facts: ViewerState


class Decision(Enum):
    """What became of a record."""

    COUNTED = "counted"
    AGAIN = "again"  # of a play that has counted
    WEAK = "weak"  # says nothing good of the title
    NEW = "new"  # counted, of a title that the generation has no vector of
    UNKNOWN = "unknown"  # the generation does not have the title, and new ones are not counted
    LATE = "late"  # began before what can be told apart
    ERASED = "erased"
    AHEAD = "ahead"  # of our clock
    OTHER = "other"  # no play


@dataclass(frozen=True, slots=True)
class Rules:
    """`index`: title → row of the generation, of those that it has learnt. `since_ms`: plays that began until then are in the generation's
    own trends. `remembered`: plays of a partition at most. `new_titles`: of a partition that are counted beside; twice
    as many for a while."""

    index: Mapping[str, int]
    since_ms: int
    remembered: int
    new_titles: int = 0


@dataclass(eq=False, slots=True)
class NewTitle:
    """`slot`: its place in a checkpoint. `sums`: as of any title. `fans`: who watched it, in the order of their newest play, at most
    `FANS`."""

    slot: int
    sums: list[float]
    fans: dict[str, None] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class ErasedAnywhere:
    """Who was erased in any partition's log: a viewer's plays may lie in another one, which is read later (partitions were added, a key was
    misplaced). Sums follow from each log alone; who watched what is kept of nobody who is erased."""

    through_s: dict[int, int] = field(default_factory=dict)  # viewer's digest → erased through, seconds

    def add(self, who: int, through_s: int) -> None:
        """The newest `MOST_ERASURES` of many partitions are kept."""
        self.through_s[who] = max(through_s, self.through_s.pop(who, -1))
        if len(self.through_s) > MOST_ERASED_ANYWHERE:
            del self.through_s[next(iter(self.through_s))]

    def has(self, viewer: str, at_s: int) -> bool:
        """Whether what the viewer did then is erased."""
        return bool(self.through_s) and self.through_s.get(_digest(viewer), -1) >= at_s


@dataclass(eq=False, slots=True)
class Counts:
    """One partition. `sums`: row → [plays, decayed sum of each half-life]. Fields below `next_offset` follow from the log alone."""

    next_offset: int
    clock_ms: int = 0  # newest timestamp read
    forgotten_ms: int = 0  # what counted while the clock was before this is forgotten
    landmark_ms: int = 0  # L; 0 before the first counted play
    newest_ms: int = 0  # time of the newest counted play
    counted: int = 0
    sums: dict[int, list[float]] = field(default_factory=dict)
    slots: dict[int, list[Remembered]] = field(default_factory=dict)  # by clock // SLOT_MS, ascending → counted then
    erased: dict[int, int] = field(default_factory=dict)  # viewer's digest → erased through, seconds
    new: dict[str, NewTitle] = field(default_factory=dict)
    anywhere: ErasedAnywhere = field(default_factory=ErasedAnywhere)  # shared by all partitions: `share_erasures`

    changed_rows: set[int] = field(default_factory=set)  # since the last checkpoint
    changed_slots: set[int] = field(default_factory=set)
    changed_new: set[int] = field(default_factory=set)  # slots of new titles
    _known: set[int] = field(default_factory=set)  # digests of the plays remembered
    _plays_of: Counter[int] = field(default_factory=Counter)  # viewer's digest → plays remembered

    def __post_init__(self) -> None:
        for slot in self.slots.values():
            self._known.update(play for play, _ in slot)
            self._plays_of.update(viewer for _, viewer in slot)

    @property
    def horizon_ms(self) -> int:
        """Plays that began until then may have counted and been forgotten. (A play's start may be ahead of its record.)"""
        return self.forgotten_ms + FUTURE_TOLERANCE_MS if self.forgotten_ms else 0

    @property
    def remembered(self) -> int:
        return len(self._known)

    def take(self, report: Report, rules: Rules, now_ms: int) -> Decision:
        """The next record of the partition. `now_ms`: our own clock."""
        if report.timestamp_ms > now_ms + AHEAD_MS:
            return Decision.AHEAD
        if report.timestamp_ms > self.clock_ms:
            self.clock_ms = report.timestamp_ms
            self._forget(max(0, (self.clock_ms - REMEMBERED_MS) // SLOT_MS * SLOT_MS))
        if report.facts.erased_through_s >= 0:
            self._erase(report.viewer, report.facts.erased_through_s)
        if not report.facts.plays:
            return Decision.OTHER
        return self._take_play(report.viewer, report.facts.plays[0], report.timestamp_ms, rules)

    def _take_play(self, viewer: str, play: Play, timestamp_ms: int, rules: Rules) -> Decision:
        row = rules.index.get(play.item_id)
        if row is None and not rules.new_titles:
            return Decision.UNKNOWN
        if play_strength(play.share, play.flags) <= 0:
            return Decision.WEAK
        if play.started_at_ms <= max(rules.since_ms, self.horizon_ms):
            return Decision.LATE
        if self.erased and self.erased.get(_digest(viewer), -1) >= play.started_at_ms // 1000:
            return Decision.ERASED
        identity = _digest(f"{viewer} {play.started_at_ms} {play.play_digest} {play.item_id}")
        if identity in self._known:
            return Decision.AGAIN
        who = id_digest(viewer)
        if row is None:
            erased = self.anywhere.has(viewer, play.started_at_ms // 1000)
            sums = self._new_title(play.item_id, "" if erased else viewer, rules.new_titles)
        else:
            sums = self.sums.setdefault(row, _nothing())
            self.changed_rows.add(row)
        self._count(sums, timestamp_ms, (1 + self._plays_of[who]) ** -0.5)
        self._remember((identity, who), rules.remembered)
        return Decision.NEW if row is None else Decision.COUNTED

    def _new_title(self, item_id: str, viewer: str, most: int) -> list[float]:
        """The sums of a title that the generation has no vector of; who watches it is kept, if it is anybody."""
        title = self.new.get(item_id)
        if title is None:
            if len(self.new) >= 2 * most:
                self._leave_out_new(len(self.new) - most)
            used = {one.slot for one in self.new.values()}
            title = self.new[item_id] = NewTitle(next(n for n in count() if n not in used), _nothing())
        if viewer:
            title.fans.pop(viewer, None)
            title.fans[viewer] = None
        if len(title.fans) > FANS:
            del title.fans[next(iter(title.fans))]
        self.changed_new.add(title.slot)
        return title.sums

    def _leave_out_new(self, how_many: int) -> None:
        """The least watched of late; of equals the first by name."""
        least = sorted(self.new, key=lambda item_id: (self.new[item_id].sums[1 + WEEK], item_id))
        for item_id in least[:how_many]:
            self.changed_new.add(self.new.pop(item_id).slot)

    def _count(self, sums: list[float], timestamp_ms: int, weight: float) -> None:
        self.counted += 1
        self.landmark_ms = self.landmark_ms or timestamp_ms
        self.newest_ms = max(self.newest_ms, timestamp_ms)
        sums[0] += 1
        age_ms = timestamp_ms - self.landmark_ms
        for column, half_life_ms in enumerate(_HALF_LIVES_MS, 1):
            sums[column] += weight * 2.0 ** min(age_ms / half_life_ms, GREATEST_EXPONENT)

    def _remember(self, play: Remembered, most: int) -> None:
        slot = self.clock_ms // SLOT_MS
        self.slots.setdefault(slot, []).append(play)
        self.changed_slots.add(slot)
        self._known.add(play[0])
        self._plays_of[play[1]] += 1
        while len(self._known) > most:
            self._forget((next(iter(self.slots)) + 1) * SLOT_MS)

    def leave(self, *viewers: str) -> None:
        """Forget that these watched any new title."""
        for title in self.new.values():
            for viewer in title.fans.keys() & set(viewers):
                del title.fans[viewer]
                self.changed_new.add(title.slot)

    def leave_all(self) -> None:
        """Forget who watched what."""
        self.leave(*{fan for title in self.new.values() for fan in title.fans})

    def _erase(self, viewer: str, through_s: int) -> None:
        self.leave(viewer)
        who = _digest(viewer)
        self.anywhere.add(who, through_s)
        if (through_s + 1) * 1000 <= self.horizon_ms:
            return  # what it erases does not count any more
        through_s = max(through_s, self.erased.pop(who, -1))
        self.erased[who] = through_s
        if (
            len(self.erased) > MOST_ERASURES
        ):  # what may not count for the one forgotten first does not count for anybody
            self._forget((min(self.erased.values()) + 1) * 1000)

    def _forget(self, before_ms: int) -> None:
        """Forget what was counted while the clock was before this."""
        if before_ms <= self.forgotten_ms:
            return
        self.forgotten_ms = before_ms
        for slot in [slot for slot in self.slots if (slot + 1) * SLOT_MS <= before_ms]:
            for play, who in self.slots.pop(slot):
                self._known.discard(play)
                self._plays_of[who] -= 1
                if not self._plays_of[who]:
                    del self._plays_of[who]
            self.changed_slots.add(slot)  # the store, too, has to forget it
        horizon_ms = self.horizon_ms
        for erased in [who for who, through_s in self.erased.items() if (through_s + 1) * 1000 <= horizon_ms]:
            del self.erased[erased]


def share_erasures(counted: Iterable[Counts]) -> None:
    """Let these partitions know of each other's erasures, from now on."""
    anywhere = ErasedAnywhere()
    for counts in counted:
        for who, through_s in counts.erased.items():
            anywhere.add(who, through_s)
        counts.anywhere = anywhere


def _nothing() -> list[float]:
    """Sums of a title that was not played yet."""
    return [0.0] * (1 + len(_HALF_LIVES_MS))


def _digest(text: str) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
