"""Some viewers of the lake with everything they did, as facts in time order: states of any moment are made from these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch.interactions import COLUMNS, PLAY_KIND_NAMES, register_of, share_and_flags
from batch.lake import Lake
from contracts.digests import id_digest
from viewers.signals import play_strength
from viewers.state import EMPTY, Limits, Play, Register, ViewerState, merge

SEED = 11


@dataclass(frozen=True, slots=True)
class Ask:
    """A viewer comes to the home page and then plays `item_id`, which they like and had not played. `plays_so_far`: titles before it."""

    viewer: int
    item_id: str
    time_ms: int
    plays_so_far: int


@dataclass(frozen=True, slots=True)
class Member:
    """One viewer. `plays`, `registers`: (when it was known, what), in that order."""

    viewer: str
    plays: tuple[tuple[int, Play], ...]
    registers: tuple[tuple[int, Register], ...]
    erased_through_s: int

    def state_before(self, time_ms: int | None, limits: Limits) -> ViewerState:
        """The state that the updater had just before; None: that of now. Empty before the first event."""
        plays = tuple(play for at_ms, play in self.plays if time_ms is None or at_ms < time_ms)
        registers = tuple(one for at_ms, one in self.registers if time_ms is None or at_ms < time_ms)
        if not plays and not registers:
            return EMPTY
        return merge((ViewerState(plays, (), registers, self.erased_through_s),), limits)

    def asks_since(self, number: int, from_ms: int) -> list[Ask]:
        """The plays of new titles since `from_ms` that were liked in the end, oldest first."""
        share: dict[tuple[int, int, str], int] = {}
        flags: dict[tuple[int, int, str], int] = {}
        for _, play in self.plays:
            share[play[:3]] = max(share.get(play[:3], 0), play.share)
            flags[play[:3]] = flags.get(play[:3], 0) | play.flags
        asks: list[Ask] = []
        played: set[str] = set()
        for identity in sorted(share):
            time_ms, _, item_id = identity
            if item_id in played:
                continue
            if time_ms >= from_ms and play_strength(share[identity], flags[identity]) > 0:
                asks.append(Ask(number, item_id, time_ms, len(played)))
            played.add(item_id)
        return asks


def read_audience(lake: Lake, since_ms: int, count: int) -> list[Member]:
    """At most `count` viewers who played since, the same for the same lake, by id. Errors: `DataError`."""
    names: set[str] = set()
    for batch in lake.batches("events", ["viewer", "play_started_at_ms"]):
        recent = pc.fill_null(pc.greater_equal(batch.column("play_started_at_ms"), since_ms), False)
        names.update(pc.unique(batch.filter(recent).column("viewer")).to_pylist())
    chosen = sorted(names)
    if len(chosen) > count:
        chosen = sorted(np.random.default_rng(SEED).choice(chosen, count, replace=False).tolist())
    return _members(lake, chosen)


def _members(lake: Lake, names: Sequence[str]) -> list[Member]:
    plays: dict[str, list[tuple[int, Play]]] = {name: [] for name in names}
    registers: dict[str, list[tuple[int, Register]]] = {name: [] for name in names}
    wanted, columns = pa.array(names, pa.string()), [*COLUMNS, "preference"]
    for batch in lake.batches("events", columns):
        batch = batch.filter(pc.is_in(batch.column("viewer"), value_set=wanted))
        is_play = pc.is_in(batch.column("kind"), value_set=PLAY_KIND_NAMES)
        for viewer, at_ms, play in _plays(batch.filter(is_play)):
            plays[viewer].append((at_ms, play))
        for row in batch.filter(pc.invert(is_play)).to_pylist():
            registers[row["viewer"]].append((row["event_time_ms"], register_of(row)))
    return [
        Member(
            name,
            tuple(sorted(plays[name])),
            tuple(sorted(registers[name], key=lambda told: told[0])),
            lake.ledger.through_s(name),
        )
        for name in names
    ]


def _plays(batch: Any) -> list[tuple[str, int, Play]]:
    if not batch.num_rows:
        return []
    share, flags = share_and_flags(batch)
    names = ("viewer", "event_time_ms", "play_started_at_ms", "play_id", "item_id")
    columns = (batch.column(name).to_pylist() for name in names)
    return [
        (viewer, at_ms, Play(start_ms, id_digest(play_id), item_id, of_share, of_flags))
        for viewer, at_ms, start_ms, play_id, item_id, of_share, of_flags in zip(
            *columns, share.tolist(), flags.tolist(), strict=True
        )
    ]
