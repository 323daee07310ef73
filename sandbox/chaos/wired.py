"""The updater with fuses: killed by SIGKILL at a named moment between two effects. Run as `python -m sandbox.chaos.wired`.

The shipped code knows nothing of it: methods are wrapped here before the updater starts. A fuse is a file, named by
`CHAOS_FUSE`, that says `point|n`: the process ends when the point is reached for the n-th time. Points, in the order of effects:
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

POINTS = ("computed", "dead letters", "some hashes", "hashes", "marker", "about to commit", "commit")


class Fuse:
    """Burns when its point has been reached often enough."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hits = 0

    def reached(self, point: str) -> None:
        """Die here, if this is the moment."""
        try:
            wanted, count = self._path.read_text().split("|")
        except (OSError, ValueError):
            return
        if wanted != point:
            return
        self._hits += 1
        if self._hits >= int(count):
            self._path.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


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

    async def wired_viewers(self: RedisStore, writes: Sequence[Any]) -> list[Any]:
        fuse.reached("computed")
        half = len(writes) // 2
        results = await write_viewers(self, writes[:half]) if half else []
        if half:
            fuse.reached("some hashes")
        results += await write_viewers(self, writes[half:])
        fuse.reached("hashes")
        return results

    async def wired_markers(self: RedisStore, writes: Sequence[Any]) -> None:
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


def main() -> None:
    """The verb `updater`, wired; same messages and exit statuses."""
    import nearline
    from runtime.console import read_settings
    from updater.service import run_updater

    wire(Fuse(Path(os.environ["CHAOS_FUSE"])))
    nearline.run_verb(lambda: asyncio.run(run_updater(read_settings())))


if __name__ == "__main__":
    main()
