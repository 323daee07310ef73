"""The compose file's Kafka, Valkey and topics, started here with its settings: the doctor finds nothing to mend."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from runtime.doctor import diagnose
from runtime.settings import load_settings
from sandbox.servers import KafkaServer, SandboxError, ValkeyServer
from tests.conftest import require_or_skip
from tests.deployment import OURS, kafka_properties, topics, valkey_options


async def test_the_doctor_finds_nothing_to_mend_in_the_servers_of_the_compose_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kafka = KafkaServer(tmp_path / "kafka", extra_config=kafka_properties())
    valkey = ValkeyServer(tmp_path / "valkey", extra_config=valkey_options())
    try:
        kafka.start()
        valkey.start()
    except SandboxError as error:
        require_or_skip("kafka", str(error))
    try:
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        await admin.start()
        try:
            wanted = [NewTopic(name, count, 1, topic_configs=config) for name, (count, config) in topics().items()]
            made = await admin.create_topics(wanted)
            assert [error for error in made.topic_errors if error[1]] == []
        finally:
            await admin.close()
        for key, value in OURS["nightly"]["environment"].items():
            if key != "NEARLINE_CACHE_DIR":
                monkeypatch.setenv(key, str(value))
        monkeypatch.setenv("NEARLINE_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap)
        monkeypatch.setenv("NEARLINE_STORE__URL", valkey.url)
        monkeypatch.setenv("NEARLINE_LAKE_PATH", str(tmp_path / "lake"))
        monkeypatch.setenv("NEARLINE_GENERATIONS_PATH", str(tmp_path / "generations"))
        monkeypatch.setenv("NEARLINE_HEALTH__PORT", "0")
        monkeypatch.setenv("NEARLINE_HOMEPAGE__PORT", "0")
        found = {one.name: one for one in await diagnose(load_settings())}
        about = ("kafka", "topic", "dead letters", "store")
        assert {name for name in found if name.startswith(about)} >= {"kafka", "topic", "store durability"}
        assert [one for one in found.values() if one.name.startswith(about) and one.ok is not True] == []
    finally:
        kafka.stop(kill=True)
        valkey.stop(kill=True)
