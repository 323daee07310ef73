"""The home page as its callers meet it: who is let in, where it listens, and what it makes of hostile requests."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import SettingsError
from homepage.identity import choose_identity, viewer_from_token
from homepage.limits import RequestLimits
from homepage.server import run_homepage
from homepage.service import make_app
from runtime.http import serve
from runtime.sections import HomepageSettings
from runtime.settings import KafkaSettings, Settings, load_settings
from tests.integration.test_homepage import CODEC, count, homepage_over, make_row, put_row, store_with_defaults
from tests.unit.test_identity import SECRET, token, verifier
from viewers.memory_store import MemoryStore

# On the service


async def guarded(store: MemoryStore) -> tuple[Any, httpx.AsyncClient]:
    homepage, _ = await homepage_over(store)
    refused = homepage.metrics.refused
    identify = viewer_from_token(verifier(), lambda why: refused.labels(why).inc())
    return await homepage_over(store, metrics=homepage.metrics, identify=identify)


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


async def test_the_token_says_whose_row_it_is_and_the_path_may_only_agree() -> None:
    store = await store_with_defaults()
    await put_row(store, "ana", CODEC.encode_row(make_row("hers")))
    await put_row(store, "ben", CODEC.encode_row(make_row("his")))
    homepage, client = await guarded(store)
    async with client:
        for path in ("/v1/home", "/v1/home/ana", "/v1/home?limit=3"):
            assert (await client.get(path, headers=bearer(token()))).json()["row_id"] == "hers"
        other = await client.get("/v1/home/ben", headers=bearer(token()))
        assert (other.status_code, "row_id" in other.json()) == (403, False)
        assert other.json()["error"].startswith("viewer: the path names another viewer")
        same = await client.get("/v1/home/nobody", headers=bearer(token()))
        assert (same.status_code, same.content) == (403, other.content)
    assert count(homepage, "nearline_homepage_requests_total", outcome="forbidden") == 2
    assert count(homepage, "nearline_homepage_identity_refused_total", reason="other_viewer") == 2


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ([], "missing"),
        ([("Authorization", "")], "missing"),
        ([("Authorization", "Bearer")], "missing"),
        ([("Authorization", "Basic YW5hOmFuYQ==")], "missing"),
        ([("Authorization", f"Bearer {token()}"), ("Authorization", f"Bearer {token('ben')}")], "missing"),
        ([("Authorization", "Bearer " + "x" * 60_000)], "oversized"),
        ([("Authorization", f"Bearer {token(exp=1)}")], "expired"),
        ([("Cookie", f"token={token()}")], "missing"),
    ],
)
async def test_without_a_good_token_the_answer_is_401_and_nothing_is_read(
    headers: list[tuple[str, str]], why: str
) -> None:
    class Unread(MemoryStore):
        async def read_row(self, viewer: str) -> bytes:
            raise AssertionError("the store was asked")

    homepage, client = await guarded(Unread())
    async with client:
        for path in ("/v1/home", "/v1/home/ana", f"/v1/home?access_token={token()}"):
            answer = await client.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.json()["error"].startswith("token: ")
            assert "ana" not in answer.text
    assert count(homepage, "nearline_homepage_identity_refused_total", reason=why) == 3
    assert homepage.impressions.taken == []


async def test_without_tokens_the_path_must_name_a_viewer() -> None:
    _, client = await homepage_over(await store_with_defaults())
    async with client:
        answer = await client.get("/v1/home")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("viewer: ")


async def test_health_and_metrics_need_no_token_and_name_no_viewer() -> None:
    _, client = await guarded(await store_with_defaults())
    async with client:
        await client.get("/v1/home", headers=bearer(token("marked-viewer")))
        assert (await client.get("/health/ready")).status_code == 200
        metrics = await client.get("/metrics")
    assert metrics.status_code == 200
    assert "marked" not in metrics.text


# Where it listens


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "home.example"])
async def test_beyond_loopback_a_token_is_asked_for_or_the_gateway_answers_for_it(host: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="NEARLINE_HOMEPAGE__TOKEN_SECRET") as caught:
        await run_homepage(
            Settings(
                _env_file=None,
                homepage=HomepageSettings(host=host, port=0),
                kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1"),
                generations_path=str(tmp_path),
            ),
            stop=asyncio.Event(),
            store=MemoryStore(),
        )
    assert "NEARLINE_HOMEPAGE__AUTH=none" in str(caught.value)
    for allowed in ({"auth": "none"}, {"token_secret": SECRET}):
        assert choose_identity(HomepageSettings(host=host, **allowed), lambda why: None)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_loopback_the_path_is_enough(host: str) -> None:
    assert choose_identity(HomepageSettings(host=host), lambda why: None)


def test_everything_that_listens_listens_on_loopback_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_settings()
    assert (loaded.homepage.on_loopback, loaded.health.on_loopback) == (True, True)
    assert load_settings(homepage={"port": 1, "token_secret": SECRET}).homepage.on_loopback


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"auth": "token"}, "auth=token needs NEARLINE_HOMEPAGE__TOKEN_SECRET"),
        ({"auth": "none", "token_secret": SECRET}, "auth=none would ignore"),
        ({"token_secret": SECRET, "token_key_file": "x"}, "not both"),
        ({"token_secret": "short"}, "at least 32 bytes"),
        ({"trusted_proxies": "10.0.0.0/8, proxy"}, "no address or network"),
        ({"trusted_proxies": "*"}, "no address or network"),
    ],
)
def test_contradictory_settings_are_refused_and_no_secret_is_quoted(
    values: dict[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=says) as caught:
        load_settings(homepage=values)
    assert "NEARLINE_HOMEPAGE" in str(caught.value)
    assert SECRET not in str(caught.value)


async def test_an_unknown_a_known_and_an_erased_viewer_cost_the_same_and_the_answers_differ_in_the_row_alone() -> None:
    """Counted, not timed: one question to the store each, and one row decoded."""

    class Counting(MemoryStore):
        asked = 0

        async def read_row(self, viewer: str) -> bytes:
            self.asked += 1
            return await super().read_row(viewer)

    class CountingCodec:
        decoded = 0

        def decode_columns(self, data: bytes) -> Any:
            self.decoded += 1
            return CODEC.decode_columns(data)

    store, codec = Counting(), CountingCodec()
    await store.connect()
    await store.write_default_rows({"*:*": CODEC.encode_row(make_row("any"))})
    await put_row(store, "known", CODEC.encode_row(make_row("own")))
    await put_row(store, "erased", b"")
    _, client = await homepage_over(store)
    homepage, _ = await homepage_over(store, identify=viewer_from_token(verifier(), lambda why: None))
    object.__setattr__(homepage, "codec", codec)
    seen = {}
    async with client, httpx.AsyncClient(transport=httpx.ASGITransport(make_app(homepage)), base_url="http://h") as own:
        for viewer in ("known", "erased", "unknown"):
            before = store.asked, codec.decoded
            body = (await own.get("/v1/home", headers=bearer(token(viewer)))).json()
            seen[viewer] = (store.asked - before[0], codec.decoded - before[1], body.pop("viewer"), body)
    assert {(asked, decoded) for asked, decoded, *_ in seen.values()} == {(1, 1)}
    assert seen["erased"][3] == seen["unknown"][3]
    assert seen["known"][3].keys() == seen["unknown"][3].keys()


# Hostile requests


@given(
    path=st.sampled_from(["/v1/home", "/v1/home/", "/v1/home/ana", "/v1/home/%00", "/v1/home/a/b"])
    | st.text(max_size=60).map("/v1/home/".__add__),
    query=st.binary(max_size=60),
    authorization=st.lists(
        st.binary(max_size=60) | st.just(b"Bearer " + token().encode()) | st.binary(max_size=60).map(b"Bearer ".__add__), max_size=2
    ),
    client=st.none() | st.tuples(st.text(max_size=40), st.integers(0, 65_535)),
    method=st.sampled_from(["GET", "GET", "HEAD", "POST", "OPTIONS"]),
)  # fmt: skip
@settings(max_examples=300)
def test_any_request_with_any_credentials_gets_an_answer_that_is_no_server_error(
    path: str, query: bytes, authorization: list[bytes], client: tuple[str, int] | None, method: str
) -> None:
    async def run() -> tuple[int, bytes]:
        homepage, _ = await guarded(await store_with_defaults())
        limits = RequestLimits.of(HomepageSettings(address_burst=2, viewer_burst=1))
        app = make_app(replace(homepage, limits=limits))
        sent: list[dict[str, Any]] = []
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http", "path": path,
            "raw_path": path.encode("utf-8", "replace"), "query_string": query, "root_path": "", "client": client,
            "headers": [(b"authorization", value) for value in authorization], "server": ("127.0.0.1", 2),
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        for _ in range(3):
            await app(scope, receive, send)
        return sent[-2]["status"], sent[-1]["body"]

    status, body = asyncio.run(run())
    assert status in (200, 400, 401, 403, 404, 405, 429), (status, body)
    if status in (400, 401, 403, 429) and method == "GET":
        assert json.loads(body)["error"]


async def test_a_proxy_is_believed_about_its_client_only_if_it_is_trusted() -> None:
    """Over a real socket: loopback itself has no limit, the client that a trusted proxy names has one."""
    limits = RequestLimits.of(HomepageSettings(address_rate_per_s=0.01, address_burst=1))
    homepage, _ = await homepage_over(await store_with_defaults(), limits=limits)
    answers = {}
    for trusted in ("", "127.0.0.0/8"):
        async with (
            serve(make_app(homepage), "127.0.0.1", 0, trusted_proxies=trusted) as port,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
        ):
            forged = {"X-Forwarded-For": "127.0.0.1, 192.0.2.9"}
            answers[trusted] = [(await client.get("/v1/home/ana", headers=forged)).status_code for _ in range(3)]
    assert answers == {"": [200, 200, 200], "127.0.0.0/8": [200, 429, 429]}


async def test_a_client_that_never_ends_its_headers_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.http.HEAD_DEADLINE_S", 0.05)
    homepage, _ = await homepage_over(await store_with_defaults())
    async with serve(make_app(homepage), "127.0.0.1", 0) as port, asyncio.timeout(20):
        for begun in (b"", b"GET /health/live HTTP/1.1\r\nhost: a\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(begun)
            with suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for _ in range(3):
                assert (await client.get("/health/live")).status_code == 200
