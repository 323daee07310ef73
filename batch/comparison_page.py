"""A comparison as one HTML file that needs nothing else: for those who judge rows by their titles."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

from batch.comparison import Comparison, Reach, Tile, ViewerComparison
from ranking.overlap import DEPTH

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --new: #1a7f37; --gone: #b35900; }
body { font: 15px/1.4 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2.5rem 0 .25rem; font-size: 1.1rem; border-top: 1px solid var(--line); padding-top: 1rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0 2rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .15rem .5rem .15rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n { width: 2rem; color: #888; text-align: right; } td.c { width: 5rem; white-space: nowrap; }
tr.fold td { border-bottom: 2px dashed var(--line); }
.new { color: var(--new); } .gone { color: var(--gone); } .same, p.plays, small { color: #888; }
"""


def render_page(found: Comparison) -> str:
    """The page, as text to be written as UTF-8. Titles and ids are escaped."""
    made = datetime.fromtimestamp(found.computed_at_ms / 1000, UTC).isoformat(" ", "seconds").removesuffix("+00:00")
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(found.a)} and {escape(found.b)}</title><style>{_STYLE}</style>
<h1>Two generations, {len(found.viewers):,} viewers</h1>
<p><b>A</b> {escape(found.a)}<br><b>B</b> {escape(found.b)}<br>
<small>Computed {made} UTC from what each viewer has watched by then; each generation's own trends. The dashed line: what is seen first,
{DEPTH} places.</small></p>
<table>
<tr><td>Of the first {DEPTH} titles, shown by both</td><td>{found.overlap:.0%}</td></tr>
<tr><td>Rank-biased overlap of the whole rows</td><td>{found.rank_biased_overlap:.3f}</td></tr>
<tr><td>Viewers with the same first title</td><td>{found.same_first:.0%}</td></tr>
<tr><td>Different titles in first {DEPTH} places</td><td>A {found.titles_a:,}, B {found.titles_b:,}</td></tr>
</table>
<div class="pair">
<div><h2>B shows to more viewers</h2>{_reach_table(found.shown_more)}</div>
<div><h2>B shows to fewer viewers</h2>{_reach_table(found.shown_less)}</div>
</div>
{"".join(map(_section, found.viewers))}
</html>
"""


def _reach_table(reached: Sequence[Reach]) -> str:
    if not reached:
        return "<p class=same>none</p>"
    rows = "".join(f"<tr><td>{escape(r.title)}<td class=c>{r.a:,} → {r.b:,}" for r in reached)
    return f"<table>{rows}</table>"


def _section(one: ViewerComparison) -> str:
    plays = "; ".join(map(escape, one.plays)) or "nothing that is kept"
    return f"""
<h2>{escape(one.viewer)}</h2>
<p class="plays">Watched last: {plays}. Shown by both among the first {DEPTH}: {one.overlap:.0%}; rank-biased overlap
{one.rank_biased_overlap:.3f}; {one.new} new, {one.gone} gone, {one.moved} moved.</p>
<div class="pair">{_row("A", one.a, "gone")}{_row("B", one.b, "new")}</div>
"""


def _row(name: str, tiles: Sequence[Tile], alone: str) -> str:
    rows = "".join(
        f"<tr{' class=fold' if tile.place == DEPTH else ''}><td class=n>{tile.place}"
        f"<td>{escape(tile.title)} <small>{escape(tile.source)}</small><td class=c>{_change(tile, alone)}"
        for tile in tiles
    )
    return f"<table><tr><th><th>{name}<th>{rows}</table>"


def _change(tile: Tile, alone: str) -> str:
    text = change_of(tile, alone)
    kind = alone if text == alone else "same"
    return f"<span class={kind}>{text}</span>"


def change_of(tile: Tile, alone: str) -> str:
    """How an entry stands in the other row: `alone` if it is not there, empty at the same place, else where it is."""
    if tile.other_place is None:
        return alone
    return "" if tile.other_place == tile.place else f"there {tile.other_place}"
