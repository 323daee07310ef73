"""A worker does one thing at a time: little of it on the event loop, the rest in its thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from runtime.worker import FEW, Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker("test")
    yield made
    made.close()


async def test_little_is_done_on_the_loop_and_more_in_the_thread(worker: Worker) -> None:
    assert await worker.run(FEW, threading.get_ident) == threading.get_ident()
    assert await worker.run(FEW + 1, threading.get_ident) != threading.get_ident()


async def test_little_waits_for_what_the_thread_does_also_when_nobody_waits_for_that(worker: Worker) -> None:
    begun, may_end = threading.Event(), threading.Event()
    done: list[str] = []

    def long() -> None:
        begun.set()
        may_end.wait(10)
        done.append("long")

    dropped = asyncio.create_task(worker.run(FEW + 1, long))
    await asyncio.to_thread(begun.wait, 10)
    dropped.cancel()
    little = asyncio.create_task(worker.run(1, done.append, "little"))
    await asyncio.sleep(0.02)
    assert done == []  # and the loop was not held up
    may_end.set()
    await little
    assert done == ["long", "little"]


@pytest.mark.parametrize("size", [1, FEW + 1])
async def test_errors_come_back_and_the_next_work_is_done(worker: Worker, size: int) -> None:
    with pytest.raises(ZeroDivisionError):
        await worker.run(size, lambda: 1 // 0)
    assert await worker.run(size, lambda: "next") == "next"
