"""Marks are planted wherever something must stay unsaid, everything is run and broken for real, and every output is searched.

Three kinds: SECRET (passwords, keys, tokens) may stand nowhere; PRIVATE (what was watched in private) may stand nowhere either; VIEWER
(ids) may stand where viewers are kept (the store's keys, the topics, lake and generations) and in no log, metric, error or answer to
somebody else.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jwt
import psutil
import pyarrow.parquet as pq
import pytest
import redis
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from contracts.codec import Codec
from contracts.events import Kind, PlaybackEvent
from runtime.kafka import TopicPartition, make_consumer, make_producer
from runtime.settings import KafkaSettings, Settings
from sandbox.children import find_free_port
from sandbox.servers import KafkaServer, ValkeyServer
from tests.certificates import Certificates
from tests.integration.test_nightly import catalogue, history, send
from tests.secure_kafka import PASSWORD, USERS, allow, make_users, secure_kafka
from tests.worlds import T0, play_event
from viewers.packing import pack, unpack
from viewers.state import state_of

SECRET, PRIVATE, VIEWER = "zqsecret", "zqprivate", "zqviewer"
MARKS = re.compile(rb"zqsecret|zqprivate|zqviewer|" + PASSWORD.encode())
STORE_PASSWORD, TOKEN_SECRET, LAKE_KEY = (f"{SECRET}-{what}-long-enough-for-all" for what in ("store", "token", "lake"))
ROOT = Path(__file__).resolve().parent.parent.parent
CODEC = Codec.load()
DEADLINE_S = 110.0


@dataclass
class World:
    """Servers, folders, and everything that was said."""

    environment: dict[str, str]
    folder: Path
    valkey: ValkeyServer
    administrator: Settings
    homepage_port: int
    health_port: int
    said: dict[str, bytes] = field(default_factory=dict)

    def verb(self, name: str, *arguments: str, expect: int = 0, **changes: str) -> str:
        """Run a verb to its end; keep what it says."""
        try:
            done = subprocess.run(
                [sys.executable, str(ROOT / "nearline.py"), *arguments],
                env=self.environment | changes, cwd=self.folder, capture_output=True, timeout=DEADLINE_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise AssertionError((name, error.stdout, error.stderr)) from error
        self.said[name] = done.stdout + b"\n" + done.stderr
        assert done.returncode == expect, (name, done.returncode, self.said[name].decode())
        return done.stdout.decode()

    @contextmanager
    def process(
        self, name: str, verb: str, *, expect: tuple[int, ...] = (0,), **changes: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a service while the block runs; keep what it says."""
        log = self.folder / f"{name}.out"
        with log.open("wb") as out:
            child = subprocess.Popen(
                [sys.executable, str(ROOT / "nearline.py"), verb],
                env=self.environment | changes, cwd=self.folder, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                yield child
            finally:
                child.terminate()
                status = child.wait(DEADLINE_S)
                self.said[name] = log.read_bytes()
        assert status in expect, (name, status, self.said[name].decode())

    def admin(self) -> redis.Redis:
        client: redis.Redis = redis.Redis.from_url(self.valkey.url, password=STORE_PASSWORD, protocol=2)
        return client

    def lock_store(self) -> None:
        with redis.Redis.from_url(self.valkey.url, protocol=2) as client:
            client.config_set("requirepass", STORE_PASSWORD)


@pytest.fixture(scope="module")
def secure_broker(
    tmp_path_factory: pytest.TempPathFactory, kafka: KafkaServer
) -> Iterator[tuple[KafkaServer, int, Path]]:
    """`kafka` is asked for so that a machine without it skips here too."""
    folder = tmp_path_factory.mktemp("redaction-kafka")
    certificates = Certificates(folder)
    server, port = secure_kafka(folder / "kafka", certificates)
    server.start()
    yield server, port, certificates.ca
    server.stop(kill=True)


@pytest.fixture
async def world(
    secure_broker: tuple[KafkaServer, int, Path], fresh_valkey: ValkeyServer, namespace: str, tmp_path: Path
) -> World:
    server, port, ca = secure_broker
    topic = f"r-{namespace}"
    admin = AIOKafkaAdminClient(bootstrap_servers=server.bootstrap)
    await admin.start()
    await admin.create_topics(
        [NewTopic(topic, 2, 1), *(NewTopic(f"{topic}.{n}", 1, 1) for n in ("dlq", "impressions", "catalogue"))]
    )
    await admin.close()
    await make_users(server.bootstrap)
    names = [topic, *(f"{topic}.{n}" for n in ("dlq", "impressions", "catalogue"))]
    everything = [(f"User:{USERS[1]}", 2, name, operation) for name in names for operation in (3, 4, 6, 10)]
    await allow(server.bootstrap, [*everything, (f"User:{USERS[1]}", 3, topic, 3)])
    homepage_port, health_port = find_free_port(), find_free_port()
    values = {
        "KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{port}", "KAFKA__SECURITY_PROTOCOL": "SASL_SSL", "KAFKA__TOPIC": topic,
        "KAFKA__SASL_MECHANISM": "SCRAM-SHA-512", "KAFKA__SASL_USERNAME": USERS[1], "KAFKA__SASL_PASSWORD": PASSWORD,
        "KAFKA__SSL_CA_FILE": str(ca), "KAFKA__GROUP_ID": topic,
        "STORE__URL": fresh_valkey.url.replace("//", f"//:{STORE_PASSWORD}@"), "STORE__NAMESPACE": namespace,
        "HOMEPAGE__PORT": str(homepage_port), "HOMEPAGE__TOKEN_SECRET": TOKEN_SECRET, "HEALTH__PORT": str(health_port),
        "TRAIN__FACTORS": "4", "TRAIN__ITERATIONS": "3", "LOG_LEVEL": "debug", "LAKE_KEY": LAKE_KEY,
        "LAKE_PATH": str(tmp_path / "lake"), "GENERATIONS_PATH": str(tmp_path / "generations"),
    }  # fmt: skip
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NEARLINE_")}
    environment = inherited | {f"NEARLINE_{name}": value for name, value in values.items()} | {"COLUMNS": "200"}
    administrator = Settings(
        _env_file=None, kafka=KafkaSettings(bootstrap_servers=server.bootstrap, topic=topic, group_id=topic)
    )
    made = World(environment, tmp_path, fresh_valkey, administrator, homepage_port, health_port)
    made.lock_store()
    return made


def wait(condition: Callable[[], Any], what: str) -> None:
    ends = time.monotonic() + DEADLINE_S
    while True:
        try:
            if condition():
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < ends, what
        time.sleep(0.05)


def events() -> list[PlaybackEvent]:
    """What everybody does, what a marked viewer does, and what they do in private."""
    mine = [play_event(f"{VIEWER}-1", n, 100 + n) for n in range(6)]
    other = [play_event(f"{VIEWER}-2", n, 100 + n) for n in range(3, 9)]
    hidden = [
        PlaybackEvent(
            f"{PRIVATE}-event-{n}", Kind.COMPLETE, f"{VIEWER}-1", T0 + 500_000 + n, private=True, item_id=f"{PRIVATE}-item",
            play_id=f"{PRIVATE}-play", play_started_at_ms=T0 + 400_000, watched_ms=900, duration_ms=1_000,
        )
        for n in range(3)
    ]  # fmt: skip
    return [*history(), *mine, *other, *hidden]


POISON: list[tuple[str, bytes | None, bytes]] = [
    (f"{VIEWER}-3", b"0", b"not avro, %s" % VIEWER.encode()),
    (f"{VIEWER}-3", None, b"no header: may be private %s" % PRIVATE.encode()),
    (f"{VIEWER}-3", b"1", b"said to be private %s" % PRIVATE.encode()),
    (f"{VIEWER}-3", b"maybe", b"unclear %s" % PRIVATE.encode()),
    (f"{VIEWER}-4", b"0", CODEC.encode_event(play_event(f"{VIEWER}-5", 1, 50))),  # key and viewer differ
    (f"{VIEWER}-4", b"0", CODEC.encode_event(play_event(f"{VIEWER}-4", 1, 50)) + b"\x00"),
    (f"{VIEWER}-4", b"0", CODEC.encode_event(play_event(f"{VIEWER}-4", 1, 10**9))),  # years ahead
    (f"{VIEWER}-4", b"0", b"\x00\x00\x00\x00\x02" + VIEWER.encode() * 9),
    (f"{VIEWER} with spaces", b"0", CODEC.encode_event(play_event(f"{VIEWER}-4", 2, 50))),
    (f"{PRIVATE}-key", b"1", b"\x00" * 30_000),
]


async def send_poison(settings: Settings) -> None:
    producer = await make_producer(settings)
    for key, private, value in POISON:
        headers = [] if private is None else [("private", private)]
        await producer.send_and_wait(settings.kafka.topic, value, key=key.encode(), headers=headers, timestamp_ms=T0)
    await producer.stop()


async def letters(settings: Settings) -> list[Any]:
    consumer = await make_consumer(settings)
    tp = TopicPartition(settings.kafka.dead_letter_topic, 0)
    consumer.assign([tp])
    end = (await consumer.end_offsets([tp]))[tp]
    consumer.seek(tp, (await consumer.beginning_offsets([tp]))[tp])
    found: list[Any] = []
    while await consumer.position(tp) < end:
        found += [record for records in (await consumer.getmany(timeout_ms=500)).values() for record in records]
    await consumer.stop()
    return found


def ask(world: World, path: str, *, viewer: str = "", authorization: str = "") -> httpx.Response:
    claims = {"sub": viewer, "exp": int(time.time()) + 600}
    header = authorization or (f"Bearer {jwt.encode(claims, TOKEN_SECRET, 'HS256')}" if viewer else "")
    return httpx.get(
        f"http://127.0.0.1:{world.homepage_port}{path}", headers={"Authorization": header} if header else {}, timeout=10
    )


def look_at_pages(world: World, when: str) -> None:
    """Every page of both services, and every way to be refused."""
    own = ask(world, "/v1/home", viewer=f"{VIEWER}-1")
    assert own.status_code == 200
    assert own.json()["viewer"] == f"{VIEWER}-1"  # to themselves
    world.said[f"own row {when}"] = own.content.replace(f'"{VIEWER}-1"'.encode(), b"")
    refused = {
        "other": ask(world, f"/v1/home/{VIEWER}-2", viewer=f"{VIEWER}-1"),
        "forged": ask(world, f"/v1/home/{VIEWER}-2", authorization=f"Bearer {SECRET}.{SECRET}.{SECRET}"),
        "none": ask(world, f"/v1/home/{VIEWER}-2"),
        "basic": ask(world, "/v1/home", authorization=f"Basic {SECRET}"),
        "no id": ask(world, "/v1/home", viewer=f"{VIEWER} {{1}}"),
        "query": ask(world, f"/v1/home?territory={SECRET}-{PRIVATE}-{VIEWER}", viewer=f"{VIEWER}-1"),
        "nowhere": ask(world, f"/{VIEWER}/{SECRET}"),
    }
    assert {name: answer.status_code for name, answer in refused.items()} == {
        "other": 403, "forged": 401, "none": 401, "basic": 401, "no id": 401, "query": 400, "nowhere": 404,
    }  # fmt: skip
    for name, answer in refused.items():
        world.said[f"refused {name} {when}"] = answer.content + repr(answer.headers).encode()
    for path in ("/metrics", "/health/live", "/health/ready"):
        world.said[f"homepage {path} {when}"] = ask(world, path).content
    for path in ("/metrics", "/stats", "/health/live", "/health/ready", f"/timing/{VIEWER}", f"/{SECRET}"):
        world.said[f"updater {path} {when}"] = httpx.get(
            f"http://127.0.0.1:{world.health_port}{path}", timeout=10
        ).content


def listening(children: list[subprocess.Popen[bytes]]) -> set[tuple[str, int]]:
    """Every address at which these processes can be reached."""
    found = [one for child in children for one in psutil.Process(child.pid).net_connections(kind="inet")]
    return {(one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN}


def stats(world: World) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"http://127.0.0.1:{world.health_port}/stats", timeout=10).json()
    return answer


@pytest.mark.timeout(600)  # many processes, each started anew
async def test_no_mark_is_said_anywhere(world: World) -> None:
    """1. a night  2. an evening with poison, refusals and the store away  3. the verbs, right and wrong  4. a halt  5. the search"""
    settings = world.administrator
    await send(settings, events(), catalogue())
    world.verb("nightly", "nightly", "--seed", "--skip-evaluation")  # 1
    with ExitStack() as services:  # 2
        children = [services.enter_context(world.process(name, name)) for name in ("updater", "homepage")]
        wait(lambda: ask(world, "/health/ready").status_code == 200, "the home page is ready")
        wanted = {("127.0.0.1", world.homepage_port), ("127.0.0.1", world.health_port)}
        wait(lambda: listening(children) >= wanted, "both listen")
        assert listening(children) == wanted
        await send_poison(settings)
        wait(lambda: stats(world)["dead"] + stats(world)["private"] >= len(POISON), "the poison is passed")
        look_at_pages(world, "with everything there")
        world.valkey.stop(kill=True)
        wait(lambda: ask(world, "/health/ready").status_code == 503, "the store is missed")
        look_at_pages(world, "with the store away")
        world.valkey.start()
        look_at_pages(world, "with a store that wants no password")
        world.lock_store()
        wait(lambda: ask(world, "/health/ready").status_code == 200, "the store is back")
        await send(settings, [play_event(f"{VIEWER}-1", 9, 600)])
        wait(lambda: stats(world)["lag_records"] == 0 and stats(world)["unaccounted"] == 0, "caught up")
    dead = await letters(settings)
    run_verbs(world)  # 3
    with world.admin() as client:  # 4: a viewer that cannot be read
        key = f"{world.environment['NEARLINE_STORE__NAMESPACE']}:v:{VIEWER}-2"
        client.hset(key, mapping={"c": b"12345678" + b"1", "s": b"\x09" + PRIVATE.encode()})
    await send(settings, [play_event(f"{VIEWER}-2", 9, 700)])
    with world.process("halted updater", "updater", expect=(3,)) as child:
        assert child.wait(DEADLINE_S) == 3
    world.verb("show of the unreadable", "show", "viewer", f"{VIEWER}-2", expect=3)
    world.verb("resume", "resume")
    search(world, dead + await letters(settings))  # 5


def run_verbs(world: World) -> None:
    url = world.environment["NEARLINE_STORE__URL"]
    wrong = {"NEARLINE_STORE__URL": url.replace(STORE_PASSWORD, f"{SECRET}-wrong")}
    port = {"NEARLINE_STORE__URL": url.replace(":", f":{SECRET}/", 1)}
    kafka = {"NEARLINE_KAFKA__SASL_PASSWORD": f"{SECRET}-wrong"}
    away = {"NEARLINE_STORE__URL": f"redis://:{SECRET}@127.0.0.1:1/0"}
    world.verb("settings", "settings")
    world.verb("settings as JSON", "settings", "--json")
    world.verb("doctor", "doctor", expect=0)
    world.verb("doctor refused", "doctor", expect=1, **wrong, **kafka)
    world.verb("dead letters", "dlq", "list")
    world.verb("dead letters as JSON", "dlq", "list", "--json")
    world.verb("replay", "dlq", "replay", "--dry-run", "--json", expect=1)
    world.verb("dead letters refused", "dlq", "list", expect=4, **kafka)
    world.verb("night refused", "nightly", expect=4, **wrong)
    world.verb("night without a store", "nightly", expect=4, **away)
    world.verb("bad URL", "settings", expect=2, **port)
    world.verb("short secret", "homepage", expect=2, NEARLINE_HOMEPAGE__TOKEN_SECRET=SECRET)
    world.verb("misspelt", "settings", expect=2, NEARLINE_STORE__URLS=url)
    world.verb("show refused", "show", "viewer", f"{VIEWER}-1", expect=4, **wrong)
    world.verb("generations", "generations", "list", "--json")
    world.verb("forget", "forget", f"{VIEWER}-4", "--json")
    shown = world.verb("show", "show", "viewer", f"{VIEWER}-1", "--json")
    explained = world.verb("explain", "explain", f"{VIEWER}-1", "--json")
    for name, text in (("show", shown), ("explain", explained)):  # asked for by name: the name may be answered
        assert VIEWER in text
        world.said[name] = world.said[name].replace(VIEWER.encode(), b"")


def search(world: World, dead: list[Any]) -> None:
    for name, text in world.said.items():
        found = MARKS.search(text)
        assert found is None, (name, text[max(0, found.start() - 200) : found.end() + 50])
    assert len(dead) >= len(POISON) - 1  # all but those that are private
    for letter in dead:  # the record's own bytes are kept, if it was known not to be private
        told = b"".join(name.encode() + (value or b"") for name, value in letter.headers)
        assert MARKS.search(told) is None, told
        kept = (letter.key or b"") + (letter.value or b"")
        assert SECRET.encode() not in kept
        assert PRIVATE.encode() not in kept
    kept_places = 0
    for path in world.folder.rglob("*"):
        if not path.is_file() or path.is_relative_to(world.valkey.data_dir) or path.suffix == ".out":
            continue
        content = path.read_bytes() + str(path.relative_to(world.folder)).encode()
        if path.suffix == ".parquet":
            content += repr(pq.read_table(path).to_pylist()).encode()
        assert SECRET.encode() not in content, path
        assert PRIVATE.encode() not in content, path
        if VIEWER.encode() in content:
            kept_places += 1
            assert path.suffix == ".parquet", path
    assert kept_places  # else nothing was searched that could have held them
    held = b""
    with world.admin() as client:
        for key in client.scan_iter(match="*"):
            if key.endswith(f"{VIEWER}-2".encode()):
                continue  # the test's own garbage
            content = key + told_by(
                client.hgetall(key) if client.type(key) == b"hash" else {b"": client.get(key) or b""}
            )
            assert SECRET.encode() not in content
            assert PRIVATE.encode() not in content
            held += content
    assert b"tt0000009" in held  # else no id could have been found
    planted = state_of(play_event("any", f"{PRIVATE}-item", 0), timestamp_ms=T0)
    assert PRIVATE.encode() in told_by({b"s": pack(planted)})


def told_by(fields: dict[bytes, bytes]) -> bytes:
    """What a hash of the store tells: its bytes, and the ids that are packed in its state and its row."""
    told = list(fields.values())
    if state := fields.get(b"s"):
        told.append(repr(unpack(state)).encode())
    if row := fields.get(b"r"):
        told.append(repr(CODEC.decode_row(row)).encode())
    return b"".join(told)
