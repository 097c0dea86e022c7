# SPDX-License-Identifier: Apache-2.0
"""Chains with the reference meta-plugins, as their current release and as Debian 12 ships them.

Each test attaches a pod through libcni, measures what the meta-plugin is for, calls CHECK, and
looks for what DEL left. "Before ours" comes after a bridge with IPv4, which makes eth0; ours then
adds mycelium0.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mycelium_lab.errors import LabError
from mycelium_lab.lab import Node, await_fact

from .cnitool import CniTool, address, serve
from .conftest import leftovers
from .images import Images
from .machine import DEBIAN_PLUGINS, Machine, NamedPod, owned_lab
from .traffic import page, transfer

pytestmark = pytest.mark.xdist_group("meta-plugins")

OURS = {"type": "mycelium-cni", "mode": "routed"}
BRIDGE = {
    "type": "bridge",
    "bridge": "cni0",
    "isGateway": True,
    "ipMasq": False,
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.88.0.0/16"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    },
}
NOT_MINE = "Failed to match addr"
NEWEST = {"current": "1.1.0", "Debian": "1.0.0"}


class Site:
    """A machine with one release of the reference plugins, and a node elsewhere on the overlay."""

    def __init__(self, release: str, tool: CniTool, elsewhere: Node) -> None:
        self.release = release
        self.tool = tool
        self.machine = tool.machine
        self.node = tool.machine.node
        self.elsewhere = elsewhere

    def configure(self, *plugins: dict[str, Any]) -> None:
        version = NEWEST[self.release]
        self.tool.configure({"cniVersion": version, "name": "net", "plugins": plugins})

    def check(
        self, pod: NamedPod, *, excused: str = "", ifname: str = "eth0", **options: Any
    ) -> None:
        """CHECK succeeds, or fails with these words of another plugin whose CHECK is wrong; ours
        always succeeds."""
        if excused:
            assert excused in self.tool.refusal("check", pod, ifname=ifname, **options)
        else:
            self.tool("check", pod, ifname=ifname, **options)
        self.tool.check_alone(pod, ifname)

    def end(self, pod: NamedPod, **options: Any) -> None:
        """DEL, and assert that nothing is left of it in the pod or on the node."""
        self.tool("del", pod, **options)
        links = [link["ifname"] for link in pod.ip("link")]
        assert [name for name in links if name in ("eth0", "mycelium0", "net1")] == []
        assert leftovers(self.node) == []


@pytest.fixture(scope="module")
def sites(command: list[str], images: Images, reference_plugins: Path) -> Iterator[dict[str, Site]]:
    folders = {"current": reference_plugins, "Debian": DEBIAN_PLUGINS}
    with owned_lab(command) as lab:
        nodes = [lab.node(name) for name in ("elsewhere", *folders)]
        lab.connect(*nodes)
        sites = {}
        for node in nodes[1:]:
            machine = Machine(node, images.init, [folders[node.name]])
            tool = CniTool(machine, reference_plugins / "cnitool")
            sites[node.name] = Site(node.name, tool, nodes[0])
        yield sites
        for site in sites.values():
            site.machine.power_off()


@pytest.fixture(params=NEWEST)
def site(request: pytest.FixtureRequest, sites: dict[str, Site]) -> Iterator[Site]:
    site = sites[request.param]
    yield site
    site.machine.remove_pods()
    assert leftovers(site.node) == []


@pytest.fixture
def pod(site: Site) -> NamedPod:
    return site.machine.pod(f"pod-{next(_numbers)}")


_numbers = itertools.count()


def orders(meta: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The positions that a meta-plugin may have."""
    return {
        "after ours": [OURS, meta],
        "before ours": [BRIDGE, meta, OURS],
        "after both": [BRIDGE, OURS, meta],
    }


ORDERS = list(orders({}))
PORTS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
# CHECK of the reference bridge looks for every address of the result on its own interface, so any
# plugin behind it that adds an interface makes it fail (`disableCheck` in the list avoids that).
BRIDGE_CHECK = {"after ours": "", "before ours": NOT_MINE, "after both": NOT_MINE}
NEW_MAC = "02:00:5e:10:00:77"
LIMIT = 20_000_000  # bits per second


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("site", "backend"),
    [("current", "iptables"), ("current", "nftables"), ("Debian", "iptables")],
    indirect=["site"],
)
def test_portmap_leads_a_host_port_to_the_pod(
    site: Site, pod: NamedPod, backend: str, order: str
) -> None:
    meta: dict[str, Any] = {"type": "portmap", "capabilities": {"portMappings": True}}
    if site.release == "current":
        meta["backend"] = backend  # Debian's has no choice, and refuses to be asked
    site.configure(*orders(meta)[order])
    result = site.tool("add", pod, capabilities=PORTS)
    serve(pod, "through the port")
    excused = BRIDGE_CHECK[order]
    if site.release == "Debian" and order == "after ours":
        excused = "could not check ipv4 dnat"  # 1.1.1 asks for IPv4 rules of a pod without IPv4
    site.check(pod, excused=excused, capabilities=PORTS)
    overlay = site.node.overlay_address or ""
    if order == "after ours":
        assert page(site.elsewhere, overlay, 8080) == "through the port"
    else:  # portmap maps to the addresses of CNI_IFNAME alone, which are the bridge's
        assert page(site.node, "10.88.0.1", 8080) == "through the port"
    assert page(site.elsewhere, address(result)) == "through the port"
    site.end(pod, capabilities=PORTS)
    assert page(site.elsewhere, overlay, 8080, timeout_s=0.5) is None
    assert "8080" not in site.machine.run("nft", "list", "ruleset").stdout


@pytest.mark.parametrize("order", ORDERS)
def test_bandwidth_limits_the_interface_before_it(site: Site, pod: NamedPod, order: str) -> None:
    limits = {
        f"{way}{what}": value
        for way in ("ingress", "egress")
        for what, value in (("Rate", LIMIT), ("Burst", LIMIT // 50))
    }
    site.configure(*orders({"type": "bandwidth", **limits})[order])
    result = site.tool("add", pod)
    site.check(pod, excused=BRIDGE_CHECK[order])
    limited, source = address(result, 0), "10.88.0.1"
    if order == "after ours":
        source = site.node.overlay_address or ""
    else:  # eth0 is the bridge's; our mycelium0 stays free
        assert transfer(site.node, pod, address(result), 5_000_000).megabits_per_second > 40
    size = 1_500_000
    assert transfer(site.node, pod, limited, size).megabits_per_second < LIMIT / 1e6 * 1.05
    assert transfer(pod, site.node, source, size).megabits_per_second < LIMIT / 1e6 * 1.05
    site.end(pod)
    assert "tbf" not in site.machine.run("tc", "qdisc", "show").stdout


@pytest.mark.parametrize("order", ORDERS)
def test_tuning_changes_mac_and_switches(site: Site, pod: NamedPod, order: str) -> None:
    switches = {"net.core.somaxconn": "500", "net.ipv6.conf.eth0.hop_limit": "55"}
    meta = {"type": "tuning", "mac": NEW_MAC, "sysctl": switches}
    site.configure(*orders(meta)[order])
    result = site.tool("add", pod)
    ours, node = address(result), site.node.overlay_address or ""
    link = pod.link("eth0")
    assert link is not None
    assert link["address"] == NEW_MAC
    for name, value in switches.items():
        assert pod.run(["sysctl", "-n", name]).stdout.strip() == value
    for source, target in ((pod, node), (site.node, ours), (site.elsewhere, ours)):
        # tuning takes the link down for the new MAC; the kernel may need a moment to send again.
        answer = partial(source.ping, target)
        await_fact(
            lambda a=answer: a() is not None, f"{target} answering {source.name}", within_s=3
        )
    if order != "after ours":
        assert site.node.ping(address(result, 0)) is not None
    site.check(pod, excused=BRIDGE_CHECK[order])
    site.end(pod)


@pytest.mark.parametrize("order", ORDERS)
def test_firewall_lets_the_pod_out_of_a_closed_node(site: Site, pod: NamedPod, order: str) -> None:
    elsewhere = site.elsewhere.overlay_address or ""
    site.machine.run("ip6tables", "-P", "FORWARD", "DROP")
    try:
        site.configure(OURS)
        site.tool("add", pod)
        assert pod.ping(elsewhere, wait_s=0.5) is None
        site.end(pod)

        site.configure(*orders({"type": "firewall", "backend": "iptables"})[order])
        result = site.tool("add", pod)
        site.check(pod, excused=BRIDGE_CHECK[order])
        let_out = pod.ping(elsewhere, source=address(result), wait_s=0.5) is not None
        assert let_out is (order != "before ours")  # there it knows of IPv4 only
        assert site.node.ping(address(result)) is not None
        site.end(pod)
        saved = site.machine.run("ip6tables-save").stdout + site.machine.run("iptables-save").stdout
        assert address(result) not in saved
        assert "10.88." not in saved
    finally:
        site.machine.run("ip6tables", "-P", "FORWARD", "ACCEPT")


def test_sbr_after_ours_routes_by_source(site: Site, pod: NamedPod) -> None:
    """What sbr is for: answers of a second interface leave through that interface."""
    site.configure(BRIDGE)
    site.tool("add", pod)
    site.configure(OURS, {"type": "sbr"})
    result = site.tool("add", pod, ifname="net1")
    ours = address(result)
    rules = [rule for rule in pod.ip("-6", "rule") if rule["src"] == ours]
    assert len(rules) == 1
    (route,) = pod.ip("-6", "route", "get", "400::1", "from", ours)
    assert route["dev"] == "net1"
    serve(pod, "by source")
    for client in (site.node, site.elsewhere):
        assert page(client, ours) == "by source"
    assert pod.ping(site.elsewhere.overlay_address or "", source=ours) is not None
    site.check(pod, ifname="net1")
    site.tool("del", pod, ifname="net1")
    assert [rule for rule in pod.ip("-6", "rule") if rule["src"] == ours] == []
    site.configure(BRIDGE)
    site.end(pod)


def test_sbr_before_ours_leaves_the_overlay_alone(site: Site, pod: NamedPod) -> None:
    site.configure(BRIDGE, {"type": "sbr"}, OURS)
    result = site.tool("add", pod)
    serve(pod, "both ways")
    for client, target in ((site.node, address(result, 0)), (site.elsewhere, address(result))):
        assert page(client, target) == "both ways"
    site.check(pod, excused="Failed to find Gateway")  # the bridge again: sbr moved it
    site.end(pod)


def test_vrf_takes_our_interface_or_says_why_not(site: Site, pod: NamedPod) -> None:
    """Not every kernel has VRFs. Where it has none, the chain fails in vrf's words and DEL clears
    what ours had made."""
    site.configure(OURS, {"type": "vrf", "vrfname": "blue"})
    try:
        result = site.tool("add", pod)
    except LabError as error:
        assert 'plugin type="vrf" failed (add)' in str(error)
        assert has_no_vrf(site.machine)
    else:
        link = pod.link("eth0")
        assert link is not None
        assert link["master"] == "blue"
        assert site.node.ping(address(result)) is not None
        site.check(pod)
    site.end(pod)


def has_no_vrf(machine: Machine) -> bool:
    made = machine.run("ip", "link", "add", "probe", "type", "vrf", "table", "9", check=False)
    machine.run("ip", "link", "delete", "probe", check=False)
    return made.returncode != 0
