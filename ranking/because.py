"""The row "Because you watched …": what goes with the newest title that the viewer liked. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from embeddings.companions import Companions
from ranking.offers import Known, Offer

PLAYS_TRIED = 8
"""Of a title that came today, or that nobody else has watched, nothing is known yet: then it is the one before."""


def offer_because(known: Known, companions: Companions, shown: Collection[str]) -> Iterator[Offer]:
    """One offer for each of the newest liked titles that something goes with."""
    for about in known.liked[:PLAYS_TRIED]:
        found = [one for one in companions.of(about) if one[0] not in shown and known.may_see(one[0])]
        if found:
            item_ids, scores = zip(*found, strict=True)
            yield Offer(about, item_ids, scores)
