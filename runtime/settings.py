"""Settings: one frozen object, read once, validated at start; the same keys from the sandbox to Kubernetes.

`runtime/sources.py` says where they come from: arguments, environment, `.env`, a TOML file, defaults, and files for secrets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv6Address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from contracts.errors import SettingsError
from contracts.keys import Keys
from runtime.sections import (
    HealthSettings,
    HomepageSettings,
    HttpSettings,
    NightlySettings,
    RulesSettings,
    SchemasSettings,
    Section,
    TracingSettings,
)
from runtime.sources import PREFIX, known_keys, nearest, open_layers
from runtime.tls import make_context

__all__ = [
    "HealthSettings",
    "HomepageSettings",
    "HttpSettings",
    "KafkaSettings",
    "Settings",
    "StoreSettings",
    "load_settings",
]

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,200}$")]


MAX_PORT = 65_535


def _check_address(text: str, example: str) -> str:
    """One `host:port`, an IPv6 host in brackets. Raises `ValueError` saying what is wrong, with the example."""
    host, colon, port = text.strip().rpartition(":")
    if "@" in text:  # not quoted: it may hold a password
        raise ValueError(f"a user or a password is no part of it (NEARLINE_KAFKA__SASL_…), e.g. {example}")
    if not host or not colon:
        raise ValueError(f"{text!r} is not host:port, e.g. {example}")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else ""
    if (":" in host and not _is_ipv6(bare)) or any(c.isspace() or c in "/?#" for c in host):
        raise ValueError(f"{text!r} has a host that is none, e.g. {example} (an IPv6 address in brackets)")
    if not (port.isascii() and port.isdigit() and 0 < int(port) <= MAX_PORT):
        raise ValueError(f"{text!r} has a port that is not a number from 1 to {MAX_PORT}, e.g. {example}")
    return text.strip()


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


class KafkaSettings(Section):
    """The event log."""

    bootstrap_servers: str = Field("127.0.0.1:9092", description="host:port, comma-separated")
    topic: Name = Field("playback", description="topic of playback events; key = viewer id")
    stream_epoch: int = Field(
        1, ge=1, description="raise by one when the topic was recreated (its offsets restart at 0)"
    )
    group_id: Name = Field("nearline-updater", description="consumer group of the updaters")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="SSL encrypts, SASL asks who connects"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "PLAIN", description="how the password is proven"
    )
    sasl_username: str | None = Field(None, description="user of SASL")
    sasl_password: SecretStr | None = Field(None, description="password of SASL")
    ssl_ca_file: Path | None = Field(None, description="authority of the brokers' certificates; the machine's if unset")
    ssl_cert_file: Path | None = Field(None, description="our own certificate, for brokers that ask for one")
    ssl_key_file: Path | None = Field(None, description="the key of our own certificate")
    session_timeout_ms: int = Field(
        10_000, ge=1_000, description="a silent updater loses its partitions after this, ms"
    )
    rebalance_timeout_ms: int = Field(60_000, ge=1_000, description="time to drain when partitions move, ms")
    metadata_max_age_ms: int = Field(
        30_000, ge=1_000, description="added partitions are taken up, and the log looked at again, after this, ms"
    )
    stall_timeout_s: float = Field(
        30.0, ge=1, description="an updater whose records wait without any progress for this long leaves, seconds"
    )
    max_batch_records: int = Field(512, ge=1, le=8_192, description="records in a micro-batch at most")
    max_partition_fetch_bytes: int = Field(1 << 20, ge=1 << 14, description="fetch size per partition, bytes")

    @field_validator("bootstrap_servers")
    @classmethod
    def _addresses(cls, value: str) -> str:
        return ",".join(_check_address(one, "kafka-1:9092,kafka-2:9092") for one in value.split(","))

    @property
    def dead_letter_topic(self) -> str:
        return f"{self.topic}.dlq"

    @property
    def impressions_topic(self) -> str:
        return f"{self.topic}.impressions"

    @property
    def catalogue_topic(self) -> str:
        """Catalogue items, keyed by item id, the latest wins: make it with `cleanup.policy=compact`."""
        return f"{self.topic}.catalogue"

    @property
    def stream(self) -> str:
        """`topic@epoch`: names the log that offsets belong to."""
        return f"{self.topic}@{self.stream_epoch}"

    def client_kwargs(self) -> dict[str, Any]:
        """Connection arguments that every aiokafka client takes. Errors: `SettingsError` for a file that cannot be used."""
        kwargs: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.security_protocol,
        }
        if "SASL" in self.security_protocol:
            kwargs |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password.get_secret_value() if self.sasl_password else None,
            }
        if "SSL" in self.security_protocol:
            kwargs["ssl_context"] = make_context(
                "NEARLINE_KAFKA__", self.ssl_ca_file, self.ssl_cert_file, self.ssl_key_file
            )
        return kwargs

    @model_validator(mode="after")
    def _complete(self) -> Self:
        protocol = f"NEARLINE_KAFKA__SECURITY_PROTOCOL={self.security_protocol}"
        named, secret = self.sasl_username is not None, self.sasl_password is not None
        if "SASL" in self.security_protocol and not (named and secret):
            raise ValueError(f"{protocol} needs NEARLINE_KAFKA__SASL_USERNAME and NEARLINE_KAFKA__SASL_PASSWORD(_FILE)")
        if "SASL" not in self.security_protocol and (named or secret):
            raise ValueError(f"{protocol} would not use NEARLINE_KAFKA__SASL_…: set it to SASL_SSL")
        if "SSL" not in self.security_protocol and (self.ssl_ca_file or self.ssl_cert_file or self.ssl_key_file):
            raise ValueError(f"{protocol} would not use NEARLINE_KAFKA__SSL_…: set it to SSL or SASL_SSL")
        return self


_STORE_EXAMPLE = "e.g. redis://user:password@redis:6379/0"


class StoreSettings(Section):
    """Redis ≥ 7.0 or Valkey."""

    url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="redis:// or rediss:// URL, may hold a password"
    )
    ssl_ca_file: Path | None = Field(None, description="authority of the server's certificate; the machine's if unset")
    ssl_cert_file: Path | None = Field(None, description="our own certificate, for a server that asks for one")
    ssl_key_file: Path | None = Field(None, description="the key of our own certificate")
    namespace: Name = Field("nl", description="prefix of every key")
    connect_timeout_s: float = Field(0.5, gt=0, description="deadline of one connection, seconds")
    command_timeout_s: float = Field(3.0, gt=0, description="total deadline of one pipeline, seconds")
    max_connections: int = Field(16, ge=1, description="connections of one process at most")

    @field_validator("url")
    @classmethod
    def _store_url(cls, value: SecretStr) -> SecretStr:
        """Quotes nothing that it was given: a URL that is written wrongly may hold the password in any of its parts."""
        try:
            parts = urlsplit(value.get_secret_value())
        except ValueError:
            raise ValueError(f"not a URL, {_STORE_EXAMPLE}") from None
        if parts.scheme == "unix" and parts.path:
            return value
        if parts.scheme not in ("redis", "rediss"):
            raise ValueError(f"must start with redis:// or rediss:// (TLS), {_STORE_EXAMPLE}")
        if not parts.hostname:
            raise ValueError(f"names no host, {_STORE_EXAMPLE}")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if port == 0:
            raise ValueError(
                f"the port is not a number from 1 to {MAX_PORT}, {_STORE_EXAMPLE}; "
                "in a password, / ? # @ : and % are written %2F %3F %23 %40 %3A %25"
            )
        database = parts.path.strip("/")
        if database and not (database.isascii() and database.isdigit()):
            raise ValueError(f"what follows the port must be the number of the database, {_STORE_EXAMPLE}")
        if parts.query:
            from redis.asyncio.connection import parse_url  # a tenth of a second, which most commands need not spend

            try:
                parse_url(value.get_secret_value())
            except ValueError:
                raise ValueError(
                    f"has an option behind the ? with a value that it cannot have, {_STORE_EXAMPLE}"
                ) from None
        return value

    @model_validator(mode="after")
    def _encrypted(self) -> Self:
        if (self.ssl_ca_file or self.ssl_cert_file or self.ssl_key_file) and not self._with_tls:
            raise ValueError("NEARLINE_STORE__URL is not rediss://, so that NEARLINE_STORE__SSL_… would not be used")
        return self

    @property
    def _with_tls(self) -> bool:
        return urlsplit(self.url.get_secret_value()).scheme == "rediss"

    def client_kwargs(self) -> dict[str, Any]:
        """Arguments of TLS for redis-py. Errors: `SettingsError` for a file that cannot be used."""
        if not self._with_tls:
            return {}
        make_context("NEARLINE_STORE__", self.ssl_ca_file, self.ssl_cert_file, self.ssl_key_file)  # only to check it
        files = {
            "ssl_ca_certs": self.ssl_ca_file,
            "ssl_certfile": self.ssl_cert_file,
            "ssl_keyfile": self.ssl_key_file,
        }
        return {name: str(path) for name, path in files.items() if path is not None}


class StateSettings(Section):
    """Bounds of one viewer's state."""

    max_plays: int = Field(200, ge=1, le=5_000, description="newest plays kept")
    max_plays_per_item: int = Field(3, ge=1, le=100, description="newest plays kept of one item")
    max_registers: int = Field(500, ge=1, le=10_000, description="newest ratings, hides and preferences kept")
    max_seen: int = Field(5_000, ge=1, le=65_535, description="items remembered beyond the kept plays")


class TrainSettings(Section):
    """What the nightly job trains, and when it publishes."""

    factors: int = Field(64, ge=1, le=512, description="k, length of an embedding")
    regularization: float = Field(1.0, gt=0, description="λ")
    alpha: float = Field(10.0, gt=0, description="α: confidence of a full signal")
    iterations: int = Field(12, ge=1, description="rounds of training")
    seed: int = Field(20, description="seed of everything that is drawn: equal inputs give equal generations")
    decay_floor: float = Field(0.0, ge=0, le=1, description="b₀ of the rank decay")
    decay_half_life: float = Field(2.0, gt=0, description="h of the rank decay, in distinct items")
    decay_gain: float = Field(2.0, gt=0, description="g of the rank decay")
    ranker_plays: int = Field(
        6_000,
        ge=0,
        description="plays that the ranker is trained on, of thrice as many newest; 0: no ranker, rows blend taste and popularity",
    )
    sequence_epochs: int = Field(
        4, ge=0, description="how often the sequence model goes through its plays in training; 0: no such model"
    )
    holdout_share: float = Field(
        0.05, gt=0, lt=0.5, description="newest share of plays held out by time for the evaluation"
    )
    gate_margin: float = Field(
        0.1, ge=0, description="a new generation may be worse than the one in force by this share of NDCG@10"
    )
    keep_generations: int = Field(5, ge=2, description="newest generations kept for rollback")


class TrendsSettings(Section):
    """The aggregator of live trends."""

    interval_s: float = Field(2.0, ge=0.2, description="between two snapshots at least, seconds")
    snapshots_mb: float = Field(
        64.0,
        gt=0,
        description="what an hour's snapshots may take in the store, MB: larger ones are published less often",
    )
    remembered_plays: int = Field(
        100_000,
        ge=1_000,
        description="plays of a partition that are remembered, so that none counts twice: twelve bytes each in the store; with more "
        "in six hours, plays are counted only if they are reported on sooner",
    )
    new_items: int = Field(
        1_000,
        ge=0,
        le=1_000,
        description="items served at most before a night has learnt them: the most played, then the newest; 0: they wait for the night",
    )


class Settings(BaseSettings):
    """Everything a process may be told."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_file=".env",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,  # it may be a secret
        nested_model_default_partial_update=True,
    )

    kafka: KafkaSettings = KafkaSettings()
    store: StoreSettings = StoreSettings()
    state: StateSettings = StateSettings()
    train: TrainSettings = TrainSettings()
    rules: RulesSettings = RulesSettings()
    nightly: NightlySettings = NightlySettings()
    trends: TrendsSettings = TrendsSettings()
    homepage: HomepageSettings = HomepageSettings()
    schemas: SchemasSettings = SchemasSettings()
    tracing: TracingSettings = TracingSettings()
    health: HealthSettings = HealthSettings()
    generations_path: str = Field(".nearline/generations", description="folder or URL of the generations")
    lake_path: str = Field(".nearline/lake", description="folder of the lake")
    lake_key: SecretStr | None = Field(
        None, description="key of the erasure ledger's hashes, ≥ 16 characters; made and kept in the lake if unset"
    )
    registry_path: str | None = Field(
        None, description="folder of the schema registry; the schemas in contracts/ if unset"
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: JSON unless standard error is a terminal"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least that is logged")

    @field_validator("registry_path")
    @classmethod
    def _one_registry(cls, value: str | None, info: ValidationInfo) -> str | None:
        schemas = info.data.get("schemas")
        if value is not None and schemas is not None and schemas.registry_url is not None:
            raise ValueError("NEARLINE_SCHEMAS__REGISTRY_URL is set too: unset one of them")
        return value

    @property
    def keys(self) -> Keys:
        return Keys(self.store.namespace, self.kafka.stream)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, *(layer.source for layer in open_layers(settings_cls))


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; raise `SettingsError` naming the key, what is wrong, and the nearest right key or value."""
    return read_with_origins(**overrides)[0]


def read_with_origins(**overrides: Any) -> tuple[Settings, dict[str, str]]:
    """The settings, and for every key that is not at its default where its value came from. Errors: as `load_settings`."""
    origins: dict[str, str] = {}
    for layer in reversed(open_layers(Settings)):
        origins |= layer.origins()
    try:
        return Settings(**overrides), origins
    except ValidationError as error:
        known = known_keys(Settings)
        raise SettingsError("\n".join(_explain(dict(one), known, origins) for one in error.errors())) from None


def _explain(problem: dict[str, Any], known: list[str], origins: Mapping[str, str]) -> str:
    """One line: the key, what is wrong, the nearest right one, and where it came from."""
    key = PREFIX + "__".join(str(part) for part in problem["loc"]).upper()
    message, kind = problem["msg"].removeprefix("Value error, "), problem["type"]
    if kind == "extra_forbidden":
        message = "no such setting" + nearest(key, known)
    elif kind == "literal_error":  # a word among some is no secret
        words = [word.strip("'") for word in re.split(r", | or ", problem["ctx"]["expected"])]
        message += nearest(str(problem["input"]), words)
    origin = origins.get(key, "environment")
    return f"{key}: {message}" + ("" if origin == "environment" else f" [from {origin}]")
