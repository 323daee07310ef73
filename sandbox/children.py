"""Server processes that cannot outlive this one, folders that only one of them uses, and waiting with a deadline.

A `Child` is owned through a watchdog process (see `_watchdog.py`): however this process ends, the server ends too.
"""

import contextlib
import errno
import fcntl
import os
import random
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from contracts.errors import UserError

POLL_INTERVAL_S = 0.02
"""Between two looks at a condition; short against a server's start (0.1 s for Valkey, seconds for Kafka)."""

ORPHAN_GRACE_S = 10.0
"""What a server gets for a clean stop after its owner has gone."""

KILL_DEADLINE_S = 10.0
"""After SIGKILL only the kernel works; a process that is still there is stuck in a system call."""

PORT_RANGE = range(20_000, 30_000)
"""Below the ephemeral ports of Linux (32768) and macOS (49152). In that range a client that keeps reconnecting to a stopped
server can be given the server's own port as its source, connect to itself, and so keep the server from coming back."""

_WATCHDOG = Path(__file__).with_name("_watchdog.py")


class SandboxError(UserError):
    """A server of the sandbox cannot be had; the message says why and what to do."""


def wait_until(condition: Callable[[], bool], deadline_s: float) -> bool:
    """Poll `condition` until it holds; False when `deadline_s` seconds passed first."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(POLL_INTERVAL_S)
    return True


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def find_free_port() -> int:
    """A loopback port nobody listens on, outside the ephemeral range (see PORT_RANGE)."""
    # Not for security, and unseeded on purpose: two sandboxes started together must not try the same ports.
    for port in random.SystemRandom().sample(PORT_RANGE, 200):
        if port_is_free(port):
            return port
    raise SandboxError(f"no free port found in {PORT_RANGE.start}-{PORT_RANGE.stop}; stop some servers and try again")


def read_tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log file, for an error message; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


class FolderLock:
    """An exclusive claim on a folder. It is passed to the server, so the kernel drops it when the last holder ends."""

    def __init__(self, folder: Path, what: str) -> None:
        self._path = folder / "in-use"
        self._what = what
        self._file: IO[str] | None = None

    def acquire(self) -> int:
        """Claim the folder; returns the descriptor to hand to the child."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            file.close()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise SandboxError(
                f"{self._path.parent} is in use by a running sandbox ({self._what} of {holder}); "
                "stop that one, or choose another data folder"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()}\n")
        file.flush()
        self._file = file
        return file.fileno()

    def release(self) -> None:
        """Drop this process's own hold; a live child keeps its copy."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Child:
    """One server process behind its watchdog. Not restartable: make a new one."""

    def __init__(self, name: str, command: Sequence[str], *, folder: Path, log: Path) -> None:
        self._name = name
        self._command = list(command)
        self._folder = folder
        self._log = log
        self._claim = FolderLock(folder, name)
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._pending = b""
        self.pid: int | None = None

    def start(self, prepare: Callable[[], None] | None = None) -> None:
        """Claim the folder, let `prepare` fill it, start the server; returns when the process exists, before it serves."""
        lock_fd = self._claim.acquire()
        try:
            if prepare is not None:
                prepare()
            self._watchdog = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    str(_WATCHDOG),
                    str(ORPHAN_GRACE_S),
                    str(lock_fd),
                    str(self._log),
                    *self._command,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=self._folder,
                pass_fds=(lock_fd,),
                start_new_session=True,
                bufsize=0,
            )
        finally:
            self._claim.release()
        first = self._read_line(KILL_DEADLINE_S)
        if not first.startswith("pid "):
            self.stop(kill=True)
            raise SandboxError(f"{self._name} did not start:\n{read_tail(self._log)}")
        self.pid = int(first.removeprefix("pid "))

    @property
    def running(self) -> bool:
        """Whether the server process is there (paused counts)."""
        return self._watchdog is not None and self._watchdog.poll() is None

    def signal(self, word: str) -> None:
        """Send TERM, KILL, STOP or CONT through the watchdog, which owns the process: its id cannot have been reused."""
        if not self.running:
            raise SandboxError(f"{self._name} is not running")
        self._write(word)
        self._read_line(KILL_DEADLINE_S)

    def stop(self, *, kill: bool = False, deadline_s: float = 15.0) -> None:
        """Stop the server: ask and wait `deadline_s` seconds, then kill; at once with `kill`. Without effect when stopped."""
        watchdog = self._watchdog
        if watchdog is None:
            return
        if not kill:
            self._write("TERM")
            with contextlib.suppress(subprocess.TimeoutExpired):
                watchdog.wait(deadline_s)
        if watchdog.poll() is None:
            self._write("KILL")
            try:
                watchdog.wait(KILL_DEADLINE_S)
            except subprocess.TimeoutExpired as error:
                raise SandboxError(f"{self._name} (process {self.pid}) cannot be killed") from error
        for pipe in (watchdog.stdin, watchdog.stdout):
            if pipe is not None:
                pipe.close()
        self._watchdog = None
        self.pid = None

    def _write(self, word: str) -> None:
        assert self._watchdog is not None and self._watchdog.stdin is not None
        with contextlib.suppress(OSError):  # ended in this instant: the caller sees that by waiting for it
            self._watchdog.stdin.write(word.encode() + b"\n")

    def _read_line(self, deadline_s: float) -> str:
        """The watchdog's next line; empty when it ended or stayed silent."""
        assert self._watchdog is not None and self._watchdog.stdout is not None
        end = time.monotonic() + deadline_s
        while b"\n" not in self._pending:
            ready, _, _ = select.select([self._watchdog.stdout], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._watchdog.stdout.fileno(), 512) if ready else b""
            if not data:
                return ""
            self._pending += data
        line, self._pending = self._pending.split(b"\n", 1)
        return line.decode()
