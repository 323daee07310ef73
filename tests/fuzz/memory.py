"""Does a long run leak? The resident memory of this process, and its growth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def rss_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


def growth(samples: Sequence[tuple[int, int]]) -> float:
    """Bytes per million records, by least squares through the second half of (records, bytes): what a leak would leave once caches
    are warm."""
    late = samples[len(samples) // 2 :]
    mean_x = sum(x for x, _ in late) / len(late)
    mean_y = sum(y for _, y in late) / len(late)
    spread = sum((x - mean_x) ** 2 for x, _ in late)
    return sum((x - mean_x) * (y - mean_y) for x, y in late) / spread * 1e6
