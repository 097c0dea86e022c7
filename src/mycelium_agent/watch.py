# SPDX-License-Identifier: Apache-2.0
"""The kernel's reports of changes to the node's and the pods' network, and whom they concern.

linux/rtnetlink.h and linux/netfilter/nfnetlink.h have the groups. The kernel reports links,
addresses, routes, neighbours and `forwarding`, and every change to the packet filter. It does not
report most other settings in /proc/sys, nor proxy entries.

One socket hears all network namespaces that have a number (nsid) in this one, as those of its
veths' other ends have (NETLINK_LISTEN_ALL_NSID, net/netlink/af_netlink.c). The number comes
beside the message.
"""

from __future__ import annotations

import select
from _socket import AF_NETLINK, MSG_DONTWAIT, SOCK_RAW, socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from errno import EAGAIN, ENOBUFS
from typing import Final

from mycelium_cni.guard import TABLE_NAME, ours
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import nftables as nf
from mycelium_cni.kernel.link import Link
from mycelium_cni.kernel.snapshot import Neighbour, Route
from mycelium_cni.node.marks import PROTOCOL
from mycelium_cni.pod.attachment import ALIAS_PREFIX

_RTNLGRP_LINK, _RTNLGRP_NEIGH, _RTNLGRP_IPV6_IFADDR = 1, 3, 9
_RTNLGRP_IPV6_ROUTE, _RTNLGRP_IPV6_NETCONF = 11, 25
_NFNLGRP_NFTABLES = 7
_RTM_NEWNETCONF, _NETCONFA_IFINDEX, _NETCONF_HEADER = 80, 1, 4  # linux/netconf.h
_NETLINK_LISTEN_ALL_NSID = 8  # linux/netlink.h
_EVERY_LINK = 0xFFFFFFFF  # NETCONFA_IFINDEX_ALL, -1
NO_LINK: Final = 0  # the index of none
HERE: Final = -1  # the number of the namespace that the socket is in

Place = tuple[int, int]  # a link: the number of its namespace, and its index


@dataclass(slots=True)
class Changes:
    """What has changed since the last look."""

    everything: bool = False  # reports were lost, or a look at everything was asked for
    links: set[int] = field(default_factory=set)  # indexes, 0 for what belongs to no link

    def __bool__(self) -> bool:
        return self.everything or bool(self.links)

    def add(self, others: Changes) -> None:
        self.everything |= others.everything
        self.links |= others.links


class Watch:
    """Hears of changes. `known`: the links that matter, each with the index of the link here that
    it belongs to; `names`: those that matter when they appear. Raises OSError if the kernel does
    not let us listen."""

    QUIET_S, LONGEST_S = 0.1, 0.4  # a look waits for silence, and no longer than this

    def __init__(self) -> None:
        self.known: Mapping[Place, set[int]] = {}
        self.names: Collection[str] = ()
        self._links: Final = _Monitor(
            nl.NETLINK_ROUTE,
            *(_RTNLGRP_LINK, _RTNLGRP_NEIGH, _RTNLGRP_IPV6_IFADDR, _RTNLGRP_IPV6_ROUTE),
            _RTNLGRP_IPV6_NETCONF,
        )
        self._rules: Final = _Monitor(nl.NETLINK_NETFILTER, _NFNLGRP_NFTABLES)
        self._poll: Final = select.poll()
        for monitor in (self._links, self._rules):
            self._poll.register(monitor, select.POLLIN)

    def also(self, descriptor: int) -> None:
        """Return from `wait` when this can be read, too."""
        self._poll.register(descriptor, select.POLLIN)

    def wait(self, seconds: float) -> bool:
        """Wait until there is something to read, or so long; returns whether there is."""
        return bool(self._poll.poll(max(0.0, seconds) * 1000))

    def read(self) -> Changes:
        """What has been reported by now."""
        changes = Changes()
        for monitor, touched in ((self._links, self._links_of), (self._rules, self._of_rules)):
            for message in monitor.messages():
                if message is None:
                    changes.everything = True
                else:
                    changes.links.update(touched(*message))
        return changes

    def _links_of(self, netns: int, kind: int, payload: bytes) -> Collection[int]:
        """Which links of ours a message is about. Other networks change all the time, and
        neighbour entries age."""
        if kind in (nl.RTM_NEWLINK, nl.RTM_DELLINK):
            link = Link(payload)
            if netns == HERE and (link.name in self.names or _is_pods(link)):
                return (link.index,)
            return self._known(netns, link.index)
        if kind in (nl.RTM_NEWADDR, nl.RTM_DELADDR):
            return self._known(netns, nl.IFADDRMSG.unpack_from(payload)[4])
        if kind in (nl.RTM_NEWROUTE, nl.RTM_DELROUTE):
            return self._known(netns, Route(payload).link)
        if kind == nl.RTM_DELNEIGH:
            neighbour = Neighbour(payload)
            lasting = neighbour.state & (nl.NUD_PERMANENT | nl.NUD_NOARP)
            if lasting or neighbour.protocol == PROTOCOL:
                return self._known(netns, neighbour.link)
        if kind == _RTM_NEWNETCONF:
            index = nl.u32(nl.decode(payload, _NETCONF_HEADER)[_NETCONFA_IFINDEX])
            if index == _EVERY_LINK:
                return (NO_LINK,) if netns == HERE else ()
            return self._known(netns, index)
        return ()

    def _known(self, netns: int, index: int) -> Collection[int]:
        return self.known.get((netns, index), ())

    def _of_rules(self, _netns: int, _kind: int, payload: bytes) -> Collection[int]:
        """Whether one of our tables has changed: its name is the first attribute of all that is in
        it."""
        table = nl.text(nl.decode(payload, 4).get(nf.NFTA_TABLE_NAME, b""))
        return (NO_LINK,) if table == TABLE_NAME else ()


def _is_pods(link: Link) -> bool:
    """Whether it is a host link. A bridge's reports about its ports have neither group nor
    alias."""
    return bool(link.attribute(nl.IFLA_GROUP)) and (
        ours(link) or link.alias.startswith(ALIAS_PREFIX)
    )


class _Monitor:
    """Hears several groups, from all namespaces, and whether it has missed something."""

    def __init__(self, protocol: int, *groups: int) -> None:
        self._socket: Final = socket(AF_NETLINK, SOCK_RAW, protocol)
        self._socket.setsockopt(nl.SOL_NETLINK, _NETLINK_LISTEN_ALL_NSID, 1)
        self._socket.bind((0, sum(1 << group - 1 for group in groups)))

    def fileno(self) -> int:
        return self._socket.fileno()

    def messages(self) -> Iterator[tuple[int, int, bytes] | None]:
        """Each message that waits: the namespace's number, kind, payload. None where some were lost
        (ENOBUFS)."""
        while True:
            try:
                datagram, beside, _, _ = self._socket.recvmsg(nl.RECEIVE_SIZE, 64, MSG_DONTWAIT)
            except OSError as error:
                if error.errno == EAGAIN:
                    return
                if error.errno != ENOBUFS:
                    raise
                yield None
                continue
            netns = HERE
            for level, kind, number in beside:
                if (level, kind) == (nl.SOL_NETLINK, _NETLINK_LISTEN_ALL_NSID):
                    netns = int.from_bytes(number, "little", signed=True)
            for kind, _, _, payload in nl.messages(datagram):
                yield netns, kind, payload
