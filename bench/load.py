"""Load on an HTTP service: by `wrk` where it is installed, else by a generator of our own, in a process of its own.

Both keep so many connections open, ask for the next page on each as soon as the last has come, or so many milliseconds after it, and draw
whose it is. Ours is Python and takes several times the processor time of `wrk`, on the same cores: its figures are lower.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from bench.report import WrongResult
from sandbox.processes import ROOT

SCRIPT = Path(__file__).with_name("load.lua")
GRACE_S = 30.0


@dataclass(frozen=True, slots=True)
class Load:
    """What a run of load saw."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int


def generator() -> str:
    """Which one will be used."""
    return "wrk" if shutil.which("wrk") else "Python (no wrk on PATH)"


def run_load(url: str, prefix: str, count: int, *, connections: int, seconds: float, pause_ms: int = 0) -> Load:
    """Ask for `prefix` + a number below `count`. Errors: `WrongResult` if an answer was no success."""
    if wrk := shutil.which("wrk"):
        options = ["-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", str(SCRIPT), url, "--", prefix]
        command = [wrk, *options, str(count), str(pause_ms)]
    else:
        options = [url, prefix, str(count), str(connections), str(seconds), str(pause_ms)]
        command = [sys.executable, "-m", "bench.load", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + GRACE_S, check=False)
    if done.returncode != 0:
        raise WrongResult(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    found = Load(**json.loads(done.stdout.splitlines()[-1]))
    if found.errors or not found.requests:
        raise WrongResult(f"{found.errors} of {found.requests} requests to {url}{prefix}… failed")
    return found


def run_loads(
    urls: Sequence[str], prefix: str, count: int, *, connections: int, seconds: float, pause_ms: int = 0
) -> Load:
    """The same on several replicas at once, the connections shared out as a balancer would: pages together, the median of medians
    weighed by pages, the slowest replica's p99. Errors: as `run_load`."""
    with ThreadPoolExecutor(len(urls)) as pool:
        loads = [
            pool.submit(
                run_load, url, prefix, count, connections=connections // len(urls), seconds=seconds, pause_ms=pause_ms
            )
            for url in urls
        ]
        found = [one.result() for one in loads]
    requests = sum(one.requests for one in found)
    return Load(
        requests,
        max(one.seconds for one in found),
        sum(one.p50_ms * one.requests for one in found) / requests,
        max(one.p99_ms for one in found),
        sum(one.errors for one in found),
    )


async def _generate(url: str, prefix: str, count: int, connections: int, seconds: float, pause_s: float) -> Load:
    parts = urlsplit(url)
    latencies: list[float] = []
    errors = 0
    started = time.perf_counter()

    async def ask_again_and_again() -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        while (asked := time.perf_counter()) < started + seconds:
            writer.write(f"GET {prefix}{random.randrange(count)} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            latencies.append(time.perf_counter() - asked)
            errors += not head.startswith(b"http/1.1 200 ")
            if pause_s:
                await asyncio.sleep(pause_s)
        writer.close()

    await asyncio.gather(*(ask_again_and_again() for _ in range(connections)))
    elapsed_s = time.perf_counter() - started
    p50, p99 = np.quantile(latencies, [0.5, 0.99]) * 1000
    return Load(len(latencies), elapsed_s, float(p50), float(p99), errors)


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("prefix")
    parser.add_argument("count", type=int)
    parser.add_argument("connections", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("pause_ms", type=int)
    o = parser.parse_args()
    found = asyncio.run(_generate(o.url, o.prefix, o.count, o.connections, o.seconds, o.pause_ms / 1000))
    sys.stdout.write(json.dumps({name: getattr(found, name) for name in Load.__slots__}) + "\n")


if __name__ == "__main__":
    main()
