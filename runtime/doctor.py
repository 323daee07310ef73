"""`nearline doctor`: is everything there that Nearline needs, and if not, what to type.

Probes ask the outside world and return facts; `judge_…` functions turn facts into findings and are pure. A finding is good
(`ok` True), bad (False: something will not work or data may be lost) or a piece of advice (None).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import importlib.metadata
import os
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis.asyncio as redis
from redis.exceptions import RedisError

from contracts.current import parse_current
from contracts.errors import GenerationError, RegistryUnavailable, SettingsError
from contracts.manifest import GENERATION_ID, from_json
from runtime.doctor_kafka import check_kafka
from runtime.findings import DEPENDENCIES, PROBE_DEADLINE_S, Finding, exit_code, render
from runtime.redis_errors import explain, explain_timeout
from runtime.settings import Settings

__all__ = ["Finding", "diagnose", "exit_code", "render"]

MIN_PYTHON = (3, 11)
MIN_STORE = (7, 0)
"""The first Redis with the `#!lua` shebang; every Valkey has it."""
MAX_CLOCK_DIFFERENCE_S = 5.0
"""Events more than five minutes ahead of the broker are dead letters: a clock that is seconds off is on its way there."""
MAX_MEMORY_SHARE = 0.8
"""Above this an append-only rewrite or a busy evening can reach the limit, and then writes are refused."""


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """`info` as INFO gives it; `clock_difference_s` is the store's clock minus ours; `shebang` whether `#!lua` runs; `counts_trends`
    whether some process does; `frozen`: since when (ms) and why rows are, as the store holds it; `not_rebuilt`: what has to be typed if the
    store knows of no finished rebuild of what is in force."""

    info: Mapping[str, Any]
    clock_difference_s: float
    shebang: bool
    counts_trends: bool
    frozen: str | None = None
    not_rebuilt: str | None = None


async def diagnose(settings: Settings) -> list[Finding]:
    """Everything, in the order in which one would mend it."""
    kafka, store = await asyncio.gather(check_kafka(settings), _check_store(settings))
    return [
        judge_python(sys.version_info[:3]),
        *(_check_dependency(distribution) for distribution in DEPENDENCIES),
        *kafka,
        *store,
        *await asyncio.to_thread(check_registry, settings),
        *await asyncio.to_thread(check_generations, settings.generations_path),
        check_folder("lake", settings.lake_path, "NEARLINE_LAKE_PATH"),
        check_port("home page", settings.homepage.host, settings.homepage.port, "NEARLINE_HOMEPAGE__PORT"),
        check_port("health", settings.health.host, settings.health.port, "NEARLINE_HEALTH__PORT"),
    ]


# Python


def judge_python(version: tuple[int, ...]) -> Finding:
    """`version`: as `sys.version_info`."""
    found = ".".join(map(str, version))
    if version >= MIN_PYTHON:
        return Finding("python", True, found)
    return Finding("python", False, found, f"install Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer, then ./run setup")


def _check_dependency(distribution: str) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(distribution.replace("-", "_"))
        return Finding(distribution, True, importlib.metadata.version(distribution))
    except Exception as error:  # noqa: BLE001 - a broken wheel raises what it likes; it is the finding
        return Finding(
            distribution, False, f"{type(error).__name__}: {error}", "./run setup installs what the lock names"
        )


# The store


async def _check_store(settings: Settings) -> list[Finding]:
    where = _store_address(settings)
    encrypted = settings.store.url.get_secret_value().startswith("rediss:")
    try:
        async with asyncio.timeout(PROBE_DEADLINE_S):
            facts = await _probe_store(settings)
    except SettingsError as error:
        return [Finding("store", False, str(error), "set them right, or leave them unset")]
    except (RedisError, OSError, TimeoutError, ValueError) as error:
        cause = explain(error, encrypted=encrypted) if isinstance(error, RedisError | OSError) else str(error)
        if isinstance(error, TimeoutError) or not cause:
            cause = explain_timeout(PROBE_DEADLINE_S, encrypted=encrypted)
        remedy = (
            "start Valkey or Redis >= 7.0 (./run demo brings its own), or set NEARLINE_STORE__URL; "
            "rediss:// for TLS, redis://user:password@host:port/0 with a password"
        )
        return [Finding("store", False, f"{where}: {cause}", remedy)]
    return judge_store(where, facts)


def _store_address(settings: Settings) -> str:
    """Host and port without the password."""
    return settings.store.url.get_secret_value().rpartition("@")[2].removeprefix("redis://").removeprefix("rediss://")


async def _probe_store(settings: Settings) -> StoreFacts:
    client = redis.Redis.from_url(
        settings.store.url.get_secret_value(),
        protocol=2,
        retry=None,
        socket_connect_timeout=PROBE_DEADLINE_S,
        socket_timeout=PROBE_DEADLINE_S,
        **settings.store.client_kwargs(),
    )
    try:
        info = await client.info("everything")
        seconds, microseconds = await client.time()
        difference_s = seconds + microseconds / 1e6 - time.time()
        try:
            shebang = await client.eval("#!lua flags=no-writes\nreturn 1", 0) == 1
        except RedisError:
            shebang = False
        counts_trends = await client.get(settings.keys.trends_owner) is not None
        frozen = await client.get(settings.keys.frozen)
        why = frozen.decode(errors="replace") if isinstance(frozen, bytes) else frozen
        activation, again = _in_force(settings.generations_path)
        rebuilt = not activation or await client.get(settings.keys.rebuilt(activation)) is not None
        return StoreFacts(info, difference_s, shebang, counts_trends, why, None if rebuilt else again)
    finally:
        await client.aclose()


def judge_store(where: str, facts: StoreFacts) -> list[Finding]:
    """Release, durability, eviction, memory and clock of the store."""
    info = facts.info
    product, version = (
        ("Valkey", info["valkey_version"]) if "valkey_version" in info else ("Redis", str(info["redis_version"]))
    )
    numbers = tuple(int(part) for part in str(version).split(".")[:2])
    recent = product == "Valkey" or numbers >= MIN_STORE
    found = f"{where}: {product} {version}"
    findings = [
        Finding("store", True, found)
        if recent and facts.shebang
        else Finding(
            "store",
            False,
            found,
            "upgrade to Valkey 8 or Redis 7.0: scripts need `#!lua`, which must be allowed to this user",
        )
    ]

    if info.get("aof_enabled"):
        findings.append(Finding("store durability", True, "appendonly yes"))
    else:
        remedy = "CONFIG SET appendonly yes, and the line `appendonly yes` in valkey.conf; without it a restart loses every row"
        findings.append(Finding("store durability", False, "appendonly no", remedy))

    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        findings.append(Finding("store eviction", True, policy))
    else:
        remedy = "CONFIG SET maxmemory-policy noeviction, and the line `maxmemory-policy noeviction` in valkey.conf; else viewers vanish"
        findings.append(Finding("store eviction", False, policy, remedy))

    findings.append(
        _judge_memory(int(info["used_memory"]), int(info.get("maxmemory", 0)), int(info.get("total_system_memory", 0)))
    )

    if facts.counts_trends:
        findings.append(Finding("trends", True, "an aggregator counts"))
    else:
        remedy = "start ./run nearline trends (beside the updaters); without it trends are as old as the generation"
        findings.append(Finding("trends", None, "nobody counts them", remedy))

    if facts.frozen is not None:
        remedy = (
            "if that is over: ./run nearline unfreeze; until then rows stand still and plays are kept (docs/rollout.md)"
        )
        findings.append(Finding("rows", None, f"frozen: {facts.frozen.partition(':')[2] or 'no reason given'}", remedy))

    if facts.not_rebuilt is not None:
        remedy = f"a rebuild is at work, or was interrupted: the next night does it, or at once: ./run nearline {facts.not_rebuilt}"
        findings.append(Finding("rebuild", None, "not everybody's row is known to be of what is in force", remedy))

    difference_s = facts.clock_difference_s
    if abs(difference_s) <= MAX_CLOCK_DIFFERENCE_S:
        findings.append(Finding("clock", True, f"{difference_s:+.3f} s at the store"))
    else:
        remedy = "one of the two clocks is wrong: let NTP set both (timedatectl set-ntp true); events from the future are dead letters"
        findings.append(Finding("clock", False, f"{difference_s:+.1f} s at the store", remedy))
    return findings


def _judge_memory(used_bytes: int, limit_bytes: int, machine_bytes: int) -> Finding:
    """The store's memory against its limit, else against its machine's."""
    whole_bytes = limit_bytes or machine_bytes
    found = f"{used_bytes / 2**20:.0f} MiB used of {whole_bytes / 2**20:.0f} MiB ({'maxmemory' if limit_bytes else 'the machine'})"
    if whole_bytes and used_bytes > MAX_MEMORY_SHARE * whole_bytes:
        remedy = "raise maxmemory (CONFIG SET maxmemory 8gb, and valkey.conf) or the machine; when it is full, updating pauses"
        return Finding("store memory", False, found, remedy)
    if not limit_bytes:
        remedy = "CONFIG SET maxmemory to some 70 % of the machine, and valkey.conf: a refused write is better than a killed server"
        return Finding("store memory", None, found, remedy)
    return Finding("store memory", True, found)


# The schema registry


def check_registry(settings: Settings) -> list[Finding]:
    """Whether its server answers and has our schemas; nothing where schemas are in a folder."""
    if not settings.schemas.registry_url:
        return []
    from contracts.check import check
    from runtime.schema_server import SchemaServer

    name = "schema registry"
    try:
        server = SchemaServer(settings)
        report = check(registry=server.read())
    except SettingsError as error:
        return [Finding(name, False, str(error), "set them right, or leave them unset")]
    except RegistryUnavailable as error:
        return [Finding(name, False, str(error), "nothing is lost: updaters wait for it with what they cannot read")]
    lacking = [one for one in report.subjects if one.status != "ok"]
    if not lacking:
        return [Finding(name, True, f"{server.url}: has every schema")]
    found = "; ".join(f"{one.subject}: {one.problems[0] if one.problems else 'not registered'}" for one in lacking)
    remedy = (
        f"nearline contracts check --registry {server.url}, then: nearline contracts register --registry {server.url}"
    )
    return [Finding(name, False, f"{server.url}: {found}", remedy)]


# Folders and ports


def check_folder(name: str, path: str, setting: str) -> Finding:
    """Whether files can be written there; the folder itself is made by whoever writes first."""
    if "://" in path:
        return Finding(
            name, None, path, "an address, not a folder: whether it can be written is seen at the first write"
        )
    folder = Path(path).absolute()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        remedy = f"let this user write there (chown {os.getuid()} {existing}), or set {setting}"
        return Finding(name, False, f"{folder}: {error.strerror}", remedy)
    return Finding(name, True, f"{folder}" if folder.exists() else f"{folder} (will be made)")


def check_generations(path: str) -> list[Finding]:
    """The folder, and whether `CURRENT` names a generation that is whole: every file as the manifest, which was written last, says."""
    findings = [check_folder("generations", path, "NEARLINE_GENERATIONS_PATH")]
    if "://" in path:
        return findings
    current = Path(path) / "CURRENT"
    try:
        text = current.read_text()
    except FileNotFoundError:
        remedy = (
            "run the nightly job once: ./run nearline nightly; until then the default row serves and plays are kept"
        )
        return [*findings, Finding("generation in force", None, "none yet", remedy)]
    except (OSError, UnicodeDecodeError) as error:
        return [
            *findings,
            Finding(
                "generation in force", False, f"{current}: {error}", "roll back: ./run nearline generations rollback"
            ),
        ]
    try:
        named = parse_current(text, str(current)).generations
    except GenerationError:
        named = ("",)
    names = ("generation in force", "candidate")[: len(named)]
    return findings + [_check_generation(name, path, text, one) for name, one in zip(names, named, strict=True)]


def _in_force(path: str) -> tuple[int, str]:
    """The activation that `CURRENT` names, and the verb that does it again; 0 where none is to be read here."""
    try:
        current = parse_current((Path(path) / "CURRENT").read_bytes(), "CURRENT")
    except (OSError, GenerationError):
        return 0, ""
    again = (
        f"activate {current.generation_id}" if current.share is None else f"share --percent {current.share.percent:g}"
    )
    return current.activation, f"generations {again}"


def _check_generation(name: str, path: str, text: str, generation_id: str) -> Finding:
    """Whether it was written to its end, and is as it was written. `generation_id`: empty where `CURRENT` is not to be read."""
    back = "generations share --stop" if name == "candidate" else "generations rollback"
    folder = Path(path) / generation_id
    if not GENERATION_ID.fullmatch(generation_id) or not (folder / "manifest.json").is_file():
        remedy = f"its folder is missing or has no manifest.json: restore it, or go back: ./run nearline {back}"
        return Finding(name, False, f"CURRENT says {text.strip()[:80]}", remedy)
    wrong = _damage(folder)
    if wrong is None:
        return Finding(name, True, generation_id)
    if name != "candidate":
        return Finding(
            name, False, f"{generation_id}: {wrong}", f"restore its files, or go back: ./run nearline {back}"
        )
    again = _in_force(path)[1]
    remedy = (
        f"its viewers' rows stand still where an updater cannot load it: restore its files and then ./run nearline {again}, "
        f"or go back: ./run nearline {back}"
    )
    return Finding(name, False, f"{generation_id}: {wrong}", remedy)


def _damage(folder: Path) -> str | None:
    """The first file that is not what the manifest says; None if all are."""
    try:
        manifest = from_json((folder / "manifest.json").read_bytes(), "manifest.json")
        for name, entry in manifest.files.items():
            with (folder / name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != entry.size_bytes:
                    return f"{name} has {size} bytes, its manifest says {entry.size_bytes}"
                if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                    return f"{name} is corrupt: its sha256 is not the manifest's"
    except GenerationError as error:
        return str(error)
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    return None


def check_port(name: str, host: str, port: int, setting: str) -> Finding:
    """Whether a server could listen there now."""
    label = f"{name} port"
    if port == 0:
        return Finding(label, True, f"{host}: any free port")
    with contextlib.closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            remedy = f"fine if that is Nearline itself; else stop what listens there, or set {setting}"
            return Finding(label, None, f"{host}:{port}: {error.strerror}", remedy)
    return Finding(label, True, f"{host}:{port} is free")
