"""A server on loopback as a child process: its port stays from the first start on, and it may be stopped, killed and paused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Self

from sandbox.children import Child, SandboxError, find_free_port, port_is_free, read_tail, wait_until

PORT_ATTEMPTS = 5
"""Another process can take a port between our look and the server's bind."""


class LoopbackServer(ABC):
    """What is the same for Kafka and Valkey. `stop`, `kill` and `start` may alternate: port and data stay."""

    name: ClassVar[str]
    start_deadline_s: ClassVar[float]
    stop_deadline_s: ClassVar[float]

    def __init__(self, data_dir: Path, port: int | None, extra_config: dict[str, str] | None) -> None:
        self.data_dir = Path(data_dir).absolute()
        self._pinned = port is not None
        self.port = port
        self._extra_config = dict(extra_config or {})
        self._child: Child | None = None

    @abstractmethod
    def start(self) -> None:
        """Start and wait until it serves. Without effect when running or at a given address."""

    @property
    def pid(self) -> int | None:
        """The server's process, None when it is stopped or not ours."""
        return self._child.pid if self._child is not None else None

    @property
    def log_path(self) -> Path:
        """The server's own log."""
        return self.data_dir / f"{self.name.lower()}.log"

    def _start_child(self, launch: Callable[[int], Child], serves: Callable[[], bool], what: str) -> None:
        """`launch`: starts it at a port. `what`: names the program in an error."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        for _ in range(PORT_ATTEMPTS):
            if self._try_start(launch, serves, what):
                return
        raise SandboxError(
            f"{self.name} found its port taken {PORT_ATTEMPTS} times in a row; its log is {self.log_path}"
        )

    def _try_start(self, launch: Callable[[int], Child], serves: Callable[[], bool], what: str) -> bool:
        """One try; False when another process took the port between our look and the server's bind."""
        port = self.port if self.port is not None else find_free_port()
        if self._pinned and not port_is_free(port):
            raise SandboxError(f"{self.name} cannot use port {port} of 127.0.0.1: another process listens there")
        child = launch(port)
        self.port, self._child = port, child
        try:
            answered = wait_until(lambda: not child.running or serves(), self.start_deadline_s)
        except BaseException:  # Ctrl-C while waiting: leave no process behind
            self.stop(kill=True)
            raise
        ended = not child.running
        if answered and not ended:
            self._pinned = True  # from now on the address is known to others
            return True
        self.stop(kill=True)
        tail = read_tail(self.log_path)
        if ended and not self._pinned and "Address already in use" in tail:
            self.port = None
            return False
        how = "ended while starting" if ended else f"was not ready after {self.start_deadline_s:.0f} s"
        raise SandboxError(f"{self.name} {how} ({what}); its log, {self.log_path}, ends:\n{tail}")

    def stop(self, *, kill: bool = False) -> None:
        """Stop it, after a deadline by force; at once with `kill`."""
        if self._child is not None:
            self._child.stop(kill=kill, deadline_s=self.stop_deadline_s)
            self._child = None

    def kill(self) -> None:
        """SIGKILL: what a crash of the server looks like."""
        self.stop(kill=True)

    def restart(self) -> None:
        """Stop and start on the same port and data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._running_child().signal("STOP")

    def resume(self) -> None:
        """SIGCONT."""
        self._running_child().signal("CONT")

    def _running_child(self) -> Child:
        if self._child is None:
            raise SandboxError(f"this {self.name} is not a running child of the sandbox")
        return self._child

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
