"""Putting a generation in force: CURRENT, the announcement, the updaters, the rebuild. Used by the nightly job and by the verbs
`nearline generations list | activate | rollback`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import structlog

from batch.lake import open_lake
from batch.rebuild import Rebuild, Rebuilt
from contracts.codec import Codec
from contracts.errors import UserError
from contracts.manifest import Manifest
from embeddings.files import Current, GenerationsFolder, load_generation, load_items
from runtime.progress import ProgressReporter, make_progress
from runtime.settings import Settings
from viewers.default_rows import titles_by_territory
from viewers.rewrite import Rewriter
from viewers.state import Limits, ViewerState
from viewers.store import Store
from viewers.tokens import draw_token

log = structlog.get_logger()

UPDATER_SILENT_MS = 15_000
"""An updater that has not reported for so long is gone, and nobody waits for it."""
POLL_S = 0.1


def wall_ms() -> float:
    """UTC milliseconds."""
    return time.time() * 1000


@dataclass(frozen=True, slots=True)
class GenerationInfo:
    """A line of `nearline generations list`. `state`: in force, previous, or empty."""

    generation_id: str
    created_at_ms: int
    items: int
    users: int
    k: int
    ndcg_at_10: float | None
    decision: str
    state: str
    activation: int | None


@dataclass(frozen=True, slots=True)
class ActivationReport:
    """What an activation or a rollback did. `replaced`: the generation that was in force."""

    generation_id: str
    activation: int
    replaced: str | None
    rebuilt: Rebuilt


class Activator:
    """Activates generations and rebuilds rows with them. `store` is connected."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        progress: ProgressReporter,
        *,
        now_ms: Callable[[], float] = wall_ms,
        updaters_deadline_s: float = 60.0,
    ) -> None:
        self._settings = settings
        self._store = store
        self._progress = progress
        self._now_ms = now_ms
        self._deadline_s = updaters_deadline_s
        self._folder = GenerationsFolder(settings.generations_path)

    async def activate(self, generation_id: str, *, again: bool) -> Current:
        """Move CURRENT, announce it, and wait for the live updaters. Errors: `GenerationError` if it does not load.

        `again` False: the activation stays if the generation is in force already and the store knows no higher one.
        """
        floor = await self._store.highest_activation()
        current = await asyncio.to_thread(self._folder.current_or_none)
        if again or current is None or current.generation_id != generation_id or current.activation < floor:
            current = await asyncio.to_thread(self._folder.activate, generation_id, floor=floor)
        await self._store.announce_activation(current.activation)
        log.info("generation_activated", generation_id=generation_id, activation=current.activation)
        await self._wait_for_updaters(current.activation)
        return current

    async def rebuild(
        self,
        current: Current,
        *,
        facts: Iterable[tuple[str, ViewerState]] | None = None,
        seeded: Mapping[int, int] | None = None,
        erased_through_s: Callable[[str], int],
    ) -> Rebuilt:
        """Rebuild everybody. Errors: those of `batch.rebuild.Rebuild`, `GenerationError`."""
        settings = self._settings
        generation = await asyncio.to_thread(load_generation, settings.generations_path, current.generation_id)
        items = await asyncio.to_thread(load_items, settings.generations_path, current.generation_id)
        codec = Codec.load(settings.registry_path)
        rewriter = Rewriter(generation, current.activation, codec.encode_row, Limits(**settings.state.model_dump()))
        with self._progress.step("rebuild every row") as step:
            rebuild = Rebuild(
                self._store,
                rewriter,
                now_ms=self._now_ms,
                draw_token=draw_token,
                territories=titles_by_territory(items),
                erased_through_s=erased_through_s,
                advance=step.advance,
            )
            return await rebuild.run(facts, seeded=seeded)

    async def _wait_for_updaters(self, activation: int) -> None:
        """Until every updater that still reports has taken the activation up, or the deadline has passed."""
        ends = time.monotonic() + self._deadline_s
        with self._progress.step("wait for the updaters"):
            while behind := await self._behind(activation):
                if time.monotonic() > ends:
                    log.warning(
                        "updaters_behind",
                        instances=behind,
                        activation=activation,
                        remedy="rows are rebuilt all the same; see whether they refuse the generation (/health/ready, logs)",
                    )
                    return
                await asyncio.sleep(POLL_S)

    async def _behind(self, activation: int) -> list[str]:
        reports = await self._store.read_updaters()
        oldest_ms = self._now_ms() - UPDATER_SILENT_MS
        return sorted(name for name, (serves, at_ms) in reports.items() if serves < activation and at_ms >= oldest_ms)


def list_generations(settings: Settings) -> list[GenerationInfo]:
    """Every complete generation, oldest first. Errors: `GenerationError` if CURRENT is unreadable."""
    folder = GenerationsFolder(settings.generations_path)
    current = folder.read_current()
    return [_info(manifest, current) for manifest in folder.list()]


def _info(manifest: Manifest, current: Current | None) -> GenerationInfo:
    in_force = current is not None and manifest.generation_id == current.generation_id
    previous = current is not None and manifest.generation_id == current.previous
    return GenerationInfo(
        manifest.generation_id,
        manifest.created_at_ms,
        manifest.n_items,
        manifest.n_users,
        manifest.k,
        manifest.metrics.get("candidate", {}).get("ndcg@10"),
        manifest.decision.verdict,
        "in force" if in_force else "previous" if previous else "",
        current.activation if current is not None and in_force else None,
    )


async def activate(
    settings: Settings, store: Store, generation_id: str, *, progress: ProgressReporter | None = None
) -> ActivationReport:
    """Put a generation in force under a new activation, and rebuild everybody's row. Errors: `GenerationError`, `UserError`."""
    shown = progress or make_progress()
    before = GenerationsFolder(settings.generations_path).current_or_none()
    activator = Activator(settings, store, shown)
    current = await activator.activate(generation_id, again=True)
    rebuilt = await activator.rebuild(current, erased_through_s=open_lake(settings).ledger.through_s)
    return ActivationReport(generation_id, current.activation, before.generation_id if before else None, rebuilt)


async def rollback(settings: Settings, store: Store, *, progress: ProgressReporter | None = None) -> ActivationReport:
    """Put back what was in force before, if that is older; else the newest kept generation that is: a new activation of an old one.

    Not always "what was in force before": a second rollback would go forward again. Not always the next older one: it may have been
    published only, and never have served anybody. Errors: `UserError` if none is kept.
    """
    folder = GenerationsFolder(settings.generations_path)
    current = folder.read_current()
    if current is None:
        raise UserError("no generation is in force: there is nothing to roll back from (nearline generations list)")
    kept = folder.list()
    made_ms = {manifest.generation_id: manifest.created_at_ms for manifest in kept}
    in_force_ms = made_ms.get(current.generation_id, 0)  # not listed, so damaged: nobody knows what is older
    older = [manifest.generation_id for manifest in kept if manifest.created_at_ms < in_force_ms]
    if not older:
        raise UserError(
            f"no generation older than {current.generation_id} is known: choose one (nearline generations list) "
            "and put it in force by name (nearline generations activate)"
        )
    chosen = current.previous if current.previous in older else older[-1]
    return await activate(settings, store, chosen, progress=progress)
