# SPDX-License-Identifier: Apache-2.0
"""Where the kernel sends pods' packets, asked with the real source and input link.

Our routes alone do not tell: others' rules, more specific routes and IPsec policies come first.
"""

from __future__ import annotations

from collections.abc import Mapping
from errno import EACCES, EHOSTUNREACH, EINVAL, ENETUNREACH
from functools import partial
from socket import IPPROTO_TCP
from typing import Final, NamedTuple

from mycelium_cni.kernel import facts, snapshot
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel.address import covers, format_address, format_prefix, parse_address
from mycelium_cni.kernel.shell import quoted
from mycelium_cni.node.facts import LOOPBACK, bridge, onlink
from mycelium_cni.node.marks import PROTOCOL
from mycelium_cni.overlay import MYCELIUM, on_mycelium
from mycelium_ctl.checks.finding import Finding, ok, skip
from mycelium_ctl.node.state import Attached, LinkFacts, State, show_subnet
from mycelium_ctl.view import count

OVERLAY: Final = format_prefix(MYCELIUM)
# One address in each half of the overlay.
ELSEWHERE: Final = (parse_address("4ff:ffff::1"), parse_address("5ff:ffff::1"))

# linux/xfrm.h
_NETLINK_XFRM, _XFRM_MSG_GETPOLICY, _XFRM_MSG_GETDEFAULT, _XFRM_POLICY_BLOCK = 6, 0x15, 0x28, 1
_REFUSALS: Final = {
    EACCES: "prohibited",
    EINVAL: "dropped by a blackhole route",
    EHOSTUNREACH: "refused by an unreachable route",
    ENETUNREACH: "without a route",
}


class Packet(NamedTuple):
    """A packet of TCP, as programs send them; without a source the kernel chooses one."""

    destination: bytes
    source: bytes = b""
    came_in: int = 0  # index of the link; 0 for a packet of this namespace

    def question(self) -> nl.Message:
        """RTM_GETROUTE: where the kernel would send it."""
        attributes: list[nl.Attribute] = [(nl.RTA_DST, self.destination), _TCP]
        if self.source:
            attributes.append((nl.RTA_SRC, self.source))
        if self.came_in:
            attributes.append((nl.RTA_IIF, self.came_in))
        header = nl.RTMSG.pack(nl.AF_INET6, 128, 128 if self.source else 0, 0, 0, 0, 0, 0, 0)
        return nl.Message(nl.RTM_GETROUTE, 0, header + nl.encode(attributes), "ask for a route")


_TCP: Final = nl.encode(((nl.RTA_IP_PROTO, bytes((IPPROTO_TCP,))),))


def find_ways(host: nl.Socket, *packets: Packet) -> list[Way]:
    """Where the kernel sends each packet, in the namespace of the socket. Raises OSError."""
    answers = host.answers([packet.question() for packet in packets])
    return list(map(Way, packets, answers))


class Way:
    """Where the kernel sends a packet: the output link, or why there is none; and from which
    address, if the sender leaves that to the kernel."""

    def __init__(self, packet: Packet, answer: bytes | nl.NetlinkError) -> None:
        self.link = 0
        self.gateway = b""
        self.source = packet.source
        self.hops = 0  # the hop limit, if the route has one
        self.arrives = False  # at a program of this namespace
        self.refusal = ""
        if isinstance(answer, nl.NetlinkError):
            if answer.errno not in _REFUSALS:
                raise answer
            self.refusal = _REFUSALS[answer.errno]
            return
        route = snapshot.Route(answer)
        self.link = route.link
        self.gateway = route.gateway
        self.source = packet.source or route.source
        self.hops = route.hops
        self.arrives = route.kind == nl.RTN_LOCAL
        if route.wrapped:
            self.refusal = "wrapped into other packets (encap)"
        elif route.kind != nl.RTN_UNICAST:
            self.refusal = f"taken by a route of type {_KINDS.get(route.kind, route.kind)}"

    def leads(self, link: int) -> bool:
        """Whether the packet leaves by that link, as it is."""
        return self.link == link and not self.refusal


_KINDS: Final = {
    nl.RTN_LOCAL: "local",
    nl.RTN_ANYCAST: "anycast",
    6: "blackhole",
    nl.RTN_UNREACHABLE: "unreachable",
    8: "prohibit",
    9: "throw",
}
_TABLES: Final = {nl.RT_TABLE_LOCAL: "local", nl.RT_TABLE_MAIN: "main"}


def overlay_routes(state: State) -> list[Finding] | Finding:
    """The way out: what the node and its pods send to the overlay goes to the daemon."""
    interface, own = state.interface, state.address
    if interface is None or own is None:
        return skip("the interface has no address yet")
    found = _foreign_routes(state) or _astray(state, interface, own)
    advice = "`ip xfrm policy` lists it: exempt 400::/7 where it was made"
    found += [Finding("fail", each, advice) for each in policies()[:1]]
    return found or ok(f"{interface.name} leads to {OVERLAY}, for the node and for its pods")


def _astray(state: State, interface: LinkFacts, own: bytes) -> list[Finding]:
    """The first packets that do not go to the daemon: the node's, with its own address or the one
    that the kernel chooses, and those of each pod."""
    far = [*ELSEWHERE, *state.others]
    asked = [("the node's packets", Packet(each, source)) for source in (b"", own) for each in far]
    for one in state.attachments:
        if one.octets and one.octets[:8] == own[:8] and one.link.up:
            came_in = one.link.master or one.link.index
            whose = f"packets of {one.who}"
            asked += [(whose, Packet(each, one.octets, came_in)) for each in far]
            far = list(ELSEWHERE)  # of one pod all; few rules tell one pod from another
    ways = find_ways(state.host, *[packet for _, packet in asked])
    for (whose, packet), way in zip(asked, ways, strict=True):
        if way.leads(interface.index):
            continue
        if route := _lost_route(state, interface):
            return [
                Finding(
                    "fail",
                    f"{interface.name} has lost its route to {OVERLAY}",
                    run=(str(route),),
                    fix=partial(route.restore, state.host),
                )
            ]
        what = f"{whose} for {_part(state, packet.destination)} are {where(state, way)}"
        return [because(state, f"{what}, not to the daemon", packet.destination, OVERLAY)]
    return []


def _part(state: State, destination: bytes) -> str:
    """The part of the overlay that an address stands for."""
    return OVERLAY if destination in ELSEWHERE else show_subnet(destination[:8])


def _lost_route(state: State, interface: LinkFacts) -> facts.Route | None:
    """The daemon's route to the overlay if it is missing. The kernel makes it with the address."""
    route = facts.Route(
        MYCELIUM,
        "it leads to the overlay",
        index=interface.index,
        link=interface.name,
        priority=_DAEMON_METRIC,
        protocol=nl.RTPROT_KERNEL,
    )
    return None if route.holds(state.seen) else route


_DAEMON_METRIC: Final = 256  # include/net/ip6_route.h, IP6_RT_PRIO_ADDRCONF


def where(state: State, way: Way) -> str:
    """Where packets go instead, in words."""
    names = {link.index: link.name for link in state.links}
    return way.refusal or f"sent to {names.get(way.link, '?')}"


def because(state: State, what: str, destination: bytes, exempt: str) -> Finding:
    """A finding that names what leads packets for that address elsewhere: a rule before the main
    table, from which `exempt` can be exempted, or a route."""
    if lost := lost_rule(state.seen):
        return Finding(
            "fail",
            f"{what}: the kernel's rule `{lost}` is gone",
            "find what deleted it, or it will do so again",
            run=(lost,),
        )
    if rule := foreign_rule(state.seen, destination):
        before = max(rule.priority - 1, 1)
        return Finding(
            "fail",
            f"{what}: {rule} comes before the main table",
            "configure what made that rule (a VPN, a kill switch) to exempt the overlay",
            run=(f"ip -6 rule add pref {before} to {exempt} lookup main",) if rule.priority else (),
        )
    if route := culprit(state.seen, destination):
        names = {link.index: link.name for link in state.links}
        return Finding(
            "fail",
            f"{what}, by route {words(route, names)}",
            "stop what made the route, or it will come back",
            run=(f"ip -6 route del {words(route, names)}",),
        )
    return Finding(
        "fail",
        what,
        f"look at `ip -6 rule` and `ip -6 route get {format_address(destination)}`",
    )


# net/ipv6/fib6_rules.c: the priorities of the kernel's own rules, and their tables.
_RULES: Final = ((0, nl.RT_TABLE_LOCAL), (32766, nl.RT_TABLE_MAIN))


def lost_rule(seen: snapshot.Snapshot) -> str:
    """The command that restores a deleted rule of the kernel; '' if both tables are asked for any
    packet."""
    whole = {rule.table for rule in seen.rules if set(rule.words.values()) <= {"all", ""}}
    for priority, table in _RULES:
        if table not in whole:
            return f"ip -6 rule add pref {priority} lookup {_TABLES[table]}"
    return ""


def foreign_rule(seen: snapshot.Snapshot, destination: bytes) -> snapshot.Rule | None:
    """The first rule before the main table that may lead packets for that address elsewhere, and is
    neither the kernel's nor ours."""
    for rule in sorted(seen.rules, key=lambda one: one.priority):
        if (rule.priority, rule.table) == _RULES[0] or rule.protocol == PROTOCOL:
            continue
        if rule.priority >= _RULES[1][0]:
            return None
        # One that asks the main table exempts packets from the rules after it, all or some.
        asks = rule.action == nl.FR_ACT_TO_TBL
        if not covers(rule.destination, destination) or (asks and rule.table == nl.RT_TABLE_MAIN):
            continue
        if not asks or any(
            route.table == rule.table and covers(route.destination, destination)
            for route in seen.routes
        ):
            return rule
    return None


def culprit(seen: snapshot.Snapshot, destination: bytes) -> snapshot.Route | None:
    """The route that takes an address if only the kernel's own rules apply, unless it is ours."""
    for table in (nl.RT_TABLE_LOCAL, nl.RT_TABLE_MAIN):
        covering = [
            route
            for route in seen.routes
            if route.table == table and not route.sender and covers(route.destination, destination)
        ]
        if covering:
            best = min(covering, key=lambda route: (-route.destination[1], route.priority))
            return best if best.protocol != PROTOCOL else None
    return None


def words(route: snapshot.Route, names: Mapping[int, str]) -> str:
    """A route as `ip -6 route` takes it, to the last word that tells it from others."""
    kind = "" if route.kind == nl.RTN_UNICAST else f"{_KINDS.get(route.kind, route.kind)} "
    said = f"{kind}{format_prefix(route.destination)}"
    if route.gateway:
        said += f" via {format_address(route.gateway)}"
    if route.link in names and route.kind in (nl.RTN_UNICAST, nl.RTN_LOCAL, nl.RTN_ANYCAST):
        said += f" dev {quoted(names[route.link])}"
    if route.table != nl.RT_TABLE_MAIN:
        said += f" table {_TABLES.get(route.table, route.table)}"
    return said + (f" metric {route.priority}" if route.priority else "")


def _foreign_routes(state: State) -> list[Finding]:
    """Routes of others for parts of the overlay: the more specific one wins, and any of the table
    `local`."""
    names = {link.index: link.name for link in state.links}
    found = []
    for route in state.seen.routes:
        if not on_overlay(route) or _is_known(state, route):
            continue
        prefix = format_prefix(route.destination)
        kind = _KINDS.get(route.kind, "")
        goes = f"also goes to {names.get(route.link, 'several links')}"
        if kind:
            goes = f"is refused by a {kind} route" if route.kind != nl.RTN_LOCAL else "ends here"
        if route.wrapped:
            goes = "leaves wrapped into other packets (encap)"
        found.append(
            Finding(
                "fail",
                f"{prefix} {goes}: does a second daemon run, or a VPN?",
                "stop what made the route, or it will come back",
                run=(_removal(state, route, names),),
            )
        )
    return found


def on_overlay(route: snapshot.Route) -> bool:
    """Whether a route comes before the daemon's for a part of the overlay, or for all of it."""
    base, length = route.destination
    if route.sender or route.kind == nl.RTN_ANYCAST:
        return False
    if route.table == nl.RT_TABLE_MAIN:
        return on_mycelium(base) and MYCELIUM[1] <= length
    return route.table == nl.RT_TABLE_LOCAL and _overlaps(base, length)


def _is_known(state: State, route: snapshot.Route) -> bool:
    """Whether a route is the daemon's, ours, or the kernel's for what this node has."""
    if route.protocol == PROTOCOL:
        return True
    base, length = route.destination
    interface = state.interface.index if state.interface else 0
    # Also those of another key: the checks `interface` and `subnet` report them.
    subnets = {each.address[:8] for each in state.addresses if each.link == interface}
    subnets |= {one.subnet for one in state.attachments}
    if length == 128 and any(one.octets == base for one in state.attachments):
        return True  # the check `pod-ways` judges what leads to a pod
    if route.kind == nl.RTN_LOCAL:
        return length == 128 and (route.link == interface or base[:8] in subnets)
    if route.kind == nl.RTN_UNREACHABLE:  # like ours, made by somebody else
        return route.destination == MYCELIUM and route.priority > _DAEMON_METRIC
    if route.kind != nl.RTN_UNICAST or route.wrapped or route.table != nl.RT_TABLE_MAIN:
        return False
    ours = {LOOPBACK, *(link.index for link in state.links if link.ours)}
    if state.bridge:
        ours.add(state.bridge.index)
    return route.link == interface or (route.link in ours and base[:8] in subnets)


def _removal(state: State, route: snapshot.Route, names: Mapping[int, str]) -> str:
    """The command that removes a route, or the address that the kernel made it for."""
    for held in state.addresses:
        if route.kind == nl.RTN_LOCAL and held.address == route.destination[0]:
            return _without(held, names)
    return f"ip -6 route del {words(route, names)}"


def _without(held: snapshot.Address, names: Mapping[int, str]) -> str:
    fact = facts.Address(
        held.link,
        names.get(held.link, "?"),
        held.address,
        held.prefixlen,
        "another node's or pod's",
    )
    return fact.removal


def pod_ways(state: State) -> list[Finding] | Finding:
    """The way in: what arrives for a pod goes to that pod's link, and what a pod sends to its node
    arrives."""
    interface, own = state.interface, state.address
    if interface is None or own is None:
        return skip("there is no interface yet")
    names = {link.index: link.name for link in state.links}
    holders = {held.address: held for held in state.addresses}
    # The check `pods` reports the others.
    live = [one for one in state.attachments if one.octets and one.answers and one.link.up]
    asked = [
        packet
        for one in live
        for packet in (
            Packet(one.octets, ELSEWHERE[0], interface.index),
            Packet(one.octets),
            Packet(own, one.octets, one.link.master or one.link.index),
        )
    ]
    ways = iter(find_ways(state.host, *asked))
    found = []
    for one, from_overlay, from_node, home in zip(live, ways, ways, ways, strict=True):
        holder = holders.get(one.octets)
        if holder:
            what = f"{names.get(holder.link, '?')} of the node has the address of {one.who}"
            found.append(Finding("fail", what, run=(_without(holder, names),)))
        elif _has_no_route(state, one):
            found += _lost_bridge_route(state, one)
        else:
            found += _misled(state, one, "packets", from_overlay) or _misled(
                state, one, "the node's packets", from_node
            )
        if not home.arrives:
            what = f"packets of {one.who} for its node are {where(state, home)}"
            found.append(because(state, what, own, f"{format_address(own)}/128"))
    once = {each.run or each.found: each for each in reversed(found)}
    return list(reversed(once.values())) or ok(
        f"{count(len(state.attachments), 'pod')}, each behind its own link"
    )


def _misled(state: State, one: Attached, whose: str, way: Way) -> list[Finding]:
    """Packets to a pod that do not go to its link, or that it cannot answer."""
    what = f"{whose} for {one.who} are "
    if not way.leads(one.link.master or one.link.index):
        what += f"{where(state, way)}, not to {one.link.name}"
    elif way.gateway:
        what += f"sent via {format_address(way.gateway)}, which is not the pod"
    elif not on_mycelium(way.source):
        what += f"sent from {format_address(way.source)}, to which it has no route"
    else:
        return []
    return [because(state, what, one.octets, OVERLAY)]


def _lost_bridge_route(state: State, one: Attached) -> list[Finding]:
    """The bridge is up with its gateway's address, but without the route that the kernel makes with
    them. The checks `bridge` and `pods` report the rest."""
    node, link = state.node, state.bridge
    if node is None or link is None or one.link.master != link.index:
        return []
    if facts.missing(bridge(link.name, link.index, node), state.seen):
        return []
    route = onlink(link.index, link.name, node.subnet)
    what = f"{link.name} has no route to its pods"
    advice = "somebody removed it, or gave the gateway's address `noprefixroute`"
    return [Finding("fail", what, advice, run=(str(route),))]


def _has_no_route(state: State, one: Attached) -> bool:
    """Whether neither the pod's link nor its bridge has one."""
    links = (one.link.index, one.link.master)
    prefixes = ((one.octets, 128), (one.octets[:8] + bytes(8), 64))
    return not any(
        route.link in links and route.kind == nl.RTN_UNICAST
        for prefix in prefixes
        for route in state.seen.routes_to.get(prefix, ())
    )


def policies() -> list[str]:
    """The IPsec policies of the thread's namespace that packets of the overlay may meet
    (`ip xfrm policy`), in words."""
    try:
        with nl.Socket(_NETLINK_XFRM) as socket:
            listed = socket.dump(nl.Message(_XFRM_MSG_GETPOLICY, 0, b"", "list xfrm policies"))
            try:
                defaults = socket.request(nl.Message(_XFRM_MSG_GETDEFAULT, 0, bytes(3), "defaults"))
            except nl.NetlinkError:
                defaults = []  # before Linux 5.15
    except OSError:
        return []  # a kernel without IPsec
    found = []
    if any(_XFRM_POLICY_BLOCK in answer[:3] for answer in defaults):
        found.append("the default IPsec policy blocks packets (`ip xfrm policy getdefault`)")
    for payload in listed:
        # struct xfrm_selector: daddr, saddr, ports (8), family (2), prefixlen_d, prefixlen_s
        to, from_ = (payload[:16], payload[42]), (payload[16:32], payload[43])
        if int.from_bytes(payload[40:42], "little") != nl.AF_INET6:
            continue
        blocks = payload[_ACTION_OFFSET] == _XFRM_POLICY_BLOCK
        has_template = _XFRMA_TMPL in nl.decode(payload, _USERPOLICY_SIZE)
        if _overlaps(*to) and _overlaps(*from_) and (blocks or has_template):
            what = "blocks" if blocks else "encrypts or drops"
            ends = f"from {format_prefix(from_)} to {format_prefix(to)}"
            found.append(f"an IPsec policy {what} packets {ends}")
    return found


# linux/xfrm.h: struct xfrm_userpolicy_info is 168 bytes, its `action` follows priority, index, dir.
_USERPOLICY_SIZE, _ACTION_OFFSET, _XFRMA_TMPL = 168, 161, 5


def _overlaps(base: bytes, length: int) -> bool:
    common = 128 - min(length, MYCELIUM[1])
    one, other = int.from_bytes(base, "big"), int.from_bytes(MYCELIUM[0], "big")
    return one >> common == other >> common
