"""What a store leaves open when it is closed: nothing, also over TLS, where a farewell takes two."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contracts.errors import StoreUnavailable
from contracts.keys import Keys
from tests.certificates import Certificates
from viewers.redis_store import RedisStore


@pytest.fixture
def refusing(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A server that greets over TLS, refuses everything else, and never says farewell."""
    made = Certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.good.cert, made.good.key)
    listening, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def serve() -> None:
        with listening, context.wrap_socket(listening.accept()[0], server_side=True) as client:
            while asked := client.recv(65_536):
                answer = b"+OK\r\n" if b"SETINFO" in asked or b"HELLO" in asked else b"-NOPERM no\r\n"
                client.sendall(answer * asked.count(b"*"))
            over.wait()

    threading.Thread(target=serve, daemon=True).start()
    yield listening.getsockname()[1], made.ca
    over.set()


@pytest.mark.parametrize(
    "ask", [lambda store: store.read_halt(), lambda store: store.read_row("ana")], ids=["pool", "row"]
)
def test_a_connection_over_tls_whose_last_answer_was_a_refusal_is_closed_with_the_store(
    refusing: tuple[int, Path], ask: Callable[[RedisStore], object]
) -> None:
    port, ca = refusing

    async def use() -> None:
        store = RedisStore(
            f"rediss://127.0.0.1:{port}/0",
            Keys("t", "playback@1"),
            connect_timeout_s=5.0,
            more={"ssl_ca_certs": str(ca)},
        )
        with pytest.raises(StoreUnavailable):
            await ask(store)
        await store.close()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(use())
        gc.collect()
    assert [str(one.message) for one in caught if one.category is ResourceWarning] == []
