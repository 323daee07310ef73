"""Where the live page's backend gets what the viewer's hash does not hold: the updater's numbers, and last night's rows."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx

from contracts.errors import TransientError
from updater.metrics import RowTiming
from viewers.store import Store

SNAPSHOT_BATCH = 64
"""Rows read at once for the snapshot; the store's pool lets a quarter of them through."""


class UpdaterUnavailable(TransientError):
    """The updater's health port does not answer."""


class UpdaterProbe:
    """Asks an updater's health port for its numbers.

    With several updaters the numbers are those of the one that is asked: its partitions, its rows.
    """

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client, self._url = client, url.rstrip("/")

    async def stats(self) -> Mapping[str, Any]:
        """The updater's `/stats`."""
        found = await self._get("/stats")
        if not isinstance(found, dict):
            raise UpdaterUnavailable(f"the updater at {self._url} told no numbers; is this its health port?")
        return found

    async def timing(self, row_id: str) -> RowTiming | None:
        """When a recent row was fetched, computed and written; None if this updater did not write it."""
        found = await self._get(f"/timing/{row_id}")
        return RowTiming(**found) if isinstance(found, dict) else None

    async def _get(self, path: str) -> Any:
        try:
            answer = await self._client.get(self._url + path)
            if answer.status_code == 404:
                return None
            answer.raise_for_status()
            return answer.json()
        except httpx.HTTPStatusError as error:
            raise UpdaterUnavailable(f"the updater at {self._url} answered {error.response.status_code}") from error
        except (httpx.HTTPError, ValueError) as error:
            raise UpdaterUnavailable(f"the updater at {self._url} does not answer; is it running?") from error


class NightSnapshot:
    """Everybody's encoded rows as they were when `capture` ran: right after the nightly rebuild they are last night's.

    Asked before anything was captured, it reads everybody's rows first.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: dict[str, bytes] | None = None
        self._lock = asyncio.Lock()

    async def capture(self) -> int:
        """Read every viewer's row; returns how many there are. About a second for ten thousand viewers."""
        async with self._lock:
            self._rows = await self._read()
            return len(self._rows)

    async def __call__(self, viewer: str) -> bytes:
        async with self._lock:
            if self._rows is None:
                self._rows = await self._read()
            return self._rows.get(viewer, b"")

    async def _read(self) -> dict[str, bytes]:
        rows: dict[str, bytes] = {}
        async for viewers in self._store.scan_viewers():
            for start in range(0, len(viewers), SNAPSHOT_BATCH):
                batch = viewers[start : start + SNAPSHOT_BATCH]
                found = await asyncio.gather(*(self._store.read_row(viewer) for viewer in batch))
                rows |= dict(zip(batch, found, strict=True))
        return rows
