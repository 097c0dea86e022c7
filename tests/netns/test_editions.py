# SPDX-License-Identifier: Apache-2.0
"""Two releases on one node: upgrade, downgrade, and how each treats the other's pods."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import rawpackets as raw
from attaching import attach, reaches, refused, silent
from rawpackets import Capture, Wire
from sites import NODE, OTHER_PEER, REMOTE, Site, conf, connects

import releases
from mycelium_lab.lab import Lab, Pod

both_modes = pytest.mark.parametrize("mode", ("routed", "bridge"))
# The release that made the pods, and the one that replaces it.
STEPS = (("previous", "this"), ("this", "previous"), ("next", "this"), ("this", "next"))
changes = pytest.mark.parametrize("before, after", STEPS, ids=["-".join(step) for step in STEPS])


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory, command: list[str]) -> dict[str, list[str]]:
    return {
        "previous": releases.previous(tmp_path_factory.mktemp("previous")),
        "this": command,
        "next": releases.following(tmp_path_factory.mktemp("next")),
    }


class Releases:
    """A site, on which the release that is installed changes."""

    def __init__(self, site: Site, commands: dict[str, list[str]]) -> None:
        self.site = site
        self._commands = commands

    def install(self, name: str) -> None:
        self.site.lab.command[:] = self._commands[name]


@pytest.fixture
def node(lab: Lab, commands: dict[str, list[str]]) -> Iterator[Releases]:
    installed = list(lab.command)
    yield Releases(Site(lab), commands)
    lab.command[:] = installed


class Attached:
    def __init__(self, site: Site, network: dict[str, Any]) -> None:
        self.site, self.network = site, network
        self.pod: Pod = site.node.pod(f"p{os.urandom(4).hex()}")
        self.result = site.node.plugin("ADD", network, self.pod).succeeded()
        self.address: str = self.result["ips"][0]["address"].partition("/")[0]

    def check(self) -> None:
        call = self.site.node.plugin("CHECK", {**self.network, "prevResult": self.result}, self.pod)
        assert call.code == 0, call

    def delete(self) -> None:
        assert self.site.node.plugin("DEL", self.network, self.pod).code == 0

    def works(self) -> None:
        """Its packets reach the node, and answers come back."""
        assert reaches(self.pod, NODE)
        assert reaches(self.site.node, self.address)


def is_well(site: Site, networks: list[dict[str, Any]], attachments: list[Attached]) -> None:
    """STATUS of each network, and CHECK of each attachment, find nothing wrong."""
    for network in networks:
        assert site.status(network).code == 0
    for attached in attachments:
        attached.check()


@contextmanager
def attacked(site: Site, *pods: Attached) -> Iterator[None]:
    """While this runs a peer sends to pods that it must not reach; nothing arrives."""
    token, stop = os.urandom(16), threading.Event()
    capture = Capture()
    for attached in pods:
        capture.watch_wire(attached.address, Wire(attached.pod, "eth0"))
    sent = 0

    def send() -> None:
        nonlocal sent
        while not stop.wait(0.0005):
            for attached in pods:
                # Each is a flow of its own: packets of a tracked flow would pass.
                site.tun.write([raw.udp(OTHER_PEER, attached.address, os.urandom(16) + token)])
            sent += 1

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        stop.set()
        sender.join()
    capture.look()
    arrived = capture.places(token)
    capture.close()
    assert sent > 20
    assert not arrived


@both_modes
@changes
def test_no_network_is_open_for_a_moment(
    node: Releases, before: str, after: str, mode: str
) -> None:
    site = node.site
    networks = [
        conf("shut", mode, ingress="closed"),
        conf("club", mode, ingress="cluster", allowFrom=["4aa::/16"]),
        conf("wide", mode),
    ]
    node.install(before)
    older = [Attached(site, network) for network in networks]
    shut, club, wide = older
    node.install(after)
    everybody = list(older)
    with attacked(site, shut, club):
        for network in reversed(networks):
            is_well(site, [network], everybody)
            everybody.append(Attached(site, network))
    is_well(site, networks, everybody)
    for attached in everybody:
        attached.works()
        policy = attached.network["name"]
        assert site.reaches(attached.pod, attached.address, OTHER_PEER) is (policy == "wide")
        assert site.reaches(attached.pod, attached.address, REMOTE) is (policy != "shut")
    assert not connects(shut.pod, shut.address, wide.pod)
    assert not connects(everybody[-1].pod, everybody[-1].address, wide.pod)
    # And pods that were there before still work.
    node.install(before)
    is_well(site, networks, everybody)


@both_modes
@changes
def test_a_policy_that_changes_with_the_release_is_the_new_one(
    node: Releases, before: str, after: str, mode: str
) -> None:
    site = node.site
    node.install(before)
    attached = [Attached(site, conf("n", mode, ingress="closed"))]
    node.install(after)
    for word, reached in (("open", True), ("closed", False), ("open", True)):
        attached.append(Attached(site, conf("n", mode, ingress=word)))
        client = attached[-1].pod
        for each in attached[:-1]:
            assert site.reaches(each.pod, each.address, OTHER_PEER) is reached
            assert connects(each.pod, each.address, client) is reached


@both_modes
@changes
def test_each_takes_away_what_the_other_made(
    node: Releases, before: str, after: str, mode: str
) -> None:
    site = node.site
    network = conf("n", mode, ingress="closed")
    node.install(before)
    kept, deleted, stale = (Attached(site, network) for _ in range(3))
    node.install(after)
    listed = [{"containerID": kept.pod.container_id, "ifname": "eth0"}]
    deleted.delete()
    valid = {**network, "cni.dev/valid-attachments": listed}
    assert site.node.plugin("GC", valid).code == 0
    gone = (deleted.address, stale.address)
    names = {name for link in site.node.ip("link") for name in link.get("altnames", [])}
    assert names == {kept.address}
    if after == "previous":  # it does not know all that this one makes
        node.install(before)
        assert site.node.plugin("GC", valid).code == 0
    for family in ("inet", "bridge"):
        assert not [address for address in gone if address in site.table(family)]
    kept.works()
    assert not site.reaches(kept.pod, kept.address, OTHER_PEER)


def test_a_network_that_was_closed_after_a_downgrade_is_no_fault(node: Releases) -> None:
    """The previous release loads its own chain for that beside this one's rules."""
    site = node.site
    wide = Attached(site, conf("wide", "bridge"))
    node.install("previous")
    shut = Attached(site, conf("shut", "bridge", ingress="closed"))
    node.install("this")
    networks = [wide.network, shut.network]
    is_well(site, networks, [wide, shut])
    assert not connects(shut.pod, shut.address, wide.pod)
    newest = Attached(site, shut.network)
    is_well(site, networks, [wide, shut, newest])
    for attached in (shut, newest):
        assert not connects(attached.pod, attached.address, wide.pod)


def test_a_routed_network_that_was_closed_after_a_downgrade_is_no_fault(node: Releases) -> None:
    """A bridge with open pods needs no rules for it."""
    site = node.site
    wide = Attached(site, conf("wide", "bridge"))
    node.install("previous")
    shut = Attached(site, conf("shut", "routed", ingress="closed"))
    node.install("this")
    is_well(site, [wide.network, shut.network], [wide, shut])


@pytest.mark.parametrize("first", ["previous", "this"])
def test_what_the_previous_release_did_to_a_pods_first_interface_is_found_and_repaired(
    node: Releases, tmp_path: Path, first: str
) -> None:
    """Its bridged second interface is on-link for the subnet, the node's own address in it."""
    site = node.site
    pod, networks = site.node.pod("two"), [conf("a", "routed"), conf("b", "bridge")]
    for network in networks:
        (tmp_path / f"{network['name']}.conf").write_text(json.dumps(network))
    attached = []
    for number, release in enumerate((first, "previous")):
        node.install(release)
        attached.append(attach(site.node, pod, networks[number], ifname=f"net{number}"))
    assert not reaches(site.node, attached[0].address)
    node.install("this")
    refused(attached[0].check(), 103, says=f"400::/7 from {attached[0].address}")
    silent(attached[1].check())
    doctor = [*site.lab.command, "doctor", "--conf-dir", str(tmp_path)]
    said = site.node.run([*doctor, "pods", "pod-routes"], check=False).stdout
    assert f"400::/7 from {attached[0].address}" in said
    assert "does a Mycelium daemon" not in said
    site.node.run([*doctor, "--fix"], check=False)
    for each in attached:
        assert reaches(site.node, each.address)
        silent(each.check())
        silent(each.delete())


def test_a_bridge_that_the_previous_release_made_fails_no_check(
    node: Releases, tmp_path: Path
) -> None:
    """It lacks what only pods of other plugins need."""
    site, network = node.site, conf("n", "bridge")
    (tmp_path / "n.conf").write_text(json.dumps(network))
    node.install("previous")
    older = Attached(site, network)
    node.install("this")
    newer = Attached(site, network)
    doctor = [*site.lab.command, "doctor", "--conf-dir", str(tmp_path), "bridge", "--json"]
    found = json.loads(site.node.run(doctor).stdout)
    assert {each["state"] for each in found} == {"warn"}
    for each in (older, newer):
        each.works()
