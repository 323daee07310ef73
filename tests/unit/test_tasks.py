"""Background tasks end, even if a client swallows a cancellation."""

from __future__ import annotations

import asyncio

import pytest

from runtime.tasks import cancel_all, stop_client


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


class JustStarted:
    """A client whose own background task was cancelled before it had run. `until`: what stopping waits for."""

    def __init__(self, until: asyncio.Event | None = None) -> None:
        self.until = until

    async def stop(self) -> None:
        if self.until is not None:
            await self.until.wait()
        raise asyncio.CancelledError


async def test_a_client_stopped_because_of_an_error_does_not_replace_it() -> None:
    with pytest.raises(ValueError, match="the reason"):
        try:
            raise ValueError("the reason")
        finally:
            await stop_client(JustStarted())


async def test_who_is_cancelled_while_stopping_a_client_hears_it() -> None:
    task = asyncio.create_task(stop_client(JustStarted(asyncio.Event())))
    await asyncio.wait([task], timeout=0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
