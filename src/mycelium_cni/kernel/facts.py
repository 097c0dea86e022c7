# SPDX-License-Identifier: Apache-2.0
"""What a network namespace should have, as values that can be made, dropped, found and printed.

A fact is described once. The message that makes it, the command that a person would
type for it and the question whether the kernel has it come from the same value, so they cannot
disagree. Its text is that command, so an error that names a fact can be pasted into a shell.
"""

from __future__ import annotations

from errno import EEXIST, EINVAL

from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import sysctl
from mycelium_cni.kernel.address import format_address, format_mac, format_prefix
from mycelium_cni.kernel.shell import quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from mycelium_cni.kernel.snapshot import Snapshot


USER_METRIC = 1024  # include/uapi/linux/ipv6_route.h, IP6_RT_PRIO_USER: of a route without one

# Words of a command that are not part of its object.
_VERBS = ("-6", "-w", "add", "replace", "property")


class Steps:
    """Takes the undo of each step."""

    __slots__ = ()

    def push(self, step: Callable[..., object], *arguments: object) -> None:
        """Add the undo of a step."""
        raise NotImplementedError


class Fact:
    """One thing that a namespace should have; `why`, in a few words, is what it is for. If it is
    not `needed`, packets pass without it."""

    __slots__ = ("why",)
    needed = True

    def __init__(self, why: str) -> None:
        self.why: Final = why

    def __str__(self) -> str:
        """The command that makes it, ready to be pasted."""
        raise NotImplementedError

    @property
    def removal(self) -> str:
        """The command that drops it, ready to be pasted."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """What it is, in the words of its command."""
        words = str(self).replace(" set dev ", " ").split(" ")
        return " ".join([word for word in words[1:] if word not in _VERBS])

    def holds(self, seen: Snapshot) -> bool:
        """Whether the namespace has it. Raises OSError."""
        raise NotImplementedError

    def is_missed(self, seen: Snapshot) -> bool:
        """Whether packets fail without it. Raises OSError."""
        return self.needed and not self.holds(seen)

    def ensure(self, host: nl.Socket, undo: Steps) -> bool:
        """Make it if it is missing, and push its undo; returns whether it was missing. Raises
        OSError.

        `host` and the calling thread are in the namespace.
        """
        raise NotImplementedError

    def restore(self, host: nl.Socket) -> None:
        """Make it again, in a namespace that has lost it. Raises OSError."""
        raise NotImplementedError

    def obstacles(self, seen: Snapshot) -> list[Object]:
        """What must be dropped before it can be made: the same object with other properties."""
        return []


class Switch(Fact):
    """A setting below /proc/sys/net/ipv6, such as conf/all/forwarding."""

    __slots__ = ("path", "value")

    def __init__(self, path: str, value: str, why: str) -> None:
        super().__init__(why)
        self.path: Final = path
        self.value: Final = value

    def __str__(self) -> str:
        return sysctl.command(self.path, self.value)

    @property
    def name(self) -> str:
        """The setting's own name, such as forwarding."""
        return self.path.rpartition("/")[2]

    def holds(self, seen: Snapshot) -> bool:
        return seen.switch(self.path) == self.value

    def ensure(self, host: nl.Socket, undo: Steps) -> bool:
        before = sysctl.get(self.path, host)
        if before == self.value:
            return False
        undo.push(sysctl.put, self.path, before)
        sysctl.put(self.path, self.value, host)
        return True

    def restore(self, host: nl.Socket) -> None:
        sysctl.put(self.path, self.value, host)


class Object(Fact):
    """What one rtnetlink request makes."""

    __slots__ = ()

    def message(self) -> nl.Message:
        """The request that makes it; EEXIST if it is there."""
        raise NotImplementedError

    def drop(self) -> nl.Message:
        """The request that deletes it."""
        raise NotImplementedError

    def ensure(self, host: nl.Socket, undo: Steps) -> bool:
        made = host.ensure(self.message())[0]
        if made:
            undo.push(host.request, self.drop())
        return made

    def restore(self, host: nl.Socket) -> None:
        host.ensure(self.message())


class Part(Object):
    """A property of one link. One that every link has (an MTU, a state) is set, and never
    dropped."""

    __slots__ = ("index", "link")

    def __init__(self, index: int, link: str, why: str) -> None:
        super().__init__(why)
        self.index: Final = index
        self.link: Final = link

    def ensure(self, host: nl.Socket, undo: Steps) -> bool:
        host.request(self.message())
        return True

    def restore(self, host: nl.Socket) -> None:
        host.request(self.message())


class _OfLink(Part):
    """An object of a link that may be there already, and can be dropped alone."""

    __slots__ = ()

    def ensure(self, host: nl.Socket, undo: Steps) -> bool:
        return Object.ensure(self, host, undo)

    def restore(self, host: nl.Socket) -> None:
        Object.restore(self, host)


class Setting(Part):
    """An attribute of a link. The request that creates the link may carry it already."""

    __slots__ = ("attribute", "words")

    def __init__(
        self, index: int, link: str, words: str, attribute: nl.Attribute, why: str
    ) -> None:
        super().__init__(index, link, why)
        self.words: Final = words
        self.attribute: Final = attribute

    def __str__(self) -> str:
        return f"ip link set dev {quoted(self.link)} {self.words}"

    def message(self) -> nl.Message:
        return nl.link(nl.RTM_NEWLINK, self, self.attribute, index=self.index)

    def holds(self, seen: Snapshot) -> bool:
        link = seen.links.get(self.index)
        wanted = nl.encode((self.attribute,))[4:]
        there = link.attribute(self.attribute[0]) if link else b""
        return link is not None and there.rstrip(b"\0") == wanted.rstrip(b"\0")


class _Label(Setting):
    """A text that packets do not need."""

    __slots__ = ()
    needed = False


def mtu(index: int, link: str, octets: int) -> Setting:
    why = "larger packets are lost on the way"
    return Setting(index, link, f"mtu {octets}", (nl.IFLA_MTU, octets), why)


def mac(index: int, link: str, octets: bytes, why: str) -> Setting:
    """The MAC of a link."""
    words = f"address {format_mac(octets)}"
    return Setting(index, link, words, (nl.IFLA_ADDRESS, octets), why)


def master(index: int, link: str, bridge: int, name: str) -> Setting:
    """Which bridge a link is a port of."""
    why = "a bridged pod is a port of the bridge"
    return Setting(index, link, f"master {quoted(name)}", (nl.IFLA_MASTER, bridge), why)


def alone(index: int, link: str) -> Setting:
    """A link is a port of no bridge, bond or VRF."""
    why = "its packets would go to the other link that it belongs to"
    return Setting(index, link, "nomaster", (nl.IFLA_MASTER, 0), why)


def group(index: int, link: str, number: int, why: str) -> Setting:
    """The group of a link."""
    return Setting(index, link, f"group {number}", (nl.IFLA_GROUP, number), why)


def alias(index: int, link: str, text: str, why: str) -> Setting:
    """The alias of a link."""
    words = f"alias {quoted(text)}"
    return _Label(index, link, words, (nl.IFLA_IFALIAS, text.encode()), why)


class Up(Part):
    """A link is up. `drop` sets it down."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"ip link set dev {quoted(self.link)} up"

    def message(self) -> nl.Message:
        return nl.link(nl.RTM_NEWLINK, self, index=self.index, state=nl.IFF_UP)

    def drop(self) -> nl.Message:
        return nl.set_up(self.index, self.link, up=False)

    def holds(self, seen: Snapshot) -> bool:
        link = seen.links.get(self.index)
        return link is not None and link.up


class Resolves(Part):
    """The kernel asks for the MACs of a link's neighbours."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"ip link set dev {quoted(self.link)} arp on"

    def message(self) -> nl.Message:
        body = nl.IFINFOMSG.pack(nl.AF_UNSPEC, 0, self.index, 0, nl.IFF_NOARP)
        return nl.Message(nl.RTM_NEWLINK, 0, body, self)

    def holds(self, seen: Snapshot) -> bool:
        link = seen.links.get(self.index)
        return link is not None and link.resolves


class NoLinkLocal(Part):
    """The kernel makes no link-local address of its own. Refused in the message that creates a link
    (EAFNOSUPPORT), too late in the one that sets IFF_UP."""

    __slots__ = ()
    needed = False  # until the link is set down and up, and then for a second

    def __str__(self) -> str:
        return f"ip link set dev {quoted(self.link)} addrgenmode none"

    def message(self) -> nl.Message:
        return nl.link(nl.RTM_NEWLINK, self, nl.NO_LINK_LOCAL, index=self.index)

    def holds(self, seen: Snapshot) -> bool:
        link = seen.links.get(self.index)
        said = link.of_family(nl.AF_INET6) if link else {}
        return said.get(nl.IFLA_INET6_ADDR_GEN_MODE) == nl.IN6_ADDR_GEN_MODE_NONE


class NoArp(Part):
    """The kernel answers no ARP on a link, and stores no neighbour that asks (net/ipv4/arp.c)."""

    __slots__ = ()
    needed = False  # IPv6 does without ARP

    def __str__(self) -> str:
        return f"sysctl -w {quoted(f'net/ipv4/conf/{self.link}/arp_ignore=8')}"

    def message(self) -> nl.Message:
        return nl.link(nl.RTM_NEWLINK, self, nl.NO_ARP, index=self.index)

    def holds(self, seen: Snapshot) -> bool:
        link = seen.links.get(self.index)
        settings = link.of_family(nl.AF_INET).get(nl.IFLA_INET_CONF, b"") if link else b""
        # One u32 for each setting, counted from 1.
        end = 4 * nl.IPV4_DEVCONF_ARP_IGNORE
        return settings[end - 4 : end] == nl.encode(((0, 8),))[4:]


class NoProxyDelay(Part):
    """The kernel answers at once for a link's proxy entries. By default it delays its answer by up
    to 0.8 s (RFC 4861, section 7.2.8)."""

    __slots__ = ()
    needed = False

    @property
    def _path(self) -> str:
        return f"neigh/{self.link}/proxy_delay"

    def __str__(self) -> str:
        return sysctl.command(self._path, "0")

    def message(self) -> nl.Message:
        return nl.no_proxy_delay(self, self.index)

    def holds(self, seen: Snapshot) -> bool:
        return seen.switch(self._path) == "0"


class AlternativeName(_OfLink):
    """Another name of a link; no two links of a namespace share one."""

    __slots__ = ("name",)

    def __init__(self, index: int, link: str, name: str, why: str) -> None:
        super().__init__(index, link, why)
        self.name: Final = name

    def __str__(self) -> str:
        return f"ip link property add dev {quoted(self.link)} altname {quoted(self.name)}"

    def message(self) -> nl.Message:
        return nl.link_property(nl.RTM_NEWLINKPROP, self, self.index, self.name)

    def drop(self) -> nl.Message:
        return nl.link_property(nl.RTM_DELLINKPROP, self, self.index, self.name)

    def holds(self, seen: Snapshot) -> bool:
        link = seen.links.get(self.index)
        return link is not None and self.name in link.altnames


# A bridge that snoops takes 4,096 from all its ports, and then floods.
_GROUPS = 64


class NoLearning(Part):
    """A bridge port from which the bridge learns no MACs and takes few multicast groups. The
    command lacks the latter: iproute2 has had it only since 6.3."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"bridge link set dev {quoted(self.link)} learning off"

    def message(self) -> nl.Message:
        return nl.bridge_port(self, self.index, learning=False, groups=_GROUPS)

    def holds(self, seen: Snapshot) -> bool:
        link = seen.links.get(self.index)
        info = nl.decode(link.attribute(nl.IFLA_LINKINFO), 0) if link else {}
        port = nl.decode(info.get(nl.IFLA_INFO_SLAVE_DATA, b""), 0)
        return port.get(nl.IFLA_BRPORT_LEARNING) == b"\0"


class ForwardingEntry(Part):
    """A MAC is behind this port of the bridge, whatever other ports send."""

    __slots__ = ("mac",)

    def __init__(self, index: int, link: str, mac: bytes, why: str) -> None:
        super().__init__(index, link, why)
        self.mac: Final = mac

    def __str__(self) -> str:
        where = f"dev {quoted(self.link)} master static sticky"
        return f"bridge fdb replace {format_mac(self.mac)} {where}"

    def message(self) -> nl.Message:
        return nl.forwarding_entry(self, self.index, self.mac)

    def restore(self, host: nl.Socket) -> None:
        # The bridge may have learned where the pod is meanwhile, in an entry that ages.
        message = self.message()
        flags = nl.NLM_F_CREATE | nl.NLM_F_REPLACE
        host.request(nl.Message(message.kind, flags, message.body, self))

    def holds(self, seen: Snapshot) -> bool:
        return (self.index, self.mac) in seen.forwarding


class Address(_OfLink):
    """An address of a link, never tentative."""

    __slots__ = ("address", "prefixlen", "protocol")

    def __init__(
        self, index: int, link: str, address: bytes, prefixlen: int, why: str, *, protocol: int = 0
    ) -> None:
        super().__init__(index, link, why)
        self.address: Final = address
        self.prefixlen: Final = prefixlen
        self.protocol: Final = protocol

    def _words(self) -> str:
        return f"{format_address(self.address)}/{self.prefixlen} dev {quoted(self.link)}"

    def __str__(self) -> str:
        flags = "nodad noprefixroute" if self.prefixlen == 128 else "nodad"
        return f"ip address add {self._words()} {flags}"

    @property
    def removal(self) -> str:
        return f"ip address del {self._words()}"

    def message(self) -> nl.Message:
        return nl.address(
            *(nl.RTM_NEWADDR, self, self.index, self.address, self.prefixlen),
            protocol=self.protocol,
        )

    def drop(self) -> nl.Message:
        kind, what = nl.RTM_DELADDR, self.removal
        return nl.address(kind, what, self.index, self.address, self.prefixlen)

    def holds(self, seen: Snapshot) -> bool:
        found = seen.addresses.get((self.index, self.address))
        unusable = nl.IFA_F_DADFAILED | nl.IFA_F_TENTATIVE
        return found is not None and (found.prefixlen, found.flags & unusable) == (
            self.prefixlen,
            0,
        )

    def obstacles(self, seen: Snapshot) -> list[Object]:
        found = seen.addresses.get((self.index, self.address))
        if found is None or self.holds(seen):
            return []
        return [Address(self.index, self.link, self.address, found.prefixlen, self.why)]


class Neighbour(Part):
    """The MAC behind an address on a link. Permanent, or valid until the neighbour itself
    advertises another; either way exempt from the limit that all namespaces share."""

    __slots__ = ("address", "mac", "permanent", "protocol")
    needed = False  # the kernel resolves it by itself, also when a MAC has changed

    def __init__(
        self,
        index: int,
        link: str,
        address: bytes,
        mac: bytes,
        why: str,
        *,
        protocol: int,
        permanent: bool,
    ) -> None:
        super().__init__(index, link, why)
        self.address: Final = address
        self.mac: Final = mac
        self.permanent: Final = permanent
        self.protocol: Final = protocol

    def __str__(self) -> str:
        state = "permanent" if self.permanent else "reachable extern_learn"
        return (
            f"ip -6 neighbour replace {format_address(self.address)} lladdr {format_mac(self.mac)} "
            f"dev {quoted(self.link)} nud {state} protocol {self.protocol}"
        )

    def message(self) -> nl.Message:
        return nl.neighbour(
            *(self, self.index, self.address, self.mac, self.protocol), permanent=self.permanent
        )

    def validated(self) -> nl.Message:
        """The same for an entry that only the neighbour's own advertisement may change."""
        return nl.neighbour(
            *(self, self.index, self.address, self.mac, self.protocol),
            permanent=False,
            validated=True,
        )

    def holds(self, seen: Snapshot) -> bool:
        """The neighbour may have advertised another MAC meanwhile."""
        found = seen.neighbour(self.index, self.address)
        if found is None or found.mac == self.mac:
            return found is not None
        return found.valid and not found.fixed and not self.permanent

    def is_missed(self, seen: Snapshot) -> bool:
        """The kernel never corrects the MAC of an entry that it does not probe."""
        found = seen.neighbour(self.index, self.address)
        return found is not None and found.fixed and found.mac != self.mac


class Proxy(_OfLink):
    """A link answers neighbour solicitations for an address that it does not have."""

    __slots__ = ("address", "protocol")

    def __init__(self, index: int, link: str, address: bytes, why: str, *, protocol: int) -> None:
        super().__init__(index, link, why)
        self.address: Final = address
        self.protocol: Final = protocol

    def _words(self) -> str:
        return f"proxy {format_address(self.address)} dev {quoted(self.link)}"

    def __str__(self) -> str:
        return f"ip -6 neighbour add {self._words()} protocol {self.protocol}"

    @property
    def removal(self) -> str:
        return f"ip -6 neighbour del {self._words()}"

    def message(self) -> nl.Message:
        return nl.proxy_neighbour(nl.RTM_NEWNEIGH, self, self.index, self.address, self.protocol)

    def drop(self) -> nl.Message:
        kind, what = nl.RTM_DELNEIGH, self.removal
        return nl.proxy_neighbour(kind, what, self.index, self.address, self.protocol)

    def holds(self, seen: Snapshot) -> bool:
        return (self.index, self.address) in seen.proxies


class Route(Object):
    """A route; `unreachable` if it has no link."""

    __slots__ = (
        *("destination", "exclusive", "gateway", "index", "link", "metrics", "priority"),
        *("protocol", "scope", "sender", "source", "table"),
    )

    def __init__(
        self,
        destination: tuple[bytes, int],
        why: str,
        *,
        protocol: int,
        index: int = 0,
        link: str = "",
        gateway: bytes = b"",
        source: bytes = b"",
        priority: int = 0,
        table: int = nl.RT_TABLE_MAIN,
        scope: int = nl.RT_SCOPE_UNIVERSE,
        metrics: Sequence[tuple[str, int]] = (),
        sender: bytes = b"",
        exclusive: bool = False,
    ) -> None:
        super().__init__(why)
        self.destination: Final = destination
        self.exclusive: Final = exclusive  # nobody else may have a route to the prefix
        self.protocol: Final = protocol
        self.index: Final = index
        self.link: Final = link
        self.gateway: Final = gateway
        self.source: Final = source
        self.priority: Final = priority
        self.table: Final = table
        self.scope: Final = scope
        self.metrics: Final = metrics
        self.sender: Final = sender

    def _words(self) -> str:
        words = "" if self.index else "unreachable "
        words += format_prefix(self.destination)
        if self.sender:
            words += f" from {format_address(self.sender)}"
        if self.gateway:
            words += f" via {format_address(self.gateway)}"
        if self.index:
            words += f" dev {quoted(self.link)}"
        if self.source:
            words += f" src {format_address(self.source)}"
        if self.priority:
            words += f" metric {self.priority}"
        if self.table != nl.RT_TABLE_MAIN:
            words += f" table {self.table}"
        if self.scope:
            words += f" scope {self.scope}"
        for name, value in self.metrics:
            words += f" {name} {value}"
        return f"{words} proto {self.protocol}"

    def __str__(self) -> str:
        return f"ip -6 route {'replace' if self.exclusive else 'add'} {self._words()}"

    @property
    def removal(self) -> str:
        return f"ip -6 route del {self._words()}"

    def _request(self, kind: int, what: object) -> nl.Message:
        attributes: list[nl.Attribute] = []
        if self.index:
            attributes.append((nl.RTA_OIF, self.index))
        if self.gateway:
            attributes.append((nl.RTA_GATEWAY, self.gateway))
        if self.source:
            attributes.append((nl.RTA_PREFSRC, self.source))
        if self.priority:
            attributes.append((nl.RTA_PRIORITY, self.priority))
        if self.metrics:
            numbers = {"mtu": nl.RTAX_MTU, "advmss": nl.RTAX_ADVMSS}
            attributes.append((nl.RTA_METRICS, [(numbers[name], n) for name, n in self.metrics]))
        return nl.route(
            kind,
            what,
            self.destination,
            *attributes,
            protocol=self.protocol,
            table=self.table,
            scope=self.scope,
            type_=nl.RTN_UNICAST if self.index else nl.RTN_UNREACHABLE,
            sender=self.sender,
        )

    def message(self) -> nl.Message:
        return self._request(nl.RTM_NEWROUTE, self)

    def drop(self) -> nl.Message:
        return self._request(nl.RTM_DELROUTE, self.removal)

    def restore(self, host: nl.Socket) -> None:
        message = self.message()
        if self.exclusive:
            message = nl.Message(
                message.kind, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, message.body, self
            )
        try:
            host.ensure(message)
        except nl.NetlinkError as error:
            if not self.sender or error.errno != EINVAL:
                raise

    def holds(self, seen: Snapshot) -> bool:
        if self.gateway and not self.sender:
            return self._leads(seen)
        kind = nl.RTN_UNICAST if self.index else nl.RTN_UNREACHABLE
        return any(
            (route.table, route.kind, route.sender) == (self.table, kind, self.sender)
            and (route.link == self.index if self.index else route.priority == self.priority)
            for route in seen.routes_to.get(self.destination, ())
        )

    def obstacles(self, seen: Snapshot) -> list[Object]:
        """The kernel adds a second route with the same prefix and metric only if asked to
        (NLM_F_APPEND)."""
        key = self.destination, self.table, self.sender, self.index, self.priority or USER_METRIC
        return [
            Route(
                *(self.destination, self.why),
                protocol=route.protocol,
                index=self.index,
                link=self.link,
                gateway=route.gateway,
                priority=route.priority,
                table=self.table,
                sender=self.sender,
            )
            for route in seen.routes
            if self.gateway not in (b"", route.gateway)
            and (route.destination, route.table, route.sender, route.link, route.priority) == key
        ]

    def _leads(self, seen: Snapshot) -> bool:
        """Whether any table routes the prefix via the gateway on this link: `sbr` moves a pod's
        routes to a table of its own, and makes one default route of them."""
        base, longest = self.destination
        sought = int.from_bytes(base, "big")
        best: dict[int, int] = {}
        leads: dict[int, bool] = {}
        for route in seen.routes:
            found, length = route.destination
            if (route.link, route.kind) != (self.index, nl.RTN_UNICAST) or length > longest:
                continue
            if route.sender:
                continue
            if (int.from_bytes(found, "big") ^ sought) >> 128 - length:
                continue
            if length >= best.get(route.table, 0):
                held = length == best.get(route.table) and leads[route.table]
                best[route.table] = length
                leads[route.table] = held or route.gateway == self.gateway
        return any(leads.values())


class Rule(Object):
    """Packets from an address are routed by a table of their own."""

    __slots__ = ("protocol", "source", "table")

    def __init__(self, source: bytes, table: int, why: str, *, protocol: int) -> None:
        super().__init__(why)
        self.source: Final = source
        self.table: Final = table
        self.protocol: Final = protocol

    def _words(self) -> str:
        return f"from {format_address(self.source)} lookup {self.table} protocol {self.protocol}"

    def __str__(self) -> str:
        return f"ip -6 rule add {self._words()}"

    @property
    def removal(self) -> str:
        return f"ip -6 rule del {self._words()}"

    def message(self) -> nl.Message:
        return nl.rule(nl.RTM_NEWRULE, self, self.table, self.protocol, self.source)

    def drop(self) -> nl.Message:
        return nl.rule(nl.RTM_DELRULE, self.removal, self.table, self.protocol, self.source)

    def holds(self, seen: Snapshot) -> bool:
        return any((r.source, r.table) == (self.source, self.table) for r in seen.rules)


def ensure(objects: Sequence[Object], host: nl.Socket, undo: Steps) -> bool:
    """Make the missing ones in one request, each with its undo; returns whether any was missing.
    Raises NetlinkError."""
    refused = host.attempt(*[each.message() for each in objects])
    for place, each in enumerate(objects):
        if place not in refused:
            undo.push(host.request, each.drop())
    for place in sorted(refused):
        if refused[place].errno != EEXIST:
            raise refused[place]
    return len(refused) < len(objects)


def missing(facts: Sequence[Fact], seen: Snapshot) -> list[Fact]:
    """Those that the namespace needs and does not have, in order. Raises OSError."""
    return [fact for fact in facts if fact.is_missed(seen)]
