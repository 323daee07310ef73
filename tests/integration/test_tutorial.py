"""The tutorial, and then the pages of the one on call, command by command as they stand there, on real servers: what a page tells people to
type does what it says.

The tutorial's first part (`./run demo`) has tests of its own (`test_demo.py`). What stays is started, asked whether it is well, and told to
stop. Names of generations and viewers are those of the stage, in place of a page's.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.children import find_free_port
from sandbox.servers import KafkaServer, ValkeyServer
from sandbox.topics import DEAD_LETTERS, KEEP_FOR_EVER, NEWEST_PER_KEY
from tests.conftest import TopicFactory
from tests.unit.test_docs import DOCS, ROOT, commands_of

STAY = {"updater", "homepage", "trends", "shadow"}
DEADLINE_S = 90.0
VIEWERS, TITLES = 40, 30


def write_plays(file: Path, days: range = range(12)) -> None:
    """Three weeks of plays of two tastes, with the columns that the page names; one viewer is the one that it asks for."""
    start_ms = int(time.time() * 1000) - 21 * 86_400_000
    lines = ["customer,title_id,ts_ms"]
    for viewer in range(VIEWERS):
        name = "ana-0042" if viewer == 0 else f"viewer-{viewer}"
        for play in days:
            title = (viewer % 2 + 2 * (play * (viewer + 1) % (TITLES // 2))) % TITLES
            lines.append(f"{name},title-{title},{start_ms + play * 86_400_000 + viewer * 60_000}")
    file.write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class Stage:
    """A topic with a cluster, settings for it, and a folder to work in."""

    environment: dict[str, str]
    folder: Path

    def do(self, words: tuple[str, ...]) -> None:
        stays = words[0] in STAY or "--at" in words
        (stays_and_stops if stays else runs)(words, self.environment, self.folder)

    def in_force(self) -> str:
        return str(json.loads((self.folder / "generations" / "CURRENT").read_text())["generation_id"])

    def is_shared(self) -> bool:
        return bool(json.loads((self.folder / "generations" / "CURRENT").read_text()).get("share"))

    def generations(self) -> list[str]:
        """Ids, oldest first."""
        return sorted(one.name for one in (self.folder / "generations").iterdir() if (one / "manifest.json").exists())


@pytest.fixture
async def stage(kafka: KafkaServer, valkey: ValkeyServer, topic: TopicFactory, namespace: str, tmp_path: Path) -> Stage:
    name = await topic(2, config=KEEP_FOR_EVER)
    for suffix, config in ((".impressions", KEEP_FOR_EVER), (".catalogue", NEWEST_PER_KEY), (".dlq", DEAD_LETTERS)):
        await topic(1, name=name + suffix, config=config)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NEARLINE_") or key == "NEARLINE_CACHE_DIR"} | {
        "NEARLINE_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap,
        "NEARLINE_KAFKA__TOPIC": name,
        "NEARLINE_STORE__URL": valkey.url,
        "NEARLINE_STORE__NAMESPACE": namespace,
        "NEARLINE_GENERATIONS_PATH": str(tmp_path / "generations"),
        "NEARLINE_LAKE_PATH": str(tmp_path / "lake"),
        "NEARLINE_TRAIN__FACTORS": "8",
    }  # fmt: skip
    write_plays(tmp_path / "plays.csv")
    return Stage(environment, tmp_path)


def verbs_of(page: str) -> list[tuple[str, ...]]:
    """The page's commands of `nearline`, in their order, without `./run nearline`."""
    return [command.words[2:] for command in commands_of(DOCS / page) if command.words[1:2] == ("nearline",)]


def tutorial() -> list[tuple[str, ...]]:
    page = verbs_of("tutorial.md")
    return page[next(n for n, words in enumerate(page) if words[:2] == ("import", "events")) :]


@pytest.mark.timeout(600)  # a dozen processes, one after the other
async def test_the_tutorial_does_what_it_says(stage: Stage) -> None:
    done = []
    for words in tutorial():
        await asyncio.to_thread(stage.do, words)
        done.append(words[0])
    assert done.count("nightly") == 2 and {
        "evaluate",
        "replay",
        "doctor",
        "settings",
        "show",
        "explain",
        "updater",
        "homepage",
        "trends",
    } <= {*done}


ON_CALL = ("rollout.md", "runbooks.md", "report.md", "schedule.md", "security.md")
ELSEWHERE: dict[str | tuple[str, ...], str] = {
    ("generations", "outcome"): "needs rows that were shown: test_outcome.py",
    "contracts": "needs a schema of one's own: test_schema_server.py",
    "bench": "measures for minutes",
    "plan": "test_docs.py",
}
NAMED = re.compile(r"\d{8}T\d{6}\.\d{3}Z-[0-9a-f]{8}")


@pytest.mark.timeout(900)  # some fifty processes, one after the other
async def test_the_pages_of_the_one_on_call_do_what_they_say(stage: Stage) -> None:
    for words in tutorial():
        if words[0] in ("import", "replay", "updater") or words == ("nightly", "--seed"):
            await asyncio.to_thread(stage.do, words)
    write_plays(stage.folder / "plays.csv", range(12, 16))
    for words in tutorial():
        if words[0] in ("import", "replay"):
            await asyncio.to_thread(stage.do, words)
    await asyncio.to_thread(stage.do, ("nightly", "--force"))  # there are two to choose from
    done: set[tuple[str, ...]] = set()
    for page in ON_CALL:
        for words in verbs_of(page):
            older, newer = stage.generations()[-2:]
            shares = words[:2] == ("generations", "share")
            if shares:
                newer = next(one for one in (newer, older) if one != stage.in_force())
            own = tuple(in_place(word, words[0], older, newer) for word in words)
            if (own in done and not shares) or words[0] in ELSEWHERE or words[:2] in ELSEWHERE or _is_mention(words):
                continue
            if own == ("generations", "share", "--stop") and not stage.is_shared():  # the page takes one for granted
                await asyncio.to_thread(stage.do, ("generations", "share", newer, "--percent", "5"))
            await asyncio.to_thread(stage.do, own)
            done.add(own)
    await asyncio.to_thread(stage.do, ("forget", "ana-0042"))
    assert {words[:2] for words in done} >= {
        ("generations", verb) for verb in ("list", "compare", "share", "activate", "rollback", "report")
    } | {("dlq", "list")}
    assert {words[0] for words in done} >= {"freeze", "unfreeze", "shadow", "nightly", "explain", "doctor", "resume"}


def in_place(word: str, verb: str, older: str, newer: str) -> str:
    """What stands for a page's example: of two generations the older is named first."""
    if word in ("A", "B") or NAMED.fullmatch(word):
        return older if word == "A" or word.startswith("20261120") else newer
    examples = {"ID": newer if verb == "generations" else "ana-0042", "TEXT": "undecodable"}
    return examples.get(word, word.replace("bo-0007", "viewer-7"))


def _is_mention(words: tuple[str, ...]) -> bool:
    """A verb that is named in a sentence without what it needs."""
    return words in {("shadow",), ("forget",), ("generations",), ("replay",), ("nightly", "--at"), ("explain",)}


def runs(words: tuple[str, ...], environment: dict[str, str], folder: Path) -> None:
    command = [sys.executable, str(ROOT / "nearline.py"), *words]
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=DEADLINE_S
    )
    allowed = (0, 1) if words[0] == "doctor" else (0,)  # a test's store has no append-only file of its own, and so on
    assert ended.returncode in allowed and ended.stdout, (words, ended.stdout[-2000:], ended.stderr[-2000:])


def stays_and_stops(words: tuple[str, ...], environment: dict[str, str], folder: Path) -> None:
    port = find_free_port()
    setting = "NEARLINE_HOMEPAGE__PORT" if words[0] == "homepage" else "NEARLINE_HEALTH__PORT"
    command = [sys.executable, str(ROOT / "nearline.py"), *words]
    with (folder / f"{words[0]}.log").open("w+") as log:
        child = subprocess.Popen(command, cwd=folder, env=environment | {setting: str(port)}, stdout=log, stderr=log)
        try:
            ends_s = time.monotonic() + DEADLINE_S
            while not answers(f"http://127.0.0.1:{port}/health/live"):
                assert child.poll() is None and time.monotonic() < ends_s, (words, Path(log.name).read_text()[-2000:])
                time.sleep(0.1)
            if words[0] == "homepage":
                assert b'"entries":[{' in answers(f"http://127.0.0.1:{port}/v1/home/ana-0042")
            child.send_signal(signal.SIGTERM)
            assert child.wait(DEADLINE_S) in (0, 143), (words, Path(log.name).read_text()[-2000:])
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()


def answers(url: str) -> bytes:
    """The body; empty while nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bytes(answer.read())
    except OSError:
        return b""
