"""Every supported Python with both stores: `./run compat` (all), `./run compat -- -s "compat-3.13"` (one); the page at the end.

Each session makes an environment of its own from the lock, wheels only, and leaves its results in `.nox/results/`; `page` writes
`docs/compatibility.md` out of what is there. Pythons are those on PATH; a missing one is told as missing.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
RESULTS = ROOT / ".nox" / "results"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
STORED = ("tests/contract", "tests/integration/test_updater.py", "tests/integration/test_security_redis.py")
"""What speaks to a store: the suite that every store runs, the updater on a real Kafka, and the rights of each process."""
TIMEOUT_S = 900
"""Of a test: the recorded runs are about what works, on machines that may do other things."""
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")

nox.options.sessions = ("compat", "page")
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False


@nox.session(python=PYTHONS)
def compat(session: nox.Session) -> None:
    """The unit tests, then what speaks to a store on Valkey and on Redis."""
    session.install("--require-hashes", "--only-binary", ":all:", "-r", "requirements/dev.lock")
    session.run("python", "-m", "viewers.precompile", env=ONE_THREAD)
    _test(session, "unit", {}, "tests/unit")
    _test(session, "valkey", {}, *STORED)
    redis = shutil.which("redis-server")
    if redis is None:
        session.warn("no redis-server on PATH: Redis is left out")
        return
    _test(session, "redis", {"NEARLINE_TEST_STORE_BINARY": redis}, *STORED)


def _test(session: nox.Session, name: str, env: dict[str, str], *paths: str) -> None:
    """Run pytest and keep its results beside what it ran on; a failure is told on the page, and by the exit status at the end."""
    folder = RESULTS / str(session.python)
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / f"{name}.xml"
    report.unlink(missing_ok=True)
    command = [
        "python",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        *paths,
        *session.posargs,
    ]
    session.run(*command, env={**ONE_THREAD, **env}, success_codes=[0, 1])
    facts = session.run("python", "-m", "tests.compatibility", "facts", name, *paths, env=env, silent=True)
    (folder / f"{name}.json").write_text(json.dumps(json.loads(str(facts))))


@nox.session(python=False)
def page(session: nox.Session) -> None:
    """Write `docs/compatibility.md`; fails if anything recorded failed."""
    session.run(sys.executable, "-m", "tests.compatibility", "page", str(RESULTS))
