"""What the HTTP server listens on."""

from __future__ import annotations

import asyncio
import socket

from runtime import http


async def test_responses_are_sent_at_once_and_not_held_back_for_an_acknowledgement():
    no_delay: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        no_delay.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with http._listen("127.0.0.1", 0) as listening:
        async with await asyncio.start_server(accept, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            assert await asyncio.wait_for(no_delay, 10)
            writer.close()
            await writer.wait_closed()
