"""An anchor: what one record of a log was, so that it can be recognised later.

The protocol that our client speaks has no topic id: a topic that was deleted and made anew looks like the old one, with other records
at the same offsets. Who keeps an anchor beside an offset can read that record back and see whether it is the same log.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

_DIGEST_BYTES = 16


class AnchorableRecord(Protocol):
    """What an anchor is made of."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class Anchor:
    """A record's offset, Kafka timestamp (ms) and digest of key and value (32 hexadecimal digits)."""

    offset: int
    timestamp_ms: int
    digest: str

    def __str__(self) -> str:
        return f"{self.offset}:{self.timestamp_ms}:{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Anchor:
        """The anchor that `str` wrote. Errors: `ValueError`."""
        offset, timestamp_ms, digest = text.split(":")
        return cls(int(offset), int(timestamp_ms), digest)


def anchor_of(record: AnchorableRecord) -> Anchor:
    """The anchor of a record that is known not to be private: not even a digest is kept of the others."""
    key = (
        b"-" if record.key is None else b"%d:" % len(record.key) + record.key
    )  # the length: no byte of one is taken for the other's
    value = b"-" if record.value is None else b"+" + record.value
    return Anchor(record.offset, record.timestamp, hashlib.blake2b(key + value, digest_size=_DIGEST_BYTES).hexdigest())
