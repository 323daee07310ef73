"""The live page's backend over the real thing: Kafka in front of the updater, the store behind it, the updater's own numbers.

It owns no connection. The store, how to send an event, how to ask the updater and what was the row last night are given to
it, so that a test can stand in for any of them. A play is timed on this machine's wall clock, which sandbox, broker and
updater share:

    event time → acknowledged by Kafka → fetched by the updater → the viewer's state read → row computed and written
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import httpx

from contracts.codec import Codec
from contracts.events import Kind, PlaybackEvent
from contracts.row_columns import RowColumns, row_of
from contracts.rows import Entry
from contracts.rules import CREATOR, TOPIC
from homepage.catalogue import Catalogue
from homepage.inspect import explain_viewer
from homepage.render import Audience, default_keys, select_entries
from runtime.kafka import AIOKafkaProducer, kafka_errors
from runtime.settings import Settings
from sandbox.action_views import ActionName, ActionView
from sandbox.audience import Viewer
from sandbox.live_actions import Actions
from sandbox.live_below import RowsBelow
from sandbox.live_sources import NightSnapshot, UpdaterProbe, UpdaterUnavailable, parts_of
from sandbox.live_views import (
    Explanation,
    NotFound,
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
from sandbox.replay import send_event
from sandbox.world import World
from updater.metrics import RowTiming
from viewers import packing
from viewers.state import COMPLETED, SKIPPED, STOPPED
from viewers.store import Store, StoredViewer

ROW_DEADLINE_S = 5.0
"""A row that takes longer is told as missing."""
ROW_POLL_S = 0.002
"""How often the store is looked at for the row that answers a play; it bounds the error of a missing timing."""
TIMING_DEADLINE_S = 0.5
"""The updater remembers a row's timing just after the write; it may need a moment more than the row."""
WATCH_PERIOD_S = 0.15
"""How often a viewer whom somebody looks at is read again."""
NEW_TITLES_KNOWN = 2_000
"""Releases of the evening whose names the page knows: some eleven hours of them."""
SEARCH_LIMIT = 30
RECENT_PLAYS = 10
DEFAULT_DURATION_MS = 45 * 60_000
"""Of a title without a length."""
SKIPPED_SHARE = 0.02
ENDINGS = ((COMPLETED, "complete"), (STOPPED, "stop"), (SKIPPED, "skip"))

Send = Callable[[PlaybackEvent], Awaitable[None]]
"""Sends an event to the playback topic and returns once Kafka has acknowledged it; raises `KafkaUnavailable`."""

LastNight = Callable[[str], Awaitable[bytes]]
"""A viewer's encoded row as the nightly rebuild wrote it; empty if they had none."""


class Explained(NamedTuple):
    """Why an entry is in the row. `plays`: (played item or what was told, contribution). `rule`: what a rule did to it, in words."""

    plays: Sequence[tuple[str, float]]
    rule: str = ""


Contributions = Callable[[str], Awaitable[Mapping[str, Explained]]]
"""Viewer → item in the row → why, recomputed from state and generation."""


@dataclass(frozen=True, slots=True)
class Versions:
    """What runs behind the page, e.g. `Kafka 4.1.0` and `Valkey 9.1.2`."""

    kafka: str
    store: str


class StoreBackend:
    """`LiveBackend` over a store, a Kafka producer and an updater's numbers."""

    def __init__(
        self,
        *,
        store: Store,
        codec: Codec,
        send: Send,
        viewers: Sequence[Viewer],
        catalogue: Catalogue,
        last_night: LastNight,
        probe: UpdaterProbe,
        versions: Versions,
        contributions: Contributions | None = None,
        buttons: Actions | None = None,
        below: RowsBelow | None = None,
        now_ms: Callable[[], float] = lambda: time.time() * 1000,
    ) -> None:
        self._store, self._codec, self._send = store, codec, send
        self._viewers = {viewer.viewer: viewer for viewer in viewers}
        self._catalogue, self._last_night, self._probe, self._versions = catalogue, last_night, probe, versions
        self._contributions, self._now_ms = contributions, now_ms
        self._buttons, self._below = buttons, below
        self._newest_stats: Stats | None = None
        self._counted: tuple[float, int] | None = None  # (when, events) of the last look at the updater
        self._rate = 0.0

    async def search_viewers(self, q: str) -> list[ViewerSummary]:
        """Viewers whose name, id or taste contains `q`; anybody for an empty `q`."""
        wanted = q.casefold()
        if not wanted:
            chosen = random.sample(list(self._viewers.values()), min(SEARCH_LIMIT, len(self._viewers)))
            return [_summary(viewer) for viewer in chosen]
        found = [v for v in self._viewers.values() if wanted in f"{v.name} {v.taste} {v.viewer}".casefold()]
        found.sort(key=lambda v: (not v.name.casefold().startswith(wanted), v.name))
        return [_summary(viewer) for viewer in found[:SEARCH_LIMIT]]

    async def viewer_view(self, viewer: str) -> ViewerView:
        """The viewer with the row now, the row last night and what was played."""
        who = self._known(viewer)
        stored, before = await asyncio.gather(self._store.read_viewer(viewer), self._last_night(viewer))
        live = await self._row_view(who, stored.row, stored.state)
        last_night = await self._row_view(who, before)
        return ViewerView(_summary(who), live, last_night, self._recent(stored))

    async def play(self, viewer: str, item_id: str, kind: PlayKind, place: Place | None = None) -> PlayOutcome:
        """Send one event that tells the whole play, wait for the row that has it, and ask the updater where the time went.

        One event, not a start and an end, so that exactly one rewrite answers it.
        """
        who = self._known(viewer)
        duration_ms = self._item_duration(item_id)
        event_ms = int(self._now_ms())
        event = PlaybackEvent(
            event_id=uuid.uuid4().hex,
            kind=Kind.SKIP if kind == "skip" else Kind.COMPLETE,
            viewer=viewer,
            event_time_ms=event_ms,
            private=kind == "private",
            item_id=item_id,
            play_id=uuid.uuid4().hex,
            play_started_at_ms=event_ms,
            watched_ms=int(duration_ms * SKIPPED_SHARE) if kind == "skip" else duration_ms,
            duration_ms=duration_ms,
            row_id=None if place is None or kind == "private" else place.row_id,
            row_position=None if place is None or kind == "private" else place.position,
        )
        await self._send(event)
        acknowledged_ms = self._now_ms()
        if kind == "private":
            took = f"{acknowledged_ms - event_ms:.0f} ms"
            message = f"Private: sent in {took}, counted and then forgotten. Neither state nor row has changed."
            return PlayOutcome(kind, item_id, None, (), None, message=message)
        answered = await self._wait_for_row(viewer, event_ms)
        if answered is None:
            message = f"No new row within {ROW_DEADLINE_S:g} s. The event is safe in Kafka; is the updater running?"
            return PlayOutcome(kind, item_id, None, (), None, message=message)
        row, seen_ms = answered
        timing, stored = await asyncio.gather(self._wait_for_timing(row.row_id), self._store.read_viewer(viewer))
        parts = parts_of(event_ms, acknowledged_ms, timing, seen_ms)
        view = await self._view_of(who, row, stored.state)
        return PlayOutcome(kind, item_id, sum(part.ms for part in parts), parts, view, self._recent(stored))

    async def explain(self, viewer: str, item_id: str) -> Explanation:
        """The entry's plays: all of them if they can be recomputed, else the strongest that the row carries."""
        who = self._known(viewer)
        row, default = await self._home_row(who, await self._store.read_row(viewer))
        shown = [] if row is None else self._shown(who, row)
        position = next((place for place, entry in enumerate(shown, 1) if entry.item_id == item_id), None)
        if position is None:
            self._item_duration(item_id)  # unknown titles are not found
            return Explanation(self._tile(item_id), None, (), "This title is not in the row now.")
        entry = shown[position - 1]
        told = Explained([(reason.item_id, reason.contribution) for reason in entry.reasons])
        if self._contributions is not None and not default:
            told = (await self._contributions(viewer)).get(item_id, told)
        strongest = sorted(told.plays, key=lambda play: -abs(play[1]))
        reasons = tuple(WhyReason(self._tile(played), contribution) for played, contribution in strongest)
        return Explanation(self._tile(item_id, entry), position, reasons, told.rule)

    async def stats(self) -> Stats:
        """The updater's numbers; while it is killed and comes back, what is measured without it."""
        try:
            self._newest_stats = await self._read_stats()
        except UpdaterUnavailable:
            if self._buttons is None or self._newest_stats is None or not self._buttons.running("kill"):
                raise
            return self._newest_stats.without_updater(self._buttons.newest_lag("kill"))
        return self._newest_stats

    async def _read_stats(self) -> Stats:
        """The event rate is what the updater has decided since the last look."""
        told = await self._probe.stats()
        totals = {name: int(told[name]) for name in ("applied", "noop", "private", "dead", "absent")}
        now_s, events = time.monotonic(), sum(totals.values())
        if self._counted is not None and now_s - self._counted[0] > 0.5:  # several pages may look at once
            self._rate = max(0.0, (events - self._counted[1]) / (now_s - self._counted[0]))
        if self._counted is None or now_s - self._counted[0] > 0.5:
            self._counted = (now_s, events)
        recent = told["freshness_recent_s"]
        fresh = {name: recent[name] * 1000 if recent.get("count", 1) else None for name in ("p50", "p95", "p99")}
        return Stats(
            events_per_s=self._rate,
            freshness_p50_ms=fresh["p50"],
            freshness_p95_ms=fresh["p95"],
            freshness_p99_ms=fresh["p99"],
            lag_records=int(told["lag_records"]),
            unaccounted=int(told["unaccounted"]),
            totals=totals,
            generation_id=str(told["generation_id"] or ""),
            activation=int(told["activation"]),
            kafka_version=self._versions.kafka,
            store_version=self._versions.store,
            viewers=len(self._viewers),
        )

    def actions(self) -> tuple[ActionView, ...]:
        """The buttons, if the demo has given any."""
        return () if self._buttons is None else self._buttons.views()

    async def press(self, action: ActionName) -> ActionView:
        """Begin an action."""
        if self._buttons is None:
            raise NotFound("this page has no buttons: it does not own the updater")
        return await self._buttons.press(action)

    async def watch_row(self, viewer: str) -> AsyncIterator[RowView]:
        """The row now, and again whenever the store holds another one."""
        who, last = self._known(viewer), None
        while True:
            data = await self._store.read_row(viewer)
            if data != last:
                last = data
                yield await self._row_view(who, data, await self._store.read_state(viewer))
            await asyncio.sleep(WATCH_PERIOD_S)

    async def _wait_for_row(self, viewer: str, event_ms: int) -> tuple[RowColumns, float] | None:
        """The first row that has an event as new as `event_ms` folded in, and when it was seen."""
        deadline = time.monotonic() + ROW_DEADLINE_S
        last = b""
        while time.monotonic() < deadline:
            data = await self._store.read_row(viewer)
            if data and data != last:
                last = data
                row = self._codec.decode_columns(data)
                if row.event_time_ms is not None and row.event_time_ms >= event_ms:
                    return row, self._now_ms()
            await asyncio.sleep(ROW_POLL_S)
        return None

    async def _wait_for_timing(self, row_id: str) -> RowTiming | None:
        deadline = time.monotonic() + TIMING_DEADLINE_S
        while time.monotonic() < deadline:
            try:
                if (timing := await self._probe.timing(row_id)) is not None:
                    return timing
            except UpdaterUnavailable:
                return None  # several updaters, or none that tells: the whole is still known
            await asyncio.sleep(ROW_POLL_S)
        return None

    async def _row_view(self, who: Viewer, data: bytes, state: bytes = b"") -> RowView:
        """`state`: the viewer's, where the rows below are wanted too."""
        row, default = await self._home_row(who, data)
        if row is None:
            return RowView(who.viewer, "", "", 0, 0, (), default=True)
        return await self._view_of(who, row, b"" if default else state, default=default)

    async def _home_row(self, who: Viewer, data: bytes) -> tuple[RowColumns | None, bool]:
        """The viewer's own row, else the most fitting default row (and True), else None."""
        if data:
            return self._codec.decode_columns(data), False
        rows = await self._store.read_default_rows()
        for key in default_keys(Audience(who.territory, who.maturity)):
            if rows.get(key):
                return self._codec.decode_columns(rows[key]), True
        return None, True

    async def _view_of(self, who: Viewer, row: RowColumns, state: bytes, *, default: bool = False) -> RowView:
        tiles = tuple(self._tile(entry.item_id, entry) for entry in self._shown(who, row))
        audience = Audience(who.territory, who.maturity)
        below: tuple[Strip, ...] = ()
        if self._below is not None and state:
            below = await self._below.strips(row, state, audience, now_ms=int(self._now_ms()), tile=self._tile)
        return RowView(
            who.viewer, row.row_id, row.generation_id, row.activation, row.computed_at_ms, tiles, default, below
        )

    def _shown(self, who: Viewer, row: RowColumns) -> list[Entry]:
        """Entries that the home page would show now, by its own rules."""
        audience = Audience(who.territory, who.maturity)
        now_ms = int(self._now_ms())
        selection = select_entries(row, self._catalogue, audience, now_ms=now_ms, limit=len(row.items))
        entries = row_of(row).entries
        return [entries[place] for place in selection.places]

    def _tile(self, item_id: str, entry: Entry | None = None) -> Tile:
        item = self._catalogue.get(item_id)
        source, score = ("", 0.0) if entry is None else (entry.source, entry.score)
        if item is None:
            return Tile(item_id, _in_words(item_id), (), (), None, source, score)
        return Tile(
            item_id, item.title, item.topics, item.creators, item.duration_ms, source, score, item.available_until_ms
        )

    def _recent(self, stored: StoredViewer) -> tuple[RecentPlay, ...]:
        return tuple(
            RecentPlay(
                self._tile(play.item_id),
                next((name for flag, name in ENDINGS if play.flags & flag), "start"),
                play.started_at_ms,
            )
            for play in packing.unpack(stored.state).plays[:RECENT_PLAYS]
        )

    def _known(self, viewer: str) -> Viewer:
        try:
            return self._viewers[viewer]
        except KeyError:
            raise NotFound(f"no viewer {viewer}") from None

    def _item_duration(self, item_id: str) -> int:
        item = self._catalogue.get(item_id)
        if item is None:
            raise NotFound(f"no title {item_id} in the catalogue")
        return item.duration_ms or DEFAULT_DURATION_MS


def _summary(viewer: Viewer) -> ViewerSummary:
    return ViewerSummary(viewer.viewer, viewer.name, viewer.taste, viewer.territory)


def open_backend(
    *,
    settings: Settings,
    store: Store,
    codec: Codec,
    producer: AIOKafkaProducer,
    world: World,
    client: httpx.AsyncClient,
    updater_url: str,
    on_sent: Callable[[int], None],
    versions: tuple[str, str],
    last_night: LastNight | None = None,
    buttons: Actions | None = None,
) -> StoreBackend:
    """The backend over what the demo has open. `versions`: of Kafka and of the store. `on_sent` is told of every event sent.

    `last_night`: by default what the rows are when the first viewer is looked at; a `NightSnapshot` captured right after
    the nightly job is exact.
    """

    async def send(event: PlaybackEvent) -> None:
        acknowledgement = await send_event(producer, codec, settings, event)
        with kafka_errors("sending a play", settings):
            await acknowledgement
        on_sent(1)

    async def contributions(viewer: str) -> Mapping[str, Explained]:
        told = (await explain_viewer(settings, store, codec, viewer)).data
        return {
            entry["item_id"]: Explained(
                [(play["item_id"], play["contribution"]) for play in entry["plays"]],
                f"{entry['rule']}." if entry["rule"] else "",
            )
            for entry in told["entries"]
        }

    titles = [*world.catalogue, *(item for _, item in itertools.islice(world.new_titles(), NEW_TITLES_KNOWN))]
    kafka, kept = (
        version if version[:1].isalpha() else f"{name} {version}"
        for name, version in zip(("Kafka", "Valkey"), versions, strict=True)
    )
    # Activation 0: the world is not a generation, so a title that it does not know is shown rather than dropped.
    catalogue = Catalogue({item.item_id: item for item in titles})
    return StoreBackend(
        store=store,
        codec=codec,
        send=send,
        viewers=world.viewers,
        catalogue=catalogue,
        last_night=last_night or NightSnapshot(store),
        probe=UpdaterProbe(client, updater_url),
        versions=Versions(kafka, kept),
        contributions=contributions,
        buttons=buttons,
        below=RowsBelow(catalogue, settings.generations_path),
    )


def _in_words(item_id: str) -> str:
    """What stands for a title that the catalogue lacks, or for a preference among the reasons."""
    for prefix in (TOPIC, CREATOR):
        if item_id.startswith(prefix):
            return f"You said: {item_id.removeprefix(prefix).replace('_', ' ')}"
    return item_id
