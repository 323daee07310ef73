"""docs/proof.md names every seeded bug and every class of faults that there is."""

from __future__ import annotations

from pathlib import Path

from sandbox.chaos.faults import ALL
from tests.simulation.bugs import BUGS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "proof.md").read_text()


def test_every_seeded_bug_is_in_the_table() -> None:
    table = [line.split("|")[1].strip() for line in PAGE.splitlines() if line.startswith("| ")]
    assert [name for name in BUGS if name.replace("_", " ") not in table] == []


def test_every_class_of_faults_has_its_recovery_in_the_table() -> None:
    table = {line.split("|")[1].strip(): line for line in PAGE.splitlines() if line.startswith("| `")}
    missing = [fault.name for fault in ALL if f"`{fault.name}`" not in table]
    assert missing == []
