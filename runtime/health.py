"""What every process answers of itself: `/health/live`, `/health/ready`, `/metrics`, and what it has more to tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

ALIVE = {"status": "alive"}


Ready = Callable[[], tuple[bool, Mapping[str, object]]]
"""Whether a process is (200, else 503), and what it says of that."""


def make_health_app(
    registry: CollectorRegistry,
    ready: Ready,
    stats: Callable[[], Mapping[str, object]] | None = None,
    more: tuple[Route, ...] = (),
) -> Starlette:
    """`stats`: answers `/stats`."""

    async def answer_stats(request: Request) -> Response:
        assert stats is not None
        return JSONResponse(stats())

    own = [Route("/stats", answer_stats)] if stats is not None else []
    return Starlette(routes=[*health_routes(registry, ready), *own, *more])


def health_routes(
    registry: CollectorRegistry, ready: Ready, alive: Mapping[str, object] = MappingProxyType(ALIVE)
) -> list[Route]:
    """The three that every process has. `alive`: what it says while it answers at all."""

    async def answer_live(request: Request) -> Response:
        return JSONResponse(dict(alive))

    async def answer_ready(request: Request) -> Response:
        is_ready, said = ready()
        return JSONResponse(said, status_code=200 if is_ready else 503)

    async def answer_metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return [
        Route("/health/live", answer_live),
        Route("/health/ready", answer_ready),
        Route("/metrics", answer_metrics),
    ]
