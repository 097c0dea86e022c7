# SPDX-License-Identifier: Apache-2.0
"""What a node is like just now: links, attachments, routes, configurations, and its daemon.

The kernel is asked with the plugin's own netlink and the files with libcni's own rules, here and
nowhere else in the tool, so that no two commands can disagree. Reading changes nothing. The daemon
is optional: what only it knows is None when it does not answer within a second.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EINVAL
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

from mycelium_cni.cni.config import Config, Network
from mycelium_cni.cni.errors import CniError
from mycelium_cni.guard import counterpart
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import netns, sysctl
from mycelium_cni.kernel.address import format_address, format_mac, parse_address, parse_mac
from mycelium_cni.kernel.link import Link
from mycelium_cni.kernel.snapshot import Address, Route, Snapshot
from mycelium_cni.node import subnet
from mycelium_cni.node.marks import GROUP, GROUP_MASK
from mycelium_cni.overlay import on_mycelium
from mycelium_cni.pod.attachment import ALIAS_PREFIX, ALIAS_SIZE, LINK_PREFIX
from mycelium_ctl import programs
from mycelium_ctl.errors import ToolError
from mycelium_ctl.node.conflist import TYPE, ConfFile, list_files
from mycelium_ctl.node.conflist import read as read_conf

API: Final = "127.0.0.1:8989"
API_PATIENCE_S: Final = 1.0  # for everything that is asked of the daemon, together
API_MOST_BYTES: Final = 16 << 20  # of one answer: some 100,000 routes

# linux/if_link.h, net_namespace.h, rtnetlink.h, neighbour.h: what the plugin has no need of.
IFLA_STATS64, IFLA_CARRIER, IFLA_LINK_NETNSID, IFLA_TARGET_NETNSID = 23, 33, 37, 46
IFLA_TUN_PERSIST = 6
RTM_NEWNSID, RTM_GETNSID, NETNSA_NSID, NETNSA_FD = 88, 90, 1, 3
RTA_CACHEINFO = 12

CAP_NET_ADMIN: Final = 12  # linux/capability.h
NS_GET_USERNS: Final = 0xB701  # linux/nsfs.h
PROC_PID_INIT_INO: Final = 0xEFFFFFFC  # linux/proc_ns.h

# Where runtimes look: configurations, executables, whose they are. The grid's k3s image comes last.
PLACES: Final = (
    ("etc/cni/net.d", ("opt/cni/bin",), "kubelet"),
    (
        "var/lib/rancher/k3s/agent/etc/cni/net.d",
        ("var/lib/rancher/k3s/data/cni", "var/lib/rancher/k3s/data/current/bin", "opt/cni/bin"),
        "k3s",
    ),
    ("mnt/data/agent/etc/cni/net.d", ("mnt/data/data/cni",), "k3s of the ThreeFold Grid"),
)


class Options(NamedTuple):
    """What the user said about where to look; see `add_options`."""

    root: Path
    conf_dirs: tuple[Path, ...]
    bin_dirs: tuple[Path, ...]
    api: str
    said: dict[str, str]  # overrides of the network configuration, by its keys


def add_options(parser: argparse.ArgumentParser) -> None:
    """The arguments that all commands share which read the node."""
    group = parser.add_argument_group(
        "where to look", "By default what the configuration that counts says, else the defaults."
    )
    group.add_argument("--mode", choices=("auto", "routed", "bridge"))
    group.add_argument("--interface", metavar="NAME", help="the daemon's interface (mycelium)")
    group.add_argument("--bridge", metavar="NAME", help="(mycelium-br)")
    group.add_argument("--netseed", metavar="FILE", help="the daemon's key file (/etc/netseed)")
    group.add_argument("--api", default=API, metavar="ADDRESS:PORT", help="(%(default)s)")
    group.add_argument("--conf-dir", action="append", type=Path, metavar="DIR", default=[])
    group.add_argument("--bin-dir", action="append", type=Path, metavar="DIR", default=[])
    group.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR", help="read files below DIR instead"
    )


def options(arguments: argparse.Namespace) -> Options:
    said = {
        "mode": arguments.mode,
        "myceliumInterface": arguments.interface,
        "bridge": arguments.bridge,
        "netseed": arguments.netseed,
    }
    return Options(
        arguments.root,
        tuple(arguments.conf_dir),
        tuple(arguments.bin_dir),
        arguments.api,
        {key: value for key, value in said.items() if value},
    )


# Links


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """A link as the kernel shows it. Counters are the link's own: what it sent, its peer got."""

    index: int
    name: str
    kind: str  # "veth", "bridge", "tun"; "" for hardware
    up: bool
    mtu: int
    mac: str
    master: int  # index of the bridge, 0 for none
    group: int
    alias: str
    altnames: tuple[str, ...]
    peer: int  # index of the other end, in its own namespace
    nsid: int | None  # which namespace that is; None: this one, or there is no peer
    carrier: bool  # of a TUN: a program holds it
    persistent: bool  # a TUN that stays without its program
    received_bytes: int
    sent_bytes: int
    received_packets: int
    sent_packets: int

    @property
    def ours(self) -> bool:
        """Whether it is a host link of ours, by its group, or, where somebody has moved it to
        another one, by its alias."""
        by_group = self.group & GROUP_MASK == GROUP and self.name.startswith(LINK_PREFIX)
        return self.kind == "veth" and (by_group or self.alias.startswith(f"{ALIAS_PREFIX} "))


@dataclass(frozen=True, slots=True)
class Attached:
    """One attachment: a host link of ours, with what its alias says and its pod end shows."""

    link: LinkFacts
    namespace: str
    pod: str
    container: str
    ifname: str
    network: str
    address: str
    answers: bool  # the pod end is there
    pod_link: str  # its name; "" if it does not answer
    pod_mtu: int  # bytes; 0 if it does not answer
    pod_up: bool
    pod_mac: str  # "" if it does not answer
    mode: str  # as the alias says; "" of attachments that do not say
    cut: bool  # the alias had no room for all of it

    @property
    def who(self) -> str:
        """The pod, or what else there is to call it."""
        if self.pod:
            return f"{self.namespace}/{self.pod}" if self.namespace else self.pod
        return self.container[:13] or self.link.name

    @property
    def octets(self) -> bytes:
        """The address; b"" if the link has none."""
        try:
            return parse_address(self.address)
        except ValueError:
            return b""

    @property
    def subnet(self) -> bytes:
        """The first 8 bytes of the address; b"" if the link has none."""
        return self.octets[:8]

    @property
    def bridged(self) -> bool:
        """Whether the pod was attached in bridge mode."""
        if self.mode or not self.pod_mac:
            return self.mode == "bridge" or bool(self.link.master)
        # 0.1.0 did not say, and made the two MACs tell each other in bridge mode only.
        return counterpart(parse_mac(self.link.mac)) == parse_mac(self.pod_mac)

    @property
    def expected_pod_mac(self) -> bytes:
        """The pod's MAC: in routed mode whatever it has by now, on a bridge what it was given."""
        if self.bridged:
            return counterpart(parse_mac(self.link.mac))
        return parse_mac(self.pod_mac) if self.pod_mac else bytes(6)


def subnet_of(address: str) -> bytes:
    """The first 8 bytes of an IPv6 address; raises ValueError."""
    return parse_address(address)[:8]


def show_subnet(prefix: bytes) -> str:
    """`400:1:2:3::/64` of its first 8 bytes."""
    return f"{format_address(prefix + bytes(8))}/64"


def read_links(host: nl.Socket) -> list[LinkFacts]:
    """All links of the namespace that `host` is in."""
    return [_link(payload) for payload in host.dump(nl.link(nl.RTM_GETLINK, "list links"))]


def _link(payload: bytes) -> LinkFacts:
    link = Link(payload)
    info = nl.decode(link.attribute(nl.IFLA_LINKINFO), 0)
    kind = nl.text(info.get(nl.IFLA_INFO_KIND, b""))
    data = nl.decode(info.get(nl.IFLA_INFO_DATA, b""), 0) if kind == "tun" else {}
    counters = link.attribute(IFLA_STATS64, bytes(32))
    nsid = link.attribute(IFLA_LINK_NETNSID)
    return LinkFacts(
        index=link.index,
        name=link.name,
        kind=kind,
        up=link.up,
        mtu=link.mtu,
        mac=format_mac(link.mac),
        master=link.master,
        group=link.group,
        alias=link.alias,
        altnames=tuple(link.altnames),
        peer=link.peer,
        nsid=int.from_bytes(nsid, "little", signed=True) if nsid else None,
        carrier=link.attribute(IFLA_CARRIER, b"\0") != b"\0",
        persistent=bool(data.get(IFLA_TUN_PERSIST, b"\0")[0]),
        received_packets=int.from_bytes(counters[0:8], "little"),
        sent_packets=int.from_bytes(counters[8:16], "little"),
        received_bytes=int.from_bytes(counters[16:24], "little"),
        sent_bytes=int.from_bytes(counters[24:32], "little"),
    )


def read_attachments(host: nl.Socket, links: Sequence[LinkFacts]) -> list[Attached]:
    """The attachments among these links, sorted by pod."""
    found = []
    for link in links:
        if link.ours:
            found.append(_attached(host, link))
    return sorted(found, key=lambda one: (one.namespace, one.pod, one.container, one.ifname))


def _attached(host: nl.Socket, link: LinkFacts) -> Attached:
    said = {}
    words = link.alias.split(" ")
    if words[0] == ALIAS_PREFIX:
        said = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    end = _pod_end(host, link)
    namespace, _, pod = said.get("pod", "").rpartition("/")
    # The alternative name is the reservation; the alias only repeats it.
    address = next((name for name in link.altnames if ":" in name), said.get("address", ""))
    return Attached(
        link=link,
        namespace=namespace,
        pod=pod,
        container=said.get("container", ""),
        ifname=said.get("ifname", ""),
        network=said.get("network", ""),
        address=address,
        answers=end is not None,
        pod_link=end.name if end else "",
        pod_mtu=end.mtu if end else 0,
        pod_up=bool(end and end.up),
        pod_mac=end.mac if end else "",
        mode=said.get("mode", ""),
        cut=len(link.alias) >= ALIAS_SIZE,
    )


def _pod_end(host: nl.Socket, link: LinkFacts) -> LinkFacts | None:
    """The other end, asked for through its namespace's number: no path to it is needed."""
    if link.nsid is None or link.nsid < 0:
        return None
    attributes = ((IFLA_TARGET_NETNSID, link.nsid),)
    try:
        end = _link(
            host.request(nl.link(nl.RTM_GETLINK, "read pod link", *attributes, index=link.peer))[0]
        )
    except nl.NetlinkError:
        return None
    return end if end.peer == link.index else None


# Switches


def switch(link: str, name: str) -> str:
    """A per-link IPv6 switch; "" where the link or the switch is not there."""
    try:
        return sysctl.get(sysctl.conf(link, name))
    except OSError:
        return ""


# The namespaces of pods


@dataclass(slots=True)
class PodNetns:
    """A network namespace: how to get in, and who is in it."""

    inode: int
    path: str
    names: list[str] = field(default_factory=list)  # mounts, such as /run/netns/cni-…
    processes: list[int] = field(default_factory=list)

    def open(self) -> int:
        """A descriptor of it. Raises OSError, also when something else is at the path by now: a
        container can put what it likes there, and to open a device does things."""
        place = os.open(self.path, os.O_PATH | os.O_CLOEXEC)  # opens nothing yet
        try:
            there, own = os.fstat(place), os.stat("/proc/self/ns/net")  # noqa: PTH116
            if (there.st_dev, there.st_ino) != (own.st_dev, self.inode):
                raise OSError(EINVAL, "is not that namespace any more", self.path)
            return netns.open_netns(f"/proc/self/fd/{place}")
        finally:
            os.close(place)


def read_netns(host: nl.Socket) -> dict[int, PodNetns]:
    """The namespaces that processes or mounts of this machine hold, by the number (nsid) that this
    namespace knows them by. One that only an open file holds has no path, and is not in it."""
    by_inode: dict[int, PodNetns] = {}
    mount_namespaces: dict[int, str] = {}
    for pid in ("self", *sorted(name for name in os.listdir("/proc") if name.isdecimal())):  # noqa: PTH208 - 3 times as fast, for thousands of processes
        path = f"/proc/{pid}/ns/net"
        try:
            inode = os.stat(path).st_ino  # noqa: PTH116
            mount_namespaces.setdefault(os.stat(f"/proc/{pid}/ns/mnt").st_ino, pid)  # noqa: PTH116
        except OSError:
            continue  # it has just ended
        if pid != "self":
            by_inode.setdefault(inode, PodNetns(inode, path)).processes.append(int(pid))
    for pid in mount_namespaces.values():
        for inode, name in _named_netns(pid):
            held = by_inode.setdefault(inode, PodNetns(inode, f"/proc/{pid}/root{name}"))
            if name not in held.names:
                held.names.append(name)
    found = {}
    for held in by_inode.values():
        try:
            fd = held.open()
        except OSError:
            continue
        try:
            body = b"\0\0\0\0" + nl.encode(((NETNSA_FD, fd),))
            answer = host.request(nl.Message(RTM_GETNSID, 0, body, "read namespace number"))[0]
        except nl.NetlinkError:
            continue
        finally:
            os.close(fd)
        number = nl.decode(answer, 4).get(NETNSA_NSID, b"\xff\xff\xff\xff")
        nsid = int.from_bytes(number, "little", signed=True)
        if nsid >= 0:
            found[nsid] = held
    return found


def _named_netns(pid: str) -> Iterator[tuple[int, str]]:
    """Inode and path of the network namespaces that are mounted where a process sees them. Where
    anybody may mount, in a user namespace of their own, nobody's runtime names a pod's."""
    try:
        if not _mounts_are_ours(pid):
            return
        with Path(f"/proc/{pid}/mountinfo").open(errors="surrogateescape") as lines:
            for line in lines:
                words = line.split(" ")
                if words[3].startswith("net:["):
                    octal = re.compile(r"\\([0-7]{3})")
                    yield int(words[3][5:-1]), octal.sub(lambda m: chr(int(m[1], 8)), words[4])
    except OSError:
        return  # it has just ended


def _mounts_are_ours(pid: str) -> bool:
    """Whether a process's mount namespace belongs to the user namespace that this process is in."""
    mounts = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = fcntl.ioctl(mounts, NS_GET_USERNS)
    finally:
        os.close(mounts)
    try:
        return os.fstat(owner).st_ino == os.stat("/proc/self/ns/user").st_ino  # noqa: PTH116
    finally:
        os.close(owner)


def sees_all_processes() -> bool:
    """Whether /proc shows the machine's processes, and not just those of a container."""
    return os.stat("/proc/self/ns/pid").st_ino == PROC_PID_INIT_INO  # noqa: PTH116


def require_rights() -> None:
    """Raise ToolError for a process that may not change the network: before it changes half."""
    if not _may_configure("/proc/self"):
        raise ToolError("changing the network takes CAP_NET_ADMIN: run it as root")


# The daemon


class Peer(NamedTuple):
    endpoint: str
    alive: bool


_HANGS: Final = "it did not answer within"


class Daemon(NamedTuple):
    """What the daemon's HTTP API tells. None: it did not; daemons before 0.7.8 lack fields."""

    trouble: str = ""  # why it did not answer, or not with all
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
    """Ask the daemon, and return in time whatever it does; a daemon that hangs holds one thread."""
    answers: dict[str, Any] = {}
    trouble: list[str] = []
    asking = threading.Thread(target=_ask, args=(api, within_s, answers, trouble), daemon=True)
    asking.start()
    asking.join(within_s)
    if asking.is_alive() and not trouble:
        trouble.append(f"{_HANGS} {within_s:g} s")
    return _daemon(dict(answers), trouble[0] if trouble else "")


def _ask(api: str, within_s: float, answers: dict[str, Any], trouble: list[str]) -> None:
    import http.client

    host, _, port = api.rpartition(":")
    deadline = time.monotonic() + within_s
    for page in ("admin", "admin/peers", "admin/routes/selected"):
        left = max(deadline - time.monotonic(), 0.01)
        try:
            connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=left)
            connection.request("GET", f"/api/v1/{page}")
            answer = connection.getresponse()
            if answer.status == http.HTTPStatus.OK:
                answers[page] = json.loads(answer.read(API_MOST_BYTES))
            else:
                trouble.append(f"/api/v1/{page}: HTTP status {answer.status}")
            connection.close()
        except TimeoutError:
            trouble.append(f"{_HANGS} {within_s:g} s")
            return
        except OSError as error:
            trouble.append(str(error.strerror or error))
            return
        except (ValueError, RecursionError, http.client.HTTPException):
            trouble.append(f"/api/v1/{page}: what answers there is no Mycelium daemon")
            return


def _daemon(answers: dict[str, Any], trouble: str) -> Daemon:
    """Take what has the expected form, of whatever is listening there: any user of the node can,
    while the daemon does not. All of it is printed sooner or later."""
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
    address: str
    port: int


def read_listeners() -> list[Listener]:
    """The TCP sockets that wait for connections in this namespace."""
    import ipaddress

    found = []
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            host, _, port = words[1].partition(":")
            if words[3] == "0A":  # TCP_LISTEN (net/tcp_states.h)
                # The address is printed as host-order words of 32 bits.
                octets = b"".join(
                    bytes.fromhex(host[i : i + 8])[::-1] for i in range(0, len(host), 8)
                )
                found.append(Listener(str(ipaddress.ip_address(octets)), int(port, 16)))
    return found


def find_process(interface: LinkFacts) -> int | None:
    """The process that holds the TUN: the daemon. None if there is none, or none to be seen.

    /proc shows the name of a TUN and not which namespace it is in, and anybody may make one of this
    name in a user namespace of their own. So the process must be one that may configure this
    namespace, and the kernel must say that this TUN is held at all.
    """
    if not interface.carrier:
        return None
    own = [os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("net", "user")]  # noqa: PTH116
    for name in os.listdir("/proc"):  # noqa: PTH208
        if not name.isdecimal():
            continue
        process = f"/proc/{name}"
        try:
            if [os.stat(f"{process}/ns/{kind}").st_ino for kind in ("net", "user")] != own:  # noqa: PTH116
                continue
            for fd in os.listdir(f"{process}/fd"):  # noqa: PTH208
                if os.readlink(f"{process}/fd/{fd}") == "/dev/net/tun":  # noqa: PTH115
                    info = Path(f"{process}/fdinfo/{fd}").read_text()
                    if f"iff:\t{interface.name}\n" in info and _may_configure(process):
                        return int(name)
        except OSError:
            continue  # it has just ended, or is not ours to look into
    return None


def _may_configure(process: str) -> bool:
    """Whether a process, by its path in /proc, may change the network of its namespace."""
    for line in Path(process, "status").read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> CAP_NET_ADMIN & 1)
    return False


def read_version(process: int, root: Path) -> str:
    """The version that the daemon's installed executable tells; "" if the process runs another one,
    or if others than root could have put it there."""
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
        unit = root / folder / "systemd/system/mycelium.service"
        if unit.is_file():
            for line in unit.read_text(errors="replace").splitlines():
                key, _, command = line.partition("=")
                words = command.strip().lstrip("@-:+!|").split()
                if key.strip() == "ExecStart" and words and words[0].startswith("/"):
                    yield root / words[0].lstrip("/")
    yield from (root / place / "mycelium" for place in ("usr/bin", "usr/local/bin"))


# Configurations


class CniDirs(NamedTuple):
    """A pair of directories that a runtime uses."""

    conf: Path
    bins: tuple[Path, ...]
    whose: str


def find_dirs(where: Options) -> list[CniDirs]:
    """The directories that the runtimes of this node read. Those that the command line names, else
    those that containerd's and CRI-O's configurations name, and the usual ones that are there."""
    root = where.root
    if where.conf_dirs:
        bins = where.bin_dirs or (root / PLACES[0][1][0],)
        return [CniDirs(conf, bins, "you") for conf in where.conf_dirs]
    found = [
        CniDirs(root / conf, where.bin_dirs or tuple(root / name for name in bins), whose)
        for conf, bins, whose in PLACES
        if (root / conf).is_dir()
    ]
    for config, whose in (
        ("etc/containerd/config.toml", "containerd"),
        ("var/lib/rancher/k3s/agent/etc/containerd/config.toml", "k3s"),
        ("etc/crio/crio.conf", "CRI-O"),
    ):
        said, executables = _said_dirs(root / config)
        known = [dirs.conf for dirs in found]
        for conf in said:
            place = root / conf.lstrip("/")
            if place not in known:
                named = tuple(root / name.lstrip("/") for name in executables)
                found.append(CniDirs(place, where.bin_dirs or named, whose))
    if not found:
        usual, paths, whose = PLACES[0]
        bins = where.bin_dirs or tuple(root / name for name in paths)
        found = [CniDirs(root / usual, bins, whose)]
    return found


def _said_dirs(path: Path) -> tuple[list[str], list[str]]:
    """CNI directories in a runtime's configuration: their keys differ with the version, so they are
    looked for wherever they stand."""
    if not path.is_file():
        return [], []
    import tomllib

    try:
        document = tomllib.loads(path.read_text())
    except (OSError, ValueError):
        return [], []
    confs: list[str] = []
    bins: list[str] = []

    def look(value: Any) -> None:
        for key, item in value.items() if isinstance(value, dict) else ():
            if key in ("conf_dir", "network_dir") and isinstance(item, str) and "cni" in item:
                confs.append(item)
            elif key in ("bin_dir", "bin_dirs", "plugin_dirs"):
                listed = item if isinstance(item, list) else [item]
                bins.extend(str(one) for one in listed)
            else:
                look(item)

    look(document)
    return confs, bins


@dataclass(frozen=True, slots=True)
class ConfDir:
    """A configuration directory with its files, in the order in which runtimes read them."""

    dirs: CniDirs
    files: list[ConfFile]

    @property
    def winner(self) -> ConfFile | None:
        """The file that decides how pods are attached: containerd takes the first one, and nothing
        at all when that is invalid."""
        return self.files[0] if self.files else None

    @property
    def ours(self) -> ConfFile | None:
        """The file with our plugin's configuration that counts: the winner, else what a
        meta-plugin such as Multus might delegate to."""
        return next((conf for conf in self.files if conf.valid and conf.entries), None)

    @property
    def by_multus(self) -> bool:
        winner = self.winner
        return winner is not None and any(kind.startswith("multus") for kind in winner.types)


def read_confs(where: Options) -> list[ConfDir]:
    found = []
    for dirs in find_dirs(where):
        files = []
        for path in list_files(dirs.conf):
            try:
                files.append(read_conf(path))
            except OSError as error:
                raise ToolError(f"cannot read {path}: {error.strerror}") from error
        found.append(ConfDir(dirs, files))
    return found


def find_executable(name: str, dirs: CniDirs) -> Path | None:
    """The executable that the runtime starts for a plugin type."""
    for directory in dirs.bins:
        path = directory / name
        if path.is_file():
            return path
    return None


# All of it


class State:
    """The node, read piece by piece as it is asked for; each piece once.

    `config` is what ADD would work with: our entry of the configuration that counts, with the
    command line on top. `node` is None, and `trouble` says why, where ADD would be refused.
    """

    def __init__(self, where: Options) -> None:
        self.where: Final = where
        self.host: Final = nl.Socket()

    @cached_property
    def confs(self) -> list[ConfDir]:
        return read_confs(self.where)

    @cached_property
    def entry(self) -> dict[str, Any]:
        """The network configuration that ADD would get."""
        ours = next((conf.ours for conf in self.confs if conf.ours), None)
        entry: dict[str, Any] = {"cniVersion": "1.1.0", "name": "mycelium", "type": TYPE}
        if ours:
            entry |= ours.entries[0]
        return entry | self.where.said

    @cached_property
    def config(self) -> Config:
        """Raises ToolError for command-line values that no configuration may have."""
        return _config(self.entry)

    @property
    def network(self) -> str:
        """The name of the network."""
        return str(self.entry["name"])

    def config_of(self, network: str) -> Config | None:
        """What ADD would work with for a pod of that network; None where no file of this node has
        the network any more."""
        if network == self.network:
            return self.config
        for directory in self.confs:
            for conf in directory.files:
                for entry in conf.entries if conf.valid else ():
                    if entry.get("name") == network:
                        return _config(entry)
        return None

    @property
    def interface_config(self) -> Config:
        """The same, looking at the interface alone: neither bridge nor key are asked."""
        entry = {key: value for key, value in self.entry.items() if key != "bridge"}
        return _config(entry | {"mode": "routed"})

    @cached_property
    def _found(self) -> tuple[subnet.Node | None, CniError | None]:
        try:
            return subnet.find(self.host, self.config), None
        except CniError as error:
            return None, error

    @property
    def node(self) -> subnet.Node | None:
        return self._found[0]

    @property
    def trouble(self) -> CniError | None:
        return self._found[1]

    @cached_property
    def links(self) -> list[LinkFacts]:
        return read_links(self.host)

    def link(self, name: str) -> LinkFacts | None:
        return next((link for link in self.links if link.name == name), None)

    @property
    def interface(self) -> LinkFacts | None:
        return self.link(self.config.interface)

    @property
    def bridge(self) -> LinkFacts | None:
        return self.link(self.config.bridge_name)

    @cached_property
    def bridged(self) -> bool:
        """Whether pods hang on the bridge, as `subnet.find` decides it."""
        mode = self.config.mode
        return mode == "bridge" or (mode == "auto" and self.bridge is not None)

    @cached_property
    def attachments(self) -> list[Attached]:
        return read_attachments(self.host, self.links)

    @cached_property
    def seen(self) -> Snapshot:
        """The tables of this namespace."""
        return Snapshot(self.host)

    @property
    def addresses(self) -> list[Address]:
        return list(self.seen.addresses.values())

    @property
    def routes(self) -> list[Route]:
        return self.seen.routes

    @cached_property
    def address(self) -> bytes | None:
        """The node's address as the interface has it, even when something else is wrong."""
        interface = self.interface
        own = [a for a in self.addresses if interface and a.link == interface.index]
        own = [a for a in own if on_mycelium(a.address)]
        return next((a.address for a in own if a.prefixlen == 7), own[0].address if own else None)

    @property
    def stranded(self) -> list[Attached]:
        """Attachments whose address is not of the node's subnet: its key has changed."""
        own = self.address
        return [a for a in self.attachments if own and a.subnet and a.subnet != own[:8]]

    @property
    def silent(self) -> list[Attached]:
        """Attachments whose pod end does not answer."""
        return [attached for attached in self.attachments if not attached.answers]

    @cached_property
    def daemon(self) -> Daemon:
        return read_daemon(self.where.api)

    @cached_property
    def process(self) -> int | None:
        return find_process(self.interface) if self.interface else None

    @cached_property
    def version(self) -> str:
        return read_version(self.process, self.where.root) if self.process else ""

    @contextmanager
    def inside(self, one: Attached) -> Iterator[bool]:
        """Let this thread be in a pod's network namespace; False where that cannot be entered."""
        nsid = one.link.nsid
        held = self.netns.get(nsid) if nsid is not None else None
        try:
            there = held.open() if held else -1
        except OSError:
            there = -1
        if there < 0:
            yield False
            return
        home = netns.netns_of(self.host.fileno())
        try:
            with netns.inside(there, home=home):
                yield True
        finally:
            os.close(there)
            os.close(home)

    @cached_property
    def netns(self) -> dict[int, PodNetns]:
        return read_netns(self.host)


def _config(entry: dict[str, Any]) -> Config:
    try:
        return Config(Network(json.dumps(entry).encode()))
    except CniError as error:
        raise ToolError(error.msg) from error
