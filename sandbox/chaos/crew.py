"""The updater processes, those that count trends, and what an orchestrator does with them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import structlog

from runtime.settings import Settings
from sandbox.chaos.waiting import wait_until
from sandbox.children import SandboxError, read_tail
from sandbox.processes import Service, describe_end, environment_of

log = structlog.get_logger()

RESTART_S = 0.3
"""What an orchestrator takes to start a process that has ended."""
HALTED_STATUS = 3
SNAPSHOTS = "snapshots"
"""Folder of every trends snapshot that was ever published."""
AGGREGATORS = 2
"""One counts, one stands by."""


@dataclass(slots=True)
class Slot:
    """A place for one process. `verb`: what it runs. `spared`: no fault may end it (a soak watches its memory)."""

    name: str
    verb: str = "updater"
    service: Service | None = None
    wanted: bool = True
    spared: bool = False
    log: Path | None = None

    @property
    def running(self) -> bool:
        return self.service is not None and self.service.running

    @property
    def log_size(self) -> int:
        """Bytes of its log so far."""
        return self.log.stat().st_size if self.log is not None and self.log.exists() else 0

    def log_since(self, start: int) -> str:
        """What it has logged since then."""
        if self.log is None or not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(start)
            return file.read().decode(errors="replace")

    async def is_ready(self) -> bool:
        """Whether it says that it is."""
        if self.service is None or not self.service.running:
            return False
        async with httpx.AsyncClient(timeout=1) as client:
            try:
                return (await client.get(self.service.url + "/health/ready")).status_code == 200
            except httpx.HTTPError:
                return False

    def signal(self, word: str) -> None:
        """TERM, KILL, STOP or CONT, if it runs."""
        if self.service is not None and self.service.running:
            with contextlib.suppress(SandboxError):
                self.service.signal(word)


class Crew:
    """`count` updaters with the settings as they are when each starts. `surprises`: ends that no fault explains."""

    def __init__(self, folder: Path, settings: Callable[[], Settings], count: int, *, spare: bool) -> None:
        self.slots = [Slot(f"updater-{i}", spared=spare and i == 0) for i in range(count)]
        self.aggregators = [Slot(f"trends-{i}", "trends") for i in range(AGGREGATORS)]
        self.surprises: list[str] = []
        self._folder = folder
        self._settings = settings
        self._usual = count
        self._managing = asyncio.Lock()

    @property
    def victims(self) -> list[Slot]:
        """Running updaters that a fault may end."""
        return [slot for slot in self.slots if slot.running and slot.wanted and not slot.spared]

    async def victim(self, rng: random.Random) -> Slot:
        """One of them, waited for."""
        await wait_until(lambda: self.victims, "an updater that runs")
        return rng.choice(self.victims)

    @property
    def all(self) -> list[Slot]:
        """Updaters and aggregators."""
        return [*self.slots, *self.aggregators]

    def fuse(self, slot: Slot) -> Path:
        """The file that says where this process has to die."""
        return self._folder / f"{slot.name}.fuse"

    async def scale(self, count: int) -> None:
        """So many updaters, the newest stopped first, cleanly."""
        while len(self.slots) < count:
            self.slots.append(Slot(f"updater-{len(self.slots)}"))
        for i, slot in enumerate(self.slots):
            slot.wanted = i < count
            if not slot.wanted and slot.running:
                slot.signal("TERM")

    async def until_ready(self) -> None:
        """Every wanted updater has joined and resumed."""
        for slot in self.slots:
            if slot.wanted:
                await wait_until(slot.is_ready, f"readiness of {slot.name}")

    async def stop(self, *, kill: bool = False) -> None:
        """All of them, and wait."""
        async with self._managing:
            for slot in self.all:
                slot.wanted = False
                if slot.service is not None:
                    await asyncio.to_thread(slot.service.stop, kill=kill)
                    slot.service = None

    def start(self) -> None:
        """As many as usual; the supervisor starts them."""
        for slot in (*self.slots[: self._usual], *self.aggregators):
            slot.wanted = True

    async def supervise(self) -> None:
        """Start what is wanted and does not run: what an orchestrator does."""
        while True:
            for slot in self.all:
                async with self._managing:
                    if slot.service is not None and not slot.service.running:
                        self._note_end(slot)
                    if slot.wanted and slot.service is None:
                        service = self._make_service(slot)
                        try:
                            await asyncio.to_thread(service.start)
                        except SandboxError as error:  # its folder is still held by the one before: try again
                            log.info("start_again", slot=slot.name, error=str(error))
                            continue
                        slot.service, slot.log = service, service.log
            await asyncio.sleep(RESTART_S)

    def _make_service(self, slot: Slot) -> Service:
        return Service(
            slot.name,
            {
                **environment_of(self._settings()),
                "CHAOS_FUSE": str(self.fuse(slot)),
                "CHAOS_SNAPSHOTS": str(self._folder / SNAPSHOTS),
            },
            self._folder,
            port_setting="NEARLINE_HEALTH__PORT",
            program=("-m", "sandbox.chaos.wired", slot.verb),
        )

    def _note_end(self, slot: Slot) -> None:
        assert slot.service is not None
        status = slot.service.exit_status()
        slot.service.stop(kill=True)
        asked = status == -signal.SIGTERM and not slot.wanted  # before it had begun to listen
        if not asked and status not in (0, -signal.SIGKILL, HALTED_STATUS, None):
            self.surprises.append(f"{slot.name}: {describe_end(status)}: {read_tail(slot.service.log, 4)[-2000:]}")
        slot.service = None
