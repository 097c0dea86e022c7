# SPDX-License-Identifier: Apache-2.0
"""What a cluster's pods, nodes and neighbours reach, on nodes that `mycelium-cni install` prepared.

The addresses outside: a router on the nodes' LAN with one host behind
it, and a node of the overlay that is not of the cluster.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path

import pytest

from mycelium_lab.errors import LabError
from mycelium_lab.lab import await_fact
from runtime.images import archive

from .cluster import API_SERVICE, DNS_SERVICE, DOMAIN, INTERNET, ROOT, Cluster, KubeNode, KubePod

pytestmark = pytest.mark.timeout(400)
NEXT = "localhost/mycelium-cni:next"
REPEATED = 6  # enough requests to a Service to meet each of its three pods


def service_address(cluster: Cluster, name: str) -> str:
    return cluster.kubectl("get", "service", name, "-o", "jsonpath={.spec.clusterIP}")


# The installation


def test_the_runtime_has_taken_the_network_up_and_a_second_install_changes_nothing(
    cluster: Cluster,
) -> None:
    for node in cluster.nodes:
        said = node.install()
        assert "has loaded /etc/cni/net.d/10-mycelium.conflist" in said
        assert "write" not in said


def test_doctor_finds_nothing_wrong_and_reaches_services_from_a_pod(
    cluster: Cluster, web: list[KubePod]
) -> None:
    for pod, node in zip(web, cluster.nodes, strict=True):
        told = json.loads(
            node.run("/opt/cni/bin/mycelium-cni", "doctor", "--json", check=False).stdout
        )
        assert [one for one in told if one["state"] not in ("ok", "skip")] == []
        (services,) = [one["found"] for one in told if one["name"] == "services"]
        assert services == f"a pod reaches API {API_SERVICE}, DNS {DNS_SERVICE}", pod


def test_uninstall_is_refused_while_pods_are_attached(cluster: Cluster, web: list[KubePod]) -> None:
    node = cluster.nodes[0]
    refused = node.run("/opt/cni/bin/mycelium-cni", "uninstall", check=False)
    assert refused.returncode == 1
    assert "attached" in refused.stderr
    assert node.get(f"http://[{web[0].address}]:8080/")


# Pods


def test_the_seeds_pod_and_deployment_run_and_reach_each_other(cluster: Cluster) -> None:
    cluster.apply("seed-pod")
    cluster.apply("seed-deployment")
    cluster.kubectl("wait", "--for=condition=Ready", "pod/mycelium-test", "--timeout=60s")
    cluster.rollout("deployment/mycelium-deployment")
    pods = cluster.pods("app=mycelium-test")
    assert len({pod.node for pod in pods}) > 1
    (single,) = (p for p in cluster.pods("app!=x") if p.name == "mycelium-test")
    for pod in pods:
        assert "64 bytes from" in single.exec("ping6", "-c", "2", pod.address)
    cluster.kubectl("delete", "--wait", "pod/mycelium-test", "deployment/mycelium-deployment")


def test_pods_and_nodes_reach_every_pod(cluster: Cluster, web: list[KubePod]) -> None:
    assert cluster.all_reach_all()
    for node in cluster.nodes:
        assert [pod for pod in web if not node.get(f"http://[{pod.address}]:8080/")] == []


def test_exec_logs_and_port_forward_work(cluster: Cluster, web: list[KubePod]) -> None:
    pod = web[-1]
    assert pod.exec("hostname").strip() == pod.name
    assert "serving" in cluster.kubectl("logs", pod.name)
    node = cluster.nodes[0]
    kubectl = (cluster.programs / "kubectl", "--kubeconfig", cluster.admin)
    forwarded = node.machine.start(
        *kubectl, "port-forward", "--address=::1", pod.name, "18080:8080"
    )
    try:
        await_fact(lambda: node.get("http://[::1]:18080/"), "an answer through port-forward")
    finally:
        forwarded.stop()


# Services


def test_pods_reach_a_service_by_address_and_by_name(cluster: Cluster, web: list[KubePod]) -> None:
    address = service_address(cluster, "web")
    for pod in web:
        answers = pod.get(*[f"http://[{address}]/"] * REPEATED)
        assert answers.count("\n") == REPEATED
        assert pod.get("http://web/")
        assert address in pod.exec("probe", "lookup", f"web.default.svc.{DOMAIN}")


def test_pods_reach_the_api_and_dns_by_their_services(web: list[KubePod]) -> None:
    for pod in web:
        pod.exec("probe", "connect", f"[{API_SERVICE}]:443")
        pod.exec("probe", "connect", f"[{DNS_SERVICE}]:53")


def test_nodes_reach_a_service(cluster: Cluster, web: list[KubePod]) -> None:
    """As the API server does to call a webhook, with a default route or without."""
    url = f"http://[{service_address(cluster, 'web')}]/"
    for node in cluster.nodes:
        assert all(node.get(url) for _ in range(REPEATED))


def test_pods_reach_every_node_by_each_of_its_addresses(
    cluster: Cluster, web: list[KubePod]
) -> None:
    for pod in web:
        for node in cluster.nodes:
            for address in (node.lan, node.overlay):
                pod.exec("probe", "connect", f"[{address}]:10250")


def test_node_ports_are_on_the_lan_and_not_on_the_overlay(
    cluster: Cluster, web: list[KubePod]
) -> None:
    for node in cluster.nodes:
        for port in (30080, 30081):  # externalTrafficPolicy Cluster and Local
            lan, overlay = (f"http://[{a}]:{port}/" for a in (node.lan, node.overlay))
            assert all(cluster.world_gets(lan) for _ in range(REPEATED))
            assert not cluster.world_gets(overlay)
            other = cluster.nodes[0] if node is not cluster.nodes[0] else cluster.nodes[1]
            assert not other.get(overlay)


def test_a_load_balancers_address_is_served_on_the_lan(
    cluster: Cluster, web: list[KubePod]
) -> None:
    """Assigned by hand here, and routed to one node as a load balancer would."""
    address = "2001:db8:2::1"
    cluster.apply("balanced")
    status = f'{{"status": {{"loadBalancer": {{"ingress": [{{"ip": "{address}"}}]}}}}}}'
    cluster.kubectl("patch", "service", "balanced", "--subresource=status", "-p", status)
    cluster.world.configure(f"route replace {address} via {cluster.nodes[1].lan}")
    url = f"http://[{address}]/"
    await_fact(lambda: cluster.world_gets(url), "an answer of the load balancer's address")
    assert all(cluster.world_gets(url) for _ in range(REPEATED))
    cluster.kubectl("delete", "service", "balanced")


def test_host_ports_are_served(cluster: Cluster) -> None:
    cluster.apply("hostport")
    cluster.kubectl("wait", "--for=condition=Ready", "pod/hostport", "--timeout=60s")
    node = cluster.nodes[1]  # the manifest's
    url = f"http://[{node.lan}]:8088/"
    assert cluster.world_gets(url)
    assert node.get(url)
    cluster.kubectl("delete", "--wait", "pod/hostport")
    assert not cluster.world_gets(url)


# The world


def test_pods_reach_the_internet_if_the_node_does(cluster: Cluster, web: list[KubePod]) -> None:
    """The host there knows no way to the overlay: it answers the node."""
    for pod in web:
        if cluster.options.router:
            pod.exec("ping6", "-c", "1", "-W", "2", INTERNET)
        else:
            with pytest.raises(LabError, match="nreachable"):
                pod.exec("probe", "connect", f"[{INTERNET}]:80")


def test_the_overlay_reaches_pods(cluster: Cluster, web: list[KubePod]) -> None:
    for pod in web:
        assert cluster.world_gets(f"http://[{pod.address}]:8080/")


# Faults


@pytest.fixture
def undisturbed(cluster: Cluster, web: list[KubePod]) -> Iterator[None]:
    """The pods are the same at the end, with their addresses and no restarts."""
    before = [(pod.name, pod.address, pod.restarts) for pod in web]
    yield
    await_fact(cluster.all_reach_all, "all pods reach each other", within_s=40)
    assert [(p.name, p.address, p.restarts) for p in cluster.pods("app=web")] == before


def a_new_pod_runs(cluster: Cluster, node: KubeNode) -> None:
    cluster.apply("new", NODE=node.name)
    cluster.kubectl("wait", "--for=condition=Ready", "pod/new", "--timeout=60s")
    cluster.kubectl("delete", "--now", "pod/new")


@pytest.mark.parametrize("program", ["containerd", "kubelet", "kube-proxy"])
@pytest.mark.usefixtures("undisturbed")
def test_pods_outlive_a_killed(program: str, cluster: Cluster, web: list[KubePod]) -> None:
    node = cluster.nodes[1]
    node.stop(program, signal.SIGKILL)
    assert cluster.nodes[0].get(f"http://[{web[1].address}]:8080/")
    node.restart(program)
    a_new_pod_runs(cluster, node)


@pytest.mark.usefixtures("undisturbed")
def test_pods_outlive_a_killed_daemon(cluster: Cluster, web: list[KubePod]) -> None:
    node, url = cluster.nodes[1], f"http://[{web[1].address}]:8080/"
    node.lab_node.stop_overlay(signal.SIGKILL)
    assert node.get(url)
    assert not cluster.nodes[0].get(url)
    node.lab_node.start_overlay()
    a_new_pod_runs(cluster, node)


def test_a_node_that_was_switched_off_comes_back(cluster: Cluster, web: list[KubePod]) -> None:
    node = cluster.nodes[2]
    node.reboot()
    cluster.kubectl("delete", "--now", "pod", web[2].name)
    cluster.rollout("deployment/web")
    await_fact(cluster.all_reach_all, "all pods reach each other", within_s=60)


# The agent


@pytest.mark.only("manifest")
@pytest.mark.usefixtures("undisturbed")
def test_the_agent_brings_back_what_a_firewalls_restart_flushes(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    for _ in range(3):
        node.run("nft", "flush", "ruleset")
        await_fact(
            lambda: "mycelium-cni" in node.run("nft", "list", "tables").stdout, "the guard's table"
        )
    node.run("ip", "-6", "route", "flush", "proto", "77")
    await_fact(cluster.all_reach_all, "all pods reach each other", within_s=30)
    cluster.await_ready()
    node.renew_proxy()


@pytest.mark.only("manifest")
def test_an_upgrade_disturbs_no_pod_that_comes_or_goes(
    cluster: Cluster, undisturbed: None, tmp_path: Path
) -> None:
    cluster.apply("churn")
    executable = Path(cluster.lab.command[0]).read_bytes()
    archive(tmp_path / "next.tar", NEXT, {"mycelium-cni": executable + b"\n"}, ["/mycelium-cni"])
    for node in cluster.nodes:
        node.load(tmp_path / "next.tar")
    cluster.kubectl("scale", "deployment/churn", "--replicas=30")
    images = (f"install={NEXT}", f"agent={NEXT}")
    cluster.kubectl("-n", "kube-system", "set", "image", "daemonset/mycelium-cni", *images)
    cluster.rollout("deployment/churn")
    cluster.kubectl("scale", "deployment/churn", "--replicas=0")
    cluster.kubectl("wait", "--for=delete", "pod", "-l", "app=churn", "--timeout=90s")
    cluster.rollout("daemonset/mycelium-cni", "kube-system")
    for node in cluster.nodes:
        size = node.run("stat", "-c", "%s", "/opt/cni/bin/mycelium-cni").stdout
        assert int(size) == len(executable) + 1
    failed = "--field-selector=reason=FailedCreatePodSandBox"
    assert cluster.kubectl("get", "events", failed, "-o", "name") == ""


SUBNET = "mycelium-cni/subnet"
CLUSTER_FILE = "/var/lib/mycelium-cni/cluster"
AGENT = "system:serviceaccount:kube-system:mycelium-cni"


def subnet(address: str) -> str:
    return str(ip_network(f"{address}/64", strict=False))


def await_subnets(cluster: Cluster, node: KubeNode, *addresses: str) -> None:
    """Wait until a node's agent knows the subnets of the cluster's nodes and of these."""
    wanted = sorted(subnet(each) for each in (*(n.overlay for n in cluster.nodes), *addresses))

    def known() -> list[str]:
        return sorted(node.run("cat", CLUSTER_FILE, check=False).stdout.split())

    with suppress(LabError):
        await_fact(lambda: known() == wanted, "", within_s=60)
    assert known() == wanted, cluster.agent_log(node)


@pytest.fixture
def guarded(cluster: Cluster, web: list[KubePod]) -> Iterator[KubeNode]:
    """A node whose pods only the cluster may reach, while the test runs."""
    node = cluster.nodes[1]
    path = node.machine.net_d / "10-mycelium.conflist"
    before = path.read_text()
    conflist = json.loads(before)
    conflist["plugins"][0]["ingress"] = "cluster"
    node.configure(path.name, conflist)
    node.run("mycelium-cni", "setup")
    yield node
    node.configure(path.name, json.loads(before))
    path.write_text(before)
    node.run("mycelium-cni", "setup")


@pytest.mark.only("manifest")
def test_only_the_clusters_nodes_reach_a_guarded_pod_as_they_come_and_go(
    cluster: Cluster, guarded: KubeNode, web: list[KubePod]
) -> None:
    world = str(cluster.world.overlay_address)
    url = f"http://[{web[1].address}]:8080/"
    await_subnets(cluster, guarded)
    assert cluster.all_reach_all()
    assert all(node.get(url) for node in cluster.nodes)
    assert not cluster.world_gets(url)
    meta = {"name": "world", "annotations": {SUBNET: subnet(world)}}
    forged = json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": meta})
    cluster.kubectl("apply", "-f", "-", stdin=forged)
    await_subnets(cluster, guarded, world)
    await_fact(lambda: cluster.world_gets(url), "a node of the cluster reaches the pod")
    cluster.kubectl("annotate", "--overwrite", "node/world", f"{SUBNET}=400::/7")
    await_fact(lambda: not cluster.world_gets(url), "a forged subnet opens nothing", within_s=30)
    await_subnets(cluster, guarded)
    assert cluster.all_reach_all()
    cluster.kubectl("delete", "node/world")


@pytest.mark.only("manifest")
def test_the_last_known_nodes_count_while_the_api_is_away(
    cluster: Cluster, guarded: KubeNode, web: list[KubePod]
) -> None:
    url = f"http://[{web[1].address}]:8080/"
    await_subnets(cluster, guarded)
    control = cluster.nodes[0]
    try:
        control.stop("kube-apiserver", signal.SIGKILL)
        guarded.run("nft", "flush", "ruleset")
        await_fact(lambda: not cluster.world_gets(url), "the guard is back", within_s=30)
        assert all(node.get(url) for node in cluster.nodes)
        await_subnets(cluster, guarded)
        guarded.renew_proxy()
    finally:
        control.restart("kube-apiserver")
        await_fact(
            lambda: cluster.try_kubectl("get", "--raw", "/readyz") == "ok",
            "the API server",
            within_s=120,
        )
    cluster.await_ready()


@pytest.mark.only("overlay-only")
def test_an_agent_that_is_no_pod_follows_the_nodes_with_the_kubelets_kubeconfig(
    cluster: Cluster,
) -> None:
    """A kubelet may change its own Node; what else the agent does, docs/agent.md has granted."""
    page = (ROOT / "docs/agent.md").read_text()
    (granting,) = re.findall(r"```sh\n(kubectl create clusterrole .*?)```", page, re.DOTALL)
    for line in granting.splitlines():
        cluster.kubectl(*line.split()[1:])
    for node in cluster.nodes:
        kubeconfig = cluster.pki.path(f"kubelet-{node.name}.kubeconfig")
        agent = ("mycelium-cni", "agent", "--kubeconfig", kubeconfig)
        node.start("agent", "env", f"NODE_NAME={node.name}", *agent)
    for node in cluster.nodes:
        await_subnets(cluster, node)
        as_it = (f"--as=system:node:{node.name}", "--as-group=system:nodes", "-n", "default")
        for verb in ("create", "patch"):  # what doctor finds
            cluster.kubectl("auth", "can-i", verb, "events.events.k8s.io", *as_it)
    for node in cluster.nodes:
        node.stop("agent")
    kinds = "clusterrolebinding,clusterrole,rolebinding,role"
    cluster.kubectl("-n", "default", "delete", kinds, "mycelium-cni-nodes")


@pytest.mark.only("manifest")
def test_an_agents_token_changes_no_other_node(cluster: Cluster) -> None:
    for node in cluster.nodes:
        said = cluster.kubectl("get", "node", node.name, "-o", "json")
        assert json.loads(said)["metadata"]["annotations"][SUBNET] == subnet(node.overlay)
    # kubectl would read the Node first, which an agent may not.
    files = [cluster.pki.path(name) for name in ("ca.crt", "admin.crt", "admin.key")]
    argv = [
        word for pair in zip(("--cacert", "--cert", "--key"), files, strict=True) for word in pair
    ]
    argv += ["-H", f"Impersonate-User: {AGENT}", "-H", "Content-Type: application/merge-patch+json"]
    changes = ("-d", '{"metadata": {"annotations": {"mycelium-cni/address": "::"}}}')
    url = f"{cluster.server}/api/v1/nodes/node2"
    said = cluster.nodes[0].run("curl", "-gsS", "-X", "PATCH", *argv, *changes, url).stdout
    assert "an agent may change its own node only" in said
    with pytest.raises(LabError, match="orbidden"):
        cluster.kubectl(f"--as={AGENT}", "get", "secrets", "-A")


@pytest.mark.only("manifest")
def test_what_doctor_finds_is_an_event_of_the_node(cluster: Cluster) -> None:
    node = cluster.nodes[2]
    events = (
        *("get", "events.events.k8s.io", "-o", "jsonpath={.items[*].note}"),
        f"--field-selector=regarding.name={node.name},reportingController=mycelium-cni/agent",
    )
    (node.machine.net_d / "99-broken.conflist").write_text("{")
    cluster.kubectl("-n", "kube-system", "delete", "pod", cluster.agent(node))
    await_fact(lambda: "99-broken.conflist" in cluster.kubectl(*events), "the Event", within_s=120)
    (node.machine.net_d / "99-broken.conflist").unlink()
    cluster.rollout("daemonset/mycelium-cni", "kube-system")


# Many


def left(node: KubeNode) -> dict[str, int]:
    """What pods leave on a node, counted."""
    links = node.lab_node.ip("link")
    routes = node.lab_node.ip("-6", "route", "show", "proto", "77")
    return {
        "links": sum(link["ifname"].startswith("myc") for link in links),
        "routes": sum(route["dev"] != "lo" for route in routes),
        "neighbours": len(node.lab_node.ip("-6", "neigh", "show", "proto", "77")),
        "namespaces": len(node.run("ls", "/run/netns").stdout.split()),
        "rules": node.run("nft", "-t", "list", "table", "inet", "mycelium-cni").stdout.count("\n"),
        "results": len(node.run("ls", "/var/lib/cni/results", check=False).stdout.split()),
    }


def test_a_hundred_pods_come_and_go_and_leave_nothing(cluster: Cluster) -> None:
    cluster.apply("churn")
    before = [left(node) for node in cluster.nodes]
    for _ in range(2):
        cluster.kubectl("scale", "deployment/churn", "--replicas=100")
        cluster.kubectl("rollout", "status", "deployment/churn", "--timeout=180s", timeout_s=200)
        addresses = [pod.address for pod in cluster.pods("app=churn")]
        assert len(set(addresses)) == 100
        cluster.kubectl("scale", "deployment/churn", "--replicas=0")
        cluster.kubectl(
            *("wait", "--for=delete", "pod", "-l", "app=churn", "--timeout=180s"), timeout_s=200
        )
    with suppress(LabError):
        await_fact(lambda: [left(node) for node in cluster.nodes] == before, "", within_s=20)
    assert [left(node) for node in cluster.nodes] == before
