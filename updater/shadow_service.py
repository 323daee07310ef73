"""The shadow as a process: health, metrics, signals."""

from __future__ import annotations

import asyncio
import signal

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime.http import serve
from runtime.settings import Settings
from updater.service import make_codec
from updater.shadow import Shadow
from viewers.redis_store import open_store

log = structlog.get_logger()


def make_app(shadow: Shadow) -> Starlette:
    """`/health/live`, `/health/ready`, `/metrics`, `/stats`."""

    async def live(request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(request: Request) -> Response:
        said = {"ready": shadow.ready, "generation_id": shadow.generation_id}
        return JSONResponse(said, status_code=200 if shadow.ready else 503)

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(shadow.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def stats(request: Request) -> Response:
        return JSONResponse(shadow.stats())

    return Starlette(
        routes=[
            Route("/health/live", live),
            Route("/health/ready", ready),
            Route("/metrics", metrics),
            Route("/stats", stats),
        ]
    )


async def run_shadow(settings: Settings, generation_id: str, percent: float) -> None:
    """Run until SIGTERM or Ctrl-C. Errors: `GenerationError` if the generation does not load."""
    store = open_store(settings.store, settings.keys)
    shadow = Shadow(settings, store, make_codec(settings), generation_id, percent)
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, shadow.stop)
    try:
        health = settings.health
        async with serve(make_app(shadow), health.host, health.port, setting="NEARLINE_HEALTH__PORT") as port:
            await shadow.load()
            log.info("shadow_listening", host=health.host, port=port, generation_id=generation_id, percent=percent)
            await shadow.run()
    finally:
        await store.close()
    log.info("shadow_stopped", **shadow.stats())
