"""Faults that come through the topic: what viewers, players and other teams' producers send."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from contracts.check import register
from contracts.errors import NearlineError
from contracts.registry import SCHEMAS_PATH, Registry, subject_for
from runtime.kafka import choose_partition
from sandbox.chaos.arena import Arena
from sandbox.chaos.stream import HOUR_MS, leaving, now_ms
from sandbox.chaos.truth import Fate, Intent

FLOOD = 160
"""More than 1 % of the 10,000 records that an updater looks back on."""

BACKLOG = 360_000
"""An hour's outage at 100 events a second."""
BACKLOG_DEADLINE_S = 900.0
CUT_NOTED_S = 1.5
"""Longer than the broker takes to note that a log's front was cut (`sandbox/kafka_server.py`): killed before, it gives it back."""


async def erasure_under_fire(arena: Arena, rng: random.Random) -> None:
    """A viewer is erased while everything is replayed, swapped or lost; their plays arrive once more afterwards."""
    mark = f"erased{rng.getrandbits(40):010x}-"
    viewer = leaving(mark)
    plays = [arena.audience.event(arena.audience.play(viewer, item=f"{mark}{i}")) for i in range(6)]
    await arena.sender.send(plays, patiently=True)
    copy = arena.copy_store()
    harms = ["fall back", "swap", "kill", "nothing"]
    if rng.random() < 0.3:
        broken = arena.codec.encode_event(arena.audience.play(viewer, item=f"{mark}letter"))[:-1]
        await arena.sender.send([arena.audience.raw(Intent(Fate.DEAD), viewer.encode(), broken)], patiently=True)
        await arena.reach(await arena.ends(), "the letter of a viewer who leaves")
        if rng.random() < 0.5:
            await arena.night()  # the lake and the next generation know the viewer too
        await arena.verb("forget", viewer)
        await asyncio.sleep(CUT_NOTED_S)
        arena.forgotten[mark] = viewer
        harms.remove("fall back")  # the letter would be written again, until the next night
    else:
        await arena.sender.send([arena.audience.event(arena.audience.erasure(viewer))], patiently=True)
    harm = rng.choice(harms)
    if harm == "fall back":
        await asyncio.sleep(rng.uniform(0, 0.5))
        await arena.take_back(copy)
    elif harm == "swap":
        current = arena.folder_of_generations.read_current()
        assert current is not None
        await arena.activate(current.generation_id)
    elif harm == "kill":
        (await arena.crew.victim(rng)).signal("KILL")
    await arena.sender.send(plays, patiently=True)
    shutil.rmtree(copy)
    # Copies made while the viewer was there hold them until the log has been replayed onto them.
    arena.secrets.add(mark)


async def duplicates_and_clocks(arena: Arena, rng: random.Random) -> None:
    """Everything three times in any order, years late, and from devices whose clocks run ahead."""
    events = [arena.audience.play() for _ in range(40)]
    events += [arena.audience.play(age_ms=rng.randrange(5 * 365 * 24 * HOUR_MS)) for _ in range(20)]
    messages = [arena.audience.event(event) for event in events for _ in range(3)]
    ahead_ms = 40 * 60_000
    for event in [arena.audience.play() for _ in range(10)]:  # the broker was told the same wrong time: accepted
        moved = replace(event, event_time_ms=now_ms() + ahead_ms)
        messages.append(arena.audience.event(moved, timestamp_ms=now_ms() + ahead_ms))
    for event in [arena.audience.play() for _ in range(4)]:  # only the event's time is ahead: refused
        wrong = replace(event, event_time_ms=now_ms() + ahead_ms)
        value = arena.codec.encode_event(wrong)
        messages.append(arena.audience.raw(Intent(Fate.DEAD), event.viewer.encode(), value))
    rng.shuffle(messages)
    await arena.sender.send(messages)


async def poison(arena: Arena, rng: random.Random) -> None:
    """A few records that can never be applied, some of them perhaps private."""
    messages = [arena.audience.poison() for _ in range(rng.randint(1, 6))]
    private = arena.audience.private_play()
    broken = arena.codec.encode_event(private)[:-2]
    messages.append(arena.audience.raw(Intent(Fate.DEAD), private.viewer.encode(), broken, private=None))
    await arena.sender.send(messages)


async def poison_flood(arena: Arena, rng: random.Random) -> None:
    """A bad deploy: the updaters halt, a person looks, `nearline resume`, and nothing of it was lost."""
    viewer = arena.audience.viewer().encode()
    flood = [replace(arena.audience.poison(), key=viewer) for _ in range(FLOOD)]
    await arena.sender.send(flood, patiently=True)
    await arena.until_halted("a flood of poison")
    await arena.resume_after_halt()


async def schemas_mixed(arena: Arena, rng: random.Random) -> None:
    """Producers of the next schema come before the registry knows it; older ones go on beside them."""
    path = Path(arena.settings.registry_path or "")
    known = Registry.load(path)
    newest = known.versions(subject_for("playback_event"))[-1]
    assert isinstance(newest.schema, dict)
    added = f"later_{known.next_id}"
    schema = {
        **newest.schema,
        "fields": [*newest.schema["fields"], {"name": added, "type": ["null", "string"], "default": None}],
    }
    nulls = sum(str(one["name"]).startswith("later_") for one in schema["fields"])
    frame = b"\x00" + known.next_id.to_bytes(4, "big")
    messages = []
    for _ in range(20):
        event = arena.audience.play()
        value = frame + arena.codec.encode_event(event)[5:] + b"\x00" * nulls
        messages.append(arena.audience.raw(Intent(Fate.EVENT, event), event.viewer.encode(), value))
    await arena.sender.send(messages)
    await asyncio.sleep(rng.uniform(0.5, 2.5))
    draft = arena.folder / "draft" / SCHEMAS_PATH.joinpath("playback_event.avsc").name
    draft.parent.mkdir(exist_ok=True)
    draft.write_text(json.dumps(schema))
    register(draft, known)


async def misplaced_keys(arena: Arena, rng: random.Random) -> None:
    """Events under somebody else's key, or none."""
    await arena.sender.send([arena.audience.misplaced() for _ in range(rng.randint(1, 6))])


async def giant_records(arena: Arena, rng: random.Random) -> None:
    """Up to what the broker takes."""
    await arena.sender.send([arena.audience.giant() for _ in range(rng.randint(1, 3))])


async def hot_spot(arena: Arena, rng: random.Random) -> None:
    """One viewer, or one partition, gets everything."""
    count = rng.choice((500, 1_500))
    if rng.random() < 0.5:
        viewer = arena.audience.viewer()
        await arena.sender.send([arena.audience.event(arena.audience.play(viewer)) for _ in range(count)])
        return
    partitions = len(await arena.ends())
    hot = rng.randrange(partitions)
    viewer_of = _drawer(arena, lambda viewer: choose_partition(viewer.encode(), partitions) == hot)
    await arena.sender.send([arena.audience.event(arena.audience.play(viewer_of())) for _ in range(count)])


def _drawer(arena: Arena, wanted: Callable[[str], bool]) -> Callable[[], str]:
    def draw() -> str:
        while not wanted(viewer := arena.audience.viewer()):
            pass
        return viewer

    return draw


async def backlog(arena: Arena, rng: random.Random) -> None:
    """Nobody consumed for an hour."""
    await arena.crew.stop()
    for _ in range(BACKLOG // 5_000):
        await arena.sender.send([arena.audience.event(arena.audience.play()) for _ in range(5_000)], patiently=True)
    arena.crew.start()
    ends = await arena.ends()
    started = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() - started < BACKLOG_DEADLINE_S:
        try:
            markers = await arena.markers_of(ends)
        except NearlineError:
            continue
        if all(marker is not None and marker.next_offset >= ends[p] for p, marker in markers.items()):
            return
        await asyncio.sleep(0.5)
