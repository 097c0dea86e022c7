# SPDX-License-Identifier: Apache-2.0
"""Unknown keys that look like ours are refused or warned of, never silently ignored."""

from __future__ import annotations

import pytest

from .calls import Plugin, network
from .conftest import Quiet
from .hosts import Pod

WHO_REACHES_THE_POD = {
    "ingress:": "ingress",
    "Ingress": "ingress",
    "INGRESS": "ingress",
    " ingress": "ingress",
    "#ingress": "ingress",
    "ingres": "ingress",
    "ingerss": "ingress",
    "egress": "ingress",
    "allow_from": "allowFrom",
    "allowform": "allowFrom",
    "AllowedFrom": "allowFrom",
    "cluster_file": "clusterFile",
    "ipmasq": "ipMasq",
    "ip-masq": "ipMasq",
    "ipMask": "ipMasq",
    "Guard": "guard",
    "gaurd": "guard",
}
ANYTHING_ELSE = {
    "MTU": "mtu",
    "logFile:": "logFile",
    "log_level": "logLevel",
    "Mode": "mode",
    "myceliumInterfaces": "myceliumInterface",
    "mycelium-interface": "myceliumInterface",
    "net_seed": "netseed",
    "defaultroute": "defaultRoute",
    "route": "routes",
}
OTHER_PEOPLES = [
    *("isGateway", "isDefaultGateway", "hairpinMode", "ipMasqBackend", "promiscMode", "vlan"),
    *("delegates", "kubeconfig", "policy", "kubernetes", "guid", "comment", "_comment", "//"),
    *("cniVersions", "datastore_type", "", "é", "ingress and egress"),
]


@pytest.mark.parametrize(("key", "meant"), list(WHO_REACHES_THE_POD.items()))
@pytest.mark.parametrize("verb", ["ADD", "STATUS"])
def test_a_key_that_may_say_who_reaches_the_pod_is_refused(
    quiet: Quiet, verb: str, key: str, meant: str
) -> None:
    error = quiet.plugin.call(verb, network(**{key: "closed"}), quiet.pod).error(7, says=key)
    assert f'did you mean "{meant}"?' in error["msg"]


@pytest.mark.parametrize("key", list(WHO_REACHES_THE_POD)[::4])
def test_del_forgives_it(quiet: Quiet, key: str) -> None:
    quiet.plugin.delete(quiet.pod, network(**{key: "closed"})).is_silent_success()


@pytest.mark.parametrize(("key", "meant"), list(ANYTHING_ELSE.items()))
def test_any_other_key_near_ours_is_warned_of_on_every_add(
    plugin: Plugin, pod: Pod, other_pod: Pod, key: str, meant: str
) -> None:
    for each in (pod, other_pod):
        outcome = plugin.add(each, network(**{key: 1280}))
        outcome.result()
        (line,) = outcome.err.decode().splitlines()
        assert " warning " in line
        assert f'key "{key}" is ignored: did you mean "{meant}"?' in line


def test_an_ipam_section_is_warned_of(plugin: Plugin, pod: Pod) -> None:
    outcome = plugin.add(pod, network(ipam={"type": "host-local", "subnet": "10.0.0.0/8"}))
    outcome.result()
    assert b" warning " in outcome.err
    assert b"ipam is ignored" in outcome.err


def test_other_peoples_keys_are_left_alone(plugin: Plugin, pod: Pod) -> None:
    outcome = plugin.add(pod, network(ipam={}, **dict.fromkeys(OTHER_PEOPLES, "closed")))
    outcome.result()
    assert outcome.err == b""


def test_warnings_are_not_written_where_only_errors_are_wanted(plugin: Plugin, pod: Pod) -> None:
    outcome = plugin.add(pod, network(MTU=1300, logLevel="error"))
    outcome.result()
    assert outcome.err == b""


def test_a_configuration_of_nothing_but_strange_keys_is_refused_at_once(quiet: Quiet) -> None:
    strange = {f"ingress{number}": 1 for number in range(100_000)}
    quiet.plugin.add(quiet.pod, network(**strange)).error(7, says="100000 keys")
