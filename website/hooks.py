"""MkDocs' hooks: pages that the code writes, pages that lie elsewhere in the repository, and links that hold in both places."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mkdocs.structure.files import File, Files

from website.reference import PAGES

ELSEWHERE = {
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "contracts/README.md": "contracts.md",
    "bench/README.md": "bench.md",
}
"""File of the repository → page of the site."""
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages and those from elsewhere."""
    for name, write in PAGES.items():
        files.append(File.generated(config, name, content=write()))
    for source, name in ELSEWHERE.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as the repository has them become links of the site; to a file that is no page, its name."""
    places = {name: source for source, name in ELSEWHERE.items()}
    return rewrite_links(markdown, places.get(page.file.src_uri, f"docs/{page.file.src_uri}"))


def rewrite_links(markdown: str, source: str) -> str:
    """`source`: where the text lies in the repository."""

    def rewrite(found: re.Match[str]) -> str:
        image, text, target = found.groups()
        path, _, anchor = target.partition("#")
        if not path or ":" in path:
            return found[0]
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if place in ELSEWHERE:
            place = ELSEWHERE[place]
        elif place.startswith("docs/"):
            place = place.removeprefix("docs/")
        elif f"docs/{place}" == source or place in PAGES:
            place = posixpath.basename(place)
        else:  # code: there is no page of it
            return text if "`" in text else f"{text} (`{place}`)"
        return f"{image}[{text}]({place}{'#' + anchor if anchor else ''})"

    return _LINK.sub(rewrite, markdown)
