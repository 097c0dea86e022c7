# SPDX-License-Identifier: Apache-2.0
"""Owners of addresses and MACs: nobody gets what another has, and a pod that gets a used address is
reachable at once."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from attaching import (
    BRIDGE,
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
from observe import difference, kernel_state, sysctl

from mycelium_lab.lab import Node, await_fact

MAC, OTHER_MAC = "02:00:5e:10:00:01", "02:00:5e:10:00:02"
SHOP = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=db-0"
CROWD = 12


def subnet_of(node: Node) -> ipaddress.IPv6Network:
    return ipaddress.IPv6Network(f"{node.overlay_address}/64", strict=False)


# No link-local address, which would come up while the state is compared with an earlier one.
QUIET = ("link set nic0 addrgenmode none", "link set nic1 addrgenmode none")


@pytest.fixture
def node(shared_nodes: SharedNodes, mode: Mode) -> Node:
    return shared_nodes.pair(mode)[0]


# An address that is used again


@pytest.mark.parametrize(
    "macs",
    [("", ""), (MAC, ""), ("", MAC), (MAC, OTHER_MAC)],
    ids=["own-own", "asked-own", "own-asked", "asked-asked"],
)
@pytest.mark.parametrize("addressing", ["stable", "random"])
@both_modes
def test_a_pod_that_gets_an_address_again_is_found_at_once(
    shared_nodes: SharedNodes, mode: Mode, addressing: str, macs: tuple[str, str]
) -> None:
    """By its node, by its neighbour and on the overlay, where the last pod with that address, and
    maybe another MAC, is still remembered."""
    node, afar = shared_nodes.pair(mode)
    (neighbour,) = shared_nodes.new_pods(node)
    kept = attach(node, neighbour, network(mode))
    conf = network(mode, addressing=addressing)
    address = SHOP if addressing == "stable" else f"IP={subnet_of(node)[7 << 48 | 7]}"
    for mac in macs:
        (pod,) = shared_nodes.new_pods(node)
        attached = attach(node, pod, conf, args=f"{address};MAC={mac}" if mac else address)
        assert not mac or attached.pod_mac == mac
        for source in (node, neighbour, afar):
            assert reaches(source, attached.address), source
        silent(attached.check())
        silent(attached.delete())
    silent(kept.delete())


# MACs on a bridge


@pytest.fixture
def neighbours(
    shared_nodes: SharedNodes,
) -> Iterator[tuple[Node, Attached, dict[str, tuple[str, str]]]]:
    """A node with a pod on its bridge; and all the MACs in use, each with its link."""
    node = shared_nodes.pair("bridge")[0]
    pod, beyond = shared_nodes.new_pods(node, 2)
    attached = attach(node, pod, network("bridge"), args=SHOP)
    asked = attach(node, shared_nodes.new_pods(node)[0], network("bridge"), args=f"MAC={MAC}")
    node.configure(
        # Not MACs that the kernel draws: a few of those look as if the plugin had made them.
        "link add nic0 address 02:00:00:00:00:01 type veth peer name nic1",
        *QUIET,
        f"link add tap0 address 02:00:00:00:00:02 master {BRIDGE}"
        f" type veth peer name guest0 address 02:00:00:00:00:03 netns {beyond.netns}",
        "link set tap0 addrgenmode none",  # else its address would come later
        "link set tap0 up",
    )
    beyond.configure("link set guest0 up")

    def mac(link: str, space: Any = node) -> str:
        shown: str = space.link(link)["address"]
        return shown

    guest = mac("guest0", beyond)

    def learned() -> bool:
        shown = node.run(["bridge", "fdb", "show", "br", BRIDGE]).stdout
        return f"{guest} dev tap0" in shown

    await_fact(learned, "the bridge has learned who is behind tap0")
    yield (
        node,
        attached,
        {
            "bridge": (mac(BRIDGE), BRIDGE),
            "port": (mac("tap0"), "tap0"),
            "host link": (mac(attached.host_link), ""),
            "pod": (attached.pod_mac, ""),
            "pod that asked": (MAC, asked.host_link),
            "node": (mac("nic0"), "nic0"),
            "behind a port": (guest, "tap0"),
        },
    )
    node.configure("link del nic0", "link del tap0")
    silent(attached.delete())
    silent(asked.delete())


def test_a_mac_that_is_in_use_is_refused_without_effect(
    shared_nodes: SharedNodes, neighbours: tuple[Node, Attached, dict[str, tuple[str, str]]]
) -> None:
    node, attached, macs = neighbours
    (pod,) = shared_nodes.new_pods(node)
    before = kernel_state(node, pod)
    for mac, holder in macs.values():
        call = node.plugin("ADD", network("bridge"), pod, args=f"MAC={mac}")
        refused(call, 101, says=mac)
        refused(call, 101, says=holder or "made from addresses")
        silent(node.plugin("DEL", network("bridge"), pod))
        assert difference(before, kernel_state(node, pod)) == []
    assert reaches(attached.pod, attached.gateway)
    assert reaches(node, attached.address)


def test_a_pod_may_ask_for_the_mac_that_is_its_own(shared_nodes: SharedNodes) -> None:
    node = shared_nodes.pair("bridge")[0]
    first, second = shared_nodes.new_pods(node, 2)
    conf = network("bridge", addressing="stable")
    attached = attach(node, first, conf, args=SHOP)
    silent(attached.delete())
    again = attach(node, second, conf, args=f"{SHOP};MAC={attached.pod_mac}")
    assert again.pod_mac == attached.pod_mac
    assert reaches(node, again.address)
    silent(again.delete())


def test_of_parallel_adds_of_one_mac_exactly_one_succeeds(shared_nodes: SharedNodes) -> None:
    node = shared_nodes.pair("bridge")[0]
    pods = shared_nodes.new_pods(node, CROWD)
    conf = network("bridge")
    add = partial(node.plugin, "ADD", conf, args=f"MAC={OTHER_MAC}")
    outcomes = at_once([partial(add, pod) for pod in pods])
    winners = [pod for pod, call in zip(pods, outcomes, strict=True) if call.code == 0]
    assert len(winners) == 1
    for call in outcomes:
        if call.code != 0:
            refused(call, 101, says=OTHER_MAC)
    assert reaches(winners[0], str(subnet_of(node)[1]))
    for pod in pods:
        assert (pod.link("eth0") is not None) == (pod in winners)
        silent(node.plugin("DEL", conf, pod))


def test_two_routed_pods_may_have_one_mac(shared_nodes: SharedNodes) -> None:
    """Each has a link of its own: its MAC affects nobody else."""
    node = shared_nodes.pair("routed")[0]
    pods = shared_nodes.new_pods(node, 2)
    made = [attach(node, pod, network("routed"), args=f"MAC={MAC}") for pod in pods]
    for attached in made:
        assert reaches(node, attached.address)
        silent(attached.delete())


# Addresses


@both_modes
def test_an_address_of_any_link_of_the_node_is_refused(
    shared_nodes: SharedNodes, node: Node, mode: Mode
) -> None:
    (pod,) = shared_nodes.new_pods(node)
    address = subnet_of(node)[0x77]
    # Without a carrier the address is tentative, and has no route; it is the node's all the same.
    node.configure(
        "link add nic0 type veth peer name nic1",
        *QUIET,
        "link set nic0 up",
        f"address add {address}/128 dev nic0",
    )
    before = kernel_state(node, pod)
    call = node.plugin("ADD", network(mode), pod, args=f"IP={address}")
    refused(call, 101, says=str(address))
    refused(call, 101, says="nic0")
    assert difference(before, kernel_state(node, pod)) == []
    node.configure("link del nic0")


@contextmanager
def routed_elsewhere(node: Node, *lines: str) -> Iterator[ipaddress.IPv6Network]:
    """A prefix of the node's subnet, while these lines route it; PREFIX in them stands for it."""
    prefix = ipaddress.IPv6Network((int(subnet_of(node)[5 << 48]), 80))
    filled = [line.replace("PREFIX", str(prefix)) for line in lines]
    node.configure(
        "link add nic0 type veth peer name nic1",
        *QUIET,
        *(f"link set nic{n} up" for n in (0, 1)),
        *(f"address add fd99:{n}::1/64 dev nic{n} nodad" for n in (0, 1)),
        *filled,
    )

    # Until the kernel is done, routes through the links have the flag linkdown, and their addresses
    # lack the routes that it makes; on a node that forwards, those of anycast too.
    made = {"fd99::1", "fd99:1::1"}
    if sysctl(node, "ipv6/conf/all/forwarding") == "1":
        made |= {"fd99::", "fd99:1::"}

    def settled() -> bool:
        links = [link for link in node.ip("link") if link["ifname"] in ("nic0", "nic1")]
        local = {route["dst"] for route in node.ip("-6", "route", "show", "table", "local")}
        return [link["operstate"] for link in links] == ["UP", "UP"] and made <= local

    await_fact(settled, "the links and their addresses")
    try:
        yield prefix
    finally:
        node.configure(filled[-1].replace("route add", "route del"), "link del nic0")


@both_modes
@pytest.mark.parametrize("kind", ["", "prohibit ", "blackhole "])
def test_an_address_that_the_node_routes_elsewhere_is_refused(
    shared_nodes: SharedNodes, node: Node, mode: Mode, kind: str
) -> None:
    (pod,) = shared_nodes.new_pods(node)
    route = f"route add {kind}PREFIX" if kind else "route add PREFIX dev nic0"
    with routed_elsewhere(node, route) as prefix:
        before = kernel_state(node, pod)
        call = node.plugin("ADD", network(mode), pod, args=f"IP={prefix[9]}")
        refused(call, 101, says=str(prefix[9]))
        refused(call, 101, says="refuses" if kind else f"{prefix} to link nic0")
        assert difference(before, kernel_state(node, pod)) == []


WAYS = [f"via fd99:{n}::2 dev nic{n}" for n in (0, 1)]
SEVERAL = {
    "two ways": ["route add PREFIX " + " ".join(f"nexthop {way}" for way in WAYS)],
    "a group": [
        *(f"nexthop add id {n + 1} {way}" for n, way in enumerate(WAYS)),
        "nexthop add id 3 group 1/2",
        "route add PREFIX nhid 3",
    ],
}


@both_modes
@pytest.mark.parametrize("kind", SEVERAL)
def test_an_address_that_the_node_routes_several_ways_is_refused(
    shared_nodes: SharedNodes, node: Node, mode: Mode, kind: str
) -> None:
    (pod,) = shared_nodes.new_pods(node)
    with routed_elsewhere(node, *SEVERAL[kind]) as prefix:
        call = node.plugin("ADD", network(mode), pod, args=f"IP={prefix[9]}")
        refused(call, 101, says=f"{prefix} to several links")


@pytest.mark.parametrize("mode", ["bridge", "routed"])
@pytest.mark.parametrize("known", [True, False], ids=["known", "silent"])
def test_an_address_of_a_guest_that_another_program_put_on_the_bridge_is_refused(
    shared_nodes: SharedNodes, mode: Mode, known: bool
) -> None:
    """Such as a micro-VM, whether it has said anything yet or not. A free one is not refused."""
    node = shared_nodes.pair("bridge")[0]
    kept, pod, guest = shared_nodes.new_pods(node, 3)
    attached = attach(node, kept, network("bridge"))  # the bridge has its address
    node.configure(
        f"link add tap0 address 02:00:00:00:00:02 master {BRIDGE}"
        f" type veth peer name guest0 address 02:00:00:00:00:03 netns {guest.netns}",
        "link set tap0 addrgenmode none",
        "link set tap0 up",
    )
    address = subnet_of(node)[9 << 48 | 5]
    guest.configure(
        "link set guest0 addrgenmode none up", f"address add {address}/64 dev guest0 nodad"
    )
    assert not known or reaches(node, str(address))
    before = kernel_state(node, pod)
    call = node.plugin("ADD", network(mode), pod, args=f"IP={address}")
    refused(call, 101, says=f"{address} is taken by a neighbour on tap0")
    assert difference(before, kernel_state(node, pod)) == []
    assert reaches(node, str(address))
    beside = attach(node, pod, network(mode), args=f"IP={subnet_of(node)[9 << 48 | 6]}")
    assert reaches(node, beside.address)
    silent(beside.delete())
    silent(attached.delete())
    node.configure("link del tap0")


@both_modes
def test_an_address_that_belongs_to_another_pods_name_is_refused(
    shared_nodes: SharedNodes, node: Node, mode: Mode
) -> None:
    """Also while that pod is away, as between two lives of a StatefulSet's pod."""
    owner, thief = shared_nodes.new_pods(node, 2)
    conf = network(mode, addressing="stable")
    attached = attach(node, owner, conf, args=SHOP)
    silent(attached.delete())
    wish = f"IP={attached.address}"
    for name in ("K8S_POD_NAMESPACE=evil;K8S_POD_NAME=db-0;", ""):
        call = node.plugin("ADD", conf, thief, args=name + wish)
        refused(call, 101, says="a pod of another name")
    again = attach(node, owner, conf, args=f"{SHOP};{wish}")
    assert again.address == attached.address
    silent(again.delete())
    beside = str(subnet_of(node)[7 << 48 | 9])
    free = attach(node, thief, conf, args=f"IP={beside}")
    assert free.address == beside
    silent(free.delete())
