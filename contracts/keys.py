"""Every Redis key and hash field, in one place. `contracts/README.md` tells them to readers in other languages.

All keys start with the namespace (`store.namespace`, default `nl`). Ids cannot hold braces, so a key's slot is its own.
"""

from __future__ import annotations

from dataclasses import dataclass

CONTROL = "c"
"""8 random bytes (the token), then the activation in ASCII decimals."""
STATE = "s"
"""The packed viewer state (`viewers/packing.py`)."""
VECTOR = "v"
"""The viewer's vector, k little-endian float16; empty before the first generation."""
ROW = "r"
"""The home row, Avro in Confluent framing; empty before the first generation."""

TOKEN_BYTES = 8


@dataclass(frozen=True, slots=True)
class Keys:
    """Builds keys for one namespace and one stream (`topic@epoch`)."""

    namespace: str
    stream: str

    def viewer(self, viewer: str) -> str:
        """Hash: `c`, `s`, `v`, `r`."""
        return f"{self.namespace}:v:{viewer}"

    @property
    def viewer_prefix(self) -> str:
        return f"{self.namespace}:v:"

    def trace(self, row_id: str) -> str:
        """String: W3C's `traceparent` of the span that wrote this row; expires after an hour. Only of traced events."""
        return f"{self.namespace}:trace:{row_id}"

    def marker(self, partition: int) -> str:
        """Hash: `next`, `origin`, `applied`, `noop`, `private`, `dead`, `absent`: decimals; `anchor`: `offset:timestamp_ms:digest` of the
        newest finished record that is not private, empty before the first; `gap_end`: the end of the newest declared gap, 0 for none."""
        return f"{self.namespace}:marker:{self.stream}:{partition}"

    @property
    def halt(self) -> str:
        """String: why every updater of this stream is halted; absent when it may run."""
        return f"{self.namespace}:halt:{self.stream}"

    @property
    def frozen(self) -> str:
        """String: `unix_ms:reason` while rows are frozen: since when, and why; absent when they follow the plays."""
        return f"{self.namespace}:frozen"

    @property
    def seeded(self) -> str:
        """Hash: partition → the lake's cut-off offset that a completed rebuild from the lake has folded in."""
        return f"{self.namespace}:seeded:{self.stream}"

    @property
    def activation(self) -> str:
        """String: the highest activation ever announced, decimal."""
        return f"{self.namespace}:activation"

    def rebuilt(self, activation: int) -> str:
        """String: set when the rebuild and the sweep for this activation have completed; expires after 40 days."""
        return f"{self.namespace}:rebuilt:{activation}"

    @property
    def updaters(self) -> str:
        """Hash: updater instance → `activation:unix_ms` of its last report; struck off after ten minutes of silence."""
        return f"{self.namespace}:updaters"

    @property
    def default_row(self) -> str:
        """Hash: `territory:maturity` (`*:*` for everybody) → Avro home row."""
        return f"{self.namespace}:default"

    def trends_checkpoint(self, generation_id: str, partition: int) -> str:
        """Hash: what a partition's log says since the generation's cut-off (`trends/checkpoints.py`); kept for two days."""
        return f"{self.namespace}:trends:counts:{self.stream}:{generation_id}:{partition}"

    def trends_pointer(self, generation_id: str) -> str:
        """String: `name:unix_ms`, the generation's newest trends snapshot and when that was last said; expires after an hour."""
        return f"{self.namespace}:trends:newest:{self.stream}:{generation_id}"

    def trends_snapshot(self, name: str) -> str:
        """String: a trends snapshot (`trends/snapshots.py`), named by its content; expires an hour after it was last in use."""
        return f"{self.namespace}:trends:snapshot:{name}"

    @property
    def trends_owner(self) -> str:
        """String: which process counts trends; expires seconds after its last word."""
        return f"{self.namespace}:trends:owner:{self.stream}"
