"""From measured costs to machines: what a service of a given size needs. Pure; `bench/verbs.py` is its command line.

mean      = events a day / 86,400
peak      = mean · peak factor
capacity  = max(peak / utilisation, peak · (1 + outage / catch-up))     an outage at the peak must be caught up in time
cores     = capacity · µs an event / 10⁶                                updater and store each
processes = updater cores, rounded up                                   a process fills about one core
partitions = the next power of two ≥ 2 · processes                      room to double without moving any key
shards    = max(⌈store cores⌉, ⌈viewers · bytes / shard memory⌉)        a store runs commands on one core
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from bench.constants import Constants
from contracts.errors import UserError

Add = Callable[[str, float, str, str], float]
"""(name, value, unit, formula) → value: how a plan collects its steps."""
DAY_S = 86_400
GIB = 2**30
TIB = 2**40


@dataclass(frozen=True, slots=True)
class Demand:
    """The service that is planned for. Shares are in (0, 1], hours in hours, sizes in GiB."""

    viewers: float
    events_per_day: float
    requests_per_day: float
    catalogue: float = 20_000
    history: float = 50
    peak_factor: float = 2.5
    utilisation: float = 0.6
    outage_h: float = 1.0
    catch_up_h: float = 2.0
    shard_gib: float = 64.0
    store_copies: float = 2
    kafka_days: float = 7
    kafka_copies: float = 3
    lake_days: float = 400
    night_h: float = 4.0
    train_iterations: float = 12
    train_titles: float = 50
    burst: float = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a plan: what, how much, and the formula with its numbers."""

    name: str
    value: float
    unit: str
    formula: str


def check_demand(demand: Demand) -> None:
    """Errors: `UserError` naming the option that makes no sense."""
    for name in Demand.__slots__:
        value = getattr(demand, name)
        option = "--" + name.replace("_", "-")
        if not math.isfinite(value) or value < 0:
            raise UserError(f"{option} {value:g}: must be a number of at least 0")
        if value == 0 and name not in ("requests_per_day", "outage_h", "burst"):
            raise UserError(f"{option} 0: must be above 0")
    if demand.viewers < 1 or demand.catalogue < 1:
        raise UserError("--viewers and --catalogue: must be at least 1")
    if demand.peak_factor < 1:
        raise UserError(f"--peak-factor {demand.peak_factor:g}: the busiest minute cannot be below the mean (1)")
    if demand.utilisation > 1:
        raise UserError(f"--utilisation {demand.utilisation:g}: is a share of a core, at most 1 (0.6 leaves room)")
    if demand.store_copies < 1 or demand.kafka_copies < 1:
        raise UserError("--store-copies and --kafka-copies: must be at least 1, the data itself")
    if demand.night_h > 24:
        raise UserError(f"--night-h {demand.night_h:g}: a night has less than 24 hours")


def check_constants(constants: Constants) -> None:
    """Errors: `UserError` naming the constant that makes no sense."""
    for name in Constants.__slots__:
        value = getattr(constants, name).value
        if not math.isfinite(value) or value <= 0:
            raise UserError(f"--{name.replace('_', '-')} {value:g}: must be a number above 0")


def compute_plan(demand: Demand, constants: Constants) -> dict[str, Step]:
    """Name → step, in the order in which they follow from one another. Errors: `UserError`."""
    check_demand(demand)
    check_constants(constants)
    steps: dict[str, Step] = {}

    def add(name: str, value: float, unit: str, formula: str) -> float:
        steps[name] = Step(name, value, unit, formula)
        return value

    capacity = _rates(demand, add)
    _stream(demand, constants, capacity, add)
    _disks(demand, constants, add)
    _night(demand, constants, add)
    share = demand.requests_per_day / DAY_S * demand.peak_factor
    add("requests_peak", share, "home pages/s", f"{demand.requests_per_day:,.0f} / 86,400 · {demand.peak_factor:g}")
    add(
        "homepage_cores",
        share / demand.utilisation * constants.request_us.value / 1e6,
        "cores",
        f"{share:,.0f} / {demand.utilisation:g} · {constants.request_us.value:.3g} µs",
    )
    return steps


def _rates(demand: Demand, add: Add) -> float:
    """The capacity, events/s."""
    mean = add("mean", demand.events_per_day / DAY_S, "events/s", f"{demand.events_per_day:,.0f} / 86,400")
    peak = add("peak", mean * demand.peak_factor, "events/s", f"{mean:,.0f} · {demand.peak_factor:g}")
    return add(
        "capacity",
        max(peak / demand.utilisation, peak * (1 + demand.outage_h / demand.catch_up_h)),
        "events/s",
        f"max({peak:,.0f} / {demand.utilisation:g}, {peak:,.0f} · (1 + {demand.outage_h:g} h / {demand.catch_up_h:g} h))",
    )


def _stream(demand: Demand, constants: Constants, capacity: float, add: Add) -> None:
    """Updaters, partitions and store."""
    updater, store = constants.updater_us.value, constants.store_us.value
    cores = add("updater_cores", capacity * updater / 1e6, "cores", f"{capacity:,.0f} · {updater:.3g} µs")
    processes = add("updater_processes", math.ceil(cores), "processes", f"⌈{cores:,.1f}⌉, each about one core")
    partitions = 2 ** math.ceil(math.log2(2 * processes))
    add("partitions", partitions, "partitions", f"the next power of two ≥ 2 · {processes:,.0f}")
    store_cores = add("store_cores", capacity * store / 1e6, "cores", f"{capacity:,.0f} · {store:.3g} µs")
    held = demand.viewers * constants.viewer_bytes.value / GIB
    add("store_memory", held, "GiB", f"{demand.viewers:,.0f} viewers · {constants.viewer_bytes.value:,.0f} bytes")
    add(
        "store_shards",
        max(math.ceil(store_cores), math.ceil(held / demand.shard_gib)),
        "shards",
        f"max(⌈{store_cores:,.1f} cores⌉, ⌈{held:,.0f} GiB / {demand.shard_gib:g} GiB⌉)",
    )
    add("memory_copies", held * demand.store_copies, "GiB", f"{held:,.0f} GiB · {demand.store_copies:g} copies")


def _disks(demand: Demand, constants: Constants, add: Add) -> None:
    record, row = constants.record_bytes.value, constants.lake_bytes.value
    add(
        "kafka_disk",
        demand.events_per_day * demand.kafka_days * demand.kafka_copies * record / TIB,
        "TiB",
        f"{demand.events_per_day:,.0f} · {demand.kafka_days:g} days · {demand.kafka_copies:g} copies · {record:,.0f} bytes",
    )
    add(
        "lake",
        demand.events_per_day * demand.lake_days * row / TIB,
        "TiB",
        f"{demand.events_per_day:,.0f} · {demand.lake_days:g} days · {row:,.0f} bytes",
    )


def _night(demand: Demand, constants: Constants, add: Add) -> None:
    """Everybody's row within half of the night, training within the other half."""
    half_s = demand.night_h * 3_600 / 2
    rebuild, train = constants.rebuild_us.value, constants.train_us.value
    add(
        "rebuild_cores",
        demand.viewers * rebuild / 1e6 / half_s,
        "cores",
        f"{demand.viewers:,.0f} viewers · {rebuild:.3g} µs in {half_s / 3_600:g} h",
    )
    add(
        "train_cores",
        demand.viewers * demand.train_titles * demand.train_iterations * train / 1e6 / half_s,
        "cores",
        f"{demand.viewers:,.0f} viewers · {demand.train_titles:g} titles · {demand.train_iterations:g} rounds · "
        f"{train:.3g} µs in {half_s / 3_600:g} h",
    )
