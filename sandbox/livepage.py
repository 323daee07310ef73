"""The live page's web app: one viewer's home row, changing while you watch, and what the pipeline needed for it.

Everything that is not HTTP lies behind `LiveBackend` (`sandbox/live_views.py`, with the values named here); `sandbox/live_backend.py` is
the real one. The page itself is static (`sandbox/page/`): plain modules, no build step, nothing from another host.

    GET  /api/viewers?q=ana            [ViewerSummary]
    GET  /api/viewer/{viewer}          ViewerView
    POST /api/play                     {viewer, item_id, kind: play | skip | private, row_id?, row_position?} → PlayOutcome
    GET  /api/explain/{viewer}/{item}  Explanation
    POST /api/action                   {action: kill | poison | burst | generation} → ActionView; only from this page itself
    GET  /report                       the newest nightly report, as the night wrote it
    GET  /api/stream?viewer=           server-sent events: `stats` (Stats) once a second, `row` (RowView) and `actions`
                                       ([ActionView]) on every change

Errors are JSON `{"error": …}`: 400 malformed, 403 an action that another site asks for, 404 no such thing, 409 an action that is
under way, 503 while a server behind is away, 500 for anything else that this program says on purpose.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, cast

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from contracts.errors import NearlineError, TransientError, UserError
from contracts.events import valid_id
from runtime.tasks import cancel_all
from sandbox.action_views import ACTIONS, ActionName, ActionView, Refused, is_same_origin
from sandbox.live_views import PLAY_KINDS, LiveBackend, NotFound, Place, PlayKind
from sandbox.page_headers import REPORT_POLICY, PageHeaders

PAGE = Path(__file__).parent / "page"
STATS_PERIOD_S = 1.0
ACTIONS_PERIOD_S = 0.2
MAX_BODY_BYTES = 4096
MAX_QUERY_CHARACTERS = 80
MAX_POSITION = 999


class Streams:
    """Open event streams, so that a stop can end them at once instead of cutting them off."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[bytes | None]] = set()

    def close(self) -> None:
        """End every stream. Call it from the server's event loop before stopping the server."""
        for queue in self._queues:
            while queue.full():  # a reader too slow to be told everything still has to be told the end
                queue.get_nowait()
            queue.put_nowait(None)

    def open_count(self) -> int:
        return len(self._queues)

    async def run(self, backend: LiveBackend, viewer: str | None) -> AsyncIterator[bytes]:
        """Server-sent events until the client leaves or `close` is called."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=64)
        tasks = [asyncio.create_task(_put_stats(backend, queue)), asyncio.create_task(_put_actions(backend, queue))]
        if viewer is not None:
            tasks.append(asyncio.create_task(_put_rows(backend, viewer, queue)))
        self._queues.add(queue)
        try:
            yield b"retry: 1000\n\n"
            while (chunk := await queue.get()) is not None:
                yield chunk
        finally:
            self._queues.discard(queue)
            await cancel_all(*tasks)


def no_report() -> Path:
    """Where there are no nights."""
    raise NotFound("no nightly report yet")


def make_app(backend: LiveBackend, find_report: Callable[[], Path] = no_report) -> Starlette:
    """The page and its API. `app.state.streams` (`Streams`) ends open event streams at shutdown. `find_report`: the newest night's
    page; errors: `UserError`."""
    streams = Streams()

    async def viewers(request: Request) -> Response:
        query = request.query_params.get("q", "").strip()
        if len(query) > MAX_QUERY_CHARACTERS:
            return _error(400, f"q: at most {MAX_QUERY_CHARACTERS} characters")
        return _answer(await backend.search_viewers(query))

    async def viewer(request: Request) -> Response:
        if not valid_id(request.path_params["viewer"]):
            return _error(400, "viewer: not an id")
        return _answer(await backend.viewer_view(request.path_params["viewer"]))

    async def play(request: Request) -> Response:
        fields = await _read_fields(request)
        if isinstance(fields, str):
            return _error(400, fields)
        kind = fields.get("kind", "play")
        for name in ("viewer", "item_id"):
            if not isinstance(fields.get(name), str) or not valid_id(fields[name]):
                return _error(400, f"{name}: not an id")
        if kind not in PLAY_KINDS:
            return _error(400, f"kind: one of {', '.join(PLAY_KINDS)}")
        place = _place(fields)
        if isinstance(place, str):
            return _error(400, place)
        return _answer(await backend.play(fields["viewer"], fields["item_id"], cast(PlayKind, kind), place))

    async def action(request: Request) -> Response:
        if not is_same_origin(request):
            return _error(403, "only the page itself may press its buttons: send Origin as a browser does")
        fields = await _read_fields(request)
        if isinstance(fields, str):
            return _error(400, fields)
        if fields.get("action") not in ACTIONS:
            return _error(400, f"action: one of {', '.join(ACTIONS)}")
        return _answer(await backend.press(cast(ActionName, fields["action"])))

    async def explain(request: Request) -> Response:
        for name in ("viewer", "item_id"):
            if not valid_id(request.path_params[name]):
                return _error(400, f"{name}: not an id")
        return _answer(await backend.explain(request.path_params["viewer"], request.path_params["item_id"]))

    async def report(request: Request) -> Response:
        try:
            page = await asyncio.to_thread(lambda: find_report().read_bytes())
        except UserError as error:
            return _error(404, str(error))
        return Response(page, media_type="text/html", headers={"content-security-policy": REPORT_POLICY})

    async def stream(request: Request) -> Response:
        who = request.query_params.get("viewer")
        if who is not None and not valid_id(who):
            return _error(400, "viewer: not an id")
        if who is not None:
            await backend.viewer_view(who)  # an unknown viewer is told now, not by an empty stream
        return StreamingResponse(streams.run(backend, who), media_type="text/event-stream")

    app = Starlette(
        routes=[
            Route("/api/viewers", viewers),
            Route("/api/viewer/{viewer}", viewer),
            Route("/api/play", play, methods=["POST"]),
            Route("/api/action", action, methods=["POST"]),
            Route("/api/action", lambda request: _error(405, "a button is pressed by POST")),
            Route("/api/explain/{viewer}/{item_id}", explain),
            Route("/api/stream", stream),
            Route("/report", report),
            Route("/api/{rest:path}", lambda request: _error(404, "no such address")),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ],
        middleware=[Middleware(PageHeaders)],
        exception_handlers={
            Refused: lambda request, error: _error(409, str(error)),
            NotFound: lambda request, error: _error(404, str(error)),
            TransientError: lambda request, error: _error(503, str(error)),
            NearlineError: lambda request, error: _error(500, str(error)),
        },
    )
    app.state.streams = streams
    return app


async def _put_stats(backend: LiveBackend, queue: asyncio.Queue[bytes | None]) -> None:
    while True:
        try:
            await queue.put(_event("stats", await backend.stats()))
        except TransientError as error:
            await queue.put(_event("away", {"error": str(error)}))
        await asyncio.sleep(STATS_PERIOD_S)


async def _put_actions(backend: LiveBackend, queue: asyncio.Queue[bytes | None]) -> None:
    told: tuple[ActionView, ...] = ()
    while True:
        if (now := backend.actions()) != told:
            told = now
            await queue.put(_event("actions", list(now)))
        await asyncio.sleep(ACTIONS_PERIOD_S)


async def _put_rows(backend: LiveBackend, viewer: str, queue: asyncio.Queue[bytes | None]) -> None:
    while True:
        with contextlib.suppress(TransientError):  # told by the stats beside; the next look may succeed
            async for row in backend.watch_row(viewer):
                await queue.put(_event("row", row))
        await asyncio.sleep(STATS_PERIOD_S)


async def _read_fields(request: Request) -> dict[str, Any] | str:
    """The JSON object of the body, or what is wrong with it."""
    # A form of another site cannot send this content type without being asked first.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return "the body must be application/json"
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            body = b""
            break
    try:
        fields = json.loads(body)
    except ValueError:
        return f"the body must be JSON of at most {MAX_BODY_BYTES} bytes"
    return fields if isinstance(fields, dict) else "the body must be an object"


def _place(fields: Mapping[str, Any]) -> Place | str | None:
    """The row that the play came from, None if it came from none, or what is wrong."""
    row_id, position = fields.get("row_id"), fields.get("row_position")
    if row_id is None and position is None:
        return None
    if not isinstance(row_id, str) or not valid_id(row_id):
        return "row_id: not an id"
    if type(position) is not int or not 0 <= position <= MAX_POSITION:
        return f"row_position: a number from 0 to {MAX_POSITION}"
    return Place(row_id, position)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _answer(value: Any) -> Response:
    return JSONResponse(_plain(value))


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status_code=status)


def _event(name: str, value: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(_plain(value), separators=(',', ':'))}\n\n".encode()
