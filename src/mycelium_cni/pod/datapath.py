# SPDX-License-Identifier: Apache-2.0
"""The ordered kernel steps of both modes, each beside its undo.

Routed mode: the host link is a router port. The host has a /128 route to the pod, the pod routes
via fe80::1, and both know each other's MAC from the start.
Bridge mode: the host link is a port of the bridge. The pod has its address with /64 and routes via
the first address of the subnet, which the bridge carries; neighbours are discovered.
The two differ in data (`Wiring`), not in code.
"""

from __future__ import annotations

from errno import EEXIST, ENODEV, ENOENT, EOPNOTSUPP, EXFULL
from posix import (
    WNOHANG,
    _exit,
    close,
    fork,
    getpid,
    sched_yield,
    setsid,
    waitpid,
    waitstatus_to_exitcode,
)

from mycelium_cni.cni.config import Route
from mycelium_cni.cni.errors import (
    ADDRESS_TAKEN,
    ALREADY_ATTACHED,
    NODE_MISCONFIGURED,
    TRY_AGAIN_LATER,
    CniError,
)
from mycelium_cni.guard import Port, counterpart
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import sysctl
from mycelium_cni.kernel.address import format_address, format_mac, format_prefix, link_local
from mycelium_cni.kernel.link import Link, find_link
from mycelium_cni.kernel.netns import enter, inside, netns_of, open_netns
from mycelium_cni.node.facts import LINK_LOCAL_GATEWAY, LOOPBACK
from mycelium_cni.node.marks import DELETE_GROUP, GROUP_MASK, PROTOCOL, group, word
from mycelium_cni.node.subnet import Node
from mycelium_cni.pod.addresses import mac_of
from mycelium_cni.pod.attachment import Attachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, NoReturn

    from mycelium_cni.undo import Undo

# What is awaited takes the kernel microseconds, and seconds where a hundred ADDs want its one lock.
# Every runtime waits longer than this.
_SETTLE_TIMEOUT_S = 10
_CARRIER_POLL_S = 0.0005
_POD_METRIC = 1024  # the kernel's own for routes without one
_SOURCE_TABLE = 77_000_000  # and the pod link's index; RT_TABLE_* and people use small numbers


class Wiring:
    """How a pod is wired to its node: what differs between routed and bridge mode."""

    __slots__ = ("bridge", "gateway", "host_switches", "node", "prefixlen", "routes")

    def __init__(self, node: Node, bridge: int, routes: list[Route]) -> None:
        self.node: Final = node
        self.bridge: Final = bridge
        self.gateway: Final = node.gateway if bridge else LINK_LOCAL_GATEWAY
        self.prefixlen: Final = 64 if bridge else 128
        # On a bridge the node's own address lies in the subnet that the pod takes for its link's.
        self.routes: Final = [Route((node.address, 128), {}), *routes] if bridge else routes
        self.host_switches: Final = {} if bridge else _HOST_SWITCHES


_HOST_SWITCHES = {
    "disable_ipv6": "0",  # conf.default may say 1
    "accept_ra": "0",  # a pod is no router
    # fe80::1 is nobody's address: as an address of every host link it makes ADD on a big node four
    # times slower (docs/adr/0002). The kernel still answers for it, so a pod that has lost its
    # neighbours finds its gateway again.
    "proxy_ndp": "1",
}


_POD_SWITCHES = {
    "disable_ipv6": "0",
    "accept_ra": "0",
    "keep_addr_on_down": "1",
    "ndisc_notify": "1",  # tell the node when the MAC changes
}


class Plan:
    """An attachment as it will be: what of it is decided before the kernel is asked."""

    __slots__ = (
        *("address", "attachment", "host_mac", "mtu", "pod_link", "pod_mac", "requested_mac"),
        "wiring",
    )

    def __init__(
        self,
        attachment: Attachment,
        wiring: Wiring,
        pod_link: str,
        address: bytes,
        requested_mac: bytes | None,
        mtu: int,
    ) -> None:
        self.attachment: Final = attachment
        self.wiring: Final = wiring
        self.pod_link: Final = pod_link
        self.address: Final = address
        # Set at creation: udev leaves alone what was set.
        mac = mac_of(address)
        self.pod_mac: Final = requested_mac or mac
        self.host_mac: Final = counterpart(mac)
        self.requested_mac: Final = requested_mac
        self.mtu: Final = mtu

    def alias(self, pod: str, table: int = 0) -> str:
        """What the host link says of itself."""
        mac = format_mac(self.requested_mac) if self.requested_mac else ""
        mode = "bridge" if self.wiring.bridge else "routed"
        return self.attachment.alias(mode, format_address(self.address), pod, mac, table)

    def port(self, pair: Pair) -> Port | None:
        """What the guard must know of a pod behind a bridge; of a routed one it knows enough."""
        if not self.wiring.bridge:
            return None
        return Port(pair.host, self.pod_mac, self.address, group(self.attachment.network))


class Pair:
    """The two ends of a veth, by the interface index that each has in its own namespace."""

    __slots__ = ("host", "pod")

    def __init__(self, host: int, pod: int) -> None:
        self.host: Final = host
        self.pod: Final = pod


def create_pair(host: nl.Socket, pod_netns: int, plan: Plan, undo: Undo) -> Pair:
    """One request makes both ends where they belong, under their final names: no end ever is where
    another program could rename, configure or adopt it."""
    attachment, pod_link = plan.attachment, plan.pod_link
    host_link = attachment.host_link
    peer = nl.IFINFOMSG.pack(nl.AF_UNSPEC, 0, 0, 0, 0) + nl.encode(
        (
            (nl.IFLA_IFNAME, pod_link),
            (nl.IFLA_ADDRESS, plan.pod_mac),
            (nl.IFLA_MTU, plan.mtu),
            (nl.IFLA_NET_NS_FD, pod_netns),
        )
    )
    attributes: list[nl.Attribute] = [
        (nl.IFLA_IFNAME, host_link),
        (nl.IFLA_ADDRESS, plan.host_mac),
        (nl.IFLA_MTU, plan.mtu),
        (nl.IFLA_GROUP, group(attachment.network)),
        (
            nl.IFLA_LINKINFO,
            [(nl.IFLA_INFO_KIND, b"veth"), (nl.IFLA_INFO_DATA, [(nl.VETH_INFO_PEER, peer)])],
        ),
    ]
    if plan.wiring.bridge:
        attributes.append((nl.IFLA_MASTER, plan.wiring.bridge))
    # ECHO makes the kernel say what it made, so that no look-up needs to follow.
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
        # The answer was lost. What was asked for may be there; then it has no alias yet.
        undo.push(_delete_nameless, host, host_link)
        raise
    if not told:  # before Linux 6.2, which does not heed ECHO here
        undo.push(_delete_nameless, host, host_link)
        told = host.request(nl.get_link(host_link))
    made = Link(told[0])
    undo.push(delete_links, host, [made.index])
    return Pair(made.index, made.peer)


def _delete_nameless(host: nl.Socket, host_link: str) -> None:
    """Undo of making a pair of which nobody knows whether it was made: what `reserve` has named
    belongs to a live attachment."""
    link = find_link(host, host_link)
    if link and not link.alias:
        delete_links(host, [link.index])


def _already_attached(host: nl.Socket, attachment: Attachment, pod_link: str) -> CniError:
    if find_link(host, attachment.host_link):
        return CniError(
            ALREADY_ATTACHED,
            f"{attachment} is attached already, host link {attachment.host_link}",
            "the runtime must call DEL before another ADD",
            about=attachment.host_link,
        )
    return CniError(
        ALREADY_ATTACHED,
        f"the pod already has an interface {pod_link}",
        "chain mycelium-cni behind the plugin that makes it, or choose another interfaceName",
        about=pod_link,
    )


def rename_alias(host: nl.Socket, pair: Pair, alias: str) -> None:
    """Say something else of the host link than `reserve` could know."""
    words: nl.Attribute = (nl.IFLA_IFALIAS, alias.encode())
    host.request(nl.link(nl.RTM_NEWLINK, "set alias of host link", words, index=pair.host))


def require_alternative_names(host: nl.Socket) -> None:
    """Part of STATUS. Raises CniError (NODE_MISCONFIGURED) if a link of this kernel has one name
    only, OSError if we may not give it another. Changes nothing: `lo` has that name already."""
    try:
        host.ensure(nl.link_property(nl.RTM_NEWLINKPROP, "name links", LOOPBACK, "lo"))
    except nl.NetlinkError as error:
        raise _refused_name(error) from None


def _refused_name(error: nl.NetlinkError) -> OSError | CniError:
    if error.errno != EOPNOTSUPP:
        return error
    problem = "the kernel does not know alternative names of links"
    return CniError(NODE_MISCONFIGURED, problem, "Linux 5.5 or newer is needed")


def reserve(host: nl.Socket, pair: Pair, plan: Plan, alias: str) -> None:
    """Make the address the host link's alternative name. The kernel keeps names unique in a network
    namespace and frees them with the link, so of any number of callers one wins, and nothing leaks.
    The alias comes first: whoever loses can read there who won.

    Raises CniError (ADDRESS_TAKEN) that names the holder.
    """
    text = format_address(plan.address)
    words: nl.Attribute = (nl.IFLA_IFALIAS, alias.encode())
    try:
        host.request(
            nl.link(nl.RTM_NEWLINK, "set alias of host link", words, index=pair.host),
            nl.link_property(nl.RTM_NEWLINKPROP, f"reserve {text}", pair.host, text),
        )
    except nl.NetlinkError as error:
        if error.errno != EEXIST:
            raise _refused_name(error) from None
        raise taken(f"address {text}", find_link(host, text)) from None


def taken(what: str, holder: Link | None) -> CniError:
    """The error for an address or a MAC that a link of the node has, and whose link that is."""
    name = f"link {holder.name}" if holder else "an attachment that has just ended"
    owner = f" ({holder.alias})" if holder and holder.alias else ""
    return CniError(ADDRESS_TAKEN, f"{what} is taken by {name}{owner}")


def raise_host_link(host: nl.Socket, pair: Pair, plan: Plan) -> None:
    """Host side, first half: no link-local address of the kernel's making, up. All of it goes with
    the link, so creating the link is the only thing to undo."""
    name = plan.attachment.host_link
    for switch, value in plan.wiring.host_switches.items():
        sysctl.put(sysctl.conf(name, switch), value)
    batch = [
        # In a message of its own: together with IFF_UP the kernel would set it too late.
        nl.link(nl.RTM_NEWLINK, f"configure {name}", nl.NO_LINK_LOCAL, index=pair.host),
        nl.set_up(pair.host, name),
    ]
    if plan.wiring.bridge:
        # The bridge would learn, and let a pod take another's MAC, from frames to 01:80:c2:00:00:0e
        # that no packet filter sees (net/bridge/br_input.c, br_handle_frame).
        batch = [
            nl.bridge_port(f"stop learning on {name}", pair.host, learning=False),
            nl.forwarding_entry(f"pin the pod's MAC to {name}", pair.host, plan.pod_mac),
            *batch,
        ]
    try:
        host.request(*batch)
    except nl.NetlinkError as error:
        if error.errno != EEXIST:
            raise
        raise _mac_taken(host, plan) from None


def _mac_taken(host: nl.Socket, plan: Plan) -> CniError:
    """The bridge's table has the pod's MAC, as another port's or as its own."""
    question = nl.get_forwarding_entry("read who has the MAC", plan.wiring.bridge, plan.pod_mac)
    try:
        (entry,) = host.request(question)
        index = nl.NDMSG.unpack_from(entry)[1]
        holder = Link(host.request(nl.link(nl.RTM_GETLINK, "read link", index=index))[0])
    except nl.NetlinkError:  # gone meanwhile
        holder = None
    return taken(f"MAC {format_mac(plan.pod_mac)}", holder)


def route_to_pod(host: nl.Socket, pair: Pair, plan: Plan) -> None:
    """Host side, second half, in routed mode: the pod's neighbour and route. After the carrier is
    up: when the kernel's link watch sees a link without one, it drops the link's neighbours."""
    name, address = plan.attachment.host_link, plan.address
    text = format_address(address)
    host.request(
        # Who asks for a neighbour must have an address to ask from. One that no other link has,
        # and with no prefix, so that nothing in the kernel grows with the number of pods.
        nl.address(
            nl.RTM_NEWADDR,
            f"add link-local address dev {name}",
            pair.host,
            link_local(plan.host_mac),
            128,
        ),
        nl.proxy_neighbour(
            nl.RTM_NEWNEIGH,
            f"answer for fe80::1 on {name}",
            pair.host,
            LINK_LOCAL_GATEWAY,
            PROTOCOL,
        ),
        # Known from the start, and not permanent: `tuning` may change the pod's MAC.
        nl.neighbour(
            f"set neighbour {text}",
            pair.host,
            address,
            plan.pod_mac,
            PROTOCOL,
            permanent=False,
        ),
        nl.route(
            nl.RTM_NEWROUTE,
            f"add route {text} dev {name}",
            (address, 128),
            (nl.RTA_OIF, pair.host),
            # Without a preferred source, choosing one costs every connect() of the node a walk
            # over the addresses of all links: 172 µs at 1,000 pods instead of 4.
            (nl.RTA_PREFSRC, plan.wiring.node.address),
            protocol=PROTOCOL,
        ),
    )


def enter_pod(pod_netns: int, home: int, pod_link: str, undo: Undo) -> tuple[nl.Socket, nl.Socket]:
    """Two sockets in the pod netns, which stay there, one to ask and one that hears of new routes;
    after setting the switches that only a task inside can set."""
    with inside(pod_netns, home=home):
        # Docker and others switch IPv6 off in a namespace; `lo` then lacks ::1 too.
        switch = sysctl.conf("lo", "disable_ipv6")
        if sysctl.get(switch) != "0":
            undo.push(_switch_back, pod_netns, home, switch)
            sysctl.put(switch, "0")
        for name, value in _POD_SWITCHES.items():
            sysctl.put(sysctl.conf(pod_link, name), value)
        monitor = nl.Socket()
        monitor.join(nl.RTNLGRP_IPV6_ROUTE)
        return nl.Socket(), monitor


def _switch_back(pod_netns: int, home: int, switch: str) -> None:
    with inside(pod_netns, home=home):
        sysctl.put(switch, "1")


def configure_pod(pod: nl.Socket, pair: Pair, plan: Plan, undo: Undo) -> int:
    """Pod side: no link-local address, up, address, the gateway's neighbour, routes.

    Returns the number of the link's own table, 0 if it needs none (see `_route_by_source`).
    """
    pod_link, wiring = plan.pod_link, plan.wiring
    gateway = format_address(wiring.gateway)
    batch = [
        nl.link(nl.RTM_NEWLINK, f"configure {pod_link}", nl.NO_LINK_LOCAL, index=pair.pod),
        nl.set_up(pair.pod, pod_link),
        nl.address(
            nl.RTM_NEWADDR,
            f"add address {format_address(plan.address)} dev {pod_link}",
            pair.pod,
            plan.address,
            wiring.prefixlen,
        ),
    ]
    if not wiring.bridge:
        batch.append(
            nl.neighbour(
                f"set neighbour {gateway}",
                pair.pod,
                wiring.gateway,
                plan.host_mac,
                PROTOCOL,
                permanent=True,
            )
        )
    first_route = len(batch)
    batch += [_pod_route(route, pair, plan) for route in wiring.routes]
    made = pod.ensure(*batch)[first_route:]
    shadowed = [route for route, new in zip(wiring.routes, made, strict=True) if not new]
    return _route_by_source(pod, pair, plan, shadowed, undo) if shadowed else 0


def announce(pod: nl.Socket, pair: Pair, plan: Plan) -> None:
    """Have the pod tell its neighbours, the node among them, the MAC of an address that another pod
    may have had with another MAC: whoever has that one would send there for half a minute more. A
    link that is given a MAC, be it the same, advertises its addresses (`ndisc_notify`)."""
    mac: nl.Attribute = (nl.IFLA_ADDRESS, plan.pod_mac)
    pod.request(nl.link(nl.RTM_NEWLINK, f"announce {plan.pod_link}", mac, index=pair.pod))


def _pod_route(
    route: Route, pair: Pair, plan: Plan, *, metric: int = 0, own_table: int = 0
) -> nl.Message:
    gateway = plan.wiring.gateway
    what = f"add route {format_prefix(route.destination)} via {format_address(gateway)}"
    attributes, table, scope = route_attributes(route)
    if metric and "priority" not in route.metrics:
        attributes.append((nl.RTA_PRIORITY, metric))
    return nl.route(
        nl.RTM_NEWROUTE,
        f"{what} dev {plan.pod_link}",
        route.destination,
        (nl.RTA_OIF, pair.pod),
        (nl.RTA_GATEWAY, gateway),
        *attributes,
        protocol=PROTOCOL,
        table=own_table or table,
        scope=scope,
    )


def _route_by_source(
    pod: nl.Socket, pair: Pair, plan: Plan, shadowed: list[Route], undo: Undo
) -> int:
    """Another of the pod's links has routes to the same prefixes, and keeps them. What is sent from
    this link's address must take this link all the same, for the node drops it on any other: a rule
    sends it to a table with this link's routes. If the other link goes, ours serve everybody."""
    table = _SOURCE_TABLE + pair.pod
    undo.push(_drop_rule, pod, table)
    pod.request(
        *[_pod_route(route, pair, plan, metric=_POD_METRIC + pair.pod) for route in shadowed],
        *[_pod_route(route, pair, plan, own_table=table) for route in shadowed],
        nl.rule(nl.RTM_NEWRULE, "add rule from the pod's address", table, PROTOCOL, plan.address),
    )
    return table


def forget_rule(host: nl.Socket, link: Link, path: str) -> None:
    """Part of DEL: drop the rule of `_route_by_source`, the one thing of an attachment that does
    not go with its link. Where no network namespace is at `path`, it goes with the pod."""
    table = int(word(link.alias, "table") or 0)
    if not table:
        return
    try:
        pod_netns = open_netns(path)
        with inside(pod_netns, home=netns_of(host.fileno())):
            pod = nl.Socket()
        _drop_rule(pod, table)
    except (OSError, ValueError):
        return


def _drop_rule(pod: nl.Socket, table: int) -> None:
    try:
        pod.request(nl.rule(nl.RTM_DELRULE, "delete rule", table, PROTOCOL))
    except nl.NetlinkError as error:
        if error.errno != ENOENT:
            raise


def route_attributes(route: Route) -> tuple[list[nl.Attribute], int, int]:
    """The attributes, the table and the scope of a pod route."""
    said = route.metrics
    attributes: list[nl.Attribute] = []
    if "priority" in said:
        attributes.append((nl.RTA_PRIORITY, said["priority"]))
    names = (("mtu", nl.RTAX_MTU), ("advmss", nl.RTAX_ADVMSS))
    metrics: list[nl.Attribute] = [(rtax, said[name]) for name, rtax in names if name in said]
    if metrics:
        attributes.append((nl.RTA_METRICS, metrics))
    return attributes, said.get("table", nl.RT_TABLE_MAIN), said.get("scope", nl.RT_SCOPE_UNIVERSE)


def await_address(monitor: nl.Socket, address: bytes) -> None:
    """Return when the pod takes packets for its address: an address that skips duplicate detection
    is there at once, but its local route is made by a kernel worker (net/ipv6/addrconf.c,
    addrconf_dad_work), on a busy machine tens of milliseconds later."""
    for kind, payload in monitor.notifications(_SETTLE_TIMEOUT_S):
        if kind == nl.RTM_NEWROUTE:
            attributes = nl.decode(payload, nl.RTMSG.size)
            local = nl.u32(attributes[nl.RTA_TABLE]) == nl.RT_TABLE_LOCAL
            if local and attributes.get(nl.RTA_DST) == address:
                return
    raise CniError(
        TRY_AGAIN_LATER,
        f"{format_address(address)} is not usable in the pod after {_SETTLE_TIMEOUT_S} s",
    )


def await_carrier(host: nl.Socket, pod: nl.Socket, pair: Pair, plan: Plan) -> None:
    """Return when packets pass: both ends are up, but until the kernel's link watch has run, it
    drops what they send, and a bridge port does not forward. From Linux 6.8 on the question itself
    makes it run (net/core/rtnetlink.c, linkwatch_sync_dev), so one round is enough."""
    for socket, index in ((pod, pair.pod), (host, pair.host)):
        for attempt in range(int(_SETTLE_TIMEOUT_S / _CARRIER_POLL_S)):
            if attempt > 0:
                from time import sleep  # noqa: PLC0415 - before Linux 6.8 only; see log.py

                sleep(_CARRIER_POLL_S)
            link = Link(socket.request(nl.link(nl.RTM_GETLINK, "read link", index=index))[0])
            if link.attribute(nl.IFLA_OPERSTATE)[0] == nl.IF_OPER_UP:
                break
        else:
            raise CniError(
                TRY_AGAIN_LATER,
                f"{plan.attachment.host_link} has no carrier after {_SETTLE_TIMEOUT_S} s",
            )
    if plan.wiring.bridge:
        # A bridge loses its carrier with its last port, and forgets its neighbours when that is
        # noticed, which may be after the next pod has come. Asked once, for a bridge with spanning
        # tree waits half a minute for its carrier.
        host.request(nl.link(nl.RTM_GETLINK, "read the bridge", index=plan.wiring.bridge))


def attachments(host: nl.Socket, network: str) -> list[Link]:
    """The host links of all attachments of a network."""
    veth: nl.Attribute = (nl.IFLA_LINKINFO, [(nl.IFLA_INFO_KIND, b"veth")])
    links = [Link(p) for p in host.dump(nl.link(nl.RTM_GETLINK, "list links", veth))]
    return [link for link in links if link.group == group(network)]


def delete_links(host: nl.Socket, indexes: list[int]) -> None:
    """Delete host links, and return when they, their pod ends, addresses and routes are gone.

    The kernel takes all that away within 2 ms, and then makes whoever asked wait another 30 until
    the last reader of the old structures is done. A child does that waiting (docs/adr/0003). It
    works through the request whatever becomes of it, even when killed; and one request for a whole
    group waits once for any number of links.
    """
    if len(indexes) > 1:
        doomed = DELETE_GROUP | getpid() & ~GROUP_MASK
        moves = [
            nl.link(nl.RTM_NEWLINK, "regroup", (nl.IFLA_GROUP, doomed), index=i) for i in indexes
        ]
        for move in moves:
            _unless_gone(host, move)
        request = nl.link(nl.RTM_DELLINK, "delete links", (nl.IFLA_GROUP, doomed))
    else:
        request = nl.link(nl.RTM_DELLINK, "delete link", index=indexes[0])
    try:
        child = fork()
    except OSError:  # no process to be had: do the waiting here
        host.request(request)
        return
    if child == 0:
        _delete_detached(host, request)
    for index in indexes:
        # The answer cannot come between two halves of a deletion: both take the kernel's rtnl lock,
        # and once a link is gone, so are its peer, addresses, routes, neighbours and names.
        while _exists(host, index):
            pid, status = waitpid(child, WNOHANG)
            if pid and waitstatus_to_exitcode(status) not in (0, ENODEV):
                raise OSError(waitstatus_to_exitcode(status), "the kernel did not delete the link")
            sched_yield()


def _delete_detached(host: nl.Socket, request: nl.Message) -> NoReturn:
    """The child's part: nothing of the runtime's is kept open, and its signals are not for us.
    Wherever the parent was stopped, links are numbered as at home."""
    status = 0
    try:
        for fd in range(3):
            close(fd)
        setsid()
        enter(netns_of(host.fileno()))
        nl.Socket().request(request)
    except OSError as error:
        status = error.errno or 1
    finally:
        _exit(status)


def _unless_gone(host: nl.Socket, message: nl.Message) -> None:
    """Pods end at any time, and take their links with them."""
    try:
        host.request(message)
    except nl.NetlinkError as error:
        if error.errno != ENODEV:
            raise


def _exists(host: nl.Socket, index: int) -> bool:
    try:
        host.request(nl.link(nl.RTM_GETLINK, "read link", index=index))
    except nl.NetlinkError as error:
        if error.errno != ENODEV:
            raise
        return False
    return True
