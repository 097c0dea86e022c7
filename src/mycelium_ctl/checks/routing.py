# SPDX-License-Identifier: Apache-2.0
"""Where the kernel sends pods' packets, asked with the real source and input link.

Our routes alone do not tell: others' rules, more specific routes and IPsec policies come first.
"""

from __future__ import annotations

from errno import EACCES, EHOSTUNREACH, EINVAL, ENETUNREACH
from functools import partial
from typing import Final

from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import snapshot
from mycelium_cni.kernel.address import format_address, format_prefix, parse_address
from mycelium_cni.kernel.shell import quoted
from mycelium_cni.node.facts import LOOPBACK
from mycelium_cni.node.marks import PROTOCOL
from mycelium_cni.overlay import MYCELIUM, on_mycelium
from mycelium_ctl.checks.finding import Finding, ok, skip
from mycelium_ctl.node.state import Attached, State
from mycelium_ctl.view import count

OVERLAY: Final = format_prefix(MYCELIUM)
FIRST_RULE: Final = 32766  # net/ipv6/fib6_rules.c: the priority of the rule for the main table
# One address in each half of the overlay.
ELSEWHERE: Final = (parse_address("4ff:ffff::1"), parse_address("5ff:ffff::1"))

# linux/xfrm.h
_NETLINK_XFRM, _XFRM_MSG_GETPOLICY, _XFRM_POLICY_BLOCK = 6, 0x15, 1
_REFUSALS: Final = {
    EACCES: "prohibited",
    EINVAL: "dropped by a blackhole route",
    EHOSTUNREACH: "refused by an unreachable route",
    ENETUNREACH: "without a route",
}


class Way:
    """Where the kernel sends a packet: the output link, or why there is none."""

    def __init__(
        self, host: nl.Socket, destination: bytes, source: bytes = b"", came_in: int = 0
    ) -> None:
        attributes: list[nl.Attribute] = [(nl.RTA_DST, destination)]
        if source:
            attributes.append((nl.RTA_SRC, source))
        if came_in:
            attributes.append((nl.RTA_IIF, came_in))
        lengths = (128, 128 if source else 0)
        header = nl.RTMSG.pack(nl.AF_INET6, *lengths, 0, 0, 0, 0, 0, 0)
        question = nl.Message(nl.RTM_GETROUTE, 0, header + nl.encode(attributes), "ask for a route")
        self.link = 0
        self.refusal = ""
        try:
            route = snapshot.Route(host.request(question)[0])
        except nl.NetlinkError as error:
            if error.errno not in _REFUSALS:
                raise
            self.refusal = _REFUSALS[error.errno]
            return
        self.link = route.link
        if route.kind != nl.RTN_UNICAST:
            self.refusal = f"taken by a route of type {route.kind}"


def overlay_routes(state: State) -> list[Finding] | Finding:
    """The way out: what the node and its pods send to the overlay goes to the daemon."""
    interface, own = state.interface, state.address
    if interface is None or own is None:
        return skip("the interface has no address yet")
    found = _foreign_routes(state)
    for destination in ELSEWHERE:
        found += _astray(state, Way(state.host, destination), "the node's packets", OVERLAY)
        if found:
            break
    for one in state.attachments:
        source = one.octets
        if found or not source or source[:8] != own[:8] or not one.link.up:
            continue
        came_in = one.link.index
        if one.link.master:
            came_in = one.link.master
        way = Way(state.host, ELSEWHERE[0], source, came_in)
        found += _astray(state, way, f"packets of {one.who}", OVERLAY)
    found += _policies()
    return found or ok(f"{interface.name} leads to {OVERLAY}, for the node and for its pods")


def _astray(state: State, way: Way, whose: str, prefix: str) -> list[Finding]:
    interface = state.interface
    if way.link == (interface.index if interface else -1):
        return []
    names = {link.index: link.name for link in state.links}
    where = way.refusal or f"sent to {names.get(way.link, '?')}"
    rule = _first_foreign_rule(state)
    if rule is None:
        if interface and not any(
            (route.destination, route.link) == (MYCELIUM, interface.index)
            for route in state.seen.routes
        ):
            route = (
                f"ip -6 route add {OVERLAY} dev {quoted(interface.name)} proto kernel metric 256"
            )
            return [
                Finding(
                    "fail",
                    f"{interface.name} has lost its route to {OVERLAY}: {whose} are {where}",
                    run=(route,),
                    fix=partial(_restore_overlay_route, state.host, interface.index),
                )
            ]
        return [
            Finding(
                "fail",
                f"{whose} for {prefix} are {where}, not to the daemon",
                f"look at `ip -6 route get {format_address(ELSEWHERE[0])}`: another "
                "program's route comes first",
            )
        ]
    return [_of_rule(rule, f"{whose} for {prefix} are {where}, not to the daemon")]


def _restore_overlay_route(host: nl.Socket, index: int) -> None:
    output: nl.Attribute = (nl.RTA_OIF, index)
    metric: nl.Attribute = (nl.RTA_PRIORITY, 256)
    what = f"restore the route to {OVERLAY}"
    host.ensure(nl.route(nl.RTM_NEWROUTE, what, MYCELIUM, output, metric, protocol=_RTPROT_KERNEL))


_RTPROT_KERNEL = 2  # linux/rtnetlink.h


def _first_foreign_rule(state: State) -> snapshot.Rule | None:
    """The first rule that comes before the main table and is neither the kernel's nor ours."""
    for rule in sorted(state.seen.rules, key=lambda one: one.priority):
        if 0 < rule.priority < FIRST_RULE and rule.protocol != PROTOCOL and not _exempts(rule):
            return rule
    return None


def _exempts(rule: snapshot.Rule) -> bool:
    """Whether it sends packets for the overlay to the main table, past the rules behind it."""
    return (rule.destination, rule.table) == (MYCELIUM, nl.RT_TABLE_MAIN)


def _of_rule(rule: snapshot.Rule, found: str) -> Finding:
    before = max(rule.priority - 1, 1)
    return Finding(
        "fail",
        f"{found}: {rule} comes before the main table",
        "configure what made that rule (a VPN, a kill switch) to exempt the overlay",
        run=(f"ip -6 rule add pref {before} to {OVERLAY} lookup main",),
    )


def _foreign_routes(state: State) -> list[Finding]:
    """Routes of others for parts of the overlay: the more specific one wins."""
    names = {link.index: link.name for link in state.links}
    ours = {link.index for link in state.links if link.ours}
    ours |= {LOOPBACK, *(link.index for link in (state.interface, state.bridge) if link)}
    found = []
    for route in state.seen.routes:
        base, length = route.destination
        inside = on_mycelium(base) and MYCELIUM[1] <= length
        if not inside or route.table != nl.RT_TABLE_MAIN or route.protocol == PROTOCOL:
            continue
        if route.kind == nl.RTN_UNICAST and route.link in ours:
            continue  # on lo: the kernel's own, to an address of the node
        if route.kind == nl.RTN_UNREACHABLE and route.destination == MYCELIUM:
            continue  # like ours, made by somebody else
        prefix = format_prefix(route.destination)
        kind = _KINDS.get(route.kind, "")
        name = names.get(route.link, "?")
        where = f"also goes to {name}" if not kind else f"is refused by a {kind} route"
        words = f"{kind} {prefix}" if kind else f"{prefix} dev {quoted(name)}"
        metric = f" metric {route.priority}" if route.priority else ""
        found.append(
            Finding(
                "fail",
                f"{prefix} {where}: does a second daemon run, or a VPN?",
                "stop what made the route, or it will come back",
                run=(f"ip -6 route del {words.strip()}{metric}",),
            )
        )
    return found


_KINDS: Final = {6: "blackhole", nl.RTN_UNREACHABLE: "unreachable", 8: "prohibit", 9: "throw"}


def pod_ways(state: State) -> list[Finding] | Finding:
    """The way in: what arrives for a pod goes to that pod's link."""
    interface = state.interface
    if interface is None:
        return skip("there is no interface yet")
    names = {link.index: link.name for link in state.links}
    found = []
    for one in state.attachments:
        if not one.octets or not one.answers or not one.link.up:
            continue  # the check `pods` reports these
        way = Way(state.host, one.octets, ELSEWHERE[0], interface.index)
        if way.link in (one.link.index, one.link.master or one.link.index):
            continue
        if _has_no_route(state, one):
            continue
        holder = next((a for a in state.addresses if a.address == one.octets), None)
        if holder:
            name = names.get(holder.link, "?")
            command = f"ip address del {one.address}/{holder.prefixlen} dev {quoted(name)}"
            what = f"{name} of the node has the address of {one.who}"
            found.append(Finding("fail", what, run=(command,)))
            continue
        rule = _first_foreign_rule(state)
        where = way.refusal or f"sent to {names.get(way.link, '?')}"
        what = f"packets for {one.who} are {where}, not to {one.link.name}"
        if rule:
            found.append(_of_rule(rule, what))
        else:
            found.append(
                Finding("fail", what, f"look at `ip -6 route get {one.address}` and undo that")
            )
    return found or ok(f"{count(len(state.attachments), 'pod')}, each behind its own link")


def _has_no_route(state: State, one: Attached) -> bool:
    """The check `pods` reports this as an absent fact."""
    links = (one.link.index, one.link.master)
    prefixes = ((one.octets, 128), (one.octets[:8] + bytes(8), 64))
    return not any(
        route.destination in prefixes and route.link in links and route.kind == nl.RTN_UNICAST
        for route in state.seen.routes
    )


def _policies() -> list[Finding]:
    """IPsec policies that apply to packets for the overlay (`ip xfrm policy`)."""
    try:
        with nl.Socket(_NETLINK_XFRM) as socket:
            listed = socket.dump(nl.Message(_XFRM_MSG_GETPOLICY, 0, b"", "list xfrm policies"))
    except OSError:
        return []  # a kernel without IPsec
    found = []
    for payload in listed:
        # struct xfrm_selector: daddr, saddr, ports (8), family (2), prefixlen_d, prefixlen_s
        daddr, family, length = payload[:16], payload[40:42], payload[42]
        if int.from_bytes(family, "little") != nl.AF_INET6 or not _overlaps(daddr, length):
            continue
        blocks = payload[_ACTION_OFFSET] == _XFRM_POLICY_BLOCK
        has_template = _XFRMA_TMPL in nl.decode(payload, _USERPOLICY_SIZE)
        if blocks or has_template:
            what = "blocks" if blocks else "encrypts or drops"
            prefix = format_prefix((daddr, length))
            found.append(
                Finding(
                    "fail",
                    f"an IPsec policy {what} packets for {prefix}",
                    "`ip xfrm policy` lists it: exempt 400::/7 where it was made",
                )
            )
    return found[:1]


# linux/xfrm.h: struct xfrm_userpolicy_info is 168 bytes, its `action` follows priority, index, dir.
_USERPOLICY_SIZE, _ACTION_OFFSET, _XFRMA_TMPL = 168, 161, 5


def _overlaps(base: bytes, length: int) -> bool:
    common = 128 - min(length, MYCELIUM[1])
    one, other = int.from_bytes(base, "big"), int.from_bytes(MYCELIUM[0], "big")
    return one >> common == other >> common
