"""The rows of viewers who have none of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from contracts.codec import Codec
from contracts.events import validate
from embeddings.generation import Generation
from tests.worlds import T0, make_generation, make_tables, play_event
from viewers.default_rows import DEFAULT_AGES, EVERY_AGE, default_rows
from viewers.rewriter import Rewriter
from viewers.state import Limits

CODEC = Codec.load()
TITLES = 300
RNG = np.random.default_rng(3)
THERE = {"GB": RNG.random(TITLES) < 0.5, "NO": np.zeros(TITLES, np.bool_)}


def world(*, tables: bool) -> Generation:
    generation = make_generation(TITLES)
    ends = generation.available_until_ms.copy()
    ends[::5] = T0
    maturity = np.random.default_rng(4).integers(0, 22, TITLES).astype(np.uint8)
    found = make_tables(TITLES) if tables else None
    return replace(generation, available_until_ms=ends, maturity=maturity, tables=found)


@pytest.mark.parametrize("tables", [False, True])
def test_rows_made_together_are_those_made_alone_and_hold_what_may_be_shown_there(tables: bool) -> None:
    generation = world(tables=tables)
    rewriter = Rewriter(generation, 3, CODEC.encode_row, Limits())
    rows = default_rows(rewriter, THERE, T0)
    assert len(rows) == 3 * (len(DEFAULT_AGES) + 1)
    for territory, only in {"*": None, **THERE}.items():
        for age in (0, 12, EVERY_AGE):
            alone = rewriter.default_row(computed_at_ms=T0, maturity=age, territory=territory, only=only)
            assert rows[f"{territory}:{'*' if age == EVERY_AGE else age}"] == alone
            entries = CODEC.decode_row(alone).entries
            shown = [generation.index[entry.item_id] for entry in entries]
            may = (generation.available_until_ms > T0) & (generation.maturity <= age)
            may &= True if only is None else only
            assert len(shown) == min(60, may.sum())
            assert may[shown].all()
            scores = [entry.score for entry in entries]
            assert scores == sorted(scores, reverse=True)


def test_a_play_may_name_the_default_row_that_led_to_it() -> None:
    """Else it would be a dead letter: the first play of everybody who comes new."""
    for row in default_rows(Rewriter(world(tables=True), 3, CODEC.encode_row, Limits()), THERE, T0).values():
        event = replace(play_event("ana", 1, 0), row_id=CODEC.decode_row(row).row_id, row_position=0)
        validate(event, key=b"ana", timestamp_ms=T0)
