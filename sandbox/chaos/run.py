"""`nearline chaos`: draws faults, lets them happen under a live stream, checks the invariants at quiet points, reports.

What is drawn follows from the seed; what processes were doing at that moment does not. Every fault is written to `faults.jsonl`
with the seed of its own draw, so that `--fault name:seed` does the same harm again.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from contracts.errors import NearlineError, UserError
from sandbox.chaos.arena import Arena
from sandbox.chaos.checks import Checks, Findings
from sandbox.chaos.faults import ALL, Fault
from sandbox.chaos.soak import Soak, Watched
from sandbox.chaos.waiting import Passed, Stuck

MOST_RARE = 3
RARE_FROM = 200
"""A run of fewer faults has no rare ones: each takes minutes."""
RECOVERED_S = 60.0
"""Within so long after a fault has ended, everything that was in the log at that moment is finished."""
MOST_IN_A_ROUND = 3
"""Faults that follow one another before anybody waits for recovery."""


SHOWN = 3
"""Details of one check that are shown on the way."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One fault to come. `seed`: of its own draws."""

    fault: Fault
    seed: int


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for."""

    faults: int
    seed: int
    for_s: float | None = None
    only: tuple[str, ...] = ()
    replayed: tuple[str, ...] = ()
    rate: float = 120.0
    folder: Path | None = None
    keep: bool = False


@dataclass(slots=True)
class Report:
    """The line of JSON. `recovery_s`: from the fault's end until everything in the log at that moment was finished. `behind`: class →
    for each fault, how long a record waited at worst while it went on, of the classes that watch it."""

    seed: int
    faults: int = 0
    by_class: Counter[str] = field(default_factory=Counter)
    events: int = 0
    findings: Findings = field(default_factory=Findings)
    recoveries: list[tuple[tuple[str, ...], float]] = field(default_factory=list)
    behind: dict[str, list[float]] = field(default_factory=dict)
    stuck: list[str] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    halts: int = 0
    repaired: int = 0
    points: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    soak: Watched | None = None

    @property
    def ok(self) -> bool:
        """True if everything held."""
        flat = self.soak is None or self.soak.flat
        return flat and not (self.findings.total or self.stuck or self.surprises or self.slow)

    @property
    def slow(self) -> list[str]:
        """Recoveries that took longer than what is promised (I6)."""
        return [f"{names}: {seconds:.1f} s" for names, seconds in self.recoveries if seconds > RECOVERED_S]

    def summary(self) -> str:
        """For people."""
        found, told = self.findings, self.to_json()
        lines = [
            f"{self.faults} faults of {len(self.by_class)} classes, {self.events:,} records, {self.seconds:.0f} s, seed {self.seed}",
            f"{found.lost} lost, {found.doubled} doubled, {found.rows_wrong} rows wrong, {found.private_leaks} private leaks, "
            f"{found.unaccounted} unaccounted",
            f"recovered in {told['recovery_s']} s",
        ]
        return "\n".join([*lines, *(f"soak: {told['soak']}" for _ in [0] if "soak" in told), *told.get("details", [])])

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        found = self.findings
        alone: dict[str, list[float]] = {}
        for names, seconds in self.recoveries:
            if len(names) == 1:
                alone.setdefault(names[0], []).append(seconds)
        told: dict[str, Any] = {
            "faults": self.faults,
            "by_class": dict(sorted(self.by_class.items())),
            "events": self.events,
            "lost": found.lost,
            "doubled": found.doubled,
            "rows_wrong": found.rows_wrong,
            "private_leaks": found.private_leaks,
            "unaccounted": found.unaccounted,
            "recovery_s": _percentiles([seconds for _, seconds in self.recoveries]),
            "recovery_s_by_class": {name: _percentiles(values) for name, values in sorted(alone.items())},
            "behind_s_by_class": {name: _percentiles(values) for name, values in sorted(self.behind.items())},
            "stuck": len(self.stuck),
            "unexpected_exits": len(self.surprises),
            "slow_recoveries": len(self.slow),
            "halts_cleared": self.halts,
            "stores_repaired": self.repaired,
            "crash_points": dict(sorted(self.points.items())),
            "seconds": round(self.seconds, 1),
            "seed": self.seed,
        }
        if self.soak is not None:
            told["soak"] = self.soak.to_json()
        details = [*found.details, *self.stuck, *self.surprises, *self.slow]
        return told | ({"details": [text[:400] for text in details[:20]]} if details else {})


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {"p50": round(statistics.median(ordered), 2), "p99": round(p99, 2)}


def draw(options: Options) -> Iterator[list[Drawn]]:
    """Rounds of faults: from a deck that holds each class once, shuffled, so that no class stays behind."""
    rng = random.Random(options.seed)
    if options.replayed:
        for text in options.replayed:
            name, _, seed = text.partition(":")
            yield [Drawn(find(name), int(seed or 0))]
        return
    classes = [find(name) for name in options.only] or [
        one for one in ALL if not (options.for_s is not None and one.ends_processes)
    ]
    with_rare = bool(options.only) or options.faults >= RARE_FROM
    rare, left = MOST_RARE, options.faults if options.for_s is None else 1 << 30
    while left > 0:
        deck = [one for one in classes if not one.rare or (with_rare and rare > 0)]
        rare -= any(one.rare for one in deck)
        rng.shuffle(deck)
        deck = deck[:left]
        left -= len(deck)
        while deck:
            size = 1
            while size < min(len(deck), MOST_IN_A_ROUND) and not any(one.alone for one in deck[: size + 1]):
                size += 1
                if rng.random() < 0.5:
                    break
            size = 1 if deck[0].alone else size
            round_, deck = deck[:size], deck[size:]
            yield [Drawn(one, rng.randrange(1 << 32)) for one in round_]


def find(name: str) -> Fault:
    """A class by its name. Errors: `UserError`."""
    for one in ALL:
        if one.name == name:
            return one
    raise UserError(f"no fault is named {name!r}; there are: {', '.join(one.name for one in ALL)}")


class Run:
    """One run. `say`: progress for people, a line at a time."""

    def __init__(self, options: Options, say: Callable[[str], None]) -> None:
        self._options = options
        self._say = say
        self.report = Report(options.seed)
        self._ending = False

    def end_soon(self) -> None:
        """After the round under way, with a report on what was done."""
        self._ending = True
        self._say("ending after this round; Ctrl-C again ends at once")

    async def run(self) -> Report:
        """Everything. The folder is kept if something was wrong, or if asked to."""
        options = self._options
        folder = options.folder or Path(tempfile.mkdtemp(prefix="nearline-chaos-"))
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty: choose another --folder, or empty it")
        started = time.monotonic()
        soaking = options.for_s is not None
        try:
            async with Arena(folder, options.seed, rate=options.rate, spare=soaking) as arena:
                soak = Soak(arena.crew.slots[0]) if soaking else None
                await self._rounds(arena, soak, started)
                self.report.events = arena.truth.events
                self.report.halts, self.report.repaired, self.report.points = arena.halts, arena.repaired, arena.points
                self.report.surprises, self.report.behind = arena.crew.surprises, arena.behind
                self.report.soak = soak.result() if soak is not None else None
        finally:
            self.report.seconds = time.monotonic() - started
            if self.report.ok and not options.keep and options.folder is None:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                self._say(f"logs and what happened: {folder}")
        return self.report

    async def _rounds(self, arena: Arena, soak: Soak | None, started: float) -> None:
        checks = Checks(arena)
        await arena.crew.until_ready()
        await asyncio.sleep(1.0)
        if not await self._check(arena, checks, "at the start"):
            return
        for round_ in draw(self._options):
            if self._ending or (self._options.for_s is not None and time.monotonic() - started > self._options.for_s):
                return
            names = tuple(drawn.fault.name for drawn in round_)
            arena.resume_stream()
            try:
                for drawn in round_:
                    await self._harm(arena, drawn)
                recovered = await arena.reach(await arena.ends(), f"recovering from {names}")
            except (Stuck, TimeoutError) as stuck:
                self.report.stuck.append(f"{names}: {stuck or type(stuck).__name__}")
                self._say(f"STUCK {self.report.stuck[-1]}")
                return
            self.report.recoveries.append((names, recovered))
            if not await self._check(arena, checks, f"after {', '.join(names)}"):
                return
            self._say(
                f"{self.report.faults:5}  {recovered:6.2f} s  {', '.join(names)}  ({arena.truth.events:,} records)"
            )
            if soak is not None:
                soak.sample()

    async def _harm(self, arena: Arena, drawn: Drawn) -> None:
        await asyncio.sleep(random.Random(drawn.seed).uniform(0.0, 0.8))
        with (arena.folder / "faults.jsonl").open("a") as file:
            file.write(json.dumps({"fault": f"{drawn.fault.name}:{drawn.seed}", "at": time.time()}) + "\n")
        try:
            await drawn.fault.action(arena, random.Random(drawn.seed))
        except Passed:
            return
        self.report.faults += 1
        self.report.by_class[drawn.fault.name] += 1

    async def _check(self, arena: Arena, checks: Checks, when: str) -> bool:
        """False if something is wrong: what comes after would only repeat it."""
        try:
            await arena.drain()
            found = await checks.run()
        except (NearlineError, TimeoutError) as error:
            self.report.stuck.append(f"{when}: {error or type(error).__name__}")
            self._say(f"STUCK {self.report.stuck[-1]}")
            return False
        self.report.findings.add(found)
        for detail in found.details[:SHOWN]:
            self._say(f"WRONG {when}: {detail}")
        await arena.settle()
        return not found.total


def run_chaos(options: Options) -> Report:
    """Run to the end, telling people on standard error how it goes."""
    import logging

    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # that servers go away is the purpose
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    length = f"{options.faults} faults" if options.for_s is None else f"{options.for_s:g} s"
    console.print(f"chaos: {length}, seed {options.seed}")
    run = Run(options, console.print)

    async def main() -> Report:
        loop = asyncio.get_running_loop()

        def interrupted() -> None:
            loop.remove_signal_handler(signal.SIGINT)
            run.end_soon()

        loop.add_signal_handler(signal.SIGINT, interrupted)
        return await run.run()

    return asyncio.run(main())
