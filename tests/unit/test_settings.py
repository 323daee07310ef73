"""Settings: read once, validated, and a wrong key is answered with the nearest right one."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import SettingsError
from runtime.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no .env of the developer's


def test_the_environment_sets_nested_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEARLINE_KAFKA__BOOTSTRAP_SERVERS", "kafka:9093")
    monkeypatch.setenv("NEARLINE_TRAIN__FACTORS", "32")
    settings = load_settings()
    assert settings.kafka.bootstrap_servers == "kafka:9093"
    assert settings.train.factors == 32
    assert settings.kafka.topic == "playback"


def test_a_misspelt_key_is_refused_with_the_nearest_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEARLINE_KAFKA__BOOTSTRAP_SERVER", "kafka:9093")
    with pytest.raises(SettingsError, match="did you mean NEARLINE_KAFKA__BOOTSTRAP_SERVERS"):
        load_settings()


def test_a_value_out_of_range_is_refused_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEARLINE_STATE__MAX_PLAYS", "0")
    with pytest.raises(SettingsError, match="NEARLINE_STATE__MAX_PLAYS"):
        load_settings()


def test_a_secret_is_read_from_its_file_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_text("hunter2\n")
    monkeypatch.setenv("NEARLINE_KAFKA__SASL_PASSWORD_FILE", str(tmp_path / "password"))
    monkeypatch.setenv("NEARLINE_KAFKA__SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("NEARLINE_KAFKA__SASL_USERNAME", "nearline")
    settings = load_settings()
    assert settings.kafka.sasl_password is not None
    assert settings.kafka.sasl_password.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(settings) + settings.model_dump_json()


def test_a_secret_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEARLINE_STORE__URL_FILE", "/nowhere/url")
    with pytest.raises(SettingsError, match="/nowhere/url"):
        load_settings()


def test_a_bad_key_in_the_env_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("NEARLINE_KAFKA__TOPIK=x\n")
    with pytest.raises(SettingsError, match="NEARLINE_KAFKA__TOPIC"):
        load_settings()


def test_the_stream_is_named_by_topic_and_epoch() -> None:
    settings = load_settings(kafka={"topic": "plays", "stream_epoch": 3})
    assert settings.keys.marker(0) == "nl:marker:plays@3:0"
    assert settings.kafka.dead_letter_topic == "plays.dlq"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("foo", "must start with redis://"),
        ("foo:hunter2@h:1", "must start with redis://"),
        ("http://u:hunter2@host/0", "must start with redis://"),
        ("redis://", "names no host"),
        ("redis://u:hunter2@", "names no host"),
        ("redis://u:hunter2@host:x/0", "port is not a number"),
        ("redis://u:hunter2@host:70000/0", "port is not a number"),
        ("redis://u:hun/ter2@host:6379/0", "port is not a number"),
        ("redis://u:hunter2@[::1/0", "not a URL"),
        ("redis://u:hunter2@host:1/zero", "number of the database"),
        ("redis://u:hunter2@host:1/0?socket_timeout=soon", "option behind the ?"),
    ],
)
def test_a_store_url_that_is_none_is_refused_with_an_example_and_without_its_password(
    url: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEARLINE_STORE__URL", url)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    said = str(caught.value)
    assert said.startswith("NEARLINE_STORE__URL: ")
    assert says in said
    assert "e.g. redis://" in said
    assert "hun" not in said
    assert "ter2" not in said
    with pytest.raises(ValueError, match="validation error") as direct:
        Settings()
    assert "hun" not in str(direct.value)


@pytest.mark.parametrize(
    "url",
    ["redis://h", "rediss://:p%2Fw@redis:6379/3", "redis://[::1]:6379", "unix:///run/redis.sock", "redis://h?db=2"],
)
def test_every_form_of_a_store_url_is_taken(url: str) -> None:
    assert load_settings(store={"url": url}).store.url.get_secret_value() == url


@pytest.mark.parametrize(
    "servers", ["a:b:c", "a", "a:", ":9092", "a:9092,", "a:0", "a:70000", "a:x", "::1:9092", "PLAINTEXT://a:9092", ""]
)
def test_brokers_that_are_no_addresses_are_refused_with_an_example(
    servers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEARLINE_KAFKA__BOOTSTRAP_SERVERS", servers)
    with pytest.raises(SettingsError, match=r"^NEARLINE_KAFKA__BOOTSTRAP_SERVERS: .*e\.g\. kafka-1:9092"):
        load_settings()


def test_a_password_among_the_brokers_is_not_shown() -> None:
    with pytest.raises(SettingsError, match="SASL") as caught:
        load_settings(kafka={"bootstrap_servers": "u:hunter2@a:1"})
    assert "hunter2" not in str(caught.value)


def test_several_brokers_and_ipv6_are_taken() -> None:
    kafka = load_settings(kafka={"bootstrap_servers": "a:1, b.example:9092,[::1]:9093"}).kafka
    assert kafka.bootstrap_servers == "a:1,b.example:9092,[::1]:9093"


@pytest.mark.parametrize(
    ("section", "values", "says"),
    [
        ("kafka", {"security_protocol": "SASL_SSL"}, "needs NEARLINE_KAFKA__SASL_USERNAME"),
        ("kafka", {"security_protocol": "SASL_SSL", "sasl_username": "u"}, "NEARLINE_KAFKA__SASL_PASSWORD"),
        ("kafka", {"sasl_username": "u", "sasl_password": "hunter2"}, "would not use NEARLINE_KAFKA__SASL"),
        ("kafka", {"ssl_ca_file": "/ca.pem"}, "would not use NEARLINE_KAFKA__SSL"),
        ("store", {"url": "redis://u:hunter2@h:1", "ssl_ca_file": "/ca.pem"}, "NEARLINE_STORE__URL is not rediss://"),
    ],
)
def test_half_of_what_encryption_needs_is_refused_with_the_other_half(
    section: str, values: dict[str, str], says: str
) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        load_settings(**{section: values})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("field", ["ssl_ca_file", "ssl_cert_file"])
@pytest.mark.parametrize(
    "content", [None, "", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_file_of_tls_that_cannot_be_used_is_named_when_a_client_is_made(
    field: str, content: str | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "file").write_text(content)
    kafka = load_settings(kafka={"security_protocol": "SSL", field: tmp_path / "file"}).kafka
    store = load_settings(store={"url": "rediss://h:1", field: tmp_path / "file"}).store
    for section, make in (("KAFKA", kafka.client_kwargs), ("STORE", store.client_kwargs)):
        with pytest.raises(SettingsError, match=f"^NEARLINE_{section}__{field.upper()}={tmp_path}/file"):
            make()


def test_a_key_without_its_certificate_is_refused() -> None:
    with pytest.raises(SettingsError, match="SSL_KEY_FILE is set and NEARLINE_STORE__SSL_CERT_FILE is not"):
        load_settings(store={"url": "rediss://h:1", "ssl_key_file": "/key"}).store.client_kwargs()
