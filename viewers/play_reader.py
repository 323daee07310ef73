"""Batches of records to facts: plays at once by the kernel, everything else one by one by the codec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from embeddings.compiled import as_bytes
from viewers.kernel_events import FACT_BYTES, read_plays


class Readable(Protocol):
    """What is read of a record."""

    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


class _NoRecord(NamedTuple):
    timestamp: int = 0
    key: bytes | None = None
    value: bytes | None = None


class Fact(NamedTuple):
    """A packed state with one play, and the time of its event."""

    packed: bytes
    event_time_ms: int


class PlayReader:
    """Reads the plays of one schema. `header`: the five bytes before its bodies; None: the schema in use is another, read nothing."""

    def __init__(self, header: bytes | None) -> None:
        self._header = None if header is None else as_bytes(header)

    def warm(self) -> None:
        """Have the kernel compiled or loaded now."""
        self([_NoRecord()])

    def __call__(self, records: Sequence[Readable]) -> list[Fact | None]:
        """The facts of valid, public reports on plays; None: ask the codec (which may find a play, a private one, or an error)."""
        n = len(records)
        if self._header is None or not n:
            return [None] * n
        values, keys = [record.value or b"" for record in records], [record.key or b"" for record in records]
        out, out_ends, event_ms = np.empty(n * FACT_BYTES, np.uint8), np.empty(n, np.int64), np.zeros(n, np.int64)
        read_plays(
            as_bytes(bytearray().join(values) or b"\x00"),
            _ends(values),
            as_bytes(bytearray().join(keys) or b"\x00"),
            _ends(keys),
            np.fromiter((record.timestamp for record in records), np.int64, n),
            self._header,
            out,
            out_ends,
            event_ms,
            np.empty(9, np.int64),
            np.empty(40, np.uint64),
            np.empty(128, np.int64),
            np.empty(3, np.int64),
        )
        ends = out_ends.tolist()
        packed, starts = out[: ends[-1]].tobytes(), [0, *ends[:-1]]
        return [
            Fact(packed[start:end], time_ms) if end > start else None
            for start, end, time_ms in zip(starts, ends, event_ms.tolist(), strict=True)
        ]


def _ends(parts: Sequence[bytes]) -> NDArray[Any]:
    ends: NDArray[Any] = np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)))
    return ends
