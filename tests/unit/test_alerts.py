"""The alarms: each can fire, says what to do, has a runbook, and asks for nothing that nobody exports."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import require_or_skip
from tests.deployment import ALERTS, ROOT, SERVICES

RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text()
CASES = ROOT / "tests" / "alerts.test.yml"
NAMES = [rule["alert"] for rule in ALERTS]


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        require_or_skip("promtool", "Debian: apt-get install prometheus")
    assert found is not None
    return found


@pytest.mark.parametrize("rule", ALERTS, ids=NAMES)
def test_every_alarm_says_how_bad_it_is_what_it_saw_and_what_to_do(rule: dict[str, dict[str, str]]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"].keys() == {"summary", "description"}
    assert re.search(rf"^## {rule['alert']}$", RUNBOOKS, re.MULTILINE), "a section of docs/runbooks.md"


def test_every_runbook_is_of_an_alarm_and_names_only_what_exists() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOKS, re.MULTILINE) == NAMES
    program = "\n".join(path.read_text() for path in ROOT.glob("*/*.py"))
    for event in set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", RUNBOOKS)) | {"halted"}:
        if not event.startswith("nearline_"):
            assert f'"{event}"' in program or f"{event}=" in program or f'"{event}":' in program, event


def test_the_rules_and_each_alarm_are_right_to_prometheus_itself(promtool: str) -> None:
    for arguments in (("check", "rules", ROOT / "docs" / "alerts.yml"), ("test", "rules", CASES)):
        done = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alarm_is_made_to_fire_once_and_is_quiet_before() -> None:
    cases = {case["name"]: case for case in yaml.safe_load(CASES.read_text())["tests"]}
    assert [*cases] == [*NAMES, "a service in order"]
    for name in NAMES:
        quiet, fires = cases[name]["promql_expr_test"]
        assert quiet["expr"] == fires["expr"] == f'count(ALERTS{{alertname="{name}",alertstate="firing"}})'
        assert quiet["exp_samples"] == []
        assert fires["exp_samples"] == [{"labels": "{}", "value": 1}]
    assert cases["a service in order"]["promql_expr_test"][0]["exp_samples"] == []


def test_the_compose_file_gives_prometheus_these_rules() -> None:
    (rules,) = (one for one in SERVICES["prometheus"]["volumes"] if "alerts.yml" in one)
    source, target, _ = rules.split(":")
    assert (ROOT / "docker" / source).resolve() == Path(ROOT / "docs" / "alerts.yml").resolve()
    assert target in yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())["rule_files"]
