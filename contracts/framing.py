"""How a record names the schema that wrote it: Confluent's two framings.

v0   the value begins with 0x00 and the schema's id, four big-endian bytes
v1   0x01 and the schema's GUID, sixteen bytes: in the record's header `__value_schema_id`, or at the beginning of the value
"""

from __future__ import annotations

from collections.abc import Iterable

SCHEMA_HEADER = "__value_schema_id"
V0, V1 = 0, 1
V0_BYTES, V1_BYTES = 5, 17
"""What stands before the body, bytes."""


def framed(value: bytes | None, headers: Iterable[tuple[str, bytes | None]]) -> bytes:
    """The value with its frame before it, wherever the record has it. A frame in a header counts before one in the value; the first such
    header counts."""
    for name, frame in headers:
        if name == SCHEMA_HEADER and frame:
            return frame + (value or b"")
    return value or b""


def frame_of(data: bytes) -> int | bytes | None:
    """The schema that framed bytes name: an id (v0), a GUID (v1), or None if they are not framed."""
    magic = data[0] if data else -1
    if magic == V0 and len(data) >= V0_BYTES:
        return int.from_bytes(data[1:V0_BYTES], "big")
    if magic == V1 and len(data) >= V1_BYTES:
        return data[1:V1_BYTES]
    return None
