"""A Kafka with a listener for SASL over TLS, users and an authorizer; its plain listener is the administrator's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import CompactArray, CompactBytes, CompactString, Int8, Int16, Int32, Schema, TaggedFields

from sandbox.children import find_free_port
from sandbox.servers import KafkaServer
from tests.certificates import Certificates, documented

PASSWORD = "hunter2 of kafka"
USERS = (
    "players",
    "nearline-updater",
    "nearline-trends",
    "nearline-shadow",
    "nearline-homepage",
    "nearline-nightly",
    "nearline-operator",
    "stranger",
)
RESOURCES = {"--topic": 2, "--group": 3}
OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Delete": 6, "Describe": 8, "DescribeConfigs": 10}
ALLOW, LITERAL, SCRAM_SHA_512, ITERATIONS = 3, 3, 2, 4096


class _AlterScramResponse(Response):
    API_KEY, API_VERSION = 51, 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            CompactArray(
                ("user", CompactString()), ("error_code", Int16), ("message", CompactString()), ("tags", TaggedFields)
            ),
        ),
        ("tags", TaggedFields),
    )


class _AlterScramStruct(RequestStruct):
    API_KEY, API_VERSION, FLEXIBLE_VERSION = 51, 0, True
    RESPONSE_TYPE = _AlterScramResponse
    SCHEMA = Schema(
        ("deletions", CompactArray(("name", CompactString()), ("mechanism", Int8), ("tags", TaggedFields))),
        (
            "upsertions",
            CompactArray(
                ("name", CompactString()), ("mechanism", Int8), ("iterations", Int32), ("salt", CompactBytes),
                ("salted_password", CompactBytes), ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )  # fmt: skip


class _AlterScram(Request[_AlterScramStruct]):
    """What `kafka-configs.sh --alter --add-config 'SCRAM-SHA-512=[password=…]'` sends; the client library lacks it."""

    API_KEY = 51

    def __init__(self, users: Iterable[str]) -> None:
        self._users = users

    def build(self, request_struct_class: type[_AlterScramStruct]) -> _AlterScramStruct:
        entries = []
        for user in self._users:
            salt = os.urandom(16)
            salted = hashlib.pbkdf2_hmac("sha512", PASSWORD.encode(), salt, ITERATIONS)
            entries.append((user, SCRAM_SHA_512, ITERATIONS, salt, salted, {}))
        return request_struct_class([], entries, {})


def secure_kafka(folder: Path, certificates: Certificates) -> tuple[KafkaServer, int]:
    """Not started; and the port of its SASL_SSL listener."""
    port, secure_port, controller_port = find_free_port(), find_free_port(), find_free_port()
    login = "org.apache.kafka.common.security"
    plain_users = " ".join(f'user_{user}="{PASSWORD}"' for user in USERS)
    listener = "listener.name.secure"
    plain, secure = f"PLAINTEXT://127.0.0.1:{port}", f"SECURE://127.0.0.1:{secure_port}"
    return KafkaServer(
        folder,
        port=port,
        extra_config={
            "listeners": f"{plain},{secure},CONTROLLER://127.0.0.1:{controller_port}",
            "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
            "advertised.listeners": f"{plain},{secure}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL,CONTROLLER:PLAINTEXT",
            f"{listener}.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
            f"{listener}.plain.sasl.jaas.config": f"{login}.plain.PlainLoginModule required {plain_users};",
            f"{listener}.scram-sha-512.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
            f"{listener}.ssl.keystore.type": "PEM",
            f"{listener}.ssl.keystore.location": str(certificates.good.both),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # The broker itself, and the test as administrator, come without a name through the plain listener.
            "super.users": "User:ANONYMOUS",
        },
    ), secure_port


async def make_users(bootstrap: str) -> None:
    """SCRAM credentials of every user; with PLAIN the broker's configuration has them."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        answer = await admin._send_request(_AlterScram(USERS))
        assert all(code == 0 for _, code, *_ in answer.results), answer
    finally:
        await admin.close()


def rights(topic: str, group_id: str) -> list[tuple[str, int, str, int]]:
    """(principal, resource type, its name, operation) of every line of docs/security.md."""
    found = []
    for line in documented("kafka-acls"):
        words = line.split()
        pairs = list(zip(words[::2], words[1::2], strict=True))
        (principal,) = (value for name, value in pairs if name == "--allow-principal")
        ((kind, name),) = ((name, value) for name, value in pairs if name in RESOURCES)
        named = name.replace("playback", topic, 1) if kind == "--topic" else group_id
        operations = [value for name, value in pairs if name == "--operation"]
        found += [(principal, RESOURCES[kind], named, OPERATIONS[operation]) for operation in operations]
    return found


async def allow(bootstrap: str, granted: Iterable[tuple[str, int, str, int]]) -> None:
    """Give these rights."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        for principal, kind, name, operation in granted:
            request = CreateAclsRequest(kind, name, LITERAL, principal, "*", operation, ALLOW)
            answer = await admin._send_to_controller(request)
            assert all(code == 0 for code, _ in answer.creation_responses), answer
    finally:
        await admin.close()


async def deny(bootstrap: str, taken: Iterable[tuple[str, int, str, int]]) -> None:
    """Take these rights away."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        for principal, kind, name, operation in taken:
            request = DeleteAclsRequest(kind, name, LITERAL, principal, "*", operation, ALLOW)
            answer = await admin._send_to_controller(request)
            assert all(one[0] == 0 and one[2] for one in answer.filter_responses), answer
    finally:
        await admin.close()
