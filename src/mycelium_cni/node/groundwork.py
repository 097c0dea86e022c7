# SPDX-License-Identifier: Apache-2.0
"""What the node needs once, whoever's pod comes first: the bridge, standing routes, forwarding.

Each step makes only what is missing. Nothing here is undone by DEL, and only what a call made
itself is undone when it fails.
"""

from __future__ import annotations

from mycelium_cni.cni.errors import NODE_MISCONFIGURED, TRY_AGAIN_LATER, CniError
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import sysctl
from mycelium_cni.kernel.address import format_address, format_prefix
from mycelium_cni.kernel.link import Link, find_link
from mycelium_cni.node.marks import BRIDGE_ALIAS, BRIDGE_GROUP, PROTOCOL
from mycelium_cni.node.subnet import Node
from mycelium_cni.overlay import MYCELIUM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mycelium_cni.undo import Undo


LINK_LOCAL_GATEWAY = b"\xfe\x80" + bytes(13) + b"\x01"

# A route is chosen by metric only among routes to the same prefix: this one loses to any other.
WORST_METRIC = 0xFFFFFFFF
SUBNET_METRIC = 1024


def ensure_bridge(host: nl.Socket, name: str, node: Node, undo: Undo) -> int:
    """The index of the bridge, made where it is missing, mended where it is down or lacks the
    gateway address."""
    bridge = node.bridge
    if bridge is None:
        flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL
        kind: nl.Attribute = (nl.IFLA_LINKINFO, [(nl.IFLA_INFO_KIND, b"bridge")])
        named: nl.Attribute = (nl.IFLA_IFNAME, name)
        mac: nl.Attribute = (nl.IFLA_ADDRESS, bridge_mac(node.subnet))
        ours: nl.Attribute = (nl.IFLA_GROUP, BRIDGE_GROUP)
        what = f"create bridge {name}"
        create = nl.link(nl.RTM_NEWLINK, what, named, mac, ours, kind, flags=flags)
        made = host.ensure(create)[0]
        if made:
            undo.push(_drop_bridge, host, name)
        bridge = find_link(host, name)
        if bridge is None:
            raise CniError(TRY_AGAIN_LATER, f"bridge {name} vanished while a pod was attached")
        index = bridge.index
        if made:
            # Whatever conf.default says to new links; and no pod behind it is a router.
            for switch in ("disable_ipv6", "accept_ra"):
                sysctl.put(sysctl.conf(name, switch), "0")
            # To ask for a pod's MAC on behalf of a remote sender the kernel needs a link-local
            # address that is not tentative; the one it would make itself is, for a second.
            host.request(
                nl.link(
                    nl.RTM_NEWLINK,
                    f"configure {name}",
                    nl.NO_LINK_LOCAL,
                    (nl.IFLA_IFALIAS, BRIDGE_ALIAS.encode()),
                    index=index,
                ),
                nl.address(
                    nl.RTM_NEWADDR, f"add fe80::1 dev {name}", index, LINK_LOCAL_GATEWAY, 64
                ),
            )
    index = bridge.index
    if not bridge.up:
        undo.push(_unless_used, host, name, nl.set_up(index, name, up=False))
        host.request(nl.set_up(index, name))
    gateway = format_address(node.gateway)
    what = f"address {gateway} of {name}"
    add = nl.address(nl.RTM_NEWADDR, what, index, node.gateway, 64, protocol=PROTOCOL)
    if host.ensure(add)[0]:
        drop = nl.address(nl.RTM_DELADDR, what, index, node.gateway, 64)
        undo.push(_unless_used, host, name, drop)
    return index


def bridge_mac(subnet: bytes) -> bytes:
    """Always the same for a subnet, so pods know a bridge that was made anew."""
    return b"\x02\x04" + subnet[4:]


def keep_bridge_mac(host: nl.Socket, bridge: Link) -> None:
    """Give a bridge that somebody else made back the MAC it had before a pod's link became its
    port; the kernel then leaves it alone for good."""
    now = Link(host.request(nl.link(nl.RTM_GETLINK, "read bridge", index=bridge.index))[0])
    if now.mac != bridge.mac:
        mac: nl.Attribute = (nl.IFLA_ADDRESS, bridge.mac)
        what = f"keep the MAC of {bridge.name}"
        host.request(nl.link(nl.RTM_NEWLINK, what, mac, index=bridge.index))


def _drop_bridge(host: nl.Socket, name: str) -> None:
    named: nl.Attribute = (nl.IFLA_IFNAME, name)
    _unless_used(host, name, nl.link(nl.RTM_DELLINK, f"delete bridge {name}", named))


def _unless_used(host: nl.Socket, name: str, message: nl.Message) -> None:
    """Undo a step of making the bridge, unless another ADD has found it useful meanwhile."""
    bridge = find_link(host, name)
    if bridge:
        ports: nl.Attribute = (nl.IFLA_MASTER, bridge.index)
        if not host.dump(nl.link(nl.RTM_GETLINK, "list bridge ports", ports)):
            host.request(message)


def loopback(host: nl.Socket) -> Link:
    """The node's `lo`. Raises CniError (NODE_MISCONFIGURED) if it is down, or IPv6 is off."""
    lo = find_link(host, "lo")
    if lo is None or not lo.up:
        raise CniError(NODE_MISCONFIGURED, "link lo is down", run="ip link set lo up", about="lo")
    try:
        off = sysctl.get(sysctl.conf("lo", "disable_ipv6")) != "0"
    except OSError:
        off = True
    if off:
        raise CniError(
            NODE_MISCONFIGURED,
            "IPv6 is off on lo",
            "if there is no such setting, boot without ipv6.disable=1",
            run=sysctl.command(sysctl.conf("lo", "disable_ipv6"), "0"),
            about="lo",
        )
    return lo


def prepare(host: nl.Socket, node: Node, undo: Undo) -> None:
    """What the node needs once, whoever's pod comes first: packets for the overlay must not leave
    by another way while the daemon is away, and the node must forward.

    It comes last in ADD, so that no other ADD has long relied on it when this one takes it back.
    """
    lo = loopback(host)
    own, subnet = format_address(node.address), (node.subnet + bytes(8), 64)
    standing = [
        _unreachable(MYCELIUM, WORST_METRIC),
        _unreachable(subnet, SUBNET_METRIC),
        # The daemon takes its address with it when it stops. Probes of pods, and the preferred
        # source of their routes, need it meanwhile.
        nl.address(
            nl.RTM_NEWADDR,
            f"add address {own} dev lo",
            lo.index,
            node.address,
            128,
            protocol=PROTOCOL,
        ),
    ]
    undone = [
        _unreachable(MYCELIUM, WORST_METRIC, nl.RTM_DELROUTE),
        _unreachable(subnet, SUBNET_METRIC, nl.RTM_DELROUTE),
        nl.address(nl.RTM_DELADDR, f"delete address {own} dev lo", lo.index, node.address, 128),
    ]
    # Not in one batch: of a batch that is refused in part, nobody says what the rest has made.
    for message, opposite in zip(standing, undone, strict=True):
        if host.ensure(message)[0]:
            undo.push(host.request, opposite)
    # The guard is up by now (guard.protect): a node that forwards is a router for the overlay.
    _ensure_forwarding(host, undo)


def _unreachable(
    destination: tuple[bytes, int], metric: int, kind: int = nl.RTM_NEWROUTE
) -> nl.Message:
    return nl.route(
        kind,
        f"route unreachable {format_prefix(destination)}",
        destination,
        (nl.RTA_PRIORITY, metric),
        protocol=PROTOCOL,
        type_=nl.RTN_UNREACHABLE,
    )


def _ensure_forwarding(host: nl.Socket, undo: Undo) -> None:
    """Switch forwarding on if it is off, without losing what router advertisements gave the node:
    a forwarding link drops its RA routes at once unless accept_ra is 2 (Documentation/networking/
    ip-sysctl.rst), so those that have any are told so first."""
    forwarding = sysctl.conf("all", "forwarding")
    if sysctl.get(forwarding) != "0":
        return
    for name in links_with_ra_routes(host):
        accept_ra = sysctl.conf(name, "accept_ra")
        before = sysctl.get(accept_ra)
        if before == "1":
            undo.push(sysctl.put, accept_ra, "1")
            sysctl.put(accept_ra, "2")
    undo.push(sysctl.put, forwarding, "0")
    sysctl.put(forwarding, "1")


def links_with_ra_routes(host: nl.Socket) -> list[str]:
    """The links over which router advertisements gave the node routes, or addresses, which end
    unless the next one renews them."""
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
        link = Link(host.request(nl.link(nl.RTM_GETLINK, "read link", index=index))[0])
        names.append(link.name)
    return names
