# SPDX-License-Identifier: Apache-2.0
"""GC removes what is stale in its own network, and nothing if it cannot read the list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .calls import Plugin, network
from .conftest import MakeMonitor, SharedWatchedNode, WatchedNode
from .hosts import Pod

KEY = "cni.dev/valid-attachments"
OLD_KEY = "cni.dev/attachments"
NAME = "collected"


def own_network(**keys: Any) -> dict[str, Any]:
    """A network that no other test has attachments in."""
    return network(name=NAME, **keys)


@pytest.fixture
def attached(plugin: Plugin, pod: Pod) -> Pod:
    """A pod that has its attachment in the network of the GC."""
    plugin.add(pod, own_network()).result()
    pod.settle()
    return pod


ITEM = {"containerID": "c1", "ifname": "eth0"}
UNREADABLE: dict[str, Any] = {
    "object": {},
    "keyed-object": {"c1": "eth0"},
    "string": "x",
    "empty-string": "",
    "number": 5,
    "zero": 0,
    "true": True,
    "false": False,
    "number-inside": [5],
    "null-inside": [None],
    "string-inside": ["c1"],
    "list-inside": [["c1", "eth0"]],
    "empty-object-inside": [{}],
    "no-ifname": [{"containerID": "c1"}],
    "no-container": [{"ifname": "eth0"}],
    "number-container": [{"containerID": 5, "ifname": "eth0"}],
    "null-container": [{"containerID": None, "ifname": "eth0"}],
    "number-ifname": [{"containerID": "c1", "ifname": 0}],
    "empty-container": [{"containerID": "", "ifname": "eth0"}],
    "empty-ifname": [{"containerID": "c1", "ifname": ""}],
    "keys-of-the-cache-file": [{"containerId": "c1", "ifName": "eth0"}],
    "good-then-bad": [ITEM, 5],
}


@pytest.fixture(scope="module")
def shared_occupied_node(command: list[str]) -> Iterator[SharedWatchedNode]:
    """Keeps a node that has an attachment in the network of the GC."""
    node = SharedWatchedNode(command, own_network())
    yield node
    node.close()


@pytest.fixture
def occupied(shared_occupied_node: SharedWatchedNode) -> Iterator[WatchedNode]:
    """A node with an attachment that must stay as it is."""
    yield from shared_occupied_node.share()


@pytest.mark.parametrize("key", [KEY, OLD_KEY])
@pytest.mark.parametrize("kind", list(UNREADABLE))
def test_a_list_that_cannot_be_read_removes_nothing(
    occupied: WatchedNode, key: str, kind: str
) -> None:
    occupied.plugin.gc(own_network(**{key: UNREADABLE[kind]})).error(6, 7, says="attachments")


@pytest.mark.parametrize("kind", ["object", "number-inside", "no-ifname"])
def test_a_readable_old_list_does_not_excuse_an_unreadable_new_one(
    occupied: WatchedNode, kind: str
) -> None:
    conf = own_network(**{KEY: UNREADABLE[kind], OLD_KEY: []})
    occupied.plugin.gc(conf).error(6, 7, says=KEY)


def test_without_a_list_nothing_is_removed(occupied: WatchedNode) -> None:
    """`cnitool gc` sends none; to remove all, a caller must say so."""
    occupied.plugin.gc(own_network()).error(7, says=KEY)


@pytest.mark.parametrize("nothing", [[], None], ids=["empty", "null"])
@pytest.mark.parametrize("key", [KEY, OLD_KEY])
def test_an_empty_list_makes_every_attachment_of_the_network_stale(
    plugin: Plugin, attached: Pod, other_pod: Pod, key: str, nothing: list[str] | None
) -> None:
    plugin.add(other_pod, own_network(), CNI_IFNAME="net1").result()
    plugin.gc(own_network(**{key: nothing})).is_silent_success()
    assert "eth0" not in attached.links()
    assert "net1" not in other_pod.links()
    plugin.gc(own_network(**{key: nothing})).is_silent_success()


@pytest.mark.parametrize("key", [KEY, OLD_KEY])
def test_a_listed_attachment_stays_untouched(
    plugin: Plugin, attached: Pod, other_pod: Pod, key: str, make_monitor: MakeMonitor
) -> None:
    plugin.add(other_pod, own_network()).result()
    monitor = make_monitor(attached.netns)
    valid = [{"containerID": attached.container, "ifname": "eth0"}]
    plugin.gc(own_network(**{key: valid})).is_silent_success()
    assert monitor.changes() == []
    assert "eth0" not in other_pod.links()


def test_the_new_list_counts_where_both_are_given(plugin: Plugin, attached: Pod) -> None:
    valid = [{"containerID": attached.container, "ifname": "eth0"}]
    plugin.gc(own_network(**{KEY: valid, OLD_KEY: []})).is_silent_success()
    assert "eth0" in attached.links()
    plugin.gc(own_network(**{KEY: [], OLD_KEY: valid})).is_silent_success()
    assert "eth0" not in attached.links()


@pytest.mark.parametrize("change", ["interface", "longer-id", "shorter-id"])
def test_container_and_interface_must_both_match(
    plugin: Plugin, attached: Pod, change: str
) -> None:
    container, interface = attached.container, "eth0"
    if change == "interface":
        interface = "eth1"
    else:
        container = container + "0" if change == "longer-id" else container[:-1]
    valid = [{"containerID": container, "ifname": interface}]
    plugin.gc(own_network(**{KEY: valid})).is_silent_success()
    assert "eth0" not in attached.links()


def test_unknown_entries_and_keys_in_the_list_are_ignored(plugin: Plugin, attached: Pod) -> None:
    """Multus passes the attachments of all networks."""
    valid = [
        {"containerID": "elsewhere", "ifname": "net7", "networkName": "other"},
        {"containerID": attached.container, "ifname": "eth0", "more": {"a": [1]}},
    ]
    plugin.gc(own_network(**{KEY: valid})).is_silent_success()
    assert "eth0" in attached.links()


def test_the_attachments_of_another_network_stay(
    plugin: Plugin, attached: Pod, make_monitor: MakeMonitor
) -> None:
    monitor = make_monitor(attached.netns)
    for name in (f"{NAME}2", NAME[:-1], "overlay"):
        plugin.gc(network(name=name, **{KEY: []})).is_silent_success()
    assert monitor.changes() == []


def test_add_works_at_once_after_gc(plugin: Plugin, attached: Pod) -> None:
    plugin.gc(own_network(**{KEY: []})).is_silent_success()
    plugin.add(attached, own_network()).result()


def test_del_after_gc_succeeds(plugin: Plugin, attached: Pod) -> None:
    plugin.gc(own_network(**{KEY: []})).is_silent_success()
    plugin.delete(attached, own_network()).is_silent_success()


def test_gc_needs_neither_the_daemon_nor_any_container_variable(
    plugin: Plugin, attached: Pod
) -> None:
    conf = own_network(**{KEY: []}, myceliumInterface="absent0")
    plugin.gc(conf, CNI_PATH="").is_silent_success()
    assert "eth0" not in attached.links()
