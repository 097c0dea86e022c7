# SPDX-License-Identifier: Apache-2.0
"""Nodes and pods for the protocol tests. Needs root; touches nothing outside its namespaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .calls import Plugin
from .hosts import NODE, ChangeMonitor, Host, Pod, mycelium_host

MakeMonitor = Callable[[str], ChangeMonitor]


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """A node with its Mycelium interface, shared by all tests of this process."""
    with mycelium_host() as host:
        yield host


@pytest.fixture(scope="session")
def plugin(command: list[str], host: Host) -> Plugin:
    """The executable on the shared node."""
    return Plugin(command, host)


@pytest.fixture
def pod(host: Host) -> Iterator[Pod]:
    """A pod of this test's own on the shared node."""
    pod = host.pod()
    yield pod
    pod.remove()


@pytest.fixture
def other_pod(host: Host) -> Iterator[Pod]:
    """A second pod on the shared node."""
    pod = host.pod()
    yield pod
    pod.remove()


@pytest.fixture
def bare(command: list[str]) -> Iterator[Plugin]:
    """The executable on a node of this test's own, which has no Mycelium interface yet."""
    host = Host()
    yield Plugin(command, host)
    host.stop()


@pytest.fixture
def alone(bare: Plugin) -> Plugin:
    """The executable on a node of this test's own: no cleanup of earlier tests is under way
    there."""
    bare.host.give_tun("mycelium", f"{NODE}/7")
    return bare


@pytest.fixture
def make_monitor() -> Iterator[MakeMonitor]:
    """A function that makes a monitor of a namespace."""
    monitors: list[ChangeMonitor] = []

    def make(netns: str) -> ChangeMonitor:
        monitors.append(ChangeMonitor(netns))
        return monitors[-1]

    yield make
    for monitor in monitors:
        monitor.close()


class WatchedNode:
    """A node and a pod in which nothing may change, each with a monitor."""

    def __init__(self, command: list[str], attachment: dict[str, Any] | None) -> None:
        self._host = Host()
        self._host.give_tun("mycelium", f"{NODE}/7")
        self.plugin = Plugin(command, self._host)
        self.pod = self._host.pod()
        if attachment is not None:
            self.plugin.add(self.pod, attachment).result()
            self.pod.settle()
        self._monitors = [ChangeMonitor(self._host.netns), ChangeMonitor(self.pod.netns)]

    def assert_unchanged(self) -> None:
        """Nothing has changed on the node or in the pod since the last call."""
        node, pod = (monitor.changes() for monitor in self._monitors)
        assert node == [], f"a call that had to change nothing changed the node: {node}"
        assert pod == [], f"a call that had to change nothing changed the pod: {pod}"

    def stop(self) -> None:
        """End both."""
        for monitor in self._monitors:
            monitor.close()
        self.pod.remove()
        self._host.stop()


class SharedWatchedNode:
    """One watched node for many tests; after a test that changed it, a new one."""

    def __init__(self, command: list[str], attachment: dict[str, Any] | None = None) -> None:
        self._command = command
        self._attachment = attachment
        self._node: WatchedNode | None = None

    def get(self) -> WatchedNode:
        """The node, unchanged."""
        if self._node is None:
            self._node = WatchedNode(self._command, self._attachment)
        return self._node

    def share(self) -> Iterator[WatchedNode]:
        """The node for one test, which must leave it unchanged."""
        node = self.get()
        yield node
        try:
            node.assert_unchanged()
        except AssertionError:
            self.close()
            raise

    def close(self) -> None:
        """End the node if there is one."""
        if self._node is not None:
            self._node.stop()
            self._node = None


@pytest.fixture(scope="session")
def shared_watched_node(command: list[str]) -> Iterator[SharedWatchedNode]:
    """The watched node of this process."""
    node = SharedWatchedNode(command)
    yield node
    node.close()


@pytest.fixture
def watched(shared_watched_node: SharedWatchedNode) -> Iterator[WatchedNode]:
    """A node and a pod that the test may call the plugin on and must leave untouched."""
    yield from shared_watched_node.share()
