"""What reaches standard error when something fails that nobody expected: the way through the code, and no data."""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from contracts.errors import StoreUnavailable
from runtime.logs import MAX_REMEMBERED, Repeats, configure_logs, describe_exception
from runtime.settings import Settings

MARK = "zqviewer-0042"
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    hook, filters = sys.excepthook, logging.getLogger("asyncio").filters
    yield
    sys.excepthook = hook
    logging.getLogger("asyncio").filters = filters


def fail(viewer: str) -> None:
    """With the mark in an argument, a local and every text."""
    password = f"password of {viewer}"
    try:
        {}[viewer]
    except KeyError as error:
        raise StoreUnavailable("store h:1: no answer within 3 s") from error
    finally:
        assert password


def caught(viewer: str = MARK) -> StoreUnavailable:
    with pytest.raises(StoreUnavailable) as found:
        fail(viewer)
    return found.value


def test_an_exception_is_told_by_classes_and_places_and_our_own_text_alone() -> None:
    told = describe_exception(caught())
    lines = told.splitlines()
    assert lines[0] == "contracts.errors.StoreUnavailable: store h:1: no answer within 3 s"
    assert any(line.endswith(" in fail") for line in lines)
    assert "caused by KeyError" in lines
    assert MARK not in told


def test_a_loop_of_causes_ends() -> None:
    one, two = ValueError("a"), ValueError("b")
    one.__cause__, two.__cause__ = two, one
    assert describe_exception(one) == "ValueError\ncaused by ValueError"


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_log_line_holds_the_text_or_the_locals_of_a_foreign_exception(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs(Settings(_env_file=None, log_format=log_format))
    try:
        {}[MARK]
    except KeyError:
        structlog.get_logger().exception("ours_failed")
        logging.getLogger("some.library").exception("theirs failed")
    structlog.get_logger().error("ours_failed_too", exc_info=caught())

    async def forgotten() -> None:
        raise KeyError(MARK)

    async def main() -> None:
        task = asyncio.create_task(forgotten())
        await asyncio.wait([task])

    asyncio.run(main())
    said = capsys.readouterr().err
    for event in ("ours_failed", "theirs failed", "ours_failed_too", "Task exception was never retrieved"):
        assert event in said
    assert "KeyError" in said
    assert "test_logs.py" in said
    assert MARK not in said
    if log_format == "json":
        assert all(json.loads(line)["event"] for line in said.splitlines())


def test_a_process_that_crashes_says_where_and_not_with_what() -> None:
    code = f"""
from runtime.logs import configure_logs
from runtime.settings import Settings
configure_logs(Settings(_env_file=None))
def inner(viewer):
    return {{}}[viewer]
inner("{MARK[:4]}" + "{MARK[4:]}")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    told = json.loads(line)
    assert (told["event"], told["exception"].splitlines()[0]) == ("crashed", "KeyError")
    assert "in inner" in told["exception"]
    assert MARK not in line


PROCESSES = ("contracts", "embeddings", "ranking", "viewers", "trends", "runtime", "updater", "batch", "homepage")
LEVELS = ("debug", "info", "warning", "error", "exception", "critical")


def test_the_page_of_log_lines_lists_each_with_its_level_and_no_other() -> None:
    written = set()
    for folder in PROCESSES:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                if node.func.attr in LEVELS and ast.unparse(node.func.value) in ("log", "structlog.get_logger()"):
                    assert isinstance(node.args[0], ast.Constant), f"{file}: an event's name is a constant"
                    written.add((node.args[0].value, node.func.attr))
    page = (ROOT / "docs" / "logs.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \| (\w+) \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(written)


def test_a_line_is_told_once_a_minute_and_then_how_often_it_was_meant() -> None:
    now_s = [0.0]
    repeats = Repeats(lambda: now_s[0])

    def told(level: str = "warning", **event: object) -> dict[str, object] | None:
        try:
            return dict(repeats(None, level, dict(event)))
        except structlog.DropEvent:
            return None

    assert told(event="batch_again", error="away") == {"event": "batch_again", "error": "away"}
    assert told(event="batch_again", error="refused") is not None, "another cause is another line"
    assert [told(event="batch_again", error="away") for _ in range(3)] == [None] * 3
    now_s[0] = 61.0
    assert told(event="batch_again", error="away") == {"event": "batch_again", "error": "away", "repeated": 3}
    assert told(event="failed", exc_info=True) == told(event="failed", exc_info=True), "may be another exception"
    for i in range(MAX_REMEMBERED + 10):
        told(event="lines", number=i)
    assert len(repeats._told) == MAX_REMEMBERED
