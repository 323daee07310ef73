"""The faults. Each does its harm and heals what an operator or an orchestrator would heal; recovering is the updaters' part.

A fault is one function `(arena, rng)` and one entry in `ALL`. `alone`: needs a drained log before and a check right after.
`rare`: drawn at most three times a run, and not in short ones. `ends_processes`: not for a soak.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sandbox.chaos.arena import Arena
from sandbox.chaos.faults import broker, events, generations, log_of_events, store, updaters

Action = Callable[[Arena, random.Random], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """One class of faults."""

    name: str
    action: Action
    alone: bool = False
    rare: bool = False
    ends_processes: bool = False


ALL = (
    Fault("killed_between_effects", updaters.killed_between_effects),
    Fault("frozen_past_session", updaters.frozen_past_session),
    Fault("aggregator_lost", updaters.aggregator_lost),
    Fault("rebalance_storm", updaters.rebalance_storm),
    Fault("rolling_restart", updaters.rolling_restart),
    Fault("store_killed_log_cut", store.killed_and_cut),
    Fault("store_from_older_copy", store.from_older_copy),
    Fault("store_frozen", store.frozen),
    Fault("store_slow", store.slow),
    Fault("store_full", store.full),
    Fault("broker_lost", broker.lost),
    Fault("generation_swaps", generations.swaps),
    Fault("generation_shared", generations.shared),
    Fault("generation_corrupt", generations.corrupt),
    Fault("rebuild_races", generations.rebuild_races),
    Fault("erasure_under_fire", events.erasure_under_fire),
    Fault("duplicates_and_clocks", events.duplicates_and_clocks),
    Fault("poison", events.poison),
    Fault("poison_flood", events.poison_flood, alone=True, ends_processes=True),
    Fault("schemas_mixed", events.schemas_mixed),
    Fault("partitions_raised", broker.partitions_raised),
    Fault("topic_recreated", log_of_events.topic_recreated, alone=True, ends_processes=True),
    Fault("offsets_reset", log_of_events.offsets_reset, alone=True, ends_processes=True),
    Fault("retention_gap", log_of_events.retention_gap, alone=True, ends_processes=True),
    Fault("misplaced_keys", events.misplaced_keys),
    Fault("giant_records", events.giant_records),
    Fault("hot_spot", events.hot_spot),
    Fault("store_switched_by_proxy", store.switched_by_proxy),
    Fault("backlog", events.backlog, alone=True, rare=True, ends_processes=True),
)
