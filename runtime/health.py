"""What every process answers of itself: `/health/live`, `/health/ready`, `/metrics`, and what it has more to tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

ALIVE = {"status": "alive"}


def make_health_app(
    registry: CollectorRegistry,
    ready: Callable[[], tuple[bool, Mapping[str, object]]],
    stats: Callable[[], Mapping[str, object]] | None = None,
    more: tuple[Route, ...] = (),
) -> Starlette:
    """`ready`: whether the process is (200, else 503), and what it says of that. `stats`: answers `/stats`."""

    async def answer_live(request: Request) -> Response:
        return JSONResponse(ALIVE)

    async def answer_ready(request: Request) -> Response:
        is_ready, said = ready()
        return JSONResponse(said, status_code=200 if is_ready else 503)

    async def answer_metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def answer_stats(request: Request) -> Response:
        assert stats is not None
        return JSONResponse(stats())

    routes = [
        Route("/health/live", answer_live),
        Route("/health/ready", answer_ready),
        Route("/metrics", answer_metrics),
        *([Route("/stats", answer_stats)] if stats is not None else []),
    ]
    return Starlette(routes=[*routes, *more])
