"""The store's Protocol: what the updater, the rebuild and the home page need of Redis. Every store passes one test suite.

Two implementations: `redis_store.RedisStore` (the real one) and `memory_store.MemoryStore` (a deterministic twin for tests).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from contracts.anchors import Anchor
from viewers.trend_store import TrendStore

TRACES_KEPT_S = 3_600
"""So long is it told which trace a row is from; it names no viewer, and is gone before anybody would have to forget it."""


class StoredViewer(NamedTuple):
    """What the store holds of one viewer. An absent viewer is all empty bytes and activation 0."""

    token: bytes = b""
    activation: int = 0
    state: bytes = b""
    vector: bytes = b""
    row: bytes = b""


class Rows(Enum):
    """What a write does to row and vector, and whether it may while rows are frozen (`nearline freeze`)."""

    ALWAYS = ""  # written, frozen or not: what a person or a night has asked for
    FOLLOW = "follow"  # written; refused while frozen: what a play leads to
    KEEP = "keep"  # only while frozen: they stay as they are, and their activation with them
    EMPTY = "empty"  # only while frozen: emptied, as the viewer was erased


class ViewerWrite(NamedTuple):
    """One compare-and-set. Applied only if the stored token is `expected_token` and the stored activation (of a new viewer: the
    highest one announced) is not newer.

    `new_token`: 8 random bytes drawn by the client, so that "the stored token is mine" means an earlier try succeeded.
    `rows`: with `KEEP` and `EMPTY` vector and row are not looked at, and the activation stays (a new viewer's is 0).
    """

    viewer: str
    expected_token: bytes
    new_token: bytes
    activation: int
    state: bytes
    vector: bytes
    row: bytes
    rows: Rows = Rows.ALWAYS


@dataclass(frozen=True, slots=True)
class Freeze:
    """Rows are frozen: since when (ms), and why."""

    since_ms: int
    reason: str

    def __str__(self) -> str:
        return f"{self.since_ms}:{self.reason}"

    @classmethod
    def parse(cls, text: str) -> Freeze:
        """What a store holds. Whatever is there freezes, even what is not ours."""
        since_ms, colon, reason = text.partition(":")
        return cls(int(since_ms), reason) if colon and since_ms.isdecimal() else cls(0, text)


@dataclass(frozen=True, slots=True)
class Written:
    """The write holds (now, or from an earlier try)."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Somebody else wrote: here is what is stored now; merge, recompute, try again."""

    stored: StoredViewer


@dataclass(frozen=True, slots=True)
class Stale:
    """The stored activation is newer than the write's."""

    stored_activation: int


@dataclass(frozen=True, slots=True)
class FreezeDiffers:
    """Rows are frozen and the write would change one, or they are not and the write would keep one back."""


WriteResult = Written | Conflict | Stale | FreezeDiffers


@dataclass(frozen=True, slots=True)
class Marker:
    """A partition's durable progress. `next_offset` is the lowest contiguous finished offset; the counters sum to
    `next_offset - origin`. `anchor`: the newest finished record below it that is not private (None: there was none yet). `gap_end`: the
    first offset after the newest gap that retention left and that was declared (0: none); only the lake may have what was in it."""

    next_offset: int
    origin: int
    applied: int = 0
    noop: int = 0
    private: int = 0
    dead: int = 0
    absent: int = 0
    anchor: Anchor | None = None
    gap_end: int = 0

    @property
    def unaccounted(self) -> int:
        """Must be 0."""
        return self.next_offset - self.origin - (self.applied + self.noop + self.private + self.dead + self.absent)

    def moved(self, next_offset: int, tally: Tally, anchor: Anchor | None, gap_end: int = 0) -> Marker:
        """What a write makes of this marker."""
        return Marker(
            next_offset,
            self.origin,
            self.applied + tally.applied,
            self.noop + tally.noop,
            self.private + tally.private,
            self.dead + tally.dead,
            self.absent + tally.absent,
            anchor or self.anchor,
            gap_end or self.gap_end,
        )


@dataclass(frozen=True, slots=True)
class Tally:
    """What happened to the offsets between two markers; added to the marker's counters in the same write."""

    applied: int = 0
    noop: int = 0
    private: int = 0
    dead: int = 0
    absent: int = 0

    @property
    def total(self) -> int:
        return self.applied + self.noop + self.private + self.dead + self.absent

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.applied + other.applied,
            self.noop + other.noop,
            self.private + other.private,
            self.dead + other.dead,
            self.absent + other.absent,
        )


@dataclass(frozen=True, slots=True)
class MarkerWrite:
    """Move a partition's marker from `expected_next` (None: no marker yet) to `next_offset`, adding `tally`.

    `origin`: used only when the marker does not exist yet. `anchor`: None leaves the stored one, as `gap_end` 0 does.
    """

    partition: int
    expected_next: int | None
    next_offset: int
    origin: int
    tally: Tally
    anchor: Anchor | None = None
    gap_end: int = 0


class Store(Protocol):
    """Errors: `StoreUnavailable` (retry), `StoreChanged` (the server's identity is not the one seen at `connect`, or a
    marker is not what this process last wrote: drop everything cached, rewind)."""

    @property
    def trends(self) -> TrendStore:
        """What is kept of trends, in the same store."""

    async def connect(self) -> str:
        """Connect (again), load the scripts, remember and return the server's identity (`run_id:replid`)."""

    async def check_identity(self) -> None:
        """Raise `StoreChanged` if another server answers than at `connect`: an idle stream must notice a fallback too."""

    async def close(self) -> None:
        """Close every connection."""

    async def read_viewers(self, viewers: Sequence[str]) -> list[StoredViewer]:
        """Token, activation and state of each viewer (vector and row left empty), in one pipeline."""

    async def read_viewer(self, viewer: str) -> StoredViewer:
        """Everything of one viewer."""

    async def read_row(self, viewer: str) -> bytes:
        """The viewer's encoded home row; empty if there is none."""

    async def read_state(self, viewer: str) -> bytes:
        """The viewer's packed state; empty if nothing is known of them."""

    async def write_viewers(self, writes: Sequence[ViewerWrite]) -> list[WriteResult]:
        """One compare-and-set per viewer, in one pipeline that begins by reading the server's identity.

        Raises `StoreChanged` if the identity is not the expected one; writes may then have reached that server, which
        is harmless: they are joins, and no marker moves past them."""

    async def read_marker(self, partition: int) -> Marker | None:
        """The partition's marker."""

    async def read_markers(self, partitions: Sequence[int]) -> dict[int, Marker | None]:
        """The markers of these partitions, in one pipeline."""

    async def write_markers(self, writes: Sequence[MarkerWrite]) -> None:
        """Move markers; each moves only if the identity and the stored marker are as expected, else `StoreChanged`."""

    def scan_viewers(self) -> AsyncIterator[list[str]]:
        """Every stored viewer id, in batches; may repeat an id."""

    async def read_seeded(self) -> Mapping[int, int]:
        """Partition → cut-off offset of a completed rebuild from the lake."""

    async def write_seeded(self, cutoffs: Mapping[int, int]) -> None:
        """Record a completed rebuild from the lake; `StoreChanged` if the server is not the one that holds it."""

    async def read_halt(self) -> str | None:
        """Why the stream is halted, or None."""

    async def write_halt(self, reason: str | None) -> None:
        """Halt the stream, or clear the halt."""

    async def read_freeze(self) -> Freeze | None:
        """Whether rows are frozen."""

    async def write_freeze(self, freeze: Freeze | None) -> None:
        """Freeze rows, or let them follow the plays again; in force for every write from the next on."""

    async def highest_activation(self) -> int:
        """The highest activation ever announced (0: none)."""

    async def announce_activation(self, activation: int) -> None:
        """Raise the highest activation; never lowers it."""

    async def report_updater(self, instance: str, activation: int, now_ms: int) -> None:
        """This updater serves `activation`."""

    async def remove_updater(self, instance: str) -> None:
        """This updater has stopped cleanly."""

    async def read_updaters(self) -> Mapping[str, tuple[int, int]]:
        """Instance → (activation, time of its last report in ms)."""

    async def read_rebuilt(self, activation: int) -> bool:
        """True if the rebuild and sweep for this activation have completed in this store."""

    async def write_rebuilt(self, activation: int) -> None:
        """Record a completed rebuild and sweep; `StoreChanged` if the server is not the one that holds them."""

    async def write_traces(self, traces: Mapping[str, str]) -> None:
        """Row id → `traceparent` of the span that wrote the row; kept for `TRACES_KEPT_S`. Nothing else hangs on them."""

    async def read_trace(self, row_id: str) -> str | None:
        """What `write_traces` was told of a row lately."""

    async def read_default_rows(self) -> Mapping[str, bytes]:
        """`territory:maturity` → encoded home row."""

    async def write_default_rows(self, rows: Mapping[str, bytes]) -> None:
        """Replace every default row in one write."""
