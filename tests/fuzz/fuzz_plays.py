"""The compiled reader of plays against what the codec, `validate` and `state_of` make of the same bytes. `fuzz_codec` drives it.

A finding is a record that the compiled reader takes and the others refuse, call private or read otherwise, to the byte of the packed
state and the millisecond of the event. What it leaves is the codec's to decide, and no finding.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from contracts.codec import Codec
from contracts.errors import RecordError, UnknownSchema
from contracts.events import (
    EARLIEST_TIME_MS,
    FUTURE_TOLERANCE_MS,
    LATEST_TIME_MS,
    MAX_DURATION_MS,
    MAX_WATCHED_RATIO,
    PLAY_KINDS,
    Kind,
    PlaybackEvent,
    validate,
)
from viewers.packing import pack
from viewers.play_reader import Fact, PlayReader
from viewers.state import state_of

MAX_FINDINGS = 5
"""Kept with their bytes."""

T_MS = 1_790_000_000_000
"""The timestamp of most records."""

IDS = ("a", "tt" + "0" * 60, "x" * 63, "x" * 64, "~|:@" * 32, "A-z.0_9", "no id", "x" * 129, "é")
"""Of every length at which its spelling changes; the last three are none."""


@dataclass(frozen=True, slots=True)
class PlayRecord:
    """What is read of a record."""

    value: bytes
    key: bytes
    timestamp: int


@dataclass
class PlaysResult:
    """`records` went through the compiled reader: it took `read`, `wrong` of them otherwise than the codec, and left `left` to the codec
    that are valid, public plays too. `findings`: the first that were wrong."""

    records: int = 0
    read: int = 0
    left: int = 0
    wrong: int = 0
    findings: list[dict[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.records:,} plays through the compiled reader ({self.read:,} read, {self.left:,} valid ones left to the codec, "
            f"{self.wrong:,} wrong)"
        )


def made_up_play(rng: random.Random) -> PlaybackEvent:
    """A play, often with a number at or just past what the contract allows."""
    at = lambda: T_MS + rng.choice((0, -(10**11), FUTURE_TOLERANCE_MS, -5)) + (rng.random() < 0.03)  # noqa: E731
    odd_time = rng.choice((EARLIEST_TIME_MS, EARLIEST_TIME_MS - 1, LATEST_TIME_MS, -1, 2**48, 2**62))
    some_id = lambda: rng.choice(IDS[:6] if rng.random() < 0.98 else IDS)  # noqa: E731
    duration = rng.choice((1, 1000, 86_400_000, MAX_DURATION_MS))
    watched = rng.choice((0, 1, duration // 2, duration, MAX_WATCHED_RATIO * duration))
    if rng.random() < 0.05:
        duration, watched = rng.choice(((0, 0), (MAX_DURATION_MS + 1, 5), (10, 101), (10, -1), (-1, -1)))
    return PlaybackEvent(
        some_id(),
        rng.choice(sorted(PLAY_KINDS)) if rng.random() < 0.95 else rng.choice(list(Kind)),
        some_id(),
        at() if rng.random() < 0.97 else odd_time,
        rng.random() < 0.05,
        some_id() if rng.random() < 0.97 else None,
        some_id() if rng.random() < 0.97 else None,
        at() if rng.random() < 0.97 else odd_time,
        watched if rng.random() < 0.97 else None,
        duration if rng.random() < 0.97 else None,
        rng.choice((None, None, None, 5)),
        None if rng.random() < 0.97 else "topic:drama",
        some_id() if rng.random() < 0.3 else None,
        rng.choice((None, 0, 7, -1, 2**31 - 1, -(2**31))),
    )


class Plays:
    """Reads batches both ways; sums up in `result`."""

    def __init__(self, codec: Codec, result: PlaysResult) -> None:
        self.codec = codec
        self.result = result
        self._read = PlayReader(codec.event_header)

    def try_batch(self, rng: random.Random, mutate: Callable[[bytes], bytes]) -> None:
        """A batch of made-up plays, two thirds of them mutated."""
        batch = []
        for _ in range(rng.choice((1, 2, 50, 200))):
            event = made_up_play(rng)
            value = self.codec.encode_event(event)
            key = event.viewer if rng.random() < 0.97 else "else"
            batch.append(
                PlayRecord(
                    mutate(value) if rng.random() < 0.66 else value, key.encode(), T_MS + rng.choice((0, 0, 0, -1, 1))
                )
            )
        self.check(batch)

    def check(self, records: Sequence[PlayRecord]) -> None:
        """Read a batch at once, and compare each record with what it is alone."""
        for record, fact in zip(records, self._read(records), strict=True):
            expected = self.expected(record)
            self.result.records += 1
            self.result.read += fact is not None
            self.result.left += fact is None and expected is not None
            if fact is not None and fact != expected:
                self.result.wrong += 1
                if len(self.result.findings) < MAX_FINDINGS:
                    problem = f"read as {fact} where the codec says {expected}"
                    self.result.findings.append({"problem": problem, "bytes": record.value[:600].hex()})

    def expected(self, record: PlayRecord) -> Fact | None:
        """The fact of a valid, public report on a play; None for everything else."""
        try:
            event = self.codec.decode_event(record.value)
            if event.private or event.kind not in PLAY_KINDS:
                return None
            validate(event, key=record.key, timestamp_ms=record.timestamp)
        except (RecordError, UnknownSchema):
            return None
        return Fact(pack(state_of(event, timestamp_ms=record.timestamp)), event.event_time_ms)
