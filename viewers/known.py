"""From a viewer's state to what rows below the first one need of it. Pure, and without the kernels: the home page reads it too."""

from __future__ import annotations

from dataclasses import replace

from ranking.offers import Known
from viewers.signals import hidden_items, item_signals, played_items
from viewers.state import ViewerState

LIKED = 0.5
"""Strength from which a play counts as liked: watched half, or rated well."""


def known_of(state: ViewerState, until_ms: int) -> Known:
    """`until_ms`: plays that began later say nothing of taste, as the first row, which was made then, does not know them (rows may be
    frozen); but they were watched."""
    then = replace(state, plays=tuple([play for play in state.plays if play.started_at_ms <= until_ms]))
    played = played_items(then.plays)
    liked = tuple(one.item_id for one in item_signals(then) if one.strength >= LIKED and one.item_id in played)
    out = frozenset(played_items(state.plays) | hidden_items(state))
    return Known(liked, out, frozenset(digest for digest, _ in state.seen))
