"""A share of the viewers, drawn by hash: who sees another generation than the one in force."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

_WHOLE = 2**64


def in_share(viewer: str, generation_id: str, percent: float) -> bool:
    """Whether a viewer belongs to a generation's share: the same ones in every process and at any time, those of a smaller share in every
    larger one, and others for another generation, so that the same people do not try everything."""
    told = f"{generation_id}|{viewer}".encode()
    place = int.from_bytes(hashlib.blake2b(told, digest_size=8, person=b"rollout").digest(), "big")
    return place < percent / 100 * _WHOLE


@dataclass(frozen=True, slots=True)
class Share:
    """The candidate, and how many of the viewers in a hundred see it: more than 0, less than 100."""

    generation_id: str
    percent: float

    def __post_init__(self) -> None:
        if not isinstance(self.percent, int | float) or isinstance(self.percent, bool) or not 0 < self.percent < 100:
            raise ValueError(f"a share of {self.percent!r} %: more than 0 and less than 100 is wanted")

    def holds(self, viewer: str) -> bool:
        """Whether this viewer sees the candidate."""
        return in_share(viewer, self.generation_id, self.percent)
