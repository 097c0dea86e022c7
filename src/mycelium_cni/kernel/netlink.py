# SPDX-License-Identifier: Apache-2.0
"""rtnetlink bytes and one socket; knows nothing of CNI.

Structures and constants are spelled as in the kernel's `include/uapi/linux/`: netlink.h,
rtnetlink.h, if_link.h, if_addr.h, neighbour.h. A message is data (`Message`) until a `Socket` sends
it, so encoders need no kernel to be tested.

A library would be no shorter to read here and cost more than the whole ADD: importing pyroute2
takes 150 ms and more, this module under one.
"""

from __future__ import annotations

from _socket import AF_NETLINK, MSG_DONTWAIT, SOCK_RAW, socket
from _struct import Struct
from errno import EBADMSG, EEXIST, EINTR, ENOBUFS, ENODEV, ENOENT, EPERM
from posix import strerror
from sys import byteorder

from mycelium_cni.kernel.patience import Patience

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Final, Self

    from mycelium_cni.kernel.files import Directory

    Value = bytes | int | str | list["Attribute"]
    # Kind and value; or bytes that are already encoded.
    Attribute = tuple[int, Value] | bytes

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
SOL_NETLINK = 270
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_ECHO, NLM_F_DUMP_INTR = 1, 2, 4, 8, 16
NLM_F_DUMP, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x300, 0x100, 0x200, 0x400
NLM_F_ACK_TLVS = 0x200
NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
RTM_SETNEIGHTBL = 67
RTM_GETNSID = 90
RTM_NEWLINKPROP, RTM_DELLINKPROP = 108, 109

AF_UNSPEC, AF_INET, AF_BRIDGE, AF_INET6 = 0, 2, 7, 10

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_OPERSTATE, IFLA_LINKINFO, IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_GROUP = 16, 18, 20, 26, 27
IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS = 29, 8
IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES = 31, 32
IFLA_NET_NS_FD, IFLA_LINK_NETNSID, IFLA_PROP_LIST, IFLA_ALT_IFNAME = 28, 37, 52, 53
NETNSA_NSID, NETNSA_FD = 1, 3
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_BR_MCAST_SNOOPING = 23
IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 4, 5
IFLA_BRPORT_STATE, IFLA_BRPORT_LEARNING, IFLA_BRPORT_MCAST_MAX_GROUPS = 1, 8, 42
BR_STATE_FORWARDING = 3
IFLA_INET_CONF, IPV4_DEVCONF_ARP_IGNORE = 1, 19
IFLA_INET6_CONF, IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 2, 8, b"\x01"
IFF_UP, IFF_NOARP = 0x01, 0x80
IF_OPER_DORMANT, IF_OPER_UP = 5, 6

IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_PROTO = 1, 2, 8, 11
IFA_F_NODAD, IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x02, 0x08, 0x40
IFA_F_MANAGETEMPADDR, IFA_F_NOPREFIXROUTE = 0x100, 0x200

RTA_DST, RTA_SRC, RTA_IIF, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY = 1, 2, 3, 4, 5, 6
RTA_PREFSRC, RTA_METRICS, RTA_TABLE, RTA_ENCAP_TYPE, RTA_IP_PROTO = 7, 8, 15, 21, 27
RTAX_MTU, RTAX_ADVMSS, RTAX_HOPLIMIT = 2, 8, 10
RT_TABLE_UNSPEC, RT_TABLE_MAIN, RT_TABLE_LOCAL = 0, 254, 255
RTPROT_UNSPEC, RTPROT_KERNEL, RTPROT_RA = 0, 2, 9
RTM_F_FIB_MATCH = 0x2000
RT_SCOPE_UNIVERSE = 0
RTN_UNSPEC, RTN_UNICAST, RTN_LOCAL, RTN_ANYCAST, RTN_UNREACHABLE = 0, 1, 2, 4, 7

FRA_DST, FRA_SRC, FRA_IIFNAME, FRA_PRIORITY, FRA_FWMARK = 1, 2, 3, 6, 10
FRA_TABLE, FRA_OIFNAME, FRA_PROTOCOL = 15, 17, 21
FR_ACT_TO_TBL = 1

NDA_DST, NDA_LLADDR, NDA_MASTER, NDA_PROTOCOL, NDA_FLAGS_EXT = 1, 2, 9, 12, 15
NUD_REACHABLE, NUD_NOARP, NUD_PERMANENT = 0x02, 0x40, 0x80
NTF_USE, NTF_MASTER, NTF_PROXY, NTF_EXT_LEARNED, NTF_STICKY = 0x01, 0x04, 0x08, 0x10, 0x40
NTF_EXT_EXT_VALIDATED = 0x04
NDTA_NAME, NDTA_PARMS, NDTPA_IFINDEX, NDTPA_PROXY_DELAY = 1, 6, 1, 13

_HEADER = Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = Struct("=HH")  # rtattr: length, type
_U32_ATTRIBUTE = Struct("=HHI")
IFINFOMSG = Struct("=BxHiII")  # family, type, index, flags, change
IFADDRMSG = Struct("=BBBBI")  # family, prefixlen, flags, scope, index
RTMSG = Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
FIB_RULE_HDR = Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, 0, 0, action, flags
NDMSG = Struct("=BxxxiHBB")  # family, ifindex, state, flags, type
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_ROOM = 8 << 20  # bytes; the kernel counts about 1,300 for a route
_BATCH = 32  # links are the largest: 2 KB each, of 208 KB that a socket has room for by default
RECEIVE_SIZE = 32768  # the largest datagram the kernel builds for a dump (netlink_dump)


class NetlinkError(OSError):
    """The kernel refused a request: `errno`, and in `strerror` what was asked and why not. Most are
    expected, such as EEXIST, so the text is only made when it is read."""

    def __init__(self, number: int, what: object, flags: int = 0, answer: bytes = b"") -> None:
        super().__init__(number, "")
        self._what = what
        self._flags = flags
        self._answer = answer

    @property
    def strerror(self) -> str:  # type: ignore[override] # an attribute that can be set, elsewhere
        """What was asked, the error, and the kernel's own message, if it has one."""
        text = f"{self._what}: {strerror(self.errno or 0)}"
        reason = _reason(self._flags, self._answer)
        return f"{text} ({reason})" if reason else text

    def __str__(self) -> str:
        return f"[Errno {self.errno}] {self.strerror}"


class Message:
    """One request to the kernel. `what`, as text, describes it in an error."""

    __slots__ = ("body", "flags", "kind", "what")

    def __init__(self, kind: int, flags: int, body: bytes, what: object) -> None:
        self.kind: Final = kind
        self.flags: Final = flags
        self.body: Final = body
        self.what: Final = what


def encode(attributes: Iterable[Attribute]) -> bytes:
    """Attributes as the kernel reads them: an int is a u32, a str ends in NUL, a list is nested."""
    encoded = b""
    for attribute in attributes:
        if isinstance(attribute, bytes):
            encoded += attribute
            continue
        kind, value = attribute
        if isinstance(value, int):
            encoded += _U32_ATTRIBUTE.pack(8, kind, value)
            continue
        if isinstance(value, bytes):
            octets = value
        elif isinstance(value, str):
            octets = value.encode("utf-8", "surrogateescape") + b"\0"
        else:
            octets = encode(value)
            kind |= NLA_F_NESTED
        length = len(octets)
        encoded += _ATTRIBUTE.pack(4 + length, kind) + octets
        if length & 3:
            encoded += bytes(-length & 3)
    return encoded


# Where the two halves of a number are, in this machine's order.
_LOW = 0 if byteorder == "little" else 1
_HIGH = 1 - _LOW


def u16(payload: bytes, offset: int) -> int:
    """The number in two bytes. Raises IndexError where there are less."""
    # Compiled, this takes a tenth of what Struct.unpack_from takes, which makes objects.
    return payload[offset + _LOW] | payload[offset + _HIGH] << 8


def u32(payload: bytes, offset: int = 0) -> int:
    """The number in four bytes. Raises IndexError where there are less."""
    return u16(payload, offset + 2 * _LOW) | u16(payload, offset + 2 * _HIGH) << 16


def _errno(payload: bytes) -> int:
    """That of an nlmsgerr, or of NLMSG_DONE; the kernel negates it."""
    return -u32(payload) & 0xFFFFFFFF


def attributes(payload: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """Kind and value of each attribute of `payload` from `offset` on."""
    end = len(payload)
    while offset + 4 <= end:
        length = u16(payload, offset)
        if length < 4:
            return
        yield u16(payload, offset + 2) & NLA_TYPE_MASK, payload[offset + 4 : offset + length]
        offset += length + 3 & ~3


def attribute(payload: bytes, offset: int, kind: int) -> bytes | None:
    """The first attribute of a kind, or None. Later ones are not read."""
    end = len(payload)
    while offset + 4 <= end:
        length = u16(payload, offset)
        if length < 4:
            break
        if u16(payload, offset + 2) & NLA_TYPE_MASK == kind:
            return payload[offset + 4 : offset + length]
        offset += length + 3 & ~3
    return None


def decode(payload: bytes, offset: int) -> dict[int, bytes]:
    """All attributes by kind; of a repeated one the last."""
    # Not by way of `attributes`: a generator takes half as long again.
    found = {}
    end = len(payload)
    while offset + 4 <= end:
        length = u16(payload, offset)
        if length < 4:
            break
        kind = u16(payload, offset + 2) & NLA_TYPE_MASK
        found[kind] = payload[offset + 4 : offset + length]
        offset += length + 3 & ~3
    return found


def messages(datagram: bytes) -> list[tuple[int, int, int, bytes]]:
    """Kind, flags, sequence number and payload of each message of a datagram. Raises NetlinkError
    (EBADMSG) where no message can be read."""
    found = []
    offset = 0
    while offset < len(datagram):
        length = u32(datagram, offset)
        if length < 16:  # no kernel sends it, and the loop would not end
            raise NetlinkError(EBADMSG, "read the kernel's answer")
        kind, flags = u16(datagram, offset + 4), u16(datagram, offset + 6)
        sequence = u32(datagram, offset + 8)
        found.append((kind, flags, sequence, datagram[offset + 16 : offset + length]))
        offset += length + 3 & ~3
    return found


def contains(payload: bytes, octets: bytes) -> bool:
    """`octets in payload`. There CPython first takes `octets` for an int, and formats a TypeError:
    1,400 instructions (Objects/bytes_methods.c, _Py_bytes_contains)."""
    return payload.find(octets) >= 0


def text(value: bytes) -> str:
    """A NUL-terminated name. Bytes that are not UTF-8 survive: an interface name may hold any."""
    return value.rstrip(b"\0").decode("utf-8", "surrogateescape")


def link(
    kind: int,
    what: object,
    *attributes: Attribute,
    index: int = 0,
    state: int | None = None,
    flags: int = 0,
) -> Message:
    """RTM_{NEW,DEL,GET}LINK of the link with `index`, or with the name among the attributes.
    `state` is IFF_UP or 0, None leaves it alone."""
    change = 0 if state is None else IFF_UP
    body = IFINFOMSG.pack(AF_UNSPEC, 0, index, state or 0, change) + encode(attributes)
    return Message(kind, flags, body, what)


# An attribute for RTM_GETLINK: without it the kernel adds up some hundred counters per link.
WITHOUT_COUNTERS: Final = encode(((IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS),))


def get_link(name: str) -> Message:
    """RTM_GETLINK by name or alternative name: the kernel keeps both in one table."""
    kind = (
        IFLA_IFNAME if len(name.encode("utf-8", "surrogateescape")) < 16 else IFLA_ALT_IFNAME
    )  # IFNAMSIZ
    return link(RTM_GETLINK, f"read link {name}", (kind, name), WITHOUT_COUNTERS)


def set_up(index: int, name: str, *, up: bool = True) -> Message:
    """RTM_NEWLINK that sets IFF_UP, or clears it."""
    what = f"set {name} {'up' if up else 'down'}"
    return link(RTM_NEWLINK, what, index=index, state=IFF_UP if up else 0)


def link_property(kind: int, what: object, index: int, altname: str) -> Message:
    """RTM_NEWLINKPROP: one alternative name for a link, EEXIST if any link has that name."""
    flags = NLM_F_CREATE | NLM_F_EXCL
    return link(
        kind, what, (IFLA_PROP_LIST, [(IFLA_ALT_IFNAME, altname)]), index=index, flags=flags
    )


def address(
    kind: int, what: object, index: int, local: bytes, prefixlen: int, *, protocol: int = 0
) -> Message:
    """RTM_{NEW,DEL}ADDR of an IPv6 address that is never tentative (IFA_F_NODAD). `protocol` says
    who made it; kernels before 5.18 ignore that.

    A /128 gets no prefix route (IFA_F_NOPREFIXROUTE): its local route comes first, and the kernel
    walks all routes of a node for each new link."""
    mode = NLM_F_CREATE | NLM_F_EXCL if kind == RTM_NEWADDR else 0
    body = IFADDRMSG.pack(AF_INET6, prefixlen, 0, RT_SCOPE_UNIVERSE, index)
    # IFA_LOCAL alone is enough for IPv6. IFA_F_NODAD would fit the header's byte, but `ip` sends it
    # in IFA_FLAGS.
    flags = IFA_F_NODAD | IFA_F_NOPREFIXROUTE if prefixlen == 128 else IFA_F_NODAD
    attributes: list[Attribute] = [(IFA_LOCAL, local), (IFA_FLAGS, flags)]
    if protocol:
        attributes.append((IFA_PROTO, bytes((protocol,))))
    return Message(kind, mode, body + encode(attributes), what)


def get_address(what: object, local: bytes, index: int = 0) -> Message:
    """RTM_GETADDR of one IPv6 address, of that link or of any; EADDRNOTAVAIL if there is none."""
    body = IFADDRMSG.pack(AF_INET6, 0, 0, 0, index) + encode(((IFA_ADDRESS, local),))
    return Message(RTM_GETADDR, 0, body, what)


def neighbour(
    what: object,
    index: int,
    destination: bytes,
    mac: bytes,
    protocol: int,
    *,
    permanent: bool,
    validated: bool = False,
) -> Message:
    """RTM_NEWNEIGH of an entry marked as `protocol`'s. Permanent, or reachable until the neighbour
    itself says otherwise; both kinds are exempt from gc_thresh3, the limit that all network
    namespaces share (net/core/neighbour.c, `exempt_from_gc`). The kernel probes a `validated`
    entry, but never gives it up; before Linux 6.17 it refuses the flag with EINVAL, and before 5.16
    ignores it."""
    state, flags = (NUD_PERMANENT, 0) if permanent else (NUD_REACHABLE, NTF_EXT_LEARNED)
    body = NDMSG.pack(AF_INET6, index, state, flags, RTN_UNICAST)
    attributes = ((NDA_DST, destination), (NDA_LLADDR, mac), (NDA_PROTOCOL, bytes((protocol,))))
    body += encode(attributes)
    if validated:
        body += encode(((NDA_FLAGS_EXT, NTF_EXT_EXT_VALIDATED),))
    return Message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, what)


def get_neighbour(what: object, index: int, destination: bytes) -> Message:
    """RTM_GETNEIGH of an entry of a link; ENOENT if there is none."""
    body = NDMSG.pack(AF_INET6, index, 0, 0, RTN_UNSPEC)
    return Message(RTM_GETNEIGH, 0, body + encode(((NDA_DST, destination),)), what)


def solicit(what: object, index: int, destination: bytes) -> Message:
    """RTM_NEWNEIGH that makes the kernel solicit a neighbour, as a packet to it would; without
    effect if it is known."""
    body = NDMSG.pack(AF_INET6, index, 0, NTF_USE, RTN_UNSPEC)
    return Message(RTM_NEWNEIGH, NLM_F_CREATE, body + encode(((NDA_DST, destination),)), what)


def delete_neighbour(what: object, index: int, destination: bytes) -> Message:
    """RTM_DELNEIGH of an entry of a link; ENOENT if there is none."""
    body = NDMSG.pack(AF_INET6, index, 0, 0, RTN_UNSPEC)
    return Message(RTM_DELNEIGH, 0, body + encode(((NDA_DST, destination),)), what)


def proxy_neighbour(
    kind: int, what: object, index: int, destination: bytes, protocol: int
) -> Message:
    """RTM_{NEW,DEL}NEIGH of a proxy entry: the link answers solicitations for an address not its
    own."""
    flags = NLM_F_CREATE if kind == RTM_NEWNEIGH else 0
    body = NDMSG.pack(AF_INET6, index, NUD_PERMANENT, NTF_PROXY, RTN_UNICAST)
    attributes = ((NDA_DST, destination), (NDA_PROTOCOL, bytes((protocol,))))
    return Message(kind, flags, body + encode(attributes), what)


_IPV6_NEIGHBOURS = bytes((AF_INET6, 0, 0, 0)) + encode(((NDTA_NAME, "ndisc_cache"),))  # ndtmsg
_NO_DELAY = encode(((NDTPA_PROXY_DELAY, bytes(8)),))


def no_proxy_delay(what: object, index: int) -> Message:
    """RTM_SETNEIGHTBL of a link: the kernel answers for a proxy entry without delay."""
    parameters: Attribute = (NDTA_PARMS, [(NDTPA_IFINDEX, index), _NO_DELAY])
    return Message(RTM_SETNEIGHTBL, 0, _IPV6_NEIGHBOURS + encode((parameters,)), what)


def bridge_port(what: object, index: int, *, learning: bool, groups: int) -> Message:
    """RTM_NEWLINK of a bridge port: whether the bridge learns MACs from it, and how many multicast
    groups it may report where the bridge snoops; before Linux 6.3 the kernel ignores that."""
    settings: list[Attribute] = [
        (IFLA_BRPORT_LEARNING, bytes((learning,))),
        (IFLA_BRPORT_MCAST_MAX_GROUPS, groups),
    ]
    data: Attribute = (IFLA_INFO_SLAVE_DATA, settings)
    slave: Attribute = (IFLA_LINKINFO, [(IFLA_INFO_SLAVE_KIND, b"bridge"), data])
    return link(RTM_NEWLINK, what, slave, index=index)


def forwarding_entry(what: object, index: int, mac: bytes) -> Message:
    """RTM_NEWNEIGH of a bridge: that MAC is behind this port, whatever other ports send. EEXIST if
    the bridge has it elsewhere: as its own, as a port's, or behind another port."""
    body = NDMSG.pack(AF_BRIDGE, index, NUD_NOARP, NTF_MASTER | NTF_STICKY, RTN_UNSPEC)
    flags = NLM_F_CREATE | NLM_F_EXCL
    return Message(RTM_NEWNEIGH, flags, body + encode(((NDA_LLADDR, mac),)), what)


def get_forwarding_entry(what: object, bridge: int, mac: bytes) -> Message:
    """RTM_GETNEIGH of a bridge: the port that the MAC is behind."""
    body = NDMSG.pack(AF_BRIDGE, 0, 0, NTF_MASTER, RTN_UNSPEC)
    return Message(RTM_GETNEIGH, 0, body + encode(((NDA_LLADDR, mac), (NDA_MASTER, bridge))), what)


def route(
    kind: int,
    what: object,
    destination: tuple[bytes, int],
    *attributes: Attribute,
    protocol: int,
    table: int = RT_TABLE_MAIN,
    scope: int = RT_SCOPE_UNIVERSE,
    type_: int = RTN_UNICAST,
    sender: bytes = b"",
) -> Message:
    """RTM_{NEW,DEL}ROUTE to `destination` (address, prefix length), for packets from the address
    `sender` alone if one is given. A new one never joins or replaces another: EEXIST if the table
    has the prefix with the same RTA_PRIORITY. Kernels without CONFIG_IPV6_SUBTREES refuse a sender
    with EINVAL (net/ipv6/route.c, ip6_route_info_create)."""
    flags = NLM_F_CREATE | NLM_F_EXCL if kind == RTM_NEWROUTE else 0
    prefix, length = destination
    src_len = 8 * len(sender)
    header = RTMSG.pack(AF_INET6, length, src_len, 0, RT_TABLE_UNSPEC, protocol, scope, type_, 0)
    body = header + encode(((RTA_DST, prefix), (RTA_TABLE, table), *attributes))
    if sender:
        body += encode(((RTA_SRC, sender),))
    return Message(kind, flags, body, what)


def get_route(what: object, destination: bytes, source: bytes = b"") -> Message:
    """RTM_GETROUTE of the route that packets to an address take, as the table has it; those from
    `source` if one is given."""
    header = RTMSG.pack(AF_INET6, 128, 8 * len(source), 0, 0, 0, 0, 0, RTM_F_FIB_MATCH)
    ends = encode(((RTA_DST, destination),))
    if source:
        ends += encode(((RTA_SRC, source),))
    return Message(RTM_GETROUTE, 0, header + ends, what)


# An attribute for RTM_NEWLINK: the kernel makes no link-local address. Refused in the message that
# creates a link (EAFNOSUPPORT), too late in the one that sets IFF_UP.
_MODE: Attribute = (IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE)
NO_LINK_LOCAL: Final = encode(((IFLA_AF_SPEC, [(AF_INET6, [_MODE])]),))
# The same: no ARP is answered, and no neighbour that asks is stored (net/ipv4/arp.c).
_IGNORE: Attribute = (IFLA_INET_CONF, [(IPV4_DEVCONF_ARP_IGNORE, 8)])
NO_ARP: Final = encode(((IFLA_AF_SPEC, [(AF_INET, [_IGNORE])]),))


def rule(kind: int, what: object, table: int, protocol: int, source: bytes) -> Message:
    """RTM_{NEW,DEL}RULE: packets from the address `source` are routed by `table`."""
    flags = NLM_F_CREATE | NLM_F_EXCL if kind == RTM_NEWRULE else 0
    header = FIB_RULE_HDR.pack(AF_INET6, 0, 8 * len(source), 0, 0, 0, 0, FR_ACT_TO_TBL, 0)
    attributes = ((FRA_TABLE, table), (FRA_PROTOCOL, bytes((protocol,))), (FRA_SRC, source))
    return Message(kind, flags, header + encode(attributes), what)


def get_nsid(netns: int) -> Message:
    """RTM_GETNSID: the number by which this network namespace knows another one, of which `netns`
    is a descriptor; -1 if it has none. IFLA_LINK_NETNSID is such a number."""
    body = bytes(4) + encode(((NETNSA_FD, netns),))  # struct rtgenmsg, padded
    return Message(RTM_GETNSID, 0, body, "identify a network namespace")


class Socket:
    """A netlink socket of the network namespace the calling thread is in; it stays there."""

    __slots__ = ("_filters", "_sequence", "_socket", "proc", "switches")

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        try:
            self._socket = socket(AF_NETLINK, SOCK_RAW, protocol)
            # Errors then come with the kernel's own message, and without a copy of the request.
            self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        except OSError as error:
            raise _failed("open a netlink socket", error) from None
        self._sequence = 0
        self._filters = False
        # Of kernel.sysctl: the namespace's settings, and the procfs to look for them in.
        self.switches: Directory | None = None
        self.proc: Directory | None = None

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()
        self.switches = self.proc = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, *messages: Message) -> list[bytes]:
        """Send messages as one batch; return the payloads of the kernel's answers.

        The kernel works through the whole batch even when one is refused, so a batch may only
        change objects that are known to be the sender's own.

        Raises NetlinkError for the first message that was refused.
        """
        payloads, refusals = self._exchange(messages)
        if refusals:
            raise refusals[min(refusals)]
        return payloads

    def ensure(self, *messages: Message) -> list[bool]:
        """Like `request`, but EEXIST is not an error. Returns which messages made something."""
        refusals = self._exchange(messages)[1]
        for index in sorted(refusals):
            if refusals[index].errno != EEXIST:
                raise refusals[index]
        return [index not in refusals for index in range(len(messages))]

    def attempt(self, *messages: Message) -> dict[int, NetlinkError]:
        """Send messages as one batch; return the refusals by the message's place."""
        return self._exchange(messages)[1]

    def read(self, message: Message) -> bytes:
        """The one object that a message asks for. Raises NetlinkError, also if there is none."""
        payloads, refusals = self._exchange((message,), answered=True)
        if refusals:
            raise refusals[0]
        return payloads[0]

    def ask(self, *messages: Message) -> list[bytes | None]:
        """One answer per message: the object, or None where there is no such object."""
        payloads, refusals = self._exchange(messages, answered=True)
        for index in sorted(refusals):
            if refusals[index].errno not in (ENOENT, ENODEV):
                raise refusals[index]
        found = iter(payloads)
        return [None if index in refusals else next(found) for index in range(len(messages))]

    def answers(self, messages: Sequence[Message]) -> list[bytes | NetlinkError]:
        """One per message: the object, or the refusal. Any number of them is sent, in batches whose
        answers the socket has room for."""
        found: list[bytes | NetlinkError] = []
        for start in range(0, len(messages), _BATCH):
            batch = tuple(messages[start : start + _BATCH])
            payloads, refusals = self._exchange(batch, answered=True)
            objects = iter(payloads)
            for place in range(len(batch)):
                found.append(refusals[place] if place in refusals else next(objects))
        return found

    def numbered(self, message: Message) -> bytes:
        """A request for `send`, whose answer is ignored."""
        self._sequence += 1
        flags, length = NLM_F_REQUEST | message.flags, 16 + len(message.body)
        return _HEADER.pack(length, message.kind, flags, self._sequence - 1, 0) + message.body

    def send(self, numbered: bytes) -> None:
        """Send a request; returns when the kernel has carried it out."""
        self._socket.send(numbered)

    def _exchange(
        self, messages: tuple[Message, ...], *, framed: bool = False, answered: bool = False
    ) -> tuple[list[bytes], dict[int, NetlinkError]]:
        """`framed`: the first and the last message begin and end a transaction. The kernel answers
        the first if it refuses the whole, and never the last (before Linux 6.10). `answered`: each
        message is a question, so no ACK is needed."""
        first = self._sequence
        self._sequence += len(messages)
        last = self._sequence - 1 - framed
        batch = b""
        for sequence, message in enumerate(messages, first):
            # Refusals are always reported: one ACK, of the last, ends the batch.
            flags = NLM_F_REQUEST | message.flags
            if sequence == last and not answered:
                flags |= NLM_F_ACK
            length = 16 + len(message.body)
            batch += _HEADER.pack(length, message.kind, flags, sequence, 0) + message.body
        what = messages[0].what
        self._ask(batch, what)

        payloads: list[bytes] = []
        refusals: dict[int, NetlinkError] = {}
        while True:
            for kind, flags, sequence, payload in self._hear(what):
                if sequence < first:
                    continue  # the answer to a request that was given up
                if kind != NLMSG_ERROR:
                    payloads.append(payload)
                    if answered and sequence == last:
                        return payloads, refusals
                    continue
                number = _errno(payload)
                if number:
                    refused = messages[sequence - first].what
                    refusals[sequence - first] = NetlinkError(number, refused, flags, payload)
                # Without CAP_NET_ADMIN nf_tables answers only the first message of a batch.
                if sequence == last or (framed and sequence == first) or number == EPERM:
                    return payloads, refusals

    def dump(self, message: Message, holding: bytes = b"") -> list[bytes]:
        """All objects of a kind that match `message`; of a large table only those that contain the
        bytes `holding`.

        Raises NetlinkError, also when the table keeps changing while it is read.
        """
        self._obey_filters(message.what)
        patience = Patience()
        while True:
            flags = NLM_F_REQUEST | NLM_F_DUMP
            header = _HEADER.pack(16 + len(message.body), message.kind, flags, self._sequence, 0)
            self._sequence += 1
            self._ask(header + message.body, message.what)
            payloads: list[bytes] = []
            changed = done = False
            while not done:
                for kind, flags, sequence, payload in self._hear(message.what):
                    if sequence != self._sequence - 1:
                        continue  # the answer to a request that was given up
                    changed = changed or bool(flags & NLM_F_DUMP_INTR)
                    if kind in (NLMSG_DONE, NLMSG_ERROR):
                        number = _errno(payload)
                        if number:
                            raise NetlinkError(number, message.what, flags, payload)
                        done = True
                    elif contains(payload, holding):
                        payloads.append(payload)
            if not changed:
                return payloads
            if patience.is_over:
                raise NetlinkError(EINTR, f"{message.what} (the table kept changing)")

    def _obey_filters(self, what: object) -> None:
        """Have a dump obey the filter in its header instead of returning everything."""
        if self._filters:
            return
        try:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        except OSError as error:
            raise _failed(what, error) from None
        self._filters = True

    def _ask(self, batch: bytes, what: object) -> None:
        try:
            self._socket.send(batch)
        except OSError as error:
            raise _failed(what, error) from None

    def _hear(self, what: object) -> list[tuple[int, int, int, bytes]]:
        try:
            return self._receive()
        except OSError as error:
            raise _failed(what, error) from None

    def _receive(self) -> list[tuple[int, int, int, bytes]]:
        """The messages of one datagram. It never waits: the kernel answers within send(). An answer
        that was lost for lack of room (ENOBUFS) does not hide the others."""
        try:
            datagram = self._socket.recv(RECEIVE_SIZE, MSG_DONTWAIT)
        except OSError as error:
            if error.errno != ENOBUFS:
                raise
            datagram = b""
        return messages(datagram)


def _failed(what: object, error: OSError) -> OSError:
    """A system call failed before the kernel had refused or answered anything."""
    return OSError(error.errno, f"{what}: {error.strerror}")


def _reason(flags: int, payload: bytes) -> str:
    """The kernel's message with an errno (extended ACK), or ''. The request's header (16 bytes) is
    between the two; NLMSG_DONE has none, and no message that matters here."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    return text(decode(payload, 20).get(NLMSGERR_ATTR_MSG, b""))
