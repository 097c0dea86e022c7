# SPDX-License-Identifier: Apache-2.0
"""Whether a pod may have the requested address or MAC, and who has it already.

`args` and CNI_ARGS are untrusted (docs/security.md), so a request never takes what another
has. Between two simultaneous requests the kernel decides, later: only one gets an alternative name
(`datapath.reserve`), or an entry of the bridge's table (`datapath.raise_host_link`).
"""

from __future__ import annotations

from errno import EADDRNOTAVAIL, EHOSTUNREACH, ENETUNREACH, ENOENT
from time import monotonic, sleep

from mycelium_cni import guard
from mycelium_cni.cni.errors import ADDRESS_TAKEN, INVALID_CONFIG, CniError
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel.address import format_address, format_mac, format_prefix
from mycelium_cni.kernel.link import Link
from mycelium_cni.pod.addresses import POD_MARK
from mycelium_cni.pod.datapath import SUBNET_PREFIXLEN, taken
from mycelium_cni.pod.removal import forget_neighbour

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mycelium_cni.node.subnet import Node

# A guest of another program on the bridge: a virtual machine that is not busy answers within 1 ms.
_GUEST_TIMEOUT_S, _POLL_S = 0.2, 0.002


def check_address(host: nl.Socket, node: Node, address: bytes, stable: bytes | None) -> None:
    """Raises CniError: INVALID_CONFIG outside the node's subnet, otherwise ADDRESS_TAKEN. `stable`:
    with stable addressing this pod's own address, b'' if the pod has no name."""
    requested = f"requested IP {format_address(address)}"
    if address[:8] != node.subnet:
        prefix = format_prefix((node.subnet + bytes(8), SUBNET_PREFIXLEN))
        raise CniError(
            INVALID_CONFIG,
            f"{requested} is not in the node's subnet {prefix}",
            "a pod's address must come from the node it runs on",
        )
    if address in (node.address, node.gateway, node.subnet + bytes(8)):
        raise CniError(ADDRESS_TAKEN, f"{requested} is the node's own")
    if stable is not None and address[8:10] == POD_MARK and address != stable:
        prefix = format_prefix((node.subnet + POD_MARK + bytes(6), 80))
        own = f", and this pod's is {format_address(stable)}" if stable else ""
        raise CniError(
            ADDRESS_TAKEN,
            f'{requested} is reserved for a pod of another name: with "addressing": "stable" all '
            f"of {prefix} belongs to pods by name{own}",
            f"ask for an address outside {prefix}, or for none",
        )
    _check_node(host, address, requested)


def _check_node(host: nl.Socket, address: bytes, requested: str) -> None:
    """Refuse an address that the node has on a link, or routes elsewhere."""
    try:
        answer = host.read(nl.get_address("read address", address))
    except nl.NetlinkError as error:
        if error.errno != EADDRNOTAVAIL:
            raise
    else:
        holder = _link(host, nl.IFADDRMSG.unpack_from(answer)[4])
        raise CniError(ADDRESS_TAKEN, f"{requested} is the node's own, on {holder.name}")

    try:
        answer = host.read(nl.get_route("read route", address))
    except nl.NetlinkError as error:
        if error.errno in (EHOSTUNREACH, ENETUNREACH):  # the subnet's standing route, or none
            return
        problem = f"{requested} is not for pods: the node refuses what is sent there"
        raise CniError(ADDRESS_TAKEN, problem) from None
    length = nl.RTMSG.unpack_from(answer)[1]
    attributes = nl.decode(answer, nl.RTMSG.size)
    output = attributes.get(nl.RTA_OIF)  # missing if the route has several next hops
    if length <= SUBNET_PREFIXLEN:
        if length == SUBNET_PREFIXLEN and output:
            _refuse_guest(host, nl.u32(output), address, requested)
        return
    link = _link(host, nl.u32(output)) if output else None
    if link and guard.ours(link):
        raise taken(f"address {format_address(address)}", link)
    prefix = format_prefix((attributes[nl.RTA_DST], length))
    where = f"link {link.name}" if link else "several links"
    problem = f"{requested} is not for pods: the node routes {prefix} to {where}"
    raise CniError(ADDRESS_TAKEN, problem)


def _refuse_guest(host: nl.Socket, bridge: int, address: bytes, requested: str) -> None:
    """Refuse an address that a guest of another program has on the bridge. Such a guest reserves
    nothing, so the node solicits it, unless it is known already."""
    ports: nl.Attribute = (nl.IFLA_MASTER, bridge)
    listed = host.dump(nl.link(nl.RTM_GETLINK, "list bridge ports", ports))
    if all(guard.ours(Link(payload)) for payload in listed):
        return
    holder = _behind(host, bridge, _neighbour(host, bridge, address))
    if not holder:
        forget_neighbour(host, bridge, address)  # it may be long gone
        host.request(nl.solicit(f"ask for {format_address(address)}", bridge, address))
        mac, end = b"", monotonic() + _GUEST_TIMEOUT_S
        while not mac and monotonic() < end:
            sleep(_POLL_S)
            mac = _neighbour(host, bridge, address)
        forget_neighbour(host, bridge, address)
        holder = _behind(host, bridge, mac)
    if holder and not guard.ours(holder):
        raise CniError(ADDRESS_TAKEN, f"{requested} is taken by a neighbour on {holder.name}")


def _neighbour(host: nl.Socket, bridge: int, address: bytes) -> bytes:
    """The MAC of a neighbour on the bridge; b"" if the node does not know it."""
    try:
        answer = host.read(nl.get_neighbour("read neighbour", bridge, address))
    except nl.NetlinkError as error:
        if error.errno != ENOENT:
            raise
        return b""
    return nl.decode(answer, nl.NDMSG.size).get(nl.NDA_LLADDR, b"")


def _behind(host: nl.Socket, bridge: int, mac: bytes) -> Link | None:
    """The port of the bridge that a MAC is behind; None if the bridge does not know it."""
    if not mac:
        return None
    try:
        answer = host.read(nl.get_forwarding_entry("look up the MAC", bridge, mac))
    except nl.NetlinkError as error:
        if error.errno != ENOENT:
            raise
        return None
    return _link(host, nl.NDMSG.unpack_from(answer)[1])


def check_mac(host: nl.Socket, address: bytes, mac: bytes) -> None:
    """For a pod on a bridge; a routed pod is alone on its link, and may have any MAC. Raises
    CniError (ADDRESS_TAKEN).

    MACs behind other ports only the bridge knows: see `datapath.raise_host_link`.
    """
    requested, own = f"requested MAC {format_mac(mac)}", guard.mac_of(address)
    if own[:1] in (mac[:1], guard.counterpart(mac)[:1]) and mac != own:
        raise CniError(
            ADDRESS_TAKEN,
            f"{requested} is reserved for a pod with another address: MACs that begin with 62 or "
            f"66 are made from addresses, and this pod's is {format_mac(own)}",
            "ask for a MAC that begins otherwise, or for none",
        )
    for payload in host.dump(nl.link(nl.RTM_GETLINK, "list links")):
        link = Link(payload)
        port = guard.port_of(link)
        if mac == link.mac or (port and mac == port.mac):
            raise taken(requested, link)


def _link(host: nl.Socket, index: int) -> Link:
    return Link(host.request(nl.link(nl.RTM_GETLINK, "read link", index=index))[0])
