"""The home-page service: reads one row, drops what may no longer be shown, and reports that it was shown.

    GET /v1/home?limit=&territory=&maturity=&rows=   the row of the token's viewer (401, 403, 429: who may not ask)
    GET /v1/home/{viewer}                            the same; without tokens the path says whose row it is
                                                     never 404 and never an error page because a store is away
    GET /health/live, /health/ready, /metrics

What is served, in this order: the viewer's own row; else the default row for the territory and maturity; else, when the store
is away, the default row last seen, marked `degraded`. An unknown viewer takes the same path at the same cost as a known one,
so the time of an answer does not tell who has an account here. Who may ask is decided before, without the store.

`rows=because` (names, comma-separated) adds rows below the first one to the answer (`further.py`), as `rows`: those that have something to
show, each with `row`, `row_id`, `heading`, `about` and `entries`. They are put together from the viewer's state, one field more; nothing
is ranked. Who has no row of their own has none below it either.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import Request
from starlette.routing import Route

from contracts.codec import Codec
from contracts.errors import NearlineError, StoreUnavailable
from contracts.events import valid_id
from contracts.row_columns import RowColumns
from contracts.rows import ENTRIES_SHOWN, Impression
from contracts.traceparent import HEADER
from homepage.asgi import HomePages, PagesFirst, json_error
from homepage.catalogue import CatalogueView
from homepage.further import ChosenRow, choose_rows, parse_names, rows_json
from homepage.identity import viewer_from_path
from homepage.impressions import ImpressionSink
from homepage.limits import RequestLimits, TooMany
from homepage.render import ANY, Audience, Selection, default_keys, render_row, select_entries
from homepage.traces import PageTraces
from ranking.further import FURTHER_ROWS
from runtime.health import health_routes
from runtime.http import AsgiApp
from runtime.learning_codec import LearningCodec
from viewers.store import Store

ROW_DEADLINE_S = 0.25
"""A store that has not answered by then counts as away: a home page is not worth waiting longer for."""

DEFAULT_ROWS_REFRESH_S = 2.0
"""How often the default rows are read again."""

MAX_MATURITY = 99
"""Largest `maturity` parameter, years."""

PRIVATE_HEADER = "X-Nearline-Private"
"""Any value but `0` or nothing: a private session, which leaves no impression."""

_TERRITORY = re.compile(r"[A-Za-z0-9_-]{1,16}|\*")
_LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
_OUTCOMES = {401: "unauthorized", 403: "forbidden", 429: "limited"}
_EMPTY_ROW = RowColumns("none", "", 0, "", 0, None)

log = structlog.get_logger()


class Metrics:
    """What the service counts. No label ever holds a viewer."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "nearline_homepage_requests_total", "Responses by outcome", ["outcome"], registry=self.registry
        )
        self.seconds = Histogram(
            "nearline_homepage_request_seconds",
            "Time to a response",
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.refused = Counter(
            "nearline_homepage_identity_refused_total",
            "Requests whose viewer is not known",
            ["reason"],
            registry=self.registry,
        )
        self.rows_missing = Counter(
            "nearline_homepage_rows_missing_total", "Viewers served a default row", ["reason"], registry=self.registry
        )
        self.dropped = Counter(
            "nearline_homepage_entries_dropped_total",
            "Entries dropped at read time",
            ["reason"],
            registry=self.registry,
        )
        self.further = Counter(
            "nearline_homepage_further_rows_total",
            "Rows below the first that were asked for",
            ["row", "outcome"],
            registry=self.registry,
        )
        self.impressions = Counter(
            "nearline_homepage_impressions_total", "Impressions taken for sending", registry=self.registry
        )
        self.impressions_lost = Counter(
            "nearline_homepage_impressions_lost_total", "Impressions dropped or not delivered", registry=self.registry
        )


def clock_ms() -> int:
    """Now, UTC milliseconds."""
    return time.time_ns() // 1_000_000


class DefaultRows:
    """The default rows as last read, still encoded: decoding one costs what decoding a viewer's own row costs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: Mapping[str, bytes] = {}
        self._reported = ""
        self.reachable = False

    async def refresh(self) -> None:
        """Read them again; when the store is away the last ones stay, and why is logged once."""
        try:
            async with asyncio.timeout(ROW_DEADLINE_S * 4):
                rows = await self._store.read_default_rows()
            self.reachable, self._reported = True, ""
            self._rows = rows or self._rows
        except (StoreUnavailable, TimeoutError) as error:
            self.reachable = False
            if (problem := str(error) or "no answer") != self._reported:
                self._reported = problem
                log.warning("store_away", problem=problem)

    async def run(self) -> None:
        """Refresh until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(DEFAULT_ROWS_REFRESH_S)

    def choose(self, audience: Audience) -> bytes:
        """The most fitting encoded row; empty if there is none."""
        return next((self._rows[key] for key in default_keys(audience) if key in self._rows), b"")

    def __bool__(self) -> bool:
        return bool(self._rows)


@dataclass(frozen=True, slots=True)
class Homepage:
    """The service's parts. `identify` tells who asks (raises `HTTPException` if nobody may); path-based by default."""

    store: Store
    codec: Codec | LearningCodec
    catalogue: CatalogueView
    impressions: ImpressionSink
    defaults: DefaultRows
    metrics: Metrics = field(default_factory=Metrics)
    identify: Callable[[Request], str] = viewer_from_path
    clock_ms: Callable[[], int] = clock_ms
    territory: str = ANY
    limits: RequestLimits = field(default_factory=RequestLimits.none)
    traces: PageTraces | None = None

    async def home(self, request: Request) -> bytes:
        """The JSON of `GET /v1/home` and `GET /v1/home/{viewer}`. Raises `HTTPException`: 400, 401, 403, 429."""
        started = time.perf_counter()
        try:
            viewer = self._admit(request)
            limit, audience, names = self._parameters(viewer, request)
        except HTTPException as error:
            self.metrics.requests.labels(_OUTCOMES.get(error.status_code, "bad_request")).inc()
            raise
        now_ms = self.clock_ms()
        own, state, missing = await self._read(viewer, bool(names))
        row, selection, default = self._select(own, missing, audience, now_ms, limit)
        degraded = missing == "store_away" or not selection.places
        if default:
            self.metrics.rows_missing.labels(missing or "nothing_to_show").inc()
        for reason, count in selection.dropped.items():
            self.metrics.dropped.labels(reason).inc(count)
        below: list[ChosenRow] = []
        if names and not default:
            below = self._below(names, state, row, selection, audience, now_ms, limit)
        body = render_row(
            row, selection, self.catalogue, viewer=viewer, now_ms=now_ms, default=default, degraded=degraded,
            further=rows_json(below, self.catalogue) if names else b"",
        )  # fmt: skip
        public = request.headers.get(PRIVATE_HEADER, "0") in ("", "0")
        if selection.places and public:
            self._report(viewer, row, selection, default, now_ms)
            for one in below:
                self._report(viewer, one.row, one.selection, False, now_ms)
        outcome = "degraded" if degraded else "default" if default else "own"
        self.metrics.requests.labels(outcome).inc()
        took_s = time.perf_counter() - started
        self.metrics.seconds.observe(took_s)
        if self.traces is not None and public:
            self.traces.served(request.headers.get(HEADER), row.row_id, row.computed_at_ms, outcome, took_s)
        return body

    def _admit(self, request: Request) -> str:
        """Who asks. Raises `HTTPException`: 401, 403, 429. The address first: checking a signature costs more than refusing to."""
        _refuse(self.limits.take_address(request.client.host if request.client else None))
        viewer = self.identify(request)
        _refuse(self.limits.take_viewer(viewer) if valid_id(viewer) else None)
        return viewer

    async def _read(self, viewer: str, with_state: bool) -> tuple[bytes, bytes, str]:
        """The viewer's encoded row, their packed state if it is wanted, and why there is no row (empty text if there is one)."""
        state = b""
        try:
            async with asyncio.timeout(ROW_DEADLINE_S):
                if with_state:  # the same question to the store, which answers both at once
                    row, state = await asyncio.gather(self.store.read_row(viewer), self.store.read_state(viewer))
                else:
                    row = await self.store.read_row(viewer)
        except (StoreUnavailable, TimeoutError):
            return b"", b"", "store_away"
        return row, state, "" if row else "no_row"

    def _below(
        self,
        names: Sequence[str],
        state: bytes,
        row: RowColumns,
        selection: Selection,
        audience: Audience,
        now_ms: int,
        limit: int,
    ) -> list[ChosenRow]:
        """The rows below the first. A state that this program does not read costs these rows and not the page."""
        try:
            chosen = choose_rows(names, state, row, selection, self.catalogue, audience, now_ms=now_ms, limit=limit)
        except NearlineError as error:
            log.warning("state_unreadable", error=type(error).__name__, remedy="upgrade the home page's service")
            chosen = []
        there = {one.name for one in chosen}
        for name in names:
            self.metrics.further.labels(name, "shown" if name in there else "nothing_to_show").inc()
        return chosen

    def _select(
        self, own: bytes, missing: str, audience: Audience, now_ms: int, limit: int
    ) -> tuple[RowColumns, Selection, bool]:
        """Row, its entries that hold now, and whether it is a default row."""
        for default, encoded in ((False, own), (True, self.defaults.choose(audience))):
            row = self._decode(encoded) if encoded else None
            if row is not None:
                selection = select_entries(row, self.catalogue, audience, now_ms=now_ms, limit=limit)
                if selection.places:
                    return row, selection, default
        return _EMPTY_ROW, Selection((), (), {}), True

    def _decode(self, encoded: bytes) -> RowColumns | None:
        try:
            return self.codec.decode_columns(encoded)
        except NearlineError as error:
            self.metrics.rows_missing.labels("undecodable").inc()
            log.warning("row_undecodable", problem=str(error))
            return None

    def _report(self, viewer: str, row: RowColumns, selection: Selection, default: bool, now_ms: int) -> None:
        impression = Impression(
            impression_id=f"{random.getrandbits(128):032x}",  # unique is enough: nobody gains by guessing it
            viewer=viewer,
            row_id=row.row_id,
            generation_id=row.generation_id,
            served_at_ms=now_ms,
            default_row=default,
            item_ids=tuple([row.items[place] for place in selection.places]),
        )
        taken = self.impressions.offer(impression)
        (self.metrics.impressions if taken else self.metrics.impressions_lost).inc()

    def _parameters(self, viewer: str, request: Request) -> tuple[int, Audience, tuple[str, ...]]:
        """The limit, the audience and the rows below. Raises `HTTPException`: 400, and what is wrong."""
        query: Mapping[str, str] = request.query_params if request.scope["query_string"] else {}
        territory = query.get("territory", self.territory)
        maturity = query.get("maturity", ANY)
        limit = _number(query["limit"], 1, ENTRIES_SHOWN) if "limit" in query else ENTRIES_SHOWN
        age = None if maturity == ANY else _number(maturity, 0, MAX_MATURITY)
        names = parse_names(query.get("rows", ""))
        problem = ""
        if not valid_id(viewer):
            problem = "viewer: not an id (1-128 characters of A-Z a-z 0-9 . _ : | @ ~ -)"
        elif limit is None:
            problem = f"limit: must be a whole number from 1 to {ENTRIES_SHOWN}"
        elif _TERRITORY.fullmatch(territory) is None:
            problem = "territory: 1-16 letters, digits, _ or -, e.g. GB (or * for none)"
        elif maturity != ANY and age is None:
            problem = f"maturity: must be an age in years from 0 to {MAX_MATURITY} (or * for none)"
        elif names is None:
            problem = f"rows: names of rows below the first, comma-separated; there are: {', '.join(FURTHER_ROWS)}"
        else:
            return limit, Audience(territory, age), names
        raise HTTPException(400, problem)

    def ready(self) -> tuple[bool, dict[str, object]]:
        """Not until the store is reachable and there is a default row to fall back on; the catalogue is reported."""
        checks = {
            "store": self.defaults.reachable,
            "default_rows": bool(self.defaults),
            "catalogue": self.catalogue.activation > 0,
        }
        ready = checks["store"] and checks["default_rows"]
        return ready, {"ready": ready, "checks": checks}


def make_app(homepage: Homepage) -> AsgiApp:
    """The ASGI application; background tasks (`defaults.run`, the catalogue's, the impressions') are its owner's."""
    pages = HomePages(homepage.home)
    rest = Starlette(
        routes=[
            Route("/v1/home", pages, methods=["GET"]),
            Route("/v1/home/{viewer}", pages, methods=["GET"]),
            *health_routes(homepage.metrics.registry, homepage.ready, {"live": True}),
        ],
        exception_handlers={HTTPException: json_error},
    )
    rest.router.redirect_slashes = False  # the redirect decodes the query, and a byte that is no UTF-8 there was a 500
    return ServerErrorMiddleware(PagesFirst(pages, rest))


def _refuse(why: TooMany | None) -> None:
    if why is not None:
        raise HTTPException(429, why.text, {"Retry-After": str(why.retry_after_s)})


def _number(text: str, low: int, high: int) -> int | None:
    """A whole number between the bounds, or None."""
    if not (text.isascii() and text.isdigit() and len(text) <= 4):
        return None
    return int(text) if low <= int(text) <= high else None
