"""The doctor's questions to Kafka: the broker, the topic, the dead letters."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.admin import ApiVersionRequest

from contracts.errors import KafkaUnavailable
from runtime.findings import PROBE_DEADLINE_S, Finding
from runtime.kafka import KafkaError, make_admin
from runtime.settings import Settings

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
FETCH_VERSIONS = {11: "2.3", 12: "2.7", 13: "3.1", 15: "3.5", 16: "3.7", 17: "3.9", 18: "4.1"}
"""Highest Fetch version a broker speaks → the first release that spoke it. Brokers do not tell their release."""


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """What the broker says. `partitions` is 0 when the topic does not exist."""

    fetch_version: int
    partitions: int
    config: Mapping[str, str]


async def check_kafka(settings: Settings) -> list[Finding]:
    where = settings.kafka.bootstrap_servers
    noisy = logging.getLogger("aiokafka")
    level = noisy.level
    noisy.setLevel(logging.CRITICAL)  # it logs each refused connection; the finding says it once
    try:
        async with asyncio.timeout(PROBE_DEADLINE_S):
            facts, letters = await _probe_kafka(settings)
    except (KafkaUnavailable, KafkaError, OSError, TimeoutError) as error:
        cause = str(error) or f"no answer within {PROBE_DEADLINE_S:.0f} s"
        remedy = (
            "start Kafka (./run demo brings its own), or set NEARLINE_KAFKA__BOOTSTRAP_SERVERS, and for TLS or a password "
            "NEARLINE_KAFKA__SECURITY_PROTOCOL, __SSL_CA_FILE and __SASL_*"
        )
        return [Finding("kafka", False, cause if isinstance(error, KafkaUnavailable) else f"{where}: {cause}", remedy)]
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
