"""When a night is due: once a day by a clock that jumps, caught up when missed, again when it failed, and never two at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from batch.lock import LakeInUse, lake_lock
from batch.night_note import RESUME_WITHIN_MS, NightNote
from batch.report import NightlyReport
from batch.schedule import RETRY_MOST_S, Daily, NightMetrics, Scheduler, schedule_lock
from contracts.errors import HaltError, SettingsError, StoreUnavailable, UserError
from runtime.settings import load_settings

HOUR_MS = 3_600_000


def ms(text: str) -> int:
    """UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def told(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


@pytest.mark.parametrize("at", ["22", "24:00", "22:60", "22:0", "10pm", "", "-1:00"])
def test_what_is_no_time_of_day_is_refused_with_an_example(at: str) -> None:
    with pytest.raises(UserError, match=r"e\.g\. --at 22:00"):
        Daily.parse(at, "UTC")


def test_the_moment_itself_is_due_and_the_next_one_is_a_day_later() -> None:
    daily, at = Daily.parse("22:00", "UTC"), ms("2026-11-21 22:00")
    assert (daily.last_ms(at), daily.next_ms(at)) == (at, at + 24 * HOUR_MS)
    assert (daily.last_ms(at - 1), daily.next_ms(at - 1_000)) == (at - 24 * HOUR_MS, at)
    assert daily.last_ms(at + 999) == at


@pytest.mark.parametrize(
    ("zone", "at", "days", "expected"),
    [
        ("Europe/Berlin", "22:00", ("2026-03-28", "2026-03-29"), ["2026-03-28 21:00", "2026-03-29 20:00"]),
        # 02:30 does not exist on the 29th: the night comes when the clock has jumped to 03:00
        ("Europe/Berlin", "2:30", ("2026-03-28", "2026-03-30"), ["2026-03-28 01:30", "2026-03-29 01:00", "2026-03-30 00:30"]),
        # 02:30 comes twice on the 25th: the first is the one
        ("Europe/Berlin", "02:30", ("2026-10-24", "2026-10-26"), ["2026-10-24 00:30", "2026-10-25 00:30", "2026-10-26 01:30"]),
        ("America/New_York", "1:30", ("2026-11-01", "2026-11-02"), ["2026-11-01 05:30", "2026-11-02 06:30"]),
        ("Asia/Kolkata", "22:00", ("2026-06-01", "2026-06-01"), ["2026-06-01 16:30"]),
    ],
)  # fmt: skip
def test_every_day_has_one_night_whatever_its_clock_does(
    zone: str, at: str, days: tuple[str, str], expected: list[str]
) -> None:
    daily = Daily.parse(at, zone)
    begin = int(datetime.fromisoformat(days[0]).replace(tzinfo=daily.zone).timestamp() * 1000)
    end = (datetime.fromisoformat(days[1]) + timedelta(days=1)).replace(tzinfo=daily.zone).timestamp() * 1000
    forward, at_ms = [], daily.next_ms(begin - 1_000)
    while at_ms < end:
        forward.append(told(at_ms))
        at_ms = daily.next_ms(at_ms)
    assert forward == expected
    looked_at = {daily.last_ms(minute) for minute in range(ms(expected[0]), int(end), 60_000)}
    assert sorted(map(told, looked_at)) == expected


def test_a_time_zone_that_is_none_is_refused_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"NEARLINE_NIGHTLY__TIME_ZONE: .*did you mean Europe/London\?"):
        load_settings(nightly={"time_zone": "Europe/Londn"})


REPORT = NightlyReport("passed", "", generation_id="g1")


class World:
    """A lake, a clock that stands where it is put, and nights that do what the test says."""

    def __init__(self, lake: Path, night: Callable[[], NightlyReport] | None = None) -> None:
        self.now_ms = ms("2026-11-21 12:00")
        self.note = NightNote(lake)
        self.stop = asyncio.Event()
        self.nights = 0
        self.metrics = NightMetrics()
        self._night = night or (lambda: REPORT)
        self.scheduler = Scheduler(
            str(lake), Daily.parse("22:00", "UTC"), self.run_night, metrics=self.metrics, now_ms=lambda: self.now_ms
        )

    async def run_night(self) -> NightlyReport:
        self.nights += 1
        self.stop.set()
        report = self._night()
        self.note.begin(self.nights, self.now_ms)
        self.note.complete(self.now_ms)
        return report

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


async def test_a_missed_night_is_caught_up_at_start_and_only_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert world.scheduler.due_ms() == ms("2026-11-20 22:00")
    assert not await world.scheduler.run(world.stop)
    assert world.nights == 1
    assert world.scheduler.due_ms() == ms("2026-11-21 22:00")
    world.now_ms = ms("2026-11-25 09:00")  # days without a process: one night
    assert world.scheduler.due_ms() == ms("2026-11-24 22:00")
    assert world.value("nearline_nights_total", outcome="published") == 1
    assert world.value("nearline_night_due_timestamp_seconds") == ms("2026-11-24 22:00") / 1000


async def test_a_night_that_was_run_by_hand_after_the_hour_counts_and_one_from_before_does_not(tmp_path: Path) -> None:
    world = World(tmp_path)
    for began, due in (("2026-11-20 22:10", "2026-11-21 22:00"), ("2026-11-20 21:50", "2026-11-20 22:00")):
        world.note.begin(1, ms(began))
        assert world.scheduler.due_ms() == ms("2026-11-20 22:00") or due == "2026-11-20 22:00"
        world.note.complete(ms(began) + HOUR_MS)
        assert world.scheduler.due_ms() == ms(due)


@pytest.mark.parametrize("error", [StoreUnavailable("away"), UserError("no topic")])
async def test_a_night_that_fails_is_tried_again_later_and_later_and_counted(tmp_path: Path, error: Exception) -> None:
    def fail() -> NightlyReport:
        raise error

    world = World(tmp_path, fail)
    waits = []
    for _ in range(8):
        world.stop.clear()
        assert not await world.scheduler.run(world.stop)
        waits.append((world.scheduler.due_ms() - world.now_ms) / 1000)
        world.now_ms = world.scheduler.due_ms()
    assert waits == [60, 120, 240, 480, 960, 1920, RETRY_MOST_S, RETRY_MOST_S]
    assert world.value("nearline_nights_total", outcome="failed") == 8
    assert world.value("nearline_night_began_timestamp_seconds") == 0


async def test_a_halt_ends_the_scheduler(tmp_path: Path) -> None:
    def halt() -> NightlyReport:
        raise HaltError("another log")

    world = World(tmp_path, halt)
    with pytest.raises(HaltError):
        await world.scheduler.run(world.stop)


async def test_a_night_of_somebody_else_is_waited_for(tmp_path: Path) -> None:
    def refused() -> NightlyReport:
        raise LakeInUse("another job works on this lake (pid 1)")

    world = World(tmp_path, refused)
    await world.scheduler.run(world.stop)
    assert world.scheduler.due_ms() == world.now_ms + 60_000
    assert world.value("nearline_nights_total", outcome="failed") == 0


def test_a_lake_has_one_scheduler_and_a_night_by_hand_may_run_beside_it(tmp_path: Path) -> None:
    said = r"another scheduler waits for its hour on this lake \(pid \d+\)"
    with schedule_lock(str(tmp_path)):
        with pytest.raises(LakeInUse, match=said), schedule_lock(str(tmp_path)):
            pass
        with lake_lock(tmp_path):
            pass
    with schedule_lock(str(tmp_path)):
        pass


async def test_a_night_under_way_is_cancelled_by_a_stop_and_still_due(tmp_path: Path) -> None:
    world = World(tmp_path)
    cleaned_up = asyncio.Event()

    async def long() -> NightlyReport:
        world.stop.set()
        try:
            return await asyncio.Future()
        finally:
            cleaned_up.set()

    world.scheduler = Scheduler(
        str(tmp_path), Daily.parse("22:00", "UTC"), long, metrics=world.metrics, now_ms=lambda: world.now_ms
    )
    assert await world.scheduler.run(world.stop)
    assert cleaned_up.is_set()
    assert world.scheduler.due_ms() == ms("2026-11-20 22:00")


def test_the_note_keeps_the_plan_of_a_night_for_a_while_and_survives_rubbish(tmp_path: Path) -> None:
    note, now_ms = NightNote(tmp_path), ms("2026-11-21 22:00")
    assert (note.plan_to_resume(now_ms), note.completed_began_ms()) == (None, 0)
    note.begin(7, now_ms)
    assert note.plan_to_resume(now_ms + RESUME_WITHIN_MS - 1) == 7
    assert note.plan_to_resume(now_ms + RESUME_WITHIN_MS) is None
    note.complete(now_ms + HOUR_MS)
    assert (note.plan_to_resume(now_ms + HOUR_MS), note.completed_began_ms()) == (None, now_ms)
    note.begin(8, now_ms + 24 * HOUR_MS)
    note.give_up(now_ms + 25 * HOUR_MS)
    assert (note.plan_to_resume(now_ms + 25 * HOUR_MS), note.completed_began_ms()) == (None, now_ms)
    for rubbish in ("", "[]", '{"plan": 1}', "null", '{"plan": null, "started_at_ms": 1, "finished": false}'):
        (tmp_path / "night.json").write_text(rubbish)
        assert (note.plan_to_resume(now_ms), note.completed_began_ms()) == (None, 0)
