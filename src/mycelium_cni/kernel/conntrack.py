# SPDX-License-Identifier: Apache-2.0
"""The IPv6 connections that the kernel tracks: which there are, and how to end them.

Constants are spelled as in `include/uapi/linux/netfilter/nfnetlink_conntrack.h`. The kernel has a
filter by address, CTA_FILTER, but inverts it for IPv6 (5.8 to at least 6.18;
net/netfilter/nf_conntrack_netlink.c, ctnetlink_filter_match_tuple): it returns all others. So the
table is read whole: 10 ms if it is large but empty, and 4 µs for each entry.
"""

from __future__ import annotations

from errno import ENOENT
from posix import O_CLOEXEC, O_RDONLY, close, open, read

from mycelium_cni.kernel import netlink as nl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE = 0x101, 0x102  # NFNL_SUBSYS_CTNETLINK << 8
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ID, CTA_ZONE = 1, 2, 12, 18
CTA_TUPLE_IP, CTA_IP_V6_SRC = 1, 3
NFGENMSG = b"\x0a\0\0\0"  # family IPv6, version 0, resource 0

_COUNT = "/proc/sys/net/netfilter/nf_conntrack_count"
_BATCH = 128  # as many refusals as a socket has room for


class Connection:
    """A tracked connection, which `source` opened to `server`: their own addresses, also where the
    kernel translates them."""

    __slots__ = ("_said", "server", "source")

    def __init__(self, payload: bytes) -> None:
        self._said: Final = nl.decode(payload, len(NFGENMSG))
        self.source: Final = self._sender(CTA_TUPLE_ORIG)
        self.server: Final = self._sender(CTA_TUPLE_REPLY)

    def _sender(self, kind: int) -> bytes:
        said = nl.decode(nl.decode(self._said[kind], 0)[CTA_TUPLE_IP], 0)
        return said[CTA_IP_V6_SRC]

    def end(self) -> nl.Message:
        """IPCTNL_MSG_CT_DELETE; ENOENT if it has ended. CTA_ID protects a later connection between
        the same ends. Without a tuple the kernel would end all connections."""
        said: list[nl.Attribute] = [(CTA_TUPLE_ORIG | nl.NLA_F_NESTED, self._said[CTA_TUPLE_ORIG])]
        said += [(kind, self._said[kind]) for kind in (CTA_ID, CTA_ZONE) if kind in self._said]
        body = NFGENMSG + nl.encode(said)
        return nl.Message(IPCTNL_MSG_CT_DELETE, 0, body, "end a tracked connection")


def is_in_use() -> bool:
    """Whether the kernel tracks any in the calling thread's namespace. Asking over netlink would
    load connection tracking."""
    try:
        fd = open(_COUNT, O_RDONLY | O_CLOEXEC)
    except OSError as error:
        if error.errno != ENOENT:
            raise
        return False
    try:
        return read(fd, 16) != b"0\n"
    finally:
        close(fd)


def connections(socket: nl.Socket, holding: bytes) -> list[Connection]:
    """Those with an address that contains these bytes. `socket` is NETLINK_NETFILTER's.

    Raises NetlinkError; EINVAL on a kernel without nf_conntrack_netlink.
    """
    question = nl.Message(IPCTNL_MSG_CT_GET, 0, NFGENMSG, "list tracked connections")
    return [Connection(payload) for payload in socket.dump(question, holding)]


def end(socket: nl.Socket, ending: list[Connection]) -> None:
    """End those that have not ended meanwhile. Raises NetlinkError."""
    for start in range(0, len(ending), _BATCH):
        refused = socket.attempt(*[each.end() for each in ending[start : start + _BATCH]])
        for place in sorted(refused):
            if refused[place].errno != ENOENT:
                raise refused[place]
