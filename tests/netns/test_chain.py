# SPDX-License-Identifier: Apache-2.0
"""Chains with the reference plugins in both modes, each plugin executed as a runtime does it.

tests/runtime measures what the meta-plugins are for, through libcni. Here the pod must talk, CHECK
pass, and DEL leave nothing, in a chain.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from attaching import Mode, SharedNodes, both_modes, network, reaches, refused
from observe import difference, kernel_state

from mycelium_lab.lab import Lab, Node, Pod

Plugin = dict[str, Any]

LOOPBACK: Plugin = {"type": "loopback"}
IPAM = {"type": "host-local", "subnet": "10.88.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]}


@pytest.fixture
def node(shared_nodes: SharedNodes, mode: Mode) -> Node:
    return shared_nodes.pair(mode)[0]


class Chain:
    """A network of several plugins, and a pod in it."""

    def __init__(
        self, plugins: Sequence[Plugin], pod: Pod, node: Node, folder: Path, version: str = "1.0.0"
    ) -> None:
        self.node = node
        self.pod = pod
        self.version = version
        self.result: Any = None
        self._plugins = plugins
        self._folder = folder

    def add(self) -> Any:
        """ADD of each in order; the final result."""
        result = None
        for plugin in self._plugins:
            result = self._execute("ADD", plugin, result)
        self.result = result
        return result

    def check(self, *but: str) -> None:
        """CHECK of each in order, with the final result, except of these types."""
        for plugin in self._plugins:
            if plugin["type"] not in but:
                self._execute("CHECK", plugin, self.result)

    def delete(self) -> None:
        """DEL of each in reverse."""
        for plugin in reversed(self._plugins):
            self._execute("DEL", plugin, self.result)

    def _execute(self, verb: str, plugin: Plugin, result: Any) -> Any:
        conf = {"cniVersion": self.version, "name": "chain", **plugin}
        if result is not None:
            conf["prevResult"] = result
        environ = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": self.pod.container_id,
            "CNI_NETNS": self.pod.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self._folder),
            "PATH": os.environ["PATH"],
        }
        ours = plugin["type"] == "mycelium-cni"
        argv = self.node.lab.command if ours else [str(self._folder / plugin["type"])]
        done = self.node.run(argv, env=environ, input=json.dumps(conf), check=False)
        assert done.returncode == 0, f"{verb} of {plugin['type']}: {done.stdout} {done.stderr}"
        return json.loads(done.stdout) if done.stdout.strip() else None


def ours(mode: Mode, **keys: Any) -> Plugin:
    return {"type": "mycelium-cni", "mode": mode, "netseed": "/nonexistent", **keys}


def primary(kind: str, directory: Path) -> Plugin:
    """A plugin that gives the pod IPv4 on eth0."""
    ipam = {**IPAM, "dataDir": str(directory)}
    return {"type": kind, "ipam": ipam, "isGateway": True, "bridge": "cni0"}


def address_of(chain: Chain, name: str) -> str:
    """The overlay address that the result has for a link of the pod."""
    index = next(
        n
        for n, link in enumerate(chain.result["interfaces"])
        if link["name"] == name and link.get("sandbox")
    )
    (text,) = (
        ip["address"]
        for ip in chain.result["ips"]
        if ip.get("interface") == index and ":" in ip["address"]
    )
    return str(text).partition("/")[0]


@both_modes
@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_after_loopback(
    shared_nodes: SharedNodes, node: Node, mode: Mode, version: str, reference_plugins: Path
) -> None:
    """The network of the host-daemon plugin's documentation."""
    (pod,) = shared_nodes.new_pods(node)
    chain = Chain([LOOPBACK, ours(mode)], pod, node, reference_plugins, version)
    chain.add()
    assert [i["name"] for i in chain.result["interfaces"] if i.get("sandbox")] == ["lo", "eth0"]
    assert reaches(node, address_of(chain, "eth0"))
    assert reaches(pod, "::1")
    chain.check()
    chain.delete()
    assert pod.link("eth0") is None


@both_modes
@pytest.mark.parametrize("kind", ["bridge", "ptp"])
def test_after_a_primary_plugin_the_pod_gains_an_interface(
    lab: Lab, mode: Mode, kind: str, reference_plugins: Path
) -> None:
    node = lab.node("a")
    lab.connect(node)
    first, second = node.pod("first"), node.pod("second")
    chains = [
        Chain([primary(kind, lab.directory), ours(mode)], pod, node, reference_plugins)
        for pod in (first, second)
    ]
    for chain in chains:
        result = chain.add()
        names = [link["name"] for link in result["interfaces"] if link.get("sandbox")]
        assert names == ["eth0", "mycelium0"]
    here, there = chains
    four = [str(chain.result["ips"][0]["address"]).partition("/")[0] for chain in chains]
    for one, other, address in ((here, there, four[1]), (there, here, four[0])):
        assert reaches(one.pod, address), "IPv4 between pods"
        assert reaches(one.pod, address_of(other, "mycelium0"))
        assert reaches(node, address_of(one, "mycelium0"))
        (route,) = one.pod.ip("-4", "route", "show", "default")
        assert route["dev"] == "eth0"
        # Theirs fails by itself behind any plugin that adds an address to another interface: it
        # looks for all addresses of the result on its own.
        one.check(kind)
    for chain in chains:
        chain.delete()
        for name in ("eth0", "mycelium0"):
            assert chain.pod.link(name) is None
    own = [link["ifname"] for link in node.ip("link") if link["ifname"].startswith("myc")]
    assert set(own) <= {"mycelium", "mycelium-br"}


def test_nomads_allocation_has_ipv4_first_and_the_overlay_beside_it(
    lab: Lab, reference_plugins: Path
) -> None:
    """The list that `config new --for nomad` writes."""
    node = lab.node("a")
    lab.connect(node)
    new = ["config", "new", "--for", "nomad", "--bin-dir", str(reference_plugins)]
    written = node.run([*lab.command, *new], env={"PATH": os.environ["PATH"]})
    plugins = json.loads(written.stdout)["plugins"]
    (bridge,) = (one for one in plugins if one["type"] == "bridge")
    bridge["ipam"]["dataDir"] = str(lab.directory)
    pod = node.pod("one")
    pod.configure("link set lo down")  # as Nomad leaves it
    chain = Chain(plugins, pod, node, reference_plugins)
    links = [link["name"] for link in chain.add()["interfaces"] if link.get("sandbox")]
    assert links == ["eth0", "mycelium0"], "Nomad takes the address of the first"
    assert reaches(pod, "127.0.0.1")
    assert reaches(pod, str(pod.ip("-4", "route", "show", "default")[0]["gateway"]))
    assert reaches(node, address_of(chain, "mycelium0"))
    assert pod.ip("-6", "route", "show", "default") == []
    chain.delete()
    assert {link["ifname"] for link in pod.ip("link")} == {"lo"}


EARLIER: dict[str, dict[str, Any]] = {
    "0.1.0": {"ip4": {"ip": "10.88.0.7/16"}},
    "0.2.0": {"ip4": {"ip": "10.88.0.7/16", "gateway": "10.88.0.1"}, "dns": {}},
    "0.3.1": {"ips": [{"version": "4", "address": "10.88.0.7/16"}], "dns": {}},
    "0.4.0": {"interfaces": [{"name": "eth0"}], "ips": []},
    "1.0.0": {"interfaces": [{"name": "veth1"}], "ips": [{"address": "10.88.0.7/16"}]},
    "1.1.0": {"dns": {}},
}


@pytest.mark.parametrize("version", EARLIER)
def test_behind_a_result_that_does_not_name_the_pods_interface(
    shared_nodes: SharedNodes, version: str
) -> None:
    """Results before 0.3.0, and those of kindnet and Azure, do not say that the pod has eth0."""
    node, _ = shared_nodes.pair("routed")
    (pod,) = shared_nodes.new_pods(node)
    pod.configure("link add eth0 type bridge")
    before = {"cniVersion": version, **EARLIER[version]}
    conf = {"cniVersion": version, "name": "chain", **ours("routed"), "prevResult": before}
    call = node.plugin("ADD", conf, pod)
    assert call.code == 0, call
    (link,) = pod.ip("-6", "address", "show", "dev", "mycelium0", "scope", "global")
    assert reaches(node, link["addr_info"][0]["local"])
    assert node.plugin("DEL", conf, pod).code == 0
    assert pod.link("mycelium0") is None
    assert pod.link("eth0") is not None


def test_without_an_earlier_plugin_an_interface_of_that_name_is_in_the_way(
    shared_nodes: SharedNodes,
) -> None:
    node, _ = shared_nodes.pair("routed")
    (pod,) = shared_nodes.new_pods(node)
    pod.configure("link add eth0 type bridge")
    refused(node.plugin("ADD", network(), pod), 102, says="chain mycelium-cni after")


META: dict[str, Plugin] = {
    "portmap": {
        "capabilities": {"portMappings": True},
        "snat": True,
        "runtimeConfig": {
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
        },
    },
    "bandwidth": {
        "ingressRate": 8_000_000,
        "ingressBurst": 8_000_000,
        "egressRate": 8_000_000,
        "egressBurst": 8_000_000,
    },
    "tuning": {"sysctl": {"net.ipv6.conf.eth0.hop_limit": "61"}, "mtu": 1300},
    "firewall": {"backend": "iptables"},
    "sbr": {},
}


@pytest.mark.parametrize("meta", META)
@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
@both_modes
def test_before_a_meta_plugin(
    shared_nodes: SharedNodes, mode: Mode, version: str, meta: str, reference_plugins: Path
) -> None:
    """The pod talks, CHECK passes with the final result, and nothing of it stays."""
    node, far = shared_nodes.pair(mode)
    earlier, pod = shared_nodes.new_pods(node, 2)
    plugins = [LOOPBACK, ours(mode), {"type": meta, **META[meta]}]
    warm = Chain(plugins, earlier, node, reference_plugins, version)
    warm.add()  # tables and chains that are made once, such as ip6tables' own
    warm.delete()
    before = kernel_state(node)
    chain = Chain(plugins, pod, node, reference_plugins, version)
    chain.add()
    address = address_of(chain, "eth0")
    for client in (node, far):
        assert reaches(client, address)
    assert reaches(pod, str(far.overlay_address))
    chain.check()
    chain.delete()
    chain.delete()
    assert pod.link("eth0") is None
    assert difference(before, kernel_state(node)) == []
