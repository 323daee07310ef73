"""The kill switch: rows stand still while plays go on being kept and counted; and the way back, which leaves nobody behind.

While rows are frozen every write that a play leads to changes the viewer's state alone; the store itself refuses any other, so the switch
is in force for the next write, wherever an updater is. Row, vector and activation stay what they were and belong together. An erasure
still empties the row. What is asked for by a person or by the schedule (a night, `generations activate | rollback`) still writes rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from batch.activation import Activator
from batch.lake import open_lake
from batch.rebuild import Rebuilt
from contracts.errors import UserError
from embeddings.generations_folder import GenerationsFolder
from runtime.progress import ProgressReporter, make_progress
from runtime.settings import Settings
from viewers.store import Freeze, Store

log = structlog.get_logger()

MAX_REASON = 200
"""Characters: it stands in logs and in `/health/ready`."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """Rows are frozen. `already`: they were, since then and for that reason, before anybody asked."""

    since_ms: int
    reason: str
    already: bool


@dataclass(frozen=True, slots=True)
class Unfrozen:
    """Rows follow the plays. `was_frozen`: they did not. `activation`, `rebuilt`: None if there was nothing to rebuild."""

    was_frozen: bool
    generation_id: str | None = None
    activation: int | None = None
    rebuilt: Rebuilt | None = None


async def freeze(store: Store, reason: str, *, now_ms: int) -> Frozen:
    """Freeze every row as it is. Errors: `UserError` for a reason that cannot be one line of a log; `StoreUnavailable`."""
    if len(reason) > MAX_REASON or not reason.isprintable():
        raise UserError(f"--reason: {MAX_REASON} printable characters at most, on one line")
    known = await store.read_freeze()
    if known is not None:
        return Frozen(known.since_ms, known.reason, already=True)
    await store.write_freeze(Freeze(now_ms, reason))
    log.warning("rows_frozen", reason=reason, remedy="nearline unfreeze")
    return Frozen(now_ms, reason, already=False)


async def unfreeze(
    settings: Settings, store: Store, *, progress: ProgressReporter | None = None, updaters_deadline_s: float = 60.0
) -> Unfrozen:
    """Let rows follow the plays again, and bring everybody's up to date.

    1. a new activation of the generation in force     a crash after it: still frozen, do it again
    2. the switch is lifted                             a crash after it: viewers who played meanwhile keep their older row until they play
                                                        again, or this verb or the next night does the rebuild, which is seen to be missing
    3. everybody is rebuilt

    Whoever was rewritten while frozen has an older activation than 1, so 3 finds them; a state that an updater would still keep a row back
    for after 2 is refused by the store. Errors: `GenerationError`, `StoreUnavailable`, `UserError` if another activation takes over.
    """
    known = await store.read_freeze()
    in_force = GenerationsFolder(settings.generations_path).read_current()
    if in_force is None:
        await store.write_freeze(None)
        return Unfrozen(known is not None)
    if known is None and await store.read_rebuilt(in_force.activation):
        return Unfrozen(False)
    activator = Activator(settings, store, progress or make_progress(), updaters_deadline_s=updaters_deadline_s)
    current = await activator.activate(None, again=True)  # 1
    await store.write_freeze(None)  # 2
    log.info("rows_follow_plays_again", activation=current.activation)
    rebuilt = await activator.rebuild(current, erased_through_s=open_lake(settings).ledger.through_s)  # 3
    return Unfrozen(known is not None, current.generation_id, current.activation, rebuilt)
