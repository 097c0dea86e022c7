# SPDX-License-Identifier: Apache-2.0
"""The kernel's state after ADD and after DEL, and what a pod can do with it, in both modes."""

from __future__ import annotations

import ipaddress
import json
import os
import struct
import time
from functools import partial
from typing import Any

import pytest
from attaching import (
    BRIDGE,
    OVERLAY,
    PROTOCOL,
    Attached,
    Mode,
    SharedNodes,
    at_once,
    attach,
    both_modes,
    network,
    reaches,
    refused,
    silent,
)
from observe import difference, kernel_state, set_sysctl, sysctl
from rawpackets import Wire

from mycelium_lab.lab import Lab, Namespace, Node, Pod, await_fact

ROUNDS = 20  # of first packets
KERNEL = tuple(int(number) for number in os.uname().release.split(".")[:2])
CROWD = 50  # at once
REPEATS = 100  # of DEL and ADD at once, in each mode; the soak does so by the thousand


@pytest.fixture
def node(shared_nodes: SharedNodes, mode: Mode) -> Node:
    """A node that other tests of the mode use as well."""
    return shared_nodes.pair(mode)[0]


@pytest.fixture
def pod(shared_nodes: SharedNodes, node: Node) -> Pod:
    (pod,) = shared_nodes.new_pods(node)
    return pod


def link(space: Namespace, name: str) -> dict[str, Any]:
    found = space.link(name)
    assert found is not None, f"no link {name}"
    return found


def routes(space: Namespace, *filters: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = space.ip("-6", "route", "show", *filters)
    return found


def subnet_of(node: Node) -> ipaddress.IPv6Network:
    return ipaddress.IPv6Network(f"{node.overlay_address}/64", strict=False)


# What is there


@both_modes
def test_both_links_are_what_the_result_says(node: Node, pod: Pod, mode: Mode) -> None:
    attached = attach(node, pod, network(mode), args="K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0")
    host_side, pod_side = attached.result["interfaces"]
    assert pod_side["name"] == "eth0"
    assert pod_side["sandbox"] == pod.path
    host_link, pod_link = link(node, host_side["name"]), link(pod, "eth0")
    for told, shown in ((host_side, host_link), (pod_side, pod_link)):
        assert told["mac"] == shown["address"]
        assert told["mtu"] == shown["mtu"] == link(node, "mycelium")["mtu"]
        assert shown["operstate"] == "UP"
        assert shown["linkinfo"]["info_kind"] == "veth"
    assert host_link["ifindex"] == pod_link["link_index"]
    assert host_link["link_index"] == pod_link["ifindex"]
    assert host_link.get("master") == (BRIDGE if mode == "bridge" else None)
    attached.delete()


@both_modes
def test_the_host_link_says_whose_it_is(shared_nodes: SharedNodes, node: Node, mode: Mode) -> None:
    one, two, other = shared_nodes.new_pods(node, 3)
    named = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"
    first = attach(node, one, network(mode), args=named)
    second = attach(node, two, network(mode))
    elsewhere = attach(node, other, network(mode, name="elsewhere"))
    shown = [link(node, a.host_link) for a in (first, second, elsewhere)]
    assert shown[0]["altnames"] == [first.address]
    assert shown[0]["group"] == shown[1]["group"]
    assert shown[0]["group"] not in ("default", shown[2]["group"])
    for word in ("shop/web-0", first.address, one.container_id, "overlay", "eth0"):
        assert word in shown[0]["ifalias"]
    (found,) = node.ip("link", "show", "dev", first.address)
    assert found["ifname"] == first.host_link
    for attached in (first, second, elsewhere):
        attached.delete()


@both_modes
def test_the_pod_has_one_address_that_was_never_tentative(node: Node, pod: Pod, mode: Mode) -> None:
    attached = attach(node, pod, network(mode))
    (entry,) = link(pod, "eth0")["addr_info"]
    assert (entry["local"], entry["scope"]) == (attached.address, "global")
    assert entry["prefixlen"] == (64 if mode == "bridge" else 128)
    address = ipaddress.IPv6Address(entry["local"])
    assert address in subnet_of(node)
    assert address.packed[8:10] == b"\xff\x0f"
    attached.delete()


@both_modes
def test_no_address_is_tentative_when_add_returns(command: list[str], mode: Mode) -> None:
    """On a new node, where ADD makes everything: not on the bridge, lo or the host link either."""
    with Lab(command) as lab:
        node = lab.node("a")
        lab.connect(node)
        before = {entry["ifname"] for entry in node.ip("link")} - {"lo"}
        attached = attach(node, "pod", network(mode))
        spaces = (node, attached.pod)
        shown = [entry for space in spaces for entry in space.ip("addr") if entry]
    new = [entry for entry in shown if entry["ifname"] not in before]
    assert len(new) > 3
    for entry in new:
        for address in entry["addr_info"]:
            assert not address.keys() & {"tentative", "dadfailed"}, entry


@both_modes
def test_the_pod_routes_the_overlay_and_nothing_else(node: Node, pod: Pod, mode: Mode) -> None:
    attached = attach(node, pod, network(mode))
    ours = [r for r in routes(pod) if r["protocol"] == PROTOCOL]
    expected = {OVERLAY} if mode == "routed" else {OVERLAY, str(node.overlay_address)}
    assert {route["dst"] for route in ours} == expected
    for route in ours:
        assert (route["gateway"], route["dev"]) == (attached.gateway, "eth0")
    gateway = "fe80::1" if mode == "routed" else str(subnet_of(node)[1])
    assert attached.gateway == gateway
    assert routes(pod, "default") == []
    told = {route["dst"] for route in attached.result["routes"]}
    assert told == {OVERLAY} | ({f"{node.overlay_address}/128"} if mode == "bridge" else set())
    attached.delete()


@pytest.mark.parametrize("mode", ["routed"])
def test_the_node_routes_to_the_pod_and_knows_its_neighbour(node: Node, pod: Pod) -> None:
    attached = attach(node, pod, network("routed"))
    (route,) = routes(node, attached.address)
    assert route["dev"] == attached.host_link
    assert route["prefsrc"] == node.overlay_address
    (there,) = node.ip("-6", "neigh", "show", "to", attached.address)
    assert (there["lladdr"], there["dev"]) == (attached.pod_mac, attached.host_link)
    (back,) = pod.ip("-6", "neigh", "show")
    assert (back["dst"], back["state"]) == ("fe80::1", ["PERMANENT"])
    assert back["lladdr"] == link(node, attached.host_link)["address"]
    attached.delete()


@both_modes
def test_the_node_has_no_route_more_than_a_pod_needs(node: Node, pod: Pod, mode: Mode) -> None:
    """It walks all of them for each new pod."""
    attached = attach(node, pod, network(mode))
    expected = []
    if mode == "routed":
        (own,) = link(node, attached.host_link)["addr_info"]
        expected = ["multicast ff00::/8", f"local {own['local']}", f"unicast {attached.address}"]
    shown = routes(node, "table", "all", "dev", attached.host_link)
    assert sorted(f"{r.get('type', 'unicast')} {r['dst']}" for r in shown) == sorted(expected)
    attached.delete()


@both_modes
def test_the_node_hears_no_arp_from_pods(node: Node, pod: Pod, mode: Mode) -> None:
    """Each answered request would take an entry of a table that the whole machine shares."""
    attached = attach(node, pod, network(mode))
    node.configure("address replace 192.0.2.1/32 dev lo")
    for link_name in ("all", attached.host_link):
        set_sysctl(node, f"ipv4/conf/{link_name}/rp_filter", "0")
    wire = Wire(pod, "eth0")
    target = bytes((192, 0, 2, 1))
    requests = [
        struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 1, wire.mac, sender, bytes(6), target)
        for sender in (bytes((198, 51, 100, number)) for number in range(1, 151))
    ]
    with wire.socket:
        wire.send(requests, b"\xff" * 6, kind=0x806)
    assert reaches(pod, str(node.overlay_address))  # what was sent before has arrived
    heard = BRIDGE if mode == "bridge" else attached.host_link
    known = node.ip("-4", "neigh", "show", "nud", "all", "dev", heard)
    assert [entry["dst"] for entry in known if entry["dst"].startswith("198.51.100.")] == []
    node.configure("address del 192.0.2.1/32 dev lo")
    attached.delete()


@pytest.mark.parametrize("mode", ["bridge"])
def test_node_and_pod_on_a_bridge_need_not_ask_for_each_other(node: Node, pod: Pod) -> None:
    """A discovered neighbour counts towards a limit of the whole machine, 1,024: with one on either
    side of each pod, the 511th pod and all later ones were unreachable."""
    attached = attach(node, pod, network("bridge"))
    assert reaches(node, attached.address)
    assert reaches(pod, attached.gateway)
    there = node.ip("-6", "neigh", "show", "to", attached.address)
    back = pod.ip("-6", "neigh", "show")
    assert [(n["lladdr"], n["dev"], n["state"]) for n in there] == [
        (attached.pod_mac, BRIDGE, ["PERMANENT"])
    ]
    assert [(n["dst"], n["lladdr"], n["state"]) for n in back] == [
        (attached.gateway, link(node, BRIDGE)["address"], ["PERMANENT"])
    ]
    silent(attached.delete())
    assert node.ip("-6", "neigh", "show", "to", attached.address) == []


def test_the_gateway_on_a_bridge_that_somebody_else_made_answers_at_once(
    command: list[str],
) -> None:
    """Without `nodad` its address waits for the carrier that the first pod brings, and then for two
    seconds."""
    with Lab(command) as lab:
        node = lab.node("a")
        lab.connect(node)
        gateway = str(subnet_of(node)[1])
        node.configure(
            f"link add {BRIDGE} type bridge",
            f"link set {BRIDGE} up",
            f"address add {gateway}/64 dev {BRIDGE}",
        )
        attached = attach(node, "pod", network("bridge"))
        assert attached.pod.ping(gateway) is not None
        (entry,) = (a for a in link(node, BRIDGE)["addr_info"] if a["local"] == gateway)
        assert "protocol" not in entry  # it is not ours to remove


def test_a_port_that_spanning_tree_holds_back_is_awaited_or_refused(command: list[str]) -> None:
    with Lab(command) as lab:
        node = lab.node("a")
        lab.connect(node)
        pod = node.pod("pod")
        node.configure(f"link add {BRIDGE} type bridge stp_state 1", f"link set {BRIDGE} up")
        says = f"ip link set dev {BRIDGE} type bridge stp_state 0"
        refused(node.plugin("ADD", network("bridge"), pod), 100, says=says)
        node.configure(f"link set {BRIDGE} type bridge forward_delay 200")  # 2 s, the least
        attached = attach(node, pod, network("bridge"))
        assert pod.ping(attached.gateway) is not None
        assert node.ping(attached.address) is not None


@pytest.mark.parametrize("ours", [True, False])
def test_ipv6_that_is_off_on_the_bridge_is_switched_on(command: list[str], *, ours: bool) -> None:
    with Lab(command) as lab:
        node = lab.node("a")
        lab.connect(node)
        older = [attach(node, "older", network("bridge"))] if ours else []
        if not ours:
            node.configure(f"link add {BRIDGE} type bridge", f"link set {BRIDGE} up")
        set_sysctl(node, f"ipv6/conf/{BRIDGE}/disable_ipv6", "1")
        for each in (attach(node, "pod", network("bridge")), *older):
            assert reaches(node, each.address)
            silent(each.check())


@pytest.mark.parametrize("flaw", ["/128 nodad", "/64 nodad noprefixroute"])
def test_a_bridge_without_a_route_to_its_pods_is_refused(command: list[str], flaw: str) -> None:
    with Lab(command) as lab:
        node = lab.node("a")
        lab.connect(node)
        pod, subnet = node.pod("pod"), subnet_of(node)
        node.configure(
            f"link add {BRIDGE} type bridge",
            f"link set {BRIDGE} up",
            f"address add {subnet[1]}{flaw} dev {BRIDGE}",
        )
        remedy = f"ip -6 route add {subnet} dev {BRIDGE} metric 256 proto 2"
        refused(node.plugin("ADD", network("bridge"), pod), 101, says=f"`{remedy}`")
        node.run(remedy.split())
        attached = attach(node, pod, network("bridge"))
        assert node.ping(attached.address) is not None
        assert pod.ping(attached.gateway) is not None


@pytest.mark.parametrize("mode", ["bridge"])
def test_the_bridge_carries_the_gateway(node: Node, pod: Pod) -> None:
    attached = attach(node, pod, network("bridge"))
    bridge = link(node, BRIDGE)
    carried = {entry["local"]: entry["prefixlen"] for entry in bridge["addr_info"]}
    assert carried[attached.gateway] == 64
    assert bridge["operstate"] == "UP"
    attached.delete()


@both_modes
def test_the_mtu_of_both_ends_is_the_interfaces(command: list[str], mode: Mode) -> None:
    with Lab(command) as lab:
        node = lab.node("a")
        lab.connect(node)
        node.configure("link set mycelium mtu 1320")
        attached = attach(node, "pod", network(mode))
        assert link(attached.pod, "eth0")["mtu"] == 1320
        assert link(node, attached.host_link)["mtu"] == 1320


@both_modes
def test_both_ends_have_one_queue(node: Node, pod: Pod, mode: Mode) -> None:
    """Else the kernel makes one per CPU, and waits until it has switched the others off."""
    attached = attach(node, pod, network(mode))
    for end in (link(pod, "eth0"), link(node, attached.host_link)):
        assert (end["num_tx_queues"], end["num_rx_queues"]) == (1, 1)


@both_modes
def test_the_mtu_of_both_ends_can_be_set(node: Node, pod: Pod, mode: Mode) -> None:
    attached = attach(node, pod, network(mode, mtu=1280))
    assert link(pod, "eth0")["mtu"] == link(node, attached.host_link)["mtu"] == 1280
    attached.delete()


@both_modes
def test_routes_have_the_words_of_the_configuration(node: Node, pod: Pod, mode: Mode) -> None:
    wanted = [
        {"dst": "400::/8", "mtu": 1380, "advmss": 1200, "priority": 50},
        {"dst": "500::/8", "table": 1000},
        {"dst": "2001:db8:5::/48"},
    ]
    attached = attach(node, pod, network(mode, routes=wanted, defaultRoute=True))
    (eight,) = routes(pod, "400::/8")
    assert eight["metric"] == 50
    assert eight["metrics"] == [{"mtu": 1380, "advmss": 1200}]
    (other,) = routes(pod, "table", "1000")
    assert (other["dst"], other["gateway"]) == ("500::/8", attached.gateway)
    for destination in ("2001:db8:5::/48", "default"):
        (route,) = routes(pod, destination)
        assert (route["gateway"], route["dev"]) == (attached.gateway, "eth0")
    assert routes(pod, OVERLAY) == []
    attached.delete()


@both_modes
@pytest.mark.parametrize("name", ["net1", "a.b-c_d@15bytes", "é"])
def test_the_pod_link_is_named_as_the_runtime_says(
    node: Node, pod: Pod, mode: Mode, name: str
) -> None:
    attached = attach(node, pod, network(mode), ifname=name)
    assert attached.pod_link == name
    assert reaches(node, attached.address)
    silent(attached.check())
    attached.delete()


@both_modes
@pytest.mark.parametrize("chosen", [{}, {"interfaceName": "overlay7"}], ids=["default", "chosen"])
def test_a_pod_that_has_an_interface_gains_another(
    node: Node, pod: Pod, mode: Mode, chosen: dict[str, str]
) -> None:
    name = chosen.get("interfaceName", "mycelium0")
    pod.configure("link add eth0 type veth peer name other", "link set eth0 up")
    before = link(pod, "eth0")
    made = {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": pod.path}]}
    attached = attach(node, pod, network(mode, prevResult=made, **chosen))
    assert attached.pod_link == name
    assert link(pod, "eth0") == before
    assert reaches(node, attached.address)
    silent(attached.check())
    silent(attached.delete())
    assert pod.link(name) is None
    assert link(pod, "eth0") == before


@both_modes
@pytest.mark.parametrize("scope", ["all", "default"])
def test_a_namespace_without_ipv6_gets_it(node: Node, pod: Pod, mode: Mode, scope: str) -> None:
    for where in {scope, "default", "lo"}:
        set_sysctl(pod, f"ipv6/conf/{where}/disable_ipv6", "1")
    attached = attach(node, pod, network(mode))
    assert reaches(node, attached.address)
    assert reaches(pod, "::1")
    assert sysctl(pod, "ipv6/conf/default/disable_ipv6") == "1"
    attached.delete()


TRAPS = {
    "disable_ipv6": "1",
    "accept_ra": "2",
    "autoconf": "1",
    "accept_dad": "2",
    "dad_transmits": "5",
    "addr_gen_mode": "3",
    "use_tempaddr": "2",
    "forwarding": "0",
    "proxy_ndp": "0",
    "mtu": "1280",
    "keep_addr_on_down": "-1",
    "drop_unsolicited_na": "1",
    "ignore_routes_with_linkdown": "1",
    "seg6_enabled": "0",
}


@both_modes
@pytest.mark.parametrize("where", ["node", "pod"])
def test_defaults_for_new_links_do_not_matter(command: list[str], mode: Mode, where: str) -> None:
    with Lab(command) as lab:
        node = lab.node("a")
        lab.connect(node)
        pod = node.pod("pod")
        for name, value in TRAPS.items():
            set_sysctl(node if where == "node" else pod, f"ipv6/conf/default/{name}", value)
        attached = attach(node, pod, network(mode))
        assert reaches(node, attached.address)
        assert reaches(pod, str(node.overlay_address))
        (entry,) = link(pod, "eth0")["addr_info"]
        assert entry["local"] == attached.address
        if mode == "routed":
            assert sysctl(node, f"ipv6/conf/{attached.host_link}/accept_ra") == "0"
        silent(attached.check())


@pytest.mark.skipif("MYCELIUM_CNI_COMMAND" not in os.environ, reason="the static file's own way")
@both_modes
@pytest.mark.parametrize("step", ["works", "fsopen", "fsconfig", "fsmount"])
def test_where_namespaces_are_many_settings_are_found_without_the_shared_proc(
    command: list[str], mode: Mode, step: str
) -> None:
    """The kernel looks for them among those of all namespaces. Where a procfs is refused, ADD does
    so too."""
    with Lab(command) as lab:
        node = lab.node("a")
        lab.connect(node)
        attach(node, "first", network(mode))
        pod = node.pod("pod")
        node.run(["ip", "netns", "set", pod.netns, "500"])
        gone = [f"link add gone{number} group 77 type veth" for number in range(65)]
        node.configure(*gone, "link delete group 77")
        trace = lab.directory / "trace"
        strace = ["strace", "-qq", "-o", str(trace), "-e", "trace=openat,/fs.*"]
        strace += [] if step == "works" else ["-e", f"inject={step}:error=EPERM"]
        lab.command[:] = [*strace, *command]
        attached = attach(node, pod, network(mode))
        lab.command[:] = command
        assert ("/proc/sys/net/ipv6" in trace.read_text()) == (step != "works")
        assert "fsopen" in trace.read_text()
        for name, value in {
            "accept_ra": "0",
            "keep_addr_on_down": "1",
            "ndisc_notify": "1",
        }.items():
            assert sysctl(pod, f"ipv6/conf/eth0/{name}") == value
        if mode == "routed":
            assert sysctl(node, f"ipv6/conf/{attached.host_link}/proxy_ndp") == "1"
        assert reaches(node, attached.address)
        silent(attached.check())


SEEDS = {
    "grid": {"cniVersion": "0.4.0", "name": "mycelium", "type": "mycelium-cni"},
    "multus": {"cniVersion": "0.1.0", "name": "mycelium-cni-network", "type": "mycelium-cni"},
    "host-daemon": {
        "cniVersion": "1.0.0",
        "name": "mycelium-network",
        "type": "mycelium-cni",
        "myceliumInterface": "mycelium",
    },
}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_configurations_of_the_seeds_work_unchanged(pair: tuple[Node, Node], seed: str) -> None:
    here, there = pair
    pods = [node.pod("pod") for node in pair]
    results = [
        node.plugin("ADD", SEEDS[seed], p).succeeded() for node, p in zip(pair, pods, strict=True)
    ]
    told = [r["ip6"]["ip"] if "ip6" in r else r["ips"][0]["address"] for r in results]
    addresses = [text.partition("/")[0] for text in told]
    assert reaches(here, addresses[0])
    assert reaches(pods[0], addresses[1])
    assert reaches(pods[1], addresses[0])
    assert reaches(pods[1], str(here.overlay_address))
    for node, p in zip(pair, pods, strict=True):
        silent(node.plugin("DEL", SEEDS[seed], p))
    assert there.link("mycelium") is not None


# At once usable


def dropped(space: Namespace) -> int:
    """How many echo requests arrived whose answers the kernel dropped: its ICMP sockets serve all
    namespaces of the machine, and others may have filled them."""
    counters = space.run(["cat", "/proc/net/snmp6"]).stdout
    (line,) = (line for line in counters.splitlines() if line.startswith("Ip6OutDiscards"))
    return int(line.split()[1])


@both_modes
def test_the_first_packet_is_answered_each_way(shared_nodes: SharedNodes, mode: Mode) -> None:
    left, right = shared_nodes.pair(mode)
    conf = network(mode)
    lost: list[str] = []

    def first(way: str, source: Namespace, there: Namespace, address: str | None) -> None:
        before = dropped(there)
        if source.ping(str(address)) is None and dropped(there) == before:
            lost.append(way)

    for number in range(ROUNDS):
        a, b, c, d = (attach(left, pod, conf) for pod in shared_nodes.new_pods(left, 4))
        first("node to pod", left, a.pod, a.address)
        first("pod to node", b.pod, left, left.overlay_address)
        first("pod to pod", c.pod, d.pod, d.address)
        ends = [attach(node, shared_nodes.new_pods(node)[0], conf) for node in (left, right)]
        near, far = ends if number % 2 else reversed(ends)
        first("pod to pod elsewhere", near.pod, far.pod, far.address)
        for attached in (a, b, c, d, *ends):
            attached.pod.remove()
    assert lost == []


# Addresses


@both_modes
def test_a_pod_keeps_its_stable_address(shared_nodes: SharedNodes, node: Node, mode: Mode) -> None:
    conf = network(mode, addressing="stable")
    first, second, third = shared_nodes.new_pods(node, 3)
    web = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"
    attached = attach(node, first, conf, args=web)
    other = attach(node, second, conf, args=web.replace("web-0", "web-1"))
    assert other.address != attached.address
    taken = node.plugin("ADD", conf, third, args=web)
    refused(taken, 101, says=first.container_id)
    silent(attached.delete())
    again = attach(node, third, conf, args=web)
    assert again.address == attached.address
    assert reaches(node, again.address)
    silent(again.delete())
    silent(other.delete())


@both_modes
def test_a_requested_address_and_mac_are_the_pods(node: Node, pod: Pod, mode: Mode) -> None:
    wanted = str(subnet_of(node)[0xFFFF_0000_0000_0007])
    attached = attach(node, pod, network(mode), args=f"IP={wanted};MAC=c2:00:00:00:00:07")
    shown = link(pod, "eth0")
    assert [entry["local"] for entry in shown["addr_info"]] == [wanted]
    assert shown["address"] == "c2:00:00:00:00:07"
    assert reaches(node, wanted)
    attached.delete()


@both_modes
@pytest.mark.parametrize("whose", ["node", "first", "zero"])
def test_addresses_that_are_not_for_pods_are_refused(
    node: Node, pod: Pod, mode: Mode, whose: str
) -> None:
    subnet = subnet_of(node)
    address = {"node": node.overlay_address, "first": subnet[1], "zero": subnet[0]}[whose]
    before = kernel_state(node, pod)
    refused(node.plugin("ADD", network(mode), pod, args=f"IP={address}"), 101, says=str(address))
    assert difference(before, kernel_state(node, pod)) == []


@both_modes
def test_of_parallel_adds_of_one_address_exactly_one_succeeds(
    command: list[str], mode: Mode
) -> None:
    """On an unprepared node, where they also compete in making the bridge."""
    with Lab(command) as lab:
        node = lab.node("a")
        lab.connect(node)
        wanted = str(subnet_of(node)[0xFF0F << 48 | 7])
        pods = [node.pod(f"p{number}") for number in range(CROWD)]

        def add(pod: Pod) -> Any:
            name = f"K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod.pod_name}"
            return node.plugin("ADD", network(mode), pod, args=f"{name};IP={wanted}")

        outcomes = at_once([partial(add, pod) for pod in pods])
        winners = [pod for pod, call in zip(pods, outcomes, strict=True) if call.code == 0]
        assert len(winners) == 1
        for call in outcomes:
            if call.code != 0:
                refused(call, 101, says=f"shop/{winners[0].pod_name}")
                refused(call, 101, says=winners[0].container_id)
        assert reaches(node, wanted)
        assert reaches(winners[0], str(node.overlay_address))
        ours = [entry for entry in node.ip("link") if wanted in entry.get("altnames", [])]
        assert len(ours) == 1
        for pod in pods:
            assert (pod.link("eth0") is not None) == (pod in winners)


@both_modes
def test_parallel_adds_all_work_and_leave_nothing(command: list[str], mode: Mode) -> None:
    with Lab(command) as lab:
        node = lab.node("a")
        lab.connect(node)
        conf = network(mode)
        attach(node, "first", conf)
        pods = [node.pod(f"p{number}") for number in range(CROWD)]
        before = kernel_state(node, *pods)
        made = at_once([partial(attach, node, pod, conf) for pod in pods])
        assert len({attached.address for attached in made}) == CROWD
        assert len({attached.host_link for attached in made}) == CROWD
        assert [a.pod.pod_name for a in made if not reaches(node, a.address)] == []
        for call in at_once([attached.delete for attached in made]):
            silent(call)
        assert difference(before, kernel_state(node, *pods)) == []


# More than one, and again


@both_modes
def test_a_container_may_have_two_interfaces(
    shared_nodes: SharedNodes, pod: Pod, mode: Mode
) -> None:
    """Both work without any routes in the configuration. DEL of the second leaves nothing in the
    pod, which keeps running, and the first keeps its routes for its own address."""
    node, far = shared_nodes.pair(mode)
    one = attach(node, pod, network(mode), ifname="eth0")
    before = kernel_state(pod)
    two = attach(node, pod, network(mode), ifname="net1")
    assert one.address != two.address
    assert one.host_link != two.host_link
    assert pod.ip("-6", "route", "get", "400::1")[0]["dev"] == "eth0"
    for attached in (one, two):
        silent(attached.check())
        for client in (node, far):
            assert reaches(client, attached.address)
        assert reaches(pod, str(far.overlay_address), source_address=attached.address)
    silent(two.delete())
    for route in pod.ip("-6", "route", "show", "table", "local", "from", one.address):
        pod.configure(f"route del {route['dst']} from {one.address} table local")
    assert difference(before, kernel_state(pod)) == []
    silent(one.check())
    assert reaches(node, one.address)
    silent(one.delete())


@both_modes
def test_a_second_add_is_refused_and_the_first_stays(node: Node, pod: Pod, mode: Mode) -> None:
    attached = attach(node, pod, network(mode))
    before = kernel_state(node, pod)
    refused(node.plugin("ADD", network(mode), pod), 102, says=attached.host_link)
    assert difference(before, kernel_state(node, pod)) == []
    silent(attached.check())
    assert reaches(node, attached.address)
    silent(attached.delete())


@both_modes
@pytest.mark.parametrize("netns", ["alive", "empty", "missing", "plain file", "the node's own"])
def test_del_leaves_nothing_and_may_be_repeated(
    shared_nodes: SharedNodes, node: Node, mode: Mode, netns: str
) -> None:
    attach(node, shared_nodes.new_pods(node)[0], network(mode))  # the node is prepared
    (pod,) = shared_nodes.new_pods(node)
    # A DEL that finds nothing removes what pods of earlier tests left that ended without one.
    silent(node.plugin("DEL", network(mode), pod))
    plain = node.lab.directory / "plain"
    plain.touch()
    before = kernel_state(node, pod)
    attach(node, pod, network(mode))
    path = {
        "alive": pod.path,
        "empty": "",
        "missing": "/run/netns/nowhere",
        "plain file": str(plain),
        "the node's own": node.path,
    }[netns]
    for _ in range(2):
        silent(node.plugin("DEL", network(mode), pod, CNI_NETNS=path))
        assert difference(before, kernel_state(node, pod)) == []


@both_modes
def test_del_finds_an_attachment_whose_namespace_is_unmounted_but_alive(
    shared_nodes: SharedNodes, node: Node, mode: Mode
) -> None:
    (pod,) = shared_nodes.new_pods(node)
    attached = attach(node, pod, network(mode))
    keeper = pod.start(["sh", "-c", "echo inside; exec sleep 1000"])
    await_fact(keeper.output, "a process in the pod")
    pod.remove()
    silent(attached.delete())
    assert node.link(attached.host_link) is None
    assert keeper.running
    keeper.stop()


@both_modes
def test_a_pod_that_ends_without_del_takes_everything_with_it(
    shared_nodes: SharedNodes, node: Node, mode: Mode
) -> None:
    earlier, pod = shared_nodes.new_pods(node, 2)
    attach(node, earlier, network(mode))  # the node is prepared
    before = kernel_state(node)["left"]
    attached = attach(node, pod, network(mode))
    pod.remove()
    await_fact(lambda: node.link(attached.host_link) is None, "the kernel's tidying")
    after = kernel_state(node)["left"]
    kept = {key: [before[key], after[key]] for key in before if before[key] != after[key]}
    # Bridge mode: what the guard and the node still have of an address that no pod has any more.
    assert kept.keys() <= ({"nft", "neighbours"} if mode == "bridge" else set()), kept
    silent(attached.delete())
    assert difference(before, kernel_state(node)["left"]) == []
    (heir,) = shared_nodes.new_pods(node)
    again = attach(node, heir, network(mode), args=f"IP={attached.address}")
    assert reaches(node, again.address)
    silent(again.delete())


def delete_slowly(attached: Attached, microseconds: int, trace: str) -> str:
    """DEL, whose child process, which waits for the kernel, starts so late; what strace saw."""
    node, pod, log = attached.node, attached.pod, attached.node.lab.directory / "slow"
    slowly = ["-e", f"trace={trace}", "-e", f"inject=setsid:delay_enter={microseconds}"]
    strace = ["strace", "-D", "-f", "-qq", "-o", str(log), *slowly]
    env = {
        "CNI_COMMAND": "DEL",
        "CNI_CONTAINERID": pod.container_id,
        "CNI_NETNS": pod.path,
        "CNI_IFNAME": "eth0",
    }
    # Without pipes, which strace would hold open: the end of DEL is what counts.
    argv = ["sh", "-c", 'exec "$@" >/dev/null 2>&1', "sh", *strace, *node.lab.command]
    node.run(argv, env=env, input=json.dumps(attached.conf), timeout_s=30)
    return log.read_text()


@both_modes
def test_del_does_not_return_before_everything_is_gone(node: Node, pod: Pod, mode: Mode) -> None:
    attached = attach(node, pod, network(mode))
    began = time.monotonic()
    delete_slowly(attached, 300_000, "setsid")
    assert node.link(attached.host_link) is None
    assert time.monotonic() - began > 0.3
    assert pod.link("eth0") is None
    assert node.ip("-6", "route", "show", attached.address) == []


def test_del_does_the_work_of_a_child_that_gets_no_turn(lab: Lab) -> None:
    """Until then it asks now and then. Processes that asked all the time have kept such a child
    from its turn, and from the kernel's lock everybody else."""
    node = lab.node("a")
    lab.connect(node)
    attached = attach(node, "pod", network("routed"))
    seen = delete_slowly(attached, 60_000_000, "setsid,sendto")
    assert node.link(attached.host_link) is None
    assert 50 < seen.count("sendto(") < 400


@both_modes
def test_add_works_at_once_after_del(node: Node, pod: Pod, mode: Mode) -> None:
    """With the same names and address in the same namespace, over and over."""
    conf = network(mode)
    attached = attach(node, pod, conf)
    for _ in range(REPEATS):
        silent(attached.delete())
        attached = attach(node, pod, conf, args=f"IP={attached.address}")
    assert reaches(node, attached.address)
    silent(attached.delete())


# Later


def assert_talk(attached: Attached, *, within_s: float = 5) -> None:
    """Wait until node and pod answer each other."""
    node, pod = attached.node, attached.pod
    for source, address in ((node, attached.address), (pod, str(node.overlay_address))):
        what = f"an answer of {address} to {source.name}"
        await_fact(partial(_answered, source, address), what, within_s=within_s)


def _answered(source: Namespace, address: str) -> bool:
    return source.ping(address, wait_s=0.5) is not None


@pytest.mark.parametrize("mode", ["routed"])
def test_a_pod_whose_mac_is_changed_later_stays_reachable(
    shared_nodes: SharedNodes, node: Node, pod: Pod, mode: Mode
) -> None:
    """As the reference plugin `tuning` does it. On a bridge the MAC is part of what a pod may send,
    and there the capability `mac` is the way to choose one."""
    attached = attach(node, pod, network(mode))
    assert_talk(attached)
    pod.configure("link set eth0 address c2:00:00:00:00:09")
    assert_talk(attached)
    far = shared_nodes.pair(mode)[1]
    await_fact(lambda: reaches(far, attached.address), "an answer to the other node")
    attached.delete()


@both_modes
def test_a_pod_that_lost_its_neighbours_finds_them_again(node: Node, pod: Pod, mode: Mode) -> None:
    attached = attach(node, pod, network(mode))
    assert_talk(attached)
    for entry in pod.ip("-6", "neigh", "show", "nud", "all"):
        pod.configure(f"neigh del {entry['dst']} dev {entry['dev']}")
    assert_talk(attached)
    attached.delete()


@both_modes
def test_a_node_that_lost_its_neighbours_finds_them_again(node: Node, pod: Pod, mode: Mode) -> None:
    attached = attach(node, pod, network(mode))
    assert_talk(attached)
    device = BRIDGE if mode == "bridge" else attached.host_link
    node.run(["ip", "-6", "neigh", "flush", "dev", device, "nud", "all"])
    assert_talk(attached)
    attached.delete()


@both_modes
def test_a_pod_in_use_is_reachable_after_its_neighbour_entry_has_aged(
    shared_nodes: SharedNodes, node: Node, pod: Pod, mode: Mode
) -> None:
    """Pinged from the overlay, so that nothing on the node confirms the entry. The kernel lets it
    age for half a minute and then probes it; here both take milliseconds."""
    far = shared_nodes.pair(mode)[1]
    attached = attach(node, pod, network(mode))
    device = BRIDGE if mode == "bridge" else attached.host_link
    assert reaches(far, attached.address)
    times = {"base_reachable_time_ms": "50", "delay_first_probe_time": "0", "retrans_time_ms": "20"}
    for name, value in times.items():
        set_sysctl(node, f"ipv6/neigh/{device}/{name}", value)
    (entry,) = node.ip("-6", "neigh", "show", "to", attached.address)
    if "PERMANENT" not in entry["state"]:
        state = "extern_learn" if "extern_learn" in entry else ""
        line = f"{attached.address} lladdr {entry['lladdr']} dev {device} nud stale {state}"
        node.configure(f"neigh replace {line}")
    for _ in range(20):
        assert reaches(far, attached.address)
    attached.delete()


@both_modes
def test_a_pod_whose_link_was_down_for_a_moment_stays_reachable(
    node: Node, pod: Pod, mode: Mode
) -> None:
    """The kernel drops all routes of a link that goes down: the pod must make its own again, but
    nothing is missing on the node."""
    attached = attach(node, pod, network(mode))
    lost = [r["dst"] for r in routes(pod) if r["protocol"] == PROTOCOL]
    again = [f"route add {dst} via {attached.gateway} dev eth0" for dst in lost]
    pod.configure("link set eth0 down", "link set eth0 up", *again)
    assert_talk(attached)
    attached.delete()


# What keeps a routed link alive


def test_a_gateway_is_found_again_where_new_links_do_not_forward(shared_nodes: SharedNodes) -> None:
    """The kernel answers by proxy only on links that forward."""
    node, far = shared_nodes.pair("routed")
    prepared, pod = shared_nodes.new_pods(node, 2)
    attach(node, prepared, network("routed"))  # the first ADD switches forwarding on everywhere
    set_sysctl(node, "ipv6/conf/default/forwarding", "0")
    try:
        attached = attach(node, pod, network("routed"))
    finally:
        set_sysctl(node, "ipv6/conf/default/forwarding", "1")
    pod.configure("neigh del fe80::1 dev eth0")
    assert reaches(pod, str(far.overlay_address))
    assert sysctl(node, f"ipv6/conf/{attached.host_link}/forwarding") == "1"
    assert sysctl(node, f"ipv6/neigh/{attached.host_link}/proxy_delay") == "0"
    silent(attached.delete())


@pytest.mark.skipif(KERNEL < (6, 17), reason="the kernel knows no validated neighbours")
def test_a_firewall_that_drops_what_a_pod_answers_does_not_make_it_deaf(
    shared_nodes: SharedNodes,
) -> None:
    """Not even when its link has been down, after which the kernel would ask for it again."""
    node, _ = shared_nodes.pair("routed")
    (pod,) = shared_nodes.new_pods(node)
    attached = attach(node, pod, network("routed"))
    (gateway,) = pod.ip("-6", "neigh", "show", "fe80::1", "nud", "all")
    drop = "add rule ip6 strict in icmpv6 type nd-neighbor-advert drop"
    chain = "add chain ip6 strict in { type filter hook input priority 0; }"
    node.run(["nft", f"add table ip6 strict; {chain}; {drop}"])
    try:
        pod.configure(
            "link set eth0 down",
            "link set eth0 up",
            f"neigh add fe80::1 lladdr {gateway['lladdr']} dev eth0 nud permanent",
            "route add 400::/7 via fe80::1 dev eth0",
        )
        assert reaches(node, attached.address)
    finally:
        node.run(["nft", "delete table ip6 strict"])
    silent(attached.delete())
