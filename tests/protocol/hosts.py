# SPDX-License-Identifier: Apache-2.0
"""Temporary nodes and pods, and a monitor: a listener to every change that the kernel reports.

Nothing here uses the plugin's code: namespaces are made and inspected with `ip`.
"""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import itertools
import json
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

PREFIX = "5a1:2b3c:4d5e:6f70"
SUBNET = f"{PREFIX}::/64"
NODE = f"{PREFIX}:ff0f:aaaa:bbbb:cccc"
MTU = 1400

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)


def tool(name: str) -> str:
    """The full path of a system tool: the plugin's own environment has no PATH to find it by."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is needed to make test namespaces, and is not installed")
    return path


def inside(netns: str, act: Callable[[], T]) -> T:
    """What `act` returns when a thread of its own calls it in that network namespace."""
    results: list[T] = []
    failures: list[BaseException] = []

    def enter_and_act() -> None:
        try:
            fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(fd, CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"setns {netns}")
            finally:
                os.close(fd)
            results.append(act())
        except BaseException as failure:  # carried over to the caller's thread
            failures.append(failure)

    thread = threading.Thread(target=enter_and_act)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def settle(ip: Callable[..., str], *routes: str) -> None:
    """Wait until the kernel's worker is done with new addresses: their local routes come last.

    Until then a monitor would attribute the worker's changes to the next call.
    """
    deadline = time.monotonic() + 10
    missing = list(routes)
    while missing:
        assert time.monotonic() < deadline, f"the kernel never made the routes {missing}"
        there = ip("-6", "route", "show", "table", "local")
        missing = [route for route in missing if route not in there]


class Host:
    """A node: a network and a mount namespace of its own, kept by one waiting process.

    It forwards IPv6, as nodes do, and has no Mycelium interface until it is given one.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("NOT TESTED: these tests make network namespaces, which needs root")
        script = (
            "mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && mount -t sysfs sysfs /sys"
            " && ip link set lo up && echo 1 >/proc/sys/net/ipv6/conf/all/forwarding"
            " && echo ready && exec cat"
        )
        self._keeper = subprocess.Popen(
            [tool("unshare"), "--net", "--mount", "--propagation=private", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._keeper.stdout is not None
        if self._keeper.stdout.readline() != b"ready\n":
            pytest.fail("a node's namespaces could not be made; see the lines above")
        self.netns = f"/proc/{self._keeper.pid}/ns/net"
        self.root = f"/proc/{self._keeper.pid}/root"
        self._mount = f"/proc/{self._keeper.pid}/ns/mnt"
        self._tuns: list[int] = []

    def argv(self, *argv: str) -> list[str]:
        """The command line that runs `argv` on this node."""
        return [tool("nsenter"), f"--net={self.netns}", f"--mount={self._mount}", "--", *argv]

    def run(self, *argv: str) -> str:
        """What `argv` prints on this node."""
        done = subprocess.run(
            self.argv(*argv), check=False, capture_output=True, text=True, timeout=20
        )
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def json(self, *argv: str) -> Any:
        """What `argv` prints on this node, parsed as JSON."""
        return json.loads(self.run(*argv) or "[]")

    def links(self) -> dict[str, dict[str, Any]]:
        """The node's links by name."""
        return {link["ifname"]: link for link in self.json("ip", "-d", "-j", "link")}

    def routes_to(self, address: str) -> list[dict[str, Any]]:
        """The node's own routes to exactly that address, in any table."""
        routes = self.json("ip", "-6", "-j", "route", "show", "table", "all")
        return [route for route in routes if route["dst"] == address]

    def give_tun(self, name: str, *addresses: str, up: bool = True) -> None:
        """A TUN with carrier, held open as the Mycelium daemon holds its own."""

        def make() -> int:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            request = struct.pack("16sH14x", name.encode(), IFF_TUN_NO_PI)
            fcntl.ioctl(fd, TUNSETIFF, request)
            return fd

        self._tuns.append(inside(self.netns, make))
        self.run("ip", "link", "set", name, "mtu", str(MTU), "addrgenmode", "none")
        if up:
            self.run("ip", "link", "set", name, "up")
        for address in addresses:
            self.run("ip", "addr", "add", address, "dev", name, "nodad")
            interface = ipaddress.ip_interface(address)
            anycast = f"anycast {interface.network.network_address} "
            settle(lambda *words: self.run("ip", *words), f"local {interface.ip} ", anycast)

    def pod(self) -> Pod:
        """A new pod on this node."""
        return Pod(self)

    def write(self, path: str, text: str) -> str:
        """A file in the node's private /run/netns, the one folder a test may write to."""
        assert path.startswith("/run/netns/")
        self.run("sh", "-c", 'printf %s "$1" >"$2"', "sh", text, path)
        return path

    def stop(self) -> None:
        """End the node; the kernel frees what it held."""
        for fd in self._tuns:
            os.close(fd)
        for stream in (self._keeper.stdin, self._keeper.stdout):
            assert stream is not None
            stream.close()
        self._keeper.wait(timeout=20)


@contextmanager
def mycelium_host() -> Iterator[Host]:
    """A node with its Mycelium interface."""
    host = Host()
    host.give_tun("mycelium", f"{NODE}/7")
    yield host
    host.stop()


class Pod:
    """A pod's network namespace, with a container ID of its own."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.name = f"pod{next(_numbers)}"
        self.container = f"c-{os.getpid()}-{self.name}"
        self.path = f"/run/netns/{self.name}"
        host.run("ip", "netns", "add", self.name)
        # The same namespace, seen from the mount namespace of the tests.
        self.netns = f"{host.root}{self.path}"
        self._there = True
        self._keepers: list[subprocess.Popen[bytes]] = []

    def ip(self, *words: str) -> str:
        """What `ip` prints in the pod."""
        return self.host.run("ip", "-n", self.name, *words)

    def links(self) -> dict[str, dict[str, Any]]:
        """The pod's links, with their addresses, by name."""
        listing = json.loads(self.ip("-d", "-j", "addr"))
        return {link["ifname"]: link for link in listing if link}

    def settle(self) -> None:
        """Wait until the kernel's worker is done with the addresses that ADD gave the pod."""
        lines = self.ip("-6", "-o", "addr", "show", "scope", "global").splitlines()
        settle(self.ip, *(f"local {line.split()[3].partition('/')[0]} " for line in lines))

    def routes(self) -> list[dict[str, Any]]:
        """The pod's IPv6 routes in all tables but the local one."""
        routes = json.loads(self.ip("-6", "-j", "route", "show", "table", "all") or "[]")
        return [route for route in routes if route.get("table") != "local"]

    def keep_alive(self) -> int:
        """The process ID of a process that lives in the pod until the test ends."""
        keeper = subprocess.Popen(
            self.host.argv("ip", "netns", "exec", self.name, "sh", "-c", "echo ready; exec cat"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._keepers.append(keeper)
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"ready\n"
        return keeper.pid

    def unmount(self) -> None:
        """Remove the pod's path; its processes, if any, keep the namespace."""
        self.host.run("ip", "netns", "del", self.name)
        self._there = False

    def remove(self) -> None:
        """End the pod."""
        for keeper in self._keepers:
            for stream in (keeper.stdin, keeper.stdout):
                assert stream is not None
                stream.close()
            keeper.wait(timeout=20)
        if self._there:
            self.unmount()


_EVENTS = {
    16: "a link came or changed",
    17: "a link went",
    20: "an address came",
    21: "an address went",
    24: "a route came",
    25: "a route went",
    28: "a neighbour came or changed",
    29: "a neighbour went",
    32: "a rule came",
    33: "a rule went",
    80: "a setting (forwarding, rp_filter, proxy_ndp) changed",
    81: "a setting went",
}


class ChangeMonitor:
    """Reports every link, address, route, rule, neighbour and forwarding change in a namespace.

    The kernel queues the notice before the change returns to the caller, so an empty
    queue proves that nothing was touched, not even for a moment; a before-and-after kernel_state
    cannot say that.
    """

    GROUPS = (1, 3, 5, 7, 8, 9, 11, 19, 24, 25)

    def __init__(self, netns: str) -> None:
        self._socket = inside(
            netns, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        )
        self._socket.bind((0, 0))
        for group in self.GROUPS:
            self._socket.setsockopt(270, 1, group)  # SOL_NETLINK, NETLINK_ADD_MEMBERSHIP
        self._socket.setblocking(False)

    def changes(self) -> list[str]:
        """What changed since the last time it was asked."""
        events: list[str] = []
        while True:
            try:
                packet = self._socket.recv(1 << 16)
            except BlockingIOError:
                return events
            while packet:
                length, kind = struct.unpack_from("IH", packet)
                message = packet[16:length]
                if not _is_kernel_housekeeping(kind, message):
                    events.append(_EVENTS.get(kind, f"message {kind}"))
                packet = packet[(length + 3) & ~3 :]

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


def _is_kernel_housekeeping(kind: int, message: bytes) -> bool:
    """The kernel makes and drops neighbours when it sends to a group, and ages known ones."""
    if kind not in (28, 29) or message[0] != socket.AF_INET6:
        return False
    (state,) = struct.unpack_from("H", message, 8)
    if kind == 28 and state & 0x1C:  # NUD_STALE, NUD_DELAY, NUD_PROBE
        return True
    attributes = message[12:]
    while attributes:
        length, name = struct.unpack_from("HH", attributes)
        if name == 1:  # NDA_DST
            return attributes[4] == 0xFF
        attributes = attributes[(length + 3) & ~3 :]
    return False


_PICTURE = """
ip -d -o link; ip -6 addr; ip addr; ip -6 route show table all; ip route show table all
ip -6 neigh show nud all | grep -v '^ff0'; ip -6 neigh show proxy; ip rule; ip -6 rule
cat /proc/sys/net/ipv6/conf/all/forwarding /proc/sys/net/ipv4/ip_forward
"""


def kernel_state(host: Host, *pods: Pod) -> str:
    """Everything a plugin could have changed on a node and in pods, as text to compare."""
    parts = [host.run("sh", "-c", _PICTURE)]
    parts += [host.run("ip", "netns", "exec", pod.name, "sh", "-c", _PICTURE) for pod in pods]
    return "\n=====\n".join(parts)
