"""The audience of the live benchmarks: a process that sends events at a steady rate, and says how far it came.

Events are encoded before the clock starts, and handed to the client in batches, a few a tick: on two shared cores the audience
should take as little as it can. It prints `ready`, begins at a line on standard input, ends after its seconds or at the end
of its input, when everything is acknowledged, and prints one line of JSON: `sent`, `seconds`, `behind_s` (the most it ever was
behind its schedule).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.common import Stage, draw_plays
from contracts.codec import Codec
from contracts.events import PlaybackEvent
from embeddings.files import load_generation
from runtime.kafka import choose_partition, make_producer
from runtime.settings import Settings
from sandbox.processes import ROOT
from sandbox.replay import PRIVATE_HEADERS

TICK_S = 0.005
"""Between two hand-overs: small against every latency that is asked for."""
GRACE_S = 60.0


class LiveProducer:
    """The process, from the side of a benchmark."""

    def __init__(self, stage: Stage, *, rate: float, seconds: float, seed: int, first_s: int) -> None:
        self.rate, self.seconds, self.seed, self.first_s = rate, seconds, seed, first_s
        self._stage = stage
        options = {
            "bootstrap": stage.settings.kafka.bootstrap_servers,
            "topic": stage.settings.kafka.topic,
            "partitions": stage.partitions,
            "generations": stage.world.folder,
            "generation": stage.world.generation.generation_id,
            "viewers": stage.viewers,
            "rate": rate,
            "seconds": seconds,
            "seed": seed,
            "first": first_s,
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.live_producer", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait_ready(self) -> None:
        """Until everything is encoded. Errors: `RuntimeError` if it has ended."""
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError("the producer has ended before it began; see above")

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def finish(self, *, at_once: bool = False) -> dict[str, float]:
        """Its last line; with `at_once` it is asked to stop sending."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if at_once:
            self._process.stdin.close()
        line = self._process.stdout.readline()
        if not at_once:
            self._process.stdin.close()
        self._process.wait(GRACE_S)
        told: dict[str, float] = json.loads(line)
        return told

    def events(self, sent: int) -> Iterator[PlaybackEvent]:
        """What it has sent, drawn again."""
        drawn = draw_plays(
            self._stage.world.generation,
            self._stage.viewers,
            count_of(self.rate, self.seconds),
            seed=self.seed,
            first_s=self.first_s,
        )
        return (event for _, event in zip(range(sent), drawn, strict=False))

    @contextmanager
    def alive(self) -> Iterator[LiveProducer]:
        with self._process:
            try:
                yield self
            finally:
                self._process.kill()


def count_of(rate: float, seconds: float) -> int:
    return round(rate * seconds)


async def send(options: argparse.Namespace) -> dict[str, float]:
    """Encode, say so, wait, send."""
    generation = load_generation(Path(options.generations), options.generation)
    codec = Codec.load()
    records = [
        (
            choose_partition(event.viewer.encode(), options.partitions),
            event.viewer.encode(),
            codec.encode_event(event),
        )
        for event in draw_plays(
            generation,
            options.viewers,
            count_of(options.rate, options.seconds),
            seed=options.seed,
            first_s=options.first,
        )
    ]
    settings = Settings.model_validate(
        {"kafka": {"bootstrap_servers": options.bootstrap, "topic": options.topic}, "log_level": "warning"}
    )
    producer = await make_producer(settings)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    _say("ready")
    await reader.readline()
    ended = asyncio.create_task(reader.read())
    started, sent, behind_s = time.perf_counter(), 0, 0.0
    acknowledgements = []
    try:
        while sent < len(records) and not ended.done():
            due = min(len(records), int((time.perf_counter() - started) * options.rate))
            batches = {}
            for partition, key, value in records[sent:due]:
                if partition not in batches:
                    batches[partition] = producer.create_batch()
                if (
                    batches[partition].append(key=key, value=value, timestamp=None, headers=PRIVATE_HEADERS[False])
                    is None
                ):
                    break  # full: the rest waits for the next tick
                sent += 1
            for partition, batch in batches.items():
                acknowledgements.append(await producer.send_batch(batch, options.topic, partition=partition))
            behind_s = max(behind_s, time.perf_counter() - started - sent / options.rate)
            await asyncio.sleep(TICK_S)
        await asyncio.gather(*acknowledgements)
        seconds = time.perf_counter() - started
    finally:
        ended.cancel()
        await producer.stop()
    return {"sent": sent, "seconds": seconds, "behind_s": behind_s}


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("bootstrap", "topic", "generations", "generation"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("rate", "seconds"):
        parser.add_argument(f"--{name}", type=float, required=True)
    for name in ("partitions", "viewers", "seed", "first"):
        parser.add_argument(f"--{name}", type=int, required=True)
    _say(json.dumps(asyncio.run(send(parser.parse_args()))))


if __name__ == "__main__":
    main()
