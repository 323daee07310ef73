"""A `LiveBackend` without servers: a small world, rows by topic overlap, and known timings. For page tests only."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator

from contracts.catalogue import CatalogueItem
from contracts.errors import StoreUnavailable
from sandbox.action_views import ACTIONS, ActionName, ActionView, Figure, Refused, Step, Verdict
from sandbox.live_views import (
    Explanation,
    NotFound,
    Part,
    Place,
    PlayKind,
    PlayOutcome,
    RecentPlay,
    RowView,
    Stats,
    Strip,
    Tile,
    ViewerSummary,
    ViewerView,
    WhyReason,
)
from sandbox.world import World

NOW_MS = 1_790_000_000_000
ROW_LENGTH = 60
PARTS = (Part("produced", 3.4), Part("fetched", 9.1), Part("computed", 5.2), Part("written", 2.3))
"""Sums to 20 ms."""
FINE = Verdict(viewers=4_812, plays=143_207, events=201_933, took_s=2.1)
WRONG = Verdict(
    4_812, 143_207, 201_933, lost=2, doubled=1, unaccounted=3, problems=("viewer ana-0042: 2 facts missing",)
)


class FakeBackend:
    """Scores a title by what the viewer played: its topics, newest plays counting most."""

    def __init__(self) -> None:
        world = World(7, titles=400, viewers=60, now_ms=NOW_MS)
        self.items: dict[str, CatalogueItem] = {item.item_id: item for item in world.catalogue}
        self.summaries = {
            viewer.viewer: ViewerSummary(viewer.viewer, viewer.name, viewer.taste, viewer.territory)
            for viewer in world.viewers[:60]
        }
        self.plays: dict[str, list[tuple[str, str]]] = defaultdict(list)  # viewer → (item, ending), oldest first
        for event in world.history():
            if event.kind in ("complete", "skip") and event.viewer in self.summaries and event.item_id:
                self.plays[event.viewer].append((event.item_id, event.kind))
        self.numbers = itertools.count(1)
        self.rows = {viewer: self.compute(viewer) for viewer in self.summaries}
        self.nightly = dict(self.rows)
        self.watchers: dict[str, list[asyncio.Queue[RowView]]] = defaultdict(list)
        self.away = False
        self.sent: list[tuple[str, str, PlayKind]] = []
        self.places: list[Place | None] = []
        self.trials = {name: ActionView(name) for name in ACTIONS}

    def tile(self, item_id: str, source: str = "", score: float = 0.0) -> Tile:
        item = self.items[item_id]
        return Tile(item_id, item.title, item.topics, item.creators, item.duration_ms, source, score)

    def parts_of(self, viewer: str, item_id: str) -> list[tuple[str, float]]:
        """Each play's contribution to the item's score."""
        topics = set(self.items[item_id].topics)
        newest = list(enumerate(reversed(self.plays[viewer][-12:])))
        shares = [
            (
                played,
                (0.4 if ending == "complete" else -0.3) * 0.82**rank * len(topics & set(self.items[played].topics)),
            )
            for rank, (played, ending) in newest
        ]
        return [(played, share) for played, share in shares if share]

    def compute(self, viewer: str) -> RowView:
        seen = {item for item, _ in self.plays[viewer]}
        scores = {
            item: sum(share for _, share in self.parts_of(viewer, item)) for item in self.items if item not in seen
        }
        best = sorted(scores, key=lambda item: (-scores[item], item))[:ROW_LENGTH]
        number = next(self.numbers)
        tiles = tuple(self.tile(item, "als" if scores[item] else "popular", scores[item]) for item in best)
        below = self.below(viewer, seen | {tile.item_id for tile in tiles[:12]}, f"row-{number}")
        return RowView(viewer, f"row-{number}", "2026-09-21T0300", 4, NOW_MS + number, tiles, below=below)

    def below(self, viewer: str, out: set[str], row_id: str) -> tuple[Strip, ...]:
        """What has most topics in common with the newest title that was watched to its end."""
        about = next((item for item, ending in reversed(self.plays[viewer]) if ending == "complete"), None)
        if about is None:
            return ()
        topics = set(self.items[about].topics)
        near = sorted(
            (item for item in self.items if item not in out),
            key=lambda i: (-len(topics & set(self.items[i].topics)), i),
        )
        heading = f"Because you watched {self.items[about].title}"
        tiles = tuple(self.tile(item) for item in near[:20])
        return (Strip("because", heading, self.tile(about), tiles, f"{row_id}-because"),)

    async def search_viewers(self, q: str) -> list[ViewerSummary]:
        wanted = q.casefold()
        return [s for s in self.summaries.values() if wanted in f"{s.name} {s.taste} {s.viewer}".casefold()][:24]

    def recent(self, viewer: str) -> tuple[RecentPlay, ...]:
        return tuple(RecentPlay(self.tile(item), ending, NOW_MS) for item, ending in self.plays[viewer][:-9:-1])

    async def viewer_view(self, viewer: str) -> ViewerView:
        self.check(viewer)
        return ViewerView(self.summaries[viewer], self.rows[viewer], self.nightly[viewer], self.recent(viewer))

    def check(self, viewer: str, item_id: str | None = None) -> None:
        if self.away:
            raise StoreUnavailable("the store does not answer")
        if viewer not in self.summaries:
            raise NotFound(f"no viewer {viewer}")
        if item_id is not None and item_id not in self.items:
            raise NotFound(f"no title {item_id} in the catalogue")

    async def play(self, viewer: str, item_id: str, kind: PlayKind, place: Place | None = None) -> PlayOutcome:
        self.check(viewer, item_id)
        self.sent.append((viewer, item_id, kind))
        self.places.append(place)
        if kind == "private":
            return PlayOutcome(kind, item_id, None, (), None, message="A private play: counted, and then forgotten.")
        self.plays[viewer].append((item_id, "complete" if kind == "play" else "skip"))
        row = self.rows[viewer] = self.compute(viewer)
        for queue in self.watchers[viewer]:
            queue.put_nowait(row)
        total = sum(part.ms for part in PARTS)
        return PlayOutcome(kind, item_id, total, PARTS, row, self.recent(viewer))

    async def explain(self, viewer: str, item_id: str) -> Explanation:
        self.check(viewer, item_id)
        order = [tile.item_id for tile in self.rows[viewer].tiles]
        position = order.index(item_id) + 1 if item_id in order else None
        parts = sorted(self.parts_of(viewer, item_id), key=lambda part: -abs(part[1]))
        reasons = tuple(WhyReason(self.tile(played), share) for played, share in parts)
        return Explanation(self.tile(item_id, "als", sum(share for _, share in parts)), position, reasons)

    async def stats(self) -> Stats:
        n = next(self.numbers)
        wave = 6 * ((n * 7919) % 13) / 13
        totals = {"applied": 181_204 + n * 50, "noop": 312, "private": 5_407, "dead": 3, "absent": 0}
        return Stats(
            52 + wave, 14 + wave / 3, 29 + wave, 41 + wave * 2, int(wave), 0, totals,
            "2026-09-21T0300", 4, "Kafka 4.1", "Valkey 9.1", len(self.summaries),
        )  # fmt: skip

    def actions(self) -> tuple[ActionView, ...]:
        return tuple(self.trials.values())

    async def press(self, action: ActionName) -> ActionView:
        """Under way until `finish`."""
        before = self.trials[action]
        if before.state == "running":
            raise Refused(f"{action} is under way already")
        steps = (Step(0.1, f"{action} has begun."),)
        self.trials[action] = ActionView(action, "running", before.number + 1, steps, curve=((0.0, 0), (0.2, 900)))
        return self.trials[action]

    def finish(self, action: ActionName, verdict: Verdict | None, message: str = "") -> None:
        """Tell the verdict."""
        view = self.trials[action]
        self.trials[action] = ActionView(
            action,
            "passed" if verdict is not None and verdict.ok else "failed",
            view.number,
            (*view.steps, Step(4.2, "All 201,933 records of the log are finished.")),
            (Figure("most records behind", "4,310"), Figure("caught up after", "3.9 s")),
            (*view.curve, (2.0, 4_310), (3.9, 0)),
            message or (verdict.sentence() if verdict else ""),
            verdict,
        )

    async def watch_row(self, viewer: str) -> AsyncIterator[RowView]:
        queue: asyncio.Queue[RowView] = asyncio.Queue()
        self.watchers[viewer].append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self.watchers[viewer].remove(queue)
