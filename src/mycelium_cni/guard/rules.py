# SPDX-License-Identifier: Apache-2.0
"""Our rules as data: what `nft list table inet mycelium-cni` shows, as messages to the kernel.

Everything here may be sent again at any time and only replaces what is ours and of the same name.
So two plugins that load at once, for two networks, do not undo each other. docs/security.md says
what each rule is for, docs/adr/0006-the-guard.md why.

A comment that begins with `nft:` is what `nft list` prints for the chain or rule below it, with
`$NAME` for what differs from node to node; tests/netns/test_guard.py compares.
"""

from __future__ import annotations

from errno import ENOENT

from mycelium_cni.guard.wanted import (
    BRIDGE_CHAIN,
    BRIDGE_WORDS,
    NEW_CHAIN,
    PODS_CHAIN,
    RULES,
    TABLE_NAME,
    Port,
    from_chain,
    link_key,
    overlay_chain,
    to_chain,
    transit_chain,
)
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import nftables as nf
from mycelium_cni.node.facts import LINK_LOCAL_GATEWAY
from mycelium_cni.node.marks import (
    BRIDGE_GROUP,
    DELETE_GROUP,
    GROUP,
    GROUP_MASK,
    GUARDED_MASK,
)
from mycelium_cni.overlay import MYCELIUM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

    from mycelium_cni.guard.wanted import Record, Wanted

INET = nf.Table(nf.NFPROTO_INET, TABLE_NAME)
BRIDGE = nf.Table(nf.NFPROTO_BRIDGE, TABLE_NAME)

_RAW, _MANGLE, _FILTER, _SRCNAT = -300, -150, 0, 100  # linux/netfilter_ipv6.h
_BRIDGE_FILTER = -200  # linux/netfilter_bridge.h
_EQ, _NEQ = nf.NFT_CMP_EQ, nf.NFT_CMP_NEQ

# Where fields begin, in bytes, and how long they are: struct ethhdr, ipv6hdr, frag_hdr, tcphdr, and
# nd_msg (include/net/ndisc.h), whose options come last.
_H_DEST, _H_SOURCE, _H_PROTO, _ETH_ALEN = 0, 6, 12, 6
_PAYLOAD_LEN, _NEXT_HEADER, _IPV6_SADDR, _IPV6_DADDR, _ADDRESS_LEN, _SUBNET_LEN = 4, 6, 8, 24, 16, 8
_FRAG_OFF, _IP6_OFFSET = 2, b"\xff\xf8"
_PORT_DEST, _TCP_FLAGS, _SYN, _SYN_ACK = 2, 13, b"\x02", b"\x12"
_ICMP6_TYPE, _ND_TARGET, _ND_OPTIONS, _ND_LINK_ADDRESS = 0, 8, 24, 26

# Matches, each encoded as `nft` encodes the text above it. meta nfproto ipv6; in a bridge `meta
# protocol ip6` says it
_IPV6 = (nf.meta(nf.NFT_META_NFPROTO), nf.compare(_EQ, bytes((nf.NFPROTO_IPV6,))))
_NOT_IPV6 = (_IPV6[0], nf.compare(_NEQ, bytes((nf.NFPROTO_IPV6,))))
_ROUTED_BY_SOURCE = (nf.exthdr_present(nf.IPPROTO_ROUTING), nf.compare(_EQ, b"\1"))
_BRIDGED_IPV6 = (nf.meta(nf.NFT_META_PROTOCOL), nf.compare(_EQ, nf.ETH_P_IPV6))
_SADDR = nf.payload(nf.NFT_PAYLOAD_NETWORK_HEADER, _IPV6_SADDR, _ADDRESS_LEN)
_DADDR = nf.payload(nf.NFT_PAYLOAD_NETWORK_HEADER, _IPV6_DADDR, _ADDRESS_LEN)
# iif . ip6 saddr
_SENDER = (
    nf.meta(nf.NFT_META_IIF),
    nf.payload(nf.NFT_PAYLOAD_NETWORK_HEADER, _IPV6_SADDR, _ADDRESS_LEN, nf.NFT_REG32_01),
)
_SOURCE_SUBNET = nf.payload(nf.NFT_PAYLOAD_NETWORK_HEADER, _IPV6_SADDR, _SUBNET_LEN)
_DESTINATION_SUBNET = nf.payload(nf.NFT_PAYLOAD_NETWORK_HEADER, _IPV6_DADDR, _SUBNET_LEN)
_ICMPV6 = (nf.meta(nf.NFT_META_L4PROTO), nf.compare(_EQ, bytes((nf.IPPROTO_ICMPV6,))))
_NO_ICMPV6 = (_ICMPV6[0], nf.compare(_NEQ, bytes((nf.IPPROTO_ICMPV6,))))
_ICMPV6_TYPE = (*_ICMPV6, nf.payload(nf.NFT_PAYLOAD_TRANSPORT_HEADER, _ICMP6_TYPE, 1))
_TCP_NUMBER, _UDP_NUMBER = bytes((nf.IPPROTO_TCP,)), bytes((nf.IPPROTO_UDP,))
_TCP = (nf.meta(nf.NFT_META_L4PROTO), nf.compare(_EQ, _TCP_NUMBER))
_NO_TCP = (_TCP[0], nf.compare(_NEQ, _TCP_NUMBER))
_UDP = (_TCP[0], nf.compare(_EQ, _UDP_NUMBER))
_NEXT = nf.payload(nf.NFT_PAYLOAD_NETWORK_HEADER, _NEXT_HEADER, 1)
_DESTINATION_PORT = nf.payload(nf.NFT_PAYLOAD_TRANSPORT_HEADER, _PORT_DEST, 2)
_OURS = (
    nf.mask(nf.host32(GUARDED_MASK)),
    nf.compare(_EQ, nf.host32(GROUP)),
)
_FROM_OURS = (nf.meta(nf.NFT_META_IIFGROUP), *_OURS)
# fib saddr . iif oif
_ROUTED_BACK = nf.fib_present(nf.NFTA_FIB_F_SADDR | nf.NFTA_FIB_F_IIF)
_MISSING, _EXISTS = nf.host32(0), nf.host32(1)
# fib daddr type != unicast: whatever the node takes for itself, by multicast and anycast too
_TO_NODE = (nf.fib_type(nf.NFTA_FIB_F_DADDR), nf.compare(_NEQ, nf.host32(nf.RTN_UNICAST)))
_TO_OTHERS = (_TO_NODE[0], nf.compare(_EQ, nf.host32(nf.RTN_UNICAST)))
_DROP = (nf.counter(), nf.verdict(nf.NF_DROP))
_ACCEPT = nf.verdict(nf.NF_ACCEPT)

_RA, _NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT, _REDIRECT = 134, 135, 136, 137
_ROUTER_SOLICITATION, _ECHO_REPLY = 133, 129
_MULTICAST_ROUTER = 151  # its advertisement (RFC 4286)
_MLD_REPORT, _MLD2_REPORT = 131, 143
_SOURCE_LINK_ADDRESS, _TARGET_LINK_ADDRESS = 1, 2  # options (RFC 4861, section 4.6.1)
_LINK_LOCAL = (b"\xfe\x80" + bytes(14), 10)
_INFORMATIONAL = 128  # lower ICMPv6 types are errors (RFC 4443, section 2.1)

# Of each pod, and how many at once.
_ERRORS_A_SECOND = 100, 200
_FALSE_ERROR = "ICMPv6 error about a packet it was not sent, or too many"
# The packet that an ICMPv6 error quotes begins 8 bytes into it: its addresses are 16 and 32 in.
_QUOTED_SOURCE, _QUOTED_DESTINATION = 16, 32

# IPv4 and IPv6 in IPv6, GRE, EtherIP, L2TPv3, MPLS; and over UDP VXLAN (Linux's old port too, and
# GPE), GENEVE, GUE, MPLS, GTP.
_TUNNEL_PROTOCOLS = (4, 41, 47, 97, 115, 137)
_TUNNEL_PORTS = ((4789, 4790, 6080, 6081, 6635), (2152, 8472))  # by bits in common (`_like`)

# Where the daemon accepts peers, and discovers them by multicast: 9650 and 9651. Both ports of the
# packet under one mask, because the kernel evaluates four bytes inline (nft_bitwise_fast): a range
# of the one port took 70 to 110 ns of every packet.
_PORTS_OF_PEER = (
    nf.payload(nf.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 4),
    nf.mask(b"\0\0\xff\xfe"),
    nf.compare(_EQ, b"\0\0\x25\xb2"),
)

_COMMON_OF_PODS, _COMMON_OF_BRIDGES = f"common-pods-{RULES}", f"common-bridged-{RULES}"
_OWN = f"own-{RULES}"
_ERRORS, _TUNNELS, _PEERING = f"errors-{RULES}", f"tunnels-{RULES}", f"peering-{RULES}"
_OTHERS = f"others-{RULES}"
_SOLICITATION, _ADVERTISEMENT = f"solicitation-{RULES}", f"advertisement-{RULES}"
_UNSPECIFIED = f"unspecified-{RULES}"
_UNATTACHED, _SEEK = f"unattached-{RULES}", f"sought-{RULES}"
_INTO_TUNNELS = (*_NO_TCP, nf.verdict(nf.NFT_JUMP, _TUNNELS))
_IF_UNATTACHED = (
    *(*_IPV6, _DADDR, nf.lookup("attached", inverted=True)),
    nf.verdict(nf.NFT_JUMP, _UNATTACHED),
)


def _type(number: int) -> tuple[nl.Attribute, ...]:
    return (*_ICMPV6_TYPE, nf.compare(_EQ, bytes((number,))))


def _like(*ports: int) -> tuple[nl.Attribute, ...]:
    """UDP to a port that has the bits that all of these have in common."""
    same = 0xFFFF
    for port in ports:
        same &= ~(port ^ ports[0])
    bits, value = same.to_bytes(2, "big"), (ports[0] & same).to_bytes(2, "big")
    return (
        _NEXT,
        nf.compare(_EQ, _UDP_NUMBER),
        _DESTINATION_PORT,
        nf.mask(bits),
        nf.compare(_EQ, value),
    )


# One port in thirty is like one of these; to look for all seven takes eight times as long.
_LIKE_TUNNELS = tuple(_like(*ports) for ports in _TUNNEL_PORTS)


def _types(low: int, high: int) -> tuple[nl.Attribute, ...]:
    return (
        *_ICMPV6_TYPE,
        nf.compare(nf.NFT_CMP_GTE, bytes((low,))),
        nf.compare(nf.NFT_CMP_LTE, bytes((high,))),
    )


# nf_tables knows the protocol of packets that are not fragments, of first fragments that have all
# headers, and of later ones without options. Any other packet matches no rule that names a
# protocol, a type or a port, and is still reassembled where it arrives. So no chain but those of
# `_common` lets pass what reaches its end: its last rules accept what may pass, and drop the rest.
# RFC 7112 forbids such first fragments.
_ERROR = (*_ICMPV6_TYPE, nf.compare(nf.NFT_CMP_LTE, bytes((_INFORMATIONAL - 1,))))
_NO_ERROR = (*_ICMPV6_TYPE, nf.compare(nf.NFT_CMP_GTE, bytes((_INFORMATIONAL,))))
# Some kernels take the IPv6 header of a later fragment for its transport header, and 0x60 for its
# type (nft_payload_fast_eval in 6.18): this goes before rules about errors.
_LATER_FRAGMENT = (
    *_ICMPV6,
    nf.exthdr(nf.IPPROTO_FRAGMENT, _FRAG_OFF, 2),
    nf.mask(_IP6_OFFSET),
    nf.compare(_NEQ, bytes(2)),
)


def _rest_of_icmpv6(table: nf.Table, chain: str, v6: tuple[nl.Attribute, ...]) -> list[nl.Message]:
    """The end of a chain whose earlier rules handle ICMPv6 errors and restricted types."""
    return [
        table.rule(chain, "", *v6, *_NO_ERROR, _ACCEPT),
        table.rule(chain, "no transport header", *_DROP),
    ]


def _in(address: nl.Attribute, prefix: tuple[bytes, int], op: int = _EQ) -> list[nl.Attribute]:
    network, length = prefix
    bits = ((1 << length) - 1 << 128 - length).to_bytes(16, "big")
    return [address, nf.mask(bits), nf.compare(op, network)]


def _quoted(offset: int, size: int, register: int = nf.NFT_REG_1) -> nl.Attribute:
    """A part of what an ICMPv6 error quotes."""
    return nf.payload(nf.NFT_PAYLOAD_TRANSPORT_HEADER, offset, size, register)


def _once(make: Callable[..., list[nl.Message]]) -> Callable[..., tuple[nl.Message, ...]]:
    """Make constant messages on first use; in the static executable the rehearsal was that."""
    made: dict[tuple[tuple[str, object], ...], tuple[nl.Message, ...]] = {}

    def get(**asked: object) -> tuple[nl.Message, ...]:
        key = (*asked.items(),)
        if key not in made:
            made[key] = (*make(**asked),)
        return made[key]

    return get


@_once
def base(*, peers: bool, confined: bool, bridges: tuple[str, ...]) -> list[nl.Message]:
    """The table, its maps, and the chains that do not depend on a node or a network. `peers`: pods
    may become peers of the node's daemon. `confined`: nobody enters the node's tunnels. `bridges`:
    those that have pods."""
    table = INET
    guests = table.rule(
        "bridged",
        "",
        *(*_IPV6, *_ICMPV6, _SADDR, nf.lookup("attached", inverted=True)),
        *(_SADDR, nf.learn("guests")),
    )
    link = nf.meta(nf.NFT_META_IIF)
    to_own = nf.verdict(nf.NFT_GOTO, _OWN)
    return [
        table.add("mycelium-cni: what pods and the overlay may send; docs/security.md"),
        table.set("overlays", nf.IFNAME, nf.NFT_SET_MAP),
        table.set("to-network", nf.DEVGROUP, nf.NFT_SET_MAP),
        table.set("to-address", nf.IPV6_ADDR, nf.NFT_SET_MAP),
        table.set("from-network", nf.DEVGROUP, nf.NFT_SET_MAP),
        table.set("from-address", nf.IPV6_ADDR, nf.NFT_SET_MAP),
        # To look up a route for a rule, the kernel allocates one and frees it after a grace period,
        # which takes a third of TCP's throughput. So the answer is remembered for a minute. Only
        # the pod's own address gets in, and a link's index is not used again.
        table.set("own-address", nf.SENDER, timeout_ms=60_000),
        # Who has just sent an error. The packet that it quotes must have been for that sender:
        # nf_tables cannot compare two fields of a packet, but it can look up both.
        table.set("quoting", nf.QUOTED, timeout_ms=60_000),
        table.set("asking", nf.INTERFACE, timeout_ms=60_000),
        table.set("reporting", nf.INTERFACE, timeout_ms=60_000),
        # Where address translation has led a packet is known here; if to the node, in `arrival`.
        # A chain of this type sees only the first packet of a connection, if connections are
        # tracked, and costs others nothing; and it comes before those that translate the source,
        # for the first that does is the last.
        table.set("transit", nf.IFNAME, nf.NFT_SET_MAP),
        # nft: chain inet transit
        # nft: type nat hook postrouting priority mangle; policy accept;
        table.chain("transit", *nf.base("nat", nf.NF_INET_POST_ROUTING, _MANGLE)),
        table.flush_chain("transit"),
        # nft: iifname vmap @transit
        table.rule("transit", "", nf.meta(nf.NFT_META_IIFNAME), nf.vmap("transit")),
        # nft: chain inet errors-$RULES
        table.chain(_ERRORS),
        table.flush_chain(_ERRORS),
        # nft: add @quoting { iif . @nh,64,128 }
        table.rule(_ERRORS, "", *_SENDER, nf.learn("quoting")),
        # nft: icmpv6 type <= 127 iif . @th,256,128 @quoting update @reporting { iif limit rate
        #      100/second burst 200 packets } accept
        table.rule(
            _ERRORS,
            "",
            *(*_IPV6, *_ERROR),
            *(
                link,
                _quoted(_QUOTED_DESTINATION, _ADDRESS_LEN, nf.NFT_REG32_01),
                nf.lookup("quoting"),
            ),
            *(link, nf.limit("reporting", *_ERRORS_A_SECOND), _ACCEPT),
        ),
        # nft: counter drop comment "ICMPv6 error about a packet it was not sent, or too many"
        table.rule(_ERRORS, _FALSE_ERROR, *_DROP),
        *(() if peers else _no_peers()),
        *(_tunnels() if confined else ()),
        *(_unattached(bridges) if bridges else ()),
        # nft: chain inet translated
        table.chain("translated"),
        table.flush_chain("translated"),
        # nft: @th,0,32 & 0xfffe == 0x25b2 jump peering-$RULES
        *(() if peers else [_to_daemon("translated")]),
        # nft: meta l4proto != tcp jump tunnels-$RULES
        *([table.rule("translated", "", *_INTO_TUNNELS)] if confined else ()),
        # nft: chain inet arrival
        # nft: type nat hook input priority mangle; policy accept;
        table.chain("arrival", *nf.base("nat", nf.NF_INET_LOCAL_IN, _MANGLE)),
        table.flush_chain("arrival"),
        # nft: iifname vmap @transit
        table.rule("arrival", "", nf.meta(nf.NFT_META_IIFNAME), nf.vmap("transit")),
        # nft: iifgroup 1610612736/3 goto translated
        table.rule("arrival", "", *_FROM_OURS, nf.verdict(nf.NFT_GOTO, "translated")),
        # nft: chain inet bridged
        table.chain("bridged"),
        table.flush_chain("bridged"),
        # nft: meta l4proto ipv6-icmp ip6 saddr != @attached add @guests { ip6 saddr }
        *([guests] if bridges else ()),
        # nft: @th,0,32 & 0xfffe == 0x25b2 jump peering-$RULES
        *(() if peers else [_to_daemon("bridged")]),
        # nft: meta l4proto != tcp jump tunnels-$RULES
        *([table.rule("bridged", "", *_INTO_TUNNELS)] if confined else ()),
        # nft: accept
        table.rule("bridged", "", _ACCEPT),
        # nft: chain inet common-bridged-$RULES
        # nft: meta nfproto != ipv6 goto bridged
        # nft: @nh,48,8 != 0x6 @nh,48,8 != 0x11 goto bridged
        # nft: @th,0,32 & 0xfffe == 0x25b2 goto bridged
        # nft: @nh,48,8 0x11 th dport & 61568 == 4224 goto bridged
        # nft: @nh,48,8 0x11 th dport & 54927 == 8 goto bridged
        *_common(_COMMON_OF_BRIDGES, "bridged", peers=peers, confined=confined),
        # nft: chain inet own-$RULES
        table.chain(_OWN),
        table.flush_chain(_OWN),
        # nft: meta nfproto ipv6 meta l4proto != ipv6-icmp accept
        table.rule(_OWN, "", *_IPV6, *_NO_ICMPV6, _ACCEPT),
        # nft: meta l4proto ipv6-icmp frag frag-off != 0 accept
        table.rule(_OWN, "", *_IPV6, *_LATER_FRAGMENT, _ACCEPT),
        # nft: icmpv6 type <= 127 goto errors-$RULES
        table.rule(_OWN, "", *_IPV6, *_ERROR, nf.verdict(nf.NFT_GOTO, _ERRORS)),
        # nft: icmpv6 type >= echo-request accept
        # nft: counter drop comment "no transport header"
        *_rest_of_icmpv6(table, _OWN, _IPV6),
        # nft: chain inet pods-$RULES
        table.chain(PODS_CHAIN),
        table.flush_chain(PODS_CHAIN),
        # nft: meta nfproto != ipv6 counter drop comment "not IPv6"
        table.rule(PODS_CHAIN, "not IPv6", *_NOT_IPV6, *_DROP),
        # nft: @th,0,32 & 0xfffe == 0x25b2 jump peering-$RULES
        *(() if peers else [_to_daemon(PODS_CHAIN)]),
        # nft: meta l4proto != tcp jump tunnels-$RULES
        *([table.rule(PODS_CHAIN, "", *_INTO_TUNNELS)] if confined else ()),
        # nft: icmpv6 type nd-router-advert counter drop comment "router advertisement from a pod"
        table.rule(PODS_CHAIN, "router advertisement from a pod", *_IPV6, *_type(_RA), *_DROP),
        # nft: icmpv6 type nd-redirect counter drop comment "redirect from a pod"
        table.rule(PODS_CHAIN, "redirect from a pod", *_IPV6, *_type(_REDIRECT), *_DROP),
        # nft: iif . ip6 saddr @own-address goto own-$RULES
        table.rule(PODS_CHAIN, "", *_IPV6, *_SENDER, nf.lookup("own-address"), to_own),
        # A virtual machine's own stack asks from its link-local address, again and again. Each
        # answer makes a neighbour entry of the node, and all pods share a thousand of these.
        # nft: ip6 saddr fe80::/10 icmpv6 type nd-neighbor-solicit @th,64,128
        #      0xfe800000000000000000000000000001 update @asking { iif limit rate 2/second burst 10
        #      packets } accept comment "solicitation of its gateway"
        table.rule(
            PODS_CHAIN,
            "solicitation of its gateway",
            *(*_IPV6, *_in(_SADDR, _LINK_LOCAL), *_type(_NEIGHBOUR_SOLICITATION)),
            nf.payload(nf.NFT_PAYLOAD_TRANSPORT_HEADER, _ND_TARGET, _ADDRESS_LEN),
            nf.compare(_EQ, LINK_LOCAL_GATEWAY),
            *(link, nf.limit("asking", 2, 10), _ACCEPT),
        ),
        # nft: fib saddr . iif oif missing counter drop comment "not the pod's address"
        table.rule(
            PODS_CHAIN,
            "not the pod's address",
            *(_ROUTED_BACK, nf.compare(_EQ, _MISSING)),
            *_DROP,
        ),
        # Duplicate address detection passes that, from ::, which is nobody's own.
        # nft: ip6 saddr != :: add @own-address { iif . ip6 saddr }
        table.rule(
            PODS_CHAIN,
            "",
            *(*_IPV6, _SADDR, nf.compare(_NEQ, bytes(16))),
            *(*_SENDER, nf.learn("own-address")),
        ),
        # nft: goto own-$RULES
        table.rule(PODS_CHAIN, "", to_own),
        # nft: chain inet common-pods-$RULES
        # nft: meta nfproto != ipv6 goto pods-$RULES
        # nft: @nh,48,8 != 0x6 @nh,48,8 != 0x11 goto pods-$RULES
        # nft: @th,0,32 & 0xfffe == 0x25b2 goto pods-$RULES
        # nft: @nh,48,8 0x11 th dport & 61568 == 4224 goto pods-$RULES
        # nft: @nh,48,8 0x11 th dport & 54927 == 8 goto pods-$RULES
        *_common(_COMMON_OF_PODS, PODS_CHAIN, peers=peers, confined=confined),
        # nft: iif . ip6 saddr != @own-address goto pods-$RULES
        table.rule(
            _COMMON_OF_PODS,
            "",
            *(*_IPV6, *_SENDER, nf.lookup("own-address", inverted=True)),
            nf.verdict(nf.NFT_GOTO, PODS_CHAIN),
        ),
        # nft: chain inet others-$RULES
        table.chain(_OTHERS),
        table.flush_chain(_OTHERS),
        # nft: iifname vmap @overlays
        table.rule(_OTHERS, "", nf.meta(nf.NFT_META_IIFNAME), nf.vmap("overlays")),
        # A sender with an address of the overlay is on the overlay, is a pod, or is where the node
        # has a route to. A TUN that has no pods may be another daemon's.
        # nft: ip6 saddr 400::/7 meta iiftype ether fib saddr . iif oif missing counter drop comment
        #      "source is routed to another link"
        table.rule(
            _OTHERS,
            "source is routed to another link",
            *(*_IPV6, *_in(_SADDR, MYCELIUM)),
            *(nf.meta(nf.NFT_META_IIFTYPE), nf.compare(_EQ, nf.host16(nf.ARPHRD_ETHER))),
            *(_ROUTED_BACK, nf.compare(_EQ, _MISSING)),
            *_DROP,
        ),
        # nft: chain inet prerouting
        # nft: type filter hook prerouting priority raw; policy accept;
        table.chain("prerouting", *nf.base("filter", nf.NF_INET_PRE_ROUTING, _RAW)),
        table.flush_chain("prerouting"),
        # nft: iifgroup 1610612736/3 goto common-pods-$RULES
        table.rule("prerouting", "", *_FROM_OURS, nf.verdict(nf.NFT_GOTO, _COMMON_OF_PODS)),
        # With br_netfilter, packets from port to port come here too, after the bridge table.
        # nft: iifgroup 1342177280 goto common-bridged-$RULES
        table.rule(
            "prerouting",
            "",
            *(nf.meta(nf.NFT_META_IIFGROUP), nf.compare(_EQ, nf.host32(BRIDGE_GROUP))),
            nf.verdict(nf.NFT_GOTO, _COMMON_OF_BRIDGES),
        ),
        # nft: goto others-$RULES
        table.rule("prerouting", "", nf.verdict(nf.NFT_GOTO, _OTHERS)),
    ]


def _common(chain: str, closer: str, *, peers: bool, confined: bool) -> list[nl.Message]:
    """Send all but the most common packets to a chain that has a closer look: these are TCP and
    UDP behind an IPv6 header without extensions, to no port that matters. They reach this chain's
    end, which accepts them: to execute a verdict takes the kernel 25 ns, and to load and compare
    four bytes 3. None can evade a rule: the IPv6 header has been read before, so all of it can be
    loaded, and a packet too short for ports has none."""
    closely = nf.verdict(nf.NFT_GOTO, closer)
    matches = [
        _NOT_IPV6,
        (_NEXT, nf.compare(_NEQ, _TCP_NUMBER), nf.compare(_NEQ, _UDP_NUMBER)),
        *(() if peers else (_PORTS_OF_PEER,)),
        *(_LIKE_TUNNELS if confined else ()),
    ]
    return [
        INET.chain(chain),
        INET.flush_chain(chain),
        *(INET.rule(chain, "", *match, closely) for match in matches),
    ]


def _no_peers() -> list[nl.Message]:
    """A pod that is a peer of the daemon becomes a router of the overlay."""
    table = INET
    return [
        # nft: chain inet peering-$RULES
        table.chain(_PEERING),
        table.flush_chain(_PEERING),
        # nft: meta l4proto tcp fib daddr type != unicast counter drop comment "to the daemon's peer
        #      port"
        # nft: meta l4proto udp fib daddr type != unicast counter drop comment "to the daemon's peer
        #      port"
        *(
            table.rule(_PEERING, "to the daemon's peer port", *protocol, *_TO_NODE, *_DROP)
            for protocol in (_TCP, _UDP)
        ),
    ]


def _to_daemon(chain: str) -> nl.Message:
    """Look at packets that may be for the daemon; all others cost this one comparison."""
    return INET.rule(chain, "", *_PORTS_OF_PEER, nf.verdict(nf.NFT_JUMP, _PEERING))


def _unattached(bridges: tuple[str, ...]) -> list[nl.Message]:
    """A packet to an unused address on a bridge makes the kernel store a neighbour entry and
    solicit it, and all links of the machine, in all namespaces, share a thousand entries. So it may
    look for only a few addresses at a time that belong to no pod and no guest. A guest is known
    once it has sent anything on the bridge, which no peer can."""
    table = INET
    return [
        table.set("attached", nf.IPV6_ADDR),
        table.set("guests", nf.IPV6_ADDR, timeout_ms=3_600_000),
        table.set("sought", nf.IPV6_ADDR, timeout_ms=10_000, size=128),
        # nft: chain inet sought-$RULES
        table.chain(_SEEK),
        table.flush_chain(_SEEK),
        # nft: add @sought { ip6 daddr } return
        table.rule(_SEEK, "", *_IPV6, _DADDR, nf.learn("sought"), nf.verdict(nf.NFT_RETURN)),
        # nft: counter drop comment "too many addresses that nobody has"
        table.rule(_SEEK, "too many addresses that nobody has", *_DROP),
        # nft: chain inet unattached-$RULES
        table.chain(_UNATTACHED),
        table.flush_chain(_UNATTACHED),
        # nft: ip6 daddr @guests return
        table.rule(_UNATTACHED, "", *_IPV6, _DADDR, nf.lookup("guests"), nf.verdict(nf.NFT_RETURN)),
        # nft: fib daddr oifname "$BRIDGE" goto sought-$RULES
        *(
            table.rule(
                _UNATTACHED,
                "",
                *(nf.fib_output(nf.NFTA_FIB_F_DADDR), nf.compare(_EQ, link_key(bridge))),
                nf.verdict(nf.NFT_GOTO, _SEEK),
            )
            for bridge in bridges
        ),
    ]


def _tunnels() -> list[nl.Message]:
    """The node's tunnels accept packets from anywhere, and pass them on into other networks."""
    table, protocols, ports = INET, "tunnel-protocols", "tunnel-ports"
    numbers = [nf.element(bytes((number,))) for number in _TUNNEL_PROTOCOLS]
    known = [nf.element(port.to_bytes(2, "big")) for like in _TUNNEL_PORTS for port in like]
    return [
        table.set(protocols, nf.INET_PROTO),
        table.set(ports, nf.INET_SERVICE),
        table.elements(nf.NFT_MSG_NEWSETELEM, protocols, numbers),
        table.elements(nf.NFT_MSG_NEWSETELEM, ports, known),
        # nft: chain inet tunnels-$RULES
        table.chain(_TUNNELS),
        table.flush_chain(_TUNNELS),
        # nft: meta l4proto @tunnel-protocols fib daddr type != unicast counter drop comment "into a
        #      tunnel of the node"
        # nft: udp dport @tunnel-ports fib daddr type != unicast counter drop comment "into a tunnel
        #      of the node"
        *(
            table.rule(_TUNNELS, "into a tunnel of the node", *match, *_TO_NODE, *_DROP)
            for match in (
                (nf.meta(nf.NFT_META_L4PROTO), nf.lookup(protocols)),
                (*_UDP, _DESTINATION_PORT, nf.lookup(ports)),
            )
        ),
    ]


def _bridge(wanted: Wanted) -> list[nl.Message]:
    """What is known of a network's bridge. One that somebody else made is told by its name; ours
    has a group."""
    key, own = wanted.bridge_key, nf.element(wanted.address)
    return [
        INET.elements(nf.NFT_MSG_NEWSETELEM, "overlays", [nf.element(key, "bridged")]),
        INET.elements(nf.NFT_MSG_NEWSETELEM, "transit", [nf.element(key, "translated")]),
        INET.elements(nf.NFT_MSG_NEWSETELEM, "attached", [own]),
    ]


def _translated(chain: str, elsewhere: tuple[nl.Attribute, ...]) -> list[nl.Message]:
    """Where address translation may lead what the overlay delivers."""
    words = "destination is not in this node's subnet"
    return [
        # nft: chain inet transit-$INTERFACE
        # nft: meta l4proto != tcp jump tunnels-$RULES
        INET.rule(chain, "", *_INTO_TUNNELS),
        # nft: ip6 daddr != $SUBNET fib daddr type unicast counter drop comment "destination is not
        #      in this node's subnet"
        INET.rule(chain, words, *elsewhere, *_TO_OTHERS, *_DROP),
    ]


def overlay(wanted: Wanted, *, known: bool, confined: bool, bridged: bool) -> list[nl.Message]:
    """What a Mycelium interface may deliver. `known`: the table has something of that name.
    `confined`: to this node's pods and to the node itself, also by translation and by tunnel; so is
    `base` then. `bridged`: the node has bridged pods."""
    table, chain, subnet = INET, overlay_chain(wanted.interface), wanted.subnet
    transit = transit_chain(wanted.interface)
    elsewhere = (*_IPV6, _DESTINATION_SUBNET, nf.compare(_NEQ, subnet))
    return [
        *(_bridge(wanted) if wanted.bridged else ()),
        table.chain(transit),
        table.flush_chain(transit),
        *(_translated(transit, elsewhere) if confined else ()),
        table.elements(
            nf.NFT_MSG_NEWSETELEM, "transit", [nf.element(wanted.interface_key, transit)]
        ),
        # nft: chain inet overlay-$INTERFACE
        table.chain(chain),
        table.flush_chain(chain),
        # nft: meta nfproto != ipv6 counter drop comment "not IPv6"
        table.rule(
            chain,
            "not IPv6",
            *_NOT_IPV6,
            *_DROP,
        ),
        # nft: ip6 daddr != $SUBNET counter drop comment "not for this node's subnet"
        table.rule(
            chain,
            "not for this node's subnet",
            *elsewhere,
            *_DROP,
        ),
        # nft: exthdr rt exists counter drop comment "routing header"
        table.rule(
            chain,
            "routing header",
            *_IPV6,
            *_ROUTED_BY_SOURCE,
            *_DROP,
        ),
        # nft: ip6 saddr != 400::/7 counter drop comment "source is not on the overlay"
        table.rule(
            chain, "source is not on the overlay", *_IPV6, *_in(_SADDR, MYCELIUM, _NEQ), *_DROP
        ),
        # nft: ip6 daddr != @attached jump unattached-$RULES
        *([table.rule(chain, "", *_IF_UNATTACHED)] if bridged else ()),
        # nft: meta l4proto != tcp jump tunnels-$RULES
        *([table.rule(chain, "", *_INTO_TUNNELS)] if confined else ()),
        # Most packets are of TCP or UDP, and done with after this.
        # nft: meta l4proto != ipv6-icmp ip6 saddr != $SUBNET accept
        table.rule(
            chain, "", *_IPV6, *_NO_ICMPV6, _SOURCE_SUBNET, nf.compare(_NEQ, subnet), _ACCEPT
        ),
        # nft: icmpv6 type 133-137 counter drop comment "neighbour discovery from the overlay"
        table.rule(
            chain,
            "neighbour discovery from the overlay",
            *_IPV6,
            *_types(_ROUTER_SOLICITATION, _REDIRECT),
            *_DROP,
        ),
        # nft: meta l4proto ipv6-icmp frag frag-off != 0 ip6 saddr != $SUBNET accept
        table.rule(
            chain, "", *_IPV6, *_LATER_FRAGMENT, _SOURCE_SUBNET, nf.compare(_NEQ, subnet), _ACCEPT
        ),
        # The daemon writes its own errors from the pod's or the node's address.
        # nft: icmpv6 type <= 127 @th,128,64 $SUBNET_NUMBER @th,256,8 & 0xfe == 0x4 @th,256,64 !=
        #      $SUBNET_NUMBER accept comment "ICMPv6 error about a packet to the overlay"
        table.rule(
            chain,
            "ICMPv6 error about a packet to the overlay",
            *(*_IPV6, *_ERROR),
            *(_quoted(_QUOTED_SOURCE, _SUBNET_LEN), nf.compare(_EQ, subnet)),
            *(_quoted(_QUOTED_DESTINATION, 1), nf.mask(b"\xfe"), nf.compare(_EQ, MYCELIUM[0][:1])),
            *(_quoted(_QUOTED_DESTINATION, _SUBNET_LEN), nf.compare(_NEQ, subnet)),
            _ACCEPT,
        ),
        # nft: icmpv6 type <= 127 counter drop comment "ICMPv6 error about another packet"
        table.rule(chain, "ICMPv6 error about another packet", *_IPV6, *_ERROR, *_DROP),
        # nft: ip6 saddr $SUBNET counter drop comment "source is this node's"
        table.rule(
            chain, "source is this node's", *_IPV6, _SOURCE_SUBNET, nf.compare(_EQ, subnet), *_DROP
        ),
        # nft: icmpv6 type >= echo-request accept
        # nft: counter drop comment "no transport header"
        *_rest_of_icmpv6(table, chain, _IPV6),
        *_replace(
            table, "overlays", wanted.interface_key, chain, wanted.overlay_words, known=known
        ),
    ]


@_once
def forward() -> list[nl.Message]:
    """The way to the policies. A chain at a hook costs every packet of the node, so it comes with
    the first network that needs it. Its one rule lets most packets reach its end, which accepts
    them, before any map is asked."""
    table = INET
    live = nf.mask(nf.host32(nf.CT_ESTABLISHED | nf.CT_RELATED))
    return [
        # nft: chain inet new-$RULES
        table.chain(NEW_CHAIN),
        table.flush_chain(NEW_CHAIN),
        # A link that GC has chosen is in no network's group, and its pod may live.
        # nft: oifgroup 1879048192/4 counter drop comment "to a pod that is being removed"
        table.rule(
            NEW_CHAIN,
            "to a pod that is being removed",
            *(nf.meta(nf.NFT_META_OIFGROUP), nf.mask(nf.host32(GROUP_MASK))),
            nf.compare(_EQ, nf.host32(DELETE_GROUP)),
            *_DROP,
        ),
        # nft: oifgroup vmap @to-network
        table.rule(NEW_CHAIN, "", nf.meta(nf.NFT_META_OIFGROUP), nf.vmap("to-network")),
        # nft: ip6 daddr vmap @to-address
        table.rule(NEW_CHAIN, "", *_IPV6, _DADDR, nf.vmap("to-address")),
        # nft: chain inet forward
        # nft: type filter hook forward priority filter; policy accept;
        table.chain("forward", *nf.base("filter", nf.NF_INET_FORWARD, _FILTER)),
        table.flush_chain("forward"),
        # nft: ct state ! established,related goto new-$RULES
        table.rule(
            "forward",
            "",
            *(nf.ct_state(), live, nf.compare(_EQ, bytes(4))),
            nf.verdict(nf.NFT_GOTO, NEW_CHAIN),
        ),
    ]


@_once
def postrouting() -> list[nl.Message]:
    """The way to `ipMasq`; it comes with the first network that has it."""
    table = INET
    return [
        # nft: chain inet postrouting
        # nft: type nat hook postrouting priority srcnat; policy accept;
        table.chain("postrouting", *nf.base("nat", nf.NF_INET_POST_ROUTING, _SRCNAT)),
        table.flush_chain("postrouting"),
        # nft: iifgroup vmap @from-network
        table.rule("postrouting", "", nf.meta(nf.NFT_META_IIFGROUP), nf.vmap("from-network")),
        # nft: ip6 saddr vmap @from-address
        table.rule("postrouting", "", *_IPV6, _SADDR, nf.vmap("from-address")),
    ]


def network(wanted: Wanted, *, known: Container[str]) -> list[nl.Message]:
    """A network's policy, the way to it, and the prefixes that it allows. `known`: the maps that
    have it."""
    allowed, parts = allowed_set(wanted.group), nf.prefixes(wanted.policy.allow_from)
    return [
        *(forward() if wanted.policy.ingress != "open" else ()),
        *(postrouting() if wanted.policy.masquerade else ()),
        INET.set(allowed, nf.IPV6_ADDR, nf.NFT_SET_INTERVAL),
        INET.elements(nf.NFT_MSG_DELSETELEM, allowed, []),
        *[
            INET.elements(nf.NFT_MSG_NEWSETELEM, allowed, parts[start : start + 256])
            for start in range(0, len(parts), 256)
        ],
        *policy(wanted.record, known=known),
    ]


def policy(record: Record, *, known: Container[str]) -> list[nl.Message]:
    """The chains of a network, for packets to its pods and from them, as its record says. What the
    policy allows by prefix is in a set of its own, and stays as it is."""
    table, to, from_ = INET, to_chain(record.group), from_chain(record.group)
    key = nf.host32(record.group)
    messages = [
        *_network_chains(record.group),
        table.set(allowed_set(record.group), nf.IPV6_ADDR, nf.NFT_SET_INTERVAL),
        table.flush_chain(to),
        table.flush_chain(from_),
    ]
    # nft: chain inet to-$GROUP
    if record.ingress != "open":
        invalid = (nf.ct_state(), nf.mask(nf.host32(nf.CT_INVALID)), nf.compare(_NEQ, bytes(4)))
        # nft: ct state invalid counter drop comment "ct state invalid"
        messages.append(table.rule(to, "ct state invalid", *invalid, *_DROP))
    if record.ingress == "cluster":
        if record.allows:
            allowed = nf.lookup(allowed_set(record.group))
            # nft: ip6 saddr @allow-$GROUP accept comment "allowFrom"
            messages.append(table.rule(to, "allowFrom", *_IPV6, _SADDR, allowed, _ACCEPT))
        # Quicker than the route, for a pod whose link tells that it may be in that set.
        # nft: iifgroup 1610612736/3 ip6 saddr $SUBNET iif . ip6 saddr @own-address accept comment
        #      "the node's own pods"
        messages.append(
            table.rule(
                to,
                "the node's own pods",
                *_FROM_OURS,
                *(*_IPV6, _SOURCE_SUBNET, nf.compare(_EQ, record.subnet)),
                *(*_SENDER, nf.lookup("own-address"), _ACCEPT),
            )
        )
        messages.append(
            # nft: ip6 saddr $SUBNET fib saddr . iif oif exists accept comment "the node's own pods"
            table.rule(
                to,
                "the node's own pods",
                *_IPV6,
                *(_SOURCE_SUBNET, nf.compare(_EQ, record.subnet)),
                *(_ROUTED_BACK, nf.compare(_EQ, _EXISTS)),
                _ACCEPT,
            )
        )
    if record.ingress != "open":
        messages += [
            # With br_netfilter, packets between neighbours on a bridge come here too.
            # nft: icmpv6 type 135-136 accept
            table.rule(
                to, "", *_IPV6, *_types(_NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT), _ACCEPT
            ),
            # nft: counter drop comment "ingress: $INGRESS"
            table.rule(to, f"ingress: {record.ingress}", *_DROP),
        ]
    # nft: chain inet from-$GROUP
    if record.masquerade:
        messages += [
            # nft: ip6 daddr 400::/7 return comment "stays on the overlay"
            # nft: ip6 daddr ff00::/8 return comment "multicast"
            *(
                table.rule(from_, words, *_IPV6, *_in(_DADDR, prefix), nf.verdict(nf.NFT_RETURN))
                for words, prefix in (
                    ("stays on the overlay", MYCELIUM),
                    ("multicast", (b"\xff" + bytes(15), 8)),
                )
            ),
            # nft: meta nfproto ipv6 counter masquerade comment "ipMasq"
            table.rule(from_, "ipMasq", *_IPV6, nf.counter(), nf.masquerade()),
        ]
    return [
        *messages,
        *_replace(table, "from-network", key, from_, record.origin, known="from-network" in known),
        *_replace(table, "to-network", key, to, record.words, known="to-network" in known),
    ]


def allowed_set(group: int) -> str:
    return f"allow-{group}"


def renamed(record: Record) -> list[nl.Message]:
    """Other words for a network that the table has."""
    key, to = nf.host32(record.group), to_chain(record.group)
    return _replace(INET, "to-network", key, to, record.words, known=True)


def _network_chains(group: int) -> list[nl.Message]:
    return [INET.chain(to_chain(group)), INET.chain(from_chain(group))]


def _replace(
    table: nf.Table, name: str, key: bytes, chain: str, words: str, *, known: bool
) -> list[nl.Message]:
    """Replace an element and its comment: of an existing one the kernel would keep the comment."""
    messages = [table.elements(nf.NFT_MSG_NEWSETELEM, name, [nf.element(key, chain, words)])]
    if known:
        messages.insert(0, table.elements(nf.NFT_MSG_DELSETELEM, name, [nf.element(key)]))
    return messages


# Bridge mode: at layer 2 the node's rules above do not see who sends to whom.


@_once
def bridge_base() -> list[nl.Message]:
    """The bridge table, its sets, and the chains that do not depend on a network."""
    table = BRIDGE
    port = (
        nf.meta(nf.NFT_META_IIF),
        nf.payload(nf.NFT_PAYLOAD_LL_HEADER, _H_SOURCE, _ETH_ALEN, nf.NFT_REG32_01),
    )
    source = nf.payload(nf.NFT_PAYLOAD_NETWORK_HEADER, _IPV6_SADDR, _ADDRESS_LEN, nf.NFT_REG32_03)
    target = nf.payload(nf.NFT_PAYLOAD_TRANSPORT_HEADER, _ND_TARGET, _ADDRESS_LEN, nf.NFT_REG32_03)
    reserved = nf.payload(nf.NFT_PAYLOAD_LL_HEADER, _H_DEST, _ETH_ALEN)
    own_target = (*port, target, nf.lookup("ports"))
    quoted = _quoted(_QUOTED_DESTINATION, _ADDRESS_LEN, nf.NFT_REG32_03)
    ether_type = nf.payload(nf.NFT_PAYLOAD_LL_HEADER, _H_PROTO, 2)
    v6 = _BRIDGED_IPV6
    return [
        table.add(BRIDGE_WORDS),
        table.set("ports", nf.PORT),
        table.set("macs", nf.PORT_MAC),
        table.set("closed", nf.DEVGROUP),
        table.set("reporting", nf.INTERFACE, timeout_ms=60_000),
        # nft: chain bridge solicitation-$RULES
        table.chain(_SOLICITATION),
        table.flush_chain(_SOLICITATION),
        # nft: ip6 length 24 ip6 nexthdr ipv6-icmp accept comment "no options"
        # nft: meta l4proto ipv6-icmp @th,192,16 0x101 iif . @th,208,48 . ip6 saddr @ports accept
        # nft: counter drop comment "names the MAC of another"
        *_own_mac(_SOLICITATION, _SOURCE_LINK_ADDRESS),
        # nft: chain bridge advertisement-$RULES
        table.chain(_ADVERTISEMENT),
        table.flush_chain(_ADVERTISEMENT),
        # nft: meta protocol ip6 iif . ether saddr . @th,64,128 != @ports counter drop comment
        #      "advertises the address of another"
        table.rule(
            _ADVERTISEMENT,
            "advertises the address of another",
            *v6,
            *port,
            target,
            nf.lookup("ports", inverted=True),
            *_DROP,
        ),
        # nft: ip6 length 24 ip6 nexthdr ipv6-icmp accept comment "no options"
        # nft: meta l4proto ipv6-icmp @th,192,16 0x201 iif . @th,208,48 . ip6 saddr @ports accept
        # nft: counter drop comment "names the MAC of another"
        *_own_mac(_ADVERTISEMENT, _TARGET_LINK_ADDRESS),
        # nft: chain bridge unspecified-$RULES
        table.chain(_UNSPECIFIED),
        table.flush_chain(_UNSPECIFIED),
        # nft: icmpv6 type nd-neighbor-solicit iif . ether saddr . @th,64,128 @ports accept comment
        #      "duplicate address detection of its own address"
        table.rule(
            _UNSPECIFIED,
            "duplicate address detection of its own address",
            *v6,
            *_type(_NEIGHBOUR_SOLICITATION),
            *own_target,
            _ACCEPT,
        ),
        # nft: icmpv6 type mld2-listener-report iif . ether saddr @macs accept
        # nft: icmpv6 type mld-listener-report iif . ether saddr @macs accept
        *(
            table.rule(_UNSPECIFIED, "", *v6, *_type(report), *port, nf.lookup("macs"), _ACCEPT)
            for report in (_MLD2_REPORT, _MLD_REPORT)
        ),
        # nft: counter drop comment "source is unspecified"
        table.rule(_UNSPECIFIED, "source is unspecified", *_DROP),
        # nft: chain bridge icmpv6-$RULES
        table.chain(BRIDGE_CHAIN),
        table.flush_chain(BRIDGE_CHAIN),
        # nft: icmpv6 type nd-neighbor-advert goto advertisement-$RULES
        table.rule(
            BRIDGE_CHAIN,
            "",
            *v6,
            *_type(_NEIGHBOUR_ADVERTISEMENT),
            nf.verdict(nf.NFT_GOTO, _ADVERTISEMENT),
        ),
        # nft: icmpv6 type nd-neighbor-solicit goto solicitation-$RULES
        table.rule(
            BRIDGE_CHAIN,
            "",
            *v6,
            *_type(_NEIGHBOUR_SOLICITATION),
            nf.verdict(nf.NFT_GOTO, _SOLICITATION),
        ),
        # A neighbour that forwards, as a pod with a VPN does, takes the MAC that this one names.
        # nft: icmpv6 type nd-router-solicit counter drop comment "router solicitation from a pod"
        table.rule(
            BRIDGE_CHAIN,
            "router solicitation from a pod",
            *(*v6, *_type(_ROUTER_SOLICITATION), *_DROP),
        ),
        # To its port a bridge that snoops sends all multicast.
        # nft: icmpv6 type 151 counter drop comment "multicast router advertisement from a pod"
        table.rule(
            BRIDGE_CHAIN,
            "multicast router advertisement from a pod",
            *(*v6, *_type(_MULTICAST_ROUTER), *_DROP),
        ),
        # nft: meta l4proto ipv6-icmp frag frag-off != 0 accept
        table.rule(BRIDGE_CHAIN, "", *v6, *_LATER_FRAGMENT, _ACCEPT),
        # nft: icmpv6 type <= 127 iif . ether saddr . @th,256,128 @ports update @reporting { iif
        #      limit rate 100/second burst 200 packets } accept
        table.rule(
            BRIDGE_CHAIN,
            "",
            *(*v6, *_ERROR, *port, quoted, nf.lookup("ports")),
            *(nf.meta(nf.NFT_META_IIF), nf.limit("reporting", *_ERRORS_A_SECOND), _ACCEPT),
        ),
        # nft: icmpv6 type <= 127 counter drop comment "ICMPv6 error about a packet it was not sent,
        #      or too many"
        table.rule(BRIDGE_CHAIN, _FALSE_ERROR, *v6, *_ERROR, *_DROP),
        # nft: icmpv6 type >= echo-request accept
        # nft: counter drop comment "no transport header"
        *_rest_of_icmpv6(table, BRIDGE_CHAIN, v6),
        # 0.1.0 takes the table for flushed unless this chain has exactly seven rules.
        # nft: chain bridge from-pods
        table.chain("from-pods"),
        table.flush_chain("from-pods"),
        # Most packets are of TCP or UDP, and done with after this. A frame in a VLAN has the VLAN's
        # type here, and for `meta protocol` that of what it carries.
        # nft: meta l4proto != ipv6-icmp iif . ether saddr . ip6 saddr @ports accept
        table.rule(
            "from-pods",
            "",
            *(ether_type, nf.compare(_EQ, nf.ETH_P_IPV6)),
            *(*_NO_ICMPV6, *port, source, nf.lookup("ports"), _ACCEPT),
        ),
        # nft: ether type != ip6 counter drop comment "not IPv6"
        table.rule("from-pods", "not IPv6", ether_type, nf.compare(_NEQ, nf.ETH_P_IPV6), *_DROP),
        # nft: ip6 saddr :: goto unspecified-$RULES
        table.rule(
            "from-pods",
            "",
            *(*v6, _SADDR, nf.compare(_EQ, bytes(16))),
            nf.verdict(nf.NFT_GOTO, _UNSPECIFIED),
        ),
        # nft: iif . ether saddr . ip6 saddr != @ports counter drop comment "not the pod's MAC and
        #      address"
        table.rule(
            "from-pods",
            "not the pod's MAC and address",
            *v6,
            *port,
            source,
            nf.lookup("ports", inverted=True),
            *_DROP,
        ),
        # nft: icmpv6 type nd-router-advert counter drop comment "router advertisement from a pod"
        table.rule("from-pods", "router advertisement from a pod", *v6, *_type(_RA), *_DROP),
        # nft: icmpv6 type nd-redirect counter drop comment "redirect from a pod"
        table.rule("from-pods", "redirect from a pod", *v6, *_type(_REDIRECT), *_DROP),
        # nft: goto icmpv6-$RULES
        table.rule("from-pods", "", nf.verdict(nf.NFT_GOTO, BRIDGE_CHAIN)),
        # nft: chain bridge prerouting
        # nft: type filter hook prerouting priority dstnat; policy accept;
        table.chain("prerouting", *nf.base("filter", nf.NF_BR_PRE_ROUTING, _RAW)),
        table.flush_chain("prerouting"),
        # nft: iifgroup 1610612736/3 goto from-pods
        table.rule("prerouting", "", *_FROM_OURS, nf.verdict(nf.NFT_GOTO, "from-pods")),
        # The bridge learns the sender of these too, and no other hook sees them.
        # nft: chain bridge input
        # nft: type filter hook input priority filter; policy accept;
        table.chain("input", *nf.base("filter", nf.NF_BR_LOCAL_IN, _BRIDGE_FILTER)),
        table.flush_chain("input"),
        # nft: iifgroup 1610612736/3 ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 counter
        #      drop comment "reserved multicast"
        table.rule(
            "input",
            "reserved multicast",
            *_FROM_OURS,
            *(reserved, nf.mask(b"\xff\xff\xff\xff\xff\xf0")),
            nf.compare(_EQ, b"\x01\x80\xc2\0\0\0"),
            *_DROP,
        ),
    ]


def _own_mac(chain: str, option: int) -> list[nl.Message]:
    """A pod that solicits a neighbour, or advertises itself, may name no MAC but its own, in the
    first option: Linux takes the first of repeated options (net/ipv6/ndisc.c)."""
    table, v6 = BRIDGE, _BRIDGED_IPV6
    named = nf.payload(
        nf.NFT_PAYLOAD_TRANSPORT_HEADER, _ND_LINK_ADDRESS, _ETH_ALEN, nf.NFT_REG32_01
    )
    source = nf.payload(nf.NFT_PAYLOAD_NETWORK_HEADER, _IPV6_SADDR, _ADDRESS_LEN, nf.NFT_REG32_03)
    # Length and protocol: after another header, such as a fragment's, the length says nothing.
    whole = nf.payload(nf.NFT_PAYLOAD_NETWORK_HEADER, _PAYLOAD_LEN, 3)
    return [
        table.rule(
            chain,
            "no options",
            *v6,
            whole,
            nf.compare(_EQ, bytes((0, _ND_OPTIONS, nf.IPPROTO_ICMPV6))),
            _ACCEPT,
        ),
        table.rule(
            chain,
            "",
            *(*v6, *_ICMPV6, nf.payload(nf.NFT_PAYLOAD_TRANSPORT_HEADER, _ND_OPTIONS, 2)),
            nf.compare(_EQ, bytes((option, 1))),
            *(nf.meta(nf.NFT_META_IIF), named, source, nf.lookup("ports"), _ACCEPT),
        ),
        table.rule(chain, "names the MAC of another", *_DROP),
    ]


def bridge_network(group: int, *, closed: bool) -> list[nl.Message]:
    """Whether other ports may open connections to those of a network."""
    key = [nf.element(nf.host32(group))]
    if not closed:
        return [BRIDGE.elements(nf.NFT_MSG_DELSETELEM, "closed", key)]
    return [*bridge_closed(), BRIDGE.elements(nf.NFT_MSG_NEWSETELEM, "closed", key)]


@_once
def bridge_closed() -> list[nl.Message]:
    """From port to port nothing is tracked: only packets that open no connection pass."""
    return _bridge_closed(_ERROR)


@_once
def bridge_closed_before() -> list[nl.Message]:
    """The same as 0.1.0 loads it, also into a table of this release."""
    return _bridge_closed(_types(1, 4))


def _bridge_closed(error: tuple[nl.Attribute, ...]) -> list[nl.Message]:
    table, v6 = BRIDGE, _BRIDGED_IPV6
    return [
        # nft: chain bridge to-closed
        table.chain("to-closed"),
        table.flush_chain("to-closed"),
        # nft: meta protocol ip6 tcp flags != syn / syn,ack accept comment "opens no connection"
        table.rule(
            "to-closed",
            "opens no connection",
            *(*v6, *_TCP, nf.payload(nf.NFT_PAYLOAD_TRANSPORT_HEADER, _TCP_FLAGS, 1)),
            *(nf.mask(_SYN_ACK), nf.compare(_NEQ, _SYN)),
            _ACCEPT,
        ),
        # nft: icmpv6 type 135-136 accept
        table.rule(
            "to-closed",
            "",
            *v6,
            *_types(_NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT),
            _ACCEPT,
        ),
        # nft: icmpv6 type <= 127 accept
        table.rule("to-closed", "", *v6, *error, _ACCEPT),
        # nft: icmpv6 type echo-reply accept
        table.rule("to-closed", "", *v6, *_type(_ECHO_REPLY), _ACCEPT),
        # nft: counter drop comment "ingress: closed"
        table.rule("to-closed", "ingress: closed", *_DROP),
        # nft: chain bridge forward
        # nft: type filter hook forward priority filter; policy accept;
        table.chain("forward", *nf.base("filter", nf.NF_BR_FORWARD, _BRIDGE_FILTER)),
        table.flush_chain("forward"),
        # nft: oifgroup @closed goto to-closed
        table.rule(
            "forward",
            "",
            *(nf.meta(nf.NFT_META_OIFGROUP), nf.lookup("closed")),
            nf.verdict(nf.NFT_GOTO, "to-closed"),
        ),
    ]


def network_chains(groups: Iterable[int]) -> list[nl.Message]:
    """The chains of networks of which only the pods are known: no policy, until their next ADD."""
    return [message for number in groups for message in _network_chains(number)]


def add_ports(ports: Iterable[Port]) -> list[nl.Message]:
    """What bridged pods may send as, and which policy is theirs. Their networks have chains."""
    return [m for port in ports for m in _port_elements(nf.NFT_MSG_NEWSETELEM, port)]


def delete_ports(ports: Iterable[Port], kept: Container[bytes] = ()) -> list[nl.Message]:
    """Forget bridged pods; `kept` are addresses that another pod has by now."""
    messages = []
    for port in ports:
        elements = _port_elements(nf.NFT_MSG_DELSETELEM, port)
        messages += elements[:2] if port.address in kept else elements
    return messages


def sender(port: Port) -> bytes:
    """What a bridged pod sends as: the key of its entry in `ports`; the first part of it is that in
    `macs`."""
    return nf.host32(port.index) + port.mac + bytes(2) + port.address


def delete_element(table: nf.Table, name: str, key: bytes) -> nl.Message:
    return table.elements(nf.NFT_MSG_DELSETELEM, name, [nf.element(key)])


def entries(port: Port) -> list[tuple[nf.Table, str, bytes, str]]:
    """What the tables have of a bridged pod: table, set, key, and the chain that it leads to."""
    key = sender(port)
    return [
        (BRIDGE, "ports", key, ""),
        (BRIDGE, "macs", key[:12], ""),
        (INET, "to-address", port.address, to_chain(port.group)),
        (INET, "from-address", port.address, from_chain(port.group)),
        (INET, "attached", port.address, ""),
    ]


def _port_elements(kind: int, port: Port) -> list[nl.Message]:
    adds = kind == nf.NFT_MSG_NEWSETELEM
    return [
        table.elements(kind, name, [nf.element(key, chain if adds else "")])
        for table, name, key, chain in entries(port)
    ]


def ports(socket: nf.Socket) -> list[Port]:
    """The bridged pods that the table knows, live or not. Without their networks, which the table
    does not record."""
    found = []
    for payload in socket.dump(BRIDGE.elements(nf.NFT_MSG_GETSETELEM, "ports", [])):
        for key in nf.keys(payload):
            index, mac, address = key[:4], key[4:10], key[12:28]
            found.append(Port(nl.u32(index), mac, address, 0))
    return found


def attached(socket: nf.Socket) -> list[bytes]:
    """The addresses that the node need not look for: its own, and its bridged pods'."""
    try:
        payloads = socket.dump(INET.elements(nf.NFT_MSG_GETSETELEM, "attached", []))
    except nl.NetlinkError as error:
        if error.errno != ENOENT:
            raise
        return []
    return [key[:16] for payload in payloads for key in nf.keys(payload)]


def delete_attached(addresses: Iterable[bytes]) -> nl.Message:
    """Let the node look for these again."""
    elements = [nf.element(address) for address in addresses]
    return INET.elements(nf.NFT_MSG_DELSETELEM, "attached", elements)
