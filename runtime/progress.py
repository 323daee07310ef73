"""Progress of long work: a bar on a terminal, log lines otherwise, nothing in tests. On standard error, like the logs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

log = structlog.get_logger()

LOG_EVERY_S = 10.0
"""Between two log lines of one step."""


class Step(Protocol):
    """One step under way."""

    def advance(self, count: int = 1) -> None:
        """So much more is done. May be called from another thread."""

    def set(self, done: int, total: int | None = None) -> None:
        """So much is done, of so much."""


class ProgressReporter(Protocol):
    """Where steps are shown."""

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Step]:
        """Show a step while the block runs. `total`: what `advance` counts up to, if known."""


class SilentProgress:
    """Shows nothing; counts the last step, for tests."""

    def __init__(self) -> None:
        self.done = 0

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Step]:
        """A step that only counts."""
        self.done = 0
        yield self

    def advance(self, count: int = 1) -> None:
        """Count."""
        self.done += count

    def set(self, done: int, total: int | None = None) -> None:
        """Count."""
        self.done = done


class LoggedProgress:
    """A log line when a step begins, every ten seconds, and when it ends."""

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Step]:
        """Log the step."""
        started = time.monotonic()
        step = _LoggedStep(name, total, started)
        log.info("step_started", step=name)
        yield step
        log.info("step_finished", step=name, done=step.done, seconds=round(time.monotonic() - started, 3))


class _LoggedStep:
    def __init__(self, name: str, total: int | None, now_s: float) -> None:
        self._name = name
        self._total = total
        self._told_s = now_s
        self.done = 0

    def advance(self, count: int = 1) -> None:
        self.set(self.done + count)

    def set(self, done: int, total: int | None = None) -> None:
        self.done = done
        self._total = self._total if total is None else total
        now_s = time.monotonic()
        if now_s - self._told_s >= LOG_EVERY_S:
            self._told_s = now_s
            log.info("step_progress", step=self._name, done=done, total=self._total)


class BarProgress:
    """A bar per step."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Step]:
        """Draw the step."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console) as bars:
            yield _BarStep(bars, bars.add_task(name, total=total))


class _BarStep:
    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars = bars
        self._task = task

    def advance(self, count: int = 1) -> None:
        self._bars.advance(self._task, count)

    def set(self, done: int, total: int | None = None) -> None:
        self._bars.update(self._task, completed=done, total=total)


def make_progress() -> ProgressReporter:
    """A bar if standard error is a terminal, log lines otherwise."""
    return BarProgress() if sys.stderr.isatty() else LoggedProgress()
