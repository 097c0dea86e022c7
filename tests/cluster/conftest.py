# SPDX-License-Identifier: Apache-2.0
"""The clusters, one after the other: every test runs in each of them.

They are chosen so that each runtime meets each kind of kube-proxy, of addresses that nodes are
known by, and of reference plugins.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.machine import DEBIAN_PLUGINS, owned_lab

from . import programs
from .cluster import Cluster, Images, Options

CLUSTERS = {
    # name: containerd, kube-proxy, nodes known by, default route, CNI plugins of
    "containerd-1.6": (1, "nftables", "lan", True, "Debian"),
    "overlay-only": (2, "iptables", "overlay", False, "CNI project"),
    "old-plugins": (2, "nftables", "overlay", True, "Debian"),
}


@pytest.fixture(scope="session")
def kubernetes() -> Path:
    return programs.ensure()


@pytest.fixture(scope="session", params=CLUSTERS)
def cluster(
    request: pytest.FixtureRequest,
    command: list[str],
    kubernetes: Path,
    reference_plugins: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    containerd, proxy_mode, known_by, router, plugins = CLUSTERS[request.param]
    directory = DEBIAN_PLUGINS if plugins == "Debian" else reference_plugins
    options = Options(containerd, proxy_mode, known_by, router, directory)
    images = Images(tmp_path_factory.mktemp("images"), kubernetes)
    with owned_lab(command) as lab, Cluster(lab, images, kubernetes, options) as cluster:
        for node in cluster.nodes:
            node.install()
        cluster.await_ready()
        cluster.apply("web")
        cluster.apply("coredns")
        cluster.rollout("deployment/web")
        cluster.kubectl("-n", "kube-system", "rollout", "status", "deployment/coredns")
        yield cluster
