# SPDX-License-Identifier: Apache-2.0
"""Machines with runtimes, shared by all tests of a worker.

    images      the container images
    cluster     two machines with containerd and a connected overlay

Tests that share a fixture carry the same `xdist_group` mark, so that its machines start once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from mycelium_lab.lab import Node, await_fact

from .criharness import Containerd
from .images import Images
from .machine import Machine, owned_lab


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return Images(tmp_path_factory.mktemp("images"))


class Cluster:
    """Two nodes with containerd; `left` and `right` are where pods run."""

    def __init__(self, left: Containerd, right: Containerd) -> None:
        self.left = left
        self.right = right
        self.lab = left.machine.node.lab

    def __iter__(self) -> Iterator[Containerd]:
        return iter((self.left, self.right))

    def address(self, containerd: Containerd) -> str:
        """The overlay address of the node."""
        address = containerd.machine.node.overlay_address
        assert address is not None
        return address


@pytest.fixture(scope="session")
def shared_cluster(command: list[str], images: Images) -> Iterator[Cluster]:
    with owned_lab(command) as lab, ExitStack() as stack:
        nodes = [lab.node("left"), lab.node("right")]
        lab.connect(*nodes)
        running = []
        for node in nodes:
            machine = Machine(node, images.init)
            stack.callback(machine.power_off)
            machine.run("cp", str(node.key_file), "/etc/netseed")
            running.append(Containerd(machine, images))
        yield Cluster(*running)


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """As it was found, whatever the test did: no pods, and nothing of them on the nodes."""
    yield shared_cluster
    for containerd in shared_cluster:
        containerd.machine.install()
        containerd.end_all()
        assert leftovers(containerd.machine.node) == []
        assert list(containerd.machine.directory.glob("upper/var/lib/cni/results/*")) == []


def leftovers(node: Node) -> list[str]:
    """What is left of attachments on a node, as text. Links of other plugins go when the kernel has
    removed the pod's namespace, which takes it some time."""
    own = {"lo", "under0", "mycelium", "mycelium-br", "cni0"}

    def links() -> list[str]:
        return [link["ifname"] for link in node.ip("link") if link["ifname"] not in own]

    await_fact(lambda: not links(), f"the end of {links()} on {node.name}", within_s=20)
    routes = [r["dst"] for r in node.ip("-6", "route", "show", "proto", "77") if r["dev"] != "lo"]
    neighbours = [n["dst"] for n in node.ip("-6", "neigh", "show", "proto", "77")]
    return routes + neighbours
