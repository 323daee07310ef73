"""Does an updater's memory or number of open files grow? A line through what was seen of one process that no fault may end."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import psutil

from sandbox.chaos.crew import Slot

WARM_UP = 0.25
"""The first samples, by share, are left out: caches fill, pools open."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What a soak saw. Slopes per hour, over the samples after the warm-up."""

    samples: int
    minutes: float
    memory_mib: float
    memory_mib_per_hour: float
    open_files: int
    open_files_per_hour: float

    @property
    def flat(self) -> bool:
        """Neither grows: less than an eighth of the memory and four files in an hour."""
        return self.memory_mib_per_hour < self.memory_mib / 8 and self.open_files_per_hour < 4

    def to_json(self) -> dict[str, Any]:
        """Rounded."""
        return {
            "samples": self.samples,
            "minutes": round(self.minutes, 1),
            "memory_mib": round(self.memory_mib, 1),
            "memory_mib_per_hour": round(self.memory_mib_per_hour, 2),
            "open_files": self.open_files,
            "open_files_per_hour": round(self.open_files_per_hour, 2),
            "flat": self.flat,
        }


class Soak:
    """Samples one updater at quiet points."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._samples: list[tuple[float, float, int]] = []

    def sample(self) -> None:
        """Once more."""
        service = self._slot.service
        if service is None or service.pid is None:
            return
        process = psutil.Process(service.pid)
        self._samples.append((time.monotonic(), process.memory_info().rss / 2**20, process.num_fds()))

    def result(self) -> Watched | None:
        """None if there were too few samples."""
        late = self._samples[int(len(self._samples) * WARM_UP) :]
        if len(late) < 4:
            return None
        hours = [at / 3600 for at, _, _ in late]
        memory = statistics.linear_regression(hours, [m for _, m, _ in late]).slope
        files = statistics.linear_regression(hours, [f for _, _, f in late]).slope
        return Watched(len(late), (late[-1][0] - late[0][0]) / 60, late[-1][1], memory, late[-1][2], files)
