# SPDX-License-Identifier: Apache-2.0
"""Removing the network leaves nothing on the nodes. These tests run last in each cluster."""

from __future__ import annotations

import pytest

from mycelium_lab.lab import await_fact

from .cluster import Cluster

pytestmark = pytest.mark.timeout(300)


def test_nothing_is_left(cluster: Cluster) -> None:
    cluster.kubectl("delete", "deployment", "--all")
    cluster.kubectl("-n", "kube-system", "delete", "deployment/coredns")
    for node in cluster.nodes:
        attached = lambda: node.run("mycelium-cni", "list", "--json", check=False).stdout  # noqa: B023, E731
        await_fact(lambda: attached() == "[]\n", "the end of the pods", within_s=60)  # noqa: B023
    cluster.uninstall()
    for node, bare in zip(cluster.nodes, cluster.bare, strict=True):
        assert node.traces() == bare
