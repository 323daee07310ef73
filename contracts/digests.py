"""Digests of ids: what is kept of an item or an id where the text itself would be too long. Pure."""

from __future__ import annotations

import functools
import hashlib


@functools.lru_cache(maxsize=1 << 17)
def item_digest(item_id: str) -> int:
    """48 bits of BLAKE2b: what `seen` keeps of an item. Two of a million titles share one with probability 0.002."""
    return int.from_bytes(hashlib.blake2b(item_id.encode(), digest_size=6).digest(), "little")


def id_digest(text: str) -> int:
    """32 bits of BLAKE2b of an event or play id."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
