"""When a night folds every play of the lake into the viewers' states, though nobody asked for it.

What the lake gives back is not in the log, so no replay brings it back: a store that lost it must be given it again. Folding in is
a join, so doing it once too often changes nothing.

1. What is to be folded in is noted in the lake: `seeded.json`
2. It is folded in, and the store records it (`batch/rebuild.py`)

A crash after 1 leaves a note that the store does not match: the next night folds in again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from batch.lake import Lake, write_atomically
from contracts.errors import DataError
from viewers.store import Marker

NOTE = "seeded.json"
ASKED = "asked for (--seed)"


@dataclass(frozen=True, slots=True)
class Seeding:
    """What the lake gave to a store. `stream`: `topic@epoch`; `cutoffs`: partition → first offset that was not in the lake."""

    stream: str
    cutoffs: Mapping[int, int]


def read_note(lake: Lake, stream: str) -> Seeding | None:
    """The newest seeding from this lake, ended or not; None if there was none of this stream. Errors: `DataError`."""
    path = lake.path / NOTE
    try:
        content = json.loads(path.read_text())
        noted = Seeding(content["stream"], {int(p): int(offset) for p, offset in content["cutoffs"].items()})
        return noted if noted.stream == stream else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: no note of ours ({error}); remove it and run: nearline nightly --seed") from error


def write_note(lake: Lake, seeding: Seeding) -> None:
    """Remember that the store is to have this, durably."""
    write_atomically(lake.path / NOTE, json.dumps(asdict(seeding)).encode())


def why_seed(
    noted: Seeding | None, seeded: Mapping[int, int], markers: Mapping[int, Marker | None], older_logs: Sequence[str]
) -> str:
    """Why the store needs the lake's plays (again); empty if it does not. Pure.

    `noted`: the newest seeding of this stream. `seeded`: what the store says it was given of it. `older_logs`: the other streams of
    which the lake has a copy: nothing but the lake can bring their plays back. Not `absent` but `gap_end` tells of losses: control
    records are absent too.
    """
    if older_logs and not seeded:
        return f"the lake alone still has the plays of {', '.join(older_logs)}, and the store does not say that it has them"
    if noted is not None:
        lost = sorted(p for p, offset in noted.cutoffs.items() if seeded.get(p, 0) < offset)
        if lost:
            return f"the store lost what the lake had given it of partitions {_list(lost)}"
    gaps = sorted(p for p, marker in markers.items() if marker is not None and marker.gap_end > seeded.get(p, 0))
    if gaps:
        return f"retention deleted records of partitions {_list(gaps)} before an updater read them"
    return ""


def _list(partitions: list[int]) -> str:
    shown = ", ".join(map(str, partitions[:10]))
    return shown if len(partitions) <= 10 else f"{shown} and {len(partitions) - 10} more"
