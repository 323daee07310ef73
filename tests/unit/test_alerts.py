"""The alert rules: every metric that they ask for is one that an updater serves."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import generate_latest

from updater.metrics import Metrics

RULES = (Path(__file__).parent.parent.parent / "docs" / "alerts.yml").read_text()
EXPRESSIONS = dict(re.findall(r"- alert: (\w+)\n +expr: (.+)\n", RULES))


def test_every_rule_has_an_expression_and_says_what_to_do() -> None:
    rules = RULES.split("- alert: ")[1:]
    assert len(rules) == len(EXPRESSIONS) >= 6
    for rule in rules:
        for part in ("severity: ", "summary: ", "description: "):
            assert rule.count(part) == 1, rule
    told = " ".join(EXPRESSIONS.values())
    for metric in (
        "nearline_unaccounted",
        "nearline_lag_records",
        "nearline_loop_stall_seconds",
        "nearline_generations_refused_total",
    ):
        assert metric in told


def test_every_metric_that_a_rule_asks_for_is_served() -> None:
    served = set(re.findall(r"^# TYPE (\S+) ", generate_latest(Metrics().registry).decode(), re.MULTILINE))
    for alert, expression in EXPRESSIONS.items():
        asked = set(re.findall(r"nearline_\w+", expression))
        assert asked, alert
        assert asked <= served, (alert, asked - served)
