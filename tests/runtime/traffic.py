# SPDX-License-Identifier: Apache-2.0
"""Streams between namespaces, and how fast they were."""

from __future__ import annotations

import hashlib
import http.client
import socket
import threading
import time
from dataclasses import dataclass

from mycelium_lab.lab import Namespace

IPV6_MTU = 24  # linux/in6.h
CHUNK = bytes(range(256)) * 256


@dataclass(frozen=True)
class Transfer:
    """A TCP connection that has carried something: bytes, time, and what the sender knew."""

    size: int
    seconds: float
    mss: int
    path_mtu: int
    client: str  # the source address, as the server saw it

    @property
    def megabits_per_second(self) -> float:
        return self.size * 8 / 1e6 / self.seconds


def transfer(
    source: Namespace, target: Namespace, address: str, size: int, *, within_s: float = 60
) -> Transfer:
    """Send `size` bytes by TCP from one namespace to an address of another; every byte is checked.

    Raises OSError, or AssertionError if something else arrives than was sent.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with target.inside():
        listener = socket.create_server((address, 0), family=family)
    with source.inside():
        sender = socket.socket(family)
    sent, received = hashlib.blake2b(), hashlib.blake2b()
    clients: list[str] = []

    def receive() -> None:
        connection, client = listener.accept()
        clients.append(client[0])
        with connection:
            connection.settimeout(within_s)
            while data := connection.recv(1 << 20):
                received.update(data)
            connection.sendall(b".")

    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    with listener, sender:
        listener.settimeout(within_s)
        sender.settimeout(within_s)
        sender.connect(listener.getsockname()[:2])
        start = time.monotonic()
        left = size
        while left:
            data = CHUNK[:left]
            sender.sendall(data)
            sent.update(data)
            left -= len(data)
        mss = sender.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        path_mtu = sender.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU) if ":" in address else 0
        sender.shutdown(socket.SHUT_WR)
        assert sender.recv(1) == b"."
        seconds = time.monotonic() - start
        thread.join(within_s)
    assert sent.digest() == received.digest()
    return Transfer(size, seconds, mss, path_mtu, clients[0])


def page(source: Namespace, address: str, port: int = 80, *, timeout_s: float = 5) -> str | None:
    """What an HTTP server says to that namespace; None where it does not answer."""
    try:
        return source.get(address, port, timeout_s=timeout_s).decode().strip()
    except (OSError, http.client.HTTPException):
        return None
