"""What keeps the demo's updater running: restarts what ends, and gives up on what will not stay."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from contracts.errors import UserError
from runtime.tasks import cancel_all
from sandbox.children import SandboxError
from sandbox.processes import Service
from sandbox.supervisor import GIVE_UP_AFTER, Supervisor

DEADLINE_S = 60.0


def supervise(tmp_path: Path, code: str) -> tuple[Service, Supervisor, list[str]]:
    service = Service("updater", {}, tmp_path, port_setting="PORT", program=("-c", code))
    said: list[str] = []
    return service, Supervisor(service, said.append, backoff_s=(0.0,)), said


async def test_who_is_killed_is_started_again_and_it_is_said(tmp_path: Path) -> None:
    service, supervisor, said = supervise(tmp_path, "import time; time.sleep(600)")
    service.start()
    running = asyncio.create_task(supervisor.run())
    try:
        async with asyncio.timeout(DEADLINE_S):
            for number in range(GIVE_UP_AFTER + 1):  # as often as somebody asks for it: that is no failure
                pid = service.pid
                assert await supervisor.kill() == pid
                while supervisor.restarts == number:  # noqa: ASYNC110 - polls with a deadline
                    await asyncio.sleep(0.01)
                assert service.running
                assert service.pid != pid
        assert len(said) == GIVE_UP_AFTER + 1
        assert all("killed by SIGKILL" in line for line in said)
    finally:
        await cancel_all(running)
        await asyncio.to_thread(service.stop, kill=True)


@pytest.mark.parametrize(
    ("status", "restarts"), [(1, GIVE_UP_AFTER - 1), (3, 0)], ids=["ends again and again", "halted: a person decides"]
)
async def test_who_will_not_stay_is_given_up_with_the_end_of_its_log(
    tmp_path: Path, status: int, restarts: int
) -> None:
    service, supervisor, _ = supervise(tmp_path, f"print('the reason', flush=True); raise SystemExit({status})")
    service.start()
    try:
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(SandboxError, match=rf"exit status {status}(.|\n)*the reason"):
                await supervisor.run()
        assert supervisor.restarts == restarts
    finally:
        await asyncio.to_thread(service.stop, kill=True)


async def test_who_has_just_ended_cannot_be_killed(tmp_path: Path) -> None:
    service, supervisor, _ = supervise(tmp_path, "import time; time.sleep(600)")
    service.start()
    try:
        await supervisor.kill()
        with pytest.raises(UserError, match="being started again"):
            await supervisor.kill()
    finally:
        await asyncio.to_thread(service.stop, kill=True)
