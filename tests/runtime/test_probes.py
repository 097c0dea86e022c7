# SPDX-License-Identifier: Apache-2.0
"""A kubelet's view of a pod: its probes, its IPs, and their order.

The kubelet opens connections from the node itself, from whatever address the node picks, and waits
one second (the default `timeoutSeconds`). `reach` says what each policy lets through.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from mycelium_lab.lab import Namespace, await_fact

from .conftest import Cluster
from .criharness import Sandbox
from .traffic import page

pytestmark = pytest.mark.xdist_group("containerd")

TIMEOUT_S = 1  # a probe's timeoutSeconds
# What a pod's network may say of who may open connections. The node always may.
POLICIES: dict[str, dict[str, Any]] = {
    "nothing said": {},
    "open": {"ingress": "open"},
    "cluster": {"ingress": "cluster"},
    "closed": {"ingress": "closed"},
}
PRIMARY = {
    "type": "bridge",
    "bridge": "cni0",
    "isGateway": True,
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd00:88::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    },
}


def http_probe(source: Namespace, address: str) -> bool:
    return page(source, address, timeout_s=TIMEOUT_S) == "ready"


def tcp_probe(source: Namespace, address: str) -> bool:
    try:
        with source.inside():
            connection = socket.create_connection((address, 80), timeout=TIMEOUT_S)
    except OSError:
        return False
    connection.close()
    return True


PROBES: dict[str, Callable[[Namespace, str], bool]] = {"HTTP": http_probe, "TCP": tcp_probe}


def network(*before: dict[str, Any], **keys: Any) -> dict[str, Any]:
    ours = {"type": "mycelium-cni", **keys}
    return {"cniVersion": "1.0.0", "name": "mycelium", "plugins": [*before, ours]}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", ["routed", "bridge"])
def test_probes_of_the_node_reach_the_pod(cluster: Cluster, mode: str, policy: str) -> None:
    left, _ = cluster
    left.configure(network(mode=mode, **POLICIES[policy]))
    node = left.machine.node
    pod = left.pod("web")
    address = pod.address
    assert [name for name, probe in PROBES.items() if probe(node, address)] == [], "before it runs"
    container = pod.serve("ready")
    assert [name for name, probe in PROBES.items() if probe(node, address)] == list(PROBES)
    assert container.execute("test", "-s", "/www/index.html")[0] == 0
    assert container.execute("test", "-s", "/www/none")[0] == 1
    pod.end()
    if mode == "bridge":
        node.configure("link delete mycelium-br")


def test_a_probe_fails_at_once_where_nobody_listens(cluster: Cluster) -> None:
    """Refused, not silently dropped, or each failing probe takes its whole timeout."""
    left, _ = cluster
    left.configure(network(mode="routed"))
    address = left.pod("web").address
    with left.machine.node.inside(), pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, 81), timeout=TIMEOUT_S)


def test_probes_go_on_without_the_daemon(cluster: Cluster) -> None:
    left, right = cluster
    left.configure(network(mode="routed"))
    node = left.machine.node
    pod = left.pod("web")
    pod.serve("ready")
    address = pod.address
    node.stop_overlay()
    assert all(probe(node, address) for probe in PROBES.values())
    node.start_overlay()
    assert all(probe(node, address) for probe in PROBES.values())
    other = right.machine.node
    await_fact(lambda: http_probe(other, address), "the pod seen from the other node", within_s=20)


def addresses(pod: Sandbox) -> list[str]:
    """What CRI reports, first the pod's IP, then the others."""
    network_status = pod.status().network
    return [network_status.ip, *(other.ip for other in network_status.additional_ips)]


def in_kernel(pod: Sandbox) -> dict[str, list[str]]:
    """The addresses of every interface, as the kernel has them, without what it makes itself."""
    found = {}
    for link in pod.ip("addr"):
        entries = [e["local"] for e in link["addr_info"] if e["scope"] == "global"]
        if entries:
            found[link["ifname"]] = entries
    return found


def test_cri_reports_the_kernels_address(cluster: Cluster) -> None:
    left, _ = cluster
    left.configure(network(mode="routed"))
    pod = left.pod("web")
    assert in_kernel(pod) == {"eth0": addresses(pod)}


def test_of_a_dual_stack_pod_the_primary_address_comes_first(cluster: Cluster) -> None:
    """The cluster's own network first, in its order, ours last: the pod's IP must be one that the
    cluster's Services use. containerd reports the addresses of eth0 alone."""
    left, right = cluster
    left.configure(network(PRIMARY, mode="routed"))
    pod = left.pod("web")
    kernel, reported = in_kernel(pod), addresses(pod)
    assert ipaddress.ip_address(reported[0]).version == 4
    assert sorted(reported) == sorted(kernel["eth0"])
    pod.serve("ready")
    (ours,) = kernel["mycelium0"]
    for node in (left.machine.node, right.machine.node):
        assert http_probe(node, ours)
    for address in reported:  # the bridge's own gateway address is tentative for a second or two
        probe = partial(http_probe, left.machine.node, address)
        await_fact(probe, f"an answer of {address}")
    pod.end()
    left.machine.node.configure("link delete cni0")


def test_a_host_network_pod_is_not_attached(cluster: Cluster) -> None:
    left, _ = cluster
    log = left.machine.record()
    left.configure(network(mode="routed"))
    pod = left.pod("hostly", host_network=True)
    assert addresses(pod) == [""]
    pod.end()
    assert not log.exists()
