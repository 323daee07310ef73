"""`nearline nightly --at 22:00`: one process that runs a night a day.

What is due is decided from the lake alone (`batch/night_note.py`): the last time that the clock of `nightly.time_zone` showed the hour,
unless a night that began since has ended well. So a night that was missed, because nothing ran or every try failed, is caught up at
once, and a night that a person ran by hand counts. It is looked at again every half minute by the wall clock: a machine that slept, or
whose clock was set, is no special case.

Daylight saving: every day has one night. An hour that the spring skips comes when the clock has jumped; of an hour that
the autumn repeats it is the first (as Debian's cron does; `cronsim` knows how).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from zoneinfo import ZoneInfo

import structlog
from cronsim import CronSim
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector

from batch.lock import LakeInUse, lake_lock
from batch.night_note import NightNote
from batch.report import NightlyReport
from contracts.errors import HaltError, NearlineError, UserError
from runtime.tasks import cancel_all

log = structlog.get_logger()

LOOK_AGAIN_S = 30.0
"""How often the wall clock is looked at."""
RETRY_FIRST_S, RETRY_MOST_S = 60.0, 3_600.0
"""A night that failed is tried again after a minute, then two, four, … at most an hour: it goes on where it was."""

LOOK_BACK_MS = 3 * 86_400_000
"""More than a day, whatever its clock does."""

OUTCOMES = ("published", "unchanged", "held_back", "failed")

_AT = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")

Night = Callable[[], Awaitable[NightlyReport]]


@dataclass(frozen=True, slots=True)
class Daily:
    """A time of day in a time zone. Pure."""

    hour: int
    minute: int
    zone: ZoneInfo

    @classmethod
    def parse(cls, at: str, zone: str) -> Daily:
        """Errors: `UserError` for text that is no `HH:MM`."""
        found = _AT.fullmatch(at)
        if found is None:
            raise UserError(f"--at {at}: not a time of day, e.g. --at 22:00 (in NEARLINE_NIGHTLY__TIME_ZONE={zone})")
        return cls(int(found[1]), int(found[2]), ZoneInfo(zone))

    def last_ms(self, now_ms: int) -> int:
        """The newest moment that is not after `now_ms`, UTC milliseconds."""
        # Forwards from some days ago: backwards, cronsim takes the second of two equal hours for the first.
        return max(takewhile(lambda at_ms: at_ms <= now_ms, self._after(now_ms - LOOK_BACK_MS)))

    def next_ms(self, now_ms: int) -> int:
        """The first moment after `now_ms`, UTC milliseconds."""
        return next(at_ms for at_ms in self._after(now_ms - LOOK_BACK_MS) if at_ms > now_ms)

    def _after(self, begin_ms: int) -> Iterator[int]:
        begin = datetime.fromtimestamp(begin_ms // 1_000, self.zone)
        for moment in CronSim(f"{self.minute} {self.hour} * * *", begin):
            yield int(moment.timestamp() * 1_000)


class NightMetrics:
    """What the scheduler exports."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.nights = Counter("nearline_nights_total", "Nights by outcome", ["outcome"], registry=self.registry)
        for outcome in OUTCOMES:
            self.nights.labels(outcome)  # from 0 on, so that the first one is seen as an increase
        self.seconds = Gauge("nearline_night_seconds", "What the last night took", registry=self.registry)
        self.began = Gauge(
            "nearline_night_began_timestamp_seconds",
            "When the last night that ended well began; 0: none did",
            registry=self.registry,
        )
        self.due = Gauge("nearline_night_due_timestamp_seconds", "When the next night is due", registry=self.registry)


def schedule_lock(lake_path: str) -> AbstractContextManager[None]:
    """Held by the one scheduler of a lake. Errors: `LakeInUse` naming the process that has it."""
    return lake_lock(lake_path, name="schedule", what="scheduler waits for its hour", remedy="one is enough, end one")


class Scheduler:
    """Runs `night` whenever one is due, until `stop` is set; a night under way is then cancelled, and resumed by whoever is next."""

    def __init__(
        self,
        lake_path: str,
        at: Daily,
        night: Night,
        *,
        metrics: NightMetrics,
        on_report: Callable[[NightlyReport], None] = lambda _: None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._lake_path = lake_path
        self._at = at
        self._night = night
        self._note = NightNote(lake_path)
        self._metrics = metrics
        self._on_report = on_report
        self._now_ms = now_ms
        self._failed = 0  # nights in a row
        self._not_before_ms = 0
        self._told_ms = 0

    async def run(self, stop: asyncio.Event) -> bool:
        """Returns whether a night was interrupted. The caller holds `schedule_lock`. Errors: `HaltError`."""
        while not stop.is_set():
            wait_ms = self.due_ms() - self._now_ms()
            if wait_ms > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), min(wait_ms / 1_000, LOOK_AGAIN_S))
            elif await self._interrupted(stop):
                return True
        return False

    def due_ms(self) -> int:
        """When the next night is to begin: in the past if one was missed."""
        now_ms, began_ms = self._now_ms(), self._note.completed_began_ms()
        last_ms = self._at.last_ms(now_ms)
        due_ms = self._at.next_ms(now_ms) if began_ms >= last_ms else max(last_ms, self._not_before_ms)
        self._metrics.began.set(began_ms / 1_000)
        if due_ms != self._told_ms:
            self._told_ms = due_ms
            self._metrics.due.set(due_ms / 1_000)
            due = datetime.fromtimestamp(due_ms / 1_000, UTC).isoformat(" ", "seconds")
            log.info("night_due", at=due, missed=due_ms < now_ms - LOOK_AGAIN_S * 1_000)
        return due_ms

    async def _interrupted(self, stop: asyncio.Event) -> bool:
        """Run a night, unless `stop` is set before it has ended: then cancel it."""
        night, stopped = asyncio.ensure_future(self._night()), asyncio.ensure_future(stop.wait())
        began_s = time.monotonic()
        await asyncio.wait((night, stopped), return_when=asyncio.FIRST_COMPLETED)
        await cancel_all(stopped, *([] if night.done() else [night]))
        if night.cancelled():
            log.warning("night_interrupted", remedy="the next one goes on where this one was")
            return True
        self._metrics.seconds.set(time.monotonic() - began_s)
        try:
            self._ended(night.result())
        except LakeInUse as error:
            self._again(RETRY_FIRST_S)
            log.info("night_waits", reason=str(error))
        except HaltError:
            raise
        except NearlineError as error:
            self._metrics.nights.labels("failed").inc()
            again_s = min(RETRY_FIRST_S * 2**self._failed, RETRY_MOST_S)
            self._failed = min(self._failed + 1, 10)
            self._again(again_s)
            log.error("night_failed", error=str(error), again_in_s=again_s)
        return False

    def _ended(self, report: NightlyReport) -> None:
        outcome = "held_back" if not report.published else "unchanged" if report.reused else "published"
        self._metrics.nights.labels(outcome).inc()
        self._failed = 0
        log.info("night_ended", outcome=outcome, generation_id=report.generation_id, summary=report.headline())
        self._on_report(report)

    def _again(self, seconds: float) -> None:
        self._not_before_ms = self._now_ms() + int(seconds * 1_000)
