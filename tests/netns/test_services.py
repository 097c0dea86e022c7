# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' Services: the route to them without a default route (`serviceNetworks`), and what
`doctor` reports when pods do not reach them. A rule of the test stands for kube-proxy."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sites import SERVICES, Site, answers, conf
from tool import Tool

from mycelium_lab.lab import Lab, Namespace, Node, Process, await_fact

NETWORK = "fd00:10:96::/112"
MODES = pytest.mark.parametrize("mode", ("routed", "bridge"))


@pytest.fixture
def site(lab: Lab) -> Site:
    return Site(lab)


def serve(site: Site, address: str) -> None:
    """Translate the Service's address to this one, for pods and for the node."""
    for hook in ("prerouting", "output"):
        site.translate(f"ip6 daddr {SERVICES} dnat to {address}", hook=hook)


@MODES
def test_pods_and_the_node_reach_a_service_without_a_default_route(site: Site, mode: str) -> None:
    with_route = conf("net", mode, serviceNetworks=[NETWORK])
    pod, _ = site.attach(with_route)
    server, address = site.attach(with_route)
    serve(site, address)
    assert answers(server, SERVICES, pod)
    assert answers(server, SERVICES, site.node)
    assert pod.ip("-6", "route", "show", "default") == []
    assert site.node.ip("-6", "route", "show", "default") == []


def unreachable(address: str, place: Namespace) -> bool:
    shown = place.run(["ping", "-n", "-c1", "-W2", address], check=False)
    return "Destination unreachable" in shown.stdout


@MODES
def test_what_no_rule_translates_is_refused_by_the_node(site: Site, mode: str) -> None:
    """It neither leaves the node nor meets what listens there."""
    pod, _ = site.attach(conf("net", mode, serviceNetworks=[NETWORK]))
    for place in (site.node, pod):
        await_fact(partial(unreachable, SERVICES, place), f"a refusal of the node to {place}")


def test_a_default_route_serves_pods_as_well(site: Site) -> None:
    pod, _ = site.attach(conf(serviceNetworks=[NETWORK], defaultRoute=True))
    destinations = [route["dst"] for route in pod.ip("-6", "route")]
    assert "default" in destinations
    assert NETWORK not in destinations


def test_setup_makes_the_nodes_route_keeps_it_current_and_teardown_takes_it_back(
    bare: Node, tool: Tool
) -> None:
    def configured(*prefixes: str) -> None:
        plugin = {"type": "mycelium-cni", "netseed": "/nonexistent"}
        plugin |= {"serviceNetworks": list(prefixes)} if prefixes else {}  # type: ignore[dict-item]
        tool.conf({"cniVersion": "1.0.0", "name": "mycelium", "plugins": [plugin]})

    def routes() -> list[str]:
        return [
            route["dst"] for route in bare.ip("-6", "route", "show", "dev", "lo", "proto", "77")
        ]

    configured(NETWORK)
    assert tool("setup").returncode == 0
    assert NETWORK in routes()
    assert tool("setup").stdout.startswith("nothing to do")
    configured("fd00:43::/112")
    assert tool("setup").returncode == 0
    assert "fd00:43::/112" in routes()
    assert NETWORK not in routes()
    assert tool("teardown").returncode == 0
    assert "fd00:43::/112" not in routes()


# doctor

DNS = "fd00:10:96::a"
CLUSTER_DNS = f"nameserver {DNS}\nsearch shop.svc.cluster.local svc.cluster.local\n"
SERVER = r"""
import socket
tcp = socket.create_server(("::", 6443), family=socket.AF_INET6)
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(("::", 53))
print("serving", flush=True)
while True:
    question, client = udp.recvfrom(512)
    if question.endswith(b"\3ip6\4arpa\0\0\x0c\0\1"):  # the rest is for servers that are away
        udp.sendto(question, client)
"""


class ServicesSite:
    """A node with a pod that serves as API and DNS, and one with a program that knows of them."""

    def __init__(self, site: Site, root: Path, resolv_conf: str = CLUSTER_DNS) -> None:
        self.site, self.root = site, root
        self.tool = Tool(site.node, root)
        self.resolv_conf = root / "resolv.conf"
        self.resolv_conf.write_text(resolv_conf)

    def serve(self) -> None:
        server, address = self.site.attach(conf())
        process = server.start([sys.executable, "-c", SERVER])
        await_fact(lambda: "serving" in process.output(), "the server")
        self.site.translate(
            f"ip6 daddr {SERVICES} tcp dport 443 dnat to [{address}]:6443",
            f"ip6 daddr {DNS} udp dport 53 dnat to {address}",
        )

    def run(self, network: dict[str, Any], host: str = SERVICES, port: str = "443") -> Process:
        """A pod, and a program in it that was told as Kubernetes tells it."""
        pod, _ = self.site.attach(network)
        script = f"mount --bind {self.resolv_conf} /etc/resolv.conf && echo runs && exec sleep 1000"
        environ = [f"KUBERNETES_SERVICE_HOST={host}", f"KUBERNETES_SERVICE_PORT={port}"]
        process = pod.start(["env", *environ, "unshare", "--mount", "sh", "-c", script])
        await_fact(lambda: "runs" in process.output(), "the program")
        return process

    def findings(self) -> list[tuple[str, str]]:
        told = json.loads(self.tool("doctor", "services", "--json").stdout)
        return [(one["state"], one["found"]) for one in told]


@pytest.fixture
def cluster(site: Site, root: Path) -> ServicesSite:
    return ServicesSite(site, root)


@MODES
def test_doctor_asks_the_api_and_dns_from_a_pod_by_what_it_was_told(
    cluster: ServicesSite, mode: str
) -> None:
    cluster.serve()
    cluster.run(conf("net", mode, serviceNetworks=[NETWORK]))
    assert cluster.findings() == [("ok", f"a pod reaches API {SERVICES}, DNS {DNS}")]


def test_doctor_tells_a_pod_without_a_way_to_services(cluster: ServicesSite) -> None:
    cluster.serve()
    cluster.run(conf())
    (api, api_found), (dns, dns_found) = cluster.findings()
    assert (api, dns) == ("fail", "fail")
    assert f"has no way to the API's Service {SERVICES} port 443" in api_found
    assert f"has no way to the DNS's Service {DNS} port 53" in dns_found
    advice = cluster.tool.doctor("services")["advice"]
    assert "defaultRoute" in advice
    assert "serviceNetworks" in advice


def test_doctor_tells_services_that_nothing_translates(cluster: ServicesSite) -> None:
    cluster.run(conf(serviceNetworks=[NETWORK]))
    for mark, found in cluster.findings():
        assert mark == "fail"
        assert "is refused by" in found
    assert "kube-proxy" in cluster.tool.doctor("services")["advice"]


def test_doctor_tells_services_that_are_silent_and_whose_chain_drops(cluster: ServicesSite) -> None:
    cluster.serve()
    cluster.run(conf(serviceNetworks=[NETWORK]))
    cluster.site.node.run(
        ["nft", "-f", "-"],
        input="""table inet theirs {
            chain c { type filter hook forward priority 5; udp dport 53 drop; }
        }""",
    )
    (fault,) = [one for one in cluster.findings() if one[0] != "ok"]
    assert fault[0] == "fail"
    assert f"gets no answer from the DNS's Service {DNS}" in fault[1]
    assert "theirs c" in fault[1]


@pytest.mark.parametrize("host", ("$(reboot)", "fd00::1%\x1b[2J", ""))
def test_doctor_ignores_invalid_environments_of_pods(site: Site, root: Path, host: str) -> None:
    cluster = ServicesSite(site, root, "nameserver fd00::53\n")  # its node's, not the cluster's
    cluster.run(conf(serviceNetworks=[NETWORK]), host=host, port="0443443")
    ((mark, found),) = cluster.findings()
    assert mark == "skip"
    assert found == "no pod here was told of a cluster's Services"
