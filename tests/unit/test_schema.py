# SPDX-License-Identifier: Apache-2.0
"""config schema: an editor accepts exactly what the plugin accepts."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import jsonschema
import pytest

from mycelium_cni.cni.config import KEYS, Config, Network
from mycelium_cni.cni.errors import CniError
from mycelium_ctl.node.schema import MEANINGS, schema

VALUES: dict[str, tuple[list[Any], list[Any]]] = {  # good ones, bad ones
    "mode": (["auto", "routed", "bridge"], ["Bridge", 1, ["routed"]]),
    "addressing": (["random", "stable"], ["fixed", True]),
    "ingress": (["open", "cluster", "closed"], ["none", {}]),
    "guard": (["required", "optional"], ["off", False]),
    "logLevel": (["error", "warning", "info", "debug"], ["trace", 3]),
    "myceliumInterface": (["mycelium", "x" * 15], ["", "x" * 16, "a/b", "a:b", "a b", 7]),
    "bridge": (["mycelium-br"], ["", "a\tb", []]),
    "interfaceName": (["mycelium0"], ["", "way-too-long-name"]),
    "netseed": (["/etc/netseed"], ["", "etc/netseed", 5]),
    "logFile": (["/var/log/mycelium-cni.log"], ["", "log", {}]),
    "clusterFile": (["/run/cluster"], ["", "cluster", []]),
    "mtu": ([1280, 1400, 1400.0, 65535], [1279, 65536, -1, 1400.5, "1400", True]),
    "defaultRoute": ([True, False], [1, "true"]),
    "ipMasq": ([True, False], [0, "no"]),
    "peering": ([True, False], [0, "no"]),
    "transit": ([True, False], [0, "no"]),
    "serviceNetworks": ([[], ["fd00::/108"]], ["fd00::/108", [5], {}, ["fd00::/108"] * 1025]),
    "allowFrom": ([[]], ["400::/7", [None]]),
    "routes": (
        [[], [{"dst": "400::/7"}], [{"dst": "400::/7", "mtu": 1280, "scope": 0}]],
        [{}, [5], [{}], [{"dst": 7}], [{"dst": "::/0", "mtu": 1}], [{"dst": "::/0", "table": -1}]],
    ),
    "dns": ([{}, {"nameservers": ["5a1::1"], "domain": "x"}], [[], {"search": "x"}, {"domain": 1}]),
    "capabilities": ([{}, {"ips": True, "mac": False}], [[], {"ips": 1}]),
}  # fmt: skip


def accepted_by_the_plugin(entry: dict[str, Any]) -> bool:
    try:
        Config(Network(json.dumps({"cniVersion": "1.1.0", "name": "n", **entry}).encode()))
    except CniError:
        return False
    return True


def accepted_by_an_editor(entry: dict[str, Any]) -> bool:
    network = {"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "x"}, entry]}
    return bool(jsonschema.Draft7Validator(schema()).is_valid(network))


@pytest.mark.parametrize("key", VALUES)
def test_the_schema_and_the_plugin_agree(key: str) -> None:
    good, bad = VALUES[key]
    for number, value in enumerate([*good, *bad]):
        entry = {"type": "mycelium-cni", key: value}
        expected = number < len(good)
        assert accepted_by_the_plugin(entry) is expected, entry
        assert accepted_by_an_editor(entry) is expected, entry


def test_every_key_has_a_meaning_and_a_row_above() -> None:
    assert set(MEANINGS) == set(KEYS)
    assert set(VALUES) == {*KEYS, "capabilities"}


@pytest.mark.parametrize(
    "network",
    [
        {"cniVersion": "1.0.0", "name": "n"},
        {"cniVersion": "1.0.0", "name": "n", "plugins": []},
        {"cniVersion": "1.0.0", "name": "a b", "plugins": [{"type": "mycelium-cni"}]},
        {"cniVersion": "1", "name": "n", "plugins": [{"type": "mycelium-cni"}]},
        {"cniVersion": "1.0.0", "name": "n", "plugins": [{"typo": "mycelium-cni"}]},
    ],
)
def test_a_list_that_no_runtime_takes_is_refused(network: dict[str, Any]) -> None:
    assert not jsonschema.Draft7Validator(schema()).is_valid(network)


def test_the_command_prints_a_valid_schema_that_fits_what_config_new_writes(
    command: list[str],
) -> None:
    def said(*words: str) -> Any:
        argv = [*command, "config", *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    found = said("schema")
    jsonschema.Draft7Validator.check_schema(found)
    jsonschema.validate(said("new", "--ingress", "closed", "--mtu", "1300"), found)
