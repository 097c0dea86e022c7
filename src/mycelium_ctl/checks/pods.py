# SPDX-License-Identifier: Apache-2.0
"""The facts of each attachment, on the node and in the pod, and which of them are missing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from itertools import islice
from struct import Struct
from typing import Final, NamedTuple, NoReturn

from mycelium_cni.cni.config import IPV6_MIN_MTU
from mycelium_cni.kernel import facts as kinds
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import sysctl
from mycelium_cni.kernel.address import covers, format_address, format_prefix, parse_mac
from mycelium_cni.kernel.facts import AlternativeName, Fact, Setting, Up
from mycelium_cni.kernel.link import Link
from mycelium_cni.kernel.shell import quoted
from mycelium_cni.kernel.snapshot import Route, Snapshot
from mycelium_cni.node.facts import LINK_LOCAL_GATEWAY, LOOPBACK
from mycelium_cni.node.marks import group
from mycelium_cni.node.subnet import Node
from mycelium_cni.pod import facts
from mycelium_cni.pod.attachment import Attachment
from mycelium_ctl.checks.finding import Finding, names, ok, own, skip
from mycelium_ctl.checks.routing import (
    ELSEWHERE,
    Packet,
    Way,
    culprit,
    find_ways,
    foreign_rule,
    lost_rule,
    on_overlay,
    words,
)
from mycelium_ctl.echo import HOPS_TO_PEER
from mycelium_ctl.node.cache import read_cache
from mycelium_ctl.node.stale import find_gone
from mycelium_ctl.node.state import Attached, State
from mycelium_ctl.view import count

_MANY: Final = 32  # pods, from which on two processes look into them
_ANSWER: Final = Struct("=I?")  # a host link, and whether all is well with its pod
CARRIER_S: Final = 2.0  # how long a link may take to get a carrier once it is up


class Missing(NamedTuple):
    """A fact that does not hold, the commands that make it, and where."""

    fact: Fact
    commands: tuple[str, ...]
    where: str = ""


class ExpectedPod:
    """The facts of one attachment, in the order in which ADD makes them."""

    def __init__(self, state: State, one: Attached) -> None:
        self.state: Final = state
        self.one: Final = one
        self.config: Final = state.config_of(one.network)
        bridge = state.bridge if one.bridged else None
        # A pod stays bridged when its bridge is gone.
        mac = parse_mac(bridge.mac) if bridge else b""
        self._end: Final = facts.End(bridge.index if bridge else 0, state.config.bridge_name, mac)
        self.bridge: Final = self._end.index

    @cached_property
    def shape(self) -> facts.Shape:
        """What the facts depend on; asks for the pod link, unless a look has shown it."""
        state, one = self.state, self.one
        node = Node(state.address or bytes(16), one.link.mtu, one.bridged, None)
        return facts.Shape(
            node,
            self._end if one.bridged else None,
            facts.End(one.link.index, one.link.name, parse_mac(one.link.mac)),
            facts.End(one.link.peer, one.pod_link, one.expected_pod_mac),
            one.octets,
            self.config.routes if self.config else (),
        )

    def on_node(self) -> list[Fact]:
        """The node's side, before the link has a carrier."""
        link, one = self.one.link, self.one
        found: list[Fact] = []
        if one.container and not one.cut:
            name = Attachment(one.network, one.container, one.ifname).host_link
            words, why = f"name {name}", "DEL finds the link by its name"
            found.append(Setting(link.index, link.name, words, (nl.IFLA_IFNAME, name), why))
        if one.network:
            number = group(one.network)
            found.append(kinds.group(link.index, link.name, number, "the guard matches on it"))
        why = "the address is reserved by this name"
        found.append(AlternativeName(link.index, link.name, one.address, why))
        if self.mtu:
            found.append(kinds.mtu(link.index, link.name, self.mtu))
        if self.bridge:
            name = self.state.config.bridge_name
            found.append(kinds.master(link.index, link.name, self.bridge, name))
        elif not one.bridged:
            found.append(kinds.alone(link.index, link.name))
            found.append(kinds.Resolves(link.index, link.name, "neighbours are found"))
        return found + facts.host_switches(self.shape) + facts.host_link(self.shape)

    @property
    def mtu(self) -> int:
        """What the configuration wants, or less on which both ends agree, as after a change of the
        configuration; 0 where it is not known."""
        interface, one = self.state.interface, self.one
        if self.config is None:
            return 0
        wanted = self.config.mtu or (interface.mtu if interface else 0)
        agreed = one.pod_mtu == one.link.mtu and one.link.mtu >= IPV6_MIN_MTU
        return min(wanted, one.link.mtu) if agreed else wanted

    def in_pod(self, seen: Snapshot) -> list[Fact]:
        """The pod's side, which `seen` shows; routes last."""
        end = self.shape.pod
        found: list[Fact] = []
        if self.mtu:  # first: below 1,280 bytes a link has no IPv6, nor its settings
            found.append(kinds.mtu(end.index, end.name, self.mtu))
        found += facts.pod_switches(end.name)
        found.append(kinds.Resolves(end.index, end.name, "neighbours are found"))
        if self.one.bridged:
            why = "on a bridge a pod may only use the MAC that it was given"
            found.append(kinds.mac(end.index, end.name, end.mac, why))
        return [
            *found,
            *facts.pod_link(self.shape),
            *facts.pod_routes(self.shape),
            *self.own_way(seen),
        ]

    def own_way(self, seen: Snapshot) -> Sequence[Fact]:
        """What keeps the pod's packets on its link, where others would take them."""

        def read() -> Sequence[Fact]:
            return facts.own_way(seen, self.shape, self.one.link.alias)

        return seen.once(f"own way of {self.one.link.index}", read)

    def reach(self) -> Sequence[Fact]:
        """The node's side, once there is a carrier."""
        return facts.host_reach(self.shape)

    def missing(
        self, *, preferred: bool = False, in_pod: Sequence[Missing] | None = None
    ) -> list[Missing]:
        """What is missing, in the order of ADD; `preferred`: also facts that packets pass without;
        `in_pod`: the pod's part of it, if it is not to be looked at now. Raises OSError."""
        seen = self.state.seen
        if in_pod is None:
            with self.state.look_inside(self.one) as inner:
                in_pod = self.missing_in_pod(inner, preferred=preferred) if inner else []
        return [
            *_missing(self.on_node(), seen, preferred=preferred),
            *in_pod,
            *_missing(self.reach(), seen, preferred=preferred),
        ]

    def missing_in_pod(self, seen: Snapshot, *, preferred: bool = False) -> list[Missing]:
        """The pod's part of it, as `seen` shows it. Raises OSError."""
        return [
            Missing(
                each.fact,
                tuple(inside(self.state, self.one, line) for line in each.commands),
                "in the pod ",
            )
            for each in _missing(self.in_pod(seen), seen, preferred=preferred)
        ]

    def restore(self) -> None:
        """Make what is missing now, in the order of ADD. Raises OSError."""
        fresh = State(self.state.where)
        one = next((a for a in fresh.attachments if a.link.index == self.one.link.index), None)
        if one is not None and one.octets:
            ExpectedPod(fresh, one).make()  # the bridge may be back by now

    def make(self) -> None:
        """Make what was missing when `state` was read. Raises OSError."""
        host, seen = self.state.host, self.state.seen
        made = self._make(host, self.on_node(), seen)
        with self.state.look_inside(self.one) as there:
            if there:
                self._make(there.socket, self.in_pod(there), there)
        _await_carrier(host, self.one.link.index)
        # A link that was down or without IPv6 has lost its routes too.
        self._make(host, self.reach(), Snapshot(host) if made else seen)

    def _make(self, there: nl.Socket, wanted: Sequence[Fact], seen: Snapshot) -> bool:
        """Make what is missing; return whether anything was."""
        missing = [fact for fact in wanted if not fact.holds(seen)]
        for fact in missing:
            for other in fact.obstacles(seen):
                there.request(other.drop())
            fact.restore(there)
            if isinstance(fact, Up):
                _await_carrier(there, fact.index)
        return bool(missing)


def _missing(wanted: Sequence[Fact], seen: Snapshot, *, preferred: bool) -> list[Missing]:
    return [
        Missing(fact, commands(fact, seen))
        for fact in wanted
        if fact.is_missed(seen) or (preferred and not fact.holds(seen))
    ]


def commands(fact: Fact, seen: Snapshot) -> tuple[str, ...]:
    """What a person would type to make it, and to drop what is in its way."""
    return *(other.removal for other in fact.obstacles(seen)), str(fact)


def _await_carrier(there: nl.Socket, index: int) -> None:
    """Wait until a link carries packets, or its other end turns out to be down."""
    deadline = time.monotonic() + CARRIER_S
    while time.monotonic() < deadline:
        link = Link(there.request(nl.link(nl.RTM_GETLINK, "read link", index=index))[0])
        if link.attribute(nl.IFLA_OPERSTATE)[0] == nl.IF_OPER_UP:
            return
        time.sleep(0.01)


class Look(NamedTuple):
    """What a look at an attachment has shown, for two checks."""

    missing: Sequence[Missing] = ()  # on the node and in the pod
    astray: Sequence[Finding] = ()  # packets in the pod
    entered: bool = True  # the pod's namespace


class Looks:
    """A look at each attachment of a live pod. Where there are many, another process begins with
    the last one, and this one with the first, until they meet."""

    def __init__(self, state: State) -> None:
        """Raises OSError."""
        self._state: Final = state
        self._live: Final = [one for one in state.attachments if one.octets and one.answers]
        self._looks: Final[dict[int, Look]] = {}  # by host link
        self._sound: Final[dict[int, bool]] = {}  # what the other process has found
        self._helper = 0
        if len(self._live) >= _MANY and state.may_configure:
            self._look(self._live[0])  # what it reads of the node serves all, in both processes
            self._answers, answers = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._helper = os.fork()
            if not self._helper:
                self._help(answers)
            os.close(answers)

    def _help(self, answers: int) -> NoReturn:
        """The other process: say of each pod whether all is well. It ends when nobody reads."""
        try:
            os.set_blocking(answers, True)
            # The parent's socket would get the answers to what this process asks.
            with nl.Socket() as own:
                os.dup2(own.fileno(), self._state.host.fileno(), inheritable=False)
            for one in reversed(self._live):
                os.write(answers, _ANSWER.pack(one.link.index, _look(self._state, one) == Look()))
        finally:
            os._exit(0)

    @cached_property
    def found(self) -> dict[int, Look]:
        """By host link, in the order of `list`. Raises OSError."""
        for one in self._live:
            index = one.link.index
            if self._helper and index not in self._sound:
                self._hear()
            if self._sound.get(index):
                self._looks[index] = Look()
            elif index not in self._looks:
                self._look(one)
        self.close()
        return self._looks

    def _look(self, one: Attached) -> None:
        self._looks[one.link.index] = _look(self._state, one)

    def _hear(self) -> None:
        with suppress(BlockingIOError):
            octets = os.read(self._answers, 1 << 20)
            self._sound.update(_ANSWER.iter_unpack(octets))

    def close(self) -> None:
        """End the other process. It may be called again."""
        if self._helper:
            os.kill(self._helper, signal.SIGKILL)
            os.waitpid(self._helper, 0)
            os.close(self._answers)
            self._helper = 0


@lru_cache(maxsize=1)
def look_into_pods(state: State) -> Looks:
    """Begin, if it has not begun. Raises OSError."""
    return Looks(state)


def _look(state: State, one: Attached) -> Look:
    """Raises OSError."""
    expected = ExpectedPod(state, one)
    with state.look_inside(one) as seen:
        in_pod = expected.missing_in_pod(seen) if seen else ()
        astray = astray_in_pod(expected, seen) if seen else ()
    return Look((*expected.missing(in_pod=in_pod),), (*astray,), seen is not None)


def pods(state: State) -> list[Finding] | Finding:
    """Every fact of every attachment holds, on the node and in the pod."""
    if state.address is None:
        return skip("the interface has no address yet")
    if state.attachments and not state.may_configure:
        return skip(f"{count(len(state.attachments), 'pod')} not looked at: {state.blindness}")
    found = []
    gone = find_gone(state)
    if gone:
        found.append(
            Finding(
                "fail",
                f"{count(len(gone), 'attachment')} without a pod: "
                + names(each.attached for each in gone),
                run=(own("gc"),),
            )
        )
    found += _lost(state)
    unused = {each.attached.link.index for each in gone}
    looks = look_into_pods(state).found
    looked = unseen = 0
    for one in state.attachments:
        if one.link.index in unused:
            continue
        if not one.octets:
            found.append(
                Finding(
                    "fail",
                    f"{one.link.name} of {one.who} has lost its address",
                    "delete the pod: its successor gets a new attachment",
                )
            )
            continue
        if one.subnet != state.address[:8]:
            continue  # the check `subnet` reports those of an old one
        if not one.container:
            found.append(
                Finding(
                    "warn",
                    f"{one.link.name} has lost its alias: nobody can tell whose it is",
                    f"delete the pod with address {one.address}: its successor gets a new one",
                )
            )
            continue
        look = looks.get(one.link.index) or _look(state, one)
        config = state.config_of(one.network)
        if config and state.bridges(config) != one.bridged:
            found.append(_in_another_mode(one))
        looked += 1
        unseen += not look.entered
        if look.missing:
            found.append(_lacks(one, look.missing, ExpectedPod(state, one).restore))
    if found:
        return found
    hidden = f", {unseen} of them from outside" if unseen else ""
    return ok(f"{count(looked, 'pod')} looked at{hidden}, nothing is missing")


def _lost(state: State) -> list[Finding]:
    """Attachments that a runtime knows and the kernel does not have."""
    links = {link.name for link in state.links} | {
        (one.network, one.container, one.ifname) for one in state.attachments
    }
    found = []
    for cached in read_cache(state.where.root):
        name = Attachment(cached.network, cached.container, cached.ifname).host_link
        if name in links or (cached.network, cached.container, cached.ifname) in links:
            continue
        found.append(
            Finding(
                "fail",
                f"{cached.pod or cached.container[:13]} has no network: host link {name} is gone",
                "delete the pod: its successor gets a new attachment",
            )
        )
    return found


def _in_another_mode(one: Attached) -> Finding:
    mode, now = ("bridge", "routed") if one.bridged else ("routed", "bridge")
    return Finding(
        "warn",
        f"{one.who} was attached in {mode} mode, and network {one.network} attaches in {now} mode "
        "now: such pods do not reach each other",
        "delete the pod: its successor gets a new attachment",
    )


def _lacks(one: Attached, missing: Sequence[Missing], restore: Callable[[], object]) -> Finding:
    labels = [f"{each.where}{each.fact.label}" for each in missing]
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return Finding(
        "fail",
        f"{one.who}: missing: {', '.join(labels[:3])}{more} ({missing[0].fact.why})",
        run=tuple(command for each in missing for command in each.commands),
        fix=restore,
    )


def inside(state: State, one: Attached, fact: object) -> str:
    """The command, run in the pod's network namespace."""
    held = state.netns.get(one.link.nsid if one.link.nsid is not None else -1)
    return f"nsenter --net={quoted(held.path)} {fact}" if held else str(fact)


def pod_routes(state: State) -> list[Finding] | Finding:
    """What a pod sends to the overlay takes its link and bears its address, and what it gets
    arrives, whatever else is in the pod: a daemon of its own, a VPN, a blackhole, a rule."""
    if state.attachments and not state.may_configure:
        return skip(f"{count(len(state.attachments), 'pod')} not looked at: {state.blindness}")
    looks = [look for look in look_into_pods(state).found.values() if look.entered]
    found = [astray for look in looks for astray in look.astray]
    return found or ok(f"{count(len(looks), 'pod')} looked into, each has one way to the overlay")


def astray_in_pod(expected: ExpectedPod, seen: Snapshot) -> list[Finding]:
    """The first packets that go elsewhere. A pod may have several links of ours."""
    state, one = expected.state, expected.one
    mine = {
        other.link.peer: other.octets
        for other in state.attachments_by_netns[one.link.nsid]
        if other.answers
    }
    names = {index: link.name for index, link in seen.links.items()}
    for route in seen.routes:
        if not on_overlay(route) or route.link in mine:
            continue
        if route.kind == nl.RTN_LOCAL:
            if route.destination[0][:8] not in {each[:8] for each in state.others}:
                continue
            what = f"has an address of another node, {format_address(route.destination[0])}"
        elif route.kind != nl.RTN_UNICAST:
            what = f"has a route that refuses {format_prefix(route.destination)}"
        elif route.table == nl.RT_TABLE_MAIN and route.link != LOOPBACK:
            daemon = "does a Mycelium daemon or a VPN run in the pod?"
            what = f"has a second route to {format_prefix(route.destination)}: {daemon}"
        else:
            continue
        return [_in_pod(state, one, f"{one.who} {what}", route, names)]
    if any(fact.is_missed(seen) for fact in expected.own_way(seen)):
        return []  # the check `pods` reports this, and that:
    if not any(route.link == one.link.peer and route.gateway for route in seen.routes):
        return []
    needed = _needed(state, one)
    asked = [Packet(each, source) for each in needed for source in (one.octets, b"")]
    if state.address:
        asked.append(Packet(one.octets, state.address, one.link.peer))
    ways = iter(find_ways(seen.socket, *asked))
    for destination, bound, free in zip(needed, ways, ways, strict=False):
        sent = f"what {one.who} sends to {format_address(destination)} is "
        if not bound.leads(one.link.peer):
            sent += bound.refusal or "sent over another link of the pod's"
        elif bound.gateway not in _gateways(one, destination):
            sent += f"sent via {_via(bound)}, which is not its gateway"
        elif not free.leads(free.link if free.link in mine else one.link.peer):
            sent += free.refusal or "sent over another link of the pod's"
        elif free.source not in mine.values():
            sent += f"sent from {format_address(free.source)}, an address that is not the pod's"
        elif (hops := _hops(bound, seen)) < HOPS_TO_PEER:
            sent += f"sent with a hop limit of {hops}, and ends on the way"
        else:
            continue
        return [_because(state, one, sent, seen, destination)]
    if not all(way.arrives for way in ways):
        got = f"what {one.who} gets does not arrive at its address"
        return [_because(state, one, got, seen, one.octets)]
    return []


def _gateways(one: Attached, destination: bytes) -> tuple[bytes, ...]:
    """The next hops by which a pod's packets may leave; b"" for on-link."""
    if not one.bridged:
        return (LINK_LOCAL_GATEWAY,)
    bridge = one.octets[:8] + bytes(7) + b"\1"
    return (bridge, b"") if destination[:8] == one.octets[:8] else (bridge,)


def _via(way: Way) -> str:
    return format_address(way.gateway) if way.gateway else "the link alone"


def _hops(way: Way, seen: Snapshot) -> int:
    """The hop limit of what a program sends that way (net/ipv6/output_core.c, ip6_dst_hoplimit)."""
    return way.hops or int(seen.switch(sysctl.conf(seen.links[way.link].name, "hop_limit")))


def _needed(state: State, one: Attached) -> list[bytes]:
    """What a pod must reach, as far as its network has routes to it: the overlay, its node, another
    pod."""
    if state.address is None:
        return []
    wanted = [*ELSEWHERE, *state.others, state.address]
    others = (each for each in state.attachments if each.octets and each.link.nsid != one.link.nsid)
    wanted += [other.octets for other in islice(others, 1)]
    return [each for each in wanted if has_route(state, one, each)]


def has_route(state: State, one: Attached, destination: bytes) -> bool:
    """Whether an attachment's network is configured to give its pods a way to that address."""
    if one.bridged and destination[:8] == one.octets[:8]:
        return True
    config = state.config_of(one.network)
    return config is not None and any(
        covers(route.destination, destination) and "table" not in route.metrics
        for route in config.routes
    )


def _because(state: State, one: Attached, what: str, seen: Snapshot, destination: bytes) -> Finding:
    """A finding that names the rule or the route in the pod which leads packets elsewhere."""
    if lost := lost_rule(seen):
        run = inside(state, one, lost)
        return Finding(
            "fail",
            f"{what}: the kernel's rule `{lost}` is gone",
            "find what deleted it in the pod",
            run=(run,),
        )
    if rule := foreign_rule(seen, destination):
        return Finding("fail", f"{what}: {rule} is in the pod", "remove what made it from the pod")
    route = culprit(seen, destination)
    if route and (route.link != one.link.peer or route.source):
        names = {index: link.name for index, link in seen.links.items()}
        return _in_pod(state, one, f"{what}, by route {words(route, names)}", route, names)
    return Finding("fail", what, "remove what made it from the pod: `ip address`, `ip -6 route`")


def _in_pod(
    state: State, one: Attached, what: str, route: Route, names: Mapping[int, str]
) -> Finding:
    """A finding about a route in the pod, which only the pod's owner should remove if packets
    follow it."""
    if route.kind == nl.RTN_UNICAST:
        return Finding("fail", what, "remove what made it: the node's daemon serves all pods")
    command = inside(state, one, f"ip -6 route del {words(route, names)}")
    return Finding("fail", what, "remove it, unless the pod wants it", run=(command,))
