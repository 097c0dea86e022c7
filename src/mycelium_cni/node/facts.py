# SPDX-License-Identifier: Apache-2.0
"""What a node should have, once for all its pods, in the order in which it is made."""

from __future__ import annotations

from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import sysctl
from mycelium_cni.kernel.address import format_mac
from mycelium_cni.kernel.facts import (
    Address,
    Fact,
    NoLinkLocal,
    NoProxyDelay,
    Object,
    Proxy,
    Route,
    Switch,
    Up,
    alias,
)
from mycelium_cni.kernel.link import find_link
from mycelium_cni.kernel.shell import quoted
from mycelium_cni.node.marks import BRIDGE_ALIAS, BRIDGE_GROUP, PROTOCOL
from mycelium_cni.overlay import MYCELIUM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from mycelium_cni.kernel.snapshot import Snapshot
    from mycelium_cni.node.subnet import Node

LOOPBACK = 1  # the index of lo in every network namespace (net/core/dev.c, dev_new_index)
LINK_LOCAL_GATEWAY = b"\xfe\x80" + bytes(13) + b"\x01"
FORWARDING = sysctl.conf("all", "forwarding")

# A route is chosen by metric only among routes to the same prefix: this one loses to any other.
WORST_METRIC = 0xFFFFFFFF
SUBNET_METRIC = 1024
_ADDRCONF_METRIC = 256  # net/ipv6_route.h: IP6_RT_PRIO_ADDRCONF


class Bridge(Object):
    """The bridge whose ports are pods. Its MAC is made from the subnet: a new bridge has the old
    one's, which pods know."""

    __slots__ = ("mac", "name")

    def __init__(self, name: str, subnet: bytes) -> None:
        super().__init__("pods are its ports")
        self.name: Final = name
        self.mac: Final = b"\x02\x04" + subnet[4:]

    def __str__(self) -> str:
        mac, group = format_mac(self.mac), BRIDGE_GROUP
        own = f"address {mac} group {group} type bridge mcast_snooping 0"
        return f"ip link add {quoted(self.name)} {own}"

    @property
    def removal(self) -> str:
        return f"ip link del {quoted(self.name)}"

    def message(self) -> nl.Message:
        # Without a querier, which no pod may be, snooping filters nothing, but still stores the
        # groups that pods report, up to 4,096 per bridge.
        no_snooping: nl.Attribute = (nl.IFLA_INFO_DATA, [(nl.IFLA_BR_MCAST_SNOOPING, b"\0")])
        kind: nl.Attribute = (nl.IFLA_LINKINFO, [(nl.IFLA_INFO_KIND, b"bridge"), no_snooping])
        named: nl.Attribute = (nl.IFLA_IFNAME, self.name)
        mac: nl.Attribute = (nl.IFLA_ADDRESS, self.mac)
        ours: nl.Attribute = (nl.IFLA_GROUP, BRIDGE_GROUP)
        flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL
        return nl.link(nl.RTM_NEWLINK, self, named, mac, ours, kind, flags=flags)

    def drop(self) -> nl.Message:
        named: nl.Attribute = (nl.IFLA_IFNAME, self.name)
        return nl.link(nl.RTM_DELLINK, self.removal, named)

    def holds(self, seen: Snapshot) -> bool:
        return find_link(seen.socket, self.name) is not None


def ipv6(name: str) -> Switch:
    """IPv6 is on for the bridge."""
    return Switch(sysctl.conf(name, "disable_ipv6"), "0", "the overlay is IPv6")


def new_bridge(name: str, index: int) -> list[Fact]:
    """The facts of a bridge that we made. The alias comes last: a bridge without one is
    unfinished."""
    return [
        # conf.default may say otherwise; and no pod behind it is a router.
        ipv6(name),
        Switch(sysctl.conf(name, "accept_ra"), "0", "no pod is a router"),
        NoLinkLocal(index, name, "the address that the kernel would make is tentative at first"),
        # To ask for a pod's MAC on behalf of a remote sender the kernel needs a link-local address
        # that is not tentative.
        Address(index, name, LINK_LOCAL_GATEWAY, 64, "the node asks for pods' MACs from it"),
        alias(index, name, BRIDGE_ALIAS, "`mycelium-cni teardown` finds it by this"),
    ]


def bridge(name: str, index: int, node: Node) -> tuple[Up, Address]:
    """What any bridge with pods needs, also one that another program made."""
    why = "bridged pods have their gateway there"
    return (
        Up(index, name, why),
        Address(index, name, node.gateway, 64, why, protocol=PROTOCOL),
    )


def onlink(index: int, name: str, subnet: bytes) -> Route:
    """The bridge's route to its pods. The kernel makes it with the gateway's address, unless that
    has `noprefixroute`."""
    return Route(
        *((subnet + bytes(8), 64), "the node's way to bridged pods"),
        index=index,
        link=name,
        priority=_ADDRCONF_METRIC,
        protocol=nl.RTPROT_KERNEL,
    )


def bridge_answers(name: str, index: int, node: Node) -> list[Fact]:
    """What lets pods of older plugins, which have no route to it, reach the node's own address."""
    why = "pods of other plugins ask for the node's address on the bridge"
    return [
        Switch(sysctl.conf(name, "proxy_ndp"), "1", why),
        NoProxyDelay(index, name, why),
        Proxy(index, name, node.address, why, protocol=PROTOCOL),
    ]


def standing(node: Node, services: Sequence[tuple[bytes, int]]) -> list[Object]:
    """What stays when the daemon stops, and its address and route go; and routes to the networks of
    Kubernetes' Services. kube-proxy translates the destination of a packet to a Service, but the
    node's own packets meet its rules only after the kernel has found a route. What it does not
    translate, a route to lo refuses (net/ipv6/route.c, fib6_is_reject)."""
    subnet = (node.subnet + bytes(8), 64)
    clear = "packets for the overlay must not leave unencrypted while the daemon is away"
    return [
        _refuse(MYCELIUM, WORST_METRIC, clear),
        _refuse(subnet, SUBNET_METRIC, "packets for pods that are gone must not loop"),
        Address(
            *(LOOPBACK, "lo", node.address, 128),
            "probes of pods come from the node's address, with or without the daemon",
            protocol=PROTOCOL,
        ),
        *(
            Route(
                *(prefix, "the node reaches Services without a default route"),
                index=LOOPBACK,
                link="lo",
                protocol=PROTOCOL,
            )
            for prefix in services
        ),
    ]


def forwarding(ra_links: list[str]) -> list[Fact]:
    """What makes the node a router, and keeps its own routes."""
    return [
        *keep_learned(ra_links),
        Switch(FORWARDING, "1", "pods are reached by forwarding only"),
    ]


def keep_learned(ra_links: list[str]) -> list[Switch]:
    """What keeps the routes that links learned from router advertisements: a link that forwards
    drops them at once unless accept_ra is 2 (Documentation/networking/ip-sysctl.rst)."""
    why = "the node would lose its default route"
    return [Switch(sysctl.conf(name, "accept_ra"), "2", why) for name in ra_links]


def _refuse(destination: tuple[bytes, int], metric: int, why: str) -> Route:
    return Route(destination, why, priority=metric, protocol=PROTOCOL)
