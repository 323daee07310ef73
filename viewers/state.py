"""A viewer's state: four joins. Merging is commutative, associative and idempotent. Pure.

Duplicates, retries, reordering, re-driven dead letters and replays therefore cannot change the result:

- *plays*: identity → (maximum watched share, union of flags). Cut to the newest m per item, then the newest N, by identity.
  The cutting key never changes, so a play among the newest of all is among the newest of every prefix: it is never evicted
  and misses nothing.
- *seen*: item digest → newest start (whole seconds) of a play that was cut; newest L kept. An item that has a kept play too
  stays: if it were left out, an item pushed out of the newest L before would be missed when its place became free.
- *registers*: ratings, hides, preferences: one per subject, the newest by (time, event digest, value); newest M kept.
- *erased_through_s*: grows only. Whatever started in or before that second is ignored. Whole seconds, so that `seen`,
  which keeps no more, decides exactly as the plays did.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

from contracts.digests import id_digest as id_digest
from contracts.digests import item_digest as item_digest
from contracts.events import PLAY_KINDS, Kind, PlaybackEvent

COMPLETED = 1
STOPPED = 2
SKIPPED = 4

FLAG_OF_KIND: dict[Kind, int] = {
    Kind.START: 0,
    Kind.PROGRESS: 0,
    Kind.COMPLETE: COMPLETED,
    Kind.STOP: STOPPED,
    Kind.SKIP: SKIPPED,
}


class RegisterKind(IntEnum):
    """What a register is about."""

    RATE = 1  # an item; CLEAR_RATING writes it with value None
    HIDE = 2  # an item
    PREFER = 3  # a topic or a creator


REGISTER_OF_KIND: dict[Kind, RegisterKind] = {
    Kind.RATE: RegisterKind.RATE,
    Kind.CLEAR_RATING: RegisterKind.RATE,
    Kind.HIDE: RegisterKind.HIDE,
    Kind.PREFER: RegisterKind.PREFER,
}


class Play(NamedTuple):
    """One viewing of one item. The first three fields are its identity and its order (later is newer)."""

    started_at_ms: int
    play_digest: int  # 32 bits of the play id: the start and the item already tell plays of one viewer apart
    item_id: str
    share: int  # greatest watched share, 0-255
    flags: int  # union of COMPLETED, STOPPED, SKIPPED


class Register(NamedTuple):
    """The newest thing a viewer said about one subject."""

    kind: RegisterKind
    subject: str
    event_time_ms: int
    event_digest: int  # 32 bits of the event id: breaks ties in time
    value: int | None  # -100 … 100; None: cleared, or a hide

    @property
    def order(self) -> tuple[int, int, int]:
        """Greater wins. The value closes the order, so that even a digest's collision joins to one result."""
        return (self.event_time_ms, self.event_digest, -1000 if self.value is None else self.value)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one state; the same everywhere, or merges of the same events differ."""

    max_plays: int = 200
    max_plays_per_item: int = 3
    max_registers: int = 500
    max_seen: int = 5_000


@dataclass(frozen=True, slots=True)
class ViewerState:
    """Canonical form: equal histories give equal values (and equal bytes, see `packing`).

    `plays`: newest first. `seen`: (item digest, start second), by digest. `registers`: by (kind, subject).
    """

    plays: tuple[Play, ...] = ()
    seen: tuple[tuple[int, int], ...] = ()
    registers: tuple[Register, ...] = ()
    erased_through_s: int = -1

    @property
    def is_empty(self) -> bool:
        """True if nothing is known of the viewer (an erased viewer's state is empty)."""
        return not (self.plays or self.seen or self.registers)


EMPTY = ViewerState()


def watched_share(watched_ms: int, duration_ms: int) -> int:
    """Watched share in 255ths, rounded down; more than the whole counts as the whole."""
    return min(255, 255 * watched_ms // duration_ms)


def state_of(event: PlaybackEvent, *, timestamp_ms: int) -> ViewerState:
    """What one valid event alone says: a state with at most one play or register. `timestamp_ms`: the record's."""
    if event.kind is Kind.ERASE:
        return ViewerState(erased_through_s=min(event.event_time_ms, timestamp_ms) // 1000)
    if event.kind in PLAY_KINDS:
        assert event.item_id is not None and event.play_id is not None and event.play_started_at_ms is not None
        assert event.watched_ms is not None and event.duration_ms is not None
        play = Play(
            event.play_started_at_ms,
            id_digest(event.play_id),
            event.item_id,
            watched_share(event.watched_ms, event.duration_ms),
            FLAG_OF_KIND[event.kind],
        )
        return ViewerState(plays=(play,))
    kind = REGISTER_OF_KIND[event.kind]
    subject = event.preference if kind is RegisterKind.PREFER else event.item_id
    assert subject is not None
    value = event.value if event.kind in (Kind.RATE, Kind.PREFER) else None
    return ViewerState(registers=(Register(kind, subject, event.event_time_ms, id_digest(event.event_id), value),))


def merge(states: Iterable[ViewerState], limits: Limits) -> ViewerState:
    """Join any number of states, then cut. Merging in any order and grouping gives the same state."""
    states = tuple(states)
    erased_s = max((state.erased_through_s for state in states), default=-1)
    plays = _join_plays(states, erased_s)
    kept = _cut_plays(plays, limits)
    cut = plays.keys() - {play[:3] for play in kept} if len(kept) < len(plays) else ()
    seen = _join_seen(states, erased_s, cut, limits)
    return ViewerState(kept, seen, _join_registers(states, erased_s, limits), erased_s)


def _join_plays(states: tuple[ViewerState, ...], erased_s: int) -> dict[tuple[int, int, str], Play]:
    """Union by identity; shares by maximum, flags by union; what was erased is left out."""
    horizon_ms = (erased_s + 1) * 1000  # first millisecond after the erased second
    joined: dict[tuple[int, int, str], Play] = {}
    for state in states:
        for play in state.plays:
            if play.started_at_ms < horizon_ms:
                continue
            identity = play[:3]
            known = joined.get(identity)
            if known is None:
                joined[identity] = play
            elif known is not play:
                joined[identity] = Play(*identity, max(known.share, play.share), known.flags | play.flags)
    return joined


def _cut_plays(plays: dict[tuple[int, int, str], Play], limits: Limits) -> tuple[Play, ...]:
    """The newest m of each item, then the newest N, newest first."""
    per_item: dict[str, int] = {}
    kept: list[Play] = []
    for play in sorted(plays.values(), reverse=True):  # identities differ, so what follows them is never compared
        count = per_item.get(play.item_id, 0)
        if count < limits.max_plays_per_item:
            per_item[play.item_id] = count + 1
            kept.append(play)
            if len(kept) == limits.max_plays:
                break
    return tuple(kept)


def _join_seen(
    states: tuple[ViewerState, ...], erased_s: int, cut: Collection[tuple[int, int, str]], limits: Limits
) -> tuple[tuple[int, int], ...]:
    """Items of cut plays: digest → newest start. Starts only grow, so whoever leaves the newest L never belongs to them again."""
    if not cut and not any(state.seen for state in states):
        return ()
    seen: dict[int, int] = {}
    for state in states:
        for digest, start_s in state.seen:
            if start_s > erased_s and start_s > seen.get(digest, -1):
                seen[digest] = start_s
    for started_at_ms, _, item_id in cut:
        digest = item_digest(item_id)
        if started_at_ms // 1000 > seen.get(digest, -1):
            seen[digest] = started_at_ms // 1000
    pairs = list(seen.items())
    if len(pairs) > limits.max_seen:
        pairs.sort(key=lambda pair: (pair[1], pair[0]), reverse=True)
        del pairs[limits.max_seen :]
    return tuple(sorted(pairs))


def _join_registers(states: tuple[ViewerState, ...], erased_s: int, limits: Limits) -> tuple[Register, ...]:
    """The newest per subject; then the newest M of all."""
    if not any(state.registers for state in states):
        return ()
    joined: dict[tuple[int, str], Register] = {}
    for state in states:
        for register in state.registers:
            if register.event_time_ms // 1000 <= erased_s:
                continue
            subject = (int(register.kind), register.subject)
            known = joined.get(subject)
            if known is None or register.order > known.order:
                joined[subject] = register
    if len(joined) > limits.max_registers:
        newest = sorted(joined.items(), key=lambda pair: (pair[1].order, pair[0]), reverse=True)
        joined = dict(newest[: limits.max_registers])
    return tuple(joined[subject] for subject in sorted(joined))


def with_erasure(state: ViewerState, erased_through_s: int, limits: Limits) -> ViewerState:
    """The state after an erasure known from elsewhere (the ledger in the lake)."""
    return merge((state, replace(EMPTY, erased_through_s=erased_through_s)), limits)
