"""W3C's `traceparent`: which trace a record, a request or a row belongs to, and whether it is recorded."""

from __future__ import annotations

import re
from typing import NamedTuple

HEADER = "traceparent"
SAMPLED = 1
_VERSION_0 = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class TraceParent(NamedTuple):
    """A span that somebody records."""

    trace_id: int
    span_id: int

    def __str__(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{SAMPLED:02x}"


def read_sampled(value: bytes | None) -> TraceParent | None:
    """The span that a header names, if it is well-formed and sampled; else None."""
    found = _VERSION_0.fullmatch(value or b"")
    if found is None or not int(found[3], 16) & SAMPLED:
        return None
    trace_id, span_id = int(found[1], 16), int(found[2], 16)
    return TraceParent(trace_id, span_id) if trace_id and span_id else None
