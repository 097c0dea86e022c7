# SPDX-License-Identifier: Apache-2.0
"""Pods with more than one network, and a node whose key changes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from mycelium_lab.lab import await_fact

from .cluster import Cluster, KubeNode, KubePod

pytestmark = [pytest.mark.timeout(300), pytest.mark.only("manifest")]

IPV4: dict[str, Any] = {
    "type": "bridge",
    "bridge": "cni0",
    "isGateway": True,
    "ipMasq": True,
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.42.2.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    },
}


@pytest.fixture
def node(cluster: Cluster, web: list[KubePod]) -> Iterator[KubeNode]:
    """A node whose pods' first network is the test's while the test runs."""
    node = cluster.nodes[1]
    yield node
    cluster.kubectl("delete", "--now", "--ignore-not-found", "pod/new")
    for path in node.machine.net_d.glob("00-*"):
        node.configure(path.name, None)
    (node.machine.bin / "multus").unlink(missing_ok=True)
    node.run("ip", "link", "del", "cni0", check=False)


def start_pod(cluster: Cluster, node: KubeNode, annotations: str = "{}") -> KubePod:
    text = {"NODE": node.name, "annotations: {}": f"annotations: {annotations}"}
    cluster.apply("new", **text)
    cluster.kubectl("wait", "--for=condition=Ready", "pod/new", "--timeout=60s")
    (pod,) = cluster.pods("app=new")
    return pod


def overlay_address(pod: KubePod, link: str) -> str:
    shown = pod.exec("ip", "address", "show", "dev", link)
    found = re.search(r"inet6 ([45][0-9a-f]*:[0-9a-f:]+)/", shown)
    assert found, shown
    return found[1]


def is_on_the_overlay(cluster: Cluster, pod: KubePod, address: str, others: list[KubePod]) -> None:
    for other in others:
        pod.exec("probe", "connect", f"[{other.address}]:8080")
    assert cluster.world.ping(address)


def test_pods_have_ipv4_of_another_plugin_of_the_chain(
    cluster: Cluster, node: KubeNode, web: list[KubePod]
) -> None:
    plugins = [IPV4, {"type": "mycelium-cni"}]
    node.configure("00-dual.conflist", {"cniVersion": "1.0.0", "name": "dual", "plugins": plugins})
    pod = start_pod(cluster, node)
    assert pod.address.startswith("10.42.2.")
    pod.exec("ping", "-c", "1", "10.42.2.1")
    is_on_the_overlay(cluster, pod, overlay_address(pod, "mycelium0"), web)


def test_pods_have_a_second_network_by_multus(
    cluster: Cluster, node: KubeNode, web: list[KubePod]
) -> None:
    (node.machine.bin / "multus").symlink_to(cluster.programs / "multus")
    cluster.apply("multus")
    cluster.kubectl(
        "wait", "--for=condition=Established", "crd/network-attachment-definitions.k8s.cni.cncf.io"
    )
    new = ("config", "new", "--for", "multus", "--name", "overlay", "--manifest")
    cluster.kubectl("apply", "-f", "-", stdin=node.run("mycelium-cni", *new).stdout)
    multus = {
        "cniVersion": "1.0.0",
        "name": "multus-cni-network",
        "type": "multus",
        "kubeconfig": cluster.admin,
        "confDir": "/etc/cni/net.d",
        "binDir": "/opt/cni/bin",
        "delegates": [{"cniVersion": "1.0.0", "name": "primary", "plugins": [IPV4]}],
    }
    node.configure("00-multus.conf", multus)
    pod = start_pod(cluster, node, json.dumps({"k8s.v1.cni.cncf.io/networks": "overlay"}))
    assert pod.address.startswith("10.42.2.")
    is_on_the_overlay(cluster, pod, overlay_address(pod, "net1"), web)


def test_after_a_new_key_pods_that_are_replaced_are_reached_again(
    cluster: Cluster, web: list[KubePod]
) -> None:
    node, stranded = cluster.nodes[2], web[2]
    before = node.overlay
    node.lab_node.stop_overlay()
    node.lab_node.key_file.unlink()
    node.lab_node.start_overlay()
    assert node.overlay != before
    told = node.run("mycelium-cni", "doctor", "subnet", check=False).stdout
    assert stranded.name in told
    pods = cluster.kubectl(
        *("get", "pods", "-A", "-o", "json"),
        f"--field-selector=spec.nodeName={node.name},spec.hostNetwork=false",
    )
    for pod in json.loads(pods)["items"]:
        meta = pod["metadata"]
        cluster.kubectl("-n", meta["namespace"], "delete", "--now", "pod", meta["name"])
    cluster.rollout("deployment/web")
    await_fact(cluster.all_reach_all, "all pods reach each other", within_s=60)
    assert cluster.pods("app=web")[2].address != stranded.address
    cluster.await_ready()
