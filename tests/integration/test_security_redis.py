"""Redis with TLS and users, a real server: what works, what is refused, and that the error names what to set."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from batch.activation import activate
from batch.nightly import run_nightly
from contracts.codec import Codec
from contracts.errors import StoreUnavailable
from contracts.keys import Keys
from embeddings.generations_folder import GenerationsFolder
from homepage import inspect
from homepage.server import run_homepage
from runtime import doctor
from runtime.progress import SilentProgress
from runtime.settings import Settings, StoreSettings
from sandbox.children import SandboxError, find_free_port
from sandbox.servers import KafkaServer, ValkeyServer
from sandbox.valkey_server import find_on_path
from tests.certificates import Certificate, Certificates, documented
from tests.conftest import TopicFactory, require_or_skip
from tests.integration.test_nightly import catalogue, history, send
from tests.worlds import T0, make_generation, make_tables, play_event, wait_until, write_generation_folder
from trends.aggregator import Aggregator
from updater.consumer import Updater
from updater.shadow import Shadow
from viewers.redis_store import RedisStore, open_store

PASSWORD = "a:pass/word@with?everything#"
ENCODED = "a%3Apass%2Fword%40with%3Feverything%23"
CODEC = Codec.load()
TRENDY = "trendy"


@dataclass
class SecureRedis:
    """A server with a port for TLS, and the plain one for the test's own commands."""

    server: ValkeyServer
    tls_port: int
    certificates: Certificates | None
    namespace: str

    def settings(self, user: str = "", password: str = ENCODED, *, port: int = 0, **more: Any) -> StoreSettings:
        login = f"{user}:{password}@" if user else ""
        if self.certificates is None:
            return StoreSettings(url=self.server.url.replace("//", f"//{login}"), namespace=self.namespace)
        url = f"rediss://{login}127.0.0.1:{port or self.tls_port}/0"
        usual = {"url": url, "namespace": self.namespace, "ssl_ca_file": self.certificates.ca, "connect_timeout_s": 5.0}
        return StoreSettings(**(usual | more))  # a handshake on a loaded machine takes its time

    def command(self, *words: Any) -> Any:
        with redis.Redis.from_url(self.server.url, protocol=2) as client:
            return client.execute_command(*words)

    def present(self, certificate: Certificate) -> None:
        """From now on the server shows this one."""
        self.command("CONFIG", "SET", "tls-cert-file", str(certificate.cert), "tls-key-file", str(certificate.key))

    def allow(self, user: str, *, without: str = "") -> None:
        """The rights that the page lists for a user, less one word."""
        self.command(*(word for word in rights(user, self.namespace) if word != without))

    def calls(self) -> set[str]:
        """Commands that ran since the statistics were reset, in the words of the rights."""
        found = self.command("INFO", "commandstats")
        return {name.removeprefix("cmdstat_") for name in found}


def rights(user: str, namespace: str) -> list[str]:
    (line,) = (line for line in documented("acl") if f" {user} " in line)
    return [word.replace("nl:", f"{namespace}:").replace(">PASSWORD", f">{PASSWORD}") for word in line.split()]


def granted(user: str) -> set[str]:
    return {word[1:] for word in rights(user, "nl") if word.startswith("+")}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ValkeyServer, int]]:
    """Debian's redis-server, or a valkey-server that was built with TLS; the wheel's is not."""
    tried: list[str] = []
    tls_port, good = find_free_port(), certificates.good
    config = {
        "tls-port": str(tls_port), "tls-auth-clients": "no", "tls-ca-cert-file": str(certificates.ca),
        "tls-cert-file": str(good.cert), "tls-key-file": str(good.key),
    }  # fmt: skip
    for name in ("redis-server", "valkey-server"):
        if (binary := find_on_path(name, tried)) is None:
            continue
        made = ValkeyServer(tmp_path_factory.mktemp("redis"), extra_config=config, binary=binary)
        try:
            made.start()
        except SandboxError as error:
            tried.append(str(error).splitlines()[0])
            continue
        yield made, tls_port
        made.stop(kill=True)
        return
    require_or_skip("redis-tls", f"{'; '.join(tried)}. Install one with TLS (Debian: apt-get install redis-server)")


@pytest.fixture
def secure(server: tuple[ValkeyServer, int], certificates: Certificates, namespace: str) -> Iterator[SecureRedis]:
    made = SecureRedis(*server, certificates, namespace)
    yield made
    made.present(certificates.good)
    made.command("CONFIG", "SET", "tls-auth-clients", "no")
    made.command("ACL", "SETUSER", "default", "reset", "on", "nopass", "~*", "&*", "+@all")
    for user in made.command("ACL", "USERS"):
        if user != b"default":
            made.command("ACL", "DELUSER", user)


@asynccontextmanager
async def opened(settings: StoreSettings) -> AsyncIterator[RedisStore]:
    store = open_store(settings, Keys(settings.namespace, "playback@1"))
    try:
        yield store
    finally:
        await store.close()


async def refusal(settings: StoreSettings) -> str:
    async with opened(settings) as store:
        with pytest.raises(StoreUnavailable) as caught:
            await store.connect()
    said = str(caught.value)
    assert said.startswith("store 127.0.0.1:")
    assert not any(secret in said for secret in (PASSWORD, ENCODED, "pass/word", "hunter2"))
    return said


# What is refused, and what the error says


async def test_a_server_of_an_unknown_authority_is_not_trusted(secure: SecureRedis) -> None:
    for ca in (secure.certificates.other_ca, None):
        assert "NEARLINE_STORE__SSL_CA_FILE" in await refusal(secure.settings(ssl_ca_file=ca))


async def test_a_certificate_for_another_name_is_refused(secure: SecureRedis) -> None:
    secure.present(secure.certificates.elsewhere)
    said = await refusal(secure.settings())
    assert "mismatch" in said
    assert "NEARLINE_STORE__URL" in said


async def test_an_expired_certificate_is_refused(secure: SecureRedis) -> None:
    secure.present(secure.certificates.expired)
    assert "certificate has expired" in await refusal(secure.settings())


async def test_without_tls_a_port_that_speaks_it_hangs_up_and_the_error_says_so(secure: SecureRedis) -> None:
    for login in ("", "u:hunter2@"):
        plain = StoreSettings(url=f"redis://{login}127.0.0.1:{secure.tls_port}/0")
        assert "rediss:// in NEARLINE_STORE__URL" in await refusal(plain)


async def test_with_tls_a_port_without_it_is_silent_and_the_error_says_so(secure: SecureRedis) -> None:
    assert secure.server.port is not None
    said = await refusal(secure.settings(port=secure.server.port))
    assert "port without TLS" in said
    assert "NEARLINE_STORE__URL" in said


async def test_a_wrong_password_and_an_unknown_user_are_refused_by_the_same_words(secure: SecureRedis) -> None:
    secure.allow("nearline-updater")
    said = {await refusal(secure.settings(user, "hunter2")) for user in ("nearline-updater", "nobody")}
    assert len(said) == 1
    assert "NEARLINE_STORE__URL" in said.pop()
    secure.command("ACL", "SETUSER", "default", "resetpass", f">{PASSWORD}")
    try:
        assert "Authentication required" in await refusal(secure.settings())
    finally:
        with redis.Redis.from_url(secure.server.url, password=PASSWORD, protocol=2) as client:
            client.execute_command("ACL", "SETUSER", "default", "nopass")


async def test_a_server_may_ask_for_our_certificate(secure: SecureRedis) -> None:
    secure.command("CONFIG", "SET", "tls-auth-clients", "yes")
    assert "NEARLINE_STORE__SSL_CERT_FILE" in await refusal(secure.settings())
    client = secure.certificates.client
    async with opened(secure.settings(ssl_cert_file=client.cert, ssl_key_file=client.key)) as store:
        assert await store.connect()


async def test_a_right_that_is_missing_is_named_with_where_it_is_listed(secure: SecureRedis) -> None:
    for word in ("+script|load", "+evalsha", "+info"):
        secure.allow("nearline-updater", without=word)
        said = await refusal(secure.settings("nearline-updater"))
        assert "docs/security.md" in said, said
    secure.allow("nearline-updater", without=f"~{secure.namespace}:v:*")
    async with opened(secure.settings("nearline-updater")) as store:
        await store.connect()
        with pytest.raises(StoreUnavailable, match=r"docs/security\.md") as caught:
            await store.read_viewers(["marked-viewer"])
    assert "marked" not in str(caught.value)


async def test_the_doctor_says_the_same(secure: SecureRedis, tmp_path: Path) -> None:
    settings = Settings(_env_file=None, store=secure.settings(ssl_ca_file=secure.certificates.other_ca))
    (finding,) = await doctor._check_store(settings)
    assert finding.ok is False
    assert "NEARLINE_STORE__SSL_CA_FILE" in str(finding)


# The rights that the page lists suffice, and are needed


@pytest.fixture
async def base(kafka: KafkaServer, topic: TopicFactory, tmp_path: Path) -> Settings:
    name = await topic(2)
    for other in ("impressions", "catalogue", "dlq"):
        await topic(1, name=f"{name}.{other}")
    return Settings(
        _env_file=None,
        kafka={"bootstrap_servers": kafka.bootstrap, "topic": name, "group_id": name},
        train={"factors": 4, "iterations": 3},
        homepage={"port": 0},
        lake_path=str(tmp_path / "lake"),
        generations_path=str(tmp_path / "generations"),
    )


def as_user(base: Settings, secure: SecureRedis, user: str) -> Settings:
    return base.model_copy(update={"store": secure.settings(user)})


@asynccontextmanager
async def store_of(settings: Settings) -> AsyncIterator[RedisStore]:
    store = open_store(settings.store, settings.keys)
    await store.connect()
    try:
        yield store
    finally:
        await store.close()


async def a_night(settings: Settings) -> str:
    async with store_of(settings) as store:
        report = await run_nightly(settings, store, seed=True, skip_evaluation=True, progress=SilentProgress())
    return str(report.generation_id)


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def an_evening(settings: Settings, viewer: str) -> None:
    """One updater; a play of a viewer who has a row, and one of a new viewer."""
    store = open_store(settings.store, settings.keys)
    updater = Updater(settings, store, CODEC, instance="u1")
    task = asyncio.create_task(updater.run())
    try:
        await send(settings, [play_event(viewer, 2, 10**6), play_event("new", 4, 10**6)])
        await wait_until(lambda: updater.metrics.rows_written >= 2, "both rows are written")
        await wait_until(lambda: updater.swap.trends.in_force, "the newest trends serve")
        await updater.swap.follow_trends(store)  # what serves is kept
        await store.write_traces({"r1": TRACE})  # as of a traced event
    finally:
        updater.stop()
        await asyncio.wait_for(task, 30)
        assert await store.read_viewer(viewer)
        await store.write_halt("only so that the right to say so is used")
        await store.close()


async def counting(settings: Settings) -> None:
    """The aggregator, until its trends are published."""
    store = open_store(settings.store, settings.keys)
    aggregator = Aggregator(settings, store, CODEC, instance="a1")
    task = asyncio.create_task(aggregator.run())
    try:
        await wait_until(lambda: aggregator.figures.newest, "a snapshot")

        def looked_at() -> bool:
            base = aggregator._base
            return base is not None and bool(base.newcomers.added.popularity.any())

        await wait_until(looked_at, "the vectors of who watched what nobody had played are read")

        async def default_row() -> bool:
            row = await store._command("HGET", store.keys.default_row, "*:*")  # all of them this user may not read
            return CODEC.decode_row(row).generation_id == TRENDY

        await wait_until(default_row, "default rows made from it")
    finally:
        aggregator.stop()
        await asyncio.wait_for(task, 30)
        await store.close()


async def shadowing(settings: Settings, viewer: str) -> None:
    """One look of a shadow generation."""
    store = open_store(settings.store, settings.keys)
    shadow = Shadow(settings, store, CODEC, TRENDY, 100)
    await shadow.load()
    await shadow.look([viewer])
    assert shadow.metrics.count("in_force") == 1
    await store.close()


def put_in_force_with_trends(settings: Settings, secure: SecureRedis) -> None:
    """A generation that trends can be added to: the night's few plays make none."""
    tables = dataclasses.replace(make_tables(60), at_ms=T0)
    made = make_generation(60, 4, generation_id=TRENDY).with_tables(tables)
    made.item_factors[4] = made.popularity[4] = 0  # came with the catalogue: nobody had played it
    write_generation_folder(settings.generations_path, made)
    activation = GenerationsFolder(settings.generations_path).activate(TRENDY, floor=0).activation
    secure.command("SET", settings.keys.activation, activation)


async def ask_homepage(settings: Settings, *viewers: str) -> list[dict[str, Any]]:
    stop, port = asyncio.Event(), asyncio.get_running_loop().create_future()
    running = asyncio.create_task(run_homepage(settings, stop=stop, on_listening=port.set_result))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{await port}") as client:

            async def ready() -> bool:
                return (await client.get("/health/ready")).status_code == 200

            await wait_until(ready, "the home page is ready")
            pages = [(await client.get(f"/v1/home/{viewer}")).json() for viewer in viewers]
        reader = open_store(settings.store, settings.keys)
        assert await reader.read_trace("r1") == TRACE  # as of a traced request
        await reader.close()
        return pages
    finally:
        stop.set()
        await running


def used(secure: SecureRedis) -> set[str]:
    """What ran, in the words of the rights; without what everyone may, and what the test itself asked."""
    names = {re.sub(r"\W", "|", name) for name in secure.calls()}
    return names - {"auth", "hello", "client|setinfo", "config|resetstat", "config|set", "acl|setuser", "acl|users"}


@pytest.mark.parametrize("product", ["redis over TLS", "valkey"])
async def test_each_process_runs_with_its_rights_and_needs_every_one_of_them(
    product: str, base: Settings, request: pytest.FixtureRequest, namespace: str
) -> None:
    """From plays to everybody's row, to a play in the evening, to the page."""
    if product == "valkey":
        secure = SecureRedis(request.getfixturevalue("fresh_valkey"), 0, None, namespace)
    else:
        secure = request.getfixturevalue("secure")
    for user in ("updater", "homepage", "nightly", "operator", "trends", "shadow"):
        secure.allow(f"nearline-{user}")
    own_words = ("+acl", "+config", "+info", "+ping", "+set")
    secure.command("ACL", "SETUSER", "default", "-@all", *own_words)  # nobody's else
    await send(base, history(), catalogue())

    async def watched(user: str, work: Any) -> Any:
        secure.command("CONFIG", "RESETSTAT")
        result = await work
        extra = {"info"} - granted(user)  # the question itself
        assert used(secure) - extra == granted(user), user
        return result

    nightly, updater = (as_user(base, secure, f"nearline-{user}") for user in ("nightly", "updater"))

    async def night_and_again() -> str:
        generation_id = await a_night(nightly)
        assert await a_night(nightly) == generation_id  # begins by asking what the store knows of the first
        async with store_of(nightly) as store:
            await activate(nightly, store, generation_id, progress=SilentProgress())
        return generation_id

    await watched("nearline-nightly", night_and_again())
    put_in_force_with_trends(as_user(base, secure, "nearline-nightly"), secure)
    await watched("nearline-trends", counting(as_user(base, secure, "nearline-trends")))
    await watched("nearline-updater", an_evening(updater, "v00"))
    own, new, unknown = await watched(
        "nearline-homepage", ask_homepage(as_user(base, secure, "nearline-homepage"), "v00", "new", "unknown")
    )
    assert [row["default"] for row in (own, new, unknown)] == [False, False, True]
    assert {row["generation_id"] for row in (own, new, unknown)} == {TRENDY}
    assert own["freshness_ms"] is not None

    await watched("nearline-shadow", shadowing(as_user(base, secure, "nearline-shadow"), "v00"))

    operator = as_user(base, secure, "nearline-operator")
    async with store_of(operator) as store:
        assert await store.read_halt()
        await store.write_halt(None)
        for look in (inspect.show_viewer, inspect.explain_viewer):
            assert (await look(operator, store, CODEC, "v00")).data
    findings = {finding.name: finding for finding in await doctor._check_store(operator)}
    assert findings["store"].ok, findings


async def test_the_home_page_can_change_nothing(secure: SecureRedis) -> None:
    secure.allow("nearline-homepage")
    with redis.Redis.from_url(secure.server.url, username="nearline-homepage", password=PASSWORD, protocol=2) as client:
        for words in (
            ("HSET", f"{secure.namespace}:v:ana", "r", "x"),
            ("KEYS", "*"),
            ("GET", f"{secure.namespace}:halt:x"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*words)
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.hget("other:v:ana", "r")
        assert client.hget(f"{secure.namespace}:v:ana", "r") is None


async def test_an_unknown_viewer_costs_the_store_exactly_what_a_known_one_costs(
    secure: SecureRedis, base: Settings
) -> None:
    """Counted by the server itself."""
    settings = base.model_copy(update={"store": secure.settings()})
    await send(base, history(), catalogue())
    await a_night(settings)
    costs = []
    stop, port = asyncio.Event(), asyncio.get_running_loop().create_future()
    running = asyncio.create_task(run_homepage(settings, stop=stop, on_listening=port.set_result))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{await port}") as client:
        for viewer in ("v00", "nobody-knows"):
            answers: list[dict[str, Any]] = [{"degraded": True}]
            while any(one["degraded"] for one in answers):  # on a busy machine one may take longer than its deadline
                secure.command("CONFIG", "RESETSTAT")
                answers = [(await client.get(f"/v1/home/{viewer}")).json() for _ in range(5)]
                found = secure.command("INFO", "commandstats")
            assert [one["default"] for one in answers] == [viewer != "v00"] * 5
            costs.append({name: one["calls"] for name, one in found.items() if name == "cmdstat_hget"})
            assert "cmdstat_evalsha" not in found
    stop.set()
    await running
    assert costs == [{"cmdstat_hget": 5}] * 2
