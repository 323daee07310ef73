"""What a client of the home page's server reads: a whole answer at once, also of a connection that is then closed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from runtime.http import MAX_HELD_BYTES, serve

BODY = b"x" * 13_000


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """The length in the path, in chunks."""
    size = int(scope["path"].strip("/"))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
    for at in range(0, size, len(BODY)):
        chunk = BODY[: size - at]
        await send({"type": "http.response.body", "body": chunk, "more_body": at + len(chunk) < size})


async def test_head_and_body_of_an_answer_are_one_write() -> None:
    async with serve(answer, "127.0.0.1", 0) as port, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(b"GET /13000 HTTP/1.1\r\nhost: a\r\n\r\n")
            head, _, body = (await reader.read(2**20)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert body == BODY
        writer.close()


@pytest.mark.parametrize("size", [13_000, MAX_HELD_BYTES, 3_000_000])
async def test_an_answer_is_whole_though_the_connection_closes_behind_it(size: int) -> None:
    async with serve(answer, "127.0.0.1", 0) as port, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /%d HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n" % size)
        assert len((await reader.read()).partition(b"\r\n\r\n")[2]) == size
        writer.close()
