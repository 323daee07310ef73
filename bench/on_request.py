"""The peer of `homepage`: the same service, the same kernel, but nothing is computed ahead: each request reads the viewer's state,
folds it in, and retrieves and ranks a row. An updater would only have to keep the states."""

from __future__ import annotations

import asyncio
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from contracts import keys as fields
from contracts.codec import Codec
from embeddings.files import load_generation
from embeddings.generations_folder import GenerationsFolder
from homepage.server import run_homepage
from homepage.service import ROW_DEADLINE_S
from runtime.settings import Settings, load_settings
from viewers.kernel import Todo
from viewers.redis_store import RedisStore
from viewers.rewriter import Rewriter
from viewers.state import Limits

CONNECTIONS = 64
"""To the store: a request that waits for one waits behind a read of half a millisecond."""


class ScoringStore(RedisStore):
    """Rows computed when they are asked for."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            settings.store.url.get_secret_value(),
            settings.keys,
            connect_timeout_s=ROW_DEADLINE_S,
            command_timeout_s=ROW_DEADLINE_S,
            max_connections=CONNECTIONS,
        )
        folder = GenerationsFolder(settings.generations_path)
        current = folder.read_current()
        assert current is not None
        generation = load_generation(settings.generations_path, current.generation_id)
        self._rewriter = Rewriter(
            generation, current.activation, Codec.load(settings.registry_path).encode_row, Limits()
        )
        self._rewriter.prepare()
        self._executor = ThreadPoolExecutor(1)

    async def read_row(self, viewer: str) -> bytes:
        state: bytes | None = await self._command("HGET", self.keys.viewer(viewer), fields.STATE)
        if not state:
            return b""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._score, state)

    def _score(self, state: bytes) -> bytes:
        now_ms = time.time_ns() // 1_000_000
        (rewritten,) = self._rewriter.rewrite_many([Todo(state, (), True, None)], computed_at_ms=now_ms)
        assert rewritten is not None
        return rewritten.row_bytes


async def _serve() -> None:
    settings = load_settings()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    store = ScoringStore(settings)
    try:
        await run_homepage(settings, stop=stop, store=store)
    finally:
        await store.close()


if __name__ == "__main__":
    asyncio.run(_serve())
