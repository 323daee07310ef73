"""What the doctor says: findings, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DEPENDENCIES = (
    "aiokafka avro cronsim fastavro hiredis httptools httpx implicit numpy prometheus-client pyarrow pydantic pydantic-settings redis rich "
    "scipy stamina starlette structlog threadpoolctl typer uvicorn"
).split()
"""Distributions; each one's module has the same name with underscores."""

PROBE_DEADLINE_S = 5.0
"""What one server gets to answer everything; a healthy one needs milliseconds."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `ok`: True good, False bad, None advice. `remedy` is empty when there is nothing to do."""

    name: str
    ok: bool | None
    found: str
    remedy: str = ""


def exit_code(findings: Sequence[Finding]) -> int:
    """0 when nothing is bad, else 1; advice does not count."""
    return int(any(finding.ok is False for finding in findings))


def render(findings: Sequence[Finding]) -> None:
    """Print the report for a person. Remedies stand on one line each, so that they can be copied."""
    from rich.console import Console
    from rich.text import Text

    signs = {True: ("ok  ", "green"), False: ("bad ", "bold red"), None: ("note", "yellow")}
    good_packages = [finding for finding in findings if finding.name in DEPENDENCIES and finding.ok]
    packages = Finding("python packages", True, f"all {len(good_packages)} that were looked for can be imported")
    shown = [finding for finding in findings if finding not in good_packages]
    if len(good_packages) == len(DEPENDENCIES):
        shown.insert(1, packages)
    width = max((len(finding.name) for finding in shown), default=0)
    console = Console()
    for finding in shown:
        word, style = signs[finding.ok]
        console.print(Text.assemble((word, style), f"  {finding.name:{width}}  {finding.found}"), soft_wrap=True)
        if finding.remedy:
            console.print(
                Text(f"      → {finding.remedy}", style="bold" if finding.ok is False else "dim"), soft_wrap=True
            )
    bad = sum(finding.ok is False for finding in findings)
    console.print(f"{bad} to mend" if bad else "nothing to mend", style="bold red" if bad else "green")
