# SPDX-License-Identifier: Apache-2.0
"""What a network namespace has: each table of the kernel, read on first use."""

from __future__ import annotations

from errno import ENODEV, ENOENT

from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import sysctl
from mycelium_cni.kernel.address import format_prefix
from mycelium_cni.kernel.link import SETTINGS, KnownLink, Link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final, TypeVar

    T = TypeVar("T")

# States in which the kernel sends to a neighbour at once (include/net/neighbour.h, NUD_VALID).
_NUD_VALID = 0xDE
_ANY, _ZERO = bytes(16), bytes(4)


class Address:
    """An IPv6 address of a link; `protocol` says who made it (IFA_PROTO), 0 if unknown."""

    __slots__ = ("address", "flags", "link", "prefixlen", "protocol")

    def __init__(self, payload: bytes) -> None:
        _, prefixlen, _, _, link = nl.IFADDRMSG.unpack_from(payload)
        said = nl.decode(payload, nl.IFADDRMSG.size)
        self.link: Final[int] = link
        self.prefixlen: Final[int] = prefixlen
        self.address: Final = said.get(nl.IFA_LOCAL) or said[nl.IFA_ADDRESS]
        self.flags: Final = nl.u32(said[nl.IFA_FLAGS])
        self.protocol: Final = said.get(nl.IFA_PROTO, b"\0")[0]


class Route:
    """An IPv6 route; `link` is its output link (lo's if it refuses packets, 0 if it has several),
    `kind` an RTN_*, `wrapped` whether it encapsulates packets (RTA_ENCAP), `source` the address of
    packets whose sender chose none."""

    __slots__ = ("_said", "destination", "kind", "link", "protocol", "table")

    def __init__(self, payload: bytes) -> None:
        _, length, _, _, table, protocol, _, kind, _ = nl.RTMSG.unpack_from(payload)
        self._said = said = nl.decode(payload, nl.RTMSG.size)
        self.destination: Final[tuple[bytes, int]] = said.get(nl.RTA_DST, _ANY), length
        self.link: Final = nl.u32(said.get(nl.RTA_OIF, _ZERO))
        self.protocol: Final[int] = protocol
        self.kind: Final[int] = kind
        self.table: Final[int] = nl.u32(said[nl.RTA_TABLE]) if nl.RTA_TABLE in said else table

    # Of a thousand routes hardly any is asked for these.

    @property
    def sender(self) -> bytes:
        return self._said.get(nl.RTA_SRC, b"")

    @property
    def gateway(self) -> bytes:
        return self._said.get(nl.RTA_GATEWAY, b"")

    @property
    def source(self) -> bytes:
        return self._said.get(nl.RTA_PREFSRC, b"")

    @property
    def wrapped(self) -> bool:
        return nl.RTA_ENCAP_TYPE in self._said

    @property
    def hops(self) -> int:
        metrics = nl.decode(self._said.get(nl.RTA_METRICS, b""), 0)
        return nl.u32(metrics.get(nl.RTAX_HOPLIMIT, _ZERO))

    @property
    def priority(self) -> int:
        return nl.u32(self._said.get(nl.RTA_PRIORITY, _ZERO))


class Neighbour:
    """An entry of the neighbour table, or of the proxy table."""

    __slots__ = ("address", "flags", "link", "mac", "protocol", "state")

    def __init__(self, payload: bytes) -> None:
        _, link, state, flags, _ = nl.NDMSG.unpack_from(payload)
        said = nl.decode(payload, nl.NDMSG.size)
        self.link: Final[int] = link
        self.state: Final[int] = state
        self.flags: Final[int] = flags
        self.address: Final = said.get(nl.NDA_DST, b"")
        self.mac: Final = said.get(nl.NDA_LLADDR, b"")
        self.protocol: Final = said.get(nl.NDA_PROTOCOL, b"\0")[0]

    @property
    def fixed(self) -> bool:
        """Whether the kernel never probes it."""
        return bool(self.state & (nl.NUD_PERMANENT | nl.NUD_NOARP))

    @property
    def valid(self) -> bool:
        """Whether the kernel sends to it without asking first."""
        return bool(self.state & _NUD_VALID)


class Rule:
    """An IPv6 rule: which table routes what."""

    __slots__ = ("action", "destination", "priority", "protocol", "source", "table", "words")

    def __init__(self, payload: bytes) -> None:
        _, to, from_, _, table, _, _, action, _ = nl.FIB_RULE_HDR.unpack_from(payload)
        said = nl.decode(payload, nl.FIB_RULE_HDR.size)
        self.source: Final = said.get(nl.FRA_SRC, b"")
        self.destination: Final[tuple[bytes, int]] = said.get(nl.FRA_DST, bytes(16)), to
        self.table: Final[int] = nl.u32(said[nl.FRA_TABLE]) if nl.FRA_TABLE in said else table
        self.priority: Final = nl.u32(said.get(nl.FRA_PRIORITY, bytes(4)))
        self.protocol: Final = said.get(nl.FRA_PROTOCOL, b"\0")[0]
        self.action: Final[int] = action
        self.words: Final = {
            "from": format_prefix((self.source, from_)) if from_ else "all",
            "to": format_prefix(self.destination) if to else "",
            "iif": nl.text(said.get(nl.FRA_IIFNAME, b"")),
            "oif": nl.text(said.get(nl.FRA_OIFNAME, b"")),
            "fwmark": hex(nl.u32(said[nl.FRA_FWMARK])) if nl.FRA_FWMARK in said else "",
        }

    def __str__(self) -> str:
        matches = " ".join([f"{key} {value}" for key, value in self.words.items() if value])
        refusals = {6: "blackhole", 7: "unreachable", 8: "prohibit"}  # FR_ACT_*
        action = refusals.get(self.action) or f"lookup {self.table}"
        return f"rule {self.priority} ({matches} {action})"


class Snapshot:
    """The namespace of a socket as it is now."""

    __slots__ = ("_read", "_switches", "socket")

    def __init__(self, socket: nl.Socket) -> None:
        self.socket: Final = socket
        self._read: dict[str, object] = {}
        self._switches: dict[str, str] = {}

    def once(self, name: str, read: Callable[[], T]) -> T:
        """What `read` returns; it is called once for each name."""
        if name not in self._read:
            self._read[name] = read()
        return self._read[name]  # type: ignore[return-value] # what `read` returned under this name

    def _dump(self, kind: int, header: bytes, what: str) -> Iterator[bytes]:
        return iter(self.socket.dump(nl.Message(kind, 0, header, what)))

    @property
    def links(self) -> dict[int, Link]:
        def read() -> dict[int, Link]:
            found = [KnownLink(p) for p in self.socket.dump(nl.link(nl.RTM_GETLINK, "list links"))]
            return {link.index: link for link in found}

        return self.once("links", read)

    @property
    def addresses(self) -> dict[tuple[int, bytes], Address]:
        def read() -> dict[tuple[int, bytes], Address]:
            header = nl.IFADDRMSG.pack(nl.AF_INET6, 0, 0, 0, 0)
            found = [Address(p) for p in self._dump(nl.RTM_GETADDR, header, "list addresses")]
            return {(each.link, each.address): each for each in found}

        return self.once("addresses", read)

    @property
    def routes(self) -> list[Route]:
        """The IPv6 routes of all tables."""

        def read() -> list[Route]:
            header = nl.RTMSG.pack(nl.AF_INET6, 0, 0, 0, 0, 0, 0, 0, 0)
            return [Route(p) for p in self._dump(nl.RTM_GETROUTE, header, "list routes")]

        return self.once("routes", read)

    def _neighbours(self, family: int, flags: int, what: str) -> list[Neighbour]:
        header = nl.NDMSG.pack(family, 0, 0, flags, 0)
        found = [Neighbour(p) for p in self._dump(nl.RTM_GETNEIGH, header, what)]
        return [each for each in found if each.flags & nl.NTF_PROXY == flags]

    def neighbour(self, link: int, address: bytes) -> Neighbour | None:
        """Asks for this one: the kernel has the neighbours of all namespaces in one table, and
        walks all of it to list those of one (net/core/neighbour.c, neigh_dump_table)."""

        def read() -> Neighbour | None:
            payload = self.socket.ask(nl.get_neighbour("read neighbour", link, address))[0]
            return Neighbour(payload) if payload else None

        return self.once(f"neighbour {link} {address.hex()}", read)

    @property
    def proxies(self) -> dict[tuple[int, bytes], Neighbour]:
        def read() -> dict[tuple[int, bytes], Neighbour]:
            found = self._neighbours(nl.AF_INET6, nl.NTF_PROXY, "list proxy entries")
            return {(each.link, each.address): each for each in found}

        return self.once("proxies", read)

    @property
    def forwarding(self) -> set[tuple[int, bytes]]:
        """Port and MAC of the entries of bridges' forwarding databases that do not age."""

        def read() -> set[tuple[int, bytes]]:
            found = self._neighbours(nl.AF_BRIDGE, 0, "list forwarding entries")
            return {(each.link, each.mac) for each in found if each.state & nl.NUD_NOARP}

        return self.once("forwarding", read)

    @property
    def rules(self) -> list[Rule]:
        def read() -> list[Rule]:
            header = nl.FIB_RULE_HDR.pack(nl.AF_INET6, 0, 0, 0, 0, 0, 0, 0, 0)
            return [Rule(p) for p in self._dump(nl.RTM_GETRULE, header, "list rules")]

        return self.once("rules", read)

    @property
    def by_name(self) -> dict[str, Link]:
        return self.once("by name", lambda: {each.name: each for each in self.links.values()})

    @property
    def routes_to(self) -> dict[tuple[bytes, int], list[Route]]:
        """The routes by their destination."""

        def read() -> dict[tuple[bytes, int], list[Route]]:
            found: dict[tuple[bytes, int], list[Route]] = {}
            for route in self.routes:
                found.setdefault(route.destination, []).append(route)
            return found

        return self.once("routes to", read)

    def switch(self, path: str) -> str:
        """The value of a setting below /proc/sys/net/ipv6; "" where there is no such setting.

        Those of a link come with the list of links. For others the calling thread must be in the
        namespace. Raises OSError.
        """
        if path not in self._switches:
            self._switches[path] = self._switch(path)
        return self._switches[path]

    def _switch(self, path: str) -> str:
        family, _, rest = path.partition("/")
        name, _, switch = rest.partition("/")
        if family == "conf" and name not in ("all", "default") and switch in SETTINGS:
            link = self.by_name.get(name)
            return link.settings.get(switch, "") if link else ""
        try:
            return sysctl.get(path, self.socket)
        except OSError as error:
            if error.errno not in (ENOENT, ENODEV):
                raise
            return ""
