"""The updater or the aggregator with fuses: it gets a signal at a named moment between two effects. Run as
`python -m sandbox.chaos.wired updater`, or `trends`.

The shipped code knows nothing of it: methods are wrapped here before the updater starts. A fuse is a file, named by
`CHAOS_FUSE`, that says `point|n|KILL`: the signal comes when the point is reached for the n-th time. `POINTS`, `TRENDS_POINTS`: in the
order of effects.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from viewers.store import MarkerWrite, ViewerWrite, WriteResult, Written
from viewers.trend_store import CheckpointWrite, Pointer

POINTS = ("computed", "dead letters", "some hashes", "hashes", "marker", "about to commit", "commit")
TRENDS_POINTS = ("counted", "checkpoint", "snapshot", "default rows")


class Fuse:
    """Burns when its point has been reached often enough."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hits = 0

    def reached(self, point: str) -> None:
        """Die or freeze here, if this is the moment."""
        try:
            wanted, count, word = self._path.read_text().split("|")
        except (OSError, ValueError):
            return
        if wanted != point:
            return
        self._hits += 1
        if self._hits >= int(count):
            self._hits = 0
            self._path.unlink()
            os.kill(os.getpid(), signal.Signals[f"SIG{word}"])


def wire(fuse: Fuse) -> None:
    """Put the fuse between every two effects."""
    from updater.checkpoint import Checkpoint
    from updater.deadletter import DeadLetterQueue
    from viewers.redis_store import RedisStore

    send, commit = DeadLetterQueue.send, Checkpoint.commit
    write_viewers, write_markers = RedisStore.write_viewers, RedisStore.write_markers

    async def wired_send(self: DeadLetterQueue, letters: Sequence[Any]) -> None:
        await send(self, letters)
        if letters:
            fuse.reached("dead letters")

    async def wired_viewers(self: RedisStore, writes: Sequence[ViewerWrite]) -> list[WriteResult]:
        fuse.reached("computed")
        half = len(writes) // 2
        results = await write_viewers(self, writes[:half]) if half else []
        if half:
            fuse.reached("some hashes")
        results += await write_viewers(self, writes[half:])
        fuse.reached("hashes")
        return results

    async def wired_markers(self: RedisStore, writes: Sequence[MarkerWrite]) -> None:
        await write_markers(self, writes)
        if writes:
            fuse.reached("marker")

    async def wired_commit(self: Checkpoint) -> None:
        fuse.reached("about to commit")
        await commit(self)
        fuse.reached("commit")

    DeadLetterQueue.send = wired_send  # type: ignore[method-assign]
    Checkpoint.commit = wired_commit  # type: ignore[method-assign]
    RedisStore.write_viewers = wired_viewers  # type: ignore[method-assign]
    RedisStore.write_markers = wired_markers  # type: ignore[method-assign]


def keep_snapshot(name: str, data: bytes) -> None:
    """Leave every snapshot where the harness finds it, whatever becomes of the store."""
    path = Path(os.environ["CHAOS_SNAPSHOTS"]) / name
    if not path.exists():
        draft = path.with_suffix(".draft")
        draft.write_bytes(data)
        draft.replace(path)


def wire_trends(fuse: Fuse) -> None:
    """The same for the aggregator."""
    from viewers.redis_trends import RedisTrends

    write_checkpoints, publish, write_default_rows = (
        RedisTrends.write_checkpoints,
        RedisTrends.publish,
        RedisTrends.write_default_rows,
    )

    async def wired_checkpoints(self: RedisTrends, generation_id: str, writes: Sequence[CheckpointWrite]) -> None:
        if writes:
            fuse.reached("counted")
        await write_checkpoints(self, generation_id, writes)
        if writes:
            fuse.reached("checkpoint")

    async def wired_publish(
        self: RedisTrends, generation_id: str, instance: str, pointer: Pointer, data: bytes
    ) -> bool:
        keep_snapshot(pointer.name, data)
        published = await publish(self, generation_id, instance, pointer, data)
        fuse.reached("snapshot")
        return published

    async def wired_rows(self: RedisTrends, *arguments: Any) -> bool:
        written = await write_default_rows(self, *arguments)
        fuse.reached("default rows")
        return written

    RedisTrends.write_checkpoints = wired_checkpoints  # type: ignore[method-assign]
    RedisTrends.publish = wired_publish  # type: ignore[method-assign]
    RedisTrends.write_default_rows = wired_rows  # type: ignore[method-assign,assignment]


def no_compare_and_set() -> None:
    """A bug to be seen: writes go over whatever somebody else has written meanwhile."""
    from viewers.redis_store import RedisStore

    write_viewers = RedisStore.write_viewers

    async def blindly(self: RedisStore, writes: Sequence[ViewerWrite]) -> list[WriteResult]:
        stored = await self.read_viewers([write.viewer for write in writes])
        return await write_viewers(
            self, [write._replace(expected_token=one.token) for write, one in zip(writes, stored, strict=True)]
        )

    RedisStore.write_viewers = blindly  # type: ignore[method-assign]


def marker_before_hashes() -> None:
    """A bug to be seen: the marker moves first, the hashes follow."""
    from viewers.redis_store import RedisStore

    write_viewers, write_markers = RedisStore.write_viewers, RedisStore.write_markers
    held: list[ViewerWrite] = []

    async def hold(self: RedisStore, writes: Sequence[ViewerWrite]) -> list[WriteResult]:
        held.extend(writes)
        return [Written() for _ in writes]

    async def marker_first(self: RedisStore, writes: Sequence[MarkerWrite]) -> None:
        await write_markers(self, writes)
        if writes:
            await asyncio.sleep(0.2)  # long enough that a kill under the stream falls into it
        await write_viewers(self, held)
        held.clear()

    RedisStore.write_viewers = hold  # type: ignore[method-assign]
    RedisStore.write_markers = marker_first  # type: ignore[method-assign]


def start_at_committed() -> None:
    """A bug to be seen: Kafka's committed offset decides where to start, whatever the store holds."""
    from updater import checkpoint

    resume_point = checkpoint.resume_point

    def at_committed(**known: Any) -> Any:
        start = resume_point(**known)
        committed = known["committed"]
        return start if committed is None else replace(start, position=max(committed, known["beginning"]))

    checkpoint.resume_point = at_committed


def damage_accepted() -> None:
    """A bug to be seen: a generation's files are taken as they are."""
    from embeddings import files

    def unchecked(opened: Any, manifest: Any, name: str) -> Any:
        return opened.read(f"{manifest.generation_id}/{name}", manifest.files[name].size_bytes)

    files.checked_bytes = unchecked


def plays_forgotten() -> None:
    """A bug to be seen: checkpoints hold counts and offset, but not which plays have counted."""
    from viewers.redis_trends import RedisTrends

    write_checkpoints = RedisTrends.write_checkpoints

    async def without_plays(self: RedisTrends, generation_id: str, writes: Sequence[CheckpointWrite]) -> None:
        kept = [{name: value for name, value in write.fields.items() if name[0] != "r"} for write in writes]
        forgetful = [write._replace(fields=fields) for write, fields in zip(writes, kept, strict=True)]
        await write_checkpoints(self, generation_id, forgetful)

    RedisTrends.write_checkpoints = without_plays  # type: ignore[method-assign]


BUGS = {
    "no compare-and-set": no_compare_and_set,
    "marker before the hashes": marker_before_hashes,
    "start at the committed offset": start_at_committed,
    "damage accepted": damage_accepted,
    "plays forgotten": plays_forgotten,
}
"""Switched on by `CHAOS_BUG`, to show that the harness sees them."""


def main() -> None:
    """The verb `updater` or `trends`, wired; same messages and exit statuses."""
    import nearline
    from runtime.console import read_settings
    from trends.service import run_trends
    from updater.service import run_updater

    if bug := os.environ.get("CHAOS_BUG"):
        BUGS[bug]()
    fuse = Fuse(Path(os.environ["CHAOS_FUSE"]))
    if sys.argv[1:] == ["trends"]:
        wire_trends(fuse)
        nearline.run_verb(lambda: asyncio.run(run_trends(read_settings())))
    else:
        wire(fuse)
        nearline.run_verb(lambda: asyncio.run(run_updater(read_settings())))


if __name__ == "__main__":
    main()
