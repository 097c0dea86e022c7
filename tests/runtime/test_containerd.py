# SPDX-License-Identifier: Apache-2.0
"""Pods of containerd on two nodes: attached by the plugin, talking across the overlay."""

from __future__ import annotations

import ipaddress
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from mycelium_lab.lab import await_fact

from .conftest import Cluster, leftovers
from .criharness import Containerd, Sandbox
from .images import Images
from .machine import Machine
from .traffic import page, transfer

pytestmark = pytest.mark.xdist_group("containerd")

PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
BANDWIDTH = {"type": "bandwidth", "capabilities": {"bandwidth": True}}


def network(*plugins: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """A list with our plugin first, in routed mode unless told otherwise."""
    ours = {"type": "mycelium-cni", "mode": "routed", **keys}
    return {"cniVersion": "1.0.0", "name": "mycelium", "plugins": [ours, *plugins]}


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "the host daemon's page": {
        "cniVersion": "1.0.0",
        "name": "mycelium-network",
        "plugins": [
            {"type": "loopback"},
            {"type": "mycelium-cni", "myceliumInterface": "mycelium"},
        ],
    },
    "the grid's page": {"cniVersion": "0.4.0", "name": "mycelium", "type": "mycelium-cni"},
    "ours, routed": network(PORTMAP, BANDWIDTH),
    "ours, bridge": network(PORTMAP, BANDWIDTH, mode="bridge"),
}


@contextmanager
def grid_bridge(cluster: Cluster) -> Iterator[None]:
    """What the grid's network_setup.sh makes on each node."""
    for containerd in cluster:
        address = cluster.address(containerd)
        subnet = ipaddress.IPv6Network(f"{address}/64", strict=False)
        containerd.machine.node.configure(
            "link add mycelium-br type bridge",
            f"address add {subnet[1]}/64 dev mycelium-br",
            "link set mycelium-br up",
            f"neigh add proxy {address} dev mycelium-br",
        )
    try:
        yield
    finally:
        for containerd in cluster:
            containerd.end_all()
            containerd.machine.node.configure("link delete mycelium-br")


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_pods_of_two_nodes_talk(cluster: Cluster, name: str) -> None:
    document = CONFIGURATIONS[name]
    with ExitStack() as stack:
        if name == "the grid's page":
            stack.enter_context(grid_bridge(cluster))
        for containerd in cluster:
            suffix = "conflist" if "plugins" in document else "conf"
            containerd.configure(document, f"10-mycelium.{suffix}")
        web, cache = cluster.left.pod("web"), cluster.left.pod("cache")
        api = cluster.right.pod("api")
        served = {pod: pod.serve(f"this is {pod.name}") for pod in (web, api)}
        shell = cache.start_container("shell", "/bin/sh", "-c", "echo begun; exec sleep 600")

        for pod, containerd in ((web, cluster.left), (cache, cluster.left), (api, cluster.right)):
            has_its_address(pod, cluster.address(containerd))
        for pod in (web, api):  # same node, other node; by HTTP from inside, by ping at full size
            code, output, errors = shell.execute("wget", "-qO-", f"http://[{pod.address}]/")
            assert (code, output, errors) == (0, f"this is {pod.name}\n", "")
            assert shell.execute("ping", "-c1", "-W2", pod.address)[0] == 0
            assert cache.ping(pod.address, size=1352) is not None
        for node in (cluster.left.machine.node, cluster.right.machine.node):
            for pod in (web, api):
                assert page(node, pod.address) == f"this is {pod.name}"
        assert shell.execute("sh", "-c", "echo out; echo err >&2; exit 3") == (3, "out\n", "err\n")
        assert shell.logs() == ["begun"]
        assert served[web].execute("ip", "-6", "route")[1].count("400::/7") == 1
        for pod in (web, cache, api):
            pod.end()
        if name == "ours, bridge":
            for containerd in cluster:
                assert not containerd.machine.node.ip("link", "show", "master", "mycelium-br")
                containerd.machine.node.configure("link delete mycelium-br")


def has_its_address(pod: Sandbox, node: str) -> None:
    """CRI's report, the kernel's state and the node's subnet agree."""
    link = pod.link("eth0")
    assert link is not None
    assert [entry["local"] for entry in link["addr_info"]] == [pod.address]
    assert link["mtu"] == 1400
    subnet = ipaddress.IPv6Network(f"{node}/64", strict=False)
    assert ipaddress.IPv6Address(pod.address) in subnet
    assert pod.address != node


def test_a_host_port_leads_to_the_pod(cluster: Cluster) -> None:
    left, right = cluster
    right.configure(network(PORTMAP, defaultRoute=True))
    node = right.machine.node
    before = rules(right)
    web = right.pod("web", ports=[(8080, 80)])
    web.serve("through the port")
    overlay, underlay = cluster.address(right), node.underlay_address
    assert page(left.machine.node, overlay, 8080) == "through the port"
    assert page(left.machine.node, underlay, 8080) == "through the port"
    assert page(node, overlay, 8080) == "through the port"
    web.end()
    assert page(left.machine.node, overlay, 8080, timeout_s=1) is None
    assert [rule for rule in rules(right) if "8080" in rule or "CNI-DN-" in rule] == []
    assert before == []


def rules(containerd: Containerd) -> list[str]:
    """The NAT rules of the node."""
    saved = containerd.machine.run("ip6tables-save", "-t", "nat").stdout.splitlines()
    return [line for line in saved if line.startswith("-A")]


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_a_bandwidth_limit_holds(cluster: Cluster, direction: str) -> None:
    left, right = cluster
    limit = {f"{direction}Rate": 20_000_000, f"{direction}Burst": 400_000}  # bits
    limited = network({"type": "bandwidth", **limit})

    def measure(document: dict[str, Any], name: str, size: int) -> float:
        right.configure(document)
        pod = right.pod(name)
        if direction == "ingress":
            done = transfer(left.machine.node, pod, pod.address, size)
        else:
            done = transfer(pod, left.machine.node, cluster.address(left), size)
        pod.end()  # containerd deletes with the configuration of the moment
        return done.megabits_per_second

    assert measure(limited, "limited", 3_000_000) < 21
    assert measure(network(), "free", 5_000_000) > 30


def test_bandwidth_annotations_reach_the_pods_links(cluster: Cluster) -> None:
    """containerd requests a burst of 512 MB, so the limit takes effect only after some time."""
    left, _ = cluster
    left.configure(network(BANDWIDTH))
    pair = {"kubernetes.io/ingress-bandwidth": "20M", "kubernetes.io/egress-bandwidth": "30M"}
    left.pod("limited", annotations=pair)
    shaped = left.machine.run("tc", "qdisc", "show").stdout.splitlines()
    rates = [
        (line.split()[4][:3], line.split("rate ")[1].split()[0]) for line in shaped if "tbf" in line
    ]
    assert sorted(rates) == [("bwp", "30Mbit"), ("myc", "20Mbit")]


def test_sixty_pods_come_and_go_ten_at_a_time(cluster: Cluster) -> None:
    left, _ = cluster
    left.configure(network(PORTMAP, BANDWIDTH))
    with ThreadPoolExecutor(10) as hands:
        pods = list(hands.map(left.pod, [f"pod-{number}" for number in range(60)]))
        addresses = list(hands.map(lambda pod: pod.address, pods))
        assert len(set(addresses)) == 60
        assert None not in list(hands.map(left.machine.node.ping, addresses))
        list(hands.map(Sandbox.end, pods))
    assert left.sandboxes() == {}
    assert leftovers(left.machine.node) == []
    mounts = Path(f"/proc/{left.machine.pid}/mounts").read_text()
    assert "cni-" not in mounts, "namespaces of pods are still mounted"
    assert left.machine.run("pgrep", "-x", "pause", check=False).stdout.split() == ["1"]


def test_pods_outlive_their_containerd(cluster: Cluster) -> None:
    left, right = cluster
    for containerd in cluster:
        containerd.configure(network())
    web, api = left.pod("web"), right.pod("api")
    web.serve("still here")
    address = web.address
    left.stop(signal.SIGKILL)
    assert page(api, address) == "still here"
    left.start()
    assert left.sandboxes() == {web.id: True}
    assert web.address == address
    assert page(api, address) == "still here"
    assert page(api, left.pod("new").address, timeout_s=1) is None
    web.end()


def test_a_pod_killed_behind_the_runtimes_back_leaves_nothing(cluster: Cluster) -> None:
    left, _ = cluster
    left.configure(network())
    web = left.pod("web")
    web.kill()
    await_fact(lambda: left.sandboxes() == {web.id: False}, "containerd noticing")
    web.end()
    assert left.sandboxes() == {}
    assert leftovers(left.machine.node) == []


def test_a_namespace_removed_behind_the_runtimes_back_leaves_nothing(cluster: Cluster) -> None:
    left, _ = cluster
    log = left.machine.record()
    left.configure(network())
    web = left.pod("web")
    path = next(n["path"] for n in namespaces(web) if n["type"] == "network")
    web.kill()
    await_fact(lambda: left.sandboxes() == {web.id: False}, "containerd noticing")
    left.machine.run("umount", path)
    left.machine.run("rm", path)
    assert leftovers(left.machine.node) == []
    web.end()
    assert [(verb, netns) for verb, netns, _, _ in calls(log)][1:] == [("DEL", ""), ("DEL", "")]


def namespaces(pod: Sandbox) -> list[dict[str, str]]:
    """The namespaces of the pod's first process, as runc was told."""
    found: list[dict[str, str]] = pod.info()["runtimeSpec"]["linux"]["namespaces"]
    return found


def calls(log: Path) -> list[list[str]]:
    """What `Machine.record` wrote: verb, namespace, interface, configuration."""
    return [line.split("\0") for line in log.read_text().splitlines()]


def test_the_second_del_has_neither_namespace_nor_result(cluster: Cluster) -> None:
    left, _ = cluster
    log = left.machine.record()
    left.configure(network())
    web = left.pod("web")
    web.stop()
    assert leftovers(left.machine.node) == []
    web.end()
    add, first, *others = calls(log)
    assert add[0] == "ADD"
    assert first[0] == "DEL"
    assert first[1] == add[1] != ""
    assert "prevResult" in json.loads(first[3])
    for verb, netns, ifname, text in others:
        assert (verb, netns, ifname) == ("DEL", "", "eth0")
        assert "prevResult" not in json.loads(text)
    assert others


def refusal(start: Callable[[], object]) -> str:
    """What a kubelet writes into the pod's events."""
    with pytest.raises(grpc.RpcError) as raised:
        start()
    details: str = raised.value.details()
    return details


def test_a_missing_plugin_is_named(cluster: Cluster) -> None:
    left, _ = cluster
    left.configure(network())
    left.machine.uninstall()
    message = refusal(partial(left.pod, "web"))
    assert 'failed to find plugin "mycelium-cni" in path [/opt/cni/bin]' in message
    assert list(left.sandboxes().values()) == [False]  # its DEL could not be served either
    left.machine.install()
    left.end_all()
    left.pod("web").end()


def test_a_failed_add_says_why_and_what_to_do(cluster: Cluster) -> None:
    left, _ = cluster
    left.configure(network(myceliumInterface="mycelium7"))
    message = refusal(partial(left.pod, "web"))
    assert (
        'plugin type="mycelium-cni" failed (add): failed to find interface mycelium7: ' in message
    )
    assert "start the Mycelium daemon" in message
    assert len(message.splitlines()) == 1
    assert left.sandboxes() == {}
    left.configure(network())
    left.pod("web").end()


def test_an_add_that_hangs_after_its_work_is_undone(cluster: Cluster) -> None:
    """The client's deadline ends the plugin's process, then comes DEL."""
    left, _ = cluster
    done = left.machine.directory / "attached"
    done.unlink(missing_ok=True)
    left.machine.install(
        f'[ "$CNI_COMMAND" = ADD ] || exec $PLUGIN\n$PLUGIN >{done}.new && mv {done}.new {done}\n'
        "exec sleep 600"
    )
    left.configure(network())
    message = refusal(partial(left.pod, "web", timeout_s=1))
    assert "Deadline Exceeded" in message
    assert "eth0" in done.read_text()
    assert leftovers(left.machine.node) == []
    await_fact(lambda: not left.machine.run("pgrep", "sleep", check=False).stdout, "no sleeper")
    left.machine.install()
    left.pod("another").end()  # the first one's name is free when containerd has tidied up


def test_a_crash_shows_what_it_printed(cluster: Cluster) -> None:
    left, _ = cluster
    left.machine.install(
        '[ "$CNI_COMMAND" = ADD ] || exec $PLUGIN\necho "out of ideas" >&2; exit 1'
    )
    left.configure(network())
    assert 'netplugin failed: "out of ideas' in refusal(partial(left.pod, "web"))
    assert left.sandboxes() == {}


def test_a_failed_del_is_repeated(cluster: Cluster) -> None:
    left, _ = cluster
    left.configure(network())
    web = left.pod("web")
    left.machine.install('echo "not now" >&2; exit 1')
    assert "not now" in refusal(web.stop)
    assert left.sandboxes().keys() == {web.id}
    left.machine.install()
    web.end()
    assert left.sandboxes() == {}


def test_the_daemon_comes_and_goes_under_live_pods(cluster: Cluster) -> None:
    left, right = cluster
    for containerd in cluster:
        containerd.configure(network())
    web, near, far = left.pod("web"), left.pod("near"), right.pod("far")
    web.serve("still here")
    node, address = left.machine.node, web.address
    node.stop_overlay()
    assert page(near, address) == "still here"
    assert page(node, address) == "still here"
    assert "failed to find interface mycelium" in refusal(partial(left.pod, "another"))
    near.end()  # DEL needs no daemon
    assert leftovers_of(node, near) == []
    node.start_overlay()
    heard = partial(page, far, address, timeout_s=1)
    await_fact(lambda: heard() == "still here", "the pod answering again", within_s=20)
    assert web.address == address
    assert left.pod("another").ping(far.address, wait_s=5) is not None


def leftovers_of(node: Any, pod: Sandbox) -> list[str]:
    """The node's links whose alias names the pod."""
    aliases = [link.get("ifalias", "") for link in node.ip("link")]
    return [alias for alias in aliases if f"/{pod.name} " in alias]


def test_a_rebooted_node_forgets_its_pods(
    command: list[str], images: Images, cluster: Cluster
) -> None:
    """All namespaces and processes are gone, but containerd's disk still lists the sandboxes."""
    lab = cluster.lab
    before = lab.node("before")
    before.start_overlay([cluster.left.machine.node])
    machine = Machine(before, images.init)
    first = Containerd(machine, images)
    first.configure(network(addressing="stable"))
    old = first.pod("web")
    address, sandbox = old.address, old.id
    machine.power_off()
    before.stop_overlay(signal.SIGKILL)
    before.remove()

    for state in ("state", "run-containerd", "run-netns", "runc"):  # /run is new after a reboot
        shutil.rmtree(machine.directory / state)
    after = lab.node("after")
    after.key_file.write_bytes(before.key_file.read_bytes())
    after.start_overlay([cluster.left.machine.node])
    again = Machine(after, images.init, directory=machine.directory)
    try:
        second = Containerd(again, images)
        assert second.sandboxes() == {sandbox: False}
        new = second.pod("web", attempt=1)  # a kubelet may well start the new one first
        assert new.address == address
        second.end(sandbox)
        assert new.address == address
        assert after.ping(address) is not None
        new.end()
        assert second.sandboxes() == {}
        assert leftovers(after) == []
    finally:
        again.power_off()
        after.stop_overlay()
