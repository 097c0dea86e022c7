# SPDX-License-Identifier: Apache-2.0
"""Pods on nodes of the real Mycelium daemon; the stand-in must pass the same tests.

The daemon is in no package registry. Where it is missing, its half is skipped, with a line that
says so; anything else that is missing makes a test fail.
"""

from __future__ import annotations

import ipaddress
import json
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mycelium_cni.node import identity
from mycelium_lab.lab import Lab, Node, OverlayKind, Pod, await_fact, find_daemon

from .machine import owned_lab
from .traffic import page, transfer

KINDS: list[OverlayKind] = ["daemon", "stand-in"]
SIZE = {"daemon": 100_000_000, "stand-in": 10_000_000}  # the stand-in is Python
MODES = ("routed", "bridge")
NO_DAEMON = (
    "NOT TESTED WITH THE REAL MYCELIUM DAEMON: there is no `mycelium` in PATH, and MYCELIUM_BIN is "
    "not set; https://github.com/threefoldtech/mycelium/releases has it"
)


class Line:
    """Nodes in a line, of which only the outer two have pods: one in each mode."""

    def __init__(self, lab: Lab, *names: str) -> None:
        self.lab = lab
        self.kind = lab.overlay_kind
        self.nodes = [lab.node(name) for name in names]
        lab.connect(*self.nodes)
        self.first, self.last = self.nodes[0], self.nodes[-1]
        ends = ((self.first, "routed"), (self.last, "bridge"))
        self.pods = {node: self._attach(node, mode) for node, mode in ends}

    def _attach(self, node: Node, mode: str) -> tuple[Pod, str]:
        pod = node.pod("pod")
        conf = {"cniVersion": "1.1.0", "name": "net", "type": "mycelium-cni", "mode": mode}
        result = node.plugin("ADD", conf, pod).succeeded()
        return pod, result["ips"][0]["address"].partition("/")[0]

    def restart(self, node: Node) -> None:
        """Start the overlay of a node again, and return when the pods answer each other.

        No packet before all peers are back: the daemon would search for a route for 15 s, and not
        notice one that appears meanwhile.
        """
        node.start_overlay()
        await_fact(self._connected, f"all peers of {node.name}", within_s=20)
        what = f"the pods answering each other after a restart of {node.name}"
        await_fact(self.answer_each_other, what, within_s=30)

    def _connected(self) -> bool:
        """Whether every overlay has its peers: those it names, and those that name it."""
        peers = [node.api("admin/peers") for node in self.nodes]
        alive = [[p for p in listed if p["connectionState"] == "alive"] for listed in peers]
        return sum(len(listed) for listed in alive) == 2 * (len(self.nodes) - 1)

    def answer_each_other(self) -> bool:
        """Whether each pod answers a packet of the other one, now."""
        (left, a), (right, b) = (self.pods[node] for node in (self.first, self.last))
        return left.ping(b) is not None and right.ping(a) is not None


def lines() -> Iterator[object]:
    """Each overlay with each length of line, in the group of its overlay."""
    for kind in KINDS:
        for names in (("left", "right"), ("left", "relay", "right")):
            group = pytest.mark.xdist_group(f"overlay-{kind}")
            yield pytest.param((kind, names), marks=group, id=f"{kind}-{len(names)}")


@pytest.fixture(scope="module", params=lines())
def line(request: pytest.FixtureRequest, command: list[str]) -> Iterator[Line]:
    kind, names = request.param
    if kind == "daemon" and find_daemon() is None:
        pytest.skip(NO_DAEMON)
    with owned_lab(command, kind) as lab:
        yield Line(lab, *names)


def test_pods_of_the_outer_nodes_answer_each_other(line: Line) -> None:
    assert line.answer_each_other()
    (left, _), (right, b) = (line.pods[node] for node in (line.first, line.last))
    assert left.ping(b, size=1352) is not None  # 1400 in all
    too_big = left.run(["ping", "-c1", "-W1", "-Mdo", "-s1353", b], check=False)
    assert "mtu: 1400" in too_big.stdout + too_big.stderr
    hops = left.run(["ping", "-n", "-c1", "-W1", b]).stdout.partition("ttl=")[2].split()[0]
    # Each daemon takes one, and so does each of the two nodes that forward between TUN and pod.
    assert int(hops) == 64 - len(line.nodes) - 2
    assert right.ping(line.first.overlay_address or "") is not None


def test_a_big_transfer_arrives_whole(line: Line) -> None:
    (left, a), (right, b) = (line.pods[node] for node in (line.first, line.last))
    done = transfer(left, right, b, SIZE[line.kind], within_s=100)
    assert done.path_mtu == 1400
    assert done.mss == 1400 - 40 - 20 - 12  # IPv6, TCP, its timestamps
    assert done.client == a
    assert transfer(right, left, a, 1_000_000).client == b


def test_pods_outlive_a_restart_of_each_daemon(line: Line) -> None:
    addresses = {node: node.overlay_address for node in line.nodes}
    for node in line.nodes:
        node.stop_overlay(signal.SIGKILL if node is line.last else signal.SIGTERM)
        line.restart(node)
        assert node.overlay_address == addresses[node]


def test_a_node_is_not_left_in_clear_while_its_daemon_is_away(line: Line) -> None:
    """A packet for the overlay never takes the node's other way out."""
    pod, _ = line.pods[line.first]
    _, other = line.pods[line.last]
    neighbour = line.nodes[1].underlay_address
    line.first.configure(f"route add default via {neighbour} dev under0")
    try:
        line.first.stop_overlay()
        watched = ["tcpdump", "-n", "-l", "-i", "under0", "ip6 net 400::/7"]
        capture = line.first.start(watched)
        await_fact(lambda: "listening on" in capture.output(), "tcpdump listening")
        for source, words in ((pod, "unreachable: No route"), (line.first, "No route to host")):
            said = source.run(["ping", "-n", "-c1", "-W1", other], check=False)
            assert words in said.stdout + said.stderr
        assert " IP6 " not in capture.stop()
    finally:
        line.first.configure(f"route del default via {neighbour} dev under0")
        line.restart(line.first)


def test_a_refused_port_is_told_at_once(line: Line) -> None:
    pod, _ = line.pods[line.first]
    _, other = line.pods[line.last]
    with pytest.raises(ConnectionRefusedError):
        pod.get(other, 81, timeout_s=3)
    assert page(pod, other, 81) is None


@pytest.mark.xdist_group("overlay-daemon")
def test_identities_are_the_daemons(command: list[str], tmp_path: Path) -> None:
    """200 random keys, some longer than a key: our result is the daemon's."""
    daemon = find_daemon()
    if daemon is None:
        pytest.skip(NO_DAEMON)

    def say(program: list[str], *argv: str | Path) -> object:
        argv = (*program, "inspect", "--json", *argv)
        return json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)

    generator = random.Random(20250629)
    key = tmp_path / "key"
    for number in range(200):
        key.write_bytes(generator.randbytes(32) + b"more" * (number % 3))
        public = identity.public_key(key.read_bytes()[:32])
        address = str(ipaddress.IPv6Address(identity.address(public)))
        told = say([daemon], "--key-file", key)
        assert told == {"publicKey": public.hex(), "address": address}
        if number < 5:  # starting our command takes longer than the daemon's
            assert say(command, "--key-file", key) == told
            assert say(command, public.hex()) == told
