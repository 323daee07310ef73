"""The report as one HTML file: its style and plots inside, nothing from anywhere else (its own policy forbids it)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from batch.review import plots
from batch.review.figures import ARMS, LIFT, LIVE, MEASURES, NIGHTLY

STYLE = Path(__file__).parent / "page.css"
VERDICTS = {
    "passed": "Published",
    "forced": "Published by force",
    "unchecked": "Published, unchecked",
    "held_back": "Held back",
}
GATE_ARMS = {"candidate": "candidate", "in_force": "in force", "popularity": "popularity"}
BANDS = ("head: top 1 %", "middle: to 10 %", "tail: the rest")
SHARE_MEASURES = {
    "hit_rate": "hits a row",
    "plays_per_viewer": "plays a viewer",
    "viewers_with_a_play": "viewers with a play",
}
NO_ASKS = "Nobody watched something new that a generation did not know: nothing to ask."


def render_page(content: Mapping[str, Any]) -> str:
    """`content`: what `files.py` keeps as JSON."""
    night, review = content["night"], content["review"]
    sections = [
        _decision(night),
        _gate(review),
        _share(content.get("share")),  # a program from before shares wrote none
        _segments(review),
        _hours(review),
        _drift(review),
        _reach(review),
        _shown(review),
        _night(night),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""
        f"<title>Nightly report, {escape(content['name'])}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body><header><p class='eyebrow'>Nearline, nightly report</p><h1>{escape(content['name'])}</h1>"
        f"<p>{_time(night['written_at_ms'])} UTC</p></header><main>{''.join(sections)}</main></body></html>\n"
    )


def _section(title: str, text: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p class='told'>{text}</p>{''.join(parts)}</section>"


def _decision(night: Mapping[str, Any]) -> str:
    verdict = str(night["decision"])
    warnings = "".join(f"<li>{escape(one)}</li>" for one in night["warnings"])
    return (
        f"<section class='verdict {escape(verdict)}'><h2>{VERDICTS.get(verdict, escape(verdict))}</h2>"
        f"<p class='reason'>{escape(night['reason'])}</p>"
        + (f"<ul class='warnings'>{warnings}</ul>" if warnings else "")
        + f"<p>{escape(night['headline'])}</p></section>"
    )


def _gate(review: Mapping[str, Any]) -> str:
    if not review["gate"]:
        return _section("The gate", "No comparison was made.")
    everyone = review["gate"]["all"]
    arms = [arm for arm in GATE_ARMS if arm in everyone]
    rows = [(f"{GATE_ARMS[arm]}", number, everyone[arm]["ndcg@10"]) for number, arm in enumerate(arms)]
    header = ("titles so far", "arm", "hr@10", "ndcg@10", "hr@50", "auc")
    lines = [
        (segment, GATE_ARMS[arm], *(_interval(figures[arm][name]) for name in header[2:]))
        for segment, figures in review["gate"].items()
        for arm in arms
    ]
    return _section(
        "The gate",
        "The newest plays are held out; the candidate is trained without them, and every viewer is folded in with what they "
        "had done before. NDCG@10, with the 95 % interval over viewers:",
        plots.intervals(rows, "NDCG at 10 of the arms of the gate"),
        _table(header, lines),
    )


def _share(shared: Mapping[str, Any] | None) -> str:
    """Nothing where everybody sees one generation."""
    if shared is None:
        return ""
    share, outcome = shared["share"], shared["outcome"]
    whom = f"{share['percent']:g} % of the viewers see <b>{escape(share['generation_id'])}</b>."
    if outcome is None:
        return _section("The share’s outcome so far", f"{whom} Nothing can be said yet: {escape(shared['why_not'])}.")
    header = ("arm", "viewers", "rows shown", "plays from them", *SHARE_MEASURES.values())
    lines = [
        (
            name,
            *(f"{arm[count]:,}" for count in ("viewers", "rows", "plays")),
            *map(_interval, _measures(arm["measures"])),
        )
        for name, arm in outcome["arms"].items()
    ]
    differs = (_interval(one, signed=True) for one in _measures(outcome["difference"]))
    rows = [(name, number, arm["measures"]["hit_rate"]) for number, (name, arm) in enumerate(outcome["arms"].items())]
    against = ", ".join(map(escape, outcome["arms"]["others"]["generations"]))
    return _section(
        "The share’s outcome so far",
        f"{whom} The others’ rows are of {against}. What both were shown from {_time(outcome['from_ms'])} to {_time(outcome['to_ms'])}, "
        "and the plays that came from it, with the 95 % interval over viewers. Rows that led to a play:",
        plots.intervals(rows, "Hit rate of the rows of both arms"),
        _table(header, [*lines, ("difference", "", "", "", *differs)]),
    )


def _measures(of: Mapping[str, Sequence[float]]) -> list[Sequence[float]]:
    return [of[name] for name in SHARE_MEASURES]


def _segments(review: Mapping[str, Any]) -> str:
    if not review["segments"]:
        return _section("Rows against last night’s", NO_ASKS)
    header = ("titles so far", "arm", *MEASURES)
    lines = [
        (segment, arm, *(_interval(figures[arm][name], signed=arm == LIFT) for name in MEASURES))
        for segment, figures in review["segments"].items()
        for arm in (*ARMS, LIFT)
    ]
    rows = [
        (f"{segment}: {arm}", number, figures[arm]["hr@10"])
        for segment, figures in review["segments"].items()
        for number, arm in enumerate(ARMS)
    ]
    return _section(
        "Rows against last night’s",
        f"{review['asks']:,} plays of new titles by {review['viewers']:,} viewers since {_time(review['from_ms'])}, none of which "
        f"<b>{escape(review['reference'])}</b> knows. Each arm gives the row just before the play: <i>live</i> is what the updater "
        "writes, with trends as of that generation. Hit rate at 10, by titles watched so far:",
        plots.intervals(rows, "Hit rate at 10 by arm and segment"),
        _table(header, lines),
    )


def _hours(review: Mapping[str, Any]) -> str:
    hours = review["hours"]
    if not hours:
        return _section("Lift by hours since the last refit", NO_ASKS)
    series = {arm: [figures[arm]["hr@10"] for figures in hours.values()] for arm in (LIVE, NIGHTLY)}
    lift = {LIFT: [figures[LIFT]["hr@10"] for figures in hours.values()]}
    return _section(
        "Lift by hours since the last refit",
        "Hit rate at 10 of the same plays, by the hours since the generation’s newest event; below, the difference of the same plays.",
        plots.lines(series, list(hours), "Hit rate at 10 by hours since the last refit"),
        plots.lines(lift, list(hours), "Live minus last night’s, hit rate at 10, by hours since the last refit"),
    )


def _drift(review: Mapping[str, Any]) -> str:
    drift = review["drift"]
    if drift is None:
        return _section("Drift between live vectors and a full refit", NO_ASKS)
    refit = "not comparable: their sizes differ" if drift["refit"] is None else _interval(drift["refit"])
    return _section(
        "Drift between live vectors and a full refit",
        f"{drift['viewers']:,} viewers, folded into {escape(review['reference'])} as last night left them and as they are now, against "
        f"{escape(review['after'])}, trained anew. Shared spaces are laid over each other by a rotation.",
        _table(
            ("what", "mean"),
            [
                ("cosine of last night’s vector and the live one", _interval(drift["moved"])),
                ("cosine of the live vector and the full refit’s", refit),
                ("of a full refit’s first ten, in the live row", _interval(drift["shared_live"], digits=1)),
                ("of a full refit’s first ten, in last night’s row", _interval(drift["shared_nightly"], digits=1)),
            ],
        ),
    )


def _reach(review: Mapping[str, Any]) -> str:
    reach = review["reach"]
    if not reach:
        return _section("Coverage and popularity", NO_ASKS)
    bands = {("what was watched" if name == "played" else name): one["bands"] for name, one in reach.items()}
    rows = [(arm, number, reach[arm]["coverage"]) for number, arm in enumerate(ARMS)]
    return _section(
        "Coverage and popularity",
        f"Share of the catalogue ({review['items']:,} titles) that is among the first ten of any of these rows, and where the "
        "first ten lie, against what was then watched: a row above that in the head repeats what is popular.",
        plots.intervals(rows, "Coverage by arm"),
        plots.shares(bands, BANDS, "Where the first ten lie by popularity"),
    )


def _shown(review: Mapping[str, Any]) -> str:
    if not review["shown"]:
        return _section("Five viewers, before and after", "Nobody to show.")
    return _section(
        "Five viewers, before and after",
        "The first ten titles with the same plays, by the generation in force before and by this one. Names are keyed digests.",
        *(_viewer(one) for one in review["shown"]),
    )


def _viewer(one: Mapping[str, Any]) -> str:
    recent = ", ".join(escape(title) for title in one["recent"])
    return (
        f"<article><h3><code>{escape(one['digest'][:8])}</code> {escape(one['why'])}</h3>"
        f"<p>{one['titles_played']:,} titles, the last: {recent}</p><div class='pair'>"
        f"{_row('before', one['before'], 'out')}{_row('after', one['after'], 'in')}</div></article>"
    )


def _row(name: str, tiles: Sequence[Mapping[str, Any]], missing: str) -> str:
    entries = "".join(
        f"<li><span>{escape(tile['title'])}</span> <small>{escape(tile['source'])}{_move(tile, place, missing)}</small></li>"
        for place, tile in enumerate(tiles, 1)
    )
    return f"<div><h4>{name}</h4><ol>{entries}</ol></div>"


def _move(tile: Mapping[str, Any], place: int, missing: str) -> str:
    if not tile["was"]:
        return f" · <b class='{missing}'>{'new' if missing == 'in' else 'gone'}</b>"
    if missing == "out" or tile["was"] == place:
        return ""
    return f" · {'▲' if tile['was'] > place else '▼'} {abs(tile['was'] - place)}"


def _night(night: Mapping[str, Any]) -> str:
    copied = ", ".join(f"{count:,} {escape(kind)}" for kind, count in night["copied"].items())
    lines = [
        ("copied", f"{copied}; {night['private']:,} private, {night['invalid']:,} invalid, {night['lost']:,} lost"),
        ("trained on", f"{night['interactions']:,} interactions of {night['viewers']:,} viewers"),
        *((f"{step}, s", f"{seconds:.1f}") for step, seconds in night["seconds"].items()),
    ]
    return _section("The night", "What it read, and how long each step took.", _table(("what", "how much"), lines))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class='scroll' tabindex='0'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _interval(interval: Sequence[float], *, signed: bool = False, digits: int = 3) -> str:
    value, low, high = interval
    plus = "+" if signed else ""
    return f"{value:{plus}.{digits}f} ({low:{plus}.{digits}f} to {high:{plus}.{digits}f})"


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
