# SPDX-License-Identifier: Apache-2.0
"""What a runtime can request: capabilities, args and CNI_ARGS."""

from __future__ import annotations

from typing import Any

import pytest

from .calls import Plugin, network
from .conftest import WatchedNode
from .hosts import NODE, PREFIX, Pod

BOTH = {"ips": True, "mac": True}


def address(pod: Pod, number: int = 1) -> str:
    """A free address that no other pod of this process asks for."""
    return f"{PREFIX}:1:{number:x}:{int(pod.name.removeprefix('pod')):x}:1"


def asking(runtime_config: Any, **keys: Any) -> dict[str, Any]:
    """A configuration that declares our capabilities and carries the runtime's request."""
    return network(capabilities=BOTH, runtimeConfig=runtime_config, **keys)


def given(result: dict[str, Any]) -> str:
    """The one address in a result, without its length."""
    (ip,) = result["ips"]
    return str(ip["address"]).partition("/")[0]


@pytest.mark.parametrize("key", ["ips", "IPs", "Ips", "IPS"])
@pytest.mark.parametrize("length", ["", "/128", "/64"])
def test_a_requested_address_is_given(plugin: Plugin, pod: Pod, key: str, length: str) -> None:
    """containerd sends the names of Go's fields; Go reads them without regard to case."""
    wanted = address(pod)
    result = plugin.add(pod, asking({key: [wanted + length]})).result()
    assert given(result) == wanted
    assert wanted in pod.ip("-6", "addr", "show", "dev", "eth0")


def test_a_requested_address_in_another_spelling_is_given(plugin: Plugin, pod: Pod) -> None:
    wanted = address(pod)
    spelled = ":".join(f"{int(group, 16):04X}" for group in wanted.split(":"))
    assert given(plugin.add(pod, asking({"ips": [spelled]})).result()) == wanted


def test_two_requested_addresses_are_both_given_or_refused(plugin: Plugin, pod: Pod) -> None:
    wanted = [address(pod, 1), address(pod, 2)]
    outcome = plugin.add(pod, asking({"ips": wanted}))
    if outcome.code:
        outcome.error(7, says="ips")
    else:
        assert [ip["address"].partition("/")[0] for ip in outcome.result()["ips"]] == wanted


def test_a_requested_ipv4_address_is_refused_as_such(watched: WatchedNode) -> None:
    conf = asking({"ips": ["10.0.0.7/24"]})
    watched.plugin.add(watched.pod, conf).error(7, says="'10.0.0.7' is not an IPv6 address")


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_the_oldest_versions_cannot_speak_of_two_addresses(
    watched: WatchedNode, version: str
) -> None:
    wanted = [f"{PREFIX}:1::1", f"{PREFIX}:1::2"]
    conf = {**asking({"ips": wanted}), "cniVersion": version}
    watched.plugin.add(watched.pod, conf).error(7, says="ips")


@pytest.mark.parametrize("key", ["mac", "Mac", "MAC"])
@pytest.mark.parametrize("mac", ["c2:11:22:33:44:55", "C2:11:22:33:44:AB"])
def test_a_requested_mac_is_set_on_the_pod_link_only(
    plugin: Plugin, pod: Pod, key: str, mac: str
) -> None:
    host_side, pod_side = plugin.add(pod, asking({key: mac})).result()["interfaces"]
    assert pod_side["mac"] == mac.lower()
    assert pod.links()["eth0"]["address"] == mac.lower()
    assert host_side["mac"] != mac.lower()
    assert plugin.host.links()[host_side["name"]]["address"] == host_side["mac"]


@pytest.mark.parametrize(
    "runtime_config",
    [
        {},
        None,
        {"io.kubernetes.cri.pod-annotations": {"a": "b"}, "cgroupPath": "/x"},
        {"CNIDeviceInfoFile": "/x", "deviceID": "y", "aliases": ["a"]},
        {"portMappings": [{"HostPort": 80, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}]},
        {"bandwidth": {"IngressRate": 1, "IngressBurst": 4294967295}},
        {"dns": {"Servers": ["10.0.0.53"], "Searches": [], "Options": None}},
        {"ipRanges": [[{"Subnet": "10.0.0.0/8"}]]},
        {"ips": [], "mac": ""},
        {"ips": None, "mac": None},
    ],
    ids=[
        "empty",
        "null",
        "containerd",
        "multus",
        "ports",
        "bandwidth",
        "dns",
        "ranges",
        "nothing-asked",
        "nulls",
    ],
)
def test_what_the_runtime_sends_beside_our_capabilities_is_ignored(
    plugin: Plugin, pod: Pod, runtime_config: Any
) -> None:
    plugin.add(pod, asking(runtime_config)).result()


@pytest.mark.parametrize(
    "capabilities",
    [
        {},
        None,
        {"ips": True},
        {"mac": True},
        {"ips": False, "mac": False, "portMappings": False, "unheard-of": False},
    ],
    ids=["none", "null", "ips", "mac", "all-false"],
)
def test_capabilities_that_ask_nothing_of_us_are_accepted(
    plugin: Plugin, pod: Pod, capabilities: Any
) -> None:
    """libcni never removes `capabilities` at run time, whatever the specification says."""
    plugin.add(pod, network(capabilities=capabilities)).result()


@pytest.mark.parametrize(
    "asked",
    [
        None,
        {},
        {"portMappings": [], "bandwidth": None, "ipRanges": [], "deviceID": "", "aliases": None},
        {"ipRanges": [[], [{}]], "aliases": {"net": [""]}, "portMappings": [{}]},
        {"bandwidth": {"IngressRate": 0, "IngressBurst": 0, "EgressRate": 0, "EgressBurst": 0}},
        {"io.kubernetes.cri.pod-annotations": {"a": "b"}, "cgroupPath": "/x", "unheard-of": [1]},
    ],
    ids=["null", "nothing", "empty", "empty-inside", "zeros", "information"],
)
def test_a_capability_of_another_plugin_is_no_error_while_nothing_is_asked_of_it(
    plugin: Plugin, pod: Pod, asked: Any
) -> None:
    names = ("portMappings", "bandwidth", "ipRanges", "deviceID", "aliases", "cgroupPath")
    declared = dict.fromkeys((*names, "io.kubernetes.cri.pod-annotations", "unheard-of"), True)
    outcome = plugin.add(pod, network(capabilities=declared, runtimeConfig=asked))
    outcome.result()
    assert outcome.err == b""


@pytest.mark.parametrize(
    "args",
    [
        None,
        {},
        {"cni": {}},
        {"cni": None},
        {"cni": {"labels": [{"key": "app", "value": "x"}]}},
        {"org.example": {"deep": [{"a": None}]}, "cni": {"unheard-of": 5}},
        {"cni": {"ips": [], "mac": None}},
    ],
    ids=["null", "empty", "cni-empty", "cni-null", "labels", "foreign", "nothing-asked"],
)
def test_foreign_args_are_ignored(plugin: Plugin, pod: Pod, args: Any) -> None:
    plugin.add(pod, network(args=args)).result()


def test_an_address_and_a_mac_may_be_asked_for_in_args(plugin: Plugin, pod: Pod) -> None:
    wanted = address(pod)
    conf = network(args={"cni": {"ips": [wanted], "mac": "c2:11:22:33:44:56"}})
    result = plugin.add(pod, conf).result()
    assert given(result) == wanted
    assert result["interfaces"][1]["mac"] == "c2:11:22:33:44:56"


@pytest.mark.parametrize("length", ["", "/128", "/64"])
def test_an_address_and_a_mac_may_be_asked_for_in_cni_args(
    plugin: Plugin, pod: Pod, length: str
) -> None:
    wanted = address(pod)
    args = f"IgnoreUnknown=1;IP={wanted}{length};MAC=c2:11:22:33:44:57"
    result = plugin.add(pod, network(), CNI_ARGS=args).result()
    assert given(result) == wanted
    assert result["interfaces"][1]["mac"] == "c2:11:22:33:44:57"


@pytest.mark.parametrize(
    "ways",
    [
        ("capability", "args", "cni_args"),
        ("capability", "args"),
        ("capability", "cni_args"),
        ("args", "cni_args"),
    ],
    ids="-".join,
)
def test_the_capability_wins_over_args_and_args_over_cni_args(
    plugin: Plugin, pod: Pod, ways: tuple[str, ...]
) -> None:
    macs = [f"c2:00:00:00:00:0{number}" for number in range(len(ways))]
    wanted = [address(pod, number) for number in range(len(ways))]
    conf, env = network(capabilities=BOTH), ""
    for way, mac, ip in zip(ways, macs, wanted, strict=True):
        if way == "capability":
            conf["runtimeConfig"] = {"ips": [ip], "mac": mac}
        elif way == "args":
            conf["args"] = {"cni": {"ips": [ip], "mac": mac}}
        else:
            env = f"IP={ip};MAC={mac}"
    result = plugin.add(pod, conf, CNI_ARGS=env).result()
    assert given(result) == wanted[0]
    assert result["interfaces"][1]["mac"] == macs[0]


def test_an_address_that_another_pod_has_is_refused_with_its_holder(
    plugin: Plugin, pod: Pod, other_pod: Pod
) -> None:
    wanted = address(pod)
    host_link = plugin.add(pod, asking({"ips": [wanted]})).result()["interfaces"][0]["name"]
    before = plugin.host.links()
    error = plugin.add(other_pod, asking({"ips": [wanted]})).error(101, says=wanted)
    text = f"{error['msg']} {error.get('details')}"
    assert pod.container in text or host_link in text
    assert plugin.host.links().keys() <= before.keys()
    assert "eth0" not in other_pod.links()
    plugin.delete(pod, network()).is_silent_success()
    assert given(plugin.add(other_pod, asking({"ips": [wanted]})).result()) == wanted


def test_an_attachment_that_is_already_there_is_refused_and_stays(plugin: Plugin, pod: Pod) -> None:
    result = plugin.add(pod, network()).result()
    plugin.add(pod, network()).error(102, says="eth0")
    plugin.check(pod, network(prevResult=result)).is_silent_success()


def test_an_interface_name_that_is_taken_in_the_pod_is_refused_and_stays(
    plugin: Plugin, pod: Pod
) -> None:
    pod.ip("link", "add", "eth0", "address", "02:00:00:00:00:44", "type", "bridge")
    before = plugin.host.links()
    plugin.add(pod, network()).error(102, says="eth0")
    assert pod.links()["eth0"]["address"] == "02:00:00:00:00:44"
    assert plugin.host.links().keys() <= before.keys()


ACCEPTED_ARGS = {
    "empty": "",
    "kubernetes": "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web-0;"
    "K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=0-0",
    "ignore-unknown-last": "K8S_POD_NAME=web-0;SOMETHING=else;IgnoreUnknown=true",
    "unknown-without-ignore": "SOMETHING=else",
    "ignore-unknown-false": "IgnoreUnknown=false;SOMETHING=else",
    "ignore-unknown-junk": "IgnoreUnknown=perhaps",
    "trailing-semicolon": "A=b;",
    "empty-pairs": ";;A=b;;",
    "two-equals": "A=b=c",
    "empty-value": "A=;K8S_POD_NAME=",
    "empty-ip": "IP=",
    "empty-mac": "MAC=",
    "lower-case-ip": "ip=junk",
    "gateway": "GATEWAY=fe80::1",
    "nerdctl": "NERDCTL_CNI_DHCP_HOSTNAME=x;IgnoreUnknown=1",
    "repeated": "K8S_POD_NAME=a;IgnoreUnknown=1;K8S_POD_NAME=b;IgnoreUnknown=1",
    "no-equals": "JUNK",
    "spaces": " A = b ; C = d ",
    "not-ascii": "K8S_POD_NAME=é;Ä=ö",
    "newline": "K8S_POD_NAME=a\nb",
    "escape": "K8S_POD_NAME=a\x1b[31mb;K8S_POD_NAMESPACE=\x07\x7f",
    "path": "K8S_POD_NAME=../../etc/passwd;K8S_POD_NAMESPACE=/",
    "shell": "K8S_POD_NAME=$(reboot);K8S_POD_NAMESPACE=`reboot`|x",
    "long-name": "K8S_POD_NAME=" + "n" * 400 + ";K8S_POD_NAMESPACE=" + "s" * 400,
    "long-name-of-two-byte-letters": "K8S_POD_NAME=" + "é" * 300,
    "very-long": "K8S_POD_NAME=" + "n" * 100_000,
    "many": ";".join(f"KEY{number}=value" for number in range(5000)),
}


@pytest.mark.parametrize("kind", list(ACCEPTED_ARGS))
def test_cni_args_of_any_runtime_are_accepted(plugin: Plugin, pod: Pod, kind: str) -> None:
    result = plugin.add(pod, network(), CNI_ARGS=ACCEPTED_ARGS[kind]).result()
    alias = plugin.host.links()[result["interfaces"][0]["name"]].get("ifalias", "")
    assert len(alias.encode()) <= 255
    assert alias.isprintable(), f"an operator's terminal would obey this: {alias!r}"


@pytest.mark.parametrize("value", [b"\xff\xfe=x", b"K8S_POD_NAME=\xff"], ids=["key", "pod-name"])
def test_cni_args_that_are_not_utf8_are_accepted_or_refused_in_one_error(
    plugin: Plugin, pod: Pod, value: bytes
) -> None:
    outcome = plugin.add(pod, network(), CNI_ARGS=value)
    if outcome.code:
        outcome.error(4, 7, says="CNI_ARGS")
    else:
        outcome.result()
    plugin.delete(pod, network(), CNI_ARGS=value).is_silent_success()


@pytest.mark.parametrize("first", ["junk", "10.0.0.1", NODE])
def test_the_last_of_repeated_cni_args_counts(plugin: Plugin, pod: Pod, first: str) -> None:
    wanted = address(pod)
    env = f"IP={first};A=b;IP={wanted};IgnoreUnknown=1"
    assert given(plugin.add(pod, network(), CNI_ARGS=env).result()) == wanted
