"""`night.json` in the lake: which night is under way, and when the last one that ended well began.

Whoever schedules nights needs no memory of its own: a night is due as long as no night that began since has ended well, whoever
started it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from batch.lake import write_atomically

RESUME_WITHIN_MS = 12 * 3_600_000
"""An interrupted night that is older is given up: copying anew is then worth more than its plan."""


class NightNote:
    """Read anew at every question: another process may write it. Unreadable counts as none, which is always right."""

    def __init__(self, lake: str | Path) -> None:
        self._path = Path(lake) / "night.json"

    def plan_to_resume(self, now_ms: int) -> int | None:
        """The plan of an interrupted night that is worth resuming."""
        content = self._read()
        if content.get("finished", True) or now_ms - content["started_at_ms"] >= RESUME_WITHIN_MS:
            return None
        return int(content["plan"])

    def completed_began_ms(self) -> int:
        """When the last night that ended well began, milliseconds; 0 if none did."""
        return int(self._read().get("completed_began_ms", 0))

    def begin(self, plan: int, now_ms: int) -> None:
        """A night has its plan."""
        self._write(plan, now_ms, finished=False, completed_began_ms=self.completed_began_ms())

    def complete(self, now_ms: int) -> None:
        """The night under way has ended well: what was to be done is done, if only to hold a generation back."""
        began_ms = int(self._read().get("started_at_ms", now_ms))
        self._write(0, now_ms, finished=True, completed_began_ms=began_ms)

    def give_up(self, now_ms: int) -> None:
        """The next night begins with a plan of its own."""
        self._write(0, now_ms, finished=True, completed_began_ms=self.completed_began_ms())

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self._path.read_text())
            whole = {name: int(content[name]) for name in ("plan", "started_at_ms", "finished")}
            return {**whole, "completed_began_ms": int(content.get("completed_began_ms", 0))}
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _write(self, plan: int, started_at_ms: int, *, finished: bool, completed_began_ms: int) -> None:
        content = {
            "plan": plan,
            "started_at_ms": started_at_ms,
            "finished": finished,
            "completed_began_ms": completed_began_ms,
        }
        write_atomically(self._path, json.dumps(content).encode())
