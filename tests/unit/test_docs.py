"""The documentation: the site builds strictly and asks nobody for anything, every link holds, and every command of every page is one.

What is cheap and needs no server is executed as it stands; `tests/integration/test_tutorial.py` executes the tutorial's, and those of the
pages for the one on call, on real servers.
For the rest (demo, bench, chaos, what stays) its words are read by the parser that would read them.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
import yaml

import nearline
from bench.__main__ import BENCHMARKS
from runtime.settings import Settings
from runtime.sources import NOT_SETTINGS, known_keys
from website.hooks import ELSEWHERE, rewrite_links
from website.reference import PAGES, keys_page, metrics, verbs_page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCES = [
    ROOT / "README.md",
    *sorted(DOCS.glob("*.md")),
    *(ROOT / name for name in ELSEWHERE if name != "CHANGELOG.md"),
]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")


@dataclass(frozen=True, slots=True)
class Command:
    """A command line of a page. `words`: from `./run` on; `settings`: variables set for it."""

    page: str
    line: int
    settings: tuple[str, ...]
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {' '.join(self.words)}"


def commands_of(page: Path) -> list[Command]:
    """Indented and fenced lines, and code within sentences, that begin with `./run` or a verb of `nearline`."""
    found = []
    joined = re.sub(r"\\\n\s*", lambda cut: " " * len(cut[0]), page.read_text(encoding="utf-8"))
    fenced = False
    for number, line in enumerate(joined.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
            continue
        block = fenced or line.startswith("    ")
        texts = [line] if block else re.findall(r"`([^`]+)`", line)
        read = (_command(page, number, text.strip(), block) for text in texts)
        found += [command for command in read if command is not None]
    return found


def _command(page: Path, number: int, text: str, block: bool) -> Command | None:
    text = text.partition("  #")[0].removeprefix("$ ").strip()
    text = re.sub(r"^[\d*]+( [\d*]+){4}\s+cd \S+ && ", "", text)  # a line of a crontab
    text = re.split(r"\s(?:>>?|\||&&|&$)(?:\s|$)", text)[0]
    found = re.match(r"((?:[A-Z_]+=\S+\s+)*)(\./run\b|nearline(?=\s+[a-z]))(.*)", text)
    if found is None or "…" in text or "[" in text:
        return None
    program = ["./run"] if found[2] == "./run" else ["./run", "nearline"]
    try:
        words = [*program, *shlex.split(found[3])]
    except ValueError:
        return None
    if found[2] != "./run" and not block and words[2] not in VERBS:
        return None  # prose about the program
    return Command(page.name, number, tuple(found[1].split()), tuple(words))


VERBS = dict(typer.main.get_command(nearline.app).commands.items())
COMMANDS = [command for page in SOURCES for command in commands_of(page)]
OWN_VERBS = re.findall(
    r"^  (\w+) ", subprocess.run([ROOT / "run", "help"], capture_output=True, text=True, check=True).stdout, re.M
)


def test_there_are_commands_to_go_through() -> None:
    pages = {command.page for command in COMMANDS}
    assert len(COMMANDS) > 60 and {"README.md", "tutorial.md", "schedule.md", "runbooks.md", "CONTRIBUTING.md"} <= pages


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_of_a_page_is_one_that_the_program_takes(command: Command) -> None:
    for name, _, _ in (setting.partition("=") for setting in command.settings):
        assert name in known_keys(Settings) or name.startswith(NOT_SETTINGS), name
    if len(command.words) == 1:  # `./run` itself
        return
    verb, *rest = command.words[1:]
    assert verb in OWN_VERBS, f"./run {verb}: no such verb"
    if verb == "nearline":
        parse(list(rest))
    elif verb == "demo":
        parse(["demo", *rest])
    elif verb == "bench":
        assert set(rest) <= {*BENCHMARKS, "--json"}
    elif verb == "test":
        assert all((ROOT / word).exists() for word in rest if word.startswith("tests/"))


def parse(words: list[str]) -> None:
    """Let every parser on the way read its words; nothing is run. Errors: `click.UsageError`."""
    command = typer.main.get_command(nearline.app)
    while hasattr(command, "commands") and words and words[0] != "--help":
        name = words.pop(0)
        assert name in command.commands, f"nearline {name}: no such verb"
        command = command.commands[name]
    words = ["1" if word == "N" else word for word in words]
    takes_value = {
        name for one in getattr(command, "params", ()) if not getattr(one, "is_flag", True) for name in one.opts
    }
    if words and words[-1] in takes_value:  # a sentence names the option
        words = [*words, "1"]
    if "--help" not in words and (words or not hasattr(command, "commands")) and not _is_bare_mention(command, words):
        command.make_context(str(command.name), list(words))


def _is_bare_mention(command: object, words: list[str]) -> bool:
    """`nearline show` in a sentence names the verb; its arguments stand elsewhere."""
    return not words and any(one.required for one in getattr(command, "params", ()))


CHEAP = {
    ("./run", "nearline", "settings"): 0,
    ("./run", "nearline", "chaos", "--list"): 0,
    ("./run", "nearline", "plan", "--viewers", "200e6", "--events-per-day", "4e9"): 0,
    ("./run", "nearline", "contracts", "check"): 0,
    ("./run", "nearline", "--help"): 0,
}
"""Commands of the pages that need no server and no files → exit status."""


@pytest.mark.parametrize("words", CHEAP, ids=" ".join)
def test_a_cheap_command_does_what_it_says(words: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "nearline.py", *words[2:]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, bool(done.stdout)) == (CHEAP[words], True), done.stderr


@pytest.mark.parametrize("page", SOURCES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file_of_the_repository_or_a_page_of_the_site(page: Path) -> None:
    for target, _ in LINK.findall(page.read_text(encoding="utf-8")):
        there = not target or (page.parent / target).exists()
        assert there or (page.parent == DOCS and target in {*PAGES, *ELSEWHERE.values()}), f"{page.name}: {target}"


def test_links_hold_in_the_site_as_in_the_repository() -> None:
    text = "[a](../ARCHITECTURE.md#the-house) [b](settings.md) ![c](docs/cost.svg) [d](../docker/x.yaml) [e](https://x) [f](#g)"
    assert rewrite_links(text, "docs/p.md").startswith("[a](architecture.md#the-house) [b](settings.md)")
    assert "d (`docker/x.yaml`) [e](https://x) [f](#g)" in rewrite_links(text, "docs/p.md")
    assert rewrite_links("![c](docs/cost.svg) [w](docs/proof.md)", "README.md") == "![c](cost.svg) [w](proof.md)"


def test_every_page_stands_in_a_section() -> None:
    """What is merged without a place in the site is named here; the build refuses it too."""
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = {page for entry in nav for part in entry.values() for page in _pages(part)}
    written = {page.name for page in DOCS.glob("*.md")} | {*PAGES, *ELSEWHERE.values()}
    assert written - listed == set(), "add these to nav in mkdocs.yml"
    assert listed - written == set(), "these are in nav, and nobody writes them"


def _pages(part: object) -> list[str]:
    if isinstance(part, str):
        return [part]
    assert isinstance(part, list)
    return [page for one in part for page in _pages(next(iter(one.values())) if isinstance(one, dict) else one)]


def test_the_site_builds_strictly_and_asks_nobody_for_anything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in (tmp_path / "site").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"""<(?:script|link|img|iframe)\b[^>]*(?:src|href)=["']?(?:https?:)?//""", text), page.name


def test_what_the_code_writes_names_everything_that_there_is() -> None:
    verbs = verbs_page()
    for words in ("nightly", "generations report", "dlq list", "import movielens"):
        assert f"## {words}\n" in verbs
    assert "`--at`" in verbs and "nearline nightly --at 22:00" in verbs
    names = {name for families in metrics().values() for name, _, _ in families}
    assert {"nearline_unaccounted", "nearline_event_to_row_seconds", "nearline_homepage_requests_total"} <= names
    assert {"nearline_trends_records_total", "nearline_nights_total"} <= names
    assert "| `nl:v:{viewer}` |" in keys_page() and "| `nl:halt:playback@1` |" in keys_page()
