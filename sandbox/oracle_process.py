"""Asks the oracle, which is a process of its own (`sandbox/oracle.py`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from contracts.errors import NearlineError
from sandbox.action_views import Verdict
from sandbox.children import read_tail
from sandbox.processes import ROOT

ANSWER_DEADLINE_S = 120.0
"""The first question reads the whole log: seconds, on a machine that has better things to do."""


class OracleFailed(NearlineError):
    """Nothing could be compared: the message says why. That is no verdict."""


class OracleProcess:
    """Started at the first question, ended by `close`. If this process ends, its standard input does, and so it does too."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self._environment, self.log = environment, folder / "oracle.log"
        self._process: asyncio.subprocess.Process | None = None
        self._asking = asyncio.Lock()

    async def check(self, sent: int) -> Verdict:
        """The verdict now. Errors: `OracleFailed`."""
        async with self._asking:
            try:
                async with asyncio.timeout(ANSWER_DEADLINE_S):
                    answer = await self._ask(json.dumps({"sent": sent}).encode() + b"\n")
            except BaseException as error:  # an answer that nobody waited for would be taken for the next one
                await self._end()
                if isinstance(error, TimeoutError):
                    raise OracleFailed(f"the comparison took over {ANSWER_DEADLINE_S:g} s; see {self.log}") from error
                raise
        fields = json.loads(answer) if answer else {"error": f"it ended:\n{read_tail(self.log, 3)}"}
        if "error" in fields:
            await self._end()
            raise OracleFailed(f"nothing could be compared: {fields['error']}")
        return Verdict(**{**fields, "problems": tuple(fields["problems"])})

    async def close(self) -> None:
        """End it; what was asked fails."""
        await self._end()

    async def _ask(self, question: bytes) -> bytes:
        if self._process is None:
            self._process = await self._start()
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(ConnectionError):  # it ended: its answer is empty
            self._process.stdin.write(question)
            await self._process.stdin.drain()
        return await self._process.stdout.readline()

    async def _start(self) -> asyncio.subprocess.Process:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            return await asyncio.create_subprocess_exec(
                *("nice", "-n", "19", sys.executable, "-m", "sandbox.oracle"),
                env={**os.environ, **self._environment, "PYTHONPATH": str(ROOT)},
                cwd=self.log.parent,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for who asks
            )

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()
