# SPDX-License-Identifier: Apache-2.0
"""Nodes and pods for the protocol tests. Needs root; touches nothing outside its namespaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .calls import Plugin
from .hosts import NODE, Host, Pod, Witness

Listen = Callable[[str], Witness]


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """A node with its Mycelium interface, shared by all tests of this process."""
    host = Host()
    host.give_tun("mycelium", f"{NODE}/7")
    yield host
    host.stop()


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
def listen() -> Iterator[Listen]:
    """A function that makes a witness in a namespace."""
    witnesses: list[Witness] = []

    def place(netns: str) -> Witness:
        witnesses.append(Witness(netns))
        return witnesses[-1]

    yield place
    for witness in witnesses:
        witness.close()


class Quiet:
    """A node and a pod in which nothing may ever change, and a witness in each."""

    def __init__(self, command: list[str], attachment: dict[str, Any] | None) -> None:
        self._host = Host()
        self._host.give_tun("mycelium", f"{NODE}/7")
        self.plugin = Plugin(command, self._host)
        self.pod = self._host.pod()
        if attachment is not None:
            self.plugin.add(self.pod, attachment).result()
            self.pod.settle()
        self._witnesses = [Witness(self._host.netns), Witness(self.pod.netns)]

    def is_undisturbed(self) -> None:
        """Whether nothing has changed, here or in the pod, since the last call."""
        node, pod = (witness.heard() for witness in self._witnesses)
        assert node == [], f"a call that had to change nothing changed the node: {node}"
        assert pod == [], f"a call that had to change nothing changed the pod: {pod}"

    def stop(self) -> None:
        """End both."""
        for witness in self._witnesses:
            witness.close()
        self.pod.remove()
        self._host.stop()


class QuietPlace:
    """Keeps one quiet place, and makes a new one after a test that disturbed it."""

    def __init__(self, command: list[str], attachment: dict[str, Any] | None = None) -> None:
        self._command = command
        self._attachment = attachment
        self._place: Quiet | None = None

    def get(self) -> Quiet:
        """The place, undisturbed."""
        if self._place is None:
            self._place = Quiet(self._command, self._attachment)
        return self._place

    def lend(self) -> Iterator[Quiet]:
        """The place for one test, which must leave it undisturbed."""
        place = self.get()
        yield place
        try:
            place.is_undisturbed()
        except AssertionError:
            self.leave()
            raise

    def leave(self) -> None:
        """End the place if there is one."""
        if self._place is not None:
            self._place.stop()
            self._place = None


@pytest.fixture(scope="session")
def quiet_place(command: list[str]) -> Iterator[QuietPlace]:
    """Where the quiet node of this process lives."""
    place = QuietPlace(command)
    yield place
    place.leave()


@pytest.fixture
def quiet(quiet_place: QuietPlace) -> Iterator[Quiet]:
    """A node and a pod that the test may call the plugin on and must leave untouched."""
    yield from quiet_place.lend()
