# SPDX-License-Identifier: Apache-2.0
"""STATUS says whether ADD would work; ADD says the same with its own code."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .calls import Plugin, network
from .conftest import MakeMonitor, WatchedNode
from .hosts import NODE, Pod

NO_LINK = "failed to find interface mycelium"
NO_ADDRESS = "no global IPv6 address found"


def without_link(_plugin: Plugin) -> str:
    """The daemon is not running."""
    return NO_LINK


def without_address(plugin: Plugin) -> str:
    """The daemon has not finished its start."""
    plugin.host.give_tun("mycelium")
    return NO_ADDRESS


def with_another_address(plugin: Plugin) -> str:
    """A link of that name that belongs to something else."""
    plugin.host.give_tun("mycelium", "2001:db8::1/64", "fd00::1/64")
    return NO_ADDRESS


def down(plugin: Plugin) -> str:
    """The link is there and switched off."""
    plugin.host.give_tun("mycelium", f"{NODE}/7", up=False)
    return "mycelium"


sick = pytest.mark.parametrize(
    "break_node", [without_link, without_address, with_another_address, down]
)


def test_status_of_a_node_that_can_serve_is_silent_and_changes_nothing(
    watched: WatchedNode,
) -> None:
    for _ in range(2):
        watched.plugin.status(network()).is_silent_success()


@sick
def test_status_tells_why_add_cannot_be_served(
    bare: Plugin, break_node: Callable[[Plugin], str], make_monitor: MakeMonitor
) -> None:
    says = break_node(bare)
    monitor = make_monitor(bare.host.netns)
    bare.status(network()).error(50, 51, says=says)
    assert monitor.changes() == []


@sick
def test_add_on_such_a_node_asks_to_be_tried_again_and_leaves_nothing(
    bare: Plugin, break_node: Callable[[Plugin], str], make_monitor: MakeMonitor
) -> None:
    pod = bare.host.pod()
    says = break_node(bare)
    monitors = [make_monitor(bare.host.netns), make_monitor(pod.netns)]
    bare.add(pod, network()).error(11, says=says)
    assert [monitor.changes() for monitor in monitors] == [[], []]


@sick
def test_del_on_such_a_node_succeeds(bare: Plugin, break_node: Callable[[Plugin], str]) -> None:
    pod = bare.host.pod()
    bare.host.give_tun("other", f"{NODE}/7")
    bare.add(pod, network(myceliumInterface="other")).result()
    bare.host.run("ip", "link", "del", "other")
    break_node(bare)
    bare.delete(pod, network()).is_silent_success()
    assert "eth0" not in pod.links()


def test_an_error_about_a_missing_link_names_the_link_that_was_asked_for(
    watched: WatchedNode,
) -> None:
    conf = network(myceliumInterface="overlay7")
    says = "failed to find interface overlay7"
    watched.plugin.add(watched.pod, conf).error(11, says=says)
    watched.plugin.status(conf).error(50, 51, says=says)


@pytest.mark.parametrize(
    "conf",
    [{"mtu": 100}, {"mode": "turbo"}, {"routes": 5}, {"myceliumInterface": "a/b"}],
    ids=["mtu", "mode", "routes", "link"],
)
def test_status_refuses_a_configuration_that_add_would_refuse(
    watched: WatchedNode, conf: dict[str, object]
) -> None:
    watched.plugin.status(network(**conf)).error(7, says=next(iter(conf)))


def test_status_does_not_depend_on_there_being_pods(plugin: Plugin, pod: Pod) -> None:
    plugin.add(pod, network()).result()
    plugin.status(network()).is_silent_success()


def test_an_interface_with_two_overlay_addresses_is_handled_on_purpose(bare: Plugin) -> None:
    """It is unknown which /64 is the node's: the error shows both, and nothing is guessed."""
    pod = bare.host.pod()
    bare.host.give_tun("mycelium", f"{NODE}/7", "4aa:1:2:3::9/7")
    error = bare.add(pod, network()).error(11, 100, says=NODE)
    assert "4aa:1:2:3::9" in f"{error['msg']} {error.get('details')}"
    bare.status(network()).error(50, 51, says=NODE)
