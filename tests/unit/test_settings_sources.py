"""Settings from several places: who wins, what is shown, and what is said of a key or a file that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import SettingsError
from runtime.settings import Settings, load_settings
from runtime.settings_view import HIDDEN, render_reference, render_settings, settings_in_force
from runtime.sources import known_keys

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no .env of the developer's


def in_force() -> dict[str, tuple[object, str]]:
    return {one.key: (one.value, one.source) for one in settings_in_force()}


def test_the_stronger_place_wins_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nearline.toml").write_text(
        'lake_path = "/data/lake"\n[kafka]\ntopic = "of-the-file"\ngroup_id = "of-the-file"\nstream_epoch = 7\n'
    )
    (tmp_path / ".env").write_text("NEARLINE_KAFKA__GROUP_ID=of-dotenv\nNEARLINE_KAFKA__TOPIC=of-dotenv\nOTHER=1\n")
    monkeypatch.setenv("NEARLINE_KAFKA__TOPIC", "of-the-environment")
    told = in_force()
    assert set(told) == set(known_keys(Settings))
    assert told["NEARLINE_KAFKA__TOPIC"] == ("of-the-environment", "environment")
    assert told["NEARLINE_KAFKA__GROUP_ID"] == ("of-dotenv", ".env")
    assert told["NEARLINE_KAFKA__STREAM_EPOCH"] == (7, "nearline.toml")
    assert told["NEARLINE_LAKE_PATH"] == ("/data/lake", "nearline.toml")
    assert told["NEARLINE_KAFKA__MAX_BATCH_RECORDS"] == (512, "default")
    assert load_settings(kafka={"topic": "of-an-argument"}).kafka.topic == "of-an-argument"


def test_the_settings_file_may_lie_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nearline.toml").write_text("[train]\nfactors = 16\n")
    (tmp_path / "other.toml").write_text("[train]\nfactors = 32\n")
    monkeypatch.setenv("NEARLINE_SETTINGS_FILE", str(tmp_path / "other.toml"))
    assert in_force()["NEARLINE_TRAIN__FACTORS"] == (32, str(tmp_path / "other.toml"))


def test_secrets_are_hidden_wherever_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_text("hunter2\n")
    (tmp_path / ".env").write_text("NEARLINE_KAFKA__SASL_PASSWORD_FILE=password\n")
    (tmp_path / "nearline.toml").write_text(
        'lake_key = "hunter2-hunter2-hunter2"\n[kafka]\nsasl_username = "u"\nsecurity_protocol = "SASL_SSL"\n'
    )
    monkeypatch.setenv("NEARLINE_STORE__URL", "rediss://hunter1:hunter2@redis:6380/3?client_name=hunter2")
    told = in_force()
    assert told["NEARLINE_KAFKA__SASL_PASSWORD"] == (HIDDEN, "NEARLINE_KAFKA__SASL_PASSWORD_FILE=password")
    assert told["NEARLINE_LAKE_KEY"] == (HIDDEN, "nearline.toml")
    assert told["NEARLINE_STORE__URL"] == (f"rediss://{HIDDEN}@redis:6380/3", "environment")
    assert told["NEARLINE_HOMEPAGE__TOKEN_SECRET"] == (None, "default")
    assert "hunter" not in str(told) + render_settings(settings_in_force())
    password = load_settings().kafka.sasl_password
    assert password is not None
    assert password.get_secret_value() == "hunter2"


def test_what_is_printed_can_be_read_again(tmp_path: Path) -> None:
    (tmp_path / "nearline.toml").write_text('[homepage]\ntoken_issuer = "me"\n[state]\nmax_plays = 77\n')
    before = load_settings()
    (tmp_path / ".env").write_text(render_settings(settings_in_force()))
    (tmp_path / "nearline.toml").unlink()
    assert load_settings() == before


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        (
            "NEARLINE_KAFKA__TOPIK",
            "x",
            r"^NEARLINE_KAFKA__TOPIK: no such setting; did you mean NEARLINE_KAFKA__TOPIC\?",
        ),
        ("NEARLINE_HOMEPAGE_PORT", "80", r"did you mean NEARLINE_HOMEPAGE__PORT\?"),
        ("NEARLINE_LOG_LEVEL", "warn", r"did you mean warning\?"),
        ("NEARLINE_KAFKA__SASL_MECHANISM", "SCRAM-SHA512", r"did you mean SCRAM-SHA-512\?"),
        ("NEARLINE_UPDATER_SERVICE_HOST", "10.0.0.1", "enableServiceLinks: false"),
        ("NEARLINE_UPDATER_PORT_9100_TCP_ADDR", "10.0.0.1", "enableServiceLinks: false"),
        ("NEARLINE_HOMEPAGE_PORT", "tcp://10.0.0.1:80", "enableServiceLinks: false"),
        ("NEARLINE_SETTINGS_FILE", "/nowhere.toml", "^NEARLINE_SETTINGS_FILE=/nowhere.toml: there is no such file"),
    ],
)
def test_a_wrong_variable_is_refused_with_the_right_one(
    variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=says):
        load_settings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "[kafka]\ntopik = 'x'",
            r"^\[kafka\] topik: no such setting; did you mean \[kafka\] topic\? \[from nearline.toml",
        ),
        ("[kafca]\ntopic = 'x'", r"did you mean \[kafka\] topic\?"),
        ("[state]\nmax_plays = 0", r"^NEARLINE_STATE__MAX_PLAYS: .*greater than or equal to 1 \[from nearline.toml\]"),
        ("kafka = 3", "^NEARLINE_KAFKA: .*dictionary"),
        ("[kafka\ntopic = 1", r"^nearline.toml: is not TOML \(.*line 1"),
    ],
)
def test_a_wrong_settings_file_is_refused_with_what_is_right(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "nearline.toml").write_text(text)
    with pytest.raises(SettingsError, match=says):
        load_settings()


def test_a_secret_that_is_set_twice_in_one_place_is_refused_and_a_stronger_place_may_replace_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("k" * 16)
    (tmp_path / ".env").write_text("NEARLINE_LAKE_KEY_FILE=key\n")
    monkeypatch.setenv("NEARLINE_LAKE_KEY", "e" * 16)
    assert in_force()["NEARLINE_LAKE_KEY"] == (HIDDEN, "environment")
    monkeypatch.setenv("NEARLINE_LAKE_KEY_FILE", "key")
    with pytest.raises(SettingsError, match="NEARLINE_LAKE_KEY and NEARLINE_LAKE_KEY_FILE are both set"):
        load_settings()


def test_the_reference_page_is_what_the_code_says() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page == render_reference(), "run: ./run nearline settings --markdown > docs/settings.md"
    for key in known_keys(Settings):
        (line,) = (line for line in page.splitlines() if line.startswith(f"| `{key}` |"))
        assert all(cell.strip() for cell in line.strip("|").split("|")), f"{key}: its field has no description"
