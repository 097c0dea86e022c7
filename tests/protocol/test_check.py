# SPDX-License-Identifier: Apache-2.0
"""What CHECK refuses. (tests/netns/test_check.py has what it finds in the kernel.)"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from .calls import Plugin, network
from .conftest import MakeMonitor, WatchedNode
from .hosts import NODE, Pod
from .schema import WITH_CHECK

PREVIOUS: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "myc0123456789ab", "mac": "02:00:00:00:00:01"},
        {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/x"},
    ],
    "ips": [{"interface": 1, "address": "5a1:2b3c:4d5e:6f70:ff0f::5/128", "gateway": "fe80::1"}],
    "routes": [{"dst": "400::/7", "gw": "fe80::1"}],
}


@pytest.mark.parametrize("version", WITH_CHECK)
def test_check_without_a_previous_result_is_refused(watched: WatchedNode, version: str) -> None:
    conf = network(version)
    watched.plugin.check(watched.pod, conf).error(7, says="prevResult")
    watched.plugin.check(watched.pod, {**conf, "prevResult": None}).error(7, says="prevResult")


def test_check_of_an_attachment_that_was_never_made_is_an_error(watched: WatchedNode) -> None:
    previous = copy.deepcopy(PREVIOUS)
    previous["interfaces"][1]["sandbox"] = watched.pod.path
    watched.plugin.check(watched.pod, network(prevResult=previous)).error(103, says="eth0")


def test_check_after_del_is_an_error(plugin: Plugin, pod: Pod) -> None:
    conf = network(prevResult=plugin.add(pod, network()).result())
    plugin.delete(pod, conf).is_silent_success()
    plugin.check(pod, conf).error(103, says="eth0")


def test_check_changes_nothing(alone: Plugin, make_monitor: MakeMonitor) -> None:
    pod = alone.host.pod()
    conf = network(prevResult=alone.add(pod, network()).result())
    pod.settle()
    monitors = [make_monitor(alone.host.netns), make_monitor(pod.netns)]
    alone.check(pod, conf).is_silent_success()
    drifted = copy.deepcopy(conf)
    drifted["prevResult"]["interfaces"][1]["mac"] = "02:00:00:00:00:99"
    alone.check(pod, drifted).error(103, says="02:00:00:00:00:99")
    assert [monitor.changes() for monitor in monitors] == [[], []]


def set_at(document: Any, path: str, value: Any) -> None:
    """Set what lies at a dotted path."""
    *parents, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in parents:
        document = document[step]
    document[last] = value


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("interfaces.1.sandbox", "/run/netns/other", "/run/netns/other"),
        ("interfaces.1.name", "eth7", "eth0"),
        ("interfaces.1.mac", "02:00:00:00:00:99", "02:00:00:00:00:99"),
        ("ips.0.address", "5a1:2b3c:4d5e:6f70:ff0f::5/128", "5a1:2b3c:4d5e:6f70:ff0f::5"),
        ("interfaces", [], "eth0"),
    ],
)
def test_check_names_what_the_previous_result_says_and_the_kernel_does_not(
    plugin: Plugin, pod: Pod, path: str, value: Any, says: str
) -> None:
    previous = plugin.add(pod, network()).result()
    plugin.check(pod, network(prevResult=previous)).is_silent_success()
    set_at(previous, path, value)
    plugin.check(pod, network(prevResult=previous)).error(7, 103, says=says)


def test_check_accepts_what_other_plugins_of_the_chain_have_added(plugin: Plugin, pod: Pod) -> None:
    previous = plugin.add(pod, network()).result()
    previous["interfaces"].append({"name": "cni0", "mac": "02:00:00:00:00:09"})
    previous["interfaces"].append({"name": "net9", "sandbox": pod.path})
    previous["ips"].append({"interface": 3, "address": "10.1.2.3/24"})
    previous["dns"] = {"nameservers": ["10.0.0.53"]}
    pod.ip("addr", "add", "fd00::5/64", "dev", "eth0", "nodad")
    plugin.check(pod, network(prevResult=previous)).is_silent_success()


def test_check_judges_by_the_previous_result_as_later_plugins_left_it(
    plugin: Plugin, pod: Pod
) -> None:
    """A chained `tuning` changes the MAC in it; `default-route` of Multus removes a route."""
    previous = plugin.add(pod, network()).result()
    pod.ip("link", "set", "eth0", "address", "02:00:00:00:00:77")
    plugin.check(pod, network(prevResult=previous)).error(103, says="02:00:00:00:00:77")
    set_at(previous, "interfaces.1.mac", "02:00:00:00:00:77")
    previous["routes"] = []
    pod.ip("-6", "route", "del", "400::/7", "dev", "eth0")
    plugin.check(pod, network(prevResult=previous)).is_silent_success()


def test_check_ignores_malformed_arguments_and_the_capabilities_of_the_moment(
    plugin: Plugin, pod: Pod
) -> None:
    conf = network(prevResult=plugin.add(pod, network()).result())
    plugin.check(pod, conf, CNI_ARGS=f"IP={NODE};;=").is_silent_success()
    plugin.check(pod, conf, CNI_ARGS="IP=junk").is_silent_success()
