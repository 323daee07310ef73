"""A schema registry's server for tests: what Nearline and Confluent's clients ask of one, in memory.

`tests/recorded_registry.json` holds what a real one (Apicurio 2.6.13) answered; `test_schema_server.py` holds this one to it. With
`NEARLINE_TEST_REGISTRY_URL` the tests go to a server that is there instead.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from contracts.check import check_compatibility
from contracts.registry import schema_problems

MISSING_SUBJECT, MISSING_VERSION, MISSING_SCHEMA, INVALID = 40401, 40402, 40403, 42201


class RegistryServer:
    """Listens on a free port of loopback. `down()` closes it, `up()` opens it again at the same place with what it knew."""

    def __init__(self, *, login: tuple[str, str] | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.schemas: list[str] = []  # id − 1 → text
        self.subjects: dict[str, dict[int, int]] = {}  # subject → version → id
        self.deleted: set[tuple[str, int]] = set()
        self.asked: list[str] = []
        self.knows_guids = True
        self._login, self._tls, self._port = login, tls, 0
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self.up()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://localhost:{self._port}"

    def up(self) -> None:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                registry.asked.append(f"{self.command} {self.path}")
                status, answer = registry.answer(
                    self.command, self.path, json.loads(body) if body else {}, self.headers.get("Authorization")
                )
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = _handle

        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def register(self, subject: str, schema: object) -> int:
        """As a producer would; returns the id."""
        status, answer = self.answer("POST", f"/subjects/{subject}/versions", {"schema": json.dumps(schema)}, None)
        assert status == 200, answer
        return answer["id"]

    def answer(self, method: str, path: str, body: dict, authorization: str | None):
        """(status, JSON) of one question."""
        parts = urlsplit(path)
        steps = [unquote(step) for step in parts.path.strip("/").split("/")]
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if self._login is not None and method != "POST":
            wanted = "Basic " + base64.b64encode(":".join(self._login).encode()).decode()
            if authorization != wanted:
                return 401, {"error_code": 401, "message": "Unauthorized"}
        with self._lock:
            match (method, steps):
                case ("GET", ["subjects"]):
                    return 200, sorted(self.subjects)
                case ("GET", ["subjects", subject, "versions"]):
                    numbers = self._numbers(subject, query)
                    return (200, numbers) if numbers else _no(MISSING_SUBJECT, f"Subject '{subject}' not found.")
                case ("GET", ["subjects", subject, "versions", number]):
                    return self._version(subject, number, query)
                case ("POST", ["subjects", subject, "versions"]):
                    return self._register(subject, body)
                case ("POST", ["subjects", subject]):
                    return self._lookup(subject, body)
                case ("DELETE", ["subjects", subject, "versions", number]):
                    self.deleted.add((subject, int(number)))
                    return 200, int(number)
                case ("GET", ["schemas", "ids", number]):
                    if not 0 < int(number) <= len(self.schemas):
                        return _no(MISSING_SCHEMA, f"Schema {number} not found")
                    return 200, {"schema": self.schemas[int(number) - 1], "guid": self._guid(int(number))}
                case ("GET", ["schemas", "ids", number, "versions"]):
                    return 200, [
                        {"subject": subject, "version": version}
                        for subject, versions in self.subjects.items()
                        for version, schema_id in versions.items()
                        if schema_id == int(number)
                    ]
                case ("GET", ["schemas", "guids", guid]) if self.knows_guids:
                    for number, text in enumerate(self.schemas, 1):
                        if self._guid(number) == guid:
                            return 200, {"schema": text, "id": number, "guid": guid}
                    return _no(MISSING_SCHEMA, f"Schema {guid} not found")
                case ("POST", ["compatibility", "subjects", subject, "versions", "latest"]):
                    numbers = self._numbers(subject, {})
                    if not numbers:
                        return _no(MISSING_VERSION, "Version not found.")
                    problems = self._problems(subject, numbers[-1], body["schema"])
                    return 200, {"is_compatible": not problems, "messages": problems}
        return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}

    def _guid(self, number: int) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, self.schemas[number - 1]))

    def _numbers(self, subject: str, query: dict[str, str]) -> list[int]:
        with_deleted = query.get("deleted") == "true"
        return [n for n in self.subjects.get(subject, {}) if with_deleted or (subject, n) not in self.deleted]

    def _version(self, subject: str, number: str, query: dict[str, str]):
        numbers = self._numbers(subject, query)
        wanted = numbers[-1] if number == "latest" and numbers else int(number) if number.isdigit() else -1
        if not numbers:
            return _no(MISSING_SUBJECT, f"Subject '{subject}' not found.")
        if wanted not in numbers:
            return _no(MISSING_VERSION, f"Version {number} not found.")
        schema_id = self.subjects[subject][wanted]
        guid = {"guid": self._guid(schema_id)} if self.knows_guids else {}
        text = self.schemas[schema_id - 1]
        return 200, {"subject": subject, "version": wanted, "id": schema_id, "schema": text, **guid}

    def _register(self, subject: str, body: dict):
        try:
            schema = json.loads(body["schema"])
        except ValueError:
            return 422, {"error_code": INVALID, "message": "Invalid schema"}
        text = json.dumps(schema)
        numbers = self._numbers(subject, {})
        for number in numbers:
            if self.schemas[self.subjects[subject][number] - 1] == text:
                return self._registered(self.subjects[subject][number])
        problems = self._problems(subject, numbers[-1], body["schema"]) if numbers else []
        if problems:
            return 409, {"error_code": 409, "message": "; ".join(problems)}
        if text not in self.schemas:
            self.schemas.append(text)
        schema_id = self.schemas.index(text) + 1
        versions = self.subjects.setdefault(subject, {})
        versions[max(versions, default=0) + 1] = schema_id
        return self._registered(schema_id)

    def _registered(self, schema_id: int):
        return 200, {"id": schema_id, "guid": self._guid(schema_id)} if self.knows_guids else {"id": schema_id}

    def _lookup(self, subject: str, body: dict):
        text = json.dumps(json.loads(body["schema"]))
        for number in self._numbers(subject, {}):
            if self.schemas[self.subjects[subject][number] - 1] == text:
                return self._version(subject, str(number), {})
        return _no(MISSING_SCHEMA, "Schema not found")

    def _problems(self, subject: str, number: int, text: str) -> list[str]:
        old, new = json.loads(self.schemas[self.subjects[subject][number] - 1]), json.loads(text)
        if schema_problems(old) or schema_problems(new):
            return []  # a registry does not mind
        return check_compatibility(old, new)


def _no(code: int, message: str):
    return code // 100, {"error_code": code, "message": message}
