# SPDX-License-Identifier: Apache-2.0
"""Packets with false addresses, and whether they arrive: `test` tries the guard with them.

What a hostile peer sends comes out of the daemon's TUN, into which nobody else can write. So that
half is tried on a replica: an empty namespace with an interface of the same name and address, under
the same rules, loaded by the same code into the same kernel.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from contextlib import AbstractContextManager, ExitStack
from typing import Final, NamedTuple

from mycelium_cni import guard
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel.address import parse_address
from mycelium_cni.kernel.link import find_link
from mycelium_cni.undo import Undo
from mycelium_lab.overlay import open_tun

ICMPV6, ECHO_REQUEST = 58, 128
SEEN_WITHIN_S: Final = 0.3
PATIENCE: Final = 5  # tries
REMOTE: Final = "4ee:0:0:1::9"  # on the overlay, in no real node's subnet
OUTSIDE: Final = "2001:db8::9"  # RFC 3849: for documentation
INSIDE: Final = "fd00::9"  # an address of the replica that is not the overlay's


class Sighting(NamedTuple):
    """A packet that was sent, and whether it arrived."""

    what: str
    allowed: bool  # it should arrive
    arrived: bool


def echo_request(source: str, destination: str, token: bytes) -> bytes:
    """An IPv6 packet with an echo request, between any two addresses."""
    addresses = parse_address(source) + parse_address(destination)

    def message(checksum: int) -> bytes:
        return struct.pack("!BBH4x", ECHO_REQUEST, 0, checksum) + token

    covered = addresses + struct.pack("!II", len(message(0)), ICMPV6) + message(0)
    total = sum(struct.unpack(f"!{len(covered) // 2}H", covered))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    body = message(~total & 0xFFFF)
    return struct.pack("!IHBB", 6 << 28, len(body), ICMPV6, 64) + addresses + body


class Icmpv6Capture:
    """Sees every ICMPv6 packet that reaches the namespace it was opened in."""

    def __init__(self) -> None:
        self._socket: Final = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)

    def close(self) -> None:
        self._socket.close()

    def see(self, token: bytes) -> bool:
        """Whether a packet with this token arrives soon."""
        deadline = time.monotonic() + SEEN_WITHIN_S
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self._socket], [], [], left)[0]:
                return False
            if token in self._socket.recv(65535):
                return True
        return False


def spoof(
    pod: AbstractContextManager[None], capture: Icmpv6Capture, own: str, false: str, to: str
) -> list[Sighting]:
    """Send from inside a pod to another one, with its own source and with a false one."""
    with pod:
        sender = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
    seen = []
    with sender:
        for what, source, allowed in (("own source", own, True), ("false source", false, False)):
            token = os.urandom(16)
            sender.sendto(echo_request(source, to, token), (to, 0))
            seen.append(Sighting(what, allowed, capture.see(token)))
    return seen


def inject(
    replica: AbstractContextManager[None], wanted: guard.Wanted, node: str, pod: str
) -> list[Sighting]:
    """Write into the TUN of a replica of this node what a peer might send.

    `node` and `pod` are addresses. Raises OSError if no TUN can be made or no rules loaded.
    """
    with ExitStack() as stack:
        with replica:
            host = nl.Socket()
            stack.callback(host.close)
            lo = find_link(host, "lo")
            index = lo.index if lo else 1
            host.request(
                nl.set_up(index, "lo"),
                nl.address(nl.RTM_NEWADDR, f"add {INSIDE}", index, parse_address(INSIDE), 128),
            )
            tun = open_tun(wanted.interface, parse_address(node))
            stack.callback(os.close, tun)
            guard.protect(host, wanted, Undo())
            capture = Icmpv6Capture()
            stack.callback(capture.close)
        seen = []
        for what, source, destination, allowed in (
            ("from a peer", REMOTE, node, True),
            ("from this node's subnet", pod, node, False),
            ("from off the overlay", OUTSIDE, node, False),
            ("to off the overlay", REMOTE, INSIDE, False),
        ):
            arrived = False
            # The kernel accepts packets for a new address only after a worker of it has run.
            for _ in range(PATIENCE if allowed else 1):
                token = os.urandom(16)
                os.write(tun, echo_request(source, destination, token))
                arrived = capture.see(token)
                if arrived:
                    break
            seen.append(Sighting(what, allowed, arrived))
        return seen
