# SPDX-License-Identifier: Apache-2.0
"""The result of ADD in each version, compared with the kernel."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from .calls import Plugin, network
from .hosts import MTU, NODE, PREFIX, SUBNET, Pod
from .schema import LEGACY, VERSIONS, WITH_CHECK

CURRENT = tuple(version for version in VERSIONS if version not in LEGACY)
ROUTED = {"mode": "routed"}


def pod_addresses(pod: Pod, name: str = "eth0") -> list[str]:
    """The global IPv6 addresses the kernel has on the pod link."""
    return [
        f"{entry['local']}/{entry['prefixlen']}"
        for entry in pod.links()[name]["addr_info"]
        if entry["family"] == "inet6" and entry["scope"] == "global"
    ]


def pod_destinations(pod: Pod, name: str = "eth0") -> dict[str, dict[str, Any]]:
    """The pod's routes on that link by destination."""
    return {route["dst"]: route for route in pod.routes() if route.get("dev") == name}


@pytest.mark.parametrize("version", LEGACY)
def test_an_old_result_has_the_address_the_gateway_and_the_route(
    plugin: Plugin, pod: Pod, version: str
) -> None:
    result = plugin.add(pod, network(version, **ROUTED)).result(version)
    assert "ip4" not in result
    assert [result["ip6"]["ip"]] == pod_addresses(pod)
    assert result["ip6"]["gateway"] == "fe80::1"
    assert result["ip6"]["routes"] == [{"dst": "400::/7", "gw": "fe80::1"}]


@pytest.mark.parametrize("version", CURRENT)
def test_a_result_names_both_ends_and_the_address_as_the_kernel_has_them(
    plugin: Plugin, pod: Pod, version: str
) -> None:
    result = plugin.add(pod, network(version, **ROUTED)).result(version)
    host_side, pod_side = result["interfaces"]
    assert "sandbox" not in host_side
    assert host_side["mac"] == plugin.host.links()[host_side["name"]]["address"]
    assert pod_side["name"] == "eth0"
    assert pod_side["sandbox"] == pod.path
    assert pod_side["mac"] == pod.links()["eth0"]["address"]
    (ip,) = result["ips"]
    assert ip["interface"] == 1
    assert [ip["address"]] == pod_addresses(pod)
    assert ip["address"].endswith("/128")
    assert ipaddress.ip_interface(ip["address"]).ip in ipaddress.ip_network(SUBNET)
    assert ip["gateway"] == "fe80::1"
    assert [route["dst"] for route in result["routes"]] == ["400::/7"]
    assert "400::/7" in pod_destinations(pod)


@pytest.mark.parametrize("version", VERSIONS)
def test_no_address_of_the_node_is_among_those_of_the_pod(
    plugin: Plugin, pod: Pod, version: str
) -> None:
    """CRI-O makes every entry of `ips` a pod address."""
    result = plugin.add(pod, network(version)).result(version)
    entries = [{"address": result["ip6"]["ip"]}] if version in LEGACY else result["ips"]
    assert [entry["address"] for entry in entries] == pod_addresses(pod)
    assert NODE not in str(entries)


def test_the_newest_result_tells_the_mtu_of_both_ends(plugin: Plugin, pod: Pod) -> None:
    result = plugin.add(pod, network("1.1.0")).result("1.1.0")
    assert [entry["mtu"] for entry in result["interfaces"]] == [MTU, MTU]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_result_of_bridge_mode_has_the_same_shape(alone: Plugin, version: str) -> None:
    pod = alone.host.pod()
    conf = network(version, mode="bridge", netseed="/absent/netseed")
    result = alone.add(pod, conf).result(version)
    if version in LEGACY:
        address, gateway = result["ip6"]["ip"], result["ip6"]["gateway"]
    else:
        (ip,) = result["ips"]
        address, gateway = ip["address"], ip["gateway"]
        names = [entry["name"] for entry in result["interfaces"]]
        assert names[-1] == "eth0"
        assert alone.host.links()[names[-2]]["master"] == "mycelium-br"
    assert [address] == pod_addresses(pod)
    assert address.endswith("/64")
    assert gateway == f"{PREFIX}::1"
    alone.delete(pod, conf).is_silent_success()
    assert "eth0" not in pod.links()


ROUTES = [
    {"dst": "400::/7", "mtu": 1300, "priority": 50},
    {"dst": "2001:db8:1::/48", "advmss": 1200},
    {"dst": "2001:db8:2::/48", "table": 100},
]


@pytest.mark.parametrize("version", VERSIONS)
def test_route_attributes_reach_the_kernel_always_and_the_result_when_it_has_words_for_them(
    plugin: Plugin, pod: Pod, version: str
) -> None:
    result = plugin.add(pod, network(version, routes=ROUTES)).result(version)
    listed = result["ip6"]["routes"] if version in LEGACY else result["routes"]
    without_gateway = [{k: v for k, v in route.items() if k != "gw"} for route in listed]
    if version == "1.1.0":
        assert without_gateway == ROUTES
    else:
        assert without_gateway == [{"dst": route["dst"]} for route in ROUTES]
    kernel = pod_destinations(pod)
    assert kernel["400::/7"]["metric"] == 50
    assert kernel["2001:db8:2::/48"]["table"] == "100"
    details = pod.ip("-6", "route", "show", "table", "all")
    assert "mtu 1300" in details
    assert "advmss 1200" in details


def test_a_default_route_is_added_to_the_others(plugin: Plugin, pod: Pod) -> None:
    result = plugin.add(pod, network(defaultRoute=True)).result()
    assert {route["dst"] for route in result["routes"]} == {"400::/7", "::/0"}
    assert {"400::/7", "default"} <= set(pod_destinations(pod))


def test_a_destination_with_host_bits_is_refused_or_told_without_them(
    plugin: Plugin, pod: Pod
) -> None:
    outcome = plugin.add(pod, network(routes=[{"dst": "4ff::1/7"}]))
    if outcome.code:
        outcome.error(7, says="4ff::1/7")
    else:
        assert outcome.result()["routes"][0]["dst"] == "400::/7"


@pytest.mark.parametrize("text", ["2001:DB8:0:0::/32", "2001:0db8::/32", "2001:db8::/32"])
def test_a_destination_is_told_in_its_canonical_form(plugin: Plugin, pod: Pod, text: str) -> None:
    result = plugin.add(pod, network(routes=[{"dst": text}])).result()
    assert [route["dst"] for route in result["routes"]] == ["2001:db8::/32"]


def test_a_pod_may_have_no_routes_at_all(plugin: Plugin, pod: Pod) -> None:
    result = plugin.add(pod, network(routes=[])).result()
    assert result.get("routes", []) == []
    assert "400::/7" not in pod_destinations(pod)


DNS = {
    "nameservers": ["5a1::53", "10.0.0.53"],
    "domain": "cluster.local",
    "search": ["a.example", "b.example"],
    "options": ["ndots:5"],
}


@pytest.mark.parametrize("version", VERSIONS)
def test_dns_is_passed_into_the_result(plugin: Plugin, pod: Pod, version: str) -> None:
    assert plugin.add(pod, network(version, dns=DNS)).result(version)["dns"] == DNS


@pytest.mark.parametrize("key", list(DNS))
def test_each_dns_key_alone_is_passed_into_the_result(plugin: Plugin, pod: Pod, key: str) -> None:
    dns = {key: DNS[key]}
    told = plugin.add(pod, network(dns=dns)).result()["dns"]
    assert {name: value for name, value in told.items() if value} == dns


LOOPBACK: dict[str, Any] = {
    "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": "/run/netns/x"}],
    "ips": [{"interface": 0, "address": "127.0.0.1/8"}, {"interface": 0, "address": "::1/128"}],
    "dns": {},
}


def loopback(version: str) -> dict[str, Any]:
    """What the loopback plugin says in that version."""
    ips = [
        {**ip, **({"version": "6" if ":" in ip["address"] else "4"} if version < "1" else {})}
        for ip in LOOPBACK["ips"]
    ]
    return {"cniVersion": version, **LOOPBACK, "ips": ips}


@pytest.mark.parametrize("version", CURRENT)
def test_the_result_after_loopback_is_its_result_followed_by_ours(
    plugin: Plugin, pod: Pod, version: str
) -> None:
    conf = network(version, prevResult=loopback(version))
    result = plugin.add(pod, conf).result(version)
    assert [entry["name"] for entry in result["interfaces"]][::2] == ["lo", "eth0"]
    assert [ip["interface"] for ip in result["ips"]] == [0, 0, 2]
    assert [result["ips"][2]["address"]] == pod_addresses(pod)


PRIMARY: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "cni0", "mac": "02:00:00:00:00:09"},
        {"name": "vethcafe"},
        {"name": "eth0", "mac": "02:00:00:00:00:0a", "sandbox": "/run/netns/x", "mtu": 1450},
    ],
    "ips": [{"interface": 2, "address": "10.1.2.3/24", "gateway": "10.1.2.1"}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.2.1", "priority": 7}],
    "dns": {"nameservers": ["10.1.2.53"]},
}


def test_after_a_primary_plugin_the_pod_gains_a_second_interface(plugin: Plugin, pod: Pod) -> None:
    pod.ip("link", "add", "eth0", "type", "bridge")
    result = plugin.add(pod, network(prevResult=PRIMARY)).result()
    assert result["interfaces"][:3] == PRIMARY["interfaces"]
    assert result["interfaces"][4]["name"] == "mycelium0"
    assert result["ips"][0] == PRIMARY["ips"][0]
    assert result["ips"][1]["interface"] == 4
    assert result["routes"][0] == PRIMARY["routes"][0]
    assert result["dns"] == PRIMARY["dns"]
    assert pod_addresses(pod, "mycelium0") == [result["ips"][1]["address"]]
    assert pod_addresses(pod, "eth0") == []


def test_the_name_of_the_second_interface_can_be_chosen(plugin: Plugin, pod: Pod) -> None:
    pod.ip("link", "add", "eth0", "type", "bridge")
    conf = network(prevResult=PRIMARY, interfaceName="overlay0")
    assert plugin.add(pod, conf).result()["interfaces"][4]["name"] == "overlay0"


@pytest.mark.parametrize(
    "previous",
    [
        None,
        {},
        {"cniVersion": "1.1.0"},
        {"cniVersion": "1.1.0", "interfaces": None, "ips": None, "routes": None, "dns": None},
        {"interfaces": [], "ips": [], "routes": [], "dns": {}},
        {"cniVersion": "1.1.0", "surprise": {"a": 1}},
    ],
    ids=["null", "empty", "version", "nulls", "empties", "unknown-key"],
)
def test_a_previous_result_with_nothing_in_it_adds_nothing(
    plugin: Plugin, pod: Pod, previous: Any
) -> None:
    result = plugin.add(pod, network(prevResult=previous)).result()
    assert [entry["name"] for entry in result["interfaces"]][1:] == ["eth0"]
    assert len(result["ips"]) == 1


@pytest.mark.parametrize("version", WITH_CHECK)
def test_check_accepts_the_result_of_add_in_every_version_that_has_it(
    plugin: Plugin, pod: Pod, version: str
) -> None:
    result = plugin.add(pod, network(version)).result(version)
    for _ in range(2):
        plugin.check(pod, network(version, prevResult=result)).is_silent_success()


@pytest.mark.parametrize("version", VERSIONS)
def test_del_is_silent_and_idempotent_in_every_version(
    plugin: Plugin, pod: Pod, version: str
) -> None:
    result = plugin.add(pod, network(version)).result(version)
    conf = network(version, prevResult=result)
    plugin.delete(pod, conf).is_silent_success()
    assert "eth0" not in pod.links()
    plugin.delete(pod, conf).is_silent_success()
    plugin.add(pod, network(version)).result(version)
