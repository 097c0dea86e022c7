# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the Mycelium daemon: one TUN per node, its packets carried over UDP.

The demo and the tests use it where there is no `mycelium` executable. It understands the part of
the daemon's command line that starts a node, and looks like the daemon to the node: interface,
address, MTU, ICMPv6 errors (mycelium/src/data.rs and router.rs at 0.7.10), HTTP API. Like the
daemon it does not compare the addresses inside a packet with who sent it. Unlike the daemon it
encrypts nothing and trusts everybody: it belongs in throw-away networks only.

A datagram between nodes is either a packet, headed by the subnet that it is for, or an
announcement: "this subnet is behind me; news number n". Each node announces its own subnet twice a
second and passes on what is new to it. The next hop to a subnet is the neighbour that first brought
the latest news of it, so there are no metrics and no loops.

    mycelium-cni overlay --key-file a.key --peers tcp://[2001:db8::2]:9651
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import ipaddress
import json
import os
import selectors
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from mycelium_cni.node import identity
from mycelium_lab.errors import LabError

MTU: Final = 1400
PREFIX_LENGTH: Final = 7  # of the address on the TUN: the kernel then routes 400::/7 there
DEFAULT_PORT: Final = 9651
DEFAULT_API: Final = "127.0.0.1:8989"

ANNOUNCE_EVERY_S: Final = 0.5
FORGET_AFTER_S: Final = 2.5
# A packet for a subnet without a route waits for one this long. The daemon waits 15 s, for the
# Internet; a lab needs less.
RESOLVE_WITHIN_S: Final = 1.0
WAITING_PACKETS: Final = 1000

# linux/if_tun.h, linux/sockios.h, linux/if.h
TUNSETIFF: Final = 0x400454CA
IFF_TUN, IFF_NO_PI, IFF_UP = 0x0001, 0x1000, 0x0001
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFMTU = 0x8913, 0x8914, 0x8916, 0x8922

# RFC 8200 section 3, RFC 4443
IPV6_HEADER: Final = 40
HOP_LIMIT: Final = 7
SOURCE, DESTINATION, DESTINATION_SUBNET = slice(8, 24), slice(24, 40), slice(24, 32)
ICMPV6: Final = 58
NO_ROUTE, ADDRESS_UNREACHABLE, SOURCE_FAILED_POLICY = (1, 0), (1, 3), (1, 5)
HOP_LIMIT_EXCEEDED: Final = (3, 0)
QUOTED: Final = 1280 - IPV6_HEADER - 8  # as much of the packet as the smallest MTU lets through

ANNOUNCEMENT: Final = struct.Struct("!BB8sQ")  # 0, hops, subnet, news number
CARRIED: Final = struct.Struct("!B8s")  # 1, subnet; then the packet
MAX_HOPS: Final = 16
MOST_REQUEST: Final = 1 << 16

Endpoint = tuple[str, int, int, int]  # an IPv6 socket address; IPv4 is mapped into it


@dataclass
class Neighbour:
    """Another node that talks to this one directly. Times are of the monotonic clock."""

    static: bool
    discovered: float = field(default_factory=time.monotonic)
    connected: float | None = None  # since when; None: never
    heard: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0

    @property
    def alive(self) -> bool:
        return self.connected is not None and time.monotonic() - self.heard < FORGET_AFTER_S


@dataclass(frozen=True)
class Route:
    """The way to a subnet, and which news it rests on."""

    via: Endpoint
    news: int
    hops: int
    heard: float


class Node:
    """One node: its address, its neighbours and its routes, between a TUN and a UDP socket.

    `tun` and `underlay` are non-blocking; its caller calls `read_tun` and
    `read_underlay` when there is something to read, and `tick` every ANNOUNCE_EVERY_S.
    """

    def __init__(
        self, public_key: bytes, tun: int, underlay: socket.socket, peers: list[Endpoint]
    ) -> None:
        self.public_key: Final = public_key
        self.address: Final = identity.address(public_key)
        self.subnet: Final = self.address[:8]
        self.started: Final = int(time.time())
        self.neighbours: Final = {peer: Neighbour(static=True) for peer in peers}
        self.routes: Final[dict[bytes, Route]] = {}
        self._tun: Final = tun
        self._underlay: Final = underlay
        self._waiting: list[tuple[float, bytearray]] = []

    # Packets

    def read_tun(self) -> None:
        """Take what the kernel routed into the interface."""
        for _ in range(64):  # then let the other side have its turn
            try:
                packet = bytearray(os.read(self._tun, MTU))
            except BlockingIOError:
                return
            if len(packet) >= IPV6_HEADER and packet[0] >> 4 == 6:
                self._inject(packet)

    def read_underlay(self) -> None:
        """Take what other nodes sent."""
        for _ in range(64):
            try:
                data, endpoint = self._underlay.recvfrom(2048)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error of an earlier datagram: that node is not there yet
                continue
            neighbour = self.neighbours.get(endpoint)
            if neighbour is not None:
                neighbour.received_bytes += len(data)
            if len(data) == ANNOUNCEMENT.size and data[0] == 0:
                self._learn(endpoint, *ANNOUNCEMENT.unpack(data)[1:])
            elif len(data) >= CARRIED.size + IPV6_HEADER and data[0] == 1:
                self._route(CARRIED.unpack_from(data)[1], bytearray(data[CARRIED.size :]))

    def _inject(self, packet: bytearray) -> None:
        """Send a packet of this node on its way, or answer with the daemon's ICMPv6 error."""
        source, subnet = bytes(packet[SOURCE]), bytes(packet[DESTINATION_SUBNET])
        if subnet == self.subnet:  # the kernel would know the address if anybody had it
            self._answer(packet, ADDRESS_UNREACHABLE, self.address)
        elif source[0] not in (0x04, 0x05):
            self._answer(packet, SOURCE_FAILED_POLICY, self.address)
        elif packet[HOP_LIMIT] < 2:
            self._answer(packet, HOP_LIMIT_EXCEEDED, source, hop_limit=packet[HOP_LIMIT])
        elif subnet in self.routes:
            self._route(subnet, packet)
        elif len(self._waiting) < WAITING_PACKETS:
            self._waiting.append((time.monotonic() + RESOLVE_WITHIN_S, packet))
        else:
            self._answer(packet, NO_ROUTE, source, hop_limit=packet[HOP_LIMIT])

    def _answer(
        self, packet: bytearray, reason: tuple[int, int], source: bytes, hop_limit: int = 64
    ) -> None:
        """Hand an ICMPv6 error about `packet` to the node itself."""
        error = icmp_error(packet, reason, source, hop_limit)
        if error is not None:
            self._deliver(error)

    def _route(self, subnet: bytes, packet: bytearray) -> None:
        """One hop: down by one, then to the TUN or to the next node.

        A packet passes here once on every node that it crosses, first and last included, as it
        does in the daemon. Errors come from the subnet itself, `<subnet>::`, as the daemon's do.
        The packet's own destination is not checked (nor does the daemon check it).
        """
        route = self.routes.get(subnet)
        if packet[HOP_LIMIT] < 2:
            self._send_back(packet, HOP_LIMIT_EXCEEDED)
        elif subnet == self.subnet:
            packet[HOP_LIMIT] -= 1
            self._deliver(packet)
        elif route is not None:
            packet[HOP_LIMIT] -= 1
            self._send(route.via, carry(subnet, packet))
        else:
            self._send_back(packet, NO_ROUTE)

    def _send_back(self, packet: bytearray, reason: tuple[int, int]) -> None:
        error = icmp_error(packet, reason, self.subnet + bytes(8), hop_limit=64)
        subnet = bytes(packet[SOURCE][:8])
        # An error without a route back would cause the next error.
        if error is not None and (subnet == self.subnet or subnet in self.routes):
            self._route(subnet, error)

    def _deliver(self, packet: bytearray) -> None:
        with contextlib.suppress(OSError):  # the interface is down: packets get lost
            os.write(self._tun, packet)

    def _send(self, endpoint: Endpoint, data: bytes) -> None:
        try:
            self._underlay.sendto(data, endpoint)
        except OSError:  # no way to that node just now
            return
        neighbour = self.neighbours.get(endpoint)
        if neighbour is not None:
            neighbour.sent_bytes += len(data)

    # Routes

    def tick(self) -> None:
        """Announce this node, forget what has fallen silent, give up on packets that waited."""
        now = time.monotonic()
        for subnet, route in list(self.routes.items()):
            if now - route.heard > FORGET_AFTER_S:
                del self.routes[subnet]
        for endpoint, neighbour in list(self.neighbours.items()):
            if not neighbour.static and not neighbour.alive:
                del self.neighbours[endpoint]
        waiting, self._waiting = self._waiting, []
        for deadline, packet in waiting:
            if deadline > now:
                self._waiting.append((deadline, packet))
            else:
                source = bytes(packet[SOURCE])
                self._answer(packet, NO_ROUTE, source, hop_limit=packet[HOP_LIMIT])
        for endpoint in self.neighbours:
            self._send(endpoint, self._announcement())

    def _announcement(self) -> bytes:
        # The clock numbers the news: a restarted node's numbers still grow.
        return ANNOUNCEMENT.pack(0, 0, self.subnet, time.time_ns())

    def _learn(self, endpoint: Endpoint, hops: int, subnet: bytes, news: int) -> None:
        now = time.monotonic()
        neighbour = self.neighbours.setdefault(endpoint, Neighbour(static=False))
        if not neighbour.alive:
            # Tell a new neighbour everything now, so that it need not wait for the next round.
            neighbour.connected = now
            self._send(endpoint, self._announcement())
            for known_subnet, route in self.routes.items():
                self._send(endpoint, ANNOUNCEMENT.pack(0, route.hops, known_subnet, route.news))
        neighbour.heard = now

        known = self.routes.get(subnet)
        if subnet == self.subnet or hops >= MAX_HOPS or (known and news <= known.news):
            return
        self.routes[subnet] = Route(endpoint, news, hops + 1, now)
        for other in self.neighbours:
            if other != endpoint:
                self._send(other, ANNOUNCEMENT.pack(0, hops + 1, subnet, news))
        if known is None:
            waiting, self._waiting = self._waiting, []
            for _, packet in waiting:
                self._inject(packet)

    # The daemon's HTTP API (mycelium-api/src/lib.rs)

    def info(self) -> object:
        """GET /api/v1/admin"""
        return {
            "nodeSubnet": _subnet_text(self.subnet),
            "nodeIp": str(ipaddress.IPv6Address(self.address)),
            "nodePubkey": self.public_key.hex(),
            "nodeStartTime": self.started,
        }

    def peers(self) -> object:
        """GET /api/v1/admin/peers"""
        now = time.monotonic()
        return [
            {
                "endpoint": {"proto": "tcp", "addr": {"socket": _endpoint_text(endpoint)}},
                "type": "static" if neighbour.static else "inbound",
                "connectionState": (
                    "alive"
                    if neighbour.alive
                    else "connecting"
                    if neighbour.connected is None
                    else "dead"
                ),
                "txBytes": neighbour.sent_bytes,
                "rxBytes": neighbour.received_bytes,
                "discovered": int(now - neighbour.discovered),
                "lastConnected": (
                    None if neighbour.connected is None else int(now - neighbour.connected)
                ),
            }
            for endpoint, neighbour in self.neighbours.items()
        ]

    def selected_routes(self) -> object:
        """GET /api/v1/admin/routes/selected"""
        here = _endpoint_text(self._underlay.getsockname())
        return [
            {
                "subnet": _subnet_text(subnet),
                "nextHop": f"TCP {here} <-> {_endpoint_text(route.via)}",
                "metric": route.hops,
                "seqno": route.news & 0xFFFF,
            }
            for subnet, route in self.routes.items()
        ]


def carry(subnet: bytes, packet: bytes | bytearray) -> bytes:
    """The datagram that takes `packet` to the node with this subnet, whatever it says inside."""
    return CARRIED.pack(1, subnet) + packet


def icmp_error(
    packet: bytearray, reason: tuple[int, int], source: bytes, hop_limit: int
) -> bytearray | None:
    """An ICMPv6 error (type, code) to the sender of `packet`.

    None about a packet that is an error itself (RFC 4443, section 2.4): two nodes, or a node and
    its kernel, would never stop.
    """
    if packet[6] == ICMPV6 and len(packet) > IPV6_HEADER and packet[IPV6_HEADER] < 128:
        return None
    quoted = bytes(packet[:QUOTED])
    addresses = source + bytes(packet[SOURCE])
    length = 8 + len(quoted)

    def message(checksum: int) -> bytes:
        return struct.pack("!BBHI", *reason, checksum, 0) + quoted

    covered = addresses + struct.pack("!II", length, ICMPV6) + message(0) + bytes(length % 2)
    total = sum(struct.unpack(f"!{len(covered) // 2}H", covered))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    header = struct.pack("!IHBB", 6 << 28, length, ICMPV6, hop_limit)
    return bytearray(header + addresses + message(~total & 0xFFFF))


def _subnet_text(subnet: bytes) -> str:
    return str(ipaddress.IPv6Network((subnet + bytes(8), 64)))


def _endpoint_text(endpoint: Endpoint) -> str:
    address = ipaddress.IPv6Address(endpoint[0].partition("%")[0])
    host = f"[{address}]" if address.ipv4_mapped is None else str(address.ipv4_mapped)
    return f"{host}:{endpoint[1]}"


def _parse_peer(text: str) -> Endpoint:
    """`tcp://[address]:port`, as the daemon spells it; it names where to send the datagrams."""
    try:
        parts = urlsplit(text)
        address = ipaddress.ip_address(parts.hostname or "")
        port = parts.port
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
    if parts.scheme != "tcp" or port is None:
        raise argparse.ArgumentTypeError(f"{text}: write it as tcp://[address]:port")
    return (f"{'' if address.version == 6 else '::ffff:'}{address}", port, 0, 0)


def _parse_socket_address(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = str(ipaddress.ip_address(parts.hostname or "")), parts.port
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
    if port is None:
        raise argparse.ArgumentTypeError(f"{text}: write it as address:port")
    return host, port


def read_key(path: Path) -> bytes:
    """The node's private key: the first 32 bytes of the file, which is made where it is missing."""
    try:
        key = path.read_bytes()[: identity.KEY_SIZE]
    except FileNotFoundError:
        key = os.urandom(identity.KEY_SIZE)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key)
    if len(key) < identity.KEY_SIZE:
        raise LabError(f"{path}: the key has {len(key)} bytes, {identity.KEY_SIZE} are needed")
    return key


def open_tun(name: str, address: bytes) -> int:
    """Make the interface, in the daemon's order: MTU, address, up. It goes when the fd closes.

    A TUN has no link layer, so the kernel does no duplicate address detection on it: the address
    is usable at once.
    """
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    link = name.encode()
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH14x", link, IFF_TUN | IFF_NO_PI))
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFMTU, struct.pack("16si12x", link, MTU))
        request = struct.pack("16sIi", address, PREFIX_LENGTH, socket.if_nametoindex(name))
        fcntl.ioctl(control, SIOCSIFADDR, request)
        request = fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16sH14x", link, 0))
        flags = struct.unpack_from("16xH", request)[0] | IFF_UP
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", link, flags))
    return tun


def _listen(host: str, port: int) -> socket.socket | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:  # as in the daemon: the overlay runs without its API
        print(f"API disabled: {error}", file=sys.stderr)
        return None


def _serve_api(node: Node, turn: threading.Lock, listening: socket.socket) -> None:
    """Answer requests for ever, each in a thread of its own."""
    while True:
        client, _ = listening.accept()
        threading.Thread(target=_answer, args=(node, turn, client), daemon=True).start()


def _answer(node: Node, turn: threading.Lock, client: socket.socket) -> None:
    pages: Mapping[str, Callable[[], object]] = {
        "/api/v1/admin": node.info,
        "/api/v1/admin/peers": node.peers,
        "/api/v1/admin/routes/selected": node.selected_routes,
    }
    # The client may go away, or speak no HTTP.
    with contextlib.suppress(OSError, ValueError), client:
        client.settimeout(5)
        request = b""
        while b"\r\n\r\n" not in request and len(request) < MOST_REQUEST:
            request += client.recv(MOST_REQUEST) or b"\r\n\r\n"
        method, path, *_ = request.decode("latin-1").split()
        page = pages.get(path) if method == "GET" else None
        with turn:
            body = b"" if page is None else json.dumps(page(), separators=(",", ":")).encode()
        status = "404 Not Found" if page is None else "200 OK"
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        client.sendall(head.encode() + body)


def _run_node(node: Node, tun: int, underlay: socket.socket, api: tuple[str, int]) -> None:
    turn = threading.Lock()  # one step of the node, or one answer, at a time
    listening = _listen(*api)
    if listening is not None:
        threading.Thread(target=_serve_api, args=(node, turn, listening), daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), selectors.DefaultSelector() as selector:
        selector.register(tun, selectors.EVENT_READ, node.read_tun)
        selector.register(underlay, selectors.EVENT_READ, node.read_underlay)
        due = 0.0
        while True:
            if time.monotonic() >= due:
                due = time.monotonic() + ANNOUNCE_EVERY_S
                with turn:
                    node.tick()
            for key, _ in selector.select(max(0.0, due - time.monotonic())):
                with turn:
                    key.data()


def configure(parser: argparse.ArgumentParser) -> None:
    """The daemon's spelling (`mycelium --help`), so that one start command serves both."""
    parser.add_argument(
        "-k", "--key-file", type=Path, required=True, help="private key; made if missing"
    )
    parser.add_argument("--tun-name", default="mycelium", help="the interface (%(default)s)")
    parser.add_argument(
        "--peers",
        type=_parse_peer,
        nargs="+",
        action="extend",
        default=[],
        metavar="tcp://[ADDRESS]:PORT",
        help="nodes to connect to; packets still travel over UDP",
    )
    parser.add_argument(
        "-t",
        "--tcp-listen-port",
        type=int,
        default=DEFAULT_PORT,
        metavar="PORT",
        help="(%(default)s)",
    )
    parser.add_argument(
        "--api-addr",
        type=_parse_socket_address,
        default=_parse_socket_address(DEFAULT_API),
        metavar="ADDRESS:PORT",
        help=f"where the HTTP API listens ({DEFAULT_API})",
    )
    for name in ("--silent", "--disable-quic", "--disable-peer-discovery"):
        parser.add_argument(name, action="store_true", help="accepted, and always on")


def run(arguments: argparse.Namespace) -> int:
    """Run a node until SIGTERM or SIGINT; the interface goes with the process."""
    try:
        key = read_key(arguments.key_file)
        public_key = identity.public_key(key)
        underlay = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        underlay.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        underlay.setblocking(False)
        underlay.bind(("::", arguments.tcp_listen_port))
        tun = open_tun(arguments.tun_name, identity.address(public_key))
    except OSError as error:
        raise LabError(f"cannot start the overlay on {arguments.tun_name}: {error}") from error
    with underlay:
        node = Node(public_key, tun, underlay, arguments.peers)
        _run_node(node, tun, underlay, arguments.api_addr)
    os.close(tun)
    return 0
