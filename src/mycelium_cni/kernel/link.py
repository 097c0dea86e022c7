# SPDX-License-Identifier: Apache-2.0
"""A link as RTM_GETLINK shows it."""

from __future__ import annotations

from sys import byteorder

from mycelium_cni.kernel import netlink as nl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


# linux/ipv6.h: where the settings of a link are in its IFLA_INET6_CONF, an array of s32.
SETTINGS = {
    "forwarding": 0,
    "hop_limit": 1,
    "accept_ra": 3,
    "proxy_ndp": 22,
    "disable_ipv6": 26,
}


class Link:
    """A link of the node as RTM_GETLINK shows it."""

    __slots__ = ("_payload", "index", "up")

    def __init__(self, payload: bytes) -> None:
        _, _, index, flags, _ = nl.IFINFOMSG.unpack_from(payload)
        self._payload: Final = payload
        self.index: Final[int] = index
        self.up: Final = bool(flags & nl.IFF_UP)

    @property
    def resolves(self) -> bool:
        """Whether the kernel asks for neighbours' MACs on it."""
        return not nl.IFINFOMSG.unpack_from(self._payload)[3] & nl.IFF_NOARP

    def attribute(self, kind: int, default: bytes = b"") -> bytes:
        """One of its IFLA_* attributes. It has fifty, of which a caller wants one or two."""
        value = nl.attribute(self._payload, nl.IFINFOMSG.size, kind)
        return default if value is None else value

    def of_family(self, family: int) -> dict[int, bytes]:
        """Its attributes for IPv4 or IPv6 (IFLA_AF_SPEC); empty where the family is off on it."""
        return nl.decode(nl.attribute(self.attribute(nl.IFLA_AF_SPEC), 0, family) or b"", 0)

    @property
    def settings(self) -> dict[str, str]:
        """Its IPv6 SETTINGS, as /proc/sys shows them; none where there is no IPv6."""
        shown = self.of_family(nl.AF_INET6).get(nl.IFLA_INET6_CONF, b"")
        return {
            name: str(int.from_bytes(shown[4 * place : 4 * place + 4], byteorder, signed=True))
            for name, place in SETTINGS.items()
            if 4 * place < len(shown)
        }

    @property
    def name(self) -> str:
        # The kernel puts it first.
        return nl.text(nl.attribute(self._payload, nl.IFINFOMSG.size, nl.IFLA_IFNAME) or b"")

    @property
    def kind(self) -> str:
        """Its type as `ip` spells it, such as "veth"; "" for hardware."""
        info = self.attribute(nl.IFLA_LINKINFO)
        return nl.text(nl.attribute(info, 0, nl.IFLA_INFO_KIND) or b"")

    @property
    def mtu(self) -> int:
        return nl.u32(self.attribute(nl.IFLA_MTU))

    @property
    def mac(self) -> bytes:
        return self.attribute(nl.IFLA_ADDRESS)

    @property
    def alias(self) -> str:
        return nl.text(self.attribute(nl.IFLA_IFALIAS))

    @property
    def group(self) -> int:
        return nl.u32(self.attribute(nl.IFLA_GROUP))

    @property
    def master(self) -> int:
        """The index of the bridge that it is a port of, or 0."""
        return nl.u32(self.attribute(nl.IFLA_MASTER, bytes(4)))

    @property
    def forwards(self) -> bool:
        """Whether a bridge forwards what comes in by this port of it. With spanning tree a port
        that is up waits for half a minute."""
        info = self.attribute(nl.IFLA_LINKINFO)
        port = nl.attribute(info, 0, nl.IFLA_INFO_SLAVE_DATA) or b""
        state = nl.attribute(port, 0, nl.IFLA_BRPORT_STATE)
        return state is not None and state[0] == nl.BR_STATE_FORWARDING

    @property
    def peer(self) -> int:
        """The index of a veth's peer, in the peer's namespace, or 0."""
        return nl.u32(self.attribute(nl.IFLA_LINK, bytes(4)))

    @property
    def peer_number(self) -> int:
        """The number by which its namespace knows the peer's: the lowest that was free, so there
        were as many others (net/core/net_namespace.c, alloc_netid)."""
        return nl.u32(self.attribute(nl.IFLA_LINK_NETNSID, bytes(4)))

    @property
    def altnames(self) -> list[str]:
        listed = nl.attributes(self.attribute(nl.IFLA_PROP_LIST), 0)
        return [nl.text(name) for kind, name in listed if kind == nl.IFLA_ALT_IFNAME]


class KnownLink(Link):
    """A link of which a caller wants most attributes, if any: each is decoded once."""

    __slots__ = ("_families", "_said")

    def __init__(self, payload: bytes) -> None:
        super().__init__(payload)
        self._said: dict[int, bytes] = {}
        self._families: Final[dict[int, dict[int, bytes]]] = {}

    def attribute(self, kind: int, default: bytes = b"") -> bytes:
        if not self._said:
            self._said = nl.decode(self._payload, nl.IFINFOMSG.size)
        return self._said.get(kind, default)

    def of_family(self, family: int) -> dict[int, bytes]:
        if family not in self._families:
            self._families[family] = super().of_family(family)
        return self._families[family]


def read_link(host: nl.Socket, index: int, what: str = "read link") -> Link:
    """The link with this index; raises NetlinkError (ENODEV) where there is none."""
    return Link(host.read(nl.link(nl.RTM_GETLINK, what, nl.WITHOUT_COUNTERS, index=index)))


def list_veths(host: nl.Socket) -> list[Link]:
    """All veths of a node, without their counters."""
    veth: nl.Attribute = (nl.IFLA_LINKINFO, [(nl.IFLA_INFO_KIND, b"veth")])
    question = nl.link(nl.RTM_GETLINK, "list links", veth, nl.WITHOUT_COUNTERS)
    return [Link(payload) for payload in host.dump(question)]


def find_link(host: nl.Socket, name: str) -> Link | None:
    """The link with this name or alternative name, or None."""
    return find_links(host, name)[0]


def find_links(host: nl.Socket, *names: str) -> list[Link | None]:
    """The same for several names at once."""
    found = host.ask(*[nl.get_link(name) for name in names])
    return [Link(payload) if payload else None for payload in found]
