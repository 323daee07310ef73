"""`Rules`: what every row of a generation obeys beside its ranking. Part of the manifest: versioned and rolled back with it.

Whoever makes a row (updater, rebuild, `nearline explain`) reads them from the generation, never from settings of its own: a row stays a
function of state, generation, trends snapshot and time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TOPIC, CREATOR, TITLE = "topic:", "creator:", "title:"
"""What a preference may be about: the beginnings of its subject."""

_NO_ID = re.compile(r"[^A-Za-z0-9._:|@~-]")
_MAX_ID = 128


@dataclass(frozen=True, slots=True)
class Rules:
    """Without any rule a row is what the ranker makes of it.

    `per_creator`, `per_topic`: entries of one creator, of one topic, at most among any `window` in a row; 0: any number.
    `exploration`: share of the places that titles of few plays get. `preference`: strength of a preference that was told, 0 … 1, as a
    play's; 0: preferences are kept and not used. `repeats`: share of the places that titles watched before get; `repeat_gap`: how many
    other titles were watched since, at least.
    """

    window: int = 10
    per_creator: int = 0
    per_topic: int = 0
    exploration: float = 0.0
    preference: float = 0.0
    repeats: float = 0.0
    repeat_gap: int = 1

    @property
    def limit_groups(self) -> bool:
        """Whether creators or topics are counted."""
        return bool(self.per_creator or self.per_topic)

    @property
    def arrange(self) -> bool:
        """Whether entries may lie elsewhere than the ranker puts them."""
        return self.limit_groups or self.exploration > 0 or self.repeats > 0


NO_RULES = Rules()


def subject(prefix: str, name: str) -> str:
    """What a creator or a topic is called in a preference: in the id alphabet, `Ana Ruiz` → `creator:Ana_Ruiz`."""
    return (prefix + _NO_ID.sub("_", name))[:_MAX_ID]
