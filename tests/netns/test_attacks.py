# SPDX-License-Identifier: Apache-2.0
"""Attacks from the overlay and from a pod: each is stopped, and each works without our rules.

A daemon is not needed: the test itself writes into the TUN what a hostile peer could have sent, and
pod `a`, the hostile pod, sends frames of its own making. All packets of a stage are sent together,
each with a token, and every place where one could arrive is watched; the tests then look up where
the tokens were seen. Legitimate packets are sent among them, and must arrive.

The stage without our rules is the same one after `nft delete table`: there the same packets must
get through, or the test proves nothing. The few that the kernel itself refuses are marked.

All of it happens on a plain node, and on one as Kubernetes makes it: with services, so with
connection tracking, which puts fragments together, and with bridges that ask ip6tables.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import pytest
import rawpackets as raw
from rawpackets import FRAGMENT, ICMPV6, Capture, Tun, Wire

from mycelium_lab.lab import UNDERLAY, Lab, Pod

Mode = Literal["routed", "bridge"]
Kind = Literal["plain", "services"]
Place = Literal["lan", "node", "pod-a", "pod-b", "tun", "fdb"]

SUBNET = "5a1:2b3c:4d5e:6f70"
NODE = f"{SUBNET}:1111:2222:3333:4444"
GATEWAY = f"{SUBNET}::1"
POD_A, POD_B, FREE = (f"{SUBNET}:ff0f::{last}" for last in ("a", "b", "f"))
LAN_PART = f"{SUBNET}:aaaa"  # of the subnet, for hosts on the LAN
REMOTE, OTHER = "4aa:1:2::9", "4bb:7:8::9"  # nodes elsewhere on the overlay
LAN_NODE, LAN_HOST = "2001:db8::1", "2001:db8::2"
ULA_NODE, ULA_HOST = "fd00:1::1", "fd00:1::2"
V4_NODE, V4_HOST = "192.0.2.1", "192.0.2.2"
CLUSTER_IP, NODE_PORT, LAN_PORT, OVERLAY_PORT = "fd00:10:96::1", 30080, 30081, 30082
DAEMON_PORT, TUNNEL_PORT = 30083, 30084
VXLAN = {"vxlan": 4789, "old-vxlan": 8472, "vxlan-gpe": 4790}
UDP_TUNNELS = VXLAN | {"geneve": 6081, "gue": 6080, "mpls-in-udp": 6635, "gtp": 2152}
ALL_NODES, ALL_ROUTERS, SNOOPERS = "ff02::1", "ff02::2", "ff02::6a"

# What kube-proxy or portmap does: our rules must neither break it nor be bypassed by it.
DNAT = f"""
table ip6 services {{
    chain prerouting {{
        type nat hook prerouting priority -100;
        ip6 daddr {CLUSTER_IP} udp dport {raw.PORT} dnat to {POD_B}
        ip6 daddr {{ {NODE}, {LAN_NODE} }} udp dport {NODE_PORT} dnat to [{POD_B}]:{raw.PORT}
        ip6 daddr {NODE} udp dport {LAN_PORT} dnat to [{LAN_HOST}]:{raw.PORT}
        ip6 daddr {NODE} udp dport {OVERLAY_PORT} dnat to [{OTHER}]:{raw.PORT}
        ip6 daddr {{ {NODE}, {CLUSTER_IP} }} udp dport {DAEMON_PORT} dnat to [{NODE}]:9651
        ip6 daddr {{ {NODE}, {CLUSTER_IP} }} udp dport {TUNNEL_PORT} dnat to [{NODE}]:4789
    }}
}}
"""


class Stage:
    """A node with a TUN, a LAN behind it, and two pods; `a` is the hostile one."""

    def __init__(self, lab: Lab, mode: Mode, kind: Kind, *, guarded: bool) -> None:
        self.mode = mode
        self.node, self.lan = lab.node("a"), lab.node("lan")
        lan_macs = {n.name: n.link(UNDERLAY)["address"] for n in (self.node, self.lan)}  # type: ignore[index]
        for own, there in ((self.node, self.lan), (self.lan, self.node)):
            last, other = (1, 2) if own is self.node else (2, 1)
            lladdr = f"lladdr {lan_macs[there.name]} dev {UNDERLAY}"
            own.configure(
                f"address add fd00:1::{last}/64 dev {UNDERLAY} nodad",
                f"address add 192.0.2.{last}/24 dev {UNDERLAY}",
                *(f"neigh replace {a}::{other} {lladdr}" for a in ("2001:db8", "fd00:1")),
                f"neigh replace 192.0.2.{other} {lladdr}",
            )
        self.node.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0"])
        self.node.run(["sysctl", "-qw", "net.ipv4.conf.default.rp_filter=0"])
        if kind == "services":
            self.node.run(["nft", "-f", "-"], input=DNAT)
        self.tun = Tun(self.node, NODE)
        self.node.configure("address add 192.0.2.77/32 dev mycelium")
        self.lan.configure(f"route add {SUBNET}::/64 via {LAN_NODE}")
        self.node.configure(
            f"route add {LAN_PART}::/80 dev {UNDERLAY}", "route add default via " + LAN_HOST
        )
        self.pods = {name: self._attach(name, last) for name, last in (("a", POD_A), ("b", POD_B))}
        self.a, self.b = (Wire(self.pods[name], "eth0") for name in ("a", "b"))
        for address in (POD_A, POD_B):
            assert self.node.ping(address) is not None
        if mode == "routed":
            shown = self.node.ip("link", "show", POD_A)[0]
        else:
            shown = self.node.link("mycelium-br")
        self.gateway_mac = raw.mac(shown["address"])
        # A bridge that hands packets to ip6tables stops some attacks by accident.
        called = int(kind == "services" and guarded)
        self.node.run(["sysctl", "-qw", f"net.bridge.bridge-nf-call-ip6tables={called}"])
        if not guarded:
            if mode == "bridge":
                for wire, address in ((self.a, POD_A), (self.b, POD_B)):
                    port = self.node.ip("link", "show", address)[0]["ifname"]
                    entry = [wire.mac.hex(":"), "dev", port, "master"]
                    self.node.run(["bridge", "link", "set", "dev", port, "learning", "on"])
                    self.node.run(["bridge", "fdb", "del", *entry])
            for family in ("inet", "bridge")[: 1 if mode == "routed" else 2]:
                self.node.run(["nft", "delete", "table", family, "mycelium-cni"])
        self.lan_wire = Wire(self.lan, UNDERLAY)
        self.node_lan_mac = raw.mac(lan_macs["a"])
        self.capture = Capture()
        self.capture.watch_wire("pod-a", self.a)
        self.capture.watch_wire("pod-b", self.b)
        self.capture.watch_wire("lan", self.lan_wire)
        self.capture.watch_sockets("node", self.node)
        self.capture.watch_tun("tun", self.tun)

    def _attach(self, name: str, address: str) -> Pod:
        pod = self.node.pod(name)
        conf = {
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "mycelium-cni",
            "mode": self.mode,
            "netseed": "/nonexistent",
            "defaultRoute": True,
        }
        self.node.plugin("ADD", conf, pod, args=f"IP={address}").succeeded()
        return pod

    # Ways to send

    def overlay(self, *packets: bytes) -> None:
        """As the daemon would, having decrypted it."""
        self.tun.write(packets)

    def pod(self, *packets: bytes, kind: int = raw.ETH_P_IPV6) -> None:
        """From the hostile pod to its gateway."""
        self.a.send(packets, self.gateway_mac, kind=kind)

    def neighbour(
        self, *packets: bytes, to: bytes = b"", source: bytes = b"", kind: int = raw.ETH_P_IPV6
    ) -> None:
        """From the hostile pod to the other one, over the bridge."""
        self.a.send(packets, to or self.b.mac, source=source or None, kind=kind)

    def everyone(self, *packets: bytes, address: str = ALL_NODES) -> None:
        """From the hostile pod to a multicast group."""
        self.a.send(packets, raw.multicast_mac(address))

    def in_turn(self, *steps: Callable[[], None]) -> None:
        for step in steps:
            step()

    # What was received

    def run(self, cases: dict[str, Case]) -> None:
        """Send everything; afterwards `arrived` tells where it was received."""
        for name, case in cases.items():
            # What b has sent before may come to the bridge later than this, and move its MAC back.
            for _ in range(5 if case.place == "fdb" else 1):
                case.send(self, token(name))
                if case.place == "fdb" and self._fdb_says_a_is_b(within_s=0.02):
                    self.capture.seen.setdefault("fdb", []).append(token(name))
                    break
            if self.mode == "bridge":
                # A frame with b's MAC may have moved it; b says where it really is.
                self.b.send([raw.udp(POD_B, NODE, b"here I am", dport=9)], self.gateway_mac)
            self.capture.look(0.004)
        self.capture.look(0.3)

    def arrived(self, name: str) -> set[str]:
        """Where the packets of a case were seen."""
        return self.capture.places(token(name))

    def _fdb_says_a_is_b(self, within_s: float) -> bool:
        self.capture.look(within_s)
        shown = json.loads(self.node.run(["bridge", "-j", "fdb", "show"]).stdout)
        port = self.node.ip("link", "show", POD_A)[0]["ifname"]
        return any(e["mac"] == self.b.mac.hex(":") and e["ifname"] == port for e in shown)

    def close(self) -> None:
        self.capture.close()
        self.tun.close()


def token(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


Sender = Callable[[Stage, bytes], None]


@dataclass(frozen=True)
class Case:
    """A packet, and where it arrives if nothing stops it."""

    place: Place
    send: Sender
    modes: tuple[Mode, ...] = ("routed", "bridge")
    kernel: bool = False  # the kernel stops it by itself, today
    services: bool = False  # takes address translation

    def on(self, kind: Kind, *, guarded: bool) -> bool:
        """Whether it is tried there. Without our rules, only where little else can stop it."""
        return kind == ("services" if self.services else "plain") or (
            guarded and kind == "services"
        )


ATTACKS: dict[str, Case] = {}
FLOWS: dict[str, Case] = {}
BRIDGE: tuple[Mode, ...] = ("bridge",)
ROUTED: tuple[Mode, ...] = ("routed",)


def overlay_udp(src: str, dst: str, dport: int = raw.PORT) -> Sender:
    return lambda s, t: s.overlay(raw.udp(src, dst, t, dport=dport))


def pod_udp(src: str, dst: str, dport: int = raw.PORT) -> Sender:
    return lambda s, t: s.pod(raw.udp(src, dst, t, dport=dport))


# From the overlay: destinations that are not the node's pods.

ATTACKS |= {
    "overlay-to-lan": Case("lan", overlay_udp(REMOTE, LAN_HOST)),
    "overlay-to-ula": Case("lan", overlay_udp(REMOTE, ULA_HOST)),
    "overlay-to-cluster-ip": Case("pod-b", overlay_udp(REMOTE, CLUSTER_IP), services=True),
    "overlay-to-node-port-on-lan-address": Case(
        "pod-b", overlay_udp(REMOTE, LAN_NODE, NODE_PORT), services=True
    ),
    "overlay-to-node-lan-address": Case("node", overlay_udp(REMOTE, LAN_NODE)),
    "overlay-to-node-ula": Case("node", overlay_udp(REMOTE, ULA_NODE)),
    "overlay-to-all-nodes": Case("node", overlay_udp(REMOTE, ALL_NODES)),
    "overlay-to-all-routers": Case("node", overlay_udp(REMOTE, ALL_ROUTERS)),
    "overlay-to-loopback": Case("node", overlay_udp(REMOTE, "::1"), kernel=True),
    "overlay-to-link-local": Case(
        "node",
        lambda s, t: s.overlay(
            raw.udp(
                REMOTE,
                next(
                    a["local"]
                    for a in s.node.link("mycelium")["addr_info"]  # type: ignore[index]
                    if a["scope"] == "link"
                ),
                t,
            )
        ),
    ),
    "overlay-relayed-to-overlay": Case("tun", overlay_udp(REMOTE, OTHER)),
    "overlay-to-v4-mapped": Case("node", overlay_udp(REMOTE, f"::ffff:{V4_NODE}"), kernel=True),
    "overlay-ipv4-to-node": Case(
        "node", lambda s, t: s.overlay(raw.ipv4_udp("192.0.2.99", V4_NODE, t))
    ),
    "overlay-ipv4-to-lan": Case(
        "lan", lambda s, t: s.overlay(raw.ipv4_udp("10.9.9.9", V4_HOST, t))
    ),
    "overlay-echo-to-lan": Case(
        "lan", lambda s, t: s.overlay(raw.icmpv6(REMOTE, LAN_HOST, 128, t))
    ),
    "overlay-tcp-to-lan": Case("lan", lambda s, t: s.overlay(raw.tcp(REMOTE, LAN_HOST, t))),
    "overlay-tcp-ack-to-lan": Case(
        "lan", lambda s, t: s.overlay(raw.tcp(REMOTE, LAN_HOST, t, flags=0x10))
    ),
    "overlay-unknown-protocol-to-lan": Case(
        "lan", lambda s, t: s.overlay(raw.ipv6(REMOTE, LAN_HOST, 253, t))
    ),
    "overlay-sctp-to-lan": Case("lan", lambda s, t: s.overlay(raw.ipv6(REMOTE, LAN_HOST, 132, t))),
    "overlay-tunnelled-to-lan": Case(
        "lan",
        lambda s, t: s.overlay(raw.ipv6(REMOTE, LAN_HOST, 41, raw.udp(LAN_NODE, LAN_HOST, t))),
    ),
}

# From the overlay: sources that cannot be.

_FALSE_SOURCES = {
    "other-pod": (POD_A, False, False),
    "node": (NODE, False, True),
    "gateway": (GATEWAY, False, False),
    "subnet-anycast": (f"{SUBNET}::", False, False),
    "free-address": (FREE, False, False),
    "lan": (LAN_HOST, False, False),
    "ula": (ULA_HOST, False, False),
    "cluster-ip": (CLUSTER_IP, False, False),
    "documentation": ("2001:db8:ffff::1", False, False),
    "below-the-overlay": ("3ff:ffff::1", False, False),
    "above-the-overlay": ("600::1", False, False),
    "site-local": ("fec0::1", False, False),
    "nat64": ("64:ff9b::a00:1", False, False),
    "link-local": ("fe80::5", True, False),
    "unspecified": ("::", True, False),
    "loopback": ("::1", True, True),
    "multicast": ("ff02::1", True, True),
    "v4-mapped": ("::ffff:10.0.0.1", True, True),
}
for _name, (_source, _kernel_pod, _kernel_node) in _FALSE_SOURCES.items():
    ATTACKS[f"overlay-source-{_name}-to-pod"] = Case(
        "pod-b", overlay_udp(_source, POD_B), kernel=_kernel_pod
    )
    ATTACKS[f"overlay-source-{_name}-to-node"] = Case(
        "node", overlay_udp(_source, NODE), kernel=_kernel_node
    )

# From the overlay: in pieces, behind extension headers, through others.


def overlay_fragments(src: str, dst: str, cut: int, dport: int = raw.PORT) -> Sender:
    def send(s: Stage, t: bytes) -> None:
        segment = raw.udp_segment(src, dst, bytes(16) + t + bytes(32), dport=dport)
        s.overlay(*raw.fragments(src, dst, raw.UDP, segment, cut))

    return send


def overlay_behind(src: str, dst: str, *headers: int) -> Sender:
    """UDP behind options headers (HOP, DSTOPTS) in that order."""

    def send(s: Stage, t: bytes) -> None:
        payload, following = raw.udp_segment(src, dst, t), raw.UDP
        for header in reversed(headers):
            payload, following = raw.option(following) + payload, header
        s.overlay(raw.ipv6(src, dst, following, payload))

    return send


def overlay_routed(dst: str, kind: int, left: int, hop: str) -> Sender:
    def send(s: Stage, t: bytes) -> None:
        payload = raw.routing(raw.UDP, kind, left, hop) + raw.udp_segment(REMOTE, dst, t)
        s.overlay(raw.ipv6(REMOTE, dst, raw.ROUTING, payload))

    return send


ATTACKS |= {
    "overlay-fragments-to-lan": Case("lan", overlay_fragments(REMOTE, LAN_HOST, 16)),
    "overlay-tiny-fragments-to-lan": Case("lan", overlay_fragments(REMOTE, LAN_HOST, 8)),
    "overlay-atomic-fragment-to-lan": Case("lan", overlay_fragments(REMOTE, LAN_HOST, 0)),
    "overlay-fragments-from-other-pod": Case("pod-b", overlay_fragments(POD_A, POD_B, 16)),
    "overlay-fragments-from-lan": Case("pod-b", overlay_fragments(LAN_HOST, POD_B, 16)),
    "overlay-hop-by-hop-to-lan": Case("lan", overlay_behind(REMOTE, LAN_HOST, raw.HOP)),
    "overlay-options-to-lan": Case("lan", overlay_behind(REMOTE, LAN_HOST, raw.DSTOPTS)),
    "overlay-many-headers-to-lan": Case(
        "lan", overlay_behind(REMOTE, LAN_HOST, raw.HOP, raw.DSTOPTS, raw.DSTOPTS)
    ),
    "overlay-options-from-other-pod": Case("pod-b", overlay_behind(POD_A, POD_B, raw.DSTOPTS)),
    "overlay-many-headers-from-node": Case(
        "pod-b", overlay_behind(NODE, POD_B, raw.HOP, raw.DSTOPTS)
    ),
    "overlay-source-routed-type-0": Case("pod-b", overlay_routed(POD_B, 0, 1, LAN_HOST)),
    "overlay-source-routed-type-2": Case("pod-b", overlay_routed(POD_B, 2, 1, LAN_HOST)),
    "overlay-segment-routed": Case("pod-b", overlay_routed(POD_B, 4, 1, LAN_HOST)),
    "overlay-source-routed-over": Case("pod-b", overlay_routed(POD_B, 0, 0, LAN_HOST)),
    "overlay-source-routed-via-node": Case(
        "lan", overlay_routed(NODE, 0, 1, LAN_HOST), kernel=True
    ),
}

# From the overlay: forged ICMPv6.


def begun(src: str, dst: str, following: int, t: bytes) -> bytes:
    """The first fragment of a packet whose upper header is in the second: an options header with
    the token, whose next header is missing from the fragment."""
    head = struct.pack("!BxHI", raw.DSTOPTS, 1, zlib.crc32(t))
    return raw.ipv6(src, dst, FRAGMENT, head + raw.marked_option(following, t), hops=255)


def split(src: str, dst: str, message: bytes, following: int, t: bytes) -> list[bytes]:
    """An ICMPv6 message whose first fragment has no byte of it. `following` is what that fragment
    announces: more options (then nobody knows the protocol), or ICMPv6 (then nobody its type)."""
    rest = raw.option(ICMPV6) + message if following == raw.DSTOPTS else message
    first = begun(src, dst, following, t)
    head = struct.pack("!BxHI", raw.DSTOPTS, len(first) - 48, zlib.crc32(t))
    return [first, raw.ipv6(src, dst, FRAGMENT, head + rest, hops=255)]


def hidden_error(way: Callable[..., None], src: str, dst: str, following: int) -> Sender:
    """The node reassembles the message; on the way to a pod the first fragment must be stopped."""

    def send(s: Stage, t: bytes) -> None:
        said, first = (t, bytes(16)) if dst == NODE else (b"", t)
        way(s, *split(src, dst, lying_error(src, dst, LAN_NODE, said), following, first))

    return send


HIDDEN = {"in-second-fragment": raw.DSTOPTS, "with-type-in-second-fragment": ICMPV6}


def lying_error(src: str, dst: str, node: str, t: bytes) -> bytes:
    """Packet-too-big about a packet to the LAN."""
    return raw.icmpv6_message(src, dst, 2, 0, struct.pack("!I", 1280) + raw.udp(node, LAN_HOST, t))


def overlay_error(src: str, dst: str, kind: int, quoted_from: str, quoted_to: str) -> Sender:
    def send(s: Stage, t: bytes) -> None:
        word = 1280 if kind == 2 else 0
        s.overlay(raw.error(src, dst, kind, raw.udp(quoted_from, quoted_to, t), word=word))

    return send


def tiny_error(s: Stage, t: bytes) -> None:
    """An error in fragments of which the first ends before the quoted packet's source."""
    message = raw.icmpv6_message(POD_A, POD_B, 1, 0, bytes(4) + raw.udp(LAN_HOST, REMOTE, t))
    s.overlay(*raw.fragments(POD_A, POD_B, ICMPV6, message, 8))


ATTACKS |= {
    "overlay-unreachable-about-others": Case(
        "pod-b", overlay_error(REMOTE, POD_B, 1, LAN_HOST, REMOTE)
    ),
    "overlay-too-big-about-others": Case("pod-b", overlay_error(REMOTE, POD_B, 2, OTHER, REMOTE)),
    "overlay-time-exceeded-about-others": Case(
        "pod-b", overlay_error(REMOTE, POD_B, 3, ULA_HOST, REMOTE)
    ),
    "overlay-parameter-problem-about-others": Case(
        "pod-b", overlay_error(REMOTE, POD_B, 4, "fe80::1", REMOTE)
    ),
    "overlay-unreachable-as-pod-about-others": Case(
        "pod-b", overlay_error(POD_B, POD_B, 1, LAN_HOST, REMOTE)
    ),
    "overlay-too-big-as-node-about-others": Case(
        "pod-b", overlay_error(NODE, POD_B, 2, REMOTE, POD_B)
    ),
    "overlay-too-big-from-lan": Case("pod-b", overlay_error(LAN_HOST, POD_B, 2, POD_B, LAN_HOST)),
    "overlay-too-big-to-lan": Case("lan", overlay_error(REMOTE, LAN_HOST, 2, LAN_HOST, REMOTE)),
    "overlay-unreachable-to-node-lan-address": Case(
        "node", overlay_error(REMOTE, LAN_NODE, 1, LAN_NODE, REMOTE)
    ),
    "overlay-error-in-tiny-fragments-as-pod": Case("pod-b", tiny_error),
    "overlay-echo-as-node": Case("pod-b", lambda s, t: s.overlay(raw.icmpv6(NODE, POD_B, 128, t))),
    "overlay-echo-reply-as-pod": Case(
        "pod-b", lambda s, t: s.overlay(raw.icmpv6(POD_A, POD_B, 129, t))
    ),
    "overlay-private-error-as-pod": Case(
        "pod-b", lambda s, t: s.overlay(raw.icmpv6(POD_A, POD_B, 100, t))
    ),
    "overlay-reply-of-lan-host": Case(
        "pod-a",
        lambda s, t: s.in_turn(
            lambda: s.pod(raw.udp(POD_A, LAN_HOST, b"a question", sport=777, dport=778)),
            lambda: s.overlay(raw.udp(LAN_HOST, POD_A, t, sport=778, dport=777)),
        ),
    ),
}

# From the overlay: to the node, and from there to where others have their networks.


def overlay_tunnelled(protocol: int, dst: str) -> Sender:
    return lambda s, t: s.overlay(raw.ipv6(REMOTE, dst, protocol, raw.udp(LAN_NODE, LAN_HOST, t)))


def behind_a_redirect(src: str, dst: str, dport: int) -> Sender:
    """The node sends a redirect, which quotes all that fits into 1,280 bytes: the token comes after
    that."""
    return lambda s, t: s.overlay(raw.udp(src, dst, bytes(1280) + t, dport=dport))


ATTACKS |= {
    "overlay-to-node-port-of-lan-host": Case(
        "lan", overlay_udp(REMOTE, NODE, LAN_PORT), services=True
    ),
    "overlay-to-node-port-of-other-node": Case(
        "tun", behind_a_redirect(REMOTE, NODE, OVERLAY_PORT), services=True
    ),
    "overlay-to-node-port-of-vxlan": Case(
        "node", overlay_udp(REMOTE, NODE, TUNNEL_PORT), services=True
    ),
    "overlay-fragments-to-node-port-of-lan-host": Case(
        "lan", overlay_fragments(REMOTE, NODE, 16, LAN_PORT), services=True
    ),
    **{
        f"overlay-{name}-to-node": Case("node", overlay_tunnelled(protocol, NODE))
        for name, protocol in raw.TUNNELS.items()
    },
    **{
        f"overlay-{name}-to-node": Case("node", overlay_udp(REMOTE, NODE, port))
        for name, port in UDP_TUNNELS.items()
    },
    "overlay-vxlan-to-gateway": Case("node", overlay_udp(REMOTE, GATEWAY, 4789), BRIDGE),
    "overlay-vxlan-in-fragments": Case("node", overlay_fragments(REMOTE, NODE, 16, 4789)),
    "overlay-gre-behind-options": Case(
        "node",
        lambda s, t: s.overlay(
            raw.ipv6(REMOTE, NODE, raw.DSTOPTS, raw.option(raw.TUNNELS["gre"]) + t)
        ),
    ),
    "overlay-vxlan-with-port-in-second-fragment": Case(
        "node",
        lambda s, t: s.overlay(
            *split(
                REMOTE,
                NODE,
                raw.udp_segment(REMOTE, NODE, t, dport=4789),
                raw.UDP,
                bytes(15) + b"\1",
            )
        ),
        kernel=True,
    ),
}

ATTACKS |= {
    # No host on the overlay may report errors about flows that do not leave by it.
    "overlay-too-big-about-node-and-lan": Case(
        "node", overlay_error(REMOTE, NODE, 2, NODE, LAN_HOST)
    ),
    "overlay-unreachable-about-pod-and-lan": Case(
        "pod-b", overlay_error(REMOTE, POD_B, 1, POD_B, LAN_HOST)
    ),
    "overlay-too-big-about-node-and-pod": Case("node", overlay_error(REMOTE, NODE, 2, NODE, POD_A)),
    "overlay-unreachable-about-two-pods": Case(
        "pod-b", overlay_error(POD_A, POD_B, 1, POD_B, POD_A)
    ),
    **{
        f"overlay-error-of-type-{kind}-about-others": Case(
            "pod-b", overlay_error(REMOTE, POD_B, kind, LAN_HOST, REMOTE)
        )
        for kind in (0, 5, 100, 127)
    },
    **{
        f"overlay-error-{how}": Case(
            "pod-b",
            hidden_error(Stage.overlay, REMOTE, POD_B, following),
        )
        for how, following in HIDDEN.items()
    },
    **{
        f"overlay-error-to-node-{how}": Case(
            "node",
            hidden_error(Stage.overlay, REMOTE, NODE, following),
            kernel=following != raw.DSTOPTS,
        )
        for how, following in HIDDEN.items()
    },
}


def neighbour_option(kind: int, mac: bytes, t: bytes) -> bytes:
    """An option with a link-layer address, and the token in one that is unknown."""
    return struct_option(kind, mac) + struct_option(200, t + bytes(6))


def struct_option(kind: int, data: bytes) -> bytes:
    return bytes((kind, (len(data) + 2) // 8)) + data


def solicitation(target: str, t: bytes, mac: bytes = b"") -> bytes:
    """With the sender's MAC; without it where the sender asks for its own address (DAD)."""
    named = struct_option(1, mac) if mac else b""
    return bytes(4) + raw.packed(target) + named + struct_option(200, t + bytes(6))


def advertisement(target: str, t: bytes, link: bytes = b"\x02\0\0\0\0\x99") -> bytes:
    """With the override flag: the receiver must take the new MAC."""
    options = struct_option(2, link) + struct_option(200, t + bytes(6))
    return b"\x20\0\0\0" + raw.packed(target) + options


def router_advertisement(t: bytes) -> bytes:
    prefix = bytes((64, 0xC0)) + b"\0\0\xff\xff" * 2 + bytes(4) + raw.packed("2001:db8:bad::")
    body = b"\x40\0\x0e\x10" + bytes(8) + struct_option(3, prefix)
    return body + struct_option(200, t + bytes(6))


def redirect(target: str, destination: str, t: bytes) -> bytes:
    addresses = raw.packed(target) + raw.packed(destination)
    return bytes(4) + addresses + struct_option(200, t + bytes(6))


def nd(src: str, dst: str, kind: int, body: bytes) -> bytes:
    return raw.icmpv6(src, dst, kind, body, hops=255)


def nd_behind_options(src: str, dst: str, kind: int, body: bytes) -> bytes:
    payload = raw.option(ICMPV6) + raw.icmpv6_message(src, dst, kind, 0, body)
    return raw.ipv6(src, dst, raw.DSTOPTS, payload, hops=255)


ATTACKS |= {
    "overlay-neighbour-solicitation": Case(
        "node", lambda s, t: s.overlay(nd(REMOTE, NODE, 135, solicitation(NODE, t)))
    ),
    "overlay-neighbour-advertisement": Case(
        "node", lambda s, t: s.overlay(nd(REMOTE, NODE, 136, advertisement(POD_A, t)))
    ),
    "overlay-router-solicitation": Case(
        "node",
        lambda s, t: s.overlay(nd(REMOTE, NODE, 133, bytes(4) + struct_option(200, t + bytes(6)))),
    ),
    "overlay-router-advertisement": Case(
        "node", lambda s, t: s.overlay(nd("fe80::5", ALL_NODES, 134, router_advertisement(t)))
    ),
    "overlay-router-advertisement-to-node": Case(
        "node", lambda s, t: s.overlay(nd(REMOTE, NODE, 134, router_advertisement(t)))
    ),
    "overlay-redirect": Case(
        "node", lambda s, t: s.overlay(nd("fe80::5", NODE, 137, redirect("fe80::5", OTHER, t)))
    ),
    "overlay-listener-query": Case(
        "node", lambda s, t: s.overlay(raw.icmpv6("fe80::5", ALL_NODES, 130, bytes(20) + t, hops=1))
    ),
}

# From a pod: sources that are not its own.

_NOT_THE_PODS = {
    "other-pod": (POD_B, False),
    "node": (NODE, True),
    "gateway": (GATEWAY, False),
    "free-address": (FREE, False),
    "other-node": (OTHER, False),
    "lan": (LAN_HOST, False),
    "ula": (ULA_HOST, False),
    "cluster-ip": (CLUSTER_IP, False),
    "link-local": ("fe80::99", False),
    "gateway-link-local": ("fe80::1", False),
    "unspecified": ("::", False),
    "loopback": ("::1", True),
    "multicast": ("ff02::1", True),
}
for _name, (_source, _kernel) in _NOT_THE_PODS.items():
    ATTACKS[f"pod-as-{_name}-to-node"] = Case("node", pod_udp(_source, NODE), kernel=_kernel)
    if _name not in ("link-local", "gateway-link-local", "unspecified", "loopback", "multicast"):
        ATTACKS[f"pod-as-{_name}-to-overlay"] = Case("tun", pod_udp(_source, REMOTE))


def pod_fragments(src: str, dst: str, cut: int, dport: int = raw.PORT) -> Sender:
    def send(s: Stage, t: bytes) -> None:
        segment = raw.udp_segment(src, dst, bytes(16) + t + bytes(32), dport=dport)
        s.pod(*raw.fragments(src, dst, raw.UDP, segment, cut))

    return send


def pod_behind(src: str, dst: str, header: int) -> Sender:
    def send(s: Stage, t: bytes) -> None:
        s.pod(raw.ipv6(src, dst, header, raw.option(raw.UDP) + raw.udp_segment(src, dst, t)))

    return send


def ipv4_like_ipv6(s: Stage, t: bytes) -> None:
    """A later fragment of IPv4 that has UDP's number where IPv6 has that of the next header, and
    then, from its time to live on, the pod's address where IPv6 has the source."""
    address = raw.packed(POD_A)
    words = struct.unpack("!6H", address[:12])
    start, fragment = (0x4500, 20 + 4 + len(t)), 0x1100
    total = sum((*start, fragment, *words))
    number = 0xFFFF - (total % 0xFFFF)
    head = struct.pack("!4H", *start, number, fragment) + address[:12]
    s.node.run(["ip", "route", "replace", "255.15.0.0", "via", V4_HOST])
    s.pod(head + address[12:] + t, kind=raw.ETH_P_IP)


ATTACKS |= {
    "pod-as-other-pod-to-lan": Case("lan", pod_udp(POD_B, LAN_HOST)),
    "pod-as-node-to-pod": Case("pod-b", pod_udp(NODE, POD_B)),
    "pod-as-lan-to-pod": Case("pod-b", pod_udp(LAN_HOST, POD_B)),
    "pod-as-overlay-to-pod": Case("pod-b", pod_udp(REMOTE, POD_B)),
    "pod-as-other-pod-to-cluster-ip": Case("pod-b", pod_udp(FREE, CLUSTER_IP), services=True),
    "pod-as-other-pod-by-tcp": Case("tun", lambda s, t: s.pod(raw.tcp(POD_B, REMOTE, t))),
    "pod-as-other-pod-by-echo": Case("tun", lambda s, t: s.pod(raw.icmpv6(POD_B, REMOTE, 128, t))),
    "pod-as-other-pod-in-fragments": Case("tun", pod_fragments(POD_B, REMOTE, 16)),
    "pod-as-other-pod-in-tiny-fragments": Case("tun", pod_fragments(POD_B, REMOTE, 8)),
    "pod-as-other-pod-behind-options": Case("tun", pod_behind(POD_B, REMOTE, raw.DSTOPTS)),
    "pod-as-other-pod-behind-hop-by-hop": Case("tun", pod_behind(POD_B, REMOTE, raw.HOP)),
    "pod-error-as-other-pod": Case(
        "tun", lambda s, t: s.pod(raw.error(POD_B, REMOTE, 1, raw.udp(REMOTE, POD_B, t)))
    ),
    "pod-ipv4-to-node": Case(
        "node",
        lambda s, t: s.pod(raw.ipv4_udp("192.0.2.99", V4_NODE, t), kind=raw.ETH_P_IP),
    ),
    "pod-ipv4-to-lan": Case(
        "lan", lambda s, t: s.pod(raw.ipv4_udp("10.9.9.9", V4_HOST, t), kind=raw.ETH_P_IP)
    ),
    "pod-ipv4-like-ipv6": Case("lan", ipv4_like_ipv6),
    "pod-router-advertisement": Case(
        "node",
        lambda s, t: s.everyone(nd("fe80::99", ALL_NODES, 134, router_advertisement(t))),
    ),
    "pod-router-advertisement-with-own-address": Case(
        "node", lambda s, t: s.everyone(nd(POD_A, ALL_NODES, 134, router_advertisement(t)))
    ),
    "pod-router-advertisement-behind-options": Case(
        "node",
        lambda s, t: s.everyone(nd_behind_options(POD_A, ALL_NODES, 134, router_advertisement(t))),
    ),
    "pod-router-advertisement-in-fragments": Case(
        "node",
        lambda s, t: s.pod(
            *raw.fragments(
                POD_A,
                ALL_NODES,
                ICMPV6,
                raw.icmpv6_message(POD_A, ALL_NODES, 134, 0, router_advertisement(t)),
                16,
            )
        ),
    ),
    "pod-redirect": Case(
        "node", lambda s, t: s.pod(nd("fe80::99", NODE, 137, redirect("fe80::99", OTHER, t)))
    ),
    "pod-redirect-with-own-address": Case(
        "node", lambda s, t: s.pod(nd(POD_A, NODE, 137, redirect(POD_A, OTHER, t)))
    ),
    "pod-solicitation-as-other-pod": Case(
        "node",
        lambda s, t: s.pod(
            nd(POD_B, GATEWAY if s.mode == "bridge" else NODE, 135, solicitation(NODE, t))
        ),
    ),
    "pod-advertisement-as-other-pod": Case(
        "node", lambda s, t: s.pod(nd(POD_B, NODE, 136, advertisement(POD_B, t)))
    ),
}

# From a pod: errors about packets that it was never sent.


def pod_error(dst: str, kind: int, quoted_from: str, quoted_to: str) -> Sender:
    return lambda s, t: s.pod(
        raw.error(
            POD_A, dst, kind, raw.udp(quoted_from, quoted_to, t), word=1280 if kind == 2 else 0
        )
    )


ATTACKS |= {
    "pod-too-big-about-node-and-lan": Case("node", pod_error(NODE, 2, NODE, LAN_HOST)),
    "pod-unreachable-about-node-and-lan": Case("node", pod_error(LAN_NODE, 1, LAN_NODE, LAN_HOST)),
    "pod-time-exceeded-about-node-and-overlay": Case("node", pod_error(NODE, 3, NODE, REMOTE)),
    "pod-parameter-problem-about-other-pod": Case("pod-b", pod_error(POD_B, 4, POD_B, REMOTE)),
    "pod-unreachable-about-node-and-other-pod": Case("node", pod_error(NODE, 1, NODE, POD_B)),
    "pod-too-big-to-overlay-about-node": Case("tun", pod_error(REMOTE, 2, REMOTE, NODE)),
    **{
        f"pod-error-of-type-{kind}": Case("node", pod_error(NODE, kind, NODE, LAN_HOST))
        for kind in (0, 5, 100, 127)
    },
    **{
        f"pod-error-{how}": Case(
            "node",
            hidden_error(Stage.pod, POD_A, NODE, following),
            kernel=following != raw.DSTOPTS,
        )
        for how, following in HIDDEN.items()
    },
    **{
        f"pod-error-to-other-pod-{how}": Case(
            "pod-b",
            hidden_error(Stage.pod, POD_A, POD_B, following),
        )
        for how, following in HIDDEN.items()
    },
    "pod-redirect-in-second-fragment": Case(
        "tun",
        lambda s, t: s.pod(
            *split(
                POD_A,
                REMOTE,
                raw.icmpv6_message(POD_A, REMOTE, 137, 0, redirect(POD_A, OTHER, b"")),
                raw.DSTOPTS,
                t,
            )
        ),
    ),
    "pod-error-quoting-nothing": Case(
        "node", lambda s, t: s.pod(raw.icmpv6(POD_A, NODE, 1, bytes(4) + t))
    ),
}

# From the LAN: with an address that belongs elsewhere.


def lan_udp(src: str, dst: str) -> Sender:
    return lambda s, t: s.lan_wire.send([raw.udp(src, dst, t)], s.node_lan_mac)


ATTACKS |= {
    "lan-as-node": Case("pod-b", lan_udp(NODE, POD_B)),
    "lan-as-pod": Case("pod-b", lan_udp(POD_A, POD_B)),
    "lan-as-overlay": Case("pod-b", lan_udp(REMOTE, POD_B)),
    "lan-as-free-address": Case("pod-b", lan_udp(FREE, POD_B)),
    "lan-as-pod-to-node": Case("node", lan_udp(POD_A, NODE)),
    "lan-as-overlay-to-node": Case("node", lan_udp(REMOTE, LAN_NODE)),
    "lan-as-pod-to-overlay": Case("tun", lan_udp(POD_A, REMOTE)),
}
FLOWS |= {
    "lan-to-pod": Case("pod-b", lan_udp(LAN_HOST, POD_B)),
    "lan-to-node": Case("node", lan_udp(LAN_HOST, NODE)),
    "lan-host-of-the-subnet-to-pod": Case("pod-b", lan_udp(f"{LAN_PART}::5", POD_B)),
}

# From a pod: to the node's daemon, as a peer.


def bridge_link_local(s: Stage) -> str:
    shown = s.node.link("mycelium-br")
    assert shown
    return str(next(a["local"] for a in shown["addr_info"] if a["scope"] == "link"))


ATTACKS |= {
    "pod-to-daemon": Case("node", lambda s, t: s.pod(raw.tcp(POD_A, NODE, t, dport=9651))),
    "pod-to-daemon-by-quic": Case("node", pod_udp(POD_A, NODE, 9651)),
    "pod-to-daemon-on-lan-address": Case(
        "node", lambda s, t: s.pod(raw.tcp(POD_A, LAN_NODE, t, dport=9651))
    ),
    "pod-to-daemon-behind-options": Case(
        "node",
        lambda s, t: s.pod(
            raw.ipv6(
                *(POD_A, NODE, raw.DSTOPTS),
                raw.option(raw.UDP) + raw.udp_segment(POD_A, NODE, t, dport=9651),
            )
        ),
    ),
    "pod-to-daemon-as-a-service": Case(
        "node", pod_udp(POD_A, CLUSTER_IP, DAEMON_PORT), services=True
    ),
    "pod-to-daemon-at-a-node-port": Case("node", pod_udp(POD_A, NODE, DAEMON_PORT), services=True),
    "pod-to-daemon-in-fragments": Case("node", pod_fragments(POD_A, NODE, 16, 9651)),
    "pod-to-daemon-with-port-in-second-fragment": Case(
        "node",
        lambda s, t: s.pod(
            *split(
                POD_A, NODE, raw.udp_segment(POD_A, NODE, t, dport=9651), raw.UDP, bytes(15) + b"\2"
            )
        ),
        kernel=True,
    ),
    "pod-is-found-as-a-peer": Case(
        "node",
        lambda s, t: s.everyone(raw.udp(POD_A, ALL_NODES, t, dport=9650)),
        ROUTED,
    ),
    "pod-to-daemon-at-link-local": Case(
        "node",
        lambda s, t: s.pod(raw.tcp(POD_A, bridge_link_local(s), t, dport=9651)),
        BRIDGE,
    ),
}

# From a pod: into the node's tunnels, and so into other networks.


def pod_tunnelled(protocol: int, dst: str) -> Sender:
    return lambda s, t: s.pod(raw.ipv6(POD_A, dst, protocol, raw.udp(LAN_NODE, LAN_HOST, t)))


ATTACKS |= {
    **{
        f"pod-{name}-to-node": Case("node", pod_tunnelled(protocol, NODE))
        for name, protocol in raw.TUNNELS.items()
    },
    **{
        f"pod-{name}-to-node": Case("node", pod_udp(POD_A, NODE, port))
        for name, port in UDP_TUNNELS.items()
    },
    "pod-vxlan-to-lan-address-of-node": Case("node", pod_udp(POD_A, LAN_NODE, 4789)),
    "pod-vxlan-to-all-nodes": Case(
        "node", lambda s, t: s.everyone(raw.udp(POD_A, ALL_NODES, t, dport=4789)), ROUTED
    ),
    "pod-vxlan-as-a-service": Case("node", pod_udp(POD_A, CLUSTER_IP, TUNNEL_PORT), services=True),
    "pod-vxlan-in-fragments": Case("node", pod_fragments(POD_A, NODE, 16, 4789)),
    "pod-gre-behind-options": Case(
        "node",
        lambda s, t: s.pod(raw.ipv6(POD_A, NODE, raw.DSTOPTS, raw.option(raw.TUNNELS["gre"]) + t)),
    ),
}
FLOWS |= {
    "pod-vxlan-to-pod": Case("pod-b", pod_udp(POD_A, POD_B, 4789)),
    "pod-vxlan-to-overlay": Case("tun", pod_udp(POD_A, REMOTE, 4789)),
    "pod-gre-to-overlay": Case("tun", lambda s, t: s.pod(raw.ipv6(POD_A, REMOTE, 47, t))),
    "bridge-vxlan-to-neighbour": Case(
        "pod-b", lambda s, t: s.neighbour(raw.udp(POD_A, POD_B, t, dport=4789)), BRIDGE
    ),
}

# From a pod to its neighbours on the bridge, where the node does not see it.


def to_group(group: str, source: str, kind: int, body: Callable[[bytes], bytes]) -> Sender:
    return lambda s, t: s.everyone(nd(source, group, kind, body(t)), address=group)


def from_mac(which: Callable[[Stage], bytes], src: str = POD_A, dst: str = POD_B) -> Sender:
    return lambda s, t: s.neighbour(raw.udp(src, dst, t), source=which(s))


def first_fragment(src: str, dst: str, kind: int, body: bytes, *, cut: int, t: bytes) -> bytes:
    """The first fragment of a message: the one that must not arrive."""
    message = raw.icmpv6_message(src, dst, kind, 0, body)
    head = bytes((ICMPV6, 0, 0, 1)) + t[:4] + message[:cut]
    return raw.ipv6(src, dst, raw.DSTOPTS, raw.marked_option(FRAGMENT, t) + head, hops=255)


def half_a_target(s: Stage, t: bytes) -> None:
    """The first fragment of a solicitation that names the gateway's MAC. It ends within the target,
    and so is as long as a message without options. There is no room in it for the token, which
    follows it in the frame."""
    message = raw.icmpv6_message(POD_A, POD_B, 135, 0, solicitation(POD_B, b"", s.gateway_mac))
    s.neighbour(raw.fragments(POD_A, POD_B, ICMPV6, message, 16)[0] + t)


NONCE = bytes((14, 1)) + bytes(6)  # RFC 3971: an option that precedes the one that counts


def naming(kind: int, which: Callable[[Stage], bytes], before: bytes) -> Sender:
    """A solicitation or advertisement of pod a that names another MAC for its address."""

    def send(s: Stage, t: bytes) -> None:
        target, flags = (POD_B, bytes(4)) if kind == 135 else (POD_A, b"\x20\0\0\0")
        options = before + neighbour_option(kind - 134, which(s), t)
        s.neighbour(nd(POD_A, POD_B, kind, flags + raw.packed(target) + options))

    return send


BRIDGED: tuple[tuple[str, Place, Sender], ...] = (
    ("bridge-as-node", "pod-b", lambda s, t: s.neighbour(raw.udp(NODE, POD_B, t))),
    ("bridge-as-gateway", "pod-b", lambda s, t: s.neighbour(raw.udp(GATEWAY, POD_B, t))),
    ("bridge-as-overlay", "pod-b", lambda s, t: s.neighbour(raw.udp(REMOTE, POD_B, t))),
    ("bridge-as-itself", "pod-b", lambda s, t: s.neighbour(raw.udp(POD_B, POD_B, t))),
    ("bridge-as-link-local", "pod-b", lambda s, t: s.neighbour(raw.udp("fe80::1", POD_B, t))),
    ("bridge-mac-of-other-pod", "fdb", from_mac(lambda s: s.b.mac, dst=NODE)),
    ("bridge-mac-of-gateway", "pod-b", from_mac(lambda s: s.gateway_mac)),
    ("bridge-mac-of-nobody", "pod-b", from_mac(lambda s: b"\x02\0\0\0\0\x42")),
    (
        "bridge-mac-and-address-of-nobody",
        "pod-b",
        from_mac(lambda s: b"\x02\0\0\0\0\x43", src=FREE),
    ),
    (
        "bridge-mac-theft-by-listener-report",
        "fdb",
        lambda s, t: s.neighbour(
            raw.icmpv6("::", "ff02::16", 143, bytes(4) + t, hops=1),
            to=raw.multicast_mac("ff02::16"),
            source=s.b.mac,
        ),
    ),
    *(
        (
            f"bridge-mac-theft-by-reserved-multicast-{last:x}",
            "fdb",
            lambda s, t, last=last: s.neighbour(
                t * 4,
                to=b"\x01\x80\xc2\0\0" + bytes((last,)),
                source=s.b.mac,
                kind=raw.ETH_P_LLDP,
            ),
        )
        for last in (0x2, 0x3, 0xE)
    ),
    (
        "bridge-arp",
        "pod-b",
        lambda s, t: s.neighbour(t * 3, to=b"\xff" * 6, kind=raw.ETH_P_ARP),
    ),
    (
        "bridge-ipv4",
        "pod-b",
        lambda s, t: s.neighbour(raw.ipv4_udp("10.0.0.1", "10.0.0.2", t), kind=raw.ETH_P_IP),
    ),
    ("bridge-unknown-protocol", "pod-b", lambda s, t: s.neighbour(t * 3, kind=0x9999)),
    (
        "bridge-spoofed-in-a-vlan",
        "pod-b",
        lambda s, t: s.neighbour(b"\0\x05\x86\xdd" + raw.udp(NODE, POD_B, t), kind=0x8100),
    ),
    (
        "bridge-in-a-vlan",
        "pod-b",
        lambda s, t: s.neighbour(b"\0\x05\x86\xdd" + raw.udp(POD_A, POD_B, t), kind=0x8100),
    ),
    (
        "bridge-in-a-service-vlan",
        "pod-b",
        lambda s, t: s.neighbour(b"\0\x05\x86\xdd" + raw.udp(POD_A, POD_B, t), kind=0x88A8),
    ),
    (
        "bridge-rogue-router",
        "pod-b",
        to_group(ALL_NODES, "fe80::99", 134, router_advertisement),
    ),
    (
        "bridge-rogue-router-with-own-address",
        "pod-b",
        to_group(ALL_NODES, POD_A, 134, router_advertisement),
    ),
    (
        "bridge-rogue-router-in-fragments",
        "pod-b",
        lambda s, t: s.everyone(
            first_fragment(POD_A, ALL_NODES, 134, router_advertisement(t), cut=16, t=t)
        ),
    ),
    (
        "bridge-redirect",
        "pod-b",
        lambda s, t: s.neighbour(nd(POD_A, POD_B, 137, redirect(POD_A, OTHER, t))),
    ),
    (
        "bridge-redirect-as-gateway",
        "pod-b",
        lambda s, t: s.neighbour(nd(GATEWAY, POD_B, 137, redirect(POD_A, OTHER, t))),
    ),
    *(
        (
            f"bridge-advertises-{name}",
            "pod-b",
            lambda s, t, target=target: s.neighbour(
                nd(POD_A, POD_B, 136, advertisement(target, t, s.a.mac))
            ),
        )
        for name, target in (
            ("gateway", GATEWAY),
            ("node", NODE),
            ("receiver", POD_B),
            ("free-address", FREE),
            ("overlay", REMOTE),
        )
    ),
    (
        "bridge-advertises-gateway-to-all",
        "pod-b",
        to_group(ALL_NODES, POD_A, 136, lambda t: advertisement(GATEWAY, t)),
    ),
    (
        "bridge-advertises-gateway-behind-options",
        "pod-b",
        lambda s, t: s.neighbour(nd_behind_options(POD_A, POD_B, 136, advertisement(GATEWAY, t))),
    ),
    (
        "bridge-advertises-gateway-in-tiny-fragments",
        "pod-b",
        lambda s, t: s.neighbour(
            first_fragment(POD_A, POD_B, 136, advertisement(GATEWAY, t), cut=8, t=t)
        ),
    ),
    ("bridge-solicits-in-half-a-target", "pod-b", half_a_target),
    (
        "bridge-denies-address-by-advertisement",
        "pod-b",
        to_group(ALL_NODES, POD_B, 136, lambda t: advertisement(POD_B, t)),
    ),
    (
        "bridge-denies-address-by-solicitation",
        "pod-b",
        to_group("ff02::1:ff00:b", "::", 135, lambda t: solicitation(POD_B, t)),
    ),
    (
        "bridge-solicits-as-other",
        "pod-b",
        lambda s, t: s.neighbour(nd(GATEWAY, POD_B, 135, solicitation(POD_B, t))),
    ),
    *(
        (f"bridge-solicits-with-{name}", "pod-b", naming(135, which, extra))
        for name, which, extra in (
            ("mac-of-gateway", lambda s: s.gateway_mac, b""),
            ("mac-of-receiver", lambda s: s.b.mac, b""),
            ("mac-of-all", lambda s: b"\xff" * 6, b""),
            ("mac-of-gateway-behind-an-option", lambda s: s.gateway_mac, NONCE),
        )
    ),
    *(
        (f"bridge-advertises-itself-with-{name}", "pod-b", naming(136, which, extra))
        for name, which, extra in (
            ("mac-of-gateway", lambda s: s.gateway_mac, b""),
            ("mac-of-receiver", lambda s: s.b.mac, b""),
            ("mac-of-gateway-behind-an-option", lambda s: s.gateway_mac, NONCE),
        )
    ),
    (
        "bridge-solicits-behind-options",
        "pod-b",
        lambda s, t: s.neighbour(
            nd_behind_options(POD_A, POD_B, 135, solicitation(POD_B, t, s.gateway_mac))
        ),
    ),
    (
        "bridge-too-big-about-neighbour-and-overlay",
        "pod-b",
        lambda s, t: s.neighbour(raw.error(POD_A, POD_B, 2, raw.udp(POD_B, REMOTE, t), word=1280)),
    ),
    (
        "bridge-unreachable-about-neighbour-and-node",
        "pod-b",
        lambda s, t: s.neighbour(raw.error(POD_A, POD_B, 1, raw.udp(POD_B, NODE, t))),
    ),
    (
        "bridge-private-error-about-neighbour",
        "pod-b",
        lambda s, t: s.neighbour(raw.error(POD_A, POD_B, 100, raw.udp(POD_B, NODE, t))),
    ),
    *(
        (
            f"bridge-error-{how}",
            "pod-b",
            lambda s, t, following=following: s.neighbour(
                *split(POD_A, POD_B, lying_error(POD_A, POD_B, NODE, b""), following, t)
            ),
        )
        for how, following in HIDDEN.items()
    ),
    (
        "bridge-advertises-gateway-in-second-fragment",
        "pod-b",
        lambda s, t: s.neighbour(
            *split(
                POD_A,
                POD_B,
                raw.icmpv6_message(POD_A, POD_B, 136, 0, advertisement(GATEWAY, b"")),
                raw.DSTOPTS,
                t,
            )
        ),
    ),
    (
        "bridge-listener-query",
        "pod-b",
        lambda s, t: s.everyone(raw.icmpv6("fe80::99", ALL_NODES, 130, bytes(20) + t, hops=1)),
    ),
    (
        "bridge-multicast-router",
        "pod-b",
        lambda s, t: s.everyone(raw.icmpv6(POD_A, SNOOPERS, 151, t, hops=1), address=SNOOPERS),
    ),
    *(
        (
            f"bridge-router-solicitation-with-{name}",
            "pod-b",
            lambda s, t, which=which: s.neighbour(
                nd(POD_A, POD_B, 133, bytes(4) + neighbour_option(1, which(s), t))
            ),
        )
        for name, which in (
            ("mac-of-gateway", lambda s: s.gateway_mac),
            ("mac-of-all", lambda s: b"\xff" * 6),
        )
    ),
)
ATTACKS |= {name: Case(place, send, BRIDGE) for name, place, send in BRIDGED}

# What must pass.


def daemon_error(src: str, dst: str, code: int, kind: int = 1) -> Sender:
    """The daemon's own error about a packet of `dst`, from whichever address it uses."""
    return lambda s, t: s.overlay(raw.error(src, dst, kind, raw.udp(dst, OTHER, t), code=code))


FLOWS |= {
    "overlay-to-pod": Case("pod-b", overlay_udp(REMOTE, POD_B)),
    "overlay-to-node": Case("node", overlay_udp(REMOTE, NODE)),
    "overlay-lowest-source": Case("pod-b", overlay_udp("400::1", POD_B)),
    "overlay-highest-source": Case("pod-b", overlay_udp("5ff:ffff::1", POD_B)),
    "overlay-neighbouring-subnet": Case("pod-b", overlay_udp("5a1:2b3c:4d5e:6f71::1", POD_B)),
    "overlay-tcp-to-pod": Case("pod-b", lambda s, t: s.overlay(raw.tcp(REMOTE, POD_B, t))),
    "overlay-echo-to-pod": Case("pod-b", lambda s, t: s.overlay(raw.icmpv6(REMOTE, POD_B, 128, t))),
    "overlay-echo-to-node": Case("node", lambda s, t: s.overlay(raw.icmpv6(REMOTE, NODE, 128, t))),
    "overlay-sctp-to-pod": Case("pod-b", lambda s, t: s.overlay(raw.ipv6(REMOTE, POD_B, 132, t))),
    "overlay-fragments-to-pod": Case("pod-b", overlay_fragments(REMOTE, POD_B, 16)),
    "overlay-options-to-pod": Case("pod-b", overlay_behind(REMOTE, POD_B, raw.DSTOPTS)),
    "overlay-hop-by-hop-to-pod": Case("pod-b", overlay_behind(REMOTE, POD_B, raw.HOP)),
    "overlay-to-node-port": Case("pod-b", overlay_udp(REMOTE, NODE, NODE_PORT), services=True),
    "overlay-too-big": Case("pod-b", overlay_error(REMOTE, POD_B, 2, POD_B, REMOTE)),
    "overlay-time-exceeded": Case("pod-b", overlay_error("4bb:7:8::", POD_B, 3, POD_B, REMOTE)),
    "overlay-unreachable-port": Case("pod-b", overlay_error(REMOTE, POD_B, 1, POD_B, REMOTE)),
    "overlay-too-big-to-node": Case("node", overlay_error(REMOTE, NODE, 2, NODE, REMOTE)),
    "daemon-no-route-to-pod": Case("pod-b", daemon_error(POD_B, POD_B, 0)),
    "daemon-no-route-to-node": Case("node", daemon_error(NODE, NODE, 0)),
    "daemon-address-unreachable": Case("pod-b", daemon_error(NODE, POD_B, 3)),
    "daemon-source-policy": Case("pod-b", daemon_error(NODE, POD_B, 5)),
    "daemon-hop-limit": Case("pod-b", daemon_error(f"{SUBNET}::", POD_B, 0, 3)),
    "lan-to-pod": Case(
        "pod-b",
        lambda s, t: s.lan_wire.send([raw.udp(LAN_HOST, POD_B, t)], s.node_lan_mac),
    ),
    "pod-to-overlay": Case("tun", pod_udp(POD_A, REMOTE)),
    "pod-to-node": Case("node", pod_udp(POD_A, NODE)),
    "pod-to-lan": Case("lan", pod_udp(POD_A, LAN_HOST)),
    "pod-to-pod": Case("pod-b", pod_udp(POD_A, POD_B)),
    "pod-to-cluster-ip": Case("pod-b", pod_udp(POD_A, CLUSTER_IP), services=True),
    "pod-to-node-port": Case("pod-b", pod_udp(POD_A, NODE, NODE_PORT), services=True),
    "pod-tcp-to-overlay": Case("tun", lambda s, t: s.pod(raw.tcp(POD_A, REMOTE, t))),
    "pod-echo-to-overlay": Case("tun", lambda s, t: s.pod(raw.icmpv6(POD_A, REMOTE, 128, t))),
    "pod-fragments-to-overlay": Case("tun", pod_fragments(POD_A, REMOTE, 16)),
    "pod-options-to-overlay": Case("tun", pod_behind(POD_A, REMOTE, raw.DSTOPTS)),
    "pod-unreachable-to-overlay": Case(
        "tun", lambda s, t: s.pod(raw.error(POD_A, REMOTE, 1, raw.udp(REMOTE, POD_A, t)))
    ),
    "pod-asks-for-its-gateway": Case(
        "node",
        lambda s, t: s.pod(
            nd(
                POD_A,
                "fe80::1" if s.mode == "routed" else GATEWAY,
                135,
                solicitation("fe80::1" if s.mode == "routed" else GATEWAY, t, s.a.mac),
            )
        ),
        BRIDGE,
    ),
    "pod-advertises-itself": Case(
        "node", lambda s, t: s.pod(nd(POD_A, NODE, 136, advertisement(POD_A, t, s.a.mac)))
    ),
    "pod-unreachable-to-node": Case("node", pod_error(NODE, 1, NODE, POD_A)),
    "pod-time-exceeded-to-other-pod": Case("pod-b", pod_error(POD_B, 3, POD_B, POD_A)),
    "pod-unreachable-to-lan": Case("lan", pod_error(LAN_HOST, 1, LAN_HOST, POD_A)),
    "pod-large-echo-to-overlay": Case(
        "tun",
        lambda s, t: s.pod(
            *raw.fragments(
                *(POD_A, REMOTE, ICMPV6),
                raw.icmpv6_message(POD_A, REMOTE, 128, 0, bytes(20) + t),
                16,
            )
        ),
    ),
    "overlay-large-echo-to-pod": Case(
        "pod-b",
        lambda s, t: s.overlay(
            *raw.fragments(
                *(REMOTE, POD_B, ICMPV6),
                raw.icmpv6_message(REMOTE, POD_B, 128, 0, bytes(20) + t),
                16,
            )
        ),
    ),
    "pod-to-port-of-daemons-in-other-pod": Case(
        "pod-b", lambda s, t: s.pod(raw.tcp(POD_A, POD_B, t, dport=9651))
    ),
    "pod-to-port-of-daemons-on-overlay": Case("tun", pod_udp(POD_A, REMOTE, 9651)),
    "pod-to-port-of-daemons-on-lan": Case("lan", pod_udp(POD_A, LAN_HOST, 9651)),
    "overlay-to-port-of-daemons": Case("node", overlay_udp(REMOTE, NODE, 9651)),
    "overlay-vxlan-to-pod": Case("pod-b", overlay_udp(REMOTE, POD_B, 4789)),
    "overlay-gre-to-pod": Case("pod-b", lambda s, t: s.overlay(raw.ipv6(REMOTE, POD_B, 47, t))),
    "overlay-esp-to-node": Case("node", lambda s, t: s.overlay(raw.ipv6(REMOTE, NODE, 50, t))),
    "pod-esp-to-overlay": Case("tun", lambda s, t: s.pod(raw.ipv6(POD_A, REMOTE, 50, t))),
    "pod-nothing-to-overlay": Case("tun", lambda s, t: s.pod(raw.ipv6(POD_A, REMOTE, 59, t))),
    "pod-asks-again-for-its-gateway": Case(
        "node",
        lambda s, t: s.everyone(
            nd("fe80::99", "ff02::1:ff00:1", 135, solicitation("fe80::1", t, s.a.mac)),
            address="ff02::1:ff00:1",
        ),
        ROUTED,
    ),
    "bridge-unreachable-to-neighbour": Case(
        "pod-b",
        lambda s, t: s.neighbour(raw.error(POD_A, POD_B, 1, raw.udp(POD_B, POD_A, t))),
        BRIDGE,
    ),
    "bridge-pod-to-pod": Case("pod-b", lambda s, t: s.neighbour(raw.udp(POD_A, POD_B, t)), BRIDGE),
    "bridge-solicits-neighbour": Case(
        "pod-b",
        lambda s, t: s.everyone(
            nd(
                *(POD_A, "ff02::1:ff00:b", 135),
                solicitation(POD_B, t, s.a.mac),
            ),
            address="ff02::1:ff00:b",
        ),
        BRIDGE,
    ),
    "bridge-advertises-itself": Case(
        "pod-b",
        lambda s, t: s.neighbour(nd(POD_A, POD_B, 136, advertisement(POD_A, t, s.a.mac))),
        BRIDGE,
    ),
    "bridge-probes-own-address": Case(
        "pod-b", to_group(ALL_NODES, "::", 135, lambda t: solicitation(POD_A, t)), BRIDGE
    ),
    "bridge-listener-report": Case(
        "pod-b",
        lambda s, t: s.everyone(
            raw.icmpv6("::", "ff02::16", 143, bytes(4) + t, hops=1), address="ff02::16"
        ),
        BRIDGE,
    ),
}
assert len(ATTACKS) >= 60
assert not ATTACKS.keys() & FLOWS.keys()


class Stages:
    """Each stage is built and run once, when the first test needs it."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._played: dict[tuple[Mode, Kind, bool], Stage] = {}
        self._labs: list[Lab] = []

    def played(self, mode: Mode, kind: Kind, *, guarded: bool) -> Stage:
        key = (mode, kind, guarded)
        if key not in self._played:
            lab = Lab(self._command, overlay="stand-in")
            self._labs.append(lab)
            stage = Stage(lab, mode, kind, guarded=guarded)
            cases = ATTACKS | FLOWS if guarded else ATTACKS
            stage.run(
                {n: e for n, e in cases.items() if mode in e.modes and e.on(kind, guarded=guarded)}
            )
            self._played[key] = stage
        return self._played[key]

    def close(self) -> None:
        for stage in self._played.values():
            stage.close()
        for lab in self._labs:
            lab.close()


@pytest.fixture(scope="module")
def stages(command: list[str]) -> Iterator[Stages]:
    stages = Stages(command)
    yield stages
    stages.close()


KINDS: tuple[Kind, ...] = ("plain", "services")


def _every(cases: dict[str, Case], *, guarded: bool = True) -> pytest.MarkDecorator:
    found = [
        pytest.param(
            *(mode, kind, name),
            id=f"{mode}-{kind}-{name}",
            marks=pytest.mark.xdist_group(f"attacks-{mode}"),  # one worker plays its stages
        )
        for name, case in cases.items()
        for mode in case.modes
        for kind in KINDS
        if case.on(kind, guarded=guarded)
    ]
    return pytest.mark.parametrize(("mode", "kind", "name"), found)


@_every(ATTACKS)
def test_attack_is_stopped(stages: Stages, mode: Mode, kind: Kind, name: str) -> None:
    assert stages.played(mode, kind, guarded=True).arrived(name) == set()


@_every({name: case for name, case in ATTACKS.items() if not case.kernel}, guarded=False)
def test_attack_works_without_our_rules(stages: Stages, mode: Mode, kind: Kind, name: str) -> None:
    assert ATTACKS[name].place in stages.played(mode, kind, guarded=False).arrived(name)


@_every(FLOWS)
def test_legitimate_flow_passes(stages: Stages, mode: Mode, kind: Kind, name: str) -> None:
    assert FLOWS[name].place in stages.played(mode, kind, guarded=True).arrived(name)
