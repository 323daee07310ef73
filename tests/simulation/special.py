"""Histories of one thing amid everything else that may happen, and the bugs that they must see: what is the same for each such thing."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

from tests.simulation.actors import stand_ins
from tests.simulation.run import History

Patches = Sequence[tuple[object, str, object]]
"""(where, attribute, what stands there instead) of a bug."""
Bug = Callable[[], Patches]
RunHistory = Callable[[int, Callable[[str], None] | None], History]
"""A seed, and what is told of each step."""
WITHIN = 400
"""Histories in which each bug must be seen."""


def find(run: RunHistory, bug: Bug, *, within: int = WITHIN, first_seed: int = 1) -> tuple[int, History] | None:
    """The first history that sees a bug: after how many histories, and what it saw. None if none does."""
    with stand_ins():
        for count in range(1, within + 1):
            with patched(bug()):
                history = run(first_seed + count - 1, None)
            if history.violation is not None:
                return count, history
    return None


@contextlib.contextmanager
def patched(patches: Patches) -> Iterator[None]:
    """With one bug."""
    with contextlib.ExitStack() as stack:
        for target, attribute, value in patches:
            stack.enter_context(mock.patch.object(target, attribute, value))
        yield


def main(description: str | None, run: RunHistory, bugs: Sequence[Bug]) -> int:
    """The command line of such a module; its exit status."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--histories", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trace", action="store_true", help="print what happens")
    parser.add_argument("--bugs", action="store_true", help="say which seeded bug is seen when, instead")
    asked = parser.parse_args()
    if asked.bugs:
        found = {bug.__name__: find(run, bug) for bug in bugs}
        for name, seen in found.items():
            said = (
                f"not seen in {WITHIN}" if seen is None else f"{seen[1].invariant} after {seen[0]}: {seen[1].violation}"
            )
            print(name, said)
        return int(None in found.values())
    failed = 0
    with stand_ins():
        for seed in range(asked.seed, asked.seed + asked.histories):
            history = run(seed, print if asked.trace else None)
            if history.violation is not None:
                failed += 1
                print(f"seed {seed}: {history.violation}")
    print(f"{asked.histories} histories, {failed} violations")
    return int(failed > 0)
