# SPDX-License-Identifier: Apache-2.0
"""CHECK: silent about what ADD made, one clear sentence about each thing that is broken.

Everything here is broken with `ip` on a real kernel, and CHECK must not repair any of it.
"""

from __future__ import annotations

import copy
import ipaddress
from collections.abc import Callable
from typing import Any

import pytest
from attaching import (
    BRIDGE,
    OVERLAY,
    Attached,
    Mode,
    SharedNodes,
    attach,
    both_modes,
    network,
    reaches,
    refused,
    silent,
)
from observe import difference, kernel_state, set_sysctl

from mycelium_lab.lab import Namespace, Node, Pod, await_fact

ELSEWHERE = "2001:db8:5::/48"
ROUTES: dict[str, Any] = {"routes": [{"dst": OVERLAY}, {"dst": ELSEWHERE}]}

Break = Callable[[Attached], str]  # returns what the error must name


@pytest.fixture
def attached(shared_nodes: SharedNodes, mode: Mode) -> Attached:
    node = shared_nodes.pair(mode)[0]
    (pod,) = shared_nodes.new_pods(node)
    return attach(node, pod, network(mode, **ROUTES))


def fresh(node: Node, mode: Mode) -> Attached:
    """A pod on a node of the test's own."""
    return attach(node, "pod", network(mode, **ROUTES))


def assert_noticed(attached: Attached, says: str, *codes: int) -> None:
    """CHECK fails, names the thing, and leaves it as it is."""
    spaces = (attached.node, attached.pod)
    before = kernel_state(*spaces)
    refused(attached.check(), *(codes or (103,)), says=says)
    assert difference(before, kernel_state(*spaces)) == []


# All is well


@both_modes
def test_a_pod_is_checked_in_the_mode_in_which_it_was_attached(node: Node, mode: Mode) -> None:
    """Whatever the configuration says by now."""
    attached, other = fresh(node, mode), "bridge" if mode == "routed" else "routed"
    silent(node.plugin("STATUS", {**attached.conf, "mode": other}))
    silent(attached.check(mode=other))
    again = attach(node, "again", {**attached.conf, "mode": other})
    for each in (attached, again):
        silent(each.check(mode=other))
        assert reaches(node, each.address)
        each.pod.ip("link", "set", "eth0", "down")
        refused(each.check(mode=other), 103, says="eth0")


@both_modes
@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_what_add_made_passes_again_and_again(
    shared_nodes: SharedNodes, mode: Mode, version: str
) -> None:
    node = shared_nodes.pair(mode)[0]
    (pod,) = shared_nodes.new_pods(node)
    attached = attach(node, pod, network(mode, version, **ROUTES))
    before = kernel_state(node, pod)
    for _ in range(3):
        silent(attached.check())
    assert difference(before, kernel_state(node, pod)) == []


@both_modes
def test_what_others_add_is_fine(attached: Attached) -> None:
    attached.pod.configure(
        "link add other type bridge",
        "link set other up",
        "address add 2001:db8:9::1/64 dev other nodad",
        "address add 2001:db8:8::1/64 dev eth0 nodad",
        "address add 10.1.1.1/24 dev eth0",
        "route add 2001:db8:7::/64 dev eth0",
        "route add default via 10.1.1.2",
    )
    attached.node.configure(
        f"link property add dev {attached.host_link} altname also-{attached.host_link}"
    )
    silent(attached.check())


@both_modes
def test_a_route_that_the_result_no_longer_lists_may_be_gone(attached: Attached) -> None:
    """As when Multus deletes a default route, and removes it from the result."""
    attached.pod.ip("-6", "route", "del", ELSEWHERE)
    result = copy.deepcopy(attached.result)
    result["routes"] = [route for route in result["routes"] if route["dst"] != ELSEWHERE]
    silent(attached.check(prevResult=result))


@both_modes
def test_a_route_may_have_moved_to_another_table(attached: Attached) -> None:
    """As `sbr` moves them."""
    attached.pod.ip("-6", "route", "del", ELSEWHERE)
    via = ["via", attached.gateway, "dev", "eth0", "table", "100"]
    attached.pod.ip("-6", "route", "add", ELSEWHERE, *via)
    silent(attached.check())


@pytest.mark.parametrize("mode", ["routed"])
def test_a_mac_that_a_later_plugin_set_is_that_of_its_result(attached: Attached) -> None:
    attached.pod.configure("link set eth0 address c2:00:00:00:00:0a")
    result = copy.deepcopy(attached.result)
    result["interfaces"][attached.place]["mac"] = "C2:00:00:00:00:0A"
    silent(attached.check(prevResult=result))
    refused(attached.check(), 103, says="c2:00:00:00:00:0a")


@pytest.mark.parametrize("mode", ["bridge"])
def test_a_mac_that_a_later_plugin_set_cuts_a_bridged_pod_off(attached: Attached) -> None:
    """On a bridge the MAC is part of what the pod may send: CHECK tells how to choose one."""
    attached.pod.configure("link set eth0 address c2:00:00:00:00:0c")
    result = copy.deepcopy(attached.result)
    result["interfaces"][attached.place]["mac"] = "c2:00:00:00:00:0c"
    refused(attached.check(prevResult=result), 103, says='capability "mac"')


# What may be broken of one attachment


def host_link_deleted(it: Attached) -> str:
    it.node.ip("link", "del", it.host_link)
    return it.host_link


def host_link_down(it: Attached) -> str:
    it.node.ip("link", "set", it.host_link, "down")
    return it.host_link


def pod_link_deleted(it: Attached) -> str:
    it.pod.ip("link", "del", "eth0")
    return it.host_link


def pod_link_down(it: Attached) -> str:
    it.pod.ip("link", "set", "eth0", "down")
    return "eth0"


def pod_link_replaced(it: Attached) -> str:
    """By one of another kind, with the same name, address and routes."""
    it.pod.configure(
        "link del eth0",
        "link add eth0 type bridge",
        f"link set eth0 up address {it.pod_mac}",
        f"address add {it.address}/64 dev eth0 nodad",
    )
    return it.host_link


def pod_link_renamed(it: Attached) -> str:
    it.pod.configure("link set eth0 down", "link set eth0 name eth9", "link set eth9 up")
    return "eth9"


def pod_link_elsewhere(it: Attached) -> str:
    """In another pod, where by chance it may have the same index as in this one."""
    other = it.node.pod(f"{it.pod.pod_name}-other")
    it.pod.ip("link", "set", "eth0", "netns", other.netns)
    other.ip("link", "set", "eth0", "up")
    return it.host_link


def pod_mac_changed(it: Attached) -> str:
    it.pod.configure("link set eth0 address c2:00:00:00:00:0b")
    return "c2:00:00:00:00:0b"


def address_deleted(it: Attached) -> str:
    bits = it.result["ips"][-1]["address"].partition("/")[2]
    it.pod.ip("addr", "del", f"{it.address}/{bits}", "dev", "eth0")
    return it.address


def address_tentative(it: Attached) -> str:
    """As one whose duplicate address detection has not ended, or has failed."""
    bits = it.result["ips"][-1]["address"].partition("/")[2]
    lost = [r["dst"] for r in it.pod.ip("-6", "route", "show") if "gateway" in r]
    set_sysctl(it.pod, "ipv6/conf/eth0/dad_transmits", "100")
    it.pod.configure(
        f"address del {it.address}/{bits} dev eth0",
        f"address add {it.address}/{bits} dev eth0",
        *(f"route replace {dst} via {it.gateway} dev eth0" for dst in lost),
    )
    return it.address


def pod_route_deleted(it: Attached) -> str:
    it.pod.ip("-6", "route", "del", OVERLAY)
    return OVERLAY


def other_pod_route_deleted(it: Attached) -> str:
    it.pod.ip("-6", "route", "del", ELSEWHERE)
    return ELSEWHERE


def pod_route_via_another(it: Attached) -> str:
    it.pod.ip("-6", "route", "del", OVERLAY)
    it.pod.ip("-6", "route", "add", OVERLAY, "via", "fe80::2", "dev", "eth0")
    return OVERLAY


def pod_route_over_another_link(it: Attached) -> str:
    it.pod.configure("link add other type bridge", "link set other addrgenmode none up")
    it.pod.ip("-6", "route", "del", OVERLAY)
    it.pod.ip("-6", "route", "add", OVERLAY, "dev", "other")
    return OVERLAY


def name_given_up(it: Attached) -> str:
    it.node.configure(f"link property del dev {it.host_link} altname {it.address}")
    return it.address


def name_taken_by_another(it: Attached) -> str:
    other = f"x{it.host_link[4:]}"
    it.node.configure(
        f"link property del dev {it.host_link} altname {it.address}",
        f"link add {other} type bridge",
        f"link property add dev {other} altname {it.address}",
    )
    return it.address


EITHER: list[Break] = [
    *(host_link_deleted, host_link_down, pod_link_deleted, pod_link_down, pod_link_replaced),
    *(pod_link_renamed, pod_link_elsewhere, pod_mac_changed, address_deleted, address_tentative),
    *(pod_route_deleted, other_pod_route_deleted, pod_route_via_another),
    *(pod_route_over_another_link, name_given_up, name_taken_by_another),
]


@pytest.mark.parametrize("broken", EITHER, ids=lambda broken: broken.__name__)
@both_modes
def test_it_is_noticed(attached: Attached, broken: Break) -> None:
    assert_noticed(attached, broken(attached))


def node_route_deleted(it: Attached) -> str:
    it.node.ip("-6", "route", "del", it.address)
    return it.address


def node_route_over_another_link(it: Attached) -> str:
    it.node.ip("-6", "route", "replace", it.address, "dev", "mycelium")
    return it.host_link


def host_link_in_a_bridge(it: Attached) -> str:
    other = f"br{it.host_link[3:]}"  # the node is other tests' too
    it.node.configure(f"link add {other} type bridge", f"link set {it.host_link} master {other}")
    return f"{it.host_link} nomaster"


@pytest.mark.parametrize("mode", ["routed"])
@pytest.mark.parametrize(
    "broken",
    [node_route_deleted, node_route_over_another_link, host_link_in_a_bridge],
    ids=lambda b: b.__name__,
)
def test_it_is_noticed_in_routed_mode(attached: Attached, broken: Break) -> None:
    assert_noticed(attached, broken(attached))


def port_taken_out(it: Attached) -> str:
    it.node.ip("link", "set", it.host_link, "nomaster")
    return it.host_link


def port_of_another_bridge(it: Attached) -> str:
    other = f"br{it.host_link[3:]}"  # the node is other tests' too
    it.node.configure(f"link add {other} type bridge", f"link set {it.host_link} master {other}")
    return f"{it.host_link} is a port of {other}, not of {BRIDGE}"


def route_to_the_node_deleted(it: Attached) -> str:
    it.pod.ip("-6", "route", "del", str(it.node.overlay_address))
    return str(it.node.overlay_address)


def part_of_the_subnet_routed_elsewhere(it: Attached) -> str:
    part = ipaddress.ip_network(f"{it.address}/124", strict=False)
    it.node.ip("-6", "route", "add", str(part), "dev", "mycelium")
    return f"ip -6 route show match {it.address}"


def address_refused_by_the_node(it: Attached) -> str:
    it.node.ip("-6", "route", "add", "unreachable", it.address)
    return f"the node does not send packets for {it.address} to {BRIDGE}"


@pytest.mark.parametrize("mode", ["bridge"])
@pytest.mark.parametrize(
    "broken",
    [
        *(port_taken_out, port_of_another_bridge, route_to_the_node_deleted),
        *(part_of_the_subnet_routed_elsewhere, address_refused_by_the_node),
    ],
    ids=lambda b: b.__name__,
)
def test_it_is_noticed_in_bridge_mode(attached: Attached, broken: Break) -> None:
    assert_noticed(attached, broken(attached))


# What may be wrong with the result


def wrong_sandbox(result: dict[str, Any], _: Attached) -> str:
    result["interfaces"][1]["sandbox"] = "/run/netns/elsewhere"
    return "/run/netns/elsewhere"


def no_interface(result: dict[str, Any], _: Attached) -> str:
    result["interfaces"][1]["name"] = "eth7"
    return "eth0"


def another_mac(result: dict[str, Any], _: Attached) -> str:
    result["interfaces"][1]["mac"] = "02:00:00:00:00:01"
    return "02:00:00:00:00:01"


def another_address(result: dict[str, Any], it: Attached) -> str:
    result["ips"][0]["address"] = f"{it.address.rpartition(':')[0]}:1/128"
    return it.address.rpartition(":")[0] + ":1"


def no_address(result: dict[str, Any], _: Attached) -> str:
    result["ips"] = []
    return "no address of eth0"


@pytest.mark.parametrize(
    "wrong",
    [wrong_sandbox, no_interface, another_mac, another_address, no_address],
    ids=lambda wrong: wrong.__name__,
)
@both_modes
def test_a_result_that_differs_is_noticed(
    attached: Attached, wrong: Callable[[dict[str, Any], Attached], str]
) -> None:
    result = copy.deepcopy(attached.result)
    says = wrong(result, attached)
    refused(attached.check(prevResult=result), 103, says=says)


@both_modes
def test_another_container_has_no_attachment(shared_nodes: SharedNodes, attached: Attached) -> None:
    conf = {**attached.conf, "prevResult": attached.result}
    call = attached.node.plugin("CHECK", conf, attached.pod, container_id="somebody-else")
    refused(call, 103, says="somebody-else")


@both_modes
def test_after_a_rename_of_the_network_the_former_one_is_named(attached: Attached) -> None:
    conf = {**attached.conf, "prevResult": attached.result}
    call = attached.node.plugin("CHECK", {**conf, "name": "renamed"}, attached.pod)
    refused(call, 103, says=f"eth0 is attached to network {conf['name']}, not renamed: if the")


@pytest.mark.parametrize("mode", ["bridge"])
def test_with_another_bridge_in_the_configuration_the_pods_own_is_named(attached: Attached) -> None:
    conf = {**attached.conf, "prevResult": attached.result, "bridge": "br-new"}
    call = attached.node.plugin("CHECK", conf, attached.pod)
    says = f"no bridge br-new: {attached.host_link} is a port of {BRIDGE}"
    assert '"bridge"' in refused(call, 103, says=says)["msg"]


@both_modes
def test_a_missing_namespace_is_reported(attached: Attached) -> None:
    conf = {**attached.conf, "prevResult": attached.result}
    where = attached.pod.path
    attached.pod.remove()
    call = attached.node.plugin("CHECK", conf, attached.pod)
    refused(call, 8, says=where)


# What may be broken of the node


@both_modes
def test_forwarding_switched_off_is_noticed(node: Node, mode: Mode) -> None:
    attached = fresh(node, mode)
    set_sysctl(node, "ipv6/conf/all/forwarding", "0")
    assert_noticed(attached, "forwarding")


def test_a_bridge_with_another_mac_than_its_pods_know_is_noticed(node: Node) -> None:
    """A pod never asks for a neighbour for which it has a permanent entry."""
    attached = fresh(node, "bridge")
    node.configure(f"link set {BRIDGE} address 02:00:5e:10:00:01")
    assert not reaches(attached.pod, str(node.overlay_address))
    assert_noticed(attached, "lladdr 02:00:5e:10:00:01")
    # Without an entry it asks.
    attached.pod.configure(f"neigh flush dev {attached.pod_link} nud permanent")
    silent(attached.check())


def interface_down(node: Node) -> str:
    node.ip("link", "set", "mycelium", "down")
    return "mycelium is down"


def interface_without_address(node: Node) -> str:
    node.ip("addr", "del", f"{node.overlay_address}/7", "dev", "mycelium")
    return "no global IPv6 address found"


def no_interface_at_all(node: Node) -> str:
    node.stop_overlay()
    return "failed to find interface mycelium"


@pytest.mark.parametrize(
    "broken",
    [interface_down, interface_without_address, no_interface_at_all],
    ids=lambda broken: broken.__name__,
)
@both_modes
def test_a_missing_overlay_is_reported(
    node: Node, mode: Mode, broken: Callable[[Node], str]
) -> None:
    attached = fresh(node, mode)
    assert_noticed(attached, broken(node), 11)


def bridge_deleted(node: Node, _: Attached) -> str:
    node.ip("link", "del", BRIDGE)
    return BRIDGE


def bridge_down(node: Node, _: Attached) -> str:
    node.ip("link", "set", BRIDGE, "down")
    return BRIDGE


def gateway_gone(node: Node, it: Attached) -> str:
    node.ip("addr", "del", f"{it.gateway}/64", "dev", BRIDGE)
    return it.gateway


def subnet_route_deleted(node: Node, it: Attached) -> str:
    subnet = ipaddress.ip_network(f"{it.address}/64", strict=False)
    node.ip("-6", "route", "del", str(subnet), "dev", BRIDGE)
    return f"ip -6 route add {subnet} dev {BRIDGE} metric 256 proto 2"


def operstate(place: Namespace, name: str) -> str:
    link = place.link(name)
    assert link is not None
    state: str = link["operstate"]
    return state


def port_held_back(node: Node, it: Attached) -> str:
    node.configure(
        f"link set {BRIDGE} type bridge stp_state 1",
        f"link set {it.host_link} down",
        f"link set {it.host_link} up",
    )
    await_fact(
        # A bridge without a port that forwards has no carrier, and its routes are linkdown.
        lambda: (operstate(node, BRIDGE), operstate(it.pod, "eth0")) == ("DOWN", "UP"),
        "the carriers as they stay",
    )
    return f"port {it.host_link} of {BRIDGE} does not forward"


@pytest.mark.parametrize(
    "broken",
    [bridge_deleted, bridge_down, gateway_gone, subnet_route_deleted, port_held_back],
    ids=lambda b: b.__name__,
)
def test_a_broken_bridge_is_noticed(node: Node, broken: Callable[[Node, Attached], str]) -> None:
    attached = fresh(node, "bridge")
    assert_noticed(attached, broken(node, attached))


@both_modes
def test_the_next_add_does_not_repair_what_check_says_is_broken(node: Node, mode: Mode) -> None:
    """The runtime decides: it deletes the pod and makes another."""
    attached = fresh(node, mode)
    pod: Pod = attached.pod
    pod.ip("link", "set", "eth0", "down")
    refused(attached.check(), 103, says="eth0")
    refused(node.plugin("ADD", attached.conf, pod), 102)
    silent(attached.delete())
    again = attach(node, pod, attached.conf)
    silent(again.check())
