"""The README's plot: what is drawn stands where its value says."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from bench.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Panel, draw, nice_ceiling, panels_of, short


def circles(svg: str) -> list[tuple[float, float]]:
    root = ET.fromstring(svg)
    return [
        (float(one.attrib["cx"]), float(one.attrib["cy"])) for one in root.iter("{http://www.w3.org/2000/svg}circle")
    ]


def test_points_stand_at_the_logarithm_of_x_and_at_y_from_0():
    svg = draw([Panel("t", "x", {"a": [(10, 0), (100, 4), (1_000, 8)]})], "n")
    middle = (LEFT + WIDTH - RIGHT) / 2
    floor, height = HEIGHT - BOTTOM, HEIGHT - TOP - BOTTOM
    assert circles(svg) == [
        (LEFT, floor),
        (pytest.approx(middle, abs=0.1), pytest.approx(floor - height / 2, abs=0.1)),
        (WIDTH - RIGHT, TOP),
    ]


def test_what_is_written_into_the_plot_is_escaped():
    assert "<x>" not in draw([Panel("a<x>b", "&", {"<x>": [(1, 1)]})], "<x>")


@pytest.mark.parametrize(("value", "ceiling"), [(1, 1), (1.1, 2), (3, 4), (55, 80), (81, 100), (1_000, 1_000)])
def test_the_axis_ends_at_a_round_number(value, ceiling):
    assert nice_ceiling(value) == ceiling


def test_large_numbers_are_told_shortly():
    assert [short(x) for x in (500, 3_500, 20_000, 1e6)] == ["500", "3.5k", "20k", "1M"]


def test_a_rate_that_was_not_kept_up_with_has_no_freshness_to_draw():
    cost = {"10": {"updater_us": 1, "store_us": 2}, "20": {"updater_us": 1, "store_us": 2}}
    live = {"500": {"p50": 1, "p99": 2, "saturated": 0}, "9000": {"p50": 800, "p99": 900, "saturated": 1}}
    *_, last = panels_of({"viewers": cost, "catalogue": cost, "history": cost}, live)
    assert last.curves == {"p50": [(500.0, 1.0)], "p99": [(500.0, 2.0)]}
    assert len(re.findall("<circle", draw([last], ""))) == 2
