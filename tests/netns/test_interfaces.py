# SPDX-License-Identifier: Apache-2.0
"""Several Mycelium interfaces in one pod: each is reachable, and DEL of one harms no other.

What a pod sends from an interface's address must leave by that interface, whichever came first and
whatever its mode: the node drops it on any other.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest
from attaching import MODES, PROTOCOL, Attached, Mode, attach, network, reaches, refused, silent
from observe import difference, kernel_state

from mycelium_lab.lab import Lab, Node, Pod, await_fact


@pytest.fixture(scope="module")
def nodes(command: list[str]) -> Iterator[tuple[Node, Node]]:
    with Lab(command) as lab:
        left, right = lab.node("left"), lab.node("right")
        lab.connect(left, right)
        yield left, right


def interfaces(
    node: Node, pod: Pod, modes: tuple[Mode, ...], *, one_network: bool
) -> list[Attached]:
    """An interface of each mode in turn, net0, net1, and so on."""
    return [
        attach(
            node,
            pod,
            network(mode, name=mode if one_network else f"{mode}{number}"),
            ifname=f"net{number}",
        )
        for number, mode in enumerate(modes)
    ]


def marked_rules(pod: Pod) -> list[dict[str, Any]]:
    return [rule for rule in pod.ip("-6", "rule") if rule.get("protocol") == PROTOCOL]


@pytest.mark.parametrize("one_network", [True, False], ids=["one network", "other networks"])
@pytest.mark.parametrize("modes", [*itertools.product(MODES, repeat=2)], ids="-".join)
def test_each_of_two_interfaces_is_reached(
    nodes: tuple[Node, Node], modes: tuple[Mode, ...], one_network: bool
) -> None:
    node, other = nodes
    pod = node.pod(f"two-{'-'.join(modes)}-{one_network}")
    attached = interfaces(node, pod, modes, one_network=one_network)
    for each in attached:
        assert reaches(node, each.address), f"the node reaches {each.ifname}"
        assert reaches(pod, str(node.overlay_address), each.address), f"{each.ifname} the node"
        assert reaches(other, each.address), f"another node reaches {each.ifname}"
        assert reaches(pod, str(other.overlay_address), each.address)
        silent(each.check())
    silent(attached[0].delete())
    assert reaches(node, attached[1].address), "the second one serves alone"
    assert reaches(pod, str(other.overlay_address)), "for those too that choose no source"
    silent(attached[1].delete())
    assert pod.ip("-6", "route", "show", "table", "all", "proto", PROTOCOL) == []
    assert marked_rules(pod) == []


@pytest.mark.parametrize(
    "modes", [("routed", "bridge", "routed"), ("bridge", "routed", "bridge")], ids="-".join
)
def test_each_of_three_interfaces_is_reached(
    nodes: tuple[Node, Node], modes: tuple[Mode, ...]
) -> None:
    node, other = nodes
    pod = node.pod(f"three-{'-'.join(modes)}")
    attached = interfaces(node, pod, modes, one_network=False)
    for each in attached:
        assert reaches(node, each.address)
        assert reaches(other, each.address)
        silent(each.check())
    silent(attached[1].delete())
    for each in (attached[0], attached[2]):
        assert reaches(node, each.address)
        silent(each.check())


@pytest.mark.parametrize("modes", [*itertools.product(MODES, repeat=2)], ids="-".join)
def test_check_names_the_route_without_which_one_of_two_is_deaf(
    nodes: tuple[Node, Node], modes: tuple[Mode, ...]
) -> None:
    node, _ = nodes
    pod = node.pod(f"astray-{'-'.join(modes)}")
    for each in interfaces(node, pod, modes, one_network=False):
        lost = pod.ip("-6", "route", "show", "table", "local", "from", f"{each.address}/128")[0]
        way = f"{lost['dst']} from {each.address} dev {lost['dev']} table local"
        pod.configure(f"route del {way}")
        refused(each.check(), 103, says=f"{lost['dst']} from {each.address}")
        gateway = f"via {lost['gateway']} " if "gateway" in lost else ""
        pod.configure(
            f"route add {lost['dst']} from {each.address} {gateway}dev {lost['dev']} "
            "table local proto 77"
        )
        silent(each.check())


@pytest.mark.parametrize("mode", MODES)
def test_del_with_another_pods_namespace_leaves_that_pod_alone(
    nodes: tuple[Node, Node], mode: Mode, bridges_ask: bool
) -> None:
    """As with /proc/PID/ns/net when the PID was reused."""
    node, _ = nodes
    mine, theirs = (node.pod(f"{whose}-{mode}-{bridges_ask}") for whose in ("mine", "theirs"))
    both: tuple[Mode, ...] = (mode, mode)
    pods = [interfaces(node, pod, both, one_network=True) for pod in (mine, theirs)]
    victim = pods[1]
    call = node.plugin(
        "DEL", pods[0][1].conf, theirs, ifname="net1", container_id=mine.container_id
    )
    silent(call)
    assert mine.link("net1") is None
    for each in victim:
        assert reaches(node, each.address)
        silent(each.check())


def use_source_rule(it: Attached, table: int) -> None:
    """As on a kernel without routes for one source, and as 0.1.0 did everywhere."""
    for route in it.pod.ip("-6", "route", "show", "table", "local", "proto", PROTOCOL):
        if route["dev"] == it.pod_link:
            it.pod.configure(f"route del {route['dst']} from {it.address} table local")
    it.pod.ip(
        "-6", "route", "add", "400::/7", "via", it.gateway, "dev", it.pod_link, "table", str(table)
    )
    it.pod.ip("-6", "rule", "add", "from", it.address, "lookup", str(table), "protocol", PROTOCOL)
    (link,) = it.node.ip("link", "show", it.host_link)
    words = link["ifalias"].split(" ")
    words.insert(2, f"table={table}")
    it.node.run(["ip", "link", "set", it.host_link, "alias", " ".join(words)])


@pytest.mark.parametrize("way", ["DEL", "DEL without a namespace", "GC"])
def test_a_source_rule_goes_with_its_attachment_and_no_other(
    nodes: tuple[Node, Node], way: str
) -> None:
    node, _ = nodes
    mine, theirs = node.pod(f"rule-{way[-4:].strip()}"), node.pod(f"kept-{way[-4:].strip()}")
    # A process holds the namespace, as a pod's does: without one, and without a path, it is not
    # found.
    held = [
        node.lab.start(["nsenter", f"--net={pod.path}", "sleep", "60"], "pod")
        for pod in (mine, theirs)
    ]
    both: tuple[Mode, ...] = ("routed", "routed")
    pods = [interfaces(node, pod, both, one_network=True) for pod in (mine, theirs)]
    for _, second in pods:
        use_source_rule(second, 77_000_003)  # the same number in both: it is the link's index there
    assert all(len(marked_rules(pod)) == 1 for pod in (mine, theirs))
    gone = pods[0][1]
    if way == "DEL":
        silent(gone.delete())
    elif way == "DEL without a namespace":
        silent(node.plugin("DEL", gone.conf, container_id=mine.container_id, CNI_IFNAME="net1"))
    else:
        valid = [
            {"containerID": each.pod.container_id, "ifname": each.ifname}
            for each in (pods[0][0], *pods[1])
        ]
        silent(node.plugin("GC", {**gone.conf, "cni.dev/valid-attachments": valid}))
    assert mine.link("net1") is None
    assert marked_rules(mine) == []
    assert len(marked_rules(theirs)) == 1
    assert reaches(node, pods[1][1].address)
    for process in held:
        process.stop()


def test_a_link_that_is_not_ours_is_not_deleted(nodes: tuple[Node, Node]) -> None:
    node, _ = nodes
    attached = attach(node, "lost", network())
    silent(attached.delete())
    node.ip("link", "add", attached.host_link, "type", "veth", "peer", "name", "strange0")
    silent(attached.delete())
    assert node.link(attached.host_link) is not None
    says = f"run `ip link delete {attached.host_link}`; it takes the name"
    refused(node.plugin("ADD", network(), attached.pod), 102, says=says)
    node.ip("link", "del", attached.host_link)


def test_a_route_of_somebody_elses_to_a_pods_address_is_named(nodes: tuple[Node, Node]) -> None:
    node, _ = nodes
    attached = attach(node, "routed-away", network())
    silent(attached.delete())
    node.configure(f"route add unreachable {attached.address}")
    asking = network(args={"cni": {"ips": [attached.address]}})
    says = f"another route to {attached.address}: `ip -6 route show {attached.address}` shows it"
    refused(node.plugin("ADD", asking, attached.pod), 101, says=says)
    node.configure(f"route del unreachable {attached.address}")


def test_a_route_that_takes_a_bridged_pods_packets_is_named(nodes: tuple[Node, Node]) -> None:
    node, _ = nodes
    attached = attach(node, "led-away", network("bridge"))
    silent(attached.delete())
    half = ipaddress.ip_network(f"{attached.address}/65", strict=False)  # of all random addresses
    for route in (f"{half} dev mycelium", f"blackhole {half}", f"unreachable {half}"):
        node.configure(f"route add {route}")
        before = kernel_state(node, attached.pod)
        message = refused(node.plugin("ADD", network("bridge"), attached.pod), 101)["msg"]
        assert difference(before, kernel_state(node, attached.pod)) == []
        says = r"does not send packets for (\S+) to mycelium-br: `ip -6 route show match \1` shows"
        assert re.search(says, message), message
        node.configure(f"route del {route}")


def test_a_host_link_that_was_renamed_is_found(nodes: tuple[Node, Node]) -> None:
    node, _ = nodes
    attached = attach(node, "renamed", network())
    node.configure(
        f"link set {attached.host_link} down",
        f"link set {attached.host_link} name other0",
        "link set other0 up",
    )
    error = refused(attached.check(), 103, says=f"{attached.host_link} is named other0 now")
    assert "doctor --fix" in error["msg"]
    silent(attached.delete())
    assert node.link("other0") is None
    assert attached.pod.link("eth0") is None


def test_a_host_link_without_our_marks_is_missed(nodes: tuple[Node, Node]) -> None:
    """No rule of its network sees it any more."""
    node, _ = nodes
    attached = attach(node, "unmarked", network())
    node.ip("link", "set", attached.host_link, "group", "default", "alias", "")
    error = refused(attached.check(), 103, says="has lost its group and its alias")
    assert "doctor" not in error["msg"]
    attached.pod.remove()
    await_fact(lambda: node.link(attached.host_link) is None, "the link's end")


@pytest.mark.parametrize("mode", MODES)
def test_a_host_link_that_was_moved_away_is_missed_and_leaves_nothing(
    nodes: tuple[Node, Node], mode: Mode, bridges_ask: bool
) -> None:
    """Into another namespace, where nothing looks: CHECK fails, and the link goes with the pod."""
    node, _ = nodes
    attach(node, f"other-{mode}-{bridges_ask}", network(mode))
    before = kernel_state(node)
    attached = attach(node, f"moved-{mode}-{bridges_ask}", network(mode))
    elsewhere = node.pod(f"elsewhere-{mode}-{bridges_ask}")
    node.configure(f"link set {attached.host_link} netns {elsewhere.path}")
    refused(attached.check(), 103, says=f"{attached.host_link} of eth0")
    silent(attached.delete())
    assert difference(before, kernel_state(node)) == []
    attached.pod.remove()
    await_fact(lambda: elsewhere.link(attached.host_link) is None, "the link's end")


def test_gc_spares_a_live_pod_whose_host_link_was_renamed(nodes: tuple[Node, Node]) -> None:
    node, _ = nodes
    attached = attach(node, "kept", network())
    node.configure(f"link set {attached.host_link} name other1")
    listed = {"containerID": attached.pod.container_id, "ifname": attached.ifname}
    gc = {**network(), "cni.dev/valid-attachments": [listed]}
    silent(node.plugin("GC", gc))
    assert reaches(node, attached.address)
    silent(attached.delete())
    assert node.link("other1") is None
