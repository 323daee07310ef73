"""`nearline show viewer` and `nearline explain`: what is stored of a viewer, and where each entry of the row comes from.

`explain` does not trust the stored row: it folds the stored state into the named generation again and compares.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from contracts.codec import Codec
from contracts.errors import GenerationError, UserError
from contracts.rows import ENTRIES_SHOWN, HomeRow
from contracts.rules import CREATOR, Rules
from embeddings.files import load_generation
from embeddings.generation import F64
from homepage.catalogue import LiveCatalogue
from homepage.further import choose_rows
from homepage.render import Audience, iso_ms, select_entries
from ranking.further import FURTHER_ROWS
from ranking.rows import Ranked
from runtime.settings import Settings
from trends.follow import with_snapshot
from viewers.packing import unpack
from viewers.rewriter import NO_TRENDS, Rewriter
from viewers.signals import item_signals, play_strength, preferences
from viewers.state import COMPLETED, SKIPPED, STOPPED, Limits, ViewerState
from viewers.store import Store, StoredViewer

LOST = "its trends snapshot {} is not kept any more (an hour after it was last in use), so trends here are the generation's own; "
_FLAGS = {COMPLETED: "completed", STOPPED: "stopped", SKIPPED: "skipped"}


@dataclass(frozen=True, slots=True)
class View:
    """What a verb prints: a title, some facts, some tables. As JSON: `data`."""

    title: str
    data: dict[str, Any]
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]]


async def show_viewer(settings: Settings, store: Store, codec: Codec, viewer: str) -> View:
    """Plays, registers, row and freshness of a viewer. Errors: `UserError` if nothing is stored."""
    stored, state, catalogue = await _read(settings, store, viewer)
    row = codec.decode_row(stored.row) if stored.row else None
    plays: list[dict[str, Any]] = [
        {
            "item_id": play.item_id,
            "title": _title(catalogue, play.item_id),
            "started_at": iso_ms(play.started_at_ms),
            "watched_share": round(play.share / 255, 2),
            "ended": [name for flag, name in _FLAGS.items() if play.flags & flag],
            "strength": play_strength(play.share, play.flags),
        }
        for play in state.plays
    ]
    registers = [
        {"kind": r.kind.name.lower(), "subject": r.subject, "value": r.value, "at": iso_ms(r.event_time_ms)}
        for r in state.registers
    ]
    data: dict[str, Any] = {
        "viewer": viewer,
        "activation": stored.activation,
        "plays": plays,
        "registers": registers,
        "seen_beyond_plays": len(state.seen),
        "erased_through": None if state.erased_through_s < 0 else iso_ms(state.erased_through_s * 1000),
        "row": None if row is None else _row_facts(row, catalogue),
        "rows": _rows_below(stored, codec, catalogue),
        "bytes": {"state": len(stored.state), "vector": len(stored.vector), "row": len(stored.row)},
    }
    entries = [] if row is None else data["row"]["entries"]
    return View(
        f"{viewer}: {len(plays)} plays, {'no row' if row is None else row.generation_id}",
        data,
        (
            (
                "plays, newest first",
                ("started", "title", "watched", "ended", "strength"),
                [
                    (
                        p["started_at"],
                        p["title"],
                        f"{p['watched_share']:.0%}",
                        " ".join(p["ended"]),
                        f"{p['strength']:+.2f}",
                    )
                    for p in plays
                ],
            ),
            (
                "row",
                ("#", "title", "score", "source"),
                [(str(i), e["title"], f"{e['score']:.3f}", e["source"]) for i, e in enumerate(entries)],
            ),
            *_tables_of(data["rows"]),
        ),
    )


async def explain_viewer(settings: Settings, store: Store, codec: Codec, viewer: str) -> View:
    """Recompute the row; for every entry, every play's contribution. Errors: `UserError`, `GenerationError`."""
    stored, state, catalogue = await _read(settings, store, viewer)
    row, rewriter, ranked, contributions, played = await _recompute(settings, store, codec, viewer, stored, state)
    generation = rewriter.generation
    assert generation is not None  # _recompute ranked with it
    again = rewriter.rewrite(state, computed_at_ms=row.computed_at_ms, event_time_ms=row.event_time_ms)
    entries = []
    for i, entry in enumerate(ranked.entries):
        order = np.argsort(-np.abs(contributions[i]), kind="stable")
        parts = [
            {"item_id": played[j], "title": _title(catalogue, played[j]), "contribution": float(contributions[i, j])}
            for j in order
            if contributions[i, j]
        ]
        others = entry.score - float(contributions[i].sum())
        entries.append(
            {
                "position": i,
                "item_id": entry.item_id,
                "title": _title(catalogue, entry.item_id),
                "score": entry.score,
                "source": entry.source,
                "als": float(contributions[i].sum()),
                "others": others,
                "follows": [
                    {"item_id": r.item_id, "title": _title(catalogue, r.item_id), "contribution": r.contribution}
                    for r in entry.reasons
                    if entry.source in ("cowatch", "sequence")
                ],
                "plays": parts,
                "rule": _rule(generation.rules, entry.source, ranked.held_by[i]),
            }
        )
    below = _rows_below(stored, codec, catalogue)
    data = {
        "viewer": viewer,
        "generation_id": row.generation_id,
        "activation": row.activation,
        "trends_snapshot": _snapshot_name(row),
        "trends_snapshot_kept": rewriter.trends_snapshot == row.trends_snapshot,
        "computed_at": iso_ms(row.computed_at_ms),
        "stored_row_is_recomputed_row": again.row_bytes == stored.row,
        "weight_of_own_plays": ranked.weight,
        "rules": asdict(generation.rules),
        "preferences": [{"subject": subject, "value": value} for subject, value in preferences(state)],
        "signals": [
            {
                "item_id": s.item_id,
                "title": _title(catalogue, s.item_id),
                "strength": s.strength,
                "rank": s.rank,
                "known": s.item_id in generation.index,
            }
            for s in item_signals(state)
        ],
        "entries": entries,
        "rows": below,
    }
    rows = [
        (
            str(e["position"]),
            str(e["title"]),
            f"{e['score']:.3f}",
            str(e["source"]),
            f"{e['als']:.3f}",
            str(e["rule"]),
            ", ".join(f"{p['title']} {p['contribution']:+.3f}" for p in (e["follows"] or e["plays"])[:3]),  # type: ignore[index]
        )
        for e in entries
    ]
    lost = "" if rewriter.trends_snapshot == row.trends_snapshot else LOST.format(row.trends_snapshot)
    return View(
        f"{viewer}: {row.generation_id}; {lost}taste counts {ranked.weight:.2f} times, other sources the rest of the score",
        data,
        (
            ("entries", ("#", "title", "score", "source", "of it taste", "rule", "strongest plays"), rows),
            *_tables_of(below),
        ),
    )


def _rows_below(stored: StoredViewer, codec: Codec, catalogue: LiveCatalogue) -> list[dict[str, Any]]:
    """Every row that a page could ask for below the first, as it would be shown now to an adult anywhere."""
    if not stored.row:
        return []
    first, audience, now_ms = codec.decode_columns(stored.row), Audience(), time.time_ns() // 1_000_000
    shown = select_entries(first, catalogue, audience, now_ms=now_ms, limit=ENTRIES_SHOWN)
    chosen = choose_rows(
        tuple(FURTHER_ROWS), stored.state, first, shown, catalogue, audience, now_ms=now_ms, limit=ENTRIES_SHOWN
    )
    return [
        {
            "row": one.name,
            "heading": one.heading,
            "about": None if one.about is None else one.about.item_id,
            "score": FURTHER_ROWS[one.name].score,
            "entries": [
                {"item_id": item, "title": _title(catalogue, item), "score": one.row.scores[place]}
                for place, item in ((place, one.row.items[place]) for place in one.selection.places)
            ],
        }
        for one in chosen
    ]


def _tables_of(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Sequence[str], Sequence[Sequence[str]]]]:
    return [
        (
            f"{one['heading']} (score: {one['score']})",
            ("#", "title", "score"),
            [(str(place), entry["title"], f"{entry['score']:.4f}") for place, entry in enumerate(one["entries"])],
        )
        for one in rows
    ]


def _rule(rules: Rules, source: str, held_by: str) -> str:
    """What a rule did to an entry, in words; nothing if none did anything."""
    if source == "again":
        return f"watched before, comes back: {rules.repeats:.0%} of the plays repeat"
    if source == "explore":
        return f"has few plays: {rules.exploration:.0%} of the places are for finding out"
    if held_by:
        limit = rules.per_creator if held_by.startswith(CREATOR) else rules.per_topic
        return f"held back: at most {limit} of {held_by} among any {rules.window}"
    return ""


async def _recompute(
    settings: Settings, store: Store, codec: Codec, viewer: str, stored: StoredViewer, state: ViewerState
) -> tuple[HomeRow, Rewriter, Ranked, F64, list[str]]:
    """The stored row, and the same ranked again: contributions (m entries, n plays), and which items the plays are of."""
    if not stored.row:
        raise UserError(
            f"{viewer} has no row of their own: nothing is known of them yet, or no generation is active; the default row serves"
        )
    row = codec.decode_row(stored.row)
    generation = await asyncio.to_thread(load_generation, settings.generations_path, row.generation_id)
    own = Rewriter(generation, stored.activation, codec.encode_row, Limits(**settings.state.model_dump()))
    rewriter = await with_snapshot(store.trends, own, row.trends_snapshot) or own
    (ranked,) = rewriter.rank([state], computed_at_ms=row.computed_at_ms, event_time_ms=row.event_time_ms)
    if ranked is None:
        raise GenerationError(f"{viewer}: a row is stored but the state holds nothing; run: nearline nightly")
    ranked_by = rewriter.generation or generation  # with the items that came since
    contributions = ranked.folded.contributions(ranked_by.item_factors[ranked.rows]) * ranked.weight
    return row, rewriter, ranked, contributions, [ranked_by.fold_ids[i] for i in ranked.folded.rows]


def render(view: View) -> None:
    """Print a view on standard output."""
    console = Console()
    console.print(f"[bold]{view.title}[/bold]")
    for title, columns, rows in view.tables:
        table = Table(*columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)


async def _read(settings: Settings, store: Store, viewer: str) -> tuple[StoredViewer, ViewerState, LiveCatalogue]:
    stored = await store.read_viewer(viewer)
    if not stored.token:
        raise UserError(f"nothing is stored of viewer {viewer}; the default row serves them")
    catalogue = LiveCatalogue(settings.generations_path)
    await catalogue.refresh()
    return stored, unpack(stored.state), catalogue


def _snapshot_name(row: HomeRow) -> str | None:
    """None: the row was made from the generation's own trends."""
    return None if row.trends_snapshot == NO_TRENDS else row.trends_snapshot


def _title(catalogue: LiveCatalogue, item_id: str) -> str:
    item = catalogue.get(item_id)
    return item.title if item else item_id


def _row_facts(row: HomeRow, catalogue: LiveCatalogue) -> dict[str, Any]:
    return {
        "row_id": row.row_id,
        "generation_id": row.generation_id,
        "activation": row.activation,
        "trends_snapshot": _snapshot_name(row),
        "computed_at": iso_ms(row.computed_at_ms),
        "freshness_ms": None if row.event_time_ms is None else row.computed_at_ms - row.event_time_ms,
        "entries": [
            {
                "item_id": e.item_id,
                "title": _title(catalogue, e.item_id),
                "score": e.score,
                "source": e.source,
                "reasons": [
                    {"item_id": r.item_id, "title": _title(catalogue, r.item_id), "contribution": r.contribution}
                    for r in e.reasons
                ],
            }
            for e in row.entries
        ],
    }
