"""Plans of copies: which offsets each copy covers, written down before it is made. `batch/copy.py` carries them out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from batch.lake import SCHEMAS, Lake, write_atomically
from contracts.anchors import Anchor
from contracts.errors import DataError, HaltError
from runtime.anchors import remedy
from runtime.settings import Settings

CHUNK_RECORDS = 100_000
"""Records in a chunk at most: bounds memory to some 200 MB. Part of a plan, so that a repeat cuts at the same offsets."""


@dataclass(frozen=True, slots=True)
class Range:
    """Offsets `from_offset` ≤ o < `to_offset` of a partition."""

    kind: str  # events, impressions, catalogue
    topic: str
    partition: int
    from_offset: int
    to_offset: int


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """What one copy covers. `stream`: `topic@epoch` of the events. `chunk_records`: where chunks are cut."""

    number: int
    stream: str
    epoch: int
    chunk_records: int
    ranges: tuple[Range, ...]

    @property
    def cutoffs(self) -> dict[int, int]:
        """Partition → first offset of the playback topic that is not in the lake after this copy."""
        return {one.partition: one.to_offset for one in self.ranges if one.kind == "events"}

    @property
    def records(self) -> int:
        return sum(one.to_offset - one.from_offset for one in self.ranges)

    def chunks(self) -> list[tuple[str, tuple[Range, ...]]]:
        """Kind and offset ranges of each chunk, in order; the same for the same plan, always."""
        found: list[tuple[str, tuple[Range, ...]]] = []
        for kind in SCHEMAS:
            ranges = [one for one in self.ranges if one.kind == kind and one.to_offset > one.from_offset]
            step = max(1, self.chunk_records // max(1, len(ranges)))
            longest = max((one.to_offset - one.from_offset for one in ranges), default=0)
            for start in range(0, longest, step):
                cut = [
                    Range(kind, one.topic, one.partition, one.from_offset + start, min(one.from_offset + start + step, one.to_offset))
                    for one in ranges
                    if one.from_offset + start < one.to_offset
                ]  # fmt: skip
                found.append((kind, tuple(cut)))
        return found


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What a copy did. `written` + `private` + `invalid` + `erased` + `erasures` + `lost` + `absent` = the plan's offsets.

    `lost`: deleted by retention, or gone with their topic, before they could be copied. `absent`: control records, and what
    compaction took.
    """

    plan: int
    stream: str
    cutoffs: Mapping[int, int]
    written: Mapping[str, int] = field(default_factory=dict)  # kind → rows
    private: int = 0
    invalid: int = 0
    erased: int = 0
    erasures: int = 0
    lost: int = 0
    absent: int = 0


class Plans:
    """The plan files of a lake."""

    def __init__(self, lake: Lake) -> None:
        self._folder = lake.path / "plans"

    def last(self) -> CopyPlan | None:
        """The newest plan, done or not. Errors: `DataError` if its file is odd."""
        files = self._files()
        return self._read(files[-1]) if files else None

    def streams(self) -> set[str]:
        """Every stream of whose events there is a copy. Errors: `DataError`."""
        return {self._read(path).stream for path in self._files()}

    def report(self, plan: CopyPlan) -> CopyReport | None:
        """The report of a plan that is done; None if it is not."""
        try:
            content = json.loads((self._folder / f"{plan.number:06d}.done.json").read_text())
        except FileNotFoundError:
            return None
        return CopyReport(**{**content, "cutoffs": {int(p): offset for p, offset in content["cutoffs"].items()}})

    def write(self, plan: CopyPlan) -> None:
        """Write a plan down, durably."""
        write_atomically(self._folder / f"{plan.number:06d}.json", json.dumps(asdict(plan), indent=1).encode())

    def finish(self, report: CopyReport) -> None:
        """Mark a plan done."""
        write_atomically(self._folder / f"{report.plan:06d}.done.json", json.dumps(asdict(report), indent=1).encode())

    def finished_chunks(self, plan: CopyPlan) -> dict[int, Counter[str]]:
        """Chunk → its counts. A torn last line, left by a crash, is a chunk that is not finished."""
        path = self._folder / f"{plan.number:06d}.chunks.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return {int(entry["chunk"]): Counter(entry["counts"]) for entry in map(json.loads, lines)}

    def finish_chunk(self, plan: CopyPlan, finished: Mapping[int, Counter[str]]) -> None:
        """Mark chunks finished, durably."""
        lines = [json.dumps({"chunk": chunk, "counts": counts}) + "\n" for chunk, counts in finished.items()]
        write_atomically(self._folder / f"{plan.number:06d}.chunks.jsonl", "".join(lines).encode())

    def anchors(self, stream: str) -> dict[int, Anchor]:
        """Partition → the newest copied record of this stream. Errors: `DataError`."""
        path = self._folder / "anchors.json"
        try:
            content = json.loads(path.read_text())
            return {int(p): Anchor.parse(text) for p, text in content["anchors"].items() if content["stream"] == stream}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: no anchors of ours ({error}); remove it: the log is then not compared with what was copied"
            ) from error

    def keep_anchors(self, stream: str, anchors: Mapping[int, Anchor]) -> None:
        """Remember the newest copied records, durably. Only the newest: what they are made of may be erased later."""
        kept = {str(p): str(anchor) for p, anchor in sorted((self.anchors(stream) | dict(anchors)).items())}
        write_atomically(
            self._folder / "anchors.json", json.dumps({"stream": stream, "anchors": kept}, indent=1).encode()
        )

    def _files(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("[0-9]*.json") if path.suffixes == [".json"])

    def _read(self, path: Path) -> CopyPlan:
        try:
            content = json.loads(path.read_text())
            return CopyPlan(**{**content, "ranges": tuple(Range(**one) for one in content["ranges"])})
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not a plan ({error}); restore it from a backup") from error


def draw_plan(
    last: CopyPlan | None,
    ends: Mapping[tuple[str, str, int], int],
    settings: Settings,
    chunk_records: int = CHUNK_RECORDS,
) -> CopyPlan:
    """The next plan. Pure. `ends`: (kind, topic, partition) → end offset now. A partition that no plan knew starts at 0.

    A new stream epoch starts at 0 for the events: the topic was made anew.
    Errors: `HaltError` if the log of the events ends before what was copied: the topic was recreated or cut.
    """
    kafka = settings.kafka
    known: dict[tuple[str, str, int], int] = {}
    if last is not None:
        for one in last.ranges:
            if one.kind != "events" or last.stream == kafka.stream:
                known[one.kind, one.topic, one.partition] = one.to_offset
    ranges = []
    for (kind, topic, partition), end in sorted(ends.items()):
        start = known.get((kind, topic, partition), 0)
        if start > end and kind == "events":
            raise HaltError(
                f"{topic}[{partition}]: the lake holds it up to offset {start}, but the log ends at {end}: the topic was "
                f"recreated or cut. {remedy(settings)}"
            )
        ranges.append(Range(kind, topic, partition, start if start <= end else 0, end))
    # A partition that is not told of just now must not start at 0 when it is back.
    ranges += [Range(*key, offset, offset) for key, offset in sorted(known.items()) if key not in ends]
    return CopyPlan((last.number if last else 0) + 1, kafka.stream, kafka.stream_epoch, chunk_records, tuple(ranges))
