"""Serve a Starlette app inside an event loop that already runs: the updater's health and metrics, the home page.

Granian's embeddable server does the sockets and the parsing on a thread of its own, so a busy loop delays answers but
never drops connections. It installs no signal handlers here; whoever owns the loop decides when to leave the block.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import structlog
from granian.constants import Interfaces
from granian.server.embed import Server

from contracts.errors import SettingsError

START_DEADLINE_S = 10.0
"""Listening takes 3 ms on an idle machine; after this something is wrong."""

CONNECT_POLL_S = 0.002
"""How often the start is looked at."""

GRACE_S = 1.0
"""Requests under way may take this long to finish at a stop; then they are cancelled (event streams never finish)."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

log = structlog.get_logger()


@contextlib.asynccontextmanager
async def serve(app: AsgiApp, host: str, port: int, *, grace_s: float = GRACE_S) -> AsyncIterator[int]:
    """Serve `app` while the block runs; yields the bound port (`port` 0 takes a free one).

    Raises `SettingsError` if the address cannot be bound. The app's lifespan is not run: its owner starts what
    it needs.
    """
    address, bound_port, reservation = _reserve(host, port)
    requests = _Requests(app)
    server = Server(
        requests,
        address=address,
        port=bound_port,
        interface=Interfaces.ASGINL,
        websockets=False,
        log_enabled=False,  # it would write to stdout and name the internals of requests; failures are logged below
    )
    running = asyncio.create_task(server.serve(), name="http-server")
    try:
        await _wait_until_listening(running, address, bound_port)
        yield bound_port
    finally:
        server.stop()  # type: ignore[no-untyped-call]
        await requests.finish(grace_s)
        # Shielded: granian's own future breaks when its task is cancelled. It ends by itself once no request is left.
        _, pending = await asyncio.wait({asyncio.shield(running)}, timeout=START_DEADLINE_S)
        reservation.close()
        if pending:
            log.error("http_server_did_not_stop", host=host, port=bound_port)


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


def _reserve(host: str, port: int) -> tuple[str, int, socket.socket]:
    """A numeric address, its port, and a bound socket that keeps the port ours until the server listens on it.

    Granian shares its port (SO_REUSEPORT) and cannot tell which free one it took. So it is first bound exclusively,
    which fails if anybody has it, and then held with SO_REUSEPORT but without listening: the kernel sends it nothing.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            free_port = probe.getsockname()[1]
        held = socket.socket(family, socket.SOCK_STREAM)
        if sys.platform == "linux":
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind((address[0], free_port))
        # Elsewhere a shared port would not do: it stays unheld for the instant until the server binds it.
        return str(address[0]), int(free_port), held
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingsError(
            f"cannot listen on {host}:{port}: {reason}; choose another port (0 takes a free one)"
        ) from error


async def _wait_until_listening(running: asyncio.Task[Any], address: str, port: int) -> None:
    """Return once a connection succeeds; raise `SettingsError` if the server ends or does not listen in time."""
    deadline = asyncio.get_running_loop().time() + START_DEADLINE_S
    while not running.done() and asyncio.get_running_loop().time() < deadline:
        try:
            _, writer = await asyncio.open_connection(address, port)
        except OSError:
            await asyncio.sleep(CONNECT_POLL_S)
        else:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return
    cause = running.exception() if running.done() and not running.cancelled() else None
    raise SettingsError(f"the HTTP server on {address}:{port} did not start; is the port allowed?") from cause
