"""Logs: an event name plus fields; JSON unless on a terminal, always on standard error (standard output is for results)."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import Processor

from runtime.settings import Settings


def configure_logs(settings: Settings) -> None:
    """Set up structlog and route the libraries' own warnings through it. Viewers' ids and payloads are never logged."""
    level = getattr(logging, settings.log_level.upper())
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[Processor]
    if console:
        renderer = [structlog.dev.ConsoleRenderer()]
    else:
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,  # log lines are rare; a cached logger could not be captured by tests
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # aiokafka reports every rebalance and every reconnect as an error of its own; what matters reaches us as exceptions
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
