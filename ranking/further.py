"""Rows below the first one. A new one is one module and one entry in `FURTHER_ROWS`. Pure.

Such a row is put together when a page that asks for it is read, from what the viewer's hash holds anyway and what the night has made ready
for each title: it costs nothing per play, and no byte of a viewer. A row's module leaves out what this viewer must not be shown
(`Known.may_see`) and what the page shows already. Availability, maturity and territory are judged for all rows by the page, which
therefore is offered more than it shows.
"""

from __future__ import annotations

from dataclasses import dataclass

from ranking.because import offer_because
from ranking.offers import Offers

LEAST_SHOWN = 4
"""Titles: fewer are no row, and the next offer is looked at."""
MOST_SHOWN = 20


@dataclass(frozen=True, slots=True)
class FurtherRow:
    """`heading`: `{}` stands for the title that the row is about. `source`: what its entries name as theirs. `score`: what their
    scores say, in words."""

    heading: str
    source: str
    score: str
    offers: Offers


FURTHER_ROWS: dict[str, FurtherRow] = {
    "because": FurtherRow(
        "Because you watched {}",
        "because",
        "how likely it is watched next after that title, by what was watched and by taste",
        offer_because,
    ),
}
"""Name, as a page asks for it → the row."""
