"""The harness's own count of trends against the shipped one, and what it lets pass."""

from __future__ import annotations

import random
from collections import Counter

from sandbox.chaos.trends_truth import Said, was_counted
from tests.unit.test_trends import GENERATION, RULES, T0, play_event
from trends.counters import Counts, Report
from viewers.state import state_of

INDEX, FAR_MS = GENERATION.index, T0 + 10**12


def log_of(n: int) -> list[Said]:
    rng = random.Random(n)
    events = [play_event(f"v{rng.randrange(9)}", rng.randrange(40), 10 + 30 * i, share=1.0) for i in range(n)]
    return [Said(offset, event.event_time_ms, event) for offset, event in enumerate(events)]


def counted(said: list[Said]) -> Counter[int]:
    counts = Counts(0)
    for one in said:
        facts = state_of(one.event, timestamp_ms=one.timestamp_ms)
        counts.take(Report(one.timestamp_ms, one.event.viewer, facts), RULES, FAR_MS)
    return Counter({row: int(sums[0]) for row, sums in counts.sums.items()})


def test_all_is_counted_but_what_retention_deleted_before() -> None:
    said, of = log_of(200), (INDEX, T0, 20)
    assert was_counted(counted(said[20:]), said, *of, {0})
    assert was_counted(counted(said[120:]), said, *of, {0, 120})  # begun after the deletion
    assert was_counted(counted(said[20:60] + said[120:]), said, *of, {0, 120})  # gone on after it


def test_anything_else_is_told() -> None:
    said, of = log_of(200), (INDEX, T0, 20)
    known = [one for one in said if one.event.item_id in INDEX]
    assert not was_counted(counted(said), said, *of, {0})  # from before the cut-off
    assert not was_counted(counted(said[120:]), said, *of, {0})  # nothing was deleted
    assert not was_counted(counted(said[20:60] + said[130:]), said, *of, {0, 120})  # more than was
    assert not was_counted(counted([one for one in said[20:] if one is not known[90]]), said, *of, {0, 40})
