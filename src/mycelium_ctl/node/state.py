# SPDX-License-Identifier: Apache-2.0
"""The present state of a node: links, attachments, routes, configurations, and its daemon.

Every command reads it here and nowhere else, so that no two can disagree: the kernel with the
plugin's own netlink, the rest through the modules beside this one. Reading changes nothing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

from mycelium_cni.cni.config import PATHS, Config, Network
from mycelium_cni.cni.errors import CniError
from mycelium_cni.guard import counterpart, given_mac
from mycelium_cni.kernel import netlink as nl
from mycelium_cni.kernel import netns, sysctl
from mycelium_cni.kernel.address import format_address, format_mac, parse_address, parse_mac
from mycelium_cni.kernel.link import KnownLink, Link
from mycelium_cni.kernel.snapshot import Address, Neighbour, Route, Snapshot
from mycelium_cni.node import subnet
from mycelium_cni.node.marks import DELETE_GROUP, GROUP, GROUP_MASK
from mycelium_cni.overlay import on_mycelium
from mycelium_cni.pod.attachment import ALIAS_PREFIX, ALIAS_SIZE, LINK_PREFIX
from mycelium_ctl.errors import ToolError
from mycelium_ctl.node.conflist import TYPE
from mycelium_ctl.node.daemon import Daemon, find_process, read_daemon, read_version
from mycelium_ctl.node.namespaces import PodNetns, read_netns
from mycelium_ctl.node.options import Options
from mycelium_ctl.node.rights import blindness, may_configure
from mycelium_ctl.node.runtimes import ConfDir, read_confs

MOST_OTHERS: Final = 32  # nodes that are looked at one by one

# linux/if_link.h, net_namespace.h, rtnetlink.h, neighbour.h: what the plugin does not need.
IFLA_STATS64, IFLA_CARRIER, IFLA_LINK_NETNSID, IFLA_TARGET_NETNSID = 23, 33, 37, 46
IFLA_BRPORT_ISOLATED = 33
IFLA_TUN_OWNER, IFLA_TUN_GROUP, IFLA_TUN_PERSIST = 1, 2, 6
RTA_CACHEINFO = 12

# Links


class LinkFacts:
    """A link as RTM_NEWLINK shows it. Counters are the link's own: what it sent, its peer got."""

    __slots__ = (
        *("_counters", "alias", "altnames", "carrier", "group", "index", "isolated", "kind"),
        *("mac", "master", "mtu", "name", "nsid", "owned", "peer", "persistent", "port_state"),
        "up",
    )

    def __init__(self, link: Link) -> None:
        info = nl.decode(link.attribute(nl.IFLA_LINKINFO), 0)
        kind = link.kind
        tun = nl.decode(info.get(nl.IFLA_INFO_DATA, b""), 0) if kind == "tun" else {}
        port = nl.decode(info.get(nl.IFLA_INFO_SLAVE_DATA, b""), 0)
        nsid = link.attribute(IFLA_LINK_NETNSID)
        self.index: Final = link.index
        self.name: Final = link.name
        self.kind: Final = kind
        self.up: Final = link.up
        self.mtu: Final = link.mtu
        self.mac: Final = format_mac(link.mac)
        self.master: Final = link.master  # index of the bridge, 0 for none
        self.group: Final = link.group
        self.alias: Final = link.alias
        self.altnames: Final = tuple(link.altnames)
        self.peer: Final = link.peer  # index of the other end, in its own namespace
        # Which namespace that is; None: this one, or there is no peer.
        self.nsid: Final = int.from_bytes(nsid, "little", signed=True) if nsid else None
        # Of a TUN: a program holds it; it stays without its program; it has an owner or a group,
        # and others may not attach to it (tun(4)).
        self.carrier: Final = link.attribute(IFLA_CARRIER, b"\0") != b"\0"
        self.persistent: Final = bool(tun.get(IFLA_TUN_PERSIST, b"\0")[0])
        self.owned: Final = IFLA_TUN_OWNER in tun or IFLA_TUN_GROUP in tun
        # BR_STATE_* of a bridge's port, 0 of another link; it reaches no other isolated port.
        self.port_state: Final = port.get(nl.IFLA_BRPORT_STATE, b"\0")[0]
        self.isolated: Final = port.get(IFLA_BRPORT_ISOLATED, b"\0") != b"\0"
        self._counters: Final = link.attribute(IFLA_STATS64, bytes(64))

    def _counter(self, place: int) -> int:
        """One of struct rtnl_link_stats64."""
        return int.from_bytes(self._counters[8 * place : 8 * place + 8], "little")

    @property
    def received_packets(self) -> int:
        return self._counter(0)

    @property
    def sent_packets(self) -> int:
        return self._counter(1)

    @property
    def received_bytes(self) -> int:
        return self._counter(2)

    @property
    def sent_bytes(self) -> int:
        return self._counter(3)

    @property
    def dropped_packets(self) -> int:
        return self._counter(6) + self._counter(7)

    @property
    def ours(self) -> bool:
        """Whether it is a host link of ours, by its group, or, where somebody has moved it to
        another one, by its alias or by the address that it reserves."""
        return self._made_here and (
            self.group & GROUP_MASK == GROUP
            or self.alias.startswith(f"{ALIAS_PREFIX} ")
            or self._reserves
        )

    @property
    def placed(self) -> bool:
        """Whether its other end is in another namespace, which has not ended."""
        return self.nsid is not None and self.nsid >= 0

    @property
    def left_over(self) -> bool:
        """Whether its deletion was interrupted: the process that deleted it was killed."""
        return self._made_here and self.group & GROUP_MASK == DELETE_GROUP

    @property
    def _made_here(self) -> bool:
        """By its name, its alias or the address that it reserves. Other programs may use the same
        group numbers."""
        named = re.fullmatch(LINK_PREFIX + "[0-9a-f]{12}", self.name)
        told = self.alias.startswith(f"{ALIAS_PREFIX} ") or self._reserves
        return self.kind == "veth" and bool(named or told)

    @property
    def _reserves(self) -> bool:
        """Whether an alternative name of it is an address: a name of a link has no colon else."""
        return any(":" in name for name in self.altnames)


class PodLinks:
    """The pod links of attachments. Those that no look into a pod has shown are asked for through
    the numbers of their namespaces, to which no path is needed: all at once, when the first is
    wanted. The kernel takes 29 microseconds for each with a thousand pods: it looks for this
    namespace's number among those of all (net/core/net_namespace.c, __peernet2id)."""

    def __init__(self, host: nl.Socket, links: Sequence[LinkFacts]) -> None:
        self._host: Final = host
        self._unseen: Final = {link.index: link for link in links}
        self._seen: Final[dict[int, Link | None]] = {}

    def of(self, link: LinkFacts) -> Link | None:
        """The other end of a host link; None where there is none, or it is not visible."""
        if link.index in self._unseen:
            self._ask()
        return self._seen[link.index]

    def show(self, link: LinkFacts, found: Link | None) -> None:
        """What the namespace of the other end has at its index."""
        self._unseen.pop(link.index, None)
        self._seen[link.index] = found if found and found.peer == link.index else None

    def _ask(self) -> None:
        asked = [*self._unseen.values()]
        questions = [
            nl.link(
                *(
                    nl.RTM_GETLINK,
                    "read pod link",
                    (IFLA_TARGET_NETNSID, link.nsid or 0),
                    nl.WITHOUT_COUNTERS,
                ),
                index=link.peer,
            )
            for link in asked
            if link.placed
        ]
        answers = iter(self._host.answers(questions))
        for link in asked:
            answer = next(answers) if link.placed else None
            self.show(link, KnownLink(answer) if isinstance(answer, bytes) else None)


class Attached(NamedTuple):
    """One attachment: a host link of ours, with what its alias says and its pod link shows."""

    link: LinkFacts
    namespace: str
    pod: str
    container: str
    ifname: str
    network: str
    address: str
    octets: bytes  # the address; b"" if the link has none
    mode: str  # as the alias says; "" of attachments that do not say
    cut: bool  # the alias had no room for all of it
    pod_links: PodLinks

    @property
    def answers(self) -> bool:
        """Whether the pod link is in another namespace: the kernel deletes both ends at once."""
        return self.link.placed

    @property
    def pod_link(self) -> str:
        """Its name; "" if it is not visible."""
        end = self.pod_links.of(self.link)
        return end.name if end else ""

    @property
    def pod_mtu(self) -> int:
        """Bytes; 0 if it is not visible."""
        end = self.pod_links.of(self.link)
        return end.mtu if end else 0

    @property
    def pod_up(self) -> bool:
        end = self.pod_links.of(self.link)
        return end is not None and end.up

    @property
    def pod_mac(self) -> bytes:
        """b"" if it is not visible."""
        end = self.pod_links.of(self.link)
        return end.mac if end else b""

    @property
    def who(self) -> str:
        """The pod's name, else the container's, else the link's."""
        if self.pod:
            return f"{self.namespace}/{self.pod}" if self.namespace else self.pod
        return self.container[:13] or self.link.name

    @property
    def subnet(self) -> bytes:
        """The first 8 bytes of the address; b"" if the link has none."""
        return self.octets[:8]

    @property
    def bridged(self) -> bool:
        """Whether the pod was attached in bridge mode."""
        if self.mode:
            return self.mode == "bridge"
        if not self.container or not self.pod_mac:
            return bool(self.link.master)
        # 0.1.0 did not say, and derived one MAC from the other in bridge mode only.
        return counterpart(parse_mac(self.link.mac)) == self.pod_mac

    @property
    def expected_pod_mac(self) -> bytes:
        """The pod's MAC: in routed mode whatever it has by now, on a bridge what it was given."""
        if self.bridged and self.octets:
            return given_mac(self.octets, self.link.alias, parse_mac(self.link.mac))
        return self.pod_mac or bytes(6)


def subnet_of(address: str) -> bytes:
    """The first 8 bytes of an IPv6 address; raises ValueError."""
    return parse_address(address)[:8]


def show_subnet(prefix: bytes) -> str:
    """`400:1:2:3::/64` of its first 8 bytes."""
    return f"{format_address(prefix + bytes(8))}/64"


def read_links(seen: Snapshot) -> list[LinkFacts]:
    """All links of a namespace."""
    return list(map(LinkFacts, seen.links.values()))


def read_attachments(host: nl.Socket, links: Sequence[LinkFacts]) -> list[Attached]:
    """The attachments among these links, sorted by pod."""
    ours = [link for link in links if link.ours]
    pod_links = PodLinks(host, ours)
    found = [_attached(link, pod_links) for link in ours]
    return sorted(found, key=lambda one: (one.namespace, one.pod, one.container, one.ifname))


def _attached(link: LinkFacts, pod_links: PodLinks) -> Attached:
    said = {}
    words = link.alias.split(" ")
    if words[0] == ALIAS_PREFIX:
        said = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    namespace, _, pod = said.get("pod", "").rpartition("/")
    # The alternative name is the reservation; the alias only repeats it.
    address = next((name for name in link.altnames if ":" in name), said.get("address", ""))
    return Attached(
        link=link,
        namespace=namespace,
        pod=pod,
        container=said.get("container", ""),
        ifname=said.get("ifname", ""),
        network=said.get("network", ""),
        address=address,
        octets=_octets(address),
        mode=said.get("mode", ""),
        cut=len(link.alias) >= ALIAS_SIZE,
        pod_links=pod_links,
    )


def _octets(address: str) -> bytes:
    try:
        return parse_address(address)
    except ValueError:
        return b""


# Switches


def switch(link: str, name: str) -> str:
    """A per-link IPv6 switch; "" where the link or the switch is not there."""
    try:
        return sysctl.get(sysctl.conf(link, name))
    except OSError:
        return ""


class _NodeTables(Snapshot):
    """A namespace that has neighbours for all pods, so that they are listed at once."""

    def neighbour(self, link: int, address: bytes) -> Neighbour | None:
        def read() -> dict[tuple[int, bytes], Neighbour]:
            found = self._neighbours(nl.AF_INET6, 0, "list neighbours")
            return {(each.link, each.address): each for each in found}

        return self.once("neighbours", read).get((link, address))


class State:
    """The node, read piece by piece as it is asked for; each piece once.

    `config` is what ADD would work with: our entry of the configuration in use, overridden by
    the command line. `node` is None, and `trouble` says why, where ADD would be refused.
    """

    def __init__(self, where: Options) -> None:
        self.where: Final = where
        self.host: Final = nl.Socket()
        self._configs: Final[dict[str, Config | None]] = {}

    @cached_property
    def confs(self) -> list[ConfDir]:
        return read_confs(self.where)

    @cached_property
    def entry(self) -> dict[str, Any]:
        """The network configuration that ADD would get."""
        ours = next((conf.ours for conf in self.confs if conf.ours), None)
        entry: dict[str, Any] = {"cniVersion": "1.1.0", "name": "mycelium", "type": TYPE}
        if ours:
            entry |= ours.entries[0]
        return entry | self.where.said

    @cached_property
    def config(self) -> Config:
        """Raises ToolError for command-line values that no configuration may have."""
        return _config(self.entry)

    @property
    def cluster_file(self) -> Path:
        """Where the network finds the subnets of the cluster's nodes."""
        return Path(str(self.entry.get("clusterFile") or PATHS["clusterFile"]))

    @property
    def network(self) -> str:
        """The name of the network."""
        return str(self.entry["name"])

    def config_of(self, network: str) -> Config | None:
        """What ADD would work with for a pod of that network; None where no file of this node has
        the network any more."""
        if network not in self._configs:
            self._configs[network] = self._config_of(network)
        return self._configs[network]

    def _config_of(self, network: str) -> Config | None:
        if network == self.network:
            return self.config
        for directory in self.confs:
            for conf in directory.files:
                for entry in conf.entries if conf.valid else ():
                    if entry.get("name") == network:
                        return _config(entry)
        return None

    @property
    def interface_config(self) -> Config:
        """The same, looking at the interface alone: neither bridge nor key is checked."""
        entry = {key: value for key, value in self.entry.items() if key != "bridge"}
        return _config(entry | {"mode": "routed"})

    @cached_property
    def _found(self) -> tuple[subnet.Node | None, CniError | None]:
        try:
            return subnet.find(self.host, self.config), None
        except CniError as error:
            return None, error

    @property
    def node(self) -> subnet.Node | None:
        return self._found[0]

    @property
    def trouble(self) -> CniError | None:
        return self._found[1]

    @cached_property
    def links(self) -> list[LinkFacts]:
        return read_links(self.seen)

    @cached_property
    def _links_by_name(self) -> dict[str, LinkFacts]:
        return {link.name: link for link in self.links}

    def link(self, name: str) -> LinkFacts | None:
        return self._links_by_name.get(name)

    @property
    def interface(self) -> LinkFacts | None:
        return self.link(self.config.interface)

    @property
    def bridge(self) -> LinkFacts | None:
        return self.link(self.config.bridge_name)

    @property
    def own_links(self) -> tuple[str, str]:
        """The names of interface and bridge: what is ours beside pods' host links."""
        return self.config.interface, self.config.bridge_name

    @cached_property
    def bridged(self) -> bool:
        """Whether pods are on the bridge."""
        return self.bridges(self.config)

    def bridges(self, config: Config) -> bool:
        """Whether a network's next pod will be on its bridge, as `subnet.find` decides it."""
        there = self.link(config.bridge_name) is not None
        return config.mode == "bridge" or (config.mode == "auto" and there)

    @cached_property
    def attachments(self) -> list[Attached]:
        return read_attachments(self.host, self.links)

    @cached_property
    def attachments_by_netns(self) -> dict[int | None, list[Attached]]:
        """The attachments of each pod, by the number that this namespace knows the pod's by."""
        found: dict[int | None, list[Attached]] = {}
        for one in self.attachments:
            found.setdefault(one.link.nsid, []).append(one)
        return found

    @cached_property
    def seen(self) -> Snapshot:
        """The tables of this namespace."""
        return _NodeTables(self.host)

    @property
    def addresses(self) -> list[Address]:
        return list(self.seen.addresses.values())

    @property
    def routes(self) -> list[Route]:
        return self.seen.routes

    @cached_property
    def address(self) -> bytes | None:
        """The node's address as the interface has it, even when something else is wrong."""
        interface = self.interface
        own = [a for a in self.addresses if interface and a.link == interface.index]
        own = [a for a in own if on_mycelium(a.address)]
        return next((a.address for a in own if a.prefixlen == 7), own[0].address if own else None)

    @property
    def stranded(self) -> list[Attached]:
        """Attachments whose address is not of the node's subnet: its key has changed."""
        # Somebody may have given the interface an address of another one, too.
        index = self.interface.index if self.interface else 0
        own = {a.address[:8] for a in self.addresses if a.link == index and on_mycelium(a.address)}
        return [a for a in self.attachments if own and a.subnet and a.subnet not in own]

    @cached_property
    def daemon(self) -> Daemon:
        return read_daemon(self.where.api)

    @cached_property
    def others(self) -> list[bytes]:
        """An address in the subnet of each other node that the daemon knows, the nearest first. The
        daemon there answers for it (mycelium_ctl.echo, HOPS_TO_PEER)."""
        own = show_subnet(self.address[:8]) if self.address else ""
        if self.daemon.subnet != own:
            return []  # another daemon's API, or none
        listed = [subnet for subnet, _ in self.daemon.routes or () if subnet != own]
        return [
            subnet_of(each.partition("/")[0]) + bytes(7) + b"\1" for each in listed[:MOST_OTHERS]
        ]

    @cached_property
    def process(self) -> int | None:
        held = self.interface is not None and self.interface.carrier
        return find_process(self.config.interface) if held else None

    @cached_property
    def version(self) -> str:
        return read_version(self.process, self.where.root) if self.process else ""

    @contextmanager
    def inside(self, one: Attached) -> Iterator[bool]:
        """Let this thread be in a pod's network namespace; False where that cannot be entered."""
        _ = self.daemon  # asked before: in there, the pod could answer in its place
        nsid = one.link.nsid
        held = self.netns.get(nsid) if nsid is not None and self.may_configure else None
        try:
            there = held.open() if held else -1
        except OSError:
            there = -1
        if there < 0:
            yield False
            return
        home = netns.netns_of(self.host.fileno())
        try:
            with netns.inside(there, home=home):
                yield True
        finally:
            os.close(there)
            os.close(home)

    @contextmanager
    def look_inside(self, one: Attached) -> Iterator[Snapshot | None]:
        """The same, with the tables of that namespace."""
        with self.inside(one) as entered, nl.Socket() if entered else nullcontext() as socket:
            seen = Snapshot(socket) if socket else None
            if seen:
                one.pod_links.show(one.link, seen.links.get(one.link.peer))
            yield seen

    @cached_property
    def may_configure(self) -> bool:
        return may_configure("/proc/self")

    @cached_property
    def blindness(self) -> str:
        """Why this process cannot see whether a pod lives; "" if it can."""
        return blindness()

    @cached_property
    def netns(self) -> dict[int, PodNetns]:
        """The namespaces of the attachments' pods that can be entered."""
        return self.read_netns()

    def read_netns(self) -> dict[int, PodNetns]:
        """The same, as they are now."""
        numbers = {nsid for nsid in self.attachments_by_netns if nsid is not None and nsid >= 0}
        return read_netns(self.host, numbers)


def _config(entry: dict[str, Any]) -> Config:
    try:
        return Config(Network(json.dumps(entry).encode()))
    except CniError as error:
        raise ToolError(error.msg) from error
