"""Every verb: a help text with an example that can be typed, JSON, an exit status that is told, and the shell's completion."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import nearline
from contracts.errors import HaltError, NearlineError, StoreUnavailable, UserError
from runtime.settings import Settings
from runtime.sources import known_keys

ROOT = Path(__file__).parent.parent.parent
STAY = {"updater", "trends", "homepage", "shadow"}  # until they are told to stop: what they do is in logs and metrics


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from walk(inner, (*path, name))
    else:
        yield path, command


VERBS = dict(walk(typer.main.get_command(nearline.app)))


def test_all_verbs_are_there() -> None:
    assert {path[0] for path in VERBS} >= set(
        "demo doctor nightly updater homepage generations show explain dlq forget replay import settings contracts chaos evaluate plan "
        "resume".split()
    )


@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_a_verb_has_an_example_that_can_be_typed_and_answers_programs(path: tuple[str, ...]) -> None:
    command = VERBS[path]
    (example,) = re.findall(r"Example: (.+)", command.help)
    words = shlex.split(example)
    while "=" in words[0]:
        assert words.pop(0).partition("=")[0] in known_keys(Settings)
    assert tuple(words[: len(path) + 1]) == ("nearline", *path)
    command.make_context(" ".join(path), words[len(path) + 1 :])  # raises for an option that there is not
    options = {option for parameter in command.params for option in parameter.opts}
    assert ("--json" in options) == (path[0] not in STAY)
    for parameter in command.params:
        assert getattr(parameter, "help", None), (path, parameter.name)


@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_a_verb_that_may_answer_no_says_when(path: tuple[str, ...]) -> None:
    command = VERBS[path]
    source = inspect.getsource(inspect.unwrap(command.callback))
    if re.search(r"SystemExit\((1|.*exit_code|0 if|run_demo)", source):
        assert "Exit status: 1" in command.help


def test_the_whole_helps_and_tells_the_exit_statuses() -> None:
    told = CliRunner().invoke(nearline.app, ["--help"], env={"COLUMNS": "200"}).output
    for status in range(5):
        assert re.search(rf"\b{status} \w+", told)
    assert "Exit status" in told
    for path in VERBS:
        assert path[0] in told


@pytest.mark.parametrize(
    ("error", "status"), [(UserError, 2), (HaltError, 3), (StoreUnavailable, 4), (NearlineError, 1), (KeyboardInterrupt, 130)]
)  # fmt: skip
def test_an_error_ends_a_verb_with_its_status_and_its_message(
    error: type[BaseException], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error("what, where, what to do")

    with pytest.raises(SystemExit) as ended:
        nearline.run_verb(fail)
    assert ended.value.code == status
    said = capsys.readouterr().err
    assert said == ("" if error is KeyboardInterrupt else "nearline: what, where, what to do\n")


@pytest.mark.parametrize("arguments", [["nigthly"], ["nightly", "--forced"], ["show"], ["generations", "activate"]])
def test_what_is_typed_wrongly_ends_with_status_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(nearline.app, arguments).exit_code == 2


@pytest.mark.parametrize(
    ("typed", "offered"), [("nearline gen", "generations"), ("nearline generations roll", "rollback"), ("nearline nightly --a", "--at")]
)  # fmt: skip
def test_the_shell_completes(typed: str, offered: str) -> None:
    environment = os.environ | {
        "_NEARLINE_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    told = subprocess.run([sys.executable, ROOT / "nearline.py"], env=environment, capture_output=True, text=True, check=False)  # fmt: skip
    assert offered in told.stdout.split(), told.stderr
