"""The scheduler as a process: health, metrics, signals, a prompt stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import structlog
from starlette.applications import Starlette

from batch.report import NightlyReport
from batch.schedule import Daily, Night, NightMetrics, Scheduler, schedule_lock
from runtime.health import ALIVE, make_health_app
from runtime.http import serve
from runtime.settings import Settings
from runtime.tasks import leave

log = structlog.get_logger()


def make_app(metrics: NightMetrics) -> Starlette:
    """`/health/live`, `/health/ready`, `/metrics`. A scheduler that answers is ready: what failed is told by its metrics."""

    return make_health_app(metrics.registry, lambda: (True, ALIVE))


def run_schedule(
    settings: Settings, at: Daily, night: Night, *, on_report: Callable[[NightlyReport], None] | None = None
) -> None:
    """Run nights until SIGTERM or Ctrl-C. Errors: `LakeInUse` if another scheduler has this lake; `HaltError`; `SettingsError`.

    A night that is cut short by a signal ends the process at once (`batch/nightly.py` says what a crash leaves behind).
    """

    async def main() -> None:
        stop, caught = asyncio.Event(), [0]

        def heard(number: int) -> None:
            caught[0] = number
            stop.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, heard, number)
        metrics = NightMetrics()
        scheduler = Scheduler(settings.lake_path, at, night, metrics=metrics, on_report=on_report or (lambda _: None))
        health = settings.health
        with schedule_lock(settings.lake_path):
            async with serve(make_app(metrics), health.host, health.port, setting="NEARLINE_HEALTH__PORT") as port:
                log.info(
                    "scheduler_listening",
                    host=health.host,
                    port=port,
                    at=f"{at.hour:02}:{at.minute:02}",
                    time_zone=at.zone.key,
                )
                interrupted = await scheduler.run(stop)
        log.info("scheduler_stopped")
        if interrupted:
            leave(caught[0])

    asyncio.run(main())
