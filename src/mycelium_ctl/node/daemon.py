# SPDX-License-Identifier: Apache-2.0
"""The node's Mycelium daemon: its API, process and version, and who else can reach the API.

The daemon is optional: what only it knows is None when it does not answer within a second. Any
user could answer there, or hold a TUN of that name in /proc: see `_daemon` and `find_process`.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel.address import format_address, parse_address
from mycelium_ctl import files, programs
from mycelium_ctl.node.rights import may_configure

if TYPE_CHECKING:
    from socket import socket

API_PATIENCE_S: Final = 1.0  # for all questions to the daemon together
# Of all answers together: some 50,000 routes. As objects they may take 30 times as much.
API_MOST_BYTES: Final = 6 << 20
HTTP_OK: Final = 200

# linux/sock_diag.h, inet_diag.h: family, protocol, extensions, states, and no socket in particular.
NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
_DIAG_REQUEST: Final = Struct("=BBBxI48x")
IPPROTO_TCP, TCP_LISTEN = 6, 10  # linux/in.h, net/tcp_states.h
_MAPPED: Final = bytes(10) + b"\xff\xff"


class Peer(NamedTuple):
    endpoint: str
    alive: bool


_HANGS: Final = "it did not answer within"


class Daemon(NamedTuple):
    """What the daemon's HTTP API says. None: nothing; daemons before 0.7.8 lack fields."""

    trouble: str = ""  # why it did not answer, or only in part
    subnet: str | None = None
    address: str | None = None
    public_key: str | None = None
    started: int | None = None  # seconds since 1970
    peers: list[Peer] | None = None
    routes: list[tuple[str, int]] | None = None  # subnet, metric; the nearest first

    @property
    def hangs(self) -> bool:
        """Whether something accepts connections there and does not answer."""
        return self.trouble.startswith(_HANGS)

    @property
    def alive_peers(self) -> int:
        return sum(peer.alive for peer in self.peers or ())


def read_daemon(api: str, *, within_s: float = API_PATIENCE_S) -> Daemon:
    """Ask the daemon, and return in time, whatever answers there."""
    answers: dict[str, Any] = {}
    return _daemon(answers, _ask(api, within_s, answers))


def _ask(api: str, within_s: float, answers: dict[str, Any]) -> str:
    """Fill in the answers, by page; returns what went wrong."""
    from socket import create_connection

    host, _, port = api.rpartition(":")
    end = time.monotonic() + within_s
    trouble, room = "", API_MOST_BYTES
    for page in ("admin", "admin/peers", "admin/routes/selected"):
        left = max(end - time.monotonic(), 0.01)
        try:
            # Half of it to connect: a daemon that hangs accepts, a filter that drops does not.
            try:
                connection = create_connection((host.strip("[]"), int(port)), left / 2)
            except TimeoutError:
                return trouble or "no connection: does a packet filter drop what goes over lo?"
            octets = _get(connection, left, api, page, room + 1)
            room -= len(octets)
            if room < 0:
                return trouble or f"it answers with more than {API_MOST_BYTES >> 20} MB"
            status, body = _status(octets)
            if status == HTTP_OK:
                answers[page] = json.loads(body)
            else:
                trouble = trouble or f"/api/v1/{page}: HTTP status {status}"
        except TimeoutError:
            return trouble or f"{_HANGS} {within_s:g} s"
        except OSError as error:
            return trouble or str(error.strerror or error)
        except (ValueError, RecursionError):
            return trouble or f"/api/v1/{page}: what answers there is not a Mycelium daemon"
    return trouble


def _get(connection: socket, within_s: float, api: str, page: str, most: int) -> bytes:
    """The answer to a request, its head included. HTTP/1.0: it ends with the connection. The client
    of the standard library imports thirty modules for it, a tenth of `status`."""
    from mycelium_ctl.deadline import Deadline

    request = f"GET /api/v1/{page} HTTP/1.0\r\nHost: {api}\r\n\r\n"
    with Deadline(connection, within_s) as asking, asking.makefile("rb") as answer:
        asking.sendall(request.encode())
        return answer.read(most)


def _status(answer: bytes) -> tuple[int, bytes]:
    """Status and body. Raises ValueError where it is not of HTTP."""
    head, end, body = answer.partition(b"\r\n\r\n")
    if not answer.startswith(b"HTTP/1.") or not end:
        raise ValueError("not HTTP")
    return int(head.split(maxsplit=2)[1]), body


def _daemon(answers: dict[str, Any], trouble: str) -> Daemon:
    """Take only what has the expected form: while the daemon is down, any user of the node can
    listen there. All of it may be printed."""
    admin = _object(answers.get("admin"))
    peers, routes = answers.get("admin/peers"), answers.get("admin/routes/selected")
    key, started = admin.get("nodePubkey"), admin.get("nodeStartTime")
    return Daemon(
        trouble,
        _subnet(admin.get("nodeSubnet")),
        _address(admin.get("nodeIp")),
        key if isinstance(key, str) and re.fullmatch("[0-9a-fA-F]{64}", key) else None,
        started if isinstance(started, int) else None,
        [_peer(peer) for peer in peers if isinstance(peer, dict)]
        if isinstance(peers, list)
        else None,
        sorted(filter(None, map(_route, routes)), key=lambda one: one[1])
        if isinstance(routes, list)
        else None,
    )


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _address(value: object) -> str | None:
    try:
        return format_address(parse_address(value)) if isinstance(value, str) else None
    except ValueError:
        return None


def _subnet(value: object) -> str | None:
    """The /64 of a node, as this program writes it."""
    base, _, length = value.partition("/") if isinstance(value, str) else ("", "", "")
    address = _address(base)
    return f"{address}/64" if address and length == "64" else None


def _peer(peer: dict[str, Any]) -> Peer:
    endpoint = _object(peer.get("endpoint"))
    place = _object(endpoint.get("addr")).get("socket")
    shown = place if isinstance(place, str) and re.fullmatch(r"[\w.:%\[\]]{1,80}", place) else "?"
    proto = endpoint.get("proto")
    known = proto if proto in ("tcp", "tls", "quic", "vsock") else "?"
    return Peer(f"{known}://{shown}", peer.get("connectionState") == "alive")


def _route(route: object) -> tuple[str, int] | None:
    """Subnet and metric."""
    subnet, metric = _subnet(_object(route).get("subnet")), _object(route).get("metric")
    return (subnet, metric if isinstance(metric, int) else 0xFFFF) if subnet else None


class Listener(NamedTuple):
    address: bytes  # four of IPv4, also where IPv6 maps it, or sixteen
    port: int


def read_listeners() -> list[Listener]:
    """The TCP sockets that wait for connections in this namespace. /proc/net/tcp would have the
    kernel walk the table of all connections: 4 ms for a hundred thousand empty places, and twice.
    Raises OSError: a kernel without CONFIG_INET_DIAG."""
    found = []
    with nl.Socket(NETLINK_SOCK_DIAG) as diagnosis:
        for family, size in ((nl.AF_INET, 4), (nl.AF_INET6, 16)):
            question = _DIAG_REQUEST.pack(family, IPPROTO_TCP, 0, 1 << TCP_LISTEN)
            message = nl.Message(SOCK_DIAG_BY_FAMILY, 0, question, "list TCP sockets")
            for payload in diagnosis.dump(message):
                address = payload[8 : 8 + size].removeprefix(_MAPPED)
                found.append(Listener(address, int.from_bytes(payload[4:6], "big")))
    return found


def find_process(interface: str) -> int | None:
    """The process that holds the TUN: the daemon. None if there is none, or it is not visible.

    /proc shows the name of a TUN and not which namespace it is in, and anybody may make one of this
    name in a user namespace of their own. So the process must be one that may configure this
    namespace; `State.process` also asks the kernel whether this TUN is held at all.
    """
    own = [os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("net", "user")]  # noqa: PTH116
    for name in os.listdir("/proc"):  # noqa: PTH208
        if not name.isdecimal():
            continue
        process = f"/proc/{name}"
        try:
            if [os.stat(f"{process}/ns/{kind}").st_ino for kind in ("net", "user")] != own:  # noqa: PTH116
                continue
            if not may_configure(process):
                continue
            for fd in os.listdir(f"{process}/fd"):  # noqa: PTH208
                if os.readlink(f"{process}/fd/{fd}") == "/dev/net/tun":  # noqa: PTH115
                    info = Path(f"{process}/fdinfo/{fd}").read_text()
                    if f"iff:\t{interface}\n" in info:
                        return int(name)
        except OSError:
            continue  # it has just ended, or is not ours to look into
    return None


def read_version(process: int, root: Path) -> str:
    """The version that the daemon's installed executable prints; "" if the process runs another
    one, or if others than root could have put it there."""
    import subprocess

    for path in _daemon_executables(root):
        try:
            running = path.samefile(f"/proc/{process}/exe")
            if not running or programs.doubt(path):
                continue
            words = programs.run([str(path), "--version"], within_s=0.3).stdout.split()
        except (OSError, subprocess.TimeoutExpired):
            continue
        if len(words) == 2 and words[0].startswith("mycelium"):
            return words[1]
    return ""


def _daemon_executables(root: Path) -> Iterator[Path]:
    """Where the daemon's unit or package has its executable."""
    for folder in ("etc", "run", "usr/lib", "lib"):  # as in systemd.unit(5)
        try:
            unit = files.read(root / folder / "systemd/system/mycelium.service")
        except OSError:
            continue
        for line in unit.decode(errors="replace").splitlines():
            key, _, command = line.partition("=")
            words = command.strip().lstrip("@-:+!|").split()
            if key.strip() == "ExecStart" and words and words[0].startswith("/"):
                yield root / words[0].lstrip("/")
    yield from (root / place / "mycelium" for place in ("usr/bin", "usr/local/bin"))
