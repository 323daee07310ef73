"""The nightly report: figures with known answers, a page that needs nothing from elsewhere, and nobody on it who was erased."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from batch.evaluate import Evaluation, Holdout, make_generation
from batch.lake import Lake
from batch.report import NightlyReport
from batch.review import plots
from batch.review.audience import read_audience
from batch.review.figures import LIFT, LIVE, NIGHTLY, align, cosine, popularity_bands
from batch.review.files import KEPT, find_page, look_at_share, read_content, scrub_reports, write_review
from batch.review.make import Judged, Review, gate_figures, make_review
from batch.review.page import render_page
from contracts.codec import Codec
from contracts.errors import UserError
from contracts.events import Kind, PlaybackEvent
from contracts.manifest import Decision
from contracts.shares import Share
from embeddings.generation import FoldInParameters, Generation
from tests.unit.test_interactions import put, say
from tests.unit.test_outcome import World as Told
from tests.worlds import T0, play_event
from viewers.state import EMPTY, Limits, merge, state_of

CODEC, LIMITS = Codec.load(), Limits()
ITEMS, VIEWERS = 40, 12
NEW_MS = T0 + 3_600_000
"""From here on the generation knows nothing."""


def two_tastes(name: str, angle: float = 0.0) -> Generation:
    """Even titles point one way, odd ones the other; `angle`: the whole space turned."""
    Y = np.zeros((ITEMS, 2), dtype=np.float32)
    Y[np.arange(ITEMS), np.arange(ITEMS) % 2] = np.linspace(1, 0.9, ITEMS)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], dtype=np.float32)
    ids = [f"tt{i:07d}" for i in range(ITEMS)]
    return make_generation(name, ids, np.ascontiguousarray(Y @ turn), np.ones(ITEMS, np.float32), FoldInParameters())


def history() -> list[PlaybackEvent]:
    """Everybody watched three odd titles; then, hour by hour, even ones: whoever follows that has them right."""
    events = []
    for viewer in range(VIEWERS):
        events += [play_event(f"v{viewer:02d}", 1 + 2 * n, 60 * n + viewer) for n in range(3)]
        events += [play_event(f"v{viewer:02d}", 2 * n, 3600 * (1 + n) + viewer) for n in range(8)]
    return events


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return put(Lake(tmp_path / "lake"), history())


def review_of(lake: Lake) -> Review:
    judged = Judged(in_force=two_tastes("old"), in_force_until_ms=NEW_MS - 1)
    return make_review(lake, CODEC, LIMITS, judged, two_tastes("new", angle=1.0), NEW_MS + 9 * 3_600_000)


def test_a_state_of_any_moment_is_what_the_events_before_it_make(lake: Lake) -> None:
    put(lake, [say(Kind.HIDE, "v00", 4, 5000)], "1")
    (member,) = [one for one in read_audience(lake, NEW_MS, 100) if one.viewer == "v00"]
    at_ms = T0 + 2 * 3_600_000
    mine = [e for e in [*history(), say(Kind.HIDE, "v00", 4, 5000)] if e.viewer == "v00"]
    before = [state_of(e, timestamp_ms=e.event_time_ms) for e in mine if e.event_time_ms < at_ms]
    assert member.state_before(at_ms, LIMITS) == merge(before, LIMITS)
    assert member.state_before(T0, LIMITS) == EMPTY
    asks = member.asks_since(0, NEW_MS)
    assert [ask.item_id for ask in asks] == [f"tt{2 * n:07d}" for n in range(8)]
    assert [ask.plays_so_far for ask in asks] == [3, 4, 5, 6, 7, 8, 9, 10]


def test_rows_that_follow_the_plays_are_ahead_of_last_nights_by_what_they_follow(lake: Lake) -> None:
    review = review_of(lake)
    assert (review.reference, review.asks, review.viewers) == ("old", 8 * VIEWERS, VIEWERS)
    everyone = review.segments["all"]
    assert everyone[LIVE]["hr@10"][0] > everyone[NIGHTLY]["hr@10"][0]
    value, low, high = everyone[LIFT]["hr@10"]
    assert value == pytest.approx(everyone[LIVE]["hr@10"][0] - everyone[NIGHTLY]["hr@10"][0])
    assert 0 < low <= value <= high
    assert set(review.segments) == {"all", "1-4", "5-19"}  # nobody was asked before their first title
    assert list(review.hours) == ["0-1", "1-3", "3-6", "6-12"]
    first = review.hours["0-1"]  # nothing was watched since: the rows are the same
    assert first[LIVE] == first[NIGHTLY]


def test_drift_is_none_where_only_the_space_was_turned(lake: Lake) -> None:
    drift = review_of(lake).drift
    assert drift is not None and drift.refit is not None
    assert drift.refit[0] == pytest.approx(1, abs=1e-5)  # the same factors, seen from elsewhere
    assert drift.moved[0] < 0.9  # another taste by now
    assert drift.shared_live[0] == 10 > drift.shared_nightly[0]


def test_spaces_are_laid_over_each_other() -> None:
    Y = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((4, 4)))
    assert align(Y, (Y @ turn).astype(np.float32)) == pytest.approx(turn, abs=1e-5)
    assert cosine(Y[0], Y[0]) == pytest.approx(1) and cosine(Y[0], 0 * Y[0]) == 0


def test_bands_of_popularity_hold_a_hundredth_a_tenth_and_the_rest() -> None:
    popularity = np.arange(200, dtype=np.float32)
    Y = np.ones((200, 2), np.float32)
    generation = make_generation("g", [f"i{n}" for n in range(200)], Y, popularity, FoldInParameters())
    assert np.bincount(popularity_bands(generation)).tolist() == [2, 18, 180]
    assert popularity_bands(generation)[199] == 0


def test_a_gate_that_compared_is_told_by_segment() -> None:
    each = {"candidate": {name: [0.0, 1.0, 1.0] for name in ("hr@10", "ndcg@10", "hr@50", "auc")}}
    judged = Evaluation({}, 3, Holdout(T0, 9, advisory=False), Decision("passed", ""), (), each, (1, 7, 30))
    figures = gate_figures(judged)
    assert list(figures) == ["all", "1-4", "5-19", "20+"]
    assert figures["all"]["candidate"]["hr@10"][0] == pytest.approx(2 / 3)
    assert figures["1-4"]["candidate"]["hr@10"] == (0, 0, 0)
    assert gate_figures(None) == {}


def test_without_anything_to_ask_there_is_still_a_page(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    review = make_review(lake, CODEC, LIMITS, Judged(), two_tastes("first"), NEW_MS)
    assert (review.asks, review.drift, review.shown) == (0, None, ())
    page = write_review(lake, NightlyReport("unchecked", "too few", generation_id="first"), review, NEW_MS)
    assert "nothing to ask" in page.read_text()


def test_a_night_during_a_share_tells_what_has_come_of_it(tmp_path: Path, lake: Lake) -> None:
    told = Told(tmp_path / "told")
    for viewer, generation_id in (("ana", "g2"), ("ben", "g1"), ("cid", "g1"), ("dan", "g1")):
        told.show(viewer, "r1", generation_id)
    told.play("ana", "r1")
    told.play("ben", "r1")
    told.compare()
    share = Share("g2", 5)
    report = NightlyReport("passed", "", generation_id="new")
    page = write_review(lake, report, review_of(lake), NEW_MS, look_at_share(told.lake, share))
    text = " ".join(_text(page).split())
    assert "5 % of the viewers see g2 . The others’ rows are of g1." in text
    assert "candidate 1 1 1 1.000 (1.000 to 1.000)" in text and "others 3 3 1 0.333" in text
    assert "difference +0.667" in text and "ana" not in page.read_text()
    assert read_content(page)["share"]["outcome"]["arms"]["others"]["plays"] == 1

    nothing = write_review(lake, report, review_of(lake), NEW_MS, look_at_share(lake, share))
    assert "Nothing can be said yet: the lake has no row of g2" in " ".join(_text(nothing).split())
    alone = write_review(lake, report, review_of(lake), NEW_MS)
    assert "The share" not in _text(alone)
    content = read_content(alone)
    del content["share"]  # as older programs wrote it
    assert render_page(content) == alone.read_text()


def _text(page: Path) -> str:
    reader = Reader()
    reader.feed(page.read_text())
    return " ".join(reader.text)


class Reader(HTMLParser):
    """What a browser would fetch, and whether every tag is closed."""

    VOID = frozenset({"meta", "path", "circle", "rect", "polygon", "polyline", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [
            f"{tag} {name}"
            for name, _ in attrs
            if name in ("src", "href", "srcset", "data", "style") or name[:2] == "on"
        ]
        if tag in ("script", "link", "iframe", "object", "img", "form"):
            self.fetched.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in self.VOID or self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_whole_by_itself_and_escapes_what_it_is_told(lake: Lake) -> None:
    report = NightlyReport("held_back", "<b>worse</b> & slower", warnings=("look <here>",))
    page = write_review(lake, report, review_of(lake), NEW_MS)
    reader = Reader()
    reader.feed(page.read_text())
    assert (reader.open, reader.fetched) == ([], [])
    assert "url(" not in page.read_text() and "http" not in page.read_text().replace("http-equiv", "")
    text = " ".join(reader.text)
    for told in (
        "Held back",
        "<b>worse</b> & slower",
        "look <here>",
        "Lift by hours",
        "Drift",
        "Coverage",
        "Five viewers",
    ):
        assert told in text
    assert page.read_text().count("<svg") == 5 and page.read_text().count("<article>") == 5
    assert "NaN" not in page.read_text() and "nan" not in " ".join(text.split()).split(" ")


def test_no_viewers_id_is_in_a_report(lake: Lake) -> None:
    page = write_review(lake, NightlyReport("passed", "", generation_id="new"), review_of(lake), NEW_MS)
    whole = page.read_text() + page.with_suffix(".json").read_text()
    assert not any(f"v{viewer:02d}" in whole for viewer in range(VIEWERS))
    assert read_content(page)["review"]["shown"][0]["digest"] in {
        lake.ledger.digest(f"v{n:02d}") for n in range(VIEWERS)
    }


def test_who_is_erased_leaves_every_report_and_who_came_back_before_it_stays(lake: Lake) -> None:
    digests = {lake.ledger.digest(f"v{n:02d}"): f"v{n:02d}" for n in range(VIEWERS)}
    page = write_review(lake, NightlyReport("passed", "", generation_id="new"), review_of(lake), NEW_MS)
    shown = [one["digest"] for one in read_content(page)["review"]["shown"]]
    lake.ledger.append({digests[shown[0]]: NEW_MS // 1000, "nobody": 1})
    assert scrub_reports(lake) == 1
    assert [one["digest"] for one in read_content(page)["review"]["shown"]] == shown[1:]
    assert page.read_text().count("<article>") == 4 and shown[0][:8] not in page.read_text()
    assert scrub_reports(lake) == 0
    again = write_review(lake, NightlyReport("passed", "", generation_id="later"), review_of(lake), NEW_MS + 1)
    there = len(read_content(again)["review"]["shown"])
    assert scrub_reports(lake) == 0 and len(read_content(again)["review"]["shown"]) == there


def test_the_newest_report_is_found_and_the_oldest_go(lake: Lake) -> None:
    review = review_of(lake)
    with pytest.raises(UserError, match="no report yet"):
        find_page(lake.path)
    for night in range(KEPT + 2):
        write_review(lake, NightlyReport("passed", "", generation_id=f"g{night}"), review, NEW_MS + night)
    assert find_page(lake.path).name == f"g{KEPT + 1}.html"
    assert find_page(lake.path, "g2").exists()
    with pytest.raises(UserError, match="no report of g1"):
        find_page(lake.path, "g1")


def test_a_plot_holds_every_interval_whatever_its_sign() -> None:
    drawn = plots.intervals([("a", 0, (-0.5, -1.0, 0.0)), ("b", 1, (0.5, 0.0, 1.0))], "both")
    places = [float(cx) for cx in re.findall(r'cx="([\d.]+)"', drawn)]
    assert plots.LEFT < places[0] < places[1] < plots.WIDTH - plots.RIGHT
    one = plots.lines({"a": [(0.5, 0.4, 0.6)]}, ["0-1"], "one tick")
    assert "polyline" not in one and "whisker" in one
