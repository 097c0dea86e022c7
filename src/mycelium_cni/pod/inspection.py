# SPDX-License-Identifier: Apache-2.0
"""CHECK's comparison: the chain's final result against what the kernel has. Changes nothing.

Other plugins may have added addresses and routes, changed the MAC (and with it the result) or moved
routes to other tables; all that is fine. What ADD made and the result lists must be there and work.
"""

from __future__ import annotations

from mycelium_cni import guard
from mycelium_cni.cni.config import Config
from mycelium_cni.cni.errors import ATTACHMENT_BROKEN, CniError
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import sysctl
from mycelium_cni.kernel.address import format_address, format_mac, format_prefix, parse_prefix
from mycelium_cni.kernel.link import Link, find_link
from mycelium_cni.node import subnet
from mycelium_cni.pod.attachment import Attachment
from mycelium_cni.pod.datapath import Wiring

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mycelium_cni.cni.config import Document
    from mycelium_cni.cni.result import Result


def inspect(
    host: nl.Socket,
    pod: nl.Socket,
    config: Config,
    attachment: Attachment,
    result: Result,
    sandbox: str,
) -> None:
    """Raises CniError: ATTACHMENT_BROKEN for the first difference, or what `subnet.find` raises,
    because without the overlay the attachment is no use."""
    host_link = find_link(host, attachment.host_link)
    if host_link is None:
        raise _broken(f"host link {attachment.host_link} of {attachment} is missing")
    if not host_link.up:
        raise _broken(f"host link {host_link.name} is down")
    pod_link = _pod_link(pod, host_link, sandbox)

    place = _place(result, pod_link.name, sandbox)
    said = str(result.interfaces[place].get("mac") or format_mac(pod_link.mac))
    if said.lower() != format_mac(pod_link.mac):
        raise _broken(f"{pod_link.name} has MAC {format_mac(pod_link.mac)}, the result says {said}")

    node = subnet.find(host, config)
    if node.bridged and not node.bridge:
        raise _broken(f"bridge {config.bridge_name} is missing")
    if node.bridge and not node.bridge.up:
        raise _broken(f"bridge {config.bridge_name} is down")
    if node.bridge and not subnet.carries(host, node.bridge, node.gateway):
        gateway = format_address(node.gateway)
        raise _broken(f"bridge {config.bridge_name} has lost the pods' gateway {gateway}")
    wiring = Wiring(node, node.bridge.index if node.bridge else 0, config.routes)
    addresses = [_address(ip) for ip in result.ips if ip.get("interface") == place]
    _check_addresses(pod, pod_link, addresses, node)
    own = next(address for address in addresses if address[:8] == node.subnet)
    _check_host(host, host_link, own, wiring)
    _check_routes(pod, pod_link, result, wiring)
    if sysctl.get(sysctl.conf("all", "forwarding")) == "0":
        raise _broken("net.ipv6.conf.all.forwarding is 0 on the node: run `mycelium-cni setup`")
    if config.policy.required:
        guard.inspect(host, guard.Wanted(attachment.network, config, node))
    port = guard.port_of(host_link)
    if port and port.mac != pod_link.mac:
        raise _broken(
            f"{pod_link.name} has changed its MAC, and on a bridge a pod may only use the one it "
            'was given: set it with the capability "mac" instead'
        )


def _broken(what: str) -> CniError:
    return CniError(ATTACHMENT_BROKEN, what, "delete the pod: its successor gets a new attachment")


def _pod_link(pod: nl.Socket, host_link: Link, sandbox: str) -> Link:
    """The other end of the host link, which must be in the pod's network namespace, and up."""
    try:
        link = Link(pod.request(nl.link(nl.RTM_GETLINK, "read", index=host_link.peer))[0])
    except nl.NetlinkError:
        link = None
    # Indexes are counted in each namespace: another link may have the one our link had elsewhere.
    if link is None or link.peer != host_link.index:
        raise _broken(f"the pod end of {host_link.name} is not in {sandbox!a}")
    if not link.up:
        raise _broken(f"{link.name} is down in the pod")
    return link


def _place(result: Result, name: str, sandbox: str) -> int:
    """Where the result lists the pod link."""
    for place, interface in enumerate(result.interfaces):
        if interface.get("name") == name and interface.get("sandbox"):
            if interface["sandbox"] != sandbox:
                raise _broken(f"the result has {name} in {interface['sandbox']}, not in {sandbox}")
            return place
    raise _broken(f"the result does not list interface {name}")


def _address(ip: Document) -> bytes:
    try:
        base = str(ip.get("address")).partition("/")[0]
        return parse_prefix(f"{base}/128")[0]
    except ValueError:
        return b""  # IPv4: not ours


def _check_addresses(
    pod: nl.Socket, pod_link: Link, addresses: list[bytes], node: subnet.Node
) -> None:
    if not any(address[:8] == node.subnet for address in addresses):
        raise _broken(
            f"the result has no address of {pod_link.name} in the node's subnet "
            f"{format_address(node.subnet + bytes(8))}/64: has the daemon's key changed?"
        )
    header = nl.IFADDRMSG.pack(nl.AF_INET6, 0, 0, 0, pod_link.index)
    flags = {}
    for payload in pod.dump(nl.Message(nl.RTM_GETADDR, 0, header, "read addresses")):
        attributes = nl.decode(payload, nl.IFADDRMSG.size)
        flags[attributes[nl.IFA_ADDRESS]] = nl.u32(attributes[nl.IFA_FLAGS])
    for address in filter(None, addresses):
        text = format_address(address)
        if address not in flags:
            raise _broken(f"{pod_link.name} has lost its address {text}")
        if flags[address] & (nl.IFA_F_DADFAILED | nl.IFA_F_TENTATIVE):
            raise _broken(f"address {text} of {pod_link.name} failed duplicate address detection")


def _check_host(host: nl.Socket, host_link: Link, address: bytes, wiring: Wiring) -> None:
    text = format_address(address)
    holder = find_link(host, text)
    if holder is None or holder.index != host_link.index:
        raise _broken(f"{text} is no longer an alternative name of {host_link.name}")
    if wiring.bridge:
        if host_link.master != wiring.bridge:
            raise _broken(f"{host_link.name} is no longer a port of the bridge")
    elif not _routes(host, (address, 128), host_link.index):
        raise _broken(f"the node has lost its route to {text} dev {host_link.name}")


def _check_routes(pod: nl.Socket, pod_link: Link, result: Result, wiring: Wiring) -> None:
    """Every route that the result lists and that is ours, by destination or by gateway, must be
    there, in whatever table it is by now."""
    ours = {format_prefix(route.destination) for route in wiring.routes}
    gateway = format_address(wiring.gateway)
    for route in result.routes:
        dst, gw = str(route.get("dst")), route.get("gw")
        if gw != gateway and (gw or dst not in ours):
            continue
        try:
            gateways = _routes(pod, parse_prefix(dst), pod_link.index)
        except ValueError as error:
            raise _broken(f"the result has a route that is none: {error}") from None
        if wiring.gateway not in gateways:
            raise _broken(f"{pod_link.name} has lost its route to {dst} via {gateway}")


def _routes(socket: nl.Socket, destination: tuple[bytes, int], output: int) -> list[bytes]:
    """The gateways (b'' for none) of the routes by which a link leads to a prefix: in each table
    the most specific that cover it, for `sbr` makes of ours one default route in its own table."""
    header = nl.RTMSG.pack(nl.AF_INET6, 0, 0, 0, 0, 0, 0, 0, 0)
    filtered = header + nl.encode(((nl.RTA_OIF, output),))
    wanted, longest = int.from_bytes(destination[0], "big"), destination[1]
    best: dict[int, tuple[int, list[bytes]]] = {}
    for payload in socket.dump(nl.Message(nl.RTM_GETROUTE, 0, filtered, "read routes")):
        _, length, _, _, low, _, _, kind, _ = nl.RTMSG.unpack_from(payload)
        attributes = nl.decode(payload, nl.RTMSG.size)
        found = int.from_bytes(attributes.get(nl.RTA_DST, b""), "big")
        if kind != nl.RTN_UNICAST or length > longest or (found ^ wanted) >> 128 - length:
            continue
        table = nl.u32(attributes[nl.RTA_TABLE]) if nl.RTA_TABLE in attributes else low
        known, gateways = best.get(table, (-1, []))
        if length > known:
            gateways = []
        if length >= known:
            gateways.append(attributes.get(nl.RTA_GATEWAY, b""))
            best[table] = length, gateways
    return [gateway for _, gateways in best.values() for gateway in gateways]
