"""The topics that the program needs, made if they are not there yet."""

from __future__ import annotations

from collections.abc import Mapping

from contracts.errors import KafkaUnavailable
from runtime.kafka import NewTopic, kafka_errors, make_admin
from runtime.settings import Settings

KEEP_FOR_EVER = {"retention.ms": "-1"}
"""A sandbox's log is its history: imported plays are years old, and any retention would delete them at once."""

NEWEST_PER_KEY = KEEP_FOR_EVER | {"cleanup.policy": "compact"}
"""The catalogue: the newest state of each title."""

DEAD_LETTERS = KEEP_FOR_EVER | {"cleanup.policy": "delete", "segment.ms": "86400000"}
"""An erased viewer's letters are cut off and leave the disk with their segment: within a day, where Kafka's default is a week."""

_TOPIC_EXISTS = 36
"""Kafka's error code: somebody made it first, which is as good."""


async def ensure_topics(settings: Settings, partitions: int = 4) -> Mapping[str, int]:
    """Make the playback, dead-letter, impressions and catalogue topics where missing; returns topic → partitions now.

    Topics that exist are left as they are. Raises `KafkaUnavailable`."""
    kafka = settings.kafka
    wanted = {
        kafka.topic: (partitions, KEEP_FOR_EVER),
        kafka.dead_letter_topic: (1, DEAD_LETTERS),
        kafka.impressions_topic: (partitions, KEEP_FOR_EVER),
        kafka.catalogue_topic: (1, NEWEST_PER_KEY),
    }
    admin = await make_admin(settings)
    try:
        with kafka_errors("creating topics", settings):
            response = await admin.create_topics(
                [NewTopic(name, count, 1, topic_configs=config) for name, (count, config) in wanted.items()]
            )
            for name, code, *message in response.topic_errors:
                if code not in (0, _TOPIC_EXISTS):
                    raise KafkaUnavailable(f"topic {name}: not created (Kafka error {code}: {message or 'no message'})")
            described = await admin.describe_topics(list(wanted))
    finally:
        await admin.close()
    return {topic["topic"]: len(topic["partitions"]) for topic in described}
