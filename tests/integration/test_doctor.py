"""The doctor against real servers and against none."""

from __future__ import annotations

import time

from runtime.doctor import diagnose
from runtime.settings import Settings, load_settings
from sandbox.children import find_free_port
from sandbox.topics import ensure_topics


def make_settings(tmp_path, bootstrap: str, url: str, topic: str = "playback") -> Settings:
    return load_settings(
        kafka={"bootstrap_servers": bootstrap, "topic": topic},
        store={"url": url},
        homepage={"port": 0},
        health={"port": 0},
        generations_path=str(tmp_path / "generations"),
        lake_path=str(tmp_path / "lake"),
    )


async def test_real_servers_pass(kafka, valkey, topic, tmp_path):
    name = await topic(partitions=2)
    found = {f.name: f for f in await diagnose(make_settings(tmp_path, kafka.bootstrap, valkey.url, name))}
    bad = [finding for finding in found.values() if finding.ok is False]
    assert bad == []
    assert found["topic"].found == f"{name}: 2 partitions"
    assert found["kafka"].ok is True
    assert found["clock"].ok is True


async def test_the_sandboxs_own_topics_need_no_mending(kafka, valkey, namespace, tmp_path):
    settings = make_settings(tmp_path, kafka.bootstrap, valkey.url, namespace)
    await ensure_topics(settings, 2)
    found = [f for f in await diagnose(settings) if f.name.startswith(("topic", "dead letters"))]
    assert [f.name for f in found if f.ok is not True] == []
    assert "dead letters" in {f.name for f in found}


async def test_a_missing_topic_is_found_and_not_created_by_asking(kafka, valkey, tmp_path):
    for _ in range(2):
        found = {f.name: f for f in await diagnose(make_settings(tmp_path, kafka.bootstrap, valkey.url, "not-there"))}
        assert found["topic"].ok is False


async def test_servers_that_are_away_are_told_soon_and_without_secrets(tmp_path):
    started = time.monotonic()
    bootstrap, port = f"127.0.0.1:{find_free_port()}", find_free_port()
    findings = await diagnose(make_settings(tmp_path, bootstrap, f"redis://user:hunter2@127.0.0.1:{port}/0"))
    found = {f.name: f for f in findings}
    assert found["kafka"].ok is False
    assert found["store"].ok is False
    assert "hunter2" not in str(findings)
    assert time.monotonic() - started < 15


async def test_a_store_that_hangs_is_told_within_the_deadline(kafka, fresh_valkey, tmp_path):
    fresh_valkey.pause()
    found = {f.name: f for f in await diagnose(make_settings(tmp_path, kafka.bootstrap, fresh_valkey.url))}
    assert found["store"].ok is False
    fresh_valkey.resume()
