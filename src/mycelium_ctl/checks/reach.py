# SPDX-License-Identifier: Apache-2.0
"""Whether packets really pass: echo requests from the node to its pods, and from pod to pod.

No reading of state can foresee everything that drops a packet, so this has the last word.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from typing import Final

from mycelium_cni.kernel.address import format_address
from mycelium_ctl.checks import packetfilter
from mycelium_ctl.checks.finding import Finding, ok, own, skip
from mycelium_ctl.node.state import Attached, State
from mycelium_ctl.view import count

PATIENCE_S: Final = 0.4  # for the answers to one round
# The kernel answers echo requests through one socket per CPU that all network namespaces share,
# and drops an answer when others have filled it (net/ipv6/icmp.c): one that is lost proves little.
ROUNDS: Final = 3
_ECHO_REQUEST, _ECHO_REPLY = 128, 129


class Echoes:
    """Echo requests from one namespace: `ask` sends them, `answered` tells whose replies came."""

    def __init__(self, source: bytes = b"") -> None:
        self._socket = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        self._socket.setblocking(False)
        if source:
            self._socket.bind((format_address(source), 0))
        self._token = os.urandom(8)

    def __enter__(self) -> Echoes:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, addresses: set[bytes], within_s: float = PATIENCE_S) -> set[bytes]:
        """The addresses that answer, each asked up to ROUNDS times."""
        silent = set(addresses)
        for number in range(ROUNDS):
            for address in silent:
                # Type, code, checksum (the kernel's work), identifier, sequence number.
                header = struct.pack("!BBHHH", _ECHO_REQUEST, 0, 0, os.getpid() & 0xFFFF, number)
                try:
                    self._socket.sendto(header + self._token, (format_address(address), 0))
                except OSError:
                    continue  # no route, or refused: it stays silent
            silent -= self._answers(silent, within_s)
            if not silent:
                break
        return addresses - silent

    def _answers(self, awaited: set[bytes], within_s: float) -> set[bytes]:
        heard: set[bytes] = set()
        deadline = time.monotonic() + within_s
        while awaited - heard:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._socket], [], [], left)[0]:
                break
            try:
                packet, peer = self._socket.recvfrom(2048)
            except OSError:
                continue
            if packet[:1] == bytes((_ECHO_REPLY,)) and packet[8:16] == self._token:
                heard.add(socket.inet_pton(socket.AF_INET6, peer[0].partition("%")[0]))
        return heard


def reach(state: State) -> list[Finding] | Finding:
    """Every live pod answers its node, and a neighbour where policies let it."""
    live = [one for one in state.attachments if one.answers and one.octets]
    if not live:
        return skip("no pod is attached")
    try:
        with Echoes() as echoes:
            answered = echoes.ask({one.octets for one in live})
    except OSError as error:
        return skip(f"no packets can be sent from here: {error.strerror}")
    silent = [one for one in live if one.octets not in answered]
    found = [_silent(state, one) for one in silent]
    found += _across(state, [one for one in live if one not in silent])
    return found or ok(f"{count(len(live), 'pod answers', 'pods answer')} the node")


def _silent(state: State, one: Attached) -> Finding:
    return Finding(
        "fail",
        f"{one.who} does not answer the node's echo requests{_drops()}",
        f"see what is lost where: {own('doctor', one.who)}",
    )


def _across(state: State, live: list[Attached]) -> list[Finding]:
    """From each pod to the next one whose network is open to its neighbours."""
    if state.config.policy.ingress == "closed" or len(live) < 2:
        return []
    found = []
    for one, other in zip(live, [*live[1:], live[0]], strict=True):
        with state.inside(one) as entered:
            if not entered:
                continue
            try:
                with Echoes(one.octets) as echoes:
                    answered = echoes.ask({other.octets})
            except OSError:
                answered = set()
        if not answered:
            found.append(
                Finding(
                    "fail",
                    f"{other.who} does not answer {one.who}, though both answer the node{_drops()}",
                    f"see what is lost where: {own('doctor', one.who)}",
                )
            )
    return found


def _drops() -> str:
    """Who may have taken the packets, of those whose rules cannot be followed by reading."""
    chains = packetfilter.suspects()
    return f" (a chain that may drop them: {', '.join(chains[:3])})" if chains else ""
