# SPDX-License-Identifier: Apache-2.0
"""Packets made by hand, the TUN that a daemon would write them to, and receivers to watch.

A packet carries a token. A receiver of bytes with that token has received the packet, in
whatever form: forwarded, reassembled, or delivered to a socket.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import socket
import struct
import time
import zlib
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from mycelium_lab.lab import Namespace

TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001
ETH_P_ALL, ETH_P_IP, ETH_P_ARP, ETH_P_IPV6, ETH_P_LLDP = 3, 0x800, 0x806, 0x86DD, 0x88CC
PACKET_OUTGOING = 4
SOL_PACKET, PACKET_AUXDATA = 263, 8

HOP, TCP, UDP, ROUTING, FRAGMENT, ESP, ICMPV6, DSTOPTS = 0, 6, 17, 43, 44, 50, 58, 60
TUNNELS = {"ipv4-in-ipv6": 4, "ipv6-in-ipv6": 41, "gre": 47, "etherip": 97, "l2tp": 115}
PORT = 4242  # where UDP is received


def packed(address: str) -> bytes:
    return IPv6Address(address).packed


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF or 0xFFFF


def _with_checksum(src: str, dst: str, protocol: int, segment: bytes, offset: int) -> bytes:
    pseudo = packed(src) + packed(dst) + struct.pack("!IxxxB", len(segment), protocol)
    value = checksum(pseudo + segment)
    return segment[:offset] + struct.pack("!H", value) + segment[offset + 2 :]


def ipv6(src: str, dst: str, protocol: int, payload: bytes, *, hops: int = 64) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops)
    return head + packed(src) + packed(dst) + payload


def udp_segment(src: str, dst: str, data: bytes, *, dport: int = PORT, sport: int = 0) -> bytes:
    sport = sport or 1024 + zlib.crc32(data) % 60000  # each packet is a flow of its own
    segment = struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data
    return _with_checksum(src, dst, UDP, segment, 6)


def udp(src: str, dst: str, data: bytes, *, dport: int = PORT, sport: int = 0) -> bytes:
    return ipv6(src, dst, UDP, udp_segment(src, dst, data, dport=dport, sport=sport))


def tcp(src: str, dst: str, data: bytes, *, flags: int = 2, dport: int = PORT) -> bytes:
    """A segment with data; SYN by default."""
    head = struct.pack("!HHIIBBHHH", 5353, dport, 1000, 1000, 5 << 4, flags, 8192, 0, 0)
    return ipv6(src, dst, TCP, _with_checksum(src, dst, TCP, head + data, 16))


def icmpv6_message(src: str, dst: str, kind: int, code: int, body: bytes) -> bytes:
    return _with_checksum(src, dst, ICMPV6, struct.pack("!BBH", kind, code, 0) + body, 2)


def icmpv6(src: str, dst: str, kind: int, body: bytes, *, code: int = 0, hops: int = 64) -> bytes:
    return ipv6(src, dst, ICMPV6, icmpv6_message(src, dst, kind, code, body), hops=hops)


def error(src: str, dst: str, kind: int, quoted: bytes, *, code: int = 0, word: int = 0) -> bytes:
    """An ICMPv6 error about a packet."""
    return icmpv6(src, dst, kind, struct.pack("!I", word) + quoted, code=code)


def option(protocol: int, size: int = 6) -> bytes:
    """A hop-by-hop or destination options header of 8 bytes: PadN."""
    return struct.pack("!BBBB", protocol, 0, 1, size - 2) + bytes(size - 2)


def marked_option(protocol: int, token: bytes) -> bytes:
    """A destination options header with an unknown option of a type that receivers skip."""
    return struct.pack("!BBBB", protocol, 2, 0x1E, 16) + token + b"\1\2\0\0"


def routing(protocol: int, kind: int, left: int, hop: str) -> bytes:
    """A routing header with one address."""
    return struct.pack("!BBBBI", protocol, 2, kind, left, 0) + packed(hop)


def fragments(src: str, dst: str, protocol: int, payload: bytes, cut: int) -> list[bytes]:
    """Two fragments, or an atomic one if `cut` is 0. `cut` is a multiple of 8."""
    identity = int.from_bytes(os.urandom(4), "big")
    parts = [(0, payload[:cut], 1), (cut, payload[cut:], 0)] if cut else [(0, payload, 0)]
    return [
        ipv6(src, dst, FRAGMENT, struct.pack("!BxHI", protocol, at | more, identity) + part)
        for at, part, more in parts
    ]


def ipv4_udp(src: str, dst: str, data: bytes) -> bytes:
    segment = struct.pack("!HHHH", 5353, PORT, 8 + len(data), 0) + data
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, 64, UDP, 0)
    head += IPv4Address(src).packed + IPv4Address(dst).packed
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + segment


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def multicast_mac(address: str) -> bytes:
    return b"\x33\x33" + packed(address)[12:]


class Tun:
    """The Mycelium interface, as a daemon has it open."""

    def __init__(self, node: Namespace, address: str, name: str = "mycelium") -> None:
        self._node = node
        self._name = name
        with node.inside():
            self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            fcntl.ioctl(self.fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN_NO_PI))
        node.configure(
            f"link set {name} mtu 1400 up",
            f"address add {address}/7 dev {name} nodad",
        )

    def write(self, packets: Iterable[bytes]) -> None:
        for packet in packets:
            os.write(self.fd, packet)

    def close(self) -> None:
        """The kernel removes the device with its last descriptor."""
        os.close(self.fd)


class Wire:
    """A link of a namespace, to send frames on and to see all frames that arrive there."""

    def __init__(self, namespace: Namespace, link: str) -> None:
        with namespace.inside():
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            self.socket.bind((link, ETH_P_ALL))
        self.socket.setblocking(False)
        shown = namespace.link(link)
        assert shown
        self.mac = mac(shown["address"])

    def send(
        self,
        packets: Iterable[bytes],
        to: bytes,
        *,
        source: bytes | None = None,
        kind: int = ETH_P_IPV6,
    ) -> None:
        head = to + (source or self.mac) + struct.pack("!H", kind)
        for packet in packets:
            self.socket.send(head + packet)

    def receive(self) -> bytes:
        data, sender = self.socket.recvfrom(65536)
        return b"" if sender[2] == PACKET_OUTGOING else data


class Capture:
    """Everything that is received at the watched places, by place."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.seen: dict[str, list[bytes]] = {}

    def watch_wire(self, place: str, wire: Wire) -> None:
        self._watch(place, wire.socket, wire.receive)

    def watch_tun(self, place: str, tun: Tun) -> None:
        self._watch(place, tun.fd, lambda: os.read(tun.fd, 65536))

    def watch_sockets(self, place: str, namespace: Namespace) -> None:
        """What the namespace accepts for itself: UDP to PORT over IPv4; over IPv6 any packet of the
        protocols that matter, reassembled."""
        with namespace.inside():
            over4 = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            over4.bind(("", PORT))
            over6 = [
                socket.socket(socket.AF_INET6, socket.SOCK_RAW, protocol)
                for protocol in (TCP, UDP, ESP, ICMPV6, *TUNNELS.values())
            ]
        for each in (over4, *over6):
            each.setblocking(False)
            self._watch(place, each, lambda each=each: each.recv(65536))

    def _watch(self, place: str, source: object, receive: object) -> None:
        self.seen.setdefault(place, [])
        self._selector.register(source, selectors.EVENT_READ, (place, receive))  # type: ignore[arg-type]

    def look(self, quiet_s: float = 0.15) -> None:
        """Collect until nothing has come for a while."""
        end = time.monotonic() + quiet_s
        while (left := end - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                place, receive = key.data
                try:
                    data = receive()
                except BlockingIOError:
                    continue
                if data:
                    self.seen[place].append(data)

    def find(self, token: bytes, within_s: float = 0.15) -> bool:
        """Whether bytes with that token arrive anywhere before long."""
        end = time.monotonic() + within_s
        while not self.places(token) and time.monotonic() < end:
            self.look(0.01)
        return bool(self.places(token))

    def places(self, token: bytes) -> set[str]:
        """Where bytes with that token have arrived."""
        return {place for place, data in self.seen.items() if any(token in d for d in data)}

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
