"""What the aggregator must have counted, from the log, in a way of its own: nothing is forgotten here, nothing is kept in slots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from contracts.events import FUTURE_TOLERANCE_MS, PLAY_KINDS, Kind, PlaybackEvent
from trends.counters import REMEMBERED_MS, SLOT_MS
from viewers.signals import play_strength
from viewers.state import FLAG_OF_KIND, watched_share


@dataclass(frozen=True, slots=True)
class Said:
    """An event as the log has it."""

    offset: int
    timestamp_ms: int
    event: PlaybackEvent


def plays_counted(
    said: Iterable[Said], index: Mapping[str, int], since_ms: int, from_offset: int, gap: range = range(0)
) -> Counter[int | str]:
    """Row (of a title that the generation does not have: its id) → plays, of one partition's log from an offset on, without those in a
    gap."""
    return Counter(of for of, _ in _counted(said, index, since_ms, from_offset, gap))


def may_be_kept(said: Sequence[Said], index: Mapping[str, int], since_ms: int) -> set[tuple[str, str]]:
    """(new title, viewer) of one partition's log: who has watched it, and was not erased since."""
    erased_at = {one.event.viewer: one.offset for one in said if one.event.kind is Kind.ERASE}
    kept = (one for one in said if one.offset > erased_at.get(one.event.viewer, -1))
    return {(of, viewer) for of, viewer in _counted(kept, index, since_ms, 0, range(0)) if isinstance(of, str)}


def _counted(
    said: Iterable[Said], index: Mapping[str, int], since_ms: int, from_offset: int, gap: range
) -> Iterator[tuple[int | str, str]]:
    """What each play that counts is of, and whose it is."""
    clock_ms, erased_s, counted = 0, Counter[str](), set()
    for one in said:
        if one.offset < from_offset or one.offset in gap:
            continue
        event, clock_ms = one.event, max(clock_ms, one.timestamp_ms)
        if event.kind is Kind.ERASE:
            through_s = min(event.event_time_ms, one.timestamp_ms) // 1000
            erased_s[event.viewer] = max(erased_s[event.viewer], through_s)
        if event.kind not in PLAY_KINDS or event.item_id is None:
            continue
        assert event.play_started_at_ms is not None
        assert event.watched_ms is not None
        assert event.duration_ms is not None
        share = watched_share(event.watched_ms, event.duration_ms)
        forgotten_ms = max(0, (clock_ms - REMEMBERED_MS) // SLOT_MS * SLOT_MS)
        too_old = event.play_started_at_ms <= max(since_ms, forgotten_ms + FUTURE_TOLERANCE_MS)
        if too_old or play_strength(share, FLAG_OF_KIND[event.kind]) <= 0:
            continue
        play = (event.viewer, event.play_started_at_ms, event.play_id, event.item_id)
        if event.play_started_at_ms // 1000 > erased_s[event.viewer] and play not in counted:
            counted.add(play)
            yield index.get(event.item_id, event.item_id), event.viewer


def was_counted(
    actual: Counter[int | str],
    said: Sequence[Said],
    index: Mapping[str, int],
    since_ms: int,
    cutoff: int,
    begins: Iterable[int],
) -> bool:
    """Whether these are the plays from the cut-off on, but for what retention deleted before it was counted: all up to where the log began
    at one time or another, or from where an earlier count for this generation had come to."""
    for begin in sorted({0, *begins}):
        if plays_counted(said, index, since_ms, max(cutoff, begin)) == actual:
            return True
        for one in said:
            if cutoff < one.offset < begin:
                gap = range(one.offset, begin)
                if plays_counted(said, index, since_ms, cutoff, gap) == actual:
                    return True
    return False
