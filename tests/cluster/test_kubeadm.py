# SPDX-License-Identifier: Apache-2.0
"""kubeadm makes a cluster from the files of docs/install/kubeadm.md, and the manifest its network.

Its images are made here. What namespaces cannot give is left out: etcd is not kubeadm's, a script
stands for systemd, and the preflight checks are not heeded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mycelium_lab.errors import LabError
from mycelium_lab.lab import await_fact
from runtime.images import archive, need
from runtime.machine import DEBIAN_PLUGINS, owned_lab

from .cluster import (
    API_SERVICE,
    DOMAIN,
    IMAGE,
    KUBELET_ON_A_MACHINE,
    MANIFEST,
    PROXY_ON_A_MACHINE,
    ROOT,
    Cluster,
    Images,
    KubeNode,
    Options,
)
from .programs import KUBERNETES
from .test_conformance import closure

pytestmark = pytest.mark.timeout(600)

ADMIN = "/etc/kubernetes/admin.conf"
CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
XTABLES = Path("/usr/lib/x86_64-linux-gnu/xtables")
KUBELET_UNIT = """
until [ -f /var/lib/kubelet/config.yaml ]; do sleep 0.2; done
. /var/lib/kubelet/kubeadm-flags.env
exec kubelet --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
    --kubeconfig=/etc/kubernetes/kubelet.conf --config=/var/lib/kubelet/config.yaml \
    $KUBELET_KUBEADM_ARGS
"""
Document = dict[str, Any]


def page_documents() -> tuple[list[Document], Document]:
    """cluster.yaml and join.yaml."""
    text = (ROOT / "docs/install/kubeadm.md").read_text()
    cluster, join = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    return list(yaml.safe_load_all(cluster)), yaml.safe_load(join)


class KubeadmCluster(Cluster):
    """Machines with a runtime and images, and kubeadm in PATH."""

    def __enter__(self) -> KubeadmCluster:
        self.admin = ADMIN
        try:
            for node in self.nodes:
                node.boot()
                for name in ("kubeadm", "kubelet", "kubectl"):
                    (node.directory / "tools" / name).symlink_to(self.programs / name)
                systemctl = node.directory / "tools/systemctl"
                systemctl.write_text("#!/bin/sh\n")
                systemctl.chmod(0o755)
                node.start_containerd()
                node.load(IMAGE)
                node.start("kubelet", "sh", "-ec", KUBELET_UNIT)
        except BaseException:
            self.__exit__()
            raise
        return self

    def kubeadm(self, node: KubeNode, verb: str, *documents: Document) -> None:
        path = node.directory / f"{verb}.yaml"
        path.write_text(yaml.safe_dump_all(documents))
        options = ("--config", path, "--ignore-preflight-errors=all")
        node.run("kubeadm", verb, *options, timeout_s=300)


def registered(document: Document, node: KubeNode) -> Document:
    """A document of the page for this node, which shares a kernel and a name with others."""
    registration = document["nodeRegistration"]
    more = {"hostname-override": node.name, "cgroup-root": node.make_cgroup(), "node-ip": node.lan}
    arguments = [{"name": name, "value": value} for name, value in more.items()]
    assert [each["name"] for each in registration["kubeletExtraArgs"]] == ["node-ip"]
    return document | {"nodeRegistration": {"name": node.name, "kubeletExtraArgs": arguments}}


def proxy_files(programs: Path) -> dict[str, bytes | str]:
    """kube-proxy and what it calls: iptables, with its extensions."""
    iptables = Path(need("iptables", "iptables")).resolve()
    found: dict[str, bytes | str] = {
        "usr/local/bin/kube-proxy": (programs / "kube-proxy").read_bytes(),
        f"bin/{iptables.name}": iptables.read_bytes(),
    }
    for family in ("iptables", "ip6tables"):
        found |= {f"bin/{family}{end}": iptables.name for end in ("", "-save", "-restore")}
    extensions = list(XTABLES.iterdir())
    libraries = {library for each in (iptables, *extensions) for library in closure(each, Path())}
    return found | {str(path)[1:]: path.read_bytes() for path in (*extensions, *libraries)}


@pytest.fixture
def cluster_of_kubeadm(
    command: list[str], kubernetes: Path, tmp_path: Path
) -> Iterator[KubeadmCluster]:
    options = Options(2, "iptables", "lan", True, DEBIAN_PLUGINS, True)
    images = Images(tmp_path, kubernetes)
    proxy = proxy_files(kubernetes)
    for name in (*CONTROL_PLANE, "kube-proxy"):
        inside = (
            proxy if name == "kube-proxy" else {f"bin/{name}": (kubernetes / name).read_bytes()}
        )
        images.archives.append(tmp_path / f"{name}.tar")
        archive(images.archives[-1], f"registry.k8s.io/{name}:{KUBERNETES}", inside, [])
    images.archives.append(tmp_path / "registry-pause.tar")
    pause = {"pause": images.init.read_bytes()}
    archive(images.archives[-1], "registry.k8s.io/pause:3.10.1", pause, ["/pause"])
    with owned_lab(command) as lab, KubeadmCluster(lab, images, kubernetes, options) as made:
        yield made


def services_work(cluster: Cluster) -> bool:
    """Whether every pod reaches a Service by its name, and the API."""
    try:
        for pod in cluster.pods("app=web"):
            pod.get("http://web/")
            pod.exec("probe", "lookup", f"web.default.svc.{DOMAIN}")
            pod.exec("probe", "connect", f"[{API_SERVICE}]:443")
    except LabError:
        return False
    return True


def test_the_pages_files_make_a_cluster_whose_pods_reach_services(
    cluster_of_kubeadm: KubeadmCluster,
) -> None:
    cluster = cluster_of_kubeadm
    first, *others = cluster.nodes
    (init, configuration, proxy), join = page_documents()
    etcd = {"external": {"endpoints": [first.start_etcd()]}}
    kubelet = {"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration"}
    assert init["localAPIEndpoint"]["advertiseAddress"] == first.lan
    cluster.kubeadm(
        first,
        "init",
        # Its CoreDNS has plugins that ours was built without.
        registered(init, first) | {"skipPhases": ["addon/coredns"]},
        configuration | {"etcd": etcd, "kubernetesVersion": KUBERNETES},
        proxy | PROXY_ON_A_MACHINE,
        kubelet | KUBELET_ON_A_MACHINE,
    )
    cluster.kubectl("apply", "-f", str(MANIFEST))
    printed = first.run("kubeadm", "token", "create", "--print-join-command").stdout.split()
    bootstrap = join["discovery"]["bootstrapToken"]
    assert bootstrap["apiServerEndpoint"] == printed[2]
    bootstrap["token"] = printed[printed.index("--token") + 1]
    bootstrap["caCertHashes"] = [printed[printed.index("--discovery-token-ca-cert-hash") + 1]]
    for node in others:
        cluster.kubeadm(node, "join", registered(join, node))
    cluster.await_ready()
    cluster.kubectl("taint", "nodes", first.name, "node-role.kubernetes.io/control-plane-")
    for name in ("coredns", "web"):
        cluster.apply(name)
    cluster.rollout("deployment/web")
    cluster.rollout("deployment/coredns", "kube-system")
    await_fact(cluster.all_reach_all, "all pods reach each other", within_s=60)
    await_fact(lambda: services_work(cluster), "pods reach Services by name", within_s=60)
    for node in cluster.nodes:
        url = f"http://[{node.lan}]:30080/"
        await_fact(lambda: cluster.world_gets(url), "a NodePort", within_s=30)  # noqa: B023
        assert not cluster.world_gets(f"http://[{node.overlay}]:30080/")
