# SPDX-License-Identifier: Apache-2.0
"""GC removes all that the runtime does not list, and touches nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from itertools import count
from typing import Any

import pytest
from attaching import (
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
from observe import difference, kernel_state

from mycelium_lab.lab import Lab, Node, PluginCall, await_fact

VALID, OLDER = "cni.dev/valid-attachments", "cni.dev/attachments"
CROWD = 100


@pytest.fixture
def node(shared_nodes: SharedNodes, mode: Mode) -> Node:
    return shared_nodes.pair(mode)[0]


def entry(attached: Attached) -> dict[str, str]:
    """How a runtime lists an attachment."""
    return {"containerID": attached.pod.container_id, "ifname": attached.ifname}


def call_gc(node: Node, mode: Mode, valid: Any, *, key: str = VALID, **keys: Any) -> PluginCall:
    return node.plugin("GC", network(mode, **keys, **{key: valid}))


def _gone(node: Node, name: str) -> bool:
    return node.link(name) is None


def prepare(shared_nodes: SharedNodes, node: Node, mode: Mode) -> None:
    """A node that has had a pod of the network, and has one of another."""
    for name in ("another", "overlay"):
        attach(node, shared_nodes.new_pods(node)[0], network(mode, name=name))
    silent(call_gc(node, mode, []))


@both_modes
@pytest.mark.parametrize("key", [VALID, OLDER])
def test_what_is_listed_stays_and_talks_on(
    shared_nodes: SharedNodes, node: Node, mode: Mode, key: str
) -> None:
    kept, stale = (attach(node, pod, network(mode)) for pod in shared_nodes.new_pods(node, 2))
    pinging = kept.pod.start(["ping", "-n", "-i", "0.01", "-c", "60", str(node.overlay_address)])
    before = kernel_state(kept.pod)
    silent(call_gc(node, mode, [entry(kept)], key=key))
    assert pinging.running
    assert node.link(stale.host_link) is None
    assert stale.pod.link("eth0") is None
    silent(kept.check())
    assert difference(before, kernel_state(kept.pod)) == []
    await_fact(lambda: not pinging.running, "the end of 60 pings")
    assert "60 packets transmitted, 60 received" in pinging.output()
    silent(kept.delete())


@both_modes
@pytest.mark.parametrize("nothing", [[], None], ids=["empty", "null"])
def test_where_nothing_is_listed_everything_goes(
    shared_nodes: SharedNodes, node: Node, mode: Mode, nothing: list[Any] | None
) -> None:
    prepare(shared_nodes, node, mode)
    pods = shared_nodes.new_pods(node, 3)
    before = kernel_state(node, *pods)
    made = [attach(node, pod, network(mode)) for pod in pods]
    silent(call_gc(node, mode, nothing))
    assert difference(before, kernel_state(node, *pods)) == []
    for attached in made:
        silent(attached.delete())
    silent(call_gc(node, mode, nothing, name="another"))


@both_modes
def test_without_a_list_nothing_goes(shared_nodes: SharedNodes, node: Node, mode: Mode) -> None:
    """The runtime must say what it uses; deleting everything would be a guess."""
    (pod,) = shared_nodes.new_pods(node)
    attached = attach(node, pod, network(mode))
    before = kernel_state(node, pod)
    refused(node.plugin("GC", network(mode)), 7, says=VALID)
    assert difference(before, kernel_state(node, pod)) == []
    silent(attached.delete())


@both_modes
def test_other_networks_and_other_peoples_links_stay(
    shared_nodes: SharedNodes, node: Node, mode: Mode
) -> None:
    """Whatever their names, and though the list does not name them."""
    names = ("overlay2", "overla", "Overlay")
    theirs = [
        attach(node, pod, network(mode, name=name))
        for name, pod in zip(names, shared_nodes.new_pods(node, 3), strict=True)
    ]
    ours = attach(node, shared_nodes.new_pods(node)[0], network(mode))
    node.configure(
        "link add myc000000000000 type veth peer name myc000000000001",
        "link add veth7 type veth peer name veth8",
        "link set veth7 group 1772923172",
        "link set veth7 group default",
    )
    silent(call_gc(node, mode, [{"containerID": "somebody", "ifname": "eth0"}]))
    assert node.link(ours.host_link) is None
    for attached in theirs:
        silent(attached.check())
        assert reaches(node, attached.address)
    for name in ("myc000000000000", "myc000000000001", "veth7", "veth8"):
        assert node.link(name) is not None
    node.configure("link del myc000000000000", "link del veth7")
    for attached in theirs:
        silent(attached.delete())


@both_modes
def test_container_and_interface_must_both_be_listed(
    shared_nodes: SharedNodes, node: Node, mode: Mode
) -> None:
    first, second = shared_nodes.new_pods(node, 2)
    one = attach(node, first, network(mode), ifname="eth0")
    two = attach(node, first, network(mode), ifname="net1")
    other = attach(node, second, network(mode), ifname="net1")
    mixed = {"containerID": second.container_id, "ifname": "eth0"}
    silent(call_gc(node, mode, [entry(one), mixed]))
    assert node.link(one.host_link) is not None
    assert node.link(two.host_link) is None
    assert node.link(other.host_link) is None
    assert reaches(node, one.address)
    silent(one.delete())


@both_modes
def test_a_hundred_stale_links_are_deleted_at_once(command: list[str], mode: Mode) -> None:
    """In one request: the kernel waits 30 ms after each."""
    with Lab(command) as lab:
        node = lab.node("a")
        lab.connect(node)
        conf = network(mode)
        pods = [node.pod(f"p{number}") for number in range(CROWD)]
        kept = attach(node, "kept", conf)
        elsewhere = attach(node, "elsewhere", network(mode, name="another"))
        before = kernel_state(node, *pods[:5])
        for pod in pods:
            attach(node, pod, conf)
        trace = lab.directory / "strace"
        lab.command[:] = ["strace", "-f", "-qq", "-e", "trace=sendto", "-o", str(trace), *command]
        silent(call_gc(node, mode, [entry(kept)]))
        lab.command[:] = command
        assert trace.read_text().count("RTM_DELLINK") == 1
        assert difference(before, kernel_state(node, *pods[:5])) == []
        assert [pod.pod_name for pod in pods if pod.link("eth0")] == []
        for attached in (kept, elsewhere):
            silent(attached.check())
            assert reaches(node, attached.address)
        # The names and addresses are free.
        for attached in at_once([partial(attach, node, pod, conf) for pod in pods[:10]]):
            assert reaches(node, attached.address)


@both_modes
def test_gc_after_pods_ended_without_del(shared_nodes: SharedNodes, node: Node, mode: Mode) -> None:
    """A pod that ends without DEL takes its links with it; GC removes everything else."""
    prepare(shared_nodes, node, mode)
    before = kernel_state(node)
    pods = shared_nodes.new_pods(node, 3)
    made = [attach(node, pod, network(mode)) for pod in pods]
    for pod in pods:
        pod.remove()
    for attached in made:
        await_fact(partial(_gone, node, attached.host_link), "the kernel's tidying")
    silent(call_gc(node, mode, []))
    assert difference(before, kernel_state(node)) == []
    silent(call_gc(node, mode, [], name="another"))


@both_modes
def test_gc_while_pods_come_and_go_harms_none_that_are_listed(
    command: list[str], mode: Mode
) -> None:
    with Lab(command) as lab:
        node = lab.node("a")
        lab.connect(node)
        conf = network(mode)
        kept = [attach(node, f"kept{number}", conf) for number in range(4)]
        listed = [entry(attached) for attached in kept]
        stale = [attach(node, f"stale{number}", conf) for number in range(10)]
        calls: list[Callable[[], PluginCall]] = [
            partial(call_gc, node, mode, listed) for _ in range(4)
        ]
        calls += [attached.delete for attached in stale]
        for call in at_once(calls):
            silent(call)
        for attached in kept:
            silent(attached.check())
            assert reaches(node, attached.address)
        assert [a for a in stale if node.link(a.host_link)] == []


@both_modes
def test_gc_deletes_what_a_killed_one_had_chosen(
    shared_nodes: SharedNodes, node: Node, mode: Mode
) -> None:
    """Links that are to go are in a group of their own, which one request deletes."""
    prepare(shared_nodes, node, mode)
    pods = shared_nodes.new_pods(node, 2)
    before = kernel_state(node, *pods)
    made = [attach(node, pod, network(mode)) for pod in pods]
    group = node.ip("link", "show", made[0].host_link)[0]["group"]
    # The fork comes between the choice and the deletion.
    kill = "inject=clone,clone3,fork,vfork:signal=KILL"
    argv = ["strace", "-qq", "-o", "/dev/null", "-e", kill, *node.lab.command]
    conf = json.dumps({**network(mode), VALID: []})
    node.run(argv, env={"CNI_COMMAND": "GC"}, input=conf, check=False)
    chosen = {node.ip("link", "show", each.host_link)[0]["group"] for each in made}
    assert len(chosen) == 1
    assert chosen != {group}
    silent(call_gc(node, mode, [], name="third"))
    assert node.link(made[0].host_link) is not None
    silent(call_gc(node, mode, []))
    assert difference(before, kernel_state(node, *pods)) == []


def of_one_group() -> tuple[str, str]:
    """Two network names with the same hash of 28 bits: a short search finds them."""
    seen: dict[bytes, str] = {}
    for number in count():
        name = f"net-{number}"
        digest = bytearray(blake2b(name.encode(), digest_size=4).digest())
        digest[0] &= 0x0F
        other = seen.setdefault(bytes(digest), name)
        if other != name:
            return other, name
    raise AssertionError


@pytest.mark.parametrize("mode", ["routed"])
def test_two_networks_with_one_hash_do_not_mix(
    shared_nodes: SharedNodes, node: Node, mode: Mode
) -> None:
    one, other = of_one_group()
    mine, theirs = shared_nodes.new_pods(node, 2)
    attached = attach(node, mine, network(mode, name=one, ingress="closed"))
    before = kernel_state(node, theirs)
    call = node.plugin("ADD", network(mode, name=other), theirs)
    refused(call, 100, says=f"networks {other} and {one} have the same number")
    assert difference(before, kernel_state(node, theirs)) == []
    silent(call_gc(node, mode, [], name=other))
    assert reaches(node, attached.address)
    silent(attached.check())
    silent(call_gc(node, mode, [], name=one))
    assert node.link(attached.host_link) is None
