# SPDX-License-Identifier: Apache-2.0
"""A healthy node of every documented set-up: doctor, status and list report no fault."""

from __future__ import annotations

import json
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from tool import Tool

from mycelium_ctl.echo import Echoes, ask_all
from mycelium_lab.lab import Lab, Namespace, Node, Pod, await_fact


class HealthyNode:
    """A node with a daemon that has a peer, and files that say how pods are attached."""

    def __init__(self, tool: Tool) -> None:
        self.tool = tool

    def networks(self, *networks: dict[str, Any]) -> None:
        for number, network in enumerate(networks):
            plugin = {key: value for key, value in network.items() if key != "name"}
            plugin = {"type": "mycelium-cni", "netseed": "/nonexistent", **plugin}
            whole = {"cniVersion": "1.1.0", "name": network["name"], "plugins": [plugin]}
            self.tool.conf(whole, f"1{number}-mycelium.conflist")

    def attach(self, pod: Pod, network: dict[str, Any], ifname: str = "eth0") -> None:
        conf = {"cniVersion": "1.1.0", "type": "mycelium-cni", "netseed": "/nonexistent", **network}
        args = f"K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod.pod_name}"
        self.tool.node.plugin("ADD", conf, pod, args=args, ifname=ifname).succeeded()

    def doctor_finds_nothing(self, *checks: str) -> None:
        found = self.tool.json("doctor", *checks)
        alarms = [one for one in found if one["state"] not in ("ok", "skip")]
        assert alarms == []

    def reports_no_fault(self) -> None:
        self.doctor_finds_nothing()
        status = self.tool("status")
        assert status.returncode == 0, status.stdout
        assert "ready: a pod would get its address now" in status.stdout


def has_peer(node: Node) -> bool:
    return any(peer["connectionState"] == "alive" for peer in node.api("admin/peers"))


@pytest.fixture
def healthy(node: Node, lab: Lab, root: Path) -> HealthyNode:
    other = lab.node("other")
    other.start_overlay([node])
    await_fact(lambda: has_peer(node), "the daemon has its peer")
    return HealthyNode(Tool(node, root))


ROUTED: dict[str, Any] = {"name": "mycelium", "mode": "routed"}
BRIDGED: dict[str, Any] = {"name": "bridged", "mode": "bridge"}

ONE_POD = {
    "routed": ROUTED,
    "bridge": BRIDGED,
    "closed": {**ROUTED, "ingress": "closed"},
    "closed on a bridge": {**BRIDGED, "ingress": "closed"},
    "cluster": {**ROUTED, "ingress": "cluster", "allowFrom": ["5aa::/16"]},
    "stable": {**ROUTED, "addressing": "stable"},
    "stable on a bridge": {**BRIDGED, "addressing": "stable"},
    "masquerade": {**ROUTED, "ipMasq": True},
    "default route": {**ROUTED, "defaultRoute": True},
    "default route on a bridge": {**BRIDGED, "defaultRoute": True},
    "other routes": {**ROUTED, "routes": [{"dst": "500::/8", "mtu": 1300, "priority": 77}]},
    "a table of its own": {**ROUTED, "routes": [{"dst": "400::/7", "table": 200}]},
    "no routes": {**ROUTED, "routes": []},
    "smaller": {**ROUTED, "mtu": 1280},
    "another bridge": {**BRIDGED, "bridge": "br-overlay"},
    "guard optional": {**ROUTED, "guard": "optional"},
}


@pytest.mark.parametrize("network", ONE_POD.values(), ids=ONE_POD)
def test_after_a_normal_first_pod(healthy: HealthyNode, network: dict[str, Any]) -> None:
    """Nothing was prepared: ADD makes what is missing."""
    healthy.networks(network)
    healthy.attach(healthy.tool.node.pod("web"), network)
    healthy.reports_no_fault()


SEVERAL = {
    "one network twice": (ROUTED, ROUTED),
    "one bridge twice": (BRIDGED, BRIDGED),
    "two networks": (ROUTED, {**ROUTED, "name": "second", "ingress": "closed"}),
    "three": (ROUTED, {**ROUTED, "name": "second"}, {**ROUTED, "name": "third"}),
}
MIXED = {"routed, then bridge": (ROUTED, BRIDGED), "bridge, then routed": (BRIDGED, ROUTED)}


def attach_all(healthy: HealthyNode, networks: tuple[dict[str, Any], ...]) -> None:
    """Two pods with an interface on each of them."""
    healthy.networks(*{network["name"]: network for network in networks}.values())
    for name in ("web", "db"):
        pod = healthy.tool.node.pod(name)
        for number, network in enumerate(networks):
            healthy.attach(pod, network, f"net{number}")


@pytest.mark.parametrize("networks", SEVERAL.values(), ids=SEVERAL)
def test_pods_with_several_of_our_interfaces(
    healthy: HealthyNode, networks: tuple[dict[str, Any], ...]
) -> None:
    attach_all(healthy, networks)
    healthy.reports_no_fault()


@pytest.mark.parametrize("networks", MIXED.values(), ids=MIXED)
def test_pods_with_interfaces_of_both_modes(
    healthy: HealthyNode, networks: tuple[dict[str, Any], ...]
) -> None:
    attach_all(healthy, networks)
    healthy.doctor_finds_nothing(
        *("pods", "pod-routes", "pod-ways", "overlay-routes", "bridge", "guard", "reach")
    )
    healthy.attach(healthy.tool.node.pod("api"), ROUTED)
    healthy.attach(healthy.tool.node.pod("log"), BRIDGED)
    healthy.doctor_finds_nothing("reach")


def test_pods_of_two_modes(healthy: HealthyNode) -> None:
    """They do not reach each other, as docs/operate.md says."""
    healthy.networks(ROUTED, BRIDGED)
    healthy.attach(healthy.tool.node.pod("web"), ROUTED)
    healthy.attach(healthy.tool.node.pod("db"), BRIDGED)
    healthy.doctor_finds_nothing("pods", "pod-routes", "pod-ways", "reach")


def test_a_bridge_port_with_another_mac(healthy: HealthyNode) -> None:
    """Nothing depends on it. The pod's own is the one of its address."""
    healthy.networks(BRIDGED)
    pod = healthy.tool.node.pod("web")
    healthy.attach(pod, BRIDGED)
    link = healthy.tool.host_link("web")
    healthy.tool.node.ip("link", "set", link, "address", "02:11:22:33:44:55")
    healthy.reports_no_fault()
    healthy.tool("doctor", "--fix")
    healthy.doctor_finds_nothing("reach")


def test_a_pod_that_was_attached_in_another_mode_is_named(healthy: HealthyNode) -> None:
    now = {**ROUTED, "mode": "bridge"}
    healthy.attach(healthy.tool.node.pod("before"), ROUTED)
    healthy.attach(healthy.tool.node.pod("since"), now)
    healthy.networks(now)
    found = healthy.tool.json("doctor", "pods", "reach")
    (alarm,) = [one for one in found if one["state"] not in ("ok", "skip")]
    assert alarm["state"] == "warn"
    assert "shop/before was attached in routed mode" in alarm["found"]


@pytest.mark.parametrize("network", [ROUTED, BRIDGED], ids=["routed", "bridge"])
def test_after_setup_and_a_restart_of_the_daemon(
    healthy: HealthyNode, network: dict[str, Any]
) -> None:
    healthy.networks(network)
    assert healthy.tool("setup").returncode == 0
    healthy.reports_no_fault()
    healthy.attach(healthy.tool.node.pod("web"), network)
    healthy.tool.node.stop_overlay()
    healthy.tool.node.start_overlay()
    await_fact(lambda: has_peer(healthy.tool.node), "the daemon has its peer again")
    healthy.reports_no_fault()
    assert json.loads(healthy.tool("setup", "--json").stdout)["changes"] == []


def test_a_thousand_answers_at_once_are_all_heard(lab: Lab) -> None:
    """By default the kernel keeps some 250 for a socket; the pods of the others would be faults."""
    crowd = Namespace(lab, "crowd")
    addresses = [IPv6Address(0xFD << 120 | number) for number in range(1, 1001)]
    crowd.configure(*(f"addr add {address}/128 dev lo nodad" for address in addresses))
    asked = dict.fromkeys([address.packed for address in addresses], 0)
    with crowd.inside(), Echoes() as echoes:
        answered = ask_all({echoes: asked}, bytes(8))[echoes]
    assert asked.keys() - answered == set()
