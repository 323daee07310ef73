"""The live page's API: what it answers, what it refuses, and how its streams end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from runtime.http import serve
from sandbox.live_views import Place
from sandbox.livepage import make_app, no_report
from tests.browser.fake_backend import FakeBackend

DEADLINE_S = 10.0


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
async def client(backend: FakeBackend) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(make_app(backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://page") as http:
        yield http


async def test_the_page_and_its_modules_are_served_with_a_strict_policy(client: httpx.AsyncClient) -> None:
    """Everything comes from this server, and the browser is told to take nothing from elsewhere."""
    for path, kind in (("/", "text/html"), ("/js/app.js", "javascript"), ("/css/base.css", "text/css")):
        answer = await client.get(path)
        assert answer.status_code == 200
        assert kind in answer.headers["content-type"]
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "https://" not in answer.text.replace("http://www.w3.org", "")


async def test_the_newest_report_is_served_as_it_was_written_and_may_fetch_nothing(
    backend: FakeBackend, tmp_path: Path
) -> None:
    page = tmp_path / "night.html"
    page.write_text("<h1>held back</h1>")
    for find, status, policy in ((lambda: page, 200, "default-src 'none'"), (no_report, 404, "default-src 'self'")):
        transport = httpx.ASGITransport(make_app(backend, find))
        async with httpx.AsyncClient(transport=transport, base_url="http://page") as http:
            answer = await http.get("/report")
        assert answer.status_code == status and answer.headers.get_list("content-security-policy")[0].startswith(policy)
        assert len(answer.headers.get_list("content-security-policy")) == 1
        assert ("held back" in answer.text) == (status == 200)


async def test_viewers_are_searched_by_name_and_taste(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """The answer holds summaries; a query that is too long is refused."""
    wanted = next(iter(backend.summaries.values()))
    found = (await client.get("/api/viewers", params={"q": wanted.name.upper()})).json()
    assert found[0] == {
        "viewer": wanted.viewer,
        "name": wanted.name,
        "taste": wanted.taste,
        "territory": wanted.territory,
    }
    assert (await client.get("/api/viewers", params={"q": "x" * 81})).status_code == 400


async def test_a_play_answers_with_its_parts_and_the_new_row(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """The parts sum to the whole, and the row is the one stored."""
    viewer = next(iter(backend.summaries))
    item = backend.rows[viewer].tiles[0].item_id
    answer = await client.post("/api/play", json={"viewer": viewer, "item_id": item})
    assert answer.status_code == 200
    outcome = answer.json()
    assert sum(part["ms"] for part in outcome["parts"]) == pytest.approx(outcome["total_ms"])
    assert outcome["row"]["row_id"] == backend.rows[viewer].row_id
    assert (backend.sent, backend.places) == ([(viewer, item, "play")], [None])
    view = (await client.get(f"/api/viewer/{viewer}")).json()
    assert view["live"]["row_id"] == outcome["row"]["row_id"] != view["last_night"]["row_id"]


async def test_a_play_from_a_row_is_sent_with_its_place(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    viewer = next(iter(backend.summaries))
    row = backend.rows[viewer]
    body = {"viewer": viewer, "item_id": row.tiles[4].item_id, "row_id": row.row_id, "row_position": 4}
    assert (await client.post("/api/play", json=body)).status_code == 200
    assert backend.places == [Place(row.row_id, 4)]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"{", "JSON"),
        (b"[1]", "object"),
        (b'{"viewer": "a b", "item_id": "x"}', "viewer"),
        (b'{"viewer": "a", "item_id": {}}', "item_id"),
        (b'{"viewer": "a", "item_id": "x", "kind": "erase"}', "kind"),
        (b'{"viewer": "a", "item_id": "x", "row_id": "a b", "row_position": 0}', "row_id"),
        (b'{"viewer": "a", "item_id": "x", "row_position": 0}', "row_id"),
        (b'{"viewer": "a", "item_id": "x", "row_id": "r", "row_position": -1}', "row_position"),
        (b'{"viewer": "a", "item_id": "x", "row_id": "r", "row_position": true}', "row_position"),
        (b'{"viewer": "' + b"a" * 5000 + b'"}', "4096"),
    ],
)
async def test_a_malformed_play_is_refused_with_a_reason(
    client: httpx.AsyncClient, backend: FakeBackend, body: bytes, told: str
) -> None:
    """400 and a sentence, and nothing is sent."""
    answer = await client.post("/api/play", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert told in answer.json()["error"]
    assert backend.sent == []


async def test_a_form_of_another_site_cannot_play(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """Only JSON is taken: a browser asks before it sends that across sites."""
    answer = await client.post("/api/play", content=b"{}", headers={"content-type": "text/plain"})
    assert answer.status_code == 400
    assert backend.sent == []


async def test_a_button_is_pressed_once_at_a_time(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """The answer says that it is under way; the second press is a conflict, told in a sentence."""
    pressed = await client.post("/api/action", json={"action": "kill"}, headers={"origin": "http://page"})
    assert (pressed.status_code, pressed.json()["state"]) == (200, "running")
    again = await client.post("/api/action", json={"action": "kill"}, headers={"origin": "http://page"})
    assert (again.status_code, again.json()["error"]) == (409, "kill is under way already")
    assert backend.trials["kill"].number == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://page:8080"}, 403),
        ({"origin": "http://evil.example", "host": "evil.example"}, 403),
        ({"origin": "http://page", "sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://page", "content-type": "text/plain"}, 400),
        ({"origin": "http://page", "sec-fetch-site": "same-origin"}, 200),
        ({"origin": "http://localhost:9", "host": "localhost:9"}, 200),
    ],
)
async def test_only_the_page_itself_presses_buttons(
    client: httpx.AsyncClient, backend: FakeBackend, headers: dict[str, str], status: int
) -> None:
    """Another site, a name that was made to point here, a form, and who does not say where they come from are refused."""
    content = {"content-type": "application/json", **headers}
    answer = await client.post("/api/action", content=b'{"action": "poison"}', headers=content)
    assert answer.status_code == status
    assert backend.trials["poison"].number == (status == 200)


async def test_a_button_is_not_pressed_by_looking(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    """Only POST, and only buttons that exist."""
    for method in ("GET", "PUT", "DELETE"):
        answer = await client.request(method, "/api/action", headers={"origin": "http://page"})
        assert answer.status_code == 405
    answer = await client.post("/api/action", json={"action": "erase"}, headers={"origin": "http://page"})
    assert answer.status_code == 400
    assert all(view.number == 0 for view in backend.actions())


async def test_unknown_viewers_titles_and_addresses_are_not_found(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    """404 with a message; ids that cannot be ids are 400; a store that is away is 503."""
    viewer = next(iter(backend.summaries))
    for path in ("/api/viewer/nobody", f"/api/explain/{viewer}/tt9999999", "/api/stream?viewer=nobody", "/api/nothing"):
        answer = await client.get(path)
        assert (answer.status_code, bool(answer.json()["error"])) == (404, True)
    for path in ("/api/viewer/a%7Bb", f"/api/explain/{viewer}/a%20b", "/api/stream?viewer=%00"):
        assert (await client.get(path)).status_code == 400
    backend.away = True
    assert (await client.get(f"/api/viewer/{viewer}")).status_code == 503


async def test_a_stream_tells_stats_and_rows_and_ends_when_told(backend: FakeBackend) -> None:
    """Both kinds of events arrive; `close` ends the stream at once, and a client that leaves is forgotten."""
    app, viewer = make_app(backend), next(iter(backend.summaries))
    async with serve(app, "127.0.0.1", 0) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        async with http.stream("GET", "/api/stream", params={"viewer": viewer}) as answer, asyncio.timeout(DEADLINE_S):
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.aiter_lines()
            seen: dict[str, dict] = {}
            while not {"row", "actions"} <= seen.keys():
                line = await anext(lines)
                if line.startswith("event: "):
                    seen[line[7:]] = json.loads((await anext(lines)).removeprefix("data: "))
                    if line == "event: stats" and "row" not in seen:
                        await backend.play(viewer, backend.rows[viewer].tiles[0].item_id, "play")
            assert seen["stats"]["unaccounted"] == 0
            assert [view["name"] for view in seen["actions"]] == ["kill", "poison", "burst", "generation"]
            assert seen["row"]["row_id"] == backend.rows[viewer].row_id
            app.state.streams.close()
            async for _ in lines:
                pass
        async with http.stream("GET", "/api/stream", params={"viewer": viewer}) as answer:
            await anext(answer.aiter_lines())
            assert app.state.streams.open_count() == 1
        async with asyncio.timeout(DEADLINE_S):
            while app.state.streams.open_count():  # noqa: ASYNC110 - polls with a deadline
                await asyncio.sleep(0.01)
        assert backend.watchers[viewer] == []
