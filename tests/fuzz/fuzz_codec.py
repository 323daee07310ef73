"""Mutated records against every decoder: nothing but a value or a refusal may come out, and fast.

    python -m tests.fuzz.fuzz_codec --records 1000000 --seed 1 [--report FILE]

Valid records are broken on purpose where decoders break: length fields, counts, numbers of seven-bit groups, branches and
enum indexes, cuts, splices of two records, schema ids. The registry holds two later versions of the playback event, so that
both readers are met: our own for flat schemas and the general library for the others, with schema resolution.

A finding is: an exception other than `UndecodableRecord` and `UnknownSchema`; a value of this code's own schema that encodes to other
bytes than were read; a record that takes over `HANG_MS` three times in a row; a play that the compiled reader reads otherwise than the
codec (`fuzz_plays.py`). Exit status 1 if there was any.

Where `atheris` is importable, `--atheris` lets it drive instead, guided by coverage.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from contracts.catalogue import CatalogueItem
from contracts.codec import HEADER_BYTES, MAX_RECORD_BYTES, Codec
from contracts.errors import UndecodableRecord, UnknownSchema
from contracts.events import Kind, PlaybackEvent
from contracts.flat import ENUM, INT, LONG, OPTIONAL, Flat, decode_long, encode_long
from contracts.registry import DEFAULT_PATH, Registry, read_json
from contracts.rows import Entry, HomeRow, Impression, Reason
from tests.fuzz.fuzz_plays import Plays, PlaysResult
from tests.fuzz.memory import growth, rss_bytes

HANG_MS = 100.0
"""A partition that gets 16 KiB records must still move at ten of them a second, whoever wrote them."""

PLAYS_EVERY = 256
"""After so many records a batch of plays goes through the compiled reader."""

SAMPLE_EVERY = 20_000
"""Records between two looks at the resident memory."""

MAX_FINDINGS = 20
"""Findings kept with their bytes."""

NUMBERS = (
    0, 1, -1, 2, 63, 64, 127, 128, 255, 4095, 16_384, 65_535, 2**31 - 1, 2**31, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63),
)  # fmt: skip
VARINTS = (
    b"\xff" * 9 + b"\x01", b"\xff" * 9 + b"\x7f", b"\xff" * 10 + b"\x01", b"\x80" * 12 + b"\x01", b"\x80\x00", b"\xff" * 200,
)  # fmt: skip
BYTES = (0, 1, 2, 3, 4, 0x7E, 0x7F, 0x80, 0x81, 0xC0, 0xFE, 0xFF)


@dataclass(frozen=True, slots=True)
class Target:
    """One decoder. `ids`: the schema ids whose values this code writes itself, to the same bytes."""

    name: str
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    own_id: int
    seeds: Sequence[bytes]
    places: Sequence[Sequence[int]]


@dataclass
class Result:
    """What a run found. `max_us`: the slowest record, the best of three tries; `rss_slope`: bytes per million records.

    `plays`: what went through the compiled reader of plays, beside `records`.
    """

    seed: int
    records: int = 0
    accepted: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    crashes: int = 0
    hangs: int = 0
    respelt: int = 0
    max_us: float = 0.0
    slowest: str = ""
    decode_s: float = 0.0
    wall_s: float = 0.0
    rss_first_mib: float = 0.0
    rss_last_mib: float = 0.0
    rss_slope: float = 0.0
    plays: PlaysResult = field(default_factory=PlaysResult)
    findings: list[dict[str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.crashes or self.hangs or self.respelt or self.plays.wrong)

    @property
    def per_second(self) -> float:
        return self.records / self.wall_s if self.wall_s else 0.0

    def report(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        return dict(vars(self)) | {"plays": asdict(self.plays), "per_second": round(self.per_second), "ok": self.ok}


def make_registry(folder: Path) -> Registry:
    """The committed registry, with two later versions of the playback event: one more flat, one that is not."""
    index = read_json(DEFAULT_PATH / "index.json")
    for file in DEFAULT_PATH.glob("*.avsc"):
        (folder / file.name).write_bytes(file.read_bytes())
    versions = index["subjects"]["playback_event-value"]
    schema = read_json(DEFAULT_PATH / versions[-1]["file"])
    next_id = 1 + max(row["id"] for rows in index["subjects"].values() for row in rows)
    device = {"type": "record", "name": "Device", "fields": [
        {"name": "model", "type": "string"}, {"name": "sizes", "type": {"type": "array", "items": "double"}},
    ]}  # fmt: skip
    added: list[list[dict[str, Any]]] = [
        [{"name": "session", "type": ["null", "string"], "default": None}],
        [
            {"name": "session", "type": ["null", "string"], "default": None},
            {"name": "labels", "type": {"type": "map", "values": ["null", "string", "long"]}, "default": {}},
            {"name": "devices", "type": {"type": "array", "items": device}, "default": []},
            {"name": "digest", "type": {"type": "fixed", "name": "Digest", "size": 8}, "default": "00000000"},
        ],
    ]
    for number, fields in enumerate(added):
        name = f"playback_event-value.v{len(versions) + 1}.avsc"
        (folder / name).write_text(json.dumps(schema | {"fields": schema["fields"] + fields}))
        versions.append({"version": len(versions) + 1, "id": next_id + number, "file": name})
    (folder / "index.json").write_text(json.dumps(index))
    return Registry.load(folder)


def make_targets(codec: Codec, rng: random.Random) -> list[Target]:
    """Each decoder with valid records of every shape, and the places in each where a number or a branch begins."""
    events = [codec.encode_event(_event(kind, rng)) for kind in Kind for _ in range(3)]
    later = [number for number in codec._event.writers if number != codec._event.schema_id]
    tails = (b"\x00", b"\x02\x06abc", b"\x02\x02s", b"\x00")
    for number in later:
        for event in events[:12]:
            tail = rng.choice(tails)
            if codec._event.flats[number] is None:
                tail += rng.choice((b"\x00", b"\x04\x02a\x02\x02b\x02c\x04\x08\x00", b"\x02\x02a\x00\x00"))
                tail += rng.choice((b"\x00", b"\x02\x04tv\x04" + bytes(16) + b"\x00\x00")) + b"12345678"
            events.append(b"\x00" + number.to_bytes(4, "big") + event[HEADER_BYTES:] + tail)
    rows = [codec.encode_row(_row(size, rng)) for size in (0, 1, 2, 5, 30, 60)]
    items = [codec.encode_item(_item(size, rng)) for size in (0, 1, 3, 12)]
    impressions = [codec.encode_impression(_impression(size, rng)) for size in (0, 1, 5, 50)]
    made = (
        ("event", codec.decode_event, codec.encode_event, codec._event, events),
        ("row", codec.decode_row, codec.encode_row, codec._row, rows),
        ("item", codec.decode_item, codec.encode_item, codec._item, items),
        ("impression", codec.decode_impression, codec.encode_impression, codec._impression, impressions),
    )
    return [
        Target(name, decode, encode, subject.schema_id, seeds, [_places(subject.flats, one) for one in seeds])
        for name, decode, encode, subject, seeds in made
    ]


def _event(kind: Kind, rng: random.Random) -> PlaybackEvent:
    some = lambda value: value if rng.random() < 0.7 else None  # noqa: E731
    return PlaybackEvent(
        _id(rng), kind, _id(rng), rng.choice(NUMBERS), rng.random() < 0.5, some(_id(rng)), some(_id(rng)),
        some(rng.choice(NUMBERS)), some(rng.randrange(10**7)), some(rng.randrange(10**7)), some(rng.randrange(-100, 101)),
        some("topic:drama"), some(_id(rng)), some(rng.randrange(60)),
    )  # fmt: skip


def _row(size: int, rng: random.Random) -> HomeRow:
    entries = tuple(
        Entry(
            _id(rng), rng.randrange(1024) / 256, rng.choice(("als", "popular", "new")),
            tuple(Reason(_id(rng), 0.5) for _ in range(rng.randrange(4))) if place < 10 else (),
            rng.choice((None, 5, 2**40)), rng.choice((None, 7, 2**41)),
        )
        for place in range(size)
    )  # fmt: skip
    return HomeRow(_id(rng), "g1", 3, "t1", 2**40, rng.choice((None, 2**40)), entries)


def _item(size: int, rng: random.Random) -> CatalogueItem:
    texts = tuple(_id(rng) for _ in range(size))
    return CatalogueItem(
        _id(rng), "Tïtle – ☂" * size, texts, texts[:2], 90_000, 12, texts[:1], None, 9, 2**40, size == 1
    )


def _impression(size: int, rng: random.Random) -> Impression:
    return Impression(_id(rng), _id(rng), _id(rng), "g1", 2**40, size == 1, tuple(_id(rng) for _ in range(size)))


def _id(rng: random.Random) -> str:
    return "x" * rng.choice((1, 2, 8, 20, 63, 64, 128)) if rng.random() < 0.2 else f"tt{rng.randrange(10**7):07d}"


def _places(flats: dict[int, Flat | None], data: bytes) -> list[int]:
    """Where numbers, lengths, counts and branches begin, found by walking the body as its reader does."""
    flat = flats[int.from_bytes(data[1:HEADER_BYTES], "big")]
    if flat is None:  # the head is that of the first version
        flat = next(one for one in flats.values() if one is not None)
    found, at = [], HEADER_BYTES
    for op, _, _ in flat.fields:
        found.append(at)
        one = Flat(((op, "f", _SYMBOLS),))
        at = _end_of(one, data, at)
        if op in (LONG, INT, ENUM) or op >= OPTIONAL:
            found.append(min(at, len(data) - 1))
    return sorted(set(found))


_SYMBOLS = tuple("abcdefghijklmnop")


def _end_of(one: Flat, data: bytes, at: int) -> int:
    """Where a field that begins at `at` ends: the shortest stretch that its reader takes."""
    for end in range(at + 1, len(data) + 1):
        try:
            one.decode(data[:end], at)
        except Exception:  # noqa: BLE001 - a stretch cut inside the value
            continue
        return end
    return len(data)


def mutate(data: bytes, places: Sequence[int], other: bytes, rng: random.Random) -> bytes:
    """One to four mutations, most of them where the structure lies."""
    mutated = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        if not mutated:
            break
        place = rng.choice(places) if rng.random() < 0.6 else rng.randrange(len(mutated))
        place = min(place, len(mutated) - 1)
        how = rng.randrange(12)
        if how == 0:
            mutated[place] ^= 1 << rng.randrange(8)
        elif how == 1:
            mutated[place] = rng.choice(BYTES)
        elif how == 2:
            mutated[place : _number_end(mutated, place)] = encode_long(rng.choice(NUMBERS))
        elif how == 3:
            mutated[place : _number_end(mutated, place)] = rng.choice(VARINTS)
        elif how == 4:
            old = _number(mutated, place)
            mutated[place : _number_end(mutated, place)] = encode_long(old + rng.choice((-2, -1, 1, 2)))
        elif how == 5:
            del mutated[place:]
        elif how == 6:
            del mutated[place : place + rng.randrange(1, 9)]
        elif how == 7:
            mutated[place:place] = rng.randbytes(rng.randrange(1, 9))
        elif how == 8:
            end = place + rng.randrange(1, 40)
            mutated[place:place] = mutated[place:end] * rng.choice((1, 2, 50, 400))
        elif how == 9:
            mutated[place:] = other[rng.randrange(len(other)) :]
        elif how == 10:
            mutated[1:HEADER_BYTES] = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 999_999, 2**31, 2**32 - 1)).to_bytes(4, "big")
        else:
            mutated[place : place + rng.randrange(1, 5)] = rng.choice(
                (b"\x00", b"\xff", b"\x80", b"\x7f")
            ) * rng.choice((1, 4, 200, MAX_RECORD_BYTES))
        del mutated[MAX_RECORD_BYTES + 64 :]
    return bytes(mutated)


def _number_end(data: bytearray, at: int) -> int:
    while at < len(data) and data[at] > 127:
        at += 1
    return at + 1


def _number(data: bytearray, at: int) -> int:
    try:
        number, _ = decode_long(bytes(data[at : at + 10]), 0)
    except (ValueError, IndexError):
        return 0
    return max(-(2**62), min(number, 2**62))


def try_record(target: Target, data: bytes, result: Result) -> None:
    """Decode one record; count what came of it."""
    result.records += 1
    started = time.perf_counter_ns()
    value, refused, crash = _decode(target, data)
    took_ns = time.perf_counter_ns() - started
    result.decode_s += took_ns / 1e9
    if took_ns > 1000 * result.max_us:
        for _ in range(2):  # a pause of the machine is not the record's
            started = time.perf_counter_ns()
            _decode(target, data)
            took_ns = min(took_ns, time.perf_counter_ns() - started)
        if took_ns > 1000 * result.max_us:
            result.max_us, result.slowest = took_ns / 1000, f"{target.name}: {data.hex()}"
        if took_ns > HANG_MS * 1e6:
            result.hangs += 1
            _keep(result, target, data, f"took {took_ns / 1e6:.0f} ms")
    if crash is not None:
        result.crashes += 1
        _keep(result, target, data, repr(crash)[:200])
    elif refused is not None:
        result.refused[f"{target.name}: {refused}"] += 1
    else:
        schema_id = int.from_bytes(data[1:HEADER_BYTES], "big")
        result.accepted[f"{target.name} schema {schema_id}"] += 1
        if schema_id == target.own_id and target.encode(value) != data:
            result.respelt += 1
            _keep(result, target, data, "accepted, and encodes to other bytes")


def _decode(target: Target, data: bytes) -> tuple[Any, str | None, Exception | None]:
    """Value, or why it was refused, or what should never be raised."""
    try:
        return target.decode(data), None, None
    except UndecodableRecord as error:
        return None, re.sub(r"\d+", "N", str(error).rpartition(": ")[2]), None
    except UnknownSchema:
        return None, "unknown schema, waits", None
    except Exception as error:  # noqa: BLE001 - what is looked for
        return None, None, error


def _keep(result: Result, target: Target, data: bytes, problem: str) -> None:
    if len(result.findings) < MAX_FINDINGS:
        result.findings.append({"target": target.name, "problem": problem, "bytes": data[:600].hex()})


def run(records: int, seed: int, *, progress: Callable[[Result], None] = lambda result: None) -> Result:
    """`records` mutated records, drawn by `seed`."""
    rng = random.Random(seed)
    result = Result(seed)
    samples: list[tuple[int, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        targets = make_targets(Codec(make_registry(Path(folder))), rng)
        for target in targets:
            for whole in target.seeds:
                target.decode(whole)  # every seed is valid: else nothing below means much
        plays = Plays(Codec.load(), result.plays)
        flats = plays.codec._event.flats
        started = time.perf_counter()
        for number in range(records):
            target = targets[number % len(targets)]
            which = rng.randrange(len(target.seeds))
            other = rng.choice(rng.choice(targets).seeds)
            data = mutate(target.seeds[which], target.places[which], other, rng)
            try_record(target, data, result)
            if number % SAMPLE_EVERY == SAMPLE_EVERY - 1:
                samples.append((number + 1, rss_bytes()))
                result.wall_s = time.perf_counter() - started
                progress(result)
            if number % PLAYS_EVERY == 0:
                plays.try_batch(rng, lambda whole: mutate(whole, _places(flats, whole), whole, rng))
        result.wall_s = time.perf_counter() - started
    if len(samples) >= 4:
        result.rss_slope = growth(samples)
        result.rss_first_mib, result.rss_last_mib = samples[0][1] / 2**20, samples[-1][1] / 2**20
    return result


def run_atheris(arguments: list[str]) -> None:
    """Let libFuzzer choose the bytes: the first byte chooses the decoder. Never returns."""
    import atheris  # type: ignore[import-not-found,unused-ignore]

    folder = tempfile.mkdtemp()
    targets = make_targets(Codec(make_registry(Path(folder))), random.Random(0))
    result = Result(0)

    def one_input(data: bytes) -> None:
        if not data:
            return
        try_record(targets[data[0] % len(targets)], data[1:], result)
        if not result.ok:
            raise AssertionError(result.findings[-1])

    atheris.Setup([sys.argv[0], *arguments], one_input)
    atheris.Fuzz()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, help="write the figures there as JSON, also on the way")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage; further arguments go to libFuzzer")
    told, rest = parser.parse_known_args(arguments)
    if told.atheris:
        run_atheris(rest)

    def write(result: Result) -> None:
        if told.report is not None:
            told.report.write_text(json.dumps(result.report(), indent=1) + "\n")

    result = run(told.records, told.seed, progress=write)
    write(result)
    print(json.dumps(result.report()))
    print(f"{result.records:,} records through the decoders; {result.plays}", file=sys.stderr)
    return 0 if result.ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
