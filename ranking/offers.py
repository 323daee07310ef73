"""What rows below the first one are made from, and what they offer. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from contracts.digests import item_digest
from embeddings.companions import Companions


class Known(NamedTuple):
    """Of one viewer. `liked`: titles of plays that were liked, the newest first. `out`: titles that must not be shown to them (watched,
    hidden, disliked); `out_digests`: the same for titles known by digest only."""

    liked: tuple[str, ...] = ()
    out: frozenset[str] = frozenset()
    out_digests: frozenset[int] = frozenset()

    def may_see(self, item_id: str) -> bool:
        """False: it is watched, hidden or disliked."""
        return item_id not in self.out and not (self.out_digests and item_digest(item_id) in self.out_digests)


class Offer(NamedTuple):
    """A row that could be shown, best first. `about`: the title that it is about; empty: none."""

    about: str
    item_ids: tuple[str, ...]
    scores: tuple[float, ...]


Offers = Callable[[Known, Companions, Collection[str]], Iterable[Offer]]
"""(of the viewer, what goes with each title, what the page shows already) → the offers, the best first, made as they are asked for: the
first that the page can show is shown."""
