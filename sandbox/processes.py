"""Nearline's own services as child processes of the demo, with the same settings an operator would give them."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx
from pydantic import SecretStr

from contracts.errors import NearlineError
from runtime.settings import Settings
from sandbox.children import Child, SandboxError, find_free_port, read_tail

ROOT = Path(__file__).resolve().parent.parent
READY_DEADLINE_S = 120.0
"""The first updater on a machine may have its kernels to compile."""
JOB_POLL_S = 0.1


class Service:
    """One verb of the command line as a process that cannot outlive this one."""

    def __init__(
        self,
        verb: str,
        environment: Mapping[str, str],
        folder: Path,
        *,
        port_setting: str,
        program: Sequence[str] = (),
    ) -> None:
        """`program`: what Python runs, in place of the command line's verb."""
        self.verb = verb
        self.port = find_free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"{verb}.log"
        values = {**environment, port_setting: str(self.port), "NEARLINE_LOG_FORMAT": "json", "PYTHONPATH": str(ROOT)}
        command = [
            "env",
            *(f"{name}={value}" for name, value in values.items()),
            sys.executable,
            *(program or (str(ROOT / "nearline.py"), verb)),
        ]
        self._command, self._folder = command, folder / verb
        self._child = Child(verb, command, folder=self._folder, log=self.log)
        self._status: int | None = None

    def start(self) -> None:
        """Start; returns before it is ready."""
        self._child.start()

    def restart(self) -> None:
        """Start again after the process has ended: the same settings, address and log. Returns before it is ready."""
        self._child.stop(kill=True)
        self._child, self._status = Child(self.verb, self._command, folder=self._folder, log=self.log), None
        self._child.start()

    @property
    def pid(self) -> int | None:
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the process is there (a stopped one counts)."""
        return self._child.running

    def signal(self, word: str) -> None:
        """Send TERM, KILL, STOP or CONT."""
        self._child.signal(word)

    def require_running(self) -> None:
        """Errors: `SandboxError` with how it ended and the end of its log if the process has ended."""
        if not self._child.running:
            raise SandboxError(
                f"nearline {self.verb} has ended unexpectedly ({describe_end(self.exit_status())}); "
                f"the end of {self.log}:\n{read_tail(self.log)}"
            )

    def exit_status(self) -> int | None:
        """How the process ended; None if that is not known."""
        if self._status is None:
            self._status = read_exit_status(self._child)
        return self._status

    async def wait_ready(self) -> None:
        """Poll `/health/ready`. Errors: `SandboxError` if the process ends or the deadline passes."""
        deadline = asyncio.get_running_loop().time() + READY_DEADLINE_S
        async with httpx.AsyncClient(timeout=2) as client:
            while True:
                self.require_running()
                try:
                    if (await client.get(self.url + "/health/ready")).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                if asyncio.get_running_loop().time() > deadline:
                    raise SandboxError(
                        f"nearline {self.verb} is not ready after {READY_DEADLINE_S:g} s; the end of {self.log}:\n{read_tail(self.log)}"
                    )
                await asyncio.sleep(0.05)

    def stop(self, *, kill: bool = False) -> None:
        """Ask to stop cleanly (drain, marker, commit), then insist; at once with `kill`."""
        self._child.stop(kill=kill)


class Job:
    """A verb of the command line, run to its end in the background at the lowest priority; it cannot outlive this process."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.log = folder / f"{name}.log"
        values = {**environment, "NEARLINE_LOG_FORMAT": "json", "PYTHONPATH": str(ROOT)}
        command = ["nice", "-n", "19", "env", *(f"{key}={value}" for key, value in values.items())]
        command += [sys.executable, str(ROOT / "nearline.py"), *arguments]
        self._child = Child(name, command, folder=folder / name, log=self.log)

    async def run(self) -> int | None:
        """The exit status; None if how it ended is not known. A cancellation kills it."""
        self.log.unlink(missing_ok=True)
        try:
            await to_the_end(self._child.start)
            while self._child.running:  # noqa: ASYNC110 - its watchdog tells by ending
                await asyncio.sleep(JOB_POLL_S)
            return read_exit_status(self._child)
        finally:
            await to_the_end(lambda: self._child.stop(kill=True))

    def tail(self, lines: int = 1) -> str:
        """The last lines it wrote."""
        return read_tail(self.log, lines)


async def to_the_end(work: Callable[[], None]) -> None:
    """In a thread, and waited for even if the caller is cancelled: a process half started would have no owner."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        raise


def read_exit_status(child: Child) -> int | None:
    """What the watchdog said last, `exit STATUS`; None if it was killed itself, or has said it before."""
    while line := child._read_line(0):
        if line.startswith("exit "):
            return int(line.removeprefix("exit "))
    return None


def environment_of(settings: Settings) -> dict[str, str]:
    """The settings that differ from their defaults, as an operator gives them to a process."""
    variables = {}
    for name, value in settings.model_dump(exclude_defaults=True).items():
        for key, inner in value.items() if isinstance(value, dict) else [("", value)]:
            text = inner.get_secret_value() if isinstance(inner, SecretStr) else str(inner)
            variables[f"NEARLINE_{name}{'__' + key if key else ''}".upper()] = text
    return variables


def describe_end(status: int | None) -> str:
    """`exit status 1`, `killed by SIGKILL`; `subprocess` gives a signal as a negative number."""
    if status is None:
        return "how is not known"
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


class ServiceUnavailable(NearlineError):
    """One of the demo's own services did not answer."""


async def get_json(client: httpx.AsyncClient, url: str) -> dict[str, object]:
    """GET a JSON object. Errors: `ServiceUnavailable`."""
    try:
        answer = await client.get(url)
        answer.raise_for_status()
        found: dict[str, object] = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise ServiceUnavailable(f"{url}: {type(error).__name__}") from error
    return found
