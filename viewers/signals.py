"""The signal table: what a play or a register says about taste, and the confidence it gets in the fold-in. Pure.

A signal's strength is in −1 … 1: positive means liked, negative disliked, 0 that nothing can be said (the item is then
absent from the fold-in, not zero). A new signal is one entry in `PLAY_SIGNALS` or `REGISTER_SIGNALS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from viewers.state import COMPLETED, SKIPPED, Play, Register, RegisterKind, ViewerState


@dataclass(frozen=True, slots=True)
class PlaySignal:
    """The first entry whose flags are all set and whose range holds the watched share gives the play's strength.

    `share_from`, `share_below`: watched share in 255ths, the byte that the state keeps.
    """

    name: str
    flags: int
    share_from: int
    share_below: int
    strength: float


def _share(percent: float) -> int:
    return round(percent * 255 / 100)


PLAY_SIGNALS: tuple[PlaySignal, ...] = (
    PlaySignal("completed", COMPLETED, 0, 256, 1.0),
    PlaySignal("watched to the credits", 0, _share(90), 256, 1.0),
    PlaySignal("skipped early", SKIPPED, 0, _share(25), -0.3),
    PlaySignal("watched half", 0, _share(50), 256, 0.6),
    PlaySignal("watched a part", 0, _share(10), 256, 0.25),
    PlaySignal("looked in", 0, 0, 256, 0.0),
)

REGISTER_SIGNALS: dict[RegisterKind, Callable[[Register], float | None]] = {
    # None: says nothing about the item (a cleared rating leaves the plays to speak).
    RegisterKind.RATE: lambda register: None if register.value is None else register.value / 100,
    RegisterKind.HIDE: lambda register: -1.0,
    RegisterKind.PREFER: lambda register: None,  # a pseudo-play that behaviour outweighs: see `preferences`
}


def play_strength(share: int, flags: int) -> float:
    """Strength of one play; `share` in 255ths."""
    return next(
        signal.strength
        for signal in PLAY_SIGNALS
        if flags & signal.flags == signal.flags and signal.share_from <= share < signal.share_below
    )


STRENGTH_TABLE = np.array(
    [[play_strength(share, flags) for share in range(256)] for flags in range(8)], dtype=np.float32
)
"""(8, 256): flags, share → strength."""


def play_strengths(share: NDArray[np.uint8], flags: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`play_strength` of many plays: (n,) uint8, (n,) uint8 → (n,) float32."""
    strengths: NDArray[np.float32] = STRENGTH_TABLE[flags & 7, share]
    return strengths


class ItemSignal(NamedTuple):
    """A viewer's signal for one item. `rank`: how many distinct items with a signal are newer. `newest_ms`: when it was last played, or
    rated if it never was."""

    item_id: str
    strength: float
    rank: int
    newest_ms: int


def item_signals(state: ViewerState) -> list[ItemSignal]:
    """One signal per item: its strongest, at the rank of its newest play (or of its rating, where it has no play).

    A rating or a hide speaks for itself and replaces what the plays say. Newest first; at one time in the order of the state.
    """
    strength: dict[str, float] = {}
    newest: dict[str, int] = {}
    for play in state.plays:  # newest first
        value = _STRENGTH_ROWS[play.flags & 7][play.share]
        known = strength.get(play.item_id)
        if known is None:
            newest[play.item_id] = play.started_at_ms
            strength[play.item_id] = value
        elif (abs(value), value) > (abs(known), known):
            strength[play.item_id] = value
    if state.registers:
        strength |= _register_strengths(state.registers, newest)
        order = sorted((item for item in strength if strength[item]), key=lambda item: -newest[item])
    else:
        order = [item for item in strength if strength[item]]
    return [ItemSignal(item, strength[item], rank, newest[item]) for rank, item in enumerate(order)]


_STRENGTH_ROWS: list[list[float]] = [[float(value) for value in row] for row in STRENGTH_TABLE]


def _register_strengths(registers: tuple[Register, ...], newest: dict[str, int]) -> dict[str, float]:
    """Item → strength of what was said outright; a hide wins over a rating. Adds the times of items never played."""
    said: dict[str, float] = {}
    for register in sorted(registers, key=lambda r: r.kind is RegisterKind.HIDE):
        value = REGISTER_SIGNALS[register.kind](register)
        if value is not None:
            said[register.subject] = value
            newest.setdefault(register.subject, register.event_time_ms)
    return said


def preferences(state: ViewerState) -> list[tuple[str, float]]:
    """What the viewer said to like or not to: subject and value in −1 … 1, in the order of the state."""
    return [
        (register.subject, register.value / 100)
        for register in state.registers
        if register.kind is RegisterKind.PREFER and register.value is not None
    ]


def activations(state: ViewerState, item_ids: Sequence[str], of_age: NDArray[np.float64]) -> list[float]:
    """How often and how recently each item was played. `of_age`: (plays,), what a play adds by how many are newer."""
    found: dict[str, float] = {}
    for age, play in enumerate(state.plays):
        found[play.item_id] = found.get(play.item_id, 0.0) + float(of_age[age])
    return [found.get(item_id, 0.0) for item_id in item_ids]


def hidden_items(state: ViewerState) -> set[str]:
    """Items that the viewer asked not to be shown, or said to dislike."""
    return {
        register.subject
        for register in state.registers
        if register.kind is RegisterKind.HIDE
        or (register.kind is RegisterKind.RATE and register.value is not None and register.value < 0)
    }


def played_items(plays: tuple[Play, ...]) -> set[str]:
    """Distinct items of the kept plays."""
    return {play.item_id for play in plays}
