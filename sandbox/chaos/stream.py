"""What viewers do while things break: plays, second reports, duplicates, late ones, private ones, ratings, and now and then poison."""

from __future__ import annotations

import random
import time
import uuid
from dataclasses import dataclass, replace

from contracts.codec import Codec
from contracts.events import Kind, PlaybackEvent
from sandbox.chaos.truth import Fate, Intent, Truth

SECRET = "secret-"  # noqa: S105
"""Every id of a private play begins with it: it must never be seen again."""

VIEWERS = 150
ITEMS = 160
"""More than any generation has: a play of an unknown item is kept too."""

PLAY_KINDS = (Kind.COMPLETE, Kind.COMPLETE, Kind.COMPLETE, Kind.STOP, Kind.PROGRESS, Kind.SKIP, Kind.START)
HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Message:
    """A record to send. `intent`: its number in the truth."""

    intent: int
    key: bytes | None
    value: bytes
    timestamp_ms: int
    private: bytes | None = b"0"
    partition: int | None = None


def leaving(mark: str) -> str:
    """The viewer who alone watches titles of this mark (`erased…-`), and is erased."""
    return f"leaving-{mark.removeprefix('erased').removesuffix('-')}"


def now_ms() -> int:
    """UTC milliseconds."""
    return time.time_ns() // 1_000_000


class Audience:
    """Draws messages. Everything but their times follows from the seed."""

    def __init__(self, truth: Truth, codec: Codec, rng: random.Random) -> None:
        self._truth = truth
        self._codec = codec
        self._rng = rng
        self._said: list[PlaybackEvent] = []

    def live(self) -> Message:
        """What comes next in an ordinary evening."""
        chance = self._rng.random()
        if chance < 0.003:
            return self.poison()
        if chance < 0.05:
            return self.event(self.private_play())
        if chance < 0.10 and self._said:
            return self.event(self._rng.choice(self._said))  # the same once more
        if chance < 0.16 and self._said:
            return self.event(self._later_report(self._rng.choice(self._said)))
        if chance < 0.20:
            return self.event(self.play(age_ms=self._rng.randrange(30 * 24 * HOUR_MS)))
        if chance < 0.25:
            return self.event(self.opinion())
        return self.event(self.play())

    def play(self, viewer: str | None = None, *, age_ms: int = 0, item: str | None = None) -> PlaybackEvent:
        """A play that started `age_ms` ago."""
        started = now_ms() - age_ms - self._rng.randrange(2 * HOUR_MS)
        duration = self._rng.randrange(60_000, 3 * HOUR_MS)
        return PlaybackEvent(
            event_id=self._id("e"),
            kind=self._rng.choice(PLAY_KINDS),
            viewer=viewer or self.viewer(),
            event_time_ms=min(now_ms(), started + self._rng.randrange(2 * HOUR_MS)) if age_ms else now_ms(),
            item_id=item or f"tt{self._rng.randrange(ITEMS):07d}",
            play_id=self._id("p"),
            play_started_at_ms=started,
            watched_ms=self._rng.randrange(duration + 1),
            duration_ms=duration,
        )

    def private_play(self) -> PlaybackEvent:
        """A play that nobody may ever see again."""
        return replace(self.play(item=SECRET + self._id("i")), private=True, play_id=SECRET + self._id("p"))

    def opinion(self) -> PlaybackEvent:
        """A rating, a hide, a preference."""
        kind = self._rng.choice((Kind.RATE, Kind.CLEAR_RATING, Kind.HIDE, Kind.PREFER))
        event = PlaybackEvent(self._id("e"), kind, self.viewer(), now_ms())
        if kind is Kind.PREFER:
            event = replace(event, preference=f"topic:{self._rng.randrange(9)}")
        else:
            event = replace(event, item_id=f"tt{self._rng.randrange(ITEMS):07d}")
        value = self._rng.randint(-100, 100) if kind in (Kind.RATE, Kind.PREFER) else None
        return replace(event, value=value)

    def erasure(self, viewer: str) -> PlaybackEvent:
        """Forget everything so far."""
        return PlaybackEvent(self._id("e"), Kind.ERASE, viewer, now_ms())

    def _later_report(self, event: PlaybackEvent) -> PlaybackEvent:
        """Another report on the same play, perhaps on less of it: they arrive in any order."""
        if event.play_id is None or event.duration_ms is None:
            return replace(event, event_id=self._id("e"))
        return replace(
            event,
            event_id=self._id("e"),
            kind=self._rng.choice(PLAY_KINDS),
            watched_ms=self._rng.randrange(event.duration_ms + 1),
        )

    def viewer(self) -> str:
        """Somebody; a few watch more than the others."""
        return f"viewer-{min(self._rng.randrange(VIEWERS), self._rng.randrange(VIEWERS)):04d}"

    def event(self, event: PlaybackEvent, *, timestamp_ms: int | None = None) -> Message:
        """The message of a valid event."""
        if not event.private and timestamp_ms is None:  # from a clock that runs ahead it would not be valid later
            self._said.append(event)
            if len(self._said) > 500:
                self._said.pop(self._rng.randrange(500))
        return self.raw(
            Intent(Fate.PRIVATE if event.private else Fate.EVENT, event),
            event.viewer.encode(),
            self._codec.encode_event(event),
            timestamp_ms=timestamp_ms,
            private=b"1" if event.private else b"0",
        )

    def raw(
        self,
        intent: Intent,
        key: bytes | None,
        value: bytes,
        *,
        timestamp_ms: int | None = None,
        private: bytes | None = b"0",
        partition: int | None = None,
    ) -> Message:
        """Any bytes, with what must become of them."""
        return Message(self._truth.intend(intent), key, value, timestamp_ms or now_ms(), private, partition)

    def poison(self) -> Message:
        """A record that can never be applied, of one kind or another."""
        event = self.play()
        good = self._codec.encode_event(event)
        now = now_ms()
        ahead = replace(event, event_time_ms=now + 10 * HOUR_MS, play_started_at_ms=now + 9 * HOUR_MS)
        longer = replace(event, watched_ms=(event.duration_ms or 1) * 11)
        value = self._rng.choice(
            (
                self._rng.randbytes(self._rng.randrange(40)),
                good[:-1],
                good + b"\x00",
                good[:5] + bytes(b ^ 255 for b in good[5:]),
                b"\x00\x7f\xff\xff\xff" + good[5:],  # an id that no registry will ever reach
                self._codec.encode_event(ahead),
                self._codec.encode_event(longer),
            )
        )
        return self.raw(Intent(Fate.DEAD), event.viewer.encode(), value)

    def misplaced(self) -> Message:
        """A good event under somebody else's key."""
        event = self.play()
        key = self._rng.choice((b"somebody-else", b"", None))
        return self.raw(Intent(Fate.DEAD), key, self._codec.encode_event(event))

    def giant(self) -> Message:
        """A record far beyond what an event may take, up to what a broker takes."""
        size = self._rng.choice((17_000, 70_000, 300_000, 900_000))
        return self.raw(Intent(Fate.DEAD), self.viewer().encode(), b"\x00" + self._rng.randbytes(size))

    def _id(self, kind: str) -> str:
        return f"{kind}{uuid.UUID(int=self._rng.getrandbits(128)).hex[:16]}"
