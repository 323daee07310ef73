"""What a night did, for people and programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from batch.rebuild import Rebuilt


@dataclass(frozen=True, slots=True)
class NightlyReport:
    """What a night did. `decision`: passed, forced, unchecked or held_back. `seconds`: per step.

    `reused`: nothing had changed since the generation was published. `seeded`: why the lake's plays were folded into the viewers'
    states, empty if they were not. Times and counts that a step did not reach are 0.
    """

    decision: str
    reason: str
    generation_id: str | None = None
    activation: int | None = None
    reused: bool = False
    copied: Mapping[str, int] = field(default_factory=dict)
    private: int = 0
    invalid: int = 0
    erased: int = 0
    lost: int = 0
    scrubbed: int = 0
    viewers: int = 0
    interactions: int = 0
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seeded: str = ""
    rebuilt: Rebuilt | None = None
    pruned: tuple[str, ...] = ()
    cutoffs: Mapping[int, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def published(self) -> bool:
        """False if the gate held the generation back."""
        return self.generation_id is not None

    def headline(self) -> str:
        """One line."""
        took_s = sum(self.seconds.values())
        if not self.published:
            return f"held back after {took_s:.1f} s: {self.reason}"
        if self.activation is None:
            return (
                f"generation {self.generation_id} published after {took_s:.1f} s ({self.decision}) and not put in force: compare it, then "
                f"nearline generations activate {self.generation_id}"
            )
        rebuilt = self.rebuilt.rewritten if self.rebuilt else 0
        return (
            f"generation {self.generation_id} as activation {self.activation}, trained on {self.interactions:,} interactions, "
            f"{rebuilt:,} rows rewritten, {took_s:.1f} s ({self.decision})"
        )

    def summary(self) -> str:
        """Some lines for a person."""
        copied = ", ".join(f"{count:,} {kind}" for kind, count in self.copied.items())
        lines = [
            f"copied      {copied}; {self.private:,} private, {self.invalid:,} invalid, {self.erased:,} erased, {self.lost:,} lost",
            f"trained on  {self.interactions:,} interactions of {self.viewers:,} viewers",
        ]
        for arm, values in self.metrics.items():
            told = "  ".join(f"{name} {values[name]:.4f}" for name in ("hr@10", "ndcg@10", "auc") if name in values)
            lines.append(f"  {arm:<12}{told}")
        if self.seeded:
            lines.append(f"seeded      every play of the lake was folded in: {self.seeded}")
        lines += [f"  warning: {warning}" for warning in self.warnings]
        lines += [f"decision    {self.decision}: {self.reason}", self.headline()]
        return "\n".join(lines)
