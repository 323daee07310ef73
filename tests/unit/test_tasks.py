"""Background tasks end, even if a client swallows a cancellation."""

from __future__ import annotations

import asyncio

from runtime.tasks import cancel_all


async def test_a_task_that_misses_one_cancellation_hears_another() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed > 1:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.wait([task], timeout=0)
    await asyncio.wait_for(cancel_all(task), 10)
    assert task.cancelled()
    assert swallowed == 2


async def test_tasks_that_have_failed_already_are_left_as_they_are() -> None:
    async def fails() -> None:
        raise ValueError("x")

    task = asyncio.create_task(fails())
    await asyncio.wait([task])
    await cancel_all(task)
    assert isinstance(task.exception(), ValueError)
