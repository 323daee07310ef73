"""`nearline doctor`: is everything there that Nearline needs, and if not, what to type.

Probes ask the outside world and return facts; `judge_…` functions turn facts into findings and are pure. A finding is good
(`ok` True), bad (False: something will not work or data may be lost) or a piece of advice (None).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.metadata
import logging
import os
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis.asyncio as redis
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.admin import ApiVersionRequest
from redis.exceptions import RedisError

from contracts.errors import KafkaUnavailable
from runtime.kafka import KafkaError, make_admin
from runtime.settings import Settings

PROBE_DEADLINE_S = 5.0
"""What one server gets to answer everything; a healthy one needs milliseconds."""

MIN_PYTHON = (3, 11)
MIN_STORE = (7, 0)
"""The first Redis with the `#!lua` shebang; every Valkey has it."""
MIN_PARTITIONS = 2
"""Fewer and a second updater would stand by idle."""
MIN_RETENTION_MS = 7 * 24 * 3_600_000
"""A lake that was not fed for a week, or a store that fell back that far, can still catch up from the log."""
MAX_AHEAD_MS = 24 * 3_600_000
"""Records stamped further ahead than this should be refused by the broker, whose default is an hour since Kafka 4 and was never."""
DEFAULT_AHEAD_MS = 3_600_000
MAX_LETTER_SEGMENT_MS = 7 * 24 * 3_600_000
"""Erased dead letters are unreadable at once and leave the disk with their segment. Kafka's default, and a week is long."""
LETTER_SEGMENT_MS = 24 * 3_600_000
MAX_CLOCK_DIFFERENCE_S = 5.0
"""Events more than five minutes ahead of the broker are dead letters: a clock that is seconds off is on its way there."""
MAX_MEMORY_SHARE = 0.8
"""Above this an append-only rewrite or a busy evening can reach the limit, and then writes are refused."""

DEPENDENCIES = (
    "aiokafka avro fastavro hiredis httptools implicit numpy prometheus-client pyarrow pydantic pydantic-settings redis rich "
    "scipy stamina starlette structlog threadpoolctl typer uvicorn"
).split()
"""Distributions; each one's module has the same name with underscores."""

FETCH_VERSIONS = {11: "2.3", 12: "2.7", 13: "3.1", 15: "3.5", 16: "3.7", 17: "3.9", 18: "4.1"}
"""Highest Fetch version a broker speaks → the first release that spoke it. Brokers do not tell their release."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `ok`: True good, False bad, None advice. `remedy` is empty when there is nothing to do."""

    name: str
    ok: bool | None
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """What the broker says. `partitions` is 0 when the topic does not exist."""

    fetch_version: int
    partitions: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """`info` as INFO gives it; `clock_difference_s` is the store's clock minus ours; `shebang` whether `#!lua` runs."""

    info: Mapping[str, Any]
    clock_difference_s: float
    shebang: bool


async def diagnose(settings: Settings) -> list[Finding]:
    """Everything, in the order in which one would mend it."""
    kafka, store = await asyncio.gather(_check_kafka(settings), _check_store(settings))
    return [
        judge_python(sys.version_info[:3]),
        *(_check_dependency(distribution) for distribution in DEPENDENCIES),
        *kafka,
        *store,
        *check_generations(settings.generations_path),
        check_folder("lake", settings.lake_path, "NEARLINE_LAKE_PATH"),
        check_port("home page", settings.homepage.host, settings.homepage.port, "NEARLINE_HOMEPAGE__PORT"),
        check_port("health", settings.health.host, settings.health.port, "NEARLINE_HEALTH__PORT"),
    ]


def exit_code(findings: Sequence[Finding]) -> int:
    """0 when nothing is bad, else 1; advice does not count."""
    return int(any(finding.ok is False for finding in findings))


def render(findings: Sequence[Finding]) -> None:
    """Print the report for a person. Remedies stand on one line each, so that they can be copied."""
    from rich.console import Console
    from rich.text import Text

    signs = {True: ("ok  ", "green"), False: ("bad ", "bold red"), None: ("note", "yellow")}
    good_packages = [finding for finding in findings if finding.name in DEPENDENCIES and finding.ok]
    packages = Finding("python packages", True, f"all {len(good_packages)} that were looked for can be imported")
    shown = [finding for finding in findings if finding not in good_packages]
    if len(good_packages) == len(DEPENDENCIES):
        shown.insert(1, packages)
    width = max((len(finding.name) for finding in shown), default=0)
    console = Console()
    for finding in shown:
        word, style = signs[finding.ok]
        console.print(Text.assemble((word, style), f"  {finding.name:{width}}  {finding.found}"), soft_wrap=True)
        if finding.remedy:
            console.print(
                Text(f"      → {finding.remedy}", style="bold" if finding.ok is False else "dim"), soft_wrap=True
            )
    bad = sum(finding.ok is False for finding in findings)
    console.print(f"{bad} to mend" if bad else "nothing to mend", style="bold red" if bad else "green")


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


# Kafka


async def _check_kafka(settings: Settings) -> list[Finding]:
    where = settings.kafka.bootstrap_servers
    noisy = logging.getLogger("aiokafka")
    level = noisy.level
    noisy.setLevel(logging.CRITICAL)  # it logs each refused connection; the finding says it once
    try:
        async with asyncio.timeout(PROBE_DEADLINE_S):
            facts, letters = await _probe_kafka(settings)
    except (KafkaUnavailable, KafkaError, OSError, TimeoutError) as error:
        cause = str(error.__cause__ or error) or f"no answer within {PROBE_DEADLINE_S:.0f} s"
        remedy = (
            "start Kafka (./run demo brings its own), or set NEARLINE_KAFKA__BOOTSTRAP_SERVERS, and for TLS or a password "
            "NEARLINE_KAFKA__SECURITY_PROTOCOL, __SSL_CA_FILE and __SASL_*"
        )
        return [Finding("kafka", False, f"{where}: {cause}", remedy)]
    finally:
        noisy.setLevel(level)
    return [
        judge_broker(where, facts.fetch_version),
        *judge_topic(settings.kafka.topic, where, facts),
        *judge_dead_letters(settings.kafka.dead_letter_topic, where, letters),
    ]


async def _probe_kafka(settings: Settings) -> tuple[TopicFacts, TopicFacts]:
    """What the broker says of the playback topic and of the dead letters'."""
    admin = await make_admin(settings)
    try:
        # The library has no public call for these two answers; both requests are part of Kafka's stable protocol.
        versions = await admin._send_request(ApiVersionRequest())
        fetch_key = 1
        fetch_version = max((entry[2] for entry in versions.api_versions if entry[0] == fetch_key), default=0)
        # All topics, not these by name: asking by name would create them where a broker creates topics by itself.
        there = await admin.list_topics()

        async def facts(topic: str) -> TopicFacts:
            if topic not in there:
                return TopicFacts(fetch_version, 0, {})
            described = await admin.describe_topics([topic])
            answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
            config = {
                entry[0]: entry[1] for answer in answers for resource in answer.resources for entry in resource[4]
            }
            return TopicFacts(fetch_version, len(described[0]["partitions"]), config)

        return await facts(settings.kafka.topic), await facts(settings.kafka.dead_letter_topic)
    finally:
        await admin.close()


def judge_broker(where: str, fetch_version: int) -> Finding:
    """Which release a broker is at least, from the highest Fetch version it speaks."""
    release = max((version for version in FETCH_VERSIONS if version <= fetch_version), default=None)
    if release is None:
        return Finding(
            "kafka", False, f"{where}: older than Kafka 2.3", "upgrade the broker; Kafka 4 is what is tested"
        )
    return Finding("kafka", True, f"{where}: Kafka {FETCH_VERSIONS[release]} or newer")


def judge_topic(topic: str, where: str, facts: TopicFacts) -> list[Finding]:
    """Existence, partitions, retention, clean-up and time stamps of the playback topic."""
    tool = f"--bootstrap-server {where}"
    if facts.partitions == 0:
        create = (
            f"kafka-topics.sh {tool} --create --topic {topic} --partitions 4 --config retention.ms={MIN_RETENTION_MS}"
        )
        return [Finding("topic", False, f"{topic} does not exist", f"create it: {create}")]
    alter = f"kafka-configs.sh {tool} --alter --topic {topic} --add-config"
    if facts.partitions < MIN_PARTITIONS:
        more = f"kafka-topics.sh {tool} --alter --topic {topic} --partitions 4, so that more than one updater can work"
        partitions = Finding("topic", None, f"{topic}: 1 partition", more)
    else:
        partitions = Finding("topic", True, f"{topic}: {facts.partitions} partitions")
    findings = [partitions]

    retention_ms = int(facts.config.get("retention.ms", "-1"))
    span = "for ever" if retention_ms < 0 else f"{retention_ms / 86_400_000:.3g} days"
    if 0 <= retention_ms < MIN_RETENTION_MS:
        remedy = f"at least 7 days, so that a fallen-back store can be caught up from the log: {alter} retention.ms={MIN_RETENTION_MS}"
        findings.append(Finding("topic retention", None, span, remedy))
    else:
        findings.append(Finding("topic retention", True, span))

    policy = facts.config.get("cleanup.policy", "delete")
    if policy != "delete":
        remedy = f"compaction keeps one event per viewer and loses plays: {alter} cleanup.policy=delete"
        findings.append(Finding("topic clean-up", False, policy, remedy))
    else:
        findings.append(Finding("topic clean-up", True, policy))
    return [*findings, _judge_timestamps(facts.config, alter)]


def _judge_timestamps(config: Mapping[str, str], alter: str) -> Finding:
    """Whether the broker refuses records stamped far ahead: event times are held against the stamp, and so is retention."""
    name = "topic time stamps"
    if config.get("message.timestamp.type") == "LogAppendTime":
        return Finding(name, True, "the broker's own")
    # Brokers before Kafka 3.6 know only the second, which bounds both directions.
    key = next(
        (key for key in ("message.timestamp.after.max.ms", "message.timestamp.difference.max.ms") if key in config),
        "message.timestamp.after.max.ms",
    )
    ahead_ms = int(config.get(key, MAX_AHEAD_MS + 1))
    if ahead_ms > MAX_AHEAD_MS:
        remedy = (
            f"a record stamped far ahead brings events from the future, and retention spares its segment: "
            f"{alter} {key}={DEFAULT_AHEAD_MS}"
        )
        return Finding(name, None, "may be far ahead", remedy)
    return Finding(name, True, f"at most {ahead_ms / 3_600_000:.3g} h ahead")


def judge_dead_letters(topic: str, where: str, facts: TopicFacts) -> list[Finding]:
    """Existence, retention, clean-up and segments of the dead letter topic. All advice: plays do not depend on it."""
    tool = f"--bootstrap-server {where}"
    if facts.partitions == 0:
        create = (
            f"kafka-topics.sh {tool} --create --topic {topic} --partitions 1 --config cleanup.policy=delete "
            f"--config retention.ms=-1 --config segment.ms={LETTER_SEGMENT_MS}"
        )
        remedy = f"create it, or the first record that cannot be read stops the updater: {create}"
        return [Finding("dead letters", None, f"{topic} does not exist", remedy)]
    alter = f"kafka-configs.sh {tool} --alter --topic {topic} --add-config"
    findings = []
    policy = facts.config.get("cleanup.policy", "delete")
    if policy != "delete":
        remedy = f"compaction drops letters and the marks beside them: {alter} cleanup.policy=delete"
        findings.append(Finding("dead letters clean-up", None, policy, remedy))
    retention_ms = int(facts.config.get("retention.ms", "-1"))
    if retention_ms >= 0:
        remedy = f"letters carry their records' times, so old ones vanish at once: {alter} retention.ms=-1"
        findings.append(Finding("dead letters retention", None, f"{retention_ms / 86_400_000:.3g} days", remedy))
    segment_ms = int(facts.config.get("segment.ms", LETTER_SEGMENT_MS))
    if segment_ms > MAX_LETTER_SEGMENT_MS:
        remedy = f"an erased viewer's letters leave the disk with their segment: {alter} segment.ms={LETTER_SEGMENT_MS}"
        findings.append(Finding("dead letters segments", None, f"{segment_ms / 86_400_000:.3g} days", remedy))
    return findings or [Finding("dead letters", True, f"{topic}: kept for ever")]


# The store


async def _check_store(settings: Settings) -> list[Finding]:
    where = _store_address(settings)
    try:
        async with asyncio.timeout(PROBE_DEADLINE_S):
            facts = await _probe_store(settings)
    except (RedisError, OSError, TimeoutError, ValueError) as error:
        cause = str(error) or f"no answer within {PROBE_DEADLINE_S:.0f} s"
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
    )
    try:
        info = await client.info("everything")
        seconds, microseconds = await client.time()
        difference_s = seconds + microseconds / 1e6 - time.time()
        try:
            shebang = await client.eval("#!lua flags=no-writes\nreturn 1", 0) == 1
        except RedisError:
            shebang = False
        return StoreFacts(info, difference_s, shebang)
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
    """The folder, and whether `CURRENT` names a generation that was written to its end (its manifest comes last)."""
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
    complete = [manifest.parent.name for manifest in Path(path).glob("*/manifest.json")]
    named = max((name for name in complete if name in text), key=len, default=None)
    if named is None:
        remedy = "its folder is missing or has no manifest.json: restore it, or roll back: ./run nearline generations rollback"
        return [*findings, Finding("generation in force", False, f"CURRENT says {text.strip()[:80]}", remedy)]
    return [*findings, Finding("generation in force", True, named)]


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
