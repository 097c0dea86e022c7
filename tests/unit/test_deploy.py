# SPDX-License-Identifier: Apache-2.0
"""deploy/: the program accepts its arguments, and Kubernetes can start it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mycelium_cni.cni.errors import __version__
from mycelium_ctl import parsers

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "chart"


def documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def pod_specs() -> Iterator[dict[str, Any]]:
    for path in DEPLOY.glob("*.yaml"):
        for one in documents(path):
            if one["kind"] == "DaemonSet":
                labels = one["spec"]["template"]["metadata"]["labels"]
                assert one["spec"]["selector"]["matchLabels"].items() <= labels.items()
                yield one["spec"]["template"]["spec"]


def test_the_containers_run_commands_of_this_version() -> None:
    seen = set()
    for spec in pod_specs():
        for container in (*spec["initContainers"], *spec["containers"]):
            assert container["image"] == f"localhost/mycelium-cni:{__version__}"
            root, _, name, *arguments = container["args"]
            if root != "--host-root":
                name, *arguments = container["args"]
            _, parser = parsers.load(name)
            parser.parse_args(arguments)
            seen.add(name)
    assert seen == {"install", "uninstall", "agent", "list"}


def test_every_mount_has_a_volume_and_every_volume_a_mount() -> None:
    for spec in pod_specs():
        containers = (*spec["initContainers"], *spec["containers"])
        mounted = {mount["name"] for one in containers for mount in one.get("volumeMounts", ())}
        assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_the_charts_values_are_those_of_its_schema() -> None:
    (chart,) = documents(CHART / "Chart.yaml")
    assert chart["version"] == chart["appVersion"] == __version__
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    (values,) = documents(CHART / "values.yaml")
    jsonschema.Draft7Validator(schema).validate(values)

    def keys(properties: dict[str, Any]) -> dict[str, Any]:
        return {key: keys(one.get("properties", {})) for key, one in properties.items()}

    def said(value: Any, known: dict[str, Any]) -> dict[str, Any]:
        found = value.items() if isinstance(value, dict) and known else ()
        return {key: said(one, known.get(key, {})) for key, one in found}

    known = keys(schema["properties"])
    del known["global"]  # Helm's own
    assert said(values, known) == known


@pytest.mark.parametrize("daemon", [{"enabled": True}, {"enabled": True, "image": ""}])
def test_the_daemon_needs_an_image(daemon: dict[str, Any]) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate({"daemon": daemon})
