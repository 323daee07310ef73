"""A topic that is deleted and made anew while nobody runs, as deploys do; and the operator who raises the stream epoch.

1. The updaters are killed; what they had under way arrives nowhere that matters
2. The topic is another one: shorter than the markers, or grown past them, with other records at the same offsets
3. Updaters are started as before: they must halt, and must not have moved a marker
4. The stream epoch is raised, and updaters are started that read the new log from its start
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.invariants import SECRET, Fact, Violation
from tests.simulation.model_kafka import SimRecord

if TYPE_CHECKING:
    from tests.simulation.world import World

NOTICED_WITHIN_S = 60.0
"""Virtual seconds until the halt."""
T0 = 1_700_000_000_000


def make_anew(world: World) -> None:
    """Do all of it, if every partition that has a marker has an anchor too: without one nobody can know."""
    world.calm_kafka()
    world.calm_store()
    world.cluster.settle()
    server = world.cluster.primary
    before = dict(server.markers)
    if not before or any(marker.anchor is None for marker in before.values()) or set(server.seeded) - set(before):
        return
    kill_updaters(world)  # 1
    for partition, end in world.copied.items():
        world.of_old_logs += world.checker.facts[partition][:end]
    world.copied = {}
    world.cluster.epoch += 1
    old = world.kafka.make_anew()  # 2
    world.checker.begin_log()
    for partition, log in enumerate(old):
        marker = before.get(partition)
        around = 3 if marker is None else marker.next_offset + world.rng.randint(-4, 6)
        for _ in range(max(0, around)):
            _append_another(world, partition, log.records)
    while len(world.updaters) < world.shape.updaters:  # 3
        world.start_updater()
    if not world.scheduler.run_until(world.scheduler.now_s + NOTICED_WITHIN_S, lambda: server.halt is not None):
        raise Violation("I3", "the topic was made anew, and nobody has noticed")
    moved = {p: (before[p], server.markers.get(p)) for p in before if server.markers.get(p) != before[p]}
    if moved:
        raise Violation("I3", f"markers were moved by records of another log: {moved}")
    kill_updaters(world)
    world.stream_epoch += 1  # 4
    world.cluster.begin_stream()
    if world.rng.random() < 0.5:
        world.kafka.committed = {}  # the broker forgets them with the topic, at once or later
    while len(world.updaters) < world.shape.updaters:
        world.start_updater()


def kill_updaters(world: World) -> None:
    for updater in world.updaters:
        if updater.fault is not None:
            raise Violation("I6", f"{updater.name} ended with {updater.fault!r}") from updater.fault
        updater.kill()
    world.updaters = []


def _append_another(world: World, partition: int, old: list[SimRecord | None]) -> None:
    """One more record of the new log, and not the one that lay there before: sometimes at the same time, as restored logs have."""
    offset = world.kafka.logs[partition].end
    was = old[offset] if offset < len(old) else None
    timestamp = T0 + int(world.scheduler.now_s * 1000)
    if was is not None and world.rng.random() < 0.5:
        timestamp = was.timestamp
    viewers = [f"v{n}" for n in range(world.shape.viewers) if n % len(world.kafka.logs) == partition]
    if viewers and world.rng.random() < 0.8:
        event = world.event(world.rng.choice(viewers), f"i{world.rng.randrange(world.shape.items):02d}.")
        value = world.encode(event)
        if was is not None and (was.value, was.timestamp) == (value, timestamp):
            timestamp += 1
        world.append(event, timestamp, value)
    else:
        value = b"\x00?%d" % offset + SECRET.encode()
        world.append_other(partition, Fact("private"), b"somebody", value, ("private", b"1"))
