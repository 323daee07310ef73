"""Kafka's jars come whole and as locked, or not at all. A small server on loopback stands in for Maven Central."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sandbox import kafka_jars
from sandbox.children import SandboxError
from sandbox.java import parse_major
from sandbox.kafka_jars import KAFKA_VERSION, LOCK_FILE, cache_dir, ensure_jars, read_lock

FILES = {"org/a/a.jar": b"first jar" * 1000, "org/b/b.jar": b"second jar" * 2000}


@dataclass
class Repository:
    """What it serves, what it was asked for, and how it misbehaves: path → number of answers to cut short."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    asked: list[str] = field(default_factory=list)
    cut_short: dict[str, int] = field(default_factory=dict)


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    state = Repository()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.removeprefix("/maven2/")
            state.asked.append(path)
            if path not in state.files:
                self.send_error(404)
                return
            body = state.files[path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if state.cut_short.get(path, 0) > 0:
                state.cut_short[path] -= 1
                body = body[: len(body) // 2]
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(kafka_jars.time, "sleep", lambda _s: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_port}/maven2"
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "lock"
    lines = [f"{hashlib.sha256(body).hexdigest()} {len(body)} {name}" for name, body in FILES.items()]
    path.write_text("# a comment\n" + "\n".join(lines) + "\n")
    return path


def make_env(tmp_path: Path, repository: Repository) -> dict[str, str]:
    return {"NEARLINE_CACHE_DIR": str(tmp_path / "cache"), "MAVEN_MIRROR_URL": repository.url}


def kept(tmp_path: Path) -> set[str]:
    root = tmp_path / "cache" / f"kafka-{KAFKA_VERSION}"
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} - {"fetching"}


def test_jars_are_fetched_once(repository, lock, tmp_path, capfd):
    env = make_env(tmp_path, repository)
    paths = ensure_jars(env, lock)
    assert [path.read_bytes() for path in paths] == list(FILES.values())
    assert ensure_jars(env, lock) == paths
    assert sorted(repository.asked) == sorted(FILES)
    out, err = capfd.readouterr()
    assert out == ""
    assert "fetching Apache Kafka" in err


def test_a_file_that_is_not_the_locked_one_is_refused_and_not_kept(repository, lock, tmp_path):
    repository.files["org/b/b.jar"] = b"x" * len(FILES["org/b/b.jar"])
    with pytest.raises(SandboxError, match=r"org/b/b\.jar is not the file this version was locked to"):
        ensure_jars(make_env(tmp_path, repository), lock)
    assert "org/b/b.jar" not in kept(tmp_path)


def test_a_connection_that_breaks_is_tried_again(repository, lock, tmp_path):
    repository.cut_short = {"org/a/a.jar": 2}
    assert all(path.exists() for path in ensure_jars(make_env(tmp_path, repository), lock))
    assert repository.asked.count("org/a/a.jar") == 3


def test_what_cannot_be_had_is_told_with_ways_out_and_what_was_fetched_is_kept(repository, lock, tmp_path):
    del repository.files["org/a/a.jar"]
    env = make_env(tmp_path, repository)
    with pytest.raises(
        SandboxError, match=r"cannot fetch .*a\.jar: Not Found.*HTTPS_PROXY.*MAVEN_MIRROR_URL.*running Kafka"
    ):
        ensure_jars(env, lock)
    repository.files = dict(FILES)
    ensure_jars(env, lock)
    assert repository.asked.count("org/b/b.jar") == 1


def test_the_rest_of_a_killed_fetch_is_cleared_away(repository, lock, tmp_path):
    folder = tmp_path / "cache" / f"kafka-{KAFKA_VERSION}" / "org" / "a"
    folder.mkdir(parents=True)
    (folder / ".part-left").write_bytes(b"half")
    (folder / "a.jar").write_bytes(b"damaged")
    ensure_jars(make_env(tmp_path, repository), lock)
    assert kept(tmp_path) == set(FILES)


def test_several_that_need_the_jars_at_once_fetch_each_once(repository, lock, tmp_path):
    env = make_env(tmp_path, repository)
    threads = [threading.Thread(target=ensure_jars, args=(env, lock)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(repository.asked) == sorted(FILES)


def test_a_cache_that_cannot_be_written_says_which_variable_moves_it(repository, lock, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(SandboxError, match="set NEARLINE_CACHE_DIR"):
        ensure_jars(make_env(tmp_path, repository), lock)


def test_the_lock_holds_kafka_at_the_pinned_version_with_its_logging():
    paths = [jar.path for jar in read_lock(LOCK_FILE.read_text())]
    assert f"org/apache/kafka/kafka_2.13/{KAFKA_VERSION}/kafka_2.13-{KAFKA_VERSION}.jar" in paths
    assert len(paths) == len(set(paths))
    core, binding = (next(p.split("/")[-2] for p in paths if f"/{n}/" in p) for n in ("log4j-core", "log4j-slf4j-impl"))
    assert core == binding


def test_the_cache_is_the_users_unless_told(tmp_path):
    assert cache_dir({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "nearline"
    assert cache_dir({"NEARLINE_CACHE_DIR": str(tmp_path), "XDG_CACHE_HOME": "/x"}) == tmp_path


@pytest.mark.parametrize(
    ("banner", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_402"', 8),
        ('openjdk version "25" 2025-09-16', 25),
        ("Unable to locate a Java Runtime", None),
    ],
)
def test_a_javas_version_is_read_from_its_banner(banner, major):
    assert parse_major(banner) == major
