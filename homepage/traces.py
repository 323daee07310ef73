"""Spans of page views: of those whose request is traced, of a drawn share, and of the first views of a row that a traced event led to.

A view is told after it was answered, in the background: a request costs a place in a queue. What is told holds no viewer and no path.

    GET /v1/home    in the request's own trace, linked to the span that wrote the row; or, if the request has no trace, in the event's,
                    below that span: player → updater → page is one trace then
"""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from contracts.errors import NearlineError
from contracts.traceparent import TraceParent, read_sampled
from runtime.tracing import Attributes, Tracer
from viewers.store import TRACES_KEPT_S, Store

QUEUE = 1_000
"""Views that wait to be told; more than that are not."""
TELL_AFTER_S = 0.5
"""An updater names the row's span a moment after it has written the row."""
FIRST_VIEWS_S = 60.0
"""A row as young as this is looked up though nobody asked to trace the request."""

NAME = "GET /v1/home"


class View(NamedTuple):
    """One answered request. `parent`: the request's own trace; times in wall-clock milliseconds."""

    parent: TraceParent | None
    is_asked: bool
    row_id: str
    computed_at_ms: int
    outcome: str
    start_ms: float
    end_ms: float


class PageTraces:
    """`run` is the home page's background task."""

    def __init__(self, tracer: Tracer, store: Store) -> None:
        self._tracer = tracer
        self._store = store
        self._queue: asyncio.Queue[View] = asyncio.Queue(QUEUE)

    def served(self, traceparent: str | None, row_id: str, computed_at_ms: int, outcome: str, took_s: float) -> None:
        """A request was answered just now."""
        end_ms = time.time() * 1000
        parent = read_sampled(traceparent.encode("latin-1", "replace")) if traceparent is not None else None
        is_asked = parent is not None or (traceparent is None and self._tracer.draw())
        if not is_asked and (outcome != "own" or end_ms - computed_at_ms > FIRST_VIEWS_S * 1000):
            return
        if not self._queue.full():
            self._queue.put_nowait(
                View(parent, is_asked, row_id, computed_at_ms, outcome, end_ms - took_s * 1000, end_ms)
            )

    async def run(self) -> None:
        """Tell, until cancelled."""
        while True:
            view = await self._queue.get()
            await asyncio.sleep(max(0.0, view.end_ms / 1000 + TELL_AFTER_S - time.time()))
            await self._tell(view)

    async def _tell(self, view: View) -> None:
        wrote = await self._span_that_wrote(view)
        if not view.is_asked and wrote is None:
            return
        attributes: Attributes = {
            "http.request.method": "GET",
            "http.route": "/v1/home",
            "nearline.outcome": view.outcome,
            "nearline.row_id": view.row_id,
        }
        parent = view.parent if view.is_asked else wrote
        self._tracer.tell(NAME, view.start_ms, view.end_ms, attributes, parent=parent, link=wrote, kind="SERVER")

    async def _span_that_wrote(self, view: View) -> TraceParent | None:
        if view.outcome != "own" or view.end_ms - view.computed_at_ms > TRACES_KEPT_S * 1000:
            return None
        try:
            found = await self._store.read_trace(view.row_id)
        except (NearlineError, TimeoutError):
            return None
        return None if found is None else read_sampled(found.encode("latin-1", "replace"))
