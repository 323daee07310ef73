"""Rate limits: known sequences on an injected clock."""

from __future__ import annotations

import httpx
import pytest

from homepage.limits import RateLimit, RequestLimits, network_of
from homepage.service import make_app
from runtime.sections import HomepageSettings
from tests.integration.test_homepage import count, homepage_over, store_with_defaults


class Clock:
    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_burst_is_let_through_and_then_the_rate() -> None:
    clock = Clock()
    limit = RateLimit(2.0, 3, now_s=clock)
    assert [limit.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert limit.take("b") == 0
    clock.now_s += 0.5
    assert [limit.take("a") for _ in range(2)] == [0, 0.5]
    clock.now_s += 60
    assert [limit.take("a") for _ in range(4)] == [0, 0, 0, 0.5]


def test_whoever_is_refused_is_not_pushed_further_back_by_asking_again() -> None:
    clock = Clock()
    limit = RateLimit(1.0, 1, now_s=clock)
    assert [limit.take("a") for _ in range(5)] == [0, 1, 1, 1, 1]
    clock.now_s += 1
    assert limit.take("a") == 0


def test_a_million_keys_take_the_room_of_the_bound() -> None:
    limit = RateLimit(1.0, 1, max_keys=100)
    for n in range(10_000):
        limit.take(f"viewer-{n}")
    assert len(limit) == 100
    assert limit.take("viewer-9999") > 0  # the newest are remembered


def test_a_rate_of_zero_is_no_limit_and_keeps_nothing() -> None:
    limit = RateLimit(0, 1)
    assert {limit.take("a") for _ in range(100)} == {0}
    assert len(limit) == 0


@pytest.mark.parametrize(
    ("host", "counted_as"),
    [
        ("127.0.0.1", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "20010db800010002::/64"),
        ("2001:db8:1:2::9", "20010db800010002::/64"),
        ("no address" * 1000, "unknown"),
        (None, "unknown"),
    ],
)
def test_an_address_is_counted_as_what_its_owner_has(host: str | None, counted_as: str | None) -> None:
    assert network_of(host) == counted_as


async def test_one_viewer_too_often_is_answered_429_with_when_to_come_again_and_others_are_served() -> None:
    clock = Clock()
    limits = RequestLimits.of(HomepageSettings(viewer_rate_per_s=0.1, viewer_burst=2), clock)
    homepage, client = await homepage_over(await store_with_defaults(), limits=limits)
    async with client:
        answers = [await client.get("/v1/home/ana") for _ in range(3)]
        assert [one.status_code for one in answers] == [200, 200, 429]
        assert answers[2].headers["retry-after"] == "10"
        assert (
            answers[2].json()["error"].startswith("too many requests of this viewer: at most 0.1 a second, 2 at once")
        )
        assert (await client.get("/v1/home/ben")).status_code == 200
        clock.now_s += 10
        assert (await client.get("/v1/home/ana")).status_code == 200
    assert count(homepage, "nearline_homepage_requests_total", outcome="limited") == 1


async def test_one_address_is_limited_whoever_it_asks_for_and_health_is_not() -> None:
    limits = RequestLimits.of(HomepageSettings(address_rate_per_s=0.5, address_burst=3), Clock())
    homepage, _ = await homepage_over(await store_with_defaults(), limits=limits)

    def client(address: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(make_app(homepage), client=(address, 1)), base_url="http://home"
        )

    async with client("2001:db8::1") as one, client("2001:db8::2") as same, client("127.0.0.1") as here:
        asked = [await c.get(f"/v1/home/v{n}") for n, c in enumerate([one, same, one, same])]
        assert [answer.status_code for answer in asked] == [200, 200, 200, 429]
        assert asked[3].headers["retry-after"] == "2"
        assert "from this address" in asked[3].json()["error"]
        assert (await one.get("/health/ready")).status_code == 200
        assert {(await here.get("/v1/home/ana")).status_code for _ in range(10)} == {200}


async def test_ids_that_are_none_take_no_room_in_the_limits() -> None:
    limits = RequestLimits.of(HomepageSettings(), Clock())
    _, client = await homepage_over(await store_with_defaults(), limits=limits)
    async with client:
        assert (await client.get("/v1/home/" + "x" * 200)).status_code == 400
    assert len(limits.viewers) == 0
