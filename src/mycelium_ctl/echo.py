# SPDX-License-Identifier: Apache-2.0
"""Echo requests from the network namespace that the calling thread is in, and what comes back."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from mycelium_cni.kernel.address import format_address

ANSWER_S: Final = 1.0  # on this node
OVERLAY_S: Final = 5.0  # the daemon may have to look for a route first
ALL_HOPS: Final = 64
HOPS_TO_PEER: Final = 3  # pod, node, our daemon: the next daemon has none left and says so
IPV6_HEADER, ICMPV6_HEADER = 40, 8  # bytes
ECHO_REQUEST, ECHO_REPLY, HOPS_ENDED = 128, 129, 3
ERRORS: Final = {
    1: "unreachable",
    2: "packet too big",
    HOPS_ENDED: "hop limit reached",
    4: "bad packet",
}
IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO = 23, 2  # linux/in6.h: never fragment
_SO_RCVBUFFORCE, _ROOM = 33, 8 << 20  # asm-generic/socket.h; bytes, for some 10,000 answers
ROUND_S: Final = 0.2  # for the answers to one round of many
# The kernel answers echo requests through one socket per CPU that all network namespaces share,
# and drops an answer when others have filled it (net/ipv6/icmp.c): one lost answer proves little.
# And a neighbour whose MAC somebody asked for in vain is asked again after a second only
# (RETRANS_TIMER, RFC 4861 section 10): less than that of silence proves nothing.
ROUNDS: Final = 6


class Answer(NamedTuple):
    """The answer to an echo request."""

    kind: int
    source: str
    milliseconds: float


class Question(NamedTuple):
    """One echo request of `size` bytes, headers included."""

    what: str
    size: int
    source: str
    target: str
    address: str
    hops: int = ALL_HOPS
    within_s: float = ANSWER_S


class Pinger:
    """A raw ICMPv6 socket that never sends fragments; it stays in the namespace it was made in."""

    _sequence = 0

    def __init__(self, source: bytes = b"") -> None:
        self._socket = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        if source:
            self._socket.bind((format_address(source), 0))
        self._socket.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO)

    def close(self) -> None:
        self._socket.close()

    def ask(self, asked: Question) -> Answer | None:
        """Send an echo request, and wait for the answer.

        None if there is none. Raises OSError if the kernel refuses to send, such as EMSGSIZE.
        """
        Pinger._sequence += 1
        ours = struct.pack("!HH", os.getpid() & 0xFFFF, Pinger._sequence & 0xFFFF)
        payload = bytes(max(asked.size - IPV6_HEADER - ICMPV6_HEADER, 0))
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, asked.hops)
        start = time.perf_counter()
        head = struct.pack("!BBH", ECHO_REQUEST, 0, 0)  # the kernel puts the checksum in
        self._socket.sendto(head + ours + payload, (asked.address, 0))
        while (left := start + asked.within_s - time.perf_counter()) > 0:
            if not select.select([self._socket], [], [], left)[0]:
                return None
            packet, sender = self._socket.recvfrom(65535)
            kind = packet[0]
            quoted = ICMPV6_HEADER + IPV6_HEADER + 4
            place = 4 if kind == ECHO_REPLY else quoted if kind in ERRORS else None
            if place is not None and packet[place : place + 4] == ours:
                passed = (time.perf_counter() - start) * 1000
                return Answer(kind, sender[0].partition("%")[0], passed)
        return None


class Echoes:
    """Echo requests from the namespace that it was made in, as programs there would send them: from
    the address, with the hop limit and to the link that the kernel chooses."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        self._socket.setblocking(False)
        # Answers come while requests are still being sent; by default the kernel keeps some 250.
        with suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        self._token = os.urandom(8)

    def __enter__(self) -> Echoes:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, addresses: Mapping[bytes, int], number: int) -> None:
        """Ask each address once; the values are hop limits, 0 for the kernel's choice."""
        for address, hops in addresses.items():
            # Type, code, checksum (the kernel's work), identifier, sequence number.
            header = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, os.getpid() & 0xFFFF, number)
            limit = (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT, struct.pack("=i", hops))
            to = (format_address(address), 0)
            with suppress(OSError):  # no route, or refused: it stays silent
                self._socket.sendmsg([header, self._token], [limit] if hops else [], 0, to)

    def read(self) -> Iterator[tuple[bytes, bytes]]:
        """What has come since that answers one of ours: whom it answers for, and who sent it."""
        while True:
            try:
                packet, peer = self._socket.recvfrom(2048)
            except OSError:
                return
            sender = socket.inet_pton(socket.AF_INET6, peer[0].partition("%")[0])
            if packet[0] == ECHO_REPLY and packet[8:16] == self._token:
                yield sender, sender
            elif packet[0] == HOPS_ENDED and packet[56:64] == self._token:
                yield packet[32:48], sender  # the destination in the packet that it quotes


def ask_all(
    asked: Mapping[Echoes, Mapping[bytes, int]], own: bytes, within_s: float = ROUND_S
) -> dict[Echoes, set[bytes]]:
    """The addresses that answer, each asked up to ROUNDS times. Where the hop limit is given, a
    node says that it has ended; any counts whose subnet is not `own`."""
    silent = {echoes: dict(addresses) for echoes, addresses in asked.items()}
    for number in range(ROUNDS):
        for echoes, addresses in silent.items():
            echoes.send(addresses, number)
        deadline = time.monotonic() + within_s
        while any(silent.values()) and (left := deadline - time.monotonic()) > 0:
            for echoes in select.select(list(silent), [], [], left)[0]:
                for address, sender in echoes.read():
                    if address == sender or sender[:8] != own:
                        silent[echoes].pop(address, None)
    return {echoes: set(addresses) - set(silent[echoes]) for echoes, addresses in asked.items()}
