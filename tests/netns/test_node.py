# SPDX-License-Identifier: Apache-2.0
"""What ADD changes on the node, and what happens to its pods while the daemon is away."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from attaching import (
    BRIDGE,
    OVERLAY,
    PROTOCOL,
    Attached,
    Mode,
    attach,
    both_modes,
    network,
    reaches,
    refused,
    silent,
)
from observe import difference, kernel_state, set_sysctl, sysctl

from mycelium_lab.lab import UNDERLAY, Lab, Namespace, Node, Process, await_fact

FORWARDING = "ipv6/conf/all/forwarding"


# What ADD changes


def expected_sysctls(name: str, before: dict[str, str], after: dict[str, str]) -> bool:
    """Whether a setting may differ after the first ADD: forwarding, and what new links have."""
    return name.endswith("/forwarding") or (name not in before and name in after)


@both_modes
def test_nothing_of_the_node_changes_but_what_is_documented(command: list[str], mode: Mode) -> None:
    with Lab(command) as lab:
        node = lab.node("a")
        lab.connect(node)
        pod = node.pod("pod")
        before = kernel_state(node, settings=".")["a"]
        attached = attach(node, pod, network(mode))
        after = kernel_state(node, settings=".")["a"]
        own, subnet = node.overlay_address, attached.address.rpartition(":ff0f:")[0]
        changed = {key for key in before if before[key] != after[key]}
        assert changed <= {"links", "routes", "neighbours", "proxies", "nft", "sysctls"}

        made = {attached.host_link} | ({BRIDGE} if mode == "bridge" else set())
        assert after["links"].keys() - before["links"].keys() == made
        for name, link in before["links"].items():
            now = after["links"][name]
            if name == "lo":
                extra = [a for a in now["addresses"] if a not in link["addresses"]]
                assert [(a["local"], a["prefixlen"]) for a in extra] == [(own, 128)]
                now = {**now, "addresses": link["addresses"]}
            assert now == link

        assert set(before["routes"]) <= set(after["routes"])
        new = [json.loads(line) for line in after["routes"] if line not in before["routes"]]
        elsewhere = {(r.get("type"), r["dst"]) for r in new if r["dev"] not in made}
        # The anycast ones are the kernel's: a router answers for the first address of each prefix.
        assert {pair for pair in elsewhere if pair[0] != "anycast"} == {
            ("unreachable", OVERLAY),
            ("unreachable", f"{subnet}::/64"),
            ("local", own),
        }

        settings = [before["sysctls"], after["sysctls"]]
        every = settings[0].keys() | settings[1].keys()
        differing = [k for k in every if settings[0].get(k) != settings[1].get(k)]
        assert [k for k in differing if not expected_sysctls(k, *settings)] == []
        tables = {
            entry["table"]["name"] for entry in map(json.loads, after["nft"]) if "table" in entry
        }
        assert tables <= {"mycelium-cni"}


@both_modes
def test_the_second_add_changes_nothing_but_its_own(node: Node, mode: Mode) -> None:
    attach(node, "first", network(mode))
    pod = node.pod("second")
    before = kernel_state(node, pod, settings=".")
    attached = attach(node, pod, network(mode))
    silent(attached.delete())
    assert difference(before, kernel_state(node, pod, settings=".")) == []


@both_modes
def test_forwarding_that_is_on_is_left_alone(node: Node, mode: Mode) -> None:
    """Writing 1 over 1 would switch it on again for every link where an admin switched it off."""
    set_sysctl(node, FORWARDING, "1")
    set_sysctl(node, f"ipv6/conf/{UNDERLAY}/forwarding", "0")
    attached = attach(node, "pod", network(mode))
    assert sysctl(node, f"ipv6/conf/{UNDERLAY}/forwarding") == "0"
    assert reaches(node, attached.address)


# Router advertisements


class Router:
    """A neighbour on a link that advertises itself as a router, as radvd does."""

    def __init__(self, space: Namespace, link: str) -> None:
        found = space.link(link)
        assert found is not None
        self.mac = bytes.fromhex(found["address"].replace(":", ""))
        self.address = b"\xfe\x80" + bytes(6) + self.mac[:3] + b"\xff\xfe" + self.mac[3:]
        with space.inside():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.bind((link, 0x86DD))

    def advertise(self, *, lifetime_s: int = 1800, prefix: str = "") -> None:
        """Send the advertisement to all nodes (RFC 4861, section 4.2)."""
        message = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, lifetime_s, 0, 0)
        message += struct.pack("!BB", 1, 1) + self.mac
        if prefix:
            head = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0)
            message += head + socket.inet_pton(socket.AF_INET6, prefix)
        everybody = socket.inet_pton(socket.AF_INET6, "ff02::1")
        pseudo = self.address + everybody + struct.pack("!II", len(message), 58)
        checksum = _checksum(pseudo + message)
        message = message[:2] + struct.pack("!H", checksum) + message[4:]
        header = struct.pack("!IHBB", 6 << 28, len(message), 58, 255)
        frame = bytes.fromhex("333300000001") + self.mac + b"\x86\xdd"
        self._socket.send(frame + header + self.address + everybody + message)

    def close(self) -> None:
        self._socket.close()


def _checksum(octets: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@contextmanager
def router(space: Namespace, link: str) -> Iterator[Router]:
    made = Router(space, link)
    try:
        yield made
    finally:
        made.close()


def default_routes(space: Namespace) -> list[dict[str, object]]:
    found: list[dict[str, object]] = space.ip("-6", "route", "show", "default")
    return found


@both_modes
def test_a_default_route_learned_from_a_router_survives(lab: Lab, mode: Mode) -> None:
    node, neighbour = lab.node("a"), lab.node("router")
    lab.connect(node)
    settings = kernel_state(node, settings="accept_ra$")["a"]["sysctls"]
    assert sysctl(node, FORWARDING) == "0"
    with router(neighbour, UNDERLAY) as gateway:
        gateway.advertise()
        (learned,) = await_fact(lambda: default_routes(node), "a default route")
        assert learned["protocol"] == "ra"
        attached = attach(node, "pod", network(mode))
        assert sysctl(node, FORWARDING) == "1"
        (kept,) = default_routes(node)
        assert kept["gateway"] == learned["gateway"]
        # And the next one is still accepted.
        node.ip("-6", "route", "del", "default")
        assert default_routes(node) == []
        gateway.advertise()
        await_fact(lambda: default_routes(node), "the default route again")
    after = kernel_state(node, settings="accept_ra$")["a"]["sysctls"]
    ours = (f"conf/{attached.host_link}/", f"conf/{BRIDGE}/", f"conf/{UNDERLAY}/")
    assert sysctl(node, f"ipv6/conf/{UNDERLAY}/accept_ra") == "2"
    assert {k: v for k, v in after.items() if not any(word in k for word in ours)} == {
        k: v for k, v in settings.items() if f"conf/{UNDERLAY}/" not in k
    }


@pytest.mark.parametrize("new_links", ["0", "1"])
@both_modes
def test_a_link_that_does_not_forward_keeps_its_default_route_where_others_do(
    lab: Lab, mode: Mode, new_links: str
) -> None:
    """Setting forwarding on any link, even again, removes the learned routes of all links."""
    node, neighbour = lab.node("a"), lab.node("router")
    lab.connect(node)
    set_sysctl(node, FORWARDING, "1")
    set_sysctl(node, f"ipv6/conf/{UNDERLAY}/forwarding", "0")
    set_sysctl(node, "ipv6/conf/default/forwarding", new_links)
    with router(neighbour, UNDERLAY) as gateway:
        gateway.advertise()
        (learned,) = await_fact(lambda: default_routes(node), "a default route")
        for name in ("one", "two"):
            attached = attach(node, name, network(mode))
            assert reaches(node, attached.address)
        (kept,) = default_routes(node)
        assert kept["gateway"] == learned["gateway"]
    assert sysctl(node, f"ipv6/conf/{UNDERLAY}/forwarding") == "0"


@both_modes
@pytest.mark.timing("a lifetime that counts down by the second")
def test_an_address_learned_from_a_router_is_renewed(lab: Lab, mode: Mode) -> None:
    """Also from a router that is not the default router, so that no route shows it."""
    node, neighbour = lab.node("a"), lab.node("router")
    lab.connect(node)

    def lifetimes() -> list[int]:
        shown = node.link(UNDERLAY)
        assert shown is not None
        told = [a for a in shown["addr_info"] if a["local"].startswith("2001:db8:77:")]
        return [entry["valid_life_time"] for entry in told]

    with router(neighbour, UNDERLAY) as gateway:
        gateway.advertise(lifetime_s=0, prefix="2001:db8:77::")
        await_fact(lifetimes, "an address from the advertised prefix")
        attach(node, "pod", network(mode))
        (left,) = lifetimes()
        await_fact(lambda: lifetimes() < [left], "a second of its lifetime")
        gateway.advertise(lifetime_s=0, prefix="2001:db8:77::")
        await_fact(lambda: lifetimes() >= [left], "its renewal", within_s=2)


@both_modes
@pytest.mark.parametrize("accept_ra", ["1", "2"])
def test_router_advertisements_of_a_pod_are_ignored(node: Node, mode: Mode, accept_ra: str) -> None:
    """Neither by the node, whatever its default for new links, nor by other pods."""
    set_sysctl(node, "ipv6/conf/default/accept_ra", accept_ra)
    other = node.pod("other")
    set_sysctl(other, "ipv6/conf/default/accept_ra", accept_ra)
    rogue = attach(node, "rogue", network(mode))
    victim = attach(node, other, network(mode))
    before = kernel_state(node, other, rogue.pod)
    with router(rogue.pod, "eth0") as pretender:
        for _ in range(3):
            pretender.advertise(prefix="2001:db8:66::")
    # What was sent behind it has been received: so has the advertisement.
    assert reaches(rogue.pod, victim.address)
    assert reaches(rogue.pod, str(node.overlay_address))
    for space in (node, other):
        assert default_routes(space) == []
        shown = [a["local"] for entry in space.ip("addr") if entry for a in entry["addr_info"]]
        assert not [address for address in shown if address.startswith("2001:db8:66:")]
    assert before[other.name]["routes"] == kernel_state(other)[other.name]["routes"]


# The daemon away


@contextmanager
def capture(space: Namespace, *expression: str) -> Iterator[Process]:
    """tcpdump on the node's way out, listening while the block runs."""
    argv = ["tcpdump", "-n", "-l", "-U", "-i", "any", *expression]
    process = space.start(argv)
    await_fact(lambda: "listening on" in process.output(), "tcpdump listening")
    yield process
    process.stop()


def with_way_out(lab: Lab) -> tuple[Node, Node]:
    """A node with a default route, and the neighbour to whom it leads."""
    node, neighbour = lab.node("a"), lab.node("out")
    lab.connect(node)
    shown = neighbour.link(UNDERLAY)
    assert shown is not None
    node.configure(
        f"neigh replace {neighbour.underlay_address} lladdr {shown['address']} dev {UNDERLAY}",
        f"route add default via {neighbour.underlay_address} dev {UNDERLAY}",
    )
    return node, neighbour


def ping_out(attached: Attached, address: str) -> str:
    argv = ["ping", "-n", "-c", "3", "-i", "0.1", "-W", "1", address]
    return attached.pod.run(argv, check=False).stdout


@both_modes
def test_no_packet_for_the_overlay_leaves_another_way_while_the_daemon_is_away(
    lab: Lab, mode: Mode
) -> None:
    node, neighbour = with_way_out(lab)
    conf = network(mode, defaultRoute=True)
    attached, other = attach(node, "pod", conf), attach(node, "other", conf)
    subnet = attached.address.rpartition(":ff0f:")[0]
    node.stop_overlay()
    with capture(neighbour, "ip6 and (net 400::/7 or host 2001:db8:5::5)") as seen:
        elsewhere = ["400::1", "5ff:ffff::1", "4aa:1:2:3::9"]
        # A bridged pod looks for others of its subnet on the bridge, and nowhere else.
        for address in [*elsewhere, f"{subnet}:ff0f:0:0:1"] if mode == "routed" else elsewhere:
            answer = ping_out(attached, address)
            assert "Destination unreachable" in answer, answer  # told at once, not after a time-out
        node.ping("4aa:1:2:3::9", wait_s=0.3)
        # Other traffic passes and is captured, so the capture works.
        ping_out(attached, "2001:db8:5::5")
        await_fact(lambda: "2001:db8:5::5" in seen.output(), "the packet that may leave")
    leaked = [line for line in seen.output().splitlines() if " > 4" in line or " > 5" in line]
    assert leaked == []
    # Pods and their node still reach each other: probes work.
    assert reaches(node, attached.address)
    assert reaches(attached.pod, other.address)
    assert reaches(attached.pod, own_address(node))


def own_address(node: Node) -> str:
    """The node's overlay address as `lo` keeps it while the daemon is away."""
    lo = node.link("lo")
    assert lo is not None
    (kept,) = [a["local"] for a in lo["addr_info"] if a["local"] != "::1" and ":" in a["local"]]
    return str(kept)


@both_modes
def test_live_pods_work_again_when_the_daemon_is_back(pair: tuple[Node, Node], mode: Mode) -> None:
    here, there = pair
    attached = attach(here, "pod", network(mode))
    far = attach(there, "pod", network(mode))
    before = kernel_state(here, attached.pod)
    here.stop_overlay()
    assert reaches(here, attached.address)
    refused(here.plugin("STATUS", attached.conf), 51, says="failed to find interface mycelium")
    refused(attached.check(), 11, says="failed to find interface mycelium")
    here.start_overlay()
    what = "an answer through the overlay"
    await_fact(lambda: reaches(attached.pod, far.address), what, within_s=15)
    await_fact(lambda: reaches(far.pod, attached.address), what, within_s=15)
    silent(attached.check())
    silent(here.plugin("STATUS", attached.conf))
    gone = [line for line in difference(before, kernel_state(here, attached.pod)) if "gone" in line]
    assert [line for line in gone if "fe80::" not in line] == []


@both_modes
def test_a_pod_is_served_from_the_new_subnet_when_the_daemon_has_a_new_key(
    node: Node, mode: Mode
) -> None:
    """Live pods are cut off then: CHECK says why, and ADD what a bridge still carries."""
    attached = attach(node, "old", network(mode))
    node.stop_overlay()
    node.key_file.unlink()
    node.start_overlay()
    refused(attached.check(), says="subnet")
    if mode == "routed":
        heir = attach(node, "new", network(mode))
        assert reaches(node, heir.address)
    else:
        refused(node.plugin("ADD", network(mode), node.pod("new")), 100, says="bridge mycelium-br")


@both_modes
def test_del_needs_no_daemon(node: Node, mode: Mode) -> None:
    attach(node, "first", network(mode))
    pod = node.pod("pod")
    attached = attach(node, pod, network(mode))
    node.stop_overlay()
    before = kernel_state(node, pod)
    silent(attached.delete())
    after = kernel_state(node, pod)
    assert attached.host_link in before["a"]["links"]
    assert attached.host_link not in after["a"]["links"]
    assert pod.link("eth0") is None
    assert node.ip("-6", "route", "show", attached.address, "proto", PROTOCOL) == []
