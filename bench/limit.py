"""The limit of `end_to_end`: the same client reading the same topic and doing nothing with it."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from aiokafka import AIOKafkaConsumer

RECORDS = 4_096


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


def main() -> None:
    """Print how many records were read and how many seconds that took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--limit", type=int, required=True)
    o = parser.parse_args()
    done, seconds = asyncio.run(consume(o.bootstrap, o.topic, o.limit))
    sys.stdout.write(f"{done} {seconds}\n")


if __name__ == "__main__":
    main()
