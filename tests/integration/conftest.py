"""What several files of integration tests stand on."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.settings import Settings
from sandbox.servers import KafkaServer
from tests.conftest import TopicFactory


@pytest.fixture
async def settings(kafka: KafkaServer, topic: TopicFactory, tmp_path: Path) -> Settings:
    """A night's: topics of their own, a small model, an empty lake."""
    name = await topic(2)
    await topic(1, name=f"{name}.impressions")
    await topic(1, name=f"{name}.catalogue", config={"cleanup.policy": "compact"})
    return Settings(
        kafka={"bootstrap_servers": kafka.bootstrap, "topic": name},
        train={"factors": 4, "iterations": 5},
        lake_path=str(tmp_path / "lake"),
        generations_path=str(tmp_path / "generations"),
    )
