"""Reports in the lake: `<lake>/reports/<night>.json` and the page made of it, `<night>.html`. The name is the generation's, or `held-back-`
and a time.

They tell what five viewers watched, under a keyed digest of each. Who is erased is taken out of them with the rest of the lake.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batch.lake import Lake, write_atomically
from batch.outcome import Outcome, compare_arms
from batch.report import NightlyReport
from batch.review.make import Judged, Review, make_review
from batch.review.page import render_page
from contracts.codec import Codec
from contracts.errors import DataError, UserError
from contracts.shares import Share
from embeddings.files import load_generation
from embeddings.generations_folder import GenerationsFolder
from runtime.settings import Settings
from viewers.state import Limits

FOLDER = "reports"
KEPT = 60
"""Nights."""


def review_night(settings: Settings, lake: Lake, judged: Judged, report: NightlyReport, now_ms: int) -> Path:
    """Make a night's report and write it; returns the page. Errors: `DataError`, `GenerationError`, `OSError`."""
    if report.generation_id is not None:
        new = load_generation(settings.generations_path, report.generation_id)
    elif judged.candidate is not None:
        new = judged.candidate
    else:
        raise DataError("nothing was published, and nothing was held back: there is nothing to report on")
    codec = Codec.load(settings.registry_path)
    review = make_review(lake, codec, Limits(**settings.state.model_dump()), judged, new, now_ms)
    current = GenerationsFolder(settings.generations_path).current_or_none()
    shared = None if current is None or current.share is None else look_at_share(lake, current.share)
    return write_review(lake, report, review, now_ms, shared)


@dataclass(frozen=True, slots=True)
class Shared:
    """The share of the viewers that sees a candidate, and what has come of it so far; None: nothing can be said yet, and why."""

    share: Share
    outcome: Outcome | None
    why_not: str = ""


def look_at_share(lake: Lake, share: Share) -> Shared:
    """Errors: `DataError`."""
    try:
        return Shared(share, compare_arms(lake, share.generation_id))
    except UserError as error:
        return Shared(share, None, str(error))


def write_review(lake: Lake, report: NightlyReport, review: Review, now_ms: int, shared: Shared | None = None) -> Path:
    """Write a night's report; returns the page. The oldest beyond `KEPT` go. Errors: `OSError`."""
    when = datetime.fromtimestamp(now_ms / 1000, UTC)
    name = report.generation_id or f"held-back-{when:%Y%m%dT%H%M%SZ}"
    night = {**asdict(report), "headline": report.headline(), "written_at_ms": now_ms}
    content = {"name": name, "ledger_lines": lake.ledger.lines, "night": night, "review": asdict(review)}
    content["share"] = None if shared is None else asdict(shared)
    folder = lake.path / FOLDER
    _write(folder, name, json.loads(json.dumps(content)))
    for old in sorted(folder.glob("*.json"), key=_written_ms)[:-KEPT]:
        old.unlink()
        old.with_suffix(".html").unlink(missing_ok=True)
    return folder / f"{name}.html"


def find_page(lake_path: str | Path, name: str | None = None) -> Path:
    """The page of a night, None: of the newest. Errors: `UserError` if there is none."""
    folder = Path(lake_path) / FOLDER
    if name is None:
        found = sorted(folder.glob("*.json"), key=_written_ms)
        if not found:
            raise UserError(f"{folder}: no report yet; the next night writes one: nearline nightly")
        return found[-1].with_suffix(".html")
    there = {path.stem: path for path in folder.glob("*.html")}
    if name not in there:
        raise UserError(
            f"{folder}: no report of {name}; there are {len(there)}, the newest: nearline generations report"
        )
    return there[name]


def read_content(page: Path) -> dict[str, Any]:
    """What a page was made of. Errors: `DataError`."""
    file = page.with_suffix(".json")
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return content
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: unreadable ({error}); the next night writes a new one") from error


def copy_page(page: Path, out: Path) -> Path:
    """Errors: `UserError` if it cannot be written there."""
    try:
        out.write_bytes(page.read_bytes())
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; name a file that can be written") from error
    return out


def scrub_reports(lake: Lake) -> int:
    """Take erased viewers out of every report; returns how many were. Errors: `DataError`, `OSError`."""
    removed = 0
    for file in sorted((lake.path / FOLDER).glob("*.json")):
        content = read_content(file)
        shown = content["review"]["shown"]
        # Whoever came back after an erasure is in later reports by right: what they show was watched since.
        kept = [one for one in shown if lake.ledger.line_of_digest(one["digest"]) <= content["ledger_lines"]]
        if len(kept) < len(shown):
            removed += len(shown) - len(kept)
            content["review"]["shown"] = kept
            _write(file.parent, file.stem, content)
    return removed


def _write(folder: Path, name: str, content: dict[str, Any]) -> None:
    """The page first: what the data lists is never missing."""
    write_atomically(folder / f"{name}.html", render_page(content).encode())
    write_atomically(folder / f"{name}.json", json.dumps(content).encode())


def _written_ms(file: Path) -> int:
    return int(read_content(file)["night"]["written_at_ms"])
