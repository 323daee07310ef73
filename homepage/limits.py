"""How often one viewer, and one address, may ask: a bucket each, in this process, a bounded number of them.

Each bucket is one number, the time at which it will be full again (the generic cell rate algorithm): a request moves it on by
1 / rate, and is refused where that would be more than `burst` requests ahead of now.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Self

from runtime.sections import HomepageSettings

MAX_KEYS = 100_000
"""Buckets kept, some 20 MB; beyond that the one asked for longest ago starts anew."""

IPV6_PREFIX_BITS = 64
"""What one subscriber is given at least: whoever has one address has all of these."""


class RateLimit:
    """At most `rate_per_s` on average and `burst` at once for each key; a rate of 0 allows everything."""

    def __init__(
        self, rate_per_s: float, burst: int, *, max_keys: int = MAX_KEYS, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._max_keys = max_keys
        self._now_s = now_s
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def take(self, key: str) -> float:
        """0 if the request may go on, else the seconds after which the next one may."""
        if not self.rate_per_s:
            return 0.0
        now_s, each_s = self._now_s(), 1 / self.rate_per_s
        full_at = max(now_s, self._full_at.get(key, now_s))
        wait_s = full_at - now_s - (self.burst - 1) * each_s
        if wait_s > 1e-9:
            self._full_at.move_to_end(key)
            return wait_s
        self._full_at[key] = full_at + each_s
        self._full_at.move_to_end(key)
        if len(self._full_at) > self._max_keys:
            self._full_at.popitem(last=False)
        return 0.0

    def __len__(self) -> int:
        return len(self._full_at)

    def __str__(self) -> str:
        return f"{self.rate_per_s:g} a second, {self.burst} at once"


@dataclass(frozen=True, slots=True)
class TooMany:
    """A refused request: what to say, and after how many whole seconds to come again."""

    text: str
    retry_after_s: int


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """The two limits of the home page."""

    viewers: RateLimit
    addresses: RateLimit

    @classmethod
    def of(cls, settings: HomepageSettings, now_s: Callable[[], float] = time.monotonic) -> Self:
        return cls(
            RateLimit(settings.viewer_rate_per_s, settings.viewer_burst, now_s=now_s),
            RateLimit(settings.address_rate_per_s, settings.address_burst, now_s=now_s),
        )

    @classmethod
    def none(cls) -> Self:
        return cls(RateLimit(0, 1), RateLimit(0, 1))

    def take_address(self, host: str | None) -> TooMany | None:
        """None if this address may go on; loopback always may, as a gateway or a test of this machine."""
        key = network_of(host)
        return None if key is None else _told(self.addresses, key, "from this address")

    def take_viewer(self, viewer: str) -> TooMany | None:
        """None if this viewer may go on."""
        return _told(self.viewers, viewer, "of this viewer")


def _told(limit: RateLimit, key: str, whose: str) -> TooMany | None:
    wait_s = limit.take(key)
    if not wait_s:
        return None
    seconds = math.ceil(wait_s)
    return TooMany(f"too many requests {whose}: at most {limit}; try again in {seconds} s", seconds)


@lru_cache(maxsize=4_096)  # a connection asks many times, and a proxy's is one address for everybody
def network_of(host: str | None) -> str | None:
    """What a client is counted as: its IPv4 address or its IPv6 network; None for loopback. What is no address counts as one."""
    try:
        address = ip_address(host or "")
    except ValueError:
        return "unknown"
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif not address.is_loopback:
            return f"{int(address) >> (128 - IPV6_PREFIX_BITS):x}::/{IPV6_PREFIX_BITS}"
    return None if address.is_loopback else str(address)
