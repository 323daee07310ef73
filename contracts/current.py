"""What `CURRENT` says, and its text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from contracts.errors import GenerationError
from contracts.manifest import GENERATION_ID
from contracts.shares import Share


@dataclass(frozen=True, slots=True)
class Current:
    """The generation in force, its activation (only grows), and the generation before it. `share`: who sees another one, the candidate,
    under the same activation; None: nobody."""

    generation_id: str
    activation: int
    previous: str | None = None
    share: Share | None = None

    @property
    def generations(self) -> tuple[str, ...]:
        """Those that rows are made by: the one in force, then the candidate."""
        return (self.generation_id,) if self.share is None else (self.generation_id, self.share.generation_id)

    def of_viewer(self, viewer: str) -> str:
        """The generation that this viewer's row is made by."""
        return self.generation_id if self.share is None or not self.share.holds(viewer) else self.share.generation_id

    def text(self) -> str:
        """As it is written; without a share as older programs write it."""
        content = asdict(self)
        if self.share is None:
            del content["share"]
        return json.dumps(content, sort_keys=True)


def parse_current(text: str | bytes, where: str) -> Current:
    """Errors: `GenerationError`."""
    try:
        content = json.loads(text)
        share = content.get("share")
        current = Current(
            content["generation_id"],
            content["activation"],
            content.get("previous"),
            None if share is None else Share(share["generation_id"], share["percent"]),
        )
        if not isinstance(current.activation, int) or any(
            GENERATION_ID.fullmatch(one) is None for one in current.generations
        ):
            raise ValueError("generation_id and activation are wanted")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise GenerationError(
            f"{where}: unreadable ({error}); nearline generations activate writes it again"
        ) from error
    return current
