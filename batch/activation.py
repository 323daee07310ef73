"""Putting a generation in force, for everybody or beside a candidate for a share: CURRENT, the announcement, the updaters, the rebuild.
Used by the nightly job and by the verbs `nearline generations list | activate | rollback | share`.

Every change is an activation: also the beginning of a share, another percentage and its end. So what holds of activations holds of arms: an
updater that has not taken it up is refused, and the sweep proves that nobody is left with a row of another arm.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial

import structlog

from batch.lake import open_lake
from batch.rebuild import Rebuild, Rebuilt
from contracts.codec import Codec
from contracts.current import Current
from contracts.errors import GenerationError, UserError
from contracts.manifest import Manifest
from contracts.shares import Share
from embeddings.files import load_generation, load_items
from embeddings.generation import Generation
from embeddings.generations_folder import GenerationsFolder
from runtime.progress import ProgressReporter, make_progress
from runtime.settings import Settings
from viewers.arms import Arms
from viewers.default_rows import titles_by_territory
from viewers.rewrite import Rewriters
from viewers.rewriter import Rewriter
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
    """A line of `nearline generations list`. `state`: in force, candidate, previous, or empty. `percent`: of the viewers who see it."""

    generation_id: str
    created_at_ms: int
    items: int
    users: int
    k: int
    ndcg_at_10: float | None
    decision: str
    state: str
    activation: int | None
    percent: float | None = None


@dataclass(frozen=True, slots=True)
class ActivationReport:
    """What an activation, a rollback or a share did. `replaced`: the generation that was in force. `share`: who sees a candidate now;
    `ended`: who did before, and does not any more."""

    generation_id: str
    activation: int
    replaced: str | None
    rebuilt: Rebuilt
    share: Share | None = None
    ended: Share | None = None


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
        self._candidate: Generation | None = None  # loaded to see that it loads, kept for the rebuild that follows

    async def activate(self, generation_id: str | None, *, again: bool, ends_share: bool = False) -> Current:
        """Move CURRENT, announce it, and wait for the live updaters. Errors: `GenerationError` if it does not load.

        `generation_id` None: what is in force at that moment, so that nobody's activation meanwhile is undone. `again` False: the
        activation stays if the generation is in force already and the store knows no higher one. `ends_share` False: who sees a candidate
        goes on seeing it, unless it does not load any more: then nobody could take anything up beside it.
        """
        floor = await self._store.highest_activation()
        current = await asyncio.to_thread(self._folder.current_or_none)
        if not ends_share and current is not None and await asyncio.to_thread(self._lost_its_candidate, current):
            again = ends_share = True
        is_in_force = current is not None and generation_id in (None, current.generation_id)
        if again or current is None or not is_in_force or current.activation < floor:
            work = partial(self._folder.activate, generation_id, floor=floor, ends_share=ends_share)
            current = await asyncio.to_thread(work)
        await self._announce(current)
        return current

    def _lost_its_candidate(self, current: Current) -> bool:
        if current.share is None:
            return False
        try:
            self._candidate = load_generation(self._settings.generations_path, current.share.generation_id)
        except GenerationError as error:
            remedy = "the share ends, everybody sees what is in force; publish it again and begin a new one"
            log.error("candidate_refused", error=str(error), remedy=remedy)
            return True
        return False

    def _load(self, generation_id: str) -> Generation:
        """What was just loaded serves. Errors: `GenerationError`."""
        if self._candidate is not None and self._candidate.generation_id == generation_id:
            return self._candidate
        return load_generation(self._settings.generations_path, generation_id)

    async def share(self, share: Share) -> Current:
        """The same for a share of the viewers. Errors: `GenerationError`."""
        floor = await self._store.highest_activation()
        current = await asyncio.to_thread(self._folder.share, share, floor=floor)
        await self._announce(current)
        return current

    async def _announce(self, current: Current) -> None:
        await self._store.announce_activation(current.activation)
        shared = {} if current.share is None else {"share": asdict(current.share)}
        log.info("generation_activated", generation_id=current.generation_id, activation=current.activation, **shared)
        await self._wait_for_updaters(current.activation)

    async def rebuild(
        self,
        current: Current,
        *,
        facts: Iterable[tuple[str, ViewerState]] | None = None,
        seeded: Mapping[int, int] | None = None,
        erased_through_s: Callable[[str], int],
    ) -> Rebuilt:
        """Rebuild everybody, each by their arm. Errors: those of `batch.rebuild.Rebuild`, `GenerationError`."""
        settings = self._settings
        rewriters = await asyncio.to_thread(self._rewriters, current)
        self._candidate = None
        items = await asyncio.to_thread(load_items, settings.generations_path, current.generation_id)
        with self._progress.step("rebuild every row") as step:
            rebuild = Rebuild(
                self._store,
                rewriters,
                now_ms=self._now_ms,
                draw_token=draw_token,
                territories=titles_by_territory(items),
                erased_through_s=erased_through_s,
                advance=step.advance,
            )
            return await rebuild.run(facts, seeded=seeded)

    def _rewriters(self, current: Current) -> Rewriters:
        settings = self._settings
        encode_row, limits = Codec.load(settings.registry_path).encode_row, Limits(**settings.state.model_dump())
        in_force, *candidate = [
            Rewriter(self._load(one), current.activation, encode_row, limits) for one in current.generations
        ]
        return in_force if current.share is None else Arms(in_force, candidate[0], current.share)

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
    share = None if current is None else current.share
    candidate = share is not None and manifest.generation_id == share.generation_id
    return GenerationInfo(
        manifest.generation_id,
        manifest.created_at_ms,
        manifest.n_items,
        manifest.n_users,
        manifest.k,
        manifest.metrics.get("candidate", {}).get("ndcg@10"),
        manifest.decision.verdict,
        "in force" if in_force else "candidate" if candidate else "previous" if previous else "",
        current.activation if current is not None and (in_force or candidate) else None,
        share.percent if share is not None and candidate else None,
    )


async def activate(
    settings: Settings, store: Store, generation_id: str, *, progress: ProgressReporter | None = None
) -> ActivationReport:
    """Put a generation in force for everybody under a new activation, and rebuild everybody's row. A share ends with it.

    Errors: `GenerationError`, `UserError`.
    """
    before = GenerationsFolder(settings.generations_path).current_or_none()
    activator = Activator(settings, store, progress or make_progress())
    current = await activator.activate(generation_id, again=True, ends_share=True)
    return await _rebuilt(settings, activator, before, current)


async def share(
    settings: Settings,
    store: Store,
    generation_id: str | None,
    percent: float,
    *,
    progress: ProgressReporter | None = None,
    updaters_deadline_s: float = 60.0,
) -> ActivationReport:
    """Have that many viewers in a hundred see a candidate. `generation_id` None: the one that some see already.

    Everybody is rebuilt, so that both arms' rows are of one moment. Errors: `GenerationError`, `UserError`.
    """
    before = GenerationsFolder(settings.generations_path).read_current()
    if before is None:
        raise UserError("no generation is in force: first one for everybody (nearline generations activate)")
    if generation_id is None and before.share is None:
        raise UserError("nobody sees a candidate yet: name one (nearline generations list)")
    chosen = generation_id or (before.share.generation_id if before.share else "")
    if chosen == before.generation_id:
        raise UserError(f"{chosen} is in force for everybody already: name another (nearline generations list)")
    try:
        wanted = Share(chosen, percent)
    except ValueError as error:
        raise UserError(f"{error}; everybody: nearline generations activate {chosen}") from error
    activator = Activator(settings, store, progress or make_progress(), updaters_deadline_s=updaters_deadline_s)
    return await _rebuilt(settings, activator, before, await activator.share(wanted))


async def stop_share(
    settings: Settings, store: Store, *, progress: ProgressReporter | None = None, updaters_deadline_s: float = 60.0
) -> ActivationReport:
    """Everybody sees what is in force again. Errors: `GenerationError`, `UserError` if nobody saw anything else."""
    before = GenerationsFolder(settings.generations_path).read_current()
    if before is None or before.share is None:
        raise UserError("nobody sees a candidate: there is no share to stop (nearline generations list)")
    activator = Activator(settings, store, progress or make_progress(), updaters_deadline_s=updaters_deadline_s)
    current = await activator.activate(None, again=True, ends_share=True)
    return await _rebuilt(settings, activator, before, current)


async def _rebuilt(
    settings: Settings, activator: Activator, before: Current | None, current: Current
) -> ActivationReport:
    rebuilt = await activator.rebuild(current, erased_through_s=open_lake(settings).ledger.through_s)
    replaced = before.generation_id if before is not None and before.generation_id != current.generation_id else None
    ended = None if before is None or current.share is not None else before.share
    return ActivationReport(current.generation_id, current.activation, replaced, rebuilt, current.share, ended)


async def rollback(settings: Settings, store: Store, *, progress: ProgressReporter | None = None) -> ActivationReport:
    """Put back what was in force before, if that is older; else the newest kept generation that is: a new activation of an old one, for
    everybody: a share ends with it.

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
