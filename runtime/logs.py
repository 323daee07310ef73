"""Logs: an event name plus fields; JSON unless on a terminal, always on standard error (standard output is for results).

Viewers' ids and payloads are never logged. Our own errors' texts are written for that; a foreign exception's text may quote anything
(a KeyError is nothing but its key), so of an exception that nobody expected only its classes and the way through the code are told.

docs/logs.md lists every line. What is tried again and again says so once a minute, with how often it was said (`repeated`).
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable, MutableMapping
from types import TracebackType
from typing import Any

import structlog
from structlog.typing import Processor

from contracts.errors import NearlineError
from runtime.settings import Settings

REPEAT_AFTER_S = 60.0
"""A line that says the same as one so recently is not written."""
MAX_REMEMBERED = 256
"""Different lines that are remembered."""


class Repeats:
    """Processor: drops a line that was told within the last minute; the next one says how many were."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._told: dict[str, tuple[float, int]] = {}  # line → when it was last written, how many were dropped since

    def __call__(self, _: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if level == "critical" or "exc_info" in event:
            return event
        line, now_s = f"{level}{event!r}", self._clock_s()
        told_s, dropped = self._told.pop(line, (float("-inf"), 0))
        if now_s - told_s < REPEAT_AFTER_S:
            self._told[line] = told_s, dropped + 1
            raise structlog.DropEvent
        self._told[line] = now_s, 0
        while len(self._told) > MAX_REMEMBERED:
            del self._told[next(iter(self._told))]
        if dropped:
            event["repeated"] = dropped
        return event


def describe_exception(error: BaseException | None) -> str:
    """The chain of causes, each with its class and its frames; the text only of our own errors."""
    told: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
        frames = "".join(
            f"\n  {frame.filename}:{frame.lineno} in {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)
        )
        told.append(f"{name}: {error}{frames}" if isinstance(error, NearlineError) else f"{name}{frames}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\ncaused by ".join(told)


def _describe_exc_info(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Processor: `exc_info` becomes `exception`, without foreign texts and without locals."""
    found = event.pop("exc_info", None)
    if found is True:
        found = sys.exc_info()
    if isinstance(found, tuple):
        found = found[1]
    if isinstance(found, BaseException):
        event["exception"] = describe_exception(found)
    return event


def _first_line(record: logging.LogRecord) -> bool:
    """Filter: of asyncio's own reports only what happened; the lines below it quote tasks, and with them exceptions."""
    record.msg, record.args = record.getMessage().partition("\n")[0], None
    return True


def _tell_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook`: the end of a process that nobody expected."""
    structlog.get_logger().critical("crashed", exception=describe_exception(error))


def configure_logs(settings: Settings) -> None:
    """Set up structlog, and route the libraries' own warnings and what kills the process through it."""
    level = getattr(logging, settings.log_level.upper())
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _describe_exc_info,
    ]
    # The console's own way with exceptions shows local variables.
    renderer: Processor = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[Repeats(), *shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,  # log lines are rare; a cached logger could not be captured by tests
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # aiokafka reports every rebalance and every reconnect as an error of its own; what matters reaches us as exceptions
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    asyncio_log = logging.getLogger("asyncio")
    asyncio_log.filters = [_first_line]
    sys.excepthook = _tell_crash
