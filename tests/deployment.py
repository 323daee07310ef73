"""The deployment's files as data: what the tests of images, compose file, manifests, boards and alarms read."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
KUBERNETES = DOCKER / "kubernetes"

COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("nearline:")}
PROMETHEUS: dict[str, Any] = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
ALERTS: list[dict[str, Any]] = yaml.safe_load((ROOT / "docs" / "alerts.yml").read_text())["groups"][0]["rules"]


def manifests() -> list[dict[str, Any]]:
    """Every object of docker/kubernetes."""
    files = [path for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml"]
    return [one for path in sorted(files) for one in yaml.safe_load_all(path.read_text()) if one]


def find(kind: str, name: str) -> dict[str, Any]:
    """The one object of that kind and name."""
    (found,) = (one for one in manifests() if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


def pod_specs() -> dict[str, dict[str, Any]]:
    """Name of the workload → its pod's spec."""
    specs = {}
    for one in manifests():
        if one["kind"] == "Deployment":
            specs[one["metadata"]["name"]] = one["spec"]["template"]["spec"]
        if one["kind"] == "CronJob":
            specs[one["metadata"]["name"]] = one["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return specs


def kafka_properties() -> dict[str, str]:
    """What the compose file tells Kafka, as its image makes it properties, without addresses and folders."""
    told = {
        key.removeprefix("KAFKA_").lower().replace("_", "."): value
        for key, value in SERVICES["kafka"]["environment"].items()
    }
    of_the_place = ("listener", "quorum", "log.dirs", "node.id")
    return {key: value for key, value in told.items() if not any(part in key for part in of_the_place)}


def valkey_options() -> dict[str, str]:
    """What the compose file tells Valkey."""
    words = SERVICES["valkey"]["command"][1:]
    return {key.removeprefix("--"): value for key, value in zip(words[::2], words[1::2], strict=True)}


def topics() -> dict[str, tuple[int, dict[str, str]]]:
    """Topic → partitions and configuration, as the compose file makes them."""
    made = {}
    for line in SERVICES["topics"]["command"][0].splitlines():
        words = shlex.split(line)
        if words[:1] == ["make"]:
            options = [(words[n], words[n + 1]) for n in range(1, len(words), 2)]
            config = dict(value.split("=") for option, value in options if option == "--config")
            given = dict(options)
            made[given["--topic"]] = (int(given["--partitions"]), config)
    return made
