# SPDX-License-Identifier: Apache-2.0
"""CHECK's comparison: the chain's final result, and the attachment's facts, against what the kernel
has. Changes nothing.

Other plugins may have added addresses and routes, changed the MAC (and with it the result) or moved
routes to other tables; all that is fine. What ADD made and the result lists must be there and work.
"""

from __future__ import annotations

from mycelium_cni import guard
from mycelium_cni.cni.config import Config, Route
from mycelium_cni.cni.errors import ATTACHMENT_BROKEN, CniError
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel.address import format_address, format_mac, format_prefix, parse_prefix
from mycelium_cni.kernel.facts import AlternativeName, Fact, alone, master, missing
from mycelium_cni.kernel.link import Link, find_link, read_link
from mycelium_cni.kernel.snapshot import Snapshot
from mycelium_cni.node import facts as node_facts
from mycelium_cni.node import subnet
from mycelium_cni.node.marks import word
from mycelium_cni.pod import datapath, facts, removal
from mycelium_cni.pod.attachment import Attachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mycelium_cni.cni.config import Document
    from mycelium_cni.cni.result import Result


def check(
    host: nl.Socket,
    pod: Snapshot,
    config: Config,
    attachment: Attachment,
    result: Result,
    sandbox: str,
) -> None:
    """Raises CniError: ATTACHMENT_BROKEN for the first difference, or what `subnet.find` raises,
    because without the overlay the attachment does not work."""
    host_link = removal.find(host, attachment)
    if host_link is None:
        if find_link(host, attachment.host_link):
            raise _broken(f"host link {attachment.host_link} has lost its group and its alias")
        former = _former_network(host, pod, attachment)
        if former:
            raise CniError(
                ATTACHMENT_BROKEN,
                f"{attachment.ifname} is attached to network {former}, not {attachment.network}",
                "if the network was renamed, give it its old name again until its pods are gone",
            )
        raise _broken(f"host link {attachment.host_link} of {attachment} is missing")
    if host_link.name != attachment.host_link:
        raise _lost(f"host link {attachment.host_link} is named {host_link.name} now")
    pod_link = _pod_link(pod, host_link, sandbox)
    place = _place(result, pod_link.name, sandbox)
    said = str(result.interfaces[place].get("mac") or format_mac(pod_link.mac))
    if said.lower() != format_mac(pod_link.mac):
        raise _broken(f"{pod_link.name} has MAC {format_mac(pod_link.mac)}, the result says {said}")

    node = _node(host, config, host_link)
    if node.bridged and not node.bridge:
        if host_link.master:
            raise CniError(
                ATTACHMENT_BROKEN,
                f"there is no bridge {config.bridge_name}: {host_link.name} is a port of "
                f"{read_link(host, host_link.master).name}",
                'set "bridge" to that one, or delete the pod: its successor gets a new attachment',
                about="bridge",
            )
        raise _lost(f"bridge {config.bridge_name} is missing")
    port = guard.port_of(host_link)
    if port and port.mac != pod_link.mac:
        raise _broken(
            f"{pod_link.name} has changed its MAC, and on a bridge a pod may only use the one it "
            'was given: set it with the capability "mac" instead'
        )
    addresses = [_address(ip) for ip in result.ips if ip.get("interface") == place]
    own = next((address for address in addresses if address[:8] == node.subnet), None)
    if own is None:
        raise _broken(
            f"the result has no address of {pod_link.name} in the node's subnet "
            f"{format_address(node.subnet + bytes(8))}/64: has the daemon's key changed?"
        )
    bridge = node.bridge
    shape = facts.Shape(
        node,
        facts.End(bridge.index, bridge.name, bridge.mac) if bridge else None,
        facts.End(host_link.index, host_link.name, host_link.mac),
        facts.End(pod_link.index, pod_link.name, pod_link.mac),
        own,
        _routes(result, config, node),
    )
    if bridge and host_link.master not in (0, bridge.index):
        raise _lost(
            f"host link {host_link.name} is a port of {read_link(host, host_link.master).name}, "
            f"not of {bridge.name}"
        )
    _look(Snapshot(host), _on_node(config, node, shape), "node")
    try:
        datapath.require_way(host, shape)
    except CniError as error:
        error.code = ATTACHMENT_BROKEN
        raise
    _look(pod, _in_pod(pod, shape, host_link.alias), "pod")
    if bridge and not host_link.forwards:
        held_back = datapath.held_back(shape)
        held_back.code = ATTACHMENT_BROKEN
        raise held_back
    for address in filter(None, addresses):
        if (pod_link.index, address) not in pod.addresses:
            raise _lost(f"{pod_link.name} has lost its address {format_address(address)}")
    if config.policy.required:
        guard.inspect(host, guard.Wanted(attachment.network, config, node), port)


def _former_network(host: nl.Socket, pod: Snapshot, attachment: Attachment) -> str:
    """The other network to which the interface is attached, as its host link's alias says."""
    who = (attachment.ifname, attachment.container)
    for link in pod.links.values():
        if not link.peer:
            continue
        (found,) = host.ask(nl.link(nl.RTM_GETLINK, "read link", index=link.peer))
        peer = Link(found) if found else None
        if peer is None or peer.peer != link.index or not removal.is_ours(peer):
            continue
        if (word(peer.alias, "ifname"), word(peer.alias, "container")) == who:
            return word(peer.alias, "network")
    return ""


def _node(host: nl.Socket, config: Config, host_link: Link) -> subnet.Node:
    """The node, in the mode in which the pod was attached: the configuration's may have changed."""
    node = subnet.find(host, config)
    mode = word(host_link.alias, "mode")  # 0.1.0 did not say
    if not mode or (mode == "bridge") == node.bridged:
        return node
    bridge = find_link(host, config.bridge_name) if mode == "bridge" else None
    return subnet.Node(node.address, node.mtu, mode == "bridge", bridge)


def _on_node(config: Config, node: subnet.Node, shape: facts.Shape) -> list[Fact]:
    index, name = shape.host.index, shape.host.name
    text = format_address(shape.address)
    found: list[Fact] = []
    if node.bridge:
        found += node_facts.bridge(config.bridge_name, node.bridge.index, node)
        found.append(master(index, name, node.bridge.index, config.bridge_name))
    else:
        found.append(alone(index, name))
    return [
        *found,
        AlternativeName(index, name, text, "the address is reserved by this name"),
        *facts.host_switches(shape),
        *facts.host_link(shape),
        *facts.host_reach(shape),
        *node_facts.standing(node, config.service_networks),
        *node_facts.forwarding([]),
    ]


def _in_pod(pod: Snapshot, shape: facts.Shape, alias: str) -> list[Fact]:
    return [
        *facts.pod_switches(shape.pod.name),
        *facts.pod_link(shape),
        *facts.pod_routes(shape),
        *facts.own_way(pod, shape, alias),
    ]


def _look(seen: Snapshot, wanted: Sequence[Fact], side: str) -> None:
    lost = missing(wanted, seen)
    if lost:
        raise _lost(f"the {side} has lost {lost[0].label} ({lost[0].why})")


def _broken(what: str) -> CniError:
    advice = "delete the pod: its successor gets a new attachment"
    return CniError(ATTACHMENT_BROKEN, what, advice)


def _lost(what: str) -> CniError:
    return CniError(
        ATTACHMENT_BROKEN,
        what,
        "`mycelium-cni doctor --fix` restores it, or delete the pod: its successor gets a new "
        "attachment",
    )


def _pod_link(pod: Snapshot, host_link: Link, sandbox: str) -> Link:
    """The other end of the host link, which must be in the pod's network namespace, and up."""
    link = pod.links.get(host_link.peer)
    # Each namespace counts its own indexes: another link may have the one our link had elsewhere.
    if link is None or link.peer != host_link.index:
        raise _broken(f"the pod link of {host_link.name} is not in {sandbox!a}")
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


def _routes(result: Result, config: Config, node: subnet.Node) -> list[Route]:
    """The result's routes that are ours, by destination or by gateway; another plugin may have
    removed some from the pod, and from the result."""
    gateway = format_address(node.gateway if node.bridge else node_facts.LINK_LOCAL_GATEWAY)
    ours = {format_prefix(route.destination) for route in config.routes}
    found = []
    for route in result.routes:
        dst, gw = str(route.get("dst")), route.get("gw")
        if gw != gateway and (gw or dst not in ours):
            continue
        try:
            found.append(Route(parse_prefix(dst), {}))
        except ValueError as error:
            raise _broken(f"the result has an invalid route: {error}") from None
    return found
