"""Apache Kafka's jars: pinned by checksum in `kafka_jars.lock`, fetched once from Maven Central into a per-user cache.

Maven's own checksums travel beside the file and prove nothing about who sent it; the lock is part of the repository, like those
of the Python packages. It is written by `python -m sandbox.kafka_jars`, which resolves the dependencies with jgo (a development
dependency); running Kafka needs neither jgo nor Maven.

Interrupted, a download leaves a temporary file and no jar under its final name. Two processes that need the jars at once: one
fetches, the other waits; the kernel drops the lock of one that dies.
"""

import fcntl
import hashlib
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sandbox.children import SandboxError

KAFKA_VERSION = "4.1.2"
KAFKA = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
LOGGING = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.3"
"""Kafka logs through slf4j 1.7 and leaves the binding to its distribution; the version is that of Kafka's log4j-core."""

LOCK_FILE = Path(__file__).with_name("kafka_jars.lock")
MAVEN_CENTRAL = "https://repo1.maven.org/maven2"
CONNECTIONS = 6
"""Enough to fill a home line with small files, and polite."""
TIMEOUT_S = 30.0
ATTEMPTS = 3
CHUNK_BYTES = 1 << 16
PART_PREFIX = ".part-"


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the lock."""

    sha256: str
    size_bytes: int
    path: str
    """Below a Maven repository's root and below the cache."""


def cache_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Where downloads are kept: NEARLINE_CACHE_DIR, else the user's cache folder."""
    if chosen := env.get("NEARLINE_CACHE_DIR"):
        return Path(chosen).expanduser().absolute()
    base = env.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "nearline"


def read_lock(text: str) -> list[Jar]:
    """The jars of a lock file; comments and empty lines are skipped."""
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return [Jar(sha256=sha256, size_bytes=int(size), path=path) for sha256, size, path in lines]


def ensure_jars(env: Mapping[str, str] = os.environ, lock_file: Path = LOCK_FILE) -> list[Path]:
    """The jars on this machine, in class-path order; those not cached yet are fetched and checked.

    Raises SandboxError when one cannot be had.
    """
    jars = read_lock(lock_file.read_text())
    root = cache_dir(env) / f"kafka-{KAFKA_VERSION}"
    paths = [root / jar.path for jar in jars]
    if all(_is_complete(jar, root) for jar in jars):
        return paths
    with exclusive(root / "fetching", waiting="another process is fetching Kafka; waiting for it"):
        missing = [jar for jar in jars if not _is_complete(jar, root)]
        if missing:
            for part in root.rglob(f"{PART_PREFIX}*"):  # of one that was killed; nobody else fetches now
                part.unlink(missing_ok=True)
            _fetch_all(missing, root, env.get("MAVEN_MIRROR_URL", MAVEN_CENTRAL).rstrip("/"))
    return paths


def _is_complete(jar: Jar, root: Path) -> bool:
    """Only checked files get their final name, so the size is enough to notice damage that a user may have done."""
    try:
        return (root / jar.path).stat().st_size == jar.size_bytes
    except OSError:
        return False


@contextmanager
def exclusive(path: Path, *, waiting: str) -> Iterator[None]:
    """Hold an inter-process lock; says `waiting` on stderr when it is not free at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise SandboxError(
            f"cannot write {path.parent}: {error.strerror}; set NEARLINE_CACHE_DIR to a folder that you can write"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def say(message: str) -> None:
    """One line on stderr; stdout belongs to the command."""
    print(f"nearline: {message}", file=sys.stderr, flush=True)


def _fetch_all(jars: list[Jar], root: Path, repository: str) -> None:
    total_bytes = sum(jar.size_bytes for jar in jars)
    started = time.monotonic()
    say(f"fetching Apache Kafka {KAFKA_VERSION} ({total_bytes / 1e6:.0f} MB, once) from {repository}")
    progress = _Progress(total_bytes)
    pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="fetch")
    try:
        # Large first, so that the last connection to finish is not the one that began a large file late.
        for done in [
            pool.submit(_fetch, jar, root, repository, progress.add)
            for jar in sorted(jars, key=lambda jar: -jar.size_bytes)
        ]:
            done.result()
    finally:
        progress.close()
        pool.shutdown(cancel_futures=True)
    say(f"fetched in {time.monotonic() - started:.0f} s into {root}")


class _Progress:
    """A line that rewrites itself on a terminal; nothing elsewhere."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._shown_percent = -1
        self._live = sys.stderr.isatty()

    def add(self, count_bytes: int) -> None:
        """Called from several threads: a lost update costs a percent on the screen and nothing else."""
        self._done_bytes += count_bytes
        percent = min(100, 100 * self._done_bytes // max(1, self._total_bytes))
        if self._live and percent != self._shown_percent:
            self._shown_percent = percent
            print(f"\r  {percent:3d} %", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._live:
            print("\r       \r", end="", file=sys.stderr, flush=True)


def _fetch(jar: Jar, root: Path, repository: str, on_bytes: Callable[[int], None]) -> None:
    url = f"{repository}/{jar.path}"
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _fetch_once(jar, root, url, on_bytes)
            return
        except (OSError, urllib.error.URLError, EOFError) as error:
            final = False
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
                final = error.code in (401, 403, 404, 407)
            if final or attempt == ATTEMPTS:
                reason = getattr(error, "reason", None) or error
                raise SandboxError(
                    f"cannot fetch {url}: {reason}. Check the network; behind a proxy set HTTPS_PROXY, with a private certificate "
                    "authority SSL_CERT_FILE, with a mirror of Maven Central MAVEN_MIRROR_URL; "
                    "or give the address of a running Kafka. What has been fetched is kept"
                ) from error
            time.sleep(0.5 * 2**attempt)


def _fetch_once(jar: Jar, root: Path, url: str, on_bytes: Callable[[int], None]) -> None:
    """Download beside the target, check, rename: a file under its final name is always whole and right."""
    target = root / jar.path
    target.parent.mkdir(parents=True, exist_ok=True)
    if not url.startswith(("https://", "http://")):
        raise SandboxError(f"MAVEN_MIRROR_URL must be an http(s) address, not {url}")
    digest = hashlib.sha256()
    size_bytes = 0
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=PART_PREFIX, delete=False) as part:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:  # noqa: S310 - the scheme is checked above
                while chunk := response.read(CHUNK_BYTES):
                    part.write(chunk)
                    digest.update(chunk)
                    size_bytes += len(chunk)
                    on_bytes(len(chunk))
            if size_bytes < jar.size_bytes:
                raise EOFError(f"connection closed after {size_bytes} of {jar.size_bytes} bytes")
            if digest.hexdigest() != jar.sha256:
                raise SandboxError(
                    f"{url} is not the file this version was locked to (sha256 {digest.hexdigest()}, expected {jar.sha256}); "
                    "a mirror or a proxy may have altered it"
                )
            part.close()
            os.replace(part.name, target)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise


def write_lock() -> None:
    """Resolve Kafka's dependencies with jgo and write the lock. For whoever changes KAFKA_VERSION."""
    from jgo.maven import MavenContext, PythonResolver
    from jgo.parse import Coordinate

    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        context = MavenContext(repo_cache=repository, resolver=PythonResolver())
        kafka, logging = (context.create_dependency(Coordinate.parse(name)) for name in (KAFKA, LOGGING))
        # Resolved together, the binding's managed versions would override Kafka's own. What it needs, Kafka brings.
        first, rest = context.resolver.resolve([kafka])
        files = {dependency.artifact.resolve() for dependency in (*first, *rest, logging)}
        lines = [
            f"{hashlib.sha256(file.read_bytes()).hexdigest()} {file.stat().st_size} {file.relative_to(repository).as_posix()}"
            for file in sorted(files)
        ]
    head = f"# {KAFKA} and {LOGGING} with what they need at run time.\n# sha256, bytes, path; written by `python -m sandbox.kafka_jars`.\n"
    LOCK_FILE.write_text(head + "\n".join(lines) + "\n")
    say(f"{LOCK_FILE}: {len(lines)} jars")


if __name__ == "__main__":
    write_lock()
