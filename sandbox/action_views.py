"""What the live page's buttons do and show: plain values, without servers. `sandbox/live_actions.py` does the real thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from starlette.requests import Request

from contracts.errors import UserError

ActionName = Literal["kill", "poison", "burst", "generation"]
ACTIONS: tuple[ActionName, ...] = ("kill", "poison", "burst", "generation")
State = Literal["idle", "running", "passed", "failed"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Refused(UserError):
    """This cannot be pressed now; the message is shown to the person and says when it can."""


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened, `at_s` seconds after the press."""

    at_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured number, as text with its unit."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The log, read in a way of its own, against the store.

    `viewers`, `plays`: how many were compared, exactly. `moving`: viewers of whom new events kept coming while they were compared.
    `lost`, `doubled`: facts that the store lacks, or has and the log does not. `unaccounted`: what the partitions' accounts are off.
    `behind`: viewers whose row is of an older activation than the highest announced. `problems`: the first of each, in words.
    """

    viewers: int
    plays: int
    events: int
    lost: int = 0
    doubled: int = 0
    unaccounted: int = 0
    moving: int = 0
    behind: int = 0
    took_s: float = 0.0
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Nothing wrong, and something was compared."""
        return self.viewers > 0 and not (self.lost or self.doubled or self.unaccounted or self.problems)

    def sentence(self) -> str:
        """What the page ends with."""
        compared = (
            f"{self.viewers:,} viewers with {self.plays:,} plays compared with {self.events:,} records of the log"
        )
        wrong = f", {self.unaccounted:,} unaccounted" if self.unaccounted else ""
        return f"{self.lost:,} lost, {self.doubled:,} doubled{wrong}: {compared}"


@dataclass(frozen=True, slots=True)
class ActionView:
    """A button and what became of its last press. `curve`: (seconds after the press, records behind).

    `message`: the verdict's sentence, or what went wrong. `number` counts the presses.
    """

    name: ActionName
    state: State = "idle"
    number: int = 0
    steps: tuple[Step, ...] = ()
    figures: tuple[Figure, ...] = ()
    curve: tuple[tuple[float, int], ...] = ()
    message: str = ""
    verdict: Verdict | None = None


def is_same_origin(request: Request) -> bool:
    """Whether a page of this very server sent the request.

    Browsers name the origin of every POST. The host must be this machine's, or the one that was asked: a foreign name that was
    made to point here (DNS rebinding) is its own origin, too.
    """
    host = request.headers.get("host", "")
    server = request.scope.get("server") or ("", None)
    if urlsplit(f"//{host}").hostname not in (*LOOPBACK, server[0]):
        return False
    site = request.headers.get("sec-fetch-site", "same-origin")
    return site == "same-origin" and urlsplit(request.headers.get("origin", "")).netloc == host
