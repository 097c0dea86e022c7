# SPDX-License-Identifier: Apache-2.0
"""The clusters, one after the other: every test runs in each of them.

They are chosen so that each runtime meets each kind of kube-proxy, of addresses that nodes are
known by, and of reference plugins. A test with the mark `only` runs in one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.machine import DEBIAN_PLUGINS, owned_lab

from . import programs
from .cluster import Cluster, Images, KubePod, Options

CLUSTERS = {
    # name: containerd, kube-proxy, nodes known by, default route, CNI plugins of, installed by
    "containerd-1.6": (1, "nftables", "lan", True, "Debian", "command"),
    "overlay-only": (2, "iptables", "overlay", False, "CNI project", "command"),
    "manifest": (2, "nftables", "lan", True, "Debian", "manifest"),
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "only(*clusters): runs in these, and in no other")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deselect tests that are for another cluster."""
    items[:] = [item for item in items if _belongs(item)]


def _belongs(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("only")
    callspec = getattr(item, "callspec", None)
    params = callspec.params if callspec else {}
    return mark is None or params.get("cluster", mark.args[0]) in mark.args


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
    containerd, proxy_mode, known_by, router, plugins, by = CLUSTERS[request.param]
    directory = DEBIAN_PLUGINS if plugins == "Debian" else reference_plugins
    options = Options(containerd, proxy_mode, known_by, router, directory, by == "manifest")
    images = Images(tmp_path_factory.mktemp("images"), kubernetes)
    with owned_lab(command) as lab, Cluster(lab, images, kubernetes, options) as cluster:
        cluster.bare = [node.traces() for node in cluster.nodes]
        cluster.install()
        cluster.apply("web")
        cluster.apply("coredns")
        cluster.rollout("deployment/web")
        cluster.rollout("deployment/coredns", "kube-system")
        yield cluster


@pytest.fixture
def web(cluster: Cluster) -> list[KubePod]:
    """A pod with a web server on each node."""
    cluster.rollout("deployment/web")
    pods = cluster.pods("app=web")
    assert [pod.node for pod in pods] == [node.name for node in cluster.nodes]
    return pods
