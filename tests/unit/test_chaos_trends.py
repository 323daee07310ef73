"""The harness's own count of trends against the shipped one, and what it lets pass."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from contracts.events import Kind
from sandbox.chaos.trends_truth import Said, may_be_kept, was_counted
from tests.unit.test_trends import GENERATION, RULES, T0, play_event
from trends.counters import Counts, Report
from viewers.state import state_of

INDEX, FAR_MS = GENERATION.index, T0 + 10**12


def log_of(n: int) -> list[Said]:
    rng = random.Random(n)
    events = [play_event(f"v{rng.randrange(9)}", rng.randrange(40), 10 + 30 * i, share=1.0) for i in range(n)]
    return [Said(offset, event.event_time_ms, event) for offset, event in enumerate(events)]


def counts_over(said: list[Said]) -> Counts:
    counts = Counts(0)
    for one in said:
        facts = state_of(one.event, timestamp_ms=one.timestamp_ms)
        counts.take(Report(one.timestamp_ms, one.event.viewer, facts), replace(RULES, new_titles=100), FAR_MS)
    return counts


def counted(said: list[Said]) -> Counter[int | str]:
    counts = counts_over(said)
    found: Counter[int | str] = Counter({row: int(sums[0]) for row, sums in counts.sums.items()})
    found.update({item_id: int(title.sums[0]) for item_id, title in counts.new.items()})
    return found


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


def test_who_may_be_kept_of_a_new_title_has_watched_it_and_was_not_erased_since() -> None:
    said = log_of(300)
    erased = replace(said[250].event, kind=Kind.ERASE)
    said = [*said[:250], Said(250, said[250].timestamp_ms, erased), *said[251:]]
    fans = {(item_id, fan) for item_id, title in counts_over(said).new.items() for fan in title.fans}
    allowed = may_be_kept(said, INDEX, T0)
    assert fans == allowed
    assert may_be_kept(said[:250], INDEX, T0) - allowed  # who was erased, and has not watched it again
