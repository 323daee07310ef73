"""The limits of `end_to_end`: what no design can do without, alone. Each is a process of its own.

    consumer    the same client reads the same topic and does nothing with it
    store       the same bytes of every viewer are read and written, packed beforehand, without script or condition
    product     one multiplication of the viewers' vectors with all titles'

Prints how many, the seconds that they took, and the processor seconds of this process.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import socket
import sys
import time
from collections.abc import Sequence
from urllib.parse import urlparse

import hiredis
import numpy as np
from aiokafka import AIOKafkaConsumer

RECORDS = 4_096
BATCH = 512
"""Viewers at once: what an updater takes."""


async def consume(bootstrap: str, topic: str, limit: int) -> tuple[int, float]:
    """Read `limit` records; returns how many came, and the seconds from asking for the first to having the last."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, group_id=None, auto_offset_reset="earliest")
    await consumer.start()
    try:
        started, done = time.perf_counter(), 0
        while done < limit:
            batches = await consumer.getmany(timeout_ms=1_000, max_records=RECORDS)
            done += sum(len(records) for records in batches.values())
        return done, time.perf_counter() - started
    finally:
        await consumer.stop()


def store(url: str, prefix: str, viewers: int, sizes: Sequence[int], limit: int) -> tuple[int, float]:
    """Read control and state of `limit` viewers and write all four fields of theirs, `sizes` bytes each."""
    fields = [name for pair in zip("csvr", map(bytes, sizes), strict=True) for name in pair]
    keys = [f"{prefix}:{number % viewers}" for number in range(limit)]
    reads = [_pack("HMGET", key, "c", "s") for key in keys]
    writes = [_pack("HSET", key, *fields) for key in keys]
    with socket.create_connection((urlparse(url).hostname or "127.0.0.1", urlparse(url).port or 6379)) as connection:
        started = time.perf_counter()
        for at in range(0, limit, BATCH):
            for commands in (reads[at : at + BATCH], writes[at : at + BATCH]):
                _exchange(connection, b"".join(commands), len(commands))
        return limit, time.perf_counter() - started


def _pack(*words: str | bytes) -> bytes:
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]
    return packed


def _exchange(connection: socket.socket, commands: bytes, answers: int) -> None:
    reader = hiredis.Reader()
    connection.sendall(commands)
    while answers:
        reader.feed(connection.recv(1 << 18))
        while answers and reader.gets() is not False:
            answers -= 1


def product(titles: int, k: int, limit: int) -> tuple[int, float]:
    """Multiply, 32 viewers at once: their scores stay in a core's cache."""
    rng = np.random.default_rng(1)
    Y, X = rng.standard_normal((titles, k), np.float32), rng.standard_normal((32, k), np.float32)
    scores = np.empty((32, titles), np.float32)
    np.matmul(X, Y.T, out=scores)
    started, done = time.perf_counter(), 0
    for done in itertools.count(32, 32):
        np.matmul(X, Y.T, out=scores)
        if done >= limit or time.perf_counter() - started > 2:
            break
    return done, time.perf_counter() - started


def main() -> None:
    """Run one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=("consumer", "store", "product"))
    for name in ("bootstrap", "topic", "url", "prefix", "sizes"):
        parser.add_argument(f"--{name}")
    for name in ("viewers", "titles", "k", "limit"):
        parser.add_argument(f"--{name}", type=int, default=0)
    o = parser.parse_args()
    processor_s = time.process_time()
    if o.which == "consumer":
        done, seconds = asyncio.run(consume(o.bootstrap, o.topic, o.limit))
    elif o.which == "store":
        done, seconds = store(o.url, o.prefix, o.viewers, [int(size) for size in o.sizes.split(",")], o.limit)
    else:
        done, seconds = product(o.titles, o.k, o.limit)
    sys.stdout.write(f"{done} {seconds} {time.process_time() - processor_s}\n")


if __name__ == "__main__":
    main()
