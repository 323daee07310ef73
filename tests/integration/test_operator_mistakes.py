"""Mistakes that operators make, each made here, and the message of docs/mistakes.md that it meets."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

import nearline
from batch.lock import lake_lock
from batch.schedule import schedule_lock
from runtime.doctor import StoreFacts, exit_code, judge_store, render
from sandbox.servers import KafkaServer, ValkeyServer
from tests.registry_server import RegistryServer

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "mistakes.md").read_text()


class Place:
    """An empty working directory, and settings that are right until a mistake is made."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kafka: KafkaServer, namespace: str) -> None:
        self.folder, self.kafka, self.namespace = tmp_path, kafka, namespace
        self._monkeypatch = monkeypatch
        self.stack = contextlib.ExitStack()
        monkeypatch.chdir(tmp_path)
        self.set("KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap)
        self.set("KAFKA__TOPIC", f"m-{namespace}")
        self.set("STORE__NAMESPACE", namespace)
        self.set("LAKE_PATH", tmp_path / "lake")
        self.set("GENERATIONS_PATH", tmp_path / "generations")
        self.set("HEALTH__PORT", 0)
        self.set("HOMEPAGE__PORT", 0)
        monkeypatch.setenv("COLUMNS", "400")

    def set(self, key: str, value: object) -> None:
        self._monkeypatch.setenv(f"NEARLINE_{key}", str(value))

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def store(self, **config: str) -> ValkeyServer:
        server = ValkeyServer(self.folder / "valkey", extra_config=config)
        server.start()
        self.stack.callback(server.stop, kill=True)
        self.set("STORE__URL", server.url)
        return server

    def topic(self, partitions: int = 4, **config: str) -> None:
        async def make() -> None:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka.bootstrap)
            await admin.start()
            options = {key.replace("_", "."): value for key, value in config.items()}
            await admin.create_topics([NewTopic(f"m-{self.namespace}", partitions, 1, topic_configs=options)])
            await admin.close()

        asyncio.run(make())

    def taken_port(self) -> int:
        listening = self.stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        return int(listening.getsockname()[1])

    def closed_port(self) -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kafka: KafkaServer, valkey: ValkeyServer, namespace: str
) -> Iterator[Place]:
    made = Place(tmp_path, monkeypatch, kafka, namespace)
    made.set("STORE__URL", valkey.url)
    with made.stack:
        yield made


def run(arguments: list[str]) -> tuple[int, str]:
    """Exit status and everything that was said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            nearline.run_verb(lambda: nearline.app(arguments, prog_name="nearline"))
        except SystemExit as ended:
            return int(ended.code or 0), said.getvalue()
    return 0, said.getvalue()


MISTAKES: dict[str, Callable[[Place], None]] = {}
Make = Callable[[Place], None]


def mistake(name: str) -> Callable[[Make], Make]:
    def keep(make: Make) -> Make:
        MISTAKES[name] = make
        return make

    return keep


@mistake("wrong port of Kafka")
def _(place: Place) -> None:
    place.set("KAFKA__BOOTSTRAP_SERVERS", f"127.0.0.1:{place.closed_port()}")


@mistake("wrong port of the store")
def _(place: Place) -> None:
    place.set("STORE__URL", f"redis://127.0.0.1:{place.closed_port()}/0")


@mistake("wrong password of the store")
def _(place: Place) -> None:
    url = place.store().url
    with redis.Redis.from_url(url) as client:
        client.config_set("requirepass", "right")
    place.set("STORE__URL", url.replace("redis://", "redis://:wrong@"))


@mistake("misspelt key")
def _(place: Place) -> None:
    place.set("KAFKA__BOOTSTRAP_SERVER", "kafka:9092")


@mistake("misspelt value")
def _(place: Place) -> None:
    place.set("KAFKA__SASL_MECHANISM", "SCRAM-SHA512")


@mistake("value out of its bounds, in the settings file")
def _(place: Place) -> None:
    place.write("nearline.toml", "[state]\nmax_plays = 0\n")


@mistake("settings file that is no TOML")
def _(place: Place) -> None:
    place.write("nearline.toml", "[kafka\ntopic = plays\n")


@mistake("secret given twice")
def _(place: Place) -> None:
    place.set("LAKE_KEY", "k" * 16)
    place.set("LAKE_KEY_FILE", place.write("key", "k" * 16))


@mistake("secret file that is not mounted")
def _(place: Place) -> None:
    place.set("KAFKA__SASL_PASSWORD_FILE", "/run/secrets/nowhere")


@mistake("Kubernetes' own variables")
def _(place: Place) -> None:
    place.set("HOMEPAGE_SERVICE_HOST", "10.0.0.7")


@mistake("user without a protocol that asks for one")
def _(place: Place) -> None:
    place.set("KAFKA__SASL_USERNAME", "updater")


@mistake("topic that was never made")
def _(place: Place) -> None:
    pass


@mistake("topic with one partition")
def _(place: Place) -> None:
    place.topic(1)


@mistake("retention of an hour")
def _(place: Place) -> None:
    place.topic(retention_ms="3600000")


@mistake("compacted topic")
def _(place: Place) -> None:
    place.topic(cleanup_policy="compact")


@mistake("store that evicts")
def _(place: Place) -> None:
    place.store(**{"maxmemory": "64mb", "maxmemory-policy": "allkeys-lru"})


@mistake("store without an append-only file")
def _(place: Place) -> None:
    place.store(appendonly="no")


@mistake("lake that cannot be written")
def _(place: Place) -> None:
    place.set("LAKE_PATH", place.write("file", "") / "lake")


@mistake("two nights at once")
def _(place: Place) -> None:
    place.stack.enter_context(lake_lock(place.folder / "lake"))


@mistake("two schedulers")
def _(place: Place) -> None:
    place.stack.enter_context(schedule_lock(str(place.folder / "lake")))


@mistake("hour that is none")
def _(place: Place) -> None:
    pass


@mistake("time zone that is none")
def _(place: Place) -> None:
    place.set("NIGHTLY__TIME_ZONE", "Europe/Londn")


@mistake("port that is taken")
def _(place: Place) -> None:
    place.set("HOMEPAGE__PORT", place.taken_port())


@mistake("home page for everyone, without a key")
def _(place: Place) -> None:
    place.set("HOMEPAGE__HOST", "0.0.0.0")


@mistake("key that can be guessed")
def _(place: Place) -> None:
    place.set("HOMEPAGE__TOKEN_SECRET", "secret")


@mistake("generation that there is not")
def _(place: Place) -> None:
    pass


@mistake("rollback on the first day")
def _(place: Place) -> None:
    pass


@mistake("schema that older readers cannot read")
def _(place: Place) -> None:
    (place.folder / "schemas").mkdir()
    for file in (ROOT / "contracts" / "schemas").glob("*.avsc"):
        schema = json.loads(file.read_text())
        if file.stem == "playback_event":
            schema["fields"] = [field for field in schema["fields"] if field["name"] != "event_id"]
        place.write(f"schemas/{file.name}", json.dumps(schema))


@mistake("wrong address of the schema registry")
def _(place: Place) -> None:
    server = RegistryServer()
    place.stack.callback(server.down)
    place.set("SCHEMAS__REGISTRY_URL", f"{server.url}/api")


@mistake("schemas that the registry lacks")
def _(place: Place) -> None:
    server = RegistryServer()
    place.stack.callback(server.down)
    place.topic()
    place.store(appendonly="yes")
    place.set("SCHEMAS__REGISTRY_URL", server.url)


@mistake("id that is no viewer's")
def _(place: Place) -> None:
    pass


@mistake("folder without a data set")
def _(place: Place) -> None:
    (place.folder / "data").mkdir()


ROWS = {
    row[0]: row[1:]
    for row in (
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if re.match(r"\| [^-|]", line)
    )
    if row[0] != "the mistake"
}  # fmt: skip


def words(cell: str) -> str:
    """A cell of code, without what makes it one."""
    return cell.strip("`").strip().replace("\\|", "|")


def heard(told: str, said: str) -> bool:
    """Whether the page's words, between its dots, are in what was said, in their order."""
    return re.search(".*".join(map(re.escape, told.split("…"))), " ".join(said.split()), re.DOTALL) is not None


def test_every_mistake_of_the_page_is_made_here() -> None:
    assert [*ROWS] == [*MISTAKES, "clock that is wrong"]
    assert len(ROWS) > 20


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_met_by_the_message_of_the_page(name: str, place: Place) -> None:
    verb, status, told = ROWS[name]
    MISTAKES[name](place)
    ended, said = run(verb.strip("`").split()[1:])
    assert heard(words(told), said), said
    assert ended == int(status), said


def test_a_clock_that_is_wrong_is_told_by_the_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    verb, status, told = ROWS["clock that is wrong"]
    facts = StoreFacts(
        {
            "valkey_version": "9.1.2",
            "aof_enabled": 1,
            "maxmemory_policy": "noeviction",
            "used_memory": 1,
            "maxmemory": 10,
        },
        -90.0,
        True,
        counts_trends=True,
    )
    findings = judge_store("redis:6379", facts)
    render(findings)
    assert verb == "`nearline doctor`"
    assert heard(words(told), capsys.readouterr().out)
    assert exit_code(findings) == int(status)
