"""Serve a Starlette app inside an event loop that already runs: the updater's health and metrics, the home page.

Uvicorn does the HTTP, in this loop. It installs no signal handlers here; whoever owns the loop decides when to leave the block.
(Granian's embeddable server was tried: its native thread can outlive the interpreter and abort the process at exit.)
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from contracts.errors import SettingsError

GRACE_S = 1.0
"""Requests under way may take this long to finish at a stop; then they are cancelled (event streams never finish)."""

BACKLOG = 1024
"""Connections that may wait to be accepted."""

MAX_HEAD_BYTES = 64 * 1024
"""A request line and headers longer than this are nobody's: the parser would keep them all, however long they become."""

MAX_HELD_BYTES = 64 * 1024
"""What is held back until the loop's next turn, at most."""

HEAD_DEADLINE_S = 10.0
"""A client that has not sent its headers by then is broken, or holds connections open to exhaust them."""

POLL_S = 0.002
"""How often the start is looked at."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

log = structlog.get_logger()


class _OneWrite:
    """A transport that writes once what one turn of the loop gave it: uvicorn writes a response's head and its body one by one, and
    each write costs a system call and wakes the client."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held: list[bytes] = []
        self._held_bytes = 0

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > MAX_HELD_BYTES:
            self._flush()  # so that the transport may say that the client is too slow

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held:
            held, self._held, self._held_bytes = self._held, [], 0
            self._transport.write(b"".join(held))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _BoundedHead(HttpToolsProtocol):
    """Hangs up on a request whose headers are longer than `MAX_HEAD_BYTES` (and what one read brings), or take longer than
    `HEAD_DEADLINE_S`. Between requests uvicorn's own limit on idle connections holds."""

    _head_bytes = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_OneWrite(transport, self.loop))  # type: ignore[arg-type]
        self._deadline = self.loop.call_later(HEAD_DEADLINE_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_ended()
        super().connection_lost(exc)

    def _head_ended(self) -> None:
        self._head_bytes = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def on_message_begin(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_DEADLINE_S, self.transport.abort)
        super().on_message_begin()

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        self._head_ended()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)


class _Server(uvicorn.Server):
    """Leaves the signals to the owner of the loop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serve(
    app: AsgiApp,
    host: str,
    port: int,
    *,
    setting: str = "another port",
    grace_s: float = GRACE_S,
    trusted_proxies: str = "",
) -> AsyncIterator[int]:
    """Serve `app` while the block runs; yields the bound port (`port` 0 takes a free one).

    `setting`: what says the port, for the message of one that cannot be had.
    `trusted_proxies`: addresses and networks whose X-Forwarded-For names the client; from anyone else it is only a claim.

    Raises `SettingsError` if the address cannot be bound. The app's lifespan is not run: its owner starts what
    it needs.
    """
    requests = _Requests(app)
    with _listen(host, port, setting) as listening:
        config = uvicorn.Config(
            requests,
            http=_BoundedHead,
            loop="none",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,  # paths hold viewers' ids
            server_header=False,
            proxy_headers=bool(trusted_proxies),
            forwarded_allow_ips=trusted_proxies,
            timeout_graceful_shutdown=None,  # ours, below: uvicorn counts in whole seconds
        )
        server = _Server(config)
        running = asyncio.create_task(server.serve(sockets=[listening]), name="http-server")
        try:
            while not server.started and not running.done():  # noqa: ASYNC110 - uvicorn offers a flag, no event
                await asyncio.sleep(POLL_S)
            if running.done():
                raise SettingsError(f"the HTTP server on {host}:{port} did not start") from running.exception()
            yield int(listening.getsockname()[1])
        finally:
            server.should_exit = True
            await requests.finish(grace_s)
            await asyncio.wait({running})


class _Requests:
    """The app, knowing which requests are under way; logs what fails without quoting the request."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            pass  # stopping, or the client left
        except Exception as error:  # noqa: BLE001 - the app has answered 500; nothing above this can do more than log
            # Not the whole traceback: its texts and locals may hold ids and payloads.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            log.error("http_request_failed", error=type(error).__name__, at=f"{frame.filename}:{frame.lineno}")
        finally:
            self._tasks.discard(task)

    async def finish(self, grace_s: float) -> None:
        """Wait for the requests under way, at most `grace_s` seconds, then cancel them."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=grace_s)
        for task in set(self._tasks):
            task.cancel()


@contextlib.contextmanager
def _listen(host: str, port: int, setting: str = "another port") -> Iterator[socket.socket]:
    """A listening socket, closed at the end. Raises `SettingsError` if the address cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Named as TCP, or asyncio leaves Nagle's algorithm on: a response is two writes, and the second would wait for the client's
        # delayed acknowledgement, 40 ms.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
            listening.setblocking(False)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingsError(f"cannot listen on {host}:{port}: {reason}; set {setting} (0 takes a free one)") from error
    try:
        yield listening
    finally:
        listening.close()
