"""What the live page's buttons do, on the real thing, each ending in a measured verdict.

    kill         SIGKILL of the updater's process; the supervisor starts it again
    poison       a handful of records that can never be applied; each comes back as a dead letter
    burst        thousands of viewers press play at once
    generation   a whole nightly run, as a process of its own, under load

Then, for each: every record that is in the log now is waited for, and the oracle compares the log with the store. Different buttons
may be pressed at the same time; the same one is refused until it has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from contracts.errors import NearlineError, TransientError
from runtime.tasks import cancel_all
from sandbox.action_views import ACTIONS, ActionName, ActionView, Figure, Refused, Step, Verdict
from updater.deadletter import FLOOD_RECORDS, FLOOD_WINDOW

POISON_RECORDS = 6
FLOOD_LOOKBACK = FLOOD_WINDOW + 2_000
"""Records within which poison adds up: the updater's window, and what its newest batches may add to it."""
BURST_PLAYS = 5_000
WAITS_LOOKED_AT = 120
"""Plays of a burst whose way to the row is asked for, one request each."""
CHUNK = 100
"""Plays handed over before others have their turn."""
SAMPLE_S = 0.2
FRESHNESS_EVERY = 5
"""Samples between two looks at the updater's own numbers."""
RECENT_S = 10.0
"""What the updater's recent percentiles are of."""
CURVE_POINTS = 240
POLL_S = 0.05
DRAIN_DEADLINE_S = 120.0
LETTERS_DEADLINE_S = 30.0
LETTERS_POLL_S = 0.25
"""The dead letter topic is read from its begin each time."""


Plays = Sequence[tuple[str, int]]
"""(viewer, event time in ms)."""


class Log(Protocol):
    """Where the log ends and the markers stand (`live_sources.LogProbe`)."""

    async def ends(self) -> dict[int, int]: ...
    async def positions(self) -> dict[int, int]: ...
    async def lag(self) -> int: ...


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter as the page tells it. `at`: partition and offset of the record."""

    at: tuple[int, int]
    error: str
    message: str


@dataclass(frozen=True, slots=True)
class Hands:
    """What the buttons act with.

    `kill`: SIGKILL of the updater, its process id. `send_poison`: how many → where they lie. `letters`: every dead letter now.
    `send_plays`: that many plays at once → (viewer, event time). `waits_ms`: from event to row written, of those of them whose row is
    theirs and remembered. `nightly`: a whole night; its last line, or `NearlineError`. `sent`: records acknowledged
    so far. `check`: the oracle's verdict on so many. `stats`: the updater's numbers.
    """

    log: Log
    kill: Callable[[], Awaitable[int]]
    send_poison: Callable[[int], Awaitable[list[tuple[int, int]]]]
    letters: Callable[[], Awaitable[list[DeadLetter]]]
    send_plays: Callable[[int], Awaitable[Plays]]
    waits_ms: Callable[[Plays], Awaitable[list[float]]]
    nightly: Callable[[], Awaitable[str]]
    sent: Callable[[], Awaitable[int]]
    check: Callable[[int], Awaitable[Verdict]]
    stats: Callable[[], Awaitable[Mapping[str, Any]]]


@dataclass(slots=True)
class _Run:
    """One press under way. `worst_s`: the greatest 99th percentile that was seen."""

    view: ActionView
    began_s: float = field(default_factory=time.monotonic)
    worst_s: float = 0.0
    activations: list[tuple[float, int]] = field(default_factory=list)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began_s

    def say(self, text: str) -> None:
        self.view = replace(self.view, steps=(*self.view.steps, Step(round(self.elapsed_s, 2), text)))

    def measured(self, name: str, text: str) -> None:
        """A figure, in place of an earlier one of its name."""
        others = tuple(figure for figure in self.view.figures if figure.name != name)
        self.view = replace(self.view, figures=(*others, Figure(name, text)))

    def behind(self, records: int) -> None:
        curve = (*self.view.curve, (round(self.elapsed_s, 2), records))
        if len(curve) > CURVE_POINTS:  # every second one says as much
            curve = curve[::2]
        self.view = replace(self.view, curve=curve)

    def end(self, message: str, verdict: Verdict | None) -> None:
        passed = verdict is not None and verdict.ok
        self.view = replace(self.view, state="passed" if passed else "failed", message=message, verdict=verdict)


class Actions:
    """The four buttons. `close` ends what is under way."""

    def __init__(self, hands: Hands, *, burst_plays: int = BURST_PLAYS) -> None:
        self._hands, self._burst_plays = hands, burst_plays
        self._runs = {name: _Run(ActionView(name)) for name in ACTIONS}
        self._tasks: dict[ActionName, asyncio.Task[None]] = {}
        self._closed = False
        self._poisoned: deque[tuple[int, int]] = deque()  # (records sent before, poison records sent)
        self._scripts: Mapping[ActionName, Callable[[_Run], Awaitable[None]]] = {
            "kill": self._kill,
            "poison": self._poison,
            "burst": self._burst,
            "generation": self._generation,
        }

    def views(self) -> tuple[ActionView, ...]:
        """Every button and its last press."""
        return tuple(run.view for run in self._runs.values())

    def running(self, name: ActionName) -> bool:
        """Whether a press of this button is under way."""
        return self._runs[name].view.state == "running"

    def newest_lag(self, name: ActionName) -> int:
        """Records behind, as last measured by this button's run."""
        curve = self._runs[name].view.curve
        return curve[-1][1] if curve else 0

    async def press(self, name: ActionName) -> ActionView:
        """Begin. Errors: `Refused` while the same is under way, or when more poison would halt the stream."""
        before = self._runs[name].view
        if self._closed:
            raise Refused("The demo is ending.")
        if self.running(name):
            raise Refused(UNDER_WAY[name])
        run = self._runs[name] = _Run(ActionView(name, "running", before.number + 1))
        try:
            if name == "poison":
                await self._room_for_poison()
        except BaseException:
            self._runs[name] = _Run(before)
            raise
        self._tasks[name] = asyncio.create_task(self._run(name, run))
        return run.view

    async def close(self) -> None:
        """Cancel what is under way, and wait; nothing can be pressed any more."""
        self._closed = True
        await cancel_all(*self._tasks.values())

    async def _run(self, name: ActionName, run: _Run) -> None:
        """The script, the wait, the verdict; whatever goes wrong is told on the page."""
        watching = asyncio.create_task(self._watch(run))
        try:
            await self._scripts[name](run)
            await self._drain(run)
            run.say("Comparing every viewer’s state with the log, read anew.")
            verdict = await self._hands.check(await self._hands.sent())
            if verdict.moving:
                run.say(f"{verdict.moving} viewers watched on the whole time and were left out.")
            if name == "generation" and verdict.behind:
                verdict = replace(
                    verdict, problems=(*verdict.problems, f"{verdict.behind} rows of an older activation")
                )
            run.end("; ".join([verdict.sentence(), *verdict.problems]), verdict)
        except NearlineError as error:
            run.end(f"No verdict: {error}", None)
        except Exception as error:
            run.end(f"No verdict: {type(error).__name__}: {error}", None)
            raise
        finally:
            await cancel_all(watching)

    async def _watch(self, run: _Run) -> None:
        """Sample the lag, and how fresh rows are, until cancelled."""
        for number in range(1 << 60):
            with contextlib.suppress(TransientError):
                run.behind(await self._hands.log.lag())
            if number % FRESHNESS_EVERY == 0:
                with contextlib.suppress(TransientError):
                    self._note_stats(run, await self._hands.stats())
            await asyncio.sleep(SAMPLE_S)

    @staticmethod
    def _note_stats(run: _Run, stats: Mapping[str, Any]) -> None:
        recent = stats["freshness_recent_s"]
        if recent.get("count", 1) and run.elapsed_s > RECENT_S:  # what was before the press is none of ours
            run.worst_s = max(run.worst_s, recent["p99"])
        activation = int(stats["activation"])
        if not run.activations or run.activations[-1][1] != activation:
            run.activations.append((run.elapsed_s, activation))

    async def _drain(self, run: _Run) -> None:
        """Until the markers have passed what is in the log now. Errors: `TransientError` past the deadline."""
        wanted = await self._hands.log.ends()
        await self._reach(wanted, DRAIN_DEADLINE_S)
        run.say(f"All {sum(wanted.values()):,} records of the log are finished.")

    async def _reach(self, wanted: Mapping[int, int], deadline_s: float) -> None:
        ends_s = time.monotonic() + deadline_s
        while True:
            with contextlib.suppress(TransientError):
                positions = await self._hands.log.positions()
                if all(positions[partition] >= end for partition, end in wanted.items()):
                    return
            if time.monotonic() > ends_s:
                raise TransientError(f"records are still waiting after {deadline_s:g} s; is the updater running?")
            await asyncio.sleep(POLL_S)

    # The four

    async def _kill(self, run: _Run) -> None:
        before = await self._hands.stats()
        pid = await self._hands.kill()
        killed_s = time.monotonic()
        run.say(f"SIGKILL: the updater, process {pid}, is gone, in the middle of whatever it was doing.")
        stood = await self._hands.log.positions()
        await self._until(lambda: self._has_moved(before["instance"], stood), "no new updater has taken over")
        gap_s = time.monotonic() - killed_s
        run.measured("nothing written for", f"{gap_s:.1f} s")
        run.say(f"A new process has taken over where the marker stood, {gap_s:.1f} s after the kill.")
        await self._reach(await self._hands.log.ends(), DRAIN_DEADLINE_S)
        caught_up_s = time.monotonic() - killed_s
        run.measured("fresh again after", f"{caught_up_s:.1f} s")
        with contextlib.suppress(TransientError):  # its percentiles begin with its start, so they are of this gap
            slowest = (await self._hands.stats())["freshness_s"]
            if slowest.get("count", 1):
                run.measured("the row that waited longest", f"{slowest['max']:.1f} s")

    async def _has_moved(self, instance: str, stood: Mapping[int, int]) -> bool:
        """Whether somebody goes on where the killed one stopped; without new records: is ready to."""
        if any(at > stood[partition] for partition, at in (await self._hands.log.positions()).items()):
            return True
        stats = await self._hands.stats()
        return bool(stats["ready"]) and stats["instance"] != instance and await self._hands.log.lag() == 0

    async def _until(self, condition: Callable[[], Awaitable[bool]], otherwise: str) -> None:
        ends_s = time.monotonic() + DRAIN_DEADLINE_S
        while True:
            with contextlib.suppress(TransientError):  # the updater does not answer while it is away
                if await condition():
                    return
            if time.monotonic() > ends_s:
                raise TransientError(f"{otherwise} within {DRAIN_DEADLINE_S:g} s")
            await asyncio.sleep(POLL_S)

    async def _room_for_poison(self) -> None:
        """Errors: `Refused` if these and the recent ones together are what halts a stream."""
        sent = await self._hands.sent()
        while self._poisoned and self._poisoned[0][0] < sent - FLOOD_LOOKBACK:
            self._poisoned.popleft()
        if sum(count for _, count in self._poisoned) + POISON_RECORDS >= FLOOD_RECORDS:
            more = FLOOD_LOOKBACK - (sent - self._poisoned[0][0])
            raise Refused(
                f"{FLOOD_RECORDS} such records among {FLOOD_WINDOW:,} halt the stream until a person looks, as they should; "
                f"there is room for more poison after another {more:,} events"
            )
        self._poisoned.append((sent, POISON_RECORDS))

    async def _poison(self, run: _Run) -> None:
        places = set(await self._hands.send_poison(POISON_RECORDS))
        run.say(f"{len(places)} records that nobody can apply are in the topic, between everybody’s plays.")
        ends_s = time.monotonic() + LETTERS_DEADLINE_S
        missing = set(places)
        while missing:
            for letter in await self._hands.letters():
                if letter.at in missing:
                    missing.discard(letter.at)
                    partition, offset = letter.at
                    run.say(f"Dead letter, partition {partition}, offset {offset:,}: {letter.message} ({letter.error})")
            run.measured("dead letters", f"{len(places) - len(missing)} of {len(places)}")
            if missing and time.monotonic() > ends_s:
                raise NearlineError(f"{len(missing)} dead letters have not come within {LETTERS_DEADLINE_S:g} s")
            await asyncio.sleep(LETTERS_POLL_S if missing else 0)

    async def _burst(self, run: _Run) -> None:
        started_s = time.monotonic()
        plays = await self._hands.send_plays(self._burst_plays)
        sent_s = time.monotonic() - started_s
        run.say(f"{len(plays):,} viewers pressed play within {sent_s:.1f} s.")
        await self._reach(await self._hands.log.ends(), DRAIN_DEADLINE_S)
        took_s = time.monotonic() - started_s
        run.measured("caught up after", f"{took_s:.1f} s")
        run.say(f"Every one of them is in their state and row, {took_s:.1f} s after the press.")
        waits_ms: list[float] = []
        with contextlib.suppress(TransientError):  # somebody may kill the updater meanwhile
            waits_ms = sorted(await self._hands.waits_ms(plays[:: max(1, len(plays) // WAITS_LOOKED_AT)]))
        if waits_ms:
            run.measured("event → row p50", _time(_at(waits_ms, 0.5)))
            run.measured("event → row p99", _time(_at(waits_ms, 0.99)))

    async def _generation(self, run: _Run) -> None:
        run.say(
            "The nightly job has begun, as a process of its own, while everybody watches on: copy, train, evaluate."
        )
        told = await self._hands.nightly()
        with contextlib.suppress(TransientError):
            self._note_stats(run, await self._hands.stats())
        run.say(told[:1].upper() + told[1:] + ".")
        if len(run.activations) > 1:
            at_s, activation = run.activations[-1]
            run.measured("swapped", f"activation {run.activations[0][1]} → {activation}")
            run.say(f"The updater took it up {at_s:.1f} s after the press, between two batches, and went on.")
        if run.worst_s:
            run.measured("event → row, worst p99", _time(run.worst_s * 1000))
        run.measured("took", f"{run.elapsed_s:.1f} s")


def _time(ms: float) -> str:
    return f"{ms:,.0f} ms" if ms < 1000 else f"{ms / 1000:,.1f} s"


def _at(ascending: Sequence[float], share: float) -> float:
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]


UNDER_WAY: Mapping[ActionName, str] = {
    "kill": "The updater has been killed already; wait until the verdict is in.",
    "poison": "The last poison is still on its way; wait until the verdict is in.",
    "burst": "A burst is still being worked off; wait until the verdict is in.",
    "generation": "A nightly run is under way already; there can be only one at a time.",
}
