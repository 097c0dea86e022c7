# SPDX-License-Identifier: Apache-2.0
"""The ordered kernel steps of both modes, each beside its undo.

Routed mode: the host link is a router port. The host has a /128 route to the pod, the pod routes
via fe80::1, and both know each other's MAC from the start.
Bridge mode: the host link is a port of the bridge. The pod has its address with /64 and routes via
the first address of the subnet, which the bridge carries. Both know each other's MAC as well; only
other pods of the bridge are discovered.
The two differ in data (`mycelium_cni.pod.facts`), not in code.
"""

from __future__ import annotations

from errno import EACCES, EEXIST, EHOSTUNREACH, EINVAL, ENETUNREACH, EOPNOTSUPP, EXFULL

from mycelium_cni.cni.config import Config
from mycelium_cni.cni.errors import (
    ADDRESS_TAKEN,
    ALREADY_ATTACHED,
    NODE_MISCONFIGURED,
    TRY_AGAIN_LATER,
    CniError,
)
from mycelium_cni.guard import Port, counterpart, mac_of
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import sysctl
from mycelium_cni.kernel.address import format_address, format_mac
from mycelium_cni.kernel.facts import (
    USER_METRIC,
    AlternativeName,
    Neighbour,
    Setting,
    alias,
    mac,
)
from mycelium_cni.kernel.link import Link, find_link, read_link
from mycelium_cni.kernel.netns import inside
from mycelium_cni.kernel.patience import Patience
from mycelium_cni.kernel.shell import quoted
from mycelium_cni.node.facts import LOOPBACK, onlink
from mycelium_cni.node.marks import group
from mycelium_cni.node.subnet import Node
from mycelium_cni.pod import facts
from mycelium_cni.pod.attachment import Attachment
from mycelium_cni.pod.facts import End, Shape
from mycelium_cni.pod.removal import delete_links, exists, forget_neighbour, is_ours

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from mycelium_cni.undo import Undo

# No route, or one that refuses (net/ipv6/route.c, fib6_prop).
_NO_ROUTE = (ENETUNREACH, EHOSTUNREACH, EACCES, EINVAL)
SUBNET_PREFIXLEN: Final = 64
# A veth uses one. Unless told so, the kernel makes one per CPU and switches all but one off, with a
# grace period for either end in which nobody else can configure links (net/core/dev.c,
# netif_set_real_num_tx_queues).
_ONE_QUEUE: Final = nl.encode(((nl.IFLA_NUM_TX_QUEUES, 1), (nl.IFLA_NUM_RX_QUEUES, 1)))
# A new link is in an unknown state, and IPv6 takes it for ready as soon as it is up: the kernel
# walks all routes of the node then, and again once the link watch has seen the carrier, 0.2 ms each
# time with 1,000 pods (net/ipv6/addrconf.c, addrconf_notify). The link watch ends this state.
_NOT_READY: Final = nl.encode(((nl.IFLA_OPERSTATE, bytes((nl.IF_OPER_DORMANT,))),))


class Plan:
    """An attachment to be made: what is decided before the kernel is asked."""

    __slots__ = (
        *("address", "attachment", "bridge", "host_mac", "mtu", "node", "pod_link", "pod_mac"),
        *("requested_mac", "routes"),
    )

    def __init__(
        self,
        attachment: Attachment,
        node: Node,
        bridge: Link | None,
        config: Config,
        pod_link: str,
        address: bytes,
        requested_mac: bytes | None,
    ) -> None:
        self.attachment: Final = attachment
        self.node: Final = node
        self.bridge: Final = End(bridge.index, bridge.name, bridge.mac) if bridge else None
        self.routes: Final = config.routes
        self.mtu: Final = config.mtu or node.mtu
        self.pod_link: Final = pod_link
        self.address: Final = address
        # Set at creation: udev changes no MAC that was set.
        mac = mac_of(address)
        self.pod_mac: Final = requested_mac or mac
        self.host_mac: Final = counterpart(mac)
        self.requested_mac: Final = requested_mac

    def alias(self, pod: str, table: int = 0) -> str:
        """The text of the host link's alias."""
        mac = format_mac(self.requested_mac) if self.requested_mac else ""
        mode = "bridge" if self.bridge else "routed"
        return self.attachment.alias(mode, format_address(self.address), pod, mac, table)

    def shape(self, host: int, pod: int) -> Shape:
        """What its facts depend on, now that both ends have an index."""
        return Shape(
            self.node,
            self.bridge,
            End(host, self.attachment.host_link, self.host_mac),
            End(pod, self.pod_link, self.pod_mac),
            self.address,
            self.routes,
        )


def port(shape: Shape, network: str) -> Port | None:
    """What the guard must know of a bridged pod; None for a routed one, which it knows already."""
    if not shape.bridge:
        return None
    return Port(shape.host.index, shape.pod.mac, shape.address, group(network))


def create_pair(
    host: nl.Socket, pod_netns: int, home: int, plan: Plan, undo: Undo
) -> tuple[Link, Shape]:
    """Make both ends in one request, each in its namespace and under its final name: no other
    program can rename, configure or adopt one meanwhile. Returns the host link as it was made."""
    attachment, pod_link = plan.attachment, plan.pod_link
    host_link = attachment.host_link
    peer = nl.IFINFOMSG.pack(nl.AF_UNSPEC, 0, 0, 0, 0) + nl.encode(
        (
            (nl.IFLA_IFNAME, pod_link),
            (nl.IFLA_ADDRESS, plan.pod_mac),
            (nl.IFLA_MTU, plan.mtu),
            _ONE_QUEUE,
            (nl.IFLA_NET_NS_FD, pod_netns),
        )
    )
    attributes: list[nl.Attribute] = [
        (nl.IFLA_IFNAME, host_link),
        (nl.IFLA_ADDRESS, plan.host_mac),
        (nl.IFLA_MTU, plan.mtu),
        _ONE_QUEUE,
        _NOT_READY,
        (nl.IFLA_GROUP, group(attachment.network)),
        (
            nl.IFLA_LINKINFO,
            [(nl.IFLA_INFO_KIND, b"veth"), (nl.IFLA_INFO_DATA, [(nl.VETH_INFO_PEER, peer)])],
        ),
    ]
    if plan.bridge:
        attributes.append((nl.IFLA_MASTER, plan.bridge.index))
    # ECHO: the kernel returns what it made, which saves a look-up.
    flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL | nl.NLM_F_ECHO
    what = f"create veth {host_link} and {pod_link}"
    try:
        told = host.request(nl.link(nl.RTM_NEWLINK, what, *attributes, flags=flags))
    except nl.NetlinkError as error:
        if error.errno == EEXIST:
            raise _already_attached(host, attachment, pod_link) from None
        if error.errno == EXFULL:
            raise CniError(
                NODE_MISCONFIGURED,
                "the bridge is full: it takes 1,023 pods",
                "routed mode has no such limit",
            ) from None
        raise
    except OSError:
        # The answer was lost. If the pair was made, it has no alias yet.
        undo.push(_delete_nameless, host, host_link)
        raise
    if not told:  # before Linux 6.2 the kernel ignores ECHO here
        undo.push(_delete_nameless, host, host_link)
        told = [host.read(nl.get_link(host_link))]
    made = Link(told[0])
    undo.push(delete_links, host, [made.index])
    undo.push(_delete_lost, host, made, plan, pod_netns, home)
    # Finding the number takes 20 µs: not on a node that never had so many links.
    if made.index > sysctl.MANY < made.peer_number:
        sysctl.use_own_proc(host)
    return made, plan.shape(made.index, made.peer)


def _delete_lost(host: nl.Socket, made: Link, plan: Plan, pod_netns: int, home: int) -> None:
    """Undo of a pair whose host link was moved elsewhere meanwhile: deleting the pod link deletes
    both."""
    if exists(host, made.index):
        return
    with inside(pod_netns, home=home), nl.Socket() as pod:
        link = find_link(pod, plan.pod_link)
        if link and link.mac == plan.pod_mac:
            pod.request(nl.link(nl.RTM_DELLINK, f"delete {plan.pod_link}", index=link.index))


def _delete_nameless(host: nl.Socket, host_link: str) -> None:
    """Undo of a pair that may or may not have been made. A link with an alias (`reserve`) belongs
    to a live attachment."""
    link = find_link(host, host_link)
    if link and not link.alias:
        delete_links(host, [link.index])


def _already_attached(host: nl.Socket, attachment: Attachment, pod_link: str) -> CniError:
    link = find_link(host, attachment.host_link)
    if link and not is_ours(link):
        return CniError(
            ALREADY_ATTACHED,
            f"link {link.name} exists, and is not an attachment",
            "it takes the name that this attachment needs",
            run=f"ip link delete {link.name}",
            about=link.name,
        )
    if link:
        return CniError(
            ALREADY_ATTACHED,
            f"{attachment} is attached already, host link {attachment.host_link}",
            "the runtime must call DEL before another ADD",
            about=attachment.host_link,
        )
    return CniError(
        ALREADY_ATTACHED,
        f"the pod already has an interface {pod_link}",
        "chain mycelium-cni after the plugin that makes it, or choose another interfaceName",
        about=pod_link,
    )


def set_alias(host: nl.Socket, shape: Shape, alias: str) -> None:
    """Replace the alias that `reserve` gave the host link."""
    host.request(_alias(shape, alias).message())


def _alias(shape: Shape, text: str) -> Setting:
    return alias(shape.host.index, shape.host.name, text, "whose link it is")


def require_alternative_names(host: nl.Socket) -> None:
    """Part of STATUS. Raises CniError (NODE_MISCONFIGURED) if the kernel lacks alternative names,
    OSError if we may not set them. Changes nothing: `lo` has that name already."""
    try:
        host.ensure(nl.link_property(nl.RTM_NEWLINKPROP, "name links", LOOPBACK, "lo"))
    except nl.NetlinkError as error:
        raise _refused_name(error) from None


def _refused_name(error: nl.NetlinkError) -> OSError | CniError:
    if error.errno != EOPNOTSUPP:
        return error
    problem = "the kernel does not know alternative names of links"
    return CniError(NODE_MISCONFIGURED, problem, "Linux 5.5 or newer is needed")


def reserve(host: nl.Socket, shape: Shape, alias: str) -> None:
    """Make the address the host link's alternative name. The kernel keeps names unique in a network
    namespace and frees them with the link, so exactly one caller wins, and nothing leaks.
    The alias comes first: the loser of a race reads there who won.

    Raises CniError (ADDRESS_TAKEN) that names the holder.
    """
    text = format_address(shape.address)
    name = AlternativeName(shape.host.index, shape.host.name, text, "it reserves the address")
    try:
        host.request(_alias(shape, alias).message(), name.message())
    except nl.NetlinkError as error:
        if error.errno != EEXIST:
            raise _refused_name(error) from None
        raise taken(f"address {text}", find_link(host, text)) from None


def taken(what: str, holder: Link | None) -> CniError:
    """The error for an address or a MAC that a link of the node has, and whose link that is."""
    name = f"link {holder.name}" if holder else "an attachment that has just ended"
    owner = f" ({holder.alias})" if holder and holder.alias else ""
    return CniError(ADDRESS_TAKEN, f"{what} is taken by {name}{owner}")


def raise_host_link(host: nl.Socket, made: Link, shape: Shape, undo: Undo) -> None:
    """Host side. The pod link is up, so the host link has its carrier at once; what follows need
    not wait for the link watch, which another processor runs meanwhile (`await_carrier`).

    Raises CniError (ADDRESS_TAKEN) if somebody on the bridge has the pod's MAC, or the node has
    another route to its address.
    """
    settings = made.settings
    for switch in facts.host_switches(shape):
        # Some are as they should be from the start, and to look one up takes the kernel 5 µs.
        if settings.get(switch.name) != switch.value:
            switch.restore(host)
    wanted = [*facts.host_link(shape), *facts.host_reach(shape)]
    messages = [fact.message() for fact in wanted]
    if shape.bridge:  # all else goes with the link
        undo.push(forget_neighbour, host, shape.bridge.index, shape.address)
    else:
        # A firewall that drops the pod's answers would cut it off within a minute (docs/adr/0002).
        messages += [fact.validated() for fact in wanted if isinstance(fact, Neighbour)]
    refused = host.attempt(*messages)
    for place in sorted(refused):
        if refused[place].errno == EEXIST:
            raise _mac_taken(host, shape) if shape.bridge else _route_taken(shape)
        if place < len(wanted) or refused[place].errno != EINVAL:  # before Linux 6.17
            raise refused[place]
    # While the link watch walks the node's routes, so that nothing waits for the grace period.
    host.proc = None


def _mac_taken(host: nl.Socket, shape: Shape) -> CniError:
    """The bridge's table has the pod's MAC, as another port's or as its own."""
    bridge = shape.gateway_end.index
    question = nl.get_forwarding_entry("look up the MAC", bridge, shape.pod.mac)
    try:
        holder = read_link(host, nl.NDMSG.unpack_from(host.read(question))[1])
    except nl.NetlinkError:  # gone meanwhile
        holder = None
    return taken(f"MAC {format_mac(shape.pod.mac)}", holder)


def _route_taken(shape: Shape) -> CniError:
    address = format_address(shape.address)
    return CniError(
        ADDRESS_TAKEN,
        f"the node has another route to {address}",
        f"`ip -6 route show {address}` shows it: remove it",
    )


def require_way(host: nl.Socket, shape: Shape) -> None:
    """Raises CniError (ADDRESS_TAKEN) if the node's routes do not lead a bridged pod's packets to
    its bridge: another takes them, or the bridge's own is lost. A routed pod has a route of its
    own, which comes before all but another to the same address. Rules before the main table are not
    judged: they need not apply to all packets."""
    try:
        answer = host.read(nl.get_route("read the route to the pod", shape.address))
    except nl.NetlinkError as error:
        if error.errno not in _NO_ROUTE:
            raise
    else:
        _, length, _, _, table, *_ = nl.RTMSG.unpack_from(answer)
        output = nl.decode(answer, nl.RTMSG.size).get(nl.RTA_OIF)  # none if it has several
        if output and nl.u32(output) == shape.gateway_end.index:
            return
        if length <= SUBNET_PREFIXLEN and table != nl.RT_TABLE_MAIN:
            return
    address, bridge = format_address(shape.address), shape.gateway_end
    own = onlink(bridge.index, bridge.name, shape.node.subnet)
    raise CniError(
        ADDRESS_TAKEN,
        f"the node does not send packets for {address} to {bridge.name}",
        f"`ip -6 route show match {address}` shows the route that takes them: remove it, or run "
        f"`{own}` if none is by {bridge.name}",
    )


def enter_pod(host: nl.Socket, pod_netns: int, home: int, pod_link: str, undo: Undo) -> nl.Socket:
    """Set the switches that only a task inside the pod's namespace can set; return a socket that
    stays in it."""
    with inside(pod_netns, home=home):
        # Docker and others switch IPv6 off in a namespace; `lo` then lacks ::1 too.
        pod = nl.Socket()
        pod.proc = host.proc
        loopback, *switches = facts.pod_switches(pod_link)
        if sysctl.get(loopback.path, pod) != loopback.value:
            undo.push(_switch_back, pod_netns, home, loopback.path)
            sysctl.put(loopback.path, loopback.value, pod)
        for switch in (*switches, *facts.pod_preferences(pod_link)):
            sysctl.put(switch.path, switch.value, pod)
        pod.proc = None
        return pod


def _switch_back(pod_netns: int, home: int, switch: str) -> None:
    with inside(pod_netns, home=home):
        sysctl.put(switch, "1")


def configure_pod(pod: nl.Socket, shape: Shape, undo: Undo) -> bool:
    """Pod side: up, address, the gateway's neighbour, routes.

    Another of the pod's links may have routes to the same prefixes. These stay first: ours get a
    worse metric, and take over if that link goes.

    Returns False if several links need source routes, and this kernel has none.
    """
    link, routes = facts.pod_link(shape), facts.pod_routes(shape)
    refused = pod.attempt(*[fact.message() for fact in (*link, *routes)])
    for place in sorted(refused):
        if refused[place].errno != EEXIST:
            raise refused[place]
    shadowed = [place - len(link) for place in refused if place >= len(link)]
    if shadowed:
        worse = facts.pod_routes(shape, priority=USER_METRIC + shape.pod.index)
        pod.ensure(*[worse[place].message() for place in shadowed])
    # On a bridge some of ours are more specific, and shadow other links' routes without an error.
    return not (shadowed or shape.bridge) or _add_source_routes(pod, shape, undo)


def _add_source_routes(pod: nl.Socket, shape: Shape, undo: Undo) -> bool:
    """Give each of the pod's Mycelium links source routes for its own address, if other links would
    take its packets. Only then: a packet whose source is yet to be chosen is routed without them,
    and would miss a smaller path MTU that was learned on them."""
    from mycelium_cni.kernel.snapshot import Snapshot  # noqa: PLC0415 - not in most ADDs

    seen = Snapshot(pod)
    if not facts.has_rivals(seen, shape):
        return True
    try:
        for route in facts.source_routes_of_others(seen, shape):
            route.ensure(pod, undo)
        pod.request(*[route.message() for route in facts.source_routes(shape)])
    except nl.NetlinkError as error:
        if error.errno != EINVAL:
            raise
        return False
    return True


def announce(pod: nl.Socket, shape: Shape) -> None:
    """Make the pod advertise its MAC to its neighbours, including the node: they may know the MAC
    of the address's last owner, and would send there for another half minute. Setting a link's MAC,
    even to the same value, makes it advertise its addresses (`ndisc_notify`) and forget its
    neighbours."""
    pod.request(
        mac(shape.pod.index, shape.pod.name, shape.pod.mac, "neighbours hear of it").message(),
        facts.gateway(shape).message(),
    )


def await_address(pod: nl.Socket, shape: Shape) -> None:
    """Return when the pod takes packets for its address: an address that skips duplicate detection
    is there at once, but its local route is made by a kernel worker (net/ipv6/addrconf.c,
    addrconf_dad_work), on a busy machine tens of milliseconds later."""
    patience = Patience()
    while not _is_local(pod, shape.address):
        if patience.is_over:
            raise CniError(
                TRY_AGAIN_LATER,
                f"{format_address(shape.address)} is not usable in the pod"
                f" after {Patience.LIMIT_S:.0f} s",
                "the node has too much to do, or another program changes the pod",
            )
        patience.pause()


def _is_local(pod: nl.Socket, address: bytes) -> bool:
    try:
        route = pod.read(nl.get_route("read the address's route", address))
    except nl.NetlinkError as error:
        if error.errno not in _NO_ROUTE:
            raise
        return False
    return bool(nl.RTMSG.unpack_from(route)[7] == nl.RTN_LOCAL)


def await_carrier(host: nl.Socket, pod: nl.Socket, shape: Shape) -> None:
    """Return when packets pass: both ends are up, but until the kernel's link watch has run, it
    drops what they send, and a bridge port does not forward. From Linux 6.8 on, reading the link
    makes it run (net/core/rtnetlink.c, linkwatch_sync_dev), so one round is enough."""
    patience = Patience()
    # Both each time, the host link first: if somebody moves it away, the pod link has no carrier.
    ends = ((host, shape.host), (pod, shape.pod))
    while waiting := [end for socket, end in ends if not _passes(socket, end, shape)]:
        if patience.is_over:
            if waiting[0] is shape.host and _has_carrier(_read(host, shape.host)):
                raise held_back(shape)
            raise CniError(
                TRY_AGAIN_LATER,
                f"{waiting[0].name} has no carrier after {Patience.LIMIT_S:.0f} s",
                "the node has too much to do, or another program changes the link",
            )
        patience.pause()
    if shape.bridge:
        # A bridge loses its carrier with its last port, and its neighbours when the link watch sees
        # that, perhaps after the next pod has come. Reading the bridge makes it run now. Once only:
        # with spanning tree the carrier takes half a minute.
        read_link(host, shape.bridge.index, "read the bridge")


def _passes(socket: nl.Socket, end: End, shape: Shape) -> bool:
    link = _read(socket, end)
    return _has_carrier(link) and (shape.bridge is None or end is shape.pod or link.forwards)


def _read(socket: nl.Socket, end: End) -> Link:
    return read_link(socket, end.index, f"read link {end.name}")


def _has_carrier(link: Link) -> bool:
    return link.attribute(nl.IFLA_OPERSTATE)[0] == nl.IF_OPER_UP


def held_back(shape: Shape) -> CniError:
    """The error for a port that is up and that its bridge does not let forward."""
    bridge = shape.gateway_end.name
    return CniError(
        NODE_MISCONFIGURED,
        f"port {shape.host.name} of {bridge} does not forward",
        "spanning tree keeps ports waiting, and pods do not need it",
        run=f"ip link set dev {quoted(bridge)} type bridge stp_state 0",
        about=bridge,
    )
