# SPDX-License-Identifier: Apache-2.0
"""Unknown keys that look like ours are refused or warned of, never silently ignored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .calls import Plugin, network
from .conftest import WatchedNode
from .hosts import Pod

WHO_REACHES_THE_POD = {
    "ingress:": "ingress",
    "Ingress": "ingress",
    "INGRESS": "ingress",
    " ingress": "ingress",
    "#ingress": "ingress",
    "ingres": "ingress",
    "ingerss": "ingress",
    "egress": "ingress",
    "allow_from": "allowFrom",
    "allowform": "allowFrom",
    "AllowedFrom": "allowFrom",
    "cluster_file": "clusterFile",
    "ipmasq": "ipMasq",
    "ip-masq": "ipMasq",
    "ipMask": "ipMasq",
    "Guard": "guard",
    "gaurd": "guard",
    "\uff49\uff4e\uff47\uff52\uff45\uff53\uff53": "ingress",  # full-width
    "\U0001d422\U0001d427\U0001d420\U0001d42b\U0001d41e\U0001d42c\U0001d42c": "ingress",  # bold
    "\u0430ll\u043ewFr\u043em": "allowFrom",  # Cyrillic
    "ingressPolicy": "ingress",
    "ingress_policy": "ingress",
    "defaultIngress": "ingress",
    "allow-from-prefixes": "allowFrom",
}
ANYTHING_ELSE = {
    "MTU": "mtu",
    "logFile:": "logFile",
    "log_level": "logLevel",
    "Mode": "mode",
    "myceliumInterfaces": "myceliumInterface",
    "mycelium-interface": "myceliumInterface",
    "net_seed": "netseed",
    "defaultroute": "defaultRoute",
    "route": "routes",
    "prevresult": "prevResult",
    "capabilites": "capabilities",
    "interface_name_in_pod": "interfaceName",
    "\uff4d\uff54\uff55": "mtu",
}
# Below the top: where it stands, and which key was meant.
INSIDE: dict[str, tuple[dict[str, Any], str]] = {
    "capabilities.IPs": ({"capabilities": {"IPs": True}}, "ips"),
    "args.CNI": ({"args": {"CNI": {"ips": ["10.0.0.1"]}}}, "cni"),
    "args.cni.ip": ({"args": {"cni": {"ip": ["10.0.0.1"], "labels": []}}}, "ips"),
    "dns.nameserver": ({"dns": {"nameserver": ["::1"]}}, "nameservers"),
    "routes[1].Priority": (
        {"routes": [{"dst": "400::/7"}, {"dst": "::/0", "Priority": 7, "src": "::"}]},
        "priority",
    ),
}
OTHER_PEOPLES = [
    *("isGateway", "isDefaultGateway", "hairpinMode", "ipMasqBackend", "promiscMode", "vlan"),
    *("delegates", "kubeconfig", "policy", "kubernetes", "guid", "comment", "_comment", "//"),
    *("cniVersions", "datastore_type", "", "é", "ingress and egress"),
    *("ingressRate", "ingressBurst", "wireguard"),
]


@pytest.mark.parametrize(("key", "meant"), list(WHO_REACHES_THE_POD.items()))
@pytest.mark.parametrize("verb", ["ADD", "STATUS"])
def test_a_key_that_may_say_who_reaches_the_pod_is_refused(
    watched: WatchedNode, verb: str, key: str, meant: str
) -> None:
    outcome = watched.plugin.call(verb, network(**{key: "closed"}), watched.pod)
    error = outcome.error(7, says=json.dumps(key))
    assert f'did you mean "{meant}"?' in error["msg"]


@pytest.mark.parametrize("key", list(WHO_REACHES_THE_POD)[::4])
def test_del_forgives_it(watched: WatchedNode, key: str) -> None:
    watched.plugin.delete(watched.pod, network(**{key: "closed"})).is_silent_success()


@pytest.mark.parametrize(("key", "meant"), list(ANYTHING_ELSE.items()))
def test_any_other_key_near_ours_is_warned_of_on_every_add(
    plugin: Plugin, pod: Pod, other_pod: Pod, key: str, meant: str
) -> None:
    for each in (pod, other_pod):
        outcome = plugin.add(each, network(**{key: 1280}))
        outcome.result()
        (line,) = outcome.err.decode().splitlines()
        assert " warning " in line
        assert f'key {json.dumps(key)} is ignored: did you mean "{meant}"?' in line


@pytest.mark.parametrize("place", INSIDE)
def test_keys_inside_others_are_warned_of_too(plugin: Plugin, pod: Pod, place: str) -> None:
    keys, meant = INSIDE[place]
    outcome = plugin.add(pod, network(**keys))
    outcome.result()
    (line,) = outcome.err.decode().splitlines()
    assert f'warning mycelium-cni ADD {pod.container}: key "{place}" is ignored: did' in line
    assert f'did you mean "{meant}"?' in line


def test_strangers_cannot_fill_the_log_with_keys(plugin: Plugin, pod: Pod) -> None:
    strange: dict[str, list[str]] = {f"ip{number}": [] for number in range(1000)}
    outcome = plugin.add(pod, network(args={"cni": strange}))
    outcome.result()
    assert outcome.err == b""


@pytest.mark.parametrize("key", ["ipam", "IPAM"])
def test_an_ipam_section_is_warned_of(plugin: Plugin, pod: Pod, key: str) -> None:
    outcome = plugin.add(pod, network(**{key: {"type": "host-local", "subnet": "10.0.0.0/8"}}))
    outcome.result()
    assert b" warning " in outcome.err
    assert f"{key} is ignored: addresses come".encode() in outcome.err


def test_other_peoples_keys_are_left_alone(plugin: Plugin, pod: Pod) -> None:
    outcome = plugin.add(pod, network(ipam={}, **dict.fromkeys(OTHER_PEOPLES, "closed")))
    outcome.result()
    assert outcome.err == b""


def test_warnings_are_not_written_where_only_errors_are_wanted(plugin: Plugin, pod: Pod) -> None:
    outcome = plugin.add(pod, network(MTU=1300, logLevel="error"))
    outcome.result()
    assert outcome.err == b""


def test_a_configuration_of_nothing_but_strange_keys_is_refused_at_once(
    watched: WatchedNode,
) -> None:
    strange = {f"ingress{number}": 1 for number in range(100_000)}
    watched.plugin.add(watched.pod, network(**strange)).error(7, says="100000 keys")
