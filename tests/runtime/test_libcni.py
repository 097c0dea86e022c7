# SPDX-License-Identifier: Apache-2.0
"""What only the newest libcni does: STATUS, GC, a choice of versions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .cnitool import RESULTS, CniTool, address
from .conftest import leftovers
from .images import Images
from .machine import Machine, NamedPod, owned_lab

pytestmark = pytest.mark.xdist_group("libcni")


def network(*plugins: dict[str, Any], name: str = "net", **keys: Any) -> dict[str, Any]:
    """A list at the newest version, unless `keys` say otherwise."""
    ours = {"type": "mycelium-cni", "mode": "routed"}
    document = {"cniVersion": "1.1.0", "name": name, **keys, "plugins": [ours, *plugins]}
    return {key: value for key, value in document.items() if value is not None}


@pytest.fixture(scope="module")
def machine(command: list[str], images: Images, reference_plugins: Path) -> Iterator[Machine]:
    with owned_lab(command) as lab:
        node = lab.node("a")
        lab.connect(node)
        machine = Machine(node, images.init, [reference_plugins])
        yield machine
        machine.power_off()


@pytest.fixture
def tool(machine: Machine, reference_plugins: Path) -> Iterator[CniTool]:
    tool = CniTool(machine, reference_plugins / "cnitool")
    tool.configure(network())
    yield tool
    machine.install()
    machine.remove_pods()
    assert leftovers(machine.node) == []
    for file in (machine.directory / RESULTS).glob("*"):
        machine.run("rm", f"/var/lib/cni/results/{file.name}")


@pytest.fixture
def pod(machine: Machine, tool: CniTool) -> NamedPod:
    return machine.pod("pod")


def test_add_check_del(tool: CniTool, pod: NamedPod) -> None:
    result = tool("add", pod)
    assert result["cniVersion"] == "1.1.0"
    assert tool.machine.node.ping(address(result)) is not None
    assert tool("check", pod) is None
    assert tool("del", pod) is None
    assert pod.link("eth0") is None
    assert leftovers(tool.machine.node) == []
    assert tool("del", pod) is None


def test_the_result_is_cached_until_del(tool: CniTool, pod: NamedPod) -> None:
    result = tool("add", pod)
    ((name, entry),) = tool.cached().items()
    assert name.startswith("net-cnitool-")
    assert name.endswith("-eth0")
    assert entry["kind"] == "cniCacheV1"
    assert entry["result"] == result
    tool("del", pod)
    assert tool.cached() == {}


@pytest.mark.parametrize("spoil", ["rm", "truncate -s 9"])
def test_del_needs_no_cached_result(tool: CniTool, pod: NamedPod, spoil: str) -> None:
    tool("add", pod)
    (name,) = tool.cached()
    tool.machine.run(*spoil.split(), f"/var/lib/cni/results/{name}")
    tool("del", pod)
    assert pod.link("eth0") is None


def test_check_compares_with_the_cached_result(tool: CniTool, pod: NamedPod) -> None:
    result = tool("add", pod)
    pod.configure(f"address del {address(result)}/128 dev eth0")
    assert address(result) in tool.refusal("check", pod)


def test_check_is_left_out_where_the_list_says_so(tool: CniTool, pod: NamedPod) -> None:
    tool.configure(network(disableCheck=True))
    result = tool("add", pod)
    pod.configure(f"address del {address(result)}/128 dev eth0")
    tool("check", pod)


def test_check_after_a_chain(tool: CniTool, pod: NamedPod) -> None:
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    bandwidth = {"type": "bandwidth", "ingressRate": 10**7, "ingressBurst": 10**6}
    tuning = {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}
    tool.configure(network(tuning, portmap, bandwidth))
    ports = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    before = tool.machine.run("nft", "list", "ruleset").stdout
    tool("add", pod, capabilities=ports)
    tool("check", pod, capabilities=ports)
    tool("del", pod, capabilities=ports)
    assert tool.refusal("check", pod, capabilities=ports)
    ruleset = tool.machine.run("nft", "list", "ruleset").stdout
    assert "8080" not in ruleset.replace(before, "")


def test_the_highest_of_the_offered_versions_is_spoken(tool: CniTool, pod: NamedPod) -> None:
    log = tool.machine.record()
    tool.configure(network(cniVersion=None, cniVersions=["0.3.1", "1.1.0", "1.0.0", "0.4.0"]))
    assert tool("add", pod)["cniVersion"] == "1.1.0"
    tool("check", pod)
    tool("del", pod)
    tool("status")
    seen = [line.split("\0") for line in log.read_text().splitlines()]
    assert [call[0] for call in seen] == ["ADD", "CHECK", "DEL", "STATUS"]
    assert {json.loads(call[3])["cniVersion"] for call in seen} == {"1.1.0"}


def test_status_follows_the_overlay(tool: CniTool) -> None:
    node = tool.machine.node
    assert tool("status") is None
    node.stop_overlay()
    said = tool.refusal("status")
    assert "failed to find interface mycelium: start the Mycelium daemon" in said
    node.start_overlay()
    assert tool("status") is None


def test_status_is_not_asked_of_an_older_list(tool: CniTool) -> None:
    log = tool.machine.record()
    tool.configure(network(cniVersion="1.0.0"))
    tool("status")
    assert not log.exists()


def test_gc_ends_what_is_cached_and_guesses_nothing(tool: CniTool, machine: Machine) -> None:
    """cnitool lists no attachments at all, which libcni takes for "none of my cache is valid". For
    the plugin a list that is missing is not an empty one: it deletes nothing."""
    cached, lost, other = (machine.pod(name) for name in ("cached", "lost", "other"))
    tool.configure(network(name="other"))
    kept = [tool("add", other)]
    tool.configure(network())
    kept.append(tool("add", lost))
    (name,) = (name for name in tool.cached() if name.startswith("net-"))
    machine.run("rm", f"/var/lib/cni/results/{name}")
    tool("add", cached)
    assert "cni.dev/valid-attachments is missing: nothing was deleted" in tool.refusal("gc")
    assert cached.link("eth0") is None
    for result in kept:
        assert machine.node.ping(address(result)) is not None
    assert [name for name in tool.cached() if name.startswith("net-")] == []


def test_gc_is_left_out_where_the_list_says_so(tool: CniTool, pod: NamedPod) -> None:
    tool.configure(network(disableGC=True))
    result = tool("add", pod)
    tool("gc")
    assert tool.machine.node.ping(address(result)) is not None


def test_a_second_add_is_refused_and_the_first_stays(tool: CniTool, pod: NamedPod) -> None:
    result = tool("add", pod)
    assert "is attached already" in tool.refusal("add", pod)
    tool("check", pod)
    assert tool.machine.node.ping(address(result)) is not None


def test_requests_of_a_runtime(tool: CniTool, pod: NamedPod) -> None:
    document = network()
    document["plugins"][0]["capabilities"] = {"ips": True, "mac": True}
    tool.configure(document)
    subnet = (tool.machine.node.overlay_address or "").rsplit(":", 4)[0]
    wanted = f"{subnet}:ff0f:0:1:2"
    asked = {"ips": [f"{wanted}/64"], "mac": "02:00:5e:10:00:01"}
    result = tool("add", pod, capabilities=asked)
    assert address(result) == wanted
    assert result["interfaces"][1]["mac"] == "02:00:5e:10:00:01"
    tool("check", pod, capabilities=asked)
