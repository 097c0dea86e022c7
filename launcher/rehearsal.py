# SPDX-License-Identifier: Apache-2.0
"""Calls of the plugin that are made while the executable is built, on a simulated node.

CPython 3.11 specializes the instructions of a function that has run eight times to the types that
they have met (PEP 659). One call of the plugin ends before that. So the interpreter makes some
before its snapshot is taken, and each pod waits for a fifth fewer instructions. They have no
effect: every function that asks the kernel for something is replaced meanwhile. If one fails, so
does the build.
"""

from __future__ import annotations

import sys
from _socket import MSG_DONTWAIT, SO_RCVBUF, SOL_SOCKET, socket, socketpair
from _struct import Struct
from errno import ECONNREFUSED, EEXIST, ENODEV, ENOENT
from fcntl import ioctl
from posix import (  # type: ignore[attr-defined,unused-ignore]
    O_RDWR,
    close,
    environ,
    fstat,
    open,  # noqa: A004 - the one that the plugin imports
    pread,
    read,
    setns,
    stat,
    stat_result,
    urandom,
    write,
)
from time import monotonic, sleep

from mycelium_cni.cni.config import Config, Network
from mycelium_cni.guard import wanted
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import netns
from mycelium_cni.main import main
from mycelium_cni.node.marks import BRIDGE_ALIAS, BRIDGE_GROUP
from mycelium_cni.node.subnet import Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Calls of each kind. CPython specializes after eight, and functions with a loop after fewer.
_TIMES = 12

_NODE = bytes.fromhex("05a12b3c4d5e6f70ff0faaaabbbbcccc")
_LO, _TUN, _BRIDGE, _HOST_LINK = 1, 2, 3, 4
_HEADER = Struct("=IHHII")
_CONF = (
    b'{"cniVersion":"1.1.0","name":"overlay","type":"mycelium-cni","netseed":"/etc/netseed",'
    b'"serviceNetworks":["fd00:10:96::/112"],"defaultRoute":true%s}'
)
_ENVIRONMENT = {
    b"CNI_COMMAND": b"ADD",
    b"CNI_CONTAINERID": b"f00",
    b"CNI_NETNS": b"/run/netns/pod",
    b"CNI_IFNAME": b"eth0",
    b"CNI_PATH": b"/opt/cni/bin",
    b"CNI_ARGS": b"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0",
}


class _Kernel:
    """A netlink socket of a node, `bare` before its first pod. No agent listens to the other kind
    of socket that a call opens."""

    bare = False
    bridged = False
    waited = False  # as an ADD does on most nodes, once

    def __init__(self, _family: int, _type: int, _protocol: int = 0) -> None:
        self._answers: list[bytes] = []

    def fileno(self) -> int:
        return 3

    def setsockopt(self, _level: int, _option: int, _value: int) -> None:
        pass

    def close(self) -> None:
        pass

    def connect_ex(self, _address: bytes) -> int:
        return ECONNREFUSED

    def recv(self, _size: int, _flags: int) -> bytes:
        return self._answers.pop(0)

    def send(self, batch: bytes) -> None:
        start = 0
        while start < len(batch):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(batch, start)
            found = self._answer(kind, flags, batch[start + 16 : start + length])
            start += length + 3 & ~3
            if isinstance(found, bytes):
                self._say(kind, sequence, found)
            if flags & nl.NLM_F_DUMP == nl.NLM_F_DUMP and kind & 0x3 == 2:
                self._say(nl.NLMSG_DONE, sequence, bytes(4))
            elif isinstance(found, int) or flags & nl.NLM_F_ACK:
                number = found if isinstance(found, int) else 0
                self._say(nl.NLMSG_ERROR, sequence, Struct("=i").pack(-number) + bytes(16))

    def _say(self, kind: int, sequence: int, payload: bytes) -> None:
        header = _HEADER.pack(16 + len(payload), kind, 0, sequence, 0)
        self._answers.append(header + payload + bytes(-len(payload) & 3))

    def _answer(self, kind: int, flags: int, body: bytes) -> bytes | int | None:
        """An object, the errno of a refusal, or None if the request is done."""
        index = int.from_bytes(body[4:8], sys.byteorder)
        if kind >> 8:
            return self._nf_answer(kind, body)
        if kind == nl.RTM_GETLINK:
            if b"mycelium-br" in body:
                return _link(_BRIDGE, "mycelium-br") if self.bridged else ENODEV
            return _link(index or _TUN, "mycelium")
        if kind == nl.RTM_NEWLINK and flags & nl.NLM_F_ECHO:
            return _link(_HOST_LINK, "myc0123456789ab", forwards=not self.bare)
        if kind == nl.RTM_GETADDR:
            return nl.IFADDRMSG.pack(nl.AF_INET6, 7, 0, 0, index) + nl.encode(
                ((nl.IFA_ADDRESS, _NODE), (nl.IFA_FLAGS, 0x80))
            )
        if kind == nl.RTM_GETROUTE and flags & nl.NLM_F_DUMP != nl.NLM_F_DUMP:
            kind = nl.RTN_LOCAL if self.waited else nl.RTN_UNICAST
            output = ((nl.RTA_OIF, _BRIDGE),)
            return nl.RTMSG.pack(nl.AF_INET6, 128, 0, 0, 255, 2, 0, kind, 0) + nl.encode(output)
        standing = kind == nl.RTM_NEWROUTE and body[7] == nl.RTN_UNREACHABLE
        if kind == nl.RTM_NEWADDR:
            standing = index in (_LO, _BRIDGE)
        return EEXIST if standing and not self.bare else None

    def _nf_answer(self, kind: int, body: bytes) -> bytes | int | None:
        if kind == 0xA10:  # NFT_MSG_GETGEN
            return bytes(4) + nl.encode(((1, bytes(4)),))
        if kind not in (0xA01, 0xA04, 0xA0D):  # NFT_MSG_GET{TABLE,CHAIN,SETELEM}
            return None
        if self.bare:
            return ENOENT
        said = nl.decode(body, 4)
        if kind == 0xA01:
            return bytes(4) + nl.encode(((2, bytes(4)),))  # NFTA_TABLE_FLAGS
        if kind == 0xA04:
            return bytes(4) + nl.encode(((6, _USES.get(nl.text(said[3]), 1).to_bytes(4, "big")),))
        if said[2] == b"closed\0":
            return ENOENT
        loaded = _WANTED[self.bridged]
        words = (loaded.overlay_words if b"overlays" in body else loaded.network_words).encode()
        return bytes(4) + bytes((0, len(words) + 1)) + words + b"\0"


_WANTED = {
    bridged: wanted.Wanted(
        "overlay", Config(Network(_CONF % b"")), Node(_NODE, 1400, bridged=bridged, bridge=None)
    )
    for bridged in (False, True)
}
_USES = {
    "prerouting": wanted.PREROUTING_USES,
    wanted.PODS_CHAIN: wanted.PODS_USES,
    "overlay-mycelium": wanted.OVERLAY_USES,
    "from-pods": wanted.BRIDGE_PODS_USES,
    wanted.BRIDGE_CHAIN: wanted.BRIDGE_USES,
}


_STATE = (nl.IFLA_BRPORT_STATE, bytes((nl.BR_STATE_FORWARDING,)))
_PORT: nl.Attribute = (nl.IFLA_INFO_SLAVE_DATA, [_STATE])
_KINDS = {_LO: b"", _TUN: b"tun", _BRIDGE: b"bridge", _HOST_LINK: b"veth"}


def _link(index: int, name: str, *, forwards: bool = True) -> bytes:
    """RTM_NEWLINK, with about as many attributes as a kernel's."""
    settings = Struct("=60i").pack(forwards, *[0] * 59)
    return nl.IFINFOMSG.pack(nl.AF_UNSPEC, 0, index, nl.IFF_UP, 0) + nl.encode(
        (
            (nl.IFLA_IFNAME, name),
            (13, 1000),
            (nl.IFLA_OPERSTATE, bytes((nl.IF_OPER_UP,))),
            (nl.IFLA_MTU, 1400),
            (nl.IFLA_GROUP, BRIDGE_GROUP if index == _BRIDGE else 0),
            *((kind, 0) for kind in range(38, 62)),
            (nl.IFLA_LINKINFO, [(nl.IFLA_INFO_KIND, _KINDS[index]), _PORT]),
            (nl.IFLA_LINK, 2),
            (nl.IFLA_ADDRESS, b"\2\4" + _NODE[4:8]),
            (nl.IFLA_IFALIAS, BRIDGE_ALIAS),
            (nl.IFLA_AF_SPEC, [(nl.AF_INET6, [(nl.IFLA_INET6_CONF, settings)])]),
        )
    )


def _status(inode: int) -> stat_result:
    return stat_result((0o100000, inode, 1, *bytes(7)))


_INPUT, _SWITCH = 0, 20
_inputs: list[bytes] = []


def _open(path: str, _flags: int, _mode: int = 0, *, dir_fd: int = 0) -> int:
    if path == "/etc/netseed":
        raise FileNotFoundError(ENOENT, "")
    return _SWITCH + path.endswith("forwarding")


def _read(fd: int, _size: int) -> bytes:
    if fd == _INPUT:
        return _inputs.pop() if _inputs else b""
    return b"1\n" if fd > _SWITCH and not _Kernel.bare else b"0\n"


def _sleep(_seconds: float) -> None:
    if _Kernel.waited:
        raise SystemError("a rehearsed ADD waits for what this kernel does not answer")
    _Kernel.waited = True


_INSTEAD: dict[object, Callable[..., object]] = {
    socket: _Kernel,
    open: _open,
    read: _read,
    pread: lambda fd, size, _offset: _read(fd, size),
    write: lambda _fd, octets: len(octets),
    close: lambda _fd: None,
    stat: lambda _path: _status(0),
    fstat: _status,
    ioctl: lambda _fd, request: netns.CLONE_NEWNET if request == netns.NS_GET_NSTYPE else 5,
    setns: lambda _fd, _type: None,
    urandom: lambda size: bytes(range(size)),
    monotonic: lambda: 1.0,
    sleep: _sleep,
}


# Gathered once: to look at every name would count as a call's writes (snapshot.c).
_REPLACED = [
    (module, name, value)
    for module in [m for name, m in sys.modules.items() if name.startswith("mycelium_cni")]
    for name, value in vars(module).items()
    if callable(value) and value in _INSTEAD
]


def _prepare() -> None:
    """Call the kernel for nothing, by the functions that are replaced in a rehearsed ADD. CPython
    prepares some at their first call, and the survey has to see what they use (snapshot.c)."""
    null = open("/dev/null", O_RDWR, dir_fd=None)
    write(null, read(null, 1) + pread(null, 1, 0))
    close(null)
    here, there = socketpair()
    here.setsockopt(SOL_SOCKET, SO_RCVBUF, 1 << 16)
    here.send(b"\0")
    there.recv(1, MSG_DONTWAIT)
    there.connect_ex(b"\0nobody")
    here.fileno()
    here.close()
    there.close()


def _add(*, bare: bool, bridged: bool) -> None:
    _Kernel.bare, _Kernel.bridged, _Kernel.waited = bare, bridged, False
    _inputs.append(_CONF % (b',"mode":"bridge"' if bridged else b""))
    if main() != 0:
        raise SystemError("a rehearsed ADD has failed")


def rehearse(*, bare: bool = False) -> None:
    """ADD of one pod in either mode, or of a node's first if it is `bare`."""
    _prepare()
    for module, name, value in _REPLACED:
        setattr(module, name, _INSTEAD[value])
    environ.update(_ENVIRONMENT)
    _add(bare=bare, bridged=False)
    if not bare:
        _add(bare=False, bridged=True)
    environ.clear()
    for module, name, value in _REPLACED:
        setattr(module, name, value)


for _ in range(_TIMES):
    rehearse(bare=True)
    rehearse()
