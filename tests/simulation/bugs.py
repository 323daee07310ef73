"""Seeded bugs: proof that the simulation sees. Each patches the shipped code for one run; none of it is in shipped code.

`python -m tests.simulation.bugs` prints which invariant caught each, and in which history.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import batch.rebuild
import runtime.anchors
import updater.checkpoint
import updater.consumer
import updater.pipeline
import viewers.rewrite
import viewers.rewriter
import viewers.state
from contracts.anchors import Anchor
from contracts.errors import HaltError, KafkaUnavailable
from tests.simulation import special
from tests.simulation.actors import SimRewriter
from tests.simulation.model_store import SimStore
from tests.simulation.run import History, run_history
from tests.simulation.special import Patches
from updater.checkpoint import Checkpoint, Progress, Start
from updater.consumer import Updater
from updater.deadletter import DeadLetterQueue
from updater.line import Turn
from updater.pipeline import Plan
from viewers.memory_store import MemoryStore
from viewers.rewrite import Outcome, RewriteResult
from viewers.state import Play, ViewerState
from viewers.store import Conflict, Marker, MarkerWrite, Stale, StoredViewer, ViewerWrite, WriteResult, Written


@dataclass(frozen=True, slots=True)
class Bug:
    """`patches` makes them anew for every history. `within`: histories in which it must be seen."""

    patches: Callable[[], Patches]
    within: int = 400


BUGS: dict[str, Bug] = {}


def bug(within: int = 400) -> Callable[[Callable[[], Patches]], Callable[[], Patches]]:
    def add(patches: Callable[[], Patches]) -> Callable[[], Patches]:
        BUGS[patches.__name__] = Bug(patches, within)
        return patches

    return add


# The compare-and-set


@bug()
def the_store_ignores_the_token() -> Patches:
    shipped = MemoryStore._write

    def write(self: MemoryStore, one: ViewerWrite) -> WriteResult:
        stored = self.server.viewers.get(one.viewer, StoredViewer())
        return shipped(self, one._replace(expected_token=stored.token))

    return [(MemoryStore, "_write", write)]


@bug()
def the_token_is_a_counter() -> Patches:
    def counting(viewer: str, expected: bytes, new: bytes, *rest: Any) -> ViewerWrite:
        return ViewerWrite(viewer, expected, (int.from_bytes(expected, "big") + 1).to_bytes(8, "big"), *rest)

    return [(viewers.rewrite, "ViewerWrite", counting)]


@bug(within=1500)
def a_conflict_counts_as_written() -> Patches:
    shipped = SimStore.write_viewers

    async def write_viewers(self: SimStore, writes: Sequence[ViewerWrite]) -> list[WriteResult]:
        return [Written() if isinstance(r, Conflict) else r for r in await shipped(self, writes)]

    return [(SimStore, "write_viewers", write_viewers)]


@bug()
def after_a_conflict_the_same_is_written_again() -> Patches:
    shipped = SimStore.write_viewers

    async def write_viewers(self: SimStore, writes: Sequence[ViewerWrite]) -> list[WriteResult]:
        results = await shipped(self, writes)
        again = [
            write._replace(expected_token=result.stored.token)
            for write, result in zip(writes, results, strict=True)
            if isinstance(result, Conflict)
        ]
        return results if not again else [Written()] * len(writes) if await shipped(self, again) else results

    return [(SimStore, "write_viewers", write_viewers)]


@bug()
def an_older_activation_is_accepted() -> Patches:
    shipped = MemoryStore._write

    def write(self: MemoryStore, one: ViewerWrite) -> WriteResult:
        stored = self.server.viewers.get(one.viewer)
        if stored is not None and stored.activation > one.activation:
            self.server.viewers[one.viewer] = stored._replace(activation=one.activation)
        result = shipped(self, one)
        if stored is not None and not isinstance(result, Written):
            self.server.viewers[one.viewer] = stored
        return result

    def compute(rewriter: Any, todo: Any, computed_at_ms: int) -> Any:
        capped = [(j, s._replace(activation=min(s.activation, rewriter.activation))) for j, s in todo]
        return shipped_compute(rewriter, capped, computed_at_ms)

    shipped_compute = viewers.rewrite._compute
    return [(MemoryStore, "_write", write), (viewers.rewrite, "_compute", compute)]


@bug()
def a_refused_write_passes_its_offset() -> Patches:
    shipped = SimStore.write_viewers

    async def write_viewers(self: SimStore, writes: Sequence[ViewerWrite]) -> list[WriteResult]:
        return [Written() if isinstance(r, Stale) else r for r in await shipped(self, writes)]

    def compute(rewriter: Any, todo: Any, computed_at_ms: int) -> Any:
        capped = [(j, s._replace(activation=min(s.activation, rewriter.activation))) for j, s in todo]
        return shipped_compute(rewriter, capped, computed_at_ms)

    shipped_compute = viewers.rewrite._compute
    return [(SimStore, "write_viewers", write_viewers), (viewers.rewrite, "_compute", compute)]


# The order of effects


@bug()
def the_marker_goes_before_the_hashes() -> Patches:
    shipped = updater.consumer.rewrite_viewers

    async def process(
        self: Updater, checkpoint: Checkpoint, letters: Any, fetched: Any, at_ms: float, turn: Turn
    ) -> None:
        await turn.to_write()
        decided = updater.consumer.plan(fetched, checkpoint.positions, self._codec.decode_event, self.limits)
        turn.decided(decided.positions)
        turn.computed({})
        await letters.send(decided.dead_letters)
        supposed = [RewriteResult(Outcome.APPLIED)] * len(decided.jobs)
        await checkpoint.advance(decided.partitions, updater.consumer.tallies(decided, supposed))
        await shipped(
            self.store,
            decided.jobs,
            self.swap.rewriter,
            now_ms=self.now_ms,
            draw_token=updater.consumer.draw_token,
            worker=self._rewriting,
        )

    return [(Updater, "_process", process)]


@bug()
def commits_run_ahead_of_the_marker() -> Patches:
    shipped = updater.consumer.rewrite_viewers

    async def rewrite(store: Any, jobs: Any, *arguments: Any, **named: Any) -> Any:
        process = named["draw_token"].__globals__["asyncio"].get_running_loop().process
        offsets = {
            updater.checkpoint.TopicPartition("playback", p): position
            for p, position in process.consumer.positions.items()
        }
        with contextlib.suppress(updater.checkpoint.KafkaError):
            await process.consumer.commit(offsets)
        return await shipped(store, jobs, *arguments, **named)

    return [(updater.consumer, "rewrite_viewers", rewrite)]


@bug()
def an_offset_is_passed_before_its_dead_letter_is_acknowledged() -> Patches:
    async def send(self: DeadLetterQueue, letters: Sequence[Any]) -> None:
        for letter in letters:
            ack = await self._producer.send(
                "playback.dlq",
                key=letter.record.key if letter.quotable else None,
                value=letter.record.value if letter.quotable else None,
                headers=updater.deadletter.headers(letter, "playback"),
            )
            ack.add_done_callback(lambda done: done.cancelled() or done.exception())

    return [(DeadLetterQueue, "send", send)]


@bug()
def poison_is_dropped_without_a_dead_letter() -> Patches:
    async def send(self: DeadLetterQueue, letters: Sequence[Any]) -> None:
        return None

    return [(DeadLetterQueue, "send", send)]


@bug()
def the_marker_goes_to_the_highest_offset_ever_seen() -> Patches:
    shipped = updater.consumer.plan
    highest: dict[tuple[int, int], int] = {}

    def plan(batch_: Any, positions: Any, decode: Any, limits: Any) -> Plan:
        decided = shipped(batch_, positions, decode, limits)
        for p, todo in decided.partitions.items():
            key = (id(decode.__self__._events), p)
            seen = highest[key] = max(highest.get(key, 0), todo.next_offset)
            todo.absent += max(0, seen - max(todo.next_offset, todo.uncounted_from))
            todo.next_offset = seen
        return decided

    return [(updater.consumer, "plan", plan)]


@bug()
def the_last_record_of_a_batch_is_dropped() -> Patches:
    shipped = updater.consumer.plan

    def plan(batch_: Mapping[int, Sequence[Any]], *rest: Any) -> Plan:
        decided = shipped(batch_, *rest)
        cut = shipped({p: r[:-1] if len(r) > 1 else r for p, r in batch_.items()}, *rest)
        for p, todo in cut.partitions.items():
            end = decided.partitions[p].next_offset
            todo.absent += max(0, end - max(todo.next_offset, todo.uncounted_from))
            todo.next_offset = end
        return cut

    return [(updater.consumer, "plan", plan)]


@bug()
def offsets_below_the_marker_are_counted_again() -> Patches:
    positions = property(
        lambda self: {
            p: updater.checkpoint.Position(at.position, min(at.position, at.uncounted_from))
            for p, at in self.progress.items()
        }
    )
    return [(Checkpoint, "positions", positions)]


@bug()
def gaps_left_by_retention_are_not_declared() -> Patches:
    async def declare(self: Checkpoint, partition: int, at: Progress, absent: int) -> None:
        return None

    return [(Checkpoint, "_declare_gap", declare)]


@bug()
def records_that_do_not_exist_are_not_counted() -> Patches:
    shipped = updater.consumer.plan

    def plan(*arguments: Any) -> Plan:
        decided = shipped(*arguments)
        for todo in decided.partitions.values():
            todo.absent = 0
        return decided

    return [(updater.consumer, "plan", plan)]


@bug()
def a_rewind_keeps_what_was_fetched_before() -> Patches:
    shipped = Updater._fetch

    async def fetch(self: Updater, consumer: Any) -> Any:
        ahead = self.__dict__.get("ahead")
        if not ahead:
            ahead = await shipped(self, consumer)
        self.__dict__["ahead"] = await shipped(self, consumer)
        return ahead

    return [(Updater, "_fetch", fetch)]


@bug()
def a_failed_batch_is_not_done_again() -> Patches:
    def again(self: Updater, cause: str, error: Exception) -> None:
        return None

    return [(Updater, "_again", again)]


# Where to resume


def _resume_with(change: Callable[..., Start]) -> Patches:
    shipped = updater.checkpoint.resume_point
    return [(updater.checkpoint, "resume_point", lambda **asked: change(shipped, **asked))]


@bug()
def it_resumes_at_the_commit() -> Patches:
    def resume(shipped: Any, *, committed: int | None, **asked: Any) -> Start:
        start: Start = shipped(committed=committed, **asked)
        return start if committed is None else dataclasses.replace(start, position=max(committed, asked["beginning"]))

    return _resume_with(resume)


@bug()
def it_resumes_at_the_higher_of_commit_and_marker() -> Patches:
    def resume(shipped: Any, *, committed: int | None, marker: Marker | None, **asked: Any) -> Start:
        start: Start = shipped(committed=committed, marker=marker, **asked)
        both = max(committed or 0, marker.next_offset) if marker is not None else start.position
        return dataclasses.replace(start, position=max(both, asked["beginning"]))

    return _resume_with(resume)


@bug()
def without_a_marker_it_starts_at_the_commit() -> Patches:
    def resume(shipped: Any, *, committed: int | None, marker: Marker | None, **asked: Any) -> Start:
        start: Start = shipped(committed=committed, marker=marker, **asked)
        if marker is not None or committed is None:
            return start
        at = max(committed, asked["beginning"])
        return Start(at, at, 0)

    return _resume_with(resume)


@bug()
def it_resumes_one_offset_late() -> Patches:
    def resume(shipped: Any, **asked: Any) -> Start:
        start: Start = shipped(**asked)
        return dataclasses.replace(start, position=min(start.position + 1, asked["end"]))

    return _resume_with(resume)


@bug()
def added_partitions_start_at_their_end() -> Patches:
    def resume(shipped: Any, *, committed: int | None, marker: Marker | None, **asked: Any) -> Start:
        if marker is None and committed is None and asked["seeded"] is None:
            return Start(asked["end"], asked["end"], 0)
        start: Start = shipped(committed=committed, marker=marker, **asked)
        return start

    return _resume_with(resume)


@bug()
def what_an_empty_store_cannot_read_any_more_is_not_declared() -> Patches:
    def resume(shipped: Any, *, marker: Marker | None, seeded: int | None, **asked: Any) -> Start:
        start: Start = shipped(marker=marker, seeded=seeded, **asked)
        return Start(start.position, start.position, 0) if marker is None and seeded is None else start

    return _resume_with(resume)


@bug(5000)
def the_listener_is_believed_to_hear_of_an_assignment_at_once() -> Patches:
    return [(updater.consumer, "assignment_of", lambda consumer: None)]


# Which log it is


@bug()
def a_topic_made_anew_is_not_looked_for() -> Patches:
    async def check_log(self: Checkpoint, anchors: Any) -> None:
        return None

    return [(Checkpoint, "check_log", check_log)]


@bug()
def only_the_time_of_a_record_is_compared() -> Patches:
    shipped = runtime.anchors._read_back

    async def read_back(reader: Any, anchors: Any, settings: Any) -> Any:
        found = await shipped(reader, anchors, settings)
        return {tp: dataclasses.replace(one, digest=anchors[tp].digest) for tp, one in found.items()}

    return [(runtime.anchors, "_read_back", read_back)]


@bug()
def an_offset_without_a_record_is_taken_for_another_log() -> Patches:
    shipped = runtime.anchors._read_back

    async def read_back(reader: Any, anchors: Any, settings: Any) -> Any:
        found = await shipped(reader, anchors, settings)
        return {tp: found.get(tp, Anchor(anchor.offset, 0, "")) for tp, anchor in anchors.items()}

    return [(runtime.anchors, "_read_back", read_back)]


@bug()
def another_log_is_taken_for_a_broker_that_is_away() -> Patches:
    shipped = updater.checkpoint.check_anchors

    async def check_anchors(*arguments: Any) -> None:
        try:
            await shipped(*arguments)
        except HaltError as halt:
            raise KafkaUnavailable(str(halt)) from halt

    return [(updater.checkpoint, "check_anchors", check_anchors)]


@bug()
def the_anchor_is_written_after_the_marker() -> Patches:
    shipped = Checkpoint._write

    async def write(self: Checkpoint, progress: Any, moves: Any) -> None:
        await shipped(self, progress, {p: dataclasses.replace(move, anchor=None) for p, move in moves.items()})
        for p, move in moves.items():
            at = progress[p]
            at.marker = dataclasses.replace(at.marker, anchor=move.anchor or at.marker.anchor)
            self._store.cluster.primary.markers[p] = at.marker

    return [(Checkpoint, "_write", write)]


@bug()
def the_anchor_is_of_the_first_record_of_a_batch() -> Patches:
    def plan(batch_: Any, *rest: Any) -> Plan:
        decided = shipped(batch_, *rest)
        for p, todo in decided.partitions.items():
            todo.anchor = todo.anchor and updater.pipeline.anchor_of(batch_[p][0])
        return decided

    shipped = updater.consumer.plan
    return [(updater.consumer, "plan", plan)]


@bug()
def private_records_are_anchored() -> Patches:
    def plan(batch_: Any, *rest: Any) -> Plan:
        decided = shipped(batch_, *rest)
        for p, todo in decided.partitions.items():
            todo.anchor = updater.pipeline.anchor_of(batch_[p][-1])
        return decided

    shipped = updater.consumer.plan
    return [(updater.consumer, "plan", plan)]


@bug()
def a_batch_without_an_anchor_forgets_the_last_one() -> Patches:
    shipped = Marker.moved

    def moved(self: Marker, next_offset: int, tally: Any, anchor: Anchor | None) -> Marker:
        return dataclasses.replace(shipped(self, next_offset, tally, anchor), anchor=anchor)

    return [(Marker, "moved", moved)]


# Which server answers


@bug()
def a_changed_server_is_ignored() -> Patches:
    async def write_markers(self: MemoryStore, writes: Sequence[MarkerWrite]) -> None:
        self._identity = self.server.identity
        await shipped(self, writes)

    shipped = MemoryStore.write_markers
    return [(MemoryStore, "_check", lambda self: None), (MemoryStore, "write_markers", write_markers)]


@bug(1500)
def the_marker_does_not_look_at_the_server() -> Patches:
    async def write_markers(self: MemoryStore, writes: Sequence[MarkerWrite]) -> None:
        self._identity = self.server.identity
        await shipped(self, writes)

    shipped = MemoryStore.write_markers
    return [(MemoryStore, "write_markers", write_markers)]


@bug()
def the_marker_does_not_look_at_what_was_expected() -> Patches:
    async def write_markers(self: MemoryStore, writes: Sequence[MarkerWrite]) -> None:
        found = {w.partition: self.server.markers.get(w.partition) for w in writes}
        await shipped(
            self,
            [
                dataclasses.replace(w, expected_next=None if m is None else m.next_offset)
                for w in writes
                for m in [found[w.partition]]
            ],
        )

    shipped = MemoryStore.write_markers
    return [(MemoryStore, "write_markers", write_markers)]


@bug()
def an_idle_stream_does_not_look_at_the_server() -> Patches:
    async def check_identity(self: SimStore) -> None:
        return None

    return [(SimStore, "check_identity", check_identity)]


@bug()
def states_are_cached_over_a_rewind() -> Patches:
    shipped_read, shipped_write = SimStore.read_viewers, SimStore.write_viewers

    def cache(self: SimStore) -> dict[str, StoredViewer]:
        return self.__dict__.setdefault("cache", {})  # type: ignore[no-any-return]

    async def read_viewers(self: SimStore, names: Sequence[str]) -> list[StoredViewer]:
        missing = [name for name in names if name not in cache(self)]
        cache(self).update(zip(missing, await shipped_read(self, missing), strict=True))
        return [cache(self)[name] for name in names]

    async def write_viewers(self: SimStore, writes: Sequence[ViewerWrite]) -> list[WriteResult]:
        results = await shipped_write(self, writes)
        for write, result in zip(writes, results, strict=True):
            if isinstance(result, Written):
                cache(self)[write.viewer] = StoredViewer(write.new_token, write.activation, write.state)
            elif isinstance(result, Conflict):
                cache(self)[write.viewer] = result.stored
        return results

    return [(SimStore, "read_viewers", read_viewers), (SimStore, "write_viewers", write_viewers)]


@bug(1500)
def a_rebuild_is_recorded_in_whichever_server_answers() -> Patches:
    async def write_seeded(self: MemoryStore, cutoffs: Mapping[int, int]) -> None:
        self.server.seeded.update(cutoffs)

    async def write_rebuilt(self: MemoryStore, activation: int) -> None:
        self.server.rebuilt.add(activation)

    return [(MemoryStore, "write_seeded", write_seeded), (MemoryStore, "write_rebuilt", write_rebuilt)]


@bug()
def a_rebuild_is_recorded_before_it_is_done() -> Patches:
    shipped = batch.rebuild.Rebuild.run

    async def run(self: Any, facts: Any = None, *, seeded: Mapping[int, int] | None = None) -> Any:
        if seeded is not None:
            await self._store.write_seeded(seeded)
        return await shipped(self, facts, seeded=seeded)

    return [(batch.rebuild.Rebuild, "run", run)]


# Merging


@bug()
def erasures_are_not_obeyed() -> Patches:
    shipped = viewers.state._join_plays
    return [(viewers.state, "_join_plays", lambda states, erased_s: shipped(states, -1))]


@bug()
def the_erased_second_is_off_by_one() -> Patches:
    shipped = viewers.state._join_plays
    return [(viewers.state, "_join_plays", lambda states, erased_s: shipped(states, erased_s - 1))]


@bug()
def an_erasure_may_be_dated_after_its_record() -> Patches:
    shipped = viewers.state.state_of

    def state_of(event: Any, *, timestamp_ms: int) -> ViewerState:
        return shipped(event, timestamp_ms=timestamp_ms + 600_000)

    return [(updater.pipeline, "state_of", state_of)]


def _join_with(join: Callable[[Play, Play], tuple[int, int]]) -> Patches:
    def joined(states: Sequence[ViewerState], erased_s: int) -> dict[Any, Play]:
        plays: dict[Any, Play] = {}
        for play in itertools.chain.from_iterable(state.plays for state in states):
            if play.started_at_ms >= (erased_s + 1) * 1000:
                known = plays.get(play[:3])
                plays[play[:3]] = play if known is None else Play(*play[:3], *join(known, play))
        return plays

    return [(viewers.state, "_join_plays", joined)]


@bug()
def flags_are_not_joined() -> Patches:
    return _join_with(lambda known, new: (max(known.share, new.share), new.flags))


@bug()
def the_last_share_wins() -> Patches:
    return _join_with(lambda known, new: (new.share, known.flags | new.flags))


@bug()
def plays_are_cut_by_when_they_were_last_seen() -> Patches:
    def cut(plays: dict[Any, Play], limits: Any) -> tuple[Play, ...]:
        return tuple(sorted(list(plays.values())[-limits.max_plays :], reverse=True))

    return [(viewers.state, "_cut_plays", cut)]


@bug()
def each_side_is_cut_before_merging() -> Patches:
    shipped = viewers.state._join_plays

    def joined(states: Sequence[ViewerState], erased_s: int) -> dict[Any, Play]:
        newest_each = [dataclasses.replace(state, plays=state.plays[:2]) for state in states]
        return shipped(tuple(newest_each), erased_s)

    return [(viewers.state, "_join_plays", joined)]


@bug()
def cut_plays_are_not_remembered_as_seen() -> Patches:
    shipped = viewers.state._join_seen
    return [(viewers.state, "_join_seen", lambda states, erased_s, cut, limits: shipped(states, erased_s, (), limits))]


@bug()
def seen_leaves_out_items_with_a_kept_play() -> Patches:
    shipped = viewers.state.merge

    def merge(states: Any, limits: Any) -> ViewerState:
        merged = shipped(states, limits)
        kept = {viewers.state.item_digest(play.item_id) for play in merged.plays}
        return dataclasses.replace(merged, seen=tuple(pair for pair in merged.seen if pair[0] not in kept))

    return [(viewers.rewriter, "merge", merge), (updater.pipeline, "merge", merge)]


@bug()
def the_last_register_to_arrive_wins() -> Patches:
    shipped = viewers.state._join_registers

    def joined(states: Sequence[ViewerState], erased_s: int, limits: Any) -> Any:
        last = {(int(r.kind), r.subject): r for state in states for r in state.registers}
        return shipped((ViewerState(registers=tuple(last.values())),), erased_s, limits)

    return [(viewers.state, "_join_registers", joined)]


# Privacy, generations


@bug()
def private_plays_are_applied() -> Patches:
    shipped = updater.pipeline._decide

    def decide(record: Any, decode: Any) -> Any:
        decided = shipped(record, decode)
        if decided is None:
            with contextlib.suppress(Exception):
                return decode(record.value)
        return decided

    return [(updater.pipeline, "_decide", decide)]


@bug()
def what_may_be_private_is_quoted() -> Patches:
    shipped = updater.pipeline._decide

    def decide(record: Any, decode: Any) -> Any:
        decided = shipped(record, decode)
        if isinstance(decided, updater.pipeline.DeadLetter):
            return dataclasses.replace(decided, quotable=True)
        return decided

    return [(updater.pipeline, "_decide", decide)]


@bug()
def a_row_of_the_old_generation_is_kept_when_nothing_else_changes() -> Patches:
    def compute(rewriter: Any, todo: Any, computed_at_ms: int) -> Any:
        same = [(j, s._replace(activation=rewriter.activation) if s.token else s) for j, s in todo]
        return shipped(rewriter, same, computed_at_ms)

    shipped = viewers.rewrite._compute
    return [(viewers.rewrite, "_compute", compute)]


@bug()
def a_row_mixes_two_generations() -> Patches:
    shipped = SimRewriter._tiny
    first: list[Any] = []

    def tiny(self: SimRewriter, state: ViewerState) -> Any:
        if self.generation is not None:
            first.append(self.generation)
            self.generation = first[0]
        return shipped(self, state)

    return [(SimRewriter, "_tiny", tiny)]


FIRST_SEEN = {
    "the_store_ignores_the_token": 22,
    "the_token_is_a_counter": 127,
    "a_conflict_counts_as_written": 127,
    "after_a_conflict_the_same_is_written_again": 7,
    "gaps_left_by_retention_are_not_declared": 22,
    "the_listener_is_believed_to_hear_of_an_assignment_at_once": 8835,
    "only_the_time_of_a_record_is_compared": 31,
    "an_offset_without_a_record_is_taken_for_another_log": 54,
    "a_changed_server_is_ignored": 15,
    "the_marker_does_not_look_at_the_server": 76,
    "an_idle_stream_does_not_look_at_the_server": 16,
    "a_rebuild_is_recorded_in_whichever_server_answers": 562,
    "a_rebuild_is_recorded_before_it_is_done": 17,
    "a_row_mixes_two_generations": 15,
}
"""The first seed that sees a bug, where that is late: the tests begin there. A changed simulation makes them slower, not wrong."""


def find(name: str, first_seed: int = 1) -> tuple[int, History] | None:
    """As `special.find`."""
    return special.find(run_history, BUGS[name].patches, within=BUGS[name].within, first_seed=first_seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--verbose", action="store_true", help="say what was seen")
    asked = parser.parse_args()
    missed = 0
    for name in asked.names or BUGS:
        found = find(name)
        if found is None:
            missed += 1
            print(f"{name:62} NOT SEEN in {BUGS[name].within} histories", flush=True)
            continue
        count, history = found
        print(f"{name:62} {history.invariant:6} after {count:4}", flush=True)
        if asked.verbose:
            print("    " + str(history.violation)[:200])
    print(f"{len(asked.names or BUGS) - missed} seen, {missed} not", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
