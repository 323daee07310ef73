"""Settings: read once, validated, and a wrong key is answered with the nearest right one."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import SettingsError
from runtime.settings import load_settings


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
