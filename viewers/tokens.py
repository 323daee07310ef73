"""Tokens of writes: random, so that no two writes ever share one, whatever became of the store in between."""

from __future__ import annotations

import os

from contracts.keys import TOKEN_BYTES

_DRAWN_AT_ONCE = 512
"""One call to the system for so many: a call takes longer than a token's share of everything else in a batch."""

_left: list[bytes] = []


def draw_token() -> bytes:
    """A token that no other write has: `TOKEN_BYTES` random bytes."""
    while True:
        try:
            return _left.pop()
        except IndexError:
            drawn = os.urandom(TOKEN_BYTES * _DRAWN_AT_ONCE)
            _left.extend(drawn[at : at + TOKEN_BYTES] for at in range(0, len(drawn), TOKEN_BYTES))


if hasattr(os, "register_at_fork"):  # a child would draw the same ones as its parent
    os.register_at_fork(after_in_child=_left.clear)
