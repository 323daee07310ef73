"""Settings of what listens (the home page, health and metrics; loopback unless told otherwise), and of the schedule."""

from __future__ import annotations

from difflib import get_close_matches
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

MIN_SECRET_BYTES = 32
"""RFC 7518: a key of HS256 is as long as its hash; a shorter one can be guessed from a single token."""


class Section(BaseModel):
    """Frozen, without unknown keys; errors quote no value, as it may be a secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class HttpSettings(Section):
    """Where a process listens; loopback unless told otherwise."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 is every one of the machine")
    port: int = Field(0, ge=0, le=65_535, description="0 takes a free port")

    @property
    def on_loopback(self) -> bool:
        """Whether only processes of this machine can reach it. A name other than localhost may be anything."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


class NightlySettings(Section):
    """The schedule of `nearline nightly --at`."""

    time_zone: str = Field("UTC", description="whose clock --at is read from, e.g. Europe/London")

    @field_validator("time_zone")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            near = get_close_matches(value, available_timezones(), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{value!r} is no time zone, e.g. UTC or Europe/London{hint}") from None
        return value


class RulesSettings(Section):
    """What every row obeys beside its ranking. The nightly job writes it into the generation: a change is in force with the next one."""

    window: int = Field(10, ge=2, le=60, description="entries in a row among which creators and topics are counted")
    per_creator: int = Field(0, ge=0, description="entries of one creator among any `window`, at most; 0: any number")
    per_topic: int = Field(0, ge=0, description="entries of one topic among any `window`, at most; 0: any number")
    exploration: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="share of the places that titles of few plays get, those closest to the viewer's taste",
    )
    preference_strength: float = Field(
        1.0,
        ge=0,
        le=1,
        description="what a told preference counts, a whole play counting 1, until plays outweigh it; 0: nothing",
    )
    repeats: Literal["auto", "never", "always"] = Field(
        "auto",
        description="whether watched titles come back, at the share of places that the night measures; auto: where 5 % of the plays repeat",
    )

    @model_validator(mode="after")
    def _binding(self) -> Self:
        for name in ("per_creator", "per_topic"):
            if getattr(self, name) >= self.window:
                raise ValueError(
                    f"{name}={getattr(self, name)} among any {self.window} entries limits nothing: lower it (0: any number) or raise window"
                )
        return self


class SchemasSettings(Section):
    """A Confluent-compatible schema registry's server, instead of the registry's folder."""

    registry_url: str | None = Field(
        None, description="http:// or https:// address; unset: the folder NEARLINE_REGISTRY_PATH"
    )
    registry_user: str | None = Field(None, description="user of HTTP's basic authentication, or a key")
    registry_password: SecretStr | None = Field(None, description="the user's password, or the key's secret")
    ssl_ca_file: Path | None = Field(None, description="authority of the server's certificate; the machine's if unset")
    ssl_cert_file: Path | None = Field(None, description="our own certificate, for a server that asks for one")
    ssl_key_file: Path | None = Field(None, description="the key of our own certificate")
    timeout_s: float = Field(5.0, gt=0, le=60, description="deadline of one question, seconds")

    @field_validator("registry_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        """Quotes nothing: what is written wrongly may hold a password."""
        example = "e.g. https://registry:8081"
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            named = bool(parts.hostname) and parts.port != 0
        except ValueError:
            raise ValueError(f"not a URL, {example}") from None
        if "@" in parts.netloc:
            raise ValueError(
                "a user or a password is no part of it (NEARLINE_SCHEMAS__REGISTRY_USER, …__REGISTRY_PASSWORD)"
            )
        if parts.scheme not in ("http", "https") or not named or parts.query or parts.fragment:
            raise ValueError(f"must be an http:// or https:// address without anything behind its path, {example}")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        url = self.registry_url or ""
        if self.registry_password is not None and self.registry_user is None:
            raise ValueError("NEARLINE_SCHEMAS__REGISTRY_PASSWORD needs NEARLINE_SCHEMAS__REGISTRY_USER")
        if (self.ssl_ca_file or self.ssl_cert_file or self.ssl_key_file) and not url.startswith("https:"):
            raise ValueError(
                "NEARLINE_SCHEMAS__REGISTRY_URL is not https://, so that NEARLINE_SCHEMAS__SSL_… would not be used"
            )
        return self


class TracingSettings(Section):
    """OpenTelemetry's spans, sent by OTLP over HTTP; off unless an endpoint is set (docs/tracing.md)."""

    endpoint: str | None = Field(None, description="the collector, e.g. http://collector:4318; unset: off")
    headers: SecretStr | None = Field(
        None, description="headers that the collector asks for, e.g. authorization=Bearer …, comma-separated"
    )
    ssl_ca_file: Path | None = Field(
        None, description="authority of the collector's certificate; the machine's if unset"
    )
    page_share: float = Field(
        0.0, ge=0, le=1, description="share of page views that are traced without being asked to by a traceparent"
    )

    @field_validator("endpoint")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if "@" in parts.netloc:
            raise ValueError("a user or a password is no part of it (NEARLINE_TRACING__HEADERS)")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must be an http:// or https:// address, e.g. http://collector:4318")
        return value.rstrip("/")


class HealthSettings(HttpSettings):
    """Health and metrics of the updater, of the aggregator of trends, and of the scheduler."""

    port: int = Field(9100, ge=0, le=65_535, description="0 takes a free one")


class HomepageSettings(HttpSettings):
    """The home-page service."""

    port: int = Field(8080, ge=0, le=65_535, description="0 takes a free one")
    territory: str = Field("*", description="default row for viewers whose territory is not told")
    auth: Literal["auto", "token", "none"] = Field(
        "auto",
        description="who asks: a token's viewer; with `none` the id in the path, which your gateway must have checked. "
        "auto: a token where a key is set, else the path, on loopback alone",
    )
    token_secret: SecretStr | None = Field(None, description="secret of HS256 tokens, ≥ 32 bytes")
    token_key_file: Path | None = Field(
        None, description="public key of RS256 or ES256 tokens: PEM, or a JWKS, which may change while it runs"
    )
    token_issuer: str | None = Field(None, description="`iss` that a token must have")
    token_audience: str | None = Field(
        None, description="`aud` that a token must have; unset: tokens that name one are refused"
    )
    token_viewer_claim: str = Field("sub", min_length=1, description="the claim that holds the viewer's id")
    token_leeway_s: float = Field(10.0, ge=0, le=300, description="how far clocks may differ, seconds")
    viewer_rate_per_s: float = Field(10.0, ge=0, description="requests a second of one viewer, on average; 0: any")
    viewer_burst: int = Field(40, ge=1, description="requests of one viewer at once")
    address_rate_per_s: float = Field(
        100.0,
        ge=0,
        description="requests a second from one address (IPv6: one /64), on average; 0: any; never loopback's",
    )
    address_burst: int = Field(400, ge=1, description="requests from one address at once")
    trusted_proxies: str = Field(
        "", description="addresses or networks, comma-separated, whose X-Forwarded-For names the client"
    )

    @property
    def with_token(self) -> bool:
        """Whether a verified token tells who asks."""
        return self.token_secret is not None or self.token_key_file is not None

    @field_validator("token_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value().encode()) < MIN_SECRET_BYTES:
            raise ValueError(f"must have at least {MIN_SECRET_BYTES} bytes, e.g. from: openssl rand -base64 48")
        if value is not None and value.get_secret_value().lstrip().startswith(("-----BEGIN", "ssh-", "{")):
            raise ValueError(
                "looks like a key pair's public key, which is no secret: NEARLINE_HOMEPAGE__TOKEN_KEY_FILE"
            )
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: str) -> str:
        parts = [part.strip() for part in value.split(",") if part.strip()]
        for part in parts:
            try:
                ip_network(part)
            except ValueError:
                raise ValueError(f"{part!r} is no address or network, e.g. 10.0.0.0/8,192.168.1.7") from None
        return ",".join(parts)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        key = "NEARLINE_HOMEPAGE__TOKEN_SECRET (HS256) or NEARLINE_HOMEPAGE__TOKEN_KEY_FILE (RS256, ES256)"
        if self.token_secret is not None and self.token_key_file is not None:
            raise ValueError(f"set one of {key}, not both: a token must be good for one kind of key alone")
        if self.auth == "token" and not self.with_token:
            raise ValueError(f"auth=token needs {key}")
        if self.auth == "none" and self.with_token:
            raise ValueError(f"auth=none would ignore {key}: unset that, or auth")
        return self
