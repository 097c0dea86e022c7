# SPDX-License-Identifier: Apache-2.0
"""How Multus calls a delegate, and Mycelium as a pod's second network.

Multus executes each delegate through libcni, with an interface name of its own (net1, net2, …) and
the arguments of the pod; as a daemon ("thick") it first changes its root to the host's.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mycelium_lab.lab import Node

from .cnitool import CniTool, address, serve
from .conftest import leftovers
from .images import Images, need
from .machine import Machine, NamedPod, owned_lab
from .traffic import page, transfer

pytestmark = pytest.mark.xdist_group("multus")

# As Multus writes them (pkg/multus, `newDelegateArgs`): IgnoreUnknown is "true", not "1".
ARGS = (
    "IgnoreUnknown=true;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;"
    "K8S_POD_INFRA_CONTAINER_ID=0123456789abcdef;K8S_POD_UID=11111111-2222-3333-4444-555555555555"
)
# The delegates of the grid's multus.yaml: the second is all that it says of Mycelium.
GRID = {"cniVersion": "0.1.0", "name": "mycelium-cni-network", "type": "mycelium-cni"}
V4_RANGE = [{"subnet": "10.88.0.0/16"}]
V6_RANGE = [{"subnet": "fd00:88::/64"}]


def primary(*ranges: list[dict[str, str]], **keys: Any) -> dict[str, Any]:
    """What stands in for flannel: a bridge that makes eth0, with a default route per family."""
    defaults = {V4_RANGE[0]["subnet"]: "0.0.0.0/0", V6_RANGE[0]["subnet"]: "::/0"}
    ipam = {
        "type": "host-local",
        "ranges": list(ranges),
        "routes": [{"dst": defaults[block[0]["subnet"]]} for block in ranges],
    }
    return {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam, **keys}


def listed(*plugins: dict[str, Any], name: str = "cbr0", version: str = "1.0.0") -> dict[str, Any]:
    return {"cniVersion": version, "name": name, "plugins": list(plugins)}


@pytest.fixture(scope="module")
def shared(
    command: list[str], images: Images, reference_plugins: Path
) -> Iterator[tuple[CniTool, Node]]:
    with owned_lab(command) as lab:
        node, elsewhere = lab.node("node"), lab.node("elsewhere")
        lab.connect(node, elsewhere)
        machine = Machine(node, images.init, [reference_plugins])
        machine.run("cp", str(node.key_file), "/etc/netseed")
        yield CniTool(machine, reference_plugins / "cnitool"), elsewhere
        machine.power_off()


@pytest.fixture
def tool(shared: tuple[CniTool, Node]) -> Iterator[CniTool]:
    tool, _ = shared
    yield tool
    tool.machine.remove_pods()
    assert leftovers(tool.machine.node) == []


@pytest.fixture
def elsewhere(shared: tuple[CniTool, Node]) -> Node:
    return shared[1]


_numbers = itertools.count()


@pytest.fixture
def pod(tool: CniTool) -> NamedPod:
    """A pod whose eth0 comes from the cluster's own network."""
    pod = tool.machine.pod(f"pod-{next(_numbers)}")
    tool.configure(listed(primary(V4_RANGE)))
    tool("add", pod)
    return pod


def ours(pod: NamedPod, ifname: str) -> str:
    """The Mycelium address of an interface, as the kernel has it."""
    link = pod.link(ifname)
    assert link is not None
    found: list[str] = [
        entry["local"]
        for entry in link["addr_info"]
        if ipaddress.ip_address(entry["local"]) in ipaddress.ip_network("400::/7")
    ]
    return found[0]


@pytest.mark.parametrize("version", ["0.1.0", "1.0.0"])
@pytest.mark.parametrize("mode", ["routed", "bridge"])
def test_a_delegate_makes_net1(
    tool: CniTool, pod: NamedPod, elsewhere: Node, version: str, mode: str
) -> None:
    tool.configure({**GRID, "cniVersion": version, "mode": mode})
    result = tool("add", pod, ifname="net1", args=ARGS)
    assert result["cniVersion"] == version
    net1 = ours(pod, "net1")
    told = result["ip6"]["ip"] if version == "0.1.0" else result["ips"][-1]["address"]
    assert told.partition("/")[0] == net1
    serve(pod, "hello from net1")
    for client in (tool.machine.node, elsewhere):
        assert page(client, net1) == "hello from net1"
    assert pod.ping(elsewhere.overlay_address or "") is not None
    if version == "1.0.0":
        tool("check", pod, ifname="net1", args=ARGS)
    tool("del", pod, ifname="net1", args=ARGS)
    assert pod.link("net1") is None
    assert pod.link("eth0") is not None
    if mode == "bridge":
        tool.machine.node.configure("link delete mycelium-br")


def test_the_pods_name_is_on_its_host_link(tool: CniTool, pod: NamedPod) -> None:
    tool.configure({**GRID, "cniVersion": "1.0.0"})
    tool("add", pod, ifname="net1", args=ARGS)
    aliases = [link.get("ifalias", "") for link in tool.machine.node.ip("link")]
    assert [alias for alias in aliases if "pod=default/web" in alias and "ifname=net1" in alias]


def test_a_pod_has_several_attachments(tool: CniTool, pod: NamedPod, elsewhere: Node) -> None:
    """Two of one network and one of another: three addresses, and DEL takes just the one meant."""
    one = {**GRID, "cniVersion": "1.0.0", "mode": "routed"}
    two = {**one, "name": "another"}
    made = [(one, "net1"), (one, "net2"), (two, "net3")]
    for network, ifname in made:
        tool.configure(network)
        tool("add", pod, ifname=ifname, args=ARGS)
    addresses = {ifname: ours(pod, ifname) for _, ifname in made}
    assert len(set(addresses.values())) == 3
    for target in addresses.values():
        assert tool.machine.node.ping(target) is not None
        assert elsewhere.ping(target) is not None
    tool.configure(one)
    tool("del", pod, ifname="net1", args=ARGS)
    assert pod.link("net1") is None
    for ifname in ("net2", "net3"):
        assert elsewhere.ping(addresses[ifname]) is not None
    tool("del", pod, ifname="net2", args=ARGS)
    tool.configure(two)
    tool("check", pod, ifname="net3", args=ARGS)
    tool("del", pod, ifname="net3", args=ARGS)
    assert [link["ifname"] for link in pod.ip("link")] == ["lo", "eth0"]


def test_thick_multus_changes_its_root_first(tool: CniTool, pod: NamedPod) -> None:
    """Its own image has neither our executable nor what that needs; the host's root has both."""
    machine = tool.machine
    image = machine.directory / "multus"
    (image / "bin").mkdir(parents=True)
    (image / "hostroot").mkdir()
    (image / "bin/busybox").write_bytes(Path(need("busybox", "busybox-static")).read_bytes())
    (image / "bin/busybox").chmod(0o755)
    machine.run("mount", "--rbind", "/", image / "hostroot")
    network = {**GRID, "cniVersion": "1.0.0", "mode": "routed"}
    environment = {
        "CNI_CONTAINERID": "0123456789abcdef",
        "CNI_NETNS": pod.cni_netns,
        "CNI_IFNAME": "net1",
        "CNI_ARGS": ARGS,
        "CNI_PATH": "/opt/cni/bin",
        "PATH": "/bin",
    }
    inside = ("chroot", image, "/bin/busybox", "env", "-i")
    there = ("/bin/busybox", "chroot", "/hostroot", "/opt/cni/bin/mycelium-cni")

    def call(verb: str, document: dict[str, Any]) -> str:
        variables = [f"{key}={value}" for key, value in environment.items()]
        argv = (*inside, f"CNI_COMMAND={verb}", *variables, *there)
        return machine.run(*argv, stdin=json.dumps(document)).stdout

    result = json.loads(call("ADD", network))
    assert address(result) == ours(pod, "net1")
    assert machine.node.ping(address(result)) is not None
    call("CHECK", {**network, "prevResult": result})
    call("DEL", network)
    assert pod.link("net1") is None


# Secondary mode: both networks in one list


def test_both_networks_of_a_pod_work(tool: CniTool, elsewhere: Node) -> None:
    tool.configure(listed(primary(V4_RANGE), {"type": "mycelium-cni", "mode": "routed"}))
    one, two = (tool.machine.pod(f"pod-{next(_numbers)}") for _ in range(2))
    first, second = tool("add", one), tool("add", two)
    for result in (first, second):  # what the primary made comes first, and stays as it was
        assert [i["name"] for i in result["interfaces"] if i.get("sandbox")] == [
            "eth0",
            "mycelium0",
        ]
        assert address(result, 0).startswith("10.88.")
        assert address(result, 1) == ours(one if result is first else two, "mycelium0")
    over_bridge = transfer(one, two, address(second, 0), 100_000)
    over_overlay = transfer(one, two, address(second, 1), 100_000)
    far = transfer(one, elsewhere, elsewhere.overlay_address or "", 100_000)
    assert over_bridge.client == address(first, 0)
    assert over_overlay.client == far.client == address(first, 1)
    back = transfer(elsewhere, one, address(first, 1), 100_000)
    assert back.client == elsewhere.overlay_address
    (default,) = one.ip("route", "show", "default")
    assert default["dev"] == "eth0"
    assert one.ip("-6", "route", "show", "default") == []
    for pod in (one, two):
        tool("del", pod)
        assert [link["ifname"] for link in pod.ip("link")] == ["lo"]


def test_the_primary_networks_default_route_stays_the_only_one(
    tool: CniTool, elsewhere: Node
) -> None:
    document = listed(primary(V4_RANGE, V6_RANGE), {"type": "mycelium-cni", "mode": "routed"})
    tool.configure(document)
    pod = tool.machine.pod(f"pod-{next(_numbers)}")
    result = tool("add", pod)
    (default,) = pod.ip("-6", "route", "show", "default")
    assert default["dev"] == "eth0"
    (outside,) = pod.ip("-6", "route", "get", "2001:db8:ffff::1")
    assert (outside["dev"], outside["prefsrc"]) == ("eth0", address(result, 1))
    (overlay,) = pod.ip("-6", "route", "get", "400::1")
    assert (overlay["dev"], overlay["prefsrc"]) == ("mycelium0", address(result, 2))
    assert elsewhere.ping(address(result, 2)) is not None
    tool("del", pod)


def test_a_second_default_route_serves_what_is_sent_from_our_address(tool: CniTool) -> None:
    """Two default routes of one metric would be one multipath route, and lose every other flow."""
    second = {"type": "mycelium-cni", "mode": "routed", "defaultRoute": True}
    tool.configure(listed(primary(V4_RANGE, V6_RANGE), second))
    pod = tool.machine.pod(f"pod-{next(_numbers)}")
    result = tool("add", pod)
    outside = "2001:db8:ffff::1"
    (chosen,) = pod.ip("-6", "route", "get", outside)
    assert (chosen["dev"], chosen["prefsrc"]) == ("eth0", address(result, 1))
    (ours,) = pod.ip("-6", "route", "get", outside, "from", address(result, 2))
    assert ours["dev"] == "mycelium0"
    tool("del", pod)
    assert [rule["table"] for rule in pod.ip("-6", "rule")] == ["local", "main"]


def test_our_default_route_serves_a_pod_that_has_none(tool: CniTool) -> None:
    second = {"type": "mycelium-cni", "mode": "routed", "defaultRoute": True}
    tool.configure(listed(primary(V4_RANGE), second))
    pod = tool.machine.pod(f"pod-{next(_numbers)}")
    tool("add", pod)
    (default,) = pod.ip("-6", "route", "show", "default")
    assert default["dev"] == "mycelium0"
    (default,) = pod.ip("route", "show", "default")
    assert default["dev"] == "eth0"
    tool("del", pod)
