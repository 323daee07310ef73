"""A schema registry's server: bytes as Confluent's own serialisers write and read them, and what is said when it is away or wrong.

With `NEARLINE_TEST_REGISTRY_URL` the first tests ask a server that is there (each under topics of its own) instead of the one in tests/.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import ssl
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient, header_schema_id_serializer
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

import nearline
from contracts.codec import Codec, _event_record
from contracts.errors import ContractError, RegistryUnavailable, SettingsError, UndecodableRecord, UnknownSchema
from contracts.events import Kind, PlaybackEvent
from contracts.framing import SCHEMA_HEADER, framed
from contracts.registry import SCHEMAS_PATH, Registry, read_json
from contracts.rows import HomeRow, Impression
from runtime.doctor import check_registry
from runtime.schema_server import FORGET_AFTER_S, SURE_AFTER_S, SchemaServer, subjects_of
from runtime.schemas import Schemas, open_codec
from runtime.settings import Settings, load_settings
from tests.certificates import Certificates
from tests.registry_server import RegistryServer

EVENT_SCHEMA = read_json(SCHEMAS_PATH / "playback_event.avsc")
RECORDED = json.loads((Path(__file__).parent.parent / "recorded_registry.json").read_text())
NOW_MS = 1_790_000_000_000
EVENT = PlaybackEvent("e1", Kind.PROGRESS, "ana", NOW_MS, False, "i1", "p1", NOW_MS - 9_000, 9_000, 60_000)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    made = RegistryServer()
    yield made
    made.down()


def settings_for(url: str, topic: str = "playback", **schemas: object) -> Settings:
    return Settings(kafka={"topic": topic}, schemas={"registry_url": url, **schemas})


def register_all(settings: Settings, server: SchemaServer | None = None) -> None:
    """As `nearline contracts register` does."""
    asked = server or SchemaServer(settings)
    for name, subject in subjects_of(settings).items():
        asked.register(subject, read_json(SCHEMAS_PATH / f"{name}.avsc"))


@pytest.fixture
def place(server: RegistryServer) -> Settings:
    """A registry that has our schemas, for topics of the test's own."""
    url = os.environ.get("NEARLINE_TEST_REGISTRY_URL") or server.url
    settings = settings_for(url, f"t{uuid.uuid4().hex[:12]}")
    register_all(settings)
    return settings


def some_events(count: int) -> list[PlaybackEvent]:
    """Every kind, every optional field there and missing, numbers of every length."""
    rng = random.Random(7)

    def maybe(value: object) -> object:
        return value if rng.random() < 0.7 else None

    return [
        PlaybackEvent(
            f"e{i}", rng.choice(list(Kind)), "v" * rng.randint(1, 128), rng.randrange(2**rng.randint(1, 49)),
            rng.random() < 0.2, maybe(f"i{i}"), maybe("p" * rng.randint(1, 90)), maybe(rng.randrange(2**49)),
            maybe(rng.randrange(2**rng.randint(1, 40))), maybe(rng.randrange(2**33)), maybe(rng.randrange(-(2**31), 2**31)),
            maybe("kids"), maybe("r|1"), maybe(rng.randrange(60)),
        )
        for i in range(count)
    ]  # fmt: skip


def confluent(
    settings: Settings, **conf: object
) -> tuple[AvroSerializer, AvroDeserializer, list[tuple[str, bytes]], SerializationContext]:
    client = SchemaRegistryClient({"url": settings.schemas.registry_url})
    headers: list[tuple[str, bytes]] = []
    context = SerializationContext(settings.kafka.topic, MessageField.VALUE, headers)
    serializer = AvroSerializer(client, json.dumps(EVENT_SCHEMA), conf={"auto.register.schemas": False, **conf})
    return serializer, AvroDeserializer(client), headers, context


def test_our_bytes_are_those_of_confluents_serialiser(place: Settings) -> None:
    codec = open_codec(place)
    serializer, _, _, context = confluent(place)
    for event in some_events(300):
        assert codec.encode_event(event) == serializer(_event_record(event), context)


def test_confluents_deserialiser_reads_what_we_write_and_we_read_what_its_serialiser_writes(place: Settings) -> None:
    codec = open_codec(place)
    serializer, deserializer, _, context = confluent(place)
    for event in some_events(100):
        if event.event_time_ms > 2**47 or (event.play_started_at_ms or 0) > 2**47:
            continue  # Python's dates, which that deserialiser makes of times, end before
        read = deserializer(codec.encode_event(event), context)
        assert serializer(read, context) == codec.encode_event(event)
        assert codec.decode_event(serializer(_event_record(event), context)) == event


def test_a_schema_named_by_its_guid_in_the_header_is_read(server: RegistryServer) -> None:
    settings = settings_for(server.url)
    register_all(settings)
    codec = open_codec(settings)
    serializer, _, headers, context = confluent(settings, **{"schema.id.serializer": header_schema_id_serializer})
    for event in some_events(50):
        headers.clear()
        value = serializer(_event_record(event), context)
        ((name, guid),) = headers
        assert name == SCHEMA_HEADER
        assert guid[0] == 1
        assert codec.decode_event(framed(value, [("private", b"0"), (name, guid)])) == event
        assert codec.decode_event(guid + value) == event, "the frame may stand before the value"
        with pytest.raises(UndecodableRecord):
            codec.decode_event(framed(value, []))


def test_a_guid_that_the_versions_do_not_tell_is_asked_for_once(server: RegistryServer) -> None:
    settings = settings_for(server.url)
    server.knows_guids = False
    register_all(settings)
    schemas = Schemas(settings)
    codec = schemas.open()
    body = codec.encode_event(EVENT)[5:]
    guid = uuid.UUID(server._guid(1)).bytes
    with pytest.raises(UnknownSchema) as unknown:
        codec.decode_event(b"\x01" + guid + body)
    assert schemas.learn(codec, unknown.value) is codec, "this server does not know GUIDs: the stream waits"
    server.knows_guids = True
    codec = schemas.learn(codec, unknown.value)
    assert codec.decode_event(b"\x01" + guid + body) == EVENT


def test_newer_writers_and_those_deleted_softly_are_read(server: RegistryServer) -> None:
    settings = settings_for(server.url)
    register_all(settings)
    schemas = Schemas(settings)
    codec = schemas.open()
    newer = {
        **EVENT_SCHEMA,
        "fields": [*EVENT_SCHEMA["fields"], {"name": "device", "type": ["null", "string"], "default": None}],
    }
    newer_id = server.register("playback-value", newer)
    record = b"\x00" + newer_id.to_bytes(4, "big") + codec.encode_event(EVENT)[5:] + b"\x02\x04tv"
    with pytest.raises(UnknownSchema) as unknown:
        codec.decode_event(record)
    codec = schemas.learn(codec, unknown.value)
    assert codec.decode_event(record) == EVENT
    server.deleted.add(("playback-value", 2))
    assert open_codec(settings).decode_event(record) == EVENT


def test_only_what_is_new_is_asked_for(server: RegistryServer) -> None:
    settings = settings_for(server.url)
    register_all(settings)
    schemas = Schemas(settings)
    codec = schemas.open()
    server.asked.clear()
    assert schemas.learn(codec, None) is codec
    assert [one for one in server.asked if "versions?" not in one] == [], "three lists, no schema"
    assert len(server.asked) == 3


def test_an_id_of_another_topic_is_a_dead_letter_at_once(server: RegistryServer) -> None:
    settings = settings_for(server.url)
    register_all(settings)
    other = server.register(
        "orders-value", {"type": "record", "name": "Order", "fields": [{"name": "id", "type": "string"}]}
    )
    schemas = Schemas(settings)
    codec = schemas.open()
    with pytest.raises(UnknownSchema) as unknown:
        codec.decode_event(b"\x00" + other.to_bytes(4, "big") + b"\x02a")
    codec = schemas.learn(codec, unknown.value)
    with pytest.raises(
        UndecodableRecord, match=f"schema id {other} is registered, and not for this topic but for orders-value"
    ):
        codec.decode_event(b"\x00" + other.to_bytes(4, "big") + b"\x02a")


def test_an_id_that_the_server_denies_twice_is_a_dead_letter_and_one_it_learns_meanwhile_is_not(
    server: RegistryServer,
) -> None:
    settings, clock = settings_for(server.url), Clock()
    register_all(settings)
    asked = SchemaServer(settings, clock_s=clock)
    rows = Registry.load()
    noise, late = 2**31 - 9, 4  # the ids of a real registry may be any
    for schema in (noise, late):
        assert schema not in asked.learn(schema).refused
    clock.now_s += SURE_AFTER_S
    codec = Codec(asked.learn(noise), rows=rows)
    with pytest.raises(UndecodableRecord, match=f"schema id {noise} is not known to the registry http://"):
        codec.decode_event(b"\x00" + noise.to_bytes(4, "big") + b"\x02a")
    newer = {**EVENT_SCHEMA, "fields": [*EVENT_SCHEMA["fields"], {"name": "more", "type": "boolean", "default": False}]}
    assert server.register("playback-value", newer) == late
    assert asked.learn(late).subject_of(late) == "playback-value"
    clock.now_s += FORGET_AFTER_S + 1
    assert noise not in asked.read().refused, "asked again after a while"
    assert noise in asked.learn(noise).refused, "denied before: believed at once"


def test_a_codec_that_runs_on_asks_again_about_an_id_that_the_server_has_learnt_since(server: RegistryServer) -> None:
    settings, clock = settings_for(server.url), Clock()
    register_all(settings)
    schemas = Schemas(settings)
    assert schemas._server is not None
    schemas._server._clock_s = clock
    late, codec = 4, schemas.open()
    record = b"\x00" + late.to_bytes(4, "big") + codec.encode_event(EVENT)[5:] + b"\x00"
    for _ in range(2):
        with pytest.raises(UnknownSchema) as unknown:
            schemas.doubting(codec).decode_event(record)
        codec = schemas.learn(codec, unknown.value)
        clock.now_s += SURE_AFTER_S
    newer = {**EVENT_SCHEMA, "fields": [*EVENT_SCHEMA["fields"], {"name": "more", "type": "boolean", "default": False}]}
    assert server.register("playback-value", newer) == late
    assert schemas.doubting(codec) is codec
    with pytest.raises(UndecodableRecord):
        codec.decode_event(record)
    clock.now_s += FORGET_AFTER_S
    codec = schemas.doubting(codec)
    with pytest.raises(UnknownSchema) as unknown:
        codec.decode_event(record)
    assert schemas.learn(codec, unknown.value).decode_event(record) == EVENT


def test_a_registered_schema_that_is_dangerous_to_read_is_refused_and_the_others_serve(server: RegistryServer) -> None:
    settings = settings_for(server.url)
    register_all(settings)
    endless = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}
    server.schemas.append(json.dumps(endless))
    server.subjects["playback-value"][2] = bad = len(server.schemas)
    codec = open_codec(settings)
    assert codec.decode_event(codec.encode_event(EVENT)) == EVENT
    with pytest.raises(UndecodableRecord, match=r"playback-value version 2, which cannot be used: .*recursive"):
        codec.decode_event(b"\x00" + bad.to_bytes(4, "big") + b"\x02\x02\x00")


DEEP = '{"type": "long", "x": ' + '{"x": ' * 400 + "1" + "}" * 401
NASTY = [None, True, -1, 2**40, 1.5, float("nan"), "", "x", [], [1], {}, {"x": 1}, '"long"', "[" * 5_000, DEEP]


@pytest.mark.parametrize("what", ["id", "guid", "schema", "schemaType", "references", "all"])
def test_a_server_that_answers_nonsense_is_away_or_its_version_is_refused(server: RegistryServer, what: str) -> None:
    settings = settings_for(server.url)
    register_all(settings)
    honest = server.answer
    for nasty in NASTY:

        def answer(method: str, path: str, body: dict, login: str | None, nasty: object = nasty):
            status, said = honest(method, path, body, login)
            if status == 200 and what == "all" and "schemas" in path:
                return status, nasty
            if status == 200 and isinstance(said, dict) and ("schemas" in path or "playback-value" in path):
                said = nasty if what == "all" else {**said, what: nasty}
            return status, said

        server.answer = answer  # type: ignore[method-assign]
        asked = SchemaServer(settings)
        for schema in (1, 9, b"g" * 16):
            with contextlib.suppress(RegistryUnavailable, ContractError):
                codec = Codec(asked.learn(schema), rows=Registry.load())
                with contextlib.suppress(UndecodableRecord, UnknownSchema):
                    codec.decode_event(b"\x00\x00\x00\x00\x01\x02")


def test_a_server_that_is_away_at_the_start_is_waited_for_and_rows_do_not_need_it(server: RegistryServer) -> None:
    settings = settings_for(server.url)
    register_all(settings)
    written = open_codec(settings).encode_event(EVENT)
    server.down()
    with pytest.raises(RegistryUnavailable, match="NEARLINE_SCHEMAS__REGISTRY_URL"):
        open_codec(settings)
    schemas = Schemas(settings)
    codec = schemas.begin()
    row = HomeRow("r1", "g1", 1, "-", NOW_MS, None, ())
    assert codec.encode_row(row) == Codec.load().encode_row(row)
    assert codec.event_header is None
    impression = Impression("m1", "ana", "r1", "g1", NOW_MS, False, ("i1",))
    for action in (lambda: codec.decode_event(written), lambda: codec.encode_impression(impression)):
        with pytest.raises(UnknownSchema):
            action()
    assert schemas.learn(codec, UnknownSchema("", 1)) is codec
    server.up()
    learnt = schemas.learn(codec, UnknownSchema("", 1))
    assert learnt.decode_event(written) == EVENT
    assert learnt.event_header == written[:5]
    server.down()
    assert schemas.learn(learnt, UnknownSchema("", 77)) is learnt, "away: nothing is refused"


def test_login_and_certificates_are_checked_and_the_message_names_the_setting(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.good.cert, certificates.good.key)
    server = RegistryServer(login=("ana", "s3cret"), tls=context)
    for name in ("playback", "playback.catalogue", "playback.impressions"):
        contract = {"playback": "playback_event", "playback.catalogue": "catalogue_item"}.get(name, "impression")
        server.register(f"{name}-value", read_json(SCHEMAS_PATH / f"{contract}.avsc"))
    login = {"registry_user": "ana", "registry_password": "s3cret"}
    try:
        codec = open_codec(settings_for(server.url, ssl_ca_file=certificates.ca, **login))
        assert codec.decode_event(codec.encode_event(EVENT)) == EVENT
        with pytest.raises(RegistryUnavailable, match="NEARLINE_SCHEMAS__SSL_CA_FILE"):
            open_codec(settings_for(server.url, ssl_ca_file=certificates.other_ca, **login))
        with pytest.raises(RegistryUnavailable, match="NEARLINE_SCHEMAS__REGISTRY_PASSWORD") as refused:
            open_codec(
                settings_for(server.url, ssl_ca_file=certificates.ca, registry_user="ana", registry_password="no")
            )
        assert "s3cret" not in str(refused.value)
    finally:
        server.down()


def test_an_address_that_is_no_registrys_is_told_as_that(server: RegistryServer) -> None:
    with pytest.raises(RegistryUnavailable, match="as no registry answers: look at NEARLINE_SCHEMAS__REGISTRY_URL"):
        open_codec(settings_for(server.url + "/somewhere"))


@pytest.mark.parametrize(
    ("schemas", "said"),
    [
        ({"registry_url": "https://u:secret@registry:8081"}, "no part of it"),
        ({"registry_url": "registry:8081"}, "must be an http:// or https://"),
        ({"registry_url": "http://registry:8081", "ssl_ca_file": "ca.pem"}, "is not https://"),
        ({"registry_url": "http://registry:8081", "registry_password": "x"}, "needs NEARLINE_SCHEMAS__REGISTRY_USER"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused_without_quoting_them(schemas: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        load_settings(schemas=schemas)
    assert "secret" not in str(refused.value)


def test_a_folder_and_a_server_are_not_both_meant() -> None:
    with pytest.raises(SettingsError, match="NEARLINE_REGISTRY_PATH: NEARLINE_SCHEMAS__REGISTRY_URL is set too"):
        load_settings(schemas={"registry_url": "http://registry:8081"}, registry_path="here")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        nearline.run_verb(lambda: nearline.app(arguments, prog_name="nearline"))
    return int(ended.value.code or 0)


def test_the_verbs_register_our_schemas_and_say_what_a_server_has(
    server: RegistryServer, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("contracts", "check", "--registry", server.url) == 1
    assert (
        f"nearline contracts register {SCHEMAS_PATH}/impression.avsc --registry {server.url}" in capsys.readouterr().out
    )
    assert check_registry(settings_for(server.url))[0].ok is False
    assert run("contracts", "register", "--registry", server.url) == 0
    assert sorted(server.subjects) == ["playback-value", "playback.catalogue-value", "playback.impressions-value"]
    assert run("contracts", "register", "--registry", server.url) == 0, "again changes nothing"
    assert run("contracts", "check", "--registry", server.url) == 0
    assert "ok            playback-value (id " in capsys.readouterr().out
    assert check_registry(settings_for(server.url))[0].ok is True
    fields = [{"name": "x", "type": "string"}, *EVENT_SCHEMA["fields"]]
    (tmp_path / "playback_event.avsc").write_text(json.dumps({**EVENT_SCHEMA, "fields": fields}))
    assert run("contracts", "register", "playback_event.avsc", "--registry", server.url) == 2
    assert "field x: not sent, and without a default" in capsys.readouterr().err
    assert run("contracts", "check", "--registry", "ftp://registry") == 2
    assert "must be an http:// or https:// address" in capsys.readouterr().err
    server.down()
    assert run("contracts", "check", "--registry", server.url) == 4
    assert check_registry(settings_for(server.url))[0].ok is False
    assert check_registry(Settings()) == []


def test_a_schema_that_is_not_on_the_server_ends_the_start_with_the_command_that_helps(server: RegistryServer) -> None:
    with pytest.raises(ContractError, match=f"nearline contracts register --registry {server.url}"):
        Schemas(settings_for(server.url)).begin()


def test_the_server_of_the_tests_answers_as_a_real_one_did(server: RegistryServer) -> None:
    """Same status, same code, same values where they say something; a real one's ids and words are its own."""
    first: dict[str, int] = {}
    for one in RECORDED["answers"]:
        method, path, body = one["ask"]
        told = one["answer"]
        status, answer = server.answer(method, path.replace("ID", str(first.get("id"))), body or {}, None)
        assert status == one["status"], one["ask"]
        if isinstance(told, list):
            assert answer == told, one["ask"]
            continue
        for key in set(told) & {"error_code", "is_compatible", "subject", "version"}:
            assert answer[key] == told[key] or path == "/nothing/here", one["ask"]
        assert {"id", "schema"} & set(told) <= set(answer)
        if "schema" in told:
            assert json.loads(answer["schema"]) == json.loads(told["schema"])
        if method == "POST" and "id" in told:
            first.setdefault("id", answer["id"])


def test_an_event_by_an_older_schema_is_resolved(server: RegistryServer) -> None:
    settings = settings_for(server.url)
    older = {**EVENT_SCHEMA, "fields": EVENT_SCHEMA["fields"][:-2]}
    older_id = server.register("playback-value", older)
    register_all(settings)
    codec = open_codec(settings)
    body = codec.encode_event(replace(EVENT, row_id=None, row_position=None))[5:-2]
    assert codec.decode_event(b"\x00" + older_id.to_bytes(4, "big") + body) == EVENT
