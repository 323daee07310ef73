"""The plan's formulas by cases worked out by hand, the simulated day by what must hold of it, and what is said about bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.constants import UNITS, Constant, Constants, interpolate, read_constants
from bench.plan import Demand, compute_plan
from bench.plan_report import make_report
from bench.planned_day import BURST_HOUR, MINUTES, OUTAGE_HOUR, add_burst, daily_rates, simulate, tell_delay
from contracts.errors import UserError
from nearline import app

COSTS = {
    "updater_us": 50.0,
    "store_us": 20.0,
    "request_us": 200.0,
    "rebuild_us": 72.0,
    "train_us": 0.6,
    "viewer_bytes": 2048.0,
    "record_bytes": 128.0,
    "lake_bytes": 64.0,
}
CONSTANTS = Constants(**{name: Constant(value, UNITS[name], "given") for name, value in COSTS.items()})
DEMAND = Demand(
    viewers=2**20,
    events_per_day=86_400_000,  # 1,000/s
    requests_per_day=8_640_000,  # 100/s
    peak_factor=3,
    utilisation=0.5,
    outage_h=1,
    catch_up_h=2,
    shard_gib=1.5,
    store_copies=2,
    kafka_days=7,
    kafka_copies=3,
    lake_days=400,
    night_h=4,
    train_iterations=12,
    train_titles=50,
)


def needed(demand: Demand = DEMAND) -> dict[str, float]:
    return {name: step.value for name, step in compute_plan(demand, CONSTANTS).items()}


def test_the_stream_of_a_small_service_is_what_it_is_by_hand():
    plan = needed()
    assert plan["mean"] == 1_000
    assert plan["peak"] == 3_000
    assert plan["capacity"] == 6_000  # 3,000 / 0.5; catching up would need 3,000 · 1.5
    assert plan["updater_cores"] == pytest.approx(0.3)
    assert plan["updater_processes"] == 1
    assert plan["partitions"] == 2
    assert plan["store_cores"] == pytest.approx(0.12)
    assert plan["store_memory"] == pytest.approx(2)  # 2²⁰ · 2 KiB
    assert plan["store_shards"] == 2  # 2 GiB / 1.5 GiB
    assert plan["memory_copies"] == pytest.approx(4)


def test_disks_night_and_home_page_are_what_they_are_by_hand():
    plan = needed()
    assert plan["kafka_disk"] == pytest.approx(86.4e6 * 7 * 3 * 128 / 2**40)
    assert plan["lake"] == pytest.approx(86.4e6 * 400 * 64 / 2**40)
    assert plan["rebuild_cores"] == pytest.approx(2**20 * 72e-6 / 7_200)
    assert plan["train_cores"] == pytest.approx(2**20 * 50 * 12 * 0.6e-6 / 7_200)
    assert plan["requests_peak"] == pytest.approx(300)
    assert plan["homepage_cores"] == pytest.approx(300 / 0.5 * 200e-6)


def test_an_outage_that_must_be_caught_up_soon_decides_the_capacity():
    assert needed(replace(DEMAND, outage_h=4, catch_up_h=2))["capacity"] == 9_000  # 3,000 · (1 + 4 / 2)


def test_a_large_service_has_processes_for_its_cores_and_partitions_to_double_them():
    plan = needed(replace(DEMAND, events_per_day=86_400_000 * 35))  # 210,000 events/s to manage, 50 µs each
    assert plan["updater_cores"] == pytest.approx(10.5)
    assert plan["updater_processes"] == 11
    assert plan["partitions"] == 32
    assert plan["store_shards"] == 5  # 4.2 cores weigh more than 2 GiB


def test_every_step_says_how_it_was_computed_and_shows_the_numbers():
    steps = compute_plan(DEMAND, CONSTANTS)
    assert steps["capacity"].formula == "max(3,000 / 0.5, 3,000 · (1 + 1 h / 2 h))"
    assert all(any(c.isdigit() for c in step.formula) for step in steps.values())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"viewers": 0}, "--viewers 0"),
        ({"viewers": -1}, "--viewers -1"),
        ({"events_per_day": float("nan")}, "--events-per-day nan"),
        ({"events_per_day": float("inf")}, "--events-per-day inf"),
        ({"peak_factor": 0.5}, "--peak-factor 0.5"),
        ({"utilisation": 1.5}, "--utilisation 1.5"),
        ({"catch_up_h": 0}, "--catch-up-h 0"),
        ({"store_copies": 0.5}, "--store-copies"),
        ({"night_h": 25}, "--night-h 25"),
    ],
)
def test_a_demand_that_makes_no_sense_is_refused_by_the_name_of_its_option(change, told):
    with pytest.raises(UserError, match=told):
        compute_plan(replace(DEMAND, **change), CONSTANTS)


def test_a_constant_that_makes_no_sense_is_refused_by_the_name_of_its_option():
    with pytest.raises(UserError, match="--store-us 0"):
        compute_plan(DEMAND, replace(CONSTANTS, store_us=Constant(0, "", "given")))


# The day


@pytest.mark.parametrize("peak_factor", [1, 1.5, 2.5, 6])
def test_a_day_has_the_mean_and_the_peak_that_were_asked_for(peak_factor):
    rates = daily_rates(1_000, peak_factor)
    assert rates.shape == (MINUTES,)
    assert rates.mean() == pytest.approx(1_000)
    assert rates.max() == pytest.approx(1_000 * peak_factor, rel=1e-6)


def test_an_outage_leaves_what_arrived_meanwhile_and_is_caught_up_at_the_spare_capacity():
    day = simulate(np.full(MINUTES, 100.0), 300, outage_h=1)
    assert day.greatest_lag == pytest.approx(100 * 3_600)
    assert day.greatest_delay_s == pytest.approx(3_600)
    # 360,000 waiting, 200/s to spare: half an hour, so that the 30th minute after the outage ends without lag.
    assert day.outage_caught_up_hour == pytest.approx(OUTAGE_HOUR + 1 + 29 / 60)
    assert day.lag_at_end == 0


def test_without_an_outage_and_with_capacity_for_the_peak_nobody_ever_waits():
    day = simulate(daily_rates(1_000, 3), 3_001, outage_h=0)
    assert (day.greatest_lag, day.greatest_delay_s, day.outage_caught_up_hour) == (0, 0, None)


def test_what_arrives_is_processed_or_still_waits():
    rates = add_burst(daily_rates(1_000, 2), 1_000, 3)
    day = simulate(rates, 2_200, outage_h=2)
    processed = sum(one.processed for one in day.minutes) * 60
    assert processed + day.lag_at_end == pytest.approx(rates.sum() * 60)
    assert max(one.processed for one in day.minutes) <= 2_200 + 1e-9


def test_a_burst_adds_so_many_means_at_once_and_half_of_it_20_minutes_later():
    more = add_burst(np.zeros(MINUTES), 100, 5)
    at = int(BURST_HOUR * 60)
    assert (more[at - 1], more[at], more[at + 20]) == (0, 500, 250)


def test_a_capacity_below_the_mean_falls_behind_for_good():
    day = simulate(np.full(MINUTES, 100.0), 50, outage_h=1)
    assert day.outage_caught_up_hour is None
    assert day.lag_at_end == day.greatest_lag > 50 * 86_400 - 1


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "none"), (0.4, "< 1 s"), (40, "40 s"), (720, "12 min"), (5_400, "1.5 h")]
)
def test_delays_are_told_in_the_unit_that_fits(seconds, told):
    assert tell_delay(seconds) == told


# Where the constants come from


def write_results(folder: Path) -> None:
    growth = {
        "base": {"history": 50},
        "catalogue": {
            "1000": {"updater_us": 40.0, "store_us": 20.0},
            "100000": {"updater_us": 80.0, "store_us": 20.0},
        },
        "history": {
            "10": {"updater_us": 30.0, "store_us": 10.0, "store_bytes": 1_000.0},
            "50": {"updater_us": 40.0, "store_us": 20.0, "store_bytes": 2_000.0},
        },
    }
    for name, figures in {
        "cost_growth": {"cost_growth": growth},
        "homepage": {"homepage": {"core_us": 150.0}},
        "rebuild": {"rebuild": {"core_us": 60.0}},
        "train": {"train": {"core_us_per_interaction_iteration": 0.5}},
        "footprint": {"footprint": {"record_bytes": 120.0, "lake_bytes": 50.0}},
    }.items():
        for day, scale in (("01", 7), ("02", 1)):  # the older one must not be read
            old = json.loads(json.dumps(figures), parse_float=lambda text, by=scale: float(text) * by)
            path = folder / f"2026-03-{day}T000000Z-{name}.json"
            path.write_text(json.dumps({"date": f"2026-03-{day}T00:00:00+00:00", "figures": old}))


def test_constants_are_the_newest_measured_ones_between_two_sizes_and_name_their_date(tmp_path):
    write_results(tmp_path)
    constants = read_constants(catalogue=10_000, history=10, given={"store_us": 9.0}, folder=tmp_path)
    assert constants.updater_us.value == pytest.approx(60 * 30 / 40)  # half-way between 40 and 80 on a log scale
    assert constants.updater_us.source == "cost_growth, 2026-03-02"
    assert (constants.store_us.value, constants.store_us.source) == (9.0, "given")
    assert constants.viewer_bytes.value == 1_000
    assert constants.lake_bytes.value == 50


def test_beyond_what_was_measured_the_nearest_holds_and_the_source_says_so(tmp_path):
    write_results(tmp_path)
    constants = read_constants(catalogue=5_000_000, history=50, given={}, folder=tmp_path)
    assert constants.updater_us.value == 80
    assert "measured at 100,000 titles" in constants.updater_us.source


def test_interpolation_hits_the_measured_points():
    curve = {10.0: 1.0, 100.0: 3.0}
    assert [interpolate(curve, at, "")[0] for at in (5, 10, 100, 200)] == [1, 1, 3, 3]
    assert interpolate(curve, 10**1.5, "")[0] == pytest.approx(2)


def test_a_figure_that_was_neither_measured_nor_given_names_its_benchmark_and_its_option(tmp_path):
    with pytest.raises(UserError, match=r"\./run bench cost_growth, or give --updater-us"):
        read_constants(catalogue=1, history=1, given={}, folder=tmp_path)


# The verb


def arguments(**changes: object) -> list[str]:
    options = {"viewers": "200e6", "events-per-day": "4e9"} | {
        name.replace("_", "-"): value for name, value in (COSTS | changes).items()
    }
    return ["plan", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


def test_the_verb_answers_in_json_what_the_functions_compute():
    done = CliRunner().invoke(app, [*arguments(), "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    expected = make_report(Demand(200e6, 4e9, 4e9), CONSTANTS).to_json()
    assert answer["plan"]["updater_cores"]["value"] == expected["plan"]["updater_cores"]["value"]
    assert answer["day"]["greatest_lag_events"] == pytest.approx(expected["day"]["greatest_lag_events"])
    assert len(answer["day"]["hours"]) == 24


def test_the_verb_shows_the_formula_and_the_day():
    done = CliRunner().invoke(app, arguments(), env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "4,000,000,000 / 86,400" in done.stdout
    assert "caught up at" in done.stdout
    assert "several streams" in done.stdout  # 200 million viewers do not fit one store


def test_the_results_that_come_with_the_program_are_all_that_a_plan_needs():
    done = CliRunner().invoke(app, ["plan", "--viewers", "200e6", "--events-per-day", "4e9", "--json"])
    assert done.exit_code == 0, done.exception
    constants = json.loads(done.stdout)["constants"]
    assert constants.keys() == UNITS.keys()
    assert all(constant["source"] != "given" and constant["value"] > 0 for constant in constants.values())


def test_the_verb_refuses_what_makes_no_sense():
    done = CliRunner().invoke(app, arguments(viewers="-3"))
    assert isinstance(done.exception, UserError)
    assert "--viewers -3" in str(done.exception)
