# SPDX-License-Identifier: Apache-2.0
"""What an attachment should have, on the node and in the pod, in the order in which ADD makes it.

The lists depend only on the shape of the attachment, so ADD, which makes it, and CHECK and
`doctor`, which look at it, cannot disagree.
"""

from __future__ import annotations

from mycelium_cni.cni import config
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import sysctl
from mycelium_cni.kernel.address import covers, link_local
from mycelium_cni.kernel.facts import (
    USER_METRIC,
    Address,
    ForwardingEntry,
    Neighbour,
    NoArp,
    NoLearning,
    NoLinkLocal,
    NoProxyDelay,
    Object,
    Part,
    Proxy,
    Route,
    Rule,
    Switch,
    Up,
)
from mycelium_cni.node.facts import FORWARDING, LINK_LOCAL_GATEWAY, keep_learned
from mycelium_cni.node.marks import PROTOCOL, word
from mycelium_cni.node.prepare import links_at_risk
from mycelium_cni.overlay import on_mycelium

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from mycelium_cni.kernel.facts import Fact
    from mycelium_cni.kernel.snapshot import Snapshot
    from mycelium_cni.node.subnet import Node


class End:
    """A link that carries pods' packets: index (in its own namespace), name and MAC."""

    __slots__ = ("index", "mac", "name")

    def __init__(self, index: int, name: str, mac: bytes) -> None:
        self.index: Final = index
        self.name: Final = name
        self.mac: Final = mac


class Shape:
    """What the facts of an attachment depend on. `bridge` is None if it is routed, and has index 0
    if it is gone."""

    __slots__ = ("address", "bridge", "host", "node", "pod", "routes")

    def __init__(
        self,
        node: Node,
        bridge: End | None,
        host: End,
        pod: End,
        address: bytes,
        routes: Sequence[config.Route],
    ) -> None:
        self.node: Final = node
        self.bridge: Final = bridge
        self.host: Final = host
        self.pod: Final = pod
        self.address: Final = address
        # On a bridge the whole subnet, with the node's own address in it, is on-link for the pod.
        own = [config.Route((node.address, 128), {})] if bridge else []
        self.routes: Final = [*own, *routes]

    @property
    def gateway(self) -> bytes:
        return self.node.gateway if self.bridge else LINK_LOCAL_GATEWAY

    @property
    def gateway_end(self) -> End:
        """The link that has the pod's gateway."""
        return self.bridge or self.host

    @property
    def prefixlen(self) -> int:
        return 64 if self.bridge else 128


class _NoIpv6(Switch):
    """A bridge port has no IPv6 of its own. With it the kernel makes the port a route to ff00::/8,
    behind those of all other ports (net/ipv6/addrconf.c, addrconf_add_mroute): 0.5 ms with 1,000 of
    them."""

    __slots__ = ()
    needed = False


class _Forwarding(Switch):
    """The link forwards, as all links do once the node is prepared. Setting it, even to the same
    value, drops the routes that links have learned from router advertisements, unless they are told
    to keep them (net/ipv6/addrconf.c, addrconf_fixup_forwarding)."""

    __slots__ = ()

    def restore(self, host: nl.Socket) -> None:
        # A new link forwards already, unless conf.default says otherwise. Before the node is
        # prepared none needs to; then all are set at once.
        if sysctl.get(self.path, host) != self.value and sysctl.get(FORWARDING, host) == self.value:
            for switch in keep_learned(links_at_risk(host)):
                switch.restore(host)
            super().restore(host)


def host_switches(shape: Shape) -> list[Switch]:
    """The settings of the host link."""
    name = shape.host.name
    if shape.bridge:
        return [_NoIpv6(sysctl.conf(name, "disable_ipv6"), "1", "only the bridge has addresses")]
    # No link has the address fe80::1: on every host link it would make ADD on a big node four times
    # slower (docs/adr/0002). The kernel answers for it as a proxy, so a pod that has lost its
    # neighbours finds its gateway again.
    answers = "the kernel answers for the pod's gateway"
    return [
        Switch(sysctl.conf(name, "disable_ipv6"), "0", "the overlay is IPv6"),
        Switch(sysctl.conf(name, "accept_ra"), "0", "a pod is not a router"),
        Switch(sysctl.conf(name, "proxy_ndp"), "1", answers),
        _Forwarding(sysctl.conf(name, "forwarding"), "1", answers),  # needed by ndisc_recv_ns
    ]


def host_link(shape: Shape) -> list[Part]:
    """The host link itself, until it is up."""
    index, name = shape.host.index, shape.host.name
    if not shape.bridge:
        # On a bridge the guard drops ARP; in routed mode nothing would if `rp_filter` is off.
        return [
            NoProxyDelay(index, name, "the kernel answers for the pod's gateway"),
            NoArp(index, name, "a pod could fill the node's ARP table"),
            NoLinkLocal(index, name, "the kernel's own would be tentative at first"),
            # The kernel sends solicitations from an address of the link. Each link has its own
            # address, without a prefix, so that no list in the kernel grows with the number of
            # pods. Added before the link is up: to one that is the kernel would add a route to
            # ff00::/8 for each address, and go through those of all links (addrconf_add_mroute).
            Address(
                *(index, name, link_local(shape.host.mac), 128),
                "the node asks for the pod's MAC from it",
            ),
            Up(index, name, "a link that is down carries nothing"),
        ]
    # The bridge would learn, and let a pod take another's MAC, from frames to 01:80:c2:00:00:0e
    # that no packet filter sees (net/bridge/br_input.c, br_handle_frame).
    return [
        NoLearning(index, name, "a pod could take another's MAC"),
        ForwardingEntry(index, name, shape.pod.mac, "the bridge knows where the pod is"),
        Up(index, name, "a link that is down carries nothing"),
    ]


def host_reach(shape: Shape) -> list[Object]:
    """How the node reaches the pod. Made once the link has a carrier: the kernel's link watch drops
    the neighbours of one without."""
    if shape.bridge:
        # A neighbour that must be resolved counts towards the machine's limit (gc_thresh3).
        # Permanent: on a bridge a pod may use no other MAC. So it outlives the pod (docs/adr/0011).
        known = Neighbour(
            *(shape.bridge.index, shape.bridge.name, shape.address, shape.pod.mac),
            "the node need not ask for the pod",
            protocol=PROTOCOL,
            permanent=True,
        )
        return [known] if shape.bridge.index else []
    index, name = shape.host.index, shape.host.name
    return [
        Proxy(
            *(index, name, LINK_LOCAL_GATEWAY),
            "the kernel answers for the pod's gateway",
            protocol=PROTOCOL,
        ),
        # Known from the start, and not permanent: `tuning` may change the pod's MAC.
        Neighbour(
            *(index, name, shape.address, shape.pod.mac),
            "the first packet need not wait",
            protocol=PROTOCOL,
            permanent=False,
        ),
        # Without a preferred source, every connect() of the node walks the addresses of all links
        # to choose one: 172 µs at 1,000 pods instead of 4.
        Route(
            (shape.address, 128),
            "the node's way to the pod",
            index=index,
            link=name,
            source=shape.node.address,
            protocol=PROTOCOL,
            exclusive=True,
        ),
    ]


def pod_switches(pod_link: str) -> list[Switch]:
    """The settings that the pod link needs; only a task in the pod's namespace can make them."""
    return [
        Switch(sysctl.conf("lo", "disable_ipv6"), "0", "the pod reaches itself"),
        Switch(sysctl.conf(pod_link, "disable_ipv6"), "0", "the overlay is IPv6"),
    ]


def pod_preferences(pod_link: str) -> list[Switch]:
    """The settings that ADD also makes; a later plugin (`tuning`) may change them."""
    return [
        Switch(sysctl.conf(pod_link, "accept_ra"), "0", "no router announces itself here"),
        Switch(sysctl.conf(pod_link, "keep_addr_on_down"), "1", "the address outlives down and up"),
        Switch(sysctl.conf(pod_link, "ndisc_notify"), "1", "the node is told of a changed MAC"),
    ]


def pod_link(shape: Shape) -> list[Part]:
    """The pod link: up, with its address and its gateway's MAC."""
    index, name = shape.pod.index, shape.pod.name
    found: list[Part] = [
        NoLinkLocal(index, name, "the kernel's own would be tentative at first"),
        Up(index, name, "a link that is down carries nothing"),
        Address(index, name, shape.address, shape.prefixlen, "the pod's address"),
    ]
    if shape.gateway_end.index:
        found.append(gateway(shape))
    return found


def gateway(shape: Shape) -> Neighbour:
    """The pod knows its gateway's MAC."""
    return Neighbour(
        *(shape.pod.index, shape.pod.name, shape.gateway, shape.gateway_end.mac),
        "the first packet need not wait",
        protocol=PROTOCOL,
        permanent=True,
    )


def pod_routes(shape: Shape, *, priority: int = 0) -> list[Route]:
    """The pod's routes, all via its gateway; `priority` is for those without one."""
    return [_pod_route(shape, route, "the pod's way out", priority) for route in shape.routes]


def source_routes(shape: Shape) -> list[Route]:
    """Routes that keep packets from the pod's address on the pod link, whatever other links there
    are: the node drops them on any other. In the table `local`, which the kernel asks first, and
    gone with the link (docs/adr/0009)."""
    return own_routes(shape, nl.RT_TABLE_LOCAL, source=shape.address)


def has_rivals(seen: Snapshot, shape: Shape) -> bool:
    """Whether other links of the pod would take its packets, as its routes tell: one of ours has a
    worse metric than another's, or another link is on the overlay too."""
    worse = USER_METRIC + shape.pod.index
    return any(
        route.protocol == PROTOCOL
        and route.table == nl.RT_TABLE_MAIN
        and (route.link != shape.pod.index or route.priority == worse)
        for route in seen.routes
    )


def source_rule(address: bytes, table: int) -> Rule:
    """Packets from the pod's address are routed by that table."""
    return Rule(address, table, "other links of the pod would take its packets", protocol=PROTOCOL)


def own_way(seen: Snapshot, shape: Shape, alias: str) -> Sequence[Fact]:
    """What keeps the pod's packets on its link if other links would take them: source routes, or a
    rule if the host link's alias names its table. A pod's first link has neither if 0.1.0 made it,
    or the kernel lacks CONFIG_IPV6_SUBTREES."""
    table = word(alias, "table")
    if table.isdigit():
        return [source_rule(shape.address, int(table))]
    needed = any(route.sender for route in seen.routes) or _is_shadowed(seen, shape)
    return source_routes(shape) if needed and has_rivals(seen, shape) else []


def _is_shadowed(seen: Snapshot, shape: Shape) -> bool:
    """Whether the pod's answers to its node leave by another link: on one that 0.1.0 bridged, the
    node's whole subnet is on-link."""
    ways = [
        route
        for route in seen.routes
        if route.table == nl.RT_TABLE_MAIN
        and not route.sender
        and covers(route.destination, shape.node.address)
    ]
    best = min(ways, key=lambda way: (-way.destination[1], way.priority), default=None)
    return best is not None and best.link != shape.pod.index


def source_routes_of_others(seen: Snapshot, shape: Shape) -> list[Route]:
    """`source_routes` for the pod's other Mycelium links: those with an address on the overlay, and
    routes of ours."""
    why = "other links of the pod would take its packets"
    marked = {
        route.link
        for route in seen.routes
        if route.protocol == PROTOCOL and route.link != shape.pod.index
    }
    found = []
    for index, address in seen.addresses:
        if index not in marked or not on_mycelium(address):
            continue
        for route in seen.routes:
            onlink = route.destination == (address[:8] + bytes(8), 64) and not route.gateway
            ours = route.protocol == PROTOCOL and not route.sender
            if route.link == index and route.table == nl.RT_TABLE_MAIN and (ours or onlink):
                found.append(
                    Route(
                        route.destination,
                        why,
                        index=index,
                        link=seen.links[index].name,
                        gateway=route.gateway,
                        table=nl.RT_TABLE_LOCAL,
                        sender=address,
                        protocol=PROTOCOL,
                    )
                )
    return found


def own_routes(shape: Shape, table: int, source: bytes = b"") -> list[Route]:
    """The link's routes for a table of its own: the configured ones, except those that name another
    table, and on a bridge the subnet's."""
    why = "other links of the pod would take its packets"
    found = [
        _pod_route(shape, route, why, table=table, sender=source)
        for route in shape.routes
        if "table" not in route.metrics
    ]
    if shape.bridge:
        found.append(
            Route(
                (shape.node.subnet + bytes(8), shape.prefixlen),
                why,
                index=shape.pod.index,
                link=shape.pod.name,
                table=table,
                sender=source,
                protocol=PROTOCOL,
            )
        )
    return found


def shadowing(shape: Shape) -> list[Route]:
    """Those of a bridged link's routes that are more specific than other links': to the node, and
    the kernel's own to the subnet."""
    if not shape.bridge:
        return []
    onlink = Route(
        (shape.node.subnet + bytes(8), shape.prefixlen),
        "it would take other links' packets",
        index=shape.pod.index,
        link=shape.pod.name,
        protocol=nl.RTPROT_UNSPEC,
    )
    return [pod_routes(shape)[0], onlink]


def _pod_route(
    shape: Shape,
    route: config.Route,
    why: str,
    priority: int = 0,
    *,
    table: int = 0,
    sender: bytes = b"",
) -> Route:
    said = route.metrics
    return Route(
        route.destination,
        why,
        index=shape.pod.index,
        link=shape.pod.name,
        gateway=shape.gateway,
        priority=said.get("priority", priority),
        table=table or said.get("table", nl.RT_TABLE_MAIN),
        scope=said.get("scope", nl.RT_SCOPE_UNIVERSE),
        metrics=[(name, said[name]) for name in ("mtu", "advmss") if name in said],
        sender=sender,
        protocol=PROTOCOL,
    )
