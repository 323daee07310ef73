"""A Confluent-compatible schema registry's server: its subjects read into a `Registry`, and our schemas registered there.

Subjects follow TopicNameStrategy: `<topic>-value`. Only what the server lists under a topic's subject may have written its records.
What was read of a version is kept: ids and schemas never change. Everything here blocks; call it off the event loop.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote
from uuid import UUID

import httpx
from fastavro import parse_schema

from contracts.errors import ContractError, RegistryUnavailable
from contracts.registry import DEFAULT_PATH, MAX_SCHEMA_BYTES, Registry, Schema, Version, schema_problems, without_docs
from runtime.sections import SchemasSettings
from runtime.settings import Settings
from runtime.tls import explain_tls, find_tls_error, make_context

URL = "NEARLINE_SCHEMAS__REGISTRY_URL"
SURE_AFTER_S = 5.0
"""A server that says twice, so long apart, that there is no such schema, is believed: one that follows another may learn it late."""
FORGET_AFTER_S = 300.0
"""After this it is asked again about an id that it did not know."""
MAX_REFUSED = 1_000
"""Refused ids that are remembered; noise behind a zero byte can name any."""
NOT_FOUND = (40401, 40402, 40403)
"""A registry's own words for: no such subject, version, schema. Any other 404 is some other server's."""


def subjects_of(settings: Settings) -> dict[str, str]:
    """Contract → subject. Rows never leave the store: their schema is the one in `contracts/`."""
    kafka = settings.kafka
    topics = {
        "playback_event": kafka.topic,
        "catalogue_item": kafka.catalogue_topic,
        "impression": kafka.impressions_topic,
    }
    return {name: f"{topic}-value" for name, topic in topics.items()}


class SchemaServer:
    """One server, and what was read of it. Not for several threads at once. Errors: `RegistryUnavailable` wherever it is asked."""

    def __init__(
        self, settings: Settings, url: str | None = None, *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        """`url`: instead of the one in the settings. Errors: `SettingsError` for a file of TLS that cannot be used."""
        self.url = (url or settings.schemas.registry_url or "").rstrip("/")
        self._subjects = subjects_of(settings)
        self._clock_s = clock_s
        self._http = _client(settings.schemas, self.url)
        self._versions: dict[tuple[str, int], tuple[Version | None, int, bytes | None, str]] = {}
        self._guids: dict[bytes, int] = {}  # learnt by asking for them
        self._missing: dict[int | bytes, float] = {}  # what the server did not know → when it first said so
        self._refused: dict[int | bytes, tuple[str, float]] = {}  # → why, and since when

    def unread(self) -> Registry:
        """The registry before the server has answered."""
        return Registry(DEFAULT_PATH, {}, self.url, self._subjects, is_read=False)

    def read(self) -> Registry:
        """What is registered for our topics now."""
        guids, refused, subjects = dict(self._guids), self._remembered(), {}
        for subject in self._subjects.values():
            found = []
            for number in self._numbers(subject):
                version, schema_id, guid, problem = self._version(subject, number)
                if guid is not None:
                    guids[guid] = schema_id
                if version is not None:
                    found.append(version)
                else:
                    refused |= {one: problem for one in (schema_id, guid) if one is not None}
            subjects[subject] = tuple(found)
        return Registry(DEFAULT_PATH, subjects, self.url, self._subjects, guids, refused)

    def learn(self, schema: int | bytes | None) -> Registry:
        """The same; and if `schema` (an id or a GUID that a record names) is not among it, what the server knows of that. A schema that
        is registered elsewhere, or that the server has denied for `SURE_AFTER_S`, is refused from then on."""
        registry = self.read()
        if schema is None or schema in registry.refused or schema in registry.guids:
            return registry
        if isinstance(schema, int) and registry.subject_of(schema) is not None:
            return registry
        why = self._why_not_ours(schema, registry)
        if why is not None:
            self._refused.pop(schema, None)
            self._refused[schema] = why, self._clock_s()
            while len(self._refused) > MAX_REFUSED:
                del self._refused[next(iter(self._refused))]
        return self.read()

    def register(self, subject: str, schema: Schema) -> int:
        """Register a schema under a subject; returns its id. Errors: `ContractError` if the server refuses it."""
        answer = self._ask("POST", f"subjects/{quote(subject, safe='')}/versions", {"schema": json.dumps(schema)})
        if "id" not in answer:
            raise ContractError(f"{self.url} does not register {subject}: {_told(answer)}")
        return int(answer["id"])

    def objections(self, subject: str, schema: Schema) -> list[str]:
        """Why the server would not let the schema follow the subject's newest version; empty if it would."""
        path = f"compatibility/subjects/{quote(subject, safe='')}/versions/latest?verbose=true"
        answer = self._ask("POST", path, {"schema": json.dumps(schema)})
        if answer.get("error_code") in NOT_FOUND or answer.get("is_compatible") is True:
            return []
        reasons = answer.get("messages") or [answer.get("reason") or _told(answer)]
        return [f"the registry says: {str(one)[:500]}" for one in reasons]

    def _remembered(self) -> dict[int | bytes, str]:
        now_s = self._clock_s()
        for schema, (_, since_s) in tuple(self._refused.items()):
            if now_s - since_s > FORGET_AFTER_S:
                del self._refused[schema]
        return {schema: why for schema, (why, _) in self._refused.items()}

    def _numbers(self, subject: str) -> list[int]:
        """A subject's versions, those that were deleted softly included: their records may still be in the log."""
        answer = self._ask("GET", f"subjects/{quote(subject, safe='')}/versions?deleted=true")
        if isinstance(answer, dict) and answer.get("error_code") in NOT_FOUND:
            return []
        if not isinstance(answer, list):
            raise RegistryUnavailable(f"schema registry {self.url}: {_told(answer)}; look at {URL}")
        return sorted(number for number in answer if isinstance(number, int))

    def _version(self, subject: str, number: int) -> tuple[Version | None, int, bytes | None, str]:
        """(version, its id, its GUID if the server tells one, why it is of no use)."""
        known = self._versions.get((subject, number))
        if known is None:
            path = f"subjects/{quote(subject, safe='')}/versions/{number}?deleted=true"
            known = self._versions[subject, number] = _parsed(subject, number, self._ask("GET", path), self.url)
        return known

    def _why_not_ours(self, schema: int | bytes, registry: Registry) -> str | None:
        """None if it may be ours, now or later."""
        if isinstance(schema, bytes):
            path = f"schemas/guids/{UUID(bytes=schema)}"
        else:
            path = f"schemas/ids/{schema}"
        answer = self._ask("GET", path, may_lack=isinstance(schema, bytes))
        if answer is None:
            raise RegistryUnavailable(
                f"schema registry {self.url}: it does not know GUIDs, and a record names its schema by one: let its producer write ids"
            )
        if answer.get("error_code") in NOT_FOUND:
            now_s = self._clock_s()
            since_s = self._missing.setdefault(schema, now_s)
            if len(self._missing) > MAX_REFUSED:
                del self._missing[next(iter(self._missing))]
            if now_s - since_s < SURE_AFTER_S:
                return None
            del self._missing[schema]
            return f"is not known to the registry {self.url}"
        if "schema" not in answer:
            raise RegistryUnavailable(f"schema registry {self.url}: {_told(answer)}")
        self._missing.pop(schema, None)
        if isinstance(schema, bytes):
            same = self._same(answer, registry)
            if same is not None:
                self._guids[schema] = same
                return None
        return "is registered, and not for this topic" + self._owners(schema)

    def _same(self, answer: Mapping[str, Any], registry: Registry) -> int | None:
        """The id of our version with the same schema."""
        wanted = without_docs(_json(answer["schema"]))
        every = (one for versions in registry.subjects.values() for one in versions)
        return next((one.schema_id for one in every if without_docs(one.schema) == wanted), None)

    def _owners(self, schema: int | bytes) -> str:
        if isinstance(schema, bytes):
            return ""
        answer = self._ask("GET", f"schemas/ids/{schema}/versions?deleted=true", may_lack=True)
        if not isinstance(answer, list):
            return ""
        owners = {str(one.get("subject")) for one in answer if isinstance(one, dict)}
        return f" but for {', '.join(sorted(owners))}"[:300]

    def _ask(self, method: str, path: str, body: object = None, *, may_lack: bool = False) -> Any:
        """The answer as JSON, a registry's own errors included; None if it `may_lack` the path, and does. Errors: `RegistryUnavailable`."""
        try:
            response = self._http.request(method, f"{self.url}/{path}", json=body)
        except httpx.HTTPError as error:
            raise RegistryUnavailable(f"schema registry {self.url}: {_explain(error)}") from error
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if answer is not None and (response.is_success or (response.status_code < 500 and _is_word(answer))):
            return answer
        if may_lack and response.status_code == 404:
            return None
        raise RegistryUnavailable(f"schema registry {self.url}: {_refusal(response.status_code)}")


def _client(schemas: SchemasSettings, url: str) -> httpx.Client:
    verify: Any = True
    if url.startswith("https:"):
        verify = make_context("NEARLINE_SCHEMAS__", schemas.ssl_ca_file, schemas.ssl_cert_file, schemas.ssl_key_file)
    password = schemas.registry_password.get_secret_value() if schemas.registry_password else ""
    return httpx.Client(
        auth=(schemas.registry_user, password) if schemas.registry_user is not None else None,
        headers={"Accept": "application/vnd.schemaregistry.v1+json, application/json"},
        limits=httpx.Limits(max_keepalive_connections=0),  # questions are rare, and nobody has to close it
        timeout=schemas.timeout_s,
        trust_env=False,  # neither a proxy nor a .netrc: everything stands in the settings
        verify=verify,
    )


def _parsed(subject: str, number: int, answer: Any, url: str) -> tuple[Version | None, int, bytes | None, str]:
    """One version as the server tells it. What cannot be used to decode is told by why."""
    try:
        schema_id = int(answer["id"])
        guid = UUID(answer["guid"]).bytes if answer.get("guid") else None
        text, kind = answer["schema"], answer.get("schemaType") or "AVRO"
    except (KeyError, TypeError, ValueError) as error:
        raise RegistryUnavailable(f"schema registry {url}: {subject} version {number}: {_told(answer)}") from error
    where = f"is {subject} version {number}, which cannot be used: "
    if kind != "AVRO" or answer.get("references"):
        return None, schema_id, guid, where + ("it refers to other schemas" if kind == "AVRO" else f"it is {kind}")
    if len(text) > MAX_SCHEMA_BYTES:
        return None, schema_id, guid, where + f"more than {MAX_SCHEMA_BYTES} bytes"
    schema = _json(text)
    problems = schema_problems(schema) or _not_avro(schema)
    if problems:
        return None, schema_id, guid, where + "; ".join(problems)
    return Version(subject, number, schema_id, schema), schema_id, guid, ""


def _json(text: str) -> Any:
    """A schema's text as JSON; a primitive's name may stand without quotes."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _not_avro(schema: Schema) -> list[str]:
    try:
        parse_schema(schema)
    except Exception as error:  # noqa: BLE001 - whatever a parser raises means the same
        return [f"not Avro: {type(error).__name__}"]
    return []


def _is_word(answer: Any) -> bool:
    """Whether it is a registry's own way to say no, e.g. 40403; others answer with HTTP's status, 0 or nothing."""
    code = answer.get("error_code") if isinstance(answer, dict) else None
    return isinstance(code, int) and (code >= 40_000 or code == 409)


def _refusal(status: int) -> str:
    """Why an answer is none of a registry, and which setting to look at."""
    if status in (401, 403):
        return (
            f"refuses who we are (HTTP {status}): set NEARLINE_SCHEMAS__REGISTRY_USER and "
            "NEARLINE_SCHEMAS__REGISTRY_PASSWORD(_FILE), and let this user read the subjects (docs/registry.md)"
        )
    if status >= 500:
        return f"HTTP {status}; it is tried again"
    return f"HTTP {status}, as no registry answers: look at {URL}, its path included"


def _told(answer: Any) -> str:
    """The server's own words."""
    if isinstance(answer, dict) and "message" in answer:
        return f"{str(answer['message'])[:500]} (code {answer.get('error_code')})"
    return "not the answer of a registry"


def _explain(error: httpx.HTTPError) -> str:
    tls = find_tls_error(error)
    if tls is not None:
        return explain_tls(tls, "NEARLINE_SCHEMAS__", URL)
    if isinstance(error, httpx.TimeoutException):
        return f"no answer in time; look at {URL}"
    return f"{str(error) or type(error).__name__}; start it, or set {URL} (nearline doctor looks)"
