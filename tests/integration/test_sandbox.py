"""The real servers as child processes: they start, keep their data, and never outlive their owner."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
import redis
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from sandbox.children import wait_until
from sandbox.servers import KafkaServer, Sandbox, SandboxError, ValkeyServer

ROOT = Path(__file__).parents[2]
GONE_DEADLINE_S = 30.0


async def produce(bootstrap: str, topic: str, value: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        await producer.send_and_wait(topic, value)


async def read_first(bootstrap: str, topic: str) -> bytes:
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        return (await consumer.getone()).value


async def test_a_topic_of_the_factory_carries_a_record(kafka, topic):
    name = await topic(partitions=2)
    await produce(kafka.bootstrap, name, b"hello")
    async with AIOKafkaConsumer(name, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest") as consumer:
        assert (await consumer.getone()).value == b"hello"
        assert consumer.partitions_for_topic(name) == {0, 1}


def test_servers_tell_their_versions(kafka, valkey):
    assert "Kafka" in kafka.version
    assert valkey.version.startswith(("Valkey ", "Redis "))


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
async def test_kafka_keeps_port_and_records_when_stopped_or_killed(fresh_kafka, kill):
    admin = AIOKafkaAdminClient(bootstrap_servers=fresh_kafka.bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic("kept", 1, 1)])
    await admin.close()
    await produce(fresh_kafka.bootstrap, "kept", b"still here")
    before = fresh_kafka.bootstrap

    fresh_kafka.stop(kill=kill)
    assert fresh_kafka.pid is None
    fresh_kafka.start()

    assert fresh_kafka.bootstrap == before
    assert await read_first(fresh_kafka.bootstrap, "kept") == b"still here"


def test_valkey_keeps_port_and_data_when_restarted(fresh_valkey):
    with redis.Redis.from_url(fresh_valkey.url) as client:
        client.set("kept", "1")
        url, run_id = fresh_valkey.url, client.info("server")["run_id"]
        fresh_valkey.restart()
        assert fresh_valkey.url == url
        assert client.get("kept") == b"1"
        assert client.info("server")["run_id"] != run_id


def test_valkey_runs_as_production_should(fresh_valkey):
    with redis.Redis.from_url(fresh_valkey.url, decode_responses=True) as client:
        wanted = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "save": ""}
        assert {name: client.config_get(name)[name] for name in wanted} == wanted


def test_a_killed_valkey_refuses_and_comes_back_with_its_data(fresh_valkey):
    with redis.Redis.from_url(fresh_valkey.url, socket_timeout=1) as client:
        client.set("kept", "1")
        fresh_valkey.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("kept")
        fresh_valkey.start()
        assert client.get("kept") == b"1"


def test_a_paused_valkey_hangs_and_a_resumed_one_answers(fresh_valkey):
    with redis.Redis.from_url(fresh_valkey.url, socket_timeout=0.2, retry=None) as client:
        client.ping()
        fresh_valkey.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        fresh_valkey.resume()
        assert wait_until(lambda: _pings(fresh_valkey.url), 10)


def _pings(url: str) -> bool:
    with redis.Redis.from_url(url, socket_timeout=1) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


def test_a_paused_server_can_be_stopped(fresh_valkey):
    fresh_valkey.pause()
    fresh_valkey.stop()
    assert fresh_valkey.pid is None


def test_a_folder_in_use_is_refused_by_name(fresh_valkey):
    with pytest.raises(SandboxError, match=r"in use by a running sandbox .*choose another data folder"):
        ValkeyServer(fresh_valkey.data_dir).start()


def test_a_taken_port_is_refused_at_once(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SandboxError, match=f"cannot use port {port}"):
            ValkeyServer(tmp_path, port=port).start()


def test_a_server_that_ends_while_starting_shows_the_end_of_its_log(tmp_path):
    with pytest.raises(SandboxError, match=r"ended while starting[\s\S]*no-such-setting"):
        ValkeyServer(tmp_path, extra_config={"no-such-setting": "1"}).start()


def test_a_kafka_with_a_bad_setting_shows_the_end_of_its_log(kafka, tmp_path):
    with pytest.raises(SandboxError, match=r"Kafka ended while starting[\s\S]*num\.io\.threads"):
        KafkaServer(tmp_path, extra_config={"num.io.threads": "many"}).start()


def test_given_addresses_start_no_process(kafka, valkey, tmp_path):
    with Sandbox(tmp_path / "unused", bootstrap=kafka.bootstrap, url=valkey.url) as sandbox:
        assert sandbox.kafka.pid is None
        assert sandbox.valkey.pid is None
        assert not (tmp_path / "unused").exists()


OWNER = """
    import sys, time
    from pathlib import Path
    from sandbox.servers import Sandbox
    with Sandbox(Path(sys.argv[1])) as sandbox:
        try:
            print(sandbox.kafka.pid, sandbox.valkey.pid, flush=True)
            time.sleep(600)
        except KeyboardInterrupt:
            alive = [Path(f"/proc/{pid}").exists() for pid in (sandbox.kafka.pid, sandbox.valkey.pid)]
            print("still there" if all(alive) or not Path("/proc").exists() else "gone", flush=True)
"""


def hear_ctrl_c() -> None:
    """As in a terminal, also where the tests run in a shell's background: there SIGINT is ignored, and the children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def owner(kafka, tmp_path):
    """A process that owns a sandbox, in a group of its own as in a terminal; yields it and the servers' ids."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(OWNER), str(tmp_path / "sandbox")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )
    line = process.stdout.readline()
    pids = [int(word) for word in line.split()]
    assert len(pids) == 2, "the owner did not start its sandbox"
    # The watchdogs are the servers' parents: they must not stay behind either.
    pids += [psutil.Process(pid).ppid() for pid in pids]
    yield process, pids
    if process.poll() is None:
        process.kill()
    process.wait()
    process.stdout.close()


def all_gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def test_servers_end_with_an_owner_that_was_killed(owner):
    process, pids = owner
    process.kill()
    process.wait()
    assert wait_until(lambda: all_gone(pids), GONE_DEADLINE_S)


def test_ctrl_c_reaches_the_owner_first_and_the_servers_last(owner):
    process, pids = owner
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout.readline().strip() == "still there"
    process.wait(GONE_DEADLINE_S)
    assert wait_until(lambda: all_gone(pids), GONE_DEADLINE_S)


def test_a_paused_server_ends_with_its_owner_too(owner):
    process, pids = owner
    os.kill(pids[1], signal.SIGSTOP)
    process.terminate()
    process.wait()
    assert wait_until(lambda: all_gone(pids), GONE_DEADLINE_S)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to the one that made it")
def test_a_server_does_not_outlive_a_killed_watchdog(fresh_valkey):
    pid = fresh_valkey.pid
    psutil.Process(pid).parent().kill()
    assert wait_until(lambda: all_gone([pid]), GONE_DEADLINE_S)


def test_data_survive_a_killed_owner(owner, tmp_path):
    process, pids = owner
    process.kill()
    process.wait()
    assert wait_until(lambda: all_gone(pids), GONE_DEADLINE_S)
    with Sandbox(tmp_path / "sandbox") as again:
        assert again.kafka.pid is not None
    shutil.rmtree(tmp_path / "sandbox")
