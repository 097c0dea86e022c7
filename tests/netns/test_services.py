# SPDX-License-Identifier: Apache-2.0
"""`serviceNetworks`: the way to Kubernetes' Services, for pods and for the node, where nobody has a
default route. kube-proxy is a rule of the test's own."""

from __future__ import annotations

import pytest
from sites import SERVICES, Site, answers, conf
from tool import Tool

from mycelium_lab.lab import Lab, Node

NETWORK = "fd00:10:96::/112"
MODES = pytest.mark.parametrize("mode", ("routed", "bridge"))


@pytest.fixture
def site(lab: Lab) -> Site:
    return Site(lab)


def serve(site: Site, address: str) -> None:
    """Have what is sent to the Service, by pods or by the node, reach this address."""
    site.node.run(
        ["nft", "-f", "-"],
        input=f"""table ip6 services {{
            chain prerouting {{
                type nat hook prerouting priority -100
                ip6 daddr {SERVICES} dnat to {address}
            }}
            chain output {{
                type nat hook output priority -100
                ip6 daddr {SERVICES} dnat to {address}
            }}
        }}""",
    )


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


@MODES
def test_what_no_rule_translates_is_refused_by_the_node(site: Site, mode: str) -> None:
    """It neither leaves the node nor meets what listens there."""
    pod, _ = site.attach(conf("net", mode, serviceNetworks=[NETWORK]))
    for place in (site.node, pod):
        shown = place.run(["ping", "-n", "-c1", "-W2", SERVICES], check=False)
        assert "nreachable" in shown.stdout + shown.stderr


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
