"""The shadow as a process: health, metrics, signals."""

from __future__ import annotations

import structlog
from starlette.applications import Starlette

from runtime.health import make_health_app
from runtime.http import serve
from runtime.settings import Settings
from runtime.tasks import stop_on_signals
from updater.service import make_codec
from updater.shadow import Shadow
from viewers.redis_store import open_store

log = structlog.get_logger()


def make_app(shadow: Shadow) -> Starlette:
    """`/health/live`, `/health/ready`, `/metrics`, `/stats`."""

    def ready() -> tuple[bool, dict[str, object]]:
        return shadow.ready, {"ready": shadow.ready, "generation_id": shadow.generation_id}

    return make_health_app(shadow.metrics.registry, ready, shadow.stats)


async def run_shadow(settings: Settings, generation_id: str, percent: float) -> None:
    """Run until SIGTERM or Ctrl-C. Errors: `GenerationError` if the generation does not load."""
    store = open_store(settings.store, settings.keys)
    shadow = Shadow(settings, store, make_codec(settings), generation_id, percent)
    stop_on_signals(shadow.stop)
    try:
        health = settings.health
        async with serve(make_app(shadow), health.host, health.port, setting="NEARLINE_HEALTH__PORT") as port:
            await shadow.load()
            log.info("shadow_listening", host=health.host, port=port, generation_id=generation_id, percent=percent)
            await shadow.run()
    finally:
        await store.close()
    log.info("shadow_stopped", **shadow.stats())
