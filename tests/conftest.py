"""Fixtures that every test may use: real servers, made when the first test asks for them.

NEARLINE_REQUIRE=kafka,valkey,browser,redis-tls turns the skip for a missing dependency into a failure: what runs in CI must run.
NEARLINE_TEST_KAFKA (host:port) and NEARLINE_TEST_STORE (a redis:// URL) name servers to use instead of starting some;
NEARLINE_TEST_STORE_BINARY names the store's program to start instead of the first that is found (`noxfile.py`).
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import hypothesis
import pytest
import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from sandbox.servers import KafkaServer, SandboxError, ValkeyServer

if TYPE_CHECKING:
    from tests.consistency import Stage

# Shared machines stall for longer than any deadline; tests that are about time set their own.
hypothesis.settings.register_profile(
    "nearline", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("nearline")

# Helpers that assert: a failure there tells what was compared, as in a test.
pytest.register_assert_rewrite("tests.consistency", "tests.worlds")

STORE_BINARY = Path(os.environ["NEARLINE_TEST_STORE_BINARY"]) if "NEARLINE_TEST_STORE_BINARY" in os.environ else None
Server = TypeVar("Server", KafkaServer, ValkeyServer)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def require_or_skip(name: str, remedy: str) -> None:
    """Skip the test because dependency `name` is missing, or fail it where NEARLINE_REQUIRE lists it."""
    required = {part.strip() for part in os.environ.get("NEARLINE_REQUIRE", "").split(",")}
    if name in required:
        pytest.fail(f"NEARLINE_REQUIRE lists {name}, and it cannot be had: {remedy}", pytrace=False)
    pytest.skip(f"no {name}: {remedy}")


def serving(name: str, server: Server) -> Iterator[Server]:
    """A server from its start to the end of the test, or of the run."""
    try:
        server.start()
    except SandboxError as error:
        require_or_skip(name, str(error))
    yield server
    server.stop(kill=True)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """One Kafka for the whole run; tests make their own topics and group ids."""
    folder = tmp_path_factory.mktemp("kafka")
    yield from serving("kafka", KafkaServer(folder, bootstrap=os.environ.get("NEARLINE_TEST_KAFKA")))


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """One Valkey for the whole run; tests keep to the key prefix of `namespace`."""
    folder, url = tmp_path_factory.mktemp("valkey"), os.environ.get("NEARLINE_TEST_STORE")
    yield from serving("valkey", ValkeyServer(folder, url=url, binary=STORE_BINARY))


@pytest.fixture
def fresh_valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A Valkey of this test's own, which it may kill, pause and restart."""
    yield from serving("valkey", ValkeyServer(tmp_path / "valkey", binary=STORE_BINARY))


@pytest.fixture
def fresh_kafka(tmp_path: Path) -> Iterator[KafkaServer]:
    """A Kafka of this test's own, which it may kill, pause and restart; 2 s each, so only where that is the point."""
    yield from serving("kafka", KafkaServer(tmp_path / "kafka"))


@pytest.fixture
def namespace() -> str:
    """A key prefix that no other test uses."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """A test that runs a verb sets up logs; the next one must not write to its closed streams."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


class TopicFactory(Protocol):
    """`name = await topic(partitions=3, config={"retention.ms": "1000"})`."""

    async def __call__(
        self, partitions: int = 1, *, name: str | None = None, config: dict[str, str] | None = None
    ) -> str: ...


@pytest.fixture
async def topic(kafka: KafkaServer) -> AsyncIterator[TopicFactory]:
    """Makes topics with names of their own, and deletes them when the test ends."""
    made: list[str] = []
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()

    async def make(partitions: int = 1, *, name: str | None = None, config: dict[str, str] | None = None) -> str:
        full = name or f"t-{uuid.uuid4().hex[:12]}"
        response = await admin.create_topics([NewTopic(full, partitions, 1, topic_configs=config or {})])
        failed = [error for error in response.topic_errors if error[1] != 0]
        assert not failed, f"cannot create topic {full}: {failed}"
        made.append(full)
        return full

    try:
        yield make
        if made:
            await admin.delete_topics(made)
    finally:
        await admin.close()


@pytest.fixture(scope="session")
def browser_path() -> str:
    """A Chromium on this machine, for Playwright's `executable_path`."""
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    require_or_skip("browser", "install Chromium (Debian: apt-get install chromium)")
    raise AssertionError("unreachable")


@pytest.fixture
async def stage(
    kafka: KafkaServer, valkey: ValkeyServer, topic: TopicFactory, namespace: str, tmp_path: Path
) -> AsyncIterator[Stage]:
    """A topic, its dead letters and a namespace of the store. Files of tests that want more than that override it."""
    from tests.consistency import PARTITIONS, make_stage  # not before its assertions are rewritten

    name = await topic(PARTITIONS)
    await topic(1, name=name + ".dlq")
    made = await make_stage(kafka.bootstrap, valkey.url, name, namespace, tmp_path)
    yield made
    await made.store.close()
