"""What a browser is told about every answer of the live page."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = (
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
"""On every answer. The page keeps its styles in files, so that the policy needs no exception."""
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Of the nightly report instead, which is one file with its style inside and fetches nothing."""


class PageHeaders:
    """Adds `HEADERS` to every answer, but for those that it has its own of."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                fresh = (b"cache-control", b"no-store" if scope["path"].startswith("/api/") else b"no-cache")
                own = message.get("headers", ())
                named = {name for name, _ in own}
                message = {**message, "headers": [*own, *(one for one in HEADERS if one[0] not in named), fresh]}
            await send(message)

        await self._app(scope, receive, with_headers)
