"""Home pages as ASGI: the one path that every request takes is found without the router and answered without its layers.

What is no plain `GET /v1/home/{viewer}` goes through Starlette, to the same endpoint.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runtime.http import AsgiApp, Receive, Scope, Send

PATH = "/v1/home/"

_UNCACHED, _JSON = (b"cache-control", b"no-store"), (b"content-type", b"application/json")


class HomePages:
    """The endpoint. `home` makes the JSON, or raises `HTTPException`."""

    def __init__(self, home: Callable[[Request], Awaitable[bytes]]) -> None:
        self._home = home

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        try:
            body = await self._home(request)
        except HTTPException as error:
            await (await json_error(request, error))(scope, receive, send)
            return
        headers = [_UNCACHED, (b"content-length", b"%d" % len(body)), _JSON]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class PagesFirst:
    """`pages` for a viewer's path, `rest` for everything else."""

    def __init__(self, pages: AsgiApp, rest: AsgiApp) -> None:
        self._pages, self._rest = pages, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        viewer = _viewer_of(scope)
        if viewer:
            scope["path_params"] = {"viewer": viewer}
            await self._pages(scope, receive, send)
        else:
            await self._rest(scope, receive, send)


def _viewer_of(scope: Scope) -> str:
    """The viewer in the path of a plain request for a page; else empty."""
    if scope["type"] != "http" or scope["method"] != "GET" or scope.get("root_path"):
        return ""
    path: str = scope["path"]
    viewer = path[len(PATH) :]
    return viewer if path.startswith(PATH) and "/" not in viewer else ""


async def json_error(request: Request, error: Exception) -> Response:
    """An exception handler of Starlette's: what is wrong, as JSON."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=dict(error.headers or {}))
