# SPDX-License-Identifier: Apache-2.0
"""ADD's part of a node's facts: ADD makes what is missing, DEL drops none.

Only what a call made itself is undone when it fails.
"""

from __future__ import annotations

from errno import EACCES, EADDRNOTAVAIL, EEXIST

from mycelium_cni.cni.errors import NODE_MISCONFIGURED, TRY_AGAIN_LATER, CniError
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import sysctl
from mycelium_cni.kernel.facts import Address, Steps, ensure
from mycelium_cni.kernel.link import Link, find_link, read_link
from mycelium_cni.node import facts
from mycelium_cni.node.marks import BRIDGE_GROUP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from mycelium_cni.node.subnet import Node
    from mycelium_cni.undo import Undo


def ensure_bridge(host: nl.Socket, name: str, node: Node, undo: Undo) -> Link:
    """The bridge, made where it is missing, completed where it is down, lacks the
    gateway address or was left unfinished by a call that was killed."""
    shared = _Shared(host, name, undo)
    bridge = node.bridge
    if bridge is None:
        facts.Bridge(name, node.subnet).ensure(host, shared)
        bridge = find_link(host, name)
        if bridge is None:
            raise CniError(TRY_AGAIN_LATER, f"bridge {name} vanished while a pod was attached")
    index, ours = bridge.index, bridge.group == BRIDGE_GROUP
    if ours and not bridge.alias:
        _finish(host, name, index, node, shared)
    up, gateway = facts.bridge(name, index, node)
    if not bridge.up:
        shared.push(host.request, up.drop())
        up.ensure(host, shared)
    try:
        made = gateway.ensure(host, shared)
    except nl.NetlinkError as error:
        if error.errno != EACCES:
            raise
        # IPv6 is off on it. Who switched it off took all its addresses with it.
        facts.ipv6(name).ensure(host, shared)
        if ours:
            _finish(host, name, index, node, shared)
        made = gateway.ensure(host, shared)
    if not made and not ours:
        _settle(host, gateway)
    return bridge


def _finish(host: nl.Socket, name: str, index: int, node: Node, shared: _Shared) -> None:
    for fact in (*facts.bridge_answers(name, index, node), *facts.new_bridge(name, index)):
        fact.ensure(host, shared)


def _settle(host: nl.Socket, gateway: Address) -> None:
    """Make a tentative gateway address usable at once, by replacing it. On a bridge that another
    program made, it is tentative until two seconds after the first pod gives the bridge a carrier,
    and answers nobody until then. It gets no protocol mark: it is not ours to remove."""
    found = host.read(nl.get_address(gateway, gateway.address, gateway.index))
    flags = nl.u32(nl.decode(found, nl.IFADDRMSG.size)[nl.IFA_FLAGS])
    if not flags & nl.IFA_F_TENTATIVE:
        return
    prefixlen = nl.IFADDRMSG.unpack_from(found)[1]
    anew = Address(gateway.index, gateway.link, gateway.address, prefixlen, gateway.why)
    try:
        host.request(anew.drop(), anew.message())
    except nl.NetlinkError as error:
        if error.errno not in (EADDRNOTAVAIL, EEXIST):  # another ADD does the same
            raise


class _Shared(Steps):
    """An undo that runs only while the bridge has no port: other pods may rely on what was made."""

    __slots__ = ("_host", "_name", "_undo")

    def __init__(self, host: nl.Socket, name: str, undo: Undo) -> None:
        self._host: Final = host
        self._name: Final = name
        self._undo: Final = undo

    def push(self, step: Callable[..., object], *arguments: object) -> None:
        self._undo.push(self._unless_used, step, *arguments)

    def _unless_used(self, step: Callable[..., object], *arguments: object) -> None:
        bridge = find_link(self._host, self._name)
        if bridge:
            ports: nl.Attribute = (nl.IFLA_MASTER, bridge.index)
            if not self._host.dump(nl.link(nl.RTM_GETLINK, "list bridge ports", ports)):
                step(*arguments)


def keep_bridge_mac(host: nl.Socket, bridge: Link) -> None:
    """Restore the MAC that another program's bridge had before a pod's link became its port. The
    kernel never changes a MAC that was set."""
    now = read_link(host, bridge.index, "read bridge")
    if now.mac != bridge.mac:
        mac: nl.Attribute = (nl.IFLA_ADDRESS, bridge.mac)
        what = f"keep the MAC of {bridge.name}"
        host.request(nl.link(nl.RTM_NEWLINK, what, mac, index=bridge.index))


def loopback(host: nl.Socket) -> Link:
    """The node's `lo`. Raises CniError (NODE_MISCONFIGURED) if it is down, or has no IPv6; OSError
    if the kernel has none."""
    lo = find_link(host, "lo")
    if lo is None or not lo.up:
        raise CniError(NODE_MISCONFIGURED, "link lo is down", run="ip link set lo up", about="lo")
    if sysctl.ipv6_is_off("lo"):
        raise CniError(
            NODE_MISCONFIGURED,
            "IPv6 is off on lo",
            run=sysctl.command(sysctl.conf("lo", "disable_ipv6"), "0"),
            about="lo",
        )
    return lo


def prepare(host: nl.Socket, node: Node, services: Sequence[tuple[bytes, int]], undo: Undo) -> None:
    """Make the standing routes, so that packets for the overlay cannot leave another way while the
    daemon is away, and switch forwarding on. Last in ADD, so that its undo rarely removes what
    another ADD relies on, and after guard.protect: a node that forwards routes whatever the overlay
    delivers."""
    try:
        made = ensure(facts.standing(node, services), host, undo)
    except nl.NetlinkError:
        loopback(host)
        raise
    if made:
        loopback(host)  # they may be lost because `lo` is down, or without IPv6
    if sysctl.get(facts.FORWARDING, host) == "0":
        for fact in facts.forwarding(links_at_risk(host)):
            fact.ensure(host, undo)


def links_at_risk(host: nl.Socket) -> list[str]:
    """The links that have routes from router advertisements, or addresses that the next one must
    renew, and lose them when the node forwards."""
    header = nl.RTMSG.pack(nl.AF_INET6, 0, 0, 0, 0, nl.RTPROT_RA, 0, 0, 0)
    indexes = set()
    for payload in host.dump(nl.Message(nl.RTM_GETROUTE, 0, header, "read routes")):
        output = nl.decode(payload, nl.RTMSG.size).get(nl.RTA_OIF)
        if output:
            indexes.add(nl.u32(output))
    header = nl.IFADDRMSG.pack(nl.AF_INET6, 0, 0, 0, 0)
    for payload in host.dump(nl.Message(nl.RTM_GETADDR, 0, header, "read addresses")):
        attributes = nl.decode(payload, nl.IFADDRMSG.size)
        if nl.u32(attributes[nl.IFA_FLAGS]) & nl.IFA_F_MANAGETEMPADDR:
            indexes.add(nl.IFADDRMSG.unpack_from(payload)[4])
    names = []
    for index in sorted(indexes):
        link = read_link(host, index)
        if sysctl.get(sysctl.conf(link.name, "accept_ra"), host) == "1":
            names.append(link.name)
    return names
