"""What the alarms and the boards ask for, asked of running processes, and of a Prometheus that scrapes them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from embeddings.generations_folder import GenerationsFolder
from runtime.kafka import make_producer
from runtime.settings import Settings, StoreSettings
from sandbox.processes import environment_of
from sandbox.servers import ValkeyServer
from tests.conftest import TopicFactory, require_or_skip
from tests.deployment import ALERTS, DOCKER, PROMETHEUS, ROOT
from tests.integration.test_nightly import catalogue, history, send
from tests.worlds import play_event

BOARDS = {
    path.stem: json.loads(path.read_text()) for path in sorted((DOCKER / "grafana" / "dashboards").glob("*.json"))
}
QUERIES = {
    (board, panel["title"], target["refId"]): (target["expr"], target["legendFormat"])
    for board, content in BOARDS.items()
    for panel in content["panels"]
    for target in panel.get("targets", [])
}
# Nothing of the kind happens on a good day; their names are held against the exports all the same.
EMPTY = {
    "Batches done again",
    "Trends: records",
    "Default rows, why",
    "Entries dropped at read time",
    "Requests refused",
}
NAME = re.compile(r"\b(?:nearline|redis|process)_\w+")
PORTS = dict.fromkeys(("nightly", "updater", "trends", "shadow"), "NEARLINE_HEALTH__PORT") | {
    "homepage": "NEARLINE_HOMEPAGE__PORT"
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def child(command: list[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[None]:
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, cwd=log.parent, stdout=output, stderr=output)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def until(condition: Callable[[], Awaitable[object]], what: str, logs: Path, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if await condition():
                return
        except httpx.TransportError:
            pass  # not listening yet
        if time.monotonic() > deadline:
            told = "\n".join(f"{log.name}: …{log.read_text()[-1500:]}" for log in logs.glob("*.log"))
            raise AssertionError(f"{what}\n{told}")
        await asyncio.sleep(0.1)


class Running:
    """Job → the port on which it serves /metrics, of an updater, a home page and a scheduler that have all had something to do."""

    def __init__(self, ports: dict[str, int], client: httpx.AsyncClient, folder: Path, stack: ExitStack) -> None:
        self.ports, self.client, self.folder, self.stack = ports, client, folder, stack

    async def text(self, job: str) -> str:
        return (await self.client.get(f"http://127.0.0.1:{self.ports[job]}/metrics")).text


@pytest.fixture
async def running(
    settings: Settings, topic: TopicFactory, valkey: ValkeyServer, namespace: str, tmp_path: Path
) -> AsyncIterator[Running]:
    await topic(1, name=settings.kafka.dead_letter_topic)
    await send(settings, history(), catalogue())
    producer = await make_producer(settings)
    await producer.send_and_wait(settings.kafka.topic, b"no record of ours", key=b"v01", headers=[("private", b"0")])
    await producer.stop()
    small = settings.model_copy(
        update={
            "kafka": settings.kafka.model_copy(update={"group_id": namespace}),
            "store": StoreSettings(url=valkey.url, namespace=namespace),
            "train": settings.train.model_copy(update={"iterations": 2}),
        }
    )
    common = {**os.environ, **environment_of(small)}
    ports = {job: free_port() for job in PORTS}
    arguments = {"nightly": ["--at", "22:00"]}
    with ExitStack() as stack:
        async with httpx.AsyncClient(timeout=10) as client:
            found = Running(ports, client, tmp_path, stack)

            def start(job: str) -> None:
                command = [sys.executable, str(ROOT / "nearline.py"), job, *arguments.get(job, [])]
                stack.enter_context(child(command, tmp_path / f"{job}.log", common | {PORTS[job]: str(ports[job])}))

            for job in PORTS.keys() - {"shadow"}:
                start(job)

            async def worked() -> bool:
                updater, nightly = await found.text("updater"), await found.text("nightly")
                return (
                    'nearline_records_total{decision="dead"} 1.0' in updater
                    and "nearline_activation 1.0" in updater
                    and 'nearline_nights_total{outcome="published"} 1.0' in nightly
                )

            await until(worked, "a night and a dead letter", tmp_path)
            (made,) = GenerationsFolder(small.generations_path).list()
            arguments["shadow"] = [made.generation_id, "--share", "100"]
            start("shadow")

            async def follows() -> bool:
                return (await client.get(f"http://127.0.0.1:{ports['shadow']}/health/ready")).status_code == 200

            await until(follows, "the shadow follows the log", tmp_path)
            await send(settings, [play_event("v02", item, 100_000 + item) for item in range(4)])

            async def rewritten() -> bool:
                return 'nearline_rows_written_total{arm="in_force"} 0.0' not in await found.text("updater")

            await until(rewritten, "rows", tmp_path)

            async def looked_at() -> bool:
                return 'nearline_shadow_viewers_total{outcome="in_force"} 1.0' in await found.text("shadow")

            await until(looked_at, "the shadow looks at who played", tmp_path)
            base = f"http://127.0.0.1:{ports['homepage']}"

            async def served() -> bool:
                return (await client.get(f"{base}/health/ready")).status_code == 200

            await until(served, "the home page is ready", tmp_path)
            assert (await client.get(f"{base}/v1/home/v02")).json()["row_id"]
            yield found


def names_of(text: str) -> set[str]:
    """Every series name that this exposition may have."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE):
        names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
    return names


async def test_every_metric_of_the_alarms_and_boards_is_one_that_a_running_process_exports(running: Running) -> None:
    texts = [await running.text(job) for job in PORTS]
    exported = set().union(*map(names_of, texts))
    expressions = {rule["alert"]: rule["expr"] for rule in ALERTS} | {
        f"{board}: {title} {ref}": expr for (board, title, ref), (expr, _) in QUERIES.items()
    }
    for board, content in BOARDS.items():
        expressions |= {f"{board}: {one['name']}": one["expr"] for one in content["annotations"]["list"]}
    for place, expression in expressions.items():
        asked = {name for name in NAME.findall(expression) if not name.startswith("redis_")}
        assert asked or "redis_" in expression, place
        assert asked <= exported, (place, asked - exported)
    samples = "\n".join(texts)
    for place, expression in expressions.items():  # a label's value that is asked for is one that is exported
        for name, label, value in re.findall(r'(nearline_\w+)\{(\w+)="(\w+)"\}', expression):
            if (label, value) != ("outcome", "degraded"):  # the store was not away
                assert f'{name}{{{label}="{value}"}}' in samples, place


def test_every_board_can_be_read_and_names_alarms_that_exist() -> None:
    assert len({content["uid"] for content in BOARDS.values()}) == len(BOARDS) == 2
    alarms = {rule["alert"] for rule in ALERTS}
    for board, content in BOARDS.items():
        identifiers = [panel["id"] for panel in content["panels"]]
        assert len(set(identifiers)) == len(identifiers)
        assert set(re.findall(r"Nearline[A-Z]\w+", json.dumps(content))) <= alarms
        for panel in content["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24, (board, panel["title"])
            for target in panel.get("targets", []):
                assert target["datasource"]["uid"] == "prometheus"
    provisioned = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    assert provisioned["datasources"][0]["uid"] == "prometheus"


def servers() -> tuple[str, str]:
    found = [shutil.which(name) for name in ("prometheus", "prometheus-redis-exporter")]
    if None in found:
        require_or_skip("prometheus", "Debian: apt-get install prometheus prometheus-redis-exporter")
    return str(found[0]), str(found[1])


async def test_a_prometheus_that_scrapes_them_answers_every_question_and_raises_no_alarm(
    running: Running, valkey: ValkeyServer, tmp_path: Path
) -> None:
    prometheus, exporter = servers()
    ports = running.ports | {"valkey": free_port()}
    command = [exporter, "--redis.addr", valkey.url, "--web.listen-address", f"127.0.0.1:{ports['valkey']}"]
    running.stack.enter_context(child(command, tmp_path / "exporter.log"))
    assert {job["job_name"] for job in PROMETHEUS["scrape_configs"]} == ports.keys()
    jobs = [{"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{p}"]}]} for job, p in ports.items()]
    config: dict[str, Any] = {"rule_files": [str(ROOT / "docs" / "alerts.yml")], "scrape_configs": jobs}
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        prometheus,
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    running.stack.enter_context(child(command, tmp_path / "prometheus.log"))

    async def ask(expression: str) -> list[dict[str, Any]]:
        answer = await running.client.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": expression})
        assert answer.json()["status"] == "success", (expression, answer.text)
        return list(answer.json()["data"]["result"])

    async def ready() -> bool:
        return (await running.client.get(f"http://127.0.0.1:{port}/-/ready")).status_code == 200

    await until(ready, "Prometheus is ready", tmp_path)

    async def scraped() -> bool:
        return (
            len(await ask("up == 1")) == len(ports)
            and len(await ask("count_over_time(nearline_activation[1m]) > 5")) == 1
        )

    await until(scraped, "every target is up", tmp_path)
    for n in range(30):
        page = f"http://127.0.0.1:{running.ports['homepage']}/v1/home/v{n:02}"
        await running.client.get(page, params={"rows": "because"})

    async def seen() -> bool:
        own = await ask('sum(rate(nearline_homepage_requests_total{outcome="own"}[1m])) > 0')
        return bool(own and await ask("sum(rate(nearline_homepage_further_rows_total[1m])) >= 0"))

    await until(seen, "the pages are counted", tmp_path)
    for (_, title, _), (expression, legend) in QUERIES.items():
        found = await ask(expression.replace("$__rate_interval", "1m"))
        if (
            title not in EMPTY and "maxmemory" not in legend and title != "Store memory"
        ):  # the tests' Valkey has no limit
            assert found, (title, expression)
        for label in re.findall(r"{{(\w+)}}", legend):
            assert all(label in one["metric"] for one in found), (title, label)
    for content in BOARDS.values():
        for one in content["annotations"]["list"]:
            await ask(one["expr"])
    assert [one["metric"] for one in await ask('ALERTS{alertstate="firing"}')] == []
