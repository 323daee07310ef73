"""The live page in a real browser, against a backend without servers: what a person sees, presses and hears."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Browser, Page, Request, ViewportSize, expect, sync_playwright

from runtime.http import serve
from sandbox.action_views import ActionName
from sandbox.live_views import Place
from sandbox.livepage import make_app
from tests.browser.fake_backend import FINE, PARTS, WRONG, FakeBackend

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE: ViewportSize = {"width": 1440, "height": 900}
NARROW: ViewportSize = {"width": 360, "height": 780}
DEADLINE_S = 20.0


@dataclass
class Served:
    """The page's address, the backend behind it, and the loop that both live on."""

    url: str
    backend: FakeBackend
    loop: asyncio.AbstractEventLoop


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """The app behind the project's own HTTP server, on a thread with its own loop."""
    ready, ended, holder = threading.Event(), threading.Event(), []

    async def run() -> None:
        backend, stop = FakeBackend(), asyncio.Event()
        app = make_app(backend)
        async with serve(app, "127.0.0.1", 0) as port:
            loop = asyncio.get_running_loop()
            holder.append((Served(f"http://127.0.0.1:{port}/", backend, loop), stop))
            ready.set()
            await stop.wait()
            app.state.streams.close()
        ended.set()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert ready.wait(DEADLINE_S)
    server, stop = holder[0]
    yield server
    server.loop.call_soon_threadsafe(stop.set)
    assert ended.wait(DEADLINE_S), "the server did not stop while event streams were open"
    thread.join(DEADLINE_S)


@pytest.fixture(scope="module")
def browser(browser_path: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        yield chromium
        chromium.close()


@dataclass
class Opened:
    """A page on one viewer, with what went wrong in it and where it went."""

    page: Page
    viewer: str
    problems: list[str]
    addresses: set[str]


@pytest.fixture
def open_page(browser: Browser, served: Served) -> Iterator:
    """`open_page(3, viewport=NARROW, color_scheme="dark")`; afterwards: no console error, no address but the server's own."""
    opened: list[Opened] = []

    def open_(number: int, **options: object) -> Opened:
        context = browser.new_context(**{"viewport": WIDE, **options})
        page, viewer = context.new_page(), list(served.backend.summaries)[number]
        result = Opened(page, viewer, [], set())
        page.on("console", lambda message: message.type == "error" and result.problems.append(message.text))
        page.on("pageerror", lambda error: result.problems.append(str(error)))

        def note(request: Request) -> None:
            if not request.url.startswith(("data:", served.url)):
                result.addresses.add(request.url)

        page.on("request", note)
        page.goto(f"{served.url}#{viewer}")
        expect(page.locator(".tile-play")).to_have_count(12)
        expect(page.locator("#link-state")).to_have_attribute("data-state", "live")
        opened.append(result)
        return result

    yield open_
    for each in opened:
        each.page.context.close()
        assert each.problems == []
        assert each.addresses == set()


def titles(page: Page) -> list[str]:
    """Item ids in tonight's row as the page shows them, leaving tiles left out."""
    return page.locator(".tile:not(.leaving)").evaluate_all("tiles => tiles.map(tile => tile.dataset.item)")


def test_a_viewer_is_found_by_name_and_chosen_by_keyboard(open_page, served: Served) -> None:
    """Typing narrows the list, arrow and Enter choose, and the row becomes that viewer's."""
    page = open_page(0).page
    wanted = list(served.backend.summaries.values())[9]
    box = page.get_by_role("combobox", name="Viewer")
    box.click()
    expect(page.get_by_role("option").first).to_be_visible()
    box.fill(wanted.name)
    expect(page.get_by_role("option")).to_have_count(1)
    expect(page.get_by_role("option")).to_contain_text(wanted.taste)
    box.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text(wanted.name.split()[0])
    expected = [tile.item_id for tile in served.backend.rows[wanted.viewer].tiles[:12]]
    page.wait_for_function("first => document.querySelector('.tile')?.dataset.item === first", arg=expected[0])
    assert titles(page) == expected
    assert page.url.endswith(f"#{wanted.viewer}")


def test_a_press_of_play_moves_tiles_and_stops_the_watch(open_page, served: Served) -> None:
    """The played title leaves, others slide to new places, and the watch shows the measured legs."""
    opened = open_page(1)
    page = opened.page
    before = titles(page)
    page.evaluate(
        """() => { window.slides = 0; const real = Element.prototype.animate;
        Element.prototype.animate = function (frames, how) {
          if (String(frames[0].transform).startsWith("translate(")) window.slides += 1; return real.call(this, frames, how); }; }"""
    )
    page.locator(".tile-play").nth(2).click()
    expect(page.locator("#stopwatch")).to_have_attribute("data-state", "done")
    expect(page.locator("#stopwatch-ms")).to_have_text("20")
    for part in PARTS:
        expect(page.locator("#stopwatch-legs")).to_contain_text(f"{part.ms} ms{part.name}")
    expect(page.locator("#stopwatch-legs li")).to_have_count(len(PARTS) + 1)
    after = titles(page)
    assert before[2] not in after
    assert after == [tile.item_id for tile in served.backend.rows[opened.viewer].tiles[:12]]
    assert page.evaluate("window.slides") > 0
    expect(page.get_by_role("status")).to_contain_text("Row rewritten in 20 milliseconds.")
    expect(page.locator("#reel li").first).to_have_attribute("data-item", before[2])
    expect(page.locator(f"#ladder [data-item={before[2]}]")).to_contain_text("watched")


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_play_works_from_the_keyboard_and_the_focus_stays_in_the_row(open_page, served: Served, key: str) -> None:
    """Arrows walk over posters, the focused one is outlined, and after the play the next title has the focus."""
    opened = open_page(2 if key == "Enter" else 3)
    page = opened.page
    before = titles(page)
    page.locator(".tile-play").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    focused = "document.activeElement.closest('.tile')?.dataset.item"
    assert page.evaluate(focused) == before[7]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press(key)
    expect(page.locator("#stopwatch")).to_have_attribute("data-state", "done")
    after = titles(page)
    assert before[7] not in after
    assert page.evaluate(focused) == after[7]
    assert (opened.viewer, before[7], "play") in served.backend.sent


def test_reduced_motion_rewrites_the_row_without_sliding(open_page) -> None:
    """With prefers-reduced-motion nothing is animated, and the row is right at once."""
    page = open_page(4, reduced_motion="reduce").page
    page.evaluate("() => { Element.prototype.animate = () => { throw new Error('animated'); }; }")
    before = titles(page)
    page.locator(".tile-play").first.click()
    expect(page.locator("#stopwatch")).to_have_attribute("data-state", "done")
    assert before[0] not in titles(page)
    assert page.locator(".leaving").count() == 0


def test_a_private_play_is_sent_as_private_and_leaves_the_row_alone(open_page, served: Served) -> None:
    """The switch makes plays private; the page says that nothing was kept."""
    opened = open_page(5)
    page = opened.page
    before = titles(page)
    page.get_by_role("switch", name="Private").check(force=True)
    page.locator(".tile-play").first.click()
    expect(page.locator("#stopwatch-note")).to_contain_text("private play")
    assert titles(page) == before
    assert (opened.viewer, before[0], "private") in served.backend.sent


def test_a_skip_reaches_the_backend_as_a_skip(open_page, served: Served) -> None:
    """The small button under a poster skips."""
    opened = open_page(6)
    first = titles(opened.page)[0]
    opened.page.locator(".tile-skip").first.click()
    expect(opened.page.locator("#stopwatch")).to_have_attribute("data-state", "done")
    assert (opened.viewer, first, "skip") in served.backend.sent


def test_why_shows_the_plays_that_a_tile_comes_from(open_page, served: Served) -> None:
    """The panel names source and plays with contributions, keeps the focus inside, and closes with Escape."""
    opened = open_page(7)
    page = opened.page
    item = titles(page)[0]
    page.locator(".tile-why").first.click()
    panel = page.get_by_role("dialog")
    expect(panel).to_be_visible()
    expect(panel.get_by_role("heading", level=2)).to_have_text(served.backend.items[item].title)
    expect(panel).to_contain_text("Number 1.")
    reasons = panel.locator(".reasons li")
    assert reasons.count() == len(served.backend.parts_of(opened.viewer, item)) > 0
    expect(reasons.first).to_contain_text("+0.")
    page.keyboard.press("Escape")
    expect(panel).to_be_hidden()
    assert page.evaluate("document.activeElement.className") == "tile-why"


def test_the_row_moves_when_somebody_else_writes_it(open_page, served: Served) -> None:
    """A rewrite that this page did not cause arrives over the stream."""
    opened = open_page(8)
    page = opened.page
    played = titles(page)[1]
    asyncio.run_coroutine_threadsafe(served.backend.play(opened.viewer, played, "play"), served.loop).result(DEADLINE_S)
    expect(page.locator(f".tile:not(.leaving)[data-item={played}]")).to_have_count(0)
    assert titles(page) == [tile.item_id for tile in served.backend.rows[opened.viewer].tiles[:12]]


def strip(page: Page) -> list[str]:
    """Item ids in the row below, as the page shows them."""
    return page.locator(".strip li").evaluate_all("tiles => tiles.map(tile => tile.dataset.item)")


def test_a_play_turns_the_strip_below_to_what_was_watched(open_page, served: Served) -> None:
    """It is about the played title, which has left it, and repeats nothing of the row above."""
    opened = open_page(15)
    page = opened.page
    (before,) = served.backend.rows[opened.viewer].below
    assert before.about is not None
    expect(page.get_by_role("region", name=before.heading)).to_be_visible()
    expect(page.locator(".strip")).to_have_attribute("data-about", before.about.item_id)
    assert strip(page) == [tile.item_id for tile in before.tiles]
    played = before.tiles[1]
    page.get_by_role("button", name=f"Play {played.title}", exact=True).click()
    expect(page.locator(".strip")).to_have_attribute("data-about", played.item_id)
    expect(page.locator(".strip h2")).to_have_text(f"Because you watched {played.title}")
    expect(page.locator(".strip h2 em")).to_have_text(played.title)
    (after,) = served.backend.rows[opened.viewer].below
    assert strip(page) == [tile.item_id for tile in after.tiles]
    assert played.item_id not in strip(page)
    assert not set(strip(page)) & set(titles(page))
    assert (opened.viewer, played.item_id, "play") in served.backend.sent
    assert served.backend.places[-1] == Place(before.row_id, 1)
    third, row_id = titles(page)[2], served.backend.rows[opened.viewer].row_id
    page.locator(f".tile:not(.leaving)[data-item={third}] .tile-play").click()
    expect(page.locator(f".tile:not(.leaving)[data-item={third}]")).to_have_count(0)
    assert served.backend.places[-1] == Place(row_id, 2)


def test_the_strip_is_played_from_the_keyboard_and_the_focus_stays_in_it(open_page, served: Served) -> None:
    """A skip leaves the heading as it is: the posters stay where they are, and the next one has the focus."""
    opened = open_page(16)
    page = opened.page
    page.locator(".strip-play").nth(2).focus()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.locator("#stopwatch")).to_have_attribute("data-state", "done")
    assert page.evaluate("document.activeElement.closest('.strip li')?.dataset.item") == strip(page)[2]
    page.evaluate("() => { document.querySelector('.strip').kept = true; }")
    page.locator(".tile-skip").first.click()
    expect(page.locator("#stopwatch")).to_have_attribute("data-state", "done")
    (now,) = served.backend.rows[opened.viewer].below
    page.wait_for_function(
        "first => document.querySelector('.strip li')?.dataset.item === first", arg=now.tiles[0].item_id
    )
    assert page.evaluate("document.querySelector('.strip').kept") is True
    assert strip(page) == [tile.item_id for tile in now.tiles]


def test_who_has_no_row_below_the_first_sees_no_empty_heading(open_page, served: Served) -> None:
    """A viewer of whom nothing goes with anything yet."""
    page = open_page(17).page
    page.route("**/api/viewer/*", lambda route: route.fulfill(json=without_strips(route.fetch().json())))
    page.get_by_role("button", name="Someone else").click()
    expect(page.locator(".strip")).to_have_count(0)
    expect(page.locator(".tile-play")).to_have_count(12)
    assert page.locator("#below").evaluate("node => node.getBoundingClientRect().height") == 0


def without_strips(view: dict) -> dict:
    """A viewer's view with nothing below the row."""
    view["live"]["below"] = []
    return view


def test_gauges_show_the_pipeline_and_its_versions(open_page) -> None:
    """Events a second, freshness, lag, the sum of fates with nothing unaccounted, generation and servers."""
    page = open_page(10).page
    gauges = page.locator(".gauge")
    expect(gauges).to_have_count(4)
    expect(gauges.nth(1)).to_contain_text("ms p50")
    expect(gauges.nth(3)).to_contain_text("0every event has its fate")
    expect(page.locator("#ledger")).to_contain_text("dead-lettered")
    expect(page.locator("#provenance")).to_contain_text("Generation 2026-09-21T0300")
    expect(page.locator("#provenance")).to_contain_text("Kafka 4.1")


def test_a_server_that_is_away_is_told_and_the_page_goes_on(open_page, served: Served) -> None:
    """A play during an outage says what is wrong; the next one works and the message goes."""
    opened = open_page(11)
    page = opened.page
    served.backend.away = True
    try:
        page.locator(".tile-play").first.click()
        expect(page.get_by_role("alert")).to_contain_text("the store does not answer")
        expect(page.locator("#stopwatch-note")).to_have_text("The play was not sent.")
    finally:
        served.backend.away = False
    page.locator(".tile-play").first.click()
    expect(page.locator("#stopwatch")).to_have_attribute("data-state", "done")
    expect(page.get_by_role("alert")).to_be_hidden()
    opened.problems[:] = [text for text in opened.problems if "503" not in text]  # the browser's own note of it


BUTTONS: dict[ActionName, str] = {
    "kill": "Kill the updater",
    "poison": "Send poison",
    "burst": "Burst",
    "generation": "New generation",
}


def press(page: Page, action: ActionName) -> None:
    """Press a button, and wait until it is under way."""
    page.get_by_role("button", name=BUTTONS[action], exact=True).click()
    expect(page.get_by_role("article", name=BUTTONS[action])).to_have_attribute("data-state", "running")


@pytest.mark.parametrize("action", BUTTONS)
@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_a_button_is_pressed_by_keyboard_refused_meanwhile_and_ends_in_its_verdict(
    open_page, served: Served, action: ActionName, key: str
) -> None:
    """What happens, what was measured and the verdict are shown and said; a second press says why it is refused."""
    opened = open_page(13)
    page = opened.page
    card = page.get_by_role("article", name=BUTTONS[action])
    button = page.get_by_role("button", name=BUTTONS[action], exact=True)
    button.focus()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press(key)
    expect(card).to_have_attribute("data-state", "running")
    expect(card).to_have_attribute("aria-busy", "true")
    expect(card.locator(".now")).to_have_text(f"{action} has begun.")
    expect(card.locator(".curve polyline")).to_have_count(1)
    expect(card.locator(".verdict")).to_be_empty()
    page.keyboard.press(key)
    expect(card.get_by_role("alert")).to_have_text(f"{action} is under way already")
    served.loop.call_soon_threadsafe(served.backend.finish, action, FINE)
    expect(card).to_have_attribute("data-state", "passed")
    expect(card.locator(".verdict b")).to_have_text("0 lost, 0 doubled")
    expect(card.locator(".verdict")).to_contain_text("4,812 viewers with 143,207 plays")
    expect(card.locator(".figures")).to_contain_text("most records behind4,310")
    expect(card.get_by_role("alert")).to_be_hidden()
    expect(page.locator("#announcer")).to_have_text(f"{BUTTONS[action]}: {FINE.sentence()}")
    assert page.evaluate("document.activeElement.textContent") == BUTTONS[action]
    card.get_by_text("What happened").click()
    expect(card.locator(".steps li")).to_have_count(2)
    opened.problems[:] = [
        text for text in opened.problems if "409" not in text
    ]  # the browser's own note of the refusal


def test_a_verdict_that_is_not_zero_and_one_that_could_not_be_had_are_red(open_page, served: Served) -> None:
    """The numbers and the first finding are shown; without a comparison nothing is claimed."""
    page = open_page(14).page
    for action, verdict, message in (("kill", WRONG, ""), ("burst", None, "No verdict: the log cannot be read")):
        press(page, action)
        served.loop.call_soon_threadsafe(served.backend.finish, action, verdict, message)
        expect(page.get_by_role("article", name=BUTTONS[action])).to_have_attribute("data-state", "failed")
    wrong = page.get_by_role("article", name=BUTTONS["kill"]).locator(".verdict")
    expect(wrong.locator("b")).to_have_text("2 lost, 1 doubled, 3 unaccounted")
    expect(wrong).to_contain_text("viewer ana-0042: 2 facts missing")
    none = page.get_by_role("article", name=BUTTONS["burst"]).locator(".verdict")
    expect(none).to_have_text("No verdict: the log cannot be read")
    expect(none).not_to_contain_text("0 lost")
    bad = page.evaluate(
        """() => { const probe = document.createElement("i"); probe.style.color = "var(--bad)"; document.body.append(probe);
        const colour = getComputedStyle(probe).color; probe.remove(); return colour; }"""
    )
    for shown in (wrong.locator("b"), none):
        assert shown.evaluate("node => getComputedStyle(node).color") == bad


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_every_layout_fits_its_window_and_is_readable(
    open_page, served: Served, viewport: ViewportSize, scheme: str
) -> None:
    """No sideways scrolling at 360 or 1440 pixels, in light and dark, and text stands out from its ground by 4.5 to 1."""
    page = open_page(12, viewport=viewport, color_scheme=scheme).page
    page.locator(".tile-play").first.click()
    expect(page.locator("#stopwatch")).to_have_attribute("data-state", "done")
    press(page, "burst")
    served.loop.call_soon_threadsafe(served.backend.finish, "burst", WRONG)
    expect(page.locator("[data-action=burst] .wrong")).to_be_visible()
    for log in page.get_by_text("What happened").all():
        if log.is_visible():
            log.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    contrasts = page.evaluate(
        """() => {
          const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
          const light = (colour) => { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1);
            const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map((v) => v / 255).map((v) =>
              (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
          const style = getComputedStyle(document.documentElement);
          const against = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
          const grounds = ["--ground", "--raised"].map((name) => style.getPropertyValue(name));
          const inks = ["--ink", "--ink-2", "--ink-3", "--accent", "--up", "--down", "--bad"].map((name) => style.getPropertyValue(name));
          return inks.flatMap((ink) => grounds.map((ground) => against(ink, ground)));
        }"""
    )
    assert min(contrasts) >= 4.5
