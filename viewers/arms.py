"""Two generations at once: the one in force, and a candidate for a share of the viewers. Pure."""

from __future__ import annotations

from contracts.shares import Share
from viewers.rewriter import Rewriter


class Arms:
    """`viewers.rewrite.Rewriters` of two generations under one activation: who is rewritten by which follows from the viewer's id alone,
    so that a row of this activation needs no other look to be known as of the right one.

    A candidate that `keeps_rows` does not load here: its viewers' states are merged, and their rows stay as they are stored."""

    keeps_rows = False

    def __init__(self, in_force: Rewriter, candidate: Rewriter, share: Share) -> None:
        if in_force.activation != candidate.activation:
            raise ValueError(f"arms of activations {in_force.activation} and {candidate.activation}: one is needed")
        self.in_force = in_force
        self.candidate = candidate
        self.share = share
        self.activation = in_force.activation

    @property
    def held(self) -> Share | None:
        """The candidate's viewers, where it does not load."""
        return self.share if self.candidate.keeps_rows else None

    def arm(self, viewer: str) -> Rewriter:
        """The rewriter of this viewer's generation."""
        return self.candidate if self.share.holds(viewer) else self.in_force
