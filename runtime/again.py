"""Trying again what has failed, every so many looks: for loops that look at something all the time, where each try is dear."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Again(Generic[T]):
    """What has failed, and for how many looks it has been left alone since. A loop's looks are as regular as a clock, and need none."""

    def __init__(self, every_looks: int) -> None:
        self._every_looks = every_looks
        self._looks = 0
        self.failing: T | None = None

    def has_failed(self, what: T | None) -> bool:
        """Leave it alone for a while, and nothing else. True: it was another one the last time. None: nothing is to be left alone."""
        is_news = what != self.failing
        self.failing, self._looks = what, 0
        return is_news

    def is_due(self, what: T) -> bool:
        """A look: whether to try this one. What has not failed is due at once; what has, from its n-th look on, until it fails again."""
        if self.failing is None or what != self.failing:
            return True
        self._looks += 1
        return self._looks >= self._every_looks
