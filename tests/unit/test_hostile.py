"""Bytes from outside, whatever they are: refused by the one error that belongs there, or read; fast, and in bounded memory.

Time is the thread's own, the best of three: a busy machine is not the input's fault. `tests/fuzz/fuzz_codec.py` does the same to
the codec at length; a slice of it runs here.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import io
import json
import pickle
import random
import resource
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.codec import MAX_RECORD_BYTES, Codec
from contracts.errors import ContractError, GenerationError, InvalidEvent, RecordError, UnknownSchema
from contracts.events import Kind, PlaybackEvent, validate
from contracts.manifest import from_json, to_json
from contracts.registry import DEFAULT_PATH, Registry, read_json
from embeddings.files import (
    ITEMS,
    ITEMS_SCHEMA,
    USERS,
    load_generation,
    load_items,
    load_users,
    open_root,
    parse_factors,
)
from embeddings.generations_folder import GenerationsFolder
from homepage.catalogue import load_catalogue
from homepage.service import DefaultRows, Homepage, make_app
from runtime.deadletters import Coordinates, Letter, Mark, belongs_to, parse
from runtime.http import serve
from tests.fuzz.fuzz_codec import HANG_MS, make_registry, make_targets, mutate, run
from tests.integration.test_homepage import Impressions, make_catalogue
from tests.unit.test_files import publish
from tests.worlds import T0, play_event
from updater.dlq import refusal
from viewers.memory_store import MemoryStore
from viewers.packing import BadState, pack, unpack
from viewers.state import Limits, state_of

CODEC = Codec.load()
DECODERS = {
    "event": (CODEC.decode_event, CODEC.encode_event, 1),
    "row": (CODEC.decode_row, CODEC.encode_row, 5),
    "item": (CODEC.decode_item, CODEC.encode_item, 3),
    "impression": (CODEC.decode_impression, CODEC.encode_impression, 4),
}
MAX_GROWTH_MIB = 96
"""More than a test's own garbage, far less than what a bomb would unpack to."""

T = TypeVar("T")
thorough = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
    | st.sampled_from([10**400, -(10**400), 2**63, "9" * 5000, "\ud800", "CURRENT", "../x", "/dev/zero", "\x00", "٣"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def quick(call: Callable[[], T], *refusals: type[Exception]) -> T | None:
    """What the call returns, None if it refused in one of the ways it may; fails if it takes over `HANG_MS` three times."""
    took_ms = []
    for _ in range(3):
        started = time.thread_time()
        try:
            result = call()
        except refusals:
            result = None
        took_ms.append((time.thread_time() - started) * 1000)
        if took_ms[-1] < HANG_MS:
            return result
    raise AssertionError(f"took {min(took_ms):.0f} ms")


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """No test here may raise the process's peak by much."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mib < MAX_GROWTH_MIB, f"{grown_mib:.0f} MiB more at the peak"


# Records


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.data())
@thorough
def test_any_bytes_are_refused_or_are_the_only_spelling_of_their_value(name: str, data: st.DataObject) -> None:
    decode, encode, schema_id = DECODERS[name]
    frame = b"\x00" + data.draw(st.sampled_from([schema_id, schema_id, 1, 99, 2**31])).to_bytes(4, "big")
    size = data.draw(st.sampled_from([0, 1, 20, 200, MAX_RECORD_BYTES]))
    body = data.draw(st.sampled_from([b"\x00", b"\x02", b"\xfe", b"\xff", b"\x80"])) * size + data.draw(st.binary())
    for record in (body, frame + body):
        value = quick(lambda record=record: decode(record), RecordError, UnknownSchema)
        if value is not None:
            assert encode(value) == record


def test_a_slice_of_the_long_run_finds_nothing() -> None:
    """50,000 mutated records through both readers. At length: python -m tests.fuzz.fuzz_codec --records 4000000"""
    result = run(50_000, seed=7)
    assert result.ok, (result.findings, result.plays.findings)
    assert sum(result.accepted.values()) > 1000  # mutations that only ever break the frame would test little
    assert result.plays.records > 5000
    assert 1000 < result.plays.read < result.plays.records


def test_the_long_run_sees_a_reader_of_plays_that_reads_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "contracts.events.MAX_WATCHED_RATIO", 9
    )  # the compiled reader keeps the ten it was compiled with
    result = run(20_000, seed=7)
    assert not result.ok
    assert result.plays.wrong
    assert result.plays.findings
    assert not result.findings


def test_records_that_claim_more_than_they_hold_cost_no_more_than_they_hold(tmp_path: Path) -> None:
    """Counts and lengths up to 2⁶³ in every place of every record, in both readers."""
    rng = random.Random(5)
    for target in make_targets(Codec(make_registry(tmp_path)), rng):
        for whole, places in list(zip(target.seeds, target.places, strict=True))[::6]:
            for place in places:
                for claim in (
                    b"\xfe" * 9 + b"\x01",
                    b"\xff" * 9 + b"\x01",
                    b"\xfe\xff\xff\xff\x0f",
                    b"\x80" * 9 + b"\x01",
                ):
                    quick(lambda: target.decode(whole[:place] + claim + whole[place:]), RecordError, UnknownSchema)  # noqa: B023


@given(st.builds(
    PlaybackEvent, st.text(max_size=200), st.sampled_from(Kind), st.text(max_size=200), st.integers(), st.booleans(),
    *[st.none() | st.text(max_size=200)] * 2, *[st.none() | st.integers()] * 4, st.none() | st.text(max_size=200),
), st.none() | st.binary(max_size=200), st.integers(-1, 2**63))  # fmt: skip
@thorough
def test_any_event_is_valid_or_says_why_not(event: PlaybackEvent, key: bytes | None, timestamp_ms: int) -> None:
    quick(lambda: validate(event, key=key, timestamp_ms=timestamp_ms), InvalidEvent)


# Packed states


def states() -> list[bytes]:
    made = [state_of(play_event("ana", n, n), timestamp_ms=T0 + 10**6) for n in range(3)]
    rate = PlaybackEvent("e", Kind.RATE, "ana", T0, item_id="tt1", value=50)
    erase = PlaybackEvent("e2", Kind.ERASE, "ana", T0)
    return [pack(one) for one in (*made, state_of(rate, timestamp_ms=T0), state_of(erase, timestamp_ms=T0))]


@given(st.data())
@thorough
def test_any_bytes_are_a_state_or_bad_and_a_state_survives_being_packed(data: st.DataObject) -> None:
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    whole, other = rng.choice(states()), rng.choice(states())
    raw = data.draw(st.binary(max_size=80))
    claims = struct.pack("<BBHHHHi", 1, rng.randrange(3), *[rng.choice((0, 1, 2, 65_535)) for _ in range(4)], -1)
    for packed in (raw, claims + raw, mutate(whole, range(len(whole)), other, rng)):
        state = quick(lambda packed=packed: unpack(packed), BadState)
        if state is not None and packed:
            assert unpack(pack(state)) == state


# Manifests, CURRENT, registries


def replaced(document: Any, value: Any, rng: random.Random) -> Any:
    """The document with one of its parts, at any depth, replaced, dropped or named anew."""
    document = copy.deepcopy(document)
    at = document
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return document
        key = rng.choice(keys)
        if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.75:
            at = at[key]
            continue
        if isinstance(at, dict) and rng.random() < 0.2:
            at[str(value)[:50]] = at.pop(key)
        elif rng.random() < 0.15:
            del at[key]
        else:
            at[key] = value
        return document


@pytest.fixture(scope="module")
def generation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generations")
    publish(root)
    return root


NASTY = [
    10**400, -(10**400), 2**63, -1, 1.5, True, None, "", "9" * 5000, "\ud800", "\u0663", "../x", "/dev/zero", "a\x00b", "NaN", [], {},
    [[]], {"9" * 5000: 1}, {"\u0663": 1}, {"00": 1}, {"-1": 1}, {"": ""}, {"a": {"b": 10**400}},
]  # fmt: skip


def with_each_part_nasty(document: Any) -> Iterator[Any]:
    """The document with each of its parts in turn replaced by each of `NASTY`, or gone."""

    def walk(at: Any) -> Iterator[None]:
        for key in list(at) if isinstance(at, dict) else list(range(len(at))):
            before = at[key]
            for value in NASTY:
                at[key] = value
                yield
            at[key] = before
            if isinstance(before, dict | list):
                yield from walk(before)
            if isinstance(at, dict):
                order = dict(at)
                del at[key]
                yield
                at.clear()
                at.update(order)

    document = copy.deepcopy(document)
    for _ in walk(document):
        yield document


def test_every_nasty_value_in_every_place_of_a_manifest_is_refused_or_survives(generation: Path) -> None:
    valid = json.loads((generation / "g1" / "manifest.json").read_text())
    refused = 0
    for document in with_each_part_nasty(valid):
        text = json.dumps(document)
        manifest = quick(lambda text=text: from_json(text, "here"), GenerationError)
        refused += manifest is None
        if manifest is not None:
            assert from_json(to_json(manifest), "here") == manifest
    assert refused > 500


def test_every_nasty_value_in_every_place_of_a_registry_is_refused_or_harmless(tmp_path: Path) -> None:
    files = {path.name: path.read_text() for path in DEFAULT_PATH.iterdir()}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for name in ("index.json", "impression-value.v1.avsc"):
        for document in with_each_part_nasty(json.loads(files[name])):
            (tmp_path / name).write_text(json.dumps(document))
            codec = quick(lambda: Codec(Registry.load(tmp_path)), ContractError)
            if codec is not None:
                for body in (b"", b"\x00" * 20, b"\xff" * 20):
                    quick(
                        lambda body=body, codec=codec: codec.decode_impression(b"\x00\x00\x00\x00\x04" + body),
                        RecordError,
                    )
        (tmp_path / name).write_text(files[name])


@given(st.data())
@thorough
def test_any_manifest_is_refused_or_is_written_again_as_it_was_read(generation: Path, data: st.DataObject) -> None:
    valid = json.loads((generation / "g1" / "manifest.json").read_text())
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    text = json.dumps(replaced(valid, data.draw(json_values), rng))
    raw = bytearray(text.encode())
    raw[rng.randrange(len(raw))] = rng.randrange(256)
    for one in (text, bytes(raw), data.draw(st.binary(max_size=60))):
        manifest = quick(lambda one=one: from_json(one, "here"), GenerationError)
        if manifest is not None:
            again = to_json(manifest)
            assert from_json(again, "here") == manifest
            assert to_json(from_json(again, "here")) == again


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1_000_000,
        '{"a":' * 200_000,
        "9" * 1_000_000,
        '{"format":1,"created_at_ms":1e999}',
        '{"format":1' + ',"x":1' * 100_000 + "}",
        '"' + "\\ud800" * 100_000 + '"',
    ],
)
def test_a_manifest_made_to_exhaust_its_reader_is_refused(text: str) -> None:
    assert quick(lambda: from_json(text, "here"), GenerationError) is None


@given(st.data())
@thorough
def test_any_current_file_is_unreadable_or_names_a_generation(tmp_path: Path, data: st.DataObject) -> None:
    folder = GenerationsFolder(tmp_path)
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    valid = {"generation_id": "g1", "activation": 3, "previous": None}
    text = json.dumps(replaced(valid, data.draw(json_values), rng)).encode()
    for raw in (text, data.draw(st.binary(max_size=60)), b"[" * 100_000):
        (tmp_path / "CURRENT").write_bytes(raw)
        current = quick(folder.read_current, GenerationError)
        assert current is None or isinstance(current.activation, int)


@given(st.data())
@thorough
def test_any_registry_is_refused_or_makes_a_codec_that_refuses_any_bytes(tmp_path: Path, data: st.DataObject) -> None:
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    files = {path.name: json.loads(path.read_text()) for path in DEFAULT_PATH.iterdir()}
    broken = rng.choice([*files, "index.json"])
    files[broken] = replaced(files[broken], data.draw(json_values), rng)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    codec = quick(lambda: Codec(Registry.load(tmp_path)), ContractError)
    if codec is not None:
        quick(
            lambda: codec.decode_event(b"\x00\x00\x00\x00\x01" + data.draw(st.binary(max_size=40))),
            RecordError,
            UnknownSchema,
        )


@pytest.mark.parametrize(
    "schema",
    [
        "[" * 40_000,
        json.dumps({"type": {"type": {"type": "string"}}}),
        '{"type":' * 5_000 + '"string"' + "}" * 5_000,
        json.dumps({"type": "record", "name": "A", "fields": [{"name": "a", "type": "A"}]}),
        json.dumps({"type": "record", "name": "A", "fields": [{"name": "a", "type": {"type": "array", "items": "null"}}]}),
        json.dumps({"type": "record", "name": "A"}),
        json.dumps({"type": "record", "name": "A", "fields": {"a": 1}}),
        json.dumps({"type": "enum", "name": "E"}),
        json.dumps({"type": "fixed", "name": "F", "size": 10**12}),
        json.dumps({"type": "fixed", "name": "F", "size": -5}),
        json.dumps(["null", ["null", "string"]]),
        "17",
        "null",
    ],
)  # fmt: skip
def test_a_hostile_schema_is_refused_or_harmless(tmp_path: Path, schema: str) -> None:
    index = read_json(DEFAULT_PATH / "index.json")
    for file in DEFAULT_PATH.glob("*.avsc"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    index["subjects"]["playback_event-value"].append({"version": 2, "id": 77, "file": "bad.avsc"})
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / "bad.avsc").write_text(schema)
    codec = quick(lambda: Codec(Registry.load(tmp_path)), ContractError)
    if codec is not None:
        for body in (b"", b"\x00" * 30, b"\xff" * 30, b"\xfe" * 9 + b"\x01"):
            quick(lambda body=body: codec.decode_event(b"\x00\x00\x00\x00\x4d" + body), RecordError)


@pytest.mark.parametrize("file", ["/dev/zero", "../../../../dev/zero", "/dev/stdin", "a\x00b", ".", "", "x" * 5000])
def test_a_registry_that_names_something_else_as_a_schema_is_refused_unread(tmp_path: Path, file: str) -> None:
    (tmp_path / "index.json").write_text(
        json.dumps({"subjects": {"playback_event-value": [{"version": 1, "id": 1, "file": file}]}})
    )
    assert quick(lambda: Registry.load(tmp_path), ContractError) is None


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", '"' + "9" * 5000 + '"', "[]", "{}", "null", "true"])
def test_a_registry_with_odd_numbers_is_refused(tmp_path: Path, number: str) -> None:
    for place in ("version", "id"):
        text = json.dumps({"subjects": {"s-value": [{"version": 1, "id": 1, "file": "s.avsc", place: "@"}]}})
        (tmp_path / "s.avsc").write_text('"string"')
        (tmp_path / "index.json").write_text(text.replace('"@"', number))
        quick(lambda: Registry.load(tmp_path), ContractError)


# Generation files


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('a pickle was loaded')",))


def npy(header: bytes, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + body


def zipped(member: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("item_factors.npy", member)
    return sink.getvalue()


def arrays_of_objects() -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.array([Bomb()], dtype=object), allow_pickle=True)
    return sink.getvalue()


SHAPE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"
FACTORS = {
    "huge shape": npy(SHAPE % b"9999999999999, 64"),
    "shape of a thousand digits": npy(SHAPE % (b"9" * 1000 + b",")),
    "negative": npy(SHAPE % b"-1, -2", b"\x00" * 24),
    "deep": npy(b"(" * 60_000),
    "deep dict": npy(b"{1:" * 20_000),
    "minus signs": npy(b"-" * 60_000 + b"1"),
    "sum": npy(b"1" + b"+1" * 30_000),
    "not a dict": npy(b"[]"),
    "code": npy(b"__import__('os').system('true')"),
    "unhashable": npy(b"{[]: 1}"),
    "format 2": npy(SHAPE % b"3, 2", b"\x00" * 24, b"\x02\x00"),
    "objects": arrays_of_objects(),
    "pickle": pickle.dumps(Bomb()),
    "zip": zipped(bytes(50_000_000)),
    "NaN": npy(SHAPE % b"3, 2", struct.pack("<6f", *[float("nan")] * 6)),
    "odd length": npy(SHAPE % b"3, 2", b"\x00" * 23),
    "header only": b"\x93NUMPY\x01\x00\xff\xff",
    "empty": b"",
}


@pytest.mark.parametrize("name", FACTORS)
def test_hostile_factors_are_refused(name: str) -> None:
    assert quick(lambda: parse_factors(FACTORS[name], 3, 2, "here", "item_factors.npy"), GenerationError) is None


@given(st.data())
@thorough
def test_any_bytes_are_refused_as_factors_or_are_the_matrix(data: st.DataObject) -> None:
    header = SHAPE % b"3, 2"
    whole = npy(header, struct.pack("<6f", *range(6)))
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    mutated = mutate(whole, range(len(whole)), whole, rng)
    matrix = quick(lambda: parse_factors(mutated, 3, 2, "here", "x.npy"), GenerationError)
    if matrix is not None:
        assert matrix.tobytes() == mutated[-24:]


def put(root: Path, name: str, data: bytes) -> None:
    """Replace a file of the generation and make the manifest say so: checksums keep out accidents, not whoever writes both."""
    (root / "g1" / name).write_bytes(data)
    path = root / "g1" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    path.write_text(json.dumps(manifest))


def table_bytes(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def many_rows(rows: int) -> bytes:
    """40 GB of rows in 4 MB: one value, encoded as runs."""
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int8)), pa.array(["x" * 1000]))
    return table_bytes(pa.table({"viewer": column, "item_id": column}), compression="zstd")


def long_texts() -> bytes:
    """Three rows of 200 MB each in a few kilobytes."""
    rows = {
        name: ["a" * 200_000_000, "b", "c"] if name == "title" else ["a", "b", "c"]
        for name in ("item_id", "title", "viewer")
    }
    return table_bytes(pa.table(rows), compression="zstd", use_dictionary=False, write_statistics=False)


@pytest.fixture(scope="session")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Made in a child process: making them takes the memory that reading them must not."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return {"rows": pool.apply(many_rows, (20_000_000,)), "texts": pool.apply(long_texts)}


def load_titles(root: Path, generation_id: str) -> object:
    """As the home page does."""
    return load_catalogue(root / generation_id)


LOADERS = {"generation": load_generation, "items": load_items, "users": load_users, "titles": load_titles}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("bomb", ["rows", "texts"])
def test_a_table_that_unpacks_to_more_than_the_manifest_says_is_refused_unread(
    tmp_path: Path, bombs: dict[str, bytes], bomb: str, loader: str
) -> None:
    publish(tmp_path)
    assert len(bombs[bomb]) < 5_000_000
    for name in (ITEMS, USERS):
        put(tmp_path, name, bombs[bomb])
    with pytest.raises(GenerationError):
        LOADERS[loader](tmp_path, "g1")


TABLES = {
    "garbage": b"garbage" * 100,
    "empty": b"",
    "magic alone": b"PAR1PAR1",
    "huge footer": b"PAR1" + bytes(50) + b"\xff\xff\xff\x7fPAR1",
    "garbage footer": b"PAR1" + b"\x15\x04" * 40 + (80).to_bytes(4, "little") + b"PAR1",
    "zip": zipped(bytes(1_000_000)),
    "pickle": pickle.dumps(Bomb()),
    "other columns": table_bytes(pa.table({"a": [1, 2, 3]})),
    "no rows": table_bytes(ITEMS_SCHEMA.empty_table()),
    "twice the same": table_bytes(pa.table({"item_id": ["a", "a", "b"], "viewer": ["a", "a", "b"]})),
    "numbers as ids": table_bytes(pa.table({"item_id": [1, 2, 3], "viewer": [[1], [2], [3]]})),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", TABLES)
def test_hostile_tables_are_refused(tmp_path: Path, name: str, loader: str) -> None:
    publish(tmp_path)
    for file in (ITEMS, USERS):
        put(tmp_path, file, TABLES[name])
    if (name, loader) == (
        "no rows",
        "titles",
    ):  # the home page is not told how many there are, and shows ids without titles
        assert load_titles(tmp_path, "g1") == {}
        return
    with pytest.raises(GenerationError):
        LOADERS[loader](tmp_path, "g1")


@given(seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_mutated_table_is_refused_or_read(generation: Path, seed: int) -> None:
    rng = random.Random(seed)
    original = {name: (generation / "g1" / name).read_bytes() for name in (ITEMS, USERS)}
    try:
        for name, data in original.items():
            raw = bytearray(data)
            for _ in range(rng.randrange(1, 5)):
                raw[rng.randrange(len(raw))] = rng.randrange(256)
            put(generation, name, bytes(raw[: rng.choice((len(raw), len(raw), rng.randrange(len(raw))))]))
        for load in LOADERS.values():
            quick(lambda load=load: load(generation, "g1"), GenerationError)
    finally:
        for name, data in original.items():
            put(generation, name, data)


@pytest.mark.parametrize("name", ["../x", "/etc", "", ".", "..", "CURRENT", "a/b", "a\x00b", "x" * 500, "a\n"])
def test_a_generation_id_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    for loader in (load_generation, load_items, load_users):
        with pytest.raises(GenerationError):
            loader(open_root(tmp_path), name)


# The home page


def make_homepage() -> Homepage:
    """A service over an empty store."""
    store = MemoryStore()
    return Homepage(store, CODEC, make_catalogue(), Impressions(), DefaultRows(store))


async def ask(app: Any, path: str, query: bytes, headers: list[tuple[bytes, bytes]], method: str) -> tuple[int, bytes]:
    """One request as uvicorn would hand it over."""
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http", "path": path,
        "raw_path": path.encode("utf-8", "replace"), "query_string": query, "root_path": "", "headers": headers,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(one.get("body", b"") for one in sent[1:])


QUERIES = [
    b"limit=9999999999999999999", b"limit=%00", b"limit=\xd9\xa3", b"territory=\xff&maturity=-1", b"limit=1&limit=x", b"&" * 5000,
]  # fmt: skip


@given(
    viewer=st.text(max_size=300) | st.sampled_from(["ana", "..", "%2e%2e", "a{b}", "a" * 129, "a\r\nb", "ana/../ben"]),
    query=st.binary(max_size=60) | st.sampled_from(QUERIES),
    headers=st.lists(
        st.tuples(st.sampled_from([b"x-nearline-private", b"host", b"cookie", b"content-length", b"accept"]), st.binary(max_size=40)),
        max_size=5,
    ),
    method=st.sampled_from(["GET", "GET", "HEAD", "POST", "DELETE", "X" * 50]),
)  # fmt: skip
@thorough
def test_any_request_gets_an_answer_that_is_no_server_error_and_does_not_quote_it(
    viewer: str, query: bytes, headers: list[tuple[bytes, bytes]], method: str
) -> None:
    app = make_app(make_homepage())
    for path in ("/v1/home/" + viewer, "/" + viewer, "/health/live/" + viewer):
        status, body = quick(lambda path=path: asyncio.run(ask(app, path, query, headers, method)))
        assert status in (200, 307, 400, 404, 405), (status, body)
        if status == 400:
            assert json.loads(body)["error"].split(":")[0] in ("viewer", "limit", "territory", "maturity")


GARBAGE = [
    b"\x00" * 4096, b"\xff" * 4096, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /\x00 HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n", b"GET / HTTP/1.1\r\nx: " + b"y" * 300_000 + b"\r\n\r\n",
    b"POST / HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
    b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n", b"GET /%ff%00%zz HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /v1/home/ana HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", b"G", b"",
]  # fmt: skip


async def test_garbage_on_the_socket_leaves_the_server_answering() -> None:
    rng = random.Random(3)
    async with serve(make_app(make_homepage()), "127.0.0.1", 0) as port:

        async def send(data: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(data)
                writer.write_eof()
                await writer.drain()
                async with asyncio.timeout(10):
                    return await reader.read()
            except OSError:  # the server hung up on it
                return b""
            finally:
                writer.close()

        for data in [*GARBAGE, *(rng.randbytes(rng.randrange(1, 2000)) for _ in range(50))]:
            answer = await send(data)
            assert not answer.startswith(b"HTTP/1.1 5"), (data[:60], answer[:60])
        assert (await send(b"GET /health/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).startswith(
            b"HTTP/1.1 200"
        )


async def test_headers_without_end_are_hung_up_on() -> None:
    async with serve(make_app(make_homepage()), "127.0.0.1", 0) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nx: ")
        sent_mib = 0
        with pytest.raises(ConnectionError):
            while sent_mib < 200:  # the peak of `bounded_memory` is lower
                writer.write(b"y" * (1 << 20))
                await writer.drain()
                sent_mib += 1
        writer.close()


# Dead letters


@given(
    st.none() | st.binary(max_size=40), st.none() | st.binary(max_size=100),
    st.lists(st.tuples(st.text(max_size=12) | st.just("private"), st.binary(max_size=5)), max_size=5), st.integers(-1, 2**63 - 1),
)  # fmt: skip
@thorough
def test_any_letter_is_sent_again_or_says_why_not(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]], timestamp_ms: int
) -> None:
    letter = Letter(Coordinates("t", 1, 0, 5), "X", "y", timestamp_ms, key, value, tuple(headers))
    why = quick(lambda: refusal(letter, CODEC.decode_event, Limits()))
    private = ("private", b"1") in headers  # any of them: who said it once meant it
    assert why is not None  # none of these is an event
    assert ("private" in why) == private
    assert quick(lambda: belongs_to("ana-0042", CODEC)(letter)) is (key == b"ana-0042")


@given(st.lists(st.tuples(st.text(max_size=60), st.none() | st.binary(max_size=30)), max_size=20), st.binary())
@thorough
def test_any_record_of_the_dead_letter_topic_can_be_looked_at(fields: list, value: bytes) -> None:
    record = SimpleNamespace(key=None, value=value, headers=tuple(fields), timestamp=5)
    read = quick(lambda: parse(record))
    assert read is None or isinstance(read, Letter | Mark)
    assert read is None or all(isinstance(one, str | int) for one in asdict(read)["at"])
