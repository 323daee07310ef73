"""Kafka with TLS, users and rights, a real broker: what works, what is refused, and that the error names what to set."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis.asyncio
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from batch.forget import forget
from batch.nightly import run_nightly
from contracts.codec import Codec
from contracts.errors import KafkaUnavailable, UserError
from contracts.events import PlaybackEvent
from embeddings.generations_folder import GenerationsFolder
from homepage.server import run_homepage
from runtime.doctor_kafka import check_kafka
from runtime.kafka import kafka_errors, make_admin, make_consumer, make_producer
from runtime.progress import SilentProgress
from runtime.settings import KafkaSettings, Settings
from sandbox.children import SandboxError
from sandbox.servers import KafkaServer, ValkeyServer
from tests.certificates import Certificates
from tests.conftest import require_or_skip
from tests.integration.test_nightly import catalogue, history, send
from tests.secure_kafka import OPERATIONS, PASSWORD, RESOURCES, allow, deny, make_users, rights, secure_kafka
from tests.worlds import T0, make_generation, make_tables, play_event, wait_until, write_generation_folder
from trends.aggregator import Aggregator
from updater.consumer import Updater
from updater.dlq import list_letters, replay
from updater.shadow import OUTCOMES, Shadow
from viewers.memory_store import MemoryStore
from viewers.redis_store import open_store

CODEC = Codec.load()
READ, WRITE, TOPIC = 3, 4, 2

# The client closes a TLS connection without waiting for the broker's goodbye; the loop of a test may end before it comes.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def _collected_here() -> Iterator[None]:
    """What a test left to the garbage collector is collected under its own filters."""
    yield
    gc.collect()


@dataclass
class SecureKafka:
    """The broker, its secure port, and the certificates."""

    server: KafkaServer
    port: int
    certificates: Certificates

    def settings(self, user: str = "nearline-updater", password: str = PASSWORD, **more: Any) -> KafkaSettings:
        values = {
            "bootstrap_servers": f"127.0.0.1:{self.port}", "security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_username": user, "sasl_password": password, "ssl_ca_file": self.certificates.ca,
        }  # fmt: skip
        return KafkaSettings(**{name: value for name, value in (values | more).items() if value is not None})


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    folder = tmp_path_factory.mktemp("secure-kafka")
    certificates = Certificates(folder)
    server, port = secure_kafka(folder / "kafka", certificates)
    try:
        server.start()
    except SandboxError as error:
        require_or_skip("kafka", str(error))
    asyncio.run(make_users(server.bootstrap))
    yield SecureKafka(server, port, certificates)
    server.stop(kill=True)


async def refusal(kafka: KafkaSettings) -> str:
    """What every kind of client says; the same."""
    said = set()
    settings = Settings(_env_file=None, kafka=kafka)
    for make in (make_admin, make_consumer, make_producer):
        with pytest.raises(KafkaUnavailable) as caught:
            await make(settings)
        said.add(str(caught.value).split(": ", 1)[1])
    (one,) = said
    assert one.startswith(f"Kafka at {kafka.bootstrap_servers}: ")
    assert PASSWORD not in one
    assert "hunter3" not in one
    return one


# Who gets in


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_a_user_with_the_password_gets_in_and_one_without_is_told_what_to_set(
    secure: SecureKafka, mechanism: str
) -> None:
    admin = await make_admin(Settings(_env_file=None, kafka=secure.settings(sasl_mechanism=mechanism)))
    await admin.close()
    for user, password in (("nearline-updater", "hunter3"), ("nobody", PASSWORD)):
        said = await refusal(secure.settings(user, password, sasl_mechanism=mechanism))
        assert "NEARLINE_KAFKA__SASL_USERNAME, NEARLINE_KAFKA__SASL_PASSWORD" in said


async def test_a_mechanism_that_is_not_offered_is_named(secure: SecureKafka) -> None:
    said = await refusal(secure.settings(sasl_mechanism="SCRAM-SHA-256"))
    assert "NEARLINE_KAFKA__SASL_MECHANISM=SCRAM-SHA-256" in said


async def test_a_broker_of_an_unknown_authority_is_not_trusted(secure: SecureKafka) -> None:
    for ca in (secure.certificates.other_ca, None):
        assert "NEARLINE_KAFKA__SSL_CA_FILE" in await refusal(secure.settings(ssl_ca_file=ca))


async def test_a_protocol_that_the_listener_does_not_speak_is_named(secure: SecureKafka) -> None:
    nobody = {"sasl_username": None, "sasl_password": None}
    for more in (
        {"security_protocol": "PLAINTEXT", "ssl_ca_file": None, **nobody},
        {"security_protocol": "SASL_PLAINTEXT", "ssl_ca_file": None},
        {"security_protocol": "SSL", **nobody},
        {"bootstrap_servers": secure.server.bootstrap},
        {"bootstrap_servers": secure.server.bootstrap, "security_protocol": "SASL_PLAINTEXT", "ssl_ca_file": None},
    ):
        said = await refusal(secure.settings(**more))
        protocol = more.get("security_protocol", "SASL_SSL")
        assert f"NEARLINE_KAFKA__SECURITY_PROTOCOL={protocol}" in said or "does not speak TLS" in said, (more, said)


async def test_a_broker_that_is_not_there_is_told_as_such(secure: SecureKafka) -> None:
    for address, why in (("127.0.0.1:1", "Connect call failed"), ("no.such.host.invalid:9092", "gaierror")):
        assert why in await refusal(secure.settings(bootstrap_servers=address))


async def test_the_doctor_says_the_same(secure: SecureKafka) -> None:
    settings = Settings(_env_file=None, kafka=secure.settings(password="hunter3"))
    (finding,) = await check_kafka(settings)
    assert finding.ok is False
    assert "NEARLINE_KAFKA__SASL_PASSWORD" in str(finding)


# Who may do what


@pytest.fixture
async def base(secure: SecureKafka, valkey: ValkeyServer, namespace: str, tmp_path: Path) -> Settings:
    """A stream of its own; the rights are not given yet."""
    topic = f"s-{namespace}"
    admin = AIOKafkaAdminClient(bootstrap_servers=secure.server.bootstrap)
    await admin.start()
    names = [
        NewTopic(topic, 2, 1),
        *(NewTopic(f"{topic}.{other}", 1, 1) for other in ("dlq", "impressions", "catalogue")),
    ]
    answer = await admin.create_topics(names)
    assert not [error for error in answer.topic_errors if error[1]]
    await admin.close()
    return Settings(
        _env_file=None,
        kafka=secure.settings("stranger", topic=topic, group_id=f"g-{namespace}"),
        store={"url": valkey.url, "namespace": namespace},
        train={"factors": 4, "iterations": 3},
        homepage={"port": 0},
        lake_path=str(tmp_path / "lake"),
        generations_path=str(tmp_path / "generations"),
    )


def as_user(base: Settings, secure: SecureKafka, user: str, mechanism: str = "SCRAM-SHA-512") -> Settings:
    kafka = secure.settings(user, topic=base.kafka.topic, group_id=base.kafka.group_id, sasl_mechanism=mechanism)
    return base.model_copy(update={"kafka": kafka})


def as_administrator(base: Settings, secure: SecureKafka) -> Settings:
    topic, group_id = base.kafka.topic, base.kafka.group_id
    kafka = KafkaSettings(bootstrap_servers=secure.server.bootstrap, topic=topic, group_id=group_id)
    return base.model_copy(update={"kafka": kafka})


async def give(
    secure: SecureKafka, base: Settings, *users: str, without: tuple[str, int, str, int] | None = None
) -> None:
    """What the page lists for these users, less one."""
    listed = [
        one for one in rights(base.kafka.topic, base.kafka.group_id) if one[0] in {f"User:{user}" for user in users}
    ]
    assert without is None or without in listed
    await allow(secure.server.bootstrap, [one for one in listed if one != without])


@asynccontextmanager
async def updating(settings: Settings) -> AsyncIterator[Updater]:
    store = open_store(settings.store, settings.keys)
    updater = Updater(settings, store, CODEC, instance="u1")
    task = asyncio.create_task(updater.run())
    try:
        yield updater
    finally:
        updater.stop()
        await asyncio.wait([task], timeout=30)
        await store.close()


async def send_raw(settings: Settings, value: bytes, timestamp_ms: int | None = None) -> None:
    producer = await make_producer(settings)
    with kafka_errors("sending", settings):
        await producer.send_and_wait(
            settings.kafka.topic, value, key=b"v01", headers=[("private", b"0")], timestamp_ms=timestamp_ms
        )
    await producer.stop()


async def page(settings: Settings, viewer: str, followed: Callable[[], bool]) -> dict[str, Any]:
    """One look at the home page, which reports an impression and follows the catalogue."""
    stop, port = asyncio.Event(), asyncio.get_running_loop().create_future()
    running = asyncio.create_task(run_homepage(settings, stop=stop, on_listening=port.set_result))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{await port}") as client:

        async def titles() -> bool:
            return (await client.get("/health/ready")).json()["checks"]["catalogue"]

        await wait_until(titles, "the titles are there")
        body = (await client.get(f"/v1/home/{viewer}")).json()
        await wait_until(followed, "the catalogue's topic is read")
    stop.set()
    await running
    return dict(body)


async def test_each_process_runs_with_the_rights_that_the_page_lists_and_uses_every_one(
    secure: SecureKafka, base: Settings
) -> None:
    """From the players to the lake, to everybody's row, to an evening with poison, to dead letters and an erasure."""
    services = ("updater", "trends", "shadow", "homepage", "nightly", "operator")
    await give(secure, base, "players", *(f"nearline-{service}" for service in services))
    players, nightly, operator = (
        as_user(base, secure, one) for one in ("players", "nearline-nightly", "nearline-operator")
    )
    await send(players, history())
    await send(as_administrator(base, secure), [], catalogue())
    store = open_store(base.store, base.keys)
    await store.connect()
    report = await run_nightly(nightly, store, seed=True, skip_evaluation=True, progress=SilentProgress())
    assert report.published

    async with updating(as_user(base, secure, "nearline-updater", "PLAIN")) as updater:
        await send(players, [play_event("v00", 2, 10**6)])
        await send_raw(players, b"not avro")
        await wait_until(lambda: updater.metrics.rows_written > 0, "a row")
        await wait_until(lambda: updater.metrics.records.labels("dead")._value.get() > 0, "a dead letter")
    read_titles = ("User:nearline-homepage", TOPIC, base.kafka.catalogue_topic, READ)
    homepage = as_user(base, secure, "nearline-homepage")
    assert (await page(homepage, "v00", lambda: read_titles in used(secure, base)))["default"] is False
    assert (await list_letters(operator)).letters == 1
    assert (await replay(operator, force=True, now_ms=int(time.time() * 1000))).sent == 1
    assert all(finding.ok is not False for finding in await check_kafka(operator))

    receipt = await forget(operator, "v01", now_ms=int(time.time() * 1000))
    assert receipt.dead_letters == 1
    again = await run_nightly(nightly, store, skip_evaluation=True, progress=SilentProgress())
    assert again.copied["impressions"] == 1
    one_by_one = as_user(base, secure, "nearline-updater")
    one_by_one = one_by_one.model_copy(update={"kafka": one_by_one.kafka.model_copy(update={"max_batch_records": 1})})
    async with redis.asyncio.Redis.from_url(base.store.url.get_secret_value()) as client:
        await client.delete(base.keys.viewer("v01"))  # the store does not know of the erasure any more
    async with updating(one_by_one) as updater:  # the replayed one lies before the erasure: it is quoted once more
        await send_raw(players, b"late, of an erased viewer", T0)
        await wait_until(lambda: updater.metrics.records.labels("dead")._value.get() > 1, "two more dead letters")
    assert (await list_letters(operator)).waiting == 1
    await run_nightly(nightly, store, skip_evaluation=True, progress=SilentProgress())
    after = await list_letters(operator)
    assert (after.waiting, after.unquotable) == (0, 1)
    await count_trends(as_user(base, secure, "nearline-trends"))
    shadow = Shadow(as_user(base, secure, "nearline-shadow"), store, CODEC, "trendy", 100)
    following = asyncio.create_task(shadow.run())
    await wait_until(lambda: shadow.ready, "it follows the log")
    await send(players, [play_event("v00", 3, 10**6 + 1)])
    await wait_until(lambda: sum(map(shadow.metrics.count, OUTCOMES)), "a viewer is looked at")
    shadow.stop()
    await asyncio.wait_for(following, 30)
    await store.close()
    assert used(secure, base) == set(rights(base.kafka.topic, base.kafka.group_id))


async def count_trends(settings: Settings) -> None:
    """The aggregator, for a generation that trends can be added to (the night's few plays make none)."""
    tables = dataclasses.replace(make_tables(60), at_ms=T0)
    write_generation_folder(
        settings.generations_path, make_generation(60, 4, generation_id="trendy").with_tables(tables)
    )
    GenerationsFolder(settings.generations_path).activate("trendy", floor=0)
    store = open_store(settings.store, settings.keys)
    aggregator = Aggregator(settings, store, CODEC, instance="a1")
    task = asyncio.create_task(aggregator.run())
    await wait_until(lambda: aggregator.figures.plays, "plays are counted")
    aggregator.stop()
    await asyncio.wait_for(task, 30)
    await store.close()


def used(secure: SecureKafka, base: Settings) -> set[tuple[str, int, str, int]]:
    """The rights of this test's stream that were asked for and given, as the broker's authorizer tells; Describe comes with any other."""
    operations = {name.upper(): number for name, number in OPERATIONS.items()}
    kinds = {"Topic": RESOURCES["--topic"], "Group": RESOURCES["--group"]}
    decision = r"Principal = (User:\S+) is Allowed operation = (\w+) from host = \S+ on resource = (\w+):LITERAL:(\S+)"
    found = re.findall(decision, secure.server.log_path.read_text(errors="replace"))
    mine = (base.kafka.topic, f"{base.kafka.topic}.", base.kafka.group_id)
    return {
        (principal, kinds[kind], name, operations[operation.replace("_", "")])
        for principal, operation, kind, name in found
        if principal != "User:ANONYMOUS" and kind in kinds and operation != "DESCRIBE" and name.startswith(mine)
    }


async def test_a_stranger_sees_and_changes_nothing(secure: SecureKafka, base: Settings) -> None:
    admin = await make_admin(base)
    assert base.kafka.topic not in await admin.list_topics()
    await admin.close()
    with pytest.raises(KafkaUnavailable, match=r"user stranger .*docs/security\.md"):
        await make_producer(base)
    with pytest.raises(UserError, match=r"docs/security\.md"):
        await run_nightly(base, MemoryStore(), progress=SilentProgress())


def principal(user: str, kind: int, name: str, operation: int) -> tuple[str, int, str, int]:
    return (f"User:{user}", kind, name, operation)


async def complaint(settings: Settings, events: list[PlaybackEvent] | None = None) -> str:
    """What an updater logs while it waits."""
    from structlog.testing import capture_logs

    with capture_logs() as logs:
        async with updating(settings):

            def told() -> bool:
                return any(one["event"] in ("waiting", "batch_again") for one in logs)

            await wait_until(told, "a complaint")
    return str(next(one["error"] for one in logs if one["event"] in ("waiting", "batch_again")))


@pytest.mark.parametrize(
    ("missing", "says"), [("topic", "let this user read it"), ("group", "NEARLINE_KAFKA__GROUP_ID")]
)
async def test_an_updater_without_a_right_waits_and_says_which(
    secure: SecureKafka, base: Settings, missing: str, says: str
) -> None:
    kind, name = (TOPIC, base.kafka.topic) if missing == "topic" else (3, base.kafka.group_id)
    await give(secure, base, "nearline-updater", without=principal("nearline-updater", kind, name, READ))
    said = await complaint(as_user(base, secure, "nearline-updater"))
    assert says in said
    assert "docs/security.md" in said
    assert name in said


async def test_an_updater_that_may_not_write_dead_letters_says_so_passes_nothing_and_goes_on_once_it_may(
    secure: SecureKafka, base: Settings
) -> None:
    letters = principal("nearline-updater", TOPIC, base.kafka.dead_letter_topic, WRITE)
    await give(secure, base, "players", "nearline-updater")
    await send_raw(as_user(base, secure, "players"), b"not avro")
    async with updating(as_user(base, secure, "nearline-updater")) as updater:
        await wait_until(lambda: updater.metrics.records.labels("dead")._value.get() == 1, "the first is a letter")
        await deny(secure.server.bootstrap, [letters])
        await send_raw(as_user(base, secure, "players"), b"not avro either")
        await wait_until(lambda: updater.metrics.retries.labels("KafkaUnavailable")._value.get() > 0, "the refusal")
        assert updater.metrics.records.labels("dead")._value.get() == 1
        await allow(secure.server.bootstrap, [letters])
        await wait_until(lambda: updater.metrics.records.labels("dead")._value.get() == 2, "the second is one too", 60)


async def test_a_client_shows_its_certificate_where_only_tls_is_asked_for(secure: SecureKafka) -> None:
    """Files of a certificate of our own are taken with SASL_SSL too; a key that does not fit is refused before anything is sent."""
    good, client = secure.certificates.good, secure.certificates.client
    both = Settings(_env_file=None, kafka=secure.settings(ssl_cert_file=client.cert, ssl_key_file=client.key))
    await (await make_admin(both)).close()
    with pytest.raises(UserError, match="NEARLINE_KAFKA__SSL_CERT_FILE"):
        await make_admin(
            Settings(_env_file=None, kafka=secure.settings(ssl_cert_file=client.cert, ssl_key_file=good.key))
        )
