"""`CatalogueItem`: one title of the catalogue, and when it may be shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CatalogueItem:
    """One title. Times are UTC milliseconds; `None` means unbounded.

    `maturity` is the lowest age in years that may see it (0: everybody). `taken_down` wins over the window.
    `territories` empty: everywhere.
    """

    item_id: str
    title: str
    topics: tuple[str, ...] = ()
    creators: tuple[str, ...] = ()
    duration_ms: int | None = None
    maturity: int = 0
    territories: tuple[str, ...] = ()
    available_from_ms: int | None = None
    available_until_ms: int | None = None
    released_at_ms: int | None = None
    taken_down: bool = False

    def available_at(self, now_ms: int) -> bool:
        """True if the item may be shown at `now_ms`."""
        if self.taken_down:
            return False
        if self.available_from_ms is not None and now_ms < self.available_from_ms:
            return False
        return self.available_until_ms is None or now_ms < self.available_until_ms
